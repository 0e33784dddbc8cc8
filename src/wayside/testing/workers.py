"""Workers in the test's own process, each with a connection that can be cut and a lease that the test's clock renews."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from wayside.calls.handler import Attempt
from wayside.calls.runner import Runner
from wayside.client.connection import Local
from wayside.client.member import Pace
from wayside.client.subscriber import Subscribers
from wayside.client.worker import Remote
from wayside.core.errors import Fenced
from wayside.hub import Hub
from wayside.testing.clock import ManualClock
from wayside.testing.points import Handlers, Place, pointed

__all__ = ["Cable", "TestWorker"]

RENEWALS = 3
"""Of a lease, in its time: as :mod:`wayside.client.worker` has it."""


class Stage(Protocol):
    """The test that a worker is part of."""

    hub: Hub
    clock: ManualClock
    up: bool
    """Whether the hub runs."""

    async def settle(self) -> None: ...

    def place(self, worker: str, kill: Callable[[], None]) -> Place:
        """Where the handlers of a worker run."""
        ...


class Cable:
    """A connection to the test's hub that can be cut, and held up."""

    def __init__(self, test: Stage) -> None:
        self._local = Local(lambda wire: test.hub.connections.enter_local(wire))
        self._test = test
        self.down = False
        self.stalled = False
        self._late: list[Callable[[], None]] = []

    async def open(self, take: Callable[[list[Any]], None], lost: Callable[[str], None]) -> None:
        if self.down or not self._test.up:
            raise OSError("the test has cut it")
        await self._local.open(
            lambda frames: self._then(partial(take, frames)), lambda why: self._then(partial(lost, why))
        )

    @property
    def connected(self) -> bool:
        return self._local.connected

    def drop(self, reason: str) -> None:
        """Break it, as a network may."""
        self._local.drop(reason)

    async def close(self) -> None:
        await self._local.close()

    def _then(self, do: Callable[[], None]) -> None:
        if self.stalled:
            self._late.append(do)
        else:
            do()

    def send(self, frames: list[Any]) -> None:
        self._then(partial(self._local.send, frames))

    def go_on(self) -> None:
        self.stalled = False
        late, self._late = self._late, []
        for do in late:
            do()


class _Renewal:
    """Renews a lease as the test's clock says."""

    def __init__(self, test: Stage, worker: str, seconds: float, over: Callable[[], None]) -> None:
        self._test = test
        self._worker = worker
        self._every_s = seconds / RENEWALS
        self._over = over
        self.next_at = test.clock.monotonic() + self._every_s

    def renew(self) -> None:
        self.next_at = self._test.clock.monotonic() + self._every_s
        if self._test.up:
            try:
                self._test.hub.leases.renew(self._worker)
            except Fenced:
                self._over()

    def stop(self) -> None:
        self.next_at = float("inf")


class TestWorker:
    """A worker in the test's process, as ``wayside work`` would be another. Made by :meth:`TestHub.worker`."""

    __test__ = False

    def __init__(
        self,
        test: Stage,
        name: str,
        identity: str,
        services: Iterable[str] | None,
        groups: Iterable[str] | None,
        capacity: int,
    ) -> None:
        self.name = name
        self.crashed = False
        self._test = test
        self._link = Cable(test)
        self._renewal: _Renewal | None = None
        place = test.place(name, self.crash)
        handlers = Handlers(test.hub.handlers, place, services)
        self._remote = Remote("http://test", handlers, capacity=capacity, link=self._link, lease=self._renew_by)
        self._remote.handling.before_finish = partial(place.reach, "before-finish")
        self._remote.id = self.id = identity
        client = self._remote.client()
        client.pace = self.pace = Pace(test.clock)
        subscribed = test.hub.subscribed
        chosen = set(subscribed if groups is None else groups)
        subscriptions = {group: each for group, each in subscribed.items() if group in chosen}
        self.subscribers = Subscribers(subscriptions, client, self._remote.threads, partial(pointed, place=place))
        self.subscribers.member = name

    def __repr__(self) -> str:
        state = "crashed" if self.crashed else "stalled" if self.stalled else "working"
        return f"<TestWorker {self.name} {state}, runs {len(self.running)}>"

    def _renew_by(self, worker: str, seconds: float, over: Callable[[], None]) -> _Renewal:
        self._renewal = _Renewal(self._test, worker, seconds, over)
        return self._renewal

    @property
    def runner(self) -> Runner[tuple[str, int], Attempt]:
        return self._remote.runner

    @property
    def running(self) -> list[tuple[str, int]]:
        """The attempts that it runs: call, number."""
        return list(self._remote.runner.running)

    @property
    def stalled(self) -> bool:
        return self._link.stalled

    @property
    def lives(self) -> bool:
        """Whether anything comes from it."""
        return not (self.crashed or self.stalled)

    @property
    def renews_at(self) -> float:
        """When it says next that it lives."""
        dead = self.crashed or self.stalled or self._renewal is None
        return float("inf") if dead or self._renewal is None else self._renewal.next_at

    def renew(self) -> None:
        """Say that it lives, as it does by itself three times in its lease."""
        if self._renewal is not None:
            self._renewal.renew()

    async def start(self) -> None:
        await self._remote.start()
        await self.subscribers.start()
        await self._test.settle()

    def crash(self) -> None:
        """Kill it: its connection and its handlers are gone at once, and its lease runs out."""
        self.crashed = True
        self._link.down = True
        self._link.stalled = False
        self.subscribers.close()
        self._remote.runner.cancel_all()
        self._link.drop("the worker crashed")

    def stall(self) -> None:
        """Stop it, as SIGSTOP does: nothing comes from it and nothing is heard, nor is its lease renewed."""
        self._link.stalled = True

    async def resume(self) -> None:
        """Go on after :meth:`stall`."""
        self._link.go_on()
        await self.connect()
        self.renew()
        await self._test.settle()

    def disconnect(self) -> None:
        """Break its connection; its lease is renewed all the same."""
        self._link.down = True
        self.drop("the test has cut it")

    def drop(self, reason: str) -> None:
        """Break its connection; it makes another."""
        self._link.drop(reason)

    async def reconnect(self) -> None:
        """Connect again."""
        self._link.down = False
        await self.connect()
        await self._test.settle()

    async def connect(self) -> None:
        """Connect, where it is not connected and can be."""
        if not (self.crashed or self.stalled or self._link.down or self._link.connected):
            await self._remote.reconnect()

    async def stop(self, seconds: float = 0.0) -> None:
        """Stop it in order: it takes no more, finishes what runs for so many (real) seconds, hands back the rest."""
        self._remote.rest()
        await self.subscribers.stop(seconds)
        await self._remote.stop(seconds)
        self.crashed = True
        await self._test.settle()

    async def close(self) -> None:
        self.crash()
        await self._remote.close()
