"""What the models return: Transformers' output classes, with the names and the order stock DETR has."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import Seq2SeqModelOutput
from transformers.utils import ModelOutput

# B images, H x W cells of the feature map, L decoder layers, Q queries, D channels, C classes


@dataclass
class DetrModelOutput(Seq2SeqModelOutput):
    """Output of `DetrModel`.

    Attributes:
        last_hidden_state: (B, Q, D) state of each query after the last decoder layer, normed.
        decoder_hidden_states: L + 1 of (B, Q, D): the states before each layer and `last_hidden_state`.
        decoder_attentions, cross_attentions: L of (B, heads, Q, Q) and of (B, heads, Q, HW).
        encoder_last_hidden_state: (B, HW, D) the encoded feature map, its rows one after the other.
        encoder_hidden_states: encoder layers + 1 of (B, HW, D).
        encoder_attentions: encoder layers of (B, heads, HW, HW).
        intermediate_hidden_states: (L, B, Q, D) states after each decoder layer, normed, with `auxiliary_loss`.
        cell_centres_xy: (B or 1, HW, 2) centres of the feature map's cells in [0, 1] of the visible image, -1 on
            padding; only in training with `encoder_auxiliary_loss`.
    """

    intermediate_hidden_states: Tensor | None = None
    cell_centres_xy: Tensor | None = None


@dataclass
class DetrObjectDetectionOutput(ModelOutput):
    """Output of `DetrForObjectDetection`; hidden states and attentions as in `DetrModelOutput`.

    Attributes:
        loss: () the weighted sum of all layers' losses, where `labels` were given.
        loss_dict: its parts, unweighted, with the errors that are only to be looked at; see `loss.detection_loss`.
        logits: (B, Q, C + 1) class scores before the softmax; the last class is "no object".
        pred_boxes: (B, Q, 4) (centre x, centre y, width, height) in [0, 1] of the visible image, padding not counted.
        auxiliary_outputs: with `auxiliary_loss` and `labels`, a dict of `logits` and `pred_boxes` for each decoder
            layer but the last.
        last_hidden_state: (B, Q, D), from which heads and others read.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
