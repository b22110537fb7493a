"""What the commands that run a model share: loading it, one progress bar, work that overlaps with it."""

import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
import transformers
from torch import nn
from tqdm import tqdm

from hf_detr.configuration_detr import DetrConfig
from hf_detr.image_processing_detr import DetrImageProcessor
from hf_detr.modeling_detr import DetrForObjectDetection
from hf_detr.modeling_detr_segmentation import DetrForSegmentation
from hf_detr.wording import counted

from ._errors import about, one_line
from ._sources import read_json_object

Item = TypeVar("Item")
Result = TypeVar("Result")
Model = DetrForObjectDetection | DetrForSegmentation


def quiet_libraries() -> None:
    """One progress bar, and it is ours."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C within the block, which must be short, waits for its end: what belongs together is done together."""
    if threading.current_thread() is not threading.main_thread():  # no other is interrupted
        yield
        return
    asked = []
    before = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            signal.raise_signal(signal.SIGINT)


def progress_bar(total: int | None, name: str, unit: str = "image") -> tqdm:
    """A bar on stderr."""
    return tqdm(total=total, desc=name, unit=unit, file=sys.stderr, mininterval=0.5, dynamic_ncols=True)


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is the fastest there is. ValueError for one that is not there."""
    if name == "auto":
        for kind in ("cuda", "mps"):
            if getattr(torch, kind).is_available():
                return torch.device(kind)
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # an unknown name; a build without it; a device without memory
        raise ValueError(f"--device {name}: not usable here ({one_line(error)}); try --device cpu.") from error
    return device


def is_quicker_in_bf16(model: nn.Module, on_gpu: bool) -> bool:
    """Whether the device has instructions for bfloat16, and, on a CPU, for the model's convolutions: grouped and
    depthwise ones take longer with it there than in float32."""
    if on_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules()):
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


# Pixels that pass the backbone at a time on a CPU: its largest maps are then of some ten MiB, and larger ones are not
# faster.
_PIXELS_AT_A_TIME = 2**20


def load_model(name: str, device: torch.device) -> tuple[Model, DetrImageProcessor]:
    """A trained model on `device`, ready for inference (eval mode, norms folded), and its processor, of a folder or a
    name on the Hub.

    Raises ValueError where there is no DETR with all its weights, or no preprocessor_config.json.
    """
    model = read_model(name)
    processor = load_processor(name)
    model.fold_norms()
    if device.type == "cpu":
        model.config.chunk_size_backbone = max(1, _PIXELS_AT_A_TIME // _largest_image_px(processor.size))
    return model.eval().to(device), processor


_A_MODEL = "name a folder of save_pretrained or hf-detr train, or a DETR on the Hub"


def model_class_of(name: str) -> type[Model]:
    """The class whose weights a folder or a name on the Hub holds; the detector's where it does not say."""
    try:
        architectures = DetrConfig.from_pretrained(name).architectures or ()
    except Exception:  # what is wrong is said where the model is read
        architectures = ()
    return DetrForSegmentation if "DetrForSegmentation" in architectures else DetrForObjectDetection


def read_model(
    name: str,
    remedy: str = _A_MODEL,
    model_class: type[Model] | None = None,
    fresh: tuple[str, ...] = (),
    **options: Any,
) -> Model:
    """`from_pretrained(name, **options)`, of the class that it holds unless another is given. ValueError, naming it,
    for anything but a DETR with all its weights; those whose names begin with one of `fresh` may be missing."""
    model_class = model_class or model_class_of(name)
    with about(name, remedy), _without_report():
        model, info = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    missing = sum(not key.startswith(fresh) for key in info["missing_keys"])
    mismatched = len(info["mismatched_keys"])
    if missing or mismatched:
        raise ValueError(
            f"{name}: {counted(missing, 'tensor')} missing and {mismatched:,} of another shape than config.json says, "
            "so it would answer at random; name a whole detector, or write the checkpoint again."
        )
    return model


@contextmanager
def _without_report() -> Iterator[None]:
    """Transformers prints a table of the tensors that do not fit; here they are counted and refused."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _largest_image_px(size: dict[str, int]) -> int:
    """The pixels of the largest image that a processor of this `size` makes."""
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if shortest is not None:
        return shortest * (longest or shortest)
    return (size.get("height") or size["max_height"]) * (size.get("width") or size["max_width"])


def load_processor(name: str) -> DetrImageProcessor:
    """The processor of a folder or a name on the Hub. Raises ValueError where there is none, or a wrong one."""
    remedy = "save one there with DetrImageProcessor(size=...).save_pretrained(...)"
    path = Path(name, "preprocessor_config.json")
    with about(path, remedy):
        if path.is_file():
            read_json_object(path)
        elif path.parent.is_dir():
            raise ValueError("no such file")
        return DetrImageProcessor.from_pretrained(name)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int | None = None
) -> Iterator[Result]:
    """`work` of every item in their order, done by `threads` at most `ahead` items before they are asked for.

    Threads rather than processes: decoding and resizing leave the interpreter to others, and nothing has to fit into
    shared memory.
    """
    pool, pending = ThreadPoolExecutor(threads), deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > (ahead or 2 * threads):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_ahead(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """The same items, made by a thread up to `ahead` of them before they are asked for."""
    iterator, end = iter(items), object()
    pool = ThreadPoolExecutor(1)
    pending = deque(pool.submit(next, iterator, end) for _ in range(ahead))
    try:
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        getattr(iterator, "close", bool)()  # a generator has threads of its own to end


def same_size_batches(
    items: Iterable[Item], batch_size: int, size_of: Callable[[Item], Hashable]
) -> Iterator[list[Item]]:
    """Batches of items of one size, so that nothing is padded: beside padding, an image's detections are others.

    Items wait for their like, 8 batches of them at most; so they come in another order.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        size = size_of(item)
        waiting.setdefault(size, []).append(item)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= 8 * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of equal length as lines of columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )
