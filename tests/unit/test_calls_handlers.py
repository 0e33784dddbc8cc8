"""Handlers of every kind, and what they may do while they run: tell how far they are, yield, make steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.support.calls import events, find
from tests.support.disk import Gate
from tests.support.waiting import turns, until
from wayside import Call, CallFailed, Refusal
from wayside.calls.call import CallState
from wayside.calls.handler import UNACKNOWLEDGED_MAX
from wayside.core.errors import Conflict, StoreFull
from wayside.testing import TestHub


@pytest.fixture
async def test() -> AsyncIterator[TestHub]:
    """A hub that runs handlers in its own process."""
    async with TestHub() as test:
        yield test


@pytest.mark.parametrize("threaded", [False, True], ids=["coroutine", "thread"])
async def test_progress_is_kept_when_it_returns(test: TestHub, threaded: bool) -> None:
    """A handler tells how far it is, from the event loop or from a thread; each telling is a record of its call."""
    seen: list[bytes] = []

    def look(call: Call) -> None:
        seen.append(bytes(find(test, call.id).progress or b""))

    async def coroutine(call: Call) -> str:
        await call.progress(0.5)
        look(call)
        await call.progress(1, step="last")
        return "well"

    def plain(call: Call) -> str:
        call.progress(0.5)
        look(call)
        call.progress(1, step="last")
        return "well"

    test.hub.service("job")(plain if threaded else coroutine)
    handle = await test.submit("job")
    assert await handle.result() == "well"
    assert [event.data async for event in handle.events() if event.kind == "progress"] == [
        {"value": 0.5},
        {"value": 1, "step": "last"},
    ]
    assert seen == [b'{"value":0.5}']
    assert (await handle.status()).progress == {"value": 1, "step": "last"}


async def test_progress_may_be_awaited_in_a_thread(test: TestHub) -> None:
    """The same helper serves both kinds of handler: what it gives in a thread is there already."""

    def job(call: Call) -> str:
        told = call.progress(0.5)
        with pytest.raises(StopIteration):
            next(iter(told.__await__()))
        return "well"

    test.hub.service("job")(job)
    assert await test.call("job") == "well"


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


async def numbers_async(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@pytest.mark.parametrize("function", [numbers, numbers_async])
@pytest.mark.parametrize("count", [0, 1, 3 * UNACKNOWLEDGED_MAX])
async def test_a_generator_streams_its_answer(test: TestHub, function: Any, count: int) -> None:
    """What a generator yields comes in order, all of it, and the call is done when it ends."""
    test.hub.service("numbers")(function)
    assert [item async for item in test.stream("numbers", count)] == list(range(count))
    handle = await test.submit("numbers", count)
    assert await handle.result() is None
    assert (await handle.status()).items == count


async def test_a_generator_waits_for_the_disk(test: TestHub) -> None:
    """It is at most a known number of values ahead of what is kept."""
    made = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    test.hub.service("endless")(endless)
    gate = Gate(test.hub.log)
    submitting = asyncio.create_task(test.client.submit("endless"))
    await until(lambda: made)
    gate.shut()
    handle = await submitting
    before = -1
    while made != before:
        before = made
        await turns(200)
    kept = find(test, handle.id).items
    assert kept < made <= kept + UNACKNOWLEDGED_MAX + 1
    gate.open()
    await until(lambda: made > before)
    await handle.cancel()


async def test_a_retry_knows_what_was_yielded(test: TestHub) -> None:
    """``call.yielded`` counts the values of all attempts before: a generator that goes on behind them repeats none."""
    attempts = 0

    async def count(to: int, call: Call) -> AsyncIterator[int]:
        nonlocal attempts
        attempts += 1
        for number in range(call.yielded, to):
            yield number
            if number % 4 == 3:
                raise RuntimeError("again")

    test.hub.service("count", retries=3, backoff=1.0)(count)
    handle = await test.submit("count", 10)
    await test.advance(10)
    assert [item async for item in handle.items()] == list(range(10))
    assert attempts == 3


async def test_a_generator_that_fails_says_so(test: TestHub) -> None:
    """What was yielded before stays, and then comes the failure."""

    def job() -> Iterator[int]:
        yield 1
        raise Conflict("no more", code="no-more")

    test.hub.service("job")(job)
    stream = test.stream("job")
    assert await anext(stream) == 1
    with pytest.raises(Conflict) as raised:
        await anext(stream)
    assert raised.value.code == "no-more"


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_value_that_was_not_kept_fails_its_attempt(test: TestHub, retries: int) -> None:
    """A generator whose values find no room on the disk has not succeeded: its call is tried again, or has failed."""
    going = asyncio.Event()

    async def job(call: Call) -> AsyncIterator[int]:
        for number in range(call.yielded, 3):
            yield number
            await going.wait()

    test.hub.service("job", retries=retries, backoff=2.0)(job)
    handle = await test.submit("job")
    gate = Gate(test.hub.log)
    gate.full = 1
    going.set()
    await test.settle()
    await test.advance(5)
    if retries:
        assert [item async for item in handle.items()] == [0, 1, 2]
        assert (await handle.status()).attempt == 2
    else:
        with pytest.raises(StoreFull):
            await handle.result()


async def test_progress_that_was_not_kept_ends_the_attempt(test: TestHub) -> None:
    """A handler that goes on all the same gets no further, and no record is out of order."""
    refused: list[str] = []

    async def job(call: Call) -> None:
        gate.full = 1
        for number in range(3):
            try:
                await call.progress(number)
            except Refusal as refusal:
                refused.append(refusal.code)
        if len(refused) < 4:
            raise RuntimeError("again")

    gate = Gate(test.hub.log)
    test.hub.service("job", retries=1, backoff=0.0)(job)
    handle = await test.submit("job")
    await test.advance(5)
    assert refused == ["store-full"] * 6
    assert (await handle.status()).state == "done"
    assert await events(test.hub.log, handle.id) == ["running", "retry", "running", "done"]


async def test_a_step_shows_its_progress(test: TestHub) -> None:
    """What a step tells is told of the call whose step it is."""

    async def step(call: Call) -> str:
        await call.progress(0.25)
        return "well"

    def job(call: Call) -> Any:
        result = call.step("step")
        return result.value  # type: ignore[attr-defined]

    test.hub.service("step")(step)
    test.hub.service("job")(job)
    handle = await test.submit("job")
    assert await handle.result() == "well"
    told = [event.data async for event in handle.events() if event.kind == "progress"]
    assert told == [{"step": "step", "value": 0.25}]


async def test_a_thread_that_waits_for_the_hub_is_let_go(test: TestHub) -> None:
    """A plain function whose attempt is cancelled does not wait for its step for ever."""
    left = threading.Event()

    async def step() -> None:
        await asyncio.Event().wait()

    def job(call: Call) -> None:
        try:
            call.step("step")
        finally:
            left.set()

    test.hub.service("step")(step)
    test.hub.service("job")(job)
    handle = await test.submit("job")
    await until(lambda: len(test.hub.calls.ledger.open) == 2)
    await handle.cancel()
    await until(left.is_set)
    await test.settle()
    assert not test.hub.calls.ledger.open


async def test_a_plain_function_sees_that_it_is_cancelled(test: TestHub) -> None:
    """A thread cannot be stopped: ``call.cancelled`` is where it looks."""
    seen = threading.Event()
    begun = threading.Event()

    def job(call: Call) -> None:
        begun.set()
        while not call.cancelled:
            seen.wait(0.001)
        seen.set()

    test.hub.service("job")(job)
    handle = await test.submit("job")
    await until(begun.is_set)
    await handle.cancel()
    await until(seen.is_set)
    assert find(test, handle.id).state is CallState.CANCELLED


async def test_what_a_handler_raises_is_told_without_its_data(test: TestHub) -> None:
    """The failure says what was raised, and where, and nothing of the values of variables."""

    async def job(secret: str) -> None:
        raise LookupError("nothing there")

    test.hub.service("job")(job)
    with pytest.raises(CallFailed) as failed:
        await test.call("job", "hunter2")
    fields = failed.value.fields
    assert (fields["error"], fields["message"]) == ("LookupError", "nothing there")
    assert str(fields["where"]).startswith("job (test_calls_handlers.py:")
    assert "hunter2" not in str(failed.value.problem())


# -- calls in memory


async def test_a_call_in_memory_leaves_nothing_on_disk(test: TestHub) -> None:
    """Whoever waits for an answer costs no write; what the hub knows of the call is in memory."""

    async def job(number: int) -> int:
        return number + 1

    test.hub.service("job")(job)
    await test.settle()
    before = test.hub.log.statistics().appends
    assert await test.call("job", 1) == 2
    assert test.hub.log.list("__call/", "", 10) == []
    assert test.hub.log.statistics().appends == before
    (call,) = test.hub.calls.ledger.recent.values()
    assert (await test.get(call.id).status()).state == "done"
    assert test.hub.log.list("__call/", "", 10) == []


async def test_a_call_in_memory_has_a_stream_for_whoever_asks(test: TestHub) -> None:
    """Its events can be followed: while it runs, and when it has ended, from its start."""
    go_on = asyncio.Event()

    async def job() -> str:
        await go_on.wait()
        return "well"

    test.hub.service("job")(job)
    waiting = asyncio.create_task(test.call("job"))
    await test.settle()
    (identity,) = test.hub.calls.ledger.open
    following = test.get(identity).events()
    assert (await anext(following)).kind == "running"
    go_on.set()
    assert await waiting == "well"
    rest = [(event.kind, event.data) async for event in following]
    assert rest == [("done", "well")]
    assert await test.call("job") == "well"
    ended = [call.id for call in test.hub.calls.ledger.recent.values() if call.id != identity]
    assert [event.kind async for event in test.get(ended[0]).events()] == ["running", "done"]


async def test_a_call_in_memory_lives_as_long_as_it_runs(test: TestHub) -> None:
    """Its stream is let go some time after its end, and not while it is silent."""
    go_on = asyncio.Event()

    async def job(call: Call) -> str:
        await call.progress(0.5)
        await go_on.wait()
        await call.progress(1)
        return "well"

    test.hub.service("job")(job)
    waiting = asyncio.create_task(test.call("job"))
    await test.settle()
    await test.advance(1000)
    assert len(test.hub.log.list("__call/", "", 10)) == 1
    go_on.set()
    assert await waiting == "well"
    await test.advance(test.hub.limits.call_linger_s * 2)
    assert test.hub.log.list("__call/", "", 10) == []


async def test_a_call_in_memory_is_answered_without_its_stream(test: TestHub) -> None:
    """A jump of the clock lets go of a stream too early: the answer comes all the same."""
    go_on = asyncio.Event()

    async def job(call: Call) -> str:
        await call.progress(0.5)
        await go_on.wait()
        return "well"

    test.hub.service("job")(job)
    waiting = asyncio.create_task(test.call("job"))
    await test.settle()
    test.clock.advance(1000)
    test.hub.log.retention.expire(test.clock.wall_ms())
    go_on.set()
    async with asyncio.timeout(10):
        assert await waiting == "well"
