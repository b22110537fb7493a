"""Pictures and annotations to tensors, and the model's outputs to boxes."""

from importlib.util import find_spec
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor

from cases import Bench, Case, Comparison, Contestant, Ready, Unavailable
from hf_detr import DetrImageProcessor
from inputs import NUM_CLASSES, photographs

# The original resizes with PIL, which rounds between its two passes: two levels of 255, divided by the smallest
# standard deviation.
_TWO_LEVELS = 2 / 255 / 0.224 + 1e-4


def image_processor(bench: Bench) -> Comparison:
    count, batch_size = bench.pick(quick=(4, 2), cpu=(64, 8), cuda=(64, 8))
    height, width, shortest_edge = bench.pick(quick=(60, 80, 100), cpu=(480, 640, 800), cuda=(480, 640, 800))
    pictures, annotations = photographs(count, height, width)
    batches = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    size = {"shortest_edge": shortest_edge, "longest_edge": 1333}

    def with_processor(processor_class) -> Ready:
        processor = processor_class(size=size)

        def encode(part: slice):
            return processor(images=pictures[part], annotations=annotations[part], return_tensors="pt")

        def answer() -> dict[str, Tensor]:
            encoded = encode(batches[0])
            boxes = torch.cat([label["boxes"] for label in encoded["labels"]])
            return {"pixel_values": encoded["pixel_values"], "boxes": boxes}

        return Ready(lambda: [encode(part)["pixel_values"].shape for part in batches], answer)

    def with_original() -> Ready:
        original = bench.original
        if find_spec("pycocotools") is None:
            raise Unavailable("its data sets need pycocotools (pip install hf-detr[bench])")
        transforms, coco = original.pictures()
        prepare = coco.ConvertCocoPolysToMask(return_masks=False)
        steps = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
        transform = transforms.Compose([transforms.RandomResize([shortest_edge], max_size=1333), *steps])

        def encode(part: slice) -> tuple[Tensor, list[dict]]:
            pairs = zip(pictures[part], annotations[part], strict=True)
            done = [transform(*prepare(picture, annotation)) for picture, annotation in pairs]
            return torch.stack([image for image, _ in done]), [target for _, target in done]

        def answer() -> dict[str, Tensor]:
            pixel_values, targets = encode(batches[0])
            return {"pixel_values": pixel_values, "boxes": torch.cat([target["boxes"] for target in targets])}

        return Ready(lambda: [encode(part)[0].shape for part in batches], answer)

    return Comparison(
        [
            Contestant("ours", lambda: with_processor(DetrImageProcessor)),
            Contestant("stock", lambda: with_processor(transformers.DetrImageProcessor)),
            Contestant("original", with_original, tolerance=_TWO_LEVELS),
        ],
        weigh=True,
        images=count,
        most_rounds=10,
        notes=f"calls of {batch_size} photographs; the original resizes with PIL, which differs by up to two levels "
        "of 255.",
    )


def post_processing(bench: Bench) -> Comparison:
    batch_size, threshold = bench.pick(quick=4, cpu=32, cuda=32), 0.5
    generator = torch.Generator().manual_seed(0)
    # about one query in ten is sure of its class
    logits = torch.randn(batch_size, 100, NUM_CLASSES + 1, generator=generator)
    sure = torch.rand(batch_size, 100, generator=generator) < 0.1
    classes = torch.randint(NUM_CLASSES, (batch_size, 100), generator=generator)
    logits.scatter_add_(2, classes[..., None], torch.where(sure, 9.0, 0.0)[..., None])
    outputs = SimpleNamespace(
        logits=logits.to(bench.device),
        pred_boxes=(0.2 + 0.6 * torch.rand(batch_size, 100, 4, generator=generator)).to(bench.device),
    )
    sizes_hw = [(480 + index, 640) for index in range(batch_size)]

    def answer(results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        # boxes as fractions of 640, so that a tolerance for numbers about 1 fits
        boxes = torch.cat([result["boxes"] for result in results]) / 640
        return {
            "scores": torch.cat([result["scores"] for result in results]),
            "labels": torch.cat([result["labels"] for result in results]),
            "boxes": boxes,
        }

    def with_processor(processor_class) -> Ready:
        processor = processor_class()

        def work():
            return processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes_hw)

        return Ready(work, lambda: answer(work()))

    def with_original() -> Ready:
        post_process = bench.original.post_processor()
        named = {"pred_logits": outputs.logits, "pred_boxes": outputs.pred_boxes}

        def work():
            kept = []
            for result in post_process(named, torch.tensor(sizes_hw, device=bench.device)):
                keep = result["scores"] > threshold
                kept.append({name: value[keep] for name, value in result.items()})
            return kept

        return Ready(work, lambda: answer(work()))

    return Comparison(
        [
            Contestant("ours", lambda: with_processor(DetrImageProcessor)),
            Contestant("stock", lambda: with_processor(transformers.DetrImageProcessor)),
            Contestant("original", with_original),
        ],
        budget_s=10,
        most_rounds=200,
        notes="what scores above 0.5; the original has no threshold, so its users' line for it is added.",
    )


CASES = [
    Case(
        "image_processor",
        "image processor, 64 photographs 640 x 480 to 800, with boxes",
        image_processor,
        targets={"cpu": {"stock": 2, "original": 1.5}},
        devices=("cpu",),
        reason="work of the host; see the results of a CPU",
    ),
    Case(
        "post_processing",
        "post-processing a batch of 32",
        post_processing,
        targets={"cpu": {"stock": 3, "original": 2}, "cuda": {"stock": 5}},
    ),
]
