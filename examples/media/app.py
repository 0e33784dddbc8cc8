"""A pipeline over a picture: upload, compress, format, notify. Killed at any step, it goes on after the last that was
completed; its progress is read from one URL, the call's.

    wayside serve examples.media.app:hub

A step that was killed runs again, so each is written so that a second run does no harm:

- The names of files come from what is in the picture, so that a second run writes the same files again.
- A file is written under another name and then renamed: under its own name there is never half of it.
- ``notify`` appends with ``call.publish``, which the hub does once for a call, however often its handler runs.

``retries`` says so to the hub: without it, a call whose process was lost has failed, because it may have had an effect
that must not be repeated.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from wayside import Call, Hub, Refusal

STORE = Path(os.environ.get("MEDIA_STORE", "media-store"))
SIDE_MAX = 2048
"""Of the compressed picture, in pixels; of the thumbnail it is ``THUMBNAIL_SIDE``."""
THUMBNAIL_SIDE = 256
QUALITIES = (85, 75, 65, 55)
"""Of JPEG, tried in this order until it is no larger than this."""
COMPRESSED_BYTES = 400_000

hub = Hub()


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


@hub.service("media.upload", retries=3)
def upload(data: bytes) -> Picture:
    """Check that the bytes are a picture, and keep them.

    A parameter of type ``bytes`` is the body of a request, or the content of the stream that ``{"$stream": "uploads/ID"}``
    names.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise NotAPicture(f"These {len(data)} bytes are no picture: {error}") from error
    name = f"original.{(image.format or 'image').lower()}"
    picture = Picture(hashlib.sha256(data).hexdigest()[:16], *image.size, {})
    return _keep(picture, name, data)


@hub.service("media.compress", retries=3)
def compress(picture: Picture, call: Call) -> Picture:
    """Make it small enough for a web page. Picking the quality takes several tries: each is told as progress."""
    (original,) = picture.files
    with Image.open(STORE / picture.id / original) as image:
        image.thumbnail((SIDE_MAX, SIDE_MAX))  # keeps the proportions, and never enlarges
        for number, quality in enumerate(QUALITIES, 1):
            data = _encoded(image, "JPEG", quality=quality)
            call.progress(number / len(QUALITIES), quality=quality, bytes=len(data))
            if len(data) <= COMPRESSED_BYTES:
                break
    return _keep(picture, "compressed.jpeg", data)


@hub.service("media.format", retries=3)
def format_(picture: Picture, call: Call) -> Picture:
    """Make the variants that pages ask for: a thumbnail, and the picture as WebP and as PNG."""
    with Image.open(STORE / picture.id / "compressed.jpeg") as image:
        small = image.copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        variants = [("thumbnail.jpeg", small), ("picture.webp", image), ("picture.png", image)]
        for number, (name, variant) in enumerate(variants, 1):
            picture = _keep(picture, name, _encoded(variant, name.rpartition(".")[2].upper()))
            call.progress(number / len(variants), made=name)
    return picture


@hub.service("media.notify", retries=3)
async def notify(picture: Picture, call: Call) -> Picture:
    """Tell everybody who follows the stream media/ready."""
    await call.publish("media/ready", picture)
    return picture


hub.pipeline("media", "media.upload", "media.compress", "media.format", "media.notify")


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
