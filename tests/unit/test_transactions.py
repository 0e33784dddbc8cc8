"""Several appends as one; letting go of what is before a position; and what somebody holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.disk import Disk, Gate
from tests.support.embedded import embedded
from tests.support.failing_disk import FailingDisk
from tests.support.log import (
    BYTES,
    Answer,
    append,
    begin_append,
    create,
    creation,
    publish,
    read_records,
    retain_by_age,
    settle,
)
from tests.support.waiting import turns, until
from wayside.core.errors import BadRequest, Conflict, NotFound, StoreFull
from wayside.core.limits import Limits
from wayside.core.records import Append, Appended, Meta
from wayside.streams.streams import Streams
from wayside.testing import ManualClock


def begin_all(log: Streams, *appends: tuple[str, list[bytes]], ids: dict[str, str] | None = None) -> Answer:
    answer = Answer()
    log.append_all(
        [
            (path, Append(b"", records=records, meta=Meta(id=ids[path]) if ids and path in ids else None))
            for path, records in appends
        ],
        answer,
    )
    return answer


async def append_all(log: Streams, *appends: tuple[str, list[bytes]], **options: Any) -> list[Appended]:
    result: list[Appended] = await begin_all(log, *appends, **options).wait()
    return result


# -- all, or none


async def test_all_are_appended_in_order(log: Streams) -> None:
    """Several streams, and one of them twice; the answer has the offset after each."""
    await create(log, "a")
    await create(log, "b", creation(BYTES))
    done = await append_all(log, ("a", [b"1", b"2"]), ("b", [b"x"]), ("a", [b"3"]))
    assert [appended.position for appended in done] == [2, 1, 3]
    assert await read_records(log, "a") == [b"1", b"2", b"3"]
    assert await read_records(log, "b") == [b"x"]
    assert await append_all(log) == []


async def test_what_is_refused_at_once_changes_nothing(log: Streams) -> None:
    """No such stream, a closed one, an id for two records: nothing is appended anywhere."""
    await create(log, "a")
    await create(log, "closed", creation(closed=True))
    with pytest.raises(NotFound):
        begin_all(log, ("a", [b"1"]), ("none", [b"1"]))
    with pytest.raises(Conflict):
        begin_all(log, ("a", [b"1"]), ("closed", [b"1"]))
    with pytest.raises(BadRequest):
        begin_all(log, ("a", [b"1"]), ("a", [b"2", b"3"]), ids={"a": "same"})
    await turns()
    assert log.find("a").next == 0


async def test_all_become_visible_with_one_commit(disk: Disk) -> None:
    """Before it none is there, after it all are; a crash in between takes all of them."""
    for path in "abc":
        await create(disk.log, path)
    gate = disk.gate()
    gate.shut()
    answer = begin_all(disk.log, *((path, [b"1"]) for path in "abc"))
    begin_append(disk.log, "a", b"2")
    await turns()
    assert [disk.log.find(path).tail for path in "abc"] == [0, 0, 0]
    gate.let()
    await answer.wait()
    assert [disk.log.find(path).tail > 0 for path in "abc"] == [True] * 3
    lost = begin_all(disk.log, *((path, [b"9"]) for path in "abc"))
    await turns()
    await disk.crash()
    gate.open()
    assert [(await read_records(disk.log, path))[:1] for path in "abc"] == [[b"1"]] * 3
    assert not [path for path in "abc" if b"9" in await read_records(disk.log, path)]
    assert not lost.given or isinstance(lost.result, list)


async def test_a_full_disk_takes_all_of_them_back(disk: Disk) -> None:
    """Nothing of a transaction is left when its commit fails, and the next one goes through."""
    for path in "ab":
        await create(disk.log, path)
    gate: Gate = disk.gate()
    gate.full = 1
    failed = begin_all(disk.log, ("a", [b"1"]), ("b", [b"1"]), ids={"a": "id"})
    with pytest.raises(StoreFull):
        await failed.wait()
    assert [disk.log.find(path).next for path in "ab"] == [0, 0]
    done = await append_all(disk.log, ("a", [b"1"]), ("b", [b"1"]), ids={"a": "id"})
    assert not any(appended.duplicate for appended in done)
    await disk.crash()
    assert [await read_records(disk.log, path) for path in "ab"] == [[b"1"], [b"1"]]


async def test_a_failing_disk_takes_all_of_them_back(tmp_path: Path, clock: ManualClock) -> None:
    """A disk that refuses to write leaves nothing of a transaction, on it or in sight."""
    failing = FailingDisk()
    log = embedded(tmp_path, clock=clock, vfs=failing.name)
    log.start()
    for path in "ab":
        await create(log, path)
        await append(log, path, b"0")
    failing.fail("sync", "wal", apsw.SQLITE_IOERR_FSYNC)
    answer = begin_all(log, ("a", [b"1"]), ("b", [b"1"]))
    with pytest.raises(Exception, match="disk"):
        await answer.wait()
    assert [await read_records(log, path) for path in "ab"] == [[b"0"], [b"0"]]
    failing.heal()
    await log.close()
    log = embedded(tmp_path, clock=clock)
    log.start()
    found = [await read_records(log, path) for path in "ab"]
    assert found in ([[b"0"]] * 2, [[b"0", b"1"]] * 2)  # a sync that failed may have been none, but never half of one
    await log.close()
    failing.unregister()


async def test_a_message_id_that_was_there_before(log: Streams) -> None:
    """The record with it is not appended again; the others are."""
    await create(log, "a", creation(BYTES))
    await create(log, "b", creation(BYTES))
    await publish(log, "a", b"1", meta=Meta(id="one"))
    done = await append_all(log, ("a", [b"1"]), ("b", [b"2"]), ids={"a": "one"})
    assert [appended.duplicate for appended in done] == [True, False]
    assert [appended.position for appended in done] == [1, 1]
    assert await read_records(log, "a") == [b"1"]
    twice = await append_all(log, ("b", [b"3"]), ("b", [b"3"]), ids={"b": "three"})
    assert [appended.duplicate for appended in twice] == [False, True]
    assert await read_records(log, "b") == [b"2", b"3"]


async def test_ids_that_have_to_be_read_from_the_disk(tmp_path: Path, clock: ManualClock) -> None:
    """A transaction with an id waits for them, and is whole all the same; one without any does not wait."""
    disk = Disk(tmp_path, clock=clock, limits=Limits(stream_cache_bytes_max=1, cache_bytes_max=1))
    for path in "ab":
        await create(disk.log, path, creation(BYTES))
    for number in range(4):
        await publish(disk.log, "a", b"x" * 200_000, meta=Meta(id=f"id-{number}"))
    await disk.crash()
    waits = begin_all(disk.log, ("b", [b"1"]), ("a", [b"2"]), ids={"a": "id-0"})
    assert disk.log.find("b").next == 0
    plain = begin_all(disk.log, ("a", [b"3"]), ("b", [b"4"]))
    assert disk.log.find("a").next == 5
    assert [appended.duplicate for appended in await waits.wait()] == [False, True]
    await plain.wait()
    assert await read_records(disk.log, "b") == [b"4", b"1"]
    assert disk.log.find("a").tail == 5
    await disk.close()


# -- letting go


async def test_trim_lets_go_of_what_is_before(log: Streams) -> None:
    """Whole batches and chunks before the position go; nothing from it on does."""
    await create(log, "s", creation(BYTES))
    for number in range(40):
        await append(log, "s", b"%02d" % number * 20_000)
    stream = log.find("s")
    log.trim("s", 25)
    assert 10 < stream.start <= 25
    start = stream.start
    assert (await read_records(log, "s"))[0][:2] == b"%02d" % start
    log.trim("s", 3)
    assert stream.start == start
    log.trim("s", 10_000)
    assert start < stream.start <= 40
    with pytest.raises(NotFound):
        log.trim("none", 1)


async def test_small_records_in_memory_are_trimmed(clock: ManualClock) -> None:
    """Records that take more memory than bytes go as well."""
    log = embedded(None, clock=clock)
    log.start()
    await create(log, "s", creation(BYTES))
    for _ in range(10):
        await append(log, "s", b"x")
    log.trim("s", 7)
    assert log.find("s").start == 7
    await log.close()


async def test_a_trim_outlives_the_hub(disk: Disk) -> None:
    """Where a stream begins is on disk too."""
    await create(disk.log, "s", creation(BYTES))
    for number in range(40):
        await append(disk.log, "s", b"%02d" % number * 20_000)
    disk.log.trim("s", 25)
    start = disk.log.find("s").start
    assert start > 0
    await append(disk.log, "s", b"more")
    await disk.crash()
    assert disk.log.find("s").start == start


# -- holding


async def test_retention_stops_at_what_is_held(log: Streams, clock: ManualClock) -> None:
    """By bytes, by age or by a trim: nothing goes from there on, until it is let go of."""
    await create(log, "s", creation(BYTES, retention_bytes=1, retention_age_s=1))
    at = [0]
    release = log.find("s").hold(lambda: at[0])
    for number in range(40):
        await append(log, "s", b"%02d" % number * 20_000)
    stream = log.find("s")
    clock.advance(3600)
    retain_by_age(log)
    log.trim("s", 40)
    assert stream.start == 0
    at[0] = 30
    await append(log, "s", b"x")
    assert 15 < stream.start <= 30
    other = stream.hold(lambda: stream.start)
    release()
    start = stream.start
    await append(log, "s", b"x")
    assert stream.start == start
    other()
    other()
    await append(log, "s", b"x")
    assert stream.start > 30


async def test_a_held_stream_is_not_unloaded(disk: Disk) -> None:
    """What holds it is not forgotten with it."""
    await create(disk.log, "s", creation(BYTES))
    await append(disk.log, "s", b"x" * 600_000)
    await until(lambda: disk.log.find("s").sealed == 1)
    release = disk.log.find("s").hold(lambda: 0)
    assert not disk.log.find("s").is_idle
    release()
    await settle(disk.log)
    assert disk.log.find("s").is_idle
