"""Timers on a clock that is a parameter: real time arms the event loop, a manual clock runs what is due when it moves."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from wayside.core.callbacks import guarded
from wayside.core.clock import Clock

__all__ = ["Timer", "Timers"]

CANCELLED_MIN = 1000
"""Fewer are not worth the work."""


class Timer:
    """One call in the future."""

    __slots__ = ("_timers", "call")

    def __init__(self, call: Callable[[], None], timers: Timers) -> None:
        self.call: Callable[[], None] | None = call
        self._timers = timers

    def cancel(self) -> None:
        if self.call is not None:
            self.call = None
            self._timers.cancelled()


class Timers:
    """A heap of timers over ``clock.monotonic``; jumps of the wall clock do not move them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._armed: asyncio.TimerHandle | None = None
        self._armed_at = 0.0
        self._cancelled = 0
        """How many were since the heap was cleared of them."""

    def cancelled(self) -> None:
        """One of them was. Those of calls that take milliseconds would else be held for the hours of their timeout."""
        self._cancelled += 1
        if self._cancelled > max(CANCELLED_MIN, len(self._heap) // 2):
            self._heap[:] = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call in so many seconds."""
        timer = Timer(call, self)
        at = self._clock.monotonic() + max(0.0, seconds)
        heapq.heappush(self._heap, (at, next(self._numbers), timer))
        if self._armed is None or at < self._armed_at:
            self._arm(at)
        return timer

    def _arm(self, at: float) -> None:
        if self._armed is not None:
            self._armed.cancel()
        self._armed_at = at
        self._armed = asyncio.get_running_loop().call_later(max(0.0, at - self._clock.monotonic()), self.run)

    @property
    def next_at(self) -> float | None:
        """When the first is due, on the monotonic clock."""
        while self._heap and self._heap[0][2].call is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run(self) -> None:
        """Call what is due."""
        heap = self._heap
        now = self._clock.monotonic()
        while heap and (heap[0][0] <= now or heap[0][2].call is None):
            timer = heapq.heappop(heap)[2]
            call, timer.call = timer.call, None
            if call is not None:
                guarded(call)
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        if heap:
            self._arm(heap[0][0])

    def stop(self) -> None:
        """Forget all of them."""
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        self._heap.clear()
