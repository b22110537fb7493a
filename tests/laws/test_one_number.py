"""Law 15: one number, everywhere, though the images have several sizes. Law 12: what is not finite is no detection."""

import argparse
import json
import math

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from PIL import Image

from hf_detr import CocoEvaluator, DetrForObjectDetection, DetrImageProcessor, evaluate_model
from hf_detr.cli import evaluate as evaluate_command
from hf_detr.data.schema import features_of_classes
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.evaluation.batches import SameSizeBatches, unpadded
from hf_detr.training import DetrTrainer, DetrTrainingArguments

from ..small_models import images, small_model

SIZES_WH = [(60, 40), (40, 60), (96, 32), (50, 50), (60, 40), (33, 80), (50, 50)]
PROCESSOR = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
NAMES = ["a", "b", "c", "d", "e"]
