"""One loaded model that many ask at once: images in, rows of detections out, and what a query looked at."""

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from hf_detr.boxes import cxcywh_to_xyxy
from hf_detr.evaluation.evaluator import check_finite
from hf_detr.evaluation.rows import result_rows
from hf_detr.evaluation.tasks import task_of
from hf_detr.image_processing.saved_thresholds import SAVED
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.visualization.attention import Recording, layer_answers, record_attention

from .batching import BatchingQueue
from .limits import Limits, Refused
from .uploads import open_image, shown_name

_MOST_RECORDINGS = 8  # a few megabytes each
_log = logging.getLogger(__name__)

Thresholds = Mapping[int, float]  # label -> the score above which a detection of it is kept


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one image; `rows` as `result_rows` gives them."""

    name: str
    width: int
    height: int
    rows: list[dict[str, Any]]


class Looked(NamedTuple):
    """What the query of one box took from the image, in the last decoder layer."""

    label: int
    score: float
    box_xyxy: Tensor  # (4,) in [0, 1] of the image
    attention: Tensor  # (H, W) cells


class _Prepared(NamedTuple):
    pixel_values: Tensor  # (C, height, width)
    size_hw: tuple[int, int]  # of the image
    name: str
    thresholds: Thresholds


class Detector:
    """Takes what was sent from any thread; one thread has the model and works on what waits together. Close it.

    Only images of one size share a batch, so nothing is padded and each answer is that of the image alone.
    """

    def __init__(self, model: nn.Module, processor: DetrImageProcessor, name: str, limits: Limits | None = None):
        self.model, self.processor, self.name = model, processor, name
        self.limits = limits or Limits()
        self.id2label: dict[int, str] = {int(label): str(word) for label, word in model.config.id2label.items()}
        self.task = task_of(model)
        self._device = next(model.parameters()).device
        self._queue = BatchingQueue(self.limits.batch)
        self._pool = ThreadPoolExecutor(2 * self.limits.batch, "image")
        self._room = threading.Semaphore(self.limits.queue)
        self._recordings: dict[Path, Recording] = {}

    def submit(self, files: Sequence[tuple[BinaryIO | Path, str]], thresholds: Thresholds) -> list[Future[Found]]:
        """What is found in each (file, name), all of them or none; a future raises `Refused` with a sentence.

        Raises `Refused` where they are too many, or the queue has no room for them.
        """
        if len(files) > self.limits.images:
            raise Refused(f"{len(files)} images at once; send at most {self.limits.images}.", 413)
        for taken in range(len(files)):
            if not self._room.acquire(blocking=False):
                if taken:
                    self._room.release(taken)
                raise Refused("The server is busy: its queue is full. Try again in a moment.", 503)
        return [self._pool.submit(self._detect, file, shown_name(name), thresholds) for file, name in files]

    def look(self, file: Path, name: str, x: float, y: float, thresholds: Thresholds) -> Looked | None:
        """What the detection at a point looked at: the smallest box around (x, y), in [0, 1] of the image. None where
        there is no box. Raises `Refused`."""
        recording = self._recordings.get(file)
        if recording is None:
            pixel_values = self._prepare(self.open(file, name), name)
            try:
                recording = self._queue.submit(self._record, pixel_values, key=object()).result()
            except Exception as error:
                raise self._failed(name, error) from error
            if len(self._recordings) >= _MOST_RECORDINGS:
                self._recordings.pop(next(iter(self._recordings)), None)
            self._recordings[file] = recording
        labels, scores = layer_answers(recording.logits[-1], threshold=0.0)
        boxes = cxcywh_to_xyxy(recording.boxes_cxcywh[-1])
        point = torch.tensor((x, y))
        around = ((boxes[:, :2] <= point) & (point <= boxes[:, 2:])).all(-1)
        kept = scores > torch.tensor([thresholds.get(label, 0.0) for label in labels.tolist()])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1).where(around & kept, torch.inf)
        query = int(areas.argmin())
        if not areas[query].isfinite():
            return None
        return Looked(int(labels[query]), float(scores[query]), boxes[query], recording.cross_attention[-1, query])

    def open(self, file: BinaryIO | Path, name: str) -> Tensor:
        """The image (C, H, W). Raises `Refused`."""
        return open_image(file, name, self.processor, self.limits)

    def close(self) -> None:
        """Finishes what has begun."""
        self._pool.shutdown(cancel_futures=True)
        self._queue.close()

    def _detect(self, file: BinaryIO | Path, name: str, thresholds: Thresholds) -> Found:
        try:
            image = self.open(file, name)
            height, width = image.shape[-2:]
            prepared = _Prepared(self._prepare(image, name), (height, width), name, thresholds)
            key = (prepared.pixel_values.shape, *sorted(thresholds.items()))
            return Found(name, width, height, self._queue.submit(self._find, prepared, key).result())
        except Refused:
            raise
        except Exception as error:
            raise self._failed(name, error) from error
        finally:
            self._room.release()

    def _prepare(self, image: Tensor, name: str) -> Tensor:
        options = {"do_pad": False, "return_tensors": "pt", "input_data_format": "channels_first"}
        try:
            return self.processor(images=image, **options)["pixel_values"][0]
        except ValueError as error:
            raise Refused(f"{name}: {error}", 422) from error

    def _failed(self, name: str, error: Exception) -> Refused:
        """The sentence for what is not the sender's fault."""
        if isinstance(error, ValueError):
            return Refused(str(error), 500)
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            return Refused(f"{name}: the server lacks the memory for it; send a smaller image.", 503)
        _log.error("%s: failed", name, exc_info=error)
        return Refused(f"{name}: the server failed on it; its log says why.", 500)

    @torch.inference_mode()
    def _find(self, items: Sequence[_Prepared]) -> list[list[dict[str, Any]]]:
        """The rows of each, which share their size and thresholds."""
        thresholds = items[0].thresholds
        lowest = min((thresholds.get(label, 0.0) for label in self.id2label), default=0.0)
        pixel_values = torch.stack([item.pixel_values for item in items])
        # masks are decoded of what is kept alone
        kept = {} if self.task == "detection" else {"mask_threshold": lowest}
        outputs = self.model(pixel_values.to(self._device), **kept)
        check_finite(outputs, [item.name for item in items])
        processed = {"processed_sizes": [pixel_values.shape[-2:]] * len(items)}
        processor, threshold = self.processor, lowest
        if self.task == "panoptic":  # segments that are not kept must not claim pixels
            processor, threshold = copy(processor), SAVED
            processor.class_thresholds = {label: thresholds.get(label, 0.0) for label in self.id2label}
        post_process, options = {
            "detection": (processor.post_process_object_detection, {}),
            "instance": (processor.post_process_masks, processed),
            "panoptic": (processor.post_process_panoptic_segmentation, processed),
        }[self.task]
        found = post_process(outputs, threshold=threshold, target_sizes=[item.size_hw for item in items], **options)
        return [above(result_rows(detections, self.id2label), thresholds) for detections in found]

    def _record(self, items: Sequence[Tensor]) -> list[Recording]:
        recordings = []
        for pixel_values in items:
            recording = record_attention(self.model, pixel_values[None].to(self._device))
            if not (recording.logits.isfinite().all() and recording.boxes_cxcywh.isfinite().all()):
                raise ValueError("The model's outputs hold a NaN or an infinity; look for diverged weights.")
            recordings.append(replace(recording, encoder_attention=None))
        return recordings


def above(rows: Sequence[dict[str, Any]], thresholds: Thresholds) -> list[dict[str, Any]]:
    """The rows whose score is above the threshold of their class."""
    return [row for row in rows if row["score"] > thresholds.get(row["category_id"], 0.0)]
