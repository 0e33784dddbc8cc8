"""Long polling: read; when there is nothing, wait until a deadline, then answer (Durable Streams section 5.7; RFC 7240
``Prefer: wait``)."""

from __future__ import annotations

from typing import Any

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
    poll = _Poll(exchange, log, stream, position, policy, stay, applied=applied, cursor=request.one("cursor"))
    if position < stream.tail or stream.closed or seconds <= 0:
        poll.answer()
    else:
        poll.wait(seconds)


class _Poll(HeldRead):
    __slots__ = ("_applied", "_cursor")

    pattern = PATTERN

    def __init__(self, *read: Any, applied: bytes, cursor: str | None) -> None:
        super().__init__(*read)
        self._applied = applied
        self._cursor = cursor

    def answer(self) -> None:
        """What there is now; 204 where there is nothing."""
        stream = self.stream
        data = stream.tail > self.position
        head = self._applied + head_fields(
            stream,
            stream.tail,
            etag=etag_of(stream, self.position) if data else None,
            cache=cache_control(True) if data and not self._applied and self.stay is None else b"no-store",
            cursor=None if stream.closed and not data else str(cursor_after(self._cursor)),
        )
        if data:
            answer(self.exchange, self.log, stream, self.position, head, PATTERN, self.policy)
        else:
            self.exchange.respond(204, head)
