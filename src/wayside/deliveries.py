"""What a group and its members say to each other: values only, as they go over a channel."""

from __future__ import annotations

import msgspec

from wayside.model import Meta, Offset

__all__ = ["Ack", "Extend", "Nack", "Part", "Publish", "Refused", "Settled", "Settlement"]


class Part(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Records of one stream that a member is given: neighbours, and all with the same past."""

    number: int
    """Of the partition."""
    path: str
    content_type: str
    epoch: int
    """Of the offsets after the records."""
    first: int
    """Position of the first record."""
    time_ms: int
    records: list[bytes]
    attempt: int = 1
    """Deliveries, this one included."""
    metas: dict[int, Meta] | None = None
    """By index in ``records``."""

    def offset(self, index: int) -> str:
        """The offset after a record."""
        return str(Offset(self.epoch, self.first + index + 1))


class Ack(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A run of records is done."""

    number: int
    """Of the partition."""
    first: int
    count: int
    lease: int


class Nack(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A record is not done. ``kind`` is ``failed``, ``released`` (it was not tried: no failure) or ``rejected`` (nobody
    shall try it again). ``delay_s`` None: after the group's backoff."""

    number: int
    position: int
    lease: int
    kind: str = "failed"
    delay_s: float | None = None
    reason: str = ""


class Extend(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A run of records is needed for so many seconds more, from now; 0: as long as the group's lease."""

    number: int
    first: int
    count: int
    lease: int
    seconds: float = 0.0


class Publish(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Records that become true together with the acks."""

    stream: str
    records: list[bytes]
    metas: dict[int, Meta] | None = None
    content_type: str = ""
    """Empty: whatever the stream is."""


class Settlement(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What a member says of records that it has. With ``publish`` all of it is one transaction: done whole, or refused."""

    acks: list[Ack] = []
    nacks: list[Nack] = []
    extends: list[Extend] = []
    publish: list[Publish] = []


class Refused(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Of one record: ``lease-fenced`` (the lease is over, or was never this one), ``not-delivered``, or
    ``already-settled`` (harmless: it was acked, or is dead)."""

    number: int
    position: int
    code: str


class Settled(msgspec.Struct, gc=False):
    """What became of a settlement."""

    acked: int = 0
    nacked: int = 0
    extended: int = 0
    refused: list[Refused] = []
    offsets: list[str] = []
    """After what was published."""

    @property
    def fenced(self) -> bool:
        return any(refused.code != "already-settled" for refused in self.refused)
