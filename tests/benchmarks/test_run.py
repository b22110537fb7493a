"""The script: what it prints, what it writes, and that every case runs, in the small."""

import json

import pytest

import run

# without those that compile or evaluate, or do what another does: they take longer, and run where the script does
CASES = [
    "inference_fp32",
    "inference_bf16",
    "inference_mixed",
    "training_step",
    "loss_small",
    "image_processor",
    "post_processing",
    "panoptic_post_processing",
    "epoch_mixed_ratios",
    "host_work",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Exit code and results of one run in the small, over results of an earlier one."""
    folder = tmp_path_factory.mktemp("results")
    first = run.main(["--quick", "--device", "cpu", "--results", str(folder), "--only", "loss_large"])
    second = run.main(["--quick", "--device", "cpu", "--results", str(folder), "--only", *CASES])
    (path,) = folder.iterdir()
    return (first, second), json.loads(path.read_text())


def test_every_case_agrees_with_its_peers(ran):
    codes, results = ran
    assert codes == (0, 0)
    for name in CASES[:-1]:
        case = results["cases"][name]
        assert case["status"] == "measured", (name, case.get("reason"))
        assert case["differences"], name


def test_cases_that_were_not_run_keep_their_results(ran):
    _, results = ran
    assert results["cases"]["loss_large"]["status"] == "measured"
    assert set(results["cases"]) == {"loss_large", *CASES}


def test_results_of_other_versions_are_not_mixed_with(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--results", str(tmp_path), "--only", "loss_large"]
    assert run.main(arguments) == 0
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    results["environment"]["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(results))
    assert run.main(arguments) == 2
    assert "torch 1.0" in capsys.readouterr().err
    assert json.loads(path.read_text()) == results


def test_figures_come_with_machine_versions_commit_and_load(ran):
    _, results = ran
    environment = results["environment"]
    assert environment["packages"]["torch"]
    assert environment["gemm_gflop_s"]["float32"] > 0
    assert environment["threads"] >= 1
    for case in results["cases"].values():
        assert set(case["stamp"]) == {"commit", "time", "load_before"}


def test_a_quick_run_writes_no_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    assert run.main(["--quick", "--device", "cpu", "--only", "loss_small"]) == 0
    assert not (tmp_path / "results").exists()
    assert "loss_small" in capsys.readouterr().out


def test_an_unknown_case_is_an_error_that_lists_the_known(capsys):
    assert run.main(["--only", "nonsense"]) == 2
    assert "loss_small" in capsys.readouterr().err


def test_a_wrong_checkout_of_the_original_is_an_error(tmp_path, capsys):
    assert run.main(["--quick", "--original", str(tmp_path), "--only", "loss_small"]) == 2
    assert "models/detr.py" in capsys.readouterr().err


def test_one_contestant_is_weighed(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--weigh", "loss_small", "stock", "--checkpoint", str(tmp_path)]
    assert run.main(arguments) == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == {"peak_mib", "seconds"}


def test_the_counted_case_holds_its_limit_without_a_gpu(ran):
    _, results = ran
    case = results["cases"]["host_work"]
    assert case["status"] == "counted", case.get("traceback")
    assert case["counts"]["ours"]["host synchronisations"] <= case["limits"]["host synchronisations"]
    assert case["counts"]["stock"]["host synchronisations"] > case["limits"]["host synchronisations"]
