import pytest
import yaml

from hf_detr.checkpoints.card_facts import base_of
from hf_detr.checkpoints.model_card import model_card
from hf_detr.checkpoints.stock_check import StockCheck
from hf_detr.checkpoints.tiny import tiny_checkpoint

METRICS = {
    "map": 0.5, "map_50": 0.81239, "map_75": 0.4, "map_small": -1.0, "mar_1": 0.2, "mar_100": 0.6,
    "num_images": 3, "num_targets": 9,
    "per_class": {"a|b": {"map": 0.5, "map_50": 0.8, "num_targets": 9}},
}  # fmt: skip
FACTS = {
    "name": "cells",
    "repo_id": "somebody/cells",
    "license": "mit",
    "base_model": "facebook/detr-resnet-50",
    "stock": StockCheck("equal", 2e-6),
    "classes": ["a|b"],
    "dataset": {"name": "BCCD", "splits": {"train": {"images": 1205, "objects": 2805}}},
    "recipe": {"epochs": 3},
    "evaluation": {"split": "test", "metrics": METRICS},
    "figures": {"predictions.png": "Some images."},
    "threshold": 0.7,
}


def parts(text: str) -> tuple[dict, str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter_holds_what_the_hub_reads():
    front, _ = parts(model_card(FACTS))
    assert front["license"] == "mit"
    assert front["base_model"] == "facebook/detr-resnet-50"
    assert front["pipeline_tag"] == "object-detection"
    [result] = front["model-index"][0]["results"]
    assert result["task"]["type"] == "object-detection"
    assert result["dataset"] == {"name": "BCCD", "type": "bccd", "split": "test"}
    assert {one["name"]: one["value"] for one in result["metrics"]}["AP50"] == 0.8124


def test_body_tells_data_recipe_results_and_both_ways_to_use_it():
    _, body = parts(model_card(FACTS))
    for needed in (
        "| AP50 | 0.812 |", "| AP small (up to 32 x 32 px) | - |", "| a\\|b | 0.500 | 0.800 | 9 |",
        "| train | 1,205 | 2,805 |", "| epochs | 3 |", "| AR, 1 detection | 0.200 |", "| AR, 100 detections | 0.600 |",
        "It finds 1 class: ", "(3 images, 9 objects)", "![Some images.](predictions.png)",
        'from_pretrained("somebody/cells")', 'pipeline("object-detection", model="somebody/cells")', "threshold=0.7",
    ):  # fmt: skip
        assert needed in body


@pytest.mark.parametrize("task", ["detection", "instance", "panoptic"])
def test_snippets_are_python(task):
    _, body = parts(model_card({**FACTS, "task": task, "evaluation": None}))
    snippets = [part.split("```")[0] for part in body.split("```python\n")[1:]]
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "README.md", "exec")


def test_a_card_of_a_name_alone_has_no_empty_sections():
    front, body = parts(model_card({"name": "cells"}))
    assert "model-index" not in front
    assert "## Data" not in body
    assert "None" not in body


def test_a_card_says_what_it_is_for_where_its_data_is_from_and_what_nobody_told_it():
    _, body = parts(model_card({**FACTS, "model": {"queries": 1}}))
    limits = body.split("## Intended use and limits\n")[1].split("## ")[0]
    assert "at most 1 object in an image" in limits
    assert "known for the split `test` of 3 images alone" in limits
    assert "add it:* where the data is from; the licence of the data" in limits
    local = {**FACTS["dataset"], "format": "coco"}
    assert "BCCD, local files in the format `coco`." in model_card({**FACTS, "dataset": local})
    made = model_card({**FACTS, "dataset": {**local, "source": "made by a script"}})
    assert "BCCD, made by a script" in made
    assert "where the data is from" not in made
    hub = model_card({**FACTS, "dataset": {"name": "me/cells", "hub_id": "me/cells"}})
    assert "[me/cells](https://huggingface.co/datasets/me/cells)" in hub
    assert "where the data is from" not in hub
    alone = model_card({"name": "cells"})
    assert "Its accuracy was not measured" in alone
    assert "where the data is from" in alone


def test_names_that_no_file_can_hold_are_escaped():
    names = ["a\nb", "\udcff", "c\x1b[31m"]
    card = model_card({"name": "cells", "classes": names, "dataset": {"name": "\udcff"}})
    card.encode("utf-8")
    for shown in ("`a\\nb`", "`\\udcff`", "`c\\x1b[31m`"):
        assert shown in card


def test_a_misspelt_fact_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="unknown facts \\['licence'\\]"):
        model_card({"name": "cells", "licence": "mit"})
    with pytest.raises(ValueError, match="'name' is missing"):
        model_card({})


@pytest.mark.parametrize(
    ("stock", "sentence"),
    [
        (StockCheck("differs", 3.71, version="5.0"), "off by up to 3.7 there"),
        (StockCheck("fails", reason="no such network", version="5.0"), "transformers 5.0 refuses it (no such network)"),
        (StockCheck("unchecked", reason="disk full"), "was not checked (disk full)"),
        (None, "Trained with `hf_detr`."),
    ],
)
def test_a_card_promises_stock_transformers_only_where_the_model_was_seen_to_run_there(stock, sentence):
    front, body = parts(model_card({**FACTS, "stock": stock}))
    assert sentence in body
    assert "pipeline(" not in body
    assert "without further code" not in body
    assert front["library_name"] == "hf_detr"
    front, body = parts(model_card(FACTS))
    assert "the same logits and boxes, to 2e-06" in body
    assert front["library_name"] == "transformers"


@pytest.mark.parametrize(
    ("chosen_on", "sentence"),
    [("test", "chosen on the same split"), ("validation", "chosen on the split `validation`"), (None, None)],
)
def test_the_card_names_the_split_that_chose_the_best_epoch(chosen_on, sentence):
    evaluation = {**FACTS["evaluation"], "selection_split": chosen_on}
    _, body = parts(model_card({**FACTS, "evaluation": evaluation}))
    assert "average precision on the split `test`" in body
    assert ("The best epoch was" in body) == (sentence is not None)
    assert (sentence or "") in body


def test_where_a_training_started_names_no_folder_of_the_machine(tmp_path):
    assert base_of("facebook/detr-resnet-50") == ("facebook/detr-resnet-50", "facebook/detr-resnet-50")
    assert base_of(tiny_checkpoint()) == (None, "the tiny checkpoint of hf_detr")
    assert base_of(None) == (None, "random weights")
    for gone in (str(tmp_path / "gone"), "./gone", "~/gone", "a/b/c"):
        assert base_of(gone) == (None, "a local checkpoint")
    assert base_of(str(tmp_path)) == (None, "a local checkpoint")
    card = tmp_path / "README.md"
    for base, known in (("facebook/detr-resnet-50", True), (str(tmp_path), False), ("[1, 2]", False), ("{", False)):
        card.write_text(f"---\nbase_model: {base}\n---\n# x\n")
        name, words = base_of(str(tmp_path))
        assert name == (base if known else None)
        assert str(tmp_path) not in words
    card.write_bytes(b"\xff\xfe")
    assert base_of(str(tmp_path)) == (None, "a local checkpoint")
