"""What every engine keeps: one suite, over each of them, through the contract alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest

from tests.support.foreign import ForeignEngine
from wayside.core.engine import AppendState, Change, Engine, Head, Put, Stored, TailMoved
from wayside.core.errors import Gone
from wayside.core.records import JSON, Batch, Meta, StreamConfig
from wayside.storage.embedded.engine import EmbeddedEngine
from wayside.storage.memory import MemoryEngine

Make = Callable[[Path], Engine]
ENGINES: dict[str, Make] = {
    "embedded": EmbeddedEngine,
    "memory": lambda _directory: MemoryEngine(),
    "foreign": lambda _directory: ForeignEngine(),
}
_sids = count(1_000_000_000_000)
TEXT = StreamConfig(content_type="text/plain")


@pytest.fixture(params=sorted(ENGINES))
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    made = ENGINES[request.param](tmp_path)
    await made.open()
    yield made
    await made.close()


def new(path: str, config: StreamConfig = TEXT) -> Head:
    sid = next(_sids)
    return Head(sid, path, config, [(0, sid)])


def put(head: Head, *records: bytes, state: AppendState | None = None, **more: object) -> Put:
    separator = b"," if head.config.is_json else b""
    return Put(
        head.sid,
        head.tail,
        1_700_000_000_000,
        list(records),
        sum(map(len, records)),
        separator,
        1 << 30,
        state,
        path=head.path,
        **more,  # type: ignore[arg-type]
    )


async def append(engine: Engine, path: str, *records: bytes, **more: object) -> int:
    """Append where the tail is; returns the position of the first record."""
    head = await engine.head(path)
    assert head is not None
    (outcome,) = await engine.commit([put(head, *records, **more)])  # type: ignore[arg-type]
    assert isinstance(outcome, Stored)
    return outcome.position


async def records_of(engine: Engine, path: str, position: int = 0, *, bytes_max: int = 1 << 20) -> list[bytes]:
    """All records from a position on, read as a follower does."""
    head = await engine.head(path)
    assert head is not None
    found: list[bytes] = []
    while position < head.tail:  # a replica may not have all of it yet
        for batch in await engine.read(path, head.sid, position, bytes_max, 1000):
            assert batch.position >= position, "batches come in order"
            found += batch.records
            position = batch.end
    return found


async def changes_until(
    engine: Engine,
    enough: Callable[[dict[str, Head | None]], bool],
    then: Callable[[], Awaitable[object]] | None = None,
) -> dict[str, Head | None]:
    """What the feed tells of each path, newest last, until it is enough; ``then`` is done once all paths were told."""
    known: dict[str, Head | None] = {}
    async with asyncio.timeout(10):
        async for changes in engine.changes():
            known.update({change.path: change.head for change in changes})
            assert all(isinstance(change, Change) for change in changes)
            if not changes and then is not None:
                await then()
            if enough(known) and (changes or then is None):
                return known
    raise AssertionError("the feed has ended")


async def test_nothing_is_at_a_path_until_a_stream_is_made(engine: Engine) -> None:
    """A path without a stream has no head, and deleting it does nothing."""
    assert await engine.head("a/b") is None
    await engine.delete("a/b", 1)
    assert await engine.paths("", "", 10) == []


async def test_a_stream_is_made_as_it_was_asked_for(engine: Engine) -> None:
    """Its head has the configuration, and a tail at which nothing is."""
    config = StreamConfig(content_type=JSON, ttl_s=60)
    asked = new("s", config)
    made = await engine.create(asked, None)
    assert (made.sid, made.config, made.state.closed) == (asked.sid, config, False)
    head = await engine.head("s")
    assert head is not None
    assert (head.sid, head.config, head.start, head.tail, head.size) == (asked.sid, config, made.start, made.tail, 0)
    assert await records_of(engine, "s") == []


async def test_the_second_to_make_a_stream_is_given_the_first(engine: Engine) -> None:
    """Somebody was faster: what is there is returned, and nothing is done."""
    first = await engine.create(new("s"), None)
    await append(engine, "s", b"1")
    second = new("s", StreamConfig(content_type=JSON))
    found = await engine.create(second, put(second, b"2"))
    assert (found.sid, found.config) == (first.sid, TEXT)
    assert await records_of(engine, "s") == [b"1"]


async def test_one_of_many_makes_a_stream(engine: Engine) -> None:
    """Of those who come at the same time one makes it, and all of them are told which."""
    heads = await asyncio.gather(*(engine.create(new("s"), None) for _ in range(8)))
    assert len({head.sid for head in heads}) == 1


async def test_a_stream_is_made_with_its_first_batch(engine: Engine) -> None:
    """They are there together."""
    asked = new("s")
    made = await engine.create(asked, put(asked, b"a", b"b", state=AppendState(closed=True)))
    assert made.state.closed
    assert made.size == 2
    assert await records_of(engine, "s") == [b"a", b"b"]


async def test_batches_are_read_as_they_were_appended(engine: Engine) -> None:
    """In order, each record one after the other in its batch, times and metadata with them."""
    await engine.create(new("s"), None)
    meta = {1: Meta({"a": "b"}, "id-1", "key", 0)}
    first = await append(engine, "s", b"one", b"two", meta=meta)
    second = await append(engine, "s", b"three")
    assert second >= first + 2
    head = await engine.head("s")
    assert head is not None
    assert head.tail == second + 1, "the tail is the end of the last batch"
    assert head.size == 11
    found = [(b.position + n, r, b.time_ms) for b in await _all(engine, head) for n, r in enumerate(b.records)]
    time_ms = 1_700_000_000_000
    assert found == [(first, b"one", time_ms), (first + 1, b"two", time_ms), (second, b"three", time_ms)]
    metas = {b.position + n: m for b in await _all(engine, head) for n, m in (b.meta or {}).items()}
    assert metas == {first + 1: meta[1]}


async def _all(engine: Engine, head: Head) -> list[Batch]:
    while True:
        batches = await engine.read(head.path, head.sid, head.start, 1 << 20, 1000)
        if batches and batches[-1].end == head.tail:
            return batches


async def test_reading_begins_at_any_position(engine: Engine) -> None:
    """Inside a batch, between two, and at the tail, where there is nothing."""
    await engine.create(new("s"), None)
    first = await append(engine, "s", b"a", b"b", b"c")
    second = await append(engine, "s", b"d")
    assert await records_of(engine, "s", first + 1) == [b"b", b"c", b"d"]
    assert await records_of(engine, "s", first + 3) == [b"d"], "where one ends the next is found, whatever is between"
    assert await records_of(engine, "s", second + 1) == []


async def test_a_read_is_bounded(engine: Engine) -> None:
    """By bytes and by records, but for one record that is larger."""
    head = await engine.create(new("s"), None)
    for number in range(20):
        await append(engine, "s", b"%02d" % number * 50, b"%02d" % number * 50)
    for bytes_max, records_max, most in ((1, 1000, 2), (1 << 20, 3, 3)):
        few: list[Batch] = []
        while not few:  # a replica may not have it yet
            few = await engine.read("s", head.sid, head.start, bytes_max, records_max)
        assert 1 <= sum(batch.count for batch in few) <= most
    assert len(await records_of(engine, "s", bytes_max=1)) == 40


async def test_large_records_are_whole(engine: Engine) -> None:
    """As large as a batch may be."""
    await engine.create(new("s"), None)
    large = bytes(range(256)) * 3000
    await append(engine, "s", large)
    await append(engine, "s", b"small", large[:1000])
    assert await records_of(engine, "s") == [large, b"small", large[:1000]]


async def test_an_append_at_another_tail_is_refused(engine: Engine) -> None:
    """Compare-and-append: who did not know of the last batch is told what is there."""
    old = await engine.create(new("s"), None)
    await append(engine, "s", b"1")
    (outcome,) = await engine.commit([put(old, b"2")])
    head = await engine.head("s")
    assert isinstance(outcome, TailMoved)
    assert outcome.head is not None
    assert head is not None
    assert (outcome.head.sid, outcome.head.tail) == (head.sid, head.tail)
    assert await records_of(engine, "s") == [b"1"]


async def test_one_of_many_appends_at_a_tail(engine: Engine) -> None:
    """However many try at once."""
    head = await engine.create(new("s"), None)
    outcomes = await asyncio.gather(*(engine.commit([put(head, b"%d" % n)]) for n in range(8)))
    assert sum(isinstance(outcome, Stored) for (outcome,) in outcomes) == 1
    assert len(await records_of(engine, "s")) == 1


async def test_nothing_is_appended_to_a_closed_stream(engine: Engine) -> None:
    """Also by who does not know of the close, and though it has moved no tail; nor is it closed twice."""
    await engine.create(new("s"), None)
    await append(engine, "s", b"1")
    before = await engine.head("s")
    assert before is not None
    await append(engine, "s", state=AppendState(closed=True))
    for late in (put(before, b"2"), put(before, state=AppendState(closed=True))):
        (outcome,) = await engine.commit([late])
        assert isinstance(outcome, TailMoved)
        assert outcome.head is not None
        assert outcome.head.state.closed
    assert await records_of(engine, "s") == [b"1"]


async def test_an_append_to_another_life_is_refused(engine: Engine) -> None:
    """A stream that was deleted and made again is another, though its tail be the same."""
    old = await engine.create(new("s"), None)
    await engine.delete("s", old.sid)
    (outcome,) = await engine.commit([put(old, b"1")])
    assert outcome == TailMoved(None)
    made = await engine.create(new("s"), None)
    (outcome,) = await engine.commit([put(old, b"1")])
    assert isinstance(outcome, TailMoved)
    assert outcome.head is not None
    assert outcome.head.sid == made.sid
    with pytest.raises(Gone):
        await engine.read("s", old.sid, 0, 1000, 1000)
    await engine.delete("s", old.sid)
    assert await engine.head("s") is not None, "who deletes an old life does nothing"


async def test_appends_to_many_paths_are_each_whole(engine: Engine) -> None:
    """One is refused, and the others are appended."""
    heads = [await engine.create(new(f"s{n}"), None) for n in range(5)]
    await append(engine, "s2", b"before")
    outcomes = await engine.commit([put(head, b"a", b"b") for head in heads])
    assert [type(outcome) for outcome in outcomes] == [Stored, Stored, TailMoved, Stored, Stored]
    assert [await records_of(engine, f"s{n}") for n in range(5)] == [
        [b"a", b"b"],
        [b"a", b"b"],
        [b"before"],
        [b"a", b"b"],
        [b"a", b"b"],
    ]


async def test_what_appends_change_beside_records_is_kept(engine: Engine) -> None:
    """Producers, sequence, closing: the newest wins, and what is not named stays."""
    await engine.create(new("s"), None)
    await append(engine, "s", b"1", state=AppendState(False, None, "a", {"p": (0, 0, 5)}))
    await append(engine, "s", b"2", state=AppendState(False, None, None, {"q": (1, 2, 6)}))
    await append(engine, "s", state=AppendState(True, ("q", 1, 3), None, {"q": (1, 3, 7)}))
    head = await engine.head("s")
    assert head is not None
    state = head.state
    assert (state.closed, state.closed_by, state.seq) == (True, ("q", 1, 3), "a")
    assert dict(state.producers) == {"p": (0, 0, 5), "q": (1, 3, 7)}


async def test_a_batch_of_no_records_moves_nothing(engine: Engine) -> None:
    """To close a stream is an append without records: its tail stays."""
    await engine.create(new("s"), None)
    await append(engine, "s", b"1")
    before = await engine.head("s")
    await append(engine, "s", state=AppendState(closed=True))
    after = await engine.head("s")
    assert before is not None
    assert after is not None
    assert (after.tail, after.state.closed) == (before.tail, True)


async def test_a_deleted_stream_is_gone(engine: Engine) -> None:
    """Its records are not in the next one at that path."""
    head = await engine.create(new("s"), None)
    await append(engine, "s", b"1")
    await engine.delete("s", head.sid)
    assert await engine.head("s") is None
    with pytest.raises(Gone):
        await engine.read("s", head.sid, 0, 1000, 1000)
    await engine.create(new("s"), None)
    assert await records_of(engine, "s") == []


async def test_paths_are_listed_in_order(engine: Engine) -> None:
    """By prefix, after a path, so many at a time; any printable path is one."""
    paths = ["a", "a/b", "a/b c", "a/ü", "b/*x", "b.c", "b>d"]
    for path in paths:
        await engine.create(new(path), None)
    assert [head.path for head in await engine.paths("", "", 100)] == sorted(paths)
    assert [head.path for head in await engine.paths("a/", "", 100)] == ["a/b", "a/b c", "a/ü"]
    assert [head.path for head in await engine.paths("a/", "a/b", 1)] == ["a/b c"]


async def test_the_feed_begins_with_what_is_there(engine: Engine) -> None:
    """All paths with their heads, then an empty list."""
    await engine.create(new("a"), None)
    await engine.create(new("b"), None)
    await append(engine, "b", b"1", b"2")
    known = await changes_until(engine, lambda known: len(known) == 2)
    head = await engine.head("b")
    assert head is not None
    assert known["b"] is not None
    assert (known["b"].sid, known["b"].tail) == (head.sid, head.tail)


async def test_the_feed_tells_of_every_change(engine: Engine) -> None:
    """Of streams that are made, appended to, closed and deleted; the last that is told is what is so."""
    first = await engine.create(new("a"), None)

    async def change() -> None:
        await engine.create(new("b"), None)
        await append(engine, "b", b"1")
        await append(engine, "b", b"2", state=AppendState(closed=True))
        await engine.delete("a", first.sid)

    def enough(known: dict[str, Head | None]) -> bool:
        b = known.get("b")
        return known.get("a", first) is None and b is not None and b.state.closed

    known = await changes_until(engine, enough, change)
    head = await engine.head("b")
    assert head is not None
    assert known["b"] is not None
    assert known["b"].tail == head.tail


async def test_it_can_be_followed_twice(engine: Engine) -> None:
    """Each who follows it is told everything."""
    both = asyncio.gather(*(changes_until(engine, lambda known: "late" in known) for _ in range(2)))
    await asyncio.sleep(0.01)
    await engine.create(new("late"), None)
    assert all("late" in known for known in await both)


@pytest.mark.parametrize("engine", ["embedded", "memory"], indirect=True)
async def test_a_beginning_is_let_go(engine: Engine) -> None:
    """What is before a position may be gone; what is after it is there."""
    assert engine.abilities.trims
    head = await engine.create(new("s"), None)
    positions = [await append(engine, "s", b"%04d" % n) for n in range(10)]
    await engine.trim("s", head.sid, positions[5])
    kept = await engine.head("s")
    assert kept is not None
    assert kept.start <= positions[5]
    assert await records_of(engine, "s", positions[5]) == [b"%04d" % n for n in range(5, 10)]


async def test_what_was_acknowledged_outlives_the_engine(tmp_path: Path) -> None:
    """A durable engine has it when it is opened again."""
    engine: Engine = EmbeddedEngine(tmp_path)
    await engine.open()
    await engine.create(new("s"), None)
    await append(engine, "s", b"1", b"2", state=AppendState(False, None, "seq", {"p": (1, 2, 3)}))
    await append(engine, "s", b"x" * 300_000)
    await append(engine, "s", b"3")
    before = await engine.head("s")
    await engine.close()
    again: Engine = EmbeddedEngine(tmp_path)
    await again.open()
    after = await again.head("s")
    assert before is not None
    assert after is not None
    assert (after.sid, after.tail, after.size, after.state) == (before.sid, before.tail, before.size, before.state)
    assert await records_of(again, "s") == [b"1", b"2", b"x" * 300_000, b"3"]
    await again.close()
