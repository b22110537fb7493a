"""The one evaluation loop."""


def evaluate_detections(predict, batches, evaluator, targets_key="labels"):
    evaluator.reset()
    for batch in batches:
        evaluator.update(predict(batch), batch[targets_key])
    evaluator.synchronize_between_processes()
    return evaluator.compute()
