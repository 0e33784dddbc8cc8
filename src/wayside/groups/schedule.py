"""When something of a group is due: records that are delivered again, and leases that expire.

Two heaps over one timer of the hub. What is due is left to others: ``wake`` is called where a record is, ``expire`` with
leases that are over.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count

from wayside.core.clock import Clock
from wayside.core.schedule import Timer, Timers
from wayside.groups.events import Waiting
from wayside.groups.state import Lease

__all__ = ["Due", "Schedule"]

EXPIRING_MIN = 1000
"""Deadlines of leases that are over, fewer are not worth the work."""

Due = tuple[float, int, int, int, Waiting]
"""When a record is delivered again, its partition and position, a number that no other entry has, and what is known of it."""


class Schedule:
    """The timetable of one group, on the monotonic clock."""

    def __init__(
        self, clock: Clock, timers: Timers, wake: Callable[[], None], expire: Callable[[list[Lease]], None]
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._wake = wake
        self._expire = expire
        self.records: list[Due] = []
        """Heap of those that are delivered again, now or later, and of some that have no need of it any more."""
        self._expiring: list[tuple[float, int, Lease]] = []
        self._expiring_max = EXPIRING_MIN
        """With more it is cleared of those that are over."""
        self._numbers = count()
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._running = False

    def __repr__(self) -> str:
        return f"<Schedule {len(self.records)} records, {len(self._expiring)} leases>"

    def begin(self, leases: Iterable[Lease]) -> None:
        """Begin anew, with leases whose time begins now."""
        self.records.clear()
        self._expiring.clear()
        self._running = True
        for lease in leases:
            self.watch(lease)

    def stop(self) -> None:
        """Call nobody any more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- leases

    def watch(self, lease: Lease) -> None:
        """The time of a lease begins, or begins anew."""
        lease.deadline = self._clock.monotonic() + lease.seconds
        if len(self._expiring) > self._expiring_max:
            self._expiring = [entry for entry in self._expiring if entry[2].count and entry[0] == entry[2].deadline]
            heapq.heapify(self._expiring)
            self._expiring_max = EXPIRING_MIN + 2 * len(self._expiring)
        heapq.heappush(self._expiring, (lease.deadline, next(self._numbers), lease))
        self._arm(lease.deadline)

    # -- records

    def put_back(self, number: int, waiting: Waiting) -> None:
        """A record waits for its time."""
        left_ms = min(max(0, waiting.due_ms - self._clock.wall_ms()), waiting.delay_ms)
        at = self._clock.monotonic() + left_ms / 1000
        heapq.heappush(self.records, (at, number, waiting.position, next(self._numbers), waiting))
        self._wake() if left_ms <= 0 else self._arm(at)

    @property
    def due(self) -> bool:
        """Whether the time of one has come."""
        return bool(self.records and self.records[0][0] <= self._clock.monotonic())

    def take(self) -> Due | None:
        """The first record whose time has come, if there is one."""
        return heapq.heappop(self.records) if self.due else None

    def put(self, due: Due) -> None:
        """One that was taken is due as before."""
        heapq.heappush(self.records, due)

    def wait(self) -> None:
        """Wake when the next is due. One that is due already waits for room, and not for time."""
        if self.records and not self.due:
            self._arm(self.records[0][0])

    # -- time

    def _arm(self, at: float) -> None:
        if self._running and (self._timer is None or at < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._timers.after(at - self._clock.monotonic(), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        over: dict[int, Lease] = {}
        while self._expiring and (self._expiring[0][0] <= now or not self._expiring[0][2].count):
            lease = heapq.heappop(self._expiring)[2]
            if lease.count and lease.deadline <= now:
                over[id(lease)] = lease
        if over:
            self._expire(list(over.values()))
            self._wake()  # there is room for others
        if self._expiring:
            self._arm(self._expiring[0][0])
        if self.records:
            if self.records[0][0] <= now:
                self._wake()
            else:
                self._arm(self.records[0][0])
