"""The store: who may have it, what a failed commit leaves, how the journal becomes chunks."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.embedded import embedded, store_of
from tests.support.log import (
    BYTES,
    append,
    begin_append,
    begin_create,
    create,
    creation,
    delete,
    read_batches,
    read_records,
    spool,
)
from tests.support.waiting import turns, until
from wayside.core.errors import Conflict, NotFound, StoreFailed, StoreFull, StoreInUse
from wayside.core.limits import Limits
from wayside.core.records import Durability
from wayside.storage.embedded.files import read_mark
from wayside.storage.embedded.store import Store

# -- who may have it


async def test_a_second_opener_is_refused(disk: Disk) -> None:
    """A directory belongs to one hub at a time; the refusal names its process, and the hub is not disturbed."""
    with pytest.raises(StoreInUse) as refused:
        embedded(disk.directory)
    assert refused.value.fields["pid"] == str(os.getpid())
    await create(disk.log, "s")


async def test_a_second_process_is_refused(disk: Disk) -> None:
    """The same holds for another process, in words an operator can act on."""
    code = (
        "import sys, pathlib; from wayside.storage.embedded.store import Store; from wayside.errors import StoreInUse\n"
        "try: Store(pathlib.Path(sys.argv[1]), now_ms=0)\n"
        "except StoreInUse as e: print(e.detail)"
    )
    result = subprocess.run([sys.executable, "-c", code, disk.directory], capture_output=True, text=True, check=True)
    assert f"pid {os.getpid()}" in result.stdout


async def test_a_closed_store_can_be_opened(disk: Disk) -> None:
    """Closing gives the directory back."""
    await disk.log.close()
    Store(disk.directory, now_ms=0).close()
    disk.reopen()


def test_a_store_that_failed_to_open_is_not_held(tmp_path: Path) -> None:
    """An attempt to open that failed does not keep the next one out."""
    (tmp_path / "wayside.db").write_bytes(b"not a database" * 1000)
    for _ in range(2):
        with pytest.raises(Exception, match="damaged"):
            Store(tmp_path, now_ms=0)


# -- what a failed commit leaves


async def test_an_append_that_found_no_room_leaves_no_trace(disk: Disk) -> None:
    """Tail, producers, Stream-Seq and closure are as before, and the same appends are taken later."""
    log = disk.log
    await create(log, "s")
    await append(log, "s", b"0", producer=("p", 1, 0), seq="a")
    before = log.find("s").info()
    gate = disk.gate()
    gate.full = 1
    answers = [
        begin_append(log, "s", b"1", producer=("p", 1, 1), seq="b"),
        begin_append(log, "s", b"2", producer=("q", 0, 0), seq="c"),
        begin_append(log, "s", b"3", producer=("p", 2, 0)),
        begin_append(log, "s", b"4", close=True),
    ]
    for answer in answers:
        with pytest.raises(StoreFull):
            await answer.wait()
    assert log.find("s").info() == before
    assert await read_records(log, "s") == [b"0"]
    assert not (await append(log, "s", b"1", producer=("p", 1, 1), seq="b")).duplicate
    assert not (await append(log, "s", b"2", producer=("q", 0, 0), seq="c")).duplicate
    assert (await append(log, "s", b"4", close=True)).offset.position == 4
    await disk.crash()
    assert await read_records(disk.log, "s") == [b"0", b"1", b"2", b"4"]
    assert disk.log.statistics().uncommitted_bytes == 0


async def test_a_memory_stream_does_not_take_the_place_of_one_whose_deletion_fails(disk: Disk) -> None:
    """A stream in memory that is created while another's deletion is on its way waits for it: if that finds no room, the
    other is there as it was, and the creation is refused."""
    log = disk.log
    await create(log, "s")
    await append(log, "s", b"1")
    gate = disk.gate()
    gate.shut()
    gate.full = 1
    deleted: list[object] = []
    log.delete("s", deleted.append)
    created = begin_create(log, "s", creation(durability=Durability.MEMORY))
    gate.open()
    with pytest.raises(Conflict):
        await created.wait()
    assert isinstance(deleted[0], StoreFull)
    assert await read_records(log, "s") == [b"1"]
    await delete(log, "s")
    created = begin_create(log, "s", creation(durability=Durability.MEMORY))
    await created.wait()
    await delete(log, "s")
    await create(log, "s")


async def test_a_mistake_after_a_commit_stops_no_other(disk: Disk) -> None:
    """If what follows a commit fails by a mistake of ours, it is reported, and later appends are committed."""
    log = disk.log
    await create(log, "s")
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context["exception"]))

    def fail(_stream: object) -> None:
        raise ZeroDivisionError

    commits: Any = log._commits
    commits.on_shown = fail
    for number in range(3):
        await append(log, "s", b"%d" % number)
    assert await read_records(log, "s") == [b"0", b"1", b"2"]
    assert [type(report) for report in reports] == [ZeroDivisionError] * 3


async def test_an_index_that_finds_no_room_costs_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the room for the log's index cannot be had, commits go on, open no files, and note how long the log is."""

    def no_room(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "says the test")

    monkeypatch.setattr(os, "posix_fallocate", no_room, raising=False)
    disk = Disk(tmp_path)
    await create(disk.log, "s")
    await append(disk.log, "s", b"0")
    before = len(psutil.Process().open_files())
    for _ in range(50):
        await append(disk.log, "s", b"0")
    assert len(psutil.Process().open_files()) == before
    assert read_mark(disk.directory)[2] > 0
    await disk.close()


async def test_what_was_accepted_on_top_fails_too(disk: Disk) -> None:
    """Appends that came while a commit was failing stood on it: they are refused with it, and their positions given
    again."""
    log = disk.log
    await create(log, "s")
    gate = disk.gate()
    gate.shut()
    gate.full = 1
    first = begin_append(log, "s", b"1", seq="a")
    await turns()  # it is on its way
    second = begin_append(log, "s", b"2", seq="b", close=True)
    gate.open()
    for answer in (first, second):
        with pytest.raises(StoreFull):
            await answer.wait()
    assert (await append(log, "s", b"3", seq="a")).offset.position == 1
    assert await read_records(log, "s") == [b"3"]


async def test_a_creation_that_found_no_room_can_be_asked_for_again(disk: Disk) -> None:
    """A stream that could not be committed is not there; asked for again it is made, with its body."""
    log = disk.log
    disk.gate().full = 1
    answer = begin_create(log, "s", creation(body=b"[1,2]"))
    with pytest.raises(StoreFull):
        await answer.wait()
    with pytest.raises(NotFound):
        log.find("s")
    assert log.statistics().streams == 0
    assert (await create(log, "s", creation(body=b"[1,2]"))).new
    assert await read_records(log, "s") == [b"1", b"2"]
    await disk.crash()
    assert await read_records(disk.log, "s") == [b"1", b"2"]


async def test_deletion_and_creation_anew_fail_together(disk: Disk) -> None:
    """When a stream was deleted and made again in one commit that failed, the old one is there."""
    log = disk.log
    await create(log, "s")
    old = (await append(log, "s", b"1")).offset
    gate = disk.gate()
    gate.shut()
    gate.full = 1
    holding = begin_append(log, "s", b"2")
    await turns()
    deleted: list[object] = []
    log.delete("s", deleted.append)
    again = begin_create(log, "s", creation(body=b"9"))
    gate.open()
    for answer in (holding, again):
        with pytest.raises(StoreFull):
            await answer.wait()
    assert isinstance(deleted[0], StoreFull)
    assert log.find("s").info().tail == old
    assert log.statistics().streams == 1
    await delete(log, "s")
    assert (await create(log, "s")).info.tail.epoch > old.epoch


async def test_appends_work_again_when_there_is_room(disk: Disk) -> None:
    """A full disk is a passing state."""
    log = disk.log
    await create(log, "s")
    gate = disk.gate()
    for number in range(10):
        gate.full = number % 2
        if number % 2:
            with pytest.raises(StoreFull):
                await append(log, "s", b"%d" % number)
        else:
            await append(log, "s", b"%d" % number)
    assert await read_records(log, "s") == [b"0", b"2", b"4", b"6", b"8"]
    assert log.failed is None


async def test_a_disk_that_failed_acknowledges_nothing_more(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any error but a full disk nothing is acknowledged until a restart; what was stays readable."""
    log = disk.log
    await create(log, "s")
    await append(log, "s", b"1")

    def broken(_unit: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store_of(log), "commit", broken)
    with pytest.raises(StoreFailed):
        await append(log, "s", b"2")
    assert log.failed
    with pytest.raises(StoreFailed):
        begin_append(log, "s", b"3")
    with pytest.raises(StoreFailed):
        await create(log, "t")
    assert await read_records(log, "s") == [b"1"]
    await disk.restart()
    await append(disk.log, "s", b"4")
    assert await read_records(disk.log, "s") == [b"1", b"4"]


# -- journal and chunks


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and journal of a few records."""
    patch_constants(monkeypatch, CHUNK_BYTES=4096, JOURNAL_BYTES_MAX=8192)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", ["restart", "crash", "neither"])
async def test_sealing_keeps_every_record(disk: Disk, how: str) -> None:
    """Records stay in order, one by one, while the journal is sealed into chunks at every few commits."""
    log = disk.log
    expected: dict[str, list[bytes]] = {}
    for path in ("a", "b", "c", "idle"):
        await create(log, path)
        expected[path] = []
    await append(log, "idle", b'"first"')
    expected["idle"].append(b'"first"')
    for number in range(120):
        for path, size in (("a", 10), ("b", 400), ("c", 1500)):
            record = b'"%s-%d-%s"' % (path.encode(), number, b"." * (size * (number % 4)))
            await append(log, path, record)
            expected[path].append(record)
    if how != "neither":
        log = await getattr(disk, how)()
    for path, records in expected.items():
        for bytes_max in (1, 10_000):
            assert await read_records(log, path, bytes_max=bytes_max) == records
    await append(log, "idle", b'"last"')
    assert await read_records(log, "idle") == [b'"first"', b'"last"']


@pytest.mark.usefixtures("small")
async def test_the_journal_is_bounded(disk: Disk) -> None:
    """What is replayed at a start stays small, however many streams wait in the journal."""
    log = disk.log
    for number in range(40):
        await create(log, f"s{number}")
    for _ in range(20):
        for answer in [begin_append(log, f"s{number}", b'"%s"' % (b"." * 100)) for number in range(40)]:
            await answer.wait()
    log = await disk.crash()
    assert log.statistics().cached_bytes < 8192 + 2 * 20 * 40 * 102 / 3
    for number in range(40):
        assert len(await read_records(log, f"s{number}")) == 20


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_state_is_kept_when_the_journal_is_sealed(disk: Disk, how: str) -> None:
    """Producers, Stream-Seq and closure come along when their records move into chunks."""
    log = disk.log
    await create(log, "s")
    await create(log, "closed")
    await create(log, "noise")
    await append(log, "s", b"1", producer=("p", 4, 0), seq="m")
    await append(log, "closed", close=True)
    for number in range(60):
        await append(log, "noise", b'"%s"' % (b"." * (number % 7) * 200))
    log = await getattr(disk, how)()
    assert (await append(log, "s", b"1", producer=("p", 4, 0))).duplicate
    with pytest.raises(Conflict):
        begin_append(log, "s", b"2", seq="l")
    assert log.find("closed").closed


@pytest.mark.usefixtures("small")
async def test_a_batch_is_read_from_its_middle(disk: Disk) -> None:
    """Reading from disk begins and ends at records, not at the rows they lie in."""
    log = disk.log
    await create(log, "s")
    await append(log, "s", b"[" + b",".join(b'"%04d"' % n for n in range(1000)) + b"]")
    await append(log, "s", b"[" + b",".join(b'"%04d"' % n for n in range(1000, 2000)) + b"]")
    log = await disk.restart()
    stream = log.find("s")
    for start in (0, 1, 500, 999, 1000, 1001, 1999, 2000):
        batches = await read_batches(stream, start, 100)
        assert [record for batch in batches for record in batch.records] == [b'"%04d"' % n for n in range(start, 2000)]


@pytest.mark.usefixtures("small")
async def test_a_deleted_stream_leaves_nothing_for_the_next(disk: Disk) -> None:
    """A stream made where another was deleted has none of its records, whatever the journal still holds."""
    log = disk.log
    for life in range(6):
        await create(log, "s")
        for number in range(life * 7):
            await append(log, "s", b'"%d-%d-%s"' % (life, number, b"." * 300))
        await delete(log, "s")
    await create(log, "s")
    await append(log, "s", b'"new"')
    log = await disk.crash()
    assert await read_records(log, "s") == [b'"new"']


async def test_the_cache_is_bounded(disk: Disk) -> None:
    """Records that the disk has do not stay in memory beyond the bound; all of them can still be read."""
    log = await disk.restart(Limits(stream_cache_bytes_max=300_000, cache_bytes_max=500_000))
    for path in "abcd":
        await create(log, path, creation(BYTES))
        for number in range(20):
            await append(log, path, b"%02d" % number * 25_000)
    assert log.statistics().cached_bytes <= 800_000
    for path in "abcd":
        assert await read_records(log, path) == [b"%02d" % number * 25_000 for number in range(20)]


async def test_cached_bytes_are_counted_down(disk: Disk) -> None:
    """Nothing is counted as held in memory once all streams are gone."""
    log = disk.log
    for path in ("a", "b"):
        await create(log, path, creation(BYTES))
        await append(log, path, b"x" * 1000)
        await append(log, path, spool(b"y" * 600_000))
        await append(log, path, b"x" * 1000)
    await create(log, "m", creation(BYTES, durability=Durability.MEMORY, retention_bytes=1500))
    for _ in range(5):
        await append(log, "m", b"x" * 1000)
    for path in ("a", "b", "m"):
        await delete(log, path)
    assert log.statistics().cached_bytes == 0


async def test_an_idle_stream_that_is_let_go_comes_back_as_it_was(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of streams idle ones leave memory; who comes back to one finds everything, closure too."""
    patch_constants(monkeypatch, CHUNK_BYTES=4096, LOADED_MAX=0, SWEEP_S=0.01)
    log = await disk.restart()
    await create(log, "open")
    await append(log, "open", b'"%s"' % (b"." * 5000), producer=("p", 0, 0), seq="b")
    await create(log, "closed")
    await append(log, "closed", b'"%s"' % (b"." * 5000))
    end = (await append(log, "closed", close=True)).offset
    await until(lambda: not log.statistics().cached_bytes)  # the sweep lets both go
    assert log.find("closed").info().tail == end
    assert log.find("closed").closed
    with pytest.raises(Conflict):
        begin_append(log, "closed", b"1")
    assert (await append(log, "open", b"1", producer=("p", 0, 0))).duplicate
    with pytest.raises(Conflict):
        begin_append(log, "open", b"1", seq="a")
    assert len(await read_records(log, "open")) == 1
