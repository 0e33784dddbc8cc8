"""Reading and writing streams in the hub's own process, without a connection: values in, records out.

It does not know whether a path may be used by whoever asks, nor that a hub may stand for another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from wayside.core.callbacks import asked
from wayside.core.errors import BadRequest, Lagged, NotFound
from wayside.core.globs import Glob, is_glob
from wayside.core.metadata import NOTHING, Publication, Published, Said, rfc3339
from wayside.core.policies import policy_of
from wayside.core.records import (
    JSON,
    Append,
    Appended,
    Batch,
    Create,
    Created,
    Record,
    StreamConfig,
    StreamInfo,
    start_position,
)
from wayside.streams.contract import Log, Reader, StreamView
from wayside.streams.delayed import Delaying, Held, Item
from wayside.streams.presence import Presence
from wayside.streams.union import unwrap

__all__ = ["Batches", "InProcess", "Inlet", "RecordReader"]


READ_AHEAD = 64 * 1024
"""Bytes that an in-process reader holds before its follower pauses."""


class Batches:
    """The encoding of a reader in process: none."""

    key = "batches"
    heartbeat = None

    def encode(self, _stream: StreamView, batches: list[Batch]) -> list[Batch]:
        return batches

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None

    def end(self, _stream: StreamView, _position: int, _reason: str, _told: bool) -> None:
        return None


class Inlet:
    """The sink of a reader in process: it holds some batches, and pauses its follower."""

    def __init__(self) -> None:
        self.paused = False
        self._reader: Reader | None = None
        self._held: deque[Batch] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    @property
    def send(self) -> Callable[[list[Batch]], int | None]:
        return self.write

    def queue(self, frame: list[Batch], sent: int) -> None:
        raise AssertionError("write takes everything")

    def attach(self, reader: Reader) -> None:
        self._reader = reader

    def write(self, batches: list[Batch]) -> None:
        self._held.extend(batches)
        self._size += sum(batch.size for batch in batches)
        if self._size > READ_AHEAD and not self.paused:
            self.paused = True
            if self._reader is not None:
                self._reader.pause()
        self._changed.set()

    def finish(self, reason: str) -> None:
        if reason == "lagged":
            self._error = Lagged("This reader was too far behind. Read on from its last offset, or afresh from now.")
        self._ended = True
        self._changed.set()

    def abort(self, error: Exception) -> None:
        self._error = error
        self._changed.set()

    def stop(self) -> None:
        if self._reader is not None:
            self._reader.stop()

    async def batches(self) -> AsyncIterator[Batch]:
        while True:
            while self._held:
                batch = self._held.popleft()
                self._size -= batch.size
                if self.paused and self._size <= READ_AHEAD // 4:
                    self.paused = False
                    if self._reader is not None:
                        self._reader.pump()
                yield batch
            if self._error is not None:
                raise self._error
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()


class RecordReader:
    """One reader. ``globbed``: its stream is a glob, and each record says its own stream."""

    def __init__(self, view: StreamView, globbed: bool) -> None:
        self.inlet = Inlet()
        self._view = view
        self._globbed = globbed

    def batches(self) -> AsyncIterator[Batch]:
        """What comes, until the stream is closed or all is read. Raises ``Lagged``, and what ends the stream."""
        return self.inlet.batches()

    def record(self, batch: Batch, index: int) -> Record:
        """A record of a batch, as the program is given it."""
        offset, data = str(self._view.offset(batch.position + index + 1)), batch.records[index]
        stream, meta = "", None if batch.meta is None else batch.meta.get(index)
        if self._globbed:
            stream, _, data, meta = unwrap(data)
        if meta is None:
            return Record(offset, data, batch.time_ms, stream)
        return Record(offset, data, batch.time_ms, stream, meta.headers, meta.id, meta.key)

    def stop(self) -> None:
        """Nobody reads any more."""
        self.inlet.stop()


class InProcess:
    """The streams of ``log``, for the program that the hub is part of."""

    def __init__(self, log: Log, delaying: Delaying, presence: Presence) -> None:
        self._log = log
        self._delaying = delaying
        self._presence = presence

    async def create(self, stream: str, config: StreamConfig, stated: Iterable[str]) -> StreamInfo:
        """Create a stream, or find it: what is ``stated`` of its configuration has to be as it is."""
        create = Create(config, frozenset(stated))
        created: Created = await asked(lambda done: self._log.create(stream, create, done))
        return created.info

    async def publish(self, stream: str, records: Sequence[Any], said: Said, close: bool) -> str:
        """Append values; returns the offset after them once they are as durable as the stream promises, and "" for those
        that are appended later. A stream that does not exist is created, as JSON."""
        try:
            view: StreamView = self._log.find(stream)
        except NotFound:
            view = await self._make(stream)
        append = Append(b"", close=close, records=[_encode(view, record) for record in records])
        if said != NOTHING:
            append.meta = self._delaying.meta(said)
            if said.delay_s:
                append.content_type = view.config.content_type
                await asked(partial(self._delaying.append_later, stream, append, said.delay_s))
                return ""
        appended: Appended = await asked(lambda done: self._log.append(stream, append, done))
        return str(appended.offset)

    async def publish_all(self, publications: Iterable[Publication]) -> list[Published]:
        """Append values to several streams in one transaction; those that do not exist are created first, as JSON."""
        items: list[Item] = []
        for publication in publications:
            try:
                view: StreamView = self._log.find(publication.stream)
            except NotFound:
                view = await self._make(publication.stream)
            append = Append(b"", records=[_encode(view, publication.data)], meta=self._delaying.meta(publication.said))
            items.append(Item(publication.stream, append, publication.delay))
        results: list[Appended | Held] = await asked(partial(self._delaying.append_all, items))
        return [
            Published("", result.duplicate, rfc3339(result.due_ms))
            if isinstance(result, Held)
            else Published(str(result.offset), result.duplicate)
            for result in results
        ]

    async def close(self, stream: str) -> str:
        """Nothing can be appended any more. Returns the last offset."""
        closed: Appended = await asked(lambda done: self._log.append(stream, Append(b"", close=True), done))
        return str(closed.offset)

    async def delete(self, stream: str) -> None:
        """Delete a stream and its records."""
        await asked(lambda done: self._log.delete(stream, done))

    def info(self, stream: str) -> StreamInfo:
        """What a stream is now."""
        return self._log.find(stream, touch=False).info()

    async def read(
        self,
        stream: str,
        offset: str,
        *,
        follow: bool,
        policy: str,
        key: str,
        interval: float,
        lag: int,
        member: str,
    ) -> RecordReader:
        """Begin to read; whoever asks stops it. Raises ``NotFound``, ``Gone`` or ``BadRequest``."""
        log, globbed = self._log, is_glob(stream)
        view: StreamView = log.find(stream) if not globbed else await asked(partial(log.union, Glob(stream)))
        position = start_position(view, offset)
        chosen = policy_of(policy, key or None, str(interval) if interval else None, str(lag) if lag else None)
        if chosen is not None:
            chosen.require_fit(is_json=view.config.is_json, follows=True)
        left = self._enter(stream, member) if member else None
        reading = RecordReader(view, globbed)
        until = None if follow else view.tail
        log.follow(view, position, Batches(), reading.inlet, "in-process", until=until, policy=chosen, ended=left)
        return reading

    def _enter(self, stream: str, member: str) -> Callable[[], None]:
        """A member reads; returns how it ends."""
        if is_glob(stream):
            raise BadRequest(f"Presence is of one stream, and {stream!r} is a glob.", code="glob-member")
        stay = self._presence.stay(stream, member)
        stay.renew("in-process")
        return stay.hold("in-process")

    async def _make(self, stream: str) -> StreamView:
        """A stream that there was none of, as JSON."""
        await self.create(stream, StreamConfig(JSON), {"content_type"})
        return self._log.find(stream)


def _encode(stream: StreamView, record: Any) -> bytes:
    if stream.config.is_json:
        return msgspec.json.encode(record)
    if not isinstance(record, str | bytes | bytearray | memoryview):
        raise BadRequest(
            f"{stream.path} is {stream.config.content_type}: publish bytes or str, not {type(record).__name__}."
        )
    data = record.encode() if isinstance(record, str) else bytes(record)
    if not data:
        raise BadRequest("A record is empty: there is nothing to append.", code="empty-append")
    return data
