"""What the floors above know of streams: all of them (``Log``), one of them (``StreamView``), and those who follow one.

Nothing here does anything: this package implements one side of it, a pattern or a server the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from wayside.core.callbacks import Done
from wayside.core.engine import Abilities
from wayside.core.globs import Glob
from wayside.core.limits import Limits
from wayside.core.policies import Policy
from wayside.core.records import Append, Batch, Create, Offset, StreamConfig, StreamInfo, StreamTail

__all__ = [
    "Encoding",
    "Log",
    "Reader",
    "Sink",
    "Stay",
    "StreamView",
]


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
        """Last frame, or None. ``reason`` is ``closed``, ``deleted``, ``complete``, ``drain``, ``expired`` or ``lagged``; ``told``
        if the frame before was encoded when the stream was closed and all of it was sent."""
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


class Stay(Protocol):
    """A member that is present at a stream, as what answers its requests sees it."""

    def renew(self, way: str) -> None:
        """A request of the member: its lease begins anew. Raises ``TooMany`` where no more members may be present."""
        ...

    def hold(self, way: str) -> Callable[[], None]:
        """The member is connected: its lease does not end until what is returned is called, and begins anew then."""
        ...


class StreamView(Protocol):
    """What a pattern may know of a stream."""

    path: str
    sid: int
    """The epoch in which it was made, and its number for ever."""
    config: StreamConfig
    closed: bool
    tail: int
    start: int
    lineage: list[tuple[int, int]]
    deleted: bool
    version: object
    """Replaced whenever anything a reader could see has changed."""
    limits: Limits
    readers: int
    """Followers that it has now."""
    on_unread: Callable[[], None] | None
    """Called each time that the last of them has gone."""

    def cohort(self, encoding: Encoding, pattern: str, tally: Any) -> Any:
        """Those who follow it at its tail with one encoding: what writes to all of them."""
        ...

    def records_after(self, position: int) -> int:
        """How many records come after a position, about where some are not in memory and positions have gaps."""
        ...

    def offset(self, position: int) -> Offset: ...

    def resolve(self, offset: Offset) -> int: ...

    def read_nowait(self, position: int, bytes_max: int) -> list[Batch] | None: ...

    async def read(self, position: int, bytes_max: int) -> list[Batch]: ...

    def wait(self, waiter: Callable[[], None]) -> Callable[[], None]: ...

    def promise(self, told: Callable[[Batch], None]) -> Callable[[], None]:
        """Have ``told`` called with records that are about to be committed, if there is such a moment: what it appends shares
        their transaction. Returns how to end it."""
        ...

    def hold(self, since: Callable[[], int]) -> Callable[[], None]: ...

    def info(self) -> StreamInfo: ...


class Log(Protocol):
    """The streams of a hub, as patterns, calls, groups and everything else above use them: what
    :class:`~wayside.streams.streams.Streams` makes of an engine. (The contract of the engine itself is
    :class:`wayside.core.engine.Engine`.) All of it is called from one event loop."""

    limits: Limits
    durable: bool
    """Whether what it acknowledges outlives the process; else all of its streams are in memory."""
    abilities: Abilities
    """What its streams can do. What needs more is refused."""

    def find(self, path: str, *, touch: bool = True) -> StreamView:
        """The stream at ``path``; raises :class:`~wayside.errors.NotFound` or ``Gone``."""
        ...

    def refresh(self, path: str, done: Done) -> None:
        """Ask the engine what is at a path, where another hub may have made or changed it; ``done`` gets None, or an
        exception."""
        ...

    def create(self, path: str, create: Create, done: Done) -> None:
        """Make a stream; ``done`` gets :class:`Created` after the commit, or an exception."""
        ...

    def append(self, path: str, append: Append, done: Done) -> None:
        """Append; ``done`` gets :class:`Appended` after the commit, or an exception."""
        ...

    def append_all(self, appends: Sequence[tuple[str, Append]], done: Done, *, in_line: bool = False) -> bool:
        """Append records (and nothing else) to several streams in one transaction, all of them or none: as atomic as the
        least durable of them. ``done`` gets a list of :class:`Appended`, or an exception. ``in_line``: not
        before appends to the same streams that wait for something. Returns whether it waits itself, as for message ids
        that are read from the disk: then later appends to the same streams may come before it."""
        ...

    def trim(self, path: str, position: int) -> None:
        """Let go of what a stream has before ``position``, as far as that is cheap."""
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
        policy: Policy | None = None,
        ended: Callable[[], None] | None = None,
    ) -> Reader:
        """Start a follower at ``position``: it ends at ``until``, or is sent ``credit`` records until granted more.
        ``policy`` says what it is given where it does not keep up (None: everything, later); ``ended`` is called once,
        when it is over."""
        ...

    def delivered(self, pattern: str, count: int) -> None:
        """Count records given by a pattern that follows nothing."""
        ...

    def list(self, prefix: str, after: str, limit: int, *, open_only: bool = False) -> list[StreamInfo]:
        """Streams whose path begins with ``prefix``, by path, after ``after``; ``open_only`` leaves out closed ones."""
        ...

    def watch(self, glob: Glob, told: Callable[[StreamView], None]) -> Callable[[], None]:
        """Have ``told`` called with each stream that ``glob`` matches and that has changed: records shown, created, closed,
        deleted (then ``deleted`` is set); once for all of a commit. It must not raise, nor take long. Returns how to
        end it. Streams that no watch matches are not slowed down by it."""
        ...

    def tails(self, glob: Glob) -> Iterator[StreamTail]:
        """The streams that ``glob`` matches, by path, as of the call; none is loaded for it."""
        ...

    def union(self, glob: Glob, done: Done) -> None:
        """All streams that ``glob`` matches, also those made later, as one: ``done`` gets a :class:`StreamView` of JSON
        envelopes (:mod:`wayside.streams.union`), up to date, to be read or followed at once; or an exception."""
        ...
