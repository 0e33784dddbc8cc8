"""What every engine can tell of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Statistics"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a log, for metrics and tests."""

    streams: int = 0
    appends: int = 0
    records: int = 0
    bytes: int = 0
    deliveries: dict[str, int] = field(default_factory=dict)
    followers: dict[str, int] = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    """Followers with a delivery policy, by policy."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Records that policies did not let through, by policy."""
    lagged: int = 0
    """Followers that were ended for being too far behind."""
    lag_records: int = 0
    store_bytes: int = 0
    uncommitted_bytes: int = 0
    cached_bytes: int = 0
