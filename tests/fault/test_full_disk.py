"""A real file system without room: appends are refused and reads go on; with room again, appends do; nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from tests.fault.sample import fingerprint
from tests.support.disk import Disk
from tests.support.log import append, create, creation, settle
from tests.support.server import BYTES, JSON, TEXT, Running, ServeDirectory, stop
from tests.support.waiting import until
from tests.support.wire import Response, Wire
from wayside.core.engine import CreateStream, Head, Put, Unit
from wayside.core.errors import Gone, StoreFull
from wayside.core.records import Durability, StreamConfig
from wayside.hub import Hub
from wayside.storage.embedded.check import check
from wayside.storage.embedded.files import DATABASE, PAGE_BYTES
from wayside.storage.embedded.store import Store

pytestmark = pytest.mark.fault

MIB = 1 << 20
DISK_BYTES = 48 * MIB
BALLAST_BYTES = 20 * MIB
"""More than a write-ahead log before its checkpoint (16 MiB): that is copied into the database before there is room again."""
FSYNC, ASYNC, LARGE = "/v1/stream/fsync", "/v1/stream/async", "/v1/stream/large"


class Volume:
    """A small file system, part of which is a ballast that can be thrown off."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self._ballast = root / "ballast"
        self._ballast.write_bytes(bytes(BALLAST_BYTES))

    def make_room(self) -> None:
        self._ballast.unlink()

    @property
    def free_bytes(self) -> int:
        figures = os.statvfs(self.root)
        return figures.f_bavail * figures.f_frsize

    def leave(self, free_bytes: int) -> None:
        """Take all room but that."""
        with self._ballast.open("ab") as ballast:
            ballast.write(bytes(max(0, self.free_bytes - free_bytes)))


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    root = tmp_path / "volume"
    root.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "wayside-test", root], capture_output=True, text=True
    )
    if mounted.returncode:
        reason = f"mounting a small tmpfs is not permitted: {mounted.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield Volume(root)
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


def _is_full(answer: Response) -> bool:
    """Whether it says that there is no room, as it has to be said; anything else must be a success."""
    if answer.status == 204:
        return False
    assert answer.status == 507, answer
    assert answer["Content-Type"] == "application/problem+json"
    assert int(answer["Retry-After"]) > 0
    problem = msgspec.json.decode(answer.body)
    assert problem["code"] == "store-full"
    assert problem["retry"]
    return True


class Publisher:
    """Appends numbered records to the three streams, and knows what was acknowledged."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.number = 0
        self.acknowledged: dict[str, list[bytes]] = {FSYNC: [], ASYNC: [], LARGE: []}
        self.offsets: dict[str, str] = {}

    async def create(self) -> None:
        await self.running.create("fsync", JSON)
        await self.running.create("async", {**TEXT, "Stream-Durability": "async"})
        await self.running.create("large", BYTES)

    async def publish(self, target: str, size: int) -> bool:
        """Whether there was room."""
        self.number += 1
        headers = {FSYNC: JSON, ASYNC: TEXT, LARGE: BYTES}[target]
        body = b"%d" % self.number
        body = b'"%b%b"' % (body, b"." * size) if target == FSYNC else b"<%b%b>" % (body, b"." * size)
        answer = await self.running.ask("POST", target, headers, body)
        if _is_full(answer):
            return False
        self.acknowledged[target].append(body)
        self.offsets[target] = answer.offset
        return True

    async def fill(self) -> None:
        """Append to all, large and small, until nothing fits, not even one byte."""
        for size in (3 * MIB, 300_000, 50_000, 2_000, 0):
            for target in (LARGE, FSYNC, ASYNC):
                while await self.publish(target, size if target == LARGE else size // 3):
                    if target == ASYNC:
                        await asyncio.sleep(0.06)  # acknowledged before the disk is asked
                        if size == 0:
                            break
        while await self.publish(FSYNC, 0):
            pass

    async def verify(self, running: Running | None = None) -> None:
        """All that was acknowledged is read, and nothing else."""
        running = running or self.running
        for target, bodies in self.acknowledged.items():
            expected = b"[" + b",".join(bodies) + b"]" if target == FSYNC else b"".join(bodies)
            found = await read(running, target)
            assert found == expected, f"{target}: {len(found)} bytes, and {len(expected)} were acknowledged"
            head = await running.ask("HEAD", target)
            assert head.status == 200
            if target in self.offsets:
                assert head.offset.partition("_")[2] == self.offsets[target].partition("_")[2]

    async def stored(self) -> None:
        """Wait until the disk has what was acknowledged before."""
        await until(lambda: not self.running.hub.log.statistics().uncommitted_bytes)


async def read(running: Running, target: str) -> bytes:
    """Page by page to the tail; a JSON stream as one array."""
    wire = await Wire.connect(running.server.address)
    offset, parts = "-1", []
    try:
        while True:
            answer = await wire.ask("GET", f"{target}?offset={offset}")
            assert answer.status == 200, answer
            parts.append(answer.body)
            if answer.offset == offset or answer.get("Stream-Up-To-Date"):
                break
            offset = answer.offset
    finally:
        wire.close()
    if target == FSYNC:
        return b"[" + b",".join(part[1:-1] for part in parts if part != b"[]") + b"]"
    return b"".join(parts)


LIMITS: dict[str, Any] = {"body_memory_bytes_max": 128 * 1024}
"""Larger bodies are spooled, on the same file system."""


async def test_a_full_disk(volume: Volume, tmp_path: Path, serve: ServeDirectory) -> None:
    """Appends are refused with 507, whichever way they take to the disk; what was acknowledged is read, by those who come
    now too; the hub stays ready. When there is room appends work, and restarts find exactly what was acknowledged."""
    running = await serve(volume.data, **LIMITS)
    publisher = Publisher(running)
    await publisher.create()
    await publisher.fill()
    await publisher.verify()
    assert _is_full(await running.ask("POST", LARGE, BYTES, b"x" * MIB))
    number = 0
    while (answer := await running.ask("PUT", f"/v1/stream/new/{number}", TEXT)).status == 201:
        number += 1  # what the refused body took on its way is free again
    assert answer.status == 507
    assert (await running.ask("GET", f"/v1/stream/new/{number}")).status == 404
    assert (await running.ask("GET", "/readyz")).status == 200

    volume.make_room()
    assert await publisher.publish(FSYNC, 100)
    assert await publisher.publish(LARGE, MIB)
    await publisher.stored()
    assert await publisher.publish(ASYNC, 100)
    await publisher.verify()
    await publisher.stored()

    crashed = tmp_path / "crashed"
    shutil.copytree(volume.data, crashed, ignore=shutil.ignore_patterns("*-shm"))
    assert check(crashed).ok
    await publisher.verify(await serve(crashed))
    await stop(running)
    assert check(volume.data).ok
    publisher.running = await serve(volume.data, **LIMITS)
    await publisher.verify()
    assert await publisher.publish(FSYNC, 0)


async def test_stopping_and_starting_on_a_full_disk(volume: Volume, serve: ServeDirectory) -> None:
    """A stop without room ends, and loses nothing that the disk had; a start without room is refused for that reason, and
    not as damage; with room everything is there."""
    running = await serve(volume.data, **LIMITS)
    publisher = Publisher(running)
    await publisher.create()
    await publisher.publish(ASYNC, 100)
    await publisher.stored()
    while await publisher.publish(FSYNC, 30_000):
        pass
    while await publisher.publish(FSYNC, 0):
        pass
    await stop(running)
    assert check(volume.data).ok
    (volume.data / f"{DATABASE}-shm").unlink()  # its room would be enough for a start
    volume.leave(0)
    before = fingerprint(volume.data)
    for _ in range(2):
        with pytest.raises(StoreFull, match="free some space and start again"):
            _ = Hub(f"file:{volume.data}").log
    assert fingerprint(volume.data) == before
    assert check(volume.data).ok
    volume.make_room()
    publisher.running = await serve(volume.data, **LIMITS)
    await publisher.verify()
    assert await publisher.publish(FSYNC, 0)


def test_no_commit_is_left_in_doubt_by_the_index_of_the_log(volume: Volume) -> None:
    """Where the last room is taken by the pages of a commit, SQLite's index of them does not need more: the commit is
    done, or refused for lack of room, and never half known."""
    volume.make_room()
    store = Store(volume.data, now_ms=0)
    row = Head(store.take_epoch(), "s", StreamConfig(), [(0, store.epoch_next)])
    store.commit(Unit([CreateStream(row)], []))
    position = 0

    def put() -> None:
        nonlocal position
        data = b"%06d" % position * 50_000
        store.commit(Unit([], [Put(row.sid, position, 0, [data], len(data), b"", 1)]))
        position += 1

    def wal_pages() -> int:
        return (volume.data / f"{DATABASE}-wal").stat().st_size // (PAGE_BYTES + 24)

    with patch.object(store, "maintain"):  # no checkpoint: the log grows past the 4062 pages of the index's first part
        while wal_pages() < 4062 - 50:
            put()
        pages_of_two = 2 * 41 * (PAGE_BYTES + 24)
        volume.leave(pages_of_two - 8192)
        put()
        before = position
        with pytest.raises(StoreFull):  # noqa: PT012 - one fits, or none
            for _ in range(3):
                put()
        assert wal_pages() > 4000
        assert store.failed is None
        volume.leave(0)
    store.failed = "as if killed"
    store.close()
    volume.make_room()
    store = Store(volume.data, now_ms=0)
    assert position >= before
    assert sum(batch.count for batch in store.history.read(row.sid, 0, 1 << 40, 1 << 40, b"")) == position
    store.close()


async def test_a_stop_that_gives_up_async_records_is_no_clean_one(tmp_path: Path) -> None:
    """Records that an async stream acknowledged and a stop could not store are missed by their readers, even if the rest
    of the stop found room."""
    disk = Disk(tmp_path)
    await create(disk.log, "s", creation(durability=Durability.ASYNC))
    await append(disk.log, "s", b"1")
    await settle(disk.log)
    gate = disk.gate()
    gate.full = -1
    lost = (await append(disk.log, "s", b"2")).offset
    await asyncio.sleep(0.1)  # the disk is asked, and has no room
    log = await disk.restart()
    await append(log, "s", b"3")
    with pytest.raises(Gone):
        log.find("s").resolve(lost)
    await disk.close()


async def test_records_of_an_async_stream_that_found_no_room(volume: Volume, serve: ServeDirectory) -> None:
    """What an async stream acknowledged and could never store is lost by a stop; its readers are told so."""
    running = await serve(volume.data, **LIMITS)
    publisher = Publisher(running)
    await publisher.create()
    await publisher.publish(ASYNC, 0)
    await publisher.stored()
    kept = publisher.offsets[ASYNC]
    while await publisher.publish(FSYNC, 30_000):
        pass
    while await publisher.publish(FSYNC, 0):
        pass
    assert await publisher.publish(ASYNC, 10_000)
    lost = publisher.offsets[ASYNC]
    await stop(running)
    volume.make_room()
    running = await serve(volume.data)
    assert await running.body_of(f"{ASYNC}?offset={kept}") == b""
    answer = await running.ask("GET", f"{ASYNC}?offset={lost}")
    assert answer.status == 410
    assert msgspec.json.decode(answer.body)["code"] == "offset-lost"
    await running.append(ASYNC, b"other")
    assert (await running.ask("GET", f"{ASYNC}?offset={lost}")).status == 410


async def test_a_hub_that_is_killed_on_a_full_disk(volume: Volume) -> None:
    """Killed by SIGKILL while it refuses appends, and started when there is room, `wayside serve` has what it had
    acknowledged."""
    command = [
        sys.executable,
        "-m",
        "wayside",
        "serve",
        "--port",
        "0",
        "--data",
        str(volume.data),
        "--log-level",
        "error",
    ]
    acknowledged: list[bytes] = []
    async with _serving(command) as ask:
        assert (await ask("PUT", FSYNC, JSON)).status == 201
        for size in (40_000, 500, 0):
            while not _is_full(await ask("POST", FSYNC, JSON, body := b'"%d%b"' % (len(acknowledged), b"." * size))):
                acknowledged.append(body)
    volume.make_room()
    assert check(volume.data).ok
    async with Hub(f"file:{volume.data}") as hub:
        assert [record.data async for record in hub.read("fsync", follow=False)] == acknowledged


@contextlib.asynccontextmanager
async def _serving(command: list[str]) -> AsyncIterator[Callable[..., Awaitable[Response]]]:
    """A hub in a process of its own, killed at the end; gives what asks it."""
    hub = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert hub.stdout is not None
    try:
        async with asyncio.timeout(30):
            found = re.search(rb"http://([\d.]+):(\d+)", await hub.stdout.readline())
        assert found is not None
        wire = await Wire.connect((found[1].decode(), int(found[2])))
        yield wire.ask
        wire.close()
    finally:
        hub.send_signal(signal.SIGKILL)
        await hub.wait()
