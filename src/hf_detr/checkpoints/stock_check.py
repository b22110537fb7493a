"""Whether a model runs in stock transformers: asked by running it there, never assumed.

Stock reads the checkpoints that this package writes, but not every backbone computes the same there: for one, it drops
the activation that the norms of EfficientNets and RegNets carry.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

_TOLERANCE = 1e-3  # of logits and boxes; the same network in another order of operations stays below 1e-4
_SIZE_HW = (192, 256)


@dataclass(frozen=True)
class StockCheck:
    """What came of it.

    Attributes:
        outcome: "equal"; "differs": loads, but gives other numbers; "fails": does not load or run; "unchecked".
        difference: the largest of any logit or box, where both ran.
        reason: in one line, of "fails" and "unchecked".
        version: of transformers.
    """

    outcome: Literal["equal", "differs", "fails", "unchecked"]
    difference: float | None = None
    reason: str = ""
    version: str = transformers.__version__


def check_in_stock(model: PreTrainedModel) -> StockCheck:
    """Saves the model to a temporary folder, loads that here and in stock, and runs both on one small batch.

    All on the CPU in float32, with nothing fetched; the model, its mode and the random numbers stay as they are. Never
    raises: a card is not worth a run.
    """
    try:
        with TemporaryDirectory() as folder, _quiet(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            model.save_pretrained(folder)
            inputs = _inputs(model.config.num_channels)
            expected = _outputs(_load(type(model), folder), inputs)
            try:
                found = _outputs(_load(_stock_class(model), folder), inputs)
            except Exception as error:
                return StockCheck("fails", reason=_one_line(error))
    except Exception as error:
        return StockCheck("unchecked", reason=_one_line(error))
    differences = [float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)]
    is_equal = all(difference <= _TOLERANCE for difference in differences)  # NaN is not
    return StockCheck("equal" if is_equal else "differs", max(differences))


def _load(model_class: type[PreTrainedModel], folder: str) -> PreTrainedModel:
    model, info = model_class.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise ValueError(f"{len(info[kind])} {kind.replace('_', ' ')}, such as {sorted(map(str, info[kind]))[0]}")
    return model.eval()


def _stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    names = [base.__name__ for base in type(model).__mro__ if base.__name__.startswith("Detr")]
    return next(getattr(transformers, name) for name in names if hasattr(transformers, name))


def _inputs(channels: int) -> dict[str, Tensor]:
    """Two images, one of them padded."""
    height, width = _SIZE_HW
    pixel_values = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    pixel_mask = torch.ones(2, height, width, dtype=torch.int64)
    pixel_values[1, :, 2 * height // 3 :] = 0
    pixel_mask[1, 2 * height // 3 :] = 0
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


@torch.no_grad()
def _outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    outputs = model(**inputs)
    return [outputs[name] for name in ("logits", "pred_boxes", "pred_masks") if name in outputs] or [outputs[0]]


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries say of these models is in the result."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
