"""What the events of a group say of one record: when it was delivered, to whom, and how that ended."""

from __future__ import annotations

from typing import Any

import msgspec

from wayside.groups.events import (
    Acked,
    Dead,
    Dropped,
    Event,
    Extended,
    Leased,
    Nacked,
    Opened,
    Passed,
    Redriven,
    Shortened,
    Sought,
)

__all__ = ["Delivered", "Tracing"]


class Delivered(msgspec.Struct, omit_defaults=True):
    """One delivery of a record. Times are milliseconds since 1970."""

    lease: int
    member: str
    time_ms: int
    ended: str = ""
    """``acked``, ``failed``, ``released``, ``forgotten`` (the group was told to read from elsewhere), or empty: it has not."""
    ended_ms: int = 0
    reason: str = ""
    again_ms: int = 0
    """When the record is delivered again, at the earliest."""


class Tracing:
    """Follows one record through the events of its group."""

    def __init__(self, path: str, epoch: int, position: int, number: int | None) -> None:
        self._path = path
        self._epoch = epoch
        self._position = position
        self._number = number
        """Of the partition, where that is known."""
        self.deliveries: list[Delivered] = []
        self.whole = False
        """Whether the events reach back to before its first delivery."""
        self.dead: Dead | None = None
        self.passed = ""
        self.skipped = False
        """Whether the group was told to read from after it."""
        self.other: list[dict[str, Any]] = []
        """What else happened to it."""

    def take(self, event: Event) -> None:
        """The next event."""
        at, position = self._number, self._position
        if isinstance(event, Opened):
            if event.path == self._path and event.epoch == self._epoch:
                self._number = event.number
                self.whole = True
                self.skipped = event.position > position
            return
        if isinstance(event, Leased):
            if any(n == at and first <= position < first + count for n, first, count in event.fresh):
                self.whole = True
            elif (at, position) not in event.again:
                return
            self.deliveries.append(Delivered(event.lease, event.member, event.time_ms))
        elif isinstance(event, Acked):
            if any(n == at and first <= position < first + count for n, first, count, _ in event.runs):
                self._end("acked", event.time_ms)
        elif isinstance(event, Nacked):
            for number, where, _, delay_ms in event.entries:
                if number == at and where == position:
                    ended = "failed" if event.failed else "released"
                    self._end(ended, event.time_ms, event.reason, event.time_ms + max(0, delay_ms))
        elif isinstance(event, Dead):
            if event.number == at and event.position == position:
                self.dead = event
        elif isinstance(event, Redriven):
            if (at, position) in event.entries:
                self.dead = None
                self.other.append({"event": "redriven", "time_ms": event.time_ms})
        elif isinstance(event, Passed):
            run = event.upto - event.count if event.upto else position + 1
            if event.number == at and (run <= position < event.upto or position in event.positions):
                self.passed = event.reason
        elif isinstance(event, Sought):
            if event.number == at:
                self._end("forgotten", event.time_ms)
                self.skipped = event.position > position
                if not self.skipped:
                    self.dead, self.passed = None, ""
                self.other.append({"event": "seek", "time_ms": event.time_ms})
        elif isinstance(event, Shortened):
            if event.number == at and event.position <= position:  # what was there before was another record
                self.deliveries, self.dead, self.passed, self.skipped, self.whole = [], None, "", False, True
        elif isinstance(event, Dropped):
            if event.number == at:
                self._end("forgotten", 0)
        elif isinstance(event, Extended):
            return

    def _end(self, ended: str, time_ms: int, reason: str = "", again_ms: int = 0) -> None:
        if self.deliveries and not self.deliveries[-1].ended:
            last = self.deliveries[-1]
            last.ended, last.ended_ms, last.reason = ended, time_ms, reason
            last.again_ms = again_ms if ended in ("failed", "released") else 0
