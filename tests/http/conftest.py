"""Fixtures: a hub on uvloop, as in production, in memory or on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.support.disk import Gate
from tests.support.memory import in_memory, tmp_path
from tests.support.on_foreign import choose, use_foreign
from tests.support.server import Running, Serve
from wayside import Limits
from wayside.hub import Hub

__all__ = ["in_memory", "tmp_path"]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    choose(metafunc)


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where hubs keep their streams: in the engine that they choose themselves, or all of them in a foreign one."""
    chosen: str = getattr(request, "param", "own")
    if chosen == "foreign":
        use_foreign(monkeypatch)
    return chosen


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts hubs, on disk or in memory, with the limits that are given."""
    everything: list[Running] = []

    async def start(*, disk: bool = False, **limits: Any) -> Running:
        place = f"file:{tmp_path / f'hub-{len(everything)}'}" if disk else "memory:"
        hub = Hub(place, limits=Limits(**limits))
        running = Running(hub, await hub.serve(port=0))
        everything.append(running)
        return running

    yield start
    for running in everything:
        for wire in running.wires:
            wire.close()
        running.server.stop()
        await running.hub.close()


@pytest.fixture
async def memory(serve: Serve) -> Running:
    """A served hub that keeps nothing."""
    return await serve()


@pytest.fixture
async def disk(serve: Serve) -> Running:
    """A served hub whose appends wait for the disk."""
    return await serve(disk=True)


@pytest.fixture
async def gate(disk: Running) -> AsyncIterator[Gate]:
    """The gate before the disk of ``disk``."""
    gate = Gate(disk.hub.log)
    yield gate
    gate.open()
