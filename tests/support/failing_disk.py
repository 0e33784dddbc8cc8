"""A disk that fails when it is told to: an apsw VFS over the one that the store uses."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import apsw

from wayside.storage.embedded.files import CHECKED_VFS, require_sqlite

_numbers = itertools.count()


def failure(code: int) -> apsw.IOError:
    """What SQLite calls it: an ``apsw.SQLITE_IOERR_...`` code."""
    error = apsw.IOError("the test's disk says so")
    error.extendedresult = code  # type: ignore[attr-defined]
    return error


class FailingDisk(apsw.VFS):
    """``rules`` maps (operation, kind) to what decides whether it fails: operations are sync, write, read; kinds db, wal.

    A rule is called with the number of bytes (0 for a sync) and returns the exception to raise, or None.
    ``calls`` counts every operation, failed ones included.
    """

    def __init__(self) -> None:
        require_sqlite()
        self.name = f"wayside-test-{next(_numbers)}"
        self.rules: dict[tuple[str, str], Callable[[int], Exception | None]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        super().__init__(self.name, base=CHECKED_VFS)

    def xOpen(self, name: Any, flags: list[int]) -> _File:
        kind = "wal" if flags[0] & apsw.SQLITE_OPEN_WAL else "db" if flags[0] & apsw.SQLITE_OPEN_MAIN_DB else "other"
        return _File(self, kind, name, flags)

    def fail(self, operation: str, kind: str, code: int) -> None:
        """From now on, each time."""
        self.rules[operation, kind] = lambda _size: failure(code)

    def heal(self) -> None:
        self.rules.clear()

    def syncs(self) -> int:
        return sum(count for (operation, _), count in self.calls.items() if operation == "sync")

    def called(self, operation: str, kind: str, size: int) -> None:
        self.calls[operation, kind] += 1
        rule = self.rules.get((operation, kind))
        error = rule(size) if rule else None
        if error is not None:
            raise error


class _File(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, kind: str, name: Any, flags: list[int]) -> None:
        super().__init__(CHECKED_VFS, name, flags)
        self._disk = disk
        self._kind = kind

    def xSync(self, flags: int) -> None:
        self._disk.called("sync", self._kind, 0)
        super().xSync(flags)

    def xWrite(self, data: Any, offset: int) -> None:
        self._disk.called("write", self._kind, len(data))
        super().xWrite(data, offset)

    def xRead(self, amount: int, offset: int) -> bytes:
        self._disk.called("read", self._kind, amount)
        return super().xRead(amount, offset)
