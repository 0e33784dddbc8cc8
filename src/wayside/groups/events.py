"""What is chosen for a group, and the events that its stream is made of: values only.

A record of ``__group/NAME`` is a MessagePack array of events, each an array that begins with its number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

__all__ = [
    "DOOMED",
    "Acked",
    "Dead",
    "DeadLetter",
    "Dropped",
    "Event",
    "Extended",
    "GroupSpec",
    "Leased",
    "Located",
    "Nacked",
    "Opened",
    "Passed",
    "Redriven",
    "Snapshot",
    "Shortened",
    "SnapshotLease",
    "SnapshotPartition",
    "Sought",
    "Specified",
    "Waiting",
    "decode_events",
    "decode_snapshot",
    "encode",
]


class GroupSpec(msgspec.Struct, omit_defaults=True, frozen=True, forbid_unknown_fields=True):
    """What is chosen for a group; every field may be changed later."""

    streams: list[str]
    """Paths, or globs."""
    start: str = "-1"
    """Where streams begin that are there when the group is made: ``-1``, ``now``, or an offset of the only one. Those that
    come later are read from their start."""
    lease_s: float = 30.0
    """For how long a member has a record, unless it asks for more."""
    retries: int = 5
    """Redeliveries after a failure; -1: no bound."""
    backoff_s: float = 1.0
    """Before the first redelivery; doubled for each that follows, with full jitter."""
    backoff_s_max: float = 300.0
    in_flight_max: int = 10_000
    """Records that are leased at one time, over all members."""
    member_in_flight_max: int = 0
    """The same, of one member; 0: as many as it takes."""
    dead_letter: str = ""
    """Stream for records whose last attempt has failed; empty: they are only remembered as dead."""
    order_by: str = ""
    """Field of a JSON record (``customer.id``) whose equal values are delivered one after the other; ``$key``: the
    record's key. Empty: in no particular order."""
    paused: bool = False
    webhook: str = ""
    """URL that deliveries are pushed to."""
    webhook_concurrency: int = 8
    webhook_disabled: str = ""
    """Why nothing is pushed to it any more: the receiver answered 410. Set by the hub; empty begins anew."""
    cloudevents: bool = False
    """Whether they are CloudEvents (binary mode)."""
    description: str = ""

    @property
    def failures_max(self) -> float:
        return self.retries if self.retries >= 0 else float("inf")


# -- events


DOOMED = -1
"""Delay of a record that does not come back, however few its failures: it is dead as soon as it is where it belongs."""


class _Event(msgspec.Struct, array_like=True, gc=False):
    pass


class Opened(_Event, tag=1):
    """A stream is read from ``position`` on; ``number`` stands for it from now on."""

    number: int
    path: str
    epoch: int
    """That of the stream's first offset: another stream at the same path has another."""
    position: int


class Leased(_Event, tag=2):
    """Records were given to a member. ``fresh`` are runs (partition, first, count) delivered for the first time, ``again``
    others (partition, position); ``keys`` are those of all of them, ``again`` first, in a group with an order. ``parked`` (partition,
    position, key) have to wait for others with their key."""

    lease: int
    member: str
    time_ms: int
    seconds: float
    fresh: list[tuple[int, int, int]] = []
    again: list[tuple[int, int]] = []
    keys: list[str | None] = []
    parked: list[tuple[int, int, str]] = []


class Acked(_Event, tag=3):
    """Runs (partition, first, count, lease) are done."""

    time_ms: int
    runs: list[tuple[int, int, int, int]]


class Nacked(_Event, tag=4):
    """Records (partition, position, lease, delay in ms) come back after a delay, or not (``DOOMED``); ``failed``: it counts
    as a failure."""

    time_ms: int
    entries: list[tuple[int, int, int, int]]
    failed: bool
    reason: str


class Dead(_Event, tag=5):
    """A record's last attempt has failed. In one transaction with it goes its dead letter, if there is to be one: ``since``
    is the stream of that, and the offset from which on to look for it until :class:`Located` says where it is."""

    time_ms: int
    number: int
    position: int
    reason: str
    copy: tuple[str, str] | None = None
    """Events of 0.1 have it in place of ``since``: the stream of the letter, and the offset after the letter."""
    since: tuple[str, str] | None = None


class Extended(_Event, tag=6):
    """Runs (partition, first, count) of a lease last longer."""

    lease: int
    seconds: float
    runs: list[tuple[int, int, int]]


class Passed(_Event, tag=7):
    """Records are not there to be delivered: all before ``upto`` that were not delivered yet, and those ``positions``.
    ``count`` is how many positions that are; ``reason`` is ``expired`` or ``retention``."""

    time_ms: int
    number: int
    upto: int
    positions: list[int]
    count: int
    reason: str


class Sought(_Event, tag=8):
    """A stream is read from another position on; what was outstanding in it is not any more."""

    time_ms: int
    number: int
    position: int


class Dropped(_Event, tag=9):
    """A stream is read no longer: it was deleted, or does not belong to the group any more."""

    number: int


class Specified(_Event, tag=10):
    time_ms: int
    spec: GroupSpec


class Redriven(_Event, tag=11):
    """Dead records (partition, position) are to be delivered again, as if for the first time."""

    time_ms: int
    entries: list[tuple[int, int]]


class Shortened(_Event, tag=12):
    """A crash took records of a stream that is not synced: it ends at ``position`` now, and goes on from there."""

    number: int
    position: int


class Located(_Event, tag=13):
    """Where the letter of a dead record is: ``copy`` is its stream, and the offset after it; None where it is no more."""

    number: int
    position: int
    copy: tuple[str, str] | None


Event = (
    Shortened
    | Opened
    | Leased
    | Acked
    | Nacked
    | Dead
    | Extended
    | Passed
    | Sought
    | Dropped
    | Specified
    | Redriven
    | Located
)


class SnapshotLease(msgspec.Struct, array_like=True, gc=False):
    lease: int
    member: str
    seconds: float
    held: list[tuple[int, int, int, int, str | None, tuple[str, str] | None]]
    """(partition, position, deliveries and failures before it, key, copy)"""


class SnapshotPartition(msgspec.Struct, array_like=True, gc=False):
    number: int
    path: str
    epoch: int
    next: int
    waiting: list[Waiting]
    parked: list[tuple[int, int, str]]
    """(place among all that are parked, position, key)"""


class DeadLetter(msgspec.Struct, array_like=True, gc=False):
    """A record that is dead."""

    number: int
    path: str
    position: int
    time_ms: int
    deliveries: int
    reason: str
    copy: tuple[str, str] | None = None
    """Stream with a copy of it, and the offset after that."""
    since: tuple[str, str] | None = None
    """Stream with its letter, and the offset from which on to look for it; None once that is found."""


class Snapshot(msgspec.Struct, array_like=True, gc=False):
    """All of a group as of ``position`` in its stream of events."""

    position: int
    spec: GroupSpec
    leases_next: int
    numbers_next: int
    counts: dict[str, int]
    partitions: list[SnapshotPartition]
    leases: list[SnapshotLease]
    dead: list[DeadLetter]


class Waiting(msgspec.Struct, array_like=True, gc=False):
    """A record that is to be delivered again."""

    position: int
    deliveries: int
    failures: int
    due_ms: int
    """Wall-clock time, with ``delay_ms`` before it."""
    delay_ms: int
    reason: str
    key: str | None = None
    copy: tuple[str, str] | None = None
    """Where it is, if its stream has it no longer."""


encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
decode_events: Callable[[bytes], list[Event]] = msgspec.msgpack.Decoder(list[Event]).decode
decode_snapshot: Callable[[bytes], Snapshot] = msgspec.msgpack.Decoder(Snapshot).decode
