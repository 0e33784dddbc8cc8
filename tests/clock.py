"""A clock that stands still until it is told to go on."""

from __future__ import annotations

START_MS = 1_800_000_000_000
"""2027-01-15 08:00 UTC: any time will do, as long as it does not change from run to run."""


class ManualClock:
    """A :class:`wayside.model.Clock`. ``advance`` moves both of its times."""

    def __init__(self, wall_ms: int = START_MS) -> None:
        self._wall_ms = wall_ms
        self._monotonic = 1000.0

    def __repr__(self) -> str:
        return f"<ManualClock {self._wall_ms} ms>"

    def wall_ms(self) -> int:
        return self._wall_ms

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self._wall_ms += round(seconds * 1000)
        self._monotonic += seconds
