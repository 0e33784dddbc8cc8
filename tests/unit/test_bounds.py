"""What bounds a log: appends that wait, memory, the length of a page; and what a bound must not cost a reader."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from tests.support.disk import Disk
from tests.support.embedded import embedded, store_of
from tests.support.followers import Plainly, Recorder, records_in
from tests.support.log import (
    BYTES,
    TEXT,
    append,
    begin_append,
    begin_create,
    create,
    creation,
    delete,
    expire,
    read_records,
)
from tests.support.waiting import turns, until
from wayside.core.errors import BadRequest, NotFound, Overloaded, StoreFull, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import Durability, runs
from wayside.streams.streams import Streams
from wayside.testing import ManualClock


@pytest.fixture
async def small(clock: ManualClock) -> Any:
    """A log in memory with small bounds."""
    log = embedded(
        None, limits=Limits(memory_bytes_max=100_000, append_records_max=10, read_records_max=3), clock=clock
    )
    log.start()
    yield log
    await log.close()


# -- what waits


async def test_appends_that_wait_behind_a_commit_are_counted(disk: Disk) -> None:
    """The bound on what waits for the disk holds while a commit takes long, for each way to append."""
    await disk.restart(Limits(uncommitted_bytes_max=10_000))
    await create(disk.log, "a", creation(BYTES))
    await create(disk.log, "j")
    gate = disk.gate()
    gate.shut()
    answers = [begin_append(disk.log, "a", b"x" * 4000)]
    await turns()
    for path, body in (("a", b"x" * 4000), ("j", b'"%b"' % (b"x" * 4000))):
        answers.append(begin_append(disk.log, path, body))
    for path, body in (("a", b"x"), ("j", b"1")):
        with pytest.raises(Overloaded):
            begin_append(disk.log, path, body)
    assert disk.log.statistics().uncommitted_bytes == 12_002
    gate.open()
    for answer in answers:
        await answer.wait()
    assert disk.log.statistics().uncommitted_bytes == 0
    await append(disk.log, "a", b"x")


async def test_what_found_no_room_waits_no_more(disk: Disk) -> None:
    """Appends that were refused, those behind them too, do not count as waiting."""
    await create(disk.log, "a", creation(BYTES))
    gate = disk.gate()
    gate.shut()
    gate.full = 1
    first = begin_append(disk.log, "a", b"x" * 1000)
    await turns()
    second = begin_append(disk.log, "a", b"x" * 1000)
    gate.open()
    for answer in (first, second):
        with pytest.raises(StoreFull):
            await answer.wait()
    assert disk.log.statistics().uncommitted_bytes == 0


# -- memory


async def test_streams_in_memory_are_bounded_together(small: Streams) -> None:
    """When the streams in memory have what they may, appends are refused with 507; deleting one makes room."""
    for path, count in (("a", 6), ("b", 5)):
        await create(small, path, creation(BYTES))
        for _ in range(count):
            await append(small, path, b"x" * 8000)
    await append(small, "a", b"x" * 8000)
    with pytest.raises(StoreFull) as refused:
        begin_append(small, "a", b"x")
    assert refused.value.code == "memory-full"
    with pytest.raises(StoreFull):
        await begin_create(small, "c", creation(BYTES)).wait()
    await append(small, "b", close=True)
    await delete(small, "b")
    await append(small, "a", b"x")


async def test_small_records_count_what_they_take(small: Streams) -> None:
    """Records of one byte take far more memory than a byte each, and are bounded by that."""
    await create(small, "a", creation(BYTES))
    for _ in range(1000):
        with contextlib.suppress(StoreFull):
            await append(small, "a", b"x")
    assert 200 < small.find("a").tail < 400


async def test_one_append_has_not_too_many_records(small: Streams) -> None:
    """An array of more records than an append may have is refused whole."""
    await create(small, "a")
    await append(small, "a", b"[1,2,3,4,5,6,7,8,9,10]")
    with pytest.raises(TooLarge) as refused:
        begin_append(small, "a", b"[1,2,3,4,5,6,7,8,9,10,11]")
    assert refused.value.fields == {"limit_records": 10}
    assert len(await read_records(small, "a")) == 10


async def test_a_step_has_not_too_many_records(small: Streams) -> None:
    """What a follower is given at once is bounded in records too, from memory."""
    await create(small, "a")
    sink = Recorder()
    small.follow(small.find("a"), 0, Plainly("x"), sink, "test")
    await append(small, "a", b"[1,2,3,4,5,6,7,8,9,10]")
    await until(lambda: records_in(sink.frames) == [b"%d" % n for n in range(1, 11)])
    assert max(len(records_in([frame])) for frame in sink.frames) == 3


async def test_a_step_has_not_too_many_records_from_the_disk(disk: Disk) -> None:
    """The same from the disk, whose rows may hold more; from any position."""
    await disk.restart(Limits(read_records_max=3))
    await create(disk.log, "a")
    await append(disk.log, "a", b"[1,2,3,4,5,6,7,8,9,10]")
    log = await disk.restart()
    for position in range(10):
        first = (await log.find("a").read(position, 1 << 20))[0]
        assert first.position == position
        assert first.records == [b"%d" % n for n in range(position + 1, min(position + 4, 11))]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], [[]]),
        ([9], [[9]]),
        ([1, 1, 1], [[1, 1, 1]]),
        ([2, 2, 2], [[2, 2], [2]]),
        ([9, 1], [[9], [1]]),
        ([1, 9, 1], [[1], [9], [1]]),
        ([1] * 7, [[1] * 3, [1] * 3, [1]]),
        ([0] * 4, [[0] * 3, [0]]),
    ],
)
def test_runs_are_bounded_and_whole(sizes: list[int], expected: list[list[int]]) -> None:
    """Runs of records keep within 4 bytes and 3 records, but for a larger record, and are all of them in order."""
    records = [b"x" * size for size in sizes]
    assert [[len(record) for record in run] for run in runs(records, sum(sizes), 4, 3)] == expected


# -- what retention must not cost


async def test_retention_does_not_overtake_a_cohort_that_rests(log: Streams) -> None:
    """Followers at the tail that rest after a frame are given what retention is about to let go."""
    await create(log, "a", creation(TEXT, retention_bytes=10))
    sinks = [Recorder() for _ in range(3)]
    for sink in sinks:
        log.follow(log.find("a"), 0, Plainly("shared"), sink, "test")
    (cohort,) = log.find("a").cohorts.values()
    for number in range(20):
        cohort._due = asyncio.get_running_loop().time() + 1000  # it would rest for long
        await append(log, "a", b"%09d" % number)
    cohort._due = 0
    cohort.flush()
    for sink in sinks:
        assert records_in(sink.frames) == [b"%09d" % number for number in range(20)]


async def test_a_start_that_could_not_be_stored_is_stored_later(disk: Disk) -> None:
    """What retention let go while the disk was full stays gone after a restart."""
    await create(disk.log, "a", creation(TEXT, retention_bytes=1000))
    store: Any = store_of(disk.log)
    commit = store.commit

    def refuse_trims(unit: Any) -> Any:
        if not unit.puts:
            raise StoreFull("no room, says the test")
        return commit(unit)

    store.commit = refuse_trims
    for _ in range(30):
        with contextlib.suppress(StoreFull):  # what is accepted on top of a trim fails with it
            await append(disk.log, "a", b"y" * 100)
        await turns()
    info = disk.log.find("a").info()
    assert info.earliest.position > 0
    await until(lambda: disk.log._commits.idle)
    store.commit = commit
    assert (await disk.restart()).find("a").info() == info


async def test_a_deadline_that_could_not_be_stored_is_stored_later(disk: Disk, clock: ManualClock) -> None:
    """A stream whose new deadline found no room does not expire by the old one after a restart."""
    await create(disk.log, "a", creation(TEXT, ttl_s=60))
    clock.advance(50)
    disk.log.find("a")  # read: it lives until 110
    gate = disk.gate()
    gate.full = 1
    clock.advance(11)
    expire(disk.log)
    await until(lambda: gate.full == 0)
    await turns()
    log = await disk.restart()
    assert log.find("a", touch=False).path == "a"


async def test_a_fork_inside_a_record_that_retention_overtakes_is_refused(disk: Disk) -> None:
    """While the record that a fork cuts is read from the disk its source may go on: the fork is refused, not broken."""
    await create(disk.log, "a", creation(BYTES, retention_bytes=20_000))
    for _ in range(20):
        await append(disk.log, "a", b"x" * 1000)
    log = await disk.restart()
    stream = log.find("a")
    later = stream._later

    async def slowly(*arguments: Any) -> Any:
        found = await later(*arguments)
        for _ in range(30):
            await append(log, "a", b"y" * 1000)
        return found

    stream._later = slowly
    with pytest.raises(BadRequest) as refused:
        await begin_create(log, "f", creation(source="a", fork_offset="-1", fork_sub_offset=1500)).wait()
    assert refused.value.code == "fork-offset-invalid"
    with pytest.raises(NotFound):
        log.find("f")


# -- pages


@pytest.mark.parametrize("durability", [Durability.FSYNC, Durability.MEMORY])
async def test_a_page_skips_nothing(disk: Disk, clock: ManualClock, durability: Durability) -> None:
    """Streams that have expired, and streams that happen to be loaded, make no page shorter than the listing is."""
    for number in range(50):
        await create(disk.log, f"a{number:02d}", creation(ttl_s=5 if number in (3, 4, 20, 49) else None))
    await create(disk.log, "z")
    await disk.restart()
    await create(disk.log, "m", creation(durability=durability))
    clock.advance(10)
    disk.log.find("z")
    listed: list[str] = []
    after = ""
    while True:
        page = disk.log.list("", after, 10)
        listed += [info.path for info in page]
        if len(page) < 10:
            break
        after = page[-1].path
    assert listed == [f"a{number:02d}" for number in range(50) if number not in (3, 4, 20, 49)] + ["m", "z"]
