"""The evaluation as plain text."""

from collections.abc import Mapping, Sequence

_SUMMARY = (
    ("AP", "map"),
    ("AP50", "map_50"),
    ("AP75", "map_75"),
    ("AP small", "map_small"),
    ("AP medium", "map_medium"),
    ("AP large", "map_large"),
)
_SIZES = (("AR small", "mar_small"), ("AR medium", "mar_medium"), ("AR large", "mar_large"))


def format_table(metrics: Mapping, max_dets: Sequence[int]) -> str:
    """What `CocoEvaluator.compute()` gave -> text for a terminal: a summary and a row a class. A dash is undefined."""
    recalls = [(f"AR@{limit}", f"mar_{limit}") for limit in max_dets]
    left = list(_SUMMARY)
    right = [*recalls, *_SIZES]
    left += [("", "")] * (len(right) - len(left))
    right += [("", "")] * (len(left) - len(right))
    counts = f"{_count(metrics['num_images'], 'image')}, {_count(metrics['num_targets'], 'object')}"
    counts += f", {_count(metrics['num_detections'], 'detection')}"
    if metrics["num_crowds"]:
        counts += f", {_count(metrics['num_crowds'], 'crowd region')} ignored"
    if metrics["num_duplicates"]:
        counts += f", {_count(metrics['num_duplicates'], 'duplicate')} of images left out"

    lines = [counts, ""]
    for (name, key), (other_name, other_key) in zip(left, right, strict=True):
        row = f"{name:<10}{_value(metrics, key):>7}    {other_name:<10}{_value(metrics, other_key):>7}"
        lines.append(row.rstrip())

    per_class = metrics["per_class"]
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


def _value(metrics: Mapping, key: str) -> str:
    if not key:
        return ""
    return "-" if metrics[key] < 0 else f"{metrics[key]:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
