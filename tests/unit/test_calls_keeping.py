"""What a hub keeps beside the calls themselves: callbacks until they are delivered, and calls until they are old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from tests.support.disk import Gate
from tests.support.embedded import store_of
from tests.support.log import read_records
from tests.support.waiting import until
from wayside.calls.housekeeping import CALLBACKS, SWEEP_S
from wayside.core.errors import BadRequest, NotFound
from wayside.core.limits import Limits
from wayside.hub import Hub
from wayside.testing import TestHub
from wayside.webhooks.post import NoResponse, WebhookResponse
from wayside.webhooks.standard import DeliveryOutcome, new_secret, verify

URL = "http://127.0.0.1:9/hook"
DAY_S = 86_400.0


class Receiver:
    """A transport whose receiver answers as it is told, and keeps what came."""

    def __init__(self) -> None:
        self.status = 200
        self.came: list[tuple[dict[str, str], dict[str, Any]]] = []

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> WebhookResponse:
        assert url == URL
        verify([SECRET], headers, body, now_s=int(headers["webhook-timestamp"]))
        self.came.append((dict(headers), msgspec.json.decode(body)))
        if not self.status:
            raise NoResponse("nobody is there")
        return WebhookResponse(self.status)


SECRET = new_secret()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Receiver:
    receiver = Receiver()
    monkeypatch.setattr("wayside.webhooks.post.Direct", lambda **_options: receiver)
    return receiver


async def job(value: Any = None) -> Any:
    if value == "bad":
        raise RuntimeError("oh")
    return value


@pytest.fixture
async def test(receiver: Receiver) -> AsyncIterator[TestHub]:
    hub = Hub(webhook_secrets=[SECRET], webhook_private=True)
    hub.service("job")(job)
    async with TestHub(hub) as test:
        yield test


async def records(test: TestHub) -> list[tuple[str, bool]]:
    """The calls that are due, and those that are over."""
    return [
        (document["call"], "outcome" in document)
        for document in map(msgspec.json.decode, await read_records(test.hub.log, CALLBACKS))
    ]


@pytest.mark.parametrize("value", ["well", "bad"])
async def test_a_callback_tells_the_end(test: TestHub, receiver: Receiver, value: str) -> None:
    """Whoever is named when a call is submitted is told of its end, with its result or why there is none."""
    handle = await test.submit("job", value, callback=URL)
    await until(lambda: receiver.came)
    headers, document = receiver.came[0]
    assert headers["webhook-id"] == f"call_{handle.id}"
    data = document["data"]
    assert (document["type"], data["id"]) == (f"call.{'failed' if value == 'bad' else 'done'}", handle.id)
    assert data.get("result") == (None if value == "bad" else "well")
    await test.settle()
    assert await records(test) == [(handle.id, False), (handle.id, True)]


async def test_a_callback_is_sent_until_it_is_delivered(test: TestHub, receiver: Receiver) -> None:
    """What the receiver did not take is sent again, after a restart too, with the same identity; what it took is not."""
    receiver.status = 0
    handle = await test.submit("job", callback=URL)
    await until(lambda: len(receiver.came) == 1)
    for gone in (test.restart, test.crash):
        receiver.came.clear()
        await gone()
        await until(lambda: receiver.came)
        await test.settle()
        assert await records(test) == [(handle.id, False)]
    receiver.status = 200
    await test.advance(10)
    webhooks = test.hub.webhooks
    assert webhooks is not None
    await until(lambda: webhooks.statistics().outcomes[DeliveryOutcome.DELIVERED])
    await test.settle()
    assert await records(test) == [(handle.id, False), (handle.id, True)]
    count = len(receiver.came)
    assert {headers["webhook-id"] for headers, _ in receiver.came} == {f"call_{handle.id}"}
    await test.restart()
    await test.advance(60)
    assert len(receiver.came) == count


async def test_a_callback_is_due_in_the_commit_that_ends_its_call(test: TestHub, receiver: Receiver) -> None:
    """Whoever is killed right after the end of a call was kept finds its callback when it starts."""
    receiver.status = 0
    told = asyncio.Event()
    store = store_of(test.hub.log)
    assert store is not None
    commit = store.commit
    loop = asyncio.get_running_loop()

    def watched(unit: Any) -> Any:
        outcome = commit(unit)
        if any(b'"event":"done"' in record for put in unit.puts for record in put.records):
            loop.call_soon_threadsafe(test._kill)  # before the hub hears of this commit
            loop.call_soon_threadsafe(told.set)
        return outcome

    setattr(store, "commit", watched)  # noqa: B010 - a method
    handle = await test.client.submit("job", callback=URL)
    await told.wait()
    await test.settle()
    assert test.crashes == 1
    assert (await handle.status()).state == "done"
    assert await records(test) == [(handle.id, False)]
    await until(lambda: receiver.came)


async def test_a_callback_waits_for_room_with_its_call(test: TestHub, receiver: Receiver) -> None:
    """While the end of a call finds no room on the disk nobody is told of it; then it is told, and can be told again."""
    receiver.status = 0
    gate = Gate(test.hub.log)
    handle = await test.client.submit("job", callback=URL)
    gate.full = -1
    await test.settle()
    await test.advance(3)
    assert not receiver.came
    gate.full = 0
    await test.advance(1)
    await until(lambda: receiver.came)
    assert (await records(test))[0] == (handle.id, False)


async def test_a_hub_without_a_secret_takes_no_callbacks() -> None:
    """It says so when a call is made, not when it ends."""
    async with TestHub({"job": job}) as test:
        with pytest.raises(BadRequest) as refused:
            await test.submit("job", callback=URL)
        assert refused.value.code == "callbacks-off"


async def test_a_callback_that_can_never_be_sent_is_refused(receiver: Receiver) -> None:
    """A URL inside the network is refused when the call is made, unless the hub may send there."""
    hub = Hub(webhook_secrets=[SECRET])
    hub.service("job")(job)
    async with TestHub(hub) as test:
        with pytest.raises(BadRequest) as refused:
            await test.submit("job", callback=URL)
        assert refused.value.code == "callback-url"
        assert not test.hub.calls.ledger.open


# -- letting calls go


async def test_old_calls_are_let_go(test: TestHub) -> None:
    """A call that ended is kept for as long as was said, and then goes by itself; one that has not ended never does."""
    stuck = asyncio.Event()

    async def wait() -> None:
        await stuck.wait()

    test.hub.service("wait")(wait)
    opened = await test.submit("wait")
    keyed = await test.submit("wait", idempotency_key="a")
    ended = [await test.submit("job"), await test.submit("job", idempotency_key="a")]
    await test.advance(DAY_S / 2)
    later = await test.submit("job")
    await test.advance(DAY_S / 2 - 10)
    for handle in ended:
        assert (await handle.status()).state == "done"
    await test.advance(3 * SWEEP_S)
    for handle in ended:
        with pytest.raises(NotFound) as gone:
            await handle.status()
        assert gone.value.code == "call-not-found"
    for handle in (opened, keyed):
        assert (await handle.status()).state == "running"
    assert (await later.status()).state == "done"
    assert len(test.hub.log.list("__call/", "", 10)) == 3


async def test_a_key_can_be_used_again_when_its_call_is_gone(test: TestHub) -> None:
    """A request with the key of a call that was let go is another call."""
    await test.submit("job", 1, idempotency_key="a")
    await test.advance(DAY_S + 3 * SWEEP_S)
    handle = await test.submit("job", 2, idempotency_key="a")
    assert await handle.result() == 2


async def test_many_old_calls_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """More calls than are looked at in one sweep go one sweep after the other, and none is waited for in between."""
    monkeypatch.setattr("wayside.calls.housekeeping.SWEEP_MAX", 3)
    async with TestHub({"job": job}, limits=Limits(call_keep_s=100.0)) as test:
        for number in range(5):
            await test.submit("job")
            await test.submit("job", idempotency_key=f"{number}")
        await test.advance(95)
        young = [await test.submit("job") for _ in range(5)]
        await test.advance(70)
        left = {info.path for info in test.hub.log.list("__call/", "", 100)}
        assert left == {f"__call/{handle.id}" for handle in young}


@pytest.mark.parametrize("bound", ["RECENT_MAX", "RECENT_BYTES_MAX"])
async def test_what_is_remembered_is_bounded(test: TestHub, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Calls that are forgotten in memory, for their number or their size, are read from their streams, and stay the
    same."""
    monkeypatch.setattr(f"wayside.calls.ledger.{bound}", 2 if bound == "RECENT_MAX" else 5000)
    values = [f"{number}" * 1000 for number in range(5)]
    handles = [await test.submit("job", value) for value in values]
    assert len(test.hub.calls.ledger.recent) == 2
    assert [(await handle.status()).result for handle in handles] == values
    assert len(test.hub.calls.ledger.recent) == 2
