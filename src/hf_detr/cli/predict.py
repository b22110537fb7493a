"""`hf-detr predict MODEL IMAGES...`: the objects in pictures, as COCO results and drawn."""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ._arguments import add_running_arguments, fraction
from ._sources import check_model_source

_EPILOG = """\
predictions.json is a list, as COCO's tools read results: image_id, category_id, bbox (left, top, width, height in
pixels of the upright picture), score; and beside them file_name and category. An image_id is the number in the file's
name where all names are numbers, else the place in the list. Exit code 1: some pictures could not be read.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", help="a folder of save_pretrained or hf-detr train, or a Hub name")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="files, folders (with all below them), or patterns ('shots/**/*.jpg')",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="DIR", help="where to write (default: predictions)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    parser.add_argument(
        "--threshold", type=fraction, default=0.5, metavar="SCORE", help="keep what scores above it (default 0.5)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="do not draw, only predictions.json")
    add_running_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_model_source(args.model)
    from ._pictures import find_pictures, image_ids, picture_names

    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())) and not args.overwrite:
        raise ValueError(f"{args.output} exists and is not empty; name another folder, or pass --overwrite.")
    files = find_pictures(args.images, besides=args.output)
    args.output.mkdir(parents=True, exist_ok=True)

    from hf_detr.cli._process_memory import keep_freed_memory

    from ._prediction import Drawer, Predictor, result_rows
    from ._running import choose_device, load_model, progress_bar, quiet_libraries

    quiet_libraries()
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    model, processor = load_model(args.model, device)
    predictor = Predictor(model, processor, args.threshold)
    drawer = None if args.no_pictures else Drawer(args.output, picture_names(files), model.config.id2label)
    rows_of: dict[int, list[dict[str, Any]]] = {}
    skipped: list[str] = []
    ids = image_ids(files)
    started = time.perf_counter()
    try:
        with progress_bar(len(files), "predict") as bar:
            for index, picture, detections in predictor(files, args.batch_size, args.threads):
                bar.update()
                if detections is None:
                    skipped.append(picture)
                    bar.write(f"skipped: {picture}", file=sys.stderr)
                    continue
                rows_of[index] = result_rows(ids[index], files[index], detections, model.config.id2label)
                if drawer:
                    drawer.draw(index, picture, detections)
    finally:
        if drawer:
            drawer.close()
    rows = [row for index in sorted(rows_of) for row in rows_of[index]]
    results = args.output / "predictions.json"
    results.write_text("[" + ",".join("\n" + json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    print(
        _summary(
            rows, list(map(len, rows_of.values())), skipped, time.perf_counter() - started, predictor.waited_s, args
        )
    )
    return 1 if skipped else 0


def _summary(
    rows: list, counts: list[int], skipped: list[str], seconds: float, waited_s: float, args: argparse.Namespace
) -> str:
    from ._running import aligned

    speed = f"{len(counts) / seconds:.1f} a second" if seconds > 0 else ""
    lines = [
        f"{len(counts):,} pictures, {sum(map(bool, counts)):,} of them with objects; {speed}",
        f"the model waited for pictures {100 * waited_s / max(seconds, 1e-9):.1f}% of the time",
        f"{len(rows):,} objects of a score above {args.threshold:g}",
    ]
    if rows:
        classes = Counter(row["category"] for row in rows)
        best = {name: max(row["score"] for row in rows if row["category"] == name) for name in classes}
        table = [("class", "objects", "best score")]
        table += [(name, f"{count:,}", f"{best[name]:.2f}") for name, count in classes.most_common()]
        lines += ["", aligned(table)]
    if skipped:
        lines += ["", f"{len(skipped):,} skipped:", *(f"  {reason}" for reason in skipped)]
    lines += ["", f"written: {args.output / 'predictions.json'}"]
    if not args.no_pictures and counts:
        lines += [f"         {len(counts):,} pictures in {args.output}"]
    return "\n".join(lines)
