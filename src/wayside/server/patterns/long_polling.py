"""Long polling: read; when there is nothing, wait until a deadline, then answer (Durable Streams section 5.7; RFC 7240
``Prefer: wait``)."""

from __future__ import annotations

from functools import partial

from wayside.core.policies import Policy
from wayside.server.exchange import (
    Exchange,
    HeldRead,
    answer,
    cache_control,
    cursor_after,
    etag_of,
    head_fields,
    policy_for,
    position_of,
)
from wayside.streams.contract import Log, Stay, StreamView

PATTERN = "long-polling"


def read(
    exchange: Exchange,
    log: Log,
    stream: StreamView,
    wait_s: float | None,
    *,
    first: int = 0,
    stay: Stay | None = None,
) -> None:
    """Answer a GET that waits: ``wait_s`` seconds as preferred, or None for the protocol's ``live=long-poll``."""
    request = exchange.request
    position = position_of(request, stream, first=first, required=wait_s is None)
    policy = policy_for(request, stream, follows=False)
    if stay is not None:
        stay.renew(PATTERN)
    applied = b""
    if wait_s is None:
        seconds = log.limits.long_poll_s
    else:
        seconds = min(wait_s, log.limits.wait_s_max)
        applied = b"Preference-Applied: wait=%d\r\n" % seconds
    kept = not applied and stay is None
    give = partial(_answer, exchange, log, stream, position, policy, applied, request.one("cursor"), kept)
    if position < stream.tail or stream.closed or seconds <= 0:
        give()
    else:
        HeldRead(exchange, stream, position, give).wait(seconds, stay.hold(PATTERN) if stay is not None else None)


def _answer(
    exchange: Exchange,
    log: Log,
    stream: StreamView,
    position: int,
    policy: Policy | None,
    applied: bytes,
    cursor: str | None,
    kept: bool,
) -> None:
    """What there is now, which caches may keep where it is ``kept``; 204 where there is nothing."""
    data = stream.tail > position
    head = applied + head_fields(
        stream,
        stream.tail,
        etag=etag_of(stream, position) if data else None,
        cache=cache_control(True) if data and kept else b"no-store",
        cursor=None if stream.closed and not data else str(cursor_after(cursor)),
    )
    if data:
        answer(exchange, log, stream, position, head, PATTERN, policy)
    else:
        exchange.respond(204, head)
