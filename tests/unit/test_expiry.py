"""Streams that end by themselves: after a time without use, or at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.disk import Disk
from tests.support.followers import Plainly, Recorder
from tests.support.log import append, create, creation, expire, offset_at, read_records
from wayside.core.errors import Gone, NotFound, StoreFull
from wayside.streams.streams import Streams
from wayside.testing import START_MS

Advance = Callable[[float], None]


def _there(log: Streams, path: str) -> bool:
    """Whether a stream exists, without using it."""
    try:
        log.find(path, touch=False)
    except NotFound:
        return False
    return True


async def test_an_unused_stream_expires(log: Streams, manual: Advance) -> None:
    """After its time to live without use a stream is gone, on the millisecond."""
    await create(log, "s", creation(ttl_s=60))
    manual(59.999)
    expire(log)
    assert _there(log, "s")
    manual(0.001)
    expire(log)
    assert not _there(log, "s")
    assert log.statistics().streams == 0


async def test_an_expired_stream_is_not_there_even_if_nobody_swept(log: Streams, manual: Advance) -> None:
    """Expiry does not wait for the sweep: who comes after the time finds nothing, and may have the name."""
    await create(log, "s", creation(ttl_s=60))
    manual(60)
    assert not _there(log, "s")
    assert log.list("", "", 10) == []
    assert (await create(log, "s", creation(ttl_s=60))).new


@pytest.mark.parametrize("use", ["read", "append"])
async def test_use_gives_a_stream_its_time_again(log: Streams, manual: Advance, use: str) -> None:
    """A read or an append begins the time to live anew."""
    await create(log, "s", creation(ttl_s=60))
    for _ in range(5):
        manual(40)
        if use == "read":
            log.find("s")
        else:
            await append(log, "s", b"1")
        expire(log)
    assert _there(log, "s")
    manual(60)
    expire(log)
    assert not _there(log, "s")


async def test_asking_about_a_stream_is_not_use(log: Streams, manual: Advance) -> None:
    """A look at what a stream is does not keep it."""
    await create(log, "s", creation(ttl_s=60))
    for _ in range(6):
        manual(10)
        _there(log, "s")
    assert not _there(log, "s")


async def test_a_time_of_expiry_does_not_move(log: Streams, manual: Advance) -> None:
    """A stream that expires at a time does so, however much it is used."""
    await create(log, "s", creation(expires_at_ms=START_MS + 60_000))
    manual(59)
    await append(log, "s", b"1")
    log.find("s")
    expire(log)
    assert _there(log, "s")
    manual(1)
    expire(log)
    assert not _there(log, "s")


async def test_a_follower_keeps_its_stream(log: Streams, manual: Advance) -> None:
    """As long as somebody follows a stream it is in use; when the last one left, its time begins."""
    await create(log, "s", creation(ttl_s=60))
    follower = log.follow(log.find("s"), 0, Plainly(), Recorder(), "test")
    manual(100)
    expire(log)
    manual(50)
    assert _there(log, "s")
    follower.stop()
    manual(50)
    expire(log)
    assert not _there(log, "s")


async def test_a_follower_is_told_of_the_end(log: Streams, manual: Advance) -> None:
    """Who follows a stream that reaches its time hears that it was deleted."""
    await create(log, "s", creation(expires_at_ms=START_MS + 60_000))
    sink = Recorder()
    log.follow(log.find("s"), 0, Plainly(), sink, "test")
    manual(60)
    expire(log)
    await create(log, "t")  # one commit later
    assert sink.finished == "deleted"


async def test_streams_expire_after_a_restart(disk: Disk) -> None:
    """Time goes on while the hub is away."""
    await create(disk.log, "ttl", creation(ttl_s=60))
    await create(disk.log, "at", creation(expires_at_ms=START_MS + 60_000))
    await create(disk.log, "long", creation(ttl_s=6000))
    disk.clock.advance(90)
    log = await disk.restart()
    expire(log)
    assert [info.path for info in log.list("", "", 10)] == ["long"]
    assert log.statistics().streams == 1


async def test_streams_expire_after_a_crash(disk: Disk) -> None:
    """After a crash a stream has its time to live once more, as nobody knows when it was used; an end is an end."""
    await create(disk.log, "ttl", creation(ttl_s=60))
    await create(disk.log, "at", creation(expires_at_ms=START_MS + 60_000))
    disk.clock.advance(90)
    log = await disk.crash()
    expire(log)
    assert [info.path for info in log.list("", "", 10)] == ["ttl"]
    disk.clock.advance(60)
    expire(log)
    assert log.list("", "", 10) == []


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_use_before_a_restart_counts(disk: Disk, how: str) -> None:
    """A stream that was used lately does not expire because the hub was started anew."""
    await create(disk.log, "s", creation(ttl_s=60))
    disk.clock.advance(50)
    await append(disk.log, "s", b"1")
    disk.clock.advance(5)
    log = await getattr(disk, how)()
    disk.clock.advance(10)
    expire(log)
    assert await read_records(log, "s") == [b"1"]
    disk.clock.advance(60)
    expire(log)
    assert not _there(log, "s")


async def test_an_expired_source_is_kept_for_its_forks(log: Streams, manual: Advance) -> None:
    """Expiry is a deletion: forks keep what they share."""
    await create(log, "s", creation(ttl_s=60))
    await append(log, "s", b"[1,2]")
    await create(log, "f", creation(source="s", fork_offset=offset_at(log, "s", 1), ttl_s=600))
    manual(100)
    expire(log)
    with pytest.raises(Gone):
        log.find("s")
    assert await read_records(log, "f") == [b"1"]
    manual(700)
    expire(log)
    assert not _there(log, "f")
    assert not _there(log, "s")


async def test_expiry_that_found_no_room_is_tried_again(disk: Disk) -> None:
    """A stream whose expiry could not be committed goes at the next sweep."""
    log = disk.log
    await create(log, "s", creation(ttl_s=60))
    await create(log, "t")
    disk.clock.advance(60)
    disk.gate().full = 1
    expire(log)
    with pytest.raises(StoreFull):
        await append(log, "t", b"1")
    expire(log)
    await append(log, "t", b"2")
    await disk.crash()
    assert [info.path for info in disk.log.list("", "", 10)] == ["t"]
