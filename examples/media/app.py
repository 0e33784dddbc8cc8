"""A pipeline over a picture: upload, compress, format, notify. Killed at any step, it goes on after the last that was
completed; its progress is read from one URL, the call's.

    wayside serve examples.media.app:hub

A step that was killed runs again, so each is written so that a second run does no harm: its files are the same again
(:mod:`examples.media.pictures`), and ``notify`` appends with ``call.publish``, which the hub does once for a call, however
often its handler runs. ``retries`` says so to the hub: without it, a call whose process was lost has failed, because it
may have had an effect that must not be repeated.
"""

from __future__ import annotations

from examples.media import pictures
from examples.media.pictures import VARIANTS, Picture
from wayside import Call, Hub

hub = Hub()


@hub.service("media.upload", retries=3)
def upload(data: bytes) -> Picture:
    """Check that the bytes are a picture, and keep them.

    A parameter of type ``bytes`` is the body of a request, or the content of the stream that ``{"$stream": "uploads/ID"}``
    names.
    """
    return pictures.keep_original(data)


@hub.service("media.compress", retries=3)
def compress(picture: Picture, call: Call) -> Picture:
    """Make it small enough for a web page; each try is told as progress."""
    return pictures.compress(picture, lambda part, quality, size: call.progress(part, quality=quality, bytes=size))


@hub.service("media.format", retries=3)
def format_(picture: Picture, call: Call) -> Picture:
    """Make the variants that pages ask for: a thumbnail, and the picture as WebP and as PNG."""
    for number, name in enumerate(VARIANTS, 1):
        picture = pictures.make_variant(picture, name)
        call.progress(number / len(VARIANTS), made=name)
    return picture


@hub.service("media.notify", retries=3)
async def notify(picture: Picture, call: Call) -> Picture:
    """Tell everybody who follows the stream media/ready."""
    await call.publish("media/ready", picture)
    return picture


hub.pipeline("media", "media.upload", "media.compress", "media.format", "media.notify")
