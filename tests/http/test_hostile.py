"""Clients that ask for much and take nothing, that break in odd places, or send what nobody sends: the hub holds little for
them, forgets them, and serves everybody else."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from tests.support.disk import Gate
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import until
from tests.support.wire import Wire, request

EVENTS = {"Accept": "text/event-stream"}
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def _masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame with a mask of zeros."""
    assert len(payload) < 126
    return bytes([(0x80 if final else 0) | opcode, 0x80 | len(payload)]) + bytes(4) + payload


# -- a bad request among good ones


async def test_a_long_poll_that_cannot_be_answered_is_refused_at_once(disk: Running, gate: Gate) -> None:
    """A parameter given twice is refused when it comes, not when the wait is over: what shares its commit is unharmed."""
    target = await disk.create("a")
    answer = await disk.ask("GET", f"{target}?offset=now&live=long-poll&cursor=1&cursor=2")
    assert answer.status == 400
    assert b"parameter-repeated" in answer.body


async def test_one_callback_that_fails_stops_no_other(disk: Running, gate: Gate) -> None:
    """When something of ours raises while readers are told of a commit, the other readers, the other streams and the
    creations of that commit are told all the same, and the mistake is reported."""
    target = await disk.create("a")
    other = await disk.create("b")
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context["exception"]))

    def fail() -> None:
        raise ZeroDivisionError

    polls = [await disk.connect() for _ in range(10)]
    for poll in polls:
        await poll.send(request("GET", f"{target}?offset=now", {"Prefer": "wait=20"}))
        disk.hub.log.find("a").wait(partial(fail))
    await until(lambda: disk.waiters("a") == 20)
    gate.shut()
    first, second, third, fourth = [await disk.connect() for _ in range(4)]
    await first.send(request("POST", target, TEXT, b"0"))
    await gate.reached()
    await second.send_apart(request("POST", target, TEXT, b"1"))
    await third.send_apart(request("POST", other, TEXT, b"2"))
    await fourth.send_apart(request("PUT", "/v1/stream/c", TEXT))
    gate.open()
    assert (await first.response()).status == 204
    assert (await second.response()).status == 204
    assert (await third.response()).status == 204
    assert (await fourth.response()).status == 201
    for poll in polls:
        assert (await poll.response()).body[:1] == b"0"
    assert [type(report) for report in reports] == [ZeroDivisionError] * 10
    assert await disk.body_of("/v1/stream/c") == b""


# -- gone without being noticed


async def test_a_reader_that_goes_with_requests_unanswered_is_forgotten(memory: Running) -> None:
    """A follower whose client pipelined more requests and then went is noticed when it is written to."""
    target = await memory.create("a")
    for _ in range(5):
        wire = await memory.connect()
        await wire.send(request("GET", f"{target}?offset=now", EVENTS) + request("GET", "/healthz"))
        assert (await wire.head()).status == 200
        await until(lambda: memory.followers("sse") > 0)
        wire.reset()
    for _ in range(3):
        await memory.append(target, b"x")
    await until(lambda: memory.followers("sse") == 0)
    await until(lambda: len(memory.server.connections) == 0)


async def test_a_push_behind_another_request_is_heard(memory: Running) -> None:
    """An upgrade that was pipelined behind a long poll grants credit, and is noticed when it goes."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    push = request("GET", target, {**HANDSHAKE, "Sec-WebSocket-Protocol": "wayside.v1"})
    await wire.send(request("GET", f"{target}?offset=now", {"Prefer": "wait=20"}) + push)
    await until(lambda: memory.waiters("a") == 1)
    await memory.append(target, b"two")
    assert (await wire.response()).body == b"two"
    assert (await wire.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    await wire.send(_masked(1, b'{"credit":1}'))
    assert await wire.until(b'"data":"one"}')
    wire.reset()
    await until(lambda: memory.followers("push") == 0)


# -- who takes nothing


async def test_pings_that_nobody_reads_the_answers_of_are_not_answered_without_end(memory: Running) -> None:
    """A client that pings and does not read is not read from any more once its answers fill the write buffer."""
    target = await memory.create("a")
    wire = await memory.connect(receive_buffer=4096)
    await wire.send(request("GET", f"{target}?offset=now", HANDSHAKE))
    assert (await wire.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    connection = memory.connection_of(wire)
    pings = _masked(9, b"p" * 125) * 2000

    async def ask() -> None:
        while True:
            await wire.send(pings)

    asking = asyncio.create_task(ask())
    await until(lambda: connection.paused)
    largest = 0
    for _ in range(500):
        await asyncio.sleep(0)
        largest = max(largest, connection.transport.get_write_buffer_size())
    asking.cancel()
    assert largest <= memory.hub.limits.write_buffer_bytes_max + 1024 * 1024  # what one read brings


async def test_fragments_of_nothing_are_not_kept(memory: Running) -> None:
    """Continuation frames without bytes take no memory; the message they belong to is still read."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    await wire.send(request("GET", target, {**HANDSHAKE, "Sec-WebSocket-Protocol": "wayside.v1"}))
    assert (await wire.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    await wire.send(_masked(1, b'{"credit"', final=False) + _masked(0, b"", final=False) * 10_000)
    await wire.send(_masked(0, b":1", final=False) + _masked(0, b"}"))
    assert await wire.until(b'"data":"one"}')
    assert memory.connection_of(wire)._socket._fragments == []


async def test_small_requests_of_one_packet_do_not_multiply(memory: Running) -> None:
    """Thousands of known requests in one packet are answered as far as the write buffer goes, then they wait."""
    body = b"x" * 15_000
    target = await memory.create("a", BYTES, body)
    question = request("GET", target)
    wire = await memory.connect(receive_buffer=4096)
    for _ in range(2):  # from now on its answer is known
        await wire.send(question)
        await wire.response()
    connection = memory.connection_of(wire)
    sending = asyncio.create_task(wire.send(question * 3000))
    largest = 0
    await until(lambda: connection.paused)
    for _ in range(200):
        await asyncio.sleep(0)
        largest = max(largest, connection.transport.get_write_buffer_size())
    assert largest <= memory.hub.limits.write_buffer_bytes_max + 2 * 16_000
    for _ in range(3000):
        assert (await wire.response()).body == body
    await sending


async def test_a_large_append_is_read_in_steps(serve: Serve) -> None:
    """What a follower that reads nothing makes the hub hold is about one step, however much one append brought."""
    hub = await serve(read_bytes_max=64 * 1024)
    records = [b'"%d%b"' % (number, b"x" * 1000) for number in range(5000)]
    target = await hub.create("a", JSON, b"[" + b",".join(records) + b"]")
    for headers in (EVENTS, {}):
        wire = await hub.connect(receive_buffer=4096)
        await wire.send(request("GET", target, headers))
        assert (await wire.head()).status == 200
        connection = hub.connection_of(wire)
        await until(partial(getattr, connection, "paused"))
        assert connection.transport.get_write_buffer_size() <= 64 * 1024 + 2 * 64 * 1024
        wire.reset()
    assert await hub.body_of(target) == b"[" + b",".join(records) + b"]"


async def test_a_closing_connection_that_takes_nothing_ends(serve: Serve) -> None:
    """A client that asked for the last answer and does not read it does not keep its place for ever."""
    hub = await serve(idle_timeout_s=1, header_timeout_s=1)
    records = b"[" + b",".join([b'"%b"' % (b"x" * 1000)] * 8000) + b"]"
    target = await hub.create("a", JSON, records)
    wires = []
    for _ in range(3):
        wire = await hub.connect(receive_buffer=2048)
        await wire.send(request("GET", f"{target}?offset=-1", {"Connection": "close"}))
        wires.append(wire)
    await until(lambda: len(hub.server.connections) == 3)
    for wire in wires:
        connection = hub.connection_of(wire)
        await until(partial(getattr, connection, "paused"))
        connection.close()  # as after an answer whose bytes are still on their way
        assert connection.transport.get_write_buffer_size() > 0
    await until(lambda: len(hub.server.connections) == 0)


# -- cut, and seen to be cut


@pytest.mark.parametrize("how", ["drain", "damage"])
async def test_a_cut_answer_without_length_is_seen_to_be_cut(serve: Serve, how: str) -> None:
    """An HTTP/1.0 answer ends with its connection: cut, it ends with a reset, never as if it were whole."""
    hub = await serve(disk=True)
    target = await hub.create("a", BYTES)
    for _ in range(12):
        await hub.append(target, b"x" * 1_000_000, BYTES)
    wire = await hub.connect(receive_buffer=4096)
    await wire.send(request("GET", target, version="1.0"))
    connection = hub.connection_of(wire)
    await until(lambda: connection.paused)
    if how == "drain":
        await hub.server.drain(0)
    else:
        connection.abort(RuntimeError("the records cannot be read"))
    with pytest.raises(ConnectionResetError):
        await wire.rest()


# -- shared caches


async def test_a_cache_can_tell_answers_apart(memory: Running) -> None:
    """Whatever else than its URL decides what a cacheable answer holds is named in Vary."""
    target = await memory.create("a", TEXT, b"one")
    first = (await memory.ask("HEAD", target))["Stream-Earliest-Offset"]
    after = await memory.append(target, b"two")
    whole = await memory.ask("GET", f"{target}?offset={first}")
    resumed = await memory.ask("GET", f"{target}?offset={first}", {"Last-Event-ID": after})
    assert (whole.body, resumed.body) == (b"onetwo", b"")
    for answer in (whole, resumed):
        assert {"accept", "last-event-id", "origin", "prefer"} <= set(answer["Vary"].lower().split(", "))


# -- odd


async def test_upgrades_that_are_not_taken_may_be_offered_without_end(memory: Running) -> None:
    """Each request of a long pipeline may offer an upgrade that is not taken."""
    wire = await memory.connect()
    offer = request("GET", "/healthz", {"Connection": "upgrade", "Upgrade": "h2c"})
    sending = asyncio.create_task(wire.send(offer * 3000))
    for _ in range(3000):
        assert (await wire.response()).status == 200
    await sending


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1e2", "0000000010000000", "9" * 5000])
async def test_a_page_is_of_a_sensible_size(memory: Running, limit: str) -> None:
    """A listing's limit is a number from 1 to 1,000."""
    assert (await memory.ask("GET", f"/v1/stream/?limit={limit}")).status == 400


async def test_a_deeply_nested_grant_is_refused(memory: Running) -> None:
    """A credit message that no parser takes ends the push with 1008 like any other that is wrong."""
    target = await memory.create("a")
    wire = await memory.connect()
    await wire.send(request("GET", target, {**HANDSHAKE, "Sec-WebSocket-Protocol": "wayside.v1"}))
    assert (await wire.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    text = b'{"x":' + b"[" * 50_000
    await wire.send(b"\x81\xfe" + len(text[:60_000]).to_bytes(2) + bytes(4) + text[:60_000])
    assert await _close_code(wire) == 1008


async def _close_code(wire: Wire) -> int:
    head = await wire.exactly(2)
    assert head[0] == 0x88, head
    return int.from_bytes((await wire.exactly(head[1]))[:2])
