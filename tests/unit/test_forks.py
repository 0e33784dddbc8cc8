"""Forks: a stream that shares the records of another up to a point."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.disk import Disk
from tests.support.log import (
    BYTES,
    TEXT,
    append,
    begin_append,
    begin_create,
    create,
    creation,
    delete,
    offset_at,
    read_records,
)
from wayside.core.errors import BadRequest, Conflict, Gone, NotFound, Refusal, StoreFull
from wayside.core.records import Create, Durability
from wayside.streams.streams import Streams


async def _source(log: Streams, path: str = "s") -> None:
    await create(log, path)
    await append(log, path, b"[1,2]")
    await append(log, path, b"[3,4]")


async def test_offsets_up_to_the_fork_point_are_the_sources(log: Streams) -> None:
    """A reader may go from the source to its fork with the offset it has; after the fork point offsets differ."""
    await _source(log)
    await create(log, "f", creation(source="s", fork_offset=offset_at(log, "s", 3)))
    own = (await append(log, "f", b"[30,40]")).offset
    await append(log, "s", b"5")
    assert [offset_at(log, "f", at) for at in range(4)] == [offset_at(log, "s", at) for at in range(4)]
    assert own == offset_at(log, "f", 5)
    assert own.epoch > offset_at(log, "s", 5).epoch
    fork = log.find("f")
    assert [fork.resolve(offset_at(log, "s", at)) for at in range(4)] == [0, 1, 2, 3]
    with pytest.raises(Gone):
        fork.resolve(offset_at(log, "s", 4))
    with pytest.raises(Gone):
        log.find("s").resolve(offset_at(log, "f", 4))


@pytest.mark.parametrize(
    ("at", "records"),
    [(None, 4), ("now", 4), ("-1", 0), (0, 0), (1, 1), (2, 2), (3, 3), (4, 4)],
)
async def test_a_fork_has_the_records_before_its_point(log: Streams, at: object, records: int) -> None:
    """Wherever a fork begins, between appends or inside one, it has what was before and goes its own way."""
    await _source(log)
    point = offset_at(log, "s", at) if isinstance(at, int) else at
    await create(log, "f", creation(source="s", fork_offset=point))  # type: ignore[arg-type]
    await append(log, "f", b'"own"')
    await append(log, "s", b'"later"')
    expected = [*[b"1", b"2", b"3", b"4"][:records], b'"own"']
    assert await read_records(log, "f") == expected
    assert await read_records(log, "f", bytes_max=1) == expected
    for start in range(records + 1):
        assert await read_records(log, "f", start) == expected[start:]


async def test_a_fork_of_a_fork_reaches_through_both(log: Streams) -> None:
    """A fork may be forked before or after its own beginning, and reads each part from whom it is."""
    await _source(log)
    await create(log, "f", creation(source="s", fork_offset=offset_at(log, "s", 2)))
    await append(log, "f", b"[30,40]")
    await create(log, "late", creation(source="f", fork_offset=offset_at(log, "f", 3)))
    await create(log, "early", creation(source="f", fork_offset=offset_at(log, "f", 1)))
    await append(log, "late", b"400")
    await append(log, "early", b"200")
    assert await read_records(log, "late") == [b"1", b"2", b"30", b"400"]
    assert await read_records(log, "early") == [b"1", b"200"]
    assert log.find("late").resolve(offset_at(log, "f", 3)) == 3
    with pytest.raises(Gone):
        log.find("early").resolve(offset_at(log, "f", 2))


async def test_a_fork_takes_over_the_configuration(log: Streams) -> None:
    """What a fork does not state it has from its source."""
    await create(log, "s", creation(TEXT, ttl_s=60, retention_bytes=1000, retention_age_s=5))
    await create(log, "f", creation(source="s"))
    await create(log, "g", creation(source="s", retention_bytes=2000))
    source = log.find("s").config
    assert log.find("f").config == source
    assert log.find("g").config.retention_bytes == 2000
    assert log.find("g").config.content_type == TEXT
    with pytest.raises(Conflict):
        await create(log, "h", _typed_fork("s", BYTES))


def _typed_fork(source: str, content_type: str) -> Create:
    return replace(creation(content_type, source=source), explicit=frozenset({"content_type"}))


async def test_a_fork_point_inside_a_record_splits_it(log: Streams) -> None:
    """In a stream of bytes a fork may begin between two bytes: the record there is shared up to them."""
    await create(log, "s", creation(BYTES))
    await append(log, "s", b"abc")
    await append(log, "s", b"defg")
    await append(log, "s", b"hi")
    for sub, expected in ((0, b"abc"), (2, b"abcde"), (4, b"abcdefg"), (5, b"abcdefgh")):
        path = f"f{sub}"
        await create(log, path, creation(source="s", fork_offset=offset_at(log, "s", 1), fork_sub_offset=sub))
        assert b"".join(await read_records(log, path)) == expected
        await append(log, path, b"!")
        assert b"".join(await read_records(log, path)) == expected + b"!"
    with pytest.raises(BadRequest) as refused:
        await create(log, "g", creation(source="s", fork_offset=offset_at(log, "s", 1), fork_sub_offset=7))
    assert refused.value.code == "fork-sub-offset-invalid"


async def test_a_fork_of_what_is_not_there_is_refused(log: Streams) -> None:
    """The source must exist, and the offset must be one of its own."""
    await _source(log)
    await _source(log, "other")
    with pytest.raises(NotFound):
        await create(log, "f", creation(source="nothing"))
    with pytest.raises(BadRequest) as refused:
        await create(log, "f", creation(source="s", fork_offset=offset_at(log, "other", 1)))
    assert refused.value.code == "fork-offset-invalid"
    with pytest.raises(NotFound):
        log.find("f")


async def test_the_same_fork_again_is_the_same_stream(log: Streams) -> None:
    """A fork asked for twice exists once; another fork point under its name is refused."""
    await _source(log)
    fork = creation(source="s", fork_offset=offset_at(log, "s", 2))
    assert (await create(log, "f", fork)).new
    await append(log, "f", b"9")
    assert not (await create(log, "f", fork)).new
    with pytest.raises(Conflict):
        await create(log, "f", creation(source="s", fork_offset=offset_at(log, "s", 3)))
    with pytest.raises(Conflict):
        await create(log, "f")


async def test_a_deleted_source_is_kept_for_its_forks(log: Streams) -> None:
    """A source with forks that is deleted cannot be read, appended to, or made anew; its forks go on."""
    await _source(log)
    await create(log, "f", creation(source="s"))
    await delete(log, "s")
    for attempt in (lambda: log.find("s"), lambda: begin_append(log, "s", b"5", content_type="application/json")):
        with pytest.raises(Gone) as gone:
            attempt()
        assert gone.value.code == "stream-deleted"
    with pytest.raises(Conflict):
        await create(log, "s")
    with pytest.raises(Conflict):
        await create(log, "g", creation(source="s"))
    assert await read_records(log, "f") == [b"1", b"2", b"3", b"4"]
    assert [info.path for info in log.list("", "", 10)] == ["f"]
    assert log.statistics().streams == 1


async def test_the_last_fork_takes_its_deleted_source_along(log: Streams) -> None:
    """When the last fork goes, so does every deleted source above it; then their names are free."""
    await _source(log)
    await create(log, "f", creation(source="s"))
    await create(log, "g", creation(source="f"))
    await create(log, "h", creation(source="s"))
    await delete(log, "s")
    await delete(log, "f")
    await delete(log, "h")
    with pytest.raises(Gone):
        log.find("s")
    assert await read_records(log, "g") == [b"1", b"2", b"3", b"4"]
    await delete(log, "g")
    for path in ("s", "f", "g", "h"):
        with pytest.raises(NotFound):
            log.find(path)
        assert (await create(log, path)).new
    assert log.statistics().streams == 4


async def test_a_living_source_stays_when_its_forks_go(log: Streams) -> None:
    """Deleting a fork does nothing to a source that was not deleted."""
    await _source(log)
    await create(log, "f", creation(source="s"))
    await delete(log, "f")
    assert await read_records(log, "s") == [b"1", b"2", b"3", b"4"]
    await delete(log, "s")
    with pytest.raises(NotFound):
        log.find("s")


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_forks_outlive_a_restart(disk: Disk, how: str) -> None:
    """Forks, soft deletion, and what each is kept for are the same after a restart."""
    await _source(disk.log)
    await create(disk.log, "f", creation(source="s", fork_offset=offset_at(disk.log, "s", 3)))
    await append(disk.log, "f", b"40")
    await append(disk.log, "s", b"5")
    await create(disk.log, "g", creation(source="f"))
    offsets = [str(offset_at(disk.log, "f", at)) for at in range(5)]
    await delete(disk.log, "s")
    log = await getattr(disk, how)()
    assert [str(offset_at(log, "f", at)) for at in range(5)] == offsets
    assert await read_records(log, "f") == [b"1", b"2", b"3", b"40"]
    assert await read_records(log, "g") == [b"1", b"2", b"3", b"40"]
    with pytest.raises(Gone):
        log.find("s")
    await delete(log, "g")
    await delete(log, "f")
    with pytest.raises(NotFound):
        log.find("s")


async def test_a_source_is_one_stream_after_a_crash(disk: Disk) -> None:
    """After a crash a source knows of its forks, however their records lie in the journal."""
    log = disk.log
    await create(log, "s", creation(BYTES))
    await append(log, "s", b"x" * 300_000)  # a chunk's worth: not in the journal
    await create(log, "f", creation(source="s"))
    await append(log, "f", b"f")
    await append(log, "s", b"s")
    log = await disk.crash()
    await delete(log, "f")
    await delete(log, "s")
    with pytest.raises(NotFound):
        log.find("s")
    assert (await create(log, "s")).new


async def test_a_creation_that_found_no_room_leaves_nothing(disk: Disk) -> None:
    """A fork that could not be committed is not there, and its source does not count it."""
    await _source(disk.log)
    gate = disk.gate()
    gate.full = 1
    with pytest.raises(StoreFull):
        await create(disk.log, "f", creation(source="s"))
    with pytest.raises(NotFound):
        disk.log.find("f")
    assert disk.log.statistics().streams == 1
    await delete(disk.log, "s")
    with pytest.raises(NotFound):
        disk.log.find("s")


@pytest.mark.parametrize("soft", [False, True])
async def test_a_deletion_that_found_no_room_leaves_everything(disk: Disk, soft: bool) -> None:
    """A stream whose deletion could not be committed is as it was; deleting it later works."""
    log = disk.log
    await _source(log)
    if soft:
        await create(log, "f", creation(source="s"))
    streams = log.statistics().streams
    disk.gate().full = 1
    with pytest.raises(StoreFull):
        await delete(log, "s")
    assert log.statistics().streams == streams
    assert await read_records(log, "s") == [b"1", b"2", b"3", b"4"]
    await append(log, "s", b"5")
    assert await read_records(log, "s", 4) == [b"5"]
    await delete(log, "s")
    with pytest.raises(Gone if soft else NotFound):
        log.find("s")


async def test_a_cascade_that_found_no_room_does_not_bring_the_source_back(disk: Disk) -> None:
    """When the deletion of the last fork fails, its source is still deleted, and still kept."""
    log = disk.log
    await _source(log)
    await create(log, "f", creation(source="s"))
    await delete(log, "s")
    disk.gate().full = 1
    with pytest.raises(StoreFull):
        await delete(log, "f")
    assert log.statistics().streams == 1
    with pytest.raises(Gone):
        log.find("s")
    assert await read_records(log, "f") == [b"1", b"2", b"3", b"4"]
    await delete(log, "f")
    with pytest.raises(NotFound):
        log.find("s")
    assert log.statistics().streams == 0


async def test_a_fork_begins_where_its_source_still_reaches(log: Streams) -> None:
    """A fork can be read from the start it names, also when retention went on in its source."""
    await create(log, "s", creation(retention_bytes=40))
    for number in range(5):
        await append(log, "s", b'"%06d"' % number)
    await create(log, "f", creation(source="s"))
    for number in range(5, 8):
        await append(log, "s", b'"%06d"' % number)
    fork = log.find("f")
    first = fork.resolve(fork.info().earliest)
    assert await read_records(log, "f", first) == [b'"%06d"' % number for number in range(first, 5)]


async def test_a_fork_of_a_memory_stream_is_one(disk: Disk) -> None:
    """A fork is as durable as its source, in neither direction otherwise."""
    await create(disk.log, "s", creation(durability=Durability.MEMORY))
    await append(disk.log, "s", b"1")
    await create(disk.log, "f", creation(source="s"))
    assert disk.log.find("f").config.durability is Durability.MEMORY
    with pytest.raises(Conflict) as refused:
        await create(disk.log, "g", creation(source="s", durability=Durability.FSYNC))
    assert refused.value.code == "durability-mismatch"


async def test_two_creations_at_once_make_one_fork(disk: Disk) -> None:
    """Of two forks of one name that are asked for in one moment, one is made."""
    await create(disk.log, "s", creation(BYTES))
    await append(disk.log, "s", b"abc")
    fork = creation(source="s", fork_offset="-1", fork_sub_offset=1)
    answers = [begin_create(disk.log, "f", fork) for _ in range(2)]
    results = await asyncio.gather(*(answer.wait() for answer in answers))
    assert sorted(result.new for result in results) == [False, True]
    assert await read_records(disk.log, "f") == [b"a"]


async def test_forks_are_counted_once(log: Streams) -> None:
    """A source that lost its forks, by deletion or by being refused, can be deleted for good."""
    await _source(log)
    await create(log, "f", creation(source="s"))
    with pytest.raises(Refusal):
        await create(log, "f", creation(source="s", fork_offset="-1"))
    await create(log, "f", creation(source="s"))
    await delete(log, "f")
    await delete(log, "s")
    with pytest.raises(NotFound):
        log.find("s")
