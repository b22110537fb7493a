"""One pass over a data loader, for those who write their own training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from .coco import CocoEvaluator


def evaluate_detections(
    predict: Callable[[Mapping], Sequence[Mapping]],
    batches: Iterable[Mapping],
    evaluator: CocoEvaluator,
    targets_key: str = "labels",
) -> dict:
    """Feed every batch through `predict`; returns `evaluator.compute()` over all processes. The evaluator starts empty.

    `predict(batch)` gives one result dict (scores, labels, boxes xyxy px) an image; it alone knows the model, the
    device, and that gradients are off. `batch[targets_key]` are the targets `CocoEvaluator.update` takes. Under
    torch.distributed every process must call this, with batches of its own share of the images.
    """
    evaluator.reset()
    for batch in batches:
        evaluator.update(predict(batch), batch[targets_key])
    evaluator.synchronize_between_processes()
    return evaluator.compute()
