"""Law 13: nothing that is loaded runs code or opens what it was not asked to.

A process that reports what it opens loads malicious files of every kind; see `safe_loading_worker`.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from timm.models._builder import build_model_with_cfg

from hf_detr import DetrConfig

ROOT = Path(__file__).resolve().parents[2]
# What loads, the malicious part of it left alone. All else is refused.
HARMLESS = (
    "code of nothing", "code of a known backbone", "weights of a known backbone", "code of the detector", "a kernel",
    "another configuration", "timm, pretrained", "names of methods", "preprocessor_config.json",
    "resume: training_args.bin", "YAML with a download", "COCO with an address",
    "YAML with an object", "COCO with an address as file",  # found by its base name, as annotation tools write it
)  # fmt: skip
# Another backbone than the weights have.
WEIGHTS_DO_NOT_FIT = [f"model: {name}" for name in HARMLESS[:3]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("files")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT / "src"), str(ROOT)]),
        "HF_HUB_OFFLINE": "0",  # what is looked up would be
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "tests.laws.safe_loading_worker", str(folder)]
    done = subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {line["case"]: line for line in lines}


def test_no_file_reaches_code_the_network_or_other_files(outcomes):
    assert len(outcomes) > 100  # the worker went through
    guilty = {case: outcome["reached"] for case, outcome in outcomes.items() if outcome["reached"]}
    assert not guilty


def test_what_asks_for_more_than_the_checkpoint_is_refused_and_what_can_be_ignored_loads(outcomes):
    for case, outcome in outcomes.items():
        loads = case.endswith(HARMLESS) and case not in WEIGHTS_DO_NOT_FIT
        assert (outcome["error"] is None) == loads, (case, outcome["error"])


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("code of a folder", "not looked up while a file is read. Write its architecture down as backbone_config"),
        ("a repository", "'somebody/detector' of another repository"),
        ("a detector as backbone", "model_type 'conditional_detr'"),
        ("timm, a repository", "'hf-hub:somebody/detector' is no name of timm's list"),
        ("timm, weights", "timm_kwargs describe the architecture alone, and checkpoint_path does not"),
        ("other weights", "lies outside the checkpoint's folder"),
    ],
)
def test_a_refusal_says_where_and_why(outcomes, case, reason):
    error = outcomes[f"from_pretrained: {case}"]["error"]
    assert error.startswith("ValueError: /")
    assert reason in error


def test_a_shard_outside_the_folder_is_refused_with_the_index_that_names_it(outcomes):
    errors = [outcome["error"] for case, outcome in outcomes.items() if case.startswith("shard ")]
    assert len(errors) == 2
    assert all("model.safetensors.index.json: the shard" in error for error in errors)


def test_every_argument_of_timms_factory_is_refused():
    """A newer timm may have more of them."""
    arguments = {
        name
        for function in (timm.create_model, build_model_with_cfg)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    for name in sorted(arguments):
        with pytest.raises(ValueError, match=f"timm_kwargs describe the architecture alone, and {name} does not"):
            DetrConfig(timm_kwargs={name: "x"})


def test_a_backbone_named_in_python_is_looked_up_without_its_code(tmp_path):
    """The user's own call may open a checkpoint; code that it brings is not run even then."""
    DetrConfig(use_timm_backbone=False).backbone_config.save_pretrained(tmp_path)
    config = DetrConfig(use_timm_backbone=False, backbone=str(tmp_path), backbone_kwargs={"out_features": ["stage3"]})
    assert config.backbone_config.model_type == "resnet"
    assert config.backbone_config.out_features == ["stage3"]
    with pytest.raises(ValueError, match="trust_remote_code: a backbone's own code is not run"):
        DetrConfig(use_timm_backbone=False, backbone=str(tmp_path), backbone_kwargs={"trust_remote_code": True})
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "code.EvilConfig"}}')
    with pytest.raises(ValueError, match="custom code"):
        DetrConfig(use_timm_backbone=False, backbone=str(tmp_path))
