"""What a benchmark may claim: nothing is timed that was not compared, and nothing is left out in silence."""

import os
import subprocess
import sys
import time

import pytest
import torch

from cases import Bench, Case, Comparison, Contestant, Counts, Ready, Unavailable, all_cases, run_case
from report import case_lines

from .conftest import BENCHMARKS

CASES = all_cases()


@pytest.fixture
def bench(tmp_path):
    speed = {"float32": 1e-3, "bfloat16": 2e-3}  # GFLOP/s
    return Bench(torch.device("cpu"), quick=True, checkpoint=tmp_path, gemm_gflop_s=speed)


def contestant(name, value=1.0, calls=None, tolerance=1e-4, answers="outputs"):
    def work():
        if calls is not None:
            calls.append(name)

    return Contestant(name, lambda: Ready(work, lambda: {answers: torch.tensor([value])}), tolerance)


def case(*contestants, **more):
    return Case("toy", "a toy", lambda bench: Comparison(list(contestants)), **more)


def test_outputs_that_differ_fail_and_are_not_timed(bench):
    calls = []
    result = run_case(case(contestant("ours", 1.0, calls), contestant("stock", 1.001, calls)), bench)
    assert result["status"] == "failed"
    assert "stock" in result["reason"]
    assert calls == []
    assert "contestants" not in result
    assert "FAILED" in case_lines("toy", result)[0]


def test_outputs_within_the_tolerance_are_timed_and_the_difference_is_kept(bench):
    result = run_case(
        case(contestant("ours"), contestant("stock", 1.00005), targets={"cpu": {"stock": 1.5}}),
        bench,
    )
    assert result["status"] == "measured"
    assert result["differences"]["stock"]["largest"] == pytest.approx(5e-5, rel=0.01)
    assert result["ratios"]["stock"]["target"] == 1.5
    assert set(result["contestants"]) == {"ours", "stock"}


def test_a_nan_is_no_agreement(bench):
    assert run_case(case(contestant("ours"), contestant("stock", float("nan"))), bench)["status"] == "failed"


def test_contestants_without_a_common_answer_are_an_error(bench):
    result = run_case(case(contestant("ours"), contestant("stock", answers="others")), bench)
    assert result["status"] == "error"
    assert "others" in result["reason"]


def test_a_peer_that_is_not_there_is_left_out_with_its_reason(bench):
    def missing():
        raise Unavailable("its checkout was not given (--original DIR)")

    result = run_case(case(contestant("ours"), contestant("stock"), Contestant("original", missing)), bench)
    assert result["status"] == "measured"
    assert any(line.split()[:3] == ["original", "left", "out:"] for line in case_lines("toy", result))


def test_a_case_for_another_device_is_skipped_with_a_line_that_says_so(bench):
    one = case(contestant("ours"), devices=("cuda",), reason="needs a GPU (--device cuda)")
    result = run_case(one, bench)
    assert result["status"] == "skipped"
    assert "needs a GPU" in case_lines(one.name, result)[0]
    assert all(one.reason for one in CASES if len(one.devices) < 2)


def test_a_broken_case_is_reported_with_its_place(bench):
    def broken(bench):
        raise KeyError("somewhere")

    result = run_case(Case("toy", "a toy", broken), bench)
    assert result["status"] == "error"
    assert "test_cases.py" in result["traceback"]


def test_the_floor_is_arithmetic_over_measured_speed(bench):
    matrix = torch.ones(50, 50)
    ready = Ready(lambda: (time.sleep(0.02), matrix @ matrix), lambda: {"outputs": matrix})
    one = Contestant("ours", lambda: ready)
    result = run_case(Case("toy", "a toy", lambda bench: Comparison([one], floor_dtype="float32")), bench)
    assert result["floor"]["seconds"] == pytest.approx(2 * 50**3 / 1e6)
    ours = result["contestants"]["ours"]["seconds"]["median"]
    assert result["floor"]["ours_over_floor"] == pytest.approx(ours / 0.25)


def test_counts_are_printed_with_their_limit(bench):
    counts = Counts({"ours": {"waits": 1}, "stock": {"waits": 60}}, {"waits": 2})
    result = run_case(Case("toy", "a toy", lambda bench: counts), bench)
    assert "waits: ours 1, stock 60" in case_lines("toy", result)[0]
    assert "at most 2 reached" in case_lines("toy", result)[0]
    counts.counts["ours"]["waits"] = 3
    assert "at most 2 missed" in case_lines("toy", run_case(Case("toy", "a toy", lambda bench: counts), bench))[0]


@pytest.mark.parametrize("one", [one for one in CASES if one.targets.get("cpu")], ids=lambda one: one.name)
def test_every_target_belongs_to_a_contestant(one, bench):
    names = [contestant.name for contestant in one.make(bench).contestants]
    assert len(set(names)) == len(names) >= 2
    assert set(one.targets["cpu"]) <= set(names[1:])


def test_names_of_cases_are_unique():
    assert len({one.name for one in CASES}) == len(CASES)


@pytest.mark.skipif(not os.environ.get("DETR_ORIGINAL"), reason="set DETR_ORIGINAL to a checkout of the original")
def test_the_original_gives_our_outputs(tmp_path):
    # in a process of its own: the original's modules have names that others have
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--quick", "--original", os.environ["DETR_ORIGINAL"]]
    command += ["--only", "inference_fp32", "inference_mixed", "training_step", "loss_small", "post_processing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("original") >= 5
