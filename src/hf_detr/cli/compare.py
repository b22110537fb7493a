"""`hf-detr compare MODEL MODEL ... DATA`: several models on one split, and whether their differences are more than
chance."""

import argparse
import json
from pathlib import Path

from ._arguments import add_data_arguments, add_policy_arguments, add_running_arguments, positive
from ._errors import about
from ._outputs import check_output_file
from ._sources import check_data_source, check_model_source

_METRICS = {"map": "AP", "map_50": "AP50", "map_75": "AP75", "map_small": "small", "map_medium": "medium"}
_METRICS |= {"map_large": "large"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Differences are those from the first model, with the range of 95 in 100 draws of the images."
    parser.add_argument("models", metavar="MODEL", nargs="+", help="folders of runs or checkpoints, or Hub names")
    group = add_data_arguments(parser)
    group.add_argument("--split", metavar="NAME", help="default: test, else validation, else the only one there is")
    add_policy_arguments(group)
    parser.add_argument("--draws", type=positive, default=500, metavar="N", help="of the images (default 500)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write metrics and differences")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw precision against recall (.png, .svg, .pdf)")
    add_running_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if len(args.models) < 2:
        raise ValueError(f"{args.models[0]}: one model and data; name at least two models, then the data.")
    for model in args.models:
        check_model_source(model)
    check_data_source(args.data)
    check_output_file(args.json, "--json")
    check_output_file(args.plot, "--plot")
    from hf_detr.data.schema import class_names
    from hf_detr.evaluation import CocoEvaluator
    from hf_detr.evaluation.comparison import compare

    from ._running import aligned, load_model, quiet_libraries
    from .evaluate import device_of, load_split, match_classes, measure

    quiet_libraries()
    device = device_of(args)
    split, dataset = load_split(args)
    names = class_names(dataset)
    evaluators = []
    for name in args.models:
        model, processor = load_model(name, device)
        class_of_label = match_classes(model.config.id2label, names)
        evaluators.append(CocoEvaluator(names))
        measure(args, model, processor, dataset, evaluators[-1], class_of_label, f"evaluate {Path(name).name}")

    metrics = [evaluator.compute() for evaluator in evaluators]
    differences = [compare(evaluators[0], other, args.draws) for other in evaluators[1:]]
    print(f"{args.data}, split {split!r}, {len(dataset):,} images\n")
    rows = [("model", *_METRICS.values())]
    rows += [
        (name, *("-" if m[key] < 0 else f"{m[key]:.3f}" for key in _METRICS))
        for name, m in zip(args.models, metrics, strict=True)
    ]
    print(aligned(rows), end="\n\n")
    for name, difference in zip(args.models[1:], differences, strict=True):
        ap = difference["map"]
        verdict = "more than chance" if ap.is_more_than_chance else "may be chance"
        print(f"{name}: AP {ap.value:+.3f} ({ap.low:+.3f} to {ap.high:+.3f}) from {args.models[0]}: {verdict}.")
    if args.json:
        content = {
            "split": split,
            "models": [{"model": name, **m} for name, m in zip(args.models, metrics, strict=True)],
            "differences": [
                {"model": name, **{key: vars(value) for key, value in difference.items()}}
                for name, difference in zip(args.models[1:], differences, strict=True)
            ],
        }
        with about(args.json, "name another file"):
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten: {args.json}")
    if args.plot:
        from hf_detr.evaluation.analysis import analyse
        from hf_detr.visualization.curves import plot_precision

        with about(args.plot, "name another file"):
            overall = [analyse(evaluator).overall for evaluator in evaluators]
            plot_precision(
                {name: (c.recall, c.precision) for name, c in zip(args.models, overall, strict=True)}, args.plot
            )
        print(f"\nwritten: {args.plot}")
    return 0
