"""A reader in the hub's own process: a follower whose records are taken by a coroutine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from wayside.contracts import Reader, StreamView
from wayside.errors import Lagged
from wayside.model import Batch

__all__ = ["Batches", "Inlet"]

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
