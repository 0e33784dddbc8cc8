"""Message ids: what is sent again within the window is appended once, whatever happened in between."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest

from tests.support.disk import Disk
from tests.support.log import Answer, append, begin_append, begin_publish, create, creation, publish, read_records
from wayside.core.errors import BadRequest, StoreFull, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import Append, Appended, Meta, Producer, Spool
from wayside.streams.streams import Streams
from wayside.testing import ManualClock


def send(log: Streams, record: bytes, identity: str, path: str = "s") -> Answer:
    return begin_publish(log, path, record, meta=Meta(id=identity) if identity else None)


async def sent(log: Streams, record: bytes, identity: str, path: str = "s") -> tuple[int, bool]:
    result: Appended = await send(log, record, identity, path).wait()
    return result.position, result.duplicate


async def test_a_second_one_is_answered_with_the_first(log: Streams, clock: ManualClock) -> None:
    """Within the window; after it the id may be used again."""
    await create(log, "s")
    assert await sent(log, b"1", "a") == (1, False)
    assert await sent(log, b"2", "b") == (2, False)
    assert await sent(log, b"3", "a") == (1, True)
    clock.advance(119)
    assert await sent(log, b"4", "b") == (2, True)
    clock.advance(1)
    assert await sent(log, b"5", "b") == (3, False)
    assert await sent(log, b"6", "b") == (3, True)
    assert await read_records(log, "s") == [b"1", b"2", b"5"]


async def test_it_waits_for_the_first(disk: Disk) -> None:
    """While the first is on its way to the disk its duplicate is not answered; it fails with it, and the id is free."""
    await create(disk.log, "s")
    gate = disk.gate()
    gate.shut()
    first, second = send(disk.log, b"1", "a"), send(disk.log, b"2", "a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    third = send(disk.log, b"3", "a")
    gate.full = 1
    gate.open()
    for answer in (first, second, third):
        with pytest.raises(StoreFull):
            await answer.wait()
    gate.shut()
    again, twice = send(disk.log, b"4", "a"), send(disk.log, b"5", "a")
    await asyncio.sleep(0)
    assert not twice.given
    gate.open()
    results = [await again.wait(), await twice.wait()]
    assert [(result.position, result.duplicate) for result in results] == [(1, False), (1, True)]
    assert await read_records(disk.log, "s") == [b"4"]


@pytest.mark.parametrize("end", ["restart", "crash"])
async def test_ids_survive(disk: Disk, end: str) -> None:
    """From chunk rows after a stop, from the journal after a crash; each for what is left of its window."""
    await create(disk.log, "s")
    for number in range(20):
        await sent(disk.log, b"%d" % number, f"id-{number}")
        disk.clock.advance(10)
    log = await (disk.restart() if end == "restart" else disk.crash())
    # Of 200 seconds the last 120 count: ids 8 to 19, and id 8 to the millisecond.
    answers = [send(log, b"again", f"id-{number}") for number in (19, 9, 7)]
    answers.append(begin_publish(log, "s", b"plain"))
    answers.append(send(log, b"again", "id-9"))
    results = [await answer.wait() for answer in answers]
    assert [(result.position, result.duplicate) for result in results] == [
        (20, True), (10, True), (21, False), (22, False), (10, True),
    ]  # fmt: skip
    assert (await read_records(log, "s"))[20:] == [b"again", b"plain"]
    disk.clock.advance(20)
    assert await sent(log, b"anew", "id-9") == (23, False)


async def test_nothing_overtakes_while_ids_are_read(disk: Disk) -> None:
    """Appends without an id, a close, and an append to several streams stay in line behind the first with one."""
    await create(disk.log, "s", creation("text/plain"))
    await create(disk.log, "t")
    for number in range(5):
        await sent(disk.log, b"%d" % number, f"id-{number}")
    log = await disk.restart()
    together = Answer()
    answers = [send(log, b"a", "x"), begin_append(log, "s", b"b"), begin_append(log, "s", b"c")]
    log.append_all([("t", Append(b"", records=[b"1"])), ("s", Append(b"", records=[b"d"]))], together, in_line=True)
    answers += [send(log, b"e", "id-3"), together, begin_append(log, "s", b"f", close=True)]
    results = [await answer.wait() for answer in answers]
    assert [result.position for result in results if isinstance(result, Appended)] == [6, 7, 8, 4, 10]
    assert [result.position for result in results[4]] == [1, 9]
    assert (await read_records(log, "s"))[5:] == [b"a", b"b", b"c", b"d", b"f"]
    assert await sent(log, b"late", "x") == (6, True), "also of a stream that was closed meanwhile"


async def test_a_stop_waits_for_those_in_line(disk: Disk) -> None:
    """Their answers come before the log is closed."""
    await create(disk.log, "s")
    await sent(disk.log, b"1", "a")
    log = await disk.restart()
    answer = send(log, b"2", "b")
    log = await disk.restart()
    assert (await answer.wait()).position == 2
    assert await sent(log, b"3", "b") == (2, True)


async def test_together_each_is_answered(log: Streams) -> None:
    """Of several in one transaction those that were sent before, or stand in it twice, are left out."""
    await create(log, "s")
    await create(log, "t")
    await sent(log, b"1", "a")
    done = Answer()
    parts = [("s", b"2", "b"), ("s", b"3", "a"), ("t", b"4", "a"), ("s", b"5", "b"), ("s", b"6", "")]
    log.append_all([(path, Append(b"", records=[data], meta=Meta(id=name))) for path, data, name in parts], done)
    results = await done.wait()
    assert [(r.position, r.duplicate) for r in results] == [(2, False), (1, True), (1, False), (2, True), (3, False)]
    assert await read_records(log, "s") == [b"1", b"2", b"6"]
    assert await read_records(log, "t") == [b"4"]


async def test_as_many_as_the_bound_are_remembered(tmp_path: Path, clock: ManualClock) -> None:
    """The oldest are forgotten first, also after a restart."""
    limits = Limits(dedupe_ids_max=3)
    disk = Disk(tmp_path, limits=limits, clock=clock)
    await create(disk.log, "s")
    for number in range(5):
        await sent(disk.log, b"%d" % number, str(number))
    for log in (disk.log, await disk.restart()):
        assert await sent(log, b"again", "4") == (5, True)
        assert await sent(log, b"again", "2") == (3, True)
    assert await sent(disk.log, b"again", "1") == (6, False)
    assert await sent(disk.log, b"again", "2") == (7, False)
    await disk.close()


async def test_what_an_id_cannot_name(log: Streams) -> None:
    """Several records, an append of an idempotent producer, a body that becomes pieces: refused, and nothing is appended."""
    await create(log, "s")
    await create(log, "b", creation("application/octet-stream"))
    with pytest.raises(BadRequest, match="names one record"):
        await publish(log, "s", b"1", b"2", meta=Meta(id="a"))
    with pytest.raises(BadRequest, match="Producer-Id"):
        log.append("s", Append(b"1", "application/json", producer=Producer("p", 0, 0), meta=Meta(id="a")), Answer())
    with pytest.raises(TooLarge, match="becomes several records"):
        log.append("b", Append(_spool(), "application/octet-stream", meta=Meta(key="a")), Answer())
    assert await sent(log, b"1", "a") == (1, False)
    assert log.find("b").tail == 0
    await append(log, "b", b"x")


def _spool() -> Spool:
    return Spool(io.BytesIO(b"x" * 100), 100)
