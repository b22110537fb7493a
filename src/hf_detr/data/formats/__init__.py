"""Annotation formats, one file each: `base.Format` says what one is; a new one is a file, and a word in this list."""

from .coco import COCO
from .panoptic import PANOPTIC
from .voc import VOC
from .voc_masks import VOC_MASKS
from .yolo import YOLO

FORMATS = {one.name: one for one in (YOLO, VOC, COCO, PANOPTIC, VOC_MASKS)}
