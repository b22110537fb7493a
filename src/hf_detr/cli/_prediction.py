"""Images in, detections and drawings out, with reading, computing and drawing at the same time."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hf_detr.evaluation.evaluator import check_finite
from hf_detr.evaluation.tasks import task_of
from hf_detr.image_processing.saved_thresholds import SAVED
from hf_detr.image_processing.tiling import Corners, merge_tiles, tile_corners
from hf_detr.image_processing_detr import DetrImageProcessor

from ._running import Model, in_order, run_ahead, same_size_batches

Source = TypeVar("Source")


class _Part(NamedTuple):
    """What the model sees at once of an image (C, H, W): the whole of it, or a tile."""

    source: Any
    number: int  # of the image from 1, to name it by
    image: Tensor
    tiles: list[Corners]  # of the image; one where it is seen as a whole
    tile: int
    pixel_values: Tensor | str  # or why there are none


class Predictor:
    """Images in, (source, image (C, H, W), result dict) out, or (source, reason, None) for those that are not readable.

    `load(source)` gives an image; what it raises costs that image alone. Threads read and resize the next images while
    the model works on a batch, and no more than a few batches are held. What is found in an image does not depend on
    the others, but the order in which images come does, unless `keep_order` is asked for or `tile_px` given. Without a
    threshold, those that the processor has saved.
    """

    def __init__(
        self,
        model: Model,
        processor: DetrImageProcessor,
        threshold: float | None = None,
        tile_px: int | None = None,
        overlap: float = 0.2,
    ):
        self.model, self.processor = model, processor
        self.threshold = SAVED if threshold is None else threshold
        self.tile_px, self.overlap = tile_px, overlap
        saved = [processor.threshold_of(label) for label in range(model.config.num_labels)]
        self.lowest_threshold = min(saved) if threshold is None else threshold
        self.task = task_of(model)
        if tile_px and self.task == "panoptic":
            raise ValueError(
                "--tile merges objects, and stuff is none: a panoptic map shares out the pixels of one view, and "
                "those of several do not add up to one. Leave it out, or take a model of instances."
            )
        self.waited_s = 0.0  # how long the model stood still because the next images were not there yet
        self._of_tiles: list[dict[str, Tensor]] = []

    def __call__(
        self,
        sources: Iterable[Source],
        load: Callable[[Source], Tensor],
        batch_size: int,
        threads: int,
        keep_order: bool = False,
    ) -> Iterator[tuple[Source, Tensor | str, dict[str, Tensor] | None]]:
        ahead = 2 * batch_size
        unreadable: list[tuple[Source, str]] = []

        def loaded(source: Source) -> tuple[Source, Tensor | str]:
            return source, _or_reason(lambda: load(source))

        def parts() -> Iterator[_Part]:
            images = in_order(loaded, sources, threads, 1 if self.tile_px else ahead)
            for number, (source, image) in enumerate(images, start=1):
                if isinstance(image, str):
                    unreadable.append((source, image))
                    continue
                height, width = image.shape[-2:]
                tiles = [(0, 0, width, height)]
                if self.tile_px:
                    tiles = tile_corners((height, width), self.tile_px, self.overlap)
                for tile in range(len(tiles)):
                    yield _Part(source, number, image, tiles, tile, "")

        def prepared() -> Iterator[_Part]:
            failed = None
            for part in in_order(self._prepare, parts(), threads, ahead):
                if part.image is failed:
                    continue
                if isinstance(part.pixel_values, str):
                    unreadable.append((part.source, part.pixel_values))
                    failed = part.image
                else:
                    yield part

        def batches() -> Iterator[tuple[list[_Part], Tensor]]:
            on_gpu = next(self.model.parameters()).is_cuda
            batched = _batches_in_order if keep_order or self.tile_px else same_size_batches
            for batch in batched(prepared(), batch_size, lambda part: part.pixel_values.shape):
                pixel_values = torch.stack([part.pixel_values for part in batch])
                batch = [part._replace(pixel_values="") for part in batch]
                yield batch, pixel_values.pin_memory() if on_gpu else pixel_values

        made = run_ahead(batches())
        batch = ()
        while batch is not None:
            begun = time.perf_counter()
            batch = next(made, None)
            self.waited_s += time.perf_counter() - begun
            if batch is not None:
                yield from self._detect(*batch)
            while unreadable:
                yield (*unreadable.pop(0), None)

    def _prepare(self, part: _Part) -> _Part:
        left, top, right, bottom = part.tiles[part.tile]
        seen = part.image[:, top:bottom, left:right]
        options = {"do_pad": False, "return_tensors": "pt", "input_data_format": "channels_first"}
        return part._replace(pixel_values=_or_reason(lambda: self.processor(images=seen, **options)["pixel_values"][0]))

    def _detect(self, parts: list[_Part], pixel_values: Tensor) -> Iterator[tuple[Any, Tensor, dict[str, Tensor]]]:
        device = next(self.model.parameters()).device
        # masks are decoded of what is kept alone
        kept = {} if self.task == "detection" else {"mask_threshold": self.lowest_threshold}
        with torch.inference_mode():
            outputs = self.model(pixel_values.to(device, non_blocking=True), **kept)
        corners = [part.tiles[part.tile] for part in parts]
        sizes_hw = [(bottom - top, right - left) for left, top, right, bottom in corners]
        check_finite(outputs, [part.number for part in parts])
        processed = {"processed_sizes": [pixel_values.shape[-2:]] * len(parts)}
        post_process, options = {
            "detection": (self.processor.post_process_object_detection, {}),
            "instance": (self.processor.post_process_masks, processed),
            "panoptic": (self.processor.post_process_panoptic_segmentation, processed),
        }[self.task]
        found = post_process(outputs, threshold=self.threshold, target_sizes=sizes_hw, **options)
        for part, detections in zip(parts, found, strict=True):
            if part.tile == 0:
                self._of_tiles = []
            self._of_tiles.append(detections)
            if part.tile == len(part.tiles) - 1:
                whole = merge_tiles(self._of_tiles, part.tiles) if self.tile_px else detections
                yield part.source, part.image, whole


def _or_reason(work: Callable[[], Tensor]) -> Tensor | str:
    try:
        return work()
    except Exception as error:  # decoders raise nearly anything for damaged files, and it costs one image
        return str(error) or type(error).__name__


def _batches_in_order(
    parts: Iterable[_Part], batch_size: int, size_of: Callable[[_Part], Any]
) -> Iterator[list[_Part]]:
    """Batches of parts of one size that follow each other, so in their order."""
    for _, alike in groupby(parts, size_of):
        while batch := list(islice(alike, batch_size)):
            yield batch


class Background:
    """One thread that does work in its order while the model goes on, at most 8 pieces behind it.

    `failed(name, error)` is told, in the thread that asks, of a piece of work that raised OSError or ValueError: a full
    disk, an image too large for its format.
    """

    def __init__(self, failed: Callable[[str, Exception], None]):
        self.failed = failed
        self.pool = ThreadPoolExecutor(1)
        self.pending: deque[tuple[str, Future]] = deque()

    def __call__(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        if len(self.pending) > 8:  # else images would pile up in memory
            self._finish_one()
        self.pending.append((name, self.pool.submit(work, *arguments)))

    def finish(self) -> None:
        """Waits for all that was asked for."""
        while self.pending:
            self._finish_one()

    def close(self) -> None:
        with self.pool:
            self.finish()

    def _finish_one(self) -> None:
        name, work = self.pending.popleft()
        try:
            work.result()
        except (OSError, ValueError) as error:
            self.failed(name, error)
