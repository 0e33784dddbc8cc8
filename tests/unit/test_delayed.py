"""Delayed records: in their stream when they are due, once, whatever happens to the hub meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.log import BYTES, Answer, append, create, creation, delete, read_records
from tests.support.waiting import until
from wayside.core.errors import Conflict, NotFound, Overloaded, StoreFull
from wayside.core.limits import Limits
from wayside.core.records import Append, Appended, Meta
from wayside.core.schedule import Timers
from wayside.streams import delayed
from wayside.streams.delayed import DUE, Delaying, Held, Item


class Late:
    """Delayed publishing over a log that can crash."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.timers = Timers(disk.clock)
        self.delaying = Delaying(disk.log, self.timers, disk.clock)

    async def begin(self) -> None:
        self.timers = Timers(self.disk.clock)
        self.delaying = Delaying(self.disk.log, self.timers, self.disk.clock)
        await self.delaying.start()

    async def crash(self) -> None:
        await self.delaying.stop()
        await self.disk.crash()
        await self.begin()

    async def publish(self, *items: tuple[str, bytes, float], meta: Meta | None = None) -> list[Any]:
        answer = Answer()
        self.delaying.append_all(
            [Item(path, Append(b"", records=[data], meta=meta), delay_s) for path, data, delay_s in items], answer
        )
        results: list[Any] = await answer.wait()
        return results

    async def advance(self, seconds: float) -> None:
        """Let time pass, and what is due in it happen."""
        end = self.disk.clock.monotonic() + seconds
        while True:
            at = self.timers.next_at
            self.disk.clock.advance(min(end, end if at is None else at) - self.disk.clock.monotonic())
            self.timers.run()
            await until(lambda: self.delaying._task is None)
            if self.disk.clock.monotonic() >= end:
                return


@pytest.fixture
async def late(disk: Disk) -> Late:
    for path in ("s", "t"):
        await create(disk.log, path, creation(BYTES))
    return Late(disk)


async def records(late: Late, path: str = "s") -> list[bytes]:
    return await read_records(late.disk.log, path)


async def test_they_come_when_they_are_due(late: Late) -> None:
    """In the order of their times, those of one time in the order of their publication, with their metadata."""
    start = late.disk.clock.wall_ms()
    results = await late.publish(("s", b"c", 3), ("s", b"now", 0), ("s", b"a", 1), ("t", b"b", 2), meta=Meta(key="k"))
    now = results.pop(1)
    assert results == [Held(start + 3000, False), Held(start + 1000, False), Held(start + 2000, False)]
    assert isinstance(now, Appended)
    assert now.position == 1
    await late.publish(("s", b"d", 3), ("s", b"e", 3))
    await late.advance(0.999)
    assert await records(late) == [b"now"]
    await late.advance(0.001)
    assert await records(late) == [b"now", b"a"]
    assert await records(late, "t") == []
    await late.advance(2)
    assert await records(late) == [b"now", b"a", b"c", b"d", b"e"]
    assert await records(late, "t") == [b"b"]
    (batch, *_) = await late.disk.log.find("s").read(1, 1)
    assert batch.meta == {0: Meta(key="k")}
    assert (late.delaying.waiting, late.delaying.appended, late.delaying.dropped) == (0, 5, 0)


async def test_a_crash_takes_none_and_doubles_none(late: Late) -> None:
    """Before they are due, after some were, and while the hub was down when they were."""
    await late.publish(*(("s", b"%d" % number, number) for number in range(1, 10)))
    await late.crash()
    assert late.delaying.waiting == 9
    await late.advance(3)
    await late.crash()
    assert await records(late) == [b"1", b"2", b"3"]
    late.disk.clock.advance(4)
    await late.crash()
    await late.advance(0)
    assert await records(late) == [b"%d" % number for number in range(1, 8)]
    await late.disk.restart()
    await late.begin()
    await late.advance(100)
    assert await records(late) == [b"%d" % number for number in range(1, 10)]


async def test_a_crash_in_the_append(late: Late) -> None:
    """Either it and its note are there, or neither is."""
    await late.publish(("s", b"1", 1))
    gate = late.disk.gate()
    gate.shut()
    late.disk.clock.advance(1)
    late.timers.run()
    await asyncio.sleep(0.01)
    assert late.delaying._task is not None
    await late.crash()
    assert await records(late) == []
    await late.advance(0)
    assert await records(late) == [b"1"]
    await late.crash()
    await late.advance(10)
    assert await records(late) == [b"1"]
    gate.open()


async def test_what_cannot_be_appended_is_dropped(late: Late) -> None:
    """That of a stream which was closed, deleted or made anew as another; the others that are due are appended."""
    await create(late.disk.log, "closed", creation(BYTES))
    await create(late.disk.log, "gone", creation(BYTES))
    await create(late.disk.log, "other", creation(BYTES))
    await late.publish(("closed", b"1", 1), ("s", b"2", 1), ("gone", b"3", 1), ("other", b"3", 1), ("t", b"4", 1))
    await append(late.disk.log, "closed", close=True)
    await delete(late.disk.log, "gone")
    await delete(late.disk.log, "other")
    await create(late.disk.log, "other")
    await late.advance(1)
    assert (await records(late), await records(late, "t")) == ([b"2"], [b"4"])
    assert (late.delaying.waiting, late.delaying.appended, late.delaying.dropped) == (0, 2, 3)
    await late.crash()
    assert late.delaying.waiting == 0
    with pytest.raises(NotFound):
        await late.publish(("gone", b"5", 1))
    with pytest.raises(Conflict):
        await late.publish(("s", b"5", 0), ("closed", b"5", 1))
    assert await records(late) == [b"2"]


async def test_no_room_is_not_for_ever(late: Late) -> None:
    """What finds the disk full when it is due is tried again."""
    await late.publish(("s", b"1", 1))
    gate = late.disk.gate()
    gate.full = 1
    await late.advance(1)
    assert await records(late) == []
    await late.advance(1)
    assert await records(late) == [b"1"]
    gate.full = 1
    with pytest.raises(StoreFull):
        await late.publish(("s", b"2", 1))
    await late.advance(5)
    assert await records(late) == [b"1"]


async def test_a_message_id_is_one_also_while_it_waits(late: Late) -> None:
    """A second one with a delay is a duplicate; one without is appended, and the first is not, when it is due."""
    meta = Meta(id="x")
    (first,) = await late.publish(("s", b"1", 5), meta=meta)
    (second,) = await late.publish(("s", b"2", 5), meta=meta)
    (elsewhere,) = await late.publish(("t", b"3", 5), meta=meta)
    assert (first.duplicate, second.duplicate, elsewhere.duplicate) == (False, True, False)
    await late.publish(("s", b"4", 0), meta=meta)
    await late.advance(5)
    assert (await records(late), await records(late, "t")) == ([b"4"], [b"3"])


async def test_it_lets_go_of_what_is_over(late: Late, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all of it when nothing waits; else what waits long is written anew, keeps its place in line, and is not lost."""
    patch_constants(monkeypatch, CHUNK_BYTES=256)
    for name, value in (("COMPACT_RECORDS", 60), ("TRIM_RECORDS", 10), ("TOGETHER_MAX", 4)):
        monkeypatch.setattr(delayed, name, value)
    await late.publish(*(("t", b"%d" % number, 1000) for number in range(6)))
    for number in range(100):
        await late.publish(("s", b"%d" % number, 0.5))
        await late.advance(0.5)
    held = late.disk.log.find(DUE)
    assert held.tail - held.start < 100
    await late.publish(("t", b"6", 950))
    await late.crash()
    assert late.delaying.waiting == 7
    await late.advance(1000)
    assert await records(late, "t") == [b"%d" % number for number in range(7)]
    assert len(await records(late)) == 100
    await late.advance(1)
    held = late.disk.log.find(DUE)
    assert held.tail - held.start < 20


async def test_there_are_not_too_many(disk: Disk, tmp_path: Any) -> None:
    """More than the bound are refused, all or none."""
    small = Disk(tmp_path / "small", limits=Limits(delayed_max=2), clock=disk.clock)
    await create(small.log, "s")
    late = Late(small)
    with pytest.raises(Overloaded):
        await late.publish(("s", b"1", 1), ("s", b"2", 1), ("s", b"3", 1))
    await late.publish(("s", b"1", 1), ("s", b"2", 1))
    with pytest.raises(Overloaded):
        await late.publish(("s", b"3", 1), ("s", b"4", 0))
    await late.advance(1)
    assert await records(late) == [b"1", b"2"]
    await small.close()
