"""What is acknowledged, when, and what a crash leaves of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.log import (
    BYTES,
    append,
    begin_append,
    begin_create,
    create,
    creation,
    delete,
    offset_at,
    read_records,
    settle,
    spool,
)
from tests.support.waiting import turns
from wayside.core.errors import Gone, StoreFull
from wayside.core.records import JSON, Durability, Offset

ASYNC = creation(durability=Durability.ASYNC)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends of async streams go to the disk with the next turn of the loop."""
    patch_constants(monkeypatch, LAZY_S=0)


async def test_a_durable_append_is_answered_only_after_the_commit(disk: Disk) -> None:
    """A record of an fsync stream is neither acknowledged nor shown before the disk has it."""
    await create(disk.log, "s")
    gate = disk.gate()
    gate.shut()
    answer = begin_append(disk.log, "s", b"1")
    await create(disk.log, "memory", creation(durability=Durability.MEMORY))
    await append(disk.log, "memory", b"0")  # needs no disk: the loop turns, and nothing else happens
    assert not answer.given
    assert await read_records(disk.log, "s") == []
    gate.open()
    await answer.wait()
    assert await read_records(disk.log, "s") == [b"1"]


async def test_an_async_append_is_answered_before_the_commit(disk: Disk) -> None:
    """A record of an async stream is acknowledged and shown while the disk still waits."""
    await create(disk.log, "s", ASYNC)
    gate = disk.gate()
    gate.shut()
    await append(disk.log, "s", b"1")
    assert await read_records(disk.log, "s") == [b"1"]
    assert disk.log.statistics().uncommitted_bytes == 1
    gate.open()


async def test_async_records_reach_the_disk_by_themselves(disk: Disk) -> None:
    """What an async stream acknowledged is on disk a little later, with nobody asking."""
    await create(disk.log, "s", ASYNC)
    await append(disk.log, "s", b"[1,2]")
    await settle(disk.log)
    await disk.crash()
    assert await read_records(disk.log, "s") == [b"1", b"2"]


async def test_a_clean_stop_writes_what_an_async_stream_acknowledged(disk: Disk) -> None:
    """Closing commits acknowledged records first, and then no offset changes."""
    await create(disk.log, "s", ASYNC)
    offset = (await append(disk.log, "s", b"1")).offset
    await disk.restart()
    assert await read_records(disk.log, "s") == [b"1"]
    assert disk.log.find("s").info().tail == offset


async def test_an_offset_that_a_crash_took_is_refused(disk: Disk) -> None:
    """After a crash an async stream refuses an offset beyond what survived, even when its place is taken again."""
    await create(disk.log, "s", ASYNC)
    kept = (await append(disk.log, "s", b"1")).offset
    await settle(disk.log)
    disk.gate().shut()
    lost = (await append(disk.log, "s", b"2")).offset
    await disk.crash()
    stream = disk.log.find("s")
    assert await read_records(disk.log, "s") == [b"1"]
    assert stream.resolve(kept) == 1
    with pytest.raises(Gone) as before:
        stream.resolve(lost)
    again = (await append(disk.log, "s", b"3")).offset
    with pytest.raises(Gone) as after:
        stream.resolve(lost)
    assert before.value.code == after.value.code == "offset-lost"
    assert again.epoch > lost.epoch
    assert stream.resolve(again) == 2


async def test_a_crash_does_not_touch_the_epoch_of_a_durable_stream(disk: Disk) -> None:
    """Offsets of an fsync stream stay what they are over any crash."""
    await create(disk.log, "s")
    offset = (await append(disk.log, "s", b"1")).offset
    await disk.crash()
    assert disk.log.find("s").info().tail == offset
    assert (await append(disk.log, "s", b"2")).offset == Offset(offset.epoch, 2)


@pytest.mark.usefixtures("hasty")
async def test_async_records_keep_their_order_behind_a_slow_commit(disk: Disk) -> None:
    """Async appends that come while a commit takes long are on disk in the order in which they were acknowledged."""
    log = disk.log
    await create(log, "slow")
    await create(log, "s", ASYNC)
    gate = disk.gate()
    gate.shut()
    held = begin_append(log, "slow", b"0")
    await turns()  # it is on its way to the disk now
    await append(log, "s", b"1")
    await _lazy_timer_has_fired()
    await append(log, "s", b"2")
    gate.open()
    await held.wait()
    await settle(log)
    await disk.crash()
    assert await read_records(disk.log, "s") == [b"1", b"2"]


async def _lazy_timer_has_fired() -> None:
    """Appends of async streams wait for a timer, which tests with ``hasty`` set to nothing."""
    await turns()


@pytest.mark.usefixtures("hasty")
async def test_an_async_producer_is_not_remembered_beyond_its_records(disk: Disk) -> None:
    """After a crash a producer's retry of a record that was lost is appended, not taken for a duplicate."""
    log = disk.log
    await create(log, "slow")
    await create(log, "s", ASYNC)
    gate = disk.gate()
    gate.shut()
    held = begin_append(log, "slow", b"0")
    await turns()  # it is on its way to the disk now
    await append(log, "s", b"0", producer=("p", 0, 0))
    await _lazy_timer_has_fired()
    gate.let()
    last = begin_append(log, "s", b"1", producer=("p", 0, 1), close=True)  # before the loop hears of that commit
    await held.wait()
    await last.wait()
    await turns()
    gate.let()  # the commit that holds the first record, and maybe the last
    await disk.crash()
    kept = await read_records(disk.log, "s")
    assert kept in ([b"0"], [b"0", b"1"])
    again = await append(disk.log, "s", b"1", producer=("p", 0, 1), close=True)
    assert again.duplicate == (len(kept) == 2)
    assert await read_records(disk.log, "s") == [b"0", b"1"]


async def test_an_async_producer_is_not_remembered_beyond_its_records_when_there_was_no_room(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where a record that had found no room is written before the one that came after it."""
    patch_constants(monkeypatch, LAZY_S=0, FULL_S=0)
    log = disk.log
    await create(log, "s", ASYNC)
    gate = disk.gate()
    gate.shut()
    gate.full = 1
    await append(log, "s", b"0", producer=("p", 0, 0))
    await turns()  # it is on its way to the disk now
    gate.let()
    last = None
    while last is None:
        await asyncio.sleep(0)  # the loop hears that there was no room, and tries again
        with contextlib.suppress(StoreFull):
            last = begin_append(log, "s", b"1", producer=("p", 0, 1), close=True)
    await last.wait()
    await turns()
    gate.let()
    await disk.crash()
    kept = await read_records(disk.log, "s")
    assert kept in ([b"0"], [b"0", b"1"])
    again = await append(disk.log, "s", b"1", producer=("p", 0, 1), close=True)
    assert again.duplicate == (len(kept) == 2)
    assert await read_records(disk.log, "s") == [b"0", b"1"]


@pytest.mark.usefixtures("hasty")
async def test_deleting_an_async_stream_gives_back_its_uncommitted_bytes(disk: Disk) -> None:
    """Bytes that wait for the disk are not counted any more once their stream is gone."""
    await create(disk.log, "s", ASYNC)
    await append(disk.log, "s", b'"waiting"')
    await delete(disk.log, "s")
    await _lazy_timer_has_fired()
    await create(disk.log, "t")  # one commit later
    assert disk.log.statistics().uncommitted_bytes == 0


async def test_closing_ends_even_if_async_records_find_no_room(disk: Disk) -> None:
    """With a full disk a stop does not wait for room that may never come."""
    await create(disk.log, "s", ASYNC)
    gate = disk.gate()
    gate.full = -1
    await append(disk.log, "s", b"1")
    async with asyncio.timeout(5):
        await disk.log.close()
    disk.reopen()


async def test_a_full_disk_does_not_lose_what_an_async_stream_acknowledged(disk: Disk) -> None:
    """Async records that find no room wait, and are written when there is room again."""
    log = disk.log
    await create(log, "s", ASYNC)
    await create(log, "t")
    gate = disk.gate()
    gate.full = -1
    await append(log, "s", b"1")
    with pytest.raises(StoreFull):
        await append(log, "t", b"1")
    gate.full = 0
    await append(log, "t", b"2")
    await append(log, "s", b"2")
    await settle(log)
    await disk.crash()
    assert await read_records(disk.log, "s") == [b"1", b"2"]
    assert await read_records(disk.log, "t") == [b"2"]


async def test_a_stream_in_memory_ends_with_its_process(disk: Disk) -> None:
    """A memory stream beside durable ones leaves nothing on disk."""
    await create(disk.log, "s", creation(durability=Durability.MEMORY))
    await append(disk.log, "s", b"1")
    await create(disk.log, "t")
    await disk.restart()
    assert [info.path for info in disk.log.list("", "", 10)] == ["t"]


async def test_a_long_async_body_can_be_read_at_once(disk: Disk) -> None:
    """A body too large for memory is readable as soon as its async append is acknowledged."""
    await create(disk.log, "s", creation(BYTES, durability=Durability.ASYNC))
    gate = disk.gate()
    gate.shut()
    await append(disk.log, "s", spool(b"x" * 700_000))
    assert b"".join(await read_records(disk.log, "s")) == b"x" * 700_000
    gate.open()


async def test_a_fork_of_an_async_stream_keeps_its_own_records_after_a_crash(disk: Disk) -> None:
    """After a crash a fork reads its own records from its fork point on, not its source's."""
    log = disk.log
    await create(log, "s", ASYNC)
    await append(log, "s", b'["a","b"]')
    await create(log, "f", creation(source="s"))
    await append(log, "f", b'["f1","f2"]')
    await append(log, "s", b'["c","d"]')
    await settle(log)
    await disk.crash()
    assert await read_records(disk.log, "f") == [b'"a"', b'"b"', b'"f1"', b'"f2"']
    assert await read_records(disk.log, "s") == [b'"a"', b'"b"', b'"c"', b'"d"']
    await append(disk.log, "f", b'"f3"')
    assert await read_records(disk.log, "f") == [b'"a"', b'"b"', b'"f1"', b'"f2"', b'"f3"']


async def test_a_fork_does_not_outlive_the_records_it_was_made_from(disk: Disk) -> None:
    """A fork is acknowledged only when the records before its fork point are as safe as the fork itself."""
    log = disk.log
    await create(log, "s", ASYNC)
    await create(log, "slow")
    await append(log, "s", b'["a","b"]')
    await create(log, "f", creation(source="s"))
    await disk.crash()
    assert await read_records(disk.log, "f") == [b'"a"', b'"b"']
    await append(disk.log, "s", b'["x","y","z"]')
    assert await read_records(disk.log, "f") == [b'"a"', b'"b"']


async def test_a_creation_is_committed_with_all_that_it_holds(disk: Disk) -> None:
    """A stream that is created with records, or closed, is never there without them, also if it is async."""
    log = disk.log
    await create(log, "slow")
    gate = disk.gate()
    gate.shut()
    held = begin_append(log, "slow", b"0")
    await turns()  # it is on its way to the disk now
    gate.let()
    wanted = creation(durability=Durability.ASYNC, body=b"[1,2]", closed=True)
    created = begin_create(log, "s", wanted)  # before the loop hears of that commit
    await held.wait()
    await turns()
    gate.let()
    await created.wait()
    await disk.crash()
    assert await read_records(disk.log, "s") == [b"1", b"2"]
    assert disk.log.find("s").closed


async def test_earliest_can_be_read_after_any_number_of_crashes(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the hub crashed, the offsets that an async stream gives out can be used."""
    await create(disk.log, "s", ASYNC)
    patch_constants(monkeypatch, LINEAGE_MAX=4)
    for number in range(8):
        await append(disk.log, "s", b"%d" % number)
        await settle(disk.log)
        await disk.crash()
    stream = disk.log.find("s")
    for position in range(9):
        assert stream.resolve(stream.offset(position)) == position


async def test_a_json_stream_is_the_default(disk: Disk) -> None:
    """Two logs on one directory, one after the other, agree on what a stream is."""
    await create(disk.log, "s", creation(JSON, retention_age_s=60))
    before = disk.log.find("s").info()
    await disk.restart()
    assert disk.log.find("s").info() == before
    assert offset_at(disk.log, "s", 0) == before.tail
