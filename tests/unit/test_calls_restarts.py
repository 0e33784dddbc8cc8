"""What a hub knows of calls after it was gone: stopped in order, or killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.support.calls import PuppetWorker, events, find
from wayside import Call, CallFailed, UnknownOutcome
from wayside.calls.call import CallState
from wayside.testing import TestHub, point

LEASE_S = 15.0
JOB: dict[str, Any] = {"name": "job", "retries": 2, "backoff_s": 8.0}


@pytest.fixture
async def test() -> AsyncIterator[TestHub]:
    """A hub whose own process runs nothing."""
    async with TestHub(local=False) as test:
        yield test


@pytest.fixture(params=["restart", "crash"])
def gone(request: pytest.FixtureRequest, test: TestHub) -> Callable[[], Awaitable[None]]:
    """Have the hub gone and come back, in order or not."""
    return test.crash if request.param == "crash" else test.restart


async def worker(test: TestHub, name: str = "one", *services: dict[str, Any] | str, capacity: int = 16) -> PuppetWorker:
    puppet = PuppetWorker(test, name, *(services or (JOB,)), capacity=capacity)
    puppet.connect()
    await test.settle()
    return puppet


async def test_a_queued_call_outlives_the_hub(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """It waits again, in its place: by priority, then by age, with a key or without."""
    one = await worker(test, capacity=0)
    handles = []
    for number in range(6):
        test.clock.advance(0.01)
        options: dict[str, Any] = {"idempotency_key": f"key {number}"} if number % 2 else {}
        handles.append(await test.submit("job", number, priority=9 if number == 4 else 0, **options))
    await gone()
    assert [find(test, handle.id).state for handle in handles] == [CallState.QUEUED] * 6
    one.capacity = 1
    one.connect()
    await test.settle()
    for _ in handles:
        await one.finish(one.given[-1])
    assert [identity for identity, _ in one.given] == [handles[number].id for number in (4, 0, 1, 2, 3, 5)]


async def test_a_delayed_call_outlives_the_hub(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """It starts when it was to start, not later and not before."""
    one = await worker(test)
    handle = await test.submit("job", delay=60)
    await test.advance(20)
    await gone()
    one.connect()
    await test.advance(14)
    one.renew()
    await test.advance(14)
    one.renew()
    await test.advance(11.5)
    assert not one.given
    await test.advance(1)
    assert one.given == [(handle.id, 1)]


async def test_a_pause_outlives_the_hub(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """A call between two attempts has its failures and its pause."""
    one = await worker(test)
    handle = await test.submit("job")
    await one.fail((handle.id, 1))
    due_ms = find(test, handle.id).due_ms
    await gone()
    call = find(test, handle.id)
    assert (call.state, call.failures, call.attempt, call.due_ms) == (CallState.QUEUED, 1, 1, due_ms)
    one.connect()
    await test.advance((due_ms - test.clock.wall_ms()) / 1000 - 0.01)
    assert one.given == [(handle.id, 1)]
    await test.advance(0.02)
    assert one.given == [(handle.id, 1), (handle.id, 2)]
    await one.fail((handle.id, 2))
    one.renew()
    await test.advance(14)
    one.renew()
    await test.advance(4)
    await one.fail((handle.id, 3))
    assert (await handle.status()).state == "failed"


async def test_a_worker_that_comes_back_goes_on(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """What ran in a worker that connects again within its lease is still its own: attempts go on with their numbers, and
    what was sent and taken is not taken twice."""
    one = await worker(test)
    handle = await test.submit("job")
    key = (handle.id, 1)
    await one.emit(key, 0, "a", "item")
    await gone()
    await test.advance(10)
    one.connect([key])
    await test.settle()
    assert one.lost == []
    assert await one.emit(key, 0, "a", "item") == ""
    assert await one.emit(key, 1, "b", "item") == ""
    await test.advance(10)
    assert await one.finish(key, 1) == ""
    assert one.given == [key]
    assert await events(test.hub.log, handle.id) == ["running", "item", "item", "done"]
    assert await handle.result() == 1


async def test_a_worker_that_does_not_come_back_is_lost(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """What it held is run by another a lease after the hub is back, not before; its late answer is refused."""
    one = await worker(test)
    handle = await test.submit("job")
    await gone()
    two = await worker(test, "two")
    await test.advance(LEASE_S - 0.1)
    two.renew()
    assert not two.given
    await test.advance(8.2)
    assert two.given == [(handle.id, 2)]
    one.connect([(handle.id, 1)])
    await test.settle()
    assert one.lost == [(handle.id, 1)]
    assert await one.finish((handle.id, 1), "late") == "attempt-fenced"
    await two.finish((handle.id, 2), "well")
    assert await handle.result() == "well"


async def test_an_ended_call_outlives_the_hub(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """Its answer is what it was, and it is not run again."""
    one = await worker(test)
    done, failed, cancelled = [await test.submit("job") for _ in range(3)]
    await one.finish((done.id, 1), {"a": 1})
    await one.fail((failed.id, 1), "oh", again=False)
    await cancelled.cancel()
    before = [await handle.status() for handle in (done, failed, cancelled)]
    await gone()
    one.connect()
    await test.advance(100)
    assert [await test.get(status.id).status() for status in before] == before
    assert [status.state for status in before] == ["done", "failed", "cancelled"]
    assert len(one.given) == 3
    assert not test.hub.calls.ledger.open


async def test_a_time_begins_anew_with_the_hub(test: TestHub) -> None:
    """The time of an attempt is bounded after a crash too."""
    one = await worker(test, "one", {"name": "job", "timeout_s": 30.0})
    handle = await test.submit("job")
    await test.advance(10)
    await test.crash()
    one.connect([(handle.id, 1)])
    for _ in range(3):
        await test.advance(9.9)
        one.renew()
    assert (await handle.status()).state == "running"
    await test.advance(1)
    assert one.cancelled == [(handle.id, 1)]
    assert (await handle.status()).state == "failed"


async def test_services_outlive_the_hub(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """What was declared last is known before any worker is back."""
    await worker(test, "one", {"name": "job", "retries": 1})
    await worker(test, "two", {"name": "job", "retries": 7, "timeout_s": 3.0}, "other")
    await gone()
    services = test.hub.calls.services
    assert sorted(services) == ["job", "other"]
    assert (services["job"].spec.retries, services["job"].spec.timeout_s) == (7, 3.0)
    assert (await (await test.submit("other")).status()).state == "queued"


async def test_a_call_in_memory_ends_with_the_hub(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """Nothing of it is on disk, and whoever waits is told that nobody knows what became of it."""
    one = await worker(test)
    waiting = asyncio.create_task(test.call("job"))
    await test.settle()
    key = one.given[0]
    await gone()
    with pytest.raises(UnknownOutcome):
        await waiting
    one.connect([key])
    await test.settle()
    assert one.lost == [key]
    assert not test.hub.log.list("__call/", "", 10)


async def test_a_call_with_a_key_is_answered_across_a_crash(test: TestHub) -> None:
    """Whoever called with a key waits on, and has the answer of the one call."""
    one = await worker(test)
    waiting = asyncio.create_task(test.call("job", idempotency_key="a"))
    await test.settle()
    key = one.given[0]
    await test.crash()
    one.connect([key])
    await test.settle()
    await one.finish(key, "well")
    assert await waiting == "well"
    assert one.given == [key]


# -- handlers in the hub's own process


async def test_a_crash_is_a_failed_attempt_of_local_handlers() -> None:
    """What ran in the hub's own process when it crashed has failed: it is run again where it may be."""
    ran: list[str] = []

    async def job(name: str) -> str:
        ran.append(name)
        point("middle")
        return name

    async with TestHub() as test:
        test.hub.service("again", retries=1)(job)
        test.hub.service("once")(job)
        test.crash_at("middle")
        again = await test.submit("again", "again")
        await test.advance(2)
        assert await again.result() == "again"
        test.crash_at("middle")
        once = await test.submit("once", "once")
        await test.advance(2)
        with pytest.raises(CallFailed) as failed:
            await once.result()
        assert failed.value.code == "worker-lost"
        assert ran == ["again", "again", "once"]
        assert test.crashes == 2


async def test_a_stop_hands_back_what_runs() -> None:
    """A hub that stops in order does not use up an attempt of what it could not finish."""
    begun = 0

    async def job() -> str:
        nonlocal begun
        begun += 1
        if begun == 1:
            await asyncio.Event().wait()
        return "well"

    async with TestHub({"job": job}) as test:
        handle = await test.submit("job")
        await test.restart()
        assert await handle.result() == "well"
        assert await events(test.hub.log, handle.id) == ["running", "returned", "running", "done"]


STEPS = ["first", "second", "third"]


def stepping(ran: list[str]) -> TestHub:
    """A pipeline of three steps, each of which appends to what it is given."""
    test = TestHub(local=True)

    def step(name: str) -> Callable[..., Awaitable[list[str]]]:
        async def run(value: list[str]) -> list[str]:
            ran.append(name)
            point(name)
            return [*value, name]

        return run

    for name in STEPS:
        test.hub.service(name, retries=3, backoff=0.5)(step(name))
    test.hub.pipeline("all", *STEPS, backoff=0.5)
    return test


@pytest.mark.parametrize("crashed", STEPS)
async def test_a_pipeline_goes_on_after_a_crash(crashed: str) -> None:
    """It goes on after the last step that was completed: the steps before are not run again."""
    ran: list[str] = []
    async with stepping(ran) as test:
        test.crash_at(crashed)
        handle = await test.submit("all", [])
        await test.advance(5)
        assert await handle.result() == STEPS
        assert test.crashes == 1
        assert ran == sorted([*STEPS, crashed], key=STEPS.index)


async def test_a_pipeline_goes_on_after_many_crashes() -> None:
    """Killed at each step, and each time it looks for them, it ends all the same, and each call of a step is one."""
    ran: list[str] = []
    async with stepping(ran) as test:
        for name in [*STEPS, *STEPS]:
            test.crash_at(name)
        handle = await test.submit("all", [])
        await test.advance(60)
        assert await handle.result() == STEPS
        assert test.crashes == 6
        assert {name: ran.count(name) for name in STEPS} == dict.fromkeys(STEPS, 3)
        assert len(test.hub.log.list("__call/", "", 100)) == 4


async def test_a_pipeline_goes_on_in_another_worker() -> None:
    """A worker that is lost in the middle of a pipeline leaves what its steps gave to the next."""
    ran: list[str] = []
    async with stepping(ran) as test:
        test.hub.worker.worker.stopping = True
        one = await test.worker("one", ["all"])
        two = await test.worker("two", STEPS)
        test.crash_at("third", worker="two")
        handle = await test.submit("all", [])
        one.crash()
        assert two.crashed
        await test.worker("three")
        await test.advance(40)
        assert await handle.result() == STEPS
        assert ran == [*STEPS, "third"]


async def test_a_failed_step_fails_its_pipeline() -> None:
    """With its own retries spent, at once: the step is made once, and another attempt would find the same."""

    async def broken(value: Any) -> None:
        raise RuntimeError("oh")

    async with TestHub({"broken": broken}) as test:
        test.hub.pipeline("all", "broken")
        handle = await test.submit("all", 1)
        status = await handle.status()
        assert (status.state, status.attempt) == ("failed", 1)
        with pytest.raises(CallFailed, match="oh"):
            await handle.result()


async def test_steps_of_a_retry_are_made_once() -> None:
    """A handler that is run again is given what its steps gave, in order or by name."""
    ran: list[int] = []
    attempts = 0

    async def add(number: int) -> int:
        ran.append(number)
        return number + 1

    async def job(call: Call) -> list[int]:
        nonlocal attempts
        attempts += 1
        first = await call.step("add", 1)
        second = await call.step("add", 10, name="ten")
        if attempts < 3:
            raise RuntimeError("not yet")
        return [first, second, await call.step("add", 100)]

    async with TestHub({"add": add}) as test:
        test.hub.service("job", retries=5)(job)
        handle = await test.submit("job")
        await test.advance(10)
        assert await handle.result() == [2, 11, 101]
        assert ran == [1, 10, 100]
