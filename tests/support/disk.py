"""A log on a directory: a gate before its disk, a restart, a crash."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.embedded import embedded, store_of
from tests.support.waiting import PATIENCE_S
from wayside.core.errors import StoreFull
from wayside.core.limits import Limits
from wayside.streams.streams import Streams
from wayside.testing import ManualClock


class Gate:
    """Stands between a log's writer and its disk. Shut, it holds commits back; ``let`` passes some."""

    def __init__(self, log: Streams) -> None:
        store = store_of(log)
        assert store is not None
        self._waiting = False
        self._commit = store.commit
        self._maintain = store.maintain
        self._changed = threading.Condition()
        self._permits: int | None = None
        self._answered = self._reported = 0
        self.full = 0
        """How many of the next commits find the disk full; -1: all."""
        for name, method in (("commit", self._wait), ("maintain", self._rest)):
            setattr(store, name, method)

    def _wait(self, unit: Any) -> Any:
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            passes = self._changed.wait_for(lambda: self._permits is None or self._permits > 0, PATIENCE_S)
            self._waiting = False
            assert passes, "nobody opened the gate"
            if self._permits is not None:
                self._permits -= 1
        if self.full:
            self.full -= 1
            self._answered += 1
            raise StoreFull("There is no room on the disk, says the test.")
        outcome = self._commit(unit)
        self._answered += 1
        return outcome

    def _rest(self) -> None:
        """The writer does this when it has reported a commit to the event loop."""
        self._maintain()
        with self._changed:
            self._reported = self._answered
            self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._permits = 0

    async def reached(self) -> None:
        """Wait until a commit stands before the gate, which is shut."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self._waiting, PATIENCE_S)

        assert await asyncio.to_thread(wait), "there was nothing to commit"

    def let(self, commits: int = 1) -> None:
        """Let that many commits pass, and block this thread until they are reported."""
        with self._changed:
            self._permits = (self._permits or 0) + commits
            wanted = self._reported + commits
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._reported >= wanted, PATIENCE_S), "there was nothing to commit"

    def open(self) -> None:
        with self._changed:
            self._permits = None
            self._changed.notify_all()


class Disk:
    """A log on a directory, which can be closed, or crash: opened again from what its files held at that moment."""

    def __init__(self, root: Path, *, limits: Limits | None = None, clock: ManualClock | None = None) -> None:
        self._root = root
        self._lives = 0
        self._limits = limits
        self._crashed: list[Streams] = []
        self._gates: list[Gate] = []
        self._idle = threading.Lock()
        self.clock = clock or ManualClock()
        self.directory = root / "life-0"
        self.log = self._open()

    def _open(self) -> Streams:
        log = embedded(self.directory, limits=self._limits, clock=self.clock)
        log.start()
        store = store_of(log)
        assert store is not None
        for name in ("commit", "maintain"):  # so that a copy is never taken in the middle of either
            setattr(store, name, self._whole(getattr(store, name)))
        return log

    def _whole(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with self._idle:
                return method(*arguments)

        return run

    def gate(self) -> Gate:
        """A gate before the disk of this life."""
        gate = Gate(self.log)
        self._gates.append(gate)
        return gate

    async def restart(self, limits: Limits | None = None) -> Streams:
        """Stop in order, and open the same directory: with other limits if they are given."""
        await self.log.close()
        return self.reopen(limits)

    def reopen(self, limits: Limits | None = None) -> Streams:
        """Open the directory of a log that has been closed."""
        self._limits = limits or self._limits
        self.log = self._open()
        return self.log

    async def crash(self) -> Streams:
        """Open a copy of the files as they are at this moment; the log that wrote them has no say any more."""
        self._lives += 1
        copy = self._root / f"life-{self._lives}"
        with self._idle:
            shutil.copytree(self.directory, copy, ignore=shutil.ignore_patterns("*-shm"))
        self._crashed.append(self.log)
        self.directory = copy
        self.log = self._open()
        return self.log

    async def close_crashed(self) -> None:
        """Let go of the logs that have no say any more; their gates, if any, must be open."""
        crashed, self._crashed = self._crashed, []
        for log in crashed:
            async with asyncio.timeout(PATIENCE_S):
                await log.close()

    async def close(self) -> None:
        for gate in self._gates:
            gate.full = 0
            gate.open()
        async with asyncio.timeout(PATIENCE_S):
            await self.log.close()
        await self.close_crashed()
