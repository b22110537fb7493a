"""Laws of the settings that are picked from data, start and machine, on some hundreds of random facts."""

import dataclasses
import random

import numpy as np
import pytest

from hf_detr.data.synthetic.shapes import shape_scenes
from hf_detr.training import automatic
from hf_detr.training.automatic import (
    LENGTHS,
    RULES,
    DataFacts,
    Machine,
    Start,
    measure,
    objects_an_image,
    pick,
    queries_for,
)


def random_case(rng: random.Random) -> tuple[DataFacts, Start, Machine]:
    at_99 = rng.choice((0, 1, 5, 30, 200, 2_000))
    data = DataFacts(
        images=int(10 ** rng.uniform(0, 5.5)),
        evaluated_images=int(10 ** rng.uniform(0, 4)),
        classes=rng.randint(1, 100),
        rarest=rng.randint(0, 1_000),
        objects_median=at_99 / 3,
        objects_99=at_99,
        objects_most=at_99 + rng.choice((0, 0, 1, 50)),
        edge_px=rng.choice((0, 20, 96, 333, 480, 1_080, 4_000)),
        small_box=rng.choice((0.0, 10 ** rng.uniform(-3, 0))),
    )
    fresh, width, stride = rng.random() < 0.3, rng.choice((64, 128, 256, 512)), rng.choice((8, 16, 32))
    own = {"num_queries": None, "edge_px": None}
    if not fresh:
        own = {"num_queries": rng.choice((12, 60, 100, 300)), "edge_px": rng.choice((96, 240, 640, 800))}
    start = Start(fresh, **own, stride=stride, width=width, backbone_is_live=rng.random() < 0.3)
    return data, start, Machine(rng.choice((0.0, 0.0, 16.0, 80.0)), rng.choice((1, 1, 8)))


CASES = [random_case(random.Random(seed)) for seed in range(400)]


def values(*case, **given) -> dict:
    """All settings: what is given, and what is picked."""
    return given | {name: one.value for name, one in pick(*case, given).items()}


def steps_an_epoch(data, machine, found) -> int:
    return max(1, -(-data.images // (found["batch_size"] * machine.processes)))


def test_the_facts_are_those_of_the_rows():
    scenes = shape_scenes(30, max_objects=6, seed=3)
    rows = scenes.select([*range(5, 25), 2])
    counts = objects_an_image([rows, scenes])
    lengths = [len(row["objects"]["bbox"]) for split in (rows, scenes) for row in split]
    assert counts == lengths
    data = measure(rows, counts, 7)
    boxes, classes = (np.concatenate([row["objects"][name] for row in rows]) for name in ("bbox", "category"))
    by_class = np.bincount(classes, minlength=5)
    assert (data.images, data.evaluated_images, data.classes, data.edge_px) == (21, 7, 5, 96)
    assert (data.objects_median, data.objects_most) == (np.median(lengths), max(lengths))
    assert sum(count > data.objects_99 for count in lengths) <= 0.01 * len(lengths)
    assert data.rarest == by_class.min()
    sizes = np.sqrt(boxes[:, 2] * boxes[:, 3]) / 96
    below, up_to = (  # each class counts alike
        np.mean([(sizes[classes == one] < bound).mean() for one in range(5)])
        for bound in (data.small_box - 1e-6, data.small_box + 1e-6)
    )
    assert below < 0.1 <= up_to + 1e-9


def test_crowds_are_no_objects_to_find_and_images_of_unknown_size_tell_no_size():
    scenes = shape_scenes(4, max_objects=3, seed=1)

    def change(row):
        return {**row, "width": 0, "objects": {**row["objects"], "iscrowd": [1] * len(row["objects"]["bbox"])}}

    crowded = scenes.map(change, features=scenes.features)
    assert objects_an_image([crowded]) == [0, 0, 0, 0]
    assert measure(crowded, [0], 1).edge_px == 0
    nothing = scenes.select([])
    assert measure(nothing, objects_an_image([nothing]), 0).objects_most == 0


def test_queries_are_enough_the_starts_where_they_are_and_never_more_than_needed():
    for data, start, machine in CASES:
        found = values(data, start, machine)["num_queries"]
        most = min(data.objects_most, automatic.MOST_QUERIES)
        needed = max(most, automatic.KEPT_MARGIN * min(data.objects_99, automatic.MOST_QUERIES / 1.25))
        assert found >= needed
        if start.num_queries is not None and start.num_queries >= needed:
            assert found == start.num_queries
        elif start.num_queries is not None:
            assert found > start.num_queries
        else:
            assert found < max(data.objects_most, automatic.NEW_MARGIN * data.objects_99, automatic.FEWEST_QUERIES) + 10
        frozen = dataclasses.replace(start, num_queries=12, is_frozen=True)
        assert values(data, frozen, machine)["num_queries"] == 12


def test_a_check_that_is_given_the_objects_an_image_judges_by_the_number_that_is_picked():
    rng = random.Random(0)
    for data, start, machine in CASES[:100]:
        counts = [rng.randint(0, 40) for _ in range(rng.randint(1, 300))]
        at_99, most = int(np.percentile(counts, 99, method="higher")), max(counts)
        data = dataclasses.replace(data, objects_99=at_99, objects_most=most)
        assert queries_for(start, counts) == values(data, start, machine)["num_queries"]


def test_images_are_not_larger_than_the_start_and_the_data_have_them_nor_boxes_smaller_than_need_be():
    for data, start, machine in CASES:
        found = values(data, start, machine)["image_size"]
        if found is None:
            continue  # the start's own
        own = start.edge_px or 0
        if not (data.small_box and data.edge_px):
            assert found == automatic.LARGEST_EDGE_PX
            continue
        assert found <= max(own, min(data.edge_px, automatic.LARGEST_EDGE_PX), 32)
        assert found % 32 == 0
        if machine.gpu_gib:
            assert found >= own
        assert found >= min(own, automatic.LEAST_EDGE_PX)
        is_largest = found + 32 > min(data.edge_px, automatic.LARGEST_EDGE_PX)
        assert is_largest or found * data.small_box >= automatic.CELLS_OF_SMALL_BOX * start.stride


def test_processes_with_other_memories_pick_alike():
    for data, start, _ in CASES[:100]:
        assert values(data, start, Machine(24.0, 2)) == values(data, start, Machine(80.0, 2))


def test_smaller_boxes_never_get_fewer_pixels():
    for data, start, machine in CASES:
        sizes = [
            values(dataclasses.replace(data, small_box=share), start, machine)["image_size"] or start.edge_px
            for share in (0.9, 0.3, 0.1, 0.03, 0.01)
        ]
        assert sizes == sorted(sizes)


def test_a_step_fits_the_memory_and_has_more_images_only_where_there_are_more():
    for data, start, machine in CASES:
        found = [values(dataclasses.replace(data, images=n), start, machine) for n in (1, 30, 300, 3_000, 30_000)]
        batches = [one["batch_size"] for one in found]
        assert batches == sorted(batches)
        assert all(1 <= batch <= automatic.MOST_IMAGES_A_STEP for batch in batches)
        edge_px = found[-1]["image_size"] or start.edge_px
        step_px = batches[-1] * edge_px**2 * 1333 / 800
        memory_px = automatic.CPU_STEP_PX
        if machine.gpu_gib:
            gib = machine.gpu_gib if machine.processes == 1 else automatic.PAPER_GIB
            memory_px = gib / automatic.GIB_AN_IMAGE * automatic.PAPER_IMAGE_PX
        assert batches[-1] == 1 or step_px <= memory_px * (1 + 1e-9)


def test_more_images_never_mean_fewer_steps_or_more_passes_and_both_stay_within_bounds():
    for data, start, machine in CASES:
        length = LENGTHS["fresh" if start.is_fresh else "small" if start.is_small else "whole"]
        before = None
        for images in (1, 10, 100, 1_000, 10_000, 100_000):
            one = dataclasses.replace(data, images=images)
            found = values(one, start, machine, batch_size=4)
            each = steps_an_epoch(one, machine, found)
            epochs, steps = found["epochs"], found["epochs"] * each
            assert steps >= min(length.least_steps, each * automatic.MOST_PASSES)
            assert steps < max(length.most_steps, each) + each
            assert before is None or (epochs <= before[0] and steps >= before[1] - each)
            before = epochs, steps


def test_augmentation_is_strong_for_few_images_that_are_seen_often_alone_and_light_for_a_small_transformer_on_a_clock():
    for data, start, machine in CASES:
        few, many = (dataclasses.replace(data, images=count) for count in (200, 20_000))
        seldom = "flip" if start.is_small else "paper"
        assert values(few, start, machine)["augment"] == "strong"
        for one, often in ((few, "strong"), (many, "paper")):
            assert values(one, start, machine, epochs=40)["augment"] == often
            assert values(one, start, machine, epochs=None)["augment"] == seldom  # a time limit, of unknown passes
            assert values(one, start, machine, epochs=None, max_steps=5)["augment"] == seldom
            assert values(one, start, machine, epochs=None, max_steps=1_000_000)["augment"] == often


def test_dropout_is_the_starts_none_in_a_fresh_small_transformer_and_the_papers_in_a_fresh_whole_one():
    for data, start, machine in CASES:
        found = values(data, start, machine)["dropout"]
        assert found == ((0.0 if start.is_small else 0.1) if start.is_fresh else None)


def test_evaluations_are_few_and_on_no_more_images_than_are_trained_on_meanwhile():
    for data, start, machine in CASES:
        found = values(data, start, machine)
        assert found["epochs"] / found["eval_every"] <= automatic.EVALUATIONS
        assert found["eval_every"] * data.images >= data.evaluated_images
        steps = values(data, start, machine, epochs=None, max_steps=100_000)
        assert 100_000 / steps_an_epoch(data, machine, steps) / steps["eval_every"] <= automatic.EVALUATIONS


def test_rates_are_the_papers_for_its_width_and_grow_with_the_images_of_a_step_below_it():
    for data, start, machine in CASES:
        found = [values(data, start, machine, batch_size=batch) for batch in (1, 2, 4, 16, 64)]
        rates = [one["learning_rate"] for one in found]
        assert rates == sorted(rates)
        assert rates[-1] <= automatic.MOST_SMALL_RATE * (automatic.FRESH_FACTOR if start.is_fresh else 1)
        paper = values(data, start, machine, batch_size=64, recipe="paper")
        assert paper["learning_rate"] <= rates[-1]
        for one in found:
            assert one["backbone_learning_rate"] <= one["learning_rate"]
            assert (one["backbone_learning_rate"] == one["learning_rate"]) == start.backbone_is_live
        trained = values(data, dataclasses.replace(start, is_fresh=False), machine, batch_size=16)
        fresh = values(data, dataclasses.replace(start, is_fresh=True), machine, batch_size=16)
        assert fresh["learning_rate"] == trained["learning_rate"] * (2 if start.is_small else 1)
        if not start.is_small:
            assert set(rates) == {1e-4}
            assert found[0]["clip"] == 0.1
            assert start.backbone_is_live or found[0]["backbone_learning_rate"] == pytest.approx(1e-5)


def test_a_batch_size_to_be_found_leaves_the_other_rules_the_one_that_would_be_picked():
    for case in CASES[:50]:
        assert values(*case, batch_size="auto") | {"batch_size": 0} == values(*case) | {"batch_size": 0}


@pytest.mark.parametrize("name", RULES)
def test_what_is_given_stays_and_giving_what_would_be_picked_changes_nothing(name):
    for case in CASES[:100]:
        found = values(*case)
        assert name not in pick(*case, {name: found[name]})
        assert values(*case, **{name: found[name]}) == found


def test_accumulated_batches_and_processes_count_as_images_of_a_step():
    data, start, _ = CASES[0]
    data = dataclasses.replace(data, images=1_000)
    once = values(data, start, Machine(), batch_size=8)
    for machine, given in ((Machine(processes=4), {}), (Machine(), {"gradient_accumulation": 4})):
        found = values(data, start, machine, batch_size=2, **given)
        assert {name: found[name] for name in RULES if name != "batch_size"} == {
            name: once[name] for name in RULES if name != "batch_size"
        }


def test_every_pick_says_what_and_why():
    for case in CASES[:50]:
        for one in pick(*case, {}).values():
            assert one.words
            assert one.because
