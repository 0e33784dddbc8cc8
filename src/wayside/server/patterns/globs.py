"""Fan-out: a glob where a stream's path would be reads all streams that it matches as one, in any of the ways to read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wayside.core.errors import BadRequest, MethodNotAllowed
from wayside.core.globs import Glob
from wayside.server.exchange import Exchange, Request, member_of, once_there
from wayside.streams.contract import Log, StreamView

Then = Callable[[Exchange, StreamView], None]
ALLOW = "GET, HEAD, OPTIONS"


def require_read(request: Request, glob: str) -> None:
    """Raise :class:`MethodNotAllowed` or ``BadRequest`` for what can be done to one stream only."""
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(
            f"{glob[:200]!r} is a glob: it can be read, and nothing else. To {request.method}, name one stream.",
            code="glob-read-only",
            headers={"Allow": ALLOW},
        )
    if member_of(request) is not None:
        raise BadRequest(f"Presence is of one stream, and {glob[:200]!r} is a glob.", code="glob-member")


def with_union(exchange: Exchange, log: Log, glob: Glob, then: Then) -> None:
    """Go on with all streams that ``glob`` matches, once it is known where they are."""
    once_there(exchange, partial(log.union, glob), partial(then, exchange))
