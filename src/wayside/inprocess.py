"""Streams in the hub's own process: the methods of :class:`~wayside.hub.Hub` that need no connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import msgspec

from wayside.client.client import Client, PolicyName
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
    Durability,
    Meta,
    Offset,
    Record,
    StreamConfig,
    StreamInfo,
    require_public,
)
from wayside.streams.contract import Reader, StreamView
from wayside.streams.delayed import Delaying, Held, Item
from wayside.streams.presence import Presence, PresenceEvent, Presences
from wayside.streams.streams import Streams
from wayside.streams.union import unwrap

__all__ = ["Batches", "InProcess", "Inlet"]


READ_AHEAD = 64 * 1024
"""Bytes that an in-process reader holds before its follower pauses."""


class Batches:
    """Encoding of an in-process reader: none."""

    key = "batches"
    heartbeat = None

    def encode(self, _stream: StreamView, batches: list[Batch]) -> list[Batch]:
        return batches

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None

    def end(self, _stream: StreamView, _position: int, _reason: str, _told: bool) -> None:
        return None


class Inlet:
    """Sink of an in-process reader."""

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


class InProcess:
    """What a hub does with streams, for the program that it is part of."""

    _lent: bool

    @property
    def log(self) -> Streams:
        """What stores its streams."""
        raise NotImplementedError

    @property
    def delaying(self) -> Delaying:
        """What appends now and later."""
        raise NotImplementedError

    @property
    def present(self) -> Presence:
        """Who is present at streams."""
        raise NotImplementedError

    @property
    def client(self) -> Client:
        """The hub as its own client."""
        raise NotImplementedError

    async def start(self) -> None:
        """Begin to serve."""
        raise NotImplementedError

    async def create(
        self,
        stream: str,
        *,
        content_type: str = JSON,
        durability: Durability | Literal["fsync", "async", "memory"] | None = None,
        ttl_s: int | None = None,
        retention_bytes: int | None = None,
        retention_age_s: int | None = None,
    ) -> StreamInfo:
        """Create a stream, or find it as it is asked for. Raises :class:`~wayside.errors.Conflict` where it differs."""
        explicit = {"content_type"}
        config = StreamConfig(
            content_type=content_type,
            durability=Durability(durability) if durability else Durability.FSYNC,
            ttl_s=ttl_s,
            retention_bytes=retention_bytes,
            retention_age_s=retention_age_s,
        )
        for name, value in (
            ("durability", durability),
            ("ttl_s", ttl_s),
            ("retention_bytes", retention_bytes),
            ("retention_age_s", retention_age_s),
        ):
            if value is not None:
                explicit.add(name)
        require_public(stream)
        await self.start()
        created = await asked(lambda done: self.log.create(stream, Create(config, frozenset(explicit)), done))
        info: StreamInfo = created.info
        return info

    async def publish(
        self,
        stream: str,
        *records: Any,
        close: bool = False,
        id: str = "",
        key: str = "",
        headers: Mapping[str, str] | None = None,
        ttl: float = 0.0,
        delay: float = 0.0,
    ) -> str:
        """Append records, and return the offset after them when they are as durable as the stream promises.

        In a JSON stream each argument is one value; elsewhere each is ``bytes`` or ``str``. A stream that
        does not exist is created, as JSON. Raises a :class:`~wayside.errors.Refusal`. If the wait is
        cancelled, the records may or may not have been appended.

        ``key``, ``headers`` and ``ttl`` (seconds for which readers are given them) are of each record, ``id`` is the
        message id of one: published again with it soon, it is not appended again, and the offset is that of the first.
        With a ``delay`` in seconds they are appended later, and "" is returned when that is certain.
        """
        require_public(stream)
        await self.start()
        said = Said(id, key, dict(headers or {}), ttl, delay)
        if self._lent:
            more: dict[str, Any] = {"id": id, "key": key, "headers": headers, "ttl": ttl, "delay": delay}
            offset = await self.client.publish(stream, *records, **more) if records else ""
            if close:
                await self.client.close_stream(stream)
            return offset if offset or delay else (await self.client.info(stream))["stream-next-offset"]
        view = await self._made(stream)
        append = Append(b"", close=close, records=[_encode(view, record) for record in records])
        if said != NOTHING:
            append.meta = self.delaying.meta(said)
            if delay:
                append.content_type = view.config.content_type
                await asked(partial(self.delaying.append_later, stream, append, delay))
                return ""
        result: Appended = await asked(lambda done: self.log.append(stream, append, done))
        return str(result.offset)

    async def publish_all(self, publications: Iterable[Publication]) -> list[Published]:
        """Append records to several streams in one transaction: all of them, or none. Streams that do not exist are created
        first, as JSON. Returns what became of each. Raises a :class:`~wayside.errors.Refusal`."""
        publications = list(publications)
        for publication in publications:
            require_public(publication.stream)
        await self.start()
        if self._lent:
            return await self.client.publish_all(publications)
        items: list[Item] = []
        for publication in publications:
            record = _encode(await self._made(publication.stream), publication.data)
            append = Append(b"", records=[record], meta=self.delaying.meta(publication.said))
            items.append(Item(publication.stream, append, publication.delay))
        results: list[Appended | Held] = await asked(partial(self.delaying.append_all, items))
        return [
            Published("", result.duplicate, rfc3339(result.due_ms))
            if isinstance(result, Held)
            else Published(str(result.offset), result.duplicate)
            for result in results
        ]

    async def _made(self, stream: str) -> StreamView:
        """The stream, which is made as JSON where there is none."""
        try:
            return self.log.find(stream)
        except NotFound:
            await self.create(stream)
            return self.log.find(stream)

    async def read(
        self,
        stream: str,
        *,
        offset: str = "-1",
        follow: bool = True,
        policy: PolicyName = "catch-up",
        key: str = "",
        interval: float = 0.0,
        lag: int = 0,
        member: str = "",
    ) -> AsyncIterator[Record]:
        """Records from ``offset`` (``-1``: the start, ``now``: the tail) on; with ``follow``, as they come, until the
        stream is closed; ``policy`` and ``member`` as of :meth:`wayside.client.client.Client.read`. A glob such as ``orders/**`` reads all
        streams that it matches: each record says its ``stream``. Raises ``NotFound``, ``Gone``,
        ``Lagged`` or ``BadRequest``."""
        await self.start()
        if self._lent:
            records = self.client.read(
                stream, offset, follow=follow, policy=policy, key=key, interval=interval, lag=lag, member=member
            )
            async for theirs in records:
                yield theirs
            return
        globbed = is_glob(stream)
        view: StreamView = self.log.find(stream) if not globbed else await asked(partial(self.log.union, Glob(stream)))
        position = (
            view.start if offset == "-1" else view.tail if offset == "now" else view.resolve(Offset.parse(offset))
        )
        chosen = policy_of(policy, key or None, str(interval) if interval else None, str(lag) if lag else None)
        if chosen is not None:
            chosen.require_fit(is_json=view.config.is_json, follows=True)
        ended = self._enter(stream, member) if member else None
        inlet = Inlet()
        until = None if follow else view.tail
        self.log.follow(view, position, Batches(), inlet, "in-process", until=until, policy=chosen, ended=ended)
        try:
            async for batch in inlet.batches():
                metas = batch.meta or {}
                for index, record in enumerate(batch.records):
                    offset = str(view.offset(batch.position + index + 1))
                    yield _record(offset, record, batch.time_ms, globbed, metas.get(index))
        finally:
            inlet.stop()

    def _enter(self, stream: str, member: str) -> Callable[[], None]:
        """A member reads; returns how it ends."""
        if is_glob(stream):
            raise BadRequest(f"Presence is of one stream, and {stream!r} is a glob.", code="glob-member")
        stay = self.present.stay(stream, member)
        stay.renew("in-process")
        return stay.hold("in-process")

    async def presence(self, stream: str) -> Presences:
        """Who is present at a stream: :meth:`wayside.client.client.Client.presence`."""
        await self.start()
        return await self.client.presence(stream)

    async def presence_events(self, stream: str, offset: str = "-1") -> AsyncIterator[PresenceEvent]:
        """Joins and leaves at a stream: :meth:`wayside.client.client.Client.presence_events`."""
        await self.start()
        async for event in self.client.presence_events(stream, offset):
            yield event

    async def close_stream(self, stream: str) -> str:
        """Nothing can be appended any more; followers end. Returns the last offset."""
        require_public(stream)
        await self.start()
        result: Appended = await asked(lambda done: self.log.append(stream, Append(b"", close=True), done))
        return str(result.offset)

    async def delete(self, stream: str) -> None:
        """Delete a stream and its records."""
        require_public(stream)
        await self.start()
        await asked(lambda done: self.log.delete(stream, done))

    async def info(self, stream: str) -> StreamInfo:
        """What a stream is now."""
        await self.start()
        return self.log.find(stream, touch=False).info()


def _record(offset: str, data: bytes, time_ms: int, wrapped: bool, meta: Meta | None) -> Record:
    stream = ""
    if wrapped:
        stream, _, data, meta = unwrap(data)
    if meta is None:
        return Record(offset, data, time_ms, stream)
    return Record(offset, data, time_ms, stream, meta.headers, meta.id, meta.key)


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
