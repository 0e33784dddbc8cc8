"""Delivery to many: who reads fast gets everything at once, who reads slowly gets everything later, and nobody pays for
another."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from typing import Any

import httptools
import pytest

from tests.support.events import EventParser, EventSource
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import PATIENCE_S, until
from tests.support.wire import Wire, post, request

FOLLOWERS = 1000


class Fast(asyncio.Protocol):
    """A follower that reads as fast as it can and keeps a digest of what it read, not the bytes."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.digest = hashlib.blake2b(digest_size=16)
        self.received = 0
        self.wanted = 0
        self.enough = asyncio.Event()
        self.transport: Any = None
        self.times: list[float] = []
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(request("GET", self.target, {"Accept": "text/event-stream"}))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.digest.update(body)
        self.received += len(body)
        self.times.append(time.perf_counter())
        if self.received >= self.wanted:
            self.enough.set()

    async def until(self, size: int) -> None:
        """Wait for so many bytes of events."""
        self.wanted = size
        if self.received < size:
            self.enough.clear()
            async with asyncio.timeout(60):
                await self.enough.wait()


async def _follow(hub: Running, target: str, number: int) -> list[Fast]:
    loop = asyncio.get_running_loop()
    followers = []
    for _ in range(number):
        _, follower = await loop.create_connection(lambda: Fast(target), *hub.server.address)
        followers.append(follower)
    await until(lambda: hub.followers("sse") >= number)
    return followers


async def _one_that_never_reads(hub: Running, target: str) -> tuple[Wire, Any]:
    """A follower with small buffers that reads nothing, and the server's side of its connection."""
    before = hub.followers("sse")
    wire = await hub.connect(receive_buffer=4096)
    await wire.send(request("GET", target, {"Accept": "text/event-stream"}))
    await until(lambda: hub.followers("sse") == before + 1)
    connection = hub.connection_of(wire)
    connection.transport.get_extra_info("socket").setsockopt(1, 7, 4096)  # SOL_SOCKET, SO_SNDBUF
    return wire, connection


def _expected(first_offset: str, records: list[bytes]) -> bytes:
    stem = first_offset.partition("_")[0]
    return b"retry: 1000\n\n" + b"".join(
        b"id: %b_%016d\ndata:%b\n\n" % (stem.encode(), number, record) for number, record in enumerate(records, 1)
    )


async def test_a_reader_that_never_reads_costs_nobody_anything(memory: Running) -> None:
    """A thousand fast followers get every record in order beside one that never reads. That one leaves its cohort, what
    the hub holds for it is bounded, and when it reads again it gets every record once, in order."""
    target = await memory.create("a", JSON)
    offset = (await memory.ask("HEAD", target)).offset
    fast = await _follow(memory, target, FOLLOWERS)
    slow, connection = await _one_that_never_reads(memory, target)
    limits = memory.hub.limits
    records = [b'{"n":%d,"text":"%b"}' % (n, b"x" * 1000) for n in range(300)]
    expected = _expected(offset, records)
    publisher = await memory.connect()
    largest = 0
    for start in range(0, len(records), 10):
        await publisher.send(post(target, b"[" + b",".join(records[start : start + 10]) + b"]", JSON))
        assert (await publisher.response()).status == 204
        largest = max(largest, connection.transport.get_write_buffer_size())
    for follower in fast:
        await follower.until(len(expected))
    digest = hashlib.blake2b(expected, digest_size=16).digest()
    assert all((f.received, f.digest.digest()) == (len(expected), digest) for f in fast)

    statistics = memory.hub.log.statistics()
    assert statistics.followers["sse"] == FOLLOWERS + 1
    assert statistics.lag_records > 100, "the slow one is behind, and so in no cohort"
    assert statistics.deliveries["sse"] < (FOLLOWERS + 1) * len(records)
    assert limits.write_buffer_bytes_max // 4 < largest <= limits.write_buffer_bytes_max + 2 * 10_500
    held = connection.transport.get_write_buffer_size()
    await publisher.send(post(target, b'"last"', JSON))
    assert (await publisher.response()).status == 204
    assert connection.transport.get_write_buffer_size() == held

    assert (await slow.head()).status == 200
    parser = EventParser()
    while len(parser.events) < len(records) + 1:
        parser.feed(await slow.chunk())
    assert [e.data.encode() for e in parser.events] == [*records, b'"last"']
    ids = [int(e.id.partition("_")[2]) for e in parser.events]
    assert ids == list(range(1, len(records) + 2))
    await until(lambda: memory.hub.log.statistics().lag_records == 0)
    await memory.append(target, b'"news"', JSON)
    parser.events.clear()
    parser.feed(await slow.chunk())
    assert [e.data for e in parser.events] == ['"news"']
    for follower in fast:
        follower.transport.close()


def _p(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[int((len(ordered) - 1) * share)] * 1000


async def test_figures_with_and_without_a_reader_that_never_reads(memory: Running) -> None:
    """Prints how long a record takes to a thousand followers without and with one that never reads; asserts only that
    every record arrived."""
    for slow in (False, True):
        target = await memory.create(f"slow-{slow}", TEXT)
        offset = (await memory.ask("HEAD", target)).offset
        fast = await _follow(memory, target, FOLLOWERS)
        if slow:
            await _one_that_never_reads(memory, target)
        publisher = await memory.connect()
        took: list[float] = []
        records: list[bytes] = []
        for number in range(50):
            records.append(b"%06d" % number + b"x" * 3000)
            size = len(_expected(offset, records))
            began = time.perf_counter()
            await publisher.send(post(target, records[-1]))
            await publisher.response()
            for follower in fast:
                await follower.until(size)
            took += [follower.times[-1] - began for follower in fast]
        lag = memory.hub.log.statistics().lag_records
        print(
            f"{FOLLOWERS} followers, {'one' if slow else 'none'} that never reads (behind by {lag} records): "
            f"p50 {_p(took, 0.5):.2f} ms, p99 {_p(took, 0.99):.2f} ms, longest {_p(took, 1):.2f} ms"
        )
        assert (lag > 0) is slow
        assert {f.received for f in fast} == {len(_expected(offset, records))}
        for follower in fast:
            follower.transport.close()
        await until(lambda: memory.followers("sse") <= 1)


async def _read_in_fits(wire: Wire, total: int, seed: int) -> list[Any]:
    """Events of a follower that reads a little, sleeps, and reads on."""
    chance = random.Random(seed)
    assert (await wire.head()).status == 200
    parser = EventParser()
    got: list[Any] = []
    while len(got) < total:
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() / 50)
        parser.feed(await wire.chunk())
        got += [(e.id, e.data) for e in parser.events]
        parser.events.clear()
    return got


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
async def test_readers_of_every_pace_get_every_record_once(serve: Serve, disk: bool) -> None:
    """Followers that read in fits, with records of all sizes, spooled ones too, from many publishers at once, each get
    every record once, in one and the same order."""
    hub = await serve(
        disk=disk,
        body_memory_bytes_max=20_000,
        piece_bytes_max=15_000,
        write_buffer_bytes_max=8_000,
        read_bytes_max=10_000,
        stream_cache_bytes_max=100_000,
    )
    target = await hub.create("a", TEXT)
    wires = [await hub.connect(receive_buffer=4096) for _ in range(8)]
    for wire in wires:
        await wire.send(request("GET", target, {"Accept": "text/event-stream"}))
    await until(lambda: hub.followers("sse") == len(wires))
    for wire in wires:
        hub.connection_of(wire).transport.get_extra_info("socket").setsockopt(1, 7, 4096)
    bodies: list[list[bytes]] = []
    chance = random.Random(7)
    for name in range(6):
        sizes = [chance.choice((10, 10, 500, 5_000, 19_000, 40_000)) for _ in range(25)]
        bodies.append([b"%d-%d:" % (name, n) + b"x" * size for n, size in enumerate(sizes)])

    async def publish(mine: list[bytes]) -> None:
        wire = await hub.connect()
        for body in mine:
            await wire.send(post(target, body))
            assert (await wire.response()).status == 204

    publishing = [asyncio.create_task(publish(mine)) for mine in bodies]
    pieces = [min(1 + len(b) // 15_000, 9) if len(b) > 20_000 else 1 for mine in bodies for b in mine]
    total = sum(pieces)
    reading = [asyncio.create_task(_read_in_fits(wire, total, seed)) for seed, wire in enumerate(wires)]
    await asyncio.gather(*publishing)
    assert hub.hub.log.find("a").tail == total
    async with asyncio.timeout(60):
        results = await asyncio.gather(*reading)
    history = (await hub.ask("GET", target)).body.decode()
    for got in results:
        assert [int(key.partition("_")[2]) for key, _ in got] == list(range(1, total + 1))
        assert "".join(data for _, data in got) == history
    for mine in bodies:
        places = [history.index(body.partition(b":")[0].decode() + ":") for body in mine]
        assert places == sorted(places)


async def test_every_way_of_reading_sees_the_same(disk: Running) -> None:
    """While publishers write, a poller, a long poller, an event source and the in-process reader see one order."""
    target = await disk.create("a", JSON)
    total = 400
    source = await EventSource.open(await disk.connect(), target)

    async def publish(name: int) -> None:
        wire = await disk.connect()
        for number in range(0, total // 4, 5):
            await wire.send(b"".join(post(target, b'"%d-%d"' % (name, n), JSON) for n in range(number, number + 5)))
            for _ in range(5):
                assert (await wire.response()).status == 204

    async def poll(live: str) -> list[Any]:
        wire = await disk.connect()
        got: list[Any] = []
        offset = "-1"
        while len(got) < total:
            answer = await wire.ask("GET", f"{target}?offset={offset}{live}")
            assert answer.status == 200
            got += json.loads(answer.body)
            offset = answer.offset
        return got

    async def events() -> list[Any]:
        return [json.loads(event.data) for event in await source.take(total)]

    async def inside() -> list[Any]:
        got: list[Any] = []
        async for record in disk.hub.read("a"):
            got.append(record.json())
            if len(got) == total:
                break
        return got

    async with asyncio.timeout(PATIENCE_S * 3):
        readers = asyncio.gather(poll(""), poll("&live=long-poll"), events(), inside())
        await asyncio.gather(*(publish(name) for name in range(4)))
        results = await readers
    assert all(got == results[0] for got in results)
    assert len(set(results[0])) == total


async def test_a_reader_that_goes_while_it_is_behind_is_forgotten(memory: Running) -> None:
    """A slow follower that disconnects leaves no lag, no follower and no connection behind."""
    target = await memory.create("a", BYTES)
    wire, connection = await _one_that_never_reads(memory, target)
    for _ in range(20):
        await memory.append(target, b"x" * 100_000, BYTES)
    assert memory.hub.log.statistics().lag_records > 0
    assert connection.transport.get_write_buffer_size() > 0
    wire.reset()
    await until(lambda: not memory.server.connections)
    statistics = memory.hub.log.statistics()
    assert (statistics.lag_records, statistics.followers["sse"]) == (0, 0)
    await memory.append(target, b"x", BYTES)


async def test_a_reader_that_was_overtaken_by_retention_is_cut(memory: Running) -> None:
    """A follower so slow that its next records are no longer kept is cut visibly, and told 410 when it comes again."""
    target = await memory.create("a", {**TEXT, "Stream-Retention-Bytes": "200000"})
    wire, _ = await _one_that_never_reads(memory, target)
    for number in range(100):
        await memory.append(target, b"%d:" % number + b"x" * 10_000)
    assert (await wire.head()).status == 200
    parser = EventParser()
    with pytest.raises((AssertionError, ConnectionResetError)):
        await _feed_to_the_end(wire, parser)
    numbers = [int(e.data.partition(":")[0]) for e in parser.events]
    assert numbers == list(range(len(numbers)))
    answer = await memory.ask("GET", target, {"Accept": "text/event-stream", "Last-Event-ID": parser.last_id})
    assert (answer.status, json.loads(answer.body)["code"]) == (410, "offset-expired")
    assert memory.followers("sse") == 0


async def _feed_to_the_end(wire: Wire, parser: EventParser) -> None:
    while data := await wire.chunk():
        parser.feed(data)
