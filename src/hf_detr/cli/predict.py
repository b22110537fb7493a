"""`hf-detr predict MODEL INPUTS...`: the objects in images and videos, as JSON and drawn."""

import argparse
from contextlib import nullcontext
from pathlib import Path

from ._arguments import add_running_arguments, counting, fraction
from ._sources import check_model_source

_EPILOG = """\
predictions.json is a list, as COCO's tools read results: image_id, category_id, bbox (left, top, width, height in
pixels of the upright image), score; and beside them file_name and category. An image_id is the number in the file's
name where all names are numbers, else the place in the list. Of a video, NAME.json has an entry a frame: frame (from
0), time_s, and the detections. Both are written after each image and are whole at any moment: Ctrl-C keeps what was
found. A model with masks adds `segmentation`, COCO's compressed run-length encoding; a panoptic one also writes
panoptic.json and the maps panoptic/*.png, as COCO's panoptic format has them. Exit code 1: some images could not be
read or written, and are named.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", help="a folder of save_pretrained or hf-detr train, or a Hub name")
    parser.add_argument(
        "inputs",
        metavar="INPUTS",
        nargs="+",
        help="images, folders (the images in them and below), patterns ('shots/**/*.jpg'), videos, numbers of webcams",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="DIR", help="where to write (default: predictions)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    parser.add_argument(
        "--threshold",
        type=fraction,
        metavar="SCORE",
        help="keep what scores above it (default: what evaluate --save-thresholds saved, else 0.5)",
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="PX",
        help="look at larger images in tiles of this side too, for small objects; the same objects are merged",
    )
    parser.add_argument(
        "--overlap",
        type=_overlap,
        metavar="SHARE",
        help="of neighbouring tiles (default 0.2)",
    )
    parser.add_argument("--no-drawings", action="store_true", help="do not draw, only write JSON")
    parser.add_argument("--enlarge", action="store_true", help="draw images below 640 px at a multiple of their size")
    add_running_arguments(parser)


def _tile(text: str) -> int:
    """A side in pixels that a model can see something in."""
    value = counting(text)
    if value < 32:
        raise argparse.ArgumentTypeError(f"{text} is not a side of at least 32 pixels.")
    return value


def _overlap(text: str) -> float:
    """A share that leaves the next tile something of its own."""
    value = fraction(text)
    if value > 0.9:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 0.9.")
    return value


def run(args: argparse.Namespace) -> int:
    check_model_source(args.model)
    if args.overlap is not None and not args.tile:
        raise ValueError(f"--overlap {args.overlap:g} is that of tiles; give their side with --tile, or leave it out.")
    from ._images import drawing_names, find_files, is_video

    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())) and not args.overwrite:
        raise ValueError(f"{args.output} exists and is not empty; name another folder, or pass --overwrite.")
    webcams = [word for word in args.inputs if word.isdecimal() and not Path(word).exists()]
    files = find_files([word for word in args.inputs if word not in webcams], leave_out=args.output)
    images = [file for file in files if not is_video(file)]
    videos: dict[Path, Path | int] = {file: file for file in files if is_video(file)}
    videos |= {Path(f"webcam{word}.mp4"): int(word) for word in webcams}
    if videos:
        from . import _video  # noqa: F401  # says what is missing, before the work
    # a video's JSON must not be that of the images
    taken = ["predictions.mp4", "panoptic.mp4"]
    drawings = [args.output / name for name in drawing_names([*images, *videos], taken)]
    args.output.mkdir(parents=True, exist_ok=True)

    from hf_detr.cli._process_memory import keep_freed_memory

    from ._predict_run import PredictRun
    from ._results import ResultsFile
    from ._running import choose_device, load_model, quiet_libraries

    results = ResultsFile(args.output / "predictions.json") if images else nullcontext()  # its error before the work
    with results:
        quiet_libraries()
        device = choose_device(args.device)
        if device.type == "cpu":
            keep_freed_memory()
        predict = PredictRun(args, *load_model(args.model, device))
        try:
            if images:
                predict.images(images, drawings[: len(images)], results)
            for source, drawing in zip(videos.values(), drawings[len(images) :], strict=True):
                predict.video(source, drawing)
        finally:  # what an interrupted run has found as well
            predict.close()
            print(predict.summary())
    return 1 if predict.lost else 0
