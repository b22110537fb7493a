"""`hf-detr serve --model MODEL`: a web page and an HTTP endpoint for a detector."""

import argparse
import os
import tempfile
from pathlib import Path

from ._arguments import above_zero, fraction, port, positive
from ._sources import check_model_source

_EPILOG = """\
The page takes images, shows what is found and what each box looked at. Programs send images to POST /detect, which
/openapi.json describes: curl -F image=@photo.jpg http://127.0.0.1:7860/detect. Ctrl-C or SIGTERM finishes what is under
way and stops.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a folder of save_pretrained or hf-detr train, or a Hub name"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=port, default=7860, help="0 is any that is free (default 7860)")
    parser.add_argument(
        "--threshold",
        type=fraction,
        metavar="SCORE",
        help="where the sliders and /detect begin (default: what evaluate --save-thresholds saved, else 0.5)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto (default): the fastest here")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="images at once in the model (default 8)"
    )
    limits.add_argument("--max-mb", type=above_zero, default=20, metavar="MB", help="of an image file (default 20)")
    limits.add_argument("--max-megapixels", type=above_zero, default=50, metavar="MP", help="of an image (default 50)")
    limits.add_argument(
        "--max-images", type=positive, default=16, metavar="N", help="in one request, or on the page (default 16)"
    )
    limits.add_argument(
        "--queue", type=positive, default=256, metavar="N", help="images that may wait, of all users (default 256)"
    )
    parser.add_argument(
        "--write-space", type=Path, metavar="DIR", help="do not serve: write the same as a Space for the Hub"
    )


def run(args: argparse.Namespace) -> int:
    check_model_source(args.model)
    # of this process: nothing is reported, and what visitors send lies in a folder that is gone with it
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from hf_detr.serving.limits import MIB, Limits
        from hf_detr.serving.server import create_app, listen, run_server
        from hf_detr.serving.space import write_space
    except ImportError as error:
        raise ValueError(f'serve needs gradio, which is not here ({error}); pip install "hf-detr[serve]".') from error
    if args.write_space:
        write_space(args.write_space, args.model, _settings(args))
        print(f"written: {args.write_space}")
        return 0
    from hf_detr.cli._process_memory import keep_freed_memory
    from hf_detr.serving.detector import Detector

    from ._running import choose_device, load_model, quiet_libraries

    quiet_libraries()
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    limits = Limits(
        round(args.max_mb * MIB), round(args.max_megapixels * 1e6), args.max_images, args.queue, args.batch_size
    )
    with listen(args.host, args.port) as opened, tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        model, processor = load_model(args.model, device)
        name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
        detector = Detector(model, processor, name, limits)
        try:
            app = create_app(detector, args.threshold)
            host = f"[{args.host}]" if ":" in args.host else args.host
            address = f"http://{host}:{opened.getsockname()[1]}"
            run_server(app, opened, lambda: print(f"serving {args.model} at {address} (Ctrl-C stops)", flush=True))
        finally:
            detector.close()
    print("stopped")
    return 0


def _settings(args: argparse.Namespace) -> list[str]:
    """The words that say the same of a server elsewhere."""
    words = []
    for name in ("threshold", "batch_size", "max_mb", "max_megapixels", "max_images", "queue"):
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return words
