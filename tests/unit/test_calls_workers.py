"""Workers: what they are given and in which order, what becomes of it when they are lost, and what they may still say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.calls import PuppetWorker, events, find
from tests.support.disk import Gate
from wayside.calls.call import CallState
from wayside.calls.queue import worker_name
from wayside.core.errors import Conflict, Fenced, TooManyCalls
from wayside.link import frames as f
from wayside.testing import TestHub

LEASE_S = 15.0


@pytest.fixture
async def test() -> AsyncIterator[TestHub]:
    """A hub whose own process runs nothing."""
    async with TestHub(local=False) as test:
        yield test


async def worker(test: TestHub, name: str = "one", *services: dict[str, Any] | str, capacity: int = 16) -> PuppetWorker:
    puppet = PuppetWorker(test, name, *(services or (JOB,)), capacity=capacity)
    puppet.connect()
    await test.settle()
    return puppet


JOB: dict[str, Any] = {"name": "job", "retries": 2, "backoff_s": 0.0}
"""A service that is tried three times, at once."""


# -- who is given what


async def test_a_worker_is_given_what_it_has_places_for(test: TestHub) -> None:
    """Never more than its capacity, and the next as soon as one ends, however it ends."""
    one = await worker(test, "one", {"name": "job"}, capacity=2)
    handles = [await test.submit("job", number) for number in range(7)]
    assert len(one.given) == 2
    await one.finish(one.given[0])
    assert len(one.given) == 3
    await one.fail(one.given[1])
    assert len(one.given) == 4
    await test.get(one.given[2][0]).cancel()
    await test.settle()
    assert len(one.given) == 5
    await one.hand_back(one.given[3])
    held = test.hub.calls.workers[worker_name(one.id)].held
    assert len(held) == 2
    for _ in range(10):
        await test.settle()
        if not held:
            break
        identity, call = next(iter(held.items()))
        await one.finish((identity, call.attempt))
        assert len(held) <= 2
    assert [find(test, handle.id).final for handle in handles] == [True] * 7


async def test_the_worker_with_most_places_is_next(test: TestHub) -> None:
    """Calls are spread over the workers."""
    one, two = await worker(test, "one", capacity=4), await worker(test, "two", capacity=4)
    for _ in range(4):
        await test.submit("job")
    assert (len(one.given), len(two.given)) == (2, 2)


async def test_the_urgent_are_first_then_the_oldest(test: TestHub) -> None:
    """Calls are granted by priority, over all services of a worker; those of one priority in the order in which they
    came."""
    one = await worker(test, "one", "job", "other", capacity=1)
    blocker = await test.submit("job")
    wanted: list[tuple[int, int, str]] = []
    for number, (service, priority) in enumerate(
        [("job", 0), ("other", 0), ("job", 5), ("other", 9), ("job", -1), ("job", 5), ("other", 0)]
    ):
        handle = await test.submit(service, priority=priority)
        wanted.append((-priority, number, handle.id))
    await one.finish((blocker.id, 1))
    for _ in wanted:
        await one.finish(one.given[-1])
    assert [identity for identity, _ in one.given[1:]] == [identity for _, _, identity in sorted(wanted)]


async def test_a_service_has_its_own_bound(test: TestHub) -> None:
    """``concurrency`` attempts of a service run at a time, over all workers; other services are not held up by it."""
    bounded = {"name": "job", "concurrency": 2}
    one, two = await worker(test, "one", bounded, "other"), await worker(test, "two", bounded, "other")
    for _ in range(4):
        await test.submit("job")
    other = await test.submit("other")
    given = [*one.given, *two.given]
    assert len(given) == 3
    assert (other.id, 1) in given
    assert test.hub.calls.services["job"].running == 2
    await one.finish(one.given[0])
    assert len([*one.given, *two.given]) == 4


async def test_a_bound_that_has_room_again_is_for_any_worker(test: TestHub) -> None:
    """What a service may run more of goes to whoever has a place, though that is not where the last one ended."""
    bounded = {"name": "job", "concurrency": 1}
    one = await worker(test, "one", bounded)
    first, second = await test.submit("job"), await test.submit("job")
    two = await worker(test, "two", bounded)
    await one.rest()
    await one.finish((first.id, 1))
    assert two.given == [(second.id, 1)]


async def test_a_queue_has_a_bound(test: TestHub) -> None:
    """More calls than may wait are refused with 429 and when to try again; those that were cancelled make room, and those
    that come at the same time count."""
    one = await worker(test, "one", {"name": "job", "queue_max": 2}, capacity=1)
    await test.submit("job")
    results = await asyncio.gather(*[test.client.submit("job") for _ in range(5)], return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["CallHandle"] * 2 + ["TooManyCalls"] * 3
    refused = results[-1]
    assert isinstance(refused, TooManyCalls)
    assert (refused.status, refused.retry, refused.code) == (429, True, "queue-full")
    for call in (test.submit, test.call):
        with pytest.raises(TooManyCalls):
            await call("job")
    with pytest.raises(TooManyCalls) as direct:
        test.hub.calls.call(
            test.hub.calls.request("job", find(test, one.given[0][0]).request.payload), lambda _call: None
        )
    assert direct.value.headers["Retry-After"] == "1"
    (queued, _) = [result for result in results if not isinstance(result, BaseException)]
    await queued.cancel()
    await test.submit("job")
    with pytest.raises(TooManyCalls):
        await test.submit("job")


async def test_a_queue_may_have_no_room_at_all(test: TestHub) -> None:
    """Where no call may wait, one that a worker has a place for is taken all the same."""
    one = await worker(test, "one", {"name": "job", "queue_max": 0}, capacity=1)
    await test.submit("job")
    for call in (test.submit, test.call):
        with pytest.raises(TooManyCalls):
            await call("job")
    await one.finish(one.given[0])
    handle = await test.submit("job")
    assert one.given[-1] == (handle.id, 1)


async def test_a_worker_that_rests_is_given_nothing(test: TestHub) -> None:
    """It finishes what it has, and other workers take the rest."""
    one = await worker(test)
    first = await test.submit("job")
    await one.rest()
    second = await test.submit("job")
    assert one.given == [(first.id, 1)]
    two = await worker(test, "two")
    assert two.given == [(second.id, 1)]
    assert await one.finish((first.id, 1)) == ""


async def test_what_was_on_its_way_to_a_worker_that_stops_is_not_lost(test: TestHub) -> None:
    """A worker that says goodbye gives back what it was being given: that is no failure."""
    one = await worker(test, "one", {"name": "job"})
    handle = await test.submit("job")
    await one.rest(bye=True)
    two = await worker(test, "two", {"name": "job"})
    assert two.given == [(handle.id, 2)]
    await two.finish((handle.id, 2), 1)
    assert await handle.result() == 1


# -- leases


async def test_a_lost_worker_is_replaced_after_its_lease(test: TestHub) -> None:
    """What it held is run by another when its lease is over, and not before."""
    one = await worker(test)
    handle = await test.submit("job")
    one.disconnect()
    two = await worker(test, "two")
    for _ in range(4):
        await test.advance(3.5)
        two.renew()
    assert not two.given
    await test.advance(2)
    assert two.given == [(handle.id, 2)]
    status = await handle.status()
    assert (status.state, (status.error or {})["code"]) == ("running", "worker-lost")


async def test_a_lost_worker_may_be_the_last_attempt(test: TestHub) -> None:
    """A call without retries has failed when its worker is lost, with the reason."""
    await worker(test, "one", {"name": "job"})
    handle = await test.submit("job")
    await test.advance(LEASE_S + 0.1)
    status = await handle.status()
    assert (status.state, (status.error or {})["code"]) == ("failed", "worker-lost")


async def test_a_lease_that_is_renewed_lasts(test: TestHub) -> None:
    """A worker that says that it lives keeps what it holds, be it connected or not."""
    one = await worker(test)
    handle = await test.submit("job")
    one.disconnect()
    for _ in range(10):
        await test.advance(LEASE_S - 1)
        one.renew()
    assert find(test, handle.id).state is CallState.RUNNING
    await test.advance(LEASE_S + 1)
    assert find(test, handle.id).state is CallState.QUEUED
    with pytest.raises(Fenced) as fenced:
        one.renew()
    assert fenced.value.code == "lease-over"


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_lost_worker_is_fenced(test: TestHub, retries: int) -> None:
    """Whatever it says of what it lost is refused and changes nothing: while nobody has it, while another has it, and
    when it has ended."""
    spec = {"name": "job", "retries": retries, "backoff_s": 0.0}
    one = await worker(test, "one", spec)
    handle = await test.submit("job")
    key = (handle.id, 1)
    await one.emit(key, 0, "kept")
    await test.advance(LEASE_S + 0.1)

    async def refused() -> None:
        before = await events(test.hub.log, handle.id)
        assert await one.emit(key, 1, "late") == "attempt-fenced"
        assert await one.finish(key, "late") == "attempt-fenced"
        assert await one.hand_back(key) == "attempt-fenced"
        assert await one.fail(key) == "attempt-fenced"
        assert await events(test.hub.log, handle.id) == before

    await refused()
    one.connect([key])
    await test.settle()
    assert one.lost == [key]
    if not retries:
        assert find(test, handle.id).state is CallState.FAILED
        await refused()
        return
    assert one.given[-1] == (handle.id, 2)  # it is as good as any other
    await refused()
    await one.finish((handle.id, 2), "result")
    await refused()
    assert await handle.result() == "result"


# -- what attempts say


async def test_an_end_is_taken_once(test: TestHub) -> None:
    """A worker that does not know whether it was heard says the same again: it is acknowledged, and recorded once."""
    one = await worker(test)
    handle = await test.submit("job")
    for _ in range(3):
        assert await one.finish((handle.id, 1), "well") == ""
    assert await events(test.hub.log, handle.id) == ["running", "done"]


async def test_a_failure_is_taken_once(test: TestHub) -> None:
    """So is the failure of an attempt, though there is another attempt to come."""
    one = await worker(test, "one", {"name": "job", "retries": 2, "backoff_s": 100.0})
    handle = await test.submit("job")
    for _ in range(3):
        assert await one.fail((handle.id, 1)) == ""
    assert await events(test.hub.log, handle.id) == ["running", "retry"]


@pytest.mark.parametrize("again", [True, False])
async def test_an_end_that_is_not_kept_yet_is_not_acknowledged(test: TestHub, again: bool) -> None:
    """Said twice while the disk is slow, an end is acknowledged twice when it is kept, and no sooner."""
    one = await worker(test, "one", {"name": "job", "retries": 2, "backoff_s": 100.0})
    handle = await test.submit("job")
    gate = Gate(test.hub.log)
    gate.shut()
    error = {"code": "oh", "detail": "Oh.", "status": 500}
    for _ in range(2):
        one.say(f.FinishFrame(0, handle.id, 1, error=error, again=again))
        await asyncio.sleep(0)
    assert not one.taken
    gate.open()
    await test.settle()
    assert one.taken == [(handle.id, 1, -1, "")] * 2
    assert await events(test.hub.log, handle.id) == ["running", "retry" if again else "failed"]


async def test_what_is_sent_is_numbered(test: TestHub) -> None:
    """What came before is acknowledged and recorded once; a gap is refused; the next attempt begins anew."""
    one = await worker(test)
    handle = await test.submit("job")
    key = (handle.id, 1)
    assert await one.emit(key, 0, "a", "item") == ""
    assert await one.emit(key, 1, "b", "item") == ""
    assert await one.emit(key, 0, "a", "item") == ""
    assert await one.emit(key, 3, "d", "item") == "emit-gap"
    assert await one.emit(key, 1, "b", "item") == ""
    assert await one.emit(key, 2, "c", "item") == ""
    await one.fail(key)
    assert await one.emit((handle.id, 2), 0, "d", "item") == ""
    await one.finish((handle.id, 2))
    assert [item async for item in handle.items()] == ["a", "b", "c", "d"]
    assert one.yielded == [0, 3]


async def test_what_is_sent_twice_is_acknowledged_when_it_is_kept(test: TestHub) -> None:
    """A value that comes again while the first is on its way to the disk is not acknowledged before that is there."""
    one = await worker(test)
    handle = await test.submit("job")
    gate = Gate(test.hub.log)
    gate.shut()
    for seq in (0, 1, 0, 1):
        one.say(f.EmitFrame(0, handle.id, 1, seq, "item", b"1"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not one.taken
    gate.open()
    await test.settle()
    assert sorted(one.taken) == [(handle.id, 1, seq, "") for seq in (0, 0, 1, 1)]
    assert await events(test.hub.log, handle.id) == ["running", "item", "item"]


async def test_to_hand_back_is_no_failure(test: TestHub) -> None:
    """However often a call is handed back, it has all its retries left, and waits for nothing."""
    one = await worker(test, "one", {"name": "job"})
    handle = await test.submit("job")
    for attempt in range(1, 6):
        assert await one.hand_back((handle.id, attempt)) == ""
        assert await one.hand_back((handle.id, attempt)) == "attempt-fenced"
    await one.finish((handle.id, 6), "well")
    assert await handle.result() == "well"
    assert find(test, handle.id).failures == 0


async def test_nobody_speaks_for_another(test: TestHub) -> None:
    """A worker cannot end, or add to, what another holds, or what was never granted."""
    one, two = await worker(test), await worker(test, "two", "other")
    handle = await test.submit("job")
    for key in ((handle.id, 1), (handle.id, 2), ("made-up", 1)):
        assert await two.finish(key) == "attempt-fenced"
        assert await two.emit(key, 0, 1) == "attempt-fenced"
    assert await one.finish((handle.id, 2)) == "attempt-fenced"
    assert find(test, handle.id).state is CallState.RUNNING


# -- connections that break


async def test_a_worker_comes_back_to_what_it_holds(test: TestHub) -> None:
    """Within its lease it goes on where it was: nothing is lost, and nothing is given twice."""
    one = await worker(test)
    handle = await test.submit("job")
    await one.emit((handle.id, 1), 0, "a")
    one.disconnect()
    await test.advance(5)
    one.connect([(handle.id, 1)])
    await test.settle()
    assert not one.lost
    assert one.given == [(handle.id, 1)]
    assert await one.emit((handle.id, 1), 0, "a") == ""
    assert await one.emit((handle.id, 1), 1, "b") == ""
    assert await one.finish((handle.id, 1), 1) == ""
    assert await events(test.hub.log, handle.id) == ["running", "progress", "progress", "done"]


async def test_a_worker_is_given_again_what_never_came(test: TestHub) -> None:
    """An attempt that was granted when the connection broke is sent again, as the same attempt."""
    one = await worker(test)
    first = await test.submit("job")
    one.disconnect()
    one.given.clear()
    one.connect([])
    await test.settle()
    assert one.given == [(first.id, 1)]
    assert find(test, first.id).attempt == 1
    assert test.hub.calls.attempts.begun == 1


async def test_a_worker_that_is_not_connected_is_given_nothing(test: TestHub) -> None:
    """Calls wait until it is back; then it is told what it holds and what is new."""
    one = await worker(test, capacity=2)
    first = await test.submit("job")
    one.disconnect()
    second = await test.submit("job")
    third = await test.submit("job")
    assert find(test, second.id).state is CallState.QUEUED
    one.connect([(first.id, 1)])
    await test.settle()
    assert one.given == [(first.id, 1), (second.id, 1)]
    assert find(test, third.id).state is CallState.QUEUED


async def test_a_worker_is_told_of_what_was_cancelled_meanwhile(test: TestHub) -> None:
    """What ended while it was not connected is among what it has lost."""
    one = await worker(test)
    handle = await test.submit("job")
    one.disconnect()
    await handle.cancel()
    one.connect([(handle.id, 1)])
    await test.settle()
    assert one.lost == [(handle.id, 1)]
    assert one.given == [(handle.id, 1)]


async def test_a_second_connection_takes_over(test: TestHub) -> None:
    """A worker that connects before the hub has noticed that its old connection broke is heard on the new one; the end of
    the old one changes nothing."""
    one = await worker(test)
    first = await test.submit("job")
    old = one._peer
    one.connect([(first.id, 1)])
    await test.settle()
    old.stop()
    second = await test.submit("job")
    assert one.given == [(first.id, 1), (second.id, 1)]
    for key in one.given:
        assert await one.finish(key) == ""


# -- while a record is on its way


async def test_a_worker_lost_before_its_attempt_is_kept_never_had_it(test: TestHub) -> None:
    """The attempt is given back, which is no failure: there was none."""
    one = await worker(test, "one", {"name": "job"})
    gate = Gate(test.hub.log)
    gate.shut()
    submitting = asyncio.create_task(test.client.submit("job"))
    for _ in range(10):
        await asyncio.sleep(0)
    await one_goes(test, one)
    gate.open()
    handle = await submitting
    await test.settle()
    assert not one.given
    two = await worker(test, "two", {"name": "job"})
    assert two.given == [(handle.id, 2)]
    await two.finish((handle.id, 2), "well")
    assert await handle.result() == "well"


async def test_a_worker_lost_before_its_next_attempt_is_kept_never_had_it(test: TestHub) -> None:
    """The same of a call that waited for a place."""
    one = await worker(test, "one", {"name": "job"}, capacity=1)
    blocker = await test.submit("job")
    handle = await test.submit("job")
    gate = Gate(test.hub.log)
    gate.shut()
    one.say(f.FinishFrame(0, blocker.id, 1, b"1", "application/json"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert find(test, handle.id).worker is not None
    await one_goes(test, one)
    gate.open()
    await test.settle()
    assert one.given == [(blocker.id, 1)]
    assert await events(test.hub.log, handle.id) == ["queued", "running", "returned"]
    assert find(test, handle.id).state is CallState.QUEUED
    assert await blocker.result() == 1


async def one_goes(test: TestHub, one: PuppetWorker) -> None:
    """Its lease ends, though the disk does not answer."""
    one.disconnect()
    test.clock.advance(LEASE_S + 1)
    test.hub.calls.timers.run()
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("key", ["", "a"])
async def test_a_call_is_cancelled_before_it_is_kept(test: TestHub, key: str) -> None:
    """It ends as soon as it is there, and nobody is given it."""
    one = await worker(test)
    gate = Gate(test.hub.log)
    gate.shut()
    submitting = asyncio.create_task(test.client.submit("job", idempotency_key=key))
    for _ in range(10):
        await asyncio.sleep(0)
    (identity,) = test.hub.calls.ledger.open
    cancelling = asyncio.create_task(test.get(identity).cancel())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not cancelling.done()
    gate.open()
    assert (await submitting).id == identity
    assert (await cancelling).state == "cancelled"
    assert not one.given
    assert not test.hub.calls.workers[worker_name(one.id)].held


async def test_a_queued_call_is_not_granted_while_its_end_is_on_its_way(test: TestHub) -> None:
    """A place that becomes free while a cancellation waits for the disk goes to the next."""
    one = await worker(test, capacity=1)
    blocker = await test.submit("job")
    cancelled, following = await test.submit("job"), await test.submit("job")
    gate = Gate(test.hub.log)
    gate.shut()
    cancelling = asyncio.create_task(cancelled.cancel())
    for _ in range(10):
        await asyncio.sleep(0)
    one.say(f.FinishFrame(0, blocker.id, 1, b"1", "application/json"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert list(test.hub.calls.workers[one.name].held) == [following.id]
    gate.open()
    assert (await cancelling).state == "cancelled"
    await test.settle()
    assert one.given == [(blocker.id, 1), (following.id, 1)]
    assert await events(test.hub.log, cancelled.id) == ["queued", "cancelled"]


@pytest.mark.parametrize("end", ["done", "retry", "failed", "returned"])
async def test_a_cancellation_that_comes_after_the_end(test: TestHub, end: str) -> None:
    """An answer that is on its way to the disk stands, and the cancellation is refused; where another attempt would
    follow, none does."""
    one = await worker(test, "one", {"name": "job", "retries": 2, "backoff_s": 5.0})
    handle = await test.submit("job")
    gate = Gate(test.hub.log)
    gate.shut()
    error = {"code": "oh", "detail": "Oh.", "status": 500}
    one.say(
        {
            "done": f.FinishFrame(0, handle.id, 1, b"1", "application/json"),
            "retry": f.FinishFrame(0, handle.id, 1, error=error),
            "failed": f.FinishFrame(0, handle.id, 1, error=error, again=False),
            "returned": f.ReturnFrame(0, handle.id, 1),
        }[end]
    )
    cancelling = asyncio.create_task(handle.cancel())
    for _ in range(10):
        await asyncio.sleep(0)
    gate.open()
    if end in ("done", "failed"):
        with pytest.raises(Conflict) as refused:
            await cancelling
        assert refused.value.code == "call-ended"
        assert (await handle.status()).state == end
    else:
        assert (await cancelling).state == "cancelled"
        assert await events(test.hub.log, handle.id) == ["running", end, "cancelled"]
    await test.advance(20)
    assert one.given == [(handle.id, 1)]


# -- a full disk


async def test_an_answer_waits_for_room_on_the_disk(test: TestHub) -> None:
    """A result for which there is no room is kept, its worker's place is free, and it is recorded when there is room."""
    one = await worker(test, capacity=1)
    handle = await test.submit("job")
    gate = Gate(test.hub.log)
    gate.full = -1
    one.say(f.FinishFrame(0, handle.id, 1, b'"well"', "application/json"))
    await test.settle()
    await test.advance(3)
    assert not one.taken
    assert (await handle.status()).state == "running"
    assert test.hub.calls.workers[worker_name(one.id)].free == 1
    gate.full = 0
    one.renew()
    await test.advance(1)
    assert one.taken == [(handle.id, 1, -1, "")]
    assert await handle.result() == "well"
    assert await events(test.hub.log, handle.id) == ["running", "done"]


async def test_an_attempt_waits_for_room_on_the_disk(test: TestHub) -> None:
    """A call that cannot be recorded as running is not run, and its attempt is not counted."""
    one = await worker(test, capacity=1)
    blocker, handle = await test.submit("job"), await test.submit("job")
    gate = Gate(test.hub.log)
    gate.full = -1
    one.say(f.FinishFrame(0, blocker.id, 1, b"1", "application/json"))
    await test.settle()
    await test.advance(3)
    assert one.given == [(blocker.id, 1)]
    gate.full = 0
    one.renew()
    await test.advance(2)
    assert one.given == [(blocker.id, 1), (handle.id, 1)]
    assert await events(test.hub.log, handle.id) == ["queued", "running"]


async def test_a_call_is_cancelled_though_the_disk_is_full(test: TestHub) -> None:
    """A grant that found no room and a cancellation that comes then do not get in each other's way."""
    one = await worker(test, capacity=1)
    blocker, handle = await test.submit("job"), await test.submit("job")
    gate = Gate(test.hub.log)
    gate.full = -1
    one.say(f.FinishFrame(0, blocker.id, 1, b"1", "application/json"))
    cancelling = asyncio.create_task(handle.cancel())
    await test.settle()
    await test.advance(3)
    gate.full = 0
    await test.advance(2)
    assert (await cancelling).state == "cancelled"
    assert await events(test.hub.log, handle.id) == ["queued", "cancelled"]
    worker_ = test.hub.calls.workers[worker_name(one.id)]
    assert not worker_.held
    assert test.hub.calls.services["job"].running == 0


async def test_a_call_that_finds_no_room_was_never_made(test: TestHub) -> None:
    """It is refused, takes no place, and leaves nothing behind; its key can be used again."""
    one = await worker(test, capacity=1)
    gate = Gate(test.hub.log)
    gate.full = 1
    results = await asyncio.gather(
        *[test.client.submit("job", 1, idempotency_key="a") for _ in range(3)], return_exceptions=True
    )
    assert {getattr(result, "code", "") for result in results} == {"store-full"}
    ledger = test.hub.calls.ledger
    assert (ledger.open, dict(ledger.recent), test.hub.calls.workers[worker_name(one.id)].free) == ({}, {}, 1)
    handle = await test.submit("job", 2, idempotency_key="a")
    assert one.given == [(handle.id, 1)]


async def test_a_queue_has_a_bound_for_calls_that_start_later(test: TestHub) -> None:
    """Calls that wait for their time count as waiting, though a worker has places."""
    await worker(test, "one", {"name": "job", "queue_max": 2})
    for _ in range(2):
        await test.submit("job", delay=60)
    with pytest.raises(TooManyCalls):
        await test.submit("job", delay=60)
    await test.submit("job")
