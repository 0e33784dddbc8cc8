"""Long polling: read; when there is nothing, wait until a deadline, then answer (Durable Streams section 5.7; RFC 7240
``Prefer: wait``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wayside.answers import answer, cache_control, cursor_after, etag_of, head_fields
from wayside.contracts import Log, Stay, StreamView
from wayside.errors import NotFound
from wayside.exchange import Exchange, policy_for, position_of
from wayside.policies import Policy

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
    poll = _Poll(exchange, log, stream, position, applied, request.one("cursor"), policy, stay)
    if position < stream.tail or stream.closed or seconds <= 0:
        poll.answer()
    else:
        poll.wait(seconds)


class _Poll:
    __slots__ = (
        "_applied",
        "_cursor",
        "_exchange",
        "_forget",
        "_log",
        "_policy",
        "_position",
        "_release",
        "_stay",
        "_stream",
        "_timer",
    )

    def __init__(
        self,
        exchange: Exchange,
        log: Log,
        stream: StreamView,
        position: int,
        applied: bytes,
        cursor: str | None,
        policy: Policy | None,
        stay: Stay | None,
    ) -> None:
        self._exchange = exchange
        self._log = log
        self._stream = stream
        self._position = position
        self._applied = applied
        self._cursor = cursor
        self._policy = policy
        self._stay = stay
        self._release: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)
        self._forget = self._stream.wait(self._woken)
        if self._stay is not None:
            self._release = self._stay.hold(PATTERN)
        self._exchange.on_lost = self._leave
        self._exchange.on_drain = self._end

    def _woken(self) -> None:
        stream = self._stream
        if stream.deleted:
            self._leave()
            self._exchange.refuse(NotFound(f"{stream.path} was deleted.", fields={"stream": stream.path}))
        elif stream.tail > self._position or stream.closed:
            self._end()
        else:
            self._forget = stream.wait(self._woken)

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._forget()
        if self._release is not None:
            self._release()

    def _end(self) -> None:
        self._leave()
        self.answer()

    def answer(self) -> None:
        """What there is now; 204 where there is nothing."""
        stream = self._stream
        data = stream.tail > self._position
        head = self._applied + head_fields(
            stream,
            stream.tail,
            etag=etag_of(stream, self._position) if data else None,
            cache=cache_control(True) if data and not self._applied and self._stay is None else b"no-store",
            cursor=None if stream.closed and not data else str(cursor_after(self._cursor)),
        )
        if data:
            answer(self._exchange, self._log, stream, self._position, head, PATTERN, self._policy)
        else:
            self._exchange.respond(204, head)
