"""The writer thread: takes one unit at a time from the event loop, commits it, reports back, tidies up."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from wayside.core.engine import Committed, Unit
from wayside.core.errors import Refusal, StoreFailed
from wayside.storage.embedded.store import Store

OnCommit = Callable[[Unit, Committed | Refusal, float], None]


class Writer:
    """Owns ``store.commit`` and ``store.maintain``. ``on_commit`` is called on the event loop with the unit, what became
    of it, and the seconds it took."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, on_commit: OnCommit) -> None:
        self._store = store
        self._loop = loop
        self._on_commit = on_commit
        self._units: queue.SimpleQueue[Unit | tuple[Callable[[], object], Callable[[Any], None]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="wayside-writer", daemon=True)
        self._thread.start()

    def submit(self, unit: Unit) -> None:
        self._units.put(unit)

    def call(self, read: Callable[[], object], done: Callable[[Any], None]) -> None:
        """Call ``read`` between two commits; ``done`` gets, on the event loop, what it returned or raised."""
        self._units.put((read, done))

    def stop(self) -> None:
        """Finish what was submitted and end; blocks until then."""
        self._units.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                unit = self._units.get(timeout=0.05 if self._store.has_garbage else None)
            except queue.Empty:
                self._maintain()
                continue
            if unit is None:
                return
            if isinstance(unit, tuple):
                self._read(*unit)
                continue
            began = time.perf_counter()
            outcome: Committed | Refusal
            try:
                outcome = self._store.commit(unit)
            except Refusal as refusal:
                outcome = refusal
            except Exception as error:
                self._store.failed = (
                    f"The writer stopped on an error of its own: {error!r}. Restart the hub and report it."
                )
                outcome = StoreFailed(self._store.failed)
                outcome.__cause__ = error
            try:
                self._loop.call_soon_threadsafe(self._on_commit, unit, outcome, time.perf_counter() - began)
            except RuntimeError:
                return  # the loop is closed: nobody is left to be told
            del unit, outcome  # or the file of a spooled body would be held until the next commit
            self._maintain()

    def _read(self, read: Callable[[], object], done: Callable[[Any], None]) -> None:
        try:
            result = read()
        except Exception as error:
            result = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(done, result)

    def _maintain(self) -> None:
        with contextlib.suppress(Refusal):  # the store notes a failure itself, and the next commit reports it
            self._store.maintain()
