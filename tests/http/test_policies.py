"""Delivery policies over real sockets: readers that do not read until their buffers are full, by each way of reading."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.support.events import EventParser, EventSource
from tests.support.server import BYTES, JSON, TEXT, Running
from tests.support.waiting import PATIENCE_S, until
from tests.support.wire import Wire, request
from wayside import Record, connect
from wayside.cli.rest import HubError, RestClient
from wayside.client.client import PolicyName
from wayside.core.errors import Lagged

EVENTS = {"Accept": "text/event-stream"}
ALL = 40
PIECE = "x" * 4000


async def _stalled(hub: Running, target: str) -> tuple[Wire, Any]:
    """A follower with small buffers that reads nothing, and the server's side of its connection."""
    wire = await hub.connect(receive_buffer=4096)
    await wire.send(request("GET", target, EVENTS))
    await until(lambda: hub.followers("sse") == 1)
    connection = hub.connection_of(wire)
    connection.transport.get_extra_info("socket").setsockopt(1, 7, 4096)  # SOL_SOCKET, SO_SNDBUF
    return wire, connection


async def _flood(hub: Running, target: str, records: int) -> list[dict[str, Any]]:
    """Append records of three keys, each by itself."""
    rows = [{"symbol": "abc"[n % 3], "n": n, "text": PIECE} for n in range(records)]
    publisher = await hub.connect()
    for row in rows:
        answer = await publisher.ask("POST", target, JSON, json.dumps(row, separators=(",", ":")).encode())
        assert answer.status == 204
    return rows


async def _events(wire: Wire, last: int) -> list[tuple[str, int]]:
    """(id, number) of every event up to that number."""
    assert (await wire.head()).status == 200
    parser = EventParser()
    while not (parser.events and json.loads(parser.events[-1].data)["n"] == last):
        parser.feed(await wire.chunk())
    return [(event.id, json.loads(event.data)["n"]) for event in parser.events]


async def _collect(reader: AsyncIterator[Record], offsets: list[str]) -> None:
    async for record in reader:
        offsets.append(record.offset)


def _position(offset: str) -> int:
    return int(offset.partition("_")[2])


async def _metric(hub: Running, name: str, label: str) -> float:
    text = (await hub.ask("GET", "/metrics")).body.decode()
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{{label}}}")), 0.0)


# -- conflate


async def test_a_slow_reader_that_conflates_is_given_the_newest_of_each_key(memory: Running) -> None:
    """It has what its buffer held; then the newest of each key, each event with its own offset; then everything again.
    Whoever resumes after any of them is not given what was conflated away."""
    target = await memory.create("prices", JSON)
    wire, connection = await _stalled(memory, f"{target}?policy=conflate&key=symbol")
    await _flood(memory, target, ALL)
    assert connection.transport.get_write_buffer_size() <= memory.hub.limits.write_buffer_bytes_max + 5000
    given = await _events(wire, ALL - 1)
    numbers = [number for _, number in given]
    assert [_position(identity) for identity, _ in given] == [number + 1 for number in numbers]
    before = next(n for n in range(ALL) if numbers[n] != n)
    assert numbers[before:] == [ALL - 3, ALL - 2, ALL - 1]
    skipped = ALL - len(numbers)
    assert skipped > 10
    assert await _metric(memory, "wayside_followers_skipped_records_total", 'policy="conflate"') == skipped
    assert await _metric(memory, "wayside_policy_followers", 'policy="conflate"') == 1
    assert await _metric(memory, "wayside_policy_followers", 'policy="catch-up"') == 0

    resumed = await EventSource.open(
        await memory.connect(), f"{target}?policy=conflate&key=symbol", {"Last-Event-ID": given[before - 1][0]}
    )
    assert [json.loads(event.data)["n"] for event in await resumed.take(3)] == numbers[before:]


async def test_from_the_start_it_is_the_latest_of_each_key_and_then_live(memory: Running) -> None:
    """Like a compacted read; with a field that is further in."""
    target = await memory.create("a", JSON, b'[{"a":{"b":1},"n":1},{"a":{"b":2},"n":2},{"a":{"b":1},"n":3},7]')
    source = await EventSource.open(await memory.connect(), f"{target}?policy=conflate&key=a.b")
    assert [event.data for event in await source.take(3)] == ['{"a":{"b":2},"n":2}', '{"a":{"b":1},"n":3}', "7"]
    await memory.append(target, b'[{"a":{"b":1}},{"a":{"b":1}}]', JSON)
    assert [event.data for event in await source.take(2)] == ['{"a":{"b":1}}'] * 2


async def test_a_poll_is_given_the_newest_of_what_there_is(disk: Running) -> None:
    """Polling and long polling have the newest per key between the offset and the tail, in a body like any other."""
    target = await disk.create("a", JSON, b'[{"k":1,"n":1},{"k":2},{"k":1,"n":3}]')
    for headers in ({}, {"Prefer": "wait=5"}):
        answer = await disk.ask("GET", f"{target}?policy=conflate&key=k", headers)
        assert (answer.status, json.loads(answer.body)) == (200, [{"k": 2}, {"k": 1, "n": 3}])
        assert answer["Stream-Up-To-Date"] == "true"
        again = await disk.ask("GET", f"{target}?policy=conflate&key=k&offset={answer.offset}")
        assert (again.status, again.body) == (200, b"[]")
    text = await disk.create("b", TEXT, b"one")
    await disk.append(text, b"two")
    assert await disk.body_of(f"{text}?policy=conflate") == b"two"


async def test_a_long_poll_that_waits_conflates_what_comes(memory: Running) -> None:
    """What ends the wait is conflated like what was there."""
    target = await memory.create("a", JSON)
    wire = await memory.connect()
    await wire.send(request("GET", f"{target}?policy=conflate", {"Prefer": "wait=30"}))
    await until(lambda: memory.waiters("a") == 1)
    await memory.append(target, b"[1,2,3]", JSON)
    assert (await wire.response()).body == b"[3]"


async def test_credit_over_a_websocket_is_spent_on_what_is_sent(memory: Running) -> None:
    """With ``wayside.v1`` a reader without credit misses what a slow one does."""
    target = await memory.create("a", JSON, b"[1,2,3]")
    url = memory.websocket_url(f"{target}?policy=conflate")
    async with connect_websocket(url, subprotocols=[Subprotocol("wayside.v1")]) as socket:
        await memory.append(target, b"[4,5]", JSON)
        await socket.send('{"credit": 2}')
        first = json.loads(await socket.recv())
        assert first["data"] == 5
        assert _position(first["offset"]) == 5
        await memory.append(target, b"[6,7]", JSON)
        assert json.loads(await socket.recv())["data"] == 7, "there is credit for one"


async def test_a_glob_can_be_conflated_to_the_latest_of_each_stream(memory: Running) -> None:
    """Its records are envelopes, whose fields are keys like any other."""
    for name, body in (("p/a", b"[1,2]"), ("p/b", b"[3]"), ("p/c", b'[{"k":1},{"k":1}]')):
        await memory.create(name, JSON, body)
    source = await EventSource.open(await memory.connect(), "/v1/stream/p/**?policy=conflate&key=stream")
    rows = [json.loads(event.data) for event in await source.take(3)]
    assert [(row["stream"], row["data"]) for row in rows] == [("p/a", 2), ("p/b", 3), ("p/c", {"k": 1})]


# -- sample


async def test_a_sample_is_the_newest_then_nothing_until_the_interval_is_over(memory: Running) -> None:
    """With an interval of a day: the newest record, and at the end of the stream what is newest then."""
    target = await memory.create("a", JSON, b"[1,2]")
    source = await EventSource.open(await memory.connect(), f"{target}?policy=sample&interval=86400")
    assert (await source.next()).data == "2"
    for n in range(3, 8):
        await memory.append(target, b"%d" % n, JSON)
    await memory.ask("POST", target, {"Stream-Closed": "true"})
    rest = await source.rest()
    assert [(event.type, event.data) for event in rest[:1]] == [("message", "7")]
    assert rest[1].type == "closed"


# -- disconnect


async def test_a_reader_that_lags_is_ended_with_where_to_resume(memory: Running) -> None:
    """Server-sent events: an event ``lagged`` with the offset after the last record, and the end of the answer."""
    target = await memory.create("a", JSON)
    wire, _ = await _stalled(memory, f"{target}?policy=disconnect&lag=5")
    await _flood(memory, target, ALL)
    await until(lambda: memory.followers("sse") == 0)
    assert (await wire.head()).status == 200
    parser = EventParser()
    while data := await wire.chunk():
        parser.feed(data)
    *events, last = parser.events
    assert (last.type, last.data) == ("lagged", last.id)
    assert _position(last.id) == len(events) < ALL - 5
    assert await _metric(memory, "wayside_followers_disconnected_total", 'reason="lagged"') == 1
    answer = await wire.ask("GET", f"{target}?offset={last.id}")
    assert [row["n"] for row in json.loads(answer.body)] == list(range(len(events), ALL)), "nothing is lost"


@pytest.mark.parametrize("enveloped", [True, False])
async def test_a_push_that_lags_is_closed_with_where_to_resume(memory: Running, enveloped: bool) -> None:
    """A WebSocket is closed with 4408; with ``wayside.v1`` a message says the same before."""
    target = await memory.create("a", JSON)
    url = memory.websocket_url(f"{target}?policy=disconnect&lag=2")
    protocols = [Subprotocol("wayside.v1")] if enveloped else None
    messages = []
    wire = await memory.connect(receive_buffer=4096)
    made = connect_websocket(url, subprotocols=protocols, max_queue=1, sock=wire.socket)
    async with made as socket, asyncio.timeout(PATIENCE_S):
        await until(lambda: memory.followers("push") == 1)
        transport = memory.connection_of(wire).transport
        transport.get_extra_info("socket").setsockopt(1, 7, 4096)  # SOL_SOCKET, SO_SNDBUF
        if enveloped:
            await socket.send('{"credit": 1}')
            await until(lambda: next(iter(memory.hub.log.find("a").cohorts.values()), None) is not None)
            await memory.append(target, b"[1,2,3,4]", JSON)
        else:
            await _flood(memory, target, 2 * ALL)
        try:
            while True:
                messages.append(await socket.recv())
        except ConnectionClosed as closed:
            close = closed.rcvd
    assert close is not None
    assert close.code == 4408
    kind, _, offset = close.reason.partition(" resume=")
    assert kind == "lagged"
    if enveloped:
        assert json.loads(messages.pop()) == {"lagged": True, "offset": offset}
    assert _position(offset) == len(messages)


# -- what is refused


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("policy=newest", EVENTS, "policy-unknown"),
        ("policy=conflate&key=", EVENTS, "policy-parameter"),
        ("policy=sample&interval=never", EVENTS, "policy-parameter"),
        ("policy=disconnect&lag=0", EVENTS, "policy-parameter"),
        ("policy=conflate&policy=sample", EVENTS, "parameter-repeated"),
        ("policy=sample", {}, "policy-needs-follower"),
        ("policy=disconnect", {"Prefer": "wait=1"}, "policy-needs-follower"),
    ],
)
async def test_what_makes_no_sense_is_refused(memory: Running, query: str, headers: dict[str, str], code: str) -> None:
    """400 with a stable code, and nothing is read."""
    target = await memory.create("a", JSON, b"1")
    answer = await memory.ask("GET", f"{target}?{query}", headers)
    assert (answer.status, json.loads(answer.body)["code"]) == (400, code)


async def test_a_key_needs_records_that_have_fields(memory: Running) -> None:
    """A stream that is not JSON has none."""
    target = await memory.create("a", BYTES, b"1")
    answer = await memory.ask("GET", f"{target}?policy=conflate&key=k", EVENTS)
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "policy-needs-json")


async def test_without_a_policy_its_parameters_mean_nothing(memory: Running) -> None:
    """Reads of the protocol are as they were, whatever else is in their query."""
    target = await memory.create("a", JSON, b"[1,2]")
    for query in ("key=k", "lag=x&interval=y", "policy=catch-up"):
        assert await memory.body_of(f"{target}?{query}") == b"[1,2]"


# -- the clients


async def test_the_python_client_reads_with_a_policy(memory: Running) -> None:
    """Over ``/v1/connect``, across the newest of each key; and in the hub's own process."""
    target = await memory.create("a", JSON, b'[{"k":1},{"k":2},{"k":1,"n":2}]')
    await memory.ask("POST", target, {"Stream-Closed": "true"})
    async with connect(memory.url) as client:
        remote = [record async for record in client.read("a", policy="conflate", key="k")]
    local = [record async for record in memory.hub.read("a", policy="conflate", key="k")]
    assert [record.json() for record in remote] == [{"k": 2}, {"k": 1, "n": 2}]
    assert [(r.offset, r.data) for r in remote] == [(r.offset, r.data) for r in local]


async def test_the_python_client_is_told_that_it_lagged(memory: Running) -> None:
    """``Lagged`` says where to read on."""
    await memory.create("a", JSON)
    async with connect(memory.url) as client:
        reader = client.read("a", policy="disconnect", lag=10)
        first = asyncio.ensure_future(anext(reader))
        await until(lambda: memory.followers("multiplexing") == 1)
        await memory.hub.publish("a", 1)
        assert (await first).json() == 1
        await memory.hub.publish("a", *range(10_000))  # more than the credit that the client has granted
        offsets: list[str] = []
        with pytest.raises(Lagged) as lagged:
            await _collect(reader, offsets)
        assert lagged.value.fields["offset"] == offsets[-1]


@pytest.mark.parametrize(("policy", "code"), [("sample", "policy-parameter"), ("conflate", "policy-needs-json")])
async def test_the_python_client_is_refused_what_makes_no_sense(memory: Running, policy: PolicyName, code: str) -> None:
    """With the codes of HTTP."""
    await memory.create("a", TEXT, b"1")
    async with connect(memory.url) as client:
        with pytest.raises(Exception) as refused:
            await anext(client.read("a", policy=policy, key="k", lag=1 if policy == "sample" else 0))
    assert getattr(refused.value, "code", None) == code


@pytest.mark.parametrize("via", ["sse", "push", "poll", "long-poll"])
async def test_the_command_line_reads_with_a_policy(memory: Running, via: str) -> None:
    """By each way; and one that lagged is told so."""
    target = await memory.create("a", JSON, b"[1,2,3]")
    await memory.ask("POST", target, {"Stream-Closed": "true"})

    def read(parameters: dict[str, str]) -> list[bytes]:
        client = RestClient(memory.url)
        try:
            return [data for _, data in client.follow("a", via, "-1", parameters=parameters)]
        finally:
            client.close()

    assert await asyncio.to_thread(read, {"policy": "conflate"}) == [b"3"]
    with pytest.raises(HubError):
        await asyncio.to_thread(read, {"policy": "newest"})
