"""What a union is made of: references to runs of records, the entries of its index, and the view that readers have."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from wayside.contracts import StreamView
from wayside.envelopes import wrap
from wayside.log.stream import Stream
from wayside.log.tables import END
from wayside.model import Batch, Meta, Offset

REFERENCES_MAX = 1000
"""In one entry: what is decoded to read one record of them."""


class Reference(NamedTuple):
    """A run of records: ``length`` of them from ``position`` on, of the life ``epoch`` of the stream at ``path``."""

    path: str
    epoch: int
    position: int
    length: int


class Entry(msgspec.Struct, omit_defaults=True):
    """A record of the index. ``at`` is the union's position of the first record that it refers to."""

    at: int
    refs: list[Reference]
    before: int = 0
    """In what stands for everything before a position: that position."""
    epoch: int = 0
    """And what the union's offsets are from then on."""


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Entry).decode


class View(Stream):
    """A union as a stream, with records that are made when they are read."""

    __slots__ = ("first_epoch", "moved")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.first_epoch = self.sid
        self.moved = 0
        """Offsets of earlier epochs still mean the same from this position on."""
        self.sealed = END  # nothing has to stay in memory

    def resolve(self, offset: Offset) -> int:
        epoch = self.lineage[0][1]
        if self.first_epoch <= offset.epoch < epoch:
            if offset.position < self.moved:
                raise self._not_here(offset, "offset-expired", "is before what is retained in this order")
            offset = Offset(epoch, offset.position)
        return super().resolve(offset)

    def _cut(self, count: int, dropped: int) -> None:
        super()._cut(count, dropped)
        if self.batches:  # what has expired is no batch: where the last one ended there may be none
            self.cache_from = self.batches[0].position

    async def read(self, position: int, bytes_max: int) -> list[Batch]:
        found = self.read_nowait(position, bytes_max)
        return found if found is not None else await self._later(self, position, bytes_max)


def reached(stream: StreamView, epoch: int, position: int) -> int | None:
    """Where in a stream the references to it end, given the last; None where they are to another of that name."""
    lives, sid = stream.lineage, stream.sid
    for index, (_, life) in enumerate(lives):
        if life == epoch or sid <= epoch < life:  # of its own epochs the oldest are forgotten after many crashes
            return min(position, lives[index + 1][0] if index + 1 < len(lives) else stream.tail)
    return None


def held(stream: StreamView, ref: Reference) -> tuple[int, int]:
    """What a stream still has of a reference: from a position to another."""
    end = reached(stream, ref.epoch, ref.position + ref.length)
    return (0, 0) if end is None else (max(ref.position, stream.start), end)


def enveloped(stream: StreamView, batches: list[Batch], ref: Reference, at: int, end: int) -> list[Batch]:
    """Batches of a stream, up to a position, as a union has them."""
    shift = at - ref.position
    result: list[Batch] = []
    for batch in batches:
        if batch.position < end and batch.records:
            batch = batch.until(end)
            expiring = {
                n: Meta(expires_ms=meta.expires_ms) for n, meta in (batch.meta or {}).items() if meta.expires_ms
            }
            result.append(Batch(batch.position + shift, batch.time_ms, wrap(stream, batch), meta=expiring or None))
    return result


def entries_of(at: int, refs: list[Reference]) -> list[Entry]:
    entries: list[Entry] = []
    for start in range(0, len(refs), REFERENCES_MAX):
        entries.append(Entry(at, refs[start : start + REFERENCES_MAX]))
        at += sum([ref.length for ref in entries[-1].refs])
    return entries
