"""The tables of the store, and the statements that write them."""

from __future__ import annotations

import json

import apsw

from wayside.log.rows import (
    FORGOTTEN,
    CreateStream,
    DeleteStream,
    Operation,
    State,
    TouchStream,
    TrimStream,
    chunk_crc,
    encode_config,
)

FORMAT = 2
UPGRADES = {1: "ALTER TABLE chunk ADD COLUMN meta BLOB"}
"""What makes a store of each earlier format one of the next."""
END = (1 << 62) - 1
"""After every position."""
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


def write_state(c: apsw.Connection, sid: int, state: State) -> None:
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
