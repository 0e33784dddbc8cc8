"""The contracts between the parts: what a log is, what a pattern may know of a stream, how followers write.

Nothing here does anything; an engine, a pattern or a server implements one side and uses another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from wayside.limits import Limits
from wayside.model import Append, Batch, Create, Offset, StreamConfig, StreamInfo

__all__ = ["Clock", "Done", "Encoding", "Log", "Reader", "Sink", "Statistics", "StreamView", "SystemClock"]

Done = Callable[[Any], None]
"""Called once, from the event loop, with a result or with an exception *instance*. Never raises."""


class Clock(Protocol):
    """Time as a parameter."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class Encoding(Protocol):
    """How a follower hears of records. Followers whose encodings have equal ``key`` share frames."""

    @property
    def key(self) -> object: ...

    @property
    def heartbeat(self) -> Any:
        """Frame that keeps an idle connection open, or None."""
        ...

    def encode(self, stream: StreamView, batches: list[Batch]) -> Any:
        """One frame for these records; the last one's end is where the reader then stands."""
        ...

    def caught_up(self, stream: StreamView, position: int) -> Any:
        """Frame for a reader that reaches the tail without having been sent a record, or None."""
        ...

    def end(self, stream: StreamView, position: int, reason: str, told: bool) -> Any:
        """Last frame, or None. ``reason`` is ``closed``, ``deleted``, ``complete``, ``drain`` or ``expired``; ``told`` if
        the frame before was encoded when the stream was closed and all of it was sent."""
        ...


class Reader(Protocol):
    """A follower, as the connection it writes to sees it."""

    credit: int | None
    """Records that may still be sent; None: no bound."""
    until: int | None
    """Position where it ends; None: with the stream."""

    @property
    def at(self) -> int:
        """Position where its reader stands."""
        ...

    def pump(self) -> None:
        """The buffer has room again."""
        ...

    def pause(self) -> None:
        """The buffer is past its high-water mark."""
        ...

    def reroute(self) -> None:
        """The sink's ``send`` is another from now on."""
        ...

    def grant(self, credit: int) -> None:
        """The client takes that many more records."""
        ...

    def finish(self, reason: str) -> None:
        """Write the last frame and end: ``drain`` or ``expired``."""
        ...

    def stop(self) -> None:
        """The client is gone."""
        ...


class Sink(Protocol):
    """Where a follower writes. It calls ``pause``, ``pump`` and ``stop`` of the follower attached to it."""

    paused: bool
    """The buffer is past its high-water mark."""

    @property
    def send(self) -> Callable[[Any], int | None]:
        """The shortest way out, for a frame that many are given: takes it and returns None; or returns how much of it was
        taken, or raises ``OSError``, and is then given the rest by ``queue``."""
        ...

    def write(self, frame: Any) -> None:
        """Take a frame."""
        ...

    def queue(self, frame: Any, sent: int) -> None:
        """Take what ``send`` did not."""
        ...

    def attach(self, reader: Reader) -> None: ...

    def finish(self, reason: str) -> None:
        """The last frame is written."""
        ...

    def abort(self, error: Exception) -> None:
        """The stream cannot be read on; cut the response so that the reader sees that it is not whole."""
        ...


class StreamView(Protocol):
    """What a pattern may know of a stream."""

    path: str
    config: StreamConfig
    closed: bool
    tail: int
    start: int
    lineage: list[tuple[int, int]]
    deleted: bool
    version: object
    """Replaced whenever anything a reader could see has changed."""
    readers: int
    """Followers that it has now."""
    on_unread: Callable[[], None] | None
    """Called each time that the last of them has gone."""

    def offset(self, position: int) -> Offset: ...

    def resolve(self, offset: Offset) -> int: ...

    def read_nowait(self, position: int, bytes_max: int) -> list[Batch] | None: ...

    async def read(self, position: int, bytes_max: int) -> list[Batch]: ...

    def wait(self, waiter: Callable[[], None]) -> Callable[[], None]: ...

    def info(self) -> StreamInfo: ...


class Log(Protocol):
    """What stores streams: the contract of every engine. All of it is called from one event loop."""

    limits: Limits

    def find(self, path: str, *, touch: bool = True) -> StreamView:
        """The stream at ``path``; raises :class:`~wayside.errors.NotFound` or ``Gone``."""
        ...

    def create(self, path: str, create: Create, done: Done) -> None:
        """Make a stream; ``done`` gets :class:`Created` after the commit, or an exception."""
        ...

    def append(self, path: str, append: Append, done: Done) -> None:
        """Append; ``done`` gets :class:`Appended` after the commit, or an exception."""
        ...

    def delete(self, path: str, done: Done) -> None:
        """Delete; ``done`` gets None after the commit, or an exception."""
        ...

    def follow(
        self,
        stream: StreamView,
        position: int,
        encoding: Encoding,
        sink: Sink,
        pattern: str,
        until: int | None = None,
        credit: int | None = None,
    ) -> Reader:
        """Start a follower at ``position``: it ends at ``until``, or is sent ``credit`` records until granted more."""
        ...

    def delivered(self, pattern: str, count: int) -> None:
        """Count records given by a pattern that follows nothing."""
        ...

    def list(self, prefix: str, after: str, limit: int, *, open_only: bool = False) -> list[StreamInfo]:
        """Streams whose path begins with ``prefix``, by path, after ``after``; ``open_only`` leaves out closed ones."""
        ...


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a log, for metrics and tests."""

    streams: int = 0
    appends: int = 0
    records: int = 0
    bytes: int = 0
    deliveries: dict[str, int] = field(default_factory=dict)
    followers: dict[str, int] = field(default_factory=dict)
    lag_records: int = 0
    store_bytes: int = 0
    uncommitted_bytes: int = 0
    cached_bytes: int = 0
