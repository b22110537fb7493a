"""The evaluation as plain text."""

from collections.abc import Mapping, Sequence

from ..wording import counted, printable

_SUMMARY = (
    ("AP", "map"),
    ("AP50", "map_50"),
    ("AP75", "map_75"),
    ("AP small", "map_small"),
    ("AP medium", "map_medium"),
    ("AP large", "map_large"),
)
_SIZES = (("AR small", "mar_small"), ("AR medium", "mar_medium"), ("AR large", "mar_large"))
_GROUPS = {"all": "", "things": "_things", "stuff": "_stuff"}


def format_table(metrics: Mapping, max_dets: Sequence[int]) -> str:
    """What `CocoEvaluator.compute()` gave -> text for a terminal: a summary and a row a class. A dash is undefined."""
    recalls = [(f"AR@{limit}", f"mar_{limit}") for limit in max_dets]
    left = list(_SUMMARY)
    right = [*recalls, *_SIZES]
    left += [("", "")] * (len(right) - len(left))
    right += [("", "")] * (len(left) - len(right))
    counts = f"{counted(metrics['num_images'], 'image')}, {counted(metrics['num_targets'], 'object')}"
    counts += f", {counted(metrics['num_detections'], 'detection')}"
    if metrics["num_crowds"]:
        counts += f", {counted(metrics['num_crowds'], 'crowd region')} ignored"
    if metrics["num_duplicates"]:
        counts += f", {counted(metrics['num_duplicates'], 'duplicate')} of images left out"

    lines = [counts, ""]
    for (name, key), (other_name, other_key) in zip(left, right, strict=True):
        row = f"{name:<10}{_value(metrics, key):>7}    {other_name:<10}{_value(metrics, other_key):>7}"
        lines.append(row.rstrip())

    per_class = {printable(name): values for name, values in metrics["per_class"].items()}
    if per_class:
        last = f"AR@{max_dets[-1]}"
        columns = [("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75"), (last, f"mar_{max_dets[-1]}")]
        width = max(len("class"), *(len(name) for name in per_class))
        head = (
            f"{'class':<{width}}" + "".join(f"{name:>8}" for name, _ in columns) + f"{'objects':>10}{'detections':>12}"
        )
        lines += ["", head, "-" * len(head)]
        for name, values in per_class.items():
            cells = "".join(f"{_value(values, key):>8}" for _, key in columns)
            lines.append(f"{name:<{width}}{cells}{values['num_targets']:>10,}{values['num_detections']:>12,}")
    return "\n".join(lines)


def format_panoptic_table(metrics: Mapping) -> str:
    """What `PanopticEvaluator.compute()` gave -> text for a terminal. A dash is undefined."""
    counts = f"{counted(metrics['num_images'], 'image')}, {counted(metrics['num_targets'], 'true segment')}"
    counts += f", {counted(metrics['num_segments'], 'found segment')}"
    keys = ("pq", "sq", "rq")
    groups = {name: [_value(metrics, key + suffix) for key in keys] for name, suffix in _GROUPS.items()}
    classes = {
        name: [
            *(_value(values, key) for key in keys),
            "thing" if values["is_thing"] else "stuff",
            f"{values['num_targets']:,}",
            f"{values['num_segments']:,}",
        ]
        for name, values in metrics["per_class"].items()
    }
    heads = [key.upper() for key in keys]
    lines = [counts, "", *_rows("", heads, groups)]
    return "\n".join(lines + (["", *_rows("class", [*heads, "kind", "true", "found"], classes)] if classes else []))


def format_semantic_table(metrics: Mapping) -> str:
    """What `SemanticEvaluator.compute()` gave -> text for a terminal. A dash is undefined."""
    names = {"mIoU": "miou", "fwIoU": "fwiou", "mAcc": "macc", "aAcc": "aacc"}
    lines = [counted(metrics["num_images"], "image"), ""]
    lines += [f"{name:<10}{_value(metrics, key):>7}" for name, key in names.items()]
    classes = {
        name: [_value(values, "iou"), _value(values, "acc"), f"{values['num_pixels']:,}"]
        for name, values in metrics["per_class"].items()
    }
    return "\n".join([*lines, "", *_rows("class", ["IoU", "Acc", "pixels"], classes)])


def _rows(head: str, columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> list[str]:
    """A table with a column of names, each column as wide as it needs."""
    first = max(len(head), *(len(name) for name in cells))
    widths = [max(7, len(name) + 2, *(len(row[i]) + 2 for row in cells.values())) for i, name in enumerate(columns)]
    title = f"{head:<{first}}" + "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))
    rows = [
        f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for name, row in cells.items()
    ]
    return [title, "-" * len(title), *rows]


def _value(metrics: Mapping, key: str) -> str:
    if not key:
        return ""
    return "-" if metrics[key] < 0 else f"{metrics[key]:.3f}"
