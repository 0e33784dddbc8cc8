"""Group commit: what is accepted in one tick, or while the previous commit runs, is one transaction.

Appends are acknowledged and shown together, after the commit of their unit; those of ``memory`` and
``async`` streams at the end of the tick. When a commit fails, it and everything accepted on top of it is
taken back, newest first, and each caller is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from wayside.core.callbacks import Done, guarded, report
from wayside.core.clock import Clock
from wayside.core.engine import Committed, Operation, Submits, Unit
from wayside.core.errors import Overloaded, Refusal, StoreFailed, StoreFull
from wayside.core.limits import Limits
from wayside.core.records import Append, Appended, Batch, Durability, Spool, cost_of
from wayside.streams.catalog import Catalog
from wayside.streams.stream import Pending, Stream, put_of

LAZY_S = 0.05
"""Delay of an ``async`` stream's commit; with the commit itself it stays well under the promised 100 ms."""
FULL_S = 1.0
"""How soon records that found no room are tried again."""


@dataclass(slots=True)
class Flight:
    """One unit on its way, and how to answer for it."""

    pendings: list[Pending] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)
    applied: list[Callable[[], None]] = field(default_factory=list)
    """Called in order after the commit."""
    refused: list[Done] = field(default_factory=list)
    """Told of a failed commit."""
    size: int = 0
    appends: int = 0

    def __bool__(self) -> bool:
        return bool(self.pendings or self.operations or self.applied)


class Commits:
    """Takes appends and operations. ``on_shown`` is called with each stream that has new records."""

    def __init__(
        self,
        engine: Submits | None,
        catalog: Catalog,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._limits = limits
        self._clock = clock
        self.on_shown: Callable[[Stream], object] = id
        self.on_commit: Callable[[float, int], None] | None = None
        self.appends = self.records = self.bytes = 0
        self.uncommitted_bytes = 0
        self._full = False
        self._dirty = Flight()
        self._flight: Flight | None = None
        self._instant: list[Pending] = []
        self._lazy: list[Pending] = []
        self._scheduled = False
        self._tick_ms = 0
        """The time of this tick, once somebody asked for it."""
        self._gathering = False
        """A commit has just ended, and the next has not begun."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        if self._engine is not None:
            self._engine.begin(self._committed)

    async def close(self) -> None:
        """Commit what is accepted, as far as that is possible."""
        self._take_lazy()
        self._flush()
        while self._flight is not None or self._dirty or self._instant or self._lazy:
            if self._flight is None and not self._dirty and self._lazy and (self._full or self.failed):
                if self._engine is not None:
                    self._engine.incomplete = True
                break
            self._take_lazy()
            self._flush()
            await asyncio.sleep(0.002)
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _too_much(self) -> bool:
        return self.uncommitted_bytes > self._limits.uncommitted_bytes_max

    @property
    def idle(self) -> bool:
        """Whether the store has all that it is to have."""
        return self._flight is None and not (self._dirty or self._instant or self._lazy)

    @property
    def failed(self) -> str | None:
        return self._engine.failed if self._engine else None

    # -- accepting

    def require_working(self, durability: Durability, *, adding: bool = True) -> None:
        """Raise what stands in the way of a change now; ``adding``: of one that takes room."""
        if durability is Durability.MEMORY or self._engine is None:
            if adding and self._catalog.memory_bytes > self._limits.memory_bytes_max:
                raise StoreFull(
                    f"The streams in memory take {self._catalog.memory_bytes} bytes, as many as they may "
                    "(--memory-bytes-max). Delete some, or give them a smaller retention.",
                    code="memory-full",
                )
            return
        if self._engine.failed:
            raise StoreFailed(self._engine.failed)
        if self._too_much:
            raise Overloaded(
                f"{self.uncommitted_bytes} bytes are waiting for the disk. Try again shortly.",
                headers={"Retry-After": "1"},
            )
        if durability is Durability.ASYNC and self._full and self._lazy:
            raise StoreFull(
                "There is no room on the disk. Free some space and send it again.", headers={"Retry-After": "1"}
            )

    def begin(self, stream: Stream) -> Pending:
        """What the next appends of ``stream`` join. Raises what stands in the way."""
        if stream.memory or self._full or self._engine is None or self._engine.failed or self._too_much:
            self.require_working(stream.config.durability)
        if not self._tick_ms:
            self._tick_ms = self._clock.wall_ms()
        pending = stream.open = Pending(stream, stream.next, self._tick_ms)
        (self._dirty.pendings if stream.fsync else self._instant).append(pending)
        if not self._scheduled:
            self._schedule()
        return pending

    def take(self, stream: Stream, append: Append, done: Done) -> bool:
        """Take an append that does no more than add its bytes: the case that many publishers make common, so all of it is
        here. It needs no check but this one; False: it is another case. Raises what stands in the way."""
        body = append.body
        if not (
            type(body) is bytes
            and body
            and append.content_type == stream.config.content_type
            and append.meta is None
            and append.producer is None
            and append.seq is None
            and not append.close
            and stream.live
            and stream.deadline_ms is None
            and stream.plain
            and not (stream.closing or stream.gone)
        ):
            return False
        pending = stream.open
        if pending is None:
            pending = self.begin(stream)
        elif self._too_much:
            self.require_working(stream.config.durability)
        size = len(body)
        pending.records.append(body)
        pending.size += size
        stream.next += 1
        pending.acks.append((done, stream.next, None))
        if not stream.memory:
            self.uncommitted_bytes += size
        return True

    def append(self, stream: Stream, append: Append, records: list[bytes] | Spool, done: Done | None) -> None:
        """Take an append that was checked."""
        pending, fresh = stream.accept(append, records, done, self._clock)
        if not stream.memory:
            self.uncommitted_bytes += records.size if isinstance(records, Spool) else sum(map(len, records))
            if append.meta is not None and not isinstance(records, Spool):
                self.uncommitted_bytes += cost_of(append.metas(len(records)))
        if fresh:
            if stream.fsync:
                self._dirty.pendings.append(pending)
            else:
                self._instant.append(pending)
        if not self._scheduled:
            self._schedule()

    def operate(self, operation: Operation, undo: Callable[[], None] | None = None) -> None:
        """Add an operation to the next unit."""
        self._dirty.operations.append(operation)
        if undo is not None:
            self._dirty.undo.append(undo)
        self._schedule()

    def then(self, apply: Callable[[], None], refused: Done | None = None) -> None:
        """Call ``apply`` after the next unit is committed; ``refused`` with the refusal if it is not."""
        self._dirty.applied.append(apply)
        if refused is not None:
            self._dirty.refused.append(refused)
        self._schedule()

    def answer(self, stream: Stream, done: Done, result: Callable[[], Any]) -> None:
        """Answer when everything that ``stream`` accepted before now is committed."""
        on_disk = not stream.memory
        if on_disk and (self._flight is not None or self._dirty):
            self.then(lambda: done(result()), done)
        elif self._instant:
            self._schedule()
            asyncio.get_running_loop().call_soon(lambda: done(result()))
        else:
            done(result())

    # -- committing

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Once a tick: show what needs no disk; hand the rest to the writer if it is idle."""
        self._scheduled = False
        self._tick_ms = 0
        if self._instant:
            instant, self._instant = self._instant, []
            for pending in instant:
                if pending.stream.config.durability is Durability.ASYNC:
                    self._lazy.append(pending)
                    if pending.before is not None:
                        pending.kept = pending.state()  # now: appends that are not on their way yet go on changing it
            self._come_back(LAZY_S)
            self._show(instant)
        if self._flight is None and self._dirty and not self._gathering:
            self._take_off()

    def _come_back(self, seconds: float) -> None:
        if self._lazy and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._take_lazy)

    def _take_lazy(self) -> None:
        """What was acknowledged before the disk has it goes into the next unit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lazy and not self.failed:
            self._dirty.pendings += self._lazy  # behind those taken before, which may still wait for their turn
            self._lazy = []
            self._schedule()

    def _take_off(self) -> None:
        if self._lazy and (self._dirty.pendings or self._dirty.operations) and not self._full:
            self._take_lazy()  # with an operation too: a fork must not be on disk before what it shares
        self._promise()
        flight, self._dirty = self._dirty, Flight()
        puts = []
        for pending in flight.pendings:
            stream = pending.stream
            if stream.open is pending:
                stream.open = None
            flight.size += pending.weight
            flight.appends += len(pending.acks)
            if not stream.deleted:
                puts.append(put_of(pending, stream))
        unit = Unit(flight.operations, puts)
        if self._engine is None or not unit:
            asyncio.get_running_loop().call_soon(self._land, flight)  # after what is landing now, if anything is
            return
        self._flight = flight
        self._engine.submit(unit)

    def _promise(self) -> None:
        """Tell those who wish to know it of the records that are about to be committed."""
        if self._too_much:
            return  # what they append would be refused
        for pending in [p for p in self._dirty.pendings if p.stream.promises and p.stream.fsync and p.spool is None]:
            stream = pending.stream
            if stream.gone or stream.deleted:
                continue
            batch = Batch(pending.position, pending.time_ms, pending.records, pending.size, pending.meta)
            for told in stream.promises:
                guarded(partial(told, batch))

    def _committed(self, _unit: Unit, outcome: Committed | Refusal, seconds: float) -> None:
        """The writer has answered: tell everybody, then send the next unit on its way."""
        flight, self._flight = self._flight, None
        assert flight is not None
        if isinstance(outcome, Refusal):
            self._fail(flight, outcome)
            return
        self._full = False
        by_sid = self._catalog.by_sid
        for sid, sealed in outcome.sealed.items():
            stream = by_sid.get(sid)
            if stream is not None and sealed > stream.sealed:
                stream.sealed = sealed
        if self.on_commit is not None:
            self.on_commit(seconds, flight.appends)
        # Who is answered now has more to append, often: it is read in this turn of the loop, and shares the next commit
        # with what waits. The next turn ends that.
        self._gathering = True
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._gathered)
        self._land(flight)

    def _gathered(self) -> None:
        self._gathering = False
        self._flush()

    def _land(self, flight: Flight) -> None:
        self.uncommitted_bytes -= flight.size
        self._show([p for p in flight.pendings if p.stream.fsync])
        for apply in flight.applied:
            guarded(apply)

    def _show(self, pendings: list[Pending]) -> None:
        """Make appends visible, acknowledge them, then deliver them."""
        catalog, on_shown = self._catalog, self.on_shown
        for pending in pendings:
            stream = pending.stream
            held = stream.cached_bytes
            stream.commit(pending)
            catalog.charge(stream, stream.cached_bytes - held)
            acks = pending.acks
            self.appends += len(acks)
            self.records += stream.tail - pending.position
            self.bytes += pending.size
            if stream.config.ttl_s is not None:
                stream.deadline_ms = self._clock.wall_ms() + stream.config.ttl_s * 1000
            closed = stream.closed
            epoch = stream.lineage[-1][1]
            for done, end, producer in acks:
                at, where = (epoch, end) if end > pending.position else stream.offset(end)  # a close appends nothing
                try:
                    done(Appended(at, where, closed, False, producer))
                except Exception as error:  # the others are to be told all the same
                    report(error, done)
        for pending in pendings:
            stream = pending.stream
            if stream.cohorts or stream.waiters or stream.watchers:
                guarded(stream.publish)
            try:
                on_shown(stream)
            except Exception as error:
                report(error, on_shown)

    def _fail(self, flight: Flight, refusal: Refusal) -> None:
        """A commit failed: take back its appends and all that were accepted on top of them, and say so."""
        self._full = isinstance(refusal, StoreFull)
        dirty, self._dirty = self._dirty, Flight()
        everything = flight.pendings + dirty.pendings
        taken = [p for p in everything if p.stream.fsync]
        self.uncommitted_bytes -= sum([p.weight for p in taken])
        for pending in reversed(taken):
            pending.undo()
        for undo in reversed(flight.undo + dirty.undo):
            undo()
        for pending in taken:
            for done, _end, _producer in pending.acks:
                guarded(partial(done, refusal))
        for done in flight.refused + dirty.refused:
            guarded(partial(done, refusal))
        self._lazy = [p for p in everything if p.stream.config.durability is Durability.ASYNC] + self._lazy
        if not self.failed:
            self._come_back(FULL_S)
