"""`hf-detr benchmark RUN DATA`: a model in every format that runs here: AP, time, memory, size, in one table."""

import argparse
import json
import platform
import shutil
import sys
import tempfile
from contextlib import ExitStack, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ._arguments import add_data_arguments, add_policy_arguments, positive
from ._outputs import check_output_file, write_text
from ._sources import check_data_source, check_model_source

_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-static")
_OF_TORCH = ("eager", "compiled")
_NAMES = [*_OF_TORCH, "torch", "executorch"]
_NAMES += [f if p == "fp32" else f"{f}-{p}" for f in ("onnx", "openvino") for p in _PRECISIONS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Time is the model's for one image, read and resized before; the contestants take turns, each in a process "
        "of its own. Formats that do not run here are listed with the reason."
    )
    parser.add_argument("model", metavar="MODEL", help="a folder of save_pretrained or hf-detr train, or a Hub name")
    group = add_data_arguments(parser)
    group.add_argument(
        "--split", metavar="NAME", help="to measure on; default: test, else validation, else the only one"
    )
    group.add_argument("--limit", type=positive, metavar="N", help="measure AP on the first N images (default: all)")
    group.add_argument(
        "--calibration-images", type=positive, default=64, metavar="N",
        help="of split train where there is one, for int8-static (default: %(default)s)",
    )  # fmt: skip
    add_policy_arguments(group)
    parser.add_argument("--only", nargs="+", choices=_NAMES, metavar="NAME", help=f"some of {', '.join(_NAMES)}")
    parser.add_argument(
        "--timed-images", type=positive, default=10, metavar="N", help="different ones (default: %(default)s)"
    )
    parser.add_argument(
        "--turns", type=positive, default=3, metavar="N", help="over all of them (default: %(default)s)"
    )
    parser.add_argument(
        "--cpu-threads", type=positive, metavar="N", help="of every format (default: as many as torch takes here)"
    )
    parser.add_argument("--device", default="auto", help="of eager and compiled; the others run on the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw AP against time (.png, .svg, .pdf)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the exported folders there")
    parser.set_defaults(batch_size=1, threads=4)  # of the evaluation


def run(args: argparse.Namespace) -> int:
    check_model_source(args.model)
    check_data_source(args.data)
    check_output_file(args.json, "--json")
    check_output_file(args.plot, "--plot")
    import torch

    from ._judging import Judge
    from ._running import aligned, choose_device, load_model
    from ._turns import Contestant, take_turns
    from .export import quiet_exporters

    quiet_exporters()
    device = choose_device(args.device)
    threads = args.cpu_threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    model, processor = load_model(args.model, torch.device("cpu"))
    judge = Judge(args, model, processor)
    rows: dict[str, dict[str, Any]] = {}
    not_run: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-detr-benchmark-")))
        contestants = {}
        for name, form in _forms(args, model, processor, judge, folder, not_run):
            on = str(device) if name in _OF_TORCH else "cpu"
            try:
                quality = judge.measure(_model_of(name, form, args.model, on), name)
            except Exception as error:  # of a compiler or a runtime: any kind
                not_run[name] = _reason(error)
                continue
            size = sum(file.stat().st_size for file in form.glob("model.*")) if form else _weight_bytes(model)
            rows[name] = {"device": on, judge.metric: quality, "size_bytes": size}
            kind = name if name in _OF_TORCH else "program" if name == "torch" else "graph"
            contestants[name] = Contestant(kind, str(form or args.model), on)
        images = list(judge.images(judge.dataset.select(range(min(args.timed_images, len(judge.dataset))))))
        for name, result in take_turns(contestants, images, threads, args.turns, folder).items():
            if isinstance(result, str):
                not_run[name] = result
                del rows[name]
            else:
                rows[name] |= result
        if args.keep and (folder / "exports").is_dir():
            shutil.copytree(folder / "exports", args.keep, dirs_exist_ok=True)

    _print_table(args, judge, rows, not_run, threads, aligned)
    if args.json:
        content = {
            "model": args.model, "data": args.data, "split": judge.split, "images": len(judge.dataset),
            "metric": judge.metric, "timed_images": len(images), "turns": args.turns, "cpu_threads": threads,
            "environment": _environment(), "formats": rows, "not_run": not_run,
        }  # fmt: skip
        write_text(args.json, json.dumps(content, indent=1) + "\n")
        print(f"\nwritten: {args.json}")
    if args.plot and rows:
        from hf_detr.visualization.tradeoff import plot_quality_against_time

        points = {name: (row["ms"], row[judge.metric]) for name, row in rows.items()}
        plot_quality_against_time(points, judge.in_words, args.plot)
        print(f"\nwritten: {args.plot}")
    return 0


def _forms(args, model, processor, judge, folder: Path, not_run: dict[str, str]):
    """(name, exported folder or None) of each that is asked for and can be written; why the others cannot goes into
    `not_run`."""
    from hf_detr.export import Exporter

    from ._running import progress_bar

    names = [name for name in _NAMES if args.only is None or name in args.only]
    calibration = []
    if any(name.endswith("int8-static") for name in names):
        _, calibration = judge.calibration(args.calibration_images)
    exporter = None
    with progress_bar(len(names), "export", "format") as bar:
        forms = []
        for name in names:
            if name in _OF_TORCH:
                forms.append((name, None))
            else:
                format, _, precision = name.partition("-")
                try:
                    exporter = exporter or Exporter(model, processor)
                    with redirect_stdout(sys.stderr):  # the tracer tells of its progress
                        exporter.write(folder / "exports" / name, format, precision or "fp32", calibration=calibration)
                    forms.append((name, folder / "exports" / name))
                except Exception as error:  # of a tracer or a runtime: any kind
                    not_run[name] = _reason(error)
            bar.update()
    return forms


def _model_of(name: str, form: Path | None, source: str, device: str):
    """What the evaluation runs."""
    import torch

    from hf_detr.export import ExportedDetector

    from ._running import load_model

    if form is not None:
        return ExportedDetector(form)
    model, _ = load_model(source, torch.device(device))
    return torch.compile(model, dynamic=True) if name == "compiled" else model


def _weight_bytes(model: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _reason(error: BaseException) -> str:
    from ._errors import one_line

    return one_line(error)[:300]


def _print_table(args, judge, rows, not_run, threads: int, aligned) -> None:
    from hf_detr.export.card import megabytes
    from hf_detr.wording import counted

    print(
        f"{args.model} on {args.data}, split {judge.split!r}, {counted(len(judge.dataset), 'image')}; "
        f"{counted(threads, 'thread')} of the CPU\n"
    )
    table = [("format", "device", judge.in_words, "ms an image", "peak memory", "size")]
    for name, row in rows.items():
        memory = "-" if row["peak_bytes"] is None else megabytes(row["peak_bytes"])
        if row["gpu_bytes"]:
            memory += f" + {megabytes(row['gpu_bytes'])}"
        value = f"{row[judge.metric]:.3f}"
        table.append((name, row["device"], value, f"{row['ms']:.1f}", memory, megabytes(row["size_bytes"])))
    print(aligned(table))
    if not_run:
        print("\nnot run here:")
        for name, reason in not_run.items():
            print(f"  {name}: {reason}")


def _environment() -> dict[str, str]:
    """What the numbers depend on."""
    environment = {"python": platform.python_version(), "system": platform.platform(), "machine": platform.machine()}
    for package in ("torch", "transformers", "onnx", "onnxruntime", "openvino"):
        try:
            environment[package] = version(package)
        except PackageNotFoundError:
            environment[package] = "not installed"
    return environment
