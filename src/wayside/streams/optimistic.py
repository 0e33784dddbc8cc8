"""Appends to an engine that is waited for and may have other writers: compare-and-append, one batch of a stream at a time.

What waits for one stream while its last batch is on its way becomes the next batch. Each append is checked against what is
committed and what is before it in its batch, when its turn comes; where another writer was faster it is checked anew, and
what is to be refused is refused only after the engine was asked. An answer that was lost is found out (:meth:`_settle`):
nothing is appended twice, and nothing that was acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec

from wayside.core.callbacks import Done, being_cancelled, guarded, report
from wayside.core.clock import Clock
from wayside.core.engine import Engine, Head, Outcome, Put, Stored, TailMoved, Unknown
from wayside.core.errors import BadRequest, Overloaded, Refusal, StoreFailed, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import Append, Appended, cost_of, media_type
from wayside.streams.admission import check
from wayside.streams.catalog import Catalog, no_such_stream
from wayside.streams.deduplication import Deduplication, require_one
from wayside.streams.stream import Pending, Stream, put_of

__all__ = ["OptimisticCommits"]

T = TypeVar("T")
PATIENCE_S = 30.0
"""For how long an engine is asked again for what it did not answer, until whoever waits is told so."""
AGAIN_S, AGAIN_S_MAX = 0.01, 1.0
"""Pauses between that."""
LOSSES_MAX = 50
"""Batches in a row that are refused though nothing has moved: then the engine is not what it says."""


class _Item(msgspec.Struct, eq=False):
    """One append that waits for its turn."""

    append: Append
    done: Done
    identity: str
    size: int
    records: list[bytes] | None = None
    """Once its body was cut."""


class _Line:
    """What waits for one stream, in order: appends; what is called when its turn comes; who waits for a look at the
    engine."""

    __slots__ = ("asked", "items", "losses", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.items: deque[_Item | Callable[[], object] | asyncio.Future[None]] = deque()
        self.asked = False
        """Whether the engine was asked what the stream is since it last changed here."""
        self.losses = 0
        """Batches in a row for which another writer was faster."""


class OptimisticCommits:
    """``adopt`` takes what is at a path; ``on_shown`` is called with each stream that has new records, ``on_idle`` when
    nothing of it is on its way any more."""

    def __init__(
        self,
        engine: Engine,
        catalog: Catalog,
        dedupe: Deduplication,
        limits: Limits,
        clock: Clock,
        adopt: Callable[[str, Head | None], object],
        on_shown: Callable[[Stream], object],
        on_idle: Callable[[Stream], object],
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._dedupe = dedupe
        self._limits = limits
        self._clock = clock
        self._adopt = adopt
        self._on_shown = on_shown
        self._on_idle = on_idle
        self._lines: dict[Stream, _Line] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asked: list[tuple[Put, asyncio.Future[Outcome]]] = []
        """Batches of all streams that the next commit takes."""
        self._asking = False
        self.on_commit: Callable[[float, int], None] | None = None
        self.appends = self.records = self.bytes = 0
        self.uncommitted_bytes = 0

    async def close(self) -> None:
        """Let what was accepted be answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not (self._lines or self._tasks)

    def busy(self, stream: Stream) -> bool:
        """Whether something of a stream is on its way: what the engine tells of it meanwhile may be just that."""
        return stream in self._lines

    def require_working(self) -> None:
        """Raise what stands in the way of an append now."""
        if self.uncommitted_bytes > self._limits.uncommitted_bytes_max:
            raise Overloaded(
                f"{self.uncommitted_bytes} bytes are waiting for the engine. Try again shortly.",
                headers={"Retry-After": "1"},
            )

    def append(self, stream: Stream, append: Append, identity: str, done: Done) -> None:
        """Take an append; ``done`` gets :class:`Appended`, or an exception."""
        self.require_working()
        size = sum(map(len, append.records)) if append.records is not None else _length(append.body)
        self.uncommitted_bytes += size
        self._line(stream).items.append(_Item(append, done, identity, size))

    def then(self, stream: Stream, call: Callable[[], object]) -> None:
        """Call when everything that a stream accepted before now is answered."""
        if stream in self._lines:
            self._line(stream).items.append(call)
        else:
            call()

    async def look(self, stream: Stream) -> None:
        """Ask the engine what a stream is now, between two of its batches. Raises a :class:`Refusal`."""
        seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line(stream).items.append(seen)
        await seen

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have something done that belongs to no line, and is waited for at the end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            report(error, task)

    async def asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the engine, again where it cannot be reached. Raises :class:`Overloaded` when patience is over."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + PATIENCE_S, AGAIN_S
        while True:
            try:
                return await ask()
            except Refusal as refusal:
                if not isinstance(refusal, StoreFailed):
                    raise
                if loop.time() > until:
                    raise unreachable(refusal) from refusal
            except (Exception, asyncio.CancelledError) as error:
                if being_cancelled():
                    raise
                if loop.time() > until:
                    raise unreachable(error) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, AGAIN_S_MAX)

    # -- one stream

    def _line(self, stream: Stream) -> _Line:
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line(stream)
            self.spawn(self._work(line))
        return line

    async def _work(self, line: _Line) -> None:
        try:
            while line.items:
                try:
                    await self._step(line)
                except Exception as error:
                    if not isinstance(error, Refusal):
                        report(error, self._work)
                    if line.items:
                        self._answer(line, error)
        finally:
            while line.items:  # this task was cancelled
                self._answer(line, unreachable("the hub is closing"))
            del self._lines[line.stream]
            self._on_idle(line.stream)

    async def _step(self, line: _Line) -> None:
        """Answer, or append, what is first in a line, and what may go with it."""
        stream = line.stream
        first = line.items[0]
        if isinstance(first, asyncio.Future):
            await self._look(line)
            line.items.popleft()
            if not first.done():
                first.set_result(None)
            return
        if not isinstance(first, _Item):
            line.items.popleft()
            guarded(first)
            return
        if stream.deleted or stream.gone:
            self._hand_on(line, first)
            return
        if first.identity and not stream.knows_identities:
            await self._dedupe.load(stream)
        self._cut(stream, first)
        pending, taken = self._gather(line)
        if taken:
            await self._commit(line, pending, taken)
        elif not line.asked:  # before it is refused
            await self._look(line)
        else:
            end = self._dedupe.find(stream, first.identity) if first.identity else None
            known = check(stream, first.append) if end is None else None
            producer = known.producer if known is not None else None
            at = stream.offset(stream.tail if end is None else end)
            self._answer(line, Appended(*at, closed=stream.closed, duplicate=True, producer=producer))

    async def _look(self, line: _Line) -> None:
        path = line.stream.path
        self._adopt(path, await self.asked(lambda: self._engine.head(path)))
        line.asked = True

    def _hand_on(self, line: _Line, item: _Item) -> None:
        """Its stream is no more: append to the one that was made at its path since. Raises where there is none."""
        other = self._catalog.streams.get(line.stream.path)
        if other is None or other is line.stream or not other.awaited or other.gone:
            raise no_such_stream(line.stream.path)
        line.items.popleft()
        item.records = None  # they were cut as the other stream had them
        self._line(other).items.append(item)  # it was accepted: there is room for it

    def _answer(self, line: _Line, answer: Appended | Exception) -> None:
        item = line.items.popleft()
        if isinstance(item, _Item):
            self.uncommitted_bytes -= item.size
            guarded(partial(item.done, answer))
        elif not isinstance(item, asyncio.Future):
            guarded(item)  # what it waited for is answered, however that is
        elif isinstance(answer, Exception) and not item.done():
            item.set_exception(answer)

    def _cut(self, stream: Stream, item: _Item) -> None:
        """Cut a body into records. Raises a refusal that no other writer can change."""
        if item.records is not None:
            return
        append = item.append
        if append.records is None and append.body and not _fits(stream, append):
            item.records = []  # it is refused for that
            return
        records = stream.split(append.body) if append.records is None else [*append.records]
        assert isinstance(records, list)
        if item.identity:
            require_one(len(records))
        if not records and not append.close:
            raise BadRequest(
                "The body is empty: there is nothing to append. Send a body, or Stream-Closed: true to close.",
                code="empty-append",
            )
        size = sum(map(len, records))
        if append.meta is not None:
            size += cost_of(append.metas(len(records)))
        self.require_fit(size, len(records))
        item.records = records

    def _gather(self, line: _Line) -> tuple[Pending, list[_Item]]:
        """The next batch of a stream, and the appends in it: as many as are accepted, one after another."""
        stream = line.stream
        pending = stream.open = Pending(stream, stream.tail, self._clock.wall_ms())
        stream.next = stream.tail
        taken: list[_Item] = []
        try:
            self._take(line, pending, taken)
        except BaseException:
            pending.undo()
            raise
        finally:
            stream.open = None
        return pending, taken

    def _take(self, line: _Line, pending: Pending, taken: list[_Item]) -> None:
        stream = line.stream
        identities: set[str] = set()
        for item in line.items:
            if not isinstance(item, _Item) or (pending.size + item.size > self._limits.read_bytes_max and taken):
                break
            try:
                self._cut(stream, item)
                assert item.records is not None
                seen = item.identity and (
                    item.identity in identities
                    or not stream.knows_identities
                    or self._dedupe.find(stream, item.identity) is not None
                )
                if taken and self._overfull(pending, item):
                    break
                if seen or check(stream, item.append) is not None:
                    break
            except Refusal:
                break  # it is told when it is first
            stream.accept(item.append, item.records, None, self._clock)
            identities.add(item.identity)
            taken.append(item)

    def require_fit(self, size: int, count: int) -> None:
        """Raise :class:`TooLarge` for a batch that the engine does not take."""
        abilities = self._engine.abilities
        if size > abilities.entry_bytes_max or count > abilities.entry_records_max:
            raise TooLarge(
                f"The append has {count} records in {size} bytes; this hub's engine takes {abilities.entry_records_max} in "
                f"{abilities.entry_bytes_max} at a time. Send it in smaller parts.",
                code="engine-entry-too-large",
                fields={"limit_bytes": abilities.entry_bytes_max, "limit_records": abilities.entry_records_max},
            )

    def _overfull(self, pending: Pending, item: _Item) -> bool:
        """Whether a batch would be larger with an append than the engine takes."""
        abilities, records = self._engine.abilities, item.records or ()
        size = pending.weight + sum(map(len, records))
        if item.append.meta is not None:
            size += cost_of(item.append.metas(len(records)))
        return size > abilities.entry_bytes_max or len(pending.records) + len(records) > abilities.entry_records_max

    async def _commit(self, line: _Line, pending: Pending, taken: list[_Item]) -> None:
        stream = line.stream
        put = put_of(pending, stream)
        put.path, put.id = stream.path, os.urandom(8).hex()
        began = asyncio.get_running_loop().time()
        try:
            outcome = await self._settle(put)
        except BaseException as error:
            pending.undo()
            line.asked = False
            if not isinstance(error, Exception):
                raise
            for _ in taken:  # none of them may be sent again by us: they may be there
                self._answer(line, error)
            while line.items:  # who waited for that waits no longer
                self._answer(line, error)
            return
        if isinstance(outcome, TailMoved):
            pending.undo()
            await self._behind(line, outcome.head)
            return
        line.asked = False
        line.losses = 0
        pending.position = outcome.position
        for _ in taken:
            line.items.popleft()
        self._land(stream, pending, taken)
        if self.on_commit is not None:
            guarded(partial(self.on_commit, asyncio.get_running_loop().time() - began, len(taken)))

    async def _behind(self, line: _Line, head: Head | None) -> None:
        """Another writer was faster: take what there is now, and let others have their turn, the longer the more often
        that was so. An engine that has less than it acknowledged has lost it: its stream is another then."""
        stream = line.stream
        before = stream.tail, stream.closed
        if head is not None and head.sid == stream.sid and head.tail < stream.tail:
            head = await self.asked(lambda: self._engine.head(stream.path))
            if head is not None and head.sid == stream.sid and head.tail < stream.tail:
                self._adopt(stream.path, None)
        self._adopt(stream.path, head)
        line.asked = True
        line.losses += 1
        if (stream.tail, stream.closed) == before and not stream.deleted and line.losses > LOSSES_MAX:
            raise unreachable(f"it refuses to append at {stream.tail}, and says nothing else is there")
        if line.losses > 1:
            await asyncio.sleep(min(AGAIN_S_MAX, random.uniform(0, AGAIN_S * line.losses)))

    def _land(self, stream: Stream, pending: Pending, taken: list[_Item]) -> None:
        """Make a batch visible, acknowledge it, then deliver it."""
        held = stream.cached_bytes
        stream.commit(pending)
        stream.next = stream.tail
        self._catalog.charge(stream, stream.cached_bytes - held)
        self.appends += len(taken)
        self.records += len(pending.records)
        self.bytes += pending.size
        if stream.config.ttl_s is not None:
            stream.deadline_ms = self._clock.wall_ms() + stream.config.ttl_s * 1000
        end = pending.position
        for item in taken:
            self.uncommitted_bytes -= item.size
            end += len(item.records or ())
            if item.identity and stream.seen is not None:
                self._dedupe.note(stream, item.identity, end)
            at = stream.offset(end if item.records else stream.tail)
            guarded(partial(item.done, Appended(*at, stream.closed, False, item.append.producer)))
        guarded(stream.publish)
        guarded(partial(self._on_shown, stream))

    # -- the engine

    async def _settle(self, put: Put) -> Stored | TailMoved:
        """Append a batch, and find out what became of it. It is asked for by its name where an answer was lost: until
        the tail has moved it may be repeated, as only one of the two can find the tail where it was."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + PATIENCE_S, AGAIN_S
        lost = False
        while True:
            outcome = await self._ask(put)
            if isinstance(outcome, Stored) or not (lost or isinstance(outcome, Unknown)):
                assert not isinstance(outcome, Unknown)
                return outcome
            lost = True
            position = await self.asked(partial(self._engine.find_batch, put.path, put.sid, put.position, put.id))
            if position is not None:
                return Stored(position)
            if isinstance(outcome, TailMoved):
                return outcome
            if loop.time() > until:
                raise unreachable(f"{outcome.error}. It did not say whether it has the append: look, or send it again")
            await asyncio.sleep(pause)
            pause = min(2 * pause, AGAIN_S_MAX)

    def _ask(self, put: Put) -> asyncio.Future[Outcome]:
        """Append a batch together with those of other streams that wait."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asked.append((put, future))
        if not self._asking:
            self._asking = True
            self.spawn(self._commit_all())
        return future

    async def _commit_all(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                outcomes = await self._outcomes([put for put, _ in asked])
                for (_, future), outcome in zip(asked, outcomes, strict=True):
                    if future.done():
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            self._asking = False

    async def _outcomes(self, puts: list[Put]) -> list[Outcome | Refusal]:
        """What became of batches. One that the engine refuses for good does not make the others unknown: each is then asked
        for by itself."""
        try:
            outcomes = await self._engine.commit(puts)
            if len(outcomes) != len(puts):
                raise RuntimeError(f"The engine answered {len(outcomes)} of {len(puts)} batches.")
            return [*outcomes]
        except (Exception, asyncio.CancelledError) as error:
            if being_cancelled():
                raise
            if len(puts) > 1:
                return [outcome for put in puts for outcome in await self._outcomes([put])]
            if isinstance(error, Refusal) and not isinstance(error, StoreFailed):
                return [error]
            return [Unknown(error)]


def unreachable(why: object) -> Overloaded:
    """The refusal of what an engine did not answer in time."""
    return Overloaded(
        f"The hub's engine does not answer: {why}. Try again shortly.",
        code="engine-unreachable",
        headers={"Retry-After": "1"},
    )


def _fits(stream: Stream, append: Append) -> bool:
    kind = append.content_type
    return kind is not None and media_type(kind) == media_type(stream.config.content_type)


def _length(body: Any) -> int:
    return int(body.size) if hasattr(body, "size") else len(body)
