"""Offset tokens: how they read, and what a stream says of those that are not its own."""

from __future__ import annotations

import pytest

from tests.support.disk import Disk
from tests.support.log import append, create, creation, delete
from wayside.core.errors import BadRequest, Gone
from wayside.core.records import Durability, Offset
from wayside.streams.streams import Streams


@pytest.mark.parametrize("offset", [Offset(1, 0), Offset(0x1A3185C5000, 42), Offset(16**11 - 1, 10**16 - 1)])
def test_a_token_reads_back_as_its_offset(offset: Offset) -> None:
    """Parsing the text of an offset gives that offset, from the smallest to the largest."""
    assert Offset.parse(str(offset)) == offset


def test_tokens_sort_as_their_offsets_do() -> None:
    """Text order is order in time: by epoch first, then by position."""
    offsets = [Offset(9, 10**15), Offset(10, 9), Offset(10, 10), Offset(255, 0), Offset(256, 0)]
    assert sorted(map(str, offsets)) == [str(offset) for offset in offsets]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "now",
        "1a3185c5000_000000000000042",
        "1a3185c5000_00000000000000042",
        "1A3185C5000_0000000000000042",
        "1a3185c5000-0000000000000042",
        "1a3185c5000_000000000000004x",
        "1a3185c5000_0000000000000042\n",
        " 1a3185c5000_0000000000000042",
        "1a3185c5000_00000000000000٤٢",
        "+a3185c5000_0000000000000042",
        "0x3185c5000_0000000000000042",
        "1a3185c5000_+000000000000042",
        "1a3185c5000_0000_00000000042",
        "0000000000000000_0000000000000001",
        "x" * 10_000,
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    """Anything this server does not write is malformed, and the answer quotes no more than a little of it."""
    with pytest.raises(BadRequest) as refused:
        Offset.parse(text)
    assert refused.value.code == "offset-malformed"
    assert len(refused.value.detail) < 250


async def test_the_zero_token_is_the_first_position_of_any_life(log: Streams) -> None:
    """The all-zero token of the protocol's own server names position 0 of whatever stream is there."""
    await create(log, "s")
    await append(log, "s", b"1")
    assert log.find("s").resolve(Offset.parse("0000000000000000_0000000000000000")) == 0
    await delete(log, "s")
    await create(log, "s")
    assert log.find("s").resolve(Offset.parse("0000000000000000_0000000000000000")) == 0


async def test_the_zero_token_expires_like_any_other(log: Streams) -> None:
    """Once the first record is not retained any more, the zero token is gone too."""
    await create(log, "s", creation(retention_bytes=10))
    for _ in range(10):
        await append(log, "s", b"12345678")
    with pytest.raises(Gone) as gone:
        log.find("s").resolve(Offset.parse("0000000000000000_0000000000000000"))
    assert gone.value.code == "offset-expired"


async def test_every_position_resolves_to_itself(log: Streams) -> None:
    """Each offset from the start to the tail, both included, names its position."""
    await create(log, "s")
    appended = await append(log, "s", b"[1,2,3]")
    stream = log.find("s")
    assert [stream.resolve(stream.offset(at)) for at in range(4)] == [0, 1, 2, 3]
    assert appended.offset == stream.offset(3) == stream.info().tail


async def test_an_offset_beyond_the_tail_is_refused(log: Streams) -> None:
    """A position that no record has reached is not where anybody stands."""
    await create(log, "s")
    tail = (await append(log, "s", b"1")).offset
    with pytest.raises(Gone) as gone:
        log.find("s").resolve(Offset(tail.epoch, tail.position + 1))
    assert gone.value.code == "offset-lost"


async def test_an_offset_of_an_earlier_life_is_refused(log: Streams) -> None:
    """After deletion and creation anew an old offset is answered with the code that says so, and where to begin."""
    await create(log, "s")
    old = (await append(log, "s", b"1")).offset
    await delete(log, "s")
    await create(log, "s")
    new = (await append(log, "s", b"[1,2]")).offset
    with pytest.raises(Gone) as gone:
        log.find("s").resolve(old)
    assert gone.value.code == "stream-recreated"
    assert gone.value.fields["tail"] == str(new)
    assert str(new) > str(old)


async def test_an_offset_before_retention_is_refused_with_the_earliest(log: Streams) -> None:
    """An offset whose records have been let go names the earliest that can be read instead."""
    await create(log, "s", creation(retention_bytes=30))
    first = (await append(log, "s", b"12345678")).offset
    for _ in range(10):
        await append(log, "s", b"12345678")
    stream = log.find("s")
    with pytest.raises(Gone) as gone:
        stream.resolve(first)
    assert gone.value.code == "offset-expired"
    earliest = gone.value.fields["earliest"]
    assert earliest == gone.value.headers["Stream-Earliest-Offset"] == str(stream.info().earliest)
    assert isinstance(earliest, str)
    assert stream.resolve(Offset.parse(earliest)) == stream.start > 1


async def test_an_epoch_is_not_given_twice_over_a_restart(disk: Disk) -> None:
    """A stream made after a restart, clean or not, has a later epoch than any before, even if the clock stands still."""
    epochs = []
    for restart in (disk.restart, disk.crash, disk.restart, disk.crash):
        created = await create(disk.log, "s")
        volatile = await create(disk.log, "v", creation(durability=Durability.MEMORY))
        epochs += [created.info.tail.epoch, volatile.info.tail.epoch]
        await delete(disk.log, "s")
        await restart()
    assert epochs == sorted(set(epochs))


async def test_an_epoch_is_not_given_twice_when_the_clock_goes_back(disk: Disk) -> None:
    """A clock that was set back does not make epochs go back."""
    before = (await create(disk.log, "s")).info.tail.epoch
    disk.clock.advance(-86_400)
    await disk.crash()
    assert (await create(disk.log, "t")).info.tail.epoch > before
