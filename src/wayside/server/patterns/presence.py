"""Presence: who follows a stream. Joins and leaves are a stream of their own, read like any other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from wayside.server.exchange import Exchange, once_there
from wayside.streams.contract import StreamView
from wayside.streams.presence import Presence

_HEAD = b"Content-Type: application/json\r\nCache-Control: no-store\r\nVary: Accept, Last-Event-ID, Origin, Prefer\r\n"


def members(exchange: Exchange, presence: Presence, path: str) -> None:
    """Answer a plain GET: who is present now, and where to follow on from."""

    def then(exchange: Exchange, stream: StreamView) -> None:
        present = presence.members(path, stream)
        head = _HEAD + b"Stream-Next-Offset: %b\r\n" % present.offset.encode()
        exchange.respond(200, head, msgspec.json.encode(present))

    events(exchange, presence, path, then)


def events(exchange: Exchange, presence: Presence, path: str, then: Callable[[Exchange, StreamView], None]) -> None:
    """Go on with the joins and leaves at a stream, which may have to be made first; or refuse."""
    stream = presence.find(path)
    if stream is not None:
        then(exchange, stream)
    else:
        once_there(exchange, partial(presence.make, path), lambda _made: then(exchange, presence.events(path)))
