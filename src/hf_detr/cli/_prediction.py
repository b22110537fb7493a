"""Pictures in, detections and drawings out, with reading, computing and drawing at the same time."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_detr.boxes import xyxy_to_xywh
from hf_detr.evaluation.evaluator import finite_detections
from hf_detr.image_processing.loading import load_image
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.modeling_detr import DetrForObjectDetection
from hf_detr.visualization import draw_detections

from ._running import in_order, run_ahead, same_size_batches


class Predictor:
    """Pictures in, (index, upright picture (C, H, W), result dict) out; (index, reason, None) for unreadable ones.

    Threads read and resize the next pictures while the model works on a batch. What is found in a picture does not
    depend on the others, but the order in which pictures come does.
    """

    def __init__(self, model: DetrForObjectDetection, processor: DetrImageProcessor, threshold: float):
        self.model, self.processor, self.threshold = model, processor, threshold
        self.waited_s = 0.0  # how long the model stood still because the next pictures were not there yet

    def __call__(
        self, files: Sequence[Path], batch_size: int, threads: int
    ) -> Iterator[tuple[int, Tensor | str, dict | None]]:
        unreadable: list[tuple[int, str]] = []

        def readable() -> Iterator[tuple[int, Tensor, Tensor]]:
            for index, (picture, pixel_values) in enumerate(in_order(self._read, files, threads, 2 * batch_size)):
                if pixel_values is None:
                    unreadable.append((index, picture))
                else:
                    yield index, picture, pixel_values

        def batches() -> Iterator[tuple[list[tuple[int, Tensor]], Tensor]]:
            on_gpu = next(self.model.parameters()).is_cuda
            for batch in same_size_batches(readable(), batch_size, lambda item: item[2].shape):
                pixel_values = torch.stack([pixels for _, _, pixels in batch])
                yield [item[:2] for item in batch], pixel_values.pin_memory() if on_gpu else pixel_values

        made = run_ahead(batches())
        while True:
            begun = time.perf_counter()
            batch = next(made, None)
            self.waited_s += time.perf_counter() - begun
            if batch is None:
                break
            yield from self._detect(*batch)
            while unreadable:
                yield (*unreadable.pop(), None)
        while unreadable:
            yield (*unreadable.pop(), None)

    def _read(self, file: Path) -> tuple[Tensor | str, Tensor | None]:
        convert, upright = self.processor.do_convert_rgb, self.processor.do_exif_transpose
        try:
            picture = load_image(file, str(file), do_convert_rgb=convert, do_exif_transpose=upright)
            return picture, self.processor(images=picture, do_pad=False, return_tensors="pt")["pixel_values"][0]
        except (ValueError, OSError, Image.DecompressionBombError) as error:
            reason = str(error)
            return reason if str(file) in reason else f"{file}: {reason}", None

    def _detect(self, pictures: list[tuple[int, Tensor]], pixel_values: Tensor) -> Iterator[tuple[int, Tensor, dict]]:
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            outputs = self.model(pixel_values.to(device, non_blocking=True))
        sizes_hw = [tuple(picture.shape[-2:]) for _, picture in pictures]
        numbers = [index + 1 for index, _ in pictures]
        found = finite_detections(self.processor, outputs, sizes_hw, numbers, self.threshold)
        for (index, picture), detections in zip(pictures, found, strict=True):
            yield index, picture, detections


class Drawer:
    """Draws and writes pictures beside the predictions, in a thread of its own."""

    def __init__(self, folder: Path, names: Sequence[str], id2label: Mapping[int, str]):
        self.folder, self.names, self.id2label = folder, names, id2label
        self.pool = ThreadPoolExecutor(1)
        self.pending: deque[Future] = deque()

    def draw(self, index: int, picture: Tensor, detections: dict) -> None:
        if len(self.pending) > 8:  # else pictures would pile up in memory
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(self._draw, index, picture, detections))

    def close(self) -> None:
        with self.pool:
            while self.pending:
                self.pending.popleft().result()

    def _draw(self, index: int, picture: Tensor, detections: dict) -> None:
        if picture.shape[0] not in (1, 3, 4):
            picture = picture[:1]  # of many channels the first
        options = {"quality": 92} if self.names[index].endswith(".jpg") else {}
        draw_detections(picture, detections, self.id2label).save(self.folder / self.names[index], **options)


def result_rows(image_id: int, file: Path, detections: dict, id2label: Mapping[int, str]) -> list[dict[str, Any]]:
    """The detections of one picture as rows of a COCO results file."""
    boxes_xywh_px = xyxy_to_xywh(detections["boxes"]).tolist()
    return [
        {
            "image_id": image_id,
            "file_name": file.as_posix(),
            "category_id": label,
            "category": id2label[label],
            "bbox": box,
            "score": score,
        }
        for box, score, label in zip(
            boxes_xywh_px, detections["scores"].tolist(), detections["labels"].tolist(), strict=True
        )
    ]
