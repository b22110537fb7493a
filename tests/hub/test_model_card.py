import pytest
import yaml

from hf_detr.checkpoints.model_card import model_card

METRICS = {
    "map": 0.5, "map_50": 0.81239, "map_75": 0.4, "map_small": -1.0, "mar_100": 0.6, "num_images": 3, "num_targets": 9,
    "per_class": {"a|b": {"map": 0.5, "map_50": 0.8, "num_targets": 9}},
}  # fmt: skip
FACTS = {
    "name": "cells",
    "repo_id": "somebody/cells",
    "license": "mit",
    "base_model": "facebook/detr-resnet-50",
    "dataset": {"name": "BCCD", "classes": ["a|b"], "splits": {"train": {"images": 1205, "objects": 2805}}},
    "recipe": {"epochs": 3},
    "evaluation": {"split": "test", "metrics": METRICS},
    "pictures": {"predictions.png": "Some pictures."},
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
        "| train | 1,205 | 2,805 |", "| epochs | 3 |", "![Some pictures.](predictions.png)",
        'from_pretrained("somebody/cells")', 'pipeline("object-detection", model="somebody/cells")', "threshold=0.7",
    ):  # fmt: skip
        assert needed in body


def test_snippets_are_python():
    _, body = parts(model_card(FACTS))
    snippets = [part.split("```")[0] for part in body.split("```python\n")[1:]]
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "README.md", "exec")


def test_a_card_of_a_name_alone_has_no_empty_sections():
    front, body = parts(model_card({"name": "cells"}))
    assert "model-index" not in front
    assert "## Data" not in body
    assert "None" not in body


def test_a_misspelt_fact_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="unknown facts \\['licence'\\]"):
        model_card({"name": "cells", "licence": "mit"})
    with pytest.raises(ValueError, match="'name' is missing"):
        model_card({})
