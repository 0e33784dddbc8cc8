"""Appends of one stream between their acceptance and their commit, and how they are taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from wayside.contracts import Done
from wayside.log.rows import FORGOTTEN, State
from wayside.model import Append, Meta, Producer, Spool, cost_of

if TYPE_CHECKING:
    from wayside.log.stream import Stream


class Pending(msgspec.Struct, eq=False):
    """Appends of one stream that will be committed together, and what to do when they are not."""

    stream: Stream
    position: int
    time_ms: int
    records: list[bytes] = []
    size: int = 0
    acks: list[tuple[Done, int, Producer | None]] = []
    """(whom to tell, tail after the append, producer)"""
    spool: Spool | None = None
    pieces: Sequence[tuple[int, int]] = ()
    before: tuple[bool, Producer | None, str | None] | None = None
    """What the stream knew beside the records, where that changes: closing, closed by, seq."""
    producers: dict[str, tuple[int, int, int] | None] | None = None
    """Producers that appended, and what the stream knew of each before; None: nothing of this kind changes."""
    closes: bool = False
    meta: dict[int, Meta] | None = None
    """What is known beside ``records``, by index there."""
    kept: State | None = None
    """What the stream knew when readers were shown it, if that was before it is committed."""

    @property
    def weight(self) -> int:
        """Bytes of its records and of what is known beside them."""
        return self.size if self.meta is None else self.size + cost_of(self.meta)

    def note_meta(self, metas: dict[int, Meta]) -> None:
        """Take what is known, by index, beside the records that come next."""
        if not metas:
            return
        before = len(self.records)
        if self.meta is None:
            self.meta = {}
        self.meta.update((before + index, meta) for index, meta in metas.items())

    def note(self, append: Append) -> None:
        """Take what an append changes beside the records."""
        stream = self.stream
        if self.producers is None:
            self.producers = {}
        if self.before is None:
            self.before = (stream.closing, stream.closed_by, stream.seq)
            stream.unsettled += 1
        producer = append.producer
        if producer:
            if len(stream.producers) >= stream.limits.producers_max and producer.id not in stream.producers:
                self._forget_oldest(self.producers)
            self.producers.setdefault(producer.id, stream.producers.pop(producer.id, None))
            stream.producers.pop(producer.id, None)  # to the end: the longest silent stand first
            stream.producers[producer.id] = (producer.epoch, producer.seq, self.time_ms)
        if append.seq is not None:
            stream.seq = append.seq
        if append.close:
            self.closes = stream.closing = True
            stream.closed_by = producer

    def _forget_oldest(self, before: dict[str, tuple[int, int, int] | None]) -> None:
        known = self.stream.producers
        oldest = next(iter(known))
        before.setdefault(oldest, known.pop(oldest))

    def state(self) -> State:
        """What the store has to keep beside the records."""
        stream = self.stream
        by = stream.closed_by
        return State(
            stream.closing,
            (by.id, by.epoch, by.seq) if by else None,
            stream.seq,
            {name: stream.producers.get(name, FORGOTTEN) for name in self.producers or ()},
        )

    def undo(self) -> None:
        """Put the stream back to before this. Later pendings are undone first."""
        stream = self.stream
        stream.next = self.position
        if self.before is not None:
            stream.unsettled -= 1
            stream.closing, stream.closed_by, stream.seq = self.before
        for name, before in (self.producers or {}).items():
            if before is None:
                stream.producers.pop(name, None)
            else:
                stream.producers[name] = before
        for meta in (self.meta or {}).values():
            if meta.id and stream.seen is not None:
                stream.seen.pop(meta.id, None)
        if stream.open is self:
            stream.open = None
