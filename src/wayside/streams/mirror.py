"""What an engine that is waited for has, as this hub knows it: kept up to date by the engine's feed of changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from wayside.core.engine import Engine, Head
from wayside.streams.catalog import Directory
from wayside.streams.stream import Stream

__all__ = ["Mirror"]

AGAIN_S = 0.5
"""How soon a feed that broke off is begun anew."""

_log = structlog.get_logger("wayside.streams")


class Mirror:
    """Keeps ``directory`` as the engine is. ``busy`` says whether something of a stream is on its way there: what the feed
    tells of it may be just that, and is looked at when the answer has come."""

    def __init__(self, engine: Engine, directory: Directory, busy: Callable[[Stream], bool]) -> None:
        self._engine = engine
        self._directory = directory
        self._busy = busy
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

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _follow(self) -> None:
        await self._engine.open()
        while True:
            try:
                await self._take()
            except Exception as error:
                _log.warning("engine-feed-broken", error=str(error))
            await asyncio.sleep(AGAIN_S)

    async def _take(self) -> None:
        listed: set[str] | None = set()
        async for changes in self._engine.changes():
            for path, head in changes:
                if listed is not None:
                    listed.add(path)
                stream = self._directory.streams.get(path)
                if stream is None or not self._busy(stream):
                    self.adopt(path, head)
                else:
                    self._news.add(path)
            if not changes and listed is not None:
                for stream in list(self._directory.streams.values()):
                    if stream.awaited and stream.path not in listed and not self._busy(stream):
                        self.retire(stream)  # deleted while nobody told us
                listed = None
                self._known.set()

    def has_news(self, stream: Stream) -> bool:
        """Whether the feed told of a stream while something was on its way there; then it is to be asked for."""
        if stream.path not in self._news:
            return False
        self._news.discard(stream.path)
        return True

    def adopt(self, path: str, head: Head | None) -> Stream | None:
        """Take what is at a path; returns the stream."""
        stream = self._directory.streams.get(path)
        if stream is not None and not stream.awaited:
            return stream
        if stream is not None and (head is None or head.sid != stream.sid):
            self.retire(stream)
            stream = None
        if head is None:
            return None
        if stream is not None:
            stream.advance(head)
            return stream
        stream = self._directory.new(head, None)
        self._directory.enter(stream)
        self._directory.count += 1
        stream.tell()
        return stream

    def retire(self, stream: Stream) -> None:
        """A stream is no more."""
        if self._directory.streams.get(stream.path) is stream:
            self._directory.count -= 1
            self._directory.let_go(stream)
            stream.gone = stream.deleted = True
            stream.retire()
