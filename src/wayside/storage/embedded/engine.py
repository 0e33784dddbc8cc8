"""The embedded engine: streams in a directory of the local disk, which one hub at a time has to itself.

A hub submits transactions to it, and looks its streams up at once (:class:`~wayside.core.engine.Submits`). The contract of
all engines is served by the same transactions: for whoever knows no more of an engine than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from wayside.core.callbacks import asked
from wayside.core.clock import Clock, SystemClock
from wayside.core.engine import (
    Abilities,
    Change,
    Committed,
    CreateStream,
    DeleteStream,
    Head,
    Outcome,
    Put,
    Stored,
    TailMoved,
    TrimStream,
    Unit,
)
from wayside.core.errors import Conflict, Gone, Refusal
from wayside.core.records import Batch, batches_from
from wayside.storage.embedded.files import CHECKED_VFS
from wayside.storage.embedded.history import History
from wayside.storage.embedded.store import Store
from wayside.storage.embedded.writer import Writer

T = TypeVar("T")


class EmbeddedEngine:
    """Opens the store in ``directory``. Raises :class:`~wayside.errors.StoreInUse`, ``StoreUnusable`` or
    ``DamagedStore``."""

    abilities = Abilities()

    def __init__(self, directory: Path, *, vfs: str = CHECKED_VFS, clock: Clock | None = None) -> None:
        self.store = Store(directory, vfs=vfs, now_ms=(clock or SystemClock()).wall_ms())
        self.heads: History = self.store.history
        self._told: Callable[[Unit, Committed | Refusal, float], None] | None = None
        self._own: dict[int, asyncio.Future[None]] = {}
        """Units of the contract's methods, by ``id``, and who waits for them."""
        self._writer: Writer | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changing = asyncio.Lock()
        """Held by the methods of the contract that compare before they write."""
        self._watching: list[asyncio.Queue[list[Change]]] = []
        self._telling: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<EmbeddedEngine {self.store.directory}>"

    # -- submitting

    @property
    def failed(self) -> str | None:
        return self.store.failed

    @property
    def incomplete(self) -> bool:
        return self.store.incomplete

    @incomplete.setter
    def incomplete(self, value: bool) -> None:
        self.store.incomplete = value

    @property
    def size(self) -> int:
        return self.store.size

    def begin(self, told: Callable[[Unit, Committed | Refusal, float], None]) -> None:
        self._told = told
        self._start()

    def _start(self) -> None:
        if self._writer is None:
            self._loop = asyncio.get_running_loop()
            self._readers = ThreadPoolExecutor(1, "wayside-reader")
            self._writer = Writer(self.store, self._loop, self._committed)

    def submit(self, unit: Unit) -> None:
        assert self._writer is not None
        self._writer.submit(unit)

    def _committed(self, unit: Unit, outcome: Committed | Refusal, seconds: float) -> None:
        own = self._own.pop(id(unit), None) if self._own else None
        if own is None:
            assert self._told is not None
            self._told(unit, outcome, seconds)
        elif not own.done():
            if isinstance(outcome, Refusal):
                own.set_exception(outcome)
            else:
                own.set_result(None)

    def take_epoch(self) -> int:
        return self.store.take_epoch()

    def recent(self) -> Mapping[int, tuple[Head, list[Batch]]]:
        found: dict[int, tuple[Head, list[Batch]]] = {}
        for sid, batches in self.store.replayed.items():
            head = self.heads.find_sid(sid)
            if head is not None:
                for state in self.store.journalled_states(sid):
                    head.state = head.state.merge(state)
                found[sid] = (head, batches)
        self.store.replayed = {}
        return found

    async def look_up(self, read: Callable[[], T]) -> T:
        if self._readers is None or self._loop is None:
            raise Gone("The engine is closed.", code="stream-deleted")
        return await self._loop.run_in_executor(self._readers, read)

    # -- the contract of all engines

    async def open(self) -> None:
        self._start()

    async def close(self) -> None:
        """Commit what was submitted, and let go of the files."""
        if self._writer is None or self._loop is None or self._readers is None:
            self.store.close()
            return
        await self._loop.run_in_executor(None, self._writer.stop)
        self._readers.shutdown()
        await self._loop.run_in_executor(None, self.store.close)

    async def head(self, path: str) -> Head | None:
        return (await self._whole(path))[0]

    async def _whole(self, path: str) -> tuple[Head | None, int, list[Batch]]:
        """What is at a path, up to where chunk rows have its records, and the batches that only the journal has."""
        await self._look(int)  # behind what was submitted
        head = self.heads.find(path)
        if head is None:
            return None, 0, []
        batches, states = await self._look(partial(self.store.journalled, head.sid))
        head = self.heads.find(path)  # what was sealed meanwhile is here
        if head is None or head.gone:
            return None, 0, []
        sealed = head.tail
        for state in states:
            head.state = head.state.merge(state)
        batches = [batch for batch in batches if batch.end > sealed]
        if batches:
            head.tail = batches[-1].end
            head.size += sum([batch.size for batch in batches])
        return head, sealed, batches

    async def create(self, head: Head, first: Put | None) -> Head:
        async with self._changing:
            known = await self.head(head.path)
            if known is not None:
                return known
            if self.heads.find(head.path) is not None:
                raise Conflict(
                    f"{head.path} was deleted and is kept for its forks: its name is taken.", code="stream-deleted"
                )
            await self._commit(Unit([CreateStream(head)], [first] if first is not None else []))
        self._tell([head.path])
        return await self.head(head.path) or head

    async def commit(self, puts: Sequence[Put]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        taken: list[Put] = []
        async with self._changing:
            for put in puts:
                head = await self.head(put.path)
                if head is None or head.sid != put.sid or head.tail != put.position or head.state.closed:
                    outcomes.append(TailMoved(head))
                else:
                    outcomes.append(Stored(put.position))
                    taken.append(put)
            if taken:
                await self._commit(Unit([], taken))
        self._tell([put.path for put in taken])
        return outcomes

    async def read(self, path: str, sid: int, position: int, bytes_max: int, records_max: int) -> list[Batch]:
        head, sealed, batches = await self._whole(path)
        if head is None or head.sid != sid:
            raise Gone(f"{path} is another stream now, or none.", code="stream-recreated")
        if position < head.start:
            raise Gone(f"{path} begins at {head.start}.", code="offset-expired")
        if position >= head.tail:
            return []
        if position < sealed:
            separator = b"," if head.config.is_json else b""
            return await self.look_up(lambda: self.heads.read(sid, position, bytes_max, records_max, separator))
        return batches_from(batches, position, bytes_max, records_max)

    async def find_batch(self, path: str, sid: int, position: int, id: str) -> int | None:
        """There are no names here: no answer of this engine is lost."""
        return None

    async def trim(self, path: str, sid: int, start: int) -> None:
        await self._commit(Unit([TrimStream(sid, start)]))
        self._tell([path])

    async def delete(self, path: str, sid: int) -> None:
        async with self._changing:
            head = await self.head(path)
            if head is None or head.sid != sid:
                return
            await self._commit(Unit([DeleteStream(sid, False)]))
        self._tell([path])

    async def changes(self) -> AsyncIterator[list[Change]]:
        queue: asyncio.Queue[list[Change]] = asyncio.Queue()
        self._watching.append(queue)
        try:
            after = ""
            while heads := await self.paths("", after, 1000):
                after = heads[-1].path
                yield [Change(head.path, head) for head in heads]
            yield []
            while True:
                yield await queue.get()
        finally:
            self._watching.remove(queue)

    async def paths(self, prefix: str, after: str, limit: int) -> list[Head]:
        names = self.heads.paths(prefix, after, limit)
        return [head for head in [await self.head(name) for name in names] if head is not None]

    def _tell(self, paths: Sequence[str]) -> None:
        if paths and self._watching and self._loop is not None:
            task = self._loop.create_task(self._tell_later(list(paths)))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell_later(self, paths: list[str]) -> None:
        changes = [Change(path, await self.head(path)) for path in paths]
        for queue in self._watching:
            queue.put_nowait(changes)

    async def _commit(self, unit: Unit) -> None:
        assert self._loop is not None
        own = self._own[id(unit)] = self._loop.create_future()
        self.submit(unit)
        await own

    async def _look(self, read: Callable[[], T]) -> T:
        """Read between two commits, what is in the journal included."""
        writer = self._writer
        assert writer is not None
        return await asked(lambda done: writer.call(read, done))  # type: ignore[no-any-return]
