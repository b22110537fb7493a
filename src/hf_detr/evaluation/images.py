"""What all evaluators share: images by id, each counted once, gathered over batches and processes."""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist


class ImageEvaluator(ABC):
    """Keeps what each image brings, and measures all of them when asked.

    A subclass has `update`, which reads and checks a batch and gives it to `_take`, and

        _check(image, place)        what an image of another evaluator must fulfil here, for `merge`
        _same_truth(image, other)   whether two images have one ground truth
        _evaluate() -> dict         the metrics of `self._images`, in the order of their ids
    """

    def __init__(self, class_names: Sequence[str] | Mapping[int, str] | None = None):
        self._names = None if class_names is None else names_by_id(class_names)
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self._images: dict[int, Any] = {}
        self._unshared: list[int] = []  # image ids that the other processes have not been told of
        self._unshared_duplicates = 0
        self.num_duplicates = 0
        self._computed: dict | None = None

    def __len__(self) -> int:
        """Images seen."""
        return len(self._images)

    def state(self) -> dict:
        """All that was taken in, picklable, for `merge` of another evaluator."""
        return {"images": dict(self._images), "num_duplicates": self.num_duplicates}

    def merge(self, state: Mapping) -> None:
        """Take in the `state()` of another evaluator; images that both have seen count once, this one's first."""
        for image_id, image in state["images"].items():
            self._check(image, f"image {image_id}")
        self._take(state["images"].items())
        self.num_duplicates += state["num_duplicates"]
        self._unshared_duplicates += state["num_duplicates"]

    def synchronize_between_processes(self) -> None:
        """Give every process the images of all, under torch.distributed; every process must call it. Else nothing.

        Only what came since the last call travels. Images that several processes saw count once, the lowest rank's.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        mine = [(image_id, self._images[image_id]) for image_id in self._unshared]
        everyones: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, (mine, self._unshared_duplicates))

        for image_id in self._unshared:  # back to what all processes hold in common, then everything in order of rank
            del self._images[image_id]
        self.num_duplicates -= self._unshared_duplicates
        for images, num_duplicates in everyones:
            self._take(images)
            self.num_duplicates += num_duplicates
        self._unshared, self._unshared_duplicates = [], 0

    def compute(self) -> dict:
        """The metrics. Of this process's images alone, unless `synchronize_between_processes` went before."""
        if self._computed is None:
            self._computed = self._evaluate()
        return copy.deepcopy(self._computed)

    def summary(self) -> dict[str, float]:
        """`compute()` without the classes: one flat dict of numbers, as trainers log them."""
        return {name: value for name, value in self.compute().items() if name != "per_class"}

    def to_json(self, path: str | Path | None = None) -> str:
        """`compute()` as JSON text, and into the file `path` if one is given."""
        text = json.dumps(self.compute(), indent=2)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def _take(self, images: Iterable[tuple[int, Any]]) -> None:
        images = list(images)
        new: dict[int, Any] = {}
        for image_id, image in images:
            known = new.get(image_id) or self._images.get(image_id)
            if known is not None and not self._same_truth(known, image):
                raise ValueError(
                    f"image {image_id}: came twice with different targets, so two images carry one id; "
                    "give every image an id of its own."
                )
            if known is None:
                new[image_id] = image
        self._images.update(new)
        self._unshared.extend(new)
        self.num_duplicates += len(images) - len(new)
        self._unshared_duplicates += len(images) - len(new)
        self._computed = None

    def image_ids(self) -> list[int]:
        """Of the images seen, ascending."""
        return sorted(self._images)

    def _in_order(self) -> list[Any]:
        return [self._images[image_id] for image_id in self.image_ids()]

    def _check_labels(self, labels: Iterable[int], place: str) -> None:
        seen = set(labels)
        unknown = {label for label in seen if label < 0} if self._names is None else seen - self._names.keys()
        if unknown:
            known = "0 or above" if self._names is None else _in_words(self._names)
            raise ValueError(
                f"{place} has the label {min(unknown)}, and the known classes are {known}; give class_names every "
                "class, and labels as contiguous class ids rather than the data set's category ids."
            )

    def _class_names(self, seen: Iterable[int]) -> dict[int, str]:
        """Names by class id; where none were given, the numbers that were `seen`."""
        return {label: str(label) for label in sorted(set(seen))} if self._names is None else self._names

    @abstractmethod
    def _check(self, image: Any, place: str) -> None: ...

    @abstractmethod
    def _same_truth(self, image: Any, other: Any) -> bool: ...

    @abstractmethod
    def _evaluate(self) -> dict: ...


def names_by_id(class_names: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    """{id: name} from a list or mapping; a name that two classes share gets its id, for results to tell them apart."""
    if isinstance(class_names, str):
        raise TypeError(f"class_names must be a list of names or {{id: name}}, got the string {class_names!r}.")
    items = class_names.items() if isinstance(class_names, Mapping) else enumerate(class_names)
    names = {int(label): str(name) for label, name in items}
    if min(names, default=0) < 0:
        raise ValueError(f"class_names has the class id {min(names)}; ids start at 0.")
    shared = {name for name in names.values() if sum(name == other for other in names.values()) > 1}
    return {label: f"{names[label]} ({label})" if names[label] in shared else names[label] for label in sorted(names)}


def _in_words(names: Mapping[int, str]) -> str:
    shown = [f"{label} ({name})" for label, name in names.items()]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]]) or "none"
