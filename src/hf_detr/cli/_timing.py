"""One contestant of `hf-detr benchmark` in a process of its own: python -m hf_detr.cli._timing SPEC.

It reads images as the model takes them, runs each once, says {"ready": true}, and for each line on stdin measures all
of them: {"ms": [...], "peak_bytes": ..., "gpu_bytes": ...}. What runs an exported graph imports no torch, so that its
memory is that of a program without torch.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main(spec: dict[str, Any]) -> None:
    """`spec`: kind ("eager", "compiled", "program" (torch.export) or "graph"), source, images, threads, device."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with np.load(spec["images"]) as file:
        images = [file[name] for name in file.files]
    run = {"graph": _graph, "program": _program}.get(spec["kind"], _model)(spec)
    for image in images:  # compile, allocate
        run(image)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        run(images[0])  # another process had the caches
        times = []
        for image in images:
            start = time.perf_counter()
            run(image)
            times.append(1e3 * (time.perf_counter() - start))
        answer = {"ms": times, "peak_bytes": _peak_bytes(), "gpu_bytes": _gpu_bytes(spec["device"])}
        print(json.dumps(answer), file=answers, flush=True)


def _graph(spec: dict[str, Any]) -> Callable[[Any], Any]:
    from hf_detr.export.runtime import open_graph

    graph = open_graph(spec["source"], spec["threads"])
    return lambda image: graph({"pixel_values": image, "pixel_mask": np.ones((1, *image.shape[2:]), np.int64)})


def _program(spec: dict[str, Any]) -> Callable[[Any], Any]:
    import torch

    from hf_detr.export import ExportedDetector

    torch.set_num_threads(spec["threads"])
    model = ExportedDetector(spec["source"])
    return lambda image: model(torch.from_numpy(image))


def _model(spec: dict[str, Any]) -> Callable[[Any], Any]:
    """As evaluate and predict run it, the numbers copied to the host, which waits for a device."""
    import torch

    from hf_detr.cli._process_memory import keep_freed_memory
    from hf_detr.cli._running import load_model, quiet_libraries

    quiet_libraries()
    torch.set_num_threads(spec["threads"])
    device = torch.device(spec["device"])
    if device.type == "cpu":
        keep_freed_memory()
    model, _ = load_model(spec["source"], device)
    if spec["kind"] == "compiled":
        model = torch.compile(model, dynamic=True)

    def run(image: Any) -> None:
        outputs = model(torch.from_numpy(image).to(device))
        for name in ("logits", "pred_boxes", "pred_masks"):
            if getattr(outputs, name, None) is not None:
                getattr(outputs, name).cpu()

    return torch.no_grad()(run)


def _peak_bytes() -> int | None:
    """The most memory that this process had; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss of Linux starts from the parent's
        lines = (line.split() for line in status.read_text().splitlines())
        return next(int(words[1]) * 1024 for words in lines if words[0] == "VmHWM:")
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _gpu_bytes(device: str) -> int:
    if not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.max_memory_allocated(device)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
