"""Videos and webcams through PyAV: frames in, frames with boxes out, one at a time."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

try:
    import av
except ImportError as error:
    raise ValueError("videos and webcams need PyAV; pip install 'hf-detr[video]'.") from error

# by platform: how FFmpeg names a webcam, and the format it is read by
_WEBCAMS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}:none", "avfoundation")}
_TIME_BASE = Fraction(1, 90_000)  # s; the usual frame rates are whole numbers of it
_USUAL_RATE = Fraction(25)  # frames a second, where a stream does not say


class Frame(NamedTuple):
    """One frame: its number from 0, its time in the video, and the upright image (3, H, W) uint8."""

    index: int
    time_s: float
    image: Tensor


class FrameReader:
    """The frames of a video file or of the webcam of a number, in their order, once.

    Damage ends it: `problem` then says what it was. Raises ValueError for what cannot be opened or has no images.
    """

    def __init__(self, source: Path | int):
        self.source, self.problem = source, ""
        name, container_format = str(source), None
        if isinstance(source, int):
            if sys.platform not in _WEBCAMS:
                raise ValueError(f"webcam {source}: read on Linux and macOS only; record a video and give its file.")
            name, container_format = _WEBCAMS[sys.platform]
            name = name.format(source)
        try:
            self._container = av.open(name, format=container_format)
        except (av.FFmpegError, OSError) as error:
            what = f"webcam {source}" if isinstance(source, int) else source
            raise ValueError(f"{what}: could not be opened as a video ({error}); check it in a player.") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{source}: holds no images, only {len(self._container.streams)} other streams.")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self.rate = stream.average_rate or stream.guessed_rate or _USUAL_RATE
        self.num_frames = stream.frames or None  # as the file says, where it does

    def __iter__(self) -> Iterator[Frame]:
        with self._container as container:
            frames, index = container.decode(video=0), 0
            while True:
                try:
                    frame = next(frames, None)
                except (av.FFmpegError, OSError) as error:
                    self.problem = f"{self.source}: damaged after {index:,} frames ({error}); what was before is kept"
                    return
                if frame is None:
                    return
                time_s = index / float(self.rate) if frame.time is None else float(frame.time)
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield Frame(index, time_s, torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
                index += 1


class VideoWriter:
    """An MP4 file of images, each shown from its own time on; all have the size of the first.

    Raises OSError where it cannot be written, once: `is_broken` then says that nothing more will be.
    """

    def __init__(self, path: Path, rate: Fraction):
        self.path, self.rate, self.is_broken = path, rate, False
        self._container = self._stream = None
        self._first_s, self._last = 0.0, -1

    def write(self, image: Image.Image, time_s: float) -> None:
        with self._breaking():
            if self._stream is None:
                self._open(image.width, image.height)
                self._first_s = time_s
            size = self._stream.width, self._stream.height
            frame = av.VideoFrame.from_image(image if image.size == size else image.resize(size))
            self._last = max(round((time_s - self._first_s) / _TIME_BASE), self._last + 1)  # time must go on
            frame.pts, frame.time_base = self._last, _TIME_BASE
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Ends the file; where nothing was written there is none."""
        if self._stream is None:
            return
        if self.is_broken:
            with suppress(av.FFmpegError, OSError):
                self._container.close()
            return
        with self._breaking(), self._container:
            self._container.mux(self._stream.encode())

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            self.is_broken = True
            raise OSError(f"{self.path}: {error}") from error

    def _open(self, width: int, height: int) -> None:
        # in pieces, so that what was written plays even if the process dies
        self._container = av.open(self.path, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"})
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        # no frame that waits for a later one, which would shift all times; a piece is 50 frames
        options = {"bf": "0", "g": "50"}
        self._stream = self._container.add_stream(codec, rate=self.rate, options=options, width=width, height=height)
        # colours at half the resolution, which every player shows, need even sides
        even = width % 2 == height % 2 == 0
        self._stream.pix_fmt = "yuv420p" if even or codec == "mpeg4" else "yuv444p"
        self._stream.codec_context.time_base = _TIME_BASE
