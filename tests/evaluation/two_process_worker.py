"""One of two processes that evaluate uneven shares of a case of each kind; run by test_coco_evaluator: RANK FOLDER."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from evaluation_cases import make_case
from mask_cases import make_mask_case, make_panoptic_case, make_semantic_case

from hf_detr.evaluation import CocoEvaluator, PanopticEvaluator, SemanticEvaluator

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
results, rows = make_case(6)
evaluator = CocoEvaluator(["cat", "dog", "cow", "ant"])

# 3 images here, 9 there
first = (slice(0, 3), slice(3, 12))[rank]
evaluator.update(results[first], rows[first])
evaluator.synchronize_between_processes()
answers = {"after_first": evaluator.compute()}

# then 11 more here, and there 2 more and one that is also seen here
second = (slice(12, 23), slice(22, 25))[rank]
evaluator.update(results[second], rows[second])
evaluator.synchronize_between_processes()
answers["after_all"] = evaluator.compute()
evaluator.synchronize_between_processes()
answers["after_nothing_new"] = evaluator.compute()

# and of each other kind 4 images here, and there all but 3
classes = ["cat", "dog", "cow", "sky", "sea"]
for name, evaluator, make in (
    ("masks", CocoEvaluator(classes, iou_type="segm"), make_mask_case),
    ("segments", PanopticEvaluator(classes), make_panoptic_case),
    ("classes", SemanticEvaluator(classes), make_semantic_case),
):
    results, targets = make(6)
    share = (slice(0, 4), slice(3, None))[rank]
    evaluator.update(results[share], targets[share])
    evaluator.synchronize_between_processes()
    answers[name] = evaluator.compute()
(folder / f"{rank}.json").write_text(json.dumps(answers))
dist.destroy_process_group()
