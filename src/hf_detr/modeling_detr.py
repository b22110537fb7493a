"""DetrForObjectDetection: the model, its two heads, and the loss.

The forward pass reads nothing back to the host; the loss does so once, for the matching.
"""

import logging
from dataclasses import replace
from os import PathLike

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from .checkpoints.original import load_original
from .checkpoints.surgery import shared_classes, transferred_linear
from .configuration_detr import DetrConfig
from .loss import CellPredictions, NoisedTargets, Targets, detection_loss, noise_targets, pack_targets
from .modeling_base import DetrPreTrainedModel, loading_checkpoint
from .modeling_model import DetrModel
from .modeling_outputs import DetrModelOutput, DetrObjectDetectionOutput
from .nn.encoder_head import EncoderHead
from .nn.heads import BoxHead
from .nn.training_only import TrainingOnly
from .nn.training_queries import ExtraQueries, TrainingQueries

# B images, L decoder layers, Q queries, D channels, C classes

__all__ = ["DetrForObjectDetection", "DetrModel"]

logger = logging.getLogger(__name__)


class DetrForObjectDetection(DetrPreTrainedModel):
    """DETR: for each object query a class or "no object", and a box (Carion et al., ECCV 2020).

    With `labels` it returns the loss, matching included, so that a plain `Trainer` trains it.
    """

    accepts_loss_kwargs = True  # a Trainer may pass num_items_in_batch

    def __init__(self, config: DetrConfig):
        super().__init__(config)
        self.model = DetrModel(config)
        self.class_labels_classifier = nn.Linear(config.d_model, config.num_labels + 1)  # and "no object"
        self.bbox_predictor = BoxHead(config.d_model)
        self.training_only = _make_training_only(config)
        self.post_init()
        self._leave_training_only_out_of_files()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in Transformers. With other classes (`id2label=`, or `num_labels=`) it keeps what can be kept of the class
        head, and logs it: see `set_classes`. `ignore_mismatched_sizes` is not needed for that."""
        id2label, num_labels = kwargs.pop("id2label", None), kwargs.pop("num_labels", None)
        if id2label is not None and num_labels not in (None, len(id2label)):
            raise ValueError(f"num_labels={num_labels} contradicts id2label, which names {len(id2label)} classes.")
        if id2label is not None or num_labels is not None:
            kwargs.pop("label2id", None)  # follows from id2label
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._start_fresh_groups()
        if id2label is not None:
            model.set_classes(id2label)
        elif num_labels not in (None, model.config.num_labels):
            model.set_classes({index: f"LABEL_{index}" for index in range(num_labels)})
        return loaded

    @torch.no_grad()
    def set_classes(self, id2label: dict[int, str]) -> list[str]:
        """Makes the class head for other classes. Call it before the optimizer is made.

        Kept are the row of "no object" and those of all classes that had the same name; the others start afresh.
        Returns the names that were kept, and logs them. Raises ValueError for ids other than 0, 1, 2, ...
        """
        id2label = {int(index): str(name) for index, name in id2label.items()}
        if not id2label or sorted(id2label) != list(range(len(id2label))):
            raise ValueError(f"id2label must name the classes 0, 1, 2, ... without gaps, not {sorted(id2label)}.")
        config, old = self.config, self.class_labels_classifier
        if id2label != config.id2label:
            shared = shared_classes(config.id2label, id2label)
            rows = {**shared, len(id2label): old.out_features - 1}  # and "no object"
            self.class_labels_classifier = transferred_linear(old, rows, len(id2label) + 1)
            if self.training_only is not None:
                self.training_only.set_classes(len(id2label), shared)
            config.id2label, config.label2id = id2label, {name: index for index, name in id2label.items()}
        else:
            shared = {index: index for index in id2label}
        kept = [id2label[index] for index in sorted(shared)]
        fresh = [name for index, name in id2label.items() if index not in shared]
        logger.warning(
            'Class head: kept "no object" and %d of %d classes (%s); %d start afresh (%s).',
            len(kept), len(id2label), _shorten(kept), len(fresh), _shorten(fresh),
        )  # fmt: skip
        return kept

    @torch.no_grad()
    def set_training_help(
        self,
        *,
        denoising_queries: int | None = None,
        query_groups: int | None = None,
        encoder_auxiliary_loss: bool | None = None,
    ) -> None:
        """Changes the help that has parameters of its own in training; what is left out stays. Call it before the
        optimizer is made. New groups start from the object queries as they are. See `DetrConfig`; ValueError likewise.
        """
        config = self.config
        wanted = {
            "denoising_queries": denoising_queries,
            "query_groups": query_groups,
            "encoder_auxiliary_loss": encoder_auxiliary_loss,
        }
        before = {name: getattr(config, name) for name in wanted}
        for name, value in wanted.items():
            setattr(config, name, before[name] if value is None else value)
        try:
            config.check()
        except ValueError:
            for name, value in before.items():
                setattr(config, name, value)
            raise
        self.training_only = _make_training_only(config)
        if self.training_only is not None:
            self.training_only.to(self.device, self.dtype).train(self.training)
            self.training_only.apply(self._init_weights)
            self._start_fresh_groups()
        self._leave_training_only_out_of_files()

    def _start_fresh_groups(self) -> None:
        if self.training_only is not None and self.training_only.queries is not None:
            self.training_only.queries.start_fresh_groups_from(self.model.query_position_embeddings.weight)

    def _leave_training_only_out_of_files(self) -> None:
        """What `save_pretrained` writes is a plain DETR. Checkpoints to go on from keep the rest beside it:
        `state_dict()` has it, and `DetrTrainer` writes it into a file of its own."""
        names = () if self.training_only is None else self.training_only.state_dict()
        self._keys_to_ignore_on_save = {f"training_only.{name}" for name in names}

    @torch.no_grad()
    def resize_queries(self, num_queries: int) -> None:
        super().resize_queries(num_queries)
        if self.config.query_groups > 1:
            self.set_training_help()  # groups of the new number

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_images_in_batch: Tensor | int | None = None,
        num_matched_in_batch: Tensor | int | None = None,
    ) -> DetrObjectDetectionOutput | tuple[Tensor, ...]:
        """Images to detections, and to the loss where there are labels.

        Args:
            labels: one dict per image: `class_labels` (T,) int64 in [0, C), and `boxes` (T, 4) (centre x, centre y,
                width, height) in [0, 1] of the visible image. T may be 0. The image processor makes them.
            num_items_in_batch: the *boxes* of the whole optimizer step where several forward passes make one.
            num_images_in_batch, num_matched_in_batch: its images, and those of its boxes that have a query; see
                `loss.detection_loss`.
            pixel_values and others: see `DetrModel.forward`.

        Raises:
            TypeError, ValueError: inputs or labels that do not fit; the message says where and how to mend it.
        """
        config = self.config
        noised, extra_queries = None, None
        if labels is not None:
            batch_size = len(labels) if pixel_values is None else len(pixel_values)
            labels = pack_targets(labels, batch_size, self.device)
            if self.training and self.training_only is not None and self.training_only.queries is not None:
                noised, extra_queries = self._extra_queries(labels)
        outputs = self.model(
            pixel_values,
            pixel_mask=pixel_mask,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            extra_queries=extra_queries,
        )
        loss, loss_dict, auxiliary_outputs = None, None, None
        if labels is None:
            logits, pred_boxes = self._heads(outputs.last_hidden_state)
        else:
            states = outputs.intermediate_hidden_states
            states = outputs.last_hidden_state[None] if states is None else states
            all_logits, all_boxes = self._heads(states)  # (L, B, Q, .)
            loss, loss_dict = detection_loss(
                all_logits,
                all_boxes,
                labels,
                query_groups=1 if extra_queries is None else config.query_groups,
                noised=noised,
                cells=self._cells(outputs),
                class_cost=config.class_cost,
                bbox_cost=config.bbox_cost,
                giou_cost=config.giou_cost,
                bbox_loss_coefficient=config.bbox_loss_coefficient,
                giou_loss_coefficient=config.giou_loss_coefficient,
                eos_coefficient=config.eos_coefficient,
                num_items_in_batch=num_items_in_batch,
                num_images_in_batch=num_images_in_batch,
                num_matched_in_batch=num_matched_in_batch,
            )
            if extra_queries is not None:  # what follows speaks of the object queries
                outputs = _without_extra_queries(outputs, config.num_queries)
                all_logits, all_boxes = all_logits[:, :, : config.num_queries], all_boxes[:, :, : config.num_queries]
            logits, pred_boxes = all_logits[-1], all_boxes[-1]
            if config.auxiliary_loss:
                auxiliary_outputs = [
                    {"logits": a, "pred_boxes": b} for a, b in zip(all_logits[:-1], all_boxes[:-1], strict=True)
                ]

        output = DetrObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits,
            pred_boxes=pred_boxes,
            auxiliary_outputs=auxiliary_outputs,
            last_hidden_state=outputs.last_hidden_state,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    @classmethod
    def from_original(cls, path: str | PathLike, config: DetrConfig | None = None) -> "DetrForObjectDetection":
        """A model from a checkpoint of the original DETR (`detr-r50-e632da11.pth`), in eval mode.

        Args:
            path: the `.pth`. Only tensors and plain values are unpickled.
            config: needed where the sizes of the tensors do not tell the architecture; see `checkpoints.original`.

        Raises:
            FileNotFoundError, ValueError: no such file, not such a checkpoint, or one that does not fit `config`.
        """
        config, weights = load_original(path, config)
        token = loading_checkpoint.set(True)
        try:
            model = cls(config)
        finally:
            loading_checkpoint.reset(token)
        problems = model.load_state_dict(weights, strict=False)
        if problems.missing_keys or problems.unexpected_keys:
            raise ValueError(
                f"{path} does not fit the configuration: it lacks {problems.missing_keys[:5]} and has "
                f"{problems.unexpected_keys[:5]} besides (the first five of each)."
            )
        return model.eval()

    def _extra_queries(self, targets: Targets) -> tuple[NoisedTargets | None, ExtraQueries]:
        config, noised, copies = self.config, None, {}
        if config.denoising_queries:
            noised = noise_targets(
                targets,
                config.denoising_queries,
                config.num_labels,
                config.denoising_box_noise,
                config.denoising_label_noise,
            )
            names = ("noised_labels", "noised_boxes_cxcywh", "copy", "is_real")
            copies = {name: getattr(noised, name) for name in names}
        return noised, self.training_only.queries(config.num_queries, len(targets.sizes), **copies)

    def _cells(self, outputs: DetrModelOutput) -> CellPredictions | None:
        """What the encoder's head says, in training; in the weights' own precision, as the other heads."""
        centres_xy = outputs.cell_centres_xy
        if centres_xy is None:
            return None
        with torch.autocast(centres_xy.device.type, enabled=False):
            return CellPredictions(
                *self.training_only.encoder_head(outputs.encoder_last_hidden_state, centres_xy), centres_xy
            )

    def _heads(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(..., Q, D) -> logits (..., Q, C + 1) and boxes (..., Q, 4) in [0, 1].

        In the weights' own precision also under autocast: eight bits of a box's place are a pixel in 256, and the
        heads cost nothing beside the backbone.
        """
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(self.class_labels_classifier.weight.dtype)
            return self.class_labels_classifier(states), self.bbox_predictor(states).sigmoid()


def _make_training_only(config: DetrConfig) -> TrainingOnly | None:
    queries, head = None, None
    if config.query_groups > 1 or config.denoising_queries:
        queries = TrainingQueries(
            config.d_model, config.num_queries, config.query_groups, config.num_labels, config.denoising_queries > 0
        )
    if config.encoder_auxiliary_loss:
        head = EncoderHead(config.d_model, config.num_labels)
    return None if queries is None and head is None else TrainingOnly(queries, head)


def _without_extra_queries(outputs: DetrModelOutput, num_queries: int) -> DetrModelOutput:
    def cut(tensors: tuple[Tensor, ...] | None, *, of_both: bool = False) -> tuple[Tensor, ...] | None:
        if tensors is None:
            return None
        return tuple(t[..., :num_queries, : num_queries if of_both else None] for t in tensors)

    return replace(
        outputs,
        last_hidden_state=outputs.last_hidden_state[:, :num_queries],
        decoder_hidden_states=cut(outputs.decoder_hidden_states),
        decoder_attentions=cut(outputs.decoder_attentions, of_both=True),
        cross_attentions=cut(outputs.cross_attentions),
    )


def _shorten(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most] or ["none"]) + (", ..." if len(names) > most else "")
