"""Fixtures: hubs on uvloop that are served over HTTP on a directory of the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.fault.sample import Sample, make
from tests.support.failing_disk import FailingDisk
from tests.support.memory import in_memory, memory, tmp_path
from tests.support.server import Running, ServeDirectory, stop
from wayside import Limits
from wayside.core.errors import Refusal
from wayside.hub import Hub
from wayside.storage.embedded.files import CHECKED_VFS

__all__ = ["in_memory", "tmp_path"]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def serve() -> AsyncIterator[ServeDirectory]:
    """Starts hubs; those that are still open at the end are closed."""
    everything: list[Running] = []

    async def start(directory: Path, *, vfs: str = CHECKED_VFS, **limits: Any) -> Running:
        hub = Hub(f"file:{directory}", limits=Limits(**limits), vfs=vfs)
        running = Running(hub, await hub.serve(port=0))
        everything.append(running)
        return running

    yield start
    for running in everything:
        with contextlib.suppress(Refusal):
            await stop(running)


@pytest.fixture
def disk() -> Iterator[FailingDisk]:
    disk = FailingDisk()
    yield disk
    disk.unregister()


@pytest.fixture(scope="module")
def _samples() -> Iterator[tuple[Path, dict[str, Sample]]]:
    with tempfile.TemporaryDirectory(prefix="wayside-test-", dir=memory()) as directory:
        yield Path(directory), {}


@pytest.fixture
async def closed(_samples: tuple[Path, dict[str, Sample]]) -> Sample:
    """A store that was closed in order."""
    root, made = _samples
    if "closed" not in made:
        made["closed"] = await make(root / "closed", closed=True)
    return made["closed"]


@pytest.fixture
async def crashed(_samples: tuple[Path, dict[str, Sample]]) -> Sample:
    """A store as a killed hub leaves it."""
    root, made = _samples
    if "crashed" not in made:
        made["crashed"] = await make(root / "crashed", closed=False)
    return made["crashed"]
