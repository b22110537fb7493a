"""What benchmarks/automatic.py trains."""

import argparse

import pytest

import automatic
from hf_detr.cli import train
from hf_detr.training.automatic import BACKBONE_SHARE, CLIP, LR_DROP_AT, RATE, RULES


def options(line: str) -> dict:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return vars(parser.parse_args(line.split()))


def test_one_contestant_leaves_all_settings_open_and_the_other_takes_the_papers():
    for start in automatic.STARTS.values():
        picked, paper = (options(f"data {start} {automatic.CONTESTANTS[name]}") for name in ("automatic", "paper"))
        left_open = set(RULES) - {"epochs"}  # which the time limit ends
        assert all(picked[name] is None for name in left_open)
        differing = {name for name in picked if picked[name] != paper[name]}
        assert differing == left_open - {"num_queries", "image_size", "dropout", "eval_every"}
        assert (paper["recipe"], paper["augment"], paper["clip"]) == ("paper", "paper", CLIP)
        rates = [paper[name] for name in ("learning_rate", "backbone_learning_rate", "lr_drop_at")]
        assert rates == pytest.approx([RATE, BACKBONE_SHARE * RATE, LR_DROP_AT], rel=1e-3)


def test_the_table_has_a_row_for_each_training():
    run = {"steps": 1_200, "images": 4_800, "map": 0.1234, "map_50": 0.5}
    rows = automatic.table({"shapes": {"automatic": run, "paper": {**run, "map": 0.05}}}).splitlines()
    assert rows[2:] == ["| shapes | automatic | 1,200 | 4,800 | 12.3 | 50.0 |",
                        "| shapes | paper | 1,200 | 4,800 | 5.0 | 50.0 |"]  # fmt: skip
