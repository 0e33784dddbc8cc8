"""The contract of every engine: what stores streams, below all that the hub makes of them.

An engine keeps batches of records at paths, in order. It knows no follower, no policy, no message id and no group: those
stand above it, once for all engines (:mod:`wayside.streams`). Positions are ordered and opaque: record ``i`` of a batch at
position ``p`` is at ``p + i``, and between two batches there may be a gap. The tail is the end of the last batch.

Every engine can do what :class:`Engine` says, and says in its :class:`Abilities` what else. What only some can do is a
contract of its own, asked for by type: :class:`Submits`, for an engine that one hub has to itself and that answers at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from wayside.core.errors import BadRequest, Refusal
from wayside.core.records import Batch, Meta, Offset, Spool, StreamConfig, StreamTail, cost_of

__all__ = [
    "END",
    "FORGOTTEN",
    "Abilities",
    "AppendState",
    "Change",
    "Committed",
    "CreateStream",
    "DeleteStream",
    "Engine",
    "Head",
    "Heads",
    "TailMoved",
    "Operation",
    "Outcome",
    "Put",
    "Statistics",
    "Stored",
    "Submits",
    "TouchStream",
    "TrimStream",
    "Unit",
    "Unknown",
    "offset_in",
    "require_atomic",
]

T = TypeVar("T")
END = (1 << 62) - 1
"""After every position."""
FORGOTTEN = (-1, -1, 0)
"""What :class:`AppendState` has of a producer that gave way to another."""


def require_atomic(abilities: Abilities, what: str) -> None:
    """Raise :class:`~wayside.errors.BadRequest` where ``what`` needs a transaction over several paths, and there is none."""
    if not abilities.atomic:
        raise BadRequest(
            f"This hub's engine has no transactions over several streams: {what}. Use a hub whose engine has.",
            code="engine-not-atomic",
        )


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine can do beside the contract of all."""

    durable: bool = True
    """What it acknowledges outlives its process."""
    exclusive: bool = True
    """One hub at a time has it: nobody else writes, and what was accepted last is the tail."""
    atomic: bool = True
    """Appends to several paths can be one transaction."""
    dense: bool = True
    """There are no gaps: differences of positions count records."""
    trims: bool = True
    """The beginning of a path can be let go."""
    forks: bool = True
    """A path can share records with another."""
    entry_bytes_max: int = END
    """Bytes of one batch, with what is known beside its records."""
    entry_records_max: int = END
    """Records of one batch."""


class AppendState(msgspec.Struct, array_like=True, omit_defaults=False, gc=False):
    """What appends change in a stream beside its records; the newest wins."""

    closed: bool = False
    closed_by: tuple[str, int, int] | None = None
    seq: str | None = None
    producers: dict[str, tuple[int, int, int]] = {}
    """Producer id to epoch, seq, wall-clock milliseconds; to ``FORGOTTEN`` where it gave way to another."""

    def merge(self, newer: AppendState) -> AppendState:
        return AppendState(
            self.closed or newer.closed,
            newer.closed_by or self.closed_by,
            newer.seq if newer.seq is not None else self.seq,
            self.producers | newer.producers,
        )


class Put(msgspec.Struct, gc=False):
    """One batch on its way to an engine: ``records``, or ``pieces`` of a spool, to be appended where the tail is
    ``position``."""

    sid: int
    position: int
    time_ms: int
    records: list[bytes]
    size: int
    separator: bytes
    keep_bytes: int
    """Bytes of records that the stream keeps at least."""
    state: AppendState | None = None
    spool: Spool | None = None
    pieces: Sequence[tuple[int, int]] = ()
    meta: dict[int, Meta] | None = None
    path: str = ""
    id: str = ""
    """Names this batch: an engine whose answer was lost is asked for it. Only where the engine is not exclusive."""

    @property
    def weight(self) -> int:
        """Bytes of its records and of what is known beside them."""
        return self.size if self.meta is None else self.size + cost_of(self.meta)

    @property
    def end(self) -> int:
        return self.position + (len(self.pieces) if self.spool else len(self.records))


def offset_in(lineage: list[tuple[int, int]], position: int) -> Offset:
    """The token for a position of a stream: in the epoch in which the record before it was written."""
    for first, epoch in reversed(lineage):
        if first < position:
            return Offset(epoch, position)
    return Offset(lineage[0][1], position)


@dataclass(slots=True)
class Head:
    """A stream as an engine has it."""

    sid: int
    path: str
    config: StreamConfig
    lineage: list[tuple[int, int]]
    """(first position, epoch) of every life that the positions come from, oldest first."""
    start: int = 0
    tail: int = 0
    size: int = 0
    state: AppendState = field(default_factory=AppendState)
    expires_ms: int | None = None
    source: int | None = None
    """``sid`` of the stream it was forked from."""
    fork: tuple[str, str | None, int] | None = None
    """The fork as it was asked for: source path, offset, sub-offset."""
    gone: bool = False
    """Soft-deleted: kept for its forks only."""


@dataclass(slots=True)
class CreateStream:
    row: Head


@dataclass(slots=True)
class DeleteStream:
    sid: int
    soft: bool


@dataclass(slots=True)
class TrimStream:
    """Everything before ``start`` is no longer retained."""

    sid: int
    start: int


@dataclass(slots=True)
class TouchStream:
    sid: int
    expires_ms: int


Operation = CreateStream | DeleteStream | TrimStream | TouchStream


@dataclass(slots=True)
class Unit:
    """One transaction: operations in order, then puts in order."""

    operations: list[Operation] = field(default_factory=list)
    puts: list[Put] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.operations or self.puts)


@dataclass(slots=True)
class Committed:
    """What a commit did beside writing: ``sealed`` maps a sid to the position up to which chunk rows hold it."""

    sealed: dict[int, int] = field(default_factory=dict)


class Stored(NamedTuple):
    """A batch is as durable as the engine makes it."""

    position: int
    """Of its first record."""


class TailMoved(NamedTuple):
    """A batch was not appended: the stream's tail is another, or the stream is."""

    head: Head | None
    """What is at the path now; None: nothing."""


class Unknown(NamedTuple):
    """The engine may have the batch, or may not."""

    error: BaseException


Outcome = Stored | TailMoved | Unknown


class Change(NamedTuple):
    """What is at a path now. May be told again, and tells of several changes at once; the last one told is true."""

    path: str
    head: Head | None
    """None: nothing."""


class Engine(Protocol):
    """Where streams are kept.

    Every method may wait, and is bounded in time by the engine. Where it cannot be reached, or answers what makes no sense, it
    raises :class:`~wayside.errors.StoreFailed` or any error of its own client: it is asked again for a while. Any other
    :class:`~wayside.errors.Refusal` is final: nothing was done, and nothing will be. What it is cancelled in the middle of is
    done, or not.

    A stream is its path and its ``sid``, a number that its maker chose: another at that path has another. Positions begin at
    0 and have at most 16 digits. ``head``, ``create`` and what ``commit`` compares are the truth of that moment, never a
    replica's; ``read`` and ``changes`` may be behind.
    """

    abilities: Abilities

    async def open(self) -> None:
        """Begin. Raises :class:`~wayside.errors.StoreUnusable` or ``DamagedStore``."""
        ...

    async def close(self) -> None:
        """End; what was acknowledged is there at the next ``open``."""
        ...

    async def head(self, path: str) -> Head | None:
        """What is at a path now, as the engine knows it and not a replica of it; None: nothing."""
        ...

    async def create(self, head: Head, first: Put | None) -> Head:
        """Make a stream, with its first batch. Where another is at the path, that one is returned, and nothing is done."""
        ...

    async def commit(self, puts: Sequence[Put]) -> list[Outcome]:
        """Append batches, at most one for each stream: each whole or not at all, and each only where the stream at its path is
        ``sid``, is not closed, and has its tail at ``position``; else :class:`TailMoved`. A batch without records (a close)
        does not move the tail. ``state`` is merged into what was known beside the records. It never repeats a batch by
        itself: :class:`TailMoved` might then be told of its own first try. A batch that it will never take it refuses by
        raising when it is given that alone."""
        ...

    async def read(self, path: str, sid: int, position: int, bytes_max: int, records_max: int) -> list[Batch]:
        """Batches from ``position`` on: about ``bytes_max`` bytes and at most ``records_max`` records of them, at least
        one record; [] at the tail. Raises :class:`~wayside.errors.Gone` where the stream is another, or has let them go."""
        ...

    async def find_batch(self, path: str, sid: int, position: int, id: str) -> int | None:
        """Where the batch ``id`` is that was to be appended at ``position``: its first record's position; None where it is not
        there now. It sees all that a :class:`TailMoved` was told for: not a replica's. Names are needed for a minute after
        their batch, also where its records were let go."""
        ...

    async def trim(self, path: str, sid: int, start: int) -> None:
        """Let go of what is before ``start``, as far as that is cheap. Only where it ``trims``."""
        ...

    async def delete(self, path: str, sid: int) -> None:
        """Let go of a stream; nothing is done where another is at the path."""
        ...

    def changes(self) -> AsyncIterator[list[Change]]:
        """First what is at all paths, in one list or several, then an empty list, then what changes: by other hubs too, and by
        whoever listens. It may be late, tell again, and leave out what was true in between; the last it tells is true. Raises
        where it breaks off: it is begun anew."""
        ...

    async def paths(self, prefix: str, after: str, limit: int) -> list[Head]:
        """What is at the paths that begin with ``prefix`` and come after ``after``, by path."""
        ...


class Heads(Protocol):
    """The streams of an engine that answers at once, as of the last commit. Raises
    :class:`~wayside.errors.DamagedStore` for what it cannot read."""

    def find(self, path: str) -> Head | None: ...

    def find_sid(self, sid: int) -> Head | None: ...

    def forks_of(self, sid: int) -> int:
        """How many streams were forked from one."""
        ...

    def count(self) -> int:
        """How many streams there are."""
        ...

    def paths(self, prefix: str, after: str, limit: int, *, open_only: bool = False) -> list[str]: ...

    def tails(self, prefix: str, now_ms: int, *, exact: bool = False) -> Iterator[tuple[int, StreamTail]]:
        """Sid and tail of each stream whose path begins with ``prefix``, or is ``exact``-ly it, and whose time is not
        over; without forks."""
        ...

    def forks(self, prefix: str, now_ms: int, *, exact: bool = False) -> list[str]:
        """The paths of the forks that :meth:`tails` leaves out."""
        ...

    def expired(self, now_ms: int, limit: int) -> list[str]: ...

    def aged(self) -> list[str]:
        """Paths of streams that keep records for a time only."""
        ...

    def start_after(
        self, sid: int, start: int, *, drop_bytes: int = 0, before_ms: int = 0, upto: int = END
    ) -> tuple[int, int]:
        """Where retention would let a stream begin, and how many bytes it lets go."""
        ...

    def identities(self, sid: int, since_ms: int, count_max: int) -> list[tuple[str, int, int]]:
        """Message ids of records not older than ``since_ms``, newest first, as (id, position after the record, time in
        ms)."""
        ...

    def read(self, sid: int, position: int, bytes_max: int, records_max: int, separator: bytes) -> list[Batch]: ...


@runtime_checkable
class Submits(Protocol):
    """An engine that takes a transaction without being waited for, and answers on the event loop; it is exclusive, atomic,
    dense, and trims and forks. Its heads are looked up at once."""

    heads: Heads
    failed: str | None
    """Why nothing is acknowledged any more."""
    incomplete: bool
    """Set where acknowledged records never came here: the next start has to treat ``async`` streams as after a crash."""

    def submit(self, unit: Unit) -> None:
        """Commit a transaction, after those that were submitted before."""
        ...

    def begin(self, told: Callable[[Unit, Committed | Refusal, float], None]) -> None:
        """``told`` gets each unit, what became of it, and the seconds that it took."""
        ...

    def take_epoch(self) -> int:
        """A number never given out before; also a new stream's ``sid``."""
        ...

    def recent(self) -> Mapping[int, tuple[Head, list[Batch]]]:
        """By sid, the streams whose last records are not where ``heads`` read them: those records are to be kept in
        memory."""
        ...

    async def look_up(self, read: Callable[[], T]) -> T:
        """Call ``read``, a read of ``heads``, where it may take its time."""
        ...

    @property
    def size(self) -> int:
        """Bytes on disk."""
        ...


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of the streams of a hub and of who follows them, for metrics and tests."""

    streams: int = 0
    appends: int = 0
    records: int = 0
    bytes: int = 0
    deliveries: dict[str, int] = field(default_factory=dict)
    followers: dict[str, int] = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    """Followers with a delivery policy, by policy."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Records that policies did not let through, by policy."""
    lagged: int = 0
    """Followers that were ended for being too far behind."""
    lag_records: int = 0
    store_bytes: int = 0
    uncommitted_bytes: int = 0
    cached_bytes: int = 0
