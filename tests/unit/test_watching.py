"""Watching the streams that a glob matches, and where each of them stands."""

from __future__ import annotations

import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.log import append, begin_append, begin_create, create, creation, delete, expire, settle
from tests.support.waiting import turns, until
from wayside.core.errors import StoreFull
from wayside.core.globs import Glob
from wayside.core.records import Durability, StreamTail
from wayside.streams.contract import StreamView
from wayside.streams.streams import Streams
from wayside.testing import ManualClock


class Watcher:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, bool, bool]] = []

    def __call__(self, stream: StreamView) -> None:
        self.told.append((stream.path, stream.tail, stream.closed, stream.deleted))

    def take(self) -> list[tuple[str, int, bool, bool]]:
        told, self.told = self.told, []
        return told


def tails(log: Streams, glob: str) -> list[tuple[str, int, int, bool]]:
    return [(t.path, t.earliest.position, t.tail.position, t.closed) for t in log.tails(Glob(glob))]


async def test_each_change_is_told_once(log: Streams) -> None:
    """Created, appended to, closed, deleted; of streams that were there and of those made later."""
    await create(log, "orders/1")
    watcher = Watcher()
    end = log.watch(Glob("orders/**"), watcher)
    await append(log, "orders/1", b"[1,2]")
    assert watcher.take() == [("orders/1", 2, False, False)]
    await create(log, "orders/eu/2", creation(body=b"[1,2,3]"))
    assert watcher.take() == [("orders/eu/2", 3, False, False)]
    await create(log, "orders/3")
    assert watcher.take() == [("orders/3", 0, False, False)]
    await append(log, "orders/3", close=True)
    assert watcher.take() == [("orders/3", 0, True, False)]
    await delete(log, "orders/1")
    assert watcher.take() == [("orders/1", 2, False, True)]
    await create(log, "orders/1")
    assert watcher.take() == [("orders/1", 0, False, False)]
    end()
    await append(log, "orders/1", b"1")
    await create(log, "orders/4")
    assert watcher.take() == []


async def test_appends_of_one_commit_are_told_together(log: Streams) -> None:
    """A watcher is told of a stream, and not of its appends."""
    await create(log, "a")
    await create(log, "b")
    watcher = Watcher()
    log.watch(Glob("*"), watcher)
    last = [begin_append(log, path, b"1") for path in "ababa"][-1]
    await last.wait()
    assert watcher.take() == [("a", 3, False, False), ("b", 2, False, False)]


async def test_streams_elsewhere_tell_nobody(log: Streams) -> None:
    """Nor do they know of any watch, those that are the hub's own included."""
    await create(log, "elsewhere")
    await create(log, "__call/1")
    watcher = Watcher()
    for glob in ("orders/**", "orders", "*/*"):
        log.watch(Glob(glob), watcher)
    await create(log, "elsewhere2")
    for path in ("elsewhere", "elsewhere2", "__call/1"):
        await append(log, path, b"1")
        assert log.find(path).watchers == ()
    assert watcher.told == []


async def test_watches_are_independent(log: Streams) -> None:
    """The same callable may watch twice; ending one watch, even twice, leaves the others."""
    await create(log, "a/b")
    watcher = Watcher()
    ends = [log.watch(Glob(glob), watcher) for glob in ("a/*", "a/*", "a/b", "**")]
    await append(log, "a/b", b"1")
    assert len(watcher.take()) == 4
    ends[0]()
    ends[0]()
    await append(log, "a/b", b"1")
    assert len(watcher.take()) == 3
    for end in ends[1:]:
        end()
    await append(log, "a/b", b"1")
    assert watcher.take() == []
    assert log.find("a/b").watchers == ()


async def test_what_failed_is_not_told(disk: Disk) -> None:
    """Neither an append nor a creation that found the disk full."""
    log = disk.log
    await create(log, "a")
    watcher = Watcher()
    log.watch(Glob("**"), watcher)
    gate = disk.gate()
    gate.full = 1
    answers = [begin_append(log, "a", b"1"), begin_create(log, "b")]
    for answer in answers:
        with pytest.raises(StoreFull):
            await answer.wait()
    assert watcher.take() == []
    await append(log, "a", b"1")
    assert watcher.take() == [("a", 1, False, False)]


async def test_a_stream_that_expires_is_told_as_deleted(disk: Disk) -> None:
    """Also one that was not loaded."""
    await create(disk.log, "s", creation(ttl_s=10))
    log = await disk.restart()
    watcher = Watcher()
    log.watch(Glob("**"), watcher)
    disk.clock.advance(11)
    assert tails(log, "**") == []
    expire(log)
    await until(lambda: watcher.told)
    assert watcher.take() == [("s", 0, False, True)]


async def test_a_stream_tells_when_it_is_loaded_again(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the hub has not loaded yet, and one that it had let go."""
    await create(disk.log, "a")
    log = await disk.restart()
    watcher = Watcher()
    log.watch(Glob("**"), watcher)
    await append(log, "a", b"[" + b",".join([b'"' + b"x" * 1000 + b'"'] * 300) + b"]")
    assert watcher.take() == [("a", 300, False, False)]
    patch_constants(monkeypatch, LOADED_MAX=0)
    await settle(log)
    known = log.find("a")

    def unloaded() -> bool:
        log.retention.unload()
        return log.find("a") is not known

    await until(unloaded)
    await append(log, "a", b"1")
    assert watcher.take() == [("a", 301, False, False)]


async def test_tails_of_streams_loaded_and_not(disk: Disk) -> None:
    """As a reader of each would see them, without loading those that are not: what the journal has, forks and closed
    streams included, and nothing of what is deleted."""
    log = disk.log
    for path in ("o/1", "o/2", "o/3", "o/deep/4", "o/gone", "other", "__call/1"):
        await create(log, path)
        await append(log, path, b"[1,2]")
    await append(log, "o/2", b"[1]", close=True)
    await create(log, "o/fork", creation(source="o/1"))
    await delete(log, "o/gone")
    await create(log, "o/lazy", creation(durability=Durability.ASYNC))
    await append(log, "o/lazy", b"1")
    expected = [
        ("o/1", 0, 2, False),
        ("o/2", 0, 3, True),
        ("o/3", 0, 2, False),
        ("o/deep/4", 0, 2, False),
        ("o/fork", 0, 2, False),
        ("o/lazy", 0, 1, False),
    ]
    assert tails(log, "o/**") == expected
    epochs = {t.path: (t.earliest, t.tail) for t in log.tails(Glob("**"))}
    for life in (disk.restart, disk.crash):
        log = await life()
        assert tails(log, "o/**") == expected
        assert {t.path: (t.earliest, t.tail) for t in log.tails(Glob("**"))} == epochs
        assert tails(log, "o/2") == expected[1:2]
        assert tails(log, "o/*") == [row for row in expected if row[0] != "o/deep/4"]
        for path, offsets in epochs.items():
            info = log.find(path).info()
            assert offsets == (info.earliest, info.tail)
    assert tails(log, "**")[-1] == ("other", 0, 2, False)


async def test_tails_load_nothing(disk: Disk) -> None:
    """However many match; and what is not committed yet is not in them."""
    for number in range(200):
        begin_create(disk.log, f"many/{number:03}")
    await create(disk.log, "many/last")
    log = await disk.restart()
    assert len(tails(log, "many/**")) == 201
    assert not log._catalog.streams
    gate = disk.gate()
    gate.shut()
    made, added = begin_create(log, "many/new"), begin_append(log, "many/000", b"1")
    await turns()
    assert tails(log, "many/*")[0] == ("many/000", 0, 0, False)
    assert len(tails(log, "many/**")) == 201
    gate.open()
    await made.wait()
    await added.wait()
    assert tails(log, "many/*")[0] == ("many/000", 0, 1, False)
    assert len(tails(log, "many/**")) == 202


async def test_a_tail_is_a_value(log: Streams, clock: ManualClock) -> None:
    """Of a stream that is over nothing is given, also before it is removed."""
    await create(log, "s", creation(ttl_s=10))
    info = log.find("s").info()
    assert list(log.tails(Glob("s"))) == [StreamTail("s", info.earliest, info.tail, False)]
    clock.advance(11)
    assert list(log.tails(Glob("s"))) == []
