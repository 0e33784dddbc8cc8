"""Appending to an engine that is waited for, loses answers, and has another writer: nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from tests.support.foreign import ForeignEngine
from wayside.core.callbacks import asked
from wayside.core.errors import BadRequest, Conflict, Gone, NotFound, Overloaded, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import JSON, Append, Appended, Create, Durability, Meta, Producer, StreamConfig
from wayside.streams import optimistic
from wayside.streams.streams import Streams

CONFIG = StreamConfig(content_type=JSON)


async def opened(engine: ForeignEngine, limits: Limits | None = None) -> Streams:
    log = Streams(engine, limits=limits)
    log.start()
    await log.ready()
    return log


@pytest.fixture
async def engine() -> ForeignEngine:
    return ForeignEngine(seed=1, lost=0.3, others=lambda path: path.startswith("shared/"))


@pytest.fixture
async def log(engine: ForeignEngine) -> AsyncIterator[Streams]:
    log = await opened(engine)
    yield log
    await log.close()


async def create(log: Streams, path: str, config: StreamConfig = CONFIG, **more: Any) -> Any:
    return await asked(lambda done: log.create(path, Create(config, **more), done))


async def append(log: Streams, path: str, *records: bytes, **more: Any) -> Appended:
    result: Appended = await asked(lambda done: log.append(path, Append(b"", records=records, **more), done))
    return result


async def rows(log: Streams, path: str) -> list[tuple[str, bytes]]:
    """Every record with the offset after it, as a reader gets them."""
    stream = log.find(path)
    found: list[tuple[str, bytes]] = []
    at = stream.start
    while at < stream.tail:
        for batch in await stream.read(at, 1 << 20):
            found += [(str(stream.offset(batch.position + n + 1)), record) for n, record in enumerate(batch.records)]
            at = batch.end
    return found


@pytest.mark.parametrize("path", ["own/s", "shared/s"])
async def test_what_is_acknowledged_is_there_once_where_it_was_said(
    log: Streams, engine: ForeignEngine, path: str
) -> None:
    """Of many appenders, some with several records: each record once, at the offset of its answer."""
    await create(log, path)
    acked: dict[str, bytes] = {}

    async def publish(number: int) -> None:
        for turn in range(15):
            records = [b'"%d-%d-%d"' % (number, turn, n) for n in range(1 + turn % 3)]
            acked[str((await append(log, path, *records)).offset)] = records[-1]

    await asyncio.gather(*(publish(number) for number in range(8)))
    await engine.settle()
    found = await rows(log, path)
    counts = Counter(record for _, record in found if record != b'"intruder"')
    assert len(counts) == 8 * 30
    assert set(counts.values()) == {1}
    assert {offset: dict(found)[offset] for offset in acked} == acked
    assert engine.unknown > 0
    if path.startswith("shared/"):
        assert engine.conflicts > 0
        assert len(found) == 8 * 30 + engine.intruded
    head = await engine.head(path)
    assert head is not None
    assert log.find(path).tail == head.tail


async def test_each_appender_keeps_its_order(log: Streams, engine: ForeignEngine) -> None:
    """What one sends one after another, without waiting, is in that order."""
    await create(log, "shared/s")
    answers = [asyncio.ensure_future(append(log, "shared/s", b"%d" % n)) for n in range(100)]
    await asyncio.gather(*answers)
    assert [r for _, r in await rows(log, "shared/s") if r != b'"intruder"'] == [b"%d" % n for n in range(100)]


async def test_followers_are_given_everything_in_order(log: Streams, engine: ForeignEngine) -> None:
    """Also what another writer appends, which this hub hears of by the feed."""
    from wayside.streams.inprocess import Batches, Inlet

    await create(log, "shared/s")
    inlet = Inlet()
    log.follow(log.find("shared/s"), 0, Batches(), inlet, "in-process")
    given: list[bytes] = []

    async def follow() -> None:
        async for batch in inlet.batches():
            given.extend(batch.records)
            if b'"end"' in batch.records:
                return

    reader = asyncio.ensure_future(follow())
    for number in range(50):
        await append(log, "shared/s", b"%d" % number)
        if number % 7 == 0:
            await engine.intrude("shared/s", [b'"seven"'])
    await append(log, "shared/s", b'"end"')
    await asyncio.wait_for(reader, 10)
    inlet.stop()
    assert given == [record for _, record in await rows(log, "shared/s")]


async def test_a_producer_is_exactly_once(log: Streams) -> None:
    """Repeated sequence numbers are duplicates, a gap is refused, an older epoch is fenced."""
    await create(log, "shared/s")
    for seq in range(10):
        first = await append(log, "shared/s", b"%d" % seq, producer=Producer("p", 1, seq))
        again = await append(log, "shared/s", b"%d" % seq, producer=Producer("p", 1, seq))
        assert (first.duplicate, again.duplicate) == (False, True)
    with pytest.raises(Conflict):
        await append(log, "shared/s", b"12", producer=Producer("p", 1, 12))
    assert [r for _, r in await rows(log, "shared/s") if r != b'"intruder"'] == [b"%d" % n for n in range(10)]


async def test_a_message_id_is_appended_once_by_two_hubs(engine: ForeignEngine) -> None:
    """The second is told where the first is, whichever hub it comes by."""
    one, two = await opened(engine), await opened(engine)
    await create(one, "s")
    await engine.settle()
    answers = [
        await append(hub, "s", b"%d" % number, meta={0: Meta(id=f"id-{number}")})
        for number in range(10)
        for hub in (one, two)
    ]
    assert [answer.duplicate for answer in answers] == [False, True] * 10
    assert [answers[2 * n].offset for n in range(10)] == [answers[2 * n + 1].offset for n in range(10)]
    assert [record for _, record in await rows(two, "s")] == [b"%d" % n for n in range(10)]
    await one.close()
    await two.close()


async def test_two_hubs_on_one_engine_tell_their_readers_the_same(engine: ForeignEngine) -> None:
    """Each hears of what came by the other; both read the same records at the same offsets."""
    one, two = await opened(engine), await opened(engine)
    await create(one, "s")
    await asyncio.gather(*(append(hub, "s", b"%d" % n) for n in range(60) for hub in (one, two) if hub is one or n % 2))
    await engine.settle()
    assert await rows(one, "s") == await rows(two, "s")
    assert Counter(record for _, record in await rows(one, "s")) == Counter(
        b"%d" % n for n in range(60) for hub in (1, 2) if hub == 1 or n % 2
    )
    await asked(lambda done: two.append("s", Append(b"", close=True), done))
    await engine.settle()
    with pytest.raises(Conflict):
        await append(one, "s", b"late")
    assert one.find("s").closed
    await asked(lambda done: one.delete("s", done))
    await engine.settle()
    with pytest.raises(NotFound):
        two.find("s")
    await one.close()
    await two.close()


async def test_a_stream_that_another_hub_just_made_is_found(engine: ForeignEngine) -> None:
    """An append asks the engine before it is refused; so does whoever asks anew."""
    one, two = await opened(engine), await opened(engine)
    engine.silent = True  # nobody hears of anything
    await create(one, "s")
    assert (await append(two, "s", b"1")).duplicate is False
    await create(one, "t")
    with pytest.raises(NotFound):
        two.find("t")
    await asked(partial(two.refresh, "t"))
    assert two.find("t").tail == 0
    with pytest.raises(NotFound):
        await append(two, "nowhere", b"1")
    await one.close()
    await two.close()


async def test_the_same_stream_is_made_once(engine: ForeignEngine) -> None:
    """Two hubs make it at the same time: one is told it is new, the other that it is there, or differs."""
    one, two = await opened(engine), await opened(engine)
    made = await asyncio.gather(create(one, "s", body=b"[1,2]"), create(two, "s", body=b"[3]"))
    assert sorted(each.new for each in made) == [False, True]
    with pytest.raises(Conflict):
        await create(one, "s", StreamConfig(content_type="text/plain"))
    assert len(await rows(two, "s")) in (1, 2)
    await one.close()
    await two.close()


async def test_what_is_there_outlives_the_hub(engine: ForeignEngine) -> None:
    """The next hub has the streams, their state and every offset."""
    one = await opened(engine)
    await create(one, "s")
    offsets = [str((await append(one, "s", b"%d" % n, producer=Producer("p", 0, n))).offset) for n in range(5)]
    await one.close()
    two = await opened(engine)
    assert [offset for offset, _ in await rows(two, "s")] == offsets
    assert (await append(two, "s", b"4", producer=Producer("p", 0, 4))).duplicate
    await two.close()


async def test_what_the_engine_cannot_do_is_refused(log: Streams) -> None:
    """By a code, with nothing done."""
    await create(log, "a")
    await create(log, "b")
    for refused, code in (
        (create(log, "fork", source="a"), "forks-unavailable"),
        (
            create(log, "kept", StreamConfig(retention_bytes=5), explicit=frozenset({"retention_bytes"})),
            "retention-unavailable",
        ),
        (
            asked(lambda done: log.append_all([(p, Append(b"", records=[b"1"])) for p in "ab"], done)),
            "engine-not-atomic",
        ),
    ):
        with pytest.raises(BadRequest) as caught:
            await refused
        assert caught.value.code == code
    with pytest.raises(TooLarge):
        await append(log, "a", b'"%s"' % (b"x" * 1_000_001))
    assert await rows(log, "a") == await rows(log, "b") == []


async def test_several_appends_to_one_stream_are_one(log: Streams) -> None:
    """All of them or none, each told its own offset, though the engine has no transactions."""
    await create(log, "a")
    appends = [("a", Append(b"", records=[b"%d" % n])) for n in range(5)]
    results: list[Appended] = await asked(lambda done: log.append_all(appends, done))
    assert [str(result.offset) for result in results] == [offset for offset, _ in await rows(log, "a")]


async def test_streams_in_memory_are_the_hubs_own(log: Streams, engine: ForeignEngine) -> None:
    """Whatever the engine; the engine never hears of them."""
    await create(log, "m", StreamConfig(content_type=JSON, durability=Durability.MEMORY))
    await append(log, "m", b"1", b"2")
    assert [record for _, record in await rows(log, "m")] == [b"1", b"2"]
    assert await engine.head("m") is None


async def test_a_reader_of_a_stream_that_was_made_anew_is_told(engine: ForeignEngine) -> None:
    """Its offsets are of another life."""
    one, two = await opened(engine), await opened(engine)
    await create(one, "s")
    offset = (await append(one, "s", b"1")).offset
    await engine.settle()
    old = two.find("s")
    await asked(lambda done: one.delete("s", done))
    await create(one, "s")
    await engine.settle()
    assert old.deleted
    with pytest.raises(Gone):
        two.find("s").resolve(offset)
    await one.close()
    await two.close()


async def test_a_deletion_is_answered_after_an_append_that_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits behind an append has its turn, whatever became of that."""
    monkeypatch.setattr(optimistic, "PATIENCE_S", 0.05)
    engine = ForeignEngine()
    log = await opened(engine)
    await create(log, "s")

    async def unanswered(_puts: Any) -> Any:
        raise TimeoutError

    monkeypatch.setattr(engine, "commit", unanswered)
    appending = asyncio.create_task(append(log, "s", b"1"))
    await asyncio.sleep(0)
    await asked(partial(log.delete, "s"))
    with pytest.raises(Overloaded, match="does not answer"):
        await appending
    with pytest.raises(NotFound):
        log.find("s")
    await log.close()


async def test_what_was_accepted_goes_to_the_stream_that_was_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every append is answered, and there: it was accepted, so it needs no room again."""
    engine = ForeignEngine()
    one, two = await opened(engine, Limits(uncommitted_bytes_max=15)), await opened(engine)
    engine.silent = True
    await create(one, "s")
    commit, turn = engine.commit, asyncio.Event()

    async def late(puts: Any) -> Any:
        await turn.wait()
        return await commit(puts)

    monkeypatch.setattr(engine, "commit", late)
    appending = [asyncio.create_task(append(one, "s", each)) for each in (b'"10 bytes"', b'"a larger one: 20 b"')]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded):
        await append(one, "s", b"1")
    await asked(partial(two.refresh, "s"))
    await asked(partial(two.delete, "s"))
    await create(two, "s")
    turn.set()
    offsets = [str(appended.offset) for appended in await asyncio.gather(*appending)]
    assert await rows(one, "s") == [*zip(offsets, [b'"10 bytes"', b'"a larger one: 20 b"'], strict=True)]
    assert one.statistics().uncommitted_bytes == 0
    await one.close()
    await two.close()


@pytest.mark.parametrize("error", [asyncio.CancelledError, TimeoutError, ConnectionError])
async def test_an_engine_is_asked_again_whatever_it_raises(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """A client library whose connection is closed under it cancels whoever waits for it."""
    engine = ForeignEngine()
    one, two = await opened(engine), await opened(engine)
    engine.silent = True
    failing = Counter[str]()

    def fails_twice(name: str) -> None:
        ask = getattr(engine, name)

        async def asks(*arguments: Any) -> Any:
            failing[name] += 1
            if failing[name] < 3:
                raise error
            return await ask(*arguments)

        monkeypatch.setattr(engine, name, asks)

    for name in ("create", "commit", "find_batch", "head", "read", "delete"):
        fails_twice(name)
    await create(one, "s")
    appended = await append(one, "s", b"1")
    await asked(partial(two.refresh, "s"))
    assert await rows(two, "s") == [(str(appended.offset), b"1")]
    await asked(partial(two.delete, "s"))
    assert all(failing[name] >= 3 for name in ("create", "commit", "find_batch", "head", "read", "delete")), failing
    await one.close()
    await two.close()
