"""Presence over real sockets, on a clock that stands still until it is told to go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from websockets.asyncio.client import connect as connect_websocket

from tests.support.events import EventSource
from tests.support.server import JSON, Running
from tests.support.waiting import until
from tests.support.wire import request
from wayside import Limits, connect
from wayside.cli.main import cli
from wayside.core.errors import BadRequest
from wayside.core.records import Durability
from wayside.hub import Hub
from wayside.testing import START_MS, ManualClock

LEASE_S = 30.0


class Room:
    """A served hub with a stream, and who is there."""

    def __init__(self, running: Running, clock: ManualClock) -> None:
        self.running = running
        self.clock = clock
        self.target = "/v1/stream/room"
        self.presence = "/v1/presence/room"

    def pass_(self, seconds: float) -> None:
        """Let time pass: what is due happens."""
        self.clock.advance(seconds)
        self.running.hub.calls.timers.run()

    async def here(self) -> dict[str, list[str]]:
        """Ways of who is there, by name."""
        answer = await self.running.ask("GET", self.presence)
        assert answer.status == 200, answer
        return {m["member"]: m["ways"] for m in json.loads(answer.body)["members"]}

    async def told(self) -> list[tuple[str, str]]:
        """Joins and leaves since the beginning."""
        events = json.loads(await self.running.body_of(f"{self.presence}?offset=-1"))
        return [(event["event"], event["member"]) for event in events]

    async def poll(self, name: str, headers: dict[str, str] | None = None) -> None:
        assert (await self.running.ask("GET", f"{self.target}?member={name}", headers)).status == 200

    async def listen(self, name: str) -> EventSource:
        source = await EventSource.open(await self.running.connect(), f"{self.target}?member={name}")
        await source.opened()
        return source

    async def quits(self, source: EventSource) -> None:
        """The client goes, and the hub has noticed."""
        before = self.running.followers("sse")
        source.wire.close()
        await until(lambda: self.running.followers("sse") == before - 1)


async def _room(limits: Limits) -> AsyncIterator[Room]:
    clock = ManualClock()
    hub = Hub("memory:", limits=limits, clock=clock)
    running = Running(hub, await hub.serve(port=0))
    await running.create("room", JSON, b"1")
    yield Room(running, clock)
    for wire in running.wires:
        wire.close()
    running.server.stop()
    await hub.close()


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async for room in _room(Limits()):
        yield room


@pytest.fixture
async def small_room() -> AsyncIterator[Room]:
    """Room for two."""
    async for room in _room(replace(Limits(), presence_members_max=2)):
        yield room


# -- leases


async def test_one_who_polls_is_present_while_it_polls(room: Room) -> None:
    """Each request renews its lease; when that is over it has left. Each is told once."""
    await room.poll("ann")
    for _ in range(5):
        room.pass_(LEASE_S - 1)
        assert await room.here() == {"ann": ["polling"]}
        await room.poll("ann")
    room.pass_(LEASE_S)
    assert await room.here() == {}
    assert await room.told() == [("join", "ann"), ("leave", "ann")]


async def test_one_who_is_connected_is_present_for_as_long(room: Room) -> None:
    """However long nothing happens, and for a lease after that, so that a reload is no leave and join."""
    source = await room.listen("ann")
    room.pass_(1000 * LEASE_S)
    assert await room.here() == {"ann": ["sse"]}
    await room.quits(source)
    room.pass_(LEASE_S - 1)
    again = await room.listen("ann")
    room.pass_(LEASE_S)
    await room.quits(again)
    room.pass_(LEASE_S - 1)
    assert await room.here() == {"ann": ["sse"]}
    room.pass_(1)
    assert await room.told() == [("join", "ann"), ("leave", "ann")]


async def test_one_who_waits_in_a_long_poll_is_connected(room: Room) -> None:
    """A wait that is longer than a lease does not end it; the lease begins when the wait is over."""
    offset = (await room.running.ask("GET", room.target)).offset
    wire = await room.running.connect()
    await wire.send(request("GET", f"{room.target}?offset={offset}", {"Prefer": "wait=60", "Wayside-Member": "bob"}))
    await until(lambda: room.running.waiters("room") == 1)
    room.pass_(3 * LEASE_S)
    assert await room.here() == {"bob": ["long-polling"]}
    await room.running.append(room.target, b"2", JSON)
    assert (await wire.response()).body == b"[2]"
    room.pass_(LEASE_S - 1)
    assert await room.here() == {"bob": ["long-polling"]}
    room.pass_(1)
    assert await room.here() == {}


async def test_several_connections_of_one_member_count_once(room: Room) -> None:
    """By all its ways together; it leaves when the last of them is over."""
    first, second = await room.listen("ann"), await room.listen("ann")
    host, port = room.running.server.address
    async with connect_websocket(f"ws://{host}:{port}{room.target}?member=ann") as socket:
        assert await socket.recv() == "1"
        await room.poll("ann")
        assert await room.here() == {"ann": ["polling", "push", "sse"]}
        await room.quits(first)
        await room.quits(second)
        room.pass_(2 * LEASE_S)
        assert await room.here() == {"ann": ["push"]}
    await until(lambda: room.running.followers("push") == 0)
    room.pass_(LEASE_S)
    assert await room.told() == [("join", "ann"), ("leave", "ann")]


async def test_who_is_present_is_told_with_times(room: Room) -> None:
    """Since when, when last heard of, and where to follow on from; the stream has the same times."""
    await room.poll("ann")
    room.pass_(5)
    await room.poll("ann")
    await room.poll("bob")
    room.pass_(2)
    answer = await room.running.ask("GET", room.presence)
    present = json.loads(answer.body)
    assert present["members"] == [
        {"member": "ann", "since_ms": START_MS, "seen_ms": START_MS + 5000, "ways": ["polling"]},
        {"member": "bob", "since_ms": START_MS + 5000, "seen_ms": START_MS + 5000, "ways": ["polling"]},
    ]
    assert present["stream"] == "room"
    assert present["offset"] == answer.offset
    assert "no-store" in answer["Cache-Control"]
    events = json.loads(await room.running.body_of(f"{room.presence}?offset=-1"))
    assert events[0] == {"event": "join", "member": "ann", "time_ms": START_MS}
    assert await room.running.body_of(f"{room.presence}?offset={answer.offset}") == b"[]"


# -- joins and leaves as a stream


async def test_joins_and_leaves_are_read_in_every_way(room: Room) -> None:
    """Server-sent events, long polling and a WebSocket, at one URL; who listens there is not present by it."""
    source = await EventSource.open(await room.running.connect(), room.presence)
    await source.opened()
    offset = json.loads((await room.running.ask("GET", room.presence)).body)["offset"]
    wire = await room.running.connect()
    await wire.send(request("GET", f"{room.presence}?offset={offset}", {"Prefer": "wait=20"}))
    await until(lambda: room.running.waiters("__presence/room") == 1)
    host, port = room.running.server.address
    async with connect_websocket(f"ws://{host}:{port}{room.presence}") as socket:
        await room.poll("ann")
        expected = {"event": "join", "member": "ann", "time_ms": START_MS}
        assert json.loads((await source.next()).data) == expected
        assert json.loads((await wire.response()).body) == [expected]
        assert json.loads(await socket.recv()) == expected
    assert await room.here() == {"ann": ["polling"]}


async def test_a_stream_of_joins_that_has_expired_begins_with_who_is_there(room: Room) -> None:
    """It goes away when nobody uses it; who asks for it then is told of all who are present, as joins of then."""
    source = await room.listen("ann")
    await room.poll("bob")
    room.pass_(LEASE_S)
    room.pass_(4000)
    room.running.hub.log.retention.expire(room.clock.wall_ms())
    assert "__presence/room" not in room.running.hub.log._catalog.streams
    assert await room.told() == [("join", "ann")]
    await room.poll("cid")
    assert await room.told() == [("join", "ann"), ("join", "cid")]
    await room.quits(source)


async def test_it_is_in_memory_and_the_hubs_own(room: Room) -> None:
    """It cannot be written, is not listed, and is of memory durability also where others are on disk."""
    await room.poll("ann")
    assert (await room.running.ask("POST", "/v1/stream/__presence/room", JSON, b"1")).status == 404
    assert json.loads((await room.running.ask("GET", "/v1/stream/")).body)["streams"][0]["path"] == "room"
    config = room.running.hub.log.find("__presence/room").config
    assert config.durability is Durability.MEMORY
    assert config.ttl_s
    for method in ("POST", "PUT", "DELETE"):
        answer = await room.running.ask(method, room.presence, JSON, b"1")
        assert (answer.status, answer["Allow"]) == (405, "GET, OPTIONS")


# -- what is refused


@pytest.mark.parametrize("name", ["", "a%0Ab", "x" * 129])
async def test_a_name_is_short_and_printable(room: Room, name: str) -> None:
    """400 ``member-invalid``, and nobody joins."""
    answer = await room.running.ask("GET", f"{room.target}?member={name}")
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "member-invalid")
    assert await room.told() == []


async def test_no_more_are_present_than_may_be(small_room: Room) -> None:
    """The third is refused, and may read without a name; when one has left there is room."""
    room = small_room
    await room.poll("ann")
    await room.poll("bob")
    for headers in ({}, {"Accept": "text/event-stream"}, {"Prefer": "wait=9"}):
        answer = await room.running.ask("GET", f"{room.target}?member=cid", headers)
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "presence-full")
    assert await room.running.body_of(room.target) == b"[1]"
    room.pass_(LEASE_S)
    await room.poll("cid")
    assert await room.here() == {"cid": ["polling"]}


async def test_there_is_no_presence_where_there_is_no_stream(room: Room) -> None:
    """Neither by asking for it, nor by reading what is not there."""
    for target in ("/v1/presence/none", "/v1/presence/none?offset=-1", "/v1/stream/none?member=ann"):
        assert (await room.running.ask("GET", target)).status == 404
    assert (await room.running.ask("GET", "/v1/presence/__call/x")).status == 404
    assert room.running.hub.present.count == 0


async def test_a_read_that_is_refused_is_no_sign_of_life(room: Room) -> None:
    """Only a request that is answered makes its member present."""
    answer = await room.running.ask("GET", f"{room.target}?offset=nowhere&member=ann")
    assert answer.status == 400
    assert await room.here() == {}


async def test_answers_to_members_are_not_kept(room: Room) -> None:
    """A cache, the hub's own too, that gave an answer again would keep the member's lease from being renewed."""
    target = f"{room.target}?offset=-1&member=ann"
    wire = await room.running.connect()
    for _ in range(3):
        assert (await wire.ask("GET", target))["Cache-Control"] == "no-store"
        room.pass_(LEASE_S - 1)
    assert await room.here() == {"ann": ["polling"]}


# -- the clients


async def test_the_python_client_is_a_member_and_tells_who_is(room: Room) -> None:
    """``read(member=...)`` over ``/v1/connect``; ``presence`` and ``presence_events``."""
    host, port = room.running.server.address
    async with connect(f"http://{host}:{port}") as client:
        reader = client.read("room", member="ann")
        await anext(reader)
        present = await client.presence("room")
        assert [(member.member, member.ways) for member in present.members] == [("ann", ["multiplexing"])]
        events = client.presence_events("room", present.offset)
        await room.poll("bob")
        event = await anext(events)
        assert (event.event, event.member, event.time_ms) == ("join", "bob", START_MS)
        first: Any = await anext(client.presence_events("room"))
        assert first.member == "ann"
        await reader.aclose()  # type: ignore[attr-defined]
        await until(lambda: room.running.hub.present.connections == 0)
        room.pass_(LEASE_S)
        assert {(await anext(events)).member, (await anext(events)).member} == {"ann", "bob"}


async def test_a_channel_is_no_member_of_what_is_the_hubs_own(room: Room) -> None:
    """Presence at presence is refused, and nobody joins."""
    host, port = room.running.server.address
    async with connect(f"http://{host}:{port}") as client:
        with pytest.raises(BadRequest) as refused:
            await anext(client.read("__presence/room", member="ann"))
        assert refused.value.code == "member-invalid"
        assert room.running.hub.present.count == 0


async def test_the_hubs_own_process_reads_as_a_member(room: Room) -> None:
    """``hub.read(member=...)``, ``hub.presence`` and ``hub.presence_events``."""
    hub = room.running.hub
    reader = hub.read("room", member="ann")
    await anext(reader)
    present = await hub.presence("room")
    assert [(member.member, member.ways) for member in present.members] == [("ann", ["in-process"])]
    assert (await anext(hub.presence_events("room"))).event == "join"
    await reader.aclose()  # type: ignore[attr-defined]
    room.pass_(LEASE_S)
    assert await room.here() == {}
    with pytest.raises(BadRequest) as refused:
        await anext(hub.read("rooms/**", member="ann"))
    assert refused.value.code == "glob-member"


async def test_the_command_line_tells_who_is_present(room: Room) -> None:
    """As lines, or as JSON."""
    host, port = room.running.server.address
    source = await room.listen("ann")

    async def run(*arguments: str) -> str:
        where = ["--hub", f"http://{host}:{port}"]
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["presence", "room", *where, *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert (await run()).startswith("ann  since ")
    assert json.loads(await run("--json"))["ways"] == ["sse"]
    await room.quits(source)
