"""A call is a stream: its events by each of the ways to read one, and the request that none of them shows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.events import EventSource
from tests.support.server import JSON, Running, Serve, problem_of
from tests.support.services import Holder, offer
from tests.support.waiting import until
from tests.support.wire import Wire, request

SECRET = "the-secret-of-the-house"
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture(params=["memory", "disk"])
async def hub(request: pytest.FixtureRequest, serve: Serve) -> Running:
    """A hub with services, in memory or on disk."""
    return await serve(disk=request.param == "disk")


@pytest.fixture
async def holder(hub: Running) -> AsyncIterator[Holder]:
    """The services of ``hub``."""
    holder = offer(hub.hub)
    yield holder
    holder.let_go()


async def _submit(hub: Running, name: str, body: bytes = b"") -> str:
    answer = await hub.ask("POST", f"/v1/service/{name}", {**JSON, "Prefer": "respond-async"}, body)
    assert answer.status == 202, answer
    return answer["Location"]


async def _counted(hub: Running) -> str:
    """A call that has ended: running, three items, done."""
    url = await _submit(hub, "count", b"3")
    await hub.ask("GET", url, {"Prefer": "wait=10"})
    return url


EVENTS = ["running", "item", "item", "item", "done"]


def _names(body: bytes) -> list[str]:
    return [event["event"] for event in json.loads(body)]


# -- each way


async def test_events_are_polled(hub: Running, holder: Holder) -> None:
    """``offset`` reads a call as a stream: events as a JSON array, where to read on, and that it is the end."""
    url = await _counted(hub)
    answer = await hub.ask("GET", url + "?offset=-1")
    assert answer["Content-Type"] == "application/json"
    events = json.loads(answer.body)
    assert [event["event"] for event in events] == EVENTS
    assert [event["data"] for event in events if event["event"] == "item"] == [0, 1, 2]
    assert [event["seq"] for event in events if event["event"] == "item"] == [0, 1, 2]
    assert (answer["Stream-Closed"], answer["Stream-Up-To-Date"]) == ("true", "true")
    rest = await hub.ask("GET", f"{url}?offset={answer.offset}")
    assert (rest.status, rest.body) == (200, b"[]")
    assert (await hub.ask("GET", f"{url}?offset=now")).body == b"[]"


async def test_events_are_read_on_from_an_offset(hub: Running, holder: Holder) -> None:
    """Where a read ends another begins, while the call runs."""
    url = await _submit(hub, "drip")
    await holder.began()
    first = await hub.ask("GET", url + "?offset=-1")
    assert _names(first.body) == ["running"]
    wire = await hub.connect()
    await wire.send(request("GET", f"{url}?offset={first.offset}", {"Prefer": "wait=30"}))
    await until(lambda: hub.waiters(f"__call/{url.rpartition('/')[2]}") == 1)
    holder.values.put_nowait(7)
    second = await wire.response()
    assert [(event["event"], event["data"]) for event in json.loads(second.body)] == [("item", 7)]
    assert second["Preference-Applied"] == "wait=30"
    holder.values.put_nowait(None)
    third = await hub.ask("GET", f"{url}?offset={second.offset}", {"Prefer": "wait=30"})
    assert _names(third.body) == ["done"]


async def test_events_by_the_protocol_s_long_poll(hub: Running, holder: Holder) -> None:
    """``live=long-poll`` is as of any stream, and needs an offset."""
    url = await _counted(hub)
    assert _names((await hub.ask("GET", url + "?live=long-poll&offset=-1")).body) == EVENTS
    assert (await hub.ask("GET", url + "?live=long-poll&offset=now")).status == 204
    assert (await hub.ask("GET", url + "?live=long-poll")).status == 400


async def test_events_as_server_sent_events(hub: Running, holder: Holder) -> None:
    """``Accept: text/event-stream`` gives all events from the start, as they come, and ends with the call."""
    url = await _submit(hub, "drip")
    source = await EventSource.open(await hub.connect(), url)
    assert json.loads((await source.next()).data)["event"] == "running"
    holder.values.put_nowait(1)
    item = await source.next()
    assert json.loads(item.data)["data"] == 1
    holder.values.put_nowait(None)
    done, closed = await source.rest()
    assert json.loads(done.data)["event"] == "done"
    assert (closed.type, closed.id) == ("closed", done.id)
    resumed = await EventSource.open(await hub.connect(), url, {"Last-Event-ID": item.id})
    assert [event.id for event in await resumed.rest()] == [done.id, closed.id]
    over = await hub.ask("GET", url, {"Accept": "text/event-stream", "Last-Event-ID": done.id})
    assert over.status == 204


async def test_events_by_the_protocol_s_events(hub: Running, holder: Holder) -> None:
    """``live=sse`` gives ``data`` and ``control`` events."""
    url = await _counted(hub)
    events = await (await EventSource.open(await hub.connect(), url + "?live=sse&offset=-1")).rest()
    assert [event.type for event in events] == ["data", "control"]
    assert _names(events[0].data.encode()) == EVENTS
    assert json.loads(events[1].data)["streamClosed"] is True


async def _pushed(wire: Wire) -> list[Any]:
    """The text messages of a push until its close frame."""
    messages: list[Any] = []
    while True:
        first, size = await wire.exactly(2)
        if size == 126:
            size = int.from_bytes(await wire.exactly(2), "big")
        payload = await wire.exactly(size)
        if first == 0x88:
            assert payload[:2] == (1000).to_bytes(2, "big")
            return messages
        messages.append(json.loads(payload))


async def test_events_are_pushed(hub: Running, holder: Holder) -> None:
    """An upgrade gives each event as a message, and the close frame when the call has ended."""
    url = await _submit(hub, "drip")
    wire = await hub.connect()
    await wire.send(request("GET", url, HANDSHAKE))
    assert (await wire.head()).status == 101
    for value in (1, 2, None):
        holder.values.put_nowait(value)
    assert [message["event"] for message in await _pushed(wire)] == ["running", "item", "item", "done"]


async def test_a_plain_read_is_not_of_the_stream(hub: Running, holder: Holder) -> None:
    """Without an offset, and without an event stream accepted, a call is its status; a bad ``live`` is refused."""
    url = await _counted(hub)
    status = json.loads((await hub.ask("GET", url, {"Accept": "application/json"})).body)
    assert (status["state"], status["items"]) == ("done", 3)
    assert json.loads((await hub.ask("GET", url, {"Accept": "text/event-stream;q=0, */*"})).body)["state"] == "done"
    for query in ("live=x", "offset=", "offset=x", "offset=1&offset=2"):
        answer = await hub.ask("GET", f"{url}?{query}")
        assert answer.status == 400, query
        problem_of(answer)


# -- calls in memory


async def test_a_call_in_memory_is_read_too(hub: Running, holder: Holder) -> None:
    """A call that is waited for can be watched meanwhile; its stream is made when somebody asks."""
    wire = await hub.connect()
    await wire.send(request("POST", "/v1/service/hold", JSON, b"5"))
    await holder.began()
    (call,) = hub.hub.calls.ledger.open.values()
    source = await EventSource.open(await hub.connect(), f"/v1/call/{call.id}")
    await source.opened()
    holder.release.set()
    names = [json.loads(event.data)["event"] for event in await source.rest() if event.type == "message"]
    assert names == ["running", "progress", "done"]
    assert (await wire.response("POST")).body == b"5"


async def test_a_call_in_memory_is_read_after_its_end(hub: Running, holder: Holder) -> None:
    """A call that nobody watched has its events while it is remembered."""
    answer = await hub.ask("POST", "/v1/service/greet", JSON, b'"you"')
    events = await hub.ask("GET", f"/v1/call/{answer['Wayside-Call']}?offset=-1")
    assert [(event["event"], event.get("data")) for event in json.loads(events.body)] == [
        ("running", None),
        ("done", "Hello, you!"),
    ]
    assert events["Stream-Closed"] == "true"


async def test_no_room_for_a_stream_is_told(serve: Serve) -> None:
    """Where a call in memory can have no stream, whoever asks for it is told why, and the call goes on."""
    hub = await serve(streams_max=1)
    holder = offer(hub.hub)
    await until(lambda: hub.hub.log.statistics().streams == 1)
    wire = await hub.connect()
    await wire.send(request("POST", "/v1/service/hold", JSON, b"5"))
    await holder.began()
    (call,) = hub.hub.calls.ledger.open.values()
    answer = await hub.ask("GET", f"/v1/call/{call.id}?offset=-1")
    assert (answer.status, problem_of(answer)["code"]) == (503, "too-many-streams")
    await hub.ask("DELETE", f"/v1/call/{call.id}")
    assert (await wire.response("POST")).status == 409


# -- what nobody is shown


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {}),
        ("?offset=-1", {}),
        ("?offset={first}", {}),
        ("?offset=0000000000000000_0000000000000000", {}),
        ("?offset=-1", {"Prefer": "wait=0"}),
        ("?offset={first}&live=long-poll", {}),
        ("?offset={first}&live=sse", {}),
        ("", {"Accept": "text/event-stream"}),
        ("", {"Accept": "text/event-stream", "Last-Event-ID": "{first}"}),
        ("", {"Accept": "text/event-stream", "Last-Event-ID": "-1"}),
        ("/result", {}),
    ],
)
async def test_the_request_is_not_shown(hub: Running, holder: Holder, query: str, headers: dict[str, str]) -> None:
    """The first record of a call, which is the request itself, is given to nobody."""
    url = await _submit(hub, "fail", f'"{SECRET}"'.encode())
    await hub.ask("GET", url, {"Prefer": "wait=10"})
    stream = hub.hub.log.find(f"__call/{url.rpartition('/')[2]}")
    first = str(stream.offset(0))
    kept = json.loads((await stream.read(0, 1))[0].records[0])
    assert kept["json"] == SECRET
    answer = await hub.ask(
        "GET", url + query.format(first=first), {name: value.format(first=first) for name, value in headers.items()}
    )
    assert answer.status < 500 or query == "/result"
    assert b'"event":"request"' not in answer.body
    assert answer.body.count(SECRET.encode()) in (0, 2)  # as the handler's own message, and in its detail


async def test_the_request_is_not_pushed(hub: Running, holder: Holder) -> None:
    """Nor by push, from whatever offset."""
    url = await _counted(hub)
    first = hub.hub.log.find(f"__call/{url.rpartition('/')[2]}").offset(0)
    wire = await hub.connect()
    await wire.send(request("GET", f"{url}?offset={first}", HANDSHAKE))
    assert (await wire.head()).status == 101
    assert [message["event"] for message in await _pushed(wire)] == EVENTS


@pytest.mark.parametrize("segment", ["__call", "__service", "__callback"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
async def test_the_hub_s_own_streams_are_not_reached(hub: Running, holder: Holder, segment: str, method: str) -> None:
    """What a hub keeps about calls is no stream for clients: not read, not written, not listed, not forked."""
    identity = (await _counted(hub)).rpartition("/")[2]
    name = {"__call": f"__call/{identity}", "__service": "__service/declared"}.get(segment, "__callback/due")
    wire = await hub.connect()
    await wire.send(request(method, f"/v1/stream/{name}", JSON, b"1" if method in ("PUT", "POST") else None))
    assert (await wire.response(method)).status == 404
    fork = await hub.ask("PUT", "/v1/stream/mine", {"Stream-Forked-From": f"/v1/stream/{name}"})
    assert (fork.status, problem_of(fork)["code"]) == (404, "reserved")
    listed = json.loads((await hub.ask("GET", "/v1/stream/")).body)
    assert listed["streams"] == []
    assert json.loads((await hub.ask("GET", f"/v1/stream/?prefix={segment}")).body)["streams"] == []
