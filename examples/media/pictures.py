"""What the examples do with a picture. Each function may run twice on one picture, and does no harm then:

- The names of files come from what is in the picture, so that a second run writes the same files again.
- A file is written under another name and then renamed: under its own name there is never half of it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from wayside import Refusal

__all__ = ["VARIANTS", "NotAPicture", "Picture", "compress", "keep_original", "make_variant"]

STORE = Path(os.environ.get("MEDIA_STORE", "media-store"))
SIDE_MAX = 2048
"""Of the compressed picture, in pixels; of the thumbnail it is ``THUMBNAIL_SIDE``."""
THUMBNAIL_SIDE = 256
QUALITIES = (85, 75, 65, 55)
"""Of JPEG, tried in this order until it is no larger than this."""
COMPRESSED_BYTES = 400_000
VARIANTS = ("thumbnail.jpeg", "picture.webp", "picture.png")
"""What pages ask for."""


@dataclass
class Picture:
    """What one step tells the next: a few words, and never the picture itself."""

    id: str
    """From its content: the same picture has the same files."""
    width: int
    height: int
    files: dict[str, int]
    """Names in its directory, with their sizes in bytes."""


class NotAPicture(Refusal):
    """Refused, and not tried again: another attempt would find the same bytes."""

    status, code = 422, "not-a-picture"


def keep_original(data: bytes) -> Picture:
    """Check that the bytes are a picture, and keep them."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise NotAPicture(f"These {len(data)} bytes are no picture.") from error
    name = f"original.{(image.format or 'image').lower()}"
    picture = Picture(hashlib.sha256(data).hexdigest()[:16], *image.size, {})
    return _keep(picture, name, data)


def compress(picture: Picture, tell: Callable[[float, int, int], object]) -> Picture:
    """Make it small enough for a web page. Picking the quality takes several tries: each is told, as the part that is
    done, the quality and the bytes."""
    (original,) = picture.files
    with Image.open(STORE / picture.id / original) as image:
        image.thumbnail((SIDE_MAX, SIDE_MAX))  # keeps the proportions, and never enlarges
        for number, quality in enumerate(QUALITIES, 1):
            data = _encoded(image, "JPEG", quality=quality)
            tell(number / len(QUALITIES), quality, len(data))
            if len(data) <= COMPRESSED_BYTES:
                break
    return _keep(picture, "compressed.jpeg", data)


def make_variant(picture: Picture, name: str) -> Picture:
    """Make one of the variants."""
    with Image.open(STORE / picture.id / "compressed.jpeg") as image:
        if name.startswith("thumbnail"):
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        return _keep(picture, name, _encoded(image, name.rpartition(".")[2].upper()))


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, form, **options)
    return out.getvalue()


def _keep(picture: Picture, name: str, data: bytes) -> Picture:
    """Write a file of a picture whole, or not at all; returns the picture with it."""
    directory = STORE / picture.id
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{name}.{os.getpid()}"
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # the step is on record as done only when its file is on the disk
    partial.rename(directory / name)
    return Picture(picture.id, picture.width, picture.height, {**picture.files, name: len(data)})
