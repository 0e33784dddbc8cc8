"""The writing side of the store: one SQLite database through apsw, written by one thread.

Small appends of all streams go into one ``journal`` row per commit, so that a commit touches few pages
however many streams it is about; once a stream has a chunk's worth of records there (or the journal
is full) they are moved into a ``chunk`` row of their own stream. Nothing else is kept twice. Every
page carries a checksum (SQLite's cksumvfs), verified when it is read; that of a page of zeros is zero,
so the rows with records have one too (CRC-32), in their last column.

This module knows nothing of event loops, HTTP or followers. Errors of SQLite leave it only as
``StoreFull``, ``StoreFailed`` and ``DamagedStore``.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import apsw
from zlib_ng.zlib_ng import crc32

from wayside.core.engine import AppendState, Committed, DeleteStream, Put, TrimStream, Unit
from wayside.core.errors import DamagedStore, Refusal, StoreFailed, StoreFull, StoreUnusable
from wayside.core.records import Batch, runs
from wayside.storage.embedded.files import (
    CHECKED_VFS,
    DATABASE,
    WalMark,
    check_before,
    check_wal,
    lock_directory,
    mark_created,
    not_opened,
    open_database,
    read_mark,
    renew_deadlines,
    renew_epochs,
)
from wayside.storage.embedded.history import History, damaged
from wayside.storage.embedded.tables import (
    CHUNK_BYTES,
    FORMAT,
    SCHEMA,
    UPGRADES,
    Entry,
    apply,
    decode_config,
    decode_entries,
    encode_entries,
    pack_metas,
    pack_sizes,
    placed,
    unpack,
    write_chunk,
    write_state,
)

CHUNK_BYTES_MIN = 4096
"""Of a stream that keeps little: a chunk is not too large a part of that."""
CHUNK_RECORDS = 65_536
"""Records of a chunk row: their lengths are read with it."""
JOURNAL_BYTES_MAX = 16 * 1024 * 1024
"""Journalled records are also in memory and are replayed at start: bounds both."""
CHECKPOINT_PAGES = 2000
"""WAL pages (of 8 KiB) at which the writer copies the WAL into the database."""
GARBAGE_BYTES = 8 * 1024 * 1024
"""Chunk rows of deleted streams freed in one transaction: bounds how long publishers wait for it."""
EPOCH_BLOCK = 1 << 20
ERRORS = (apsw.Error, OSError, ValueError)
"""What a disk, or what is on it, can raise."""


class Unsealed:
    """What one stream has in the journal and not yet in a chunk row."""

    __slots__ = ("entries", "first", "separator", "size")

    def __init__(self, first: int, separator: bytes) -> None:
        self.first = first
        self.separator = separator
        self.entries: list[Entry] = []
        self.size = 0

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.size += entry.weight


class Store:
    """An open store directory. ``commit`` and ``maintain`` belong to one thread; ``history`` reads what is committed."""

    def __init__(self, directory: Path, *, vfs: str = CHECKED_VFS, now_ms: int) -> None:
        self.directory = directory
        self.path = directory / DATABASE
        self.failed: str | None = None
        self._unsealed: OrderedDict[int, Unsealed] = OrderedDict()
        self._journal: OrderedDict[int, int] = OrderedDict()  # id to bytes
        self._journal_bytes = 0
        self._journal_next = 1
        self._wal_pages = 0
        self._garbage = True
        self.incomplete = False
        """Acknowledged records never came here: the next start has to treat ``async`` streams as after a crash."""
        with contextlib.ExitStack() as opened:  # closes again what was opened before a refusal
            self._lock = opened.enter_context(lock_directory(directory))
            check_before(directory)
            self._writer = opened.enter_context(contextlib.closing(open_database(self.path, vfs)))
            self._wal_mark = opened.enter_context(contextlib.closing(WalMark(self._lock, self.path)))
            self._writer.set_wal_hook(self._on_wal)
            self.history = opened.enter_context(contextlib.closing(History(self.path, vfs)))
            try:
                check_wal(self._writer, self.path)
                self._open(now_ms)
                mark_created(self._lock)
            except apsw.Error as error:
                raise not_opened(self.path, error) from error
            except ValueError as error:
                raise damaged(self.path, error) from error
            except OSError as error:
                raise StoreUnusable(f"{directory} cannot be opened: {error}.") from error
            opened.pop_all()

    # -- opening

    def _open(self, now_ms: int) -> None:
        c = self._writer
        c.execute("BEGIN IMMEDIATE")
        blank = c.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
        if blank and not read_mark(self.directory)[0]:
            c.execute(SCHEMA)
            c.executemany(
                "INSERT INTO meta VALUES(?, ?)", [("format", FORMAT), ("epoch_next", 0), ("clean", 1), ("opens", 0)]
            )
        meta = dict(c.execute("SELECT key, value FROM meta"))
        while (form := meta.get("format")) in UPGRADES:
            c.execute(UPGRADES[form])
            meta["format"] = form + 1
            c.execute("UPDATE meta SET value=? WHERE key='format'", (form + 1,))
        if meta.get("format") != FORMAT:
            raise DamagedStore(
                f"{self.path} has store format {meta.get('format')!r}; this version of Wayside reads format {FORMAT}. "
                "Use the version that wrote it."
            )
        self.epoch_next = max(int(meta["epoch_next"]), now_ms)
        self.clean = bool(meta["clean"])
        self.replayed = self._replay()
        if not blank:
            self._rehearse()
        if not self.clean:
            renew_epochs(c, self._journal_ends(), self.take_epoch)
            renew_deadlines(c, now_ms)
        c.execute("UPDATE meta SET value=? WHERE key='epoch_next'", (self.epoch_next + EPOCH_BLOCK,))
        c.execute("UPDATE meta SET value=0 WHERE key='clean'")
        c.execute("UPDATE meta SET value=value+1 WHERE key='opens'")
        c.execute("COMMIT")
        self._epoch_limit = self.epoch_next + EPOCH_BLOCK

    def _rehearse(self) -> None:
        """Read what the log will ask for at once: damage to it is found before anything is written."""
        self.history.count()
        for sid in self.replayed:
            at: int | None = sid
            while at is not None:
                row = self.history.find_sid(at)
                self.history.forks_of(at)
                at = row.source if row else None

    def take_epoch(self) -> int:
        """A number never given out before by this store; also a new stream's ``sid``."""
        epoch = self.epoch_next
        self.epoch_next += 1
        return epoch

    @property
    def epochs_short(self) -> bool:
        """Whether the reserved epochs are running out: then the next commit reserves more."""
        return self.epoch_next > self._epoch_limit - EPOCH_BLOCK // 2

    def _replay(self) -> dict[int, list[Batch]]:
        """Bring the journal back into memory; returns the batches of each stream by sid."""
        separators: dict[int, bytes | None] = {}
        batches: dict[int, list[Batch]] = {}
        for number, blob, crc in self._writer.execute("SELECT id, entries, crc FROM journal ORDER BY id"):
            if crc32(blob) != crc:
                raise damaged(self.path, f"the checksum of journal row {number} does not verify")
            self._journal[number] = len(blob)
            self._journal_bytes += len(blob)
            self._journal_next = number + 1
            for entry in decode_entries(blob):
                if entry.sid not in separators:
                    separators[entry.sid] = self._separator(entry.sid)
                separator = separators[entry.sid]
                if separator is None or entry.position < self._sealed_end(entry.sid):
                    continue
                self._unseal(entry, number, separator)
                if entry.count:
                    batch = unpack(entry.position, entry.time_ms, entry.sizes, entry.data, separator, meta=entry.meta)
                    batches.setdefault(entry.sid, []).append(batch)
                else:
                    batches.setdefault(entry.sid, [])
        return batches

    def journalled_states(self, sid: int) -> list[AppendState]:
        """What appends that are still in the journal changed in a stream beside its records, oldest first."""
        unsealed = self._unsealed.get(sid)
        return [entry.state for entry in unsealed.entries if entry.state] if unsealed else []

    def journalled(self, sid: int) -> tuple[list[Batch], list[AppendState]]:
        """What the journal has of a stream, and no chunk row: records, and what changed beside them, oldest first. On the
        writer's thread."""
        unsealed = self._unsealed.get(sid)
        if unsealed is None:
            return [], []
        batches = [
            unpack(entry.position, entry.time_ms, entry.sizes, entry.data, unsealed.separator, meta=entry.meta)
            for entry in unsealed.entries
            if entry.count
        ]
        return batches, self.journalled_states(sid)

    def _journal_ends(self) -> dict[int, int]:
        """The position after the last record that a stream has in the journal."""
        lasts = {sid: unsealed.entries[-1] for sid, unsealed in self._unsealed.items() if unsealed.entries}
        return {sid: last.position + last.count for sid, last in lasts.items()}

    def _separator(self, sid: int) -> bytes | None:
        row = self._writer.execute("SELECT config FROM stream WHERE sid=?", (sid,)).fetchone()
        return None if row is None else (b"," if decode_config(row[0]).is_json else b"")

    def _sealed_end(self, sid: int) -> int:
        """Up to where chunk rows had the records, those that were let go since included."""
        row = self._writer.execute("SELECT tail FROM stream WHERE sid=?", (sid,)).fetchone()
        return int(row[0]) if row else 0

    # -- writing, on the writer's thread

    def commit(self, unit: Unit) -> Committed:
        """Make ``unit`` durable; returns after the fsync.

        Raises :class:`StoreFull` (nothing of the unit was written; later units may be) or
        :class:`StoreFailed` (nothing more will ever be acknowledged by this object).
        """
        if self.failed:
            raise StoreFailed(self.failed)
        result = Committed()
        fresh: dict[int, list[Entry]] = {}
        fill: dict[int, int] = {}
        size = 0
        short = self.epochs_short
        try:
            c = self._writer
            if unit.operations or short or self._journal_bytes > JOURNAL_BYTES_MAX:
                self._begin()
            for operation in unit.operations:
                apply(self._writer, operation)
            for put in unit.puts:
                self._put(put, fresh, fill, result)
            if fresh:  # for most commits this statement is all of the transaction
                blob = encode_entries([entry for entries in fresh.values() for entry in entries])
                size = len(blob)
                c.execute("INSERT INTO journal VALUES(?, ?, ?)", (self._journal_next, blob, crc32(blob)))
            dropped = self._make_room(result, sum(put.weight for put in unit.puts))
            limit = self._epoch_limit
            if short:
                limit = self.epoch_next + EPOCH_BLOCK
                c.execute("UPDATE meta SET value=? WHERE key='epoch_next'", (limit,))
            if c.in_transaction:
                c.execute("COMMIT")
        except ERRORS as error:
            raise self._translated("write", error) from error
        self._epoch_limit = limit
        self._adopt(unit, result, fresh, size, dropped)
        return result

    def _begin(self) -> None:
        if not self._writer.in_transaction:
            self._writer.execute("BEGIN IMMEDIATE")

    def _put(self, put: Put, fresh: dict[int, list[Entry]], fill: dict[int, int], result: Committed) -> None:
        """Into the journal row of this commit; or, when that fills a chunk, all that the stream has into a chunk row.
        ``fill`` is the bytes that each stream has in ``fresh``."""
        sid = put.sid
        waiting = None if sid in result.sealed else self._unsealed.get(sid)
        new = fresh.get(sid)
        size = weight = put.weight
        if waiting is not None:
            size += waiting.size
        if new is not None:
            size += fill[sid]
        if put.records and size < CHUNK_BYTES and (size < CHUNK_BYTES_MIN or size < put.keep_bytes // 8):
            data = put.separator.join(put.records)
            entry = Entry(sid, put.position, put.time_ms, pack_sizes(put.records), data, put.state, put.meta)
            if new is None:
                fresh[sid], fill[sid] = [entry], weight
            else:
                new.append(entry)
                fill[sid] += weight
            return
        held = Unsealed(0, put.separator)
        held.entries = [*(waiting.entries if waiting else ()), *(new or ())]
        fresh.pop(sid, None)
        self._begin()
        if put.spool is None:
            self._seal(sid, held, put)
        else:
            self._seal(sid, held, None)
            self._write_pieces(put)
        result.sealed[sid] = put.end

    def _adopt(self, unit: Unit, result: Committed, fresh: dict[int, list[Entry]], size: int, dropped: int) -> None:
        """What a commit changed, once it is one."""
        for sid in result.sealed:
            self._unsealed.pop(sid, None)
        for put in unit.puts:
            if put.sid in fresh:
                for entry in fresh.pop(put.sid):
                    self._unseal(entry, self._journal_next, put.separator)
        for operation in unit.operations:
            if isinstance(operation, DeleteStream) and not operation.soft:
                self._unsealed.pop(operation.sid, None)
                self._garbage = True
            elif isinstance(operation, TrimStream):
                self._garbage = True
        while self._journal and next(iter(self._journal)) < dropped:
            self._journal_bytes -= self._journal.popitem(last=False)[1]
        if size:
            self._journal[self._journal_next] = size
            self._journal_bytes += size
            self._journal_next += 1

    def _unseal(self, entry: Entry, number: int, separator: bytes) -> None:
        unsealed = self._unsealed.get(entry.sid)
        if unsealed is None:
            unsealed = self._unsealed[entry.sid] = Unsealed(number, separator)
        unsealed.add(entry)

    def _seal(self, sid: int, unsealed: Unsealed, put: Put | None) -> None:
        """Write what a stream has in the journal, and ``put`` after it, as a chunk row; as several where ``put`` is long."""
        sizes = [entry.sizes for entry in unsealed.entries]
        parts = [entry.data for entry in unsealed.entries if entry.count]
        more: list[list[bytes]] = []
        state = AppendState()
        for entry in unsealed.entries:
            if entry.state:
                state = state.merge(entry.state)
        if unsealed.entries:
            position, time_ms = unsealed.entries[0].position, unsealed.entries[-1].time_ms
        if put is not None:
            if not unsealed.entries:
                position = put.position
            time_ms = put.time_ms
            first, *more = runs(put.records, put.size, CHUNK_BYTES, CHUNK_RECORDS)
            if first:
                sizes.append(pack_sizes(first))
                parts.append(put.separator.join(first))
            if put.state:
                state = state.merge(put.state)
        packed = b"".join(sizes)
        assert all(a.position + a.count == b.position for a, b in pairwise(unsealed.entries)), "a gap in the journal"
        if packed:
            separator = unsealed.separator
            metas = placed([*unsealed.entries, *((put,) if put is not None else ())])
            rows = [(packed, separator.join(parts)), *((pack_sizes(run), separator.join(run)) for run in more)]
            for packed, data in rows:
                meta = pack_metas(metas, position, len(packed) // 4) if metas else None
                write_chunk(self._writer, sid, position, time_ms, packed, data, len(separator), meta)
                position += len(packed) // 4
        if state != AppendState():
            write_state(self._writer, sid, state)

    def _write_pieces(self, put: Put) -> None:
        assert put.spool is not None
        for index, (start, length) in enumerate(put.pieces):
            data = put.spool.read(start, length)
            write_chunk(self._writer, put.sid, put.position + index, put.time_ms, pack_sizes([data]), data)
        if put.state:
            write_state(self._writer, put.sid, put.state)

    def _make_room(self, result: Committed, written: int) -> int:
        """While the journal is over its bound, seal the streams that have waited longest, a little at each commit.
        Returns the journal id below which rows were dropped."""
        if self._journal_bytes <= JOURNAL_BYTES_MAX:
            return 0
        budget = 2 * written + CHUNK_BYTES
        floor = self._journal_next
        for sid, unsealed in self._unsealed.items():
            if sid in result.sealed:
                continue
            if budget <= 0:
                floor = unsealed.first
                break
            self._seal(sid, unsealed, None)
            last = unsealed.entries[-1]
            result.sealed[sid] = last.position + last.count
            budget -= unsealed.size + 256
        self._writer.execute("DELETE FROM journal WHERE id < ?", (floor,))
        return floor

    def maintain(self) -> None:
        """Work that nobody waits for: free the rows of deleted streams a little; copy the WAL when it has grown."""
        if self.failed or not (self._garbage or self._wal_pages >= CHECKPOINT_PAGES):
            return
        try:
            if self._garbage:
                self._collect()
            if self._wal_pages >= CHECKPOINT_PAGES:
                self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
        except ERRORS as error:
            raise self._translated("maintain", error) from error

    def _collect(self) -> None:
        c = self._writer
        row = c.execute("SELECT sid, upto FROM garbage LIMIT 1").fetchone()
        if row is None:
            self._garbage = False
            return
        c.execute("BEGIN IMMEDIATE")
        ids: list[tuple[int]] = []
        freed = 0
        for number, size in c.execute(
            "SELECT id, size FROM chunk WHERE sid=?1 AND position < ?2 AND position + count <= ?2 ORDER BY position "
            "LIMIT 1000",
            row,
        ):
            ids.append((number,))
            freed += size
            if freed >= GARBAGE_BYTES:
                break
        c.executemany("DELETE FROM chunk WHERE id=?", ids)
        if not ids:
            c.execute("DELETE FROM garbage WHERE sid=? AND upto=?", row)
        c.execute("COMMIT")

    @property
    def has_garbage(self) -> bool:
        return self._garbage

    def _on_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        self._wal_mark.note(pages)
        return apsw.SQLITE_OK

    def _checkpoint(self, mode: int) -> None:
        try:
            self._writer.wal_checkpoint(mode=mode)
        except (apsw.BusyError, apsw.FullError):
            return  # a reader holds it, or there is no room: the WAL grows on
        finally:
            self._wal_pages = 0
            self._wal_mark.may_begin_anew()

    def _translated(self, doing: str, error: Exception) -> Refusal:
        """Roll back, and say what SQLite raised. After anything but a full disk the store stays failed: an fsync that
        failed may have dropped the pages, and trying it again would report a success that is none."""
        if isinstance(error, apsw.FullError):
            self._rollback()
            return StoreFull(
                f"There is no room for {self.path}. Nothing was appended; free some space and send it again.",
                headers={"Retry-After": "1"},
            )
        self._fail(doing, error)
        misread = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA
        if misread or isinstance(error, apsw.CorruptError | apsw.NotADBError):
            return damaged(self.path, error)
        return StoreFailed(str(self.failed))

    def _fail(self, doing: str, error: Exception) -> None:
        self._rollback()
        self.failed = (
            f"The disk under {self.path} failed ({doing}: {type(error).__name__}: {error}). Nothing is acknowledged "
            f"any more. Look at the disk, run `wayside check {self.directory}`, then start again."
        )

    def _rollback(self) -> None:
        with contextlib.suppress(apsw.Error):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    @property
    def size(self) -> int:
        """Bytes on disk."""
        total = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                total += Path(f"{self.path}{suffix}").stat().st_size
        return total

    # -- closing

    def close(self) -> None:
        """Seal the journal, copy the WAL, mark the store clean. After a failure: only let go of the files."""
        try:
            if not self.failed:
                try:
                    c = self._writer
                    c.execute("BEGIN IMMEDIATE")
                    for sid, unsealed in self._unsealed.items():
                        self._seal(sid, unsealed, None)
                    c.execute("DELETE FROM journal")
                    c.execute("UPDATE meta SET value=? WHERE key='clean'", (not self.incomplete,))
                    c.execute("UPDATE meta SET value=? WHERE key='epoch_next'", (self.epoch_next,))
                    c.execute("COMMIT")
                    self._wal_mark.clear()
                    self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
                except ERRORS as error:
                    raise self._translated("close", error) from error
        except StoreFull:
            pass  # nothing is lost: the journal is replayed at the next start
        finally:
            self.history.close()
            self._writer.close()
            self._wal_mark.close()
            self._lock.close()
