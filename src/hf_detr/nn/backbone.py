"""The convolutional half of DETR: any network with feature maps, of which the last is used (paper, 3.2).

timm networks and transformers' AutoBackbones behind one face: `ConvEncoder`. Channel counts and stage names are read
from the network, never written down here.
"""

from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import AutoBackbone, PreTrainedConfig

from .folding import fold_norms, unfold_norms
from .frozen_norm import drop_batch_counters, freeze_norms, unfreeze_norms


class ConvEncoder(nn.Module):
    """(B, C, H, W) -> the feature maps (B, channels, H / stride, W / stride) that are asked for, finest first.

    Attributes:
        model: the network, whose parameter names are those of the Hub's files.
        intermediate_channel_sizes: channels of the maps the configuration asks for.
        stage_names: the network's own names of its stages, in order ("act1", "layer1", ...).
        num_maps: how many of those maps are computed, counted from the coarsest.
    """

    def __init__(
        self,
        model: nn.Module,
        channels: list[int],
        stage_names: list[str],
        num_maps: int = 1,
        is_channels_last: bool = False,
    ):
        super().__init__()
        self.model = model
        self.intermediate_channel_sizes = channels
        self.stage_names = stage_names
        self.num_maps = num_maps
        self._is_channels_last = is_channels_last
        self._unfolded: dict[str, nn.Module] = {}  # what `fold_norms` replaced
        drop_batch_counters(model)

    def forward(self, pixel_values: Tensor, chunk_size: int = 0) -> list[Tensor]:
        """`chunk_size`: so many images at a time in eval mode, for less memory; 0 for all at once."""
        if self.training and self._unfolded:
            raise RuntimeError("The backbone's norms are folded for inference; call unfold_norms() before training.")
        if not chunk_size or self.training or len(pixel_values) <= chunk_size:
            return self._feature_maps(pixel_values)
        parts = [self._feature_maps(images) for images in pixel_values.split(chunk_size)]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _feature_maps(self, pixel_values: Tensor) -> list[Tensor]:
        if self._takes_channels_last():
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features = self.model(pixel_values)
        maps = list(features.feature_maps if hasattr(features, "feature_maps") else features)[-self.num_maps :]
        return [one.permute(0, 3, 1, 2) for one in maps] if self._is_channels_last else maps

    def _takes_channels_last(self) -> bool:
        """Whether maps lie channels last in memory, which convolutions are 1.3 to 1.5 times as fast with."""
        if not torch.is_grad_enabled():
            return True
        # Gradients in eval mode keep the published order of sums: rounding moves some activations across a ReLU's
        # corner, and with them single gradient norms by more than 1e-4.
        return self.training and not any(_corrupts_memory(part) for part in self.model.modules())

    def freeze_norms(self) -> int:
        """Fixes every batch norm (see `FrozenBatchNorm2d`); returns how many."""
        return freeze_norms(self.model)

    def unfreeze_norms(self) -> int:
        """Gives every batch norm its statistics and training back; returns how many."""
        self.unfold_norms()
        return unfreeze_norms(self.model)

    def fold_norms(self) -> int:
        """Folds frozen norms into convolutions, for inference, until `unfold_norms`; returns how many are folded."""
        self._unfolded.update(fold_norms(self.model))
        return len(self._unfolded) // 2

    def unfold_norms(self) -> int:
        """Takes `fold_norms` back; returns how many were folded."""
        count = len(self._unfolded) // 2
        unfold_norms(self.model, self._unfolded)
        self._unfolded = {}
        return count

    def freeze(self, until: str | int | None) -> int:
        """Afterwards exactly the parameters up to and including one stage are frozen; returns how many tensors.

        `until`: a stage's name or index, "all", None for none, or "auto": the first stage of a ResNet (as the
        original), nothing of other networks. Raises ValueError for a stage the network does not have.
        """
        parameters = list(self.model.named_parameters())
        count = self._parameters_until([name for name, _ in parameters], until)
        for index, (_, parameter) in enumerate(parameters):
            parameter.requires_grad_(index >= count)
        return count

    def _parameters_until(self, names: list[str], until: str | int | None) -> int:
        if until is None:
            return 0
        if until == "all":
            return len(names)
        if until == "auto":
            if not self._is_resnet():
                return 0
            until = 1
        if isinstance(until, int) and until < len(self.stage_names):
            stage = until
        elif until in self.stage_names:
            stage = self.stage_names.index(until)
        else:
            raise ValueError(
                f"The backbone has no stage {until!r}; its stages are "
                f"{', '.join(f'{index}: {name}' for index, name in enumerate(self.stage_names))}, or 'all'."
            )
        # parameters are registered in the order they are used; a stage without any (an activation) ends before the next
        own = [index for index, name in enumerate(names) if self._is_in_stage(name, stage)]
        if own:
            return own[-1] + 1
        later = (
            index
            for index, name in enumerate(names)
            for next_stage in range(stage + 1, len(self.stage_names))
            if self._is_in_stage(name, next_stage)
        )
        return next(later, len(names))

    def _is_resnet(self) -> bool:
        config = getattr(self.model, "config", None)  # a transformers network has one
        return self.stage_names[1:2] == ["layer1"] if config is None else config.model_type == "resnet"

    def _is_in_stage(self, parameter_name: str, stage: int) -> bool:
        name = self.stage_names[stage]
        prefixes = (
            name,
            name.replace(".", "_"),  # timm flattens sequential networks
            f"model.{name}",  # and wraps vision transformers
            f"encoder.stages.{stage - 1}",  # transformers counts the stem as stage 0
            f"encoder.layers.{stage - 1}",
            f"encoder.layer.{stage - 1}",
        )
        return parameter_name.startswith(tuple(f"{prefix}." for prefix in prefixes))


def build_timm_backbone(
    name: str,
    in_chans: int = 3,
    out_indices: list[int] | None = None,
    output_stride: int | None = None,
    pretrained: bool = False,
    timm_kwargs: dict[str, Any] | None = None,
    num_maps: int = 1,
) -> ConvEncoder:
    """A timm network cut after its last wanted stage.

    Args:
        num_maps: how many of the last wanted stages are computed.
        out_indices: the stages whose channels are listed. The default [1, 2, 3, 4] is read
            as "the last four" where a network has four stages.
        output_stride: 32, or 16 or 8 to dilate instead (the paper's DC5 is 16).
        pretrained: fetch timm's published weights; the stem is inflated for other than 3 channels.

    Raises:
        ValueError: timm has no such network, or the network no such stage, or no feature maps.
    """
    kwargs = dict(timm_kwargs or {})
    if output_stride is not None:
        kwargs["output_stride"] = output_stride
    try:
        with torch.device("meta"):  # a look at the network before its weights are made
            probe = timm.create_model(name, features_only=True, in_chans=in_chans, **kwargs)
    except Exception as error:
        similar = [] if timm.is_model(name) else timm.list_models(f"*{name.split('.')[0][:8]}*")[:5]
        raise ValueError(
            f"timm cannot build the backbone {name!r} with feature maps and {kwargs or 'no further arguments'}: {error}"
            + (f" Names like it: {', '.join(similar)}." if similar else "")
        ) from error
    stages = probe.feature_info.info
    wanted = _stages_wanted(out_indices, len(stages), name)
    if any(getattr(part, "strict_img_size", False) for part in probe.modules()):
        # a vision transformer made for one image size; detection has many
        kwargs.update(_any_size_arguments(name, in_chans, kwargs))
    model = timm.create_model(
        name, pretrained=pretrained, features_only=True, in_chans=in_chans, out_indices=wanted[-num_maps:], **kwargs
    )
    for part in model.modules():
        if hasattr(part, "dynamic_img_pad"):
            part.dynamic_img_pad = True  # sides that are no multiple of the patch
    if next(model.parameters()).device.type != "meta":
        for part in model.modules():
            part._is_hf_initialized = True  # timm has initialised or loaded it: transformers must not again
    return ConvEncoder(
        model,
        channels=[stages[index]["num_chs"] for index in wanted],
        stage_names=[stage["module"] for stage in stages],
        num_maps=num_maps,
        is_channels_last=str(getattr(model, "output_fmt", None)).endswith("NHWC"),
    )


def _any_size_arguments(name: str, in_chans: int, kwargs: dict) -> dict[str, bool]:
    for arguments in ({"strict_img_size": False}, {"dynamic_img_size": True}):
        try:
            with torch.device("meta"):
                timm.create_model(name, features_only=True, in_chans=in_chans, **{**kwargs, **arguments})
        except TypeError:  # another family's argument
            continue
        return arguments
    return {}


def _stages_wanted(out_indices: list[int] | None, num_stages: int, name: str) -> list[int]:
    if not out_indices or (list(out_indices) == [1, 2, 3, 4] and num_stages < 5):
        return list(range(max(0, num_stages - 4), num_stages))
    wanted = [index + num_stages if index < 0 else index for index in out_indices]
    if any(not 0 <= index < num_stages for index in wanted) or sorted(set(wanted)) != wanted:
        raise ValueError(
            f"out_indices={list(out_indices)} does not fit {name!r}, which has the stages 0 to {num_stages - 1}; "
            "name some of them, in order."
        )
    return wanted


def build_transformers_backbone(
    backbone_config: PreTrainedConfig, pretrained_name: str | None = None, num_maps: int = 1
) -> ConvEncoder:
    """A transformers AutoBackbone, with the published weights of `pretrained_name` (a Hub name or folder) if given."""
    if pretrained_name:
        model = AutoBackbone.from_pretrained(pretrained_name, config=backbone_config, trust_remote_code=False)
    else:
        model = AutoBackbone.from_config(backbone_config, trust_remote_code=False)
    return ConvEncoder(model, channels=list(model.channels), stage_names=list(model.stage_names), num_maps=num_maps)


def _corrupts_memory(part: nn.Module) -> bool:
    """Whether the backward pass of a convolution writes outside its memory where maps lie channels last on a CPU.

    Seen in PyTorch 2.13 and 2.15, under `MALLOC_CHECK_=3`, with kernel 1, stride 2 or 4, and 2 to 12 input channels.
    """
    return isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and max(part.stride) > 1 and part.in_channels < 16
