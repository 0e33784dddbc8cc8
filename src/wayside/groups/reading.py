"""How a group reads the streams that it delivers: by partition, from memory at once, from the disk in the background.

It also has retention keep what is outstanding. What is delivered of what it reads, and to whom, it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from wayside.core.callbacks import report
from wayside.core.errors import Gone, NotFound, Refusal
from wayside.core.records import Batch, Meta, Offset
from wayside.groups.state import Partition
from wayside.streams.contract import Log, StreamView

__all__ = ["Reading", "Single", "identity_of"]

FETCHES_MAX = 64
"""Reads from the disk under way for one group."""
FETCHED_MAX = 1024
"""Single records that were read and not yet delivered."""
HELD_MAX = 64
"""Partitions of which records were read and not yet delivered."""
FAILED_S = 1.0
"""How soon a read that failed is tried again."""


def identity_of(stream: StreamView) -> int:
    """What tells a stream from another that had its path before: the epoch that it was made in."""
    return stream.lineage[0][1]


class Single(NamedTuple):
    """One record."""

    data: bytes
    time_ms: int
    meta: Meta | None


class Reading:
    """Reads for one group; ``wake`` is called when there is something that was not there before."""

    def __init__(self, log: Log, wake: Callable[[], None]) -> None:
        self._log = log
        self._wake = wake
        self.fetched: dict[int, tuple[int, list[Batch]]] = {}
        """What was read from the disk, by partition: from which position on, and what was there."""
        self.singles: dict[tuple[int, int], Single | None] = {}
        """Records that were read from the disk, by partition and position; None: it is not there any more."""
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._holds: dict[int, Callable[[], None]] = {}
        """How retention is told that it may let go, by partition."""

    def __repr__(self) -> str:
        return f"<Reading {len(self.fetched)} partitions, {len(self.singles)} records, {len(self._tasks)} under way>"

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self.fetched.clear()
        self.singles.clear()
        for release in self._holds.values():
            release()
        self._holds.clear()

    @property
    def busy(self) -> bool:
        """Whether the disk has been asked for something, and has not answered."""
        return bool(self._tasks)

    # -- retention

    def hold(self, partition: Partition) -> None:
        """Have retention let go of nothing that is outstanding in a partition, as long as anything is."""
        number = partition.number
        if partition.leased or partition.waiting or partition.parked:
            if number not in self._holds and (stream := self.find(partition)) is not None:
                self._holds[number] = stream.hold(partition.lowest)
        elif (release := self._holds.pop(number, None)) is not None:
            release()

    # -- records

    def forget(self, number: int) -> None:
        """Nothing of a partition is outstanding any more, and what was read of it is of no use."""
        if (release := self._holds.pop(number, None)) is not None:
            release()
        self.fetched.pop(number, None)
        for at in [at for at in self.singles if at[0] == number]:
            del self.singles[at]
        for at in [at for at in self._tasks if at[0] == number]:
            self._tasks.pop(at).cancel()

    def prune(self, number: int, position: int) -> None:
        """What was read of a partition is of use from a position on only."""
        held = self.fetched.get(number)
        if held is not None and held[1][-1].end <= position:
            del self.fetched[number]

    def at(self, path: str) -> StreamView | None:
        """The stream that is at a path now."""
        try:
            return self._log.find(path, touch=False)
        except Refusal:
            return None

    def find(self, partition: Partition) -> StreamView | None:
        """The stream of a partition, if there is one, and not another at its path."""
        try:
            stream = self._log.find(partition.path, touch=False)
        except Refusal:
            return None
        return stream if stream.lineage[0][1] == partition.epoch else None  # as identity_of has it: this is asked often

    def batches(self, partition: Partition, stream: StreamView) -> list[Batch] | None:
        """What comes next; None where the disk has it, and has been asked."""
        position = partition.next
        held = self.fetched.get(partition.number)
        if held is not None and held[0] <= position < held[1][-1].end:
            return [batch.since(position) for batch in held[1] if batch.end > position]
        self.fetched.pop(partition.number, None)
        found = stream.read_nowait(position, self._log.limits.read_bytes_max)
        if found is None and len(self.fetched) + len(self._tasks) < HELD_MAX:
            self._fetch((partition.number, -1), self._fetch_batches(partition, stream, position))
        return found

    def single(self, partition: Partition, position: int, copy: tuple[str, str] | None = None) -> Single | bool:
        """One record; False where it is not there any more, True where the disk has been asked for it, or it is still on its
        way there."""
        at = (partition.number, position)
        if at in self.singles:
            return self.singles.pop(at) or False
        stream = self.find(partition)
        if stream is not None and position >= stream.tail:
            stream.wait(self._wake)
            return True
        try:
            found = stream.read_nowait(position, 1) if stream is not None else []
        except Refusal:
            found = []
        if found:
            return _single(found, position) or False
        if found is None or copy is not None:
            if len(self.singles) < FETCHED_MAX:
                self._fetch(at, self._fetch_single(partition, position, copy))
            return True
        return False

    def _fetch(self, at: tuple[int, int], reading: Any) -> None:
        if at in self._tasks or len(self._tasks) >= FETCHES_MAX:
            reading.close()
            return
        task = self._tasks[at] = asyncio.get_running_loop().create_task(reading)

        def done(task: asyncio.Task[None]) -> None:
            if self._tasks.get(at) is task:
                del self._tasks[at]
                self._wake()

        task.add_done_callback(done)

    async def _fetch_batches(self, partition: Partition, stream: StreamView, position: int) -> None:
        try:
            batches = await stream.read(position, self._log.limits.read_bytes_max)
        except Gone:
            return  # whoever looks again is told
        except Exception as error:
            if not isinstance(error, Refusal):
                report(error, self._fetch_batches)
            await asyncio.sleep(FAILED_S)  # then it is tried again
            return
        if batches:
            self.fetched[partition.number] = position, batches

    async def _fetch_single(self, partition: Partition, position: int, copy: tuple[str, str] | None) -> None:
        at = (partition.number, position)
        for path, where in ((partition.path, position), (copy[0], Offset.parse(copy[1])) if copy else (None, None)):
            if path is None or where is None:
                continue
            try:
                if isinstance(where, int):
                    stream, place = self.find(partition), where
                else:
                    stream = self._log.find(path, touch=False)
                    place = stream.resolve(where) - 1
                found = _single(await stream.read(place, 1), place) if stream is not None else None
            except (Gone, NotFound):
                continue
            except Exception as error:
                if not isinstance(error, Refusal):
                    report(error, self._fetch_single)
                await asyncio.sleep(FAILED_S)  # it may be there all the same: then it is tried again
                return
            if found is not None:
                self.singles[at] = found
                return
        self.singles[at] = None


def _single(batches: list[Batch], position: int) -> Single | None:
    first = batches[0] if batches else None
    if first is None or not first.records or first.position != position:
        return None
    return Single(first.records[0], first.time_ms, first.meta.get(0) if first.meta else None)
