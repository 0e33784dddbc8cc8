"""The files of a store directory: lock, database, write-ahead log; and the checks before anything is written.

``wayside.lock`` is held by flock while a process has the store open, and says whether a store was ever
made here and how long its write-ahead log is, so that a file that vanished or was cut is noticed. The
log is checked because SQLite reads it up to the first frame that does not verify and takes the rest for
an interrupted write: right after a crash, wrong for a flipped byte in the middle.
"""

from __future__ import annotations

import fcntl
import io
import json
import mmap
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import apsw
import apsw.sqlite_extra
from zlib_ng.zlib_ng import crc32

from wayside.core.errors import DamagedStore, Refusal, StoreFull, StoreInUse, StoreUnusable

DATABASE = "wayside.db"
LOCK = "wayside.lock"
SQLITE_MINIMUM = (3, 51, 3)
"""Before it a race between a checkpoint and a WAL reset could corrupt the database."""
PAGE_BYTES = 8192
CHECKED_VFS = "cksmvfs"
PAGE_RESERVED_BYTES = 8
"""At the end of each page, for its checksum: with any other number here cksumvfs verifies nothing."""
_FRAME_BYTES = 24 + PAGE_BYTES
_LOCK_PAGE = (1 << 30) // PAGE_BYTES + 1
"""SQLite keeps its locks there, and never writes it."""
_INDEX_BYTES = 1024 * 1024
"""Of a write-ahead log of 1 GiB: 4096 of its pages take 32 KiB."""
_MARK = "wayside store"
_WAL_MARK_AT, _WAL_MARK_BYTES = 64, 33
_WAL_MARK = re.compile(rb"(wal ([0-9a-f]{8}) ([0-9]{10})) ([0-9a-f]{8})\n")


def require_sqlite() -> None:
    """Refuse a SQLite that can corrupt the store, or an apsw that lacks the page checksums."""
    version = apsw.sqlite_lib_version()
    if tuple(map(int, version.split("."))) < SQLITE_MINIMUM:
        wanted = ".".join(map(str, SQLITE_MINIMUM))
        raise StoreUnusable(
            f"apsw is built with SQLite {version}, which can corrupt a write-ahead log; at least {wanted} is needed. "
            "Install apsw from its wheel: pip install --upgrade --only-binary :all: apsw"
        )
    if CHECKED_VFS not in apsw.vfs_names():
        if not apsw.sqlite_extra.has("cksumvfs"):
            raise StoreUnusable(
                "This build of apsw lacks the page checksums (cksumvfs). "
                "Install apsw from its wheel: pip install --force-reinstall --only-binary :all: apsw"
            )
        scratch = apsw.Connection(":memory:", vfs=apsw.vfs_names()[0])
        apsw.sqlite_extra.load(scratch, "cksumvfs")
        scratch.close()


def lock_directory(directory: Path) -> IO[str]:
    """Hold the directory for this process; raises :class:`StoreInUse` where another does."""
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", errors="replace")
    except OSError as error:
        raise StoreUnusable(f"{directory} cannot be used as a store: {error}. Choose another directory.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = lock.readline().partition("pid ")[2].strip() or "unknown"
        lock.close()
        raise StoreInUse(
            f"{directory} is in use by another process (pid {holder}). Stop it, or choose another directory.",
            fields={"pid": holder},
        ) from error
    return lock


def mark_created(lock: IO[str]) -> None:
    """Note in the lock file that a store exists here, and who has it open."""
    line = f"{_MARK} pid {os.getpid()}"
    os.pwrite(lock.fileno(), f"{line:<{_WAL_MARK_AT - 1}}\n".encode(), 0)


class WalMark:
    """Notes in the lock file how much of the write-ahead log is committed: the line ``wal SALT FRAMES CRC``.

    Written after the fsync of a commit and not fsync'd itself: after a power failure it may be older than the log,
    never newer. ``SALT`` is the log's first salt, which SQLite counts up whenever it begins the log anew.
    """

    def __init__(self, lock: IO[str], path: Path) -> None:
        self._lock = lock.fileno()
        self._path = path
        self._files: list[int] = []
        self._salt = b""
        """The log's first salt, while it is certain."""
        self._mark: mmap.mmap | None = None
        """The lock file in memory: a note costs no system call, and outlives this process as a written one does."""

    def may_begin_anew(self) -> None:
        """The log has been copied into the database: the next transaction may be the first of a new round."""
        self._salt = b""

    def note(self, frames: int) -> None:
        try:  # noqa: SIM105 - on the way of every commit
            self._write(frames)
        except OSError:
            pass  # the older note stays true

    def clear(self) -> None:
        """Before the log is emptied. Raises OSError."""
        self._write(0)
        if self._mark is not None:
            self._mark.flush()
        os.fsync(self._lock)

    def _write(self, frames: int) -> None:
        if not self._files:
            self._files.append(os.open(f"{self._path}-wal", os.O_RDONLY))
            self._reserve_index()
        if self._mark is None:
            missing = _WAL_MARK_AT + _WAL_MARK_BYTES - os.fstat(self._lock).st_size
            if missing > 0:
                os.pwrite(self._lock, b"\n" * missing, _WAL_MARK_AT + _WAL_MARK_BYTES - missing)
            self._mark = mmap.mmap(self._lock, _WAL_MARK_AT + _WAL_MARK_BYTES)
        if not self._salt:
            self._salt = os.pread(self._files[0], 4, 16).hex().encode()
        text = b"wal %b %010d" % (self._salt.rjust(8, b"0"), frames)
        self._mark[_WAL_MARK_AT:] = b"%b %08x\n" % (text, crc32(text))

    def _reserve_index(self) -> None:
        """SQLite makes the index of the log (``-shm``) longer when it has written a transaction already; on a disk that is
        full to the last page that fails, and nobody knows whether the transaction is committed: so have the room now.
        The file stays open, as closing it would let go of SQLite's locks on it."""
        index = os.open(f"{self._path}-shm", os.O_RDWR)
        self._files.append(index)
        size = os.fstat(index).st_size
        if sys.platform == "linux" and size < _INDEX_BYTES:
            os.posix_fallocate(index, size, _INDEX_BYTES - size)

    def close(self) -> None:
        """After the connections."""
        if self._mark is not None:
            self._mark.close()
        for file in self._files:
            os.close(file)


def read_mark(directory: Path) -> tuple[bool, int, int]:
    """Whether a store was made here; and of its write-ahead log the first salt and the frames committed in it, 0 where
    that is not known."""
    try:
        data = (directory / LOCK).read_bytes()
    except FileNotFoundError:
        return False, 0, 0
    made = data.startswith(_MARK.encode())
    found = _WAL_MARK.match(data, _WAL_MARK_AT)
    if found is None or crc32(found[1]) != int(found[4], 16):
        return made, 0, 0
    return made, int(found[2], 16), int(found[3])


def check_before(directory: Path) -> bool:
    """Whether a store exists; raises :class:`DamagedStore` where one was made and its file is missing or short."""
    path = directory / DATABASE
    size = path.stat().st_size if path.exists() else 0
    wal = Path(f"{path}-wal")
    wal_size = wal.stat().st_size if wal.exists() else 0
    marked = read_mark(directory)[0]
    if size == 0 and (marked or wal_size > 0):
        raise DamagedStore(
            f"{path} is missing or empty, although a store was made in {directory}. Nothing was created in its place. "
            "Put the file back from a backup, or empty the directory to begin anew.",
            fields={"file": str(path), "damage": "it is missing or empty, although a store was made here"},
        )
    if size:
        with path.open("rb") as file:
            header = file.read(100)
        shape = (b"SQLite format 3\0", PAGE_BYTES, PAGE_RESERVED_BYTES)
        if len(header) < 100 or struct.unpack(">16sHxxB", header[:21]) != shape:
            raise _damaged(path, "its first page is not that of a Wayside store")
        pages = struct.unpack(">I", header[28:32])[0]
        if wal_size == 0 and pages * PAGE_BYTES > size:
            raise _damaged(path, f"it has {size} bytes and should have {pages * PAGE_BYTES}")
    return size > 0


def open_database(path: Path, vfs: str, *, readonly: bool = False) -> apsw.Connection:
    """A connection as all of the store uses it. Raises as :func:`not_opened` says."""
    require_sqlite()
    flags = apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    try:
        connection = apsw.Connection(str(path), flags=flags, vfs=vfs)
        connection.set_busy_timeout(10_000)
        if not readonly:
            if connection.pragma("page_count") == 0:  # now: what a crash left of its making is rolled back
                connection.reserve_bytes("main", PAGE_RESERVED_BYTES)
                connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("PRAGMA cache_size=-32768")
    except apsw.Error as error:
        raise not_opened(path, error) from error
    return connection


def not_opened(path: Path, error: apsw.Error) -> Refusal:
    """What an error of SQLite means to whoever opens the database at ``path``."""
    if isinstance(error, apsw.FullError) or getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE:
        return StoreFull(f"There is no room to open {path}. Nothing was changed; free some space and start again.")
    if isinstance(error, apsw.BusyError):
        return StoreInUse(f"{path} is in use by another program. Stop that, or choose another directory with --data.")
    if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError | apsw.PermissionsError):
        return StoreUnusable(f"{path} cannot be opened: {error}. Look at its permissions.")
    return _damaged(path, error)


def check_wal(connection: apsw.Connection, path: Path) -> None:
    """Raise :class:`DamagedStore` where the write-ahead log lacks a transaction that was committed in it, or the
    database a page that the log does not have.

    The lock file says what was committed. After a power failure that may be out of date; then it is only known that
    the last transaction of the log alone may be incomplete: the one before it was fsync'd before it began.
    Layout (SQLite file format, section 4): a header of 32 bytes, then frames of 24 bytes and a page;
    a frame header holds the page number, the database size if the frame ends a transaction, and two
    salts that equal the WAL header's while the frame belongs to this round of the log.
    """
    wal = Path(f"{path}-wal")
    size = wal.stat().st_size if wal.exists() else 0
    frames = max(0, size - 32) // _FRAME_BYTES
    _, salt, committed = read_mark(path.parent)
    if not frames and not committed:
        return
    valid = max(0, connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0])
    with wal.open("rb") if size else io.BytesIO() as file:
        header = file.read(32)
        if not _header_verifies(header):
            raise _damaged(wal, "its header does not verify" if size else "it is missing or empty, and should not be")
        behind = salt - int.from_bytes(header[16:20]) & 0xFFFFFFFF
        if committed and (0 < behind < 1 << 31 or (not behind and valid < committed)):
            raise _damaged(wal, f"{committed} pages were committed in it, and {0 if behind else valid} are left")

        # One salt is enough: the other may be what is damaged.
        rest = [h for h in _heads(file, valid, frames) if h[8:12] == header[16:20] or h[12:16] == header[20:24]]
        if sum(any(head[4:8]) for head in rest) > 1:
            raise _damaged(wal, f"page {valid + 1} of it does not verify, and whole transactions stand behind that")
        pages, held = int(connection.pragma("page_count")), path.stat().st_size // PAGE_BYTES
        if pages > held:
            lost = set(range(held + 1, pages + 1)) - {_LOCK_PAGE}
            lost.difference_update(int.from_bytes(head[:4]) for head in _heads(file, 0, valid))
            if lost:
                raise _damaged(path, f"it ends before page {min(lost)}, which is not in the write-ahead log either")


def logged_pages(connection: apsw.Connection, path: Path) -> set[int]:
    """Numbers of the pages whose newest state is in the write-ahead log and not in the database file."""
    valid = max(0, connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0])
    if not valid:
        return set()
    with open(f"{path}-wal", "rb") as file:
        return {int.from_bytes(head[:4]) for head in _heads(file, 0, valid)}


def _heads(wal: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    for index in range(start, end):
        wal.seek(32 + index * _FRAME_BYTES)
        yield wal.read(24)


def _header_verifies(header: bytes) -> bool:
    if len(header) < 32 or int.from_bytes(header[:4]) & ~1 != 0x377F0682 or int.from_bytes(header[8:12]) != PAGE_BYTES:
        return False
    order = ">" if header[3] & 1 else "<"
    words = struct.unpack(f"{order}6I", header[:24])
    s0 = s1 = 0
    for k in range(0, 6, 2):
        s0 = (s0 + words[k] + s1) & 0xFFFFFFFF
        s1 = (s1 + words[k + 1] + s0) & 0xFFFFFFFF
    return struct.unpack(">2I", header[24:32]) == (s0, s1)


def _damaged(path: Path, what: object) -> DamagedStore:
    return DamagedStore(
        f"{path} is damaged: {what}. Nothing was repaired and nothing deleted. Run `wayside check {path.parent}`: it "
        "reads every record and names what is affected, and changes nothing. Then restore the directory from a backup.",
        fields={"file": str(path), "damage": str(what)},
    )


LINEAGE_MAX = 64
"""Epochs that a stream remembers of its own: as many crashes ago may a reader have read last."""


def renew_epochs(c: apsw.Connection, journal_ends: Mapping[int, int], take_epoch: Callable[[], int]) -> None:
    """What an ``async`` stream acknowledged last may be missing: its next records get a new epoch, so that a reader who
    saw what was lost is told so, and never reads on past other records."""
    rows: list[Any] = c.execute("SELECT sid, lineage, tail FROM stream WHERE durability='async' AND gone=0").fetchall()
    for sid, text, sealed_end in rows:
        end = max(sealed_end, journal_ends.get(sid, 0))
        lineage = [pair for pair in json.loads(text) if pair[0] < end or (pair[0] == 0 and end == 0)]
        lineage.append([end, take_epoch()])
        own = next(index for index, pair in enumerate(lineage) if pair[1] >= sid)  # before it: its source's
        while len(lineage) > LINEAGE_MAX and own + 1 < len(lineage):
            first = lineage.pop(own)[0]
            lineage[own][0] = first  # the oldest epoch is forgotten, and the next one names its records
        c.execute("UPDATE stream SET lineage=? WHERE sid=?", (json.dumps(lineage), sid))


def renew_deadlines(c: apsw.Connection, now_ms: int) -> None:
    """Nobody knows when a stream was last used: it has its time to live again."""
    ttl_s = "json_extract(CAST(config AS TEXT), '$.ttl_s')"
    c.execute(
        f"UPDATE stream SET expires_ms=max(expires_ms, ? + 1000 * {ttl_s}) "
        f"WHERE expires_ms IS NOT NULL AND {ttl_s} IS NOT NULL",
        (now_ms,),
    )
