"""When something of a group is due: records that are delivered again, and leases that expire.

What is due is left to others: ``wake`` is called where a record is, ``expire`` with leases that are over.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count

from wayside.core.clock import Clock
from wayside.core.lease import Leases
from wayside.core.schedule import Timer, Timers
from wayside.groups.events import Waiting
from wayside.groups.state import RecordLease

__all__ = ["Due", "Schedule"]

Due = tuple[float, int, int, int, Waiting]
"""When a record is delivered again, its partition and position, a number that no other entry has, and what is known of it."""


class Schedule:
    """The timetable of one group, on the monotonic clock."""

    def __init__(
        self, clock: Clock, timers: Timers, wake: Callable[[], None], expire: Callable[[list[RecordLease]], None]
    ) -> None:
        self.leases: Leases[RecordLease] = Leases(clock, timers, self._over)
        self._clock = clock
        self._timers = timers
        self._wake = wake
        self._expire = expire
        self.records: list[Due] = []
        """Heap of those that are delivered again, now or later, and of some that have no need of it any more."""
        self._numbers = count()
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._running = False

    def __repr__(self) -> str:
        return f"<Schedule {len(self.records)} records, {self.leases!r}>"

    def begin(self, leases: Iterable[RecordLease]) -> None:
        """Begin anew, with leases whose time begins now."""
        self.records.clear()
        self.leases.clear()
        self._running = True
        for lease in leases:
            self.leases.renew(lease)

    def stop(self) -> None:
        """Call nobody any more."""
        self._running = False
        self.leases.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self, leases: list[RecordLease]) -> None:
        if self._running:
            self._expire(leases)
            self._wake()  # there is room for others

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
        if self.due:
            self._wake()
        else:
            self.wait()
