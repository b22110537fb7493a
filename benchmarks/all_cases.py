"""Every case, in the order of the table."""

import cases_epoch
import cases_evaluation
import cases_gpu
import cases_inference
import cases_loss
import cases_processor
import cases_training

CASES = [
    *cases_inference.CASES,
    *cases_training.CASES,
    *cases_loss.CASES,
    *cases_processor.CASES,
    *cases_evaluation.CASES,
    *cases_epoch.CASES,
    *cases_gpu.CASES,
]
