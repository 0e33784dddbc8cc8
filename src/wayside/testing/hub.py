"""``TestHub``: a hub that a test can crash, restart and let time pass for."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from wayside.client.calls import CallHandle
from wayside.client.client import Client
from wayside.client.member import Pace
from wayside.core.limits import Limits
from wayside.hub import Hub, Parts, detach
from wayside.link.connection import Channels
from wayside.storage.embedded.engine import EmbeddedEngine
from wayside.testing.clock import ManualClock
from wayside.testing.points import Handlers, Place, Reached, pointed
from wayside.testing.workers import Cable, TestWorker

__all__ = ["TestHub"]

SETTLE_S = 10.0
"""How long the disk may take."""
THREADS_S = 0.1
"""How long threads of handlers are waited for."""


class _Patience:
    """With threads of handlers, in seconds: spent once in all of what the test does at a time."""

    def __init__(self) -> None:
        self.left = THREADS_S


class TestHub:
    """A hub for tests: the handlers of ``source``, which is a :class:`~wayside.Hub` that was not used yet, or functions by
    the names of their services. Its store is a temporary directory, or with ``memory`` set nothing.

    ``hub`` is that very hub, so that code which knows it can go on using it. With ``local`` false the hub's own process
    runs no handlers: :meth:`worker` makes others that do. ``reached`` are the points that handlers came to.
    """

    __test__ = False

    def __init__(
        self,
        source: Hub | Mapping[str, Callable[..., Any]] | None = None,
        *,
        memory: bool = False,
        local: bool = True,
        limits: Limits | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        self.hub = source if isinstance(source, Hub) else Hub()
        if not isinstance(source, Hub):
            for name, function in (source or {}).items():
                self.hub.service(name)(function)
        try:
            self.hub.place(self.hub.url)
        except RuntimeError as error:
            raise RuntimeError("This hub was used before: a TestHub has to be its first use.") from error
        self.clock = clock or ManualClock()
        self._connection = Cable(self)
        self.client = Client(Channels(self._connection, retry_s=None), pace=Pace(self.clock))
        self.reached: list[Reached] = []
        self.workers: list[TestWorker] = []
        self.up = False
        """Whether the hub runs: it does not while it comes back from a crash."""
        self.crashes = 0
        """Of the hub itself."""
        self._before = self.hub.url, self.hub.limits, self.hub.clock
        self._limits = limits or replace(self.hub.limits, drain_s=0.0)
        self._memory = memory
        self._local = local
        self._lives = count()
        self._armed: list[tuple[str, str | None]] = []
        self._idle = threading.Lock()
        self._disk = 0
        """How often it was written or read."""
        self._dead: list[Parts] = []
        """Of lives that ended in a crash."""
        self._revival: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<TestHub {self.clock!r} {'up' if self.up else 'down'}, {len(self.workers)} workers>"

    # -- life

    async def __aenter__(self) -> TestHub:
        self.loop, self.thread = asyncio.get_running_loop(), threading.get_ident()
        self._root = Path(tempfile.mkdtemp(prefix="wayside-test-"))
        self.directory = self._root / f"life-{next(self._lives)}"
        self._place()
        await self._start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        try:
            if self._revival is not None:
                await self._revival
            for worker in self.workers:
                await worker.close()
            await self.client.close()
            self.up = False
            await self.hub.close()
            for parts in self._dead:
                await parts.log.close()
        finally:
            self._place()
            url, self.hub.limits, self.hub.clock = self._before
            self.hub.place(url)
            shutil.rmtree(self._root, ignore_errors=True)

    def _place(self) -> Parts | None:
        """Have the hub as if it had never been used. Returns the parts that it had."""
        hub = self.hub
        parts = detach(hub)
        hub.limits, hub.clock = self._limits, self.clock
        hub.place("memory:" if self._memory else f"file:{self.directory}")
        return parts

    async def _start(self) -> None:
        """Start the hub on what is in the directory, and have everybody connect."""
        hub = self.hub
        store = hub.log.engine.store if isinstance(hub.log.engine, EmbeddedEngine) else None
        for name in ("commit", "maintain") if store is not None else ():
            setattr(store, name, self._whole(getattr(store, name)))  # no copy is ever taken in the middle of either
        if store is not None:
            setattr(store.history, "read", self._counted(store.history.read))  # noqa: B010 - a method
        place = self.place("hub", self._kill)
        hub.subscribes = self._local
        hub.client.pace = Pace(self.clock)
        hub.subscribers.wrap = partial(pointed, place=place)
        hub.worker.handling.handlers = Handlers(hub.handlers, place)
        hub.worker.handling.before_finish = partial(place.reach, "before-finish")
        hub.worker.worker.stopping = not self._local
        hub.calls.attempts.random.seed(0)  # the same delays in each run
        await hub.start()
        self.up = True
        await self.client.channels.open()
        for worker in self.workers:
            await worker.connect()
        await self._settle()

    def _whole(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with self._idle:
                self._disk += 1
                return method(*arguments)

        return run

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self._disk += 1
            return method(*arguments)

        return run

    async def restart(self) -> None:
        """Stop the hub in order, and start it on the same directory."""
        hub = self.hub
        await hub.subscribers.stop(hub.limits.drain_s)
        for peer in list(hub.connections.peers):
            peer.finish("drain")
        await self._settle()
        await hub.rest()
        self.up = False
        self._drop("the hub stopped")
        await hub.close()
        self._place()
        await self._start()

    async def crash(self) -> None:
        """Kill the hub, with the handlers of its own process, and start it on what its files held at that moment."""
        await self.settle()
        self._kill()
        await self.settle()

    def _kill(self) -> None:
        """Kill the hub now, and start it in a task."""
        if not self.up:
            return
        self.up = False
        self.crashes += 1
        old = self.directory
        self.directory = self._root / f"life-{next(self._lives)}"
        if not self._memory:
            with self._idle:
                shutil.copytree(old, self.directory, ignore=shutil.ignore_patterns("*-shm"))
        calls, worker = self.hub.calls, self.hub.worker
        worker.runner.cancel_all()
        worker.threads.close()
        self.hub.subscribers.close()
        self.hub.groups.stop()
        for each in [worker.worker, *calls.workers.values()]:
            each.link, each.stopping = None, True
        calls.on_declared = calls.attempts.on_ended = calls.attempts.on_ending = None
        calls.stop()
        self._drop("the hub crashed")
        parts = self._place()
        assert parts is not None  # it was up
        self._dead.append(parts)
        self._revival = self.loop.create_task(self._revive(parts))

    async def _revive(self, parts: Parts) -> None:
        await parts.keeping.stop()
        await parts.subscriptions.stop()
        await parts.client.close()
        parts.connections.stop()
        parts.poster.close()
        await self._start()

    def _drop(self, reason: str) -> None:
        """Break all connections to the hub."""
        self._connection.drop(reason)
        for worker in self.workers:
            worker.drop(reason)

    # -- time

    async def settle(self) -> None:
        """Let what can happen now happen: tasks on the event loop run, the disk has what it was given, and threads of
        handlers end; those that take longer than a tenth of a second are taken to wait for something else."""
        await self._calm(_Patience())

    async def _calm(self, patience: _Patience) -> None:
        while self._revival is not None and not self._revival.done():
            await asyncio.wait([self._revival])
        if self._revival is not None:
            self._revival.result()
        await self._settle(patience)

    async def _settle(self, patience: _Patience | None = None) -> None:
        deadline = self.loop.time() + SETTLE_S
        quiet, seen = 0, self._disk
        while quiet < 2:
            for _ in range(10):
                await asyncio.sleep(0)
            if not self.up:
                quiet += 1
                continue
            log = self.hub.log
            await log.quiet()
            disk = not log.idle
            if not disk and seen == self._disk and not (patience and patience.left > 0 and self._threads()):
                quiet += 1
                continue
            quiet, seen = 0, self._disk
            began = self.loop.time()
            await asyncio.sleep(0.0002)  # neither disk nor threads are the loop's
            if disk and began > deadline:
                raise TimeoutError("The disk does not answer.")
            if patience is not None and not disk:
                patience.left -= self.loop.time() - began

    def _threads(self) -> bool:
        """Whether a handler runs in a thread."""
        if self.hub.subscribers.threads or any(worker.subscribers.threads for worker in self.workers):
            return True
        known = self.hub.calls.ledger.known
        for runner in (self.hub.worker.runner, *(worker.runner for worker in self.workers)):
            for identity, _ in runner.running:
                call = known(identity)
                handler = self.hub.handlers.get(call.request.service) if call is not None else None
                if handler is not None and handler.signature.threaded:
                    return True
        return False

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass: what is due in them happens, in order, each at its time."""
        end = self.clock.monotonic() + seconds
        patience = _Patience()
        await self._calm(patience)
        while True:
            paces = [self.client.pace, self.hub.client.pace, *(each.pace for each in self.workers if each.lives)]
            timers = [self.hub.calls.timers, *(pace.timers for pace in paces)]
            due = [worker.renews_at for worker in self.workers]
            due += [each.next_at for each in timers if each.next_at is not None]
            self.clock.advance_to(min([end, *due]))
            now = self.clock.monotonic()
            for worker in self.workers:
                if worker.renews_at <= now:
                    worker.renew()
            for each in timers:
                each.run()
            self.hub.log.retention.expire(self.clock.wall_ms())
            await self._calm(patience)
            if now >= end:
                return

    # -- workers and points

    async def worker(
        self,
        name: str,
        services: Iterable[str] | None = None,
        groups: Iterable[str] | None = None,
        *,
        capacity: int = 16,
    ) -> TestWorker:
        """Another worker, connected: it runs ``services``, or all that the hub has, ``capacity`` calls at a time, and the
        handlers of ``groups``, or all that subscribe."""
        worker = TestWorker(self, name, f"w-{name}-{len(self.workers)}", services, groups, capacity)
        self.workers.append(worker)
        await worker.start()
        return worker

    def crash_at(self, point: str, *, worker: str | None = None) -> None:
        """Crash the next worker that reaches ``point`` (None: any): ``before-run``, ``after-run`` or ``before-finish`` of
        an attempt (of a record's handler the first two), or a name that the handler gives to :func:`point`. Where that is the hub's own process (``hub``), the
        hub crashes, and comes back."""
        self._armed.append((point, worker))

    def place(self, worker: str, kill: Callable[[], None]) -> Place:
        """Where the handlers of a worker run, which ``kill`` crashes."""
        return Place(self, worker, kill)

    def note(self, reached: Reached) -> bool:
        """A handler is at a point. Whether its worker is to be crashed."""
        self.reached.append(reached)
        for armed in self._armed:
            if armed[0] == reached.point and armed[1] in (None, reached.worker):
                self._armed.remove(armed)
                return True
        return False

    # -- as a client, whose handles outlive a crash of the hub

    async def call(self, service: str, *arguments: Any, **options: Any) -> Any:
        """Call a service and wait for its result: :meth:`wayside.Client.call`."""
        return await self.client.call(service, *arguments, **options)

    async def submit(self, service: str, *arguments: Any, **options: Any) -> CallHandle:
        """Have a service called: :meth:`wayside.Client.submit`. Lets what can happen at once happen."""
        handle = await self.client.submit(service, *arguments, **options)
        await self.settle()
        return handle

    async def stream(self, service: str, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """Call a service that yields: :meth:`wayside.Client.stream`."""
        async for item in self.client.stream(service, *arguments, **options):
            yield item

    def get(self, identity: str) -> CallHandle:
        """The handle of a call by its name."""
        return self.client.get(identity)
