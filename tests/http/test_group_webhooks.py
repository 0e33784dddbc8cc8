"""Groups that push to a URL: real requests to a real receiver, which settles records by its answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.constants import patch_constants
from tests.support.receiver import Receiver
from tests.support.waiting import until
from wayside.core.errors import BadRequest, Overloaded
from wayside.core.records import Meta
from wayside.groups.events import GroupSpec
from wayside.groups.group import Group
from wayside.groups.webhook import headers_of
from wayside.hub import Hub
from wayside.link.frames import Part
from wayside.testing import ManualClock
from wayside.webhooks.post import WebhookResponse
from wayside.webhooks.standard import verify

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD = "whsec_" + "QmFzZTY0IGlzIG5vdCBlbmNyeXB0aW9u"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with Hub(f"file:{tmp_path}", webhook_secrets=[SECRET, OLD], webhook_private=True) as hub:
        yield hub


async def told(begin: Callable[[Callable[[Any], None]], None]) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    begin(future.set_result)
    result = await future
    if isinstance(result, Exception):
        raise result
    return result


async def put(hub: Hub, url: str, **settings: Any) -> Group:
    spec = GroupSpec(["orders/*"], webhook=url, **{"backoff_s": 0.0, **settings})
    group, _new = await told(lambda done: hub.groups.put("billing", spec, done))
    found: Group = group
    return found


async def test_each_record_is_pushed_signed_and_acked(hub: Hub, receiver: Receiver) -> None:
    group = await put(hub, receiver.url)
    await hub.publish("orders/eu", {"n": 1}, {"n": 2})
    await hub.publish("orders/us", {"n": 3})
    await until(lambda: group.journal.state.counts["acked"] == 3)
    assert sorted(body for _, _, body in receiver.requests) == [b'{"n":1}', b'{"n":2}', b'{"n":3}']
    for _, headers, body in receiver.requests:
        for secret in (SECRET, OLD):
            verify([secret], headers, body, now_s=hub.clock.wall_ms() / 1000)
        assert headers["content-type"] == "application/json"
        assert (headers["wayside-group"], headers["wayside-attempt"]) == ("billing", "1")
    assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 3
    assert {headers["wayside-stream"] for _, headers, _ in receiver.requests} == {"orders/eu", "orders/us"}


async def test_a_failure_comes_again_with_its_identity(hub: Hub, receiver: Receiver) -> None:
    group = await put(hub, receiver.url, webhook_concurrency=1)
    receiver.answers = [(500, {}), (302, {"Location": "/elsewhere"}), (200, {})]
    await hub.publish("orders/eu", {"n": 1})
    await until(lambda: group.journal.state.counts["acked"] == 1)
    assert [headers["wayside-attempt"] for _, headers, _ in receiver.requests] == ["1", "2", "3"]
    assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 1
    stream = hub.log.find("orders/eu")
    receipt = await hub.groups.receipt("billing", "orders/eu", str(stream.offset(1)))
    assert [each.get("reason", "") for each in receipt["deliveries"]] == ["HTTP 500", "HTTP 302", ""]
    assert receipt["state"] == "acked"


async def test_the_last_failure_is_a_dead_letter(hub: Hub, receiver: Receiver) -> None:
    group = await put(hub, receiver.url, retries=1, dead_letter="dead/orders")
    receiver.answers = [(500, {}), (500, {})]
    await hub.publish("orders/eu", {"n": 1})
    await until(lambda: group.journal.state.counts["dead"] == 1)
    await told(group.journal.then)  # on disk, too
    assert [record.json() async for record in hub.read("dead/orders", follow=False)] == [{"n": 1}]


async def test_retry_after_puts_it_off(hub: Hub, receiver: Receiver) -> None:
    group = await put(hub, receiver.url)
    receiver.answers = [(503, {"Retry-After": "120"})]
    await hub.publish("orders/eu", {"n": 1})
    await until(lambda: group.journal.state.counts["failed"] == 1)
    (waiting,) = next(iter(group.journal.state.partitions.values())).waiting.values()
    assert waiting.delay_ms == 120_000


async def test_410_ends_it_and_keeps_the_record(hub: Hub, receiver: Receiver) -> None:
    url = receiver.url
    group = await put(hub, url, retries=0, webhook_concurrency=1)
    receiver.answers = [(410, {})]
    await hub.publish("orders/eu", {"n": 1}, {"n": 2})
    await until(lambda: group.spec.webhook_disabled != "")
    assert not group.members
    assert group.journal.state.counts["failed"] == 0
    await put(hub, url, retries=0, webhook_concurrency=1)  # said again, it begins anew
    await until(lambda: group.journal.state.counts["acked"] == 2)


async def test_no_more_requests_than_asked_for(hub: Hub, receiver: Receiver) -> None:
    receiver.hold = threading.Event()
    group = await put(hub, receiver.url, webhook_concurrency=3)
    await hub.publish("orders/eu", *({"n": n} for n in range(20)))
    await until(lambda: receiver.running == 3)
    receiver.hold.set()
    await until(lambda: group.journal.state.counts["acked"] == 20)
    assert receiver.most == 3


async def test_leases_last_as_long_as_requests(receiver: Receiver) -> None:
    """A receiver may take longer than a lease: its record is not pushed to it again meanwhile."""
    clock = ManualClock()
    receiver.hold = threading.Event()
    async with Hub("memory:", clock=clock, webhook_secrets=[SECRET], webhook_private=True) as hub:
        group = await put(hub, receiver.url, lease_s=30, webhook_concurrency=2)
        await hub.publish("orders/eu", *({"n": n} for n in range(3)))
        await until(lambda: receiver.running == 2)
        for _ in range(12):
            clock.advance(10)
            hub.calls.timers.run()
            await told(group.journal.then)
        assert group.journal.state.counts["delivered"] == 2
        receiver.hold.set()
        await until(lambda: group.journal.state.counts["acked"] == 3)
        assert (len(receiver.requests), group.journal.state.counts["failed"]) == (3, 0)


async def test_other_settings_repeat_no_request(hub: Hub, receiver: Receiver) -> None:
    """Requests that run when the settings change count: their records are not pushed a second time."""
    receiver.hold = threading.Event()
    url = receiver.url
    group = await put(hub, url, webhook_concurrency=2)
    await hub.publish("orders/eu", {"n": 1}, {"n": 2}, {"n": 3})
    await until(lambda: receiver.running == 2)
    receiver.answers = [(500, {})]
    await put(hub, url, webhook_concurrency=1)
    await until(lambda: receiver.running == 3)
    receiver.hold.set()
    await until(lambda: group.journal.state.counts["acked"] == 3)
    assert len(receiver.requests) == 4
    assert group.journal.state.counts["failed"] == 1


async def test_a_transport_that_breaks_costs_attempts_and_no_room(hub: Hub, receiver: Receiver) -> None:
    """Whatever is raised is a failed attempt: others go on, and the record is dead in the end."""
    url = receiver.url
    assert hub.group_push is not None
    post = hub.poster.transport

    def broken(url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> WebhookResponse:
        if body == b'{"n":1}':
            raise RuntimeError("broken")
        return post(url, headers, body, timeout_s)

    hub.poster.transport = broken
    group = await put(hub, url, webhook_concurrency=1, retries=2)
    await hub.publish("orders/eu", {"n": 1}, {"n": 2}, {"n": 3})
    await until(lambda: group.journal.state.counts["acked"] == 2 and group.journal.state.counts["dead"] == 1)
    assert group.journal.state.counts["failed"] == 3
    assert next(iter(group.journal.state.dead.values())).reason == "RuntimeError: broken"


async def test_an_end_that_cannot_be_written_down_is_asked_for_again(
    hub: Hub, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that cannot be changed when its receiver wants no more keeps the record, and its room."""
    patch_constants(monkeypatch, STUCK_S=0.002)
    url = receiver.url
    group = await put(hub, url, webhook_concurrency=1)
    put_group, refused = hub.groups.put, [Overloaded("Not now.")]

    def busy(name: str, spec: GroupSpec, done: Any) -> None:
        if refused:
            raise refused.pop()
        put_group(name, spec, done)

    monkeypatch.setattr(hub.groups, "put", busy)
    receiver.answers = [(410, {}), (410, {})]
    await hub.publish("orders/eu", {"n": 1})
    await until(lambda: group.spec.webhook_disabled != "")
    assert len(receiver.requests) == 2
    assert group.journal.state.counts["failed"] == 0


async def test_it_goes_on_after_a_restart(tmp_path: Path, receiver: Receiver) -> None:
    url = receiver.url
    options: dict[str, Any] = {"webhook_secrets": [SECRET], "webhook_private": True}
    async with Hub(f"file:{tmp_path}", **options) as hub:
        await put(hub, url)
    async with Hub(f"file:{tmp_path}", **options) as hub:
        await hub.publish("orders/eu", {"n": 1})
        await until(lambda: hub.groups.group("billing").journal.state.counts["acked"] == 1)


async def test_private_addresses_are_refused(tmp_path: Path) -> None:
    async with Hub(f"file:{tmp_path}", webhook_secrets=[SECRET]) as hub:
        for url in ("http://127.0.0.1:9/", "http://localhost/", "http://[::1]/", "http://169.254.169.254/", "ftp://x"):
            with pytest.raises(BadRequest, match="cannot be a callback"):
                await put(hub, url)
    async with Hub("memory:") as hub:
        with pytest.raises(BadRequest, match="webhook-secret"):
            await put(hub, "https://receiver.example/")


def test_cloudevents_in_binary_mode() -> None:
    meta = Meta({"ce-type": "order paid", "Trace": "é"}, "m-1", "k 1")
    part = Part(1, "orders/eu", "application/json", 7, 41, 1_700_000_000_123, [b"{}"], 2, {0: meta})
    headers = headers_of("g", part, 0, cloudevents=True)
    expected = {
        "ce-specversion": "1.0",
        "ce-id": "m-1",
        "ce-source": "/v1/stream/orders/eu",
        "ce-type": "order%20paid",
        "ce-time": "2023-11-14T22:13:20.123Z",
        "ce-partitionkey": "k%201",
        "Content-Type": "application/json",
        "Wayside-Header-trace": "%C3%A9",
        "Wayside-Attempt": "2",
    }
    assert expected.items() <= headers.items()
    assert not any(name.startswith("ce-") for name in headers_of("g", part, 0, cloudevents=False))
