"""A clock that stands still until it is told to go on."""

from __future__ import annotations

__all__ = ["START_MS", "ManualClock"]

START_MS = 1_800_000_000_000
"""2027-01-15 08:00 UTC: any time will do, as long as it does not change from run to run."""


class ManualClock:
    """A :class:`wayside.core.clock.Clock` that stands still until it is told to go on. ``advance`` moves both of its
    times."""

    def __init__(self, wall_ms: int = START_MS) -> None:
        self._start_ms = wall_ms
        self._passed = 0.0

    def __repr__(self) -> str:
        return f"<ManualClock {self.wall_ms()} ms>"

    def wall_ms(self) -> int:
        return self._start_ms + round(self._passed * 1000)

    def monotonic(self) -> float:
        return 1000.0 + self._passed

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self._passed += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward, or back; the other goes on as if nothing had happened."""
        self._start_ms += round(seconds * 1000)

    def advance_to(self, monotonic: float) -> None:
        """Let time pass until ``monotonic``; none where that is past."""
        self._passed = max(self._passed, monotonic - 1000.0)
        if self.monotonic() < monotonic:  # what was rounded off
            self._passed += 1e-9
