"""Followers and cohorts: one read loop for history and for what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.followers import Plainly, Recorder, records_in
from tests.support.log import BYTES, append, begin_append, create, creation, delete, read_records
from tests.support.waiting import turns, until
from wayside.core.errors import Gone
from wayside.core.limits import Limits
from wayside.core.records import Batch, Durability
from wayside.streams.contract import Reader, StreamView
from wayside.streams.streams import Streams


def _follow(log: Streams, sink: Recorder, position: int = 0, encoding: Plainly | None = None, **options: Any) -> Reader:
    return log.follow(log.find("s"), position, encoding or Plainly(), sink, "test", **options)


async def _all(sink: Recorder, count: int) -> list[bytes]:
    """The records of a sink, once there are so many; they may have to come from the disk."""
    await until(lambda: len(records_in(sink.frames)) >= count or sink.finished)
    return records_in(sink.frames)


# -- from history to what comes


@pytest.mark.parametrize("position", [0, 1, 2, 3])
async def test_a_follower_gets_history_then_what_comes(log: Streams, position: int) -> None:
    """From wherever it starts a follower gets each record once, in order, across the tail of the moment."""
    await create(log, "s")
    await append(log, "s", b"[1,2,3]")
    sink = Recorder()
    _follow(log, sink, position)
    await append(log, "s", b"[4,5]")
    await append(log, "s", b"6")
    assert await _all(sink, 6 - position) == [b"1", b"2", b"3", b"4", b"5", b"6"][position:]


async def test_a_follower_that_starts_at_the_tail_is_told_where_it_stands(log: Streams) -> None:
    """One that has been given nothing is told that it is up to date; one that has read to the tail knows already."""
    await create(log, "s")
    await append(log, "s", b"1")
    at_tail, behind = Recorder(), Recorder()
    _follow(log, at_tail, 1)
    _follow(log, behind, 0)
    assert at_tail.frames == [("caught-up", 1)]
    assert records_in(behind.frames) == [b"1"]
    assert len(behind.frames) == 1


async def test_a_follower_that_ends_somewhere_is_complete_there(log: Streams) -> None:
    """With an end a follower stops at it, in the middle of a batch if need be, and is counted no more."""
    await create(log, "s")
    await append(log, "s", b"[1,2,3]")
    sink = Recorder()
    _follow(log, sink, 0, until=2)
    assert records_in(sink.frames) == [b"1", b"2"]
    assert sink.frames[-1] == ("end", 2, "complete", False)
    assert sink.finished == "complete"
    assert log.statistics().followers == {"test": 0}
    assert log.statistics().deliveries == {"test": 2}


async def test_a_follower_of_a_stream_that_closes_is_finished(log: Streams) -> None:
    """The last records come before the end, which says whether the last frame told of it."""
    await create(log, "s")
    sink = Recorder()
    _follow(log, sink, 0)
    await append(log, "s", b"1")
    await append(log, "s", b"2", close=True)
    assert await _all(sink, 2) == [b"1", b"2"]
    assert sink.frames[-1] == ("end", 2, "closed", True)
    late = Recorder()
    _follow(log, late, 0)
    assert records_in(late.frames) == [b"1", b"2"]
    assert late.finished == "closed"


async def test_a_close_without_records_is_told_at_the_end(log: Streams) -> None:
    """When nothing comes with the close, the end says that nobody was told of it yet."""
    await create(log, "s")
    sink = Recorder()
    _follow(log, sink, 0)
    await append(log, "s", b"1")
    await append(log, "s", close=True)
    assert sink.frames[-1] == ("end", 1, "closed", False)


async def test_a_follower_of_a_deleted_stream_is_finished(log: Streams) -> None:
    """Deletion ends followers, those at the tail and those that are paused."""
    await create(log, "s")
    await append(log, "s", b"1")
    at_tail, slow = Recorder(), Recorder(room=1)
    _follow(log, at_tail)
    _follow(log, slow)
    await delete(log, "s")
    assert at_tail.finished == "deleted"
    slow.drain()
    assert slow.finished == "deleted"


async def test_a_stop_ends_followers_where_they_can_resume(log: Streams) -> None:
    """When the hub stops, each follower at the tail is told its position."""
    await create(log, "s")
    await append(log, "s", b"1")
    sink = Recorder()
    _follow(log, sink)
    for stream in [log.find("s")]:
        stream.end_followers("drain")
    assert sink.frames[-1] == ("end", 1, "drain", False)
    assert sink.finished == "drain"


async def test_a_follower_that_has_gone_gets_nothing_more(log: Streams) -> None:
    """After ``stop`` not a frame is written, and the others go on."""
    await create(log, "s")
    gone, here = Recorder(), Recorder()
    follower = _follow(log, gone)
    _follow(log, here)
    await append(log, "s", b"1")
    follower.stop()
    follower.stop()
    await append(log, "s", b"2", close=True)
    assert await _all(here, 2) == [b"1", b"2"]
    assert records_in(gone.frames) == [b"1"]
    assert gone.finished is None
    assert log.statistics().followers == {"test": 0}


async def test_a_follower_behind_retention_is_cut(log: Streams) -> None:
    """A follower whose next record was let go is not given a gap: its response is cut, with the reason."""
    await create(log, "s", creation(BYTES, retention_bytes=2000))
    sink = Recorder(room=1)
    _follow(log, sink)
    for _ in range(30):
        await append(log, "s", b"x" * 500)
    sink.drain()
    assert isinstance(sink.aborted, Gone)
    assert sink.aborted.code == "offset-expired"
    assert log.statistics().followers == {"test": 0}


# -- slow ones


async def test_a_paused_follower_leaves_its_cohort_and_misses_nothing(log: Streams) -> None:
    """A follower with a full buffer is given nothing, holds nobody up, and reads on from where it stood."""
    await create(log, "s")
    slow, quick = Recorder(room=2), Recorder()
    _follow(log, slow, encoding=Plainly("shared"))
    _follow(log, quick, encoding=Plainly("shared"))
    for number in range(10):
        await append(log, "s", b"%d" % number)
    assert await _all(quick, 10) == [b"%d" % number for number in range(10)]
    assert records_in(slow.frames) == [b"0"]  # the frame before it said that it is up to date
    assert log.statistics().lag_records == 9
    slow.drain()
    assert records_in(slow.frames) == [b"%d" % number for number in range(10)]
    assert log.statistics().lag_records == 0
    await append(log, "s", b"10", close=True)
    assert (await _all(slow, 11)) == (await _all(quick, 11)) == [b"%d" % number for number in range(11)]


async def test_a_follower_may_pause_at_any_frame(log: Streams) -> None:
    """Whatever its rhythm of pausing and draining, a follower gets every record once, in order."""
    await create(log, "s")
    sinks = [Recorder(room=room) for room in range(1, 8)]
    for sink in sinks:
        _follow(log, sink, encoding=Plainly("shared"))
    for number in range(60):
        await append(log, "s", b"%d" % number)
        for room, sink in enumerate(sinks, 1):
            if sink.paused and number % 3 == room % 3:
                sink.drain(room)
    await append(log, "s", close=True)
    for sink in sinks:
        while sink.finished is None:
            sink.drain(1)
        assert records_in(sink.frames) == [b"%d" % number for number in range(60)]


async def test_a_slow_follower_reads_on_from_the_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has left memory while a follower was paused comes from the disk, and then what comes."""
    patch_constants(monkeypatch, CHUNK_BYTES=4096, JOURNAL_BYTES_MAX=8192)
    log = await disk.restart(Limits(stream_cache_bytes_max=4000, read_bytes_max=3000))
    await create(log, "s", creation(BYTES))
    slow = Recorder(room=1)
    _follow(log, slow)
    expected = [b"%03d" % number + b"." * 500 for number in range(100)]
    for record in expected[:90]:
        await append(log, "s", record)
    slow.drain()
    for record in expected[90:]:
        await append(log, "s", record)
    assert await _all(slow, 100) == expected


async def test_a_follower_that_stops_while_it_reads_is_left_alone(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes while its records are being read from the disk gets no frame."""
    patch_constants(monkeypatch, CHUNK_BYTES=4096)
    await create(disk.log, "s", creation(BYTES))
    await append(disk.log, "s", b"x" * 5000)
    await disk.restart()
    sink = Recorder()
    follower = _follow(disk.log, sink)
    follower.stop()
    await read_records(disk.log, "s")
    await turns()
    assert sink.frames == []
    assert sink.aborted is None


# -- credit


async def test_credit_is_the_number_of_records(log: Streams) -> None:
    """A follower is sent as many records as it granted, whether from history or as they come, and not one more."""
    await create(log, "s")
    await append(log, "s", b"[0,1,2,3,4,5]")
    sink = Recorder()
    follower = _follow(log, sink, credit=0)
    assert records_in(sink.frames) == []
    follower.grant(4)
    assert records_in(sink.frames) == [b"0", b"1", b"2", b"3"]
    assert follower.credit == 0
    follower.grant(5)
    assert records_in(sink.frames) == [b"%d" % number for number in range(6)]
    assert follower.credit == 3
    await append(log, "s", b"[6,7]")
    assert await _all(sink, 8) == [b"%d" % number for number in range(8)]
    await append(log, "s", b"[8,9,10]")
    assert await _all(sink, 9) == [b"%d" % number for number in range(9)]
    assert follower.credit == 0
    follower.grant(1)
    assert await _all(sink, 10) == [b"%d" % number for number in range(10)]
    follower.grant(100)
    await append(log, "s", b"11")
    assert await _all(sink, 12) == [b"%d" % number for number in range(12)]


async def test_credit_of_one_does_not_hold_up_another(log: Streams) -> None:
    """Followers that share a cohort spend each its own credit."""
    await create(log, "s")
    sinks = [Recorder() for _ in range(4)]
    for credit, sink in zip((0, 1, 5, None), sinks, strict=True):
        _follow(log, sink, encoding=Plainly("shared"), credit=credit)
    for number in range(8):
        await append(log, "s", b"%d" % number)
        await _all(sinks[3], number + 1)
    assert [len(records_in(sink.frames)) for sink in sinks] == [0, 1, 5, 8]
    for sink in sinks:
        assert sink.reader is not None
        sink.reader.grant(8)
        assert records_in(sink.frames) == [b"%d" % number for number in range(8)]


async def test_a_grant_without_a_bound_changes_nothing(log: Streams) -> None:
    """A follower that never had a bound does not get one by a grant."""
    await create(log, "s")
    sink = Recorder()
    follower = _follow(log, sink)
    follower.grant(1)
    await append(log, "s", b"[1,2,3]")
    assert await _all(sink, 3) == [b"1", b"2", b"3"]
    assert follower.credit is None


# -- cohorts


async def test_a_cohort_shares_one_frame(log: Streams) -> None:
    """Followers with one encoding are given the very same object, encoded once, however many they are."""
    await create(log, "s")
    encoding = Plainly("shared")
    sinks = [Recorder() for _ in range(20)]
    for sink in sinks:
        _follow(log, sink, encoding=encoding)
    other = Recorder()
    _follow(log, other, encoding=Plainly("another"))
    await append(log, "s", b"1")
    await _all(sinks[0], 1)
    assert encoding.encoded == 1
    assert all(sink.frames[-1] is sinks[0].frames[-1] for sink in sinks)
    assert other.frames[-1] is not sinks[0].frames[-1]
    assert log.statistics().deliveries == {"test": 21}


async def test_records_of_one_commit_are_one_frame(log: Streams) -> None:
    """What was committed together is written to each follower at once."""
    await create(log, "s")
    sink = Recorder()
    _follow(log, sink)
    for answer in [begin_append(log, "s", b"%d" % number) for number in range(5)]:
        await answer.wait()
    assert await _all(sink, 5) == [b"0", b"1", b"2", b"3", b"4"]
    assert len(sink.frames) == 2  # that it is up to date, and the records


async def test_a_silent_cohort_is_kept_alive(log: Streams) -> None:
    """A heartbeat goes to followers that heard nothing since the last one, and to no others."""
    await create(log, "s")
    sink = Recorder()
    _follow(log, sink)
    log.retention.heartbeat()
    log.retention.heartbeat()
    assert sink.frames.count("heartbeat") == 1
    await append(log, "s", b"1")
    await _all(sink, 1)
    log.retention.heartbeat()
    assert sink.frames.count("heartbeat") == 1
    log.retention.heartbeat()
    assert sink.frames.count("heartbeat") == 2


class Leaver(Recorder):
    """A sink that does something to another follower while it is written to."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.then = then

    def write(self, frame: Any) -> None:
        super().write(frame)
        if isinstance(frame, list):
            self.then()


async def test_a_cohort_may_change_while_it_is_written_to(log: Streams) -> None:
    """Followers that start, pause or append in the middle of a frame get everything once, like the others."""
    await create(log, "s")
    late: list[Recorder] = []

    def start_another() -> None:
        if len(late) < 3:
            late.append(Recorder())
            _follow(log, late[-1], encoding=Plainly("shared"))

    sinks: list[Recorder] = [Recorder(), Leaver(start_another), Recorder(room=2), Recorder()]
    for sink in sinks:
        _follow(log, sink, encoding=Plainly("shared"))
    for number in range(5):
        await append(log, "s", b"%d" % number)
        await _all(sinks[0], number + 1)
    sinks[2].drain()
    await append(log, "s", b"5", close=True)
    assert len(late) == 3
    for sink in sinks + late:
        assert await _all(sink, 6) == [b"%d" % number for number in range(6)]
        assert sink.finished == "closed"


async def test_many_readers_from_everywhere_see_one_sequence(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers that start at any position while records come, get leave of and are cut from memory, agree."""
    patch_constants(monkeypatch, CHUNK_BYTES=4096, JOURNAL_BYTES_MAX=8192)
    log = await disk.restart(Limits(stream_cache_bytes_max=2000, read_bytes_max=500))
    for durability in (Durability.FSYNC, Durability.ASYNC):
        path = durability.value
        await create(log, path, creation(BYTES, durability=durability))
        sinks: list[tuple[int, Recorder]] = []
        expected = [b"%03d" % number + b"." * 97 for number in range(120)]
        for number, record in enumerate(expected):
            await append(log, path, record)
            if number % 8 == 0:
                sink = Recorder(room=1 + number % 5)
                position = number * 7 % (number + 1)
                sinks.append((position, sink))
                log.follow(log.find(path), position, Plainly("shared"), sink, "test")
            for _, sink in sinks:
                if sink.paused and number % 2:
                    sink.drain(3)
        await append(log, path, close=True)
        for position, sink in sinks:
            async with asyncio.timeout(30):
                while sink.finished is None:
                    if sink.paused:
                        sink.drain(50)
                    await asyncio.sleep(0)
            assert records_in(sink.frames) == expected[position:]


class Bytewise(Plainly):
    """An encoding to bytes."""

    def encode(self, _stream: StreamView, batches: list[Batch]) -> Any:
        return b"".join(record for batch in batches for record in batch.records)

    def caught_up(self, _stream: StreamView, _position: int) -> Any:
        return None

    def end(self, _stream: StreamView, _position: int, _reason: str, _told: bool) -> Any:
        return None


class Reluctant(Recorder):
    """A sink whose quickest way takes so many bytes of a frame, or raises."""

    def __init__(self, takes: int | OSError) -> None:
        super().__init__()
        self.takes = takes
        self.taken = b""

    @property
    def send(self) -> Callable[[Any], int | None]:
        return self._send

    def _send(self, frame: Any) -> int | None:
        if isinstance(self.takes, OSError):
            raise self.takes
        self.taken += frame[: self.takes]
        return min(self.takes, len(frame))

    def queue(self, frame: Any, sent: int) -> None:
        self.taken += frame[sent:]

    def write(self, frame: Any) -> None:
        self.taken += frame


async def test_what_a_sink_does_not_take_at_once_is_queued(log: Streams) -> None:
    """Whether a frame is sent whole, in part or not at all, each sink gets all of it; one that is broken too, so that
    it notices."""
    await create(log, "s", creation(BYTES))
    sinks = [Reluctant(takes) for takes in (0, 1, 2, 3, 100, BlockingIOError(), ConnectionResetError())]
    for sink in sinks:
        _follow(log, sink, encoding=Bytewise("bytes"))
    await append(log, "s", b"abc")
    await append(log, "s", b"de")
    await turns()
    await until(lambda: sinks[0].taken == b"abcde")
    assert [sink.taken for sink in sinks] == [b"abcde"] * 7
