"""A clock that stands still until it is told to go on: the one that users are given."""

from __future__ import annotations

from wayside.testing import START_MS, ManualClock

__all__ = ["START_MS", "ManualClock"]
