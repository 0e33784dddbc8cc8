"""Fixtures that every kind of test may want: a clock, and a hub in memory or on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.receiver import Receiver
from wayside.hub import Hub
from wayside.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def memory_hub() -> AsyncIterator[Hub]:
    """A started hub that keeps nothing."""
    async with Hub("memory:") as hub:
        yield hub


@pytest.fixture
async def file_hub(tmp_path: Path) -> AsyncIterator[Hub]:
    """A started hub on a directory of its own."""
    async with Hub(f"file:{tmp_path / 'data'}") as hub:
        yield hub


@pytest.fixture(params=["memory", "file"])
async def hub(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Hub]:
    """A started hub of each engine."""
    async with Hub("memory:" if request.param == "memory" else f"file:{tmp_path / 'data'}") as hub:
        yield hub


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks, on loopback."""
    receiver = Receiver()
    yield receiver
    receiver.stop()
