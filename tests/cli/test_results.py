"""The JSON of predict: an array at every moment, whatever the disk does."""

import json
import resource

import pytest
import torch

from hf_detr.cli._results import ResultsFile, result_rows


def entries(number: int) -> list[dict]:
    return [{"image_id": number, "score": 0.5, "category": "a name of some length"}] * 3


def test_the_file_is_an_array_of_all_so_far_after_every_image(tmp_path):
    path = tmp_path / "predictions.json"
    expected = []
    with ResultsFile(path) as results:
        for number in range(4):
            assert json.loads(path.read_text()) == expected
            results.append(entries(number))
            results.append([])
            expected += entries(number)
    assert json.loads(path.read_text()) == expected


def test_what_does_not_fit_on_the_disk_costs_itself_alone(tmp_path):
    path = tmp_path / "predictions.json"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ResultsFile(path) as results:
        results.append(entries(0))
        for room in (0, 1, 40):  # nothing of it fits, or a part
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, limits[1]))
                with pytest.raises(ValueError, match=r"predictions\.json: could not be written \(.*make room"):
                    results.append(entries(1))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert json.loads(path.read_text()) == entries(0)
        results.append(entries(2))
    assert json.loads(path.read_text()) == entries(0) + entries(2)


def test_a_place_that_cannot_be_written_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/predictions\.json: could not be written \(No such file"):
        ResultsFile(tmp_path / "nowhere" / "predictions.json")


def test_rows_come_surest_first_with_names_and_boxes_as_coco_has_them():
    detections = {
        "scores": torch.tensor([0.3, 0.9, 0.3]),
        "labels": torch.tensor([1, 0, 0]),
        "boxes": torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 6.0, 6.0]]),
    }
    rows = result_rows(detections, {0: "cat", 1: "dog"})
    assert [row["category"] for row in rows] == ["cat", "dog", "cat"]
    assert rows[1] == {"category_id": 1, "category": "dog", "bbox": [1, 2, 3, 6], "score": pytest.approx(0.3)}
