"""Leases: a holder's right to something for a time, on a clock that is a parameter.

One heap and one timer serve any number of leases. Renewing is lazy: it writes a deadline, and the heap hears of it when
the earlier one has come. Leases that are over at one time end in one call. Which epochs there are, and what is kept of
them on disk, is the affair of whoever gives leases out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Generic, Protocol, TypeVar

from wayside.core.clock import Clock
from wayside.core.schedule import Timer, Timers

__all__ = ["ENDED", "NOT_QUEUED", "Expiring", "Lease", "Leases"]

ENDED = -math.inf
"""The deadline of a lease that has ended. To write it is to end the lease: nobody is told."""
NOT_QUEUED = math.inf
"""``queued`` of a lease that is not in a heap."""
QUEUED_MIN = 1000
"""Entries of a heap that are not worth looking through for those of leases that have ended."""

H = TypeVar("H")


class Expiring(Protocol):
    """What :class:`Leases` keeps the time of: a :class:`Lease`, or something that says the same of itself."""

    seconds: float
    """How long it lasts from when it begins, or is renewed."""
    deadline: float
    """On the monotonic clock; ``math.inf`` while it is held without end, :data:`ENDED` when it has ended."""
    queued: float
    """When it is looked at next: for :class:`Leases` alone, and :data:`NOT_QUEUED` at first."""


L = TypeVar("L", bound=Expiring)


class Lease(Generic[H]):
    """A right of ``holder``. ``epoch`` tells it from earlier and later ones to the same thing: a holder that names
    another epoch is late, and refused (fenced)."""

    __slots__ = ("deadline", "epoch", "holder", "queued", "seconds")

    def __init__(self, holder: H, seconds: float, epoch: int = 0) -> None:
        self.holder = holder
        self.seconds = seconds
        self.epoch = epoch
        self.deadline = ENDED
        self.queued = NOT_QUEUED

    def __repr__(self) -> str:
        return f"<Lease {self.epoch} of {self.holder!r} until {self.deadline:g}>"


class Leases(Generic[L]):
    """Leases of one kind. ``over`` is given those whose time has come, all at once; they have ended by then."""

    __slots__ = ("_clock", "_heap", "_numbers", "_over", "_queued_max", "_timer", "_timer_at", "_timers")

    def __init__(self, clock: Clock, timers: Timers, over: Callable[[list[L]], None]) -> None:
        self._clock = clock
        self._timers = timers
        self._over = over
        self._heap: list[tuple[float, int, L]] = []
        """By the time when each is to be looked at. A lease may have several entries: the one at its ``queued`` counts."""
        self._queued_max = QUEUED_MIN
        self._numbers = count()
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def __repr__(self) -> str:
        return f"<Leases {len(self._heap)} queued>"

    def renew(self, lease: L) -> None:
        """A lease begins, or begins anew: it lasts its ``seconds`` from now, though that be sooner than before."""
        lease.deadline = deadline = self._clock.monotonic() + lease.seconds
        if deadline < lease.queued:
            self._queue(lease, deadline)

    @staticmethod
    def hold(lease: L) -> None:
        """Its holder is there, connected: it lasts until it is renewed or ended."""
        lease.deadline = math.inf

    @staticmethod
    def end(lease: L) -> None:
        """It was given back. Nobody is told."""
        lease.deadline = ENDED

    def runs(self, lease: L) -> bool:
        """Whether it is not over, though nobody may have been told yet."""
        return lease.deadline > self._clock.monotonic()

    def clear(self) -> None:
        """Forget all of them, as they are. Those that are to go on are renewed."""
        for _, _, lease in self._heap:
            lease.queued = NOT_QUEUED
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _queue(self, lease: L, at: float) -> None:
        if len(self._heap) >= self._queued_max:
            self._prune()
        lease.queued = at
        heapq.heappush(self._heap, (at, next(self._numbers), lease))
        if self._timer is None or at < self._timer_at:
            self._arm(at)

    def _prune(self) -> None:
        """Drop entries of leases that have ended or are held. Half of the entries at least were new since the last time."""
        kept = []
        for entry in self._heap:
            at, _, lease = entry
            if at == lease.queued:
                if ENDED < lease.deadline < math.inf:
                    kept.append(entry)
                else:
                    lease.queued = NOT_QUEUED
        heapq.heapify(kept)
        self._heap = kept
        self._queued_max = max(QUEUED_MIN, 2 * len(kept))

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._timers.after(at - self._clock.monotonic(), self._look)

    def _look(self) -> None:
        """The time of some has come, unless they were renewed."""
        self._timer = None
        heap, now = self._heap, self._clock.monotonic()
        over: list[L] = []
        while heap and heap[0][0] <= now:
            at, number, lease = heap[0]
            if at != lease.queued:
                heapq.heappop(heap)
            elif now < lease.deadline < math.inf:
                lease.queued = lease.deadline
                heapq.heapreplace(heap, (lease.deadline, number, lease))
            else:
                heapq.heappop(heap)
                lease.queued = NOT_QUEUED
                if ENDED < lease.deadline <= now:
                    lease.deadline = ENDED
                    over.append(lease)
        if heap:
            self._arm(heap[0][0])
        if over:
            self._over(over)
