"""Runs handlers: coroutines on the event loop, plain functions in one bounded pool of threads.

A :class:`Runner` knows nothing of what is handled, nor of whom the result is for: attempts at calls
(:mod:`wayside.calls.handler`) and records of groups (:mod:`wayside.client.subscriber`) are handed to one each, together
with what handles them. All runners of a process share its :class:`Threads`.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

__all__ = ["Runner", "Running", "Threads", "trace_of"]

THREADS_MAX = 128
"""Plain functions that run at one time in one process. Others wait; a thread is made only when there is work for it."""

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


class Threads:
    """Where plain functions run, be they handlers of calls or of records: they may block."""

    __slots__ = ("_pool", "records")

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self.records = asyncio.Semaphore(THREADS_MAX // 2)
        """Held by each handler of a record while it runs: those of the calls that it waits for find a thread all the same."""

    def run(
        self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
    ) -> asyncio.Future[Any]:
        """Call a function in a thread. A cancellation ends the wait; the function goes on."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS_MAX, "wayside-handler")
        return asyncio.get_running_loop().run_in_executor(self._pool, _called, function, arguments, keywords)

    def close(self) -> None:
        """Begin no more; what runs goes on, and nobody waits for it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _called(function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    try:
        return function(*arguments, **keywords)
    except StopIteration as error:  # no future can have it
        raise RuntimeError("The handler raised StopIteration.") from error


class Running:
    """A handler that runs."""

    __slots__ = ("begun", "on_cancel", "task", "unwanted", "waits")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.begun = False
        self.unwanted = False
        """It was cancelled: nobody is to hear how it ends."""
        self.on_cancel: Callable[[], None] | None = None
        self.waits = 0
        """What it waits for that is kept elsewhere: to be stopped meanwhile costs it nothing."""


class Runner(Generic[Key, Item]):
    """Runs what it is given, each in a task of its own, until it ends or is cancelled.

    ``handle`` does one item: binds its input, calls the handler, says what came of it. ``failed`` is told what that did not
    foresee, a cancellation that came from within included; nothing where the item is unwanted by then. ``ended`` is told
    after each, also of those that were cancelled. ``concurrency``: how many are to run at one time; whoever gives more
    than there is :attr:`room` for has them run all the same.
    """

    def __init__(
        self,
        handle: Callable[[Item, Running], Coroutine[Any, Any, None]],
        failed: Callable[[Item, BaseException], None],
        *,
        concurrency: int,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self.concurrency = concurrency
        self.running: dict[Key, Running] = {}
        self._handle = handle
        self._failed = failed
        self._ended = ended

    def __repr__(self) -> str:
        return f"<Runner {len(self.running)}/{self.concurrency}>"

    @property
    def room(self) -> int:
        """How many more may run."""
        return max(0, self.concurrency - len(self.running))

    def run(self, key: Key, item: Item) -> None:
        """Begin an item; one that runs already goes on."""
        if key not in self.running:
            running = self.running[key] = Running()
            running.task = asyncio.get_running_loop().create_task(self._run(key, item, running))

    async def _run(self, key: Key, item: Item, running: Running) -> None:
        running.begun = True
        try:
            await self._handle(item, running)
        except asyncio.CancelledError as error:
            if not running.unwanted:
                if running.task.cancelling():
                    raise  # the event loop is being closed
                self._failed(item, error)  # of something that the handler waited for
        except (Exception, SystemExit) as error:
            if not running.unwanted:
                self._failed(item, error)
        finally:
            running.on_cancel = None  # which may lead back here: nothing is left to the garbage collector
            del self.running[key]
            if self._ended is not None:
                self._ended()

    def cancel(self, key: Key) -> None:
        """Stop an item: nobody wants it any more. A thread goes on, unheard."""
        running = self.running.get(key)
        if running is None:
            return
        running.unwanted = True
        if running.on_cancel is not None:
            running.on_cancel()
        running.task.cancel()
        if not running.begun:  # nor will it
            del self.running[key]
            if self._ended is not None:
                self._ended()

    def cancel_all(self) -> list[Key]:
        """Stop what runs. Returns what that was."""
        keys = list(self.running)
        for key in keys:
            self.cancel(key)
        return keys

    async def drain(self, seconds: float) -> list[Key]:
        """Let what runs end, for so long, but do not wait for what only waits itself; stop the rest, and return it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while tasks := [each.task for each in self.running.values() if not each.waits]:
            left_s = deadline - loop.time()
            if left_s <= 0:
                break
            await asyncio.wait(tasks, timeout=min(left_s, 1.0), return_when=asyncio.FIRST_COMPLETED)
        return self.cancel_all()


def trace_of(error: BaseException) -> str:
    """Where an error was raised, for a log: without the values of variables, which may be secret."""
    return "".join(traceback.format_exception(error))
