"""The same work as publish/subscribe: each step hears of an event, and tells of the next. Nobody knows who listens.

    wayside serve examples.media.events:hub

``media/uploaded`` says that there is a picture, ``media/compressed`` that it is small. Of that one event hear three
independent consumers, each with its own place, its own retries and its own dead letters: if the one for PNG fails, the
others go on. What a step tells is in one transaction with the ack of what it was told (``delivery.publish``): a step that
was killed runs again, and tells once.
"""

from __future__ import annotations

from collections.abc import Callable

from examples.media import pictures
from examples.media.pictures import VARIANTS, NotAPicture, Picture
from wayside import Delivery, Hub, Reject

LEASE_S = 3
"""How long after a crash what a step was doing is delivered again. While a step runs its lease is extended."""

hub = Hub()


@hub.subscribe("media/uploaded", group="media.compress", lease=LEASE_S, dead_letter="media/refused")
def compress(data: bytes, delivery: Delivery) -> None:
    """Keep the picture, and make it small. ``{"$stream": "uploads/ID"}`` stands for the content of that stream; what is no
    picture is a dead letter at once."""
    try:
        picture = pictures.keep_original(data)
    except NotAPicture as error:
        raise Reject(str(error)) from error
    delivery.publish("media/compressed", pictures.compress(picture, lambda *_told: None))


def _variant(name: str) -> Callable[[Picture, Delivery], None]:
    def make(picture: Picture, delivery: Delivery) -> None:
        delivery.publish("media/ready", pictures.make_variant(picture, name))

    return make


for variant in VARIANTS:
    subscribe = hub.subscribe("media/compressed", group=f"media.{variant}", lease=LEASE_S, dead_letter="media/failed")
    subscribe(_variant(variant))


@hub.subscribe("media/ready", group="media.notify", lease=LEASE_S, order_by="id")
async def notify(picture: Picture, delivery: Delivery) -> None:
    """Say so, in a stream for each picture: ``media/done/ID``. Those of one picture come one after the other."""
    delivery.publish(f"media/done/{picture.id}", sorted(picture.files))
