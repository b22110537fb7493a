"""hf_detr: DETR (End-to-End Object Detection with Transformers, ECCV 2020) for people who fine-tune.

Importing this package imports nothing else: each public name is fetched from its module when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> the module it lives in
_HOME = {
    "DetrConfig": "configuration_detr",
    "DetrForObjectDetection": "modeling_detr",
    "DetrImageProcessor": "image_processing_detr",
    "DetrModel": "modeling_detr",
    "DetrModelOutput": "modeling_detr",
    "DetrObjectDetectionOutput": "modeling_detr",
    "DetrPreTrainedModel": "modeling_detr",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .configuration_detr import DetrConfig as DetrConfig
    from .image_processing_detr import DetrImageProcessor as DetrImageProcessor
    from .modeling_detr import DetrForObjectDetection as DetrForObjectDetection
    from .modeling_detr import DetrModel as DetrModel
    from .modeling_detr import DetrModelOutput as DetrModelOutput
    from .modeling_detr import DetrObjectDetectionOutput as DetrObjectDetectionOutput
    from .modeling_detr import DetrPreTrainedModel as DetrPreTrainedModel


def __getattr__(name: str):
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value
    raise AttributeError(f"module 'hf_detr' has no attribute {name!r}; it offers {', '.join(_HOME)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
