"""The memory engine: streams in this process, gone with it.

It is the smallest thing that keeps the contract of all engines, and answers as those do that are reached over a network:
later, and with other writers beside. A hub at ``memory:`` asks it for nothing: records of streams with durability
``memory``, which there all streams have, are held by the hub that made them, whatever its engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from wayside.core.engine import Abilities, Change, Head, Outcome, Put, Stored, TailMoved
from wayside.core.errors import Gone
from wayside.core.records import Batch, batches_from

__all__ = ["MemoryEngine"]


IDS_MAX = 1000
"""Names of the last batches of a stream: who asks for one was not answered just now."""


class _Kept(NamedTuple):
    head: Head
    batches: list[Batch]
    ids: dict[str, int]
    """Where each batch that has a name begins."""


class MemoryEngine:
    """What is at each path, in dictionaries."""

    def __init__(self) -> None:
        self.abilities = Abilities(durable=False, exclusive=False, atomic=False, forks=False)
        self._kept: dict[str, _Kept] = {}
        self._watching: list[asyncio.Queue[list[Change]]] = []

    def __repr__(self) -> str:
        return f"<MemoryEngine {len(self._kept)} streams>"

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """What it has stays: another hub may use it."""

    async def head(self, path: str) -> Head | None:
        kept = self._kept.get(path)
        return replace(kept.head) if kept is not None else None

    async def create(self, head: Head, first: Put | None) -> Head:
        await asyncio.sleep(0)
        kept = self._kept.get(head.path)
        if kept is None:
            kept = self._kept[head.path] = _Kept(replace(head), [], {})
            if first is not None:
                self._append(kept, first)
            self.tell([head.path])
        return replace(kept.head)

    async def commit(self, puts: Sequence[Put]) -> list[Outcome]:
        await asyncio.sleep(0)
        outcomes: list[Outcome] = []
        for put in puts:
            kept = self._kept.get(put.path)
            if kept is None or kept.head.sid != put.sid or kept.head.tail != put.position or kept.head.state.closed:
                outcomes.append(TailMoved(replace(kept.head) if kept is not None else None))
            else:
                outcomes.append(Stored(self._append(kept, put)))
        self.tell([put.path for put, outcome in zip(puts, outcomes, strict=True) if type(outcome) is Stored])
        return outcomes

    def place(self, head: Head) -> int:
        """Where the next batch of a stream is to begin."""
        return head.tail

    def _append(self, kept: _Kept, put: Put) -> int:
        head, position = kept.head, self.place(kept.head)
        if put.records:
            kept.batches.append(Batch(position, put.time_ms, put.records, put.size, put.meta))
            head.tail = position + len(put.records)
            head.size += put.size
        if put.state is not None:
            head.state = head.state.merge(put.state)
        if put.id:
            kept.ids[put.id] = position
            if len(kept.ids) > IDS_MAX:
                del kept.ids[next(iter(kept.ids))]
        return position

    async def read(self, path: str, sid: int, position: int, bytes_max: int, records_max: int) -> list[Batch]:
        await asyncio.sleep(0)
        kept = self._kept.get(path)
        if kept is None or kept.head.sid != sid:
            raise Gone(f"{path} is another stream now, or none.", code="stream-recreated")
        if position < kept.head.start:
            raise Gone(f"{path} begins at {kept.head.start}.", code="offset-expired")
        return batches_from(kept.batches, position, bytes_max, records_max)

    async def find_batch(self, path: str, sid: int, position: int, id: str) -> int | None:
        kept = self._kept.get(path)
        return kept.ids.get(id) if kept is not None and kept.head.sid == sid else None

    async def trim(self, path: str, sid: int, start: int) -> None:
        kept = self._kept.get(path)
        if kept is not None and kept.head.sid == sid:
            gone = [batch for batch in kept.batches if batch.end <= start]
            del kept.batches[: len(gone)]
            kept.head.size -= sum([batch.size for batch in gone])
            kept.head.start = max(kept.head.start, gone[-1].end if gone else 0)
            self.tell([path])

    async def delete(self, path: str, sid: int) -> None:
        await asyncio.sleep(0)
        kept = self._kept.get(path)
        if kept is not None and kept.head.sid == sid:
            del self._kept[path]
            self.tell([path])

    async def changes(self) -> AsyncIterator[list[Change]]:
        queue: asyncio.Queue[list[Change]] = asyncio.Queue()
        self._watching.append(queue)
        try:
            if self._kept:
                yield [Change(path, replace(kept.head)) for path, kept in self._kept.items()]
            yield []
            while True:
                yield await queue.get()
        finally:
            self._watching.remove(queue)

    async def paths(self, prefix: str, after: str, limit: int) -> list[Head]:
        names = sorted(path for path in self._kept if path.startswith(prefix) and path > after)
        return [replace(self._kept[name].head) for name in names[:limit]]

    def tell(self, paths: Sequence[str]) -> None:
        """Tell those who follow its changes of these paths."""
        changes = [Change(path, replace(self._kept[path].head) if path in self._kept else None) for path in paths]
        if changes:
            for queue in self._watching:
                self.send(queue, changes)

    def send(self, queue: asyncio.Queue[list[Change]], changes: list[Change]) -> None:
        """Tell one of them."""
        queue.put_nowait(changes)
