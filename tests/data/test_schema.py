import pytest
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from hf_detr.data.schema import (
    class_names,
    detection_features,
    id2label,
    is_detection_dataset,
    original_category_ids,
)
from hf_detr.data.synthetic.digits import digit_scenes


@pytest.fixture
def with_gaps():
    scenes = digit_scenes(2, image_size=32, digits=[0, 1, 2])
    return scenes.cast(detection_features(["zero", "one", "two"], [1, 5, 90]))


def test_class_names_and_ids_are_read_from_the_features(with_gaps):
    assert class_names(with_gaps) == ["zero", "one", "two"]
    assert id2label(with_gaps) == {0: "zero", 1: "one", 2: "two"}
    assert original_category_ids(with_gaps) == [1, 5, 90]
    assert original_category_ids(digit_scenes(1, image_size=32)) == list(range(10))
    assert is_detection_dataset(with_gaps)


def test_original_ids_survive_every_way_a_data_set_travels(with_gaps, tmp_path):
    with_gaps.save_to_disk(tmp_path / "one")
    DatasetDict(train=with_gaps).save_to_disk(tmp_path / "dict")
    (tmp_path / "parquet").mkdir()
    with_gaps.to_parquet(tmp_path / "parquet" / "train.parquet")
    travelled = [
        load_from_disk(tmp_path / "one"),
        load_from_disk(tmp_path / "dict"),
        load_dataset(str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache")),
        load_dataset(str(tmp_path / "parquet"), streaming=True),
        with_gaps.map(lambda row: row),
        with_gaps.select([1]).shuffle(seed=0),
        concatenate_datasets([with_gaps, with_gaps]),
        with_gaps.to_iterable_dataset(),
    ]
    for dataset in travelled:
        assert original_category_ids(dataset) == [1, 5, 90]
        assert class_names(dataset) == ["zero", "one", "two"]
    # what the Hub's dataset card keeps
    assert "1,5,90" in str(with_gaps.features._to_yaml_list())


def test_duplicate_names_and_ids_are_refused():
    with pytest.raises(ValueError, match=r"unique.*'cat'"):
        detection_features(["cat", "dog", "cat"])
    with pytest.raises(ValueError, match="2 different numbers"):
        detection_features(["cat", "dog"], [4, 4])
    with pytest.raises(ValueError, match="2 different numbers"):
        detection_features(["cat", "dog"], [4])


def test_splits_that_disagree_on_classes_are_refused():
    splits = {name: digit_scenes(1, image_size=32, digits=digits) for name, digits in (("a", [0]), ("b", [1]))}
    with pytest.raises(ValueError, match="'a' and 'b' disagree"):
        class_names(splits)


def test_a_data_set_without_class_names_says_what_to_do():
    dataset = Dataset.from_dict({"label": [0]}, features=Features({"label": ClassLabel(names=["x"])}))
    with pytest.raises(ValueError, match="load_detection_dataset"):
        class_names(dataset)
    assert not is_detection_dataset(dataset)
    numbers = Dataset.from_dict({"objects": [{"category": [1]}]})
    assert numbers.features["objects"]["category"].feature == Value("int64")
    with pytest.raises(ValueError, match="class_names"):
        class_names(numbers)
