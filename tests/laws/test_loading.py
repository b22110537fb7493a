"""Law 10: loading a full checkpoint opens no socket. And the Hub's configuration files of every generation."""

import json
import socket
import warnings
from pathlib import Path

import pytest
import torch
import transformers

from hf_detr import DetrConfig, DetrForObjectDetection, DetrModel
from tests.conftest import SHARED
from tests.small_models import images, small_config, small_model

SAMPLES = sorted((SHARED / "hub_samples").glob("config_*.json"))
# what stock 5.23 itself cannot read, or only over the network
NOT_READ_BY_STOCK = ("config_v4.41_not_pretrained", "config_v4_backbone_kwargs", "config_v4_odd_labels")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_loading_a_checkpoint_opens_no_socket_for_the_backbone(tmp_path, no_network):
    small_model(backbone="resnet18").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["use_pretrained_backbone"] = True  # as in most files on the Hub
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model_class in (DetrForObjectDetection, DetrModel):
        model = model_class.from_pretrained(tmp_path)
        assert model.config.use_pretrained_backbone


def test_published_weights_are_asked_for_only_when_starting_fresh(monkeypatch):
    asked = []
    import hf_detr.nn.backbone as backbone

    real = backbone.timm.create_model

    def spy(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        return real(name, pretrained=False, **kwargs)

    monkeypatch.setattr(backbone.timm, "create_model", spy)
    DetrForObjectDetection(small_config(use_pretrained_backbone=True))
    assert any(asked)


def test_weights_that_timm_brought_are_not_initialised_again(monkeypatch):
    import hf_detr.nn.backbone as backbone

    real = backbone.timm.create_model

    def with_marked_weights(name, pretrained=False, **kwargs):
        model = real(name, pretrained=False, **kwargs)
        for parameter in model.parameters():
            parameter.data.fill_(0.125)
        return model

    monkeypatch.setattr(backbone.timm, "create_model", with_marked_weights)
    model = DetrForObjectDetection(small_config(use_pretrained_backbone=True))
    assert all((p == 0.125).all() for p in model.model.backbone.conv_encoder.parameters())


@pytest.mark.skipif(not SAMPLES, reason=f"{SHARED} is not there")
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_generation_of_the_hubs_configurations_loads_offline(path: Path, tmp_path, no_network):
    (tmp_path / "config.json").write_text(path.read_text())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = DetrConfig.from_pretrained(tmp_path)
    written = json.loads(path.read_text())
    assert bool([w for w in caught if issubclass(w.category, UserWarning)]) == ("odd_labels" in path.stem)
    assert config.backbone_config.model_type == ("resnet" if "autobackbone" in path.stem else "timm_backbone")
    assert config.num_labels == len(written.get("id2label", {0: "", 1: ""}))
    assert config.attention_dropout == written["attention_dropout"]
    with torch.device("meta"):
        ours = DetrForObjectDetection(config)

    config.save_pretrained(tmp_path / "ours")
    stock_config = transformers.DetrConfig.from_pretrained(tmp_path / "ours")
    with torch.device("meta"):
        stock = transformers.DetrForObjectDetection(stock_config)
    assert _shapes(ours) == _shapes(stock)
    if path.stem not in NOT_READ_BY_STOCK:
        with torch.device("meta"):
            stock = transformers.DetrForObjectDetection(transformers.DetrConfig.from_pretrained(tmp_path))
        assert _shapes(ours) == _shapes(stock)


def _shapes(model) -> list[tuple[int, ...]]:
    """Names differ in memory (stock renames); how many tensors of which shape do not."""
    return sorted(tuple(t.shape) for t in model.state_dict().values())


@pytest.mark.skipif(not SAMPLES, reason=f"{SHARED} is not there")
def test_odd_labels_say_what_is_odd_and_how_to_mend_it():
    path = SHARED / "hub_samples" / "config_v4_odd_labels.json"
    with pytest.warns(UserWarning, match="id2label") as caught:
        config = DetrConfig.from_json_file(path)
    text = " ".join(str(warning.message) for warning in caught)
    assert "not text" in text
    assert "[1, 2, 3, 4] instead of 0 to 3" in text
    assert "pass id2label=" in text
    assert config.id2label == {1: "63", 2: "10", 3: "67", 4: "32"}


@pytest.mark.skipif(not SAMPLES, reason=f"{SHARED} is not there")
def test_the_published_configuration_makes_the_published_model():
    config = DetrConfig.from_json_file(SHARED / "hub_samples" / "config_v4.7_published.json")
    with torch.device("meta"):
        model = DetrForObjectDetection(config)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters // 1_000_000 == 41  # paper, table 1


def test_a_checkpoint_without_its_backbone_says_so_and_starts_it_sensibly(tmp_path, recwarn):
    model = small_model()
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "backbone" not in k})
    again, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["missing_keys"]) == sum("backbone" in key for key in model.state_dict())
    assert all(tensor.isfinite().all() for tensor in again.state_dict().values())
    outputs = again(images((64, 64))[0])
    assert outputs.logits.isfinite().all()
    weight = again.model.backbone.conv_encoder.model.layer2[0].conv1.weight
    assert 0.01 < weight.std() < 1


def test_fresh_weights_are_the_papers():
    config = small_config(d_model=128, encoder_ffn_dim=256, num_queries=300)
    torch.manual_seed(0)
    model = DetrForObjectDetection(config)
    queries = model.model.query_position_embeddings.weight
    assert abs(queries.std().item() - 1) < 0.05
    attention = model.model.encoder.layers[0].self_attn
    bound = (6 / (128 + 3 * 128)) ** 0.5  # Xavier of the packed (3 D, D) matrix
    assert bound * 0.95 < attention.q_proj.weight.abs().max() <= bound
    assert (6 / 256) ** 0.5 * 0.95 < attention.out_proj.weight.abs().max() <= (6 / 256) ** 0.5
    assert attention.q_proj.bias.abs().max() == attention.out_proj.bias.abs().max() == 0
    bound = (6 / (128 + 256)) ** 0.5
    assert bound * 0.95 < model.model.encoder.layers[0].fc1.weight.abs().max() <= bound
    bound = 128**-0.5  # PyTorch's own, as the original leaves it
    assert bound * 0.95 < model.class_labels_classifier.weight.abs().max() <= bound
    assert config.auxiliary_loss
    assert config.dropout == config.attention_dropout == config.activation_dropout == 0.1
