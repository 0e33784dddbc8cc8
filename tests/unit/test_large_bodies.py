"""Bodies too large for memory."""

from __future__ import annotations

import pytest

from tests.support.disk import Disk
from tests.support.followers import Plainly, Recorder, records_in
from tests.support.log import BYTES, TEXT, append, begin_append, create, creation, read_batches, read_records, spool
from tests.support.waiting import until
from wayside.core.errors import StoreFull, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import JSON
from wayside.streams.streams import Streams

PIECE = Limits().piece_bytes_max
BODY = bytes(range(256)) * 4000


@pytest.mark.parametrize("how", [None, "restart", "crash"])
async def test_a_long_body_becomes_pieces(disk: Disk, how: str | None) -> None:
    """A spooled body is stored as records of a bounded size, and read as it was sent."""
    await create(disk.log, "s", creation(BYTES))
    await append(disk.log, "s", b"before")
    answer = await append(disk.log, "s", spool(BODY))
    await append(disk.log, "s", b"after")
    assert answer.offset.position == 1 + -(-len(BODY) // PIECE)
    log = disk.log if how is None else await getattr(disk, how)()
    records = await read_records(log, "s")
    assert b"".join(records) == b"before" + BODY + b"after"
    assert max(map(len, records)) <= PIECE
    assert log.find("s").info().size == len(BODY) + 11


async def test_pieces_appear_together(disk: Disk) -> None:
    """Nobody sees a part of a long body: before its commit nothing of it, after it everything."""
    await create(disk.log, "s", creation(BYTES))
    sink = Recorder()
    disk.log.follow(disk.log.find("s"), 0, Plainly(), sink, "test")
    gate = disk.gate()
    gate.shut()
    answer = begin_append(disk.log, "s", spool(BODY))
    await disk.crash()
    assert await read_records(disk.log, "s") == []
    assert records_in(sink.frames) == []
    gate.open()
    await answer.wait()


async def test_text_pieces_are_text(log: Streams) -> None:
    """A long text is not cut inside a character."""
    text = "x" + "€" * 300_000
    await create(log, "s", creation(TEXT))
    await append(log, "s", spool(text.encode()))
    records = await read_records(log, "s")
    assert len(records) > 1
    assert "".join(record.decode() for record in records) == text


async def test_long_json_is_parsed_whole(log: Streams) -> None:
    """A JSON body is cut into its values whatever its size, and refused beyond its own limit."""
    await create(log, "s")
    value = b'"%s"' % (b"." * 700_000)
    await append(log, "s", spool(b"[" + value + b"," + value + b"]"))
    assert await read_records(log, "s") == [value, value]
    with pytest.raises(TooLarge):
        begin_append(log, "s", spool(b'"%s"' % (b"." * log.limits.json_body_bytes_max)), content_type=JSON)


async def test_a_follower_gets_a_long_body_in_order(disk: Disk) -> None:
    """Followers at the tail read the pieces of a long body, and go on with what comes after."""
    await create(disk.log, "s", creation(BYTES))
    sinks = [Recorder() for _ in range(3)]
    for sink in sinks:
        disk.log.follow(disk.log.find("s"), 0, Plainly(), sink, "test")
    await append(disk.log, "s", b"before")
    await append(disk.log, "s", spool(BODY))
    await append(disk.log, "s", b"after", close=True)
    await read_batches(disk.log.find("s"))
    for sink in sinks:
        await _finished(sink)
        assert b"".join(records_in(sink.frames)) == b"before" + BODY + b"after"


async def _finished(sink: Recorder) -> None:
    await until(lambda: sink.finished)


async def test_a_long_body_can_be_the_first(log: Streams) -> None:
    """A stream may be created with a long body, and closed with it."""
    created = await create(log, "s", creation(BYTES, body=spool(BODY), closed=True))
    assert created.info.closed
    assert b"".join(await read_records(log, "s")) == BODY


async def test_a_long_body_that_found_no_room_leaves_nothing(disk: Disk) -> None:
    """All pieces are refused together; sent again, all are there."""
    await create(disk.log, "s", creation(BYTES))
    await append(disk.log, "s", b"before")
    disk.gate().full = 1
    with pytest.raises(StoreFull):
        await append(disk.log, "s", spool(BODY))
    assert await read_records(disk.log, "s") == [b"before"]
    await append(disk.log, "s", spool(BODY))
    assert b"".join(await read_records(disk.log, "s")) == b"before" + BODY


async def test_small_and_long_appends_of_one_moment_keep_their_order(disk: Disk) -> None:
    """Appends before, between and after long ones in a single commit lie in the order in which they came."""
    await create(disk.log, "s", creation(BYTES))
    gate = disk.gate()
    gate.shut()
    answers = [
        begin_append(disk.log, "s", body)
        for body in (b"a", b"b", spool(b"c" * 300_000), b"d", spool(b"e" * 10), spool(b"f"), b"g", b"h" * 300_000, b"i")
    ]
    gate.open()
    for answer in answers:
        await answer.wait()
    expected = b"ab" + b"c" * 300_000 + b"d" + b"e" * 10 + b"fg" + b"h" * 300_000 + b"i"
    assert b"".join(await read_records(disk.log, "s")) == expected
    await disk.crash()
    assert b"".join(await read_records(disk.log, "s")) == expected
