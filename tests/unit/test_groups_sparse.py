"""Groups over a log whose positions have gaps: ordered, dense inside a batch, and no more than that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.support.groups import PuppetMember, Stage, facts
from tests.support.log import Answer
from wayside.core.callbacks import Done
from wayside.core.engine import Abilities
from wayside.core.errors import Gone, NotFound
from wayside.core.globs import Glob
from wayside.core.limits import Limits
from wayside.core.records import (
    Append,
    Appended,
    Batch,
    Create,
    Created,
    Durability,
    Meta,
    Offset,
    StreamConfig,
    StreamInfo,
    StreamTail,
)
from wayside.core.schedule import Timers
from wayside.groups.group import Group
from wayside.groups.state import GroupState
from wayside.link.frames import Publish
from wayside.testing import ManualClock

GAP = 100_000
"""Positions between one batch and the next: more than there are records in any test."""
EPOCH = 7


class SparseStream:
    """A stream in memory; each batch is far from the one before it. Reading takes the disk where ``slow`` is set."""

    def __init__(self, path: str, config: StreamConfig, slow: bool) -> None:
        self.path = path
        self.config = config
        self.closed = self.deleted = False
        self.start = self.tail = 3
        self.lineage = [(0, EPOCH)]
        self.holds: list[Callable[[], int]] = []
        self.watchers: list[Callable[[SparseStream], None]] = []
        self.waiters: list[Callable[[], None]] = []
        self._slow = slow
        self._batches: list[Batch] = []

    def append(self, records: Sequence[bytes], meta: dict[int, Meta]) -> Appended:
        at = self.tail + GAP
        if records:
            self._batches.append(Batch(at, 0, list(records), meta=meta or None))
            self.tail = at + len(records)
        return Appended(EPOCH, self.tail)

    def tell(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter()
        for told in self.watchers:
            told(self)

    def trim(self) -> None:
        """Let the oldest batch go; the stream begins with the next."""
        del self._batches[0]
        self.start = self._batches[0].position

    def offset(self, position: int) -> Offset:
        return Offset(EPOCH, position)

    def resolve(self, offset: Offset) -> int:
        if offset.position < self.start:
            raise Gone("It is no more.", code="offset-expired")
        return offset.position

    def read_nowait(self, position: int, bytes_max: int) -> list[Batch] | None:
        return None if self._slow and position < self.tail else self._read(position, bytes_max)

    async def read(self, position: int, bytes_max: int) -> list[Batch]:
        await asyncio.sleep(0)
        return self._read(position, bytes_max)

    def _read(self, position: int, bytes_max: int) -> list[Batch]:
        found: list[Batch] = []
        for batch in self._batches:
            if batch.end > position and (not found or sum(each.size for each in found) < bytes_max):
                found.append(batch.since(position))
        return found

    def wait(self, waiter: Callable[[], None]) -> Callable[[], None]:
        self.waiters.append(waiter)
        return lambda: self.waiters.remove(waiter)

    def promise(self, told: Callable[[Batch], None]) -> Callable[[], None]:
        return lambda: None

    def hold(self, since: Callable[[], int]) -> Callable[[], None]:
        self.holds.append(since)
        return lambda: self.holds.remove(since)

    def info(self) -> StreamInfo:
        return StreamInfo(self.path, self.config, self.offset(self.tail), self.offset(self.start), self.closed, 0)


class SparseLog:
    """What groups need of a log. Answers come a turn of the loop later."""

    durable = False
    abilities = Abilities(durable=False, dense=False)

    def __init__(self, *, slow: bool) -> None:
        self.limits = Limits()
        self.streams: dict[str, SparseStream] = {}
        self.losing = False
        """Whether answers are lost: what is appended is there, and nobody is told."""
        self._slow = slow
        self._watches: list[tuple[Glob, Callable[[Any], None]]] = []

    def _answer(self, done: Done, result: Any, *streams: SparseStream) -> None:
        def tell() -> None:
            if not self.losing:
                done(result)
                for stream in streams:
                    stream.tell()

        asyncio.get_running_loop().call_soon(tell)

    def find(self, path: str, *, touch: bool = True) -> SparseStream:
        if path not in self.streams:
            raise NotFound(f"There is no {path}.")
        return self.streams[path]

    def create(self, path: str, create: Create, done: Done) -> None:
        new = path not in self.streams
        stream = self.streams.setdefault(path, SparseStream(path, create.config, self._slow))
        stream.watchers = [told for glob, told in self._watches if glob.matches(path)]
        stream.append(create.records or [], {})
        self._answer(done, Created(new, stream), stream)

    def append(self, path: str, append: Append, done: Done) -> None:
        self._answer(done, self._append(path, append), self.streams[path])

    def append_all(self, appends: Sequence[tuple[str, Append]], done: Done, *, in_line: bool = False) -> bool:
        results = [self._append(path, append) for path, append in appends]
        self._answer(done, results, *(self.streams[path] for path, _ in appends))
        return False

    def _append(self, path: str, append: Append) -> Appended:
        assert append.records is not None
        return self.find(path).append(append.records, append.metas(len(append.records)))

    def list(self, prefix: str, after: str, limit: int, *, open_only: bool = False) -> list[StreamInfo]:
        found = sorted(path for path in self.streams if path.startswith(prefix) and path > after)
        return [self.streams[path].info() for path in found[:limit]]

    def watch(self, glob: Glob, told: Callable[[Any], None]) -> Callable[[], None]:
        self._watches.append((glob, told))
        matching = [stream for path, stream in self.streams.items() if glob.matches(path)]
        for stream in matching:
            stream.watchers.append(told)

        def unwatch() -> None:
            self._watches.remove((glob, told))
            for stream in self.streams.values():
                stream.watchers = [each for each in stream.watchers if each is not told]

        return unwatch

    def tails(self, glob: Glob) -> Iterator[StreamTail]:
        for path, stream in sorted(self.streams.items()):
            if glob.matches(path):
                yield StreamTail(path, stream.offset(stream.start), stream.offset(stream.tail), stream.closed)


class SparseStage(Stage):
    """Groups over such a log."""

    def __init__(self, clock: ManualClock, log: SparseLog) -> None:
        self.sparse = log
        super().__init__(None, clock, log)  # type: ignore[arg-type]  # it is all that groups ask for

    def busy(self) -> bool:
        return not all(group.idle for group in self.groups.all())

    async def make(self, path: str, content_type: str = "application/json") -> SparseStream:
        answer = Answer()
        self.sparse.create(path, Create(StreamConfig(content_type, Durability.FSYNC)), answer)
        await answer.wait()
        return self.sparse.streams[path]

    async def again(self) -> None:
        """Take everything up again from what the log has, as after a kill."""
        self.groups.stop()
        self.sparse.losing = False
        self.timers = Timers(self.clock)
        self.take_up()
        await self.groups.start()
        await self.settle()

    async def kept(self, name: str = "g") -> GroupState:
        group = Group(name, self.log, self.clock, Timers(self.clock))
        await group.load()
        return group.journal.state


@pytest.fixture(params=[False, True], ids=["memory", "disk"])
async def stage(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[SparseStage]:
    stage = SparseStage(clock, SparseLog(slow=request.param))
    yield stage
    stage.groups.stop()


async def consistent(stage: SparseStage) -> None:
    assert facts(await stage.kept()) == facts(stage.state())


async def test_a_gap_between_batches_is_no_loss(stage: SparseStage) -> None:
    """Records of several batches are given in one delivery; nothing counts as expired or missed."""
    await stage.make("s")
    await stage.put()
    for number in range(5):
        await stage.publish("s", b"%d" % number, b"%d" % (number + 10))
    member = await stage.member("m", 7)
    assert [int(data) for data in member.data] == [0, 10, 1, 11, 2, 12, 3]
    assert len({held.lease for held in member.got}) == 1
    member.grant(10)
    await stage.publish("s", b"5")
    assert [int(data) for data in member.data] == [0, 10, 1, 11, 2, 12, 3, 13, 4, 14, 5]
    assert (await member.ack(*member.got)).acked == 11
    counts = stage.state().counts
    assert (counts["acked"], counts["expired"], counts["missed"]) == (11, 0, 0)
    assert stage.groups.lag(stage.group("g")) == {"s": 0}
    assert not stage.sparse.streams["s"].holds
    await consistent(stage)


async def test_a_batch_of_which_a_part_is_parked(stage: SparseStage) -> None:
    """The rest of it comes before the batches behind it, however little a member takes."""
    await stage.make("s")
    await stage.put(order_by="k")
    for number in range(4):
        await stage.publish("s", *(b'{"k":%d,"n":%d}' % (key, number) for key in (1, 1, 1, 2, 3)))
    member = await stage.member("m", 2)
    seen = []
    while member.got:
        held = member.take()
        seen += [record.data for record in held]
        member.grant(len(held))
        await member.ack(*held)
    assert len(seen) == len(set(seen)) + 8 == 20
    assert stage.state().counts["acked"] == 20
    await consistent(stage)


async def test_what_is_outstanding_is_found_behind_a_gap(stage: SparseStage) -> None:
    """Retention may let go of all that is before the first record that is not settled."""
    stream = await stage.make("s")
    await stage.put()
    for number in range(3):
        await stage.publish("s", b"%d" % number)
    member = await stage.member()
    first, second, third = member.take()
    await member.ack(first)
    assert [since() for since in stream.holds] == [second.position]
    stream.trim()
    await member.ack(third)
    await member.nack(second, kind="released")
    assert [held.position for held in member.got] == [second.position]
    await consistent(stage)


async def test_a_group_outlives_the_hub(stage: SparseStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its events, and from a snapshot with what came after it, it is what it was."""
    monkeypatch.setattr("wayside.groups.journal.SNAPSHOT_BYTES", 200)
    monkeypatch.setattr("wayside.groups.journal.SNAPSHOT_BYTES_MAX", 200)
    await stage.make("s")
    await stage.put(order_by="k", backoff_s=0, lease_s=10)
    for turn in range(6):
        await stage.publish("s", *(b'{"k":%d,"n":%d}' % (number % 2, turn) for number in range(4)))
        member = await stage.member(f"m{turn}", 3)
        held = member.take()
        await member.settle(held[:1], [each.nack(delay_s=turn % 2) for each in held[1:2]])
        await member.leave(give_back=False)
        await consistent(stage)
        before = facts(stage.state())
        await stage.again()
        assert facts(stage.state()) == before
    assert stage.sparse.streams["__group/g/state"].tail > GAP
    last = PuppetMember(stage, "g", "last", 1000)
    await last.join()
    while stage.state().in_flight or stage.state().parked:
        await stage.advance(11)
        await last.ack(*last.take())
    assert stage.state().counts["acked"] == 24


async def test_dead_letters_and_what_is_published_with_acks(stage: SparseStage) -> None:
    """Where they are is what the log says."""
    for path in ("s", "out", "dead"):
        await stage.make(path)
    await stage.put(retries=0, dead_letter="dead")
    await stage.publish("s", b"1", b"2", b"3")
    member = await stage.member()
    one, two, three = member.take()
    settled = await member.settle([one], [two.nack(), three.nack()], publish=[Publish("out", [b"9"])])
    out, dead = stage.sparse.streams["out"], stage.sparse.streams["dead"]
    assert settled.offsets == [str(out.offset(out.tail))]
    places = [(await stage.receipt(held))["dead_letter"]["offset"] for held in (two, three)]
    assert sorted(places) == [str(dead.offset(batch.end)) for batch in await dead.read(0, 10**6)]
    await consistent(stage)
    assert await stage.redrive() == 2
    assert sorted(member.data) == [b"2", b"3"]


async def test_where_a_dead_letter_is_is_found_after_a_kill(stage: SparseStage) -> None:
    """Killed between the move and the note of where the letter is, it is looked for, and it is not moved again."""
    await stage.make("s")
    dead = await stage.make("dead")
    await stage.put(retries=0, dead_letter="dead")
    await stage.publish("s", b"1", b"2")
    member = await stage.member()
    one, two = member.take()
    await member.nack(one)
    await stage.redrive()
    (one,) = member.take()
    answer = member.begin((), [one.nack(), two.nack()])
    await answer.wait()
    stage.sparse.losing = True
    while stage.state().counts["dead"] < 3:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)
    await stage.again()
    assert len(await dead.read(0, 10**6)) == 3
    for held, number in ((one, 1), (two, 2)):
        receipt = await stage.receipt(held)
        batches = await dead.read(0, 10**6)
        assert receipt["state"] == "dead"
        assert receipt["dead_letter"]["offset"] in {str(dead.offset(each.end)) for each in batches[1:]}
        place = Offset.parse(receipt["dead_letter"]["offset"]).position - 1
        assert (await dead.read(place, 1))[0].records == [b"%d" % number]
    await consistent(stage)


async def test_a_seek_and_a_start_at_an_offset(stage: SparseStage) -> None:
    """Offsets that the log gave out name places; between them there may be nothing."""
    await stage.make("s")
    await stage.publish("s", b"1")
    await stage.publish("s", b"2", b"3")
    await stage.put(start="now")
    member = await stage.member()
    assert not member.got
    await stage.seek("-1")
    first = member.take()
    assert [held.data for held in first] == [b"1", b"2", b"3"]
    await stage.seek(first[0].offset)
    assert [held.data for held in member.take()] == [b"2", b"3"]
    await stage.seek(first[1].offset)
    assert [held.data for held in member.take()] == [b"3"]
    await consistent(stage)
