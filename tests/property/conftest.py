"""Fixtures: the stores of state machines are in memory."""

from __future__ import annotations

from tests.support.memory import in_memory

__all__ = ["in_memory"]
