"""A client that goes in the middle of something takes nothing from anybody else."""

from __future__ import annotations

import json

import pytest

from tests.support.disk import Gate
from tests.support.server import BYTES, JSON, TEXT, Running
from tests.support.waiting import until
from tests.support.wire import chunked, post, request


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_publisher_that_goes_harms_no_other_of_its_commit(disk: Running, gate: Gate, how: str) -> None:
    """Two publishers share a commit, one's connection goes before it: the other is acknowledged, and both records are
    there, since both were accepted."""
    target = await disk.create("a", JSON)
    gate.shut()
    first = await disk.connect()
    await first.send(post(target, b"0", JSON))
    await gate.reached()  # a commit is under way: the next two share the one behind it
    going, staying = await disk.connect(), await disk.connect()
    await going.send_apart(post(target, b"1", JSON))
    await staying.send_apart(post(target, b"2", JSON))
    await until(lambda: len(disk.server.connections) == 3)
    before = len(disk.server.connections)
    if how == "reset":
        going.reset()
        await until(lambda: len(disk.server.connections) == before - 1)
    else:
        going.close()
    gate.open()
    assert (await first.response()).status == 204
    answer = await staying.response()
    assert (answer.status, answer.offset[-1]) == (204, "3")
    assert (await staying.ask("GET", target)).body == b"[0,1,2]"
    assert sorted(disk.hub.log.find("a").info().tail)[-1]


async def test_many_that_go_in_the_middle_harm_nobody(disk: Running, gate: Gate) -> None:
    """Half of a hundred publishers go before the commit: each of the others is acknowledged at its own offset."""
    target = await disk.create("a", JSON)
    gate.shut()
    wires = [await disk.connect() for _ in range(100)]
    for number, wire in enumerate(wires):
        await wire.send(post(target, b"%d" % number, JSON))
    await gate.reached()
    await disk.ask("GET", "/healthz")
    for wire in wires[::2]:
        wire.reset()
    await until(lambda: len(disk.server.connections) == 50)
    gate.open()
    values = {}
    for number, wire in list(enumerate(wires))[1::2]:
        answer = await wire.response()
        assert answer.status == 204
        values[int(answer.offset.partition("_")[2]) - 1] = number
    stored = json.loads(await disk.body_of(target))
    assert sorted(stored) == list(range(100))
    assert all(stored[at] == number for at, number in values.items())


@pytest.mark.parametrize("framing", ["length", "chunks", "spooled"])
@pytest.mark.parametrize("how", ["reset", "half-close", "close"])
async def test_half_a_body_appends_nothing(disk: Running, framing: str, how: str) -> None:
    """A client that goes in the middle of a body has appended nothing of it, and others go on."""
    target = await disk.create("a", BYTES)
    wire = await disk.connect()
    if framing == "chunks":
        await wire.send(request("POST", target, {**BYTES, "Transfer-Encoding": "chunked"}) + chunked(b"half")[:-5])
    else:
        size = 3_000_000 if framing == "spooled" else 100
        await wire.send(request("POST", target, {**BYTES, "Content-Length": str(size)}) + b"h" * (size // 2))
    other = await disk.connect()
    await other.send(post(target, b"whole", BYTES))
    assert (await other.response()).status == 204
    if how == "reset":
        wire.reset()
    elif how == "close":
        wire.close()
    else:
        wire.half_close()
        assert b" 204 " not in await wire.rest()
    await until(lambda: len(disk.server.connections) == 1)
    assert (await other.ask("GET", target)).body == b"whole"


async def test_requests_that_wait_behind_one_under_way_go_with_their_connection(disk: Running, gate: Gate) -> None:
    """Of pipelined appends whose client goes, the one under way is committed; none is executed twice or out of order."""
    target = await disk.create("a", JSON)
    gate.shut()
    wire = await disk.connect()
    await wire.send(b"".join(post(target, b"%d" % n, JSON) for n in range(10)))
    await gate.reached()
    wire.reset()
    gate.open()
    await until(lambda: len(disk.server.connections) == 0)
    stored = json.loads(await disk.body_of(target))
    assert stored == list(range(len(stored)))
    assert 1 <= len(stored) <= 10


async def test_a_long_poll_whose_client_goes_is_forgotten(memory: Running) -> None:
    """A long poll leaves nothing behind when its client goes, and the next append is fine."""
    target = await memory.create("a")
    for how in ("reset", "reset", "reset"):
        wire = await memory.connect()
        await wire.send(request("GET", target, {"Prefer": "wait=20"}))
        await until(lambda: memory.waiters("a") == 1)
        getattr(wire, how)()
        await until(lambda: memory.waiters("a") == 0)
    await memory.append(target, b"one")


async def test_a_creation_whose_client_goes_is_whole(disk: Running, gate: Gate) -> None:
    """A stream whose creator went before the answer exists with everything it was created with."""
    gate.shut()
    wire = await disk.connect()
    await wire.send(request("PUT", "/v1/stream/a", TEXT, b"first"))
    await gate.reached()
    wire.reset()
    await until(lambda: len(disk.server.connections) == 0)
    gate.open()
    answer = await disk.ask("PUT", "/v1/stream/a", TEXT, b"first")
    assert answer.status == 200
    assert await disk.body_of("/v1/stream/a") == b"first"
