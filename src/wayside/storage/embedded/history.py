"""The reading side of the store: records and streams as of the last commit.

Two read-only connections: one for records, used by one reader thread at a time, one for streams, used by
the event loop. What SQLite raises leaves here as ``DamagedStore``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from wayside.core.engine import END, AppendState, Head, offset_in
from wayside.core.errors import DamagedStore
from wayside.core.records import Batch, StreamTail
from wayside.storage.embedded.files import open_database
from wayside.storage.embedded.tables import (
    COLUMNS,
    chunk_crc,
    decode_config,
    metas_of,
    unpack,
    unpack_metas,
    unpack_sizes,
)


def damaged(path: Path, what: object) -> DamagedStore:
    """The error for a file that is not what was written to it."""
    return DamagedStore(
        f"{path} is damaged: {what}. Nothing was repaired and nothing deleted. Stop the hub and run "
        f"`wayside check {path.parent}`: it reads every record and names what is affected, and changes nothing. "
        "Then restore the directory from a backup, or copy out the streams that are whole.",
        fields={"file": str(path)},
    )


def _named(prefix: str, exact: bool) -> tuple[str, tuple[str, ...]]:
    """The condition that a path begins with ``prefix``, or is it."""
    return ("path = ?", (prefix,)) if exact else ("path >= ? AND path < ?", (prefix, prefix + "\U0010ffff"))


class History:
    """What is committed in the database at ``path``."""

    def __init__(self, path: Path, vfs: str) -> None:
        self.path = path
        self._records = open_database(path, vfs, readonly=True)
        self._streams = open_database(path, vfs, readonly=True)

    def close(self) -> None:
        self._records.close()
        self._streams.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (apsw.Error, ValueError) as error:
            raise damaged(self.path, error) from error

    def read(self, sid: int, position: int, bytes_max: int, records_max: int, separator: bytes) -> list[Batch]:
        """Batches from ``position`` on, about ``bytes_max`` bytes and at most ``records_max`` records of them, at least
        one. Of one thread at a time.

        Raises :class:`DamagedStore` where records that were committed cannot be read.
        """
        batches: list[Batch] = []
        total = 0
        with self._translated():
            try:
                for at, count, time_ms, sizes, data, crc, meta in self._records.execute(
                    "SELECT position, count, time_ms, sizes, data, crc, meta FROM chunk WHERE sid=?1 AND position >= coalesce("
                    "(SELECT max(position) FROM chunk WHERE sid=?1 AND position <= ?2), ?2) ORDER BY position",
                    (sid, position),
                ):
                    expected = batches[-1].end if batches else position
                    if not (at <= expected < at + count) or count != len(sizes) // 4:
                        break
                    if chunk_crc(sizes, data, meta) != crc:
                        raise ValueError(f"the checksum of records {at} to {at + count - 1} does not verify")
                    batch = unpack(at, time_ms, sizes, data, separator, expected, records_max, metas_of(meta))
                    batches.append(batch)
                    total += batch.size
                    records_max -= batch.count
                    if total >= bytes_max or records_max <= 0 or batch.end < at + count:
                        break
            except (apsw.Error, ValueError):
                if not batches:  # else what is before the damage is good
                    raise
        if not batches:
            raise damaged(self.path, f"records from {position} of stream {sid:011x} are missing")
        return batches

    def identities(self, sid: int, since_ms: int, count_max: int) -> list[tuple[str, int, int]]:
        """Message ids of sealed records not older than ``since_ms``, newest first, as (id, position after the record, time
        in ms). Of the same thread as :meth:`read`."""
        found: list[tuple[str, int, int]] = []
        with self._translated():
            for position, time_ms, packed in self._records.execute(
                "SELECT position, time_ms, meta FROM chunk INDEXED BY chunk_at WHERE sid=? ORDER BY position DESC",
                (sid,),
            ):
                if time_ms < since_ms or len(found) >= count_max:
                    break
                for index, at_ms, meta in reversed(unpack_metas(packed) if packed is not None else ()):
                    if meta.id and at_ms >= since_ms:
                        found.append((meta.id, position + index + 1, at_ms))
        return found

    def find(self, path: str) -> Head | None:
        """The stream at ``path``."""
        return self._find("path=?", path)

    def find_sid(self, sid: int) -> Head | None:
        return self._find("sid=?", sid)

    def _find(self, where: str, value: str | int) -> Head | None:
        with self._translated():
            found: Any = self._streams.execute(f"SELECT {COLUMNS} FROM stream WHERE {where}", (value,)).fetchone()
            if found is None:
                return None
            (sid, path, config, lineage, start, tail, closed, closed_by, seq, expires_ms, source, fork, gone) = found
            producers: dict[str, tuple[int, int, int]] = {}
            rows: Any = self._streams.execute(
                "SELECT id, epoch, seq, time_ms FROM producer WHERE sid=? ORDER BY time_ms", (sid,)
            )
            for name, epoch, number, time_ms in rows:
                producers[name] = (epoch, number, time_ms)
            totals: Any = self._streams.execute(
                "SELECT coalesce(sum(size), 0), coalesce(max(position + count), 0) FROM chunk "
                "WHERE sid=? AND position + count > ?",
                (sid, start),
            ).fetchone()
            by = json.loads(closed_by) if closed_by else None
            return Head(
                sid=sid,
                path=path,
                config=decode_config(config),
                lineage=[(at, epoch) for at, epoch in json.loads(lineage)],
                start=start,
                tail=max(tail, totals[1]),
                size=totals[0] - self._bytes_before(sid, start),
                state=AppendState(bool(closed), tuple(by) if by else None, seq, producers),
                expires_ms=expires_ms,
                source=source,
                fork=tuple(json.loads(fork)) if fork else None,
                gone=bool(gone),
            )

    def _bytes_before(self, sid: int, start: int) -> int:
        """Bytes before ``start`` in the chunk in whose middle it is; 0 where it is where a chunk begins."""
        rows: Any = self._streams.execute(
            "SELECT position, sizes FROM chunk WHERE sid=?1 AND position < ?2 AND position + count > ?2", (sid, start)
        )
        return sum(sum(unpack_sizes(sizes)[: start - position]) for position, sizes in rows)

    def _values(self, query: str, *bindings: str | int) -> list[Any]:
        with self._translated():
            return [row[0] for row in self._streams.execute(query, bindings)]

    def forks_of(self, sid: int) -> int:
        """How many streams were forked from it and exist."""
        return int(self._values("SELECT count(*) FROM stream WHERE source=?", sid)[0])

    def count(self) -> int:
        """Streams that are not deleted."""
        return int(self._values("SELECT count(*) FROM stream WHERE gone=0")[0])

    def paths(self, prefix: str, after: str, limit: int, *, open_only: bool = False) -> list[str]:
        """Paths that begin with ``prefix``, after ``after``, in order. ``open_only`` leaves out streams that are closed;
        not those of which only the journal knows it."""
        closed = " AND closed=0" if open_only else ""
        return self._values(
            f"SELECT path FROM stream WHERE path > ? AND path >= ? AND path < ? AND gone=0{closed} ORDER BY path LIMIT ?",
            after,
            prefix,
            prefix + "\U0010ffff",
            limit,
        )

    def tails(self, prefix: str, now_ms: int, *, exact: bool = False) -> Iterator[tuple[int, StreamTail]]:
        """Sid and tail of each stream whose path begins with ``prefix``, or is ``exact``-ly it, and whose time is not over;
        without forks."""
        where, bindings = _named(prefix, exact)
        with self._translated():
            rows: Any = self._streams.execute(
                f"SELECT sid, path, lineage, start, tail, closed FROM stream WHERE {where} AND gone=0 AND source IS NULL "
                "AND (expires_ms IS NULL OR expires_ms > ?)",
                (*bindings, now_ms),
            ).fetchall()
            for sid, path, lineage, start, tail, closed in rows:
                lives = json.loads(lineage)
                yield sid, StreamTail(path, offset_in(lives, start), offset_in(lives, tail), bool(closed))

    def forks(self, prefix: str, now_ms: int, *, exact: bool = False) -> list[str]:
        """The paths of the forks that :meth:`tails` leaves out."""
        where, bindings = _named(prefix, exact)
        return self._values(
            f"SELECT path FROM stream WHERE {where} AND gone=0 AND source IS NOT NULL "
            "AND (expires_ms IS NULL OR expires_ms > ?)",
            *bindings,
            now_ms,
        )

    def expired(self, now_ms: int, limit: int) -> list[str]:
        """Paths of streams whose time is over."""
        return self._values("SELECT path FROM stream WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?", now_ms, limit)

    def aged(self) -> list[str]:
        """Paths of streams that keep records for a time only."""
        return self._values("SELECT path FROM stream WHERE age_s IS NOT NULL AND gone=0")

    def start_after(
        self, sid: int, start: int, *, drop_bytes: int = 0, before_ms: int = 0, upto: int = END
    ) -> tuple[int, int]:
        """Where retention would let a stream begin, dropping whole chunks from ``start`` on: the oldest while they fit
        into ``drop_bytes``, and those whose newest record is older than ``before_ms``; none that ends after the position
        ``upto``. Returns (position, bytes)."""
        dropped = 0
        with self._translated():
            before = self._bytes_before(sid, start)
            rows: Any = self._streams.execute(
                "SELECT position, count, size, time_ms FROM chunk WHERE sid=? AND position + count > ? ORDER BY position",
                (sid, start),
            )
            for position, count, size, time_ms in rows:
                if position + count > upto or (dropped + size - before > drop_bytes and time_ms >= before_ms):
                    break
                start = position + count
                dropped += size - before
                before = 0
        return start, dropped
