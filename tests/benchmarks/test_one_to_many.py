"""Contestants that teach several queries the same object."""

import pytest
import torch

from convergence.contestants import make_model, settings_of
from convergence.one_to_many import assign_to_many, repeated
from hf_detr import DetrForObjectDetection
from hf_detr.loss import pack_targets
from tests.small_models import images, small_model, targets

KINDS = pytest.mark.parametrize("kind", ["dac", "ms", "hybrid"])


def loss_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    pixels, _ = images((64, 64), (64, 64))
    torch.manual_seed(0)  # noise
    output = model(pixels, labels=targets(3, 1))
    return {"loss": output.loss, **output.loss_dict}


@pytest.fixture
def models(tmp_path):
    def both(kind: str) -> tuple[DetrForObjectDetection, DetrForObjectDetection]:
        small_model(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).save_pretrained(tmp_path)
        made = []
        for name in ("fast-dn", f"fast-dn-{kind}"):
            torch.manual_seed(0)
            made.append(make_model(tmp_path, settings_of(name)))
        return tuple(made)

    return both


@KINDS
def test_off_and_in_evaluation_it_is_the_plain_detector(models, kind):
    plain, several = models(kind)
    several.is_on = False
    expected = loss_of(plain)
    assert all(torch.equal(value, expected[name]) for name, value in loss_of(several).items())
    several.is_on = True
    expected = loss_of(plain.eval())
    assert all(torch.equal(value, expected[name]) for name, value in loss_of(several.eval()).items())


@KINDS
def test_its_loss_is_beside_the_others_and_what_is_saved_is_plain(models, kind, tmp_path):
    plain, several = models(kind)
    expected, found = loss_of(plain), loss_of(several)
    if kind == "hybrid":
        assert torch.equal(found["loss_encoder"], expected["loss_encoder"])
        torch.testing.assert_close(found["loss_denoising"], expected["loss_denoising"])
        assert found["loss_bbox"] != expected["loss_bbox"]
    else:
        many = found.pop("loss_many")
        assert many > 0
        torch.testing.assert_close(found.pop("loss"), expected.pop("loss") + many)
        torch.testing.assert_close(found, expected)
    found = loss_of(several)
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in several.parameters() if p.requires_grad)
    several.save_pretrained(tmp_path / "saved")
    _, facts = DetrForObjectDetection.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not facts["unexpected_keys"]


def test_a_second_pass_of_the_decoder_has_no_self_attention(models):
    _, several = models("dac")
    several.is_on = False
    expected = several.model(images((64, 64))[0]).last_hidden_state
    several.model.decoder.num_alone = several.config.num_queries
    for moved in (False, True):
        if moved:
            with torch.no_grad():
                for layer in several.model.decoder.layers:
                    layer.self_attn.v_proj.weight.neg_()
        together, alone = several.model(images((64, 64))[0]).last_hidden_state.chunk(2, dim=1)
        if not moved:
            before = alone
            torch.testing.assert_close(together, expected)
    torch.testing.assert_close(alone, before)
    assert not torch.allclose(together, expected, atol=1e-3)


def test_an_object_gets_its_best_queries_above_the_threshold_and_the_best_in_any_case():
    labels = pack_targets(
        [{"class_labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])},
         {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2]])},
         {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}], 3, torch.device("cpu"),
    )  # fmt: skip
    near, nearer, on, far = [0.36, 0.3, 0.2, 0.2], [0.32, 0.3, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.76, 0.7, 0.2, 0.2]
    boxes = torch.tensor([[on, nearer, near, far], [far, far, near, far], [on, on, on, on]])[None]  # IoU 1, 0.82, 0.54
    logits = torch.zeros(1, 3, 4, 3)
    settings = {"many_k": 2, "many_iou_share": 0.7, "many_threshold": 0.6}
    owner = assign_to_many(logits, boxes, labels, settings)
    assert owner[0, 0].tolist() == [0, 0, 3, 1]
    assert owner[0, 1].tolist() == [3, 3, 2, 3]
    assert owner[0, 2].tolist() == [3, 3, 3, 3]


def test_an_object_is_repeated_as_often_as_there_are_queries():
    labels = pack_targets(targets(1, 4, 0, 7), 4, torch.device("cpu"))
    several = repeated(labels, 3, 9)
    assert several.sizes == (3, 8, 0, 7)
    assert several.image_index.tolist() == [0] * 3 + [1] * 8 + [3] * 7
    assert torch.equal(several.boxes_cxcywh[3:7], several.boxes_cxcywh[7:11])
    assert torch.equal(several.class_labels[-7:], labels.class_labels[-7:])
