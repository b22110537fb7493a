"""The small DETR that ships in the package: a start for demonstrations, tests and tiny data sets, where nothing is
fetched."""

from pathlib import Path


def tiny_checkpoint() -> str:
    """The folder of a small trained DETR, for `from_pretrained`: model, image processor and card (README.md).

    1.3 million parameters, images of 96 x 96 pixels, ten classes ("zero" to "nine"), trained by
    examples/train_tiny_checkpoint.py on generated scenes of handwritten digits; the card says how long, and its AP.
    """
    return str(Path(__file__).resolve().parents[1] / "assets" / "tiny")
