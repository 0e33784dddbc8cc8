"""The tables of the store, and the statements that write them."""

from __future__ import annotations

import functools
import json
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import apsw
import msgspec
from zlib_ng.zlib_ng import crc32

from wayside.core.engine import (
    END,
    FORGOTTEN,
    AppendState,
    CreateStream,
    DeleteStream,
    Operation,
    Put,
    TouchStream,
    TrimStream,
)
from wayside.core.records import Batch, Meta, StreamConfig, cost_of, metas_between

CHUNK_BYTES = 256 * 1024
"""A chunk row. Large enough that reading runs at the speed of memory, small enough to be one step of a follower."""


class Entry(msgspec.Struct, array_like=True, gc=False):
    """The records of one commit in one stream, as a journal row holds them."""

    sid: int
    position: int
    time_ms: int
    sizes: bytes
    data: bytes
    state: AppendState | None = None
    meta: dict[int, Meta] | None = None

    @property
    def count(self) -> int:
        return len(self.sizes) // 4

    @property
    def weight(self) -> int:
        """Bytes of its records and of what is known beside them."""
        return len(self.data) if self.meta is None else len(self.data) + cost_of(self.meta)


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


FORMAT = 2
UPGRADES = {1: "ALTER TABLE chunk ADD COLUMN meta BLOB"}
"""What makes a store of each earlier format one of the next."""
COLUMNS = "sid, path, config, lineage, start, tail, closed, closed_by, seq, expires_ms, source, fork, gone"

SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE stream(
  sid INTEGER PRIMARY KEY, path TEXT NOT NULL, config BLOB NOT NULL, durability TEXT NOT NULL,
  lineage TEXT NOT NULL, start INTEGER NOT NULL, tail INTEGER NOT NULL, closed INTEGER NOT NULL DEFAULT 0,
  closed_by TEXT, seq TEXT, expires_ms INTEGER, source INTEGER, fork TEXT, gone INTEGER NOT NULL DEFAULT 0,
  age_s INTEGER);
CREATE UNIQUE INDEX stream_path ON stream(path);
CREATE INDEX stream_expiry ON stream(expires_ms) WHERE expires_ms IS NOT NULL;
CREATE INDEX stream_age ON stream(age_s) WHERE age_s IS NOT NULL;
CREATE INDEX stream_source ON stream(source) WHERE source IS NOT NULL;
CREATE TABLE producer(sid INTEGER, id TEXT, epoch INTEGER, seq INTEGER, time_ms INTEGER, PRIMARY KEY(sid, id))
  WITHOUT ROWID;
CREATE TABLE chunk(id INTEGER PRIMARY KEY, sid INTEGER NOT NULL, position INTEGER NOT NULL, count INTEGER NOT NULL,
  size INTEGER NOT NULL, time_ms INTEGER NOT NULL, sizes BLOB NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL,
  meta BLOB);
CREATE UNIQUE INDEX chunk_at ON chunk(sid, position, count, size, time_ms);
CREATE TABLE journal(id INTEGER PRIMARY KEY, entries BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE garbage(sid INTEGER, upto INTEGER, PRIMARY KEY(sid, upto)) WITHOUT ROWID;
"""


def apply(c: apsw.Connection, operation: Operation) -> None:
    """What an operation of a unit does to the tables."""
    match operation:
        case CreateStream(row):
            c.execute(
                f"INSERT INTO stream({COLUMNS}, durability, age_s) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    row.sid,
                    row.path,
                    encode_config(row.config),
                    _lineage(row.lineage),
                    row.start,
                    row.tail,
                    0,
                    None,
                    None,
                    row.expires_ms,
                    row.source,
                    json.dumps(row.fork) if row.fork else None,
                    0,
                    row.config.durability.value,
                    row.config.retention_age_s,
                ),
            )
        case DeleteStream(sid, True):
            c.execute("UPDATE stream SET gone=1, expires_ms=NULL WHERE sid=?", (sid,))
        case DeleteStream(sid, False):
            c.execute("DELETE FROM stream WHERE sid=?", (sid,))
            c.execute("DELETE FROM producer WHERE sid=?", (sid,))
            c.execute("INSERT OR IGNORE INTO garbage VALUES(?, ?)", (sid, END))
        case TrimStream(sid, start):
            c.execute("UPDATE stream SET start=max(start, ?) WHERE sid=?", (start, sid))
            c.execute("INSERT OR IGNORE INTO garbage VALUES(?, ?)", (sid, start))
        case TouchStream(sid, expires_ms):
            c.execute("UPDATE stream SET expires_ms=? WHERE sid=?", (expires_ms, sid))


def _lineage(lineage: list[tuple[int, int]]) -> str:
    """As JSON; that of a stream which is new has one entry."""
    return "[[{}, {}]]".format(*lineage[0]) if len(lineage) == 1 else json.dumps(lineage)


def write_chunk(
    c: apsw.Connection,
    sid: int,
    position: int,
    time_ms: int,
    sizes: bytes,
    data: bytes,
    gap: int = 0,
    meta: bytes | None = None,
) -> None:
    """A run of records as a row; ``gap`` is the length of the separator between them, ``meta`` their packed metadata."""
    count = len(sizes) // 4
    c.execute(
        "INSERT INTO chunk(sid, position, count, size, time_ms, sizes, data, crc, meta) VALUES(?,?,?,?,?,?,?,?,?)",
        (sid, position, count, len(data) - gap * (count - 1), time_ms, sizes, data, chunk_crc(sizes, data, meta), meta),
    )
    # What the journal has of these records is over, also when the row has been freed.
    c.execute("UPDATE stream SET tail=? WHERE sid=?", (position + count, sid))


def write_state(c: apsw.Connection, sid: int, state: AppendState) -> None:
    """What a stream knows beside its records."""
    c.execute(
        "UPDATE stream SET closed=max(closed, ?), closed_by=coalesce(?, closed_by), seq=coalesce(?, seq) WHERE sid=?",
        (state.closed, json.dumps(state.closed_by) if state.closed_by else None, state.seq, sid),
    )
    c.executemany(
        "INSERT OR REPLACE INTO producer VALUES(?, ?, ?, ?, ?)",
        [(sid, name, *value) for name, value in state.producers.items() if value != FORGOTTEN],
    )
    c.executemany(
        "DELETE FROM producer WHERE sid=? AND id=?",
        [(sid, name) for name, value in state.producers.items() if value == FORGOTTEN],
    )
