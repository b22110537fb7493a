"""`hf-detr check DATA`: what a data set holds and everything that is wrong with it, before training meets it."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ._arguments import add_data_arguments, add_policy_arguments, data_options, positive
from ._errors import about
from ._outputs import check_output_file, write_text
from ._sources import check_data_source, model_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit code: 0 no errors (warnings there may be), 1 errors in the data, 2 it could not be read."
    group = add_data_arguments(parser)
    add_policy_arguments(group)
    group.add_argument("--split", action="append", metavar="NAME", help="look at this split alone; can be repeated")
    group.add_argument("--masks", action="store_true", help="problems of masks are errors, as for a model with masks")
    group.add_argument("--headers-only", action="store_true", help="do not decode the images: quicker, finds less")
    queries = parser.add_mutually_exclusive_group()
    queries.add_argument(
        "--num-queries",
        type=positive,
        metavar="N",
        help="of the model to be; the most it can find in an image (default: what hf-detr train picks)",
    )
    queries.add_argument("--model", metavar="MODEL", help="a DETR, folder or Hub name, whose number of queries counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report, every problem in it")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="write a sheet of images with their boxes")
    parser.add_argument("--images", type=positive, default=16, metavar="N", help="on the sheet (default 16)")


def run(args: argparse.Namespace) -> int:
    check_data_source(args.data)
    if args.model:
        args.model = model_source(args.model)
    from datasets import concatenate_datasets, disable_progress_bars
    from PIL import Image

    from hf_detr.data.checks import check_dataset
    from hf_detr.data.contact_sheet import draw_contact_sheet
    from hf_detr.data.formats.base import Findings
    from hf_detr.data.loading import load

    disable_progress_bars()
    if args.draw and args.draw.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--draw {args.draw}: not the name of an image file; end it with .png or .jpg.")
    check_output_file(args.json, "--json")
    check_output_file(args.draw, "--draw")
    options = {**data_options(args), "splits": args.split}
    num_queries, own = _num_queries(args)
    with about(args.data, "correct the data, or how it is to be read"):
        report = check_dataset(
            args.data, args.format, num_queries=num_queries, decode_images=not args.headers_only,
            masks=args.masks or None, on_bad_box=args.on_bad_box, on_bad_image=args.on_bad_image, **options,
        )  # fmt: skip
    whose = f"of {args.model}" if args.model else "the default"
    if own not in (None, report.num_queries):
        whose = f"picked, {own} {whose} are too few"
    print(report.text(None if own is None else whose))
    if args.json:
        write_text(args.json, json.dumps(report.to_dict(), indent=2) + "\n")
        print(f"\nwritten: {args.json}")
    if args.draw:
        # as it is, bad boxes too: the problems are in the report already
        with about(args.draw, "name another file"):
            splits = load(args.data, args.format, Findings(collect=True), on_bad_box="keep", **options).splits
            path = draw_contact_sheet(concatenate_datasets(list(splits.values())), args.draw, args.images)
        print(f"\nwritten: {path}")
    return 1 if report.errors else 0


def _num_queries(args: argparse.Namespace) -> tuple[int | Callable[[list[int]], int], int | None]:
    """The number to judge by; or how a training picks it, and that of its start. ValueError for a model that cannot be
    had."""
    if args.num_queries:
        return args.num_queries, None
    from hf_detr.configuration_detr import DetrConfig
    from hf_detr.training.automatic import Start, queries_for

    start = Start()  # the published one
    if args.model:
        with about(args.model, "name a folder of save_pretrained or hf-detr train, or a DETR on the Hub"):
            start = Start(num_queries=DetrConfig.from_pretrained(args.model).num_queries)
    return partial(queries_for, start), start.num_queries
