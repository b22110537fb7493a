"""Means of the parts of the loss: over logging intervals while training, over all images while evaluating.

Sums stay on the device until they are asked for, so no step waits for the host.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..configuration_detr import DetrConfig

_OF_BOXES = ("bbox", "giou", "mask", "dice")  # parts that are means over the objects
Labels = Sequence[Mapping[str, Tensor]]
Reduce = Callable[[Tensor], Tensor]


class IntervalLosses:
    """The parts of the loss, summed over the forward passes since they were last taken.

    A loss of one pass is its share of the whole optimizer step's, so shares add up. The errors that are only to be
    looked at (`class_error`, `cardinality_error`) are of one pass alone, so they are averaged.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forgets everything, also a step begun."""
        self._names: tuple[str, ...] = ()
        self._shares: Tensor | None = None  # (parts,)
        self._averages: Tensor | None = None  # (parts,)
        self._steps, self._passes = 0, 1

    def state_dict(self) -> dict[str, object]:
        """The sums of this process, as plain numbers; one copy to the host."""
        sums = [] if self._shares is None else torch.stack((self._shares, self._averages)).tolist()
        return {"names": list(self._names), "sums": sums, "steps": self._steps}

    def load_state_dict(self, state: Mapping | None) -> None:
        """Goes on from such sums, or from none."""
        self.clear()
        if state is not None and state["sums"]:
            self._names, self._steps = tuple(state["names"]), state["steps"]
            self._shares, self._averages = torch.tensor(state["sums"])

    def begin_step(self, passes: int) -> None:
        """The next `passes` calls of `add` are one optimizer step."""
        self._steps, self._passes = self._steps + 1, max(passes, 1)

    def add(self, loss_dict: Mapping[str, Tensor]) -> None:
        """The parts of one forward pass."""
        if tuple(loss_dict) != self._names or self._shares is None:
            self._names = tuple(loss_dict)
            self._shares = self._averages = torch.zeros(len(loss_dict), device=next(iter(loss_dict.values())).device)
        parts = torch.stack([part.detach().float() for part in loss_dict.values()])
        # sums of a checkpoint come on the host
        self._shares = self._shares.to(parts.device) + parts
        self._averages = self._averages.to(parts.device) + parts / self._passes

    def take(self, num_processes: int, mean_over_processes: Reduce) -> dict[str, float]:
        """Means a step since the last call, over all processes; one copy to the host. Empty before the first step."""
        if self._shares is None or not self._steps:
            return {}
        sums = mean_over_processes(torch.stack((self._shares * num_processes, self._averages))) / self._steps
        shares, averages = sums.tolist()
        names = self._names
        self.clear()
        return {
            name: share if name.startswith("loss") else average
            for name, share, average in zip(names, shares, averages, strict=True)
        }


class EvaluationLosses:
    """The losses of a whole data set as if it were one batch, whatever the batches and processes.

    A batch's parts are means over its boxes, its weighted queries, its images; each is multiplied by what it was
    divided by, summed, and divided by the sums.
    """

    def __init__(self, config: DetrConfig):
        self.num_queries, self.eos = config.num_queries, config.eos_coefficient
        self.coefficients = {"loss_ce": 1.0}
        self.coefficients |= {f"loss_{name}": getattr(config, f"{name}_loss_coefficient") for name in _OF_BOXES}
        self._sums: dict[str, Tensor] = {}
        self._counts = {"queries": 0.0, "boxes": 0.0, "images": 0.0, "matched": 0.0}

    @staticmethod
    def counts_of(labels: Labels) -> dict[str, int]:
        """What makes the model divide by this batch's counts alone: arguments of its forward pass."""
        boxes = sum(len(label["class_labels"]) for label in labels)
        return {"num_items_in_batch": boxes, "num_images_in_batch": len(labels)}

    def add(self, loss_dict: Mapping[str, Tensor], labels: Labels) -> None:
        """The parts of one batch, whose forward pass was given `counts_of(labels)`."""
        sizes = [len(label["class_labels"]) for label in labels]
        matched = sum(min(size, self.num_queries) for size in sizes)
        unmatched = len(sizes) * self.num_queries - matched
        counts = {"queries": matched + self.eos * unmatched, "boxes": sum(sizes), "images": len(sizes)}
        counts["matched"] = matched
        for name, part in loss_dict.items():
            weighted = part.float() * counts[_divisor(name)]
            self._sums[name] = weighted if name not in self._sums else self._sums[name] + weighted
        for name, count in counts.items():
            self._counts[name] += count

    def state(self) -> dict[str, dict[str, float]]:
        """What this process has seen, as plain numbers; one copy to the host."""
        values = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        return {"sums": dict(zip(self._sums, values, strict=True)), "counts": dict(self._counts)}

    def compute(self, states: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
        """`loss` and its parts of the last layer, from the `state()` of every process; empty where nothing was seen."""
        sums, counts = Counter(), Counter()
        for state in states:
            sums.update(state["sums"])
            counts.update(state["counts"])
        if not sums:
            return {}
        means = {
            name: total / counts[_divisor(name)] if counts[_divisor(name)] else 0.0 for name, total in sums.items()
        }
        loss = sum(self.coefficients.get(_base(name), 0.0) * mean for name, mean in means.items())
        return {"loss": loss, **{name: mean for name, mean in means.items() if _base(name) == name}}


def _base(name: str) -> str:
    """The part's name without its decoder layer: loss_ce_3 -> loss_ce."""
    head, _, tail = name.rpartition("_")
    return head if tail.isdecimal() else name


def _divisor(name: str) -> str:
    names = {"loss_ce": "queries", "class_error": "matched", **{f"loss_{part}": "boxes" for part in _OF_BOXES}}
    return names.get(_base(name), "images")
