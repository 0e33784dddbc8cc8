"""The tools for tests that users are given: a clock by hand, crashes at named points, workers in the test's process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from wayside import Call, CallFailed, Hub, UnknownOutcome
from wayside.core.clock import SystemClock
from wayside.testing import Crashed, ManualClock, Reached, TestHub, point


def plain(value: str) -> str:
    point("middle")
    return value


async def coroutine(value: str) -> str:
    point("middle")
    return value


def iterator(value: str) -> Iterator[str]:
    point("middle")
    yield value


async def stream(value: str) -> AsyncIterator[str]:
    point("middle")
    yield value


KINDS = [plain, coroutine, iterator, stream]
POINTS = ["before-run", "middle", "after-run", "before-finish"]


def hub_with(function: Any = coroutine, **options: Any) -> Hub:
    hub = Hub()
    hub.service("job", **{"retries": 3, "backoff": 1.0, **options})(function)
    return hub


# -- the clock


def test_a_manual_clock_stands_still() -> None:
    """Both of its times move as far as it is told, however small the steps, and never back."""
    clock = ManualClock(5000)
    assert (clock.wall_ms(), clock.monotonic()) == (clock.wall_ms(), clock.monotonic())
    began = clock.monotonic()
    for _ in range(10_000):
        clock.advance(0.0001)
    assert clock.wall_ms() == 6000
    assert clock.monotonic() - began == pytest.approx(1.0)
    for target in (began + 0.5, began + 1.7, began + 1.7 + 1e-13):
        clock.advance_to(target)
        assert clock.monotonic() >= target
    assert clock.wall_ms() == 6700


async def test_time_passes_in_order() -> None:
    """What is due while time passes happens at its time, and what that brings about as well."""
    ran: list[tuple[str, int]] = []

    async def job(name: str, call: Call) -> None:
        ran.append((name, test.clock.wall_ms() - began))
        if call.attempt == 1 and name == "again":
            raise RuntimeError("again")

    async with TestHub(hub_with(job, backoff=0.0)) as test:
        began = test.clock.wall_ms()
        for name, delay in (("last", 50), ("again", 10), ("first", 1)):
            await test.submit("job", name, delay=delay)
        await test.advance(100)
        assert ran == [("first", 1000), ("again", 10_000), ("again", 10_000), ("last", 50_000)]
        assert test.clock.wall_ms() == began + 100_000


# -- points


def test_a_point_does_nothing_outside_of_a_test() -> None:
    """A handler may name its points for good."""
    point("anything")


async def test_a_point_does_nothing_in_another_hub() -> None:
    """In a hub that is not under test handlers run through their points."""
    async with hub_with() as hub:
        assert await hub.call("job", "well") == "well"


@pytest.mark.parametrize("function", KINDS)
async def test_points_are_noted(function: Any) -> None:
    """Each kind of handler passes its points in order; the test can see them."""
    async with TestHub(hub_with(function)) as test:
        handle = await test.submit("job", "well")
        await handle.result()
        assert test.reached == [Reached("hub", name) for name in POINTS]


@pytest.mark.parametrize("where", POINTS)
@pytest.mark.parametrize("function", KINDS)
async def test_a_worker_crashes_at_a_point(function: Any, where: str) -> None:
    """The worker that reaches the point is gone there, once; its lease runs out, and another does it again."""
    async with TestHub(hub_with(function), local=False) as test:
        one, two = await test.worker("one"), await test.worker("two", capacity=0)
        test.crash_at(where, worker="one")
        handle = await test.submit("job", "well")
        async with asyncio.timeout(10):
            while not one.crashed:  # noqa: ASYNC110 - a thread brings it about
                await asyncio.sleep(0.001)
        await test.advance(14.9)
        assert (await handle.status()).state == "running"
        three = await test.worker("three")
        await test.advance(3)
        assert await handle.result() == (None if function in (iterator, stream) else "well")
        assert (await handle.status()).attempt == 2
        assert [reached.worker for reached in test.reached if reached.point == "before-run"] == ["one", "three"]
        assert (two.crashed, three.crashed) == (False, False)


@pytest.mark.parametrize("where", POINTS)
@pytest.mark.parametrize("function", [plain, coroutine])
async def test_the_hub_crashes_at_a_point(function: Any, where: str) -> None:
    """Where its own process runs the handler the hub crashes, and comes back with what was on its disk."""
    async with TestHub(hub_with(function)) as test:
        test.crash_at(where)
        handle = await test.submit("job", "well")
        async with asyncio.timeout(10):
            while not test.crashes:  # noqa: ASYNC110 - a thread brings it about
                await asyncio.sleep(0.001)
        await test.advance(2)
        assert await handle.result() == "well"
        assert (await handle.status()).attempt == 2
        assert test.crashes == 1


async def test_a_handler_does_not_outlive_a_crash() -> None:
    """What stands behind the point is not run, though the handler catches every error."""
    after: list[str] = []

    async def job() -> None:
        try:
            point("middle")
            after.append("no crash")
        except Exception:
            after.append("caught")

    async with TestHub(hub_with(job)) as test:
        test.crash_at("middle")
        handle = await test.submit("job")
        assert not after
        await test.advance(2)
        assert (await handle.status()).state == "done"
        assert after == ["no crash"]
    assert issubclass(Crashed, BaseException)
    assert not issubclass(Crashed, Exception)


# -- workers


async def test_a_worker_runs_what_it_is_told_to() -> None:
    """A worker has all services, or those that are named; and as many places as it is given."""
    hub = hub_with()
    hub.service("other")(plain)
    async with TestHub(hub, local=False) as test:
        one = await test.worker("one", ["other"])
        handle = await test.submit("job", "well")
        assert await test.call("other", "well") == "well"
        assert (await handle.status()).state == "queued"
        await test.worker("two")
        assert await handle.result() == "well"
        assert repr(one) == "<TestWorker one working, runs 0>"


async def test_a_worker_renews_its_lease() -> None:
    """Left alone, a worker keeps what it holds for ever."""
    go_on = asyncio.Event()

    async def job() -> str:
        await go_on.wait()
        return "well"

    async with TestHub(hub_with(job), local=False) as test:
        one = await test.worker("one")
        handle = await test.submit("job")
        await test.advance(1000)
        assert one.running == [(handle.id, 1)]
        go_on.set()
        assert await handle.result() == "well"


async def test_a_stalled_worker_is_fenced() -> None:
    """A worker that was stopped for longer than its lease has lost what it held: its result is refused when it goes on,
    and the handler that runs on is cancelled."""
    ran: list[int] = []
    go_on = asyncio.Event()

    async def job(call: Call) -> int:
        ran.append(call.attempt)
        if call.attempt == 1:
            await go_on.wait()
        return call.attempt

    async with TestHub(hub_with(job), local=False) as test:
        one = await test.worker("one")
        handle = await test.submit("job")
        one.stall()
        await test.worker("two")
        await test.advance(20)
        go_on.set()
        await test.settle()
        assert one.stalled
        fenced = test.hub.calls.attempts.fenced
        await one.resume()
        assert test.hub.calls.attempts.fenced > fenced
        assert await handle.result() == 2
        assert ran == [1, 2]
        test.workers[1].crash()
        assert await (await test.submit("job")).result() == 1  # it is a worker again


async def test_a_worker_that_stalls_shortly_loses_nothing() -> None:
    """What it said meanwhile arrives when it goes on."""
    async with TestHub(hub_with(), local=False) as test:
        one = await test.worker("one")
        one.stall()
        handle = await test.submit("job", "well")
        await test.advance(10)
        assert not one.running
        await one.resume()
        assert await handle.result() == "well"
        assert (await handle.status()).attempt == 1


async def test_a_worker_reconnects() -> None:
    """A connection that broke is made again, and what the handler yielded meanwhile arrives, once."""
    go_on = asyncio.Event()

    async def job() -> AsyncIterator[int]:
        yield 1
        await go_on.wait()
        yield 2

    async with TestHub(hub_with(job), local=False) as test:
        one = await test.worker("one")
        handle = await test.submit("job")
        one.disconnect()
        go_on.set()
        await test.advance(20)
        assert (await handle.status()).items == 1
        await one.reconnect()
        assert [item async for item in handle.items()] == [1, 2]
        assert (await handle.status()).attempt == 1


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "crash"])
async def test_workers_come_back_to_a_hub_that_was_gone(crash: bool) -> None:
    """Handlers of workers run on while the hub is gone, and their calls are answered by the same attempt."""
    go_on = asyncio.Event()

    async def job(call: Call) -> str:
        await call.progress(0.5)
        await go_on.wait()
        await call.progress(1)
        return "well"

    async with TestHub(hub_with(job), local=False) as test:
        one = await test.worker("one")
        handle = await test.submit("job")
        await (test.crash() if crash else test.restart())
        assert one.running == [(handle.id, 1)]
        go_on.set()
        assert await handle.result() == "well"
        assert (await handle.status()).attempt == 1
        kinds = [event.kind async for event in handle.events()]
        assert kinds == ["running", "progress", "progress", "done"]


async def test_a_worker_stops_in_order() -> None:
    """It hands back what it has not finished: that is no failure, and nobody waits for a lease."""
    begun: list[int] = []

    async def job(call: Call) -> int:
        begun.append(call.attempt)
        if call.attempt == 1:
            await asyncio.Event().wait()
        return call.attempt

    async with TestHub(hub_with(job, retries=0), local=False) as test:
        one = await test.worker("one")
        handle = await test.submit("job")
        await test.worker("two")
        await one.stop()
        assert await handle.result() == 2
        assert begun == [1, 2]


# -- the hub


async def test_a_test_takes_functions() -> None:
    """Handlers by name are enough for a test."""
    async with TestHub({"job": coroutine, "other": plain}) as test:
        assert await test.call("job", "a") == "a"
        assert await test.call("other", "b") == "b"
        assert [item async for item in test.stream("job", "a")] == []


async def test_a_hub_is_as_it_was(tmp_path: Path) -> None:
    """After a test the hub that was tested can be used as it was declared, or tested again; its data is gone."""
    hub = Hub(f"file:{tmp_path / 'own'}")
    hub.service("job")(coroutine)
    for _ in range(2):
        async with TestHub(hub) as test:
            directory = test.directory
            assert test.hub is hub
            assert await hub.call("job", "well") == "well"
            assert await test.hub.publish("a", 1)
        assert not directory.exists()
    assert isinstance(hub.clock, SystemClock)
    assert not (tmp_path / "own").exists()
    async with hub:
        assert await hub.call("job", "well") == "well"
        with pytest.raises(RuntimeError):
            TestHub(hub)
    assert (tmp_path / "own").exists()


async def test_a_crash_keeps_what_was_acknowledged() -> None:
    """What the hub said that it keeps is there after a crash; a test in memory starts with nothing."""
    for memory in (False, True):
        async with TestHub(hub_with(), memory=memory) as test:
            await test.hub.publish("a", 1)
            handle = await test.submit("job", "well")
            assert await handle.result() == "well"
            await test.crash()
            found = [info.path for info in test.hub.log.list("", "", 10) if not info.path.startswith("__service")]
            assert found == ([] if memory else [f"__call/{handle.id}", "a"])
            assert await test.call("job", "again") == "again"


async def test_a_caller_hears_of_a_crash() -> None:
    """A call that was neither submitted nor has a key is lost with the hub, and its caller is told so."""

    async def job() -> None:
        await asyncio.Event().wait()

    async with TestHub({"job": job}) as test:
        waiting = asyncio.create_task(test.call("job"))
        await test.settle()
        await test.crash()
        with pytest.raises(UnknownOutcome):
            await waiting


async def test_every_crash_is_another_life() -> None:
    """A hub can crash as often as a test likes, in the middle of whatever it does."""

    async def job(value: int, call: Call) -> int:
        await call.progress(value)
        point("middle")
        return value

    async with TestHub(hub_with(job, retries=20, backoff=0.1)) as test:
        handles = [await test.submit("job", number, idempotency_key=f"{number}") for number in range(3)]
        for _ in range(5):
            test.crash_at("middle")
            handles.append(await test.submit("job", 9))
            await test.advance(1)
        await test.advance(60)
        assert test.crashes == 5
        assert [await handle.result() for handle in handles] == [0, 1, 2, 9, 9, 9, 9, 9]


async def test_a_failed_handler_is_no_crash() -> None:
    """What a handler raises is its failure, as ever."""

    async def job() -> None:
        raise RuntimeError("oh")

    async with TestHub({"job": job}) as test:
        with pytest.raises(CallFailed, match="oh"):
            await test.call("job")
        assert not test.crashes
