"""Two ways to train the same DETR: as in the paper, and with everything found to make it converge sooner.

Neither changes what the model computes at inference: both leave a plain DETR. What each part is worth was measured; see
docs/results.md.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Recipe:
    """Values for what the user leaves open.

    Attributes:
        denoising_queries, query_groups, encoder_auxiliary_loss, iou_aware_classification: as in `DetrConfig`.
        muon: the transformer's linear layers move by orthogonal steps; see `MuonAdamW`.
        class_head_rate: the class head's learning rate, times the transformer's.
        averages: keep a moving average of the weights, over a share of the steps so far; see `WeightAverage`.
    """

    denoising_queries: int = 0
    query_groups: int = 1
    encoder_auxiliary_loss: bool = False
    iou_aware_classification: bool = False
    muon: bool = False
    class_head_rate: float = 1.0
    averages: bool = False


RECIPES = {
    "paper": Recipe(),
    "fast": Recipe(
        encoder_auxiliary_loss=True,
        iou_aware_classification=True,
        muon=True,
        class_head_rate=10.0,
        averages=True,
    ),
}
# What a recipe says about the model, and a user may say otherwise.
MODEL_SETTINGS = ("denoising_queries", "query_groups", "encoder_auxiliary_loss", "iou_aware_classification")


def apply_recipe(model: nn.Module, recipe: str | None, **overrides: Any) -> dict[str, Any]:
    """Sets the model's training-only parts: by `overrides` (names of `MODEL_SETTINGS`; None: none) before the recipe
    before what its configuration says. Call it before the optimizer is made. Returns what holds now.

    Raises ValueError for unknown recipes and impossible numbers, TypeError for a model without such parts that should
    have some.
    """
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"recipe={recipe!r} is none of {', '.join(map(repr, RECIPES))}, or None for the model's own.")
    wanted = {} if recipe is None else {name: getattr(RECIPES[recipe], name) for name in MODEL_SETTINGS}
    wanted |= {name: value for name, value in overrides.items() if value is not None}
    config = model.config
    if not hasattr(model, "set_training_only"):
        asked = {name: value for name, value in wanted.items() if value != getattr(Recipe(), name)}
        if asked:
            raise TypeError(
                f"{type(model).__name__} has no training-only parts, so {asked} cannot be; use recipe='paper'."
            )
        return {}
    if any(getattr(config, name) != value for name, value in wanted.items()):
        model.set_training_only(**wanted)
    return {name: getattr(config, name) for name in MODEL_SETTINGS}


def averages_weights(recipe: str | None, ema_decay: float | None) -> bool:
    """Whether a moving average is kept: `ema_decay` (0 for none) overrides the recipe."""
    if ema_decay is not None:
        return ema_decay > 0
    return recipe is not None and RECIPES[recipe].averages


def uses_muon(recipe: str | None, override: bool | None) -> bool:
    """Whether the transformer's linear layers are for Muon: `override` before what the recipe says."""
    if override is not None:
        return override
    return recipe is not None and RECIPES[recipe].muon


def class_head_rate_of(recipe: str | None, learning_rate: float, override: float | None = None) -> float | None:
    """The class head's learning rate: `override` before what the recipe says; None where it is that of the rest."""
    if override is not None:
        return override
    factor = 1.0 if recipe is None else RECIPES[recipe].class_head_rate
    return None if factor == 1 else factor * learning_rate
