"""Which records are kept, and what becomes of the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.embedded import store_of
from tests.support.log import BYTES, TEXT, append, create, creation, delete, read_records, retain_by_age, settle
from tests.support.waiting import turns, until
from wayside.core.errors import Gone
from wayside.core.limits import Limits
from wayside.core.records import JSON, Batch, Durability
from wayside.streams.streams import Streams

RECORD = b"x" * 1000


async def _fill(log: Streams, path: str, count: int, record: bytes = RECORD) -> None:
    for _ in range(count):
        await append(log, path, record)


async def _gone(log: Streams, path: str, position: int) -> str:
    with pytest.raises(Gone) as gone:
        await log.find(path).read(position, 1000)
    assert gone.value.fields["earliest"] == str(log.find(path).info().earliest)
    return gone.value.code


async def test_the_oldest_records_go_first(log: Streams) -> None:
    """A stream bounded by bytes keeps at least those, not much more, and always the newest."""
    await create(log, "s", creation(TEXT, retention_bytes=10_000))
    for number in range(100):
        await append(log, "s", b"%04d" % number + RECORD[4:])
        stream = log.find("s")
        assert min(number + 1, 10) <= stream.tail - stream.start <= 20
    start = log.find("s").start
    records = await read_records(log, "s")
    assert [int(record[:4]) for record in records] == list(range(start, 100))
    assert log.find("s").info().size == 1000 * len(records)


async def test_a_record_larger_than_the_bound_is_kept_until_the_next(log: Streams) -> None:
    """The bound is what is kept at least: a single record is never too large to be kept."""
    await create(log, "s", creation(TEXT, retention_bytes=10))
    for letter in (b"a", b"b"):
        await append(log, "s", letter * 1000)
        assert await read_records(log, "s") == [letter * 1000]


async def test_a_read_before_retention_names_the_earliest(log: Streams) -> None:
    """What was let go is Gone, with the earliest offset that is left."""
    await create(log, "s", creation(TEXT, retention_bytes=2000))
    await _fill(log, "s", 50)
    assert await _gone(log, "s", 0) == "offset-expired"
    assert await _gone(log, "s", log.find("s").start - 1) == "offset-expired"
    assert await read_records(log, "s", log.find("s").start)


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_the_start_is_known_after_a_restart(disk: Disk, how: str) -> None:
    """What was let go stays gone, what was kept is there, and the bound holds on."""
    await create(disk.log, "s", creation(TEXT, retention_bytes=100_000))
    await _fill(disk.log, "s", 300)
    before = disk.log.find("s").info()
    log = await getattr(disk, how)()
    info = log.find("s").info()
    assert info.tail == before.tail
    assert before.earliest.position - 1 <= info.earliest.position <= before.earliest.position
    assert await _gone(log, "s", 0) == "offset-expired"
    assert len(await read_records(log, "s")) == info.tail.position - info.earliest.position
    await _fill(log, "s", 300)
    stream = log.find("s")
    assert 100 <= stream.tail - stream.start <= 120


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_at_least_the_bound_is_kept_after_a_restart(disk: Disk, how: str) -> None:
    """A restart does not make a stream let go of more than its bound allows."""
    await create(disk.log, "s", creation(TEXT, retention_bytes=20_000))
    await _fill(disk.log, "s", 47)
    log = await getattr(disk, how)()
    stream = log.find("s")
    for _ in range(60):
        await append(log, "s", RECORD)
        assert stream.tail - stream.start >= 20


async def test_at_least_the_bound_is_kept_when_chunks_went(disk: Disk) -> None:
    """Records that were let go, but are still in the journal, are not counted again after a crash."""
    await create(disk.log, "s", creation(TEXT, retention_bytes=1000))
    for number in range(12):
        await append(disk.log, "s", b"%04d" % number * 125)
    await _tidied(disk.log)
    log = await disk.crash()
    stream = log.find("s")
    assert stream.info().size == sum(map(len, await read_records(log, "s"))) <= 1500
    for number in range(12, 24):
        await append(log, "s", b"%04d" % number * 125)
        assert await read_records(log, "s") == [b"%04d" % kept * 125 for kept in range(number - 1, number + 1)]


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_the_size_is_the_same_after_a_restart(disk: Disk, how: str) -> None:
    """The size of a stream is the bytes of its records, however they lie on disk."""
    for content_type in (JSON, TEXT):
        await create(disk.log, content_type, creation(content_type))
        for _ in range(3):
            await append(disk.log, content_type, b"[10, 20, 300]")
    before = [disk.log.find(path).info().size for path in (JSON, TEXT)]
    log = await getattr(disk, how)()
    assert [log.find(path).info().size for path in (JSON, TEXT)] == before == [21, 39]


@pytest.mark.parametrize("end", ["retention", "deletion"])
async def test_a_read_that_is_overtaken_is_gone_and_nothing_is_damaged(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Rows that are freed while a read is on its way to them are records that went, not a damaged store."""
    patch_constants(monkeypatch, CHUNK_BYTES=4096)
    await create(disk.log, "s", creation(TEXT, retention_bytes=10_000))
    await _fill(disk.log, "s", 10)
    log = await disk.restart()
    store = store_of(log)
    assert store is not None
    overtaken = threading.Event()
    read: Callable[..., list[Batch]] = store.history.read

    def read_late(*arguments: Any) -> list[Batch]:
        assert overtaken.wait(30)
        return read(*arguments)

    monkeypatch.setattr(store.history, "read", read_late)
    reading = asyncio.create_task(log.find("s").read(0, 1000))
    await turns()
    if end == "retention":
        await _fill(log, "s", 30)
    else:
        await delete(log, "s")
    await _tidied(log)
    overtaken.set()
    with pytest.raises(Gone) as gone:
        await reading
    assert gone.value.code == ("offset-expired" if end == "retention" else "stream-deleted")


async def test_rows_of_records_that_went_are_freed(disk: Disk) -> None:
    """The disk gets back the room of what is not retained, and of what was deleted."""
    log = disk.log
    await create(log, "s", creation(TEXT, retention_bytes=100_000))
    await create(log, "other", creation(TEXT))
    await append(log, "other", b"o" * 300_000)
    await _fill(log, "s", 1000)
    await _tidied(log)
    kept = _chunk_bytes(disk.directory, log.find("s").info().earliest.epoch)
    assert kept <= 150_000
    assert await read_records(log, "other") == [b"o" * 300_000]
    assert len(await read_records(log, "s")) >= 100


async def _tidied(log: Streams) -> None:
    store = store_of(log)
    assert store is not None
    await until(lambda: not store.has_garbage)


def _chunk_bytes(directory: Path, sid: int) -> int:
    connection = apsw.Connection(str(directory / "wayside.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return sum(size for (size,) in connection.execute("SELECT size FROM chunk WHERE sid=?", (sid,)))
    finally:
        connection.close()


async def test_records_go_by_age(log: Streams, manual: Callable[[float], None]) -> None:
    """Records older than a stream keeps them go; younger ones stay, whatever their size."""
    await create(log, "s", creation(TEXT, retention_age_s=60))
    await append(log, "s", b"old")
    manual(40)
    await append(log, "s", b"young")
    retain_by_age(log)
    assert await read_records(log, "s") == [b"old", b"young"]
    manual(30)
    retain_by_age(log)
    assert await read_records(log, "s") == [b"young"]
    assert await _gone(log, "s", 0) == "offset-expired"
    manual(60)
    retain_by_age(log)
    assert await read_records(log, "s") == []
    info = log.find("s").info()
    assert info.earliest == info.tail
    assert info.size == 0
    assert (await append(log, "s", b"new")).offset.position == 3
    assert await read_records(log, "s") == [b"new"]


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_records_go_by_age_after_a_restart(disk: Disk, how: str) -> None:
    """Age is counted from when a record was written, not from when the hub was started."""
    await create(disk.log, "s", creation(TEXT, retention_age_s=60))
    await append(disk.log, "s", b"old")
    await append(disk.log, "s", b"also old")
    log = await getattr(disk, how)()
    disk.clock.advance(61)
    retain_by_age(log)
    assert await read_records(log, "s") == []
    await append(log, "s", b"new")  # commits the trim
    log = await getattr(disk, how)()
    assert await read_records(log, "s") == [b"new"]
    assert (await append(log, "s", b"newer")).offset.position == 4


@pytest.mark.parametrize("rest", ["sealed", "journalled"])
async def test_what_went_does_not_come_back_from_the_journal(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    """When all rows of a stream were freed, a crash leaves the records that came since at their places, with the
    newest that is known of producers."""
    patch_constants(monkeypatch, CHUNK_BYTES=200)
    await create(disk.log, "s", creation(TEXT, retention_age_s=60))
    for number in range(5):
        await append(disk.log, "s", b"%d" % number * 50, producer=("p", 0, number))
    disk.clock.advance(61)
    retain_by_age(disk.log)
    await append(disk.log, "s", b"5" * 50, producer=("p", 0, 5))
    await _tidied(disk.log)
    if rest == "sealed":
        for number in range(6, 9):
            await append(disk.log, "s", b"%d" % number * 50)
    log = await disk.crash()
    expected = [b"%d" % number * 50 for number in range(5, log.find("s").tail)]
    assert await read_records(log, "s") == expected
    assert len(expected) == (4 if rest == "sealed" else 1)
    assert (await append(log, "s", b"5" * 50, producer=("p", 0, 5))).duplicate
    for _ in range(5):
        expected.append(b"+" * 50)
        await append(log, "s", expected[-1])
    for restart in (disk.crash, disk.restart):
        log = await restart()
        assert await read_records(log, "s") == expected
        assert log.find("s").tail == 5 + len(expected)


async def test_a_stream_without_a_bound_has_the_default(disk: Disk) -> None:
    """No stream grows without end: the hub's default bound counts where none was asked for."""
    await disk.restart(Limits(retention_bytes=50_000, retention_bytes_memory=20_000))
    await create(disk.log, "s", creation(TEXT))
    await create(disk.log, "m", creation(TEXT, durability=Durability.MEMORY))
    await create(disk.log, "mine", creation(TEXT, retention_bytes=90_000))
    for path in ("s", "m", "mine"):
        await _fill(disk.log, path, 150)
    kept = {path: len(await read_records(disk.log, path)) for path in ("s", "m", "mine")}
    assert 50 <= kept["s"] <= 60
    assert 14 <= kept["m"] <= 15  # in memory a record of 1,000 bytes that came alone takes 1,360
    assert 90 <= kept["mine"] <= 105


async def test_retention_does_not_touch_another_stream(log: Streams) -> None:
    """The bound is each stream's own."""
    await create(log, "s", creation(TEXT, retention_bytes=1000))
    await create(log, "t", creation(TEXT))
    for _ in range(20):
        await _fill(log, "s", 1)
        await _fill(log, "t", 1)
    assert len(await read_records(log, "t")) == 20


@pytest.mark.parametrize("durability", [Durability.FSYNC, Durability.ASYNC])
async def test_records_out_of_memory_are_let_go_too(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """Retention reaches what is on disk only, chunk by chunk."""
    patch_constants(monkeypatch, CHUNK_BYTES=4096)
    await disk.restart(Limits(stream_cache_bytes_max=5_000))
    await create(disk.log, "s", creation(BYTES, durability=durability, retention_bytes=50_000))
    for number in range(200):
        await append(disk.log, "s", b"%04d" % number + RECORD[4:])
    await settle(disk.log)
    await append(disk.log, "s", b"0200" + RECORD[4:])
    await settle(disk.log)
    stream = disk.log.find("s")
    assert 50 <= stream.tail - stream.start <= 60
    records = await read_records(disk.log, "s", bytes_max=2000)
    assert [int(record[:4]) for record in records] == list(range(stream.start, 201))
