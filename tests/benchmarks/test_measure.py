"""The clock, the scales and the counter are right where the answer is known."""

import time

import pytest
import torch
import torch.nn.functional as F

from inputs import fill_as_trained
from measure import PeakMemory, alternate, count_flop, ratios, summarise
from tests.small_models import small_model

CPU = torch.device("cpu")


def test_a_ratio_is_that_of_the_medians_with_the_quartiles_of_the_rounds():
    found = ratios([1.0, 2.0, 4.0], [3.0, 4.0, 20.0])
    assert found["median"] == pytest.approx(4.0 / 2.0)
    assert found["q1"] == pytest.approx(2.5)  # of 3, 2 and 5
    assert found["q3"] == pytest.approx(4.0)
    assert found["samples"] == 3


def test_median_and_quartiles_are_of_the_samples():
    found = summarise([5.0, 1.0, 3.0])
    assert found == {"median": 3.0, "q1": 2.0, "q3": 4.0, "samples": 3}


def test_every_round_calls_each_once_and_another_one_begins():
    called = []
    works = {name: (lambda name=name: called.append(name)) for name in "abc"}
    samples = alternate(works, CPU, budget_s=60, least_rounds=3, most_rounds=3)
    assert "".join(called) == "abcbcacab"
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_rounds_end_with_the_budget_but_not_before_the_least():
    samples = alternate({"a": lambda: time.sleep(0.01)}, CPU, budget_s=0, least_rounds=2, most_rounds=50)
    assert len(samples["a"]) == 2
    assert min(samples["a"]) >= 0.01


def test_operations_are_those_of_the_formulas():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flop(lambda: a @ b) == 2 * 3 * 5 * 7
    image, kernel = torch.randn(1, 2, 8, 8), torch.randn(4, 2, 3, 3)
    assert count_flop(lambda: F.conv2d(image, kernel)) == 2 * (6 * 6) * 4 * (2 * 3 * 3)


def test_fused_attention_counts_as_attention_written_out():
    query, key, value = (torch.randn(2, 4, length, 8) for length in (10, 20, 20))
    fused = count_flop(lambda: F.scaled_dot_product_attention(query, key, value))
    assert fused == count_flop(lambda: (query @ key.transpose(-1, -2)).softmax(-1) @ value)


def test_peak_memory_sees_what_was_freed_again():
    peak = PeakMemory(CPU)
    if peak.mib() is None:
        pytest.skip("only Linux tells the peak")
    assert peak.mib() < 30
    big = torch.ones(100 * 2**18)  # 100 MiB
    del big
    assert 90 < peak.mib() < 140
    peak.restart()
    assert peak.mib() < 30


def test_random_weights_make_queries_differ():
    # else wrong attention would not be seen in the comparison
    model = small_model(num_queries=12)
    fill_as_trained(model)
    with torch.no_grad():
        logits = model.eval()(torch.randn(1, 3, 64, 96)).logits
    assert logits.std(dim=1).mean() > 0.05
    assert logits.abs().max() < 50
