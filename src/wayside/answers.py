"""What the answers to reads have in common: header fields, bodies, the cursor that keeps caches apart.

What is in memory is answered whole; a longer history is streamed by a follower that ends where the tail
was when the request came, so that any length takes the same memory.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial

from wayside.contracts import Log, Stay, StreamView
from wayside.errors import NotFound
from wayside.exchange import Exchange, member_of
from wayside.model import Batch
from wayside.policies import Policy

CURSOR_EPOCH_S = 1728432000
"""2024-10-09 00:00:00 UTC (Durable Streams section 10.1)."""
CURSOR_INTERVAL_S = 20


def answer(
    exchange: Exchange,
    log: Log,
    stream: StreamView,
    position: int,
    head: bytes,
    pattern: str,
    policy: Policy | None = None,
) -> None:
    """Send what is from ``position`` to the tail: everything, or what a policy lets through."""
    batches: list[Batch] | None = []
    if position < stream.tail and policy is None:
        batches = stream.read_nowait(position, log.limits.read_bytes_max)
    if policy is None and batches is not None and (not batches or batches[-1].end >= stream.tail):
        note = partial(log.delivered, pattern, sum([batch.count for batch in batches]))
        note()
        config = stream.config
        lasts = config.ttl_s is None and config.expires_at_ms is None and not any(batch.meta for batch in batches)
        memo = (stream, stream.version, note) if lasts and member_of(exchange.request) is None else None
        exchange.respond(200, head, body_of(stream, batches), memo)
        return
    sink = exchange.open(200, head)
    log.follow(
        stream, position, WholeBody(stream, exchange.framing[1]), sink, pattern, until=stream.tail, policy=policy
    )


def body_of(stream: StreamView, batches: list[Batch]) -> bytes:
    """The records of ``batches`` as one body: a JSON array, or the bytes one after another."""
    if stream.config.is_json:
        return b"[" + b",".join([record for batch in batches for record in batch.records]) + b"]"
    return b"".join([record for batch in batches for record in batch.records])


def cache_control(lasting: bool) -> bytes:
    """Records at a named offset never change; what comes after the tail, or at the start, does."""
    return b"public, max-age=60, stale-while-revalidate=300" if lasting else b"no-cache"


def etag_of(stream: StreamView, position: int) -> str:
    """Entity tag of what is between a position and the tail, and whether that is all there will be."""
    return f'"{stream.offset(stream.tail)}:{position}{":c" if stream.closed else ""}"'


def matches(given: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names the tag: a star, or a list that is compared weakly (RFC 9110 section 13.1.2)."""
    return given is not None and (given == "*" or etag in [tag.strip().removeprefix("W/") for tag in given.split(",")])


def head_fields(stream: StreamView, end: int, *, etag: str | None, cache: bytes, cursor: str | None = None) -> bytes:
    """The header fields of a read that ends at ``end``."""
    offset = str(stream.offset(end)).encode()
    parts = [
        b"Content-Type: %b\r\nStream-Next-Offset: %b\r\nCache-Control: %b\r\nVary: Accept, Last-Event-ID, Origin, Prefer\r\n"
        % (stream.config.content_type.encode("latin-1", "replace"), offset, cache)
    ]
    if end == stream.tail:
        parts.append(b"Stream-Up-To-Date: true\r\n")
        if stream.closed:
            parts.append(b"Stream-Closed: true\r\n")
    if etag is not None:
        parts.append(b"ETag: %b\r\n" % etag.encode())
    if cursor is not None:
        parts.append(b"Stream-Cursor: %b\r\n" % cursor.encode())
    return b"".join(parts)


class WholeBody:
    """Encoding of one long body, for one reader."""

    heartbeat = None

    def __init__(self, stream: StreamView, frame: Callable[[bytes], bytes]) -> None:
        self.key = self
        self._json = stream.config.is_json
        self._frame = frame
        self._before = b"["

    def encode(self, stream: StreamView, batches: list[Batch]) -> bytes:
        if not self._json:
            return self._frame(body_of(stream, batches))
        before, self._before = self._before, b","
        return self._frame(before + body_of(stream, batches)[1:-1])

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None

    def end(self, _stream: StreamView, _position: int, _reason: str, _announced: bool) -> bytes | None:
        if not self._json:
            return None
        return self._frame(b"]" if self._before == b"," else b"[]")


def cursor_after(given: str | None) -> int:
    """The cursor of a live answer: the number of the current interval, or past the client's own (section 10.1)."""
    now = int((time.time() - CURSOR_EPOCH_S) // CURSOR_INTERVAL_S)
    if given is None or not (given.isascii() and given.isdecimal()) or len(given) > 15 or int(given) < now:
        return now
    return int(given) + max(1, random.randint(1, 3600) // CURSOR_INTERVAL_S)


class HeldRead:
    """A read with nothing to give yet: it is answered when there is something, when its time is over, or when the hub
    stops. A pattern says how, in ``answer``."""

    __slots__ = ("_forget", "_release", "_timer", "exchange", "log", "policy", "position", "stay", "stream")

    pattern = ""

    def __init__(
        self, exchange: Exchange, log: Log, stream: StreamView, position: int, policy: Policy | None, stay: Stay | None
    ) -> None:
        self.exchange = exchange
        self.log = log
        self.stream = stream
        self.position = position
        self.policy = policy
        self.stay = stay
        self._release: Callable[[], None] | None = None

    def answer(self) -> None:
        """Give what there is now."""
        raise NotImplementedError

    def wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)
        self._forget = self.stream.wait(self._woken)
        if self.stay is not None:
            self._release = self.stay.hold(self.pattern)
        self.exchange.on_lost = self._leave
        self.exchange.on_drain = self._end

    def _woken(self) -> None:
        stream = self.stream
        if stream.deleted:
            self._leave()
            self.exchange.refuse(NotFound(f"{stream.path} was deleted.", fields={"stream": stream.path}))
        elif stream.tail > self.position or stream.closed:
            self._end()
        else:
            self._forget = stream.wait(self._woken)

    def _leave(self) -> None:
        self._timer.cancel()
        self._forget()
        if self._release is not None:
            self._release()

    def _end(self) -> None:
        self._leave()
        self.exchange.on_drain = None
        self.answer()
