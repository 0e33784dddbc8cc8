"""What is known of records beside their bytes: it goes everywhere that they go, on both engines."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.embedded import embedded
from tests.support.followers import Plainly, Recorder
from tests.support.log import append, begin_append, begin_publish, create, creation, publish, read_batches, read_records
from tests.support.waiting import until
from wayside.core.errors import StoreFull
from wayside.core.records import Batch, Meta
from wayside.storage.embedded import check as checking
from wayside.storage.embedded.files import CHECKED_VFS, DATABASE, open_database
from wayside.streams.streams import Streams
from wayside.testing import ManualClock


async def metas(log: Streams, path: str, position: int | None = None) -> dict[int, Meta]:
    """By position, of everything that can be read."""
    batches = await read_batches(log.find(path, touch=False), position)
    return {batch.position + index: meta for batch in batches for index, meta in (batch.meta or {}).items()}


def reopen(disk: Disk) -> Streams:
    """After the log was closed."""
    disk.log = embedded(disk.directory, clock=disk.clock)
    disk.log.start()
    return disk.log


def given_in(frames: list[Any]) -> list[bytes]:
    """The records in the frames of a follower; there may be gaps between them."""
    return [record for frame in frames if isinstance(frame, list) for batch in frame for record in batch.records]


A, B, C = Meta({"lang": "de"}, "", "k"), Meta(key="b"), Meta({"x": "1", "y": "\u00fc"}, expires_ms=1 << 50)


@given(
    count=st.integers(1, 12),
    known=st.dictionaries(st.integers(0, 11), st.builds(Meta, key=st.text(max_size=3)), max_size=6),
    cuts=st.tuples(st.integers(0, 14), st.integers(0, 14)),
)
def test_a_part_of_a_batch_has_the_metadata_of_its_records(
    count: int, known: dict[int, Meta], cuts: tuple[int, int]
) -> None:
    """Wherever a batch is cut, each record keeps what is known of it, and nothing else does."""
    known = {index: meta for index, meta in known.items() if index < count}
    whole = Batch(5, 0, [b"%d" % index for index in range(count)], meta=known or None)
    low, high = sorted(5 + min(cut, count - 1) for cut in cuts)
    part = whole.since(low)
    part = part.until(high) if high > low else part
    expected = {5 + index: meta for index, meta in known.items() if part.position <= 5 + index < part.end}
    assert {part.position + index: meta for index, meta in (part.meta or {}).items()} == expected
    assert part.meta is None or part.meta
    assert part.records == whole.records[part.position - 5 : part.end - 5]


async def test_appends_of_one_tick_keep_theirs(log: Streams) -> None:
    """Appends that become one batch each keep what was said of their records, by index there."""
    await create(log, "s")
    answers = [
        begin_publish(log, "s", b"1"),
        begin_publish(log, "s", b"2", b"3", meta={1: A}),
        begin_publish(log, "s", b"4", b"5", meta=B),
        begin_publish(log, "s", b"6", meta={0: C, 7: A}),
        begin_append(log, "s", b"7"),
    ]
    await asyncio.gather(*(answer.wait() for answer in answers))
    assert await metas(log, "s") == {2: A, 3: B, 4: B, 5: C}
    assert await metas(log, "s", 3) == {3: B, 4: B, 5: C}


async def test_a_read_in_small_steps_and_a_fork_have_it(log: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in runs as reads are, and inherited by a fork."""
    await create(log, "s")
    await publish(log, "s", *[b"%d" % n for n in range(10_000)], meta={0: A, 4095: B, 4096: C, 9999: A})
    assert await metas(log, "s") == {0: A, 4095: B, 4096: C, 9999: A}
    await create(log, "f", creation(source="s", fork_offset=log.find("s").offset(4096)))
    await publish(log, "f", b"1", meta=B)
    assert await metas(log, "f") == {0: A, 4095: B, 4096: B}


@pytest.mark.parametrize("chunk", [1, 120, 1 << 18])
async def test_it_survives_restarts_and_crashes(disk: Disk, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """From the journal, from chunk rows and from both, cut in several rows or in one; the check agrees."""
    patch_constants(monkeypatch, CHUNK_BYTES=chunk)
    await create(disk.log, "s")
    expected: dict[int, Meta] = {}
    for number in range(40):
        given = {0: Meta({"n": str(number)}, key="k"), 2: B} if number % 3 == 0 else None
        expected |= {3 * number + index: meta for index, meta in (given or {}).items()}
        await publish(disk.log, "s", b"1", b"22", b"333", meta=given)
        if number == 20:
            await disk.crash()
        elif number == 30:
            await disk.restart()
    assert await metas(disk.log, "s") == expected
    assert await metas(await disk.crash(), "s") == expected
    log = await disk.restart()
    assert await metas(log, "s", 20) == {at: meta for at, meta in expected.items() if at >= 20}
    assert len(await read_records(log, "s")) == 120
    await log.close()
    assert checking.check(disk.directory).ok
    reopen(disk)


async def test_a_failed_commit_takes_it_back(disk: Disk) -> None:
    """What is accepted afterwards at those positions has its own."""
    gate = disk.gate()
    await create(disk.log, "s")
    gate.full = 1
    with pytest.raises(StoreFull):
        await publish(disk.log, "s", b"1", b"2", meta={1: A})
    await publish(disk.log, "s", b"3", b"4", meta={0: B})
    assert await metas(disk.log, "s") == {0: B}
    assert disk.log.statistics().uncommitted_bytes == 0


async def test_damage_to_it_is_found(disk: Disk) -> None:
    """It is under the checksum of its row."""
    await create(disk.log, "s")
    await publish(disk.log, "s", b"1", meta=A)
    await disk.log.close()
    path = disk.directory / DATABASE
    connection = open_database(path, CHECKED_VFS)
    connection.execute("UPDATE chunk SET meta=x'90'")
    connection.close()
    report = checking.check(disk.directory)
    assert [problem.stream for problem in report.problems] == ["s"], report
    reopen(disk)


async def test_a_store_of_the_first_format_is_taken_over(disk: Disk) -> None:
    """A store without the column is checked as it is; opened, it has it, and keeps every record."""
    await create(disk.log, "s")
    await append(disk.log, "s", b"1")
    await disk.log.close()
    connection = open_database(disk.directory / DATABASE, CHECKED_VFS)
    connection.execute("ALTER TABLE chunk DROP COLUMN meta; UPDATE meta SET value=1 WHERE key='format'")
    connection.close()
    assert checking.check(disk.directory).ok
    reopen(disk)
    await publish(disk.log, "s", b"2", meta=A)
    log = await disk.restart()
    assert await read_records(log, "s") == [b"1", b"2"]
    assert await metas(log, "s") == {1: A}


async def test_the_expired_are_left_out(log: Streams, clock: ManualClock) -> None:
    """What has expired is given to no reader, wherever it stands among others; positions stay."""
    await create(log, "s")
    soon = Meta(expires_ms=clock.wall_ms() + 1000)
    await publish(log, "s", b"0", b"1", b"2", b"3", meta={0: soon, 2: soon})
    await publish(log, "s", b"4", b"5", meta=soon)
    stream = log.find("s")
    follower = Recorder()
    log.follow(stream, 0, Plainly(), follower, "test")
    assert given_in(follower.frames) == [b"%d" % n for n in range(6)]
    clock.advance(1.0)
    batches = await stream.read(0, 1 << 20)
    assert [(batch.position, batch.records) for batch in batches] == [(1, [b"1"]), (3, [b"3"]), (6, [])]
    late = Recorder()
    reader = log.follow(stream, 0, Plainly(), late, "test", credit=1)
    assert (given_in(late.frames), reader.at) == ([b"1"], 2)
    reader.grant(1)
    assert (given_in(late.frames), reader.at) == ([b"1", b"3"], 6)
    reader.grant(1)
    await publish(log, "s", b"6")
    assert given_in(late.frames) == [b"1", b"3", b"6"], "none of the credit is spent on what has expired"
    bounded = Recorder()
    log.follow(stream, 4, Plainly(), bounded, "test", until=6)
    assert (given_in(bounded.frames), bounded.finished) == ([], "complete")


async def test_the_expired_are_left_out_of_a_fork_and_of_the_disk(disk: Disk) -> None:
    """Also where they are inherited, up to the point of the fork, and after a restart."""
    await create(disk.log, "s")
    soon = Meta(expires_ms=disk.clock.wall_ms() + 1000)
    await publish(disk.log, "s", b"0", b"1", b"2", b"3", meta={1: soon, 2: soon, 3: soon})
    await create(disk.log, "f", creation(source="s", fork_offset=disk.log.find("s").offset(3)))
    await publish(disk.log, "f", b"4")
    disk.clock.advance(1.0)
    for _ in range(2):
        for path, expected in (("s", [b"0"]), ("f", [b"0", b"4"])):
            sink = Recorder()
            stream = disk.log.find(path)
            log = disk.log
            log.follow(stream, 0, Plainly(), sink, "test", until=stream.tail)
            await until(partial(getattr, sink, "finished"))
            assert given_in(sink.frames) == expected
        await disk.restart()
