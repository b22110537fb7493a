"""A run of predict: every image and video through the model, into JSON and drawings, and what was found and lost."""

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from hf_detr.image_processing.loading import load_image
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.visualization import draw_detections, draw_masks, draw_panoptic
from hf_detr.wording import counted, printable

from ._images import drawing_names, image_ids
from ._prediction import Background, Predictor
from ._results import ResultsFile, panoptic_annotation, result_rows, write_segment_map
from ._running import Model, aligned, progress_bar, uninterrupted


class PredictRun:
    """Takes images, then videos; counts what it found, and collects in `lost` {what became of it: [what and why]}.

    It keeps nothing of an image that is done, so memory does not grow with their number. Close it.
    """

    def __init__(self, args: argparse.Namespace, model: Model, processor: DetrImageProcessor):
        self.args, self.processor = args, processor
        self.id2label = model.config.id2label
        self.stuff = processor.label_ids_to_fuse or model.config.label_ids_to_fuse or ()
        overlap = 0.2 if args.overlap is None else args.overlap
        self.predictor = Predictor(model, processor, args.threshold, args.tile, overlap)
        self.background = Background(lambda name, error: self.lose("not drawn", name, error))
        self.lost: dict[str, list[str]] = defaultdict(list)
        self.num_images = self.num_frames = self.num_with_objects = 0
        self.objects: Counter[str] = Counter()
        self.best: dict[str, float] = {}
        self.begun = time.perf_counter()

    def images(self, files: Sequence[Path], drawings: Sequence[Path], results: ResultsFile) -> None:
        """Predicts the image files in the order that is the quickest."""
        ids = image_ids(files)
        maps = [f"panoptic/{name}" for name in drawing_names([Path(f"{file.stem}.png") for file in files])]
        panoptic = nullcontext()
        if self.predictor.task == "panoptic":
            panoptic = ResultsFile(self.args.output / "panoptic.json", "annotations")
        settings = {
            "do_convert_rgb": self.processor.do_convert_rgb,
            "do_exif_transpose": self.processor.do_exif_transpose,
        }

        def load(index: int) -> Tensor:
            return load_image(files[index], str(files[index]), **settings)

        found = self.predictor(range(len(files)), load, self.args.batch_size, self.args.threads)
        with panoptic, progress_bar(len(files), "predict") as bar:
            for index, image, detections in found:
                bar.update()
                if detections is None:
                    self.lose("skipped", files[index], image)
                    continue
                rows = result_rows(detections, self.id2label)
                place = {"image_id": ids[index], "file_name": files[index].as_posix()}
                with uninterrupted():
                    if self._write(results, [{**place, **row} for row in rows], files[index]):
                        self.num_images += 1
                        self._count(rows)
                    if self.predictor.task == "panoptic":
                        annotation = panoptic_annotation(rows, ids[index], Path(maps[index]).name, self.stuff)
                        self._write(panoptic, [annotation], files[index])
                        path = self.args.output / maps[index]
                        self.background(str(files[index]), write_segment_map, detections["segmentation"], path)
                    if not self.args.no_drawings:
                        self.background(str(files[index]), self._draw_image, image, detections, drawings[index])

    def video(self, source: Path | int, drawing: Path) -> None:
        """Predicts every frame of a video file or a webcam, into the video `drawing` and the JSON file beside it."""
        from ._video import FrameReader, VideoWriter

        name = f"webcam {source}" if isinstance(source, int) else str(source)
        try:
            reader = FrameReader(source)
            results = ResultsFile(drawing.with_suffix(".json"))
        except ValueError as error:
            self.lose("skipped", name, error)
            return
        writer = None if self.args.no_drawings else VideoWriter(drawing, reader.rate)

        def draw(image: Tensor, detections: Mapping[str, Tensor], time_s: float) -> None:
            if not writer.is_broken:
                writer.write(self._drawn(image, detections, in_place=True), time_s)

        frames = self.predictor(
            reader, lambda frame: frame.image, self.args.batch_size, self.args.threads, keep_order=True
        )
        with results, progress_bar(reader.num_frames, name, "frame") as bar:
            try:
                for frame, image, detections in frames:
                    bar.update()
                    place = f"{name}, frame {frame.index}"
                    if detections is None:
                        self.lose("skipped", place, image)
                        continue
                    rows = result_rows(detections, self.id2label)
                    entry = {"frame": frame.index, "time_s": frame.time_s, "detections": rows}
                    with uninterrupted():
                        if self._write(results, [entry], place):
                            self.num_frames += 1
                            self._count(rows)
                        if writer:
                            self.background(f"{place} and on", draw, image, detections, frame.time_s)
            finally:
                if writer:
                    self.background(name, writer.close)
                    self.background.finish()
        if reader.problem:
            self.lose("cut short", name, reader.problem)

    def close(self) -> None:
        """Waits for the drawings."""
        self.background.close()

    def lose(self, what: str, name: str | Path, reason: object) -> None:
        """Notes that something of an image is lost, and says so at once."""
        line = printable(str(reason) if str(name) in str(reason) else f"{name}: {reason}")
        self.lost[what].append(line)
        tqdm.write(f"{what}: {line}", file=sys.stderr)

    def summary(self) -> str:
        """What was found and lost, in lines."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        done = self.num_images + self.num_frames
        numbers = {"image": self.num_images, "frame": self.num_frames}
        counts = " and ".join(counted(number, name) for name, number in numbers.items() if number or not done)
        lines = [
            f"{counts}, {self.num_with_objects:,} of them with objects; {done / seconds:.1f} a second",
            f"the model waited for images {100 * self.predictor.waited_s / seconds:.1f}% of the time",
            f"{counted(self.objects.total(), 'object')} of a score above {self._threshold_in_words()}",
        ]
        if self.objects:
            table = [("class", "objects", "best score")]
            table += [
                (printable(name), f"{count:,}", f"{self.best[name]:.2f}") for name, count in self.objects.most_common()
            ]
            lines += ["", aligned(table)]
        for what, reasons in self.lost.items():
            lines += ["", f"{len(reasons):,} {what}:", *(f"  {reason}" for reason in reasons)]
        return "\n".join([*lines, "", f"written: {printable(str(self.args.output))}"])

    def _threshold_in_words(self) -> str:
        if self.args.threshold is None and self.processor.class_thresholds:
            return "the saved threshold of its class"
        return f"{self.predictor.lowest_threshold:g}"

    def _write(self, results: ResultsFile, entries: Sequence[Mapping[str, Any]], name: str | Path) -> bool:
        try:
            results.append(entries)
        except ValueError as error:
            self.lose("not written", name, f"{name}: {error}")
            return False
        return True

    def _count(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.num_with_objects += bool(rows)
        for row in rows:
            name, score = row["category"], row["score"]
            self.objects[name] += 1
            self.best[name] = max(score, self.best.get(name, 0.0))

    def _drawn(self, image: Tensor, detections: Mapping[str, Tensor], in_place: bool = False) -> Any:
        """The drawing; `in_place`: of the image's own size."""
        shown = image if image.shape[0] in (1, 3, 4) else image[:1]  # of many channels the first
        if self.predictor.task == "panoptic" and not in_place:
            return draw_panoptic(shown, detections, self.id2label, enlarge=self.args.enlarge)
        if self.predictor.task != "detection":
            return draw_masks(shown, detections, self.id2label, enlarge=self.args.enlarge)
        return draw_detections(shown, detections, self.id2label, enlarge=self.args.enlarge)

    def _draw_image(self, image: Tensor, detections: Mapping[str, Tensor], path: Path) -> None:
        options = {"quality": 92} if path.suffix == ".jpg" else {}
        try:
            self._drawn(image, detections).save(path, **options)
        except OSError:
            path.unlink(missing_ok=True)  # half of an image
            raise
