"""What the event loop hands to the writer thread, and what the store hands back: values only.

A ``Unit`` is one transaction. Bytes of a journal row: MessagePack, an array of entries, each the array
``[sid, position, time_ms, sizes, data, state, meta]``; ``sizes`` are little-endian uint32, ``data`` the
records joined by the stream's separator, ``meta`` what is known beside records by their index, or nil. The
metadata of a chunk row: MessagePack, an array of ``[index, time_ms, meta]``.
"""

from __future__ import annotations

import functools
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from zlib_ng.zlib_ng import crc32

from wayside.model import Batch, Meta, Offset, Spool, StreamConfig, cost_of, metas_between

FORGOTTEN = (-1, -1, 0)
CHUNK_BYTES = 256 * 1024
"""A chunk row. Large enough that reading runs at the speed of memory, small enough to be one step of a follower."""


class State(msgspec.Struct, array_like=True, omit_defaults=False, gc=False):
    """What appends change in a stream beside its records; the newest wins."""

    closed: bool = False
    closed_by: tuple[str, int, int] | None = None
    seq: str | None = None
    producers: dict[str, tuple[int, int, int]] = {}
    """Producer id to epoch, seq, wall-clock milliseconds; to ``FORGOTTEN`` where it gave way to another."""

    def merge(self, newer: State) -> State:
        return State(
            self.closed or newer.closed,
            newer.closed_by or self.closed_by,
            newer.seq if newer.seq is not None else self.seq,
            self.producers | newer.producers,
        )


class Entry(msgspec.Struct, array_like=True, gc=False):
    """The records of one commit in one stream, as a journal row holds them."""

    sid: int
    position: int
    time_ms: int
    sizes: bytes
    data: bytes
    state: State | None = None
    meta: dict[int, Meta] | None = None

    @property
    def count(self) -> int:
        return len(self.sizes) // 4

    @property
    def weight(self) -> int:
        """Bytes of its records and of what is known beside them."""
        return len(self.data) if self.meta is None else len(self.data) + cost_of(self.meta)


class Put(msgspec.Struct, gc=False):
    """An append on its way to the disk: ``records``, or ``pieces`` of a spool."""

    sid: int
    position: int
    time_ms: int
    records: list[bytes]
    size: int
    separator: bytes
    chunk_bytes: int
    """Fill at which the stream's journalled records become a chunk row."""
    state: State | None = None
    spool: Spool | None = None
    pieces: Sequence[tuple[int, int]] = ()
    meta: dict[int, Meta] | None = None

    @property
    def weight(self) -> int:
        """Bytes of its records and of what is known beside them."""
        return self.size if self.meta is None else self.size + cost_of(self.meta)

    @property
    def end(self) -> int:
        return self.position + (len(self.pieces) if self.spool else len(self.records))


def offset_in(lineage: list[tuple[int, int]], position: int) -> Offset:
    """The token for a position of a stream: in the epoch in which the record before it was written."""
    for first, epoch in reversed(lineage):
        if first < position:
            return Offset(epoch, position)
    return Offset(lineage[0][1], position)


@dataclass(slots=True)
class StreamRow:
    """A stream as the store has it."""

    sid: int
    path: str
    config: StreamConfig
    lineage: list[tuple[int, int]]
    """(first position, epoch) of every life that the positions come from, oldest first."""
    start: int = 0
    tail: int = 0
    size: int = 0
    state: State = field(default_factory=State)
    expires_ms: int | None = None
    source: int | None = None
    """``sid`` of the stream it was forked from."""
    fork: tuple[str, str | None, int] | None = None
    """The fork as it was asked for: source path, offset, sub-offset."""
    gone: bool = False
    """Soft-deleted: kept for its forks only."""


@dataclass(slots=True)
class CreateStream:
    row: StreamRow


@dataclass(slots=True)
class DeleteStream:
    sid: int
    soft: bool


@dataclass(slots=True)
class TrimStream:
    """Everything before ``start`` is no longer retained."""

    sid: int
    start: int


@dataclass(slots=True)
class TouchStream:
    sid: int
    expires_ms: int


Operation = CreateStream | DeleteStream | TrimStream | TouchStream


@dataclass(slots=True)
class Unit:
    """One transaction: operations in order, then puts in order."""

    operations: list[Operation] = field(default_factory=list)
    puts: list[Put] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.operations or self.puts)


@dataclass(slots=True)
class Committed:
    """What a commit did beside writing: ``sealed`` maps a sid to the position up to which chunk rows hold it."""

    sealed: dict[int, int] = field(default_factory=dict)


def pack_sizes(records: list[bytes]) -> bytes:
    """The lengths of ``records`` as little-endian uint32."""
    if len(records) == 1:
        return len(records[0]).to_bytes(4, "little")
    sizes = array("I", map(len, records))
    if sys.byteorder == "big":
        sizes.byteswap()
    return sizes.tobytes()


def unpack_sizes(sizes: bytes) -> array[int]:
    """What :func:`pack_sizes` packed."""
    lengths = array("I", sizes)
    if sys.byteorder == "big":
        lengths.byteswap()
    return lengths


def unpack(
    position: int,
    time_ms: int,
    sizes: bytes,
    data: bytes,
    separator: bytes,
    since: int = 0,
    count_max: int = 1 << 62,
    meta: dict[int, Meta] | None = None,
) -> Batch:
    """The batch that :func:`pack_sizes` and ``separator.join`` made, or ``count_max`` records of it from the position
    ``since`` on. Raises ValueError where they do not agree."""
    lengths = unpack_sizes(sizes)
    gap = len(separator)
    if sum(lengths) + gap * (len(lengths) - 1) != len(data):
        raise ValueError(f"{len(lengths)} record sizes do not add up to {len(data)} bytes")
    if len(lengths) == 1:
        return Batch(position, time_ms, [data], meta=meta)
    records: list[bytes] = []
    skip = max(0, since - position)
    at = sum(lengths[:skip]) + gap * skip
    position += skip
    for length in lengths[skip : skip + count_max]:
        records.append(data[at : at + length])
        at += length + gap
    return Batch(position, time_ms, records, meta=metas_between(meta, skip, skip + len(records)))


def chunk_crc(sizes: bytes, data: bytes, meta: bytes | None = None) -> int:
    """Checksum of a chunk row."""
    crc = crc32(data, crc32(sizes))
    return crc if meta is None else crc32(meta, crc)


def placed(parts: Sequence[Entry | Put]) -> list[tuple[int, int, Meta]]:
    """The metadata of ``parts`` of one stream as (position, time, meta), in order."""
    return [
        (part.position + index, part.time_ms, part.meta[index])
        for part in parts
        if part.meta is not None
        for index in sorted(part.meta)
    ]


def pack_metas(metas: list[tuple[int, int, Meta]], position: int, count: int) -> bytes | None:
    """Of what is :func:`placed` the part for a chunk row of ``count`` records from ``position`` on."""
    part = [(at - position, time_ms, meta) for at, time_ms, meta in metas if position <= at < position + count]
    return _encode_metas(part) if part else None


def unpack_metas(packed: bytes) -> list[tuple[int, int, Meta]]:
    """What :func:`pack_metas` packed: (index, time, meta). Raises ValueError for what it did not."""
    try:
        return _decode_metas(packed)
    except msgspec.DecodeError as error:
        raise ValueError(f"metadata of records: {error}") from error


def metas_of(packed: bytes | None) -> dict[int, Meta] | None:
    """The same by index, as a batch has it."""
    return None if packed is None else {index: meta for index, _time_ms, meta in unpack_metas(packed)}


@functools.lru_cache(64)
def encode_config(config: StreamConfig) -> bytes:
    return msgspec.json.encode(config)


def decode_config(text: bytes) -> StreamConfig:
    return msgspec.json.decode(text, type=StreamConfig)


_encode_metas: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
_decode_metas = msgspec.msgpack.Decoder(list[tuple[int, int, Meta]]).decode
encode_entries: Callable[[list[Any]], bytes] = msgspec.msgpack.Encoder().encode
decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode
