"""All streams that a glob matches, read as one with one cursor."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.embedded import embedded
from tests.support.followers import Plainly, Recorder
from tests.support.log import (
    BYTES,
    TEXT,
    Answer,
    append,
    begin_append,
    begin_create,
    create,
    creation,
    delete,
    publish,
    read_batches,
    settle,
)
from tests.support.waiting import turns, until
from wayside.core.errors import BadRequest, Gone, Overloaded, StoreFull
from wayside.core.globs import Glob
from wayside.core.limits import Limits
from wayside.core.records import Append, Batch, Durability, Meta, Offset
from wayside.streams.contract import StreamView
from wayside.streams.streams import Streams
from wayside.streams.union import unwrap, wrap
from wayside.testing import ManualClock


async def union(log: Streams, glob: str) -> StreamView:
    answer = Answer()
    log.union(Glob(glob), answer)
    view: StreamView = await answer.wait()
    return view


async def given(view: StreamView, offset: str = "-1") -> list[tuple[str, bytes]]:
    """(stream, record) from an offset on, to the tail."""
    position = view.start if offset == "-1" else view.resolve(Offset.parse(offset))
    at = position
    result = []
    while at < view.tail:
        page = await view.read(at, 1 << 20)
        for batch in page:
            assert batch.position >= at
            at = batch.end
            result += [(held.stream, held.data) for held in map(unwrap, batch.records)]
    return result


async def given_or_gone(view: StreamView, offset: str) -> list[tuple[str, bytes]] | None:
    """The same; None where the offset is no longer good."""
    try:
        view.resolve(Offset.parse(offset))
    except Gone as refusal:
        assert refusal.code == "offset-expired", refusal  # noqa: PT017 - it may be
        return None
    return await given(view, offset)


def tail(view: StreamView) -> str:
    return str(view.offset(view.tail))


def records(sink: Recorder) -> list[tuple[str, bytes]]:
    """What a follower was given; positions must never go back."""
    at, result = -1, []
    for frame in sink.frames:
        for batch in frame if isinstance(frame, list) else ():
            assert batch.position >= at
            at = batch.end
            result += [(held.stream, held.data) for held in map(unwrap, batch.records)]
    return result


def follow(log: Streams, view: StreamView, position: int, **options: Any) -> Recorder:
    sink = Recorder(options.pop("room", None))
    log.follow(view, position, Plainly(), sink, "test", **options)
    return sink


async def test_history_and_what_comes_of_all_streams(log: Streams) -> None:
    """One follower is given what streams have, what they are given, and streams made later; once each, in each one's
    order, and nothing of others."""
    await create(log, "o/1", creation(body=b"[1,2]"))
    await create(log, "o/2", creation(body=b"[3]"))
    await create(log, "elsewhere", creation(body=b"[0]"))
    view = await union(log, "o/**")
    sink = follow(log, view, 0)
    await until(lambda: len(records(sink)) == 3)
    assert records(sink) == [("o/1", b"1"), ("o/1", b"2"), ("o/2", b"3")]
    await append(log, "o/2", b"4")
    await create(log, "o/deep/3", creation(body=b"[5]"))
    await append(log, "elsewhere", b"0")
    await append(log, "o/1", b"6")
    await until(lambda: len(records(sink)) == 6)
    assert records(sink)[3:] == [("o/2", b"4"), ("o/deep/3", b"5"), ("o/1", b"6")]
    assert await given(view) == records(sink)


async def test_a_cursor_resumes_all_of_them(disk: Disk) -> None:
    """Each offset that was given, also one in the middle of a commit, means the same after a crash, whatever came
    meanwhile."""
    log = disk.log
    for number in range(5):
        await create(log, f"o/{number}")
    view = await union(log, "o/*")
    for number in range(20):
        await append(log, f"o/{number % 5}", b"[%d,%d]" % (number, number + 100))
    view = await union(log, "o/*")
    everything = await given(view)
    assert len(everything) == 40
    offsets = [str(view.offset(position)) for position in range(41)]
    log = await disk.crash()
    await create(log, "o/new", creation(body=b'["new"]'))
    await append(log, "o/3", b'["more"]')
    view = await union(log, "o/*")
    after = [("o/3", b'"more"'), ("o/new", b'"new"')]
    for position, offset in enumerate(offsets):
        assert await given(view, offset) == everything[position:] + after
    assert (await given(view))[-2:] == after


async def test_nothing_is_written_when_nobody_follows(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after the last reader the index rests; whoever comes next finds what came meanwhile."""
    patch_constants(monkeypatch, LINGER_S=0.01)
    log = disk.log
    await create(log, "o/1")
    await until(lambda: not log._unions._used)
    first = tail(await union(log, "o/*"))
    await until(lambda: not log._unions._used)
    index = log.find("__index/o/*")
    before = index.tail
    assert log.find("o/1").watchers == ()
    await append(log, "o/1", b"[1,2]")
    assert index.tail == before
    assert await given(await union(log, "o/*"), first) == [("o/1", b"1"), ("o/1", b"2")]


async def test_a_reader_sees_what_was_acknowledged_before(log: Streams) -> None:
    """Opened at any moment, the view has everything that its streams show."""
    await create(log, "o/1")
    view = await union(log, "o/*")
    sink = follow(log, view, 0)
    for number in range(10):
        await append(log, "o/1", b"%d" % number)
        assert len(await given(await union(log, "o/*"))) == number + 1
    assert len(records(sink)) == 10


async def test_records_of_every_kind_are_wrapped(log: Streams) -> None:
    """JSON as it is, text as a string, anything else as base64; and unwrapped as they were."""
    kinds = {"o/json": b'{"a":"\xc3\xa9"}', "o/text": b'a "quoted"\nline', "o/bytes": b"\x00\xff"}
    for path, kind in (("o/json", "application/json"), ("o/text", TEXT), ("o/bytes", BYTES)):
        await create(log, path, creation(kind))
        await append(log, path, kinds[path])
    view = await union(log, "o/**")
    assert dict(await given(view)) == kinds
    found = [msgspec.json.decode(r) for batch in await read_batches(view) for r in batch.records]
    said = {item["stream"]: (item["data"], item.get("encoding")) for item in found}
    assert said["o/json"] == ({"a": "é"}, None)
    assert said["o/text"] == ('a "quoted"\nline', "text")
    assert said["o/bytes"] == ("AP8=", "base64")
    assert {item["offset"] for item in found if item["stream"] == "o/text"} == {str(log.find("o/text").offset(1))}


async def test_what_publishers_said_is_beside_a_record(log: Streams) -> None:
    """Headers, id and key."""
    await create(log, "s")
    stream = log.find("s")
    batch = Batch(0, 0, [b"1", b"2"], meta={1: Meta({"a": "b"}, "i", "k")})
    plain, said = wrap(stream, batch)
    assert unwrap(plain).meta is None
    assert unwrap(said) == ("s", str(stream.offset(2)), b"2", Meta({"a": "b"}, "i", "k"))


async def test_deleted_and_made_again(log: Streams) -> None:
    """What a deleted stream had is left out; one of the same name is another, from its start; a cursor goes on."""
    await create(log, "o/1", creation(body=b"[1,2]"))
    await create(log, "o/2", creation(body=b"[3]"))
    view = await union(log, "o/*")
    first = str(view.offset(1))
    await delete(log, "o/1")
    await create(log, "o/1", creation(body=b"[4,5]"))
    view = await union(log, "o/*")
    assert await given(view, first) == [("o/2", b"3"), ("o/1", b"4"), ("o/1", b"5")]
    sink = follow(log, view, 0)
    await until(lambda: len(records(sink)) == 3)
    await delete(log, "o/1")
    await delete(log, "o/2")
    view = await union(log, "o/*")
    assert await given(view) == []
    late = follow(log, view, 0)
    await create(log, "o/3", creation(body=b"[6]"))
    await until(lambda: records(late))
    assert records(late) == [("o/3", b"6")]


async def test_what_is_trimmed_is_left_out(disk: Disk) -> None:
    """A reader behind goes on with what there is, and does not stall."""
    log = disk.log
    await create(log, "o/1", creation(BYTES, retention_bytes=100_000))
    await create(log, "o/2", creation(body=b"[1]"))
    view = await union(log, "o/*")
    for _ in range(10):
        await append(log, "o/1", b"x" * 50_000)
    await create(log, "o/3", creation(body=b"[2]"))
    view = await union(log, "o/*")
    got = await given(view)
    held = log.find("o/1")
    assert got == [("o/2", b"1"), *[("o/1", b"x" * 50_000)] * (held.tail - held.start), ("o/3", b"2")]
    assert held.start > 0


async def test_records_that_a_crash_took_are_left_out(disk: Disk) -> None:
    """Of an ``async`` stream the last records may be lost after they were given; what is appended in their place is
    given too."""
    log = disk.log
    await create(log, "o/1", creation(durability=Durability.ASYNC))
    await append(log, "o/1", b"1")
    await settle(log)
    view = await union(log, "o/*")
    gate = disk.gate()
    gate.shut()
    await append(log, "o/1", b"2")
    lost = log.find("o/1")
    assert lost.tail == 2
    await turns()
    log = await disk.crash()
    gate.open()
    assert log.find("o/1").tail == 1
    await append(log, "o/1", b"3")
    view = await union(log, "o/*")
    assert await given(view) == [("o/1", b"1"), ("o/1", b"3")]


async def test_a_slow_follower_catches_up(log: Streams) -> None:
    """One whose buffer is full reads on when it drains, also from behind what is in memory; credit is kept to."""
    await create(log, "o/1")
    await create(log, "o/2")
    view = await union(log, "o/*")
    slow = follow(log, view, 0, room=1)
    metered = follow(log, view, 0, credit=3)
    for number in range(30):
        await append(log, f"o/{number % 2 + 1}", b"%d" % number)
    await until(lambda: len(records(metered)) == 3)
    assert metered.reader is not None
    metered.reader.grant(5)
    await until(lambda: len(records(metered)) == 8)
    slow.drain()
    await until(lambda: len(records(slow)) == 30)
    assert records(slow) == await given(view)
    assert records(metered) == records(slow)[:8]


async def test_an_index_that_cannot_be_written_loses_nothing(disk: Disk) -> None:
    """Followers are told where to resume; whoever opens it next is given what came meanwhile."""
    log = disk.log
    await create(log, "o/1")
    view = await union(log, "o/*")
    sink = follow(log, view, 0)
    gate = disk.gate()
    gate.shut()
    added = begin_append(log, "o/1", b"1")
    await turns()
    gate.let()
    await added.wait()
    gate.full = 1
    gate.open()
    await until(lambda: sink.finished)
    assert sink.finished == "drain"
    assert records(sink) == []
    assert await given(await union(log, "o/*")) == [("o/1", b"1")]


async def test_a_full_disk_refuses_to_open(disk: Disk) -> None:
    """And opens when there is room again."""
    log = disk.log
    await create(log, "o/1", creation(body=b"[1]"))
    gate = disk.gate()
    gate.full = 1
    with pytest.raises(StoreFull):
        await union(log, "o/*")
    assert await given(await union(log, "o/*")) == [("o/1", b"1")]


async def test_followers_are_told_where_to_resume_at_a_stop(disk: Disk) -> None:
    """As those of any stream."""
    log = disk.log
    await create(log, "o/1", creation(body=b"[1]"))
    sink = follow(log, await union(log, "o/*"), 0)
    await until(lambda: records(sink))
    await disk.restart()
    assert sink.finished == "drain"
    assert sink.frames[-1] == ("end", 1, "drain", False)


async def test_globs_in_use_are_bounded(log: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is in use can be used by more; another is refused until one rests."""
    patch_constants(monkeypatch, USED_MAX=2)
    for glob in ("a/*", "b/*", "a/*"):
        await union(log, glob)
    with pytest.raises(Overloaded) as refused:
        await union(log, "c/*")
    assert refused.value.code == "too-many-globs"


async def test_an_idle_follower_hears_a_heartbeat(log: Streams) -> None:
    """As one of any stream."""
    sink = follow(log, await union(log, "o/*"), 0)
    for _ in range(2):
        log.retention.heartbeat()
    assert sink.frames == [("caught-up", 0), "heartbeat"]


@pytest.mark.parametrize("seed", range(2))
async def test_an_index_is_compacted(disk: Disk, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A long index is replaced by a shorter one: a reader from the start is still given everything once, an offset of the
    later half means what it meant, one of before is answered 410; also after a crash."""
    patch_constants(monkeypatch, INDEX_BYTES_MAX=3000)
    chance = random.Random(seed)
    log = disk.log
    expected: dict[str, list[bytes]] = {}
    offsets: list[str] = []
    given_in_all: list[tuple[str, bytes]] = []
    view = await union(log, "o/*")
    sink = follow(log, view, 0)
    for number in range(300):
        path = f"o/{chance.randrange(8)}"
        if path not in expected:
            expected[path] = []
            await create(log, path)
        await append(log, path, b"%d" % number)
        expected[path].append(b"%d" % number)
        if number % 50 == 49:
            log = await disk.crash()
            view = await union(log, "o/*")
            given_in_all = [*given_in_all, *records(sink)][:number]  # it goes on behind these
            sink = follow(log, view, view.resolve(Offset.parse(offsets[-1])))
        view = await union(log, "o/*")
        offsets.append(tail(view))
    await until(lambda: not log._unions._used["o/*"]._compacting)
    given_in_all += records(sink)
    assert [int(data) for _, data in given_in_all] == list(range(300))
    assert log.find("__index/o/*").info().size < 12_000
    for _ in range(2):
        everything = await given(view)
        for path, wanted in expected.items():
            assert [data for stream, data in everything if stream == path] == wanted
        gone = 0
        for number, offset in enumerate(offsets):
            rest = await given_or_gone(view, offset)
            gone += rest is None
            assert rest is None or [int(data) for _, data in rest] == list(range(number + 1, 300))
        assert 0 < gone < 290
        log = await disk.crash()
        view = await union(log, "o/*")


async def test_many_streams_that_are_not_loaded(disk: Disk) -> None:
    """Each is read when its turn comes."""
    for number in range(300):
        begin_create(disk.log, f"many/{number:03}", creation(body=b"[%d]" % number))
    await create(disk.log, "many/last")
    log = await disk.restart()
    view = await union(log, "many/**")
    sink = follow(log, view, 0)
    await until(lambda: len(records(sink)) == 300)
    assert [int(data) for _, data in records(sink)] == list(range(300))


async def test_unions_are_independent(log: Streams) -> None:
    """Globs that overlap each have their own order and offsets; one that matches an index gets nothing of it."""
    await create(log, "a/1", creation(body=b"[1]"))
    views = [await union(log, glob) for glob in ("**", "a/*", "*/1")]
    sinks = [follow(log, view, 0) for view in views]
    await append(log, "a/1", b"2")
    await until(lambda: all(len(records(sink)) == 2 for sink in sinks))
    for sink in sinks:
        assert records(sink) == [("a/1", b"1"), ("a/1", b"2")]
    assert len({view.offset(1).epoch for view in views}) == 3


async def test_append_of_many_records_is_given_whole(log: Streams) -> None:
    """One append may have more records than a read takes."""
    await create(log, "o/1")
    view = await union(log, "o/*")
    sink = follow(log, view, 0)
    answer = Answer()
    log.append("o/1", Append(b"", records=[b"%d" % n for n in range(10_000)]), answer)
    await answer.wait()
    await until(lambda: len(records(sink)) == 10_000)
    assert [int(data) for _, data in records(sink)] == list(range(10_000))


async def test_what_expired_is_no_hole_in_memory(clock: ManualClock) -> None:
    """One who reads on where the oldest that is in memory begins with an expired record gets what is behind it, in
    order."""
    log = embedded(None, limits=Limits(stream_cache_bytes_max=1600), clock=clock)
    log.start()
    await create(log, "o/1")
    view = await union(log, "o/*")
    slow = follow(log, view, 0, room=2)
    await publish(log, "o/1", b'"%s"' % (b"x" * 200))
    await until(lambda: slow.paused)
    await publish(log, "o/1", b'"gone"', meta=Meta(expires_ms=1))
    for number in range(3):
        await publish(log, "o/1", b"%d" % number)
        await union(log, "o/*")
    assert await view.read(1, 1) != []
    slow.drain()
    await until(lambda: len(records(slow)) >= 4)
    assert [data for _, data in records(slow)][1:] == [b"0", b"1", b"2"]
    await log.close()


async def test_used_again_before_its_last_reference_is_on_the_disk(disk: Disk) -> None:
    """Whoever uses a union again waits for what was on its way to the index: no record is referred to twice."""
    log = disk.log
    await create(log, "o/1")
    await union(log, "o/*")
    gate = disk.gate()
    gate.shut()
    added = begin_append(log, "o/1", b"1")
    await turns()
    gate.let()
    await added.wait()
    await turns()
    log._unions._used["o/*"].stop()
    again = [Answer(), Answer()]
    for answer in again:
        log.union(Glob("o/*"), answer)
    await turns()
    assert not any(answer.given for answer in again)
    gate.open()
    assert await again[0].wait() is await again[1].wait()
    await append(log, "o/1", b"2")
    view = await union(log, "o/*")
    assert await given(view) == [("o/1", b"1"), ("o/1", b"2")]
    assert log.find("__index/o/*").tail == 2


async def test_a_log_that_closes_opens_no_union(disk: Disk) -> None:
    """Nothing is begun that nobody would end; also for one who waits for an ended one."""
    log = disk.log
    await create(log, "o/1", creation(body=b"[1]"))
    gate = disk.gate()
    gate.shut()
    answer = Answer()
    log.union(Glob("o/*"), answer)
    await turns()
    closing = asyncio.create_task(disk.restart())
    await turns()
    with pytest.raises(Overloaded):
        log.union(Glob("o/*"), Answer())
    gate.open()
    await closing
    with pytest.raises(Overloaded):
        await answer.wait()


async def test_a_deletion_that_is_taken_back_repeats_nothing(disk: Disk) -> None:
    """What was on its way when a deletion was asked for, which then failed, is given; and nothing again."""
    log = disk.log
    await create(log, "o/1", creation(body=b"[1,2]"))
    sink = follow(log, await union(log, "o/*"), 0)
    gate = disk.gate()
    gate.shut()
    begin_append(log, "o/1", b"3")
    await turns()
    deleted = Answer()
    log.delete("o/1", deleted)
    await turns()
    gate.let()
    await turns()
    gate.full = 1
    gate.open()
    with pytest.raises(StoreFull):
        await deleted.wait()
    await until(lambda: len(records(sink)) == 3)
    await append(log, "o/1", b"4")
    await until(lambda: len(records(sink)) > 3)
    assert [data for _, data in records(sink)] == [b"1", b"2", b"3", b"4"]


async def test_more_crashes_than_a_stream_remembers(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """References to epochs that an ``async`` stream has forgotten are still good, and nothing is given again."""
    patch_constants(monkeypatch, LINEAGE_MAX=2)
    await create(disk.log, "o/1", creation(durability=Durability.ASYNC))
    await append(disk.log, "o/1", b"[1,2]")
    await settle(disk.log)
    cursor = tail(await union(disk.log, "o/*"))
    for number in range(3, 7):
        log = await disk.crash()
        await append(log, "o/1", b"%d" % number)
        await settle(log)
        if number == 5:
            view = await union(log, "o/*")
            assert await given(view, cursor) == [("o/1", b"3"), ("o/1", b"4"), ("o/1", b"5")]
    view = await union(log, "o/*")
    assert [data for _, data in await given(view)] == [b"1", b"2", b"3", b"4", b"5", b"6"]


async def test_forks_are_streams_of_their_own(disk: Disk) -> None:
    """Each is given what it inherits; also when its source has been deleted, and after a crash."""
    log = disk.log
    await create(log, "o/1", creation(body=b"[1,2]"))
    sink = follow(log, await union(log, "o/*"), 0)
    await create(log, "o/2", creation(source="o/1"))
    await append(log, "o/2", b"3")
    await delete(log, "o/1")
    await append(log, "o/2", b"4")
    await until(lambda: len(records(sink)) == 6)
    of_fork = [("o/2", b"%d" % number) for number in range(1, 5)]
    assert records(sink) == [("o/1", b"1"), ("o/1", b"2"), *of_fork]
    assert await given(await union(log, "o/*")) == of_fork
    log = await disk.crash()
    assert await given(await union(log, "o/*")) == of_fork


async def test_a_glob_as_long_as_may_be(log: Streams) -> None:
    """What is kept for it has room; a longer one is refused as a glob, and not as a path that nobody named."""
    await union(log, "a" * 998 + "/*")
    with pytest.raises(BadRequest) as refused:
        Glob("a" * 999 + "/*")
    assert refused.value.code == "glob-invalid"
