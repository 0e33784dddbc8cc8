"""Appends to an engine that is waited for and may have other writers: compare-and-append, one batch of a stream at a time.

What waits for one stream while its last batch is on its way becomes the next batch. Each append is checked against what is
committed and what is before it in its batch, when its turn comes; where another writer was faster it is checked anew, and
what is to be refused is refused only after the engine was asked. An answer that was lost is found out (:meth:`_settle`):
nothing is appended twice, and nothing that was acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from wayside.core.callbacks import Done, guarded, report
from wayside.core.clock import Clock
from wayside.core.engine import Engine, Head, Outcome, Put, Stored, TailMoved, Unknown
from wayside.core.errors import BadRequest, Overloaded, Refusal, StoreFailed, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import Append, Appended, media_type
from wayside.streams.admission import check
from wayside.streams.catalog import Directory, no_such_stream
from wayside.streams.deduplication import Dedupe, require_one
from wayside.streams.stream import Pending, Stream, put_of

__all__ = ["OptimisticCommits"]

T = TypeVar("T")
PATIENCE_S = 30.0
"""For how long an engine is asked again for what it did not answer, until whoever waits is told so."""
AGAIN_S, AGAIN_S_MAX = 0.01, 1.0
"""Pauses between that."""


class _Item(msgspec.Struct, eq=False):
    """One append that waits for its turn."""

    append: Append
    done: Done
    identity: str
    size: int
    records: list[bytes] | None = None
    """Once its body was cut."""


class _Line:
    """What waits for one stream, in order; what is no append is called when its turn comes."""

    __slots__ = ("asked", "items", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.items: deque[_Item | Callable[[], object]] = deque()
        self.asked = False
        """Whether the engine was asked what the stream is since it last changed here."""


class OptimisticCommits:
    """``adopt`` takes what is at a path; ``on_shown`` is called with each stream that has new records, ``on_idle`` when
    nothing of it is on its way any more."""

    def __init__(
        self,
        engine: Engine,
        directory: Directory,
        dedupe: Dedupe,
        limits: Limits,
        clock: Clock,
        adopt: Callable[[str, Head | None], object],
        on_shown: Callable[[Stream], object],
        on_idle: Callable[[Stream], object],
    ) -> None:
        self._engine = engine
        self._directory = directory
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

    def spawn(self, work: Awaitable[Any]) -> None:
        """Have something done that belongs to no line, and is waited for at the end."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the engine, again where it cannot be reached. Raises :class:`StoreFailed` when patience is over."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + PATIENCE_S, AGAIN_S
        while True:
            try:
                return await ask()
            except Refusal as refusal:
                if not isinstance(refusal, StoreFailed) or loop.time() > until:
                    raise
            except Exception as error:
                if loop.time() > until:
                    raise StoreFailed(f"The engine does not answer: {error}. Try again shortly.") from error
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
        while line.items:
            try:
                await self._step(line)
            except Exception as error:
                if not isinstance(error, Refusal):
                    report(error, self._work)
                self._answer(line, error)
        del self._lines[line.stream]
        self._on_idle(line.stream)

    async def _step(self, line: _Line) -> None:
        """Answer, or append, what is first in a line, and what may go with it."""
        stream = line.stream
        first = line.items[0]
        if not isinstance(first, _Item):
            line.items.popleft()
            guarded(first)
            return
        if stream.deleted or stream.gone:
            raise no_such_stream(stream.path)
        if first.identity and stream.seen is None:
            await self._dedupe.load(stream)
        self._cut(stream, first)
        pending, taken = self._gather(line)
        if taken:
            await self._commit(line, pending, taken)
        elif not line.asked:  # before it is refused
            line.asked = True
            self._adopt(stream.path, await self.asked(lambda: self._engine.head(stream.path)))
        else:
            end = self._dedupe.find(stream, first.identity) if first.identity else None
            known = check(stream, first.append) if end is None else None
            producer = known.producer if known is not None else None
            at = stream.offset(stream.tail if end is None else end)
            self._answer(line, Appended(*at, closed=stream.closed, duplicate=True, producer=producer))

    def _answer(self, line: _Line, answer: Appended | Exception) -> None:
        item = line.items.popleft()
        if isinstance(item, _Item):
            self.uncommitted_bytes -= item.size
            guarded(partial(item.done, answer))

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
        size, size_max = sum(map(len, records)), self._engine.abilities.entry_bytes_max
        if size > size_max:
            raise TooLarge(
                f"The append has {size} bytes; this hub's engine takes {size_max} at a time. Send it in smaller parts.",
                code="engine-entry-too-large",
                fields={"limit_bytes": size_max},
            )
        item.records = records

    def _gather(self, line: _Line) -> tuple[Pending, list[_Item]]:
        """The next batch of a stream, and the appends in it: as many as are accepted, one after another."""
        stream = line.stream
        pending = stream.open = Pending(stream, stream.tail, self._clock.wall_ms())
        stream.next = stream.tail
        taken: list[_Item] = []
        identities: set[str] = set()
        for item in line.items:
            if not isinstance(item, _Item) or (pending.size + item.size > self._limits.read_bytes_max and taken):
                break
            try:
                self._cut(stream, item)
                assert item.records is not None
                seen = item.identity and (
                    item.identity in identities or stream.seen is None or self._dedupe.find(stream, item.identity)
                )
                size = pending.size + sum(map(len, item.records))
                if seen or size > self._engine.abilities.entry_bytes_max or check(stream, item.append) is not None:
                    break
            except Refusal:
                break  # it is told when it is first
            stream.accept(item.append, item.records, None, self._clock)
            identities.add(item.identity)
            taken.append(item)
        stream.open = None
        return pending, taken

    async def _commit(self, line: _Line, pending: Pending, taken: list[_Item]) -> None:
        stream = line.stream
        put = put_of(pending, stream)
        put.path, put.id = stream.path, os.urandom(8).hex()
        began = asyncio.get_running_loop().time()
        try:
            outcome = await self._settle(put)
        except BaseException:
            pending.undo()
            raise
        if isinstance(outcome, TailMoved):
            pending.undo()
            line.asked = True
            self._adopt(stream.path, outcome.head)
            return
        line.asked = False
        if self.on_commit is not None:
            self.on_commit(asyncio.get_running_loop().time() - began, len(taken))
        pending.position = outcome.position
        for _ in taken:
            line.items.popleft()
        self._land(stream, pending, taken)

    def _land(self, stream: Stream, pending: Pending, taken: list[_Item]) -> None:
        """Make a batch visible, acknowledge it, then deliver it."""
        held = stream.cached_bytes
        stream.commit(pending)
        stream.next = stream.tail
        self._directory.charge(stream, stream.cached_bytes - held)
        self.appends += len(taken)
        self.records += len(pending.records)
        self.bytes += pending.size
        if stream.config.ttl_s is not None:
            stream.deadline_ms = self._clock.wall_ms() + stream.config.ttl_s * 1000
        end = pending.position
        for item in taken:
            self.uncommitted_bytes -= item.size
            end += len(item.records or ())
            if item.identity:
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
                raise StoreFailed(
                    f"The engine did not say whether it has the append ({outcome.error}): look, or send it again."
                )
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
        while self._asked:
            asked, self._asked = self._asked, []
            outcomes: list[Outcome]
            try:
                outcomes = await self._engine.commit([put for put, _ in asked])
            except Exception as error:
                outcomes = [Unknown(error)] * len(asked)
            for (_, future), outcome in zip(asked, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)
        self._asking = False


def _fits(stream: Stream, append: Append) -> bool:
    kind = append.content_type
    return kind is not None and media_type(kind) == media_type(stream.config.content_type)


def _length(body: Any) -> int:
    return int(body.size) if hasattr(body, "size") else len(body)
