"""Fixtures: hubs on uvloop that are served over HTTP on a directory of the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.support.failing_disk import FailingDisk
from tests.support.server import Running, ServeDirectory, stop
from wayside import Limits
from wayside.core.errors import Refusal
from wayside.hub import Hub
from wayside.storage.embedded.files import CHECKED_VFS


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
