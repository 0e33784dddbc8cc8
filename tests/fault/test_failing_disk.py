"""A disk that returns errors: nothing is acknowledged that may be lost, and an fsync that failed is never tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.support.constants import patch_constants
from tests.support.embedded import store_of
from tests.support.failing_disk import FailingDisk
from tests.support.server import BYTES, JSON, TEXT, Running, ServeDirectory, problem_of, stop
from tests.support.waiting import until
from tests.support.wire import Malformed, Response
from wayside.core.errors import StoreUnusable
from wayside.hub import Hub
from wayside.storage.embedded.check import check

pytestmark = pytest.mark.fault


def _problem(answer: Response, status: int, code: str) -> dict[str, Any]:
    problem = problem_of(answer)
    assert (problem["status"], problem["code"]) == (status, code)
    return problem


async def _start(serve: ServeDirectory, directory: Path, disk: FailingDisk) -> Running:
    """A hub on the failing disk with a stream that has two records."""
    running = await serve(directory, vfs=disk.name)
    await running.create("s")
    await running.append("/v1/stream/s", b"a")
    await running.append("/v1/stream/s", b"b")
    return running


async def _has_failed(running: Running, disk: FailingDisk) -> None:
    """Nothing is acknowledged any more, readers read, and the disk is not asked to sync again, not even by a stop."""
    syncs = disk.syncs()
    for method, path, body in (
        ("POST", "/v1/stream/s", b"later"),
        ("PUT", "/v1/stream/new", None),
        ("DELETE", "/v1/stream/s", None),
    ):
        problem = _problem(await running.ask(method, path, TEXT, body), 503, "store-failed")
        assert not problem["retry"]
        assert "wayside check" in problem["detail"]
    assert await running.body_of("/v1/stream/s") == b"ab"
    assert (await running.ask("HEAD", "/v1/stream/s")).status == 200
    assert (await running.ask("GET", "/healthz")).status == 200
    ready = await running.ask("GET", "/readyz")
    assert ready.status == 503
    assert "Nothing is acknowledged" in msgspec.json.decode(ready.body)["reason"]
    assert b"wayside_store_failed 1.0" in await running.body_of("/metrics")
    await stop(running)
    assert disk.syncs() == syncs


async def _restart(serve: ServeDirectory, directory: Path, refused: bytes) -> None:
    """On a disk that works, everything acknowledged is there; what was under way may be, as a whole, and nothing else."""
    assert check(directory).ok
    running = await serve(directory)
    assert await running.body_of("/v1/stream/s") in (b"ab", b"ab" + refused)
    assert (await running.ask("HEAD", "/v1/stream/new")).status == 404
    await running.append("/v1/stream/s", b"!")
    assert (await running.body_of("/v1/stream/s")).endswith(b"!")


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("sync", apsw.SQLITE_IOERR_FSYNC),
        ("write", apsw.SQLITE_IOERR_WRITE),
    ],
)
async def test_a_log_that_fails(
    serve: ServeDirectory, tmp_path: Path, disk: FailingDisk, operation: str, code: int
) -> None:
    """When the write-ahead log cannot be written or synced, the batch under way is refused and the store stays failed,
    even if the disk works again: the kernel may have dropped what it could not write, and say so only once."""
    running = await _start(serve, tmp_path, disk)
    disk.fail(operation, "wal", code)
    answers = await asyncio.gather(*(running.ask("POST", "/v1/stream/s", TEXT, b"c") for _ in range(5)))
    for answer in answers:
        _problem(answer, 503, "store-failed")
    disk.heal()
    await _has_failed(running, disk)
    found = {b"ab" + b"c" * count for count in range(6)}
    assert check(tmp_path).ok
    running = await serve(tmp_path)
    assert await running.body_of("/v1/stream/s") in found


@pytest.mark.parametrize(
    ("operation", "kind", "code"),
    [
        ("sync", "db", apsw.SQLITE_IOERR_FSYNC),
        ("sync", "wal", apsw.SQLITE_IOERR_FSYNC),
        ("write", "db", apsw.SQLITE_IOERR_WRITE),
    ],
)
async def test_a_checkpoint_that_fails(
    serve: ServeDirectory,
    tmp_path: Path,
    disk: FailingDisk,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    kind: str,
    code: int,
) -> None:
    """When the log cannot be copied into the database, what was acknowledged is still in the log; nothing more is."""
    running = await _start(serve, tmp_path, disk)
    store: Any = store_of(running.hub.log)
    maintain = store.maintain

    def failing() -> None:
        disk.fail(operation, kind, code)
        maintain()

    monkeypatch.setattr(store, "maintain", failing)
    patch_constants(monkeypatch, CHECKPOINT_PAGES=1)
    assert (await running.ask("POST", "/v1/stream/s", TEXT, b"")).status == 400  # commits nothing
    await running.create("last")
    await until(lambda: store.failed is not None)
    disk.heal()
    await _has_failed(running, disk)
    await _restart(serve, tmp_path, b"")


async def test_followers_stay_when_the_disk_fails(serve: ServeDirectory, tmp_path: Path, disk: FailingDisk) -> None:
    """A reader that waits is not shown what was refused, and streams in memory go on."""
    running = await _start(serve, tmp_path, disk)
    await running.create("m", {**TEXT, "Stream-Durability": "memory"})
    waiting = asyncio.create_task(running.ask("GET", "/v1/stream/s?offset=now", {"Prefer": "wait=1"}))
    await until(lambda: running.waiters("s") == 1)
    disk.fail("sync", "wal", apsw.SQLITE_IOERR_FSYNC)
    _problem(await running.ask("POST", "/v1/stream/s", TEXT, b"c"), 503, "store-failed")
    assert (await waiting).body == b""
    await running.append("/v1/stream/m", b"in memory")
    assert await running.body_of("/v1/stream/m") == b"in memory"


async def test_a_disk_that_cannot_be_read(serve: ServeDirectory, tmp_path: Path, disk: FailingDisk) -> None:
    """Who reads what the disk does not give is told so, and never given a part for the whole; others read on, and appends
    go on."""
    running = await serve(tmp_path, vfs=disk.name)
    await running.create("big", BYTES)
    await running.append("/v1/stream/big", b"x" * 300_000, BYTES)
    await stop(running)
    running = await serve(tmp_path, vfs=disk.name)
    await running.create("s")
    await running.append("/v1/stream/s", b"ab")
    assert (await running.ask("HEAD", "/v1/stream/big")).status == 200
    disk.fail("read", "db", apsw.SQLITE_IOERR_READ)
    with pytest.raises(Malformed, match="the connection ended"):
        await running.ask("GET", "/v1/stream/big")
    await running.append("/v1/stream/s", b"c")
    assert await running.body_of("/v1/stream/s") == b"abc"
    disk.heal()
    assert await running.body_of("/v1/stream/big") == b"x" * 300_000


@pytest.mark.parametrize("operation", ["sync", "write"])
async def test_a_start_on_a_failing_disk(
    tmp_path: Path, disk: FailingDisk, operation: str, serve: ServeDirectory
) -> None:
    """A store whose first commit fails is not opened, and not held."""
    running = await serve(tmp_path)
    await running.create("s", JSON, b"[1]")
    await stop(running)
    disk.fail(operation, "wal", apsw.SQLITE_IOERR_FSYNC)
    with pytest.raises(StoreUnusable):
        _ = Hub(f"file:{tmp_path}", vfs=disk.name).log
    disk.heal()
    running = await serve(tmp_path, vfs=disk.name)
    assert await running.body_of("/v1/stream/s") == b"[1]"


async def test_a_disk_with_a_quota(serve: ServeDirectory, tmp_path: Path, disk: FailingDisk) -> None:
    """Whatever write of a commit finds no room, the commit is refused as a whole, and the next one that fits is taken."""
    running = await _start(serve, tmp_path, disk)
    expected = b"ab"
    for room in range(0, 60_000, 4_000):
        left = [room]

        def rule(size: int, left: list[int] = left) -> Exception | None:
            left[0] -= size
            return apsw.FullError("the test's disk is full") if left[0] < 0 else None

        disk.rules["write", "wal"] = disk.rules["write", "db"] = rule
        body = b"<%d%s>" % (room, b"." * 9_000)
        answer = await running.ask("POST", "/v1/stream/s", TEXT, body)
        disk.heal()
        if answer.status == 204:
            expected += body
        else:
            assert _problem(answer, 507, "store-full")["retry"]
            assert answer["Retry-After"]
        assert await running.body_of("/v1/stream/s") == expected
    assert b"<0." not in expected
    assert expected.count(b"<") > 3
    assert (await running.ask("GET", "/readyz")).status == 200
    await stop(running)
    running = await serve(tmp_path)
    assert await running.body_of("/v1/stream/s") == expected
