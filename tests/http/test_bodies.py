"""Request bodies: both framings, trailers, and sizes from nothing to what does not fit into memory."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from tests.support.events import EventSource
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import until
from tests.support.wire import chunked, post, request

CHUNKED = {**TEXT, "Transfer-Encoding": "chunked"}
MIB = 1024 * 1024


async def test_chunks_are_one_body(memory: Running) -> None:
    """A chunked body is one record, whatever its chunks are."""
    target = await memory.create("a", {"Content-Type": "application/json"})
    wire = await memory.connect()
    headers = {**JSON, "Transfer-Encoding": "chunked"}
    for body in (
        chunked(b'{"a":1}'),
        chunked(*(bytes([c]) for c in b'{"a":1}')),
        chunked(b'{"a"', b":1}", last=b"000"),
        b'00007\r\n{"a":1}\r\n0\r\n\r\n',
        b'7;name=value;other="quoted"\r\n{"a":1}\r\n0;last\r\n\r\n',
        b'4\r\n{"a"\r\n3\r\n:1}\r\n0\r\nTrailer: here\r\n\r\n',
    ):
        await wire.send(request("POST", target, headers) + body)
        assert (await wire.response()).status == 204
    assert await memory.body_of(target) == b"[" + b",".join([b'{"a":1}'] * 6) + b"]"


async def test_chunks_may_be_cut_anywhere(memory: Running) -> None:
    """A chunked append and what follows it, cut at every byte, behave as if never cut, also when the head was seen."""
    target = await memory.create("a")
    packet = (
        request("POST", target, CHUNKED) + chunked(b"12\r\n", b"0\r\n\r\n", trailers=b"A: b\r\n") + post(target, b",")
    )
    wire = await memory.connect()
    for cut in range(len(packet)):
        await wire.send_apart(packet[:cut], packet[cut:])
        assert [(await wire.response()).status for _ in range(2)] == [204, 204], cut
    assert await memory.body_of(target) == b"12\r\n0\r\n\r\n," * len(packet)


async def test_an_empty_chunked_body_is_an_empty_body(memory: Running) -> None:
    """A body of the last chunk alone is empty: nothing to append, unless it closes the stream."""
    target = await memory.create("a")
    wire = await memory.connect()
    await wire.send(request("POST", target, CHUNKED) + chunked())
    assert (await wire.response()).status == 400
    await wire.send(request("POST", target, {**CHUNKED, "Stream-Closed": "true", "User-Agent": "x"}) + chunked())
    answer = await wire.response()
    assert (answer.status, answer["Stream-Closed"]) == (204, "true")


async def test_trailers_are_not_headers(memory: Running) -> None:
    """A field in the trailers changes nothing of the request that they follow."""
    target = await memory.create("a")
    wire = await memory.connect()
    trailers = b"Stream-Closed: true\r\nStream-Seq: 5\r\nContent-Type: a/b\r\nExpect: x\r\nHost: other\r\nA: b\r\n"
    for _ in range(3):
        await wire.send(request("POST", target, CHUNKED) + chunked(b"one", trailers=trailers) + request("HEAD", target))
        assert (await wire.response()).status == 204
        assert (await wire.response("HEAD")).get("Stream-Closed") is None


async def test_a_body_as_large_as_allowed_is_taken(serve: Serve) -> None:
    """The limit of a body is the largest body, in both framings."""
    hub = await serve(body_bytes_max=1000)
    target = await hub.create("a")
    wire = await hub.connect()
    await wire.send(post(target, b"x" * 1000))
    assert (await wire.response()).status == 204
    await wire.send(request("POST", target, CHUNKED) + chunked(b"y" * 600, b"y" * 400))
    assert (await wire.response()).status == 204
    assert await hub.body_of(target) == b"x" * 1000 + b"y" * 1000


@pytest.mark.parametrize("framing", ["length", "chunks", "one chunk"])
async def test_a_body_over_the_limit_is_refused(serve: Serve, framing: str) -> None:
    """A body over its limit is refused with 413 that says the limit, and nothing of it or behind it is executed."""
    hub = await serve(body_bytes_max=1000)
    target = await hub.create("a")
    wire = await hub.connect()
    if framing == "length":
        data = post(target, b"x" * 1001)
    elif framing == "chunks":
        data = request("POST", target, CHUNKED) + chunked(b"x" * 500, b"x" * 501)
    else:
        data = request("POST", target, CHUNKED) + chunked(b"x" * 1001)
    await wire.send(data + post(target, b"smuggled"))
    answer = await wire.last_response()
    assert answer.status == 413
    assert b'"limit_bytes":1000' in answer.body
    assert await hub.body_of(target) == b""


async def test_a_client_still_sending_reads_why_it_is_refused(serve: Serve) -> None:
    """A refusal in mid-body reaches a client that reads only when it has sent everything (RFC 9112 section 9.6)."""
    hub = await serve(body_bytes_max=1000)
    target = await hub.create("a")
    for framing in ("length", "chunks"):
        wire = await hub.connect()
        if framing == "length":
            await wire.send(request("POST", target, {**TEXT, "Content-Length": str(8 * MIB)}))
            piece = b"x" * MIB
        else:
            await wire.send(request("POST", target, CHUNKED))
            piece = chunked(b"x" * MIB)[:-5]
        for _ in range(8):
            await wire.send(piece)
        assert (await wire.last_response()).status == 413


def _spools(directory: Path) -> int:
    """Unlinked files of this process under a directory."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        count += name.startswith(str(directory)) and name.endswith("(deleted)")
    return count


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_twenty_mebibytes_go_in_and_out_by_way_of_the_disk(serve: Serve, framing: str) -> None:
    """A body of 20 MiB is spooled to the hub's disk while it arrives, and its read back is streamed: the same bytes."""
    hub = await serve(disk=True)
    body = random.Random(1).randbytes(20 * MIB)
    target = await hub.create("a", BYTES)
    wire = await hub.connect()
    half = len(body) // 2
    if framing == "length":
        await wire.send(request("POST", target, {**BYTES, "Content-Length": str(len(body))}) + body[:half])
    else:
        pieces = [body[i : i + 100_000] for i in range(0, half, 100_000)]
        await wire.send(request("POST", target, {**BYTES, "Transfer-Encoding": "chunked"}) + chunked(*pieces)[:-5])
        half = sum(map(len, pieces))
    if sys.platform == "linux":
        directory = hub.hub.directory
        assert directory is not None
        await until(lambda: _spools(directory) == 1)
    await wire.send(body[half:] if framing == "length" else chunked(body[half:]))
    answer = await wire.response()
    assert answer.status == 204
    if sys.platform == "linux":
        await until(lambda: _spools(directory) == 0)

    reader = await hub.connect(receive_buffer=4096)
    await reader.send(request("GET", target))
    connection = hub.connection_of(reader)
    head = await reader.head()
    assert head.is_chunked
    assert (head.offset, head["Stream-Up-To-Date"]) == (answer.offset, "true")
    limits = hub.hub.limits
    largest, got = 0, bytearray()
    while piece := await reader.chunk():
        largest = max(largest, connection.transport.get_write_buffer_size())
        got += piece
    assert got == body
    assert 0 < largest <= limits.write_buffer_bytes_max + 2 * limits.read_bytes_max
    assert (await reader.ask("GET", "/healthz")).status == 200


async def test_a_long_answer_in_json_is_one_array(serve: Serve) -> None:
    """A history that is read in many steps comes as one JSON array of every record, once, in order."""
    hub = await serve(disk=True, stream_cache_bytes_max=1000, read_bytes_max=1000)
    target = await hub.create("a", JSON)
    values = [{"n": n, "text": "x" * (n % 50)} for n in range(1000)]
    for start in range(0, 1000, 100):
        await hub.append(target, json.dumps(values[start : start + 100]).encode(), JSON)
    answer = await hub.ask("GET", target)
    assert answer.is_chunked
    assert json.loads(answer.body) == values
    middle = answer.offset.partition("_")[0] + "_0000000000000550"
    assert json.loads((await hub.ask("GET", f"{target}?offset={middle}")).body) == values[550:]


@pytest.mark.parametrize("spooled", [False, True], ids=["in memory", "spooled"])
async def test_json_over_its_own_limit_is_refused(serve: Serve, spooled: bool) -> None:
    """JSON is parsed in memory: a body over its limit is refused with 413 without ending the connection."""
    hub = await serve(json_body_bytes_max=10_000, body_memory_bytes_max=5_000 if spooled else MIB)
    target = await hub.create("a", JSON)
    wire = await hub.connect()
    for size in (10_001, 100_000):
        body = b'"' + b"x" * (size - 2) + b'"'
        for _ in range(2):
            answer = await wire.ask("POST", target, JSON, body)
            assert (answer.status, answer.closes) == (413, False)
            assert b'"limit_bytes":10000' in answer.body
    assert (await wire.ask("POST", target, JSON, b'"' + b"x" * 9_998 + b'"')).status == 204
    answer = await wire.ask("PUT", "/v1/stream/b", JSON, b'"' + b"x" * 10_000 + b'"')
    assert answer.status == 413
    assert len(await hub.body_of(target)) == 10_002


async def test_a_spooled_text_is_cut_between_characters(serve: Serve) -> None:
    """A large text becomes several records, each of whole characters, which a reader of events can read."""
    hub = await serve(disk=True, body_memory_bytes_max=1000, piece_bytes_max=100)
    text = "aä€😀" * 500
    target = await hub.create("a", {"Content-Type": "text/plain; charset=utf-8"})
    await hub.append(target, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})
    await hub.ask("POST", target, {"Stream-Closed": "true", "X-Other": "x"}, b"")
    source = await EventSource.open(await hub.connect(), target)
    events = await source.rest()
    assert len(events) > 40
    assert "".join(e.data for e in events if e.type == "message") == text
