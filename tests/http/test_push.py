"""Push over a WebSocket: bare, and with ``wayside.v1``'s credit and offsets. The client is the ``websockets`` package's,
but for what a good client never does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close, Frame, Opcode
from websockets.typing import Subprotocol

from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import PATIENCE_S, until
from tests.support.websocket import receive, receive_rest
from tests.support.wire import Response, Wire, request

V1 = Subprotocol("wayside.v1")


async def _is_silent(hub: Running, socket: ClientConnection) -> bool:
    """Whether nothing comes: what was sent before the answer to a ping would have come before it."""
    await (await socket.ping())
    await hub.ask("GET", "/healthz")
    await (await socket.ping())
    try:
        async with asyncio.timeout(0):
            await socket.recv()
    except TimeoutError:
        return True
    return False


# -- bare


async def test_a_bare_client_gets_each_record_as_a_message(memory: Running) -> None:
    """Without a subprotocol history and news come as they are, one text message for each record."""
    target = await memory.create("a", JSON, b'[{"n": 1},2]')
    async with connect(memory.websocket_url(target)) as socket:
        assert socket.subprotocol is None
        assert await receive(socket, 2) == ['{"n": 1}', "2"]
        await memory.append(target, b"[3,4]", JSON)
        assert await receive(socket, 2) == ["3", "4"]


async def test_bytes_are_binary_messages(memory: Running) -> None:
    """Records of a stream of bytes are binary messages."""
    target = await memory.create("a", BYTES, b"\x00\xff")
    async with connect(memory.websocket_url(target)) as socket:
        assert await socket.recv() == b"\x00\xff"


async def test_text_that_is_not_utf_8_does_not_break_the_connection(memory: Running) -> None:
    """A text stream may hold any bytes; a WebSocket may not carry them as text (RFC 6455 section 8.1), so they come in
    a form that a client can read, and the records behind them too."""
    target = await memory.create("a", {"Content-Type": "text/plain; charset=iso-8859-1"})
    for record in (b"caf\xe9", b"end"):
        await memory.append(target, record, {"Content-Type": "text/plain; charset=iso-8859-1"})
    for offered in (None, [V1]):
        async with connect(memory.websocket_url(target), subprotocols=offered) as socket:
            if offered:
                await socket.send('{"credit": 5}')
            first, second = await receive(socket, 2)
            if offered:
                envelope = json.loads(first)
                assert (envelope["encoding"], base64.b64decode(envelope["data"])) == ("base64", b"caf\xe9")
                assert json.loads(second)["data"] == "end"
            else:
                assert (first, second) == (b"caf\xe9", "end")


async def test_a_cursor_says_where_to_begin(memory: Running) -> None:
    """The parameter offset begins a push as it does any read: at an offset, at the start, or now."""
    target = await memory.create("a", JSON, b"[1,2,3]")
    stem = (await memory.ask("GET", target)).offset.partition("_")[0]
    async with connect(memory.websocket_url(f"{target}?offset={stem}_0000000000000002")) as socket:
        assert await socket.recv() == "3"
    async with connect(memory.websocket_url(f"{target}?offset=now")) as socket:
        await until(lambda: memory.followers("push") >= 1)
        await memory.append(target, b"4", JSON)
        assert await socket.recv() == "4"


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("/v1/stream/none", {}, 404),
        ("/v1/stream/a?offset=x", {}, 400),
        ("/v1/stream/a?offset=00000000001_0000000000000001", {}, 410),
        ("/v1/stream/a", {"Sec-WebSocket-Version": "8"}, 400),
    ],
)
async def test_a_handshake_may_be_refused(memory: Running, query: str, headers: dict[str, str], status: int) -> None:
    """What cannot be read is refused before the upgrade, with a problem document."""
    await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    answer = await _handshake(wire, query, headers)
    assert (answer.status, answer["Content-Type"]) == (status, "application/problem+json")
    if "Sec-WebSocket-Version" in headers:
        assert answer["Sec-WebSocket-Version"] == "13"
    assert (await wire.ask("GET", "/healthz")).status == 200
    if status != 400:
        with pytest.raises(InvalidStatus) as refused:
            await connect(memory.websocket_url(query))
        assert refused.value.response.status_code == status


async def test_a_stream_that_closes_closes_the_socket(memory: Running) -> None:
    """At the end of the stream a push is closed with 1000 and the offset of the end, after the last record."""
    target = await memory.create("a", TEXT, b"one")
    async with connect(memory.websocket_url(target)) as live:
        assert await live.recv() == "one"
        closed = await memory.ask("POST", target, {**TEXT, "Stream-Closed": "true"}, b"two")
        assert await receive_rest(live) == ["two"]
        assert (live.close_code, live.close_reason) == (1000, f"closed at={closed.offset}")
    async with connect(memory.websocket_url(target)) as late:
        assert await receive_rest(late) == ["one", "two"]
        assert (late.close_code, late.close_reason) == (1000, f"closed at={closed.offset}")


async def test_a_stream_that_is_deleted_closes_the_socket(memory: Running) -> None:
    """A push of a stream that is deleted is closed with 4404."""
    target = await memory.create("a", TEXT, b"one")
    async with connect(memory.websocket_url(target)) as socket:
        await socket.recv()
        await memory.ask("DELETE", target)
        assert await receive_rest(socket) == []
        assert (socket.close_code, socket.close_reason) == (4404, "deleted")


# -- wayside.v1


async def _credit(socket: ClientConnection, number: int) -> None:
    await socket.send(json.dumps({"credit": number}))


async def test_envelopes_carry_the_offset_after_each_record(memory: Running) -> None:
    """``wayside.v1`` sends each record with its offset, from which a read goes on."""
    target = await memory.create("a", JSON, b'[{"n":1},"two",null]')
    async with connect(memory.websocket_url(target), subprotocols=[Subprotocol("other"), V1]) as socket:
        assert socket.subprotocol == V1
        await _credit(socket, 10)
        envelopes = [json.loads(message) for message in await receive(socket, 3)]
    assert [e["data"] for e in envelopes] == [{"n": 1}, "two", None]
    for number, envelope in enumerate(envelopes):
        rest = await memory.ask("GET", f"{target}?offset={envelope['offset']}")
        assert len(json.loads(rest.body)) == 2 - number


async def test_envelopes_of_text_and_bytes(memory: Running) -> None:
    """Text comes as a JSON string, bytes as base64 that the envelope says."""
    texts = await memory.create("a", TEXT, 'x"\n\u20ac\x01'.encode())
    data = await memory.create("b", BYTES, b"\x00\xff")
    async with connect(memory.websocket_url(texts), subprotocols=[V1]) as socket:
        await _credit(socket, 1)
        assert json.loads(await socket.recv())["data"] == 'x"\n\u20ac\x01'
    async with connect(memory.websocket_url(data), subprotocols=[V1]) as socket:
        await _credit(socket, 1)
        envelope = json.loads(await socket.recv())
        assert (envelope["encoding"], base64.b64decode(envelope["data"])) == ("base64", b"\x00\xff")


async def test_nothing_is_sent_without_credit(memory: Running) -> None:
    """A client gets as many records as it has granted, of history and of news, and no more until it grants more."""
    target = await memory.create("a", JSON, b"[0,1,2,3,4]")
    async with connect(memory.websocket_url(target), subprotocols=[V1]) as socket:
        assert await _is_silent(memory, socket)
        expected = 0
        for grant in (1, 2, 1):
            await _credit(socket, grant)
            for message in await receive(socket, grant):
                assert json.loads(message)["data"] == expected
                expected += 1
            assert await _is_silent(memory, socket)
        await _credit(socket, 3)
        assert [json.loads(m)["data"] for m in await receive(socket, 1)] == [4]
        await memory.append(target, b"[5,6,7,8]", JSON)
        assert [json.loads(m)["data"] for m in await receive(socket, 2)] == [5, 6]
        assert await _is_silent(memory, socket)
        await memory.append(target, b"9", JSON)
        assert await _is_silent(memory, socket)
        await _credit(socket, 100)
        assert [json.loads(m)["data"] for m in await receive(socket, 3)] == [7, 8, 9]
        await memory.append(target, b"[10]", JSON)
        assert [json.loads(m)["data"] for m in await receive(socket, 1)] == [10]


async def test_a_client_without_credit_holds_up_nobody(memory: Running) -> None:
    """Clients with different credit at one stream each get what is theirs, once, in order."""
    target = await memory.create("a", JSON)
    sockets = [await connect(memory.websocket_url(target), subprotocols=[V1]) for _ in range(4)]
    for grant, socket in zip((0, 7, 50, 1000), sockets, strict=True):
        if grant:
            await _credit(socket, grant)
    for number in range(100):
        await memory.append(target, b"%d" % number, JSON)
    for grant, socket in zip((0, 7, 50, 100), sockets, strict=True):
        assert [json.loads(m)["data"] for m in await receive(socket, grant)] == list(range(grant))
        assert await _is_silent(memory, socket)
    for grant, socket in zip((0, 7, 50), sockets, strict=False):
        await _credit(socket, 1000)
        assert [json.loads(m)["data"] for m in await receive(socket, 100 - grant)] == list(range(grant, 100))
    for socket in sockets:
        await socket.close()


@pytest.mark.parametrize(
    "message",
    ["", "x", "{}", "[]", "1", '{"credit": 0}', '{"credit": -1}', '{"credit": 1.5}', '{"credit": "1"}',
     '{"credit": true}', '{"credit": null}', '{"credit": 1000001}', '{"credit": 1e99}', '{"credit": 99999999999999999999}',
     "[" * 100_000],
)  # fmt: skip
async def test_bad_credit_closes_the_socket(memory: Running, message: str) -> None:
    """A message that grants no credit closes the socket with 1008 and says what to send; others go on."""
    target = await memory.create("a", JSON, b"[1]")
    async with (
        connect(memory.websocket_url(target)) as other,
        connect(memory.websocket_url(target), subprotocols=[V1]) as socket,
    ):
        assert await other.recv() == "1"
        await socket.send(message)
        assert await receive_rest(socket) == []
        assert socket.close_code == 1008
        assert "credit" in (socket.close_reason or "")
        await until(lambda: memory.followers("push") == 1)
        await memory.append(target, b"2", JSON)
        assert await other.recv() == "2"


async def test_the_end_is_told_without_credit(memory: Running) -> None:
    """A client that has read everything and has no credit left is told the end; one that has not read it is not."""
    target = await memory.create("a", JSON, b"[1]")
    async with (
        connect(memory.websocket_url(target), subprotocols=[V1]) as done,
        connect(memory.websocket_url(target), subprotocols=[V1]) as behind,
    ):
        await _credit(done, 1)
        await receive(done, 1)
        closed = await memory.ask("POST", target, {"Stream-Closed": "true"}, b"")
        (said,) = await receive_rest(done)
        assert json.loads(said) == {"closed": True, "offset": closed.offset}
        assert done.close_code == 1000
        assert await _is_silent(memory, behind)
        await _credit(behind, 1)
        last, said = await receive_rest(behind)
        assert json.loads(last)["data"] == 1
        assert json.loads(said) == {"closed": True, "offset": closed.offset}


# -- frames


async def test_pings_are_answered(memory: Running) -> None:
    """A ping is answered with its payload, in the middle of records too."""
    target = await memory.create("a", JSON, b"[1]")
    async with connect(memory.websocket_url(target)) as socket:
        async with asyncio.timeout(PATIENCE_S):
            await (await socket.ping(b"one"))
            await memory.append(target, b"[2]", JSON)
            await (await socket.ping(b"x" * 125))
        assert await receive(socket, 2) == ["1", "2"]


async def test_silence_is_broken_by_pings(serve: Serve) -> None:
    """After ``heartbeat_s`` without a record the hub pings, and records come on."""
    hub = await serve(heartbeat_s=1.0)
    target = await hub.create("a", JSON)
    wire = await hub.connect()
    assert (await _handshake(wire, target)).status == 101
    assert await wire.exactly(2) == b"\x89\x00"
    await wire.send(Frame(Opcode.PONG, b"").serialize(mask=True))
    await hub.append(target, b"1", JSON)
    assert await wire.exactly(3) == b"\x81\x011"


async def test_a_message_may_come_in_fragments(memory: Running) -> None:
    """Credit in fragments, with pings between them, is credit."""
    target = await memory.create("a", JSON, b"[1,2,3]")

    async def pieces(socket: ClientConnection) -> AsyncIterator[str]:
        for piece in ('{"cr', "", "edit", '": ', "2", "}"):
            yield piece
            await (await socket.ping())

    async with connect(memory.websocket_url(target), subprotocols=[V1]) as socket:
        async with asyncio.timeout(PATIENCE_S):
            await socket.send(pieces(socket))
        assert [json.loads(m)["data"] for m in await receive(socket, 2)] == [1, 2]
        assert await _is_silent(memory, socket)


@pytest.mark.parametrize("fragments", [1, 2, 3])
async def test_a_binary_message_is_no_credit(memory: Running, fragments: int) -> None:
    """A binary message is treated alike whether it comes whole or in fragments, and never read as text."""
    target = await memory.create("a", JSON, b"[1,2,3]")
    grant = b'{"credit": 1}'
    pieces = {1: [grant], 2: [b"", grant], 3: [b"", grant, b""]}[fragments]
    async with connect(memory.websocket_url(target), subprotocols=[V1]) as socket:
        await socket.send(iter(pieces) if fragments > 1 else grant)
        try:
            assert await _is_silent(memory, socket)
        except ConnectionClosed:
            assert socket.close_code in (1003, 1008)
            return
        await _credit(socket, 1)
        assert [json.loads(m)["data"] for m in await receive(socket, 1)] == [1]
        assert await _is_silent(memory, socket)


async def test_bare_clients_may_say_what_they_like(memory: Running) -> None:
    """Messages of a client without a subprotocol are ignored, text, binary, and in fragments."""
    target = await memory.create("a", JSON, b"[1]")
    async with connect(memory.websocket_url(target)) as socket:
        await socket.send("hello")
        await socket.send(b"\xff\xfe")
        await socket.send(iter(["a", "b"]))
        await socket.send(iter([b"\xff", b"\xfe\xff"]))
        assert await socket.recv() == "1"
        await memory.append(target, b"2", JSON)
        assert await socket.recv() == "2"


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going away"), (4000, "x" * 123)])
async def test_a_client_may_close(memory: Running, code: int, reason: str) -> None:
    """The hub answers a client's close with the same code, and forgets the follower."""
    target = await memory.create("a", JSON, b"[1]")
    socket = await connect(memory.websocket_url(target))
    assert await socket.recv() == "1"
    await socket.close(code, reason)
    assert socket.protocol.close_rcvd is not None
    assert socket.protocol.close_rcvd.code == code
    await until(lambda: memory.followers("push") == 0 and not memory.server.connections)
    await memory.append(target, b"2", JSON)


async def test_a_client_that_vanishes_is_forgotten(memory: Running) -> None:
    """A WebSocket whose connection is reset leaves no follower behind."""
    target = await memory.create("a", JSON, b"[1]")
    wire = await memory.connect()
    await _handshake(wire, target)
    await until(lambda: memory.followers("push") == 1)
    wire.reset()
    await until(lambda: memory.followers("push") == 0)


# -- what a good client never does


async def _handshake(wire: Wire, target: str, headers: dict[str, str] | None = None, after: bytes = b"") -> Response:
    lines = {
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
    }
    await wire.send(request("GET", target, lines | (headers or {})) + after)
    return await wire.response()


async def _closes_with(wire: Wire, code: int, before: bytes = b"") -> None:
    """The hub sends ``before``, one close frame of that code, and ends the connection."""
    assert await wire.exactly(len(before)) == before
    start = await wire.exactly(2)
    assert start[:1] == b"\x88", start
    payload = await wire.exactly(start[1])
    assert int.from_bytes(payload[:2], "big") == code
    with contextlib.suppress(OSError):
        wire.half_close()
    assert await wire.ended(), "something follows the close frame"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(Frame(Opcode.TEXT, b"x").serialize(mask=False), 1002, id="not masked"),
        pytest.param(b"\x83\x80\0\0\0\0", 1002, id="a reserved opcode"),
        pytest.param(b"\xc1\x80\0\0\0\0", 1002, id="a reserved bit"),
        pytest.param(Frame(Opcode.CONT, b"x").serialize(mask=True), 1002, id="a fragment of nothing"),
        pytest.param(b"\x09\x80\0\0\0\0", 1002, id="a ping in fragments"),
        pytest.param(Frame(Opcode.TEXT, b"\xff").serialize(mask=True), 1007, id="not UTF-8"),
        pytest.param(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0", 1009, id="a terabyte"),
        pytest.param(b"\x88\x81\0\0\0\0\x03", 1002, id="a close of one byte"),
        pytest.param(Frame(Opcode.CLOSE, Close(1001, "x").serialize()).serialize(mask=True), 1001, id="a close"),
    ],
)
async def test_a_broken_frame_closes_the_socket(memory: Running, data: bytes, code: int) -> None:
    """What RFC 6455 forbids closes the socket with its code, one close frame, and the follower is forgotten."""
    target = await memory.create("a", JSON, b"[1]")
    wire = await memory.connect()
    assert (await _handshake(wire, target)).status == 101
    assert await wire.exactly(3) == b"\x81\x011"
    await wire.send(data)
    await _closes_with(wire, code)
    await until(lambda: memory.followers("push") == 0)
    await memory.append(target, b"2", JSON)


async def test_messages_without_end_are_refused(serve: Serve) -> None:
    """A message in fragments may not grow beyond the bound of a message."""
    hub = await serve(body_memory_bytes_max=10_000)
    target = await hub.create("a", JSON)
    wire = await hub.connect()
    await _handshake(wire, target, {"Sec-WebSocket-Protocol": "wayside.v1"})
    await wire.send(Frame(Opcode.TEXT, b"x" * 4000, fin=False).serialize(mask=True))
    for _ in range(3):
        await wire.send(Frame(Opcode.CONT, b"x" * 4000, fin=False).serialize(mask=True))
    await _closes_with(wire, 1009)


@pytest.mark.parametrize("reply", ["close", "credit first", "nothing"])
async def test_the_hub_closes_once(memory: Running, reply: str) -> None:
    """When a push ends the hub sends one close frame, takes the client's, and ends the connection; whatever a client
    still sends is not answered with another."""
    target = await memory.create("a", JSON)
    wire = await memory.connect()
    await _handshake(wire, target, {"Sec-WebSocket-Protocol": "wayside.v1"})
    closed = await memory.ask("POST", target, {"Stream-Closed": "true"}, b"")
    text = json.dumps({"closed": True, "offset": closed.offset}).encode()
    await wire.until(text)
    frame = await wire.exactly(2)
    await wire.exactly(frame[1])
    if reply == "credit first":
        await wire.send(Frame(Opcode.TEXT, b"nonsense").serialize(mask=True))
    if reply != "nothing":
        await wire.send(Frame(Opcode.CLOSE, Close(1000, "").serialize()).serialize(mask=True))
    else:
        wire.half_close()
    assert await wire.ended()


async def test_frames_behind_the_handshake_are_read(memory: Running) -> None:
    """Credit in the packet of the handshake counts, though a client should wait for the answer."""
    target = await memory.create("a", JSON, b"[1,2]")
    wire = await memory.connect()
    grant = Frame(Opcode.TEXT, b'{"credit":1}').serialize(mask=True)
    answer = await _handshake(wire, target, {"Sec-WebSocket-Protocol": "wayside.v1"}, after=grant)
    assert (answer.status, answer["Sec-WebSocket-Protocol"]) == (101, "wayside.v1")
    assert (await wire.until(b'"data":1}')).startswith(b"\x81")


async def test_a_handshake_behind_other_requests_is_taken(memory: Running) -> None:
    """A WebSocket may begin on a connection that has served requests, and behind one in the same packet."""
    target = await memory.create("a", JSON, b"[1]")
    wire = await memory.connect()
    await wire.ask("GET", target)
    await wire.send(request("GET", "/healthz"))
    assert (await wire.response()).status == 200
    assert (await _handshake(wire, target)).status == 101
    assert await wire.exactly(3) == b"\x81\x011"


@pytest.mark.parametrize("missing", ["Sec-WebSocket-Key", "Sec-WebSocket-Version", "Connection"])
async def test_half_a_handshake_is_no_handshake(memory: Running, missing: str) -> None:
    """A request to upgrade without what RFC 6455 requires is refused with 400."""
    target = await memory.create("a", JSON, b"[1]")
    wire = await memory.connect()
    answer = await _handshake(wire, target, {missing: "keep-alive" if missing == "Connection" else ""})
    assert answer.status == 400
