"""Fixtures that put a test's files into memory, where an fsync costs nothing.

For tests that kill nothing but by a copy of the files: what is in the page cache outlives a process on any file system. The
suites that start and kill processes stay on the disk, whose pauses are part of what they try. A conftest imports them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
FREE_BYTES_MIN = 2 << 30
"""Some tests write tens of megabytes, several run at a time, and containers may have next to nothing there."""


def memory() -> str | None:
    """A directory in memory; None: where temporary files usually are."""
    if not os.access(MEMORY, os.W_OK):
        return None
    figures = os.statvfs(MEMORY)
    return str(MEMORY) if figures.f_bavail * figures.f_frsize >= FREE_BYTES_MIN else None


@pytest.fixture(autouse=True)
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files, those of the package included."""
    if (place := memory()) is not None:
        monkeypatch.setattr(tempfile, "tempdir", place)


@pytest.fixture
def tmp_path(in_memory: None) -> Iterator[Path]:
    """A directory that ends with the test."""
    with tempfile.TemporaryDirectory(prefix="wayside-test-") as directory:
        yield Path(directory)
