"""One of two processes that evaluate uneven shares of one case; run by test_coco_evaluator: RANK FOLDER."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from evaluation_cases import make_case

from hf_detr.evaluation import CocoEvaluator

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
(folder / f"{rank}.json").write_text(json.dumps(answers))
dist.destroy_process_group()
