"""`DetrForSegmentation`: a detector, and beside its heads one that gives each object query a mask (paper, 4.4).

Only masks that are asked for are decoded: in training those of the matched queries, at inference all, or those that
`mask_threshold` and `mask_top_k` keep. The head treats queries one by one, so the others' masks stay the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import ModelOutput

from .configuration_detr import DetrConfig
from .loss import MaskCriterion, SetCriterion, Targets, pack_targets
from .loss.targets import to_device
from .modeling_detr import (
    DetrForObjectDetection,
    DetrModel,
    DetrModelWithClasses,
    DetrObjectDetectionOutput,
    loading_checkpoint,
)
from .nn.mask_head import AttentionMap, MaskHead
from .nn.masks import cells_on_image

# B images, Q queries, K queries of an image with a mask, C classes, N heads, D channels, H x W cells of the backbone's
# last map, h x w of its finest

__all__ = ["DetrForSegmentation", "DetrSegmentationOutput"]

_NUM_MAPS = 4


@dataclass
class DetrSegmentationOutput(ModelOutput):
    """Output of `DetrForSegmentation`; what is not named here is as in `DetrObjectDetectionOutput`.

    Attributes:
        loss: () the detector's loss and the masks'.
        loss_dict: its parts, with `loss_mask` (focal) and `loss_dice` of the last layer's masks.
        pred_masks: (B, K, h, w) logits over the canvas, at about a quarter of its size; above 0 is on the object. K
            is Q, unless `mask_threshold` or `mask_top_k` keep fewer. None in training with `labels`.
        mask_queries: (B, K) int64, the query of each mask, where not all have one; -1 (and a mask of 0) where an image
            has fewer than K.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    mask_queries: Tensor | None = None


class DetrForSegmentation(DetrModelWithClasses):
    """DETR with a mask for each object query: instances, or with classes of stuff a panoptic segmentation.

    With `labels` that have `masks` it returns the loss. The backbone must give four feature maps.
    """

    base_model_prefix = "detr"  # a detector's checkpoint loads as such, and the mask head starts afresh
    _has_masks = True

    def __init__(self, config: DetrConfig):
        super().__init__(config)
        self.detr = DetrForObjectDetection(config, num_feature_maps=_NUM_MAPS)
        channels = self.base_model.backbone.intermediate_channel_sizes
        if len(channels) != _NUM_MAPS:
            raise ValueError(
                f"DetrForSegmentation takes {_NUM_MAPS} feature maps, the backbone gives {len(channels)}; name the "
                "last four stages in backbone_config: out_indices of a timm network, out_features of another."
            )
        heads = config.encoder_attention_heads
        self.bbox_attention = AttentionMap(config.d_model, heads, config.init_xavier_std)
        self.mask_head = MaskHead(config.d_model, heads, channels[-2::-1], config.activation_function)
        self.post_init()
        if config.freeze_detector:
            self.freeze_detector()

    @property
    def base_model(self) -> DetrModel:
        """Backbone and transformer."""
        return self.detr.model

    @property
    def criterion(self) -> SetCriterion:
        """The detector's loss."""
        return self.detr.criterion

    @property
    def mask_criterion(self) -> MaskCriterion:
        """The masks' loss, made from the configuration as it is now; it has no parameters."""
        return MaskCriterion.from_config(self.config)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As for `DetrForObjectDetection`, whose checkpoints load as well: the mask head then starts afresh, which a
        warning says; `from_detector` is meant for that."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.freeze_detector:
            model.freeze_detector()  # loading makes new parameters
        return loaded

    @classmethod
    def from_detector(
        cls,
        checkpoint: str | PathLike,
        *,
        freeze_detector: bool = True,
        id2label: dict[int, str] | None = None,
        **kwargs,
    ) -> "DetrForSegmentation":
        """The start of the paper's second stage: a trained detector and a fresh mask head, in eval mode.

        Args:
            checkpoint: of `DetrForObjectDetection`, of this package or stock, as for `from_pretrained`.
            freeze_detector: train the mask head alone; see the method of that name. Without it, both train together.
            id2label: other classes; with a frozen detector, some of those that it knows.
            kwargs: for `DetrForObjectDetection.from_pretrained`.

        Raises:
            ValueError: new classes for a frozen detector, which would never learn them.
        """
        detector = DetrForObjectDetection.from_pretrained(checkpoint, **kwargs)
        kept = None if id2label is None else detector.set_classes(id2label)
        if freeze_detector and kept is not None and len(kept) < len(id2label):
            new = [name for name in id2label.values() if name not in kept]
            raise ValueError(
                f"{checkpoint} does not know the classes {new[:10]}, and frozen it would never learn them; train a "
                "DetrForObjectDetection on them first, or set freeze_detector=False."
            )
        token = loading_checkpoint.set(True)
        try:
            model = cls(detector.config)
        finally:
            loading_checkpoint.reset(token)
        model.detr.load_state_dict(detector.state_dict())
        model.to(detector.device, detector.dtype).eval()
        if freeze_detector:
            model.freeze_detector()
        return model

    def freeze_detector(self) -> None:
        """Trains bbox_attention and mask_head alone, as the original with `--frozen_weights`: the detector's parameters
        have no gradient, and its batch norms are fixed. Its dropout follows `train()` and `eval()` as always, and its
        losses are still computed, as there. Call it before the optimizer is made."""
        self.freeze_norms()
        self.detr.requires_grad_(False)
        self.config.freeze_detector = True

    def unfreeze_detector(self) -> None:
        """Trains the detector again, but for what `freeze_backbone_until` names. Call it before the optimizer is
        made."""
        self.detr.requires_grad_(True)
        self.config.freeze_detector = False
        self.freeze_backbone(self.config.freeze_backbone_until)

    def set_classes(self, id2label: dict[int, str]) -> list[str]:
        """As `DetrForObjectDetection.set_classes`; masks know no classes."""
        kept = self.detr.set_classes(id2label)
        if self.config.freeze_detector:
            self.freeze_detector()  # new layers train
        return kept

    def set_training_only(self, **changes) -> None:
        """As `DetrForObjectDetection.set_training_only`."""
        self.detr.set_training_only(**changes)

    @property
    def training_only(self) -> nn.Module | None:
        """The detector's."""
        return self.detr.training_only

    def resize_queries(self, num_queries: int) -> None:
        """As `DetrForObjectDetection.resize_queries`."""
        self.detr.resize_queries(num_queries)

    def _start_groups(self) -> None:
        self.detr._start_groups()

    def save_pretrained(self, *args, **kwargs):
        """As for `DetrForObjectDetection`: training-only parts are left out."""
        self._keys_to_ignore_on_save = {f"detr.{name}" for name in self.detr._keys_to_ignore_on_save}
        return super().save_pretrained(*args, **kwargs)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs=None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        mask_threshold: float | None = None,
        mask_top_k: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_images_in_batch: Tensor | int | None = None,
        num_matched_in_batch: Tensor | int | None = None,
    ) -> DetrSegmentationOutput | tuple[Tensor, ...]:
        """Images to detections with masks, and to the loss where there are labels.

        Args:
            labels: as for `DetrForObjectDetection.forward`, and `masks` (T, h, w) bool or integer, not 0 on the object,
                of the size of the image without its padding, or padded as the image.
            mask_threshold: decode only masks of queries whose best class has at least this probability.
            mask_top_k: decode at most so many masks of an image, those of the best queries.
            pixel_values and others: see `DetrForObjectDetection.forward`; `inputs_embeds` have no maps for masks.

        Raises:
            TypeError, ValueError: inputs or labels that do not fit; the message says where, and the remedy.
        """
        if inputs_embeds is not None:
            raise ValueError(
                "Masks are made of the backbone's maps, which inputs_embeds do not have; give pixel_values."
            )
        if mask_threshold is not None and not 0 <= mask_threshold <= 1:
            raise ValueError(
                f"mask_threshold={mask_threshold} must be a probability from 0 to 1, or None for all queries."
            )
        if mask_top_k is not None and mask_top_k < 1:
            raise ValueError(f"mask_top_k={mask_top_k} must be at least 1, or None for all queries.")
        if labels is not None and pixel_values is not None and not isinstance(labels, Targets):
            canvas_hw, is_padded = tuple(pixel_values.shape[-2:]), pixel_mask is not None
            labels = pack_targets(labels, len(pixel_values), pixel_values.device, canvas_hw, is_padded)
        outputs = self.detr(
            pixel_values,
            pixel_mask=pixel_mask,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            decoder_inputs_embeds=decoder_inputs_embeds,
            labels=labels,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            num_items_in_batch=num_items_in_batch,
            num_images_in_batch=num_images_in_batch,
            num_matched_in_batch=num_matched_in_batch,
        )
        *maps, features = outputs.feature_maps  # finest first
        cells = cells_on_image(pixel_mask, *features.shape[-2:])
        cells = None if cells is None else cells.flatten(1)
        attention = self.bbox_attention(outputs.last_hidden_state, outputs.encoder_last_hidden_state, cells)
        inputs = (features, attention.unflatten(-1, features.shape[-2:]), *maps[::-1])  # of the mask head

        all_masks, pred_masks, mask_queries = None, None, None
        if labels is None or not self.training:
            if mask_threshold is None and mask_top_k is None:
                pred_masks = all_masks = self.mask_head(*inputs, self._chunk_size())
            else:
                kept = _kept_queries(outputs.logits, mask_threshold or 0.0, mask_top_k)
                pred_masks = pad_sequence(self._masks_of(kept, *inputs), batch_first=True)  # (B, K, h, w)
                mask_queries = pad_sequence(kept, batch_first=True, padding_value=-1)
        loss, loss_dict = outputs.loss, outputs.loss_dict
        if labels is not None:
            mask_loss, parts = self.mask_criterion(
                self._matched_masks(outputs.matches.query, labels.sizes, all_masks, *inputs),
                labels,
                outputs.matches.target,
                tuple(pixel_values.shape[-2:]),
                pixel_mask,
                outputs.num_boxes,
            )
            loss, loss_dict = loss + mask_loss, {**loss_dict, **parts}

        of_detector = {name: outputs[name] for name in _SHARED_OUTPUTS if name in outputs}
        output = DetrSegmentationOutput(
            loss=loss, loss_dict=loss_dict, pred_masks=pred_masks, mask_queries=mask_queries, **of_detector
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _chunk_size(self) -> int:
        return 0 if self.training else self.config.chunk_size_masks

    def _masks_of(self, queries: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
        """The masks (K, h, w) of some queries (K,) of each image; nothing is computed for an image of none."""
        features, attention, *maps = inputs
        masks = []
        for image, chosen in enumerate(queries):
            of_image = slice(image, image + 1)
            if len(chosen):
                few = attention[of_image].index_select(1, chosen)
                masks.append(
                    self.mask_head(features[of_image], few, *(m[of_image] for m in maps), self._chunk_size())[0]
                )
            else:
                masks.append(features.new_zeros(0, *maps[-1].shape[-2:]))
        return masks

    def _matched_masks(
        self, query: Tensor, sizes: tuple[int, ...], all_masks: Tensor | None, *inputs: Tensor
    ) -> Tensor:
        """The masks (M, h, w) of the matched queries, image * Q + query (M,); that of any one where none is matched."""
        num_queries = inputs[1].shape[1]
        if not len(query):
            query, sizes = query.new_zeros(1), (1,)
        if all_masks is not None:
            return all_masks.flatten(0, 1).index_select(0, query)
        counts = [min(size, num_queries) for size in sizes]  # the matches lie image after image
        return torch.cat(self._masks_of((query % num_queries).split(counts), *inputs))


_SHARED_OUTPUTS = {field.name for field in fields(DetrSegmentationOutput)} & {
    field.name for field in fields(DetrObjectDetectionOutput)
} - {"loss", "loss_dict"}


@torch.no_grad()
def _kept_queries(logits: Tensor, threshold: float, top_k: int | None) -> tuple[Tensor, ...]:
    """(B, Q, C + 1) -> of each image the queries (K,) whose masks are decoded, ascending. Reads back once."""
    scores = logits.float().softmax(-1)[..., :-1].amax(-1).cpu().numpy()  # (B, Q)
    kept = []
    for of_image in scores:
        best = np.argsort(-of_image, kind="stable")
        best = best[of_image[best] >= threshold][:top_k]  # no NaN among them
        kept.append(np.sort(best))
    return to_device(np.concatenate(kept), logits.device).split([len(queries) for queries in kept])
