"""Verifies a store directory that no hub has open, and writes nothing: every page, every row, every stream.

What it finds is a :class:`Report`. The same rules as at a start are applied by the same functions
(``files.check_before``, ``files.check_wal``); beyond them each stream is read as a reader would read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

import apsw
import msgspec
from zlib_ng.zlib_ng import crc32

from wayside.core.errors import DamagedStore, StoreInUse, StoreUnusable
from wayside.core.records import Batch
from wayside.storage.embedded.files import (
    CHECKED_VFS,
    DATABASE,
    LOCK,
    PAGE_BYTES,
    check_before,
    check_wal,
    logged_pages,
    not_opened,
    read_mark,
    require_sqlite,
)
from wayside.storage.embedded.tables import (
    FORMAT,
    UPGRADES,
    Entry,
    chunk_crc,
    decode_config,
    decode_entries,
    metas_of,
    unpack,
)

PROBLEMS_MAX = 1000
"""More are not listed: a disk that is gone has as many as it has pages."""
NAMES_MAX = 20
"""Whole streams that the text of a report names."""


class Problem(NamedTuple):
    """Something that is not what was written."""

    file: str
    stream: str | None
    """The stream that it is known to be about."""
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a store directory holds. Figures count what could be read."""

    directory: Path
    streams: int
    records: int
    bytes: int
    journal_records: int
    """Records, among ``records``, that are in the journal and not yet in chunks of their stream."""
    problems: tuple[Problem, ...]
    whole: tuple[str, ...]
    """Paths of the streams of which every record can be read."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        held = (
            f"{self.streams} streams, {self.records} records ({self.journal_records} of them in the journal), "
            f"{self.bytes} bytes of records"
        )
        if self.ok:
            return f"{self.directory} is whole: {held}."
        lines = [f"{self.directory} is damaged. What can be read: {held}."]
        lines += [f"  {p.file}{f', stream {p.stream}' if p.stream else ''}: {p.text}" for p in self.problems]
        names = ", ".join(self.whole[:NAMES_MAX])
        more = f" and {len(self.whole) - NAMES_MAX} more" if len(self.whole) > NAMES_MAX else ""
        lines.append(f"Whole streams, of which every record can be read: {names + more if names else 'none'}.")
        lines.append(
            "Nothing was changed. Restore the directory from a backup, or copy out the streams that are whole."
        )
        return "\n".join(lines)


def check(directory: Path, *, parse: bool = False) -> Report:
    """Verify the store in ``directory``; ``parse`` also parses every record of JSON streams.

    Raises :class:`StoreInUse` while a hub has it open, and :class:`StoreUnusable` where there is no store or it cannot
    be read for another reason than damage.
    """
    with _hold(directory) as locked:
        checking = _Check(directory, parse)
        if not locked or not read_mark(directory)[0]:
            checking.found(LOCK, None, "it is missing, or does not say that a store was made here")
        checking.run()
        return checking.report()


@contextlib.contextmanager
def _hold(directory: Path) -> Iterator[bool]:
    """Keep a hub from starting meanwhile; whether there is a file to lock."""
    path = directory / LOCK
    with contextlib.ExitStack() as held:
        try:
            lock: IO[str] = held.enter_context(path.open(errors="replace"))
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            if not (directory / DATABASE).exists():
                raise StoreUnusable(f"There is no store in {directory}: it has no {DATABASE}.") from None
            yield False
            return
        except BlockingIOError as error:
            pid = lock.readline().partition("pid ")[2].strip() or "unknown"
            raise StoreInUse(
                f"{directory} is in use by another process (pid {pid}). Stop the hub, then check.", fields={"pid": pid}
            ) from error
        except OSError as error:
            raise StoreUnusable(f"{path} cannot be read: {error}.") from error
        yield True


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[apsw.Connection]:
    """A connection that leaves no trace. Without a write-ahead log the file is taken as immutable; with one it is locked,
    so that SQLite keeps the index of the log in memory and not in a ``-shm`` file."""
    require_sqlite()
    wal = Path(f"{path}-wal")
    logged = wal.exists() and wal.stat().st_size > 0
    uri = f"file:{quote(str(path.absolute()))}" + ("" if logged else "?immutable=1")
    mode = apsw.SQLITE_OPEN_READWRITE if logged else apsw.SQLITE_OPEN_READONLY
    try:
        connection = apsw.Connection(uri, flags=mode | apsw.SQLITE_OPEN_URI, vfs=CHECKED_VFS)
    except apsw.Error as error:
        raise not_opened(path, error) from error
    with contextlib.closing(connection):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        if logged and connection.readonly("main"):
            raise StoreUnusable(f"{path} cannot be locked without the right to write to it; nothing will be written.")
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except apsw.Error as error:
            raise not_opened(path, error) from error
        yield connection


class _Check:
    """One run over one directory."""

    def __init__(self, directory: Path, parse: bool) -> None:
        self.directory = directory
        self.path = directory / DATABASE
        self._parse = parse
        self._problems: list[Problem] = []
        self._paths: dict[int, str] = {}
        self._broken: set[int] = set()
        self._sources: dict[int, int] = {}
        self._gone: set[int] = set()
        self._journal: dict[int, list[Entry]] = {}
        self._records = self._bytes = self._journal_records = 0
        self._meta = "meta"
        """The column of metadata."""
        self._complete = False
        """Whether nothing that was committed is missing as a whole."""

    def found(self, file: str, sid: int | None, text: object) -> None:
        if sid is not None:
            self._broken.add(sid)
        if len(self._problems) < PROBLEMS_MAX:
            self._problems.append(Problem(file, self._paths.get(sid) if sid is not None else None, str(text)))

    def report(self) -> Report:
        whole = [path for sid, path in self._paths.items() if sid not in self._broken | self._gone]
        return Report(
            self.directory,
            len(self._paths) - len(self._gone),
            self._records,
            self._bytes,
            self._journal_records,
            tuple(self._problems),
            tuple(sorted(whole)) if self._complete else (),
        )

    @contextlib.contextmanager
    def _noting(self, what: str = "", sid: int | None = None) -> Iterator[None]:
        """Note what goes wrong and go on behind it."""
        try:
            yield
        except DamagedStore as error:
            self.found(Path(str(error.fields["file"])).name, sid, error.fields["damage"])
        except (apsw.Error, ValueError, LookupError, TypeError) as error:
            data = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA
            reason = "the checksum of a page does not verify" if data else str(error) or repr(error)
            self.found(DATABASE, sid, f"{what}: {reason}" if what else reason)

    def run(self) -> None:
        with self._noting():
            check_before(self.directory)
            journal = Path(f"{self.path}-journal")
            if journal.exists():
                return self.found(journal.name, None, "another program has left it, with changes it had begun")
            with _connected(self.path) as connection:
                with self._noting():
                    check_wal(connection, self.path)
                    self._complete = True
                self._check_all(connection)
        return None

    def _check_all(self, c: apsw.Connection) -> None:
        if self._check_pages(c):
            with self._noting("the structure of the database"):
                for (text,) in c.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})"):
                    if text != "ok":
                        self.found(DATABASE, None, text)
        meta: dict[str, Any] = {}
        with self._noting("the table meta"):
            rows: Any = c.execute("SELECT key, value FROM meta").fetchall()
            meta.update(rows)
            if meta["format"] in UPGRADES:  # of an earlier version: without metadata
                self._meta = "NULL"
            elif meta["format"] != FORMAT:
                raise ValueError(f"store format {meta['format']!r}, and this version of Wayside reads {FORMAT}")
        self._load_paths(c)
        self._load_journal(c)
        for sid in self._paths:
            with self._noting(sid=sid):
                self._check_stream(c, sid, int(meta.get("epoch_next", 0)))
        for sid, source in self._sources.items():  # in the order of creation: sources first
            if source in self._broken or source not in self._paths:
                self.found(
                    DATABASE, sid, f"it shares records with {self._paths.get(source, 'a stream')}, which is damaged"
                )
        with self._noting("rows of records"):
            known = "SELECT sid FROM stream UNION SELECT sid FROM garbage"
            for (sid,) in c.execute(f"SELECT DISTINCT sid FROM chunk WHERE sid NOT IN ({known})"):
                self.found(DATABASE, None, f"there are records of a stream {sid:011x}, which does not exist")

    def _check_pages(self, c: apsw.Connection) -> bool:
        """Whether all are good. Every page of the file, also those that nothing refers to. Newer states of pages, in the write-ahead log, were
        verified when the log was opened."""
        logged = logged_pages(c, self.path)
        bad: list[int] = []
        with self.path.open("rb") as file:
            number = 0
            while len(page := file.read(PAGE_BYTES)) == PAGE_BYTES:
                number += 1
                if number not in logged and c.execute("SELECT verify_checksum(?)", (page,)).fetchall() != [(1,)]:
                    bad.append(number)
        if bad:
            names = ", ".join(map(str, bad[:NAMES_MAX])) + (" ..." if len(bad) > NAMES_MAX else "")
            self.found(DATABASE, None, f"the checksum of {len(bad)} of {number} pages does not verify: {names}")
        return not bad

    def _load_paths(self, c: apsw.Connection) -> None:
        """Where a page cannot be read, what is before it and what is behind it."""
        for order in ("INDEXED BY stream_path ORDER BY path", "NOT INDEXED ORDER BY sid"):
            for direction in ("", " DESC"):
                with self._noting("the table of streams, of which some may be missing here"):
                    for sid, path in c.execute(f"SELECT sid, path FROM stream {order}{direction}"):
                        self._paths.setdefault(sid, path)
        self._paths = dict(sorted(self._paths.items()))

    def _load_journal(self, c: apsw.Connection) -> None:
        expected = None
        with self._noting("the journal, from which records of any stream may be missing"):
            try:
                for number, blob, crc in c.execute("SELECT id, entries, crc FROM journal ORDER BY id"):
                    if crc32(blob) != crc:
                        raise ValueError(f"the checksum of row {number} does not verify")
                    if expected not in (None, number):
                        raise ValueError(f"row {expected} is missing")
                    expected = number + 1
                    for entry in decode_entries(blob):
                        self._journal.setdefault(entry.sid, []).append(entry)
            except BaseException:
                self._complete = False
                raise

    def _check_stream(self, c: apsw.Connection, sid: int, epochs_end: int) -> None:
        rows: list[Any] = c.execute(
            "SELECT path, config, lineage, start, tail, source, gone FROM stream WHERE sid=?", (sid,)
        ).fetchall()
        if not rows:
            raise ValueError("its row is missing")
        path, text, lineage_text, start, tail, source, gone = rows[0]
        found: list[Any] = c.execute("SELECT sid FROM stream WHERE path=?", (path,)).fetchall()
        if found != [(sid,)]:
            raise ValueError("it cannot be found by its path")
        if gone:
            self._gone.add(sid)
        c.execute("SELECT * FROM producer WHERE sid=?", (sid,)).fetchall()
        c.execute("SELECT count(*) FROM stream WHERE source=?", (sid,)).fetchall()
        is_json = decode_config(text).is_json
        lineage = json.loads(lineage_text)
        firsts, epochs = [pair[0] for pair in lineage], [pair[1] for pair in lineage]
        sane = lineage and firsts[0] == 0 and firsts == sorted(firsts) and epochs == sorted(set(epochs))
        if not sane or epochs[-1] >= epochs_end:
            raise ValueError(f"its lineage {lineage_text} cannot be")
        begin = start
        if source is not None:
            self._sources[sid] = source
            begin = max(start, next(first for first, epoch in lineage if epoch >= sid))
        end = begin
        with contextlib.closing(self._batches(c, sid, b"," if is_json else b"")) as batches:
            for batch, journalled in batches:
                if batch.end <= begin:
                    continue  # no longer retained
                if batch.position > end or (batch.position < end and end > begin):
                    raise ValueError(f"records {batch.position} to {batch.end - 1} stand where {end} is next")
                part = batch.since(end)
                end = part.end
                self._records += part.count
                self._bytes += part.size
                self._journal_records += part.count if journalled else 0
                if self._parse and is_json:
                    for record in part.records:
                        msgspec.json.decode(record, type=msgspec.Raw)
        if end < tail:
            raise ValueError(f"records {end} to {tail - 1} are missing")

    def _batches(self, c: apsw.Connection, sid: int, separator: bytes) -> Generator[tuple[Batch, bool]]:
        sealed = 0
        for position, count, size, time_ms, sizes, data, crc, packed in c.execute(
            f"SELECT position, count, size, time_ms, sizes, data, crc, {self._meta} FROM chunk INDEXED BY chunk_at "
            "WHERE sid=? ORDER BY position",
            (sid,),
        ):
            if chunk_crc(sizes, data, packed) != crc:
                raise ValueError(f"the checksum of records {position} to {position + count - 1} does not verify")
            batch = unpack(position, time_ms, sizes, data, separator, meta=metas_of(packed))
            if (batch.count, batch.size) != (count, size) or max(batch.meta or (0,)) >= count:
                raise ValueError(f"the row of records {position} to {position + count - 1} contradicts itself")
            sealed = batch.end
            yield batch, False
        for entry in self._journal.get(sid, ()):
            if entry.count and entry.position >= sealed:
                yield unpack(entry.position, entry.time_ms, entry.sizes, entry.data, separator, meta=entry.meta), True
