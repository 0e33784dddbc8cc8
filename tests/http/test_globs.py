"""A glob where a stream's path would be: all streams that it matches, in each of the ways to read, with one cursor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

import wayside
from tests.support.events import EventSource
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import PATIENCE_S, until
from wayside.core.records import Record

ALL = "/v1/stream/orders/**"


@pytest.fixture(params=["memory", "disk"])
async def hub(request: pytest.FixtureRequest, serve: Serve) -> Running:
    """A hub with five streams of two records."""
    hub = await serve(disk=request.param == "disk")
    for number in range(5):
        await hub.create(f"orders/{number}", JSON, b"[%d,%d]" % (number, number + 10))
    await hub.create("elsewhere", JSON, b'["elsewhere"]')
    return hub


def _values(items: list[Any]) -> dict[str, list[Any]]:
    result: dict[str, list[Any]] = {}
    for item in items:
        result.setdefault(item["stream"], []).append(item["data"])
    return result


HISTORY = {f"orders/{number}": [number, number + 10] for number in range(5)}


async def _later(hub: Running) -> dict[str, list[Any]]:
    """Appends to two of the streams, and makes another; what that adds."""
    await hub.append("/v1/stream/orders/1", b'"a"', JSON)
    await hub.append("/v1/stream/elsewhere", b'"elsewhere"', JSON)
    await hub.create("orders/eu/new", TEXT, b"b")
    await hub.append("/v1/stream/orders/2", b'["c","d"]', JSON)
    return {"orders/1": ["a"], "orders/eu/new": ["b"], "orders/2": ["c", "d"]}


@pytest.mark.parametrize("target", [ALL, "/v1/stream/orders/%2A%2A", "/v1/stream/orders%2F**"])
async def test_a_poll_answers_what_is_behind_the_cursor(hub: Running, target: str) -> None:
    """A JSON array of envelopes, and where to read on."""
    answer = await hub.ask("GET", target)
    assert (answer.status, answer["Content-Type"]) == (200, "application/json")
    items = json.loads(answer.body)
    assert _values(items) == HISTORY
    one = await hub.ask("GET", f"/v1/stream/{items[0]['stream']}?offset={items[0]['offset']}")
    assert json.loads(one.body) == [items[1]["data"]]
    expected = await _later(hub)
    after = await hub.ask("GET", f"{target}?offset={answer.offset}")
    assert _values(json.loads(after.body)) == expected
    again = await hub.ask("GET", f"{target}?offset={after.offset}")
    assert (json.loads(again.body), again.offset) == ([], after.offset)
    now = await hub.ask("GET", f"{target}?offset=now")
    assert (now.body, now.offset) == (b"[]", after.offset)
    head = await hub.ask("HEAD", target)
    assert (head.status, head.offset) == (200, after.offset)


async def test_a_kept_answer_is_not_given_when_there_is_more(hub: Running) -> None:
    """On one connection the same poll, again and again, always has everything that was acknowledged."""
    wire = await hub.connect()
    for number in range(20):
        for _ in range(2):
            items = json.loads((await wire.ask("GET", ALL)).body)
            assert len(items) == 10 + number
        await hub.append("/v1/stream/orders/0", b"1", JSON)


async def test_a_long_poll_waits_for_any_of_them(hub: Running) -> None:
    """Also for one that is not there yet; and ends where it was when nothing comes."""
    start = (await hub.ask("HEAD", ALL)).offset
    wire = await hub.connect()
    asked = asyncio.create_task(wire.ask("GET", f"{ALL}?offset={start}", {"Prefer": "wait=30"}))
    await until(lambda: any(view.waiters for view in hub.hub.log._unions.views))
    await hub.append("/v1/stream/elsewhere", b"1", JSON)
    await hub.create("orders/new", JSON, b"[7]")
    answer = await asked
    assert answer["Preference-Applied"] == "wait=30"
    assert _values(json.loads(answer.body)) == {"orders/new": [7]}
    none = await hub.ask("GET", f"{ALL}?offset={answer.offset}", {"Prefer": "wait=0"})
    assert (none.status, none.offset) == (204, answer.offset)


async def test_events_resume_by_their_ids(hub: Running) -> None:
    """Each id is a cursor of all streams, also between two records of one append."""
    source = await EventSource.open(await hub.connect(), ALL)
    events = await source.take(10)
    expected = await _later(hub)
    events += await source.take(4)
    items = [json.loads(event.data) for event in events]
    assert _values(items[:10]) == HISTORY
    assert _values(items[10:]) == expected
    for place, event in enumerate(events[:-1]):
        again = await EventSource.open(await hub.connect(), ALL, {"Last-Event-ID": event.id})
        assert [json.loads(e.data) for e in await again.take(len(events) - place - 1)] == items[place + 1 :]


async def test_push_has_credit(hub: Running) -> None:
    """With ``wayside.v1``: as many as were granted, each with its cursor; resumed from any."""
    url = hub.websocket_url("/v1/stream/orders/**")
    v1 = [Subprotocol("wayside.v1")]
    async with connect(url, subprotocols=v1) as socket, asyncio.timeout(PATIENCE_S):
        await socket.send('{"credit":4}')
        first = [json.loads(await socket.recv()) for _ in range(4)]
        await _later(hub)
    async with connect(f"{url}?offset={first[-1]['offset']}", subprotocols=v1) as socket, asyncio.timeout(PATIENCE_S):
        await socket.send('{"credit":100}')
        rest = [json.loads(await socket.recv()) for _ in range(10)]
    whole = _values([message["data"] for message in first + rest])
    assert whole == {**HISTORY, "orders/1": [1, 11, "a"], "orders/2": [2, 12, "c", "d"], "orders/eu/new": ["b"]}
    async with connect(url) as socket, asyncio.timeout(PATIENCE_S):
        bare = [json.loads(await socket.recv()) for _ in range(14)]
    assert _values(bare) == whole


async def test_a_stop_says_where_to_resume(hub: Running) -> None:
    """As for any stream."""
    async with connect(hub.websocket_url("/v1/stream/orders/**")) as socket, asyncio.timeout(PATIENCE_S):
        for _ in range(10):
            await socket.recv()
        at = (await hub.ask("HEAD", ALL)).offset
        await hub.hub.log.close()
        await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (1012, f"resume={at}")
        hub.hub._closed = True


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("PUT", ALL, 405, "glob-read-only"),
        ("POST", ALL, 405, "glob-read-only"),
        ("DELETE", ALL, 405, "glob-read-only"),
        ("GET", "/v1/stream/orders-*/**", 400, "glob-invalid"),
        ("GET", "/v1/stream/a//**", 400, "glob-invalid"),
        ("GET", "/v1/stream/__call/**", 404, "reserved"),
        ("GET", "/v1/stream/__index/orders/**", 404, "reserved"),
        ("GET", f"{ALL}?member=me", 400, "glob-member"),
        ("GET", f"{ALL}?offset=nonsense", 400, "offset-malformed"),
        ("GET", f"{ALL}?offset=00000000001_0000000000000001", 410, "stream-recreated"),
    ],
)
async def test_what_is_refused(memory: Running, method: str, target: str, status: int, code: str) -> None:
    """With a stable code, and what to do instead; the connection goes on."""
    wire = await memory.connect()
    answer = await wire.ask(method, target, JSON, b"1" if method in ("PUT", "POST") else None)
    assert (answer.status, json.loads(answer.body)["code"]) == (status, code), answer
    assert (await wire.ask("GET", ALL)).status == 200


async def test_a_client_that_goes_leaves_nothing(hub: Running) -> None:
    """Not even one that goes before it was answered."""
    for _ in range(5):
        wire = await hub.connect()
        await wire.send(f"GET {ALL} HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n".encode())
        wire.close()
    source = await EventSource.open(await hub.connect(), ALL)
    await source.take(10)
    assert hub.followers("sse") >= 1
    source.wire.close()
    await until(lambda: hub.followers("sse") == 0)


async def test_a_stream_elsewhere_knows_of_no_watcher(hub: Running) -> None:
    """Nor is anything written for it."""
    source = await EventSource.open(await hub.connect(), ALL)
    await source.take(10)
    index = hub.hub.log.find("__index/orders/**")
    before = index.tail
    assert hub.hub.log.find("elsewhere").watchers == ()
    assert len(hub.hub.log.find("orders/1").watchers) == 1
    await hub.append("/v1/stream/elsewhere", b"1", JSON)
    assert index.tail == before
    assert (await hub.ask("GET", "/v1/stream/?limit=100")).body.count(b"__index") == 0


async def _first(records: AsyncIterator[Record], count: int) -> list[Record]:
    result = []
    async with asyncio.timeout(PATIENCE_S):
        async for record in records:
            result.append(record)
            if len(result) == count:
                break
    return result


def _of(records: list[Record]) -> dict[str, list[bytes]]:
    result: dict[str, list[bytes]] = {}
    for record in records:
        result.setdefault(record.stream, []).append(record.data)
    return result


@pytest.mark.parametrize("way", ["client", "hub"])
async def test_python_reads_records_with_their_stream(hub: Running, way: str) -> None:
    """Data as it was published, and an offset that resumes all of them; over a connection and in the hub's process."""
    await hub.create("orders/bytes", BYTES, b"\x00\xff")
    async with wayside.connect(hub.url) as client:

        def read(offset: str = "-1", follow: bool = True) -> AsyncIterator[Record]:
            source: Any = client if way == "client" else hub.hub
            records: AsyncIterator[Record] = source.read("orders/**", offset=offset, follow=follow)
            return records

        records = await _first(read(), 11)
        assert _of(records)["orders/bytes"] == [b"\x00\xff"]
        assert _of(records)["orders/1"] == [b"1", b"11"]
        await _later(hub)
        rest = await _first(read(records[6].offset), 8)
        assert rest[:4] == records[7:]
        assert _of(rest[4:]) == {"orders/1": [b'"a"'], "orders/eu/new": [b"b"], "orders/2": [b'"c"', b'"d"']}
        assert [record async for record in read(follow=False)] == records + rest[4:]
        assert [record async for record in read(records[-1].offset, follow=False)] == rest[4:]


async def test_a_channel_refuses_what_is_no_glob(hub: Running) -> None:
    """And the connection goes on."""
    async with wayside.connect(hub.url) as client:
        with pytest.raises(wayside.Refusal) as refused:
            await _first(client.read("orders-*/**"), 1)
        assert refused.value.code == "glob-invalid"
        with pytest.raises(wayside.Refusal) as refused:
            await _first(client.read("orders/**", "00000000001_0000000000000001"), 1)
        assert refused.value.code == "stream-recreated"
        assert len(await _first(client.read("orders/*"), 10)) == 10


async def test_ten_thousand_streams(serve: Serve) -> None:
    """One subscription follows them all."""
    hub = await serve(disk=True)
    count = 10_000
    await asyncio.gather(*[hub.hub.create(f"many/{number}") for number in range(count)])
    await asyncio.gather(*[hub.hub.publish(f"many/{number}", number) for number in range(0, count, 10)])
    source = await EventSource.open(await hub.connect(), "/v1/stream/many/**?offset=now")
    await source.opened()
    await hub.hub.publish("many/9999", "last")
    assert json.loads((await source.next()).data)["data"] == "last"
    everything = json.loads((await hub.ask("GET", "/v1/stream/many/**")).body)
    assert sorted(item["data"] for item in everything[:-1]) == list(range(0, count, 10))
