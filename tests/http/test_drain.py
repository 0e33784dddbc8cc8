"""A hub that stops: every reader is told where to go on, every publisher what became of its append."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.support.disk import Gate
from tests.support.events import EventSource
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import PATIENCE_S, until
from tests.support.websocket import receive_rest
from tests.support.wire import Response, Wire, chunked, post, request


async def _drained(hub: Running, seconds: float = PATIENCE_S) -> None:
    """Drain, and see that it does not take the time it may."""
    async with asyncio.timeout(seconds / 2):
        await hub.server.drain(seconds)
    assert not hub.server.connections


@pytest.mark.parametrize("how", [{"Prefer": "wait=20"}, {}], ids=["Prefer", "live"])
async def test_long_polls_are_answered(memory: Running, how: dict[str, str]) -> None:
    """A long poll that waits is answered with 204 and the offset to go on from, as the last of its connection."""
    target = await memory.create("a", TEXT, b"one")
    offset = (await memory.ask("GET", target)).offset
    wire = await memory.connect()
    live = "" if how else "&live=long-poll"
    await wire.send(request("GET", f"{target}?offset={offset}{live}", how))
    await until(lambda: memory.waiters("a") == 1)
    await _drained(memory)
    answer = await wire.last_response()
    assert (answer.status, answer.offset) == (204, offset)


async def test_event_sources_are_told_where_to_resume(memory: Running) -> None:
    """Plain server-sent events end whole, with the id to resume from as the last, so that a browser comes again."""
    target = await memory.create("a", TEXT, b"one")
    source = await EventSource.open(await memory.connect(), target)
    event = await source.next()
    empty = await EventSource.open(await memory.connect(), f"{target}?offset=now")
    await empty.opened()
    await _drained(memory)
    for each in (source, empty):
        assert await each.rest() == []
        assert each.parser.last_id == event.id
        assert each.parser.retry is not None
        assert await each.wire.ended()


async def test_protocol_event_streams_end_after_their_last_control(memory: Running) -> None:
    """The protocol's events end with a whole response whose last control event says where to resume."""
    target = await memory.create("a", TEXT, b"one")
    source = await EventSource.open(await memory.connect(), f"{target}?offset=-1&live=sse")
    data, control = await source.take(2)
    assert data.data == "one"
    await _drained(memory)
    assert await source.rest() == []
    assert json.loads(control.data)["streamNextOffset"].endswith("_0000000000000001")


@pytest.mark.parametrize("subprotocol", [None, "wayside.v1"])
async def test_websockets_close_with_where_to_resume(memory: Running, subprotocol: str | None) -> None:
    """A WebSocket is closed with 1012 (service restart) and ``resume=OFFSET``, the client's handshake included."""
    target = await memory.create("a", TEXT, b"one")
    offset = (await memory.ask("GET", target)).offset
    offered = [Subprotocol(subprotocol)] if subprotocol else None
    async with connect(memory.websocket_url(target), subprotocols=offered) as socket:
        if subprotocol:
            await socket.send('{"credit": 10}')
        first = await socket.recv()
        assert first == "one" if not subprotocol else json.loads(first)["data"] == "one"
        await _drained(memory)
        rest = await receive_rest(socket)
        assert (socket.close_code, socket.close_reason) == (1012, f"resume={offset}")
        assert [json.loads(message) for message in rest] == ([{"resume": offset}] if subprotocol else [])


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_request_whose_body_is_on_its_way_is_finished(disk: Running, framing: str) -> None:
    """An append of which half has arrived is taken whole and acknowledged, as the last of its connection."""
    target = await disk.create("a")
    wire = await disk.connect()
    if framing == "length":
        parts = [request("POST", target, {**TEXT, "Content-Length": "10"}) + b"12345", b"67890"]
    else:
        body = chunked(b"12345", b"67890")
        parts = [request("POST", target, {**TEXT, "Transfer-Encoding": "chunked"}) + body[:12], body[12:]]
    half_a_head = await disk.connect()
    await half_a_head.send_apart(b"GET /rea")
    await wire.send_apart(parts[0])
    drain = asyncio.create_task(_drained(disk))
    await until(lambda: disk.server.draining)
    await wire.send(parts[1])
    assert (await wire.last_response()).status == 204
    await half_a_head.send(b"dyz HTTP/1.1\r\nHost: hub\r\n\r\n")
    answer = await half_a_head.last_response()
    assert answer.status == 503
    assert json.loads(answer.body)["reason"] == "stopping"
    await drain
    assert disk.hub.log.find("a").tail == 1


async def test_an_append_that_waits_for_the_disk_is_acknowledged(disk: Running, gate: Gate) -> None:
    """Appends under way are acknowledged when the disk has them; those behind them on their connection are not lost
    silently: what was not answered was not executed."""
    target = await disk.create("a", JSON)
    wire, piped = await disk.connect(), await disk.connect()
    gate.shut()
    await wire.send(post(target, b"0", JSON))
    await gate.reached()
    await piped.send(b"".join(post(target, b"%d" % n, JSON) for n in (1, 2, 3)))
    await disk.ask("GET", "/healthz")
    drain = asyncio.create_task(_drained(disk))
    await until(lambda: disk.server.draining)
    gate.open()
    assert (await wire.last_response()).status == 204
    answers: list[Response] = []
    while not answers or not answers[-1].closes:
        answers.append(await piped.response())
    assert all(answer.status == 204 for answer in answers)
    assert await piped.ended()
    await drain
    assert disk.hub.log.find("a").tail == 1 + len(answers)


@pytest.mark.parametrize("content_type", [BYTES, JSON], ids=["bytes", "json"])
async def test_a_long_answer_is_finished(serve: Serve, content_type: dict[str, str]) -> None:
    """A history on its way to a slow reader comes whole: one that ended early would look whole to its reader."""
    hub = await serve(disk=True, stream_cache_bytes_max=1000)
    target = await hub.create("a", content_type)
    body = b"x" * 4_000_000
    await hub.append(target, body if content_type is BYTES else b'"%b"' % body, content_type)
    await hub.append(target, body if content_type is BYTES else b'"%b"' % body, content_type)
    wire = await hub.connect(receive_buffer=4096)
    await wire.send(request("GET", target))
    head = await wire.head()
    first = await wire.chunk()
    drain = asyncio.create_task(hub.server.drain(PATIENCE_S))
    await until(lambda: hub.server.draining)
    got = first + await _chunks(wire)
    await drain
    assert got == (body * 2 if content_type is BYTES else b'["%b","%b"]' % (body, body))
    assert head.offset.endswith(f"{hub.hub.log.find('a').tail:016d}")


async def test_what_takes_longer_than_the_drain_is_cut(serve: Serve) -> None:
    """After its time a drain cuts what is left: half a request is not executed, half an answer has no end."""
    hub = await serve(disk=True, stream_cache_bytes_max=1000)
    target = await hub.create("a", BYTES)
    await hub.append(target, b"x" * 8_000_000, BYTES)
    half = await hub.connect()
    await half.send(request("POST", target, {**BYTES, "Content-Length": "10"}) + b"12345")
    slow = await hub.connect(receive_buffer=4096)
    await slow.send(request("GET", target))
    await slow.head()
    before = hub.hub.log.find("a").tail
    await hub.server.drain(0.1)
    assert not hub.server.connections
    with pytest.raises((AssertionError, ConnectionResetError)):
        await _chunks(slow)
    assert await half.ended()
    assert hub.hub.log.find("a").tail == before


async def test_the_idle_are_closed_and_the_new_are_refused(memory: Running) -> None:
    """Connections without a request are closed at once; nobody can connect any more."""
    used, fresh = await memory.connect(), await memory.connect()
    assert (await used.ask("GET", "/healthz")).status == 200
    await until(lambda: len(memory.server.connections) == 2)
    await _drained(memory)
    assert await used.ended()
    assert await fresh.ended()
    with pytest.raises(ConnectionRefusedError):
        await Wire.connect(memory.server.address)


async def test_everybody_at_once(serve: Serve) -> None:
    """With every kind of client at once a drain ends as soon as all are told, and the hub closes with nothing lost."""
    hub = await serve(disk=True)
    target = await hub.create("a", JSON)
    polls = [await hub.connect() for _ in range(10)]
    for wire in polls:
        await wire.send(request("GET", target, {"Prefer": "wait=20"}))
    sources = [await EventSource.open(await hub.connect(), target) for _ in range(10)]
    sockets: list[Any] = [await connect(hub.websocket_url(target)) for _ in range(10)]
    await until(lambda: hub.waiters("a") == 10 and hub.followers("push") == 10)
    writers = [await hub.connect() for _ in range(10)]
    await hub.append(target, b"[1]", JSON)
    for wire in writers:
        await wire.send(post(target, b"[2]", JSON))
    acknowledged = [await wire.response() for wire in writers]
    await _drained(hub)
    assert [answer.status for answer in acknowledged] == [204] * 10
    offset = max(answer.offset for answer in acknowledged)
    for wire in polls:
        assert (await wire.response()).body.startswith(b"[1")
    for source in sources:
        assert [e.data for e in await source.rest()] == ["1"] + ["2"] * 10
        assert source.parser.last_id == offset
    for socket in sockets:
        messages = await receive_rest(socket)
        assert messages == ["1"] + ["2"] * 10
        assert socket.close_reason == f"resume={offset}"
    await hub.hub.close()


async def _chunks(wire: Wire) -> bytes:
    """The rest of an open answer."""
    got = bytearray()
    while piece := await wire.chunk():
        got += piece
    return bytes(got)
