"""What runs handlers, whatever they handle: how many, how they are stopped, and what is said of those that go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.waiting import turns
from wayside.calls.runner import Runner, Running, Threads


class Stage:
    """A runner of coroutine functions, and what it has said."""

    def __init__(self, concurrency: int = 2) -> None:
        self.failed: list[str] = []
        self.ended = 0
        self.runner: Runner[str, Callable[[], Coroutine[Any, Any, None]]] = Runner(
            self._handle, self._failed, concurrency=concurrency, ended=self._ended
        )

    async def _handle(self, item: Callable[[], Coroutine[Any, Any, None]], _running: Running) -> None:
        await item()

    def _failed(self, _item: object, error: BaseException) -> None:
        self.failed.append(type(error).__name__)

    def _ended(self) -> None:
        self.ended += 1


async def for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("begun", [False, True])
async def test_what_is_cancelled_is_over_and_nobody_hears_of_it(begun: bool) -> None:
    """Also where it had not begun: then nothing of it is ever run, and its place is free all the same."""
    stage = Stage()
    stage.runner.run("a", for_ever)
    if begun:
        await turns(2)
    assert stage.runner.room == 1
    stage.runner.cancel("a")
    await turns(2)
    assert (stage.runner.running, stage.runner.room, stage.ended, stage.failed) == ({}, 2, 1, [])


async def test_what_runs_already_goes_on() -> None:
    """The same item given again is the same."""
    stage = Stage()
    for _ in range(2):
        stage.runner.run("a", for_ever)
    assert list(stage.runner.running) == ["a"]
    stage.runner.cancel_all()


async def test_a_cancellation_from_within_is_a_failure() -> None:
    """Something that the handler waited for was cancelled, and the handler itself was not."""

    async def waits() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def exits() -> None:
        raise SystemExit(1)

    stage = Stage()
    stage.runner.run("a", waits)
    stage.runner.run("b", exits)
    await turns(3)
    assert (sorted(stage.failed), stage.ended) == (["CancelledError", "SystemExit"], 2)


async def test_a_drain_does_not_wait_for_what_only_waits() -> None:
    """What waits for something that is kept elsewhere is stopped at once, and returned with the rest."""
    stage = Stage()
    stage.runner.run("a", for_ever)
    stage.runner.running["a"].waits = 1
    async with asyncio.timeout(5):
        assert await stage.runner.drain(100) == ["a"]


async def test_a_thread_may_raise_anything() -> None:
    """StopIteration too, which no future can have."""
    threads = Threads()
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(next, [iter(())], {})
    assert await threads.run(int, ["7"], {}) == 7
    threads.close()
