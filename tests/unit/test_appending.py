"""What an append is checked against: producers, Stream-Seq, closing, content type, and in which order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.embedded import embedded
from tests.support.log import TEXT, append, begin_append, begin_create, create, creation, read_records
from tests.support.waiting import turns
from wayside.core.errors import BadRequest, Conflict, Fenced, Gone, NotFound, StoreFull
from wayside.core.limits import Limits
from wayside.core.records import JSON, Offset, Producer
from wayside.streams.streams import Streams
from wayside.testing import ManualClock

# -- producers


async def test_a_producer_continues_with_the_next_number(log: Streams) -> None:
    """Appends in sequence are accepted, each answered with the highest number accepted."""
    await create(log, "s")
    for number in range(3):
        answer = await append(log, "s", b"%d" % number, producer=("p", 0, number))
        assert not answer.duplicate
        assert answer.producer == Producer("p", 0, number)
    assert await read_records(log, "s") == [b"0", b"1", b"2"]


async def test_a_retry_is_answered_and_not_appended(log: Streams) -> None:
    """What a producer sent before is a duplicate, however old, and names the last number accepted."""
    await create(log, "s")
    for number in range(3):
        await append(log, "s", b"%d" % number, producer=("p", 0, number))
    for number in (2, 0):
        answer = await append(log, "s", b"%d" % number, producer=("p", 0, number))
        assert answer.duplicate
        assert answer.producer == Producer("p", 0, 2)
        assert answer.offset.position == 3
    assert await read_records(log, "s") == [b"0", b"1", b"2"]


@pytest.mark.parametrize("sent", [0, 2])
async def test_a_gap_is_refused_with_what_is_missing(log: Streams, sent: int) -> None:
    """A number that skips one is refused, says which one is next, and changes nothing."""
    await create(log, "s")
    for number in range(sent):
        await append(log, "s", b"%d" % number, producer=("p", 0, number))
    with pytest.raises(Conflict) as gap:
        begin_append(log, "s", b"9", producer=("p", 0, sent + 1))
    assert gap.value.code == "producer-gap"
    assert gap.value.headers == {"Producer-Expected-Seq": str(sent), "Producer-Received-Seq": str(sent + 1)}
    assert not (await append(log, "s", b"%d" % sent, producer=("p", 0, sent))).duplicate


async def test_an_old_epoch_is_fenced(log: Streams) -> None:
    """Once a producer came with a higher epoch, an instance of a lower one is refused, and told which one holds."""
    await create(log, "s")
    await append(log, "s", b"1", producer=("p", 3, 0))
    await append(log, "s", b"2", producer=("p", 7, 0))
    for seq in (0, 1):
        with pytest.raises(Fenced) as fenced:
            begin_append(log, "s", b"3", producer=("p", 3, seq))
        assert fenced.value.headers == {"Producer-Epoch": "7"}
    assert await read_records(log, "s") == [b"1", b"2"]


async def test_a_new_epoch_begins_at_zero(log: Streams) -> None:
    """A higher epoch starts its own numbers, and must start them at 0."""
    await create(log, "s")
    await append(log, "s", b"1", producer=("p", 0, 0))
    with pytest.raises(BadRequest) as refused:
        begin_append(log, "s", b"2", producer=("p", 1, 1))
    assert refused.value.code == "producer-epoch-start"
    assert (await append(log, "s", b"2", producer=("p", 0, 1))).producer == Producer("p", 0, 1)
    assert (await append(log, "s", b"3", producer=("p", 1, 0))).producer == Producer("p", 1, 0)


async def test_producers_do_not_know_each_other(log: Streams) -> None:
    """Numbers and epochs are one producer's own."""
    await create(log, "s")
    await append(log, "s", b"1", producer=("p", 5, 0))
    assert not (await append(log, "s", b"2", producer=("q", 0, 0))).duplicate
    assert not (await append(log, "s", b"3", producer=("p", 5, 1))).duplicate


async def test_a_duplicate_waits_for_the_commit_of_its_original(disk: Disk) -> None:
    """A retry that comes while the original is on its way to the disk is answered after it, not before."""
    await create(disk.log, "s")
    gate = disk.gate()
    gate.shut()
    order: list[str] = []
    original = begin_append(disk.log, "s", b"1", producer=("p", 0, 0))
    await turns()
    retry = begin_append(disk.log, "s", b"1", producer=("p", 0, 0))
    waiting = [
        asyncio.create_task(_note(original.wait(), "original", order)),
        asyncio.create_task(_note(retry.wait(), "retry", order)),
    ]
    await turns()
    await turns()
    assert not original.given
    assert not retry.given
    gate.open()
    await asyncio.gather(*waiting)
    assert order == ["original", "retry"]
    assert retry.result.duplicate
    assert retry.result.offset == original.result.offset
    assert await read_records(disk.log, "s") == [b"1"]


async def _note(waiting: object, name: str, order: list[str]) -> None:
    await waiting  # type: ignore[misc]
    order.append(name)


async def test_the_second_of_two_creations_is_answered_after_the_first(disk: Disk) -> None:
    """A creation that finds the same one on its way is told so only when that one is committed, with all it holds."""
    gate = disk.gate()
    gate.shut()
    first = begin_create(disk.log, "s", creation(body=b"[1,2]"))
    await turns()
    second = begin_create(disk.log, "s", creation(body=b"[1,2]"))
    await turns()
    assert not second.given
    with pytest.raises(NotFound):
        disk.log.find("s")
    gate.open()
    assert (await second.wait()).info.tail.position == 2
    assert first.given
    assert first.result.new
    assert not second.result.new


async def test_a_duplicate_of_an_append_that_failed_is_told_so(disk: Disk) -> None:
    """A retry shares the fate of its original: it is never confirmed when that one found no room."""
    await create(disk.log, "s")
    gate = disk.gate()
    gate.shut()
    gate.full = 1
    original = begin_append(disk.log, "s", b"1", producer=("p", 0, 0))
    await turns()
    retry = begin_append(disk.log, "s", b"1", producer=("p", 0, 0))
    gate.open()
    for answer in (original, retry):
        with pytest.raises(Exception, match="no room"):
            await answer.wait()
    again = await append(disk.log, "s", b"1", producer=("p", 0, 0))
    assert not again.duplicate
    assert await read_records(disk.log, "s") == [b"1"]


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_producers_are_known_after_a_restart(disk: Disk, how: str) -> None:
    """Epoch and number of each producer are as durable as the records they came with."""
    await create(disk.log, "s")
    await append(disk.log, "s", b"1", producer=("p", 2, 0))
    await append(disk.log, "s", b"2", producer=("p", 2, 1))
    log = await getattr(disk, how)()
    assert (await append(log, "s", b"2", producer=("p", 2, 1))).duplicate
    with pytest.raises(Fenced):
        begin_append(log, "s", b"3", producer=("p", 1, 0))
    with pytest.raises(Conflict):
        begin_append(log, "s", b"3", producer=("p", 2, 3))
    assert not (await append(log, "s", b"3", producer=("p", 2, 2))).duplicate


async def test_the_longest_silent_producer_is_forgotten_first() -> None:
    """A stream remembers a bounded number of producers: those that were heard of last."""
    clock = ManualClock()
    log = embedded(None, limits=Limits(producers_max=2), clock=clock)
    log.start()
    await create(log, "s")
    for name, seq in (("a", 0), ("b", 0), ("a", 1), ("c", 0)):
        clock.advance(1)
        await append(log, "s", b"1", producer=(name, 0, seq))
    assert (await append(log, "s", b"1", producer=("a", 0, 1))).duplicate
    assert (await append(log, "s", b"1", producer=("c", 0, 0))).duplicate
    assert not (await append(log, "s", b"1", producer=("b", 0, 0))).duplicate
    await log.close()


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_a_forgotten_producer_stays_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, sealed: bool
) -> None:
    """The bound on producers holds on disk too: one that gave way to another is not known again after a restart."""
    if sealed:
        patch_constants(monkeypatch, CHUNK_BYTES=1)
    disk = Disk(tmp_path, limits=Limits(producers_max=2))
    await create(disk.log, "s")
    for name in ("a", "b", "c", "b", "d"):
        disk.clock.advance(1)
        await append(disk.log, "s", b"1", producer=(name, 0, 1 if name == "b" and disk.log.find("s").tail == 3 else 0))
    log = await getattr(disk, how)()
    for name, seq in (("b", 1), ("d", 0)):
        assert (await append(log, "s", b"1", producer=(name, 0, seq))).duplicate
    assert len(log.find("s").producers) == 2
    for name in ("a", "c"):
        assert not (await append(log, "s", b"1", producer=(name, 0, 0))).duplicate
    await disk.close()


# -- Stream-Seq


async def test_stream_seq_must_grow(log: Streams) -> None:
    """A writer's own sequence is compared byte by byte, and must come after the last one."""
    await create(log, "s")
    for seq in ("09", "1", "10", "9", "a", "ä"):
        await append(log, "s", b"1", seq=seq)
    for seq in ("ä", "a", "", "10"):
        with pytest.raises(Conflict) as refused:
            begin_append(log, "s", b"2", seq=seq)
        assert refused.value.code == "seq-regression"
        assert refused.value.fields == {"last_seq": "ä"}
    await append(log, "s", b"3")  # an append without one is not held against it
    with pytest.raises(Conflict):
        begin_append(log, "s", b"4", seq="a")


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_stream_seq_is_known_after_a_restart(disk: Disk, how: str) -> None:
    """The last sequence is as durable as its record."""
    await create(disk.log, "s")
    await append(disk.log, "s", b"1", seq="b")
    log = await getattr(disk, how)()
    with pytest.raises(Conflict):
        begin_append(log, "s", b"2", seq="b")
    await append(log, "s", b"2", seq="c")


# -- closing


async def test_closing_may_bring_the_last_records(log: Streams) -> None:
    """Records sent with the close are the last, and both happen at once."""
    await create(log, "s")
    answer = await append(log, "s", b"[1,2]", close=True)
    assert answer.closed
    assert answer.offset.position == 2
    assert log.find("s").closed
    assert await read_records(log, "s") == [b"1", b"2"]


async def test_a_closed_stream_takes_nothing_more(log: Streams) -> None:
    """An append after the close is refused, and told the final offset."""
    await create(log, "s")
    end = (await append(log, "s", b"1", close=True)).offset
    for options in ({}, {"close": True}, {"producer": ("p", 0, 0)}, {"seq": "a"}):
        with pytest.raises(Conflict) as refused:
            begin_append(log, "s", b"2", **options)
        assert refused.value.code == "stream-closed"
        assert refused.value.headers == {"Stream-Closed": "true", "Stream-Next-Offset": str(end)}
    assert await read_records(log, "s") == [b"1"]


async def test_closing_twice_is_one_close(log: Streams) -> None:
    """A close without records of a stream that is closed already is confirmed."""
    await create(log, "s")
    first = await append(log, "s", close=True)
    again = await append(log, "s", close=True)
    assert first.closed
    assert again.closed
    assert again.duplicate
    assert again.offset == first.offset


async def test_a_producers_close_can_be_retried(log: Streams) -> None:
    """The very append that closed a stream is confirmed again; another number of the same producer is not."""
    await create(log, "s")
    first = await append(log, "s", b"1", close=True, producer=("p", 0, 0))
    again = await append(log, "s", b"1", close=True, producer=("p", 0, 0))
    assert again.duplicate
    assert again.closed
    assert again.offset == first.offset
    with pytest.raises(Conflict) as refused:
        begin_append(log, "s", b"2", close=True, producer=("p", 0, 1))
    assert refused.value.code == "stream-closed"


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_a_producers_close_is_known_after_a_restart(disk: Disk, how: str) -> None:
    """A stream closed by a producer is still closed after a restart, and the retry of its close still confirmed."""
    await create(disk.log, "s")
    await append(disk.log, "s", b"1", close=True, producer=("p", 0, 0))
    log = await getattr(disk, how)()
    assert log.find("s").closed
    assert (await append(log, "s", b"1", close=True, producer=("p", 0, 0))).duplicate
    with pytest.raises(Conflict):
        begin_append(log, "s", b"2")


@pytest.mark.parametrize("how", ["restart", "crash"])
@pytest.mark.parametrize("body", [b"", b"1"])
async def test_a_close_is_as_durable_as_a_record(disk: Disk, how: str, body: bytes) -> None:
    """A stream that was closed is closed after a restart, at the same offset."""
    await create(disk.log, "s")
    end = (await append(disk.log, "s", body, close=True)).offset
    log = await getattr(disk, how)()
    info = log.find("s").info()
    assert info.closed
    assert info.tail == end


async def test_nothing_is_accepted_behind_a_close_that_is_on_its_way(disk: Disk) -> None:
    """From the moment a close is accepted the stream takes no more, although readers do not see it closed yet. Who is
    refused for it hears of it when the close is committed."""
    await create(disk.log, "s")
    gate = disk.gate()
    gate.shut()
    closing = begin_append(disk.log, "s", b"1", close=True)
    behind = begin_append(disk.log, "s", b"2")
    await turns()
    assert not disk.log.find("s").closed
    assert not behind.given
    gate.open()
    await closing.wait()
    with pytest.raises(Conflict):
        await behind.wait()
    assert disk.log.find("s").closed
    assert await read_records(disk.log, "s") == [b"1"]


async def test_a_refusal_does_not_wait_for_others_for_ever(disk: Disk) -> None:
    """On a stream that always has something uncommitted a refusal is given after the commit that it waited for."""
    await create(disk.log, "s")
    await append(disk.log, "s", b"0", producer=("p", 2, 0))
    gate = disk.gate()
    gate.shut()
    begin_append(disk.log, "s", b"1", producer=("q", 0, 0))
    late = begin_append(disk.log, "s", b"2", producer=("p", 1, 0))
    await turns()
    others = []
    for seq in range(1, 6):
        others.append(begin_append(disk.log, "s", b"3", producer=("q", 0, seq)))
        gate.let()
        await turns()
    assert late.given, "it was not answered while others went on"
    with pytest.raises(Fenced):
        await late.wait()
    gate.open()
    for other in others:
        await other.wait()


@pytest.mark.parametrize("what", ["close", "epoch", "seq"])
async def test_nobody_is_refused_for_what_is_taken_back(disk: Disk, what: str) -> None:
    """An append that is refused for what another changed is refused only if that was committed: if it found no room, the
    append is taken."""
    await create(disk.log, "s")
    if what == "epoch":
        await append(disk.log, "s", b"0", producer=("p", 1, 0))
    appends: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "close": ({"close": True}, {}),
        "epoch": ({"producer": ("p", 2, 0)}, {"producer": ("p", 1, 1)}),
        "seq": ({"seq": "b"}, {"seq": "a"}),
    }
    first, second = appends[what]
    gate = disk.gate()
    gate.shut()
    changing = begin_append(disk.log, "s", b"1", **first)
    behind = begin_append(disk.log, "s", b"2", **second)
    await turns()
    gate.full = 1
    gate.open()
    with pytest.raises(StoreFull):
        await changing.wait()
    await behind.wait()
    assert (await read_records(disk.log, "s"))[-1] == b"2"
    assert not disk.log.find("s").closed


async def test_a_close_is_not_seen_before_its_own_commit(disk: Disk) -> None:
    """Readers are not told that a stream is closed by an append that was committed before the close."""
    log = disk.log
    await create(log, "s")
    gate = disk.gate()
    gate.shut()
    first = begin_append(log, "s", b"1", seq="a")
    await turns()  # it is on its way to the disk now
    closing = begin_append(log, "s", b"2", close=True)
    gate.let()
    assert not (await first.wait()).closed
    assert not log.find("s").closed
    gate.full = 1
    gate.open()
    with pytest.raises(StoreFull):
        await closing.wait()
    assert not log.find("s").closed
    assert (await append(log, "s", b"2")).offset.position == 2


# -- content type and precedence


@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8", "APPLICATION/JSON"])
async def test_an_append_names_the_streams_media_type(log: Streams, content_type: str) -> None:
    """The content type of an append is compared without case and parameters."""
    await create(log, "s")
    await append(log, "s", b"1", content_type=content_type)


async def test_another_content_type_is_refused(log: Streams) -> None:
    """A body of another media type never gets into a stream."""
    await create(log, "s")
    with pytest.raises(Conflict) as refused:
        begin_append(log, "s", b"1", content_type=TEXT)
    assert refused.value.code == "content-type-mismatch"
    assert await read_records(log, "s") == []


async def test_an_empty_append_is_refused(log: Streams) -> None:
    """An append with nothing in it, which does not close either, is a bad request."""
    await create(log, "s")
    with pytest.raises(BadRequest) as refused:
        begin_append(log, "s", b"")
    assert refused.value.code == "empty-append"


async def test_a_refused_body_leaves_the_producer_where_it_was(log: Streams) -> None:
    """A number is not used up by a body that was refused."""
    await create(log, "s")
    with pytest.raises(BadRequest):
        begin_append(log, "s", b"{", producer=("p", 0, 0))
    assert not (await append(log, "s", b"1", producer=("p", 0, 0))).duplicate


async def test_refusals_have_an_order(log: Streams) -> None:
    """Fencing comes before closed, closed before the content type, that before gaps, and gaps before Stream-Seq."""
    await create(log, "s")
    await append(log, "s", b"1", producer=("p", 5, 0), seq="m")

    def refusal(producer: tuple[str, int, int], content_type: str) -> str:
        with pytest.raises((Conflict, Fenced)) as refused:
            begin_append(log, "s", b"2", producer=producer, seq="a", content_type=content_type)
        return refused.value.code

    assert refusal(("p", 5, 1), JSON) == "seq-regression"
    assert refusal(("p", 5, 7), JSON) == "producer-gap"
    assert refusal(("p", 5, 7), TEXT) == "content-type-mismatch"
    assert (await append(log, "s", b"1", producer=("p", 5, 0), seq="a")).duplicate, "a retry is not a regression"
    await append(log, "s", close=True)
    assert refusal(("p", 5, 7), TEXT) == "stream-closed"
    assert refusal(("p", 4, 7), TEXT) == "producer-fenced"


async def test_a_stream_that_does_not_exist_is_not_found(log: Streams) -> None:
    """An append does not create a stream."""
    with pytest.raises(NotFound):
        begin_append(log, "s", b"1", content_type=JSON)


async def test_appends_of_one_moment_share_a_batch_and_keep_their_own_offsets(log: Streams) -> None:
    """Appends that are committed together are answered each with its own tail, in order."""
    await create(log, "s")
    answers = [begin_append(log, "s", b"[%d,%d]" % (k, k)) for k in range(5)]
    offsets = [(await answer.wait()).offset for answer in answers]
    assert [offset.position for offset in offsets] == [2, 4, 6, 8, 10]
    assert await read_records(log, "s", 3) == [b"1", b"2", b"2", b"3", b"3", b"4", b"4"]
    assert isinstance(offsets[0], Offset)
    with pytest.raises(Gone):
        log.find("s").resolve(Offset(offsets[0].epoch, 11))
