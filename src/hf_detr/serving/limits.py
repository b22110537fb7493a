"""What a server takes: how many bytes, pixels and images, and the sentence for what it does not."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Of one server.

    Attributes:
        image_bytes: of one file.
        image_px: width times height of one image, read from its header before anything is decoded.
        images: in one request, or on the page at a time.
        queue: images that wait or are worked on; a request that comes when it is full is refused.
        batch: images that the model sees at once. Twice as many are decoded and in memory at any time.
    """

    image_bytes: int = 20 * MIB
    image_px: int = 50_000_000
    images: int = 16
    queue: int = 256
    batch: int = 8

    @property
    def body_bytes(self) -> int:
        """Of one request; the parts of a form have headers."""
        return self.images * self.image_bytes + MIB


class Refused(Exception):
    """What a user gets instead of a result: a sentence, and the HTTP status that fits."""

    def __init__(self, sentence: str, status: int):
        super().__init__(sentence)
        self.status = status
