"""The life of a call: its states, its attempts and how often there is another, how it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.calls import PuppetWorker, events, find, request
from wayside import Call, CallCancelled, CallFailed
from wayside.calls.call import FINAL, TRANSITIONS, CallRequest, CallState, Event, ImpossibleEvent, ServiceCall
from wayside.core.errors import BadRequest, Conflict, IdempotencyMismatch, NotFound, Overloaded, Refusal, TooManyCalls
from wayside.testing import TestHub


@pytest.fixture
async def test() -> AsyncIterator[TestHub]:
    """A hub whose own process runs nothing."""
    async with TestHub(local=False) as test:
        yield test


async def worker(test: TestHub, name: str = "one", *services: dict[str, Any] | str, capacity: int = 16) -> PuppetWorker:
    puppet = PuppetWorker(test, name, *(services or ("job",)), capacity=capacity)
    puppet.connect()
    await test.settle()
    return puppet


# -- states


@pytest.mark.parametrize("state", CallState)
def test_what_may_happen_depends_on_the_state(state: CallState) -> None:
    """A call that waits is run or ends, one that runs says something, waits again or ends, and one that has ended is as
    it is."""
    from_queued = {"queued", "running", "failed", "cancelled"}
    from_running = {"progress", "item", "retry", "returned", "done", "failed", "cancelled"}
    expected = {CallState.QUEUED: from_queued, CallState.RUNNING: from_running}.get(state, set())
    assert {event for event, (states, _) in TRANSITIONS.items() if state in states} == expected
    assert bool(expected) == (state not in FINAL)
    for event in TRANSITIONS:
        call = ServiceCall(CallRequest("a", "job", 1), "__call/a", durable=True)
        call.state = state
        if event in expected:
            call.apply(Event(event, 2))
            assert call.state is TRANSITIONS[event][1]
        else:
            with pytest.raises(ImpossibleEvent):
                call.apply(Event(event, 2))
            assert call.state is state


async def test_an_event_that_is_not_known_changes_nothing(test: TestHub) -> None:
    """The record of another version of the hub is passed over."""
    await worker(test)
    call = ServiceCall(request(test, "job"), "__call/a", durable=True)
    call.apply(Event("teleported", 1))
    assert (call.state, call.attempt) == (CallState.QUEUED, 0)


async def test_a_call_is_its_stream(test: TestHub) -> None:
    """What happens to a submitted call is recorded in order, and its stream is closed with the answer."""
    one = await worker(test)
    handle = await test.submit("job", 1)
    (key,) = one.given
    await one.emit(key, 0, 0.5)
    await one.emit(key, 1, "a", "item")
    await one.finish(key, 2)
    assert await events(test.hub.log, handle.id) == ["running", "progress", "item", "done"]
    assert test.hub.log.find(f"__call/{handle.id}").closed
    assert await handle.result() == 2
    assert [event.kind async for event in handle.events()] == ["running", "progress", "item", "done"]


async def test_nobody_runs_a_service_that_is_unknown(test: TestHub) -> None:
    """A call of a service that nobody ever declared is refused, and says which there are."""
    await worker(test)
    for call in (test.call, test.submit):
        with pytest.raises(NotFound, match="job") as refused:
            await call("other")
        assert refused.value.code == "service-not-found"


async def test_a_call_waits_for_a_worker(test: TestHub) -> None:
    """A service that was declared is called though nobody runs it now."""
    one = await worker(test)
    await one.rest(bye=True)
    handle = await test.submit("job")
    assert (await handle.status()).state == "queued"
    two = await worker(test, "two")
    assert two.given == [(handle.id, 1)]


# -- attempts


async def test_attempts_are_counted(test: TestHub) -> None:
    """The number of attempts is that of the grants, be they failed, handed back or lost."""
    one = await worker(test, "one", {"name": "job", "retries": 5, "backoff_s": 1.0})
    handle = await test.submit("job")
    await one.fail((handle.id, 1))
    await test.advance(1)
    await one.hand_back((handle.id, 2))
    one.disconnect()
    await test.advance(15 + 4)
    two = await worker(test, "two")
    await two.finish((handle.id, 4), "done")
    assert one.given == [(handle.id, number) for number in (1, 2, 3)]
    assert (await handle.status()).attempt == 4
    assert test.hub.calls.attempts.begun == 4
    assert await events(test.hub.log, handle.id) == [
        *("running", "retry", "running", "returned", "running", "retry", "running", "done")
    ]


async def test_a_retry_waits_with_jitter(test: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of the pause doubles with each failure up to its maximum, and the pause is anything below it."""
    monkeypatch.setattr(test.hub.calls.attempts.random, "random", iter([1.0, 1.0, 0.25, 1.0]).__next__)
    spec = {"name": "job", "retries": 4, "backoff_s": 2.0, "backoff_s_max": 10.0}
    one = await worker(test, "one", spec)
    handle = await test.submit("job")
    for attempt, pause_s in enumerate((2, 4, 8 / 4, 10), 1):
        await one.fail((handle.id, attempt))
        await test.advance(pause_s - 0.01)
        one.renew()
        assert len(one.given) == attempt
        assert (await handle.status()).state == "queued"
        await test.advance(0.02)
        assert one.given[-1] == (handle.id, attempt + 1)


async def test_the_last_failure_is_the_answer(test: TestHub) -> None:
    """When its attempts are spent the call has failed, with what the last of them failed with."""
    one = await worker(test, "one", {"name": "job", "retries": 1})
    handle = await test.submit("job")
    await one.fail((handle.id, 1), "first")
    await test.advance(1)
    await one.fail((handle.id, 2), "second")
    status = await handle.status()
    assert (status.state, status.attempt, (status.error or {})["code"]) == ("failed", 2, "second")
    with pytest.raises(Refusal) as raised:
        await handle.result()
    assert raised.value.code == "second"


async def test_without_retries_there_is_one_attempt(test: TestHub) -> None:
    """A service that declares none is tried once; so is a call in memory."""
    one = await worker(test)
    waiting = asyncio.create_task(test.call("job"))
    handle = await test.submit("job")
    assert len(one.given) == 2
    for key in one.given:
        await one.fail(key)
    assert (await handle.status()).state == "failed"
    with pytest.raises(CallFailed):
        await waiting
    assert len(one.given) == 2


async def test_a_call_in_memory_is_retried_too(test: TestHub) -> None:
    """Whoever waits for a call is answered by the attempt that succeeds."""
    one = await worker(test, "one", {"name": "job", "retries": 1})
    waiting = asyncio.create_task(test.call("job"))
    await test.settle()
    (key,) = one.given
    await one.fail(key)
    await test.advance(1)
    await one.finish((key[0], 2), "well")
    assert await waiting == "well"


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (Conflict("no"), 1),
        (BadRequest("no"), 1),
        (TooManyCalls("later"), 3),
        (Overloaded("later"), 3),
        (RuntimeError("oh"), 3),
        (StopIteration(), 3),
        (SystemExit(1), 3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("threaded", [False, True], ids=["coroutine", "thread"])
async def test_what_can_never_succeed_is_not_retried(error: BaseException, attempts: int, threaded: bool) -> None:
    """A refusal below 500 is the caller's fault and final, unless it says that the same may succeed later; anything else
    that a handler raises is tried again, and harms nobody else."""
    ran = []

    async def coroutine() -> None:
        ran.append(1)
        raise error

    def plain() -> None:
        ran.append(1)
        raise error

    async with TestHub() as test:
        test.hub.service("job", retries=2)(plain if threaded else coroutine)
        handle = await test.submit("job")
        for _ in range(attempts):
            status = await _until_it_rests(test, handle.id)
            if status in FINAL:
                break
            await test.advance(4)
        with pytest.raises(Refusal):
            await handle.result()
        assert len(ran) == attempts


async def _until_it_rests(test: TestHub, identity: str) -> CallState:
    """Threads take their own time."""
    async with asyncio.timeout(10):
        while find(test, identity).state is CallState.RUNNING:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)
    await test.settle()
    return find(test, identity).state


async def test_a_handler_that_is_cancelled_from_within_has_failed() -> None:
    """A handler that waits for something that was cancelled ends its attempt: nobody waits for it for ever."""

    async def job() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with TestHub({"job": job}) as test:
        with pytest.raises(CallFailed, match="CancelledError"):
            await test.call("job")


# -- the time of an attempt


async def test_an_attempt_has_a_time(test: TestHub) -> None:
    """An attempt that takes too long is stopped and has failed; what it says then is refused."""
    one = await worker(test, "one", {"name": "job", "timeout_s": 5.0, "retries": 1, "backoff_s": 1.0})
    handle = await test.submit("job")
    await test.advance(4.9)
    assert not one.cancelled
    await test.advance(0.2)
    assert one.cancelled == [(handle.id, 1)]
    assert await one.finish((handle.id, 1), "late") == "attempt-fenced"
    await test.advance(1)
    assert one.given[-1] == (handle.id, 2)
    await test.advance(5)
    status = await handle.status()
    assert (status.state, (status.error or {})["code"]) == ("failed", "attempt-timeout")
    assert await one.finish((handle.id, 2), "later") == "attempt-fenced"
    assert (await handle.status()).state == "failed"


async def test_a_handler_cannot_overstay() -> None:
    """A handler that goes on after it was cancelled has failed all the same, and what it returns is for nobody."""
    stayed = asyncio.Event()

    async def job() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stayed.set()
        return "late"

    async with TestHub() as test:
        test.hub.service("job", timeout=3)(job)
        waiting = asyncio.create_task(test.call("job"))
        await test.advance(3)
        assert stayed.is_set()
        with pytest.raises(CallFailed) as failed:
            await waiting
        assert failed.value.code == "attempt-timeout"


async def test_an_answer_in_time_is_not_timed_out(test: TestHub) -> None:
    """The time of an attempt that has ended is over with it: the next has its own."""
    one = await worker(test, "one", {"name": "job", "timeout_s": 5.0, "retries": 1, "backoff_s": 0.0})
    handle = await test.submit("job")
    await test.advance(4)
    await one.fail((handle.id, 1))
    await test.advance(4)
    assert (await handle.status()).state == "running"
    await one.finish((handle.id, 2), 1)
    await test.advance(5)
    assert await handle.result() == 1


# -- delays and cancellation


async def test_a_call_can_start_later(test: TestHub) -> None:
    """A delayed call is granted when its time has come, not before."""
    one = await worker(test)
    handle = await test.submit("job", delay=10)
    await test.advance(9.9)
    assert not one.given
    await test.advance(0.2)
    assert one.given == [(handle.id, 1)]


async def test_a_call_that_waits_is_cancelled(test: TestHub) -> None:
    """Be it queued, delayed or between two attempts: it ends at once, is never run, and counts no longer."""
    one = await worker(test, "one", {"name": "job", "retries": 3, "backoff_s": 100.0, "queue_max": 3}, capacity=1)
    running = await test.submit("job")
    queued = await test.submit("job")
    delayed = await test.submit("job", delay=10)
    await one.fail((running.id, 1))
    await one.hand_back((queued.id, 1))
    assert find(test, queued.id).state is CallState.RUNNING
    second = await test.submit("job")
    for handle in (running, second, delayed):
        assert (await handle.cancel()).state == "cancelled"
        with pytest.raises(CallCancelled):
            await handle.result()
        assert (await handle.cancel()).state == "cancelled"
    service = test.hub.calls.services["job"]
    assert (service.delayed, service.full) == (0, False)
    await one.finish((queued.id, 2))
    with pytest.raises(Conflict) as refused:
        await queued.cancel()
    assert refused.value.code == "call-ended"
    await test.advance(300)
    assert [key for key in one.given if key[0] != queued.id] == [(running.id, 1)]
    assert not test.hub.calls.ledger.open


async def test_a_call_that_runs_is_cancelled(test: TestHub) -> None:
    """Its worker is told to stop, its place is free, and what it still says is refused."""
    one = await worker(test, capacity=1)
    handle = await test.submit("job")
    other = await test.submit("job")
    await handle.cancel()
    assert one.cancelled == [(handle.id, 1)]
    assert one.given[-1] == (other.id, 1)
    assert await one.finish((handle.id, 1), "late") == "attempt-fenced"
    assert await one.emit((handle.id, 1), 0, 1) == "attempt-fenced"
    assert await one.hand_back((handle.id, 1)) == "attempt-fenced"
    assert await events(test.hub.log, handle.id) == ["running", "cancelled"]


async def test_whoever_leaves_cancels(test: TestHub) -> None:
    """A call in memory whose caller has gone ends, and its handler is told."""
    one = await worker(test)
    waiting = asyncio.create_task(test.call("job"))
    await test.settle()
    waiting.cancel()
    await test.settle()
    assert one.cancelled == one.given
    assert not test.hub.calls.ledger.open


async def test_steps_are_cancelled_with_their_call() -> None:
    """When a call is cancelled, so is the step that it waits for, wherever it runs."""

    async def step() -> None:
        await asyncio.Event().wait()

    async def job(call: Call) -> None:
        await call.step("step")

    async with TestHub({"job": job, "step": step}) as test:
        handle = await test.submit("job")
        (child,) = test.hub.calls.ledger.children[handle.id]
        await handle.cancel()
        await test.settle()
        assert (await test.get(child).status()).state == "cancelled"
        assert not test.hub.calls.ledger.open
        assert not test.hub.calls.ledger.children


# -- idempotency


async def test_a_key_names_one_call(test: TestHub) -> None:
    """The same request with the same key is the same call: while it runs, and when it has ended."""
    one = await worker(test)
    first = await test.submit("job", 1, idempotency_key="a")
    again = await test.submit("job", 1, idempotency_key="a")
    assert again.id == first.id
    await one.finish((first.id, 1), "well")
    assert await test.call("job", 1, idempotency_key="a") == "well"
    assert (await test.submit("job", 1, idempotency_key="a")).id == first.id
    assert one.given == [(first.id, 1)]


async def test_a_key_names_one_call_before_it_is_kept(test: TestHub) -> None:
    """Requests with one key that come before the first is on disk wait for it, and are the same call."""
    one = await worker(test)
    handles = await asyncio.gather(*[test.client.submit("job", 1, idempotency_key="a") for _ in range(5)])
    await test.settle()
    assert len({handle.id for handle in handles}) == 1
    assert len(one.given) == 1


async def test_a_key_is_for_one_request(test: TestHub) -> None:
    """Another request with the same key is refused, before and after the first is kept."""
    await worker(test)
    results = await asyncio.gather(
        *[test.client.submit("job", number, idempotency_key="a") for number in range(3)], return_exceptions=True
    )
    assert [type(result).__name__ for result in results] == ["CallHandle", *["IdempotencyMismatch"] * 2]
    with pytest.raises(IdempotencyMismatch):
        await test.submit("job", 4, idempotency_key="a")


async def test_a_key_is_of_one_service(test: TestHub) -> None:
    """The same key at another service is another call."""
    await worker(test, "one", "job", "other")
    first = await test.submit("job", 1, idempotency_key="a")
    assert (await test.submit("other", 1, idempotency_key="a")).id != first.id


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "crash"])
async def test_a_key_outlives_the_hub(test: TestHub, crash: bool) -> None:
    """The same request is the same call after the hub was gone: of one that had ended, and of one that had not."""
    one = await worker(test)
    ended = await test.submit("job", 1, idempotency_key="a")
    await one.finish((ended.id, 1), "well")
    opened = await test.submit("job", 1, idempotency_key="b")
    await (test.crash() if crash else test.restart())
    assert (await test.submit("job", 1, idempotency_key="b")).id == opened.id
    handles = await asyncio.gather(*[test.client.submit("job", 1, idempotency_key="a") for _ in range(3)])
    assert {handle.id for handle in handles} == {ended.id}
    assert await handles[0].result() == "well"
    with pytest.raises(IdempotencyMismatch):
        await test.submit("job", 2, idempotency_key="a")
    assert one.given == [(ended.id, 1), (opened.id, 1)]


async def test_a_key_that_was_refused_can_be_used(test: TestHub) -> None:
    """A request that was refused has not used its key."""
    one = await worker(test, "one", {"name": "job", "queue_max": 1}, capacity=1)
    for _ in range(2):
        await test.submit("job")
    with pytest.raises(TooManyCalls):
        await test.submit("job", 1, idempotency_key="a")
    await one.finish(one.given[0])
    await one.finish(one.given[1])
    handle = await test.submit("job", 2, idempotency_key="a")
    assert one.given[-1] == (handle.id, 1)
