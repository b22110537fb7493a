"""Images and annotations to tensors, and the model's outputs to boxes and maps."""

from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor

from cases import Bench, Case, Comparison, Contestant, Ready, Unavailable
from hf_detr import DetrImageProcessor
from inputs import NUM_CLASSES, photographs, to

_PACKAGES = {"ours": DetrImageProcessor, "stock": transformers.DetrImageProcessor}
# The original resizes with PIL, which rounds between its two passes: two levels of 255, divided by the smallest
# standard deviation.
_TWO_LEVELS = 2 / 255 / 0.224 + 1e-4


def processors(in_training: bool = False, **measured) -> Callable[[Bench], Comparison]:
    """A case of the image processor: alone, or of ours in a process that allocates as `hf-detr train` does."""

    def make(bench: Bench) -> Comparison:
        count, batch_size = bench.pick(quick=(4, 2), cpu=(64, 8), cuda=(64, 8))
        height, width, shortest_edge = bench.pick(quick=(60, 80, 100), cpu=(480, 640, 800), cuda=(480, 640, 800))
        images, annotations = photographs(count, height, width)
        batches = [slice(start, start + batch_size) for start in range(0, count, batch_size)]

        def ready(encode: Callable[[slice], tuple[Tensor, list[dict]]]) -> Ready:
            def answer() -> dict[str, Tensor]:
                pixel_values, labels = encode(batches[0])
                return {"pixel_values": pixel_values, "boxes": torch.cat([label["boxes"] for label in labels])}

            return Ready(lambda: [encode(part)[0].shape for part in batches], answer)

        def prepare(name: str) -> Ready:
            if in_training and name == "ours" and not bench.quick:
                from hf_detr.cli._process_memory import keep_freed_memory

                keep_freed_memory()
            processor = _PACKAGES[name](size={"shortest_edge": shortest_edge, "longest_edge": 1333})

            def encode(part: slice) -> tuple[Tensor, list[dict]]:
                encoded = processor(images=images[part], annotations=annotations[part], return_tensors="pt")
                return encoded["pixel_values"], encoded["labels"]

            return ready(encode)

        def prepare_original() -> Ready:
            original = bench.original
            if find_spec("pycocotools") is None:
                raise Unavailable("its data sets need pycocotools (pip install hf-detr[bench])")
            transforms, coco = original.datasets()
            convert = coco.ConvertCocoPolysToMask(return_masks=False)
            normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            resize = transforms.RandomResize([shortest_edge], max_size=1333)
            transform = transforms.Compose([resize, transforms.ToTensor(), normalize])

            def encode(part: slice) -> tuple[Tensor, list[dict]]:
                pairs = zip(images[part], annotations[part], strict=True)
                done = [transform(*convert(image, annotation)) for image, annotation in pairs]
                return torch.stack([image for image, _ in done]), [target for _, target in done]

            return ready(encode)

        contestants = [Contestant(name, lambda name=name: prepare(name)) for name in _PACKAGES]
        return Comparison(
            [*contestants, Contestant("original", prepare_original, _TWO_LEVELS)],
            images=count,
            most_rounds=10,
            **measured,
        )

    return make


def post_processing(bench: Bench) -> Comparison:
    """Outputs of which about one query in ten is sure of its class."""
    batch_size, threshold = bench.pick(quick=4, cpu=32, cuda=32), 0.5
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch_size, 100, NUM_CLASSES + 1, generator=generator)
    sure = torch.rand(batch_size, 100, generator=generator) < 0.1
    classes = torch.randint(NUM_CLASSES, (batch_size, 100), generator=generator)
    logits.scatter_add_(2, classes[..., None], torch.where(sure, 9.0, 0.0)[..., None])
    boxes = 0.2 + 0.6 * torch.rand(batch_size, 100, 4, generator=generator)
    logits, boxes = to(bench.device, [logits, boxes])
    sizes_hw = [(480 + index, 640) for index in range(batch_size)]

    def ready(work: Callable[[], list[dict[str, Tensor]]]) -> Ready:
        def answer() -> dict[str, Tensor]:
            results = work()
            found = {key: torch.cat([result[key] for result in results]) for key in ("scores", "labels", "boxes")}
            return {**found, "boxes": found["boxes"] / 640}  # so that a tolerance for numbers about 1 fits

        return Ready(work, answer)

    def prepare(name: str) -> Ready:
        processor, outputs = _PACKAGES[name](), SimpleNamespace(logits=logits, pred_boxes=boxes)
        return ready(lambda: processor.post_process_object_detection(outputs, threshold, sizes_hw))

    def prepare_original() -> Ready:
        post_process = bench.original.post_processor()
        outputs = {"pred_logits": logits, "pred_boxes": boxes}

        def work() -> list[dict[str, Tensor]]:
            results = post_process(outputs, torch.tensor(sizes_hw, device=bench.device))
            return [{key: value[one["scores"] > threshold] for key, value in one.items()} for one in results]

        return ready(work)

    contestants = [Contestant(name, lambda name=name: prepare(name)) for name in _PACKAGES]
    return Comparison(
        [*contestants, Contestant("original", prepare_original)],
        budget_s=10,
        most_rounds=200,
        notes="what scores above 0.5; the original has no threshold, so its users' line for it is added.",
    )


def mask_post_processing(method: str) -> Callable[[Bench], Comparison]:
    """Ellipses for masks, about one query in eight sure of its class; maps of 640 x 480."""

    def make(bench: Bench) -> Comparison:
        batch_size, (height, width) = bench.pick(quick=(2, (24, 32)), cpu=(8, (200, 267)), cuda=(8, (200, 267)))
        generator = torch.Generator().manual_seed(0)
        centre, radii = torch.rand(2, batch_size, 100, 2, 1, 1, generator=generator)
        rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
        radii = 0.05 + 0.3 * radii
        masks = 6 - 6 * ((rows - centre[:, :, 0]) / radii[:, :, 0]) ** 2
        masks = masks - 6 * ((columns - centre[:, :, 1]) / radii[:, :, 1]) ** 2
        logits = torch.randn(batch_size, 100, NUM_CLASSES + 1, generator=generator)
        logits[..., -1] += 6
        sure = torch.rand(batch_size, 100, generator=generator) < 0.12
        classes = torch.randint(NUM_CLASSES, (batch_size, 100), generator=generator)
        logits.scatter_add_(2, classes[..., None], torch.where(sure, 14.0, 0.0)[..., None])
        logits, masks = to(bench.device, [logits, masks])
        size_hw = bench.pick(quick=(60, 80), cpu=(480, 640), cuda=(480, 640))
        options = {"target_sizes": [size_hw] * batch_size}
        options |= {"label_ids_to_fuse": set(range(40, NUM_CLASSES))} if method == "panoptic" else {}

        def prepare(name: str) -> Ready:
            outputs = SimpleNamespace(logits=logits, pred_masks=masks)
            post_process = getattr(_PACKAGES[name](), f"post_process_{method}_segmentation")

            def answer() -> dict[str, Tensor]:
                results = post_process(outputs, **options)
                if method == "semantic":
                    return {"classes": torch.stack(results).float().cpu()}
                infos = [info for one in results for info in one["segments_info"]]
                scores = torch.tensor([info["score"] for info in infos])
                covered = torch.stack([one["segmentation"].cpu() > 0 for one in results]).float()
                maps = torch.stack([one["segmentation"].float().cpu() for one in results])
                return {"scores": scores, "covered": covered} | ({} if method == "panoptic" else {"segments": maps})

            return Ready(lambda: post_process(outputs, **options), answer)

        return Comparison(
            [Contestant(name, lambda name=name: prepare(name)) for name in _PACKAGES],
            budget_s=30,
            most_rounds=50,
            weigh=True,
            notes="100 queries, masks of 200 x 267; equal results, but for panoptic ids that stock gives twice.",
        )

    return make


_HOST_ONLY = {"devices": ("cpu",), "reason": "work of the host; see the results of a CPU"}
CASES = [
    Case(
        "image_processor",
        "image processor, 64 photographs 640 x 480 to 800, with boxes",
        processors(
            weigh=True,
            notes="calls of 8 photographs; the original resizes with PIL, which differs by up to two levels of 255.",
        ),
        targets={"cpu": {"stock": 1.7, "original": 1.5}},
        **_HOST_ONLY,
    ),
    Case(
        "image_processor_in_training",
        "the same, ours as inside `hf-detr train`",
        processors(
            in_training=True,
            apart=5,
            notes="ours in a process that keeps freed memory, as `hf-detr train` makes its own do, the others as they "
            "come; each call in a process of its own.",
        ),
        targets={"cpu": {"stock": 3, "original": 3}},
        **_HOST_ONLY,
    ),
    Case(
        "post_processing",
        "post-processing a batch of 32",
        post_processing,
        targets={"cpu": {"stock": 3, "original": 2}, "cuda": {"stock": 5}},
    ),
    *(
        Case(
            f"{method}_post_processing",
            f"{method} maps of a batch of 8",
            mask_post_processing(method),
            targets={"cpu": {"stock": 3}, "cuda": {"stock": 3}},
        )
        for method in ("instance", "panoptic", "semantic")
    ),
]
