"""Bounds of a connection: the size of a head, the number of connections, and time. (Bodies: test_bodies.)

The server's timer ticks once a second, so each test of time takes a second or two.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.support.events import EventSource
from tests.support.server import TEXT, Serve
from tests.support.waiting import until
from tests.support.wire import Wire, chunked, post, request


@pytest.mark.parametrize("how", ["whole", "in parts", "unfinished", "one field", "target", "behind another"])
async def test_a_head_over_the_limit_is_refused(serve: Serve, how: str) -> None:
    """A request head over its limit is refused with 431, in however many packets it comes, and not executed."""
    hub = await serve(header_bytes_max=4096)
    target = await hub.create("a")
    fields = {f"X-{n}": "x" * 90 for n in range(60)}
    head = post(target, b"smuggled", fields)
    wire = await hub.connect()
    if how == "whole":
        await wire.send(head)
    elif how == "in parts":
        await wire.send_apart(*(head[i : i + 500] for i in range(0, len(head), 500)))
    elif how == "unfinished":
        await wire.send_apart(head[:3000], head[3000:5000])
    elif how == "one field":
        await wire.send_apart(b"GET / HTTP/1.1\r\nX: ", *[b"x" * 1000] * 5)
    elif how == "target":
        await wire.send(request("GET", "/" + "x" * 5000))
    else:
        await wire.send(request("GET", "/healthz") + head)
        assert (await wire.response()).status == 200
    assert (await wire.last_response()).status == 431
    assert await hub.body_of(target) == b""


async def test_a_head_within_the_limit_is_taken(serve: Serve) -> None:
    """A request head of nearly the limit is answered, alone or behind another, in one packet or in several."""
    hub = await serve(header_bytes_max=4096)
    wire = await hub.connect()
    head = request("GET", "/healthz", {f"X-{n}": "x" * 90 for n in range(36)})
    assert 3500 < len(head) < 4096
    await wire.send(head + head + head)
    for _ in range(3):
        assert (await wire.response()).status == 200
    await wire.send_apart(*(head[i : i + 500] for i in range(0, len(head), 500)))
    assert (await wire.response()).status == 200


@pytest.mark.parametrize("how", ["many", "one", "extension"])
async def test_trailers_without_end_are_refused(serve: Serve, how: str) -> None:
    """Trailers and chunk extensions are bounded as a head is: a client cannot go on with them for ever."""
    hub = await serve(header_bytes_max=4096)
    target = await hub.create("a")
    wire = await hub.connect()
    await wire.send(request("POST", target, {**TEXT, "Transfer-Encoding": "chunked"}))
    if how == "many":
        await wire.send_apart(chunked(b"abc")[:-2], *[b"X-Field: value\r\n" * 50] * 20)
    elif how == "one":
        await wire.send_apart(chunked(b"abc")[:-2] + b"X: ", *[b"x" * 1000] * 20)
    else:
        await wire.send_apart(b"3;", *[b"x" * 1000] * 20)
    answer = await wire.last_response()
    assert answer.status in (400, 413, 431)
    assert await hub.body_of(target) == b""


async def test_connections_over_the_limit_are_refused(serve: Serve) -> None:
    """A connection too many is told so with 503 and Retry-After, and closed; when another goes there is room again."""
    hub = await serve(connections_max=3)
    wires = [await hub.connect() for _ in range(3)]
    for wire in wires:
        assert (await wire.ask("GET", "/healthz")).status == 200
    for _ in range(3):
        extra = await hub.connect()
        answer = await extra.last_response()
        assert (answer.status, answer["Retry-After"]) == (503, "1")
        extra.close()
    for wire in wires:
        assert (await wire.ask("GET", "/healthz")).status == 200
    wires[0].close()
    await until(lambda: len(hub.server.connections) == 2)
    assert (await (await hub.connect()).ask("GET", "/healthz")).status == 200


async def test_refused_connections_take_nobody_s_place(serve: Serve) -> None:
    """Clients that were refused and do not hang up do not keep others out."""
    hub = await serve(connections_max=3)
    wires = [await hub.connect() for _ in range(3)]
    for wire in wires:
        await wire.ask("GET", "/healthz")
    for _ in range(5):
        await (await hub.connect()).response()
    before = len(hub.server.connections)
    wires[0].close()
    await until(lambda: len(hub.server.connections) < before)
    assert (await (await hub.connect()).ask("GET", "/healthz")).status == 200


async def _trickle(wire: Wire, data: bytes, pause_s: float) -> None:
    for byte in data:
        try:
            await wire.send(bytes([byte]))
        except (BrokenPipeError, ConnectionResetError):
            return
        await asyncio.sleep(pause_s)


async def test_time_runs_out_for_the_slow_and_the_idle_only(serve: Serve) -> None:
    """A head or a body that stops or trickles is refused with 408, an idle connection is closed without a word; who
    waits for an answer, or reads one that is open, is not disturbed."""
    hub = await serve(header_timeout_s=0.2, idle_timeout_s=0.3)
    target = await hub.create("a", TEXT, b"one")
    poll = await hub.connect()
    await poll.send(request("GET", f"{target}?offset=now", {"Prefer": "wait=20"}))
    events = await EventSource.open(await hub.connect(), target)
    assert (await events.next()).data == "one"
    behind = await hub.connect()
    await behind.send(request("GET", f"{target}?offset=now", {"Prefer": "wait=20"}) + b"GET /hea")

    stopped = await hub.connect()
    await stopped.send(b"GET /healthz HTTP/1.1\r\nHo")
    trickling = await hub.connect()
    trickle = asyncio.create_task(_trickle(trickling, b"GET / HTTP/1.1\r\nX: " + b"x" * 100, 0.05))
    body = await hub.connect()
    await body.send(request("POST", target, {**TEXT, "Content-Length": "10"}) + b"12345")
    chunks = await hub.connect()
    await chunks.send(request("POST", target, {**TEXT, "Transfer-Encoding": "chunked"}) + b"3\r\nab")
    expecting = await hub.connect()
    await expecting.send(request("POST", target, {**TEXT, "Content-Length": "10", "Expect": "100-continue"}))
    silent = await hub.connect()
    used = await hub.connect()
    assert (await used.ask("GET", "/healthz")).status == 200

    assert (await expecting.response()).status == 100
    for wire in (stopped, trickling, body, chunks, expecting):
        answer = await wire.last_response()
        assert answer.status == 408
        assert b'"retry":true' in answer.body
    await trickle
    assert await silent.ended()
    assert await used.ended()
    assert poll.is_quiet()
    assert behind.is_quiet()
    await hub.append(target, b"two")
    assert (await poll.response()).body == b"two"
    assert (await events.next()).data == "two"
    assert (await behind.response()).body == b"two"
    await behind.send(b"lthz HTTP/1.1\r\nHost: hub\r\n\r\n")
    assert (await behind.response()).status == 200
    assert await hub.body_of(target) == b"onetwo"


async def test_a_slow_body_that_goes_on_is_taken(serve: Serve) -> None:
    """A body may take longer than the timeout as a whole, as long as it goes on."""
    hub = await serve(header_timeout_s=1.5)
    target = await hub.create("a")
    wire = await hub.connect()
    await wire.send(request("POST", target, {**TEXT, "Content-Length": "30"}))
    await _trickle(wire, b"x" * 30, 0.1)
    assert (await wire.response()).status == 204
