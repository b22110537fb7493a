"""The README.md of a trained model: what it was trained on and how, how well it does, and how to use it.

The YAML at its head is what the Hub reads: filters, the AP on the model's page, the widget.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..wording import counted, printable
from .card_tasks import CARD_TASKS, CardTask
from .stock_check import StockCheck

_FACTS = (
    "task", "name", "repo_id", "license", "base_model", "stock", "classes", "dataset", "model", "recipe", "evaluation",
    "figures", "threshold", "versions",
)  # fmt: skip


def model_card(facts: Mapping[str, Any]) -> str:
    """The text of README.md, Markdown with YAML front matter.

    `facts`, of which only `name` must be there; what is absent is left out of the card, but for the intended use and
    the limits, where the card says that it is not known:

    - `task`: "detection" (default), "instance" or "panoptic";
    - `name`: the title; `repo_id`: "user/name" on the Hub, or a folder, for the snippets (default: `name`);
    - `license`: an identifier of the Hub's (default "apache-2.0"); `base_model`: Hub name it was fine-tuned from;
    - `stock`: the `StockCheck` of the model; without one, the card says nothing of stock transformers;
    - `classes`: their names, in the order of their ids;
    - `dataset`: {"name", "hub_id" where it is on the Hub, "source": words for where it is from, "format": how local
      files were read, "splits" {split: {"images", "objects", ...}}}; the columns of the table are the numbers that all
      splits have;
    - `model`, `recipe`, `versions`: {what: value}, each a table of two columns;
    - `evaluation`: {"split", "metrics": what the task's evaluator computes, "selection_split": the one by which the
      best epoch was chosen, if any was};
    - `figures`: {file beside the card: caption}; `threshold`: of the score in the snippets (default 0.5).

    Raises ValueError for a fact of another name, or without `name`.
    """
    unknown = [name for name in facts if name not in _FACTS]
    if unknown or not facts.get("name"):
        wrong = f"unknown facts {unknown}" if unknown else "the fact 'name' is missing"
        raise ValueError(f"model card: {wrong}; it takes {', '.join(_FACTS)}.")
    sections = [
        f"---\n{_front_matter(facts)}\n---",
        f"# {facts['name']}",
        _introduction(facts),
        *_evaluation(facts),
        *(f"![{caption}]({file})\n\n*{caption}*" for file, caption in (facts.get("figures") or {}).items()),
        _usage(facts),
        _limits(facts),
        *_data(facts),
        *_two_columns("Recipe", facts.get("recipe")),
        *_two_columns("Model", facts.get("model")),
        *_two_columns("Versions", facts.get("versions")),
        _REFERENCE,
    ]
    return "\n\n".join(sections).encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def _front_matter(facts: Mapping[str, Any]) -> str:
    dataset = facts.get("dataset") or {}
    data = ModelCardData(
        license=facts.get("license") or "apache-2.0",
        library_name="transformers" if _runs_in_stock(facts) else "hf_detr",  # for the Hub's own snippet and widget
        pipeline_tag=_task(facts).tag,
        tags=[_task(facts).tag, "vision", "detr", "hf_detr"],
        base_model=facts.get("base_model"),
        datasets=[dataset["hub_id"]] if dataset.get("hub_id") else None,
        metrics=[_task(facts).metric_type] if facts.get("evaluation") else None,
        model_name=facts["name"],
        eval_results=_eval_results(facts, dataset) or None,
    )
    return data.to_yaml(line_break="\n").strip()


def _eval_results(facts: Mapping[str, Any], dataset: Mapping[str, Any]) -> list[EvalResult]:
    evaluation = facts.get("evaluation")
    if not evaluation:
        return []
    name, task = dataset.get("name") or "unnamed", _task(facts)
    return [
        EvalResult(
            task_type=task.tag,
            dataset_type=dataset.get("hub_id") or re.sub(r"[^\w.-]+", "-", name).strip("-").lower(),
            dataset_name=name,
            dataset_split=evaluation["split"],
            metric_type=task.metric_type,
            metric_name=task.metrics[metric],
            metric_value=round(evaluation["metrics"][metric], 4),
        )
        for metric in task.on_the_hub
        if evaluation["metrics"].get(metric, -1) >= 0
    ]


def _introduction(facts: Mapping[str, Any]) -> str:
    base, dataset = facts.get("base_model"), facts.get("dataset") or {}
    text = f"A [DETR](https://arxiv.org/abs/2005.12872) {_task(facts).noun}"
    if base:
        text += f", fine-tuned from `{base}`"
    if dataset.get("name"):
        text += f", trained on {_dataset_link(dataset)}"
    classes = facts.get("classes") or []
    if classes:
        text += f". It finds {counted(len(classes), 'class', 'classes')}: {_few(classes)}"
    return text + f". Trained with `hf_detr`. {_in_stock(facts)}".rstrip()


def _task(facts: Mapping[str, Any]) -> CardTask:
    return CARD_TASKS[facts.get("task") or "detection"]


def _runs_in_stock(facts: Mapping[str, Any]) -> bool:
    return facts.get("stock") is not None and facts["stock"].outcome == "equal"


def _parts(facts: Mapping[str, Any]) -> str:
    return "logits and boxes" if _task(facts).tag == "object-detection" else "logits, boxes and masks"


def _in_stock(facts: Mapping[str, Any]) -> str:
    stock: StockCheck | None = facts.get("stock")
    if stock is None:
        return ""
    name = f"transformers {stock.version}"
    if stock.outcome == "equal":
        return (
            f"It runs in Transformers without further code: {name} gave the same {_parts(facts)}, to "
            f"{stock.difference:.0e}, when this card was written."
        )
    if stock.outcome == "differs":
        return (
            f"**Do not use it in Transformers alone**: {name} loads it, but its {_parts(facts)} are off by "
            f"up to {stock.difference:.2g} there."
        )
    if stock.outcome == "fails":
        return f"It does not run in Transformers alone: {name} refuses it ({_cell(stock.reason)})."
    return f"Whether it runs in Transformers alone was not checked ({_cell(stock.reason)})."


def _evaluation(facts: Mapping[str, Any]) -> list[str]:
    evaluation = facts.get("evaluation")
    if not evaluation:
        return []
    metrics, task = evaluation["metrics"], _task(facts)
    counts = ", ".join(
        counted(metrics[key], noun)
        for key, noun in (("num_images", "image"), ("num_targets", task.counted))
        if key in metrics
    )
    lines = [
        f"## Results\n\n{task.measure} on the split `{evaluation['split']}`"
        + (f" ({counts})." if counts else ".")
        + _selection(evaluation)
    ]
    rows = [(name, _score(metrics[key])) for key, name in task.metrics.items() if key in metrics]
    rows += [
        (f"AR, {counted(int(key[4:]), 'detection')}", _score(value))
        for key, value in metrics.items()
        if re.fullmatch(r"mar_\d+", key)
    ]
    lines.append(_table(("metric", "value"), rows))
    if metrics.get("per_class"):
        rows = [
            (_cell(name), *(_score(values[key]) for key in task.columns), f"{values['num_targets']:,}")
            for name, values in metrics["per_class"].items()
        ]
        lines.append(_table(("class", *task.columns.values(), f"{task.counted}s"), rows))
    return lines


def _selection(evaluation: Mapping[str, Any]) -> str:
    chosen_on = evaluation.get("selection_split")
    if chosen_on is None:
        return ""
    if chosen_on == evaluation["split"]:
        return " The best epoch was chosen on the same split, so on other images expect less."
    return f" The best epoch was chosen on the split `{chosen_on}`."


def _usage(facts: Mapping[str, Any]) -> str:
    task, text = _task(facts), _USAGE + (_USAGE_IN_STOCK if _runs_in_stock(facts) else "")
    for part in ("call", "pipeline", "model_class"):
        text = text.replace(f"<{part}>", getattr(task, part))
    return text.format(
        repo=facts.get("repo_id") or facts["name"], threshold=f"{float(facts.get('threshold') or 0.5):g}"
    )


def _limits(facts: Mapping[str, Any]) -> str:
    """What it is for and where it ends: what follows from the facts, and what the author has to add."""
    evaluation, dataset = facts.get("evaluation"), facts.get("dataset") or {}
    queries = (facts.get("model") or {}).get("queries")
    known = ["It is for finding objects of its classes in images like those it was trained on."]
    if queries:
        known.append(f"It finds at most {counted(queries, 'object')} in an image, and nothing of other classes.")
    if evaluation:
        images = evaluation["metrics"].get("num_images")
        number = "" if images is None else f" of {counted(images, 'image')}"
        known.append(f"Its accuracy is known for the split `{evaluation['split']}`{number} alone, see the results.")
    else:
        known.append("Its accuracy was not measured.")
    unknown = [] if dataset.get("hub_id") or dataset.get("source") else ["where the data is from"]
    unknown += ["the licence of the data", "who or what is in its images and what is missing in them"]
    unknown += ["uses that it must not be put to"]
    return "\n\n".join(
        (
            "## Intended use and limits",
            " ".join(known),
            f"*Not known when this card was written; add it:* {'; '.join(unknown)}.",
        )
    )


def _data(facts: Mapping[str, Any]) -> list[str]:
    dataset, classes = facts.get("dataset") or {}, facts.get("classes")
    source = f", {dataset['source']}" if dataset.get("source") else ""
    source += f", local files in the format `{dataset['format']}`" if dataset.get("format") else ""
    lines = [f"## Data\n\n{_dataset_link(dataset)}{source}."] if dataset else []
    splits = dataset.get("splits") or {}
    if splits:
        columns = [key for key in next(iter(splits.values())) if all(key in counts for counts in splits.values())]
        rows = [(_cell(split), *(f"{counts[key]:,}" for key in columns)) for split, counts in splits.items()]
        lines.append(_table(("split", *(column.replace("_", " ") for column in columns)), rows))
    if classes:
        lines.append("Classes, in the order of their ids: " + ", ".join(f"`{_cell(name)}`" for name in classes) + ".")
    return lines


def _two_columns(title: str, facts: Mapping[str, Any] | None) -> list[str]:
    if not facts:
        return []
    return [f"## {title}\n\n" + _table(("", ""), [(_cell(name), _cell(value)) for name, value in facts.items()])]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    alignment = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, alignment, *rows))


def _cell(value: Any) -> str:
    return printable(str(value)).replace("|", "\\|")


def _score(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(_cell(name) for name in names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


def _dataset_link(dataset: Mapping[str, Any]) -> str:
    if dataset.get("hub_id"):
        return f"[{dataset['hub_id']}](https://huggingface.co/datasets/{dataset['hub_id']})"
    return dataset.get("name") or "A data set whose name is not known"


_USAGE = """\
## Use

With `hf_detr`:

```python
from PIL import Image, ImageOps

from hf_detr import <model_class>, DetrImageProcessor

processor = DetrImageProcessor.from_pretrained("{repo}")
model = <model_class>.from_pretrained("{repo}").eval()
image = ImageOps.exif_transpose(Image.open("image.jpg"))
outputs = model(**processor(images=image, return_tensors="pt"))
<call>
```

or in a shell: `hf-detr predict {repo} image.jpg`."""

_USAGE_IN_STOCK = """

With Transformers alone:

```python
from transformers import pipeline

<pipeline>
```"""

_REFERENCE = """\
## Reference

Carion et al., *End-to-End Object Detection with Transformers*, ECCV 2020, [arXiv:2005.12872](https://arxiv.org/abs/2005.12872)."""
