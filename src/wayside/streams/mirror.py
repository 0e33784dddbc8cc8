"""What an engine that is waited for has, as this hub knows it: kept up to date by the engine's feed of changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from wayside.core.callbacks import being_cancelled
from wayside.core.clock import Clock
from wayside.core.engine import Engine, Head
from wayside.streams.catalog import Catalog
from wayside.streams.stream import Stream

__all__ = ["Mirror"]

AGAIN_S = 0.5
"""How soon a feed that broke off is begun anew."""

_log = structlog.get_logger("wayside.streams")


class Mirror:
    """Keeps ``catalog`` as the engine is. ``busy`` says whether something of a stream is on its way there: what the feed
    tells of it may be just that, and is looked at when the answer has come. The feed may be late: that a stream is gone,
    new, or another, it only suggests, and ``ask`` is called with the path, to have the engine asked."""

    def __init__(
        self,
        engine: Engine,
        catalog: Catalog,
        clock: Clock,
        busy: Callable[[Stream], bool],
        ask: Callable[[str], object],
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._clock = clock
        self._busy = busy
        self._ask = ask
        self._task: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        self._news: set[str] = set()
        """Paths that the feed told of while something was on its way there."""

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def ready(self) -> None:
        """Wait for what the engine has. Raises what the engine raises when it is opened."""
        assert self._task is not None
        known = asyncio.ensure_future(self._known.wait())
        try:
            await asyncio.wait([known, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            known.cancel()
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Follow no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self) -> None:
        await self._engine.open()
        while True:
            try:
                await self._take()
            except (Exception, asyncio.CancelledError) as error:
                if not self._known.is_set() or being_cancelled():
                    raise
                _log.warning("engine-feed-broken", error=str(error))
            await asyncio.sleep(AGAIN_S)

    async def _take(self) -> None:
        listed: set[str] | None = set()
        async for changes in self._engine.changes():
            for path, head in changes:
                if listed is not None:
                    listed.add(path)
                stream = self._catalog.streams.get(path)
                known = stream.sid if stream is not None else None
                told = head.sid if head is not None else None
                if known == told or (stream is None and listed is not None):
                    self.adopt(path, head)
                elif stream is None or stream.awaited:
                    self._ask(path)
            if not changes and listed is not None:
                for stream in list(self._catalog.streams.values()):
                    if stream.awaited and stream.path not in listed:
                        self._ask(stream.path)  # deleted while nobody told us, or made just now
                listed = None
                self._known.set()

    def has_news(self, stream: Stream) -> bool:
        """Whether the feed told of a stream while something was on its way there; then it is to be asked for."""
        if stream.path not in self._news:
            return False
        self._news.discard(stream.path)
        return True

    def adopt(self, path: str, head: Head | None, *, between: bool = False) -> Stream | None:
        """Take what is at a path; returns the stream. While something of it is on its way, what is told of it may be just
        that: it is asked for again afterwards, unless this is ``between`` two of its batches."""
        stream = self._catalog.streams.get(path)
        if stream is not None and not stream.awaited:
            return stream
        if stream is not None and (head is None or head.sid != stream.sid):
            self.retire(stream)
            stream = None
        if head is None:
            return None
        if stream is not None:
            if not between and self._busy(stream):
                self._news.add(path)
                return stream
            held = stream.cached_bytes
            if stream.advance(head):
                self._used(stream)
            self._catalog.charge(stream, stream.cached_bytes - held)
            return stream
        stream = self._catalog.new(head, None)
        self._used(stream)
        self._catalog.enter(stream)
        self._catalog.count += 1
        stream.tell()
        return stream

    def _used(self, stream: Stream) -> None:
        """It has its time to live again."""
        if stream.config.ttl_s is not None:
            stream.deadline_ms = self._clock.wall_ms() + stream.config.ttl_s * 1000

    def note(self, path: str) -> None:
        """Something may have changed there: it is asked for when nothing is on its way."""
        self._news.add(path)

    def retire(self, stream: Stream) -> None:
        """A stream is no more."""
        self._news.discard(stream.path)
        if self._catalog.streams.get(stream.path) is stream:
            self._catalog.count -= 1
            self._catalog.let_go(stream)
            stream.gone = stream.deleted = True
            stream.retire()
