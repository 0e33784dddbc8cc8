"""Fixtures of the unit tests: a log of each engine, and a disk that can crash."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.disk import Disk
from tests.support.embedded import embedded
from tests.support.memory import in_memory, tmp_path
from wayside.streams.streams import Streams
from wayside.testing import ManualClock

__all__ = ["in_memory", "tmp_path"]


@pytest.fixture
async def disk(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Disk]:
    """A log on disk that can be closed, crashed, and opened again."""
    disk = Disk(tmp_path, clock=clock)
    yield disk
    await disk.close()


@pytest.fixture(params=["memory", "file"])
async def log(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Streams]:
    """A started log of each engine."""
    log = embedded(None if request.param == "memory" else tmp_path, clock=clock)
    log.start()
    yield log
    await log.close()


@pytest.fixture
def manual(clock: ManualClock) -> Callable[[float], None]:
    """Let seconds pass on the clock of ``log`` and ``disk``."""
    return clock.advance
