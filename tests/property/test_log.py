"""The file engine against the memory engine and a plain model, over any sequence of operations, restarts and crashes.

A crash is a copy of the store's files while it is open. After it everything that an ``fsync`` stream
acknowledged must be there; an ``async`` stream may have lost its newest records; and never may an offset
name another record than before.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.constants import patch_constants
from tests.support.disk import Disk, Gate
from tests.support.embedded import embedded
from tests.support.followers import Plainly, Recorder, records_in
from tests.support.log import (
    BYTES,
    Answer,
    begin_append,
    begin_create,
    begin_publish,
    creation,
    delete,
    read_batches,
    settle,
    spool,
)
from tests.support.waiting import turns
from wayside.core.errors import Gone, Refusal
from wayside.core.limits import Limits
from wayside.core.records import JSON, Durability, Meta, Offset
from wayside.streams.streams import Streams
from wayside.testing import ManualClock

PATHS = ["a", "b", "c", "d"]
LIMITS = Limits(stream_cache_bytes_max=150, cache_bytes_max=400, read_bytes_max=100, piece_bytes_max=64)
CONSTANTS = {
    "CHUNK_BYTES": 200,
    "JOURNAL_BYTES_MAX": 700,
    "GARBAGE_BYTES": 300,
    "CHECKPOINT_PAGES": 8,
    "LINEAGE_MAX": 3,
    "LAZY_S": 1000.0,
    "FULL_S": 0.0,
    "LOADED_MAX": 0,
}
"""What happens now and then happens all the time, and async records wait until something takes them along."""

T = TypeVar("T")


@dataclass(eq=False)
class Model:
    """What a stream must be."""

    path: str
    json: bool
    durability: Durability
    twin: str | None
    """Its name in the memory engine; None once they differ, because a crash took records."""
    retention_bytes: int | None = None
    source: Model | None = None
    fork_point: int = 0
    records: list[bytes] = field(default_factory=list)
    ends: list[tuple[int, tuple[str, int, int] | None]] = field(default_factory=list)
    """Tail after each append, and its producer."""
    closed: bool = False
    closed_by: tuple[str, int, int] | None = None
    offsets: set[str] = field(default_factory=set)
    """Every token it gave out for a record."""
    start: int = 0
    safe: int = 0
    """Records that no crash may take."""
    gone: bool = False
    forks: int = 0

    def expected_seq(self, name: str) -> int:
        """The next number of a producer."""
        return max((producer[2] + 1 for _, producer in self.ends if producer and producer[0] == name), default=0)

    def add(self, records: list[bytes], producer: tuple[str, int, int] | None) -> None:
        self.records += records
        self.ends.append((len(self.records), producer))
        if self.durability is Durability.FSYNC:
            self.safe = len(self.records)


def pieces(body: bytes) -> list[bytes]:
    """The records that a body becomes which is too large for memory."""
    return [body[at : at + LIMITS.piece_bytes_max] for at in range(0, len(body), LIMITS.piece_bytes_max)]


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        patch_constants(self.patch, **CONSTANTS)
        self.root = Path(tempfile.mkdtemp(prefix="wayside-test-"))
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.streams: dict[str, Model] = {}
        self.seen: dict[str, bytes] = {}
        """Every offset ever given out, and the record before it."""
        self.metas: dict[bytes, Meta] = {}
        """What was said of records, which are all different."""
        self.sent: list[tuple[Model, str, int, bytes]] = []
        """Records with a message id: stream, id, position after it, record."""
        self.followers: list[tuple[Model, int, Recorder]] = []
        self.serial = 0

    @initialize()
    def open(self) -> None:
        async def start() -> None:
            self.disk = Disk(self.root, limits=LIMITS, clock=self.clock)
            self.gate = Gate(self.disk.log)
            self.memory = embedded(None, limits=LIMITS, clock=self.clock)
            self.memory.start()

        self.run(start())

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.gate.open()
            self.run(self.disk.close())
            self.run(self.memory.close())
        self.loop.close()
        self.patch.undo()
        shutil.rmtree(self.root)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @property
    def log(self) -> Streams:
        return self.disk.log

    def alive(self) -> list[Model]:
        return [stream for stream in self.streams.values() if not stream.gone]

    def pick(self, number: int) -> Model | None:
        alive = self.alive()
        return alive[number % len(alive)] if alive else None

    # -- outcomes

    async def outcome(self, begin: Callable[[], Answer]) -> Any:
        """The result, or the code of the refusal."""
        try:
            return await begin().wait()
        except Refusal as refusal:
            return refusal.code

    async def both(self, stream: Model, begin: Callable[[Streams, str], Answer]) -> Any:
        """The outcome on disk, which must be that in memory too: same code, or same position and flags."""
        mine = await self.outcome(lambda: begin(self.log, stream.path))
        if stream.twin is not None:
            twin = await self.outcome(lambda: begin(self.memory, stream.twin or ""))
            if isinstance(mine, str):
                assert mine == twin
            else:
                assert (mine.offset.position, mine.closed, mine.duplicate) == (
                    twin.offset.position,
                    twin.closed,
                    twin.duplicate,
                )
        return mine

    # -- creating, forking, deleting

    @rule(
        path=st.sampled_from(PATHS),
        json=st.booleans(),
        durability=st.sampled_from([Durability.FSYNC, Durability.ASYNC]),
        retention_bytes=st.sampled_from([None, None, 60, 400]),
        closed=st.integers(0, 9).map(lambda n: n == 0),
    )
    def create(self, path: str, json: bool, durability: Durability, retention_bytes: int | None, closed: bool) -> None:
        options: dict[str, Any] = {"retention_bytes": retention_bytes} if retention_bytes else {}
        content_type = JSON if json else BYTES
        there = self.streams.get(path)
        wanted = creation(content_type, durability=durability, closed=closed, **options)
        created = self.run(self.outcome(lambda: begin_create(self.log, path, wanted)))
        if there is None:
            assert created.new
            self.enter(Model(path, json, durability, None, retention_bytes, closed=closed), content_type, {})
        elif there.gone:
            assert created == "stream-deleted"
        elif created == "stream-exists":
            assert (
                there.source is not None
                or (there.json, there.durability, there.closed) != (json, durability, closed)
                or (retention_bytes is not None and there.retention_bytes != retention_bytes)
            )
        else:
            assert not created.new
            assert created.info.tail.position == len(there.records)

    def enter(self, stream: Model, content_type: str, fork: dict[str, Any], *, with_twin: bool = True) -> None:
        self.streams[stream.path] = stream
        if with_twin:
            self.serial += 1
            stream.twin = f"{stream.path}~{self.serial}"
            options: dict[str, Any] = (
                {"retention_bytes": stream.retention_bytes} if stream.retention_bytes and not fork else {}
            )
            wanted = creation(content_type, closed=stream.closed and not fork, **fork, **options)
            twin = stream.twin
            assert self.run(self.outcome(lambda: begin_create(self.memory, twin, wanted))).new

    @precondition(lambda self: self.alive())
    @rule(path=st.sampled_from(PATHS), source=st.integers(0, 99), at=st.integers(0, 9999), sub=st.integers(0, 3))
    def fork(self, path: str, source: int, at: int, sub: int) -> None:
        original = self.pick(source)
        assert original is not None
        start = self.log.find(original.path).start
        point = start + at % (len(original.records) - start + 1)
        at_most = len(original.records) - point if original.json else sum(map(len, original.records[point:]))
        sub = min(sub, at_most)
        offset = self.log.find(original.path).offset(point)
        wanted = creation(source=original.path, fork_offset=offset, fork_sub_offset=sub)
        there = self.streams.get(path)
        created = self.run(self.outcome(lambda: begin_create(self.log, path, wanted)))
        if there is not None:
            if there.gone:
                assert created == "stream-deleted"
            else:
                assert created == "stream-exists" or not created.new
            return
        assert created.new
        records = original.records[:point]
        own: list[bytes] = []
        if original.json:
            records = original.records[: point + sub]
        else:
            while sub and sub >= len(original.records[len(records)]):
                sub -= len(original.records[len(records)])
                records = original.records[: len(records) + 1]
            if sub:
                own = [original.records[len(records)][:sub]]
        stream = Model(path, original.json, original.durability, None, original.retention_bytes, original, len(records))
        stream.records = records + own
        stream.start = min(original.start, len(records))
        stream.safe = len(records)
        if own:
            stream.ends.append((len(stream.records), None))
            stream.safe = len(stream.records) if stream.durability is Durability.FSYNC else len(records)
        original.forks += 1
        original.safe = max(original.safe, len(records))
        with_twin = original.twin is not None
        if with_twin:
            twin = self.memory.find(original.twin or "")
            with_twin = twin.start <= len(records)
        self.enter(stream, BYTES, self.twin_fork(original, point, wanted.fork_sub_offset), with_twin=with_twin)

    def twin_fork(self, original: Model, point: int, sub: int) -> dict[str, Any]:
        if original.twin is None:
            return {}
        twin = self.memory.find(original.twin)
        return {"source": original.twin, "fork_offset": twin.offset(max(point, twin.start)), "fork_sub_offset": sub}

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, 99))
    def delete(self, which: int) -> None:
        stream = self.pick(which)
        assert stream is not None
        for log, path in ((self.log, stream.path), (self.memory, stream.twin)):
            if path is not None:
                self.run(delete(log, path))
        self.removed(stream)

    def removed(self, stream: Model) -> None:
        if stream.forks:
            stream.gone = True
            return
        del self.streams[stream.path]
        source = stream.source
        if source is not None:
            source.forks -= 1
            if source.gone and not source.forks:
                self.removed(source)

    # -- appending

    def body(self, stream: Model, sizes: list[int]) -> tuple[bytes, list[bytes]]:
        """A body that says what it is, and the records it becomes."""
        records = []
        for size in sizes:
            self.serial += 1
            text = b"%d%s" % (self.serial, b"." * size)
            records.append(b'"%s"' % text if stream.json else text)
        if stream.json:
            return b"[" + b",".join(records) + b"]", records
        return b"".join(records), [b"".join(records)]

    @precondition(lambda self: self.alive())
    @rule(
        which=st.integers(0, 99),
        sizes=st.lists(st.sampled_from([0, 3, 50, 190, 260]), min_size=1, max_size=4),
        close=st.integers(0, 19).map(lambda n: n == 0),
    )
    def append(self, which: int, sizes: list[int], close: bool) -> None:
        stream = self.pick(which)
        assert stream is not None
        body, records = self.body(stream, sizes)
        result = self.run(self.both(stream, lambda log, path: begin_append(log, path, body, close=close)))
        self.appended(stream, result, records, None, close)

    @precondition(lambda self: self.alive())
    @rule(
        which=st.integers(0, 99),
        sizes=st.lists(st.sampled_from([0, 40, 190]), min_size=1, max_size=3),
        told=st.integers(1, 7),
    )
    def append_with_metadata(self, which: int, sizes: list[int], told: int) -> None:
        stream = self.pick(which)
        assert stream is not None
        records = [self.marked(stream, size) for size in sizes]
        metas = {at: Meta({"n": str(self.serial)}, key=f"k{at}") for at in range(len(sizes)) if told >> at & 1}
        identity = f"i{self.serial}" if len(sizes) == 1 and metas else ""
        if identity:
            metas = {0: Meta(id=identity)}
        result = self.run(self.both(stream, lambda log, path: begin_publish(log, path, *records, meta=metas)))
        self.appended(stream, result, records, None, False)
        if not isinstance(result, str):
            self.metas |= {records[at]: meta for at, meta in metas.items()}
            if identity:
                self.sent.append((stream, identity, len(stream.records), records[0]))

    def marked(self, stream: Model, size: int) -> bytes:
        """A record that no other begins as."""
        self.serial += 1
        text = b"%d%s#" % (self.serial, b"." * size)
        return b'"%s"' % text if stream.json else text

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 99))
    def append_again(self, which: int) -> None:
        """What has a message id of before is a duplicate, as long as its record is there."""
        stream, identity, end, record = self.sent[which % len(self.sent)]
        lost = end > len(stream.records) or stream.records[end - 1] != record
        if lost or self.streams.get(stream.path) is not stream or stream.gone:
            return
        forgettable = end <= self.log.find(stream.path).start
        again = self.marked(stream, 0)
        meta = Meta(id=identity)
        result = self.run(self.outcome(lambda: begin_publish(self.log, stream.path, again, meta=meta)))
        if isinstance(result, str):
            assert (result, stream.closed, forgettable) == ("stream-closed", True, True)
        elif result.duplicate:
            assert result.position == end
        else:
            assert forgettable
            self.appended(stream, result, [again], None, False)
            stream.twin = None
            self.metas[again] = meta
            self.sent.append((stream, identity, len(stream.records), again))
            self.sent.remove((stream, identity, end, record))

    def appended(
        self, stream: Model, result: Any, records: list[bytes], producer: tuple[str, int, int] | None, close: bool
    ) -> None:
        if stream.closed:
            assert result == "stream-closed"
            return
        assert not isinstance(result, str), result
        assert not result.duplicate
        stream.add(records, producer)
        assert result.offset.position == len(stream.records)
        assert result.closed == close
        stream.closed = close
        if close:
            stream.closed_by = producer
        if records:
            self.name(stream, str(result.offset), records[-1])

    def name(self, stream: Model, offset: str, record: bytes) -> None:
        """An offset names the record before it, for ever."""
        stream.offsets.add(offset)
        assert self.seen.setdefault(offset, record) == record, f"{offset} names another record now"

    @precondition(lambda self: self.alive())
    @rule(
        which=st.integers(0, 99),
        name=st.sampled_from(["p", "q"]),
        step=st.sampled_from([0, 0, 0, -1, -2, 1]),
        size=st.sampled_from([0, 40, 210]),
    )
    def append_as_producer(self, which: int, name: str, step: int, size: int) -> None:
        stream = self.pick(which)
        assert stream is not None
        expected = stream.expected_seq(name)
        seq = max(0, expected + step)
        body, records = self.body(stream, [size])
        result = self.run(self.both(stream, lambda log, path: begin_append(log, path, body, producer=(name, 0, seq))))
        if stream.closed and (name, 0, seq) == stream.closed_by:
            assert result.duplicate
            assert result.closed
        elif stream.closed or seq == expected:
            self.appended(stream, result, records, (name, 0, seq), False)
        elif seq > expected:
            assert result == "producer-gap"
        else:
            assert result.duplicate
            assert result.offset.position == len(stream.records)

    @precondition(lambda self: self.alive())
    @rule(appends=st.lists(st.tuples(st.integers(0, 99), st.sampled_from([1, 30, 120, 250])), min_size=2, max_size=8))
    def append_many_at_once(self, appends: list[tuple[int, int]]) -> None:
        async def work() -> None:
            begun: list[tuple[Model, list[bytes], list[Answer]]] = []
            for which, size in appends:
                stream = self.pick(which)
                assert stream is not None
                if stream.closed:
                    continue
                body, records = self.body(stream, [size, size // 2])
                long = size == 250 and not stream.json
                if long:
                    records = pieces(body)
                answers = [
                    begin_append(log, path, spool(body) if long else body)
                    for log, path in ((self.log, stream.path), (self.memory, stream.twin))
                    if path is not None
                ]
                begun.append((stream, records, answers))
            for stream, records, answers in begun:
                self.appended(stream, await answers[0].wait(), records, None, False)
                for twin in answers[1:]:
                    assert (await twin.wait()).offset.position == len(stream.records)

        self.run(work())

    @precondition(lambda self: any(not s.json and not s.closed for s in self.alive()))
    @rule(which=st.integers(0, 99), size=st.sampled_from([1, 64, 65, 300]))
    def append_long_body(self, which: int, size: int) -> None:
        fitting = [stream for stream in self.alive() if not stream.json and not stream.closed]
        stream = fitting[which % len(fitting)]
        self.serial += 1
        body = b"".join(b"%d.%d " % (self.serial, number) for number in range(size))[:size]
        result = self.run(self.both(stream, lambda log, path: begin_append(log, path, spool(body))))
        self.appended(stream, result, pieces(body), None, False)

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, 99), producer=st.sampled_from([None, None, "p"]))
    def close(self, which: int, producer: str | None) -> None:
        stream = self.pick(which)
        assert stream is not None
        if stream.closed:
            return
        claim = (producer, 0, stream.expected_seq(producer)) if producer else None
        result = self.run(self.both(stream, lambda log, path: begin_append(log, path, b"", close=True, producer=claim)))
        self.appended(stream, result, [], claim, True)

    @precondition(lambda self: any(s.durability is Durability.FSYNC and not s.closed for s in self.alive()))
    @rule(
        which=st.integers(0, 99),
        count=st.integers(1, 4),
        spread=st.sampled_from([0, 2]),
        ending=st.sampled_from(["", "close", "delete", "create"]),
    )
    def append_without_room(self, which: int, count: int, spread: int, ending: str) -> None:
        fitting = [s for s in self.alive() if s.durability is Durability.FSYNC and not s.closed]
        stream = fitting[which % len(fitting)]

        async def work() -> None:
            self.gate.shut()
            self.gate.full = 1
            answers = []
            for number in range(count):
                body, _ = self.body(stream, [10, 100])
                producer = ("p", 0, stream.expected_seq("p") + number)
                answers.append(begin_append(self.log, stream.path, body, producer=producer, seq=f"x{self.serial:09d}"))
                await turns(spread)  # if at all, the first is on its way before the others come
            if ending == "close":
                answers.append(begin_append(self.log, stream.path, b"", close=True))
            elif ending == "delete":
                answers.append(Answer())
                self.log.delete(stream.path, answers[-1])
            elif ending == "create":
                answers.append(begin_create(self.log, "elsewhere", creation(source=stream.path)))
            self.gate.open()
            for answer in answers:
                assert await self.outcome(lambda answer=answer: answer) == "store-full"  # type: ignore[misc]
            await self.pulse()  # until then async streams take no more

        self.run(work())

    # -- reading

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, 99), at=st.integers(0, 9999), bytes_max=st.sampled_from([1, 60, 500, 100_000]))
    def read(self, which: int, at: int, bytes_max: int) -> None:
        stream = self.pick(which)
        assert stream is not None
        view = self.log.find(stream.path)
        at = view.start + at % (len(stream.records) - view.start + 1)
        position = view.resolve(view.offset(at))
        assert position == at
        self.run(self.compare(stream, position, bytes_max))
        if stream.twin is not None:
            twin = self.memory.find(stream.twin)
            start = max(at, twin.start)
            batches = self.run(read_batches(twin, start, bytes_max))
            assert [record for batch in batches for record in batch.records] == stream.records[start:]

    async def compare(self, stream: Model, position: int, bytes_max: int) -> None:
        """The records from ``position`` on are those of the model, under the offsets they always had."""
        view = self.log.find(stream.path)
        batches = await read_batches(view, position, bytes_max)
        records = [record for batch in batches for record in batch.records]
        assert records == stream.records[position:]
        for batch in batches:
            expected = {at: self.metas[record] for at, record in enumerate(batch.records) if record in self.metas}
            assert batch.meta == (expected or None)
        for at, record in enumerate(records, position + 1):
            self.name(stream, str(view.offset(at)), record)

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, 99), at=st.integers(0, 9999), room=st.sampled_from([None, 1, 3]))
    def follow(self, which: int, at: int, room: int | None) -> None:
        stream = self.pick(which)
        assert stream is not None
        view = self.log.find(stream.path)
        at = view.start + at % (len(stream.records) - view.start + 1)
        sink = Recorder(room)
        self.followers.append((stream, at, sink))

        async def start() -> None:
            self.log.follow(view, at, Plainly("shared"), sink, "test")

        self.run(start())

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0, 99), room=st.sampled_from([None, 2]))
    def drain(self, which: int, room: int | None) -> None:
        _, _, sink = self.followers[which % len(self.followers)]

        async def work() -> None:
            if sink.paused:
                sink.drain(room)
            await turns(3)

        self.run(work())

    def check_followers(self) -> None:
        for stream, at, sink in self.followers:
            records = records_in(sink.frames)
            assert records == stream.records[at : at + len(records)]
            if sink.aborted is not None:
                assert isinstance(sink.aborted, Gone)

    # -- upkeep

    @rule()
    def wait_for_the_disk(self) -> None:
        self.run(self.pulse())

    async def pulse(self) -> None:
        """A commit, which takes along what waits."""
        assert (await begin_create(self.log, "pulse").wait()).new
        await delete(self.log, "pulse")
        await settle(self.log)
        for stream in self.streams.values():
            stream.safe = len(stream.records)

    @rule()
    def let_idle_streams_go(self) -> None:
        async def work() -> None:
            self.log.retention.unload()  # else a timer's work

        self.run(work())

    @rule()
    def restart(self) -> None:
        self.check_followers()
        tails = {stream.path: self.log.find(stream.path).info().tail for stream in self.alive()}
        self.run(self.disk.restart())
        self.gate = Gate(self.log)
        self.followers.clear()
        for stream in self.streams.values():
            stream.safe = len(stream.records)
        for stream in self.alive():
            assert self.log.find(stream.path).info().tail == tails[stream.path]
        self.run(self.everything_is_there())

    @rule()
    def crash(self) -> None:
        self.check_followers()
        self.run(self.crash_and_recover([]))

    @precondition(lambda self: any(not s.closed for s in self.alive()))
    @rule(
        appends=st.lists(st.tuples(st.integers(0, 99), st.sampled_from([1, 30, 250])), min_size=1, max_size=6),
        commits=st.integers(0, 2),
        heard=st.booleans(),
    )
    def crash_with_appends_under_way(self, appends: list[tuple[int, int]], commits: int, heard: bool) -> None:
        self.check_followers()

        async def work() -> None:
            self.gate.shut()
            under_way: list[tuple[Model, list[bytes], Answer]] = []
            for which, size in appends:
                stream = self.pick(which)
                assert stream is not None
                if not stream.closed:
                    body, records = self.body(stream, [size, 5])
                    under_way.append((stream, records, begin_append(self.log, stream.path, body)))
                    await turns(2)
            await turns(4)  # a trim of before may just have been committed: the next commit waits for two turns
            for _ in range(commits):
                if any(s.durability is Durability.FSYNC and not answer.given for s, _, answer in under_way):
                    self.gate.let()
                    if not heard:
                        break  # it is on disk, and the event loop does not know
                    await turns(4)
            await self.crash_and_recover(under_way)

        self.run(work())

    async def crash_and_recover(self, under_way: list[tuple[Model, list[bytes], Answer]]) -> None:
        for stream, records, answer in under_way:
            if answer.given:
                self.appended(stream, answer.result, records, None, False)
        open_ends = [(stream, records) for stream, records, answer in under_way if not answer.given]
        with_more = {stream for stream, _, answer in under_way}
        await self.disk.crash()
        self.gate.open()
        await self.disk.close_crashed()
        self.gate = Gate(self.log)
        self.followers.clear()
        for stream in self.alive():
            view = self.log.find(stream.path)
            acknowledged = len(stream.records)
            for owner, records in open_ends:
                if owner is stream and len(stream.records) < view.tail:
                    stream.add(records, None)
            if len(stream.records) > view.tail:
                assert stream.durability is Durability.ASYNC, "acknowledged records of an fsync stream are lost"
                await self.lose(stream, view.tail)
            assert view.tail == len(stream.records)
            if view.closed != stream.closed:
                assert stream.closed
                assert stream.durability is Durability.ASYNC
                stream.closed = False
                stream.ends.pop()  # the close, which came without records
                stream.twin = None
            if len(stream.records) != acknowledged or stream in with_more:
                stream.twin = None
            stream.safe = len(stream.records)
        await self.everything_is_there()

    async def lose(self, stream: Model, tail: int) -> None:
        """Forget what an async stream lost; its offsets must be refused, for ever."""
        assert tail >= stream.safe, "records are lost that were on disk"
        view = self.log.find(stream.path)
        lost = [offset for offset in map(Offset.parse, stream.offsets) if offset.position > tail]
        stream.records = stream.records[:tail]
        stream.ends = [(end, producer) for end, producer in stream.ends if end <= tail]
        stream.twin = None
        stream.closed = False
        for offset in lost:
            with pytest.raises(Gone):
                view.resolve(offset)

    async def everything_is_there(self) -> None:
        """All streams, their names, and the records of each, whatever way they are read."""
        assert [info.path for info in self.log.list("", "", 100)] == sorted(stream.path for stream in self.alive())
        assert self.log.statistics().streams == len(self.alive())
        for stream in self.streams.values():
            if stream.gone:
                with pytest.raises(Gone):
                    self.log.find(stream.path)
            else:
                stream.start = self.log.find(stream.path).start
                await self.compare(stream, stream.start, 100)

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "disk"):
            return
        for stream in self.alive():
            view = self.log.find(stream.path)
            assert view.tail == len(stream.records)
            assert view.closed == stream.closed
            assert stream.start <= view.start
            stream.start = view.start
            own = stream.records[max(view.start, stream.fork_point) :]
            assert view.info().size == sum(map(len, own))
            if view.start > stream.fork_point and stream.source is None:
                assert stream.retention_bytes is not None
                assert sum(map(len, own)) >= stream.retention_bytes
        self.check_followers()


LogMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("WAYSIDE_PROPERTY_EXAMPLES", "100")),
    stateful_step_count=40,
    deadline=None,
    derandomize="WAYSIDE_PROPERTY_EXAMPLES" not in os.environ,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

TestLog = LogMachine.TestCase
