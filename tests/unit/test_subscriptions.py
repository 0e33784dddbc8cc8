"""Subscriptions of the Durable Streams protocol: wakes, leases, cursors and retries, also over the death of the hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.support.disk import Gate
from tests.support.subscriptions import DONE, LEASE_S, Receiver, Slow, Subscribed, pending
from tests.support.waiting import until
from wayside.core.errors import BadRequest, Conflict, Refusal, StoreFull, TooMany
from wayside.core.records import Offset
from wayside.testing import TestHub
from wayside.webhooks import subscriptions, wakes
from wayside.webhooks.post import NoResponse
from wayside.webhooks.subscription import (
    Config,
    DurableSubscription,
    Kind,
    Linked,
    SubscriptionEvent,
    SubscriptionOpened,
    WorkAcked,
    decode,
    encode,
)

URL = "https://receiver.example/hook"


@pytest.fixture
async def test() -> AsyncIterator[TestHub]:
    async with TestHub() as test:
        await test.hub.create("wakes")
        yield test


@pytest.fixture
def subscribed(test: TestHub) -> Subscribed:
    return Subscribed(test)


@pytest.fixture(params=["restart", "crash"])
def gone(request: pytest.FixtureRequest, test: TestHub) -> Callable[[], Awaitable[None]]:
    """Have the hub gone and come back, in order or not."""
    return test.crash if request.param == "crash" else test.restart


async def refused(code: str, answer: Awaitable[Any]) -> dict[str, Any]:
    """The protocol's ``error`` of a refusal."""
    with pytest.raises(Refusal) as caught:
        await answer
    error = caught.value.fields["error"]
    assert isinstance(error, dict)
    assert error["code"] == code
    return error


# -- what there is to do


async def test_history_is_not_work(subscribed: Subscribed, test: TestHub) -> None:
    """Streams that there are count from their ends, by pattern and by name; what is newer counts from its beginning."""
    await test.hub.publish("a/old", 1, 2)
    await test.hub.publish("named", 1)
    await subscribed.put(pattern="a/*", streams=("named", "named/later"))
    await refused("NO_PENDING_WORK", subscribed.claim())
    tail = await test.hub.publish("a/new", 1)
    later = await test.hub.publish("named/later", 1)
    await test.hub.publish("a/b/deeper", 1)
    claimed = await subscribed.claim()
    assert pending(claimed) == [("a/new", tail), ("named/later", later)]
    links = {each["path"]: (each["link_type"], each["acked_offset"]) for each in claimed["streams"]}
    assert links["a/old"] == ("glob", str((await test.hub.info("a/old")).tail))
    assert links["a/new"] == ("glob", str(Offset(Offset.parse(tail).epoch, 0)))
    assert links["named"][0] == "explicit"


@pytest.mark.parametrize(
    ("pattern", "work"), [("a/**", {"a", "a/b", "a/b/c"}), ("a/*", {"a/b"}), ("**/c", {"a/b/c", "c"}), ("**", None)]
)
async def test_two_stars_are_also_no_segment(
    subscribed: Subscribed, test: TestHub, pattern: str, work: set[str] | None
) -> None:
    """As the protocol has it; and the wakes themselves are no work."""
    await subscribed.put(pattern=pattern)
    paths = {"a", "a/b", "a/b/c", "b", "c"}
    for path in sorted(paths):
        await test.hub.publish(path, 1)
    assert {path for path, _ in pending(await subscribed.claim())} == (work or paths)


async def test_a_name_outlives_the_pattern_s_stream_and_the_other_way_round(
    subscribed: Subscribed, test: TestHub
) -> None:
    """Taking back a name leaves what the pattern means; a stream that is deleted is no work, and its successor is new."""
    await subscribed.put(pattern="a/*", streams=("b",))
    await test.hub.publish("a/1", 1)
    await test.hub.publish("b", 1)
    parts = subscribed.parts
    for path in ("a/1", "a/1", "c", "c"):
        parts.link("s", [path], print)
    await test.settle()
    assert {e["path"]: e["link_type"] for e in subscribed.state().link_infos()} == dict.fromkeys(
        ("a/1", "b", "c"), "explicit"
    )
    for path in ("a/1", "c", "c", "nothing"):
        parts.unlink("s", path, print)
    await test.settle()
    assert {e["path"]: e["link_type"] for e in subscribed.state().link_infos()} == {"a/1": "glob", "b": "explicit"}
    await test.hub.publish("c", 1)
    await test.hub.delete("a/1")
    await test.hub.delete("b")
    await test.settle()
    await refused("NO_PENDING_WORK", subscribed.claim())
    tail = await test.hub.publish("b", 1)
    assert pending(await subscribed.claim()) == [("b", tail)]


# -- pull-wake


async def test_a_lease_has_one_holder_and_an_end(subscribed: Subscribed, test: TestHub) -> None:
    """One worker at a time; acks keep its lease, silence ends it, and who comes too late is fenced and changes nothing."""
    await subscribed.put(pattern="a/*")
    first = await test.hub.publish("a/1", 1)
    last = await test.hub.publish("a/1", 2)
    await test.settle()
    late = await subscribed.claim("late")
    assert (late["generation"], late["lease_ttl_ms"]) == (1, LEASE_S * 1000)
    assert (await refused("ALREADY_CLAIMED", subscribed.claim("two")))["current_holder"] == "late"
    for acks in ([], [("a/1", first)], [("a/1", first)]):
        await test.advance(LEASE_S - 1)
        assert await subscribed.ack(late, acks) == {"ok": True, "next_wake": False}
    await test.advance(LEASE_S + 1)
    two = await subscribed.claim("two")
    assert (two["generation"], pending(two)) == (2, [("a/1", last)])
    for mixed in (late, {**two, "token": late["token"]}, {**two, "wake_id": late["wake_id"]}, {**two, "generation": 1}):
        await refused("FENCED", subscribed.ack(mixed, [("a/1", last)], done=True))
        await refused("FENCED", subscribed.release(mixed))
    await refused("TOKEN_INVALID", subscribed.ack({**two, "token": two["token"][:-2] + "AA"}))
    assert subscribed.state().links["a/1"].offset == first
    assert await subscribed.ack(two, pending(two), done=True) == {"ok": True, "next_wake": False}
    await refused("FENCED", subscribed.ack(two, pending(two), done=True))
    assert [wake["generation"] for wake in await subscribed.wakes()] == [1, 2]


async def test_what_is_left_is_the_next_wake(subscribed: Subscribed, test: TestHub) -> None:
    """A worker that is done and leaves something, or gives the lease back, makes a wake with a number of its own."""
    await subscribed.put(pattern="a/*")
    await test.hub.publish("a/1", 1)
    await test.settle()
    one = await subscribed.claim()
    await test.hub.publish("a/2", 1)
    assert (await subscribed.ack(one, pending(one), done=True))["next_wake"] is True
    await test.settle()
    two = await subscribed.claim()
    assert [path for path, _ in pending(two)] == ["a/2"]
    await subscribed.release(two)
    assert [(wake["generation"], wake["stream"]) for wake in await subscribed.wakes()] == [
        (1, "a/1"),
        (2, "a/2"),
        (3, "a/2"),
    ]
    three = await subscribed.claim()
    assert (three["generation"], pending(three)) == (3, pending(two))


async def test_wakes_wait_for_their_stream(subscribed: Subscribed, test: TestHub) -> None:
    """Without a wake stream, work can be claimed all the same; the wake is written once the stream is there."""
    await subscribed.put(pattern="a/*", wake_stream="missing")
    await test.hub.publish("a/1", 1)
    await test.settle()
    assert subscribed.state().attempts == 1
    await test.advance(5)
    assert subscribed.state().attempts == 3
    assert subscribed.parts.statistics() == (1, 1, 1, 1, 1, 3)
    await test.hub.create("missing")
    await test.advance(5)
    assert [wake["generation"] for wake in await subscribed.wakes("missing")] == [1]
    assert subscribed.state().attempts == 0
    await subscribed.claim()


# -- webhooks


async def test_done_acks_what_the_wake_told_of(test: TestHub) -> None:
    """A receiver that is done at once has acked the tails that it was told, and no others: those are the next wake."""
    subscribed = Subscribed(test, Receiver(DONE))
    await subscribed.put(pattern="a/*", url=URL)
    tails = []
    for number in range(3):
        tails.append(await test.hub.publish("a/1", number))
        await subscribed.attempts(number + 1)
    assert [pending(wake) for wake in subscribed.receiver.wakes] == [[("a/1", tail)] for tail in tails]
    assert [wake["generation"] for wake in subscribed.receiver.wakes] == [1, 2, 3]
    assert len({wake["wake_id"] for wake in subscribed.receiver.wakes}) == 3
    wake = subscribed.receiver.wakes[0]
    assert wake["callback_url"] == "http://hub/v1/stream/__ds/subscriptions/s/callback"
    assert (wake["url"], wake["timeout_s"]) == (URL, LEASE_S)
    assert subscribed.state().links["a/1"].offset == tails[-1]


async def test_a_receiver_calls_back(test: TestHub) -> None:
    """Callbacks ack and keep the lease, as long as the wake is that; then a new wake tells of what is left."""
    subscribed = Subscribed(test, Receiver(200))
    await subscribed.put(pattern="a/*", url=URL)
    first = await test.hub.publish("a/1", 1)
    await subscribed.attempts(1)
    wake = subscribed.receiver.wakes[0]
    last = await test.hub.publish("a/1", 2)
    await test.advance(LEASE_S - 1)
    assert await subscribed.ack(wake, pending(wake)) == {"ok": True, "next_wake": False}
    await test.advance(LEASE_S - 1)
    await subscribed.attempts(1)
    assert (await subscribed.ack(wake, done=True))["next_wake"] is True
    two = (await subscribed.attempts(2))[1]
    assert (two["streams"][0]["acked_offset"], pending(two)) == (first, [("a/1", last)])
    await test.advance(LEASE_S)
    three = (await subscribed.attempts(3))[2]
    await refused("FENCED", subscribed.ack(two, pending(two)))
    assert (three["generation"], pending(three)) == (3, pending(two))


@pytest.mark.parametrize("answer", [500, 302, 410, NoResponse("nobody there")])
async def test_a_receiver_is_tried_again_with_pauses(test: TestHub, answer: int | Exception) -> None:
    """From one second, doubled up to a minute; leases that end meanwhile make no attempt of their own; then all is well."""
    subscribed = Subscribed(test, Receiver(answer))
    await subscribed.put(pattern="a/*", url=URL, lease_s=1)
    await test.hub.publish("a/1", 1)
    await subscribed.attempts(1)
    for count, pause_s in enumerate((1, 2, 4, 8, 16, 32, 60, 60), 1):
        state = subscribed.state()
        assert state.attempts == count
        await test.advance(pause_s * 0.9)
        await subscribed.attempts(count)
        await test.advance(pause_s * 0.1 + 0.01)
        await subscribed.attempts(count + 1)
    generations = [wake["generation"] for wake in subscribed.receiver.wakes]
    assert generations == sorted(generations)
    subscribed.receiver.answers = [DONE]
    await test.advance(60.5)
    await subscribed.attempts(10)
    assert (subscribed.state().attempts, subscribed.state().pending, subscribed.state().wake) == (0, set(), "")
    await test.advance(200)
    await subscribed.attempts(10)


async def test_an_answer_that_comes_too_late_counts_for_nothing(test: TestHub) -> None:
    """While a receiver has not answered there is no second attempt, whatever its lease; what it says then is of a wake that
    is over. What it called back before it answered does count."""
    receiver = Slow(DONE)
    subscribed = Subscribed(test, receiver)
    await subscribed.put(pattern="a/*", url=URL)
    tail = await test.hub.publish("a/1", 1)
    await until(lambda: receiver.wakes)
    await test.advance(2 * LEASE_S)
    assert (subscribed.state().wake, len(receiver.wakes)) == ("", 1)
    receiver.let()
    await until(lambda: len(receiver.wakes) == 2)
    assert pending(receiver.wakes[1]) == [("a/1", tail)]
    await refused("FENCED", subscribed.ack(receiver.wakes[0], pending(receiver.wakes[0])))
    await subscribed.ack(receiver.wakes[1], pending(receiver.wakes[1]), done=True)
    later = await test.hub.publish("a/1", 2)
    await test.settle()
    assert len(receiver.wakes) == 2
    receiver.let()
    await until(lambda: len(receiver.wakes) == 3)
    assert pending(receiver.wakes[2]) == [("a/1", later)]
    receiver.let()
    await subscribed.attempts(3)
    assert subscribed.state().links["a/1"].offset == later


async def test_a_hub_that_stops_hears_its_receivers_out(test: TestHub) -> None:
    """What a receiver answers to an attempt that was under way is kept; nobody is told again by the next hub."""
    receiver = Slow(DONE)
    subscribed = Subscribed(test, receiver)
    await subscribed.put(pattern="a/*", url=URL)
    tail = await test.hub.publish("a/1", 1)
    await until(lambda: receiver.wakes)
    stopping = asyncio.ensure_future(test.restart())
    await until(lambda: not test.up)
    receiver.let()
    await stopping
    await subscribed.attempts(1)
    assert (subscribed.state().links["a/1"].offset, subscribed.state().wake) == (tail, "")


async def test_there_are_bounds(subscribed: Subscribed, test: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many subscriptions, and so many names."""
    monkeypatch.setattr(subscriptions, "SUBSCRIPTIONS_MAX", 1)
    monkeypatch.setattr(subscriptions, "NAMES_MAX", 2)
    await refused("INVALID_REQUEST", subscribed.put(streams=("a", "b", "c")))
    await subscribed.put(streams=("a", "b"))
    with pytest.raises(TooMany):
        await subscribed.put("other", pattern="*")
    with pytest.raises(BadRequest):
        subscribed.parts.link("s", ["c", "d", "e"], print)


def test_pauses_vary_by_a_fifth() -> None:
    """So that many receivers behind one broken gateway are not tried at once."""
    backoff = wakes.wake_backoff()
    backoff.jitter = lambda: 0.5
    assert [backoff.delay_s(attempts) for attempts in (1, 2, 3, 7, 8, 9, 1000)] == [1, 2, 4, 60, 60, 60, 60]
    backoff.jitter = iter([0.0, 1.0]).__next__
    assert [backoff.delay_s(1) for _ in range(2)] == [0.8, 1.2]


# -- over the death of the hub


async def test_a_claim_outlives_the_hub(
    subscribed: Subscribed, test: TestHub, gone: Callable[[], Awaitable[None]]
) -> None:
    """Holder, generation, token and cursors are as they were; the lease begins anew, and ends."""
    await subscribed.put(pattern="a/*", streams=("b",), description="kept")
    first = await test.hub.publish("a/1", 1)
    last = await test.hub.publish("a/1", 2)
    await test.settle()
    claimed = await subscribed.claim()
    await subscribed.ack(claimed, [("a/1", first)])
    await gone()
    error = await refused("ALREADY_CLAIMED", subscribed.claim("two"))
    assert (error["current_holder"], error["generation"]) == ("one", 1)
    assert not (await subscribed.put(pattern="a/*", streams=("b",), description="kept")).new
    await refused("SUBSCRIPTION_ALREADY_EXISTS", subscribed.put(pattern="a/*", streams=("b",)))
    await subscribed.ack(claimed)
    await test.advance(LEASE_S + 1)
    two = await subscribed.claim("two")
    assert (two["generation"], pending(two)) == (2, [("a/1", last)])
    await subscribed.ack(two, pending(two), done=True)
    await gone()
    await refused("NO_PENDING_WORK", subscribed.claim())
    assert [wake["generation"] for wake in await subscribed.wakes()] == [1, 2]


async def test_what_came_in_between_is_work(
    subscribed: Subscribed, test: TestHub, gone: Callable[[], Awaitable[None]]
) -> None:
    """A stream that the hub had no time to note is new all the same after a restart; one that is gone is none."""
    await test.hub.publish("a/old", 1)
    await subscribed.put(pattern="a/*")
    await test.hub.publish("a/gone", 1)
    await test.hub.publish("a/new", 1)
    await test.hub.delete("a/gone")
    await gone()
    claimed = await subscribed.claim()
    assert [path for path, _ in pending(claimed)] == ["a/new"]
    assert {each["path"] for each in claimed["streams"]} == {"a/old", "a/new"}


async def test_a_failing_receiver_is_left_alone_by_a_new_hub_too(
    test: TestHub, gone: Callable[[], Awaitable[None]]
) -> None:
    """The time of the next attempt is kept; the wake is then the same, with the same name and number."""
    subscribed = Subscribed(test, Receiver(503))
    await subscribed.put(pattern="a/*", url=URL, lease_s=600)
    await test.hub.publish("a/1", 1)
    await subscribed.attempts(1)
    for count, pause_s in enumerate((1, 2, 4), 2):
        await test.advance(pause_s + 0.01)
        await subscribed.attempts(count)
    await test.advance(5)
    await gone()
    assert subscribed.state().attempts == 4
    await test.advance(2.9)
    await subscribed.attempts(4)
    subscribed.receiver.answers = [200]
    await test.advance(0.2)
    await subscribed.attempts(5)
    assert len({(wake["wake_id"], wake["generation"]) for wake in subscribed.receiver.wakes}) == 1
    await gone()
    await subscribed.attempts(5)
    await subscribed.ack(subscribed.receiver.wakes[-1], pending(subscribed.receiver.wakes[-1]), done=True)


async def test_keys_are_kept(test: TestHub, gone: Callable[[], Awaitable[None]]) -> None:
    """Receivers verify with the same key for as long as the store lives; its private half is in no document."""
    told: list[Any] = []
    test.hub.subscriptions.keyring.want(told.append)
    test.hub.subscriptions.keyring.want(told.append)
    await test.settle()
    await gone()
    test.hub.subscriptions.keyring.want(told.append)
    assert len({keys.kid for keys in told}) == 1
    assert told[0].jwks == told[2].jwks
    assert set(told[0].jwks["keys"][0]) == {"kty", "crv", "kid", "use", "alg", "x"}
    assert told[0].claims(told[2].token(sub="s")) == {"sub": "s"}
    for token in ("", "a.b", "a.b.c", "é.é.é", told[0].token(sub="s")[:-1]):
        assert told[0].claims(token) is None


async def test_a_deleted_subscription_is_no_more(
    subscribed: Subscribed, test: TestHub, gone: Callable[[], Awaitable[None]]
) -> None:
    """Nobody acks it, nobody is woken; another of its name knows nothing of it, and fences its workers."""
    await subscribed.put(pattern="a/*")
    await test.hub.publish("a/1", 1)
    claimed = await subscribed.claim()
    await subscribed.delete()
    await subscribed.delete()
    with pytest.raises(KeyError):
        subscribed.state()
    await test.hub.publish("a/1", 2)
    await gone()
    assert subscribed.parts.entries == {}
    await subscribed.put(pattern="a/*")
    await test.hub.publish("a/1", 3)
    assert (await subscribed.claim())["generation"] == 1
    await refused("FENCED", subscribed.ack(claimed, pending(claimed), done=True))


async def test_a_subscription_s_stream_stays_short(
    subscribed: Subscribed, test: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snapshots take the place of what came before; what they say is all there is to know."""
    monkeypatch.setattr(wakes, "EVENTS_MIN", 20)
    await test.hub.publish("a/old", 1)
    await subscribed.put(pattern="a/*", streams=("named",))
    for number in range(60):
        await test.hub.publish("a/1", number)
        claimed = await subscribed.claim()
        await subscribed.ack(claimed, pending(claimed), done=True)
    await test.hub.publish("a/2", 1)
    claimed = await subscribed.claim()
    before = subscribed.state().link_infos()
    view = test.hub.log.find("__ds/subscriptions/s")
    assert view.tail > 180
    assert subscribed.parts.entries["s"].events <= 25
    await test.crash()
    assert subscribed.state().link_infos() == before
    assert (await subscribed.ack(claimed, pending(claimed), done=True))["ok"]


async def test_what_cannot_be_kept_is_not_true(subscribed: Subscribed, test: TestHub) -> None:
    """Where the disk is full an ack is refused, and read again from the disk a second later it was never made."""
    await subscribed.put(pattern="a/*")
    await test.hub.publish("a/1", 1)
    claimed = await subscribed.claim()
    gate = Gate(test.hub.log)
    gate.full = 1
    with pytest.raises(StoreFull):
        await subscribed.ack(claimed, pending(claimed), done=True)
    with pytest.raises(Refusal, match="read again"):
        await subscribed.ack(claimed)
    await test.advance(1.1)
    assert subscribed.state().holder == "one"
    assert pending({"streams": subscribed.state().stream_infos(now=True)}) == pending(claimed)
    assert (await subscribed.ack(claimed, pending(claimed), done=True))["ok"]


# -- the state machine alone


def machine() -> DurableSubscription:
    config = Config(Kind.PULL_WAKE, 1000, pattern="a/*", wake_stream="wakes")
    state = DurableSubscription(SubscriptionOpened("s", config, "", 0))
    state.apply(Linked(glob={"a/1": str(Offset(5, 2))}))
    state.see("a/1", Offset(5, 0), Offset(5, 4))
    woken = state.next_wake("w", 0)
    assert woken is not None
    state.apply(woken)
    return state


@pytest.mark.parametrize(
    "acks",
    [
        [("b", str(Offset(5, 3)))],
        [("a/1", "-1")],
        [("a/1", "now")],
        [("a/1", "")],
        [("a/1", str(Offset(5, 1)))],
        [("a/1", str(Offset(5, 5)))],
        [("a/1", str(Offset(6, 0)))],
        [("a/1", str(Offset(5, 4))), ("a/1", str(Offset(5, 3)))],
        [("a/1", str(Offset(5, 3))), ("b", str(Offset(5, 3)))],
    ],
)
def test_acks_of_what_was_not_given_are_refused(acks: list[tuple[str, str]]) -> None:
    """Streams that are not the subscription's, offsets before the cursor or after the tail: then no ack of them counts."""
    state = machine()
    with pytest.raises(Conflict) as caught:
        state.acks_of(acks)
    assert caught.value.code == "invalid-offset"
    assert state.links["a/1"].acked == Offset(5, 2)


def test_acks_of_what_is_gone_are_harmless() -> None:
    """A stream that was deleted, or made again, while a worker had it: its ack is taken, and means nothing."""
    state = machine()
    state.lose("a/1")
    assert state.acks_of([("a/1", str(Offset(5, 4)))]) == {}
    state.see("a/1", Offset(9, 0), Offset(9, 1))
    assert state.acks_of([("a/1", str(Offset(5, 4)))]) == {}
    assert state.acks_of([("a/1", str(Offset(9, 1)))]) == {"a/1": str(Offset(9, 1))}
    assert state.snapshot_acks() == {}
    assert state.pending == {"a/1"}


def test_a_snapshot_is_the_subscription() -> None:
    """Its events, written and read, give the same again; what the pattern means is known without being told."""
    state = machine()
    state.apply(Linked(explicit={"b": "-1", "a/1": "-1"}))
    state.apply(WorkAcked({"a/1": str(Offset(5, 3))}))
    events: list[SubscriptionEvent] = [decode(encode(event)) for event in state.events()]
    assert isinstance(events[0], SubscriptionOpened)
    again = DurableSubscription(events[0])
    for event in events:
        again.apply(event)
    assert again.link_infos() == state.link_infos()
    assert (again.wake, again.generation, again.snapshot) == ("w", 1, {"a/1": Offset(5, 4)})
    again.require_current("w", 1)


def test_a_wake_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells of so many streams, of those with work first; the others are the next wake."""
    monkeypatch.setattr("wayside.webhooks.subscription.WAKE_STREAMS_MAX", 3)
    state = DurableSubscription(
        SubscriptionOpened("s", Config(Kind.WEBHOOK, 1000, pattern="a/*", url="https://x"), "", 0)
    )
    for number in range(8):
        state.see(f"a/{number}", Offset(5, 0), Offset(5, number % 2))
    seen = []
    for wake in ("w1", "w2"):
        woken = state.next_wake(wake, 0)
        assert woken is not None
        state.apply(woken)
        assert len(state.stream_infos(now=False)) == 3
        seen.append(sorted(woken.tails))
        state.apply(WorkAcked(state.snapshot_acks(), done=True))
    assert seen == [["a/1", "a/3", "a/5"], ["a/7"]]
    assert state.next_wake("w3", 0) is None
