"""``Hub``: the one place where everything is put together.

``Hub("file:./data")`` keeps its streams in a directory, ``Hub("memory:")`` nowhere. The same object is
used in process (``publish``, ``read``), mounted in an ASGI application (``asgi``), or served (``serve``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from wayside.contracts import Clock, Reader, StreamView
from wayside.errors import BadRequest, NotFound
from wayside.http.asgi import AsgiApp
from wayside.http.operations import Operations
from wayside.http.routes import Routes
from wayside.http.server import Server
from wayside.limits import Limits
from wayside.log.embedded import EmbeddedLog
from wayside.log.files import CHECKED_VFS
from wayside.model import JSON, Append, Appended, Batch, Create, Durability, Offset, Record, StreamConfig, StreamInfo

__all__ = ["Hub", "package_version"]

READ_AHEAD = 64 * 1024
"""Bytes that an in-process reader holds before its follower pauses."""


def package_version() -> str:
    """The installed version of Wayside."""
    try:
        return version("wayside")
    except PackageNotFoundError:  # pragma: no cover - run from a source tree that was never installed
        return "0"


class Hub:
    """Streams, and every way to reach them.

    ``url`` is ``file:DIRECTORY`` or ``memory:``. A directory belongs to one hub at a time; opening it
    raises :class:`~wayside.errors.StoreInUse`, ``StoreUnusable`` or ``DamagedStore``. The hub works on
    the event loop on which it was first used. ``async with hub:`` starts and closes it; started by its
    first use, it is to be closed with :meth:`close`, which commits what was accepted.
    """

    def __init__(
        self,
        url: str = "memory:",
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        vfs: str = CHECKED_VFS,
    ) -> None:
        kind, _, rest = url.partition(":")
        if kind not in ("file", "memory") or (kind == "file") != bool(rest):
            raise BadRequest(f"{url!r} is not a hub's place: use file:DIRECTORY or memory:", code="hub-url")
        self.url = url
        self.limits = limits or Limits()
        directory = Path(rest) if kind == "file" else None
        self.log = EmbeddedLog(directory, limits=self.limits, clock=clock, vfs=vfs)
        self.operations = Operations(self.log, package_version())
        self.routes = Routes(self.log, self.operations)
        self.directory = directory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Hub {self.url} {'closed' if self._closed else 'open'}>"

    # -- life

    async def start(self) -> None:
        """Begin to serve; further calls do nothing. Raises RuntimeError on another event loop, or after ``close``."""
        loop = asyncio.get_running_loop()
        if self._loop is None and not self._closed:
            self._loop = loop
            self.log.start()
            self.operations.ready = True
        elif self._closed or loop is not self._loop:
            raise RuntimeError("This hub is closed, or belongs to another event loop: make another Hub.")

    async def close(self) -> None:
        """Commit what was accepted, tell followers where to resume, close the store."""
        if not self._closed:
            self._closed = True
            self.operations.ready = False
            if self._loop is not None:
                await self.log.close()
            elif self.log.store is not None:
                self.log.store.close()

    async def __aenter__(self) -> Hub:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Any = None) -> AsyncIterator[None]:
        """For ``FastAPI(lifespan=hub.lifespan)``: a mounted application is not told when the outer one stops."""
        async with self:
            yield

    def asgi(self) -> AsgiApp:
        """The hub as an ASGI application, to mount or to run."""
        return AsgiApp(self.routes, self.limits, self.start, self.close, self.directory)

    async def serve(self, host: str = "127.0.0.1", port: int = 7070) -> Server:
        """Listen with the hub's own server; returns it once it does. Raises OSError where it cannot."""
        await self.start()
        server = Server(self.routes, self.limits, self.directory)
        self.operations.server = server
        await server.start(host, port)
        return server

    # -- in process

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
        await self.start()
        created = await _wait(lambda done: self.log.create(stream, Create(config, frozenset(explicit)), done))
        info: StreamInfo = created.info
        return info

    async def publish(self, stream: str, *records: Any, close: bool = False) -> str:
        """Append records, and return the offset after them when they are as durable as the stream promises.

        In a JSON stream each argument is one value; elsewhere each is ``bytes`` or ``str``. A stream that
        does not exist is created, as JSON. Raises a :class:`~wayside.errors.Refusal`. If the wait is
        cancelled, the records may or may not have been appended.
        """
        await self.start()
        try:
            view = self.log.find(stream)
        except NotFound:
            await self.create(stream)
            view = self.log.find(stream)
        encoded = [_encode(view, record) for record in records]
        append = Append(b"", close=close, records=encoded)
        result: Appended = await _wait(lambda done: self.log.append(stream, append, done))
        return str(result.offset)

    async def read(self, stream: str, *, offset: str = "-1", follow: bool = True) -> AsyncIterator[Record]:
        """Records from ``offset`` (``-1``: the start, ``now``: the tail) on; with ``follow``, as they come, until the
        stream is closed. Raises ``NotFound``, ``Gone`` or ``BadRequest``."""
        await self.start()
        view = self.log.find(stream)
        position = (
            view.start if offset == "-1" else view.tail if offset == "now" else view.resolve(Offset.parse(offset))
        )
        inlet = _Inlet()
        self.log.follow(view, position, _Batches(), inlet, "in-process", until=None if follow else view.tail)
        try:
            async for batch in inlet.batches():
                at = batch.position
                for record in batch.records:
                    at += 1
                    yield Record(str(view.offset(at)), record, batch.time_ms)
        finally:
            inlet.stop()

    async def close_stream(self, stream: str) -> str:
        """Nothing can be appended any more; followers end. Returns the last offset."""
        await self.start()
        result: Appended = await _wait(lambda done: self.log.append(stream, Append(b"", close=True), done))
        return str(result.offset)

    async def delete(self, stream: str) -> None:
        """Delete a stream and its records."""
        await self.start()
        await _wait(lambda done: self.log.delete(stream, done))

    async def info(self, stream: str) -> StreamInfo:
        """What a stream is now."""
        await self.start()
        return self.log.find(stream, touch=False).info()


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


async def _wait(begin: Callable[[Callable[[Any], None]], None]) -> Any:
    """Await what is told to a callback."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(result: Any) -> None:
        if future.cancelled():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    begin(done)
    return await future


class _Batches:
    """Encoding of an in-process reader: none."""

    key = "batches"
    heartbeat = None

    def encode(self, _stream: StreamView, batches: list[Batch]) -> list[Batch]:
        return batches

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None

    def end(self, _stream: StreamView, _position: int, _reason: str, _told: bool) -> None:
        return None


class _Inlet:
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

    def finish(self, _reason: str) -> None:
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
