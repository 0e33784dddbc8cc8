"""What the event loop hands to the writer thread, and what the store hands back: values only.

A ``Unit`` is one transaction. Bytes of a journal row: MessagePack, an array of entries, each the array
``[sid, position, time_ms, sizes, data, state]``; ``sizes`` are little-endian uint32, ``data`` the
records joined by the stream's separator.
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

from wayside.model import Batch, Spool, StreamConfig

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

    @property
    def count(self) -> int:
        return len(self.sizes) // 4


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

    @property
    def end(self) -> int:
        return self.position + (len(self.pieces) if self.spool else len(self.records))


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
    position: int, time_ms: int, sizes: bytes, data: bytes, separator: bytes, since: int = 0, count_max: int = 1 << 62
) -> Batch:
    """The batch that :func:`pack_sizes` and ``separator.join`` made, or ``count_max`` records of it from the position
    ``since`` on. Raises ValueError where they do not agree."""
    lengths = unpack_sizes(sizes)
    gap = len(separator)
    if sum(lengths) + gap * (len(lengths) - 1) != len(data):
        raise ValueError(f"{len(lengths)} record sizes do not add up to {len(data)} bytes")
    if len(lengths) == 1:
        return Batch(position, time_ms, [data])
    records: list[bytes] = []
    skip = max(0, since - position)
    at = sum(lengths[:skip]) + gap * skip
    position += skip
    for length in lengths[skip : skip + count_max]:
        records.append(data[at : at + length])
        at += length + gap
    return Batch(position, time_ms, records)


def chunk_crc(sizes: bytes, data: bytes) -> int:
    """Checksum of a chunk row."""
    return crc32(data, crc32(sizes))


@functools.lru_cache(64)
def encode_config(config: StreamConfig) -> bytes:
    return msgspec.json.encode(config)


def decode_config(text: bytes) -> StreamConfig:
    return msgspec.json.decode(text, type=StreamConfig)


encode_entries: Callable[[list[Any]], bytes] = msgspec.msgpack.Encoder().encode
decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode
