"""Fine-tuning on other classes and with another number of queries keeps what was learned."""

import logging

import pytest
import torch
import transformers

from hf_detr import DetrForObjectDetection
from hf_detr.checkpoints.surgery import resized_embedding, shared_classes, transferred_embedding, transferred_linear
from tests.small_models import images, small_model, targets

OLD = {0: "cat", 1: "dog", 2: "N/A", 3: "bus", 4: "LABEL_4"}
NEW = {0: "Dog ", 1: "zebra", 2: "LABEL_4", 3: "N/A", 4: "cat", 5: "tram"}


@pytest.fixture
def checkpoint(tmp_path):
    model = small_model(id2label=OLD)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_new_classes_keep_no_object_and_every_class_of_the_same_name(checkpoint, caplog):
    old, folder = checkpoint
    with caplog.at_level(logging.WARNING, logger="hf_detr"):
        new = DetrForObjectDetection.from_pretrained(folder, id2label=NEW)
    assert 'kept "no object" and 2 of 6 classes (Dog , cat); 4 start afresh' in caplog.text
    for old_row, new_row in ((-1, -1), (1, 0), (0, 4)):
        for name in ("weight", "bias"):
            before, after = (getattr(model.class_labels_classifier, name) for model in (old, new))
            assert torch.equal(before[old_row], after[new_row])
    assert not torch.equal(old.class_labels_classifier.weight[4], new.class_labels_classifier.weight[2])  # no real name
    assert new.config.num_labels == 6
    assert new.config.label2id["zebra"] == 1
    same = [n for n in old.state_dict() if not n.startswith("class_labels")]
    assert all(torch.equal(old.state_dict()[n], new.state_dict()[n]) for n in same)
    new.train()(images((64, 64))[0], labels=targets(3, num_labels=6)).loss.backward()
    assert new.class_labels_classifier.weight.grad is not None


def test_what_was_transferred_saves_and_loads_everywhere(checkpoint, tmp_path):
    _, folder = checkpoint
    new = DetrForObjectDetection.from_pretrained(folder, id2label=NEW)
    new.resize_queries(11)
    new.save_pretrained(tmp_path / "new")
    pixel_values = images((64, 96))[0]
    with torch.no_grad():
        expected = new(pixel_values).logits
        assert expected.shape == (1, 11, 7)
        for model_class in (DetrForObjectDetection, transformers.DetrForObjectDetection):
            assert torch.allclose(
                model_class.from_pretrained(tmp_path / "new")(pixel_values).logits, expected, atol=1e-5
            )


def test_the_same_classes_change_nothing(checkpoint):
    old, folder = checkpoint
    for arguments in ({"id2label": OLD}, {"num_labels": 5}, {}):
        again = DetrForObjectDetection.from_pretrained(folder, **arguments)
        assert torch.equal(again.class_labels_classifier.weight, old.class_labels_classifier.weight)
        assert again.config.id2label == OLD


def test_a_number_of_classes_without_names_keeps_no_object(checkpoint):
    old, folder = checkpoint
    new = DetrForObjectDetection.from_pretrained(folder, num_labels=2)
    assert new.class_labels_classifier.weight.shape == (3, 32)
    assert torch.equal(new.class_labels_classifier.weight[-1], old.class_labels_classifier.weight[-1])


@pytest.mark.parametrize(
    "arguments", [{"id2label": {1: "a", 2: "b"}}, {"id2label": {}}, {"id2label": {0: "a"}, "num_labels": 4}]
)
def test_impossible_classes_are_refused(checkpoint, arguments):
    with pytest.raises(ValueError, match="id2label"):
        DetrForObjectDetection.from_pretrained(checkpoint[1], **arguments)


@pytest.mark.parametrize("number", [4, 9, 20])
def test_queries_keep_the_first_and_start_the_others(number):
    model = small_model()
    before = model.model.query_position_embeddings.weight.clone()
    model.resize_queries(number)
    after = model.model.query_position_embeddings.weight
    assert after.shape == (number, 32)
    assert torch.equal(after[:9], before[:number])
    assert after.requires_grad
    assert model(images((64, 64))[0]).logits.shape == (1, number, 6)
    with pytest.raises(ValueError, match="at least 1"):
        model.resize_queries(0)


@pytest.mark.parametrize("has_bias", [True, False])
def test_transferred_rows_are_the_old_ones_and_the_others_are_new(has_bias):
    old = torch.nn.Linear(4, 3, has_bias, dtype=torch.float64).eval().requires_grad_(False)
    new = transferred_linear(old, {0: 2, 3: 0}, 5)
    assert (new.weight.shape, new.weight.dtype, new.training) == ((5, 4), torch.float64, False)
    for name, tensor in old.named_parameters():
        assert torch.equal(dict(new.named_parameters())[name][[0, 3]], tensor[[2, 0]])
    assert (new.bias is not None) == has_bias
    assert len(new.weight.unique(dim=0)) == 5
    assert all(parameter.requires_grad for parameter in new.parameters())  # new rows have to learn

    old = torch.nn.Embedding(3, 4)
    assert torch.equal(transferred_embedding(old, {1: 0}, 2).weight[1], old.weight[0])
    assert transferred_embedding(old, {}, 2).weight.shape == (2, 4)
    for number in (2, 3, 5):
        resized = resized_embedding(old, number)
        assert resized.num_embeddings == number
        assert torch.equal(resized.weight[:3], old.weight[:number])
    with pytest.raises(IndexError):
        transferred_linear(torch.nn.Linear(2, 2), {0: 7}, 2)


def test_classes_are_shared_by_name_whatever_the_label_map_looks_like():
    assert shared_classes({0: "Cat", 7: " dog"}, {3: "DOG ", 1: "cat", 2: "cat"}) == {3: 7, 1: 0, 2: 0}
    assert shared_classes({0: "LABEL_0", 1: "N/A", 2: ""}, {0: "label_0", 1: "n/a", 2: " "}) == {}
    assert shared_classes({}, {0: "cat"}) == shared_classes({0: "cat"}, {}) == {}
