"""Records whose last attempt has failed: in the dead-letter stream, and nowhere else; and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.embedded import embedded
from tests.support.groups import Stage, facts
from tests.support.log import BYTES, Answer, create, creation, delete, read_batches, read_records
from tests.support.waiting import until
from wayside.core.errors import BadRequest, Conflict
from wayside.core.records import Durability, Meta, Offset
from wayside.groups.events import DeadLetter, GroupSpec, decode_events, decode_snapshot, encode
from wayside.groups.state import GroupState
from wayside.testing import ManualClock


@pytest.fixture(params=["memory", "file"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Stage]:
    """Groups on a log of each engine."""
    if request.param == "file":
        disk = Disk(tmp_path, clock=clock)
        stage = Stage(disk, clock)
        yield stage
        stage.groups.stop()
        await disk.close()
        return
    log = embedded(None, clock=clock)
    log.start()
    stage = Stage(None, clock, log)
    yield stage
    stage.groups.stop()
    await log.close()


@pytest.fixture
async def lasting(disk: Disk, clock: ManualClock) -> AsyncIterator[Stage]:
    """Groups on a disk that can crash."""
    stage = Stage(disk, clock)
    yield stage
    stage.groups.stop()


async def numbers(stage: Stage, count: int, path: str = "s", content_type: str = "application/json") -> None:
    await create(stage.log, path, creation(content_type))
    await stage.publish(path, *(b"%d" % number for number in range(count)))


async def test_a_dead_record_is_moved_with_what_is_known_of_it(stage: Stage) -> None:
    """Its bytes, headers and key are kept; where it was, how often it was tried, and why not again are said beside."""
    await create(stage.log, "s", creation(BYTES))
    await stage.put(retries=1, backoff_s=0, dead_letter="dead")
    await stage.publish("s", b"\x00\xff", meta=Meta({"trace": "1"}, "an-id", "a-key"))
    member = await stage.member()
    await member.nack(member.got[0], reason="first")
    await member.nack(member.got[1], reason="second")
    assert len(member.got) == 2
    (batch,) = await read_batches(stage.log.find("dead"))
    assert batch.records == [b"\x00\xff"]
    assert batch.meta is not None
    assert batch.meta[0] == Meta(
        {
            "trace": "1",
            "wayside-dead-group": "g",
            "wayside-dead-stream": "s",
            "wayside-dead-offset": member.got[0].offset,
            "wayside-dead-attempts": "2",
            "wayside-dead-reason": "second",
        },
        key="a-key",
    )
    receipt = await stage.receipt(member.got[0])
    assert (receipt["state"], receipt["attempts"], receipt["reason"]) == ("dead", 2, "second")
    assert receipt["dead_letter"] == {"stream": "dead", "offset": str(stage.log.find("dead").offset(1))}
    assert [each.code for each in (await member.ack(member.got[1])).refused] == ["already-settled"]
    assert not stage.log.find("s").holds


async def test_without_a_dead_letter_stream_it_is_remembered(stage: Stage) -> None:
    """It is dead all the same, and can be brought back."""
    await numbers(stage, 2)
    await stage.put(retries=0)
    member = await stage.member()
    await member.nack(*member.got)
    assert [letter.position for letter in stage.state().dead.values()] == [0, 1]
    assert await stage.redrive() == 2
    assert [held.attempt for held in member.got] == [1, 1, 1, 1]
    receipt = await stage.receipt(member.got[-1])
    assert (receipt["state"], receipt["attempts"]) == ("in-flight", 2)
    assert (await member.ack(*member.got[2:])).acked == 2
    assert (await stage.receipt(member.got[-1]))["state"] == "acked"


async def test_a_rejected_record_is_not_tried_again(stage: Stage) -> None:
    """However many retries are left."""
    await numbers(stage, 1)
    await stage.put(retries=-1, dead_letter="dead")
    member = await stage.member()
    await member.nack(*member.got, kind="rejected", reason="never")
    assert await read_records(stage.log, "dead") == [b"0"]
    assert len(member.got) == 1


async def test_records_of_other_types_are_wrapped_in_json(stage: Stage) -> None:
    """A dead-letter stream of JSON stays one."""
    await create(stage.log, "dead")
    await numbers(stage, 1, content_type=BYTES)
    await stage.put(retries=0, dead_letter="dead")
    member = await stage.member()
    await member.nack(*member.got)
    assert await read_records(stage.log, "dead") == [b'{"base64":"MA=="}']


async def test_streams_of_two_types_share_a_dead_letter_stream_that_is_made_for_them(stage: Stage) -> None:
    """Whichever is first makes it; nothing is lost of the other."""
    await numbers(stage, 3, "a")
    await numbers(stage, 3, "b", BYTES)
    await stage.put(streams=["a", "b"], retries=0, dead_letter="dead")
    member = await stage.member()
    await member.nack(*member.got)
    assert stage.log.find("dead").tail == 6
    assert stage.state().counts["dead"] == 6


async def test_a_dead_record_frees_its_key(stage: Stage) -> None:
    """What was behind it comes next."""
    await create(stage.log, "s", creation(body=b'[{"k":1,"n":0},{"k":1,"n":1}]'))
    await stage.put(retries=0, order_by="k", dead_letter="dead")
    member = await stage.member()
    await member.nack(*member.take())
    assert [held.position for held in member.got] == [1]


async def test_fewer_retries_bury_what_waits(stage: Stage) -> None:
    """A record that has failed more often than it now may is dead at once."""
    await numbers(stage, 2)
    await stage.put(retries=5)
    member = await stage.member()
    await member.nack(*member.got, delay_s=100)
    await stage.put(retries=0)
    assert stage.state().counts["dead"] == 2
    await stage.advance(101)
    assert len(member.got) == 2


async def test_a_dead_letter_stream_that_cannot_be_used(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is closed dead records stay where they are, and the group says why; with another one they are moved."""
    patch_constants(monkeypatch, STUCK_S=0.002)
    await create(stage.log, "dead", creation(closed=True))
    await numbers(stage, 1)
    await stage.put(retries=0, dead_letter="dead")
    member = await stage.member()
    await member.begin((), [member.got[0].nack()]).wait()
    await until(lambda: stage.group("g").stuck)
    assert stage.state().partitions[1].waiting
    await delete(stage.log, "dead")
    await until(lambda: stage.state().counts["dead"] == 1)
    await stage.settle()
    assert await read_records(stage.log, "dead") == [b"0"]
    await until(lambda: not stage.group("g").stuck)


async def test_a_record_that_dies_again_while_it_is_stuck(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read anew meanwhile, and dead once more: it is moved once, as what it is now."""
    patch_constants(monkeypatch, STUCK_S=0.002)
    await create(stage.log, "dead", creation(closed=True))
    await numbers(stage, 1)
    await stage.put(retries=0, dead_letter="dead")
    member = await stage.member()
    await member.begin((), [member.got[0].nack(reason="first")]).wait()
    await until(lambda: stage.group("g").stuck)
    answer = Answer()
    stage.group("g").seek("-1", lambda _path: True, answer)
    await answer.wait()
    await until(lambda: len(member.got) == 2)
    await member.begin((), [member.got[1].nack(reason="second")]).wait()
    await delete(stage.log, "dead")
    await until(lambda: stage.state().counts["dead"] == 1)
    await stage.settle()
    assert [letter.reason for letter in stage.state().dead.values()] == ["second"]
    assert await read_records(stage.log, "dead") == [b"0"]


async def test_a_dead_letter_stream_is_as_durable_as_the_group(lasting: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a crash may take is refused when the group is made, and is not used when it was made later."""
    patch_constants(monkeypatch, STUCK_S=0.002)
    await create(lasting.log, "dead", creation(durability=Durability.MEMORY))
    with pytest.raises(Conflict):
        await lasting.put(dead_letter="dead")
    await numbers(lasting, 1)
    await lasting.put(retries=0, dead_letter="later")
    await create(lasting.log, "later", creation(durability=Durability.ASYNC))
    member = await lasting.member()
    await member.begin((), [member.got[0].nack()]).wait()
    await until(lambda: lasting.group("g").stuck)
    assert lasting.log.find("later").tail == 0
    await delete(lasting.log, "later")
    await until(lambda: lasting.state().counts["dead"] == 1)


async def test_dead_letters_that_would_come_round(stage: Stage) -> None:
    """A group does not read its own dead letters."""
    with pytest.raises(BadRequest):
        await stage.put(streams=["**"], dead_letter="dead")


@pytest.mark.parametrize("commits", [0, 1, 2])
async def test_killed_while_it_is_moved_a_record_is_in_one_place(lasting: Stage, disk: Disk, commits: int) -> None:
    """Before the commit it is leased or waits, after it it is dead: never both, never neither."""
    await numbers(lasting, 3)
    await create(lasting.log, "dead")
    await lasting.put(retries=0, dead_letter="dead")
    member = await lasting.member()
    gate = disk.gate()
    gate.shut()
    member.begin((), [held.nack() for held in member.got])
    await until(lambda: lasting.state().counts["dead"] == 3)
    if commits == 1:
        gate.let()
    elif commits == 2:
        gate.open()
        await until(lambda: lasting.log.find("dead").tail == 3)
    await lasting.crash()
    gate.open()
    state = lasting.state()
    held = [held for held in member.got if held.position in state.partitions[1].leased]
    assert len(held) == (0 if commits else 3)
    assert lasting.log.find("dead").tail == state.counts["dead"] == 3 - len(held)
    await member.nack(*held)
    assert lasting.state().counts["dead"] == 3
    assert sorted(await read_records(lasting.log, "dead")) == [b"0", b"1", b"2"]
    assert not lasting.state().partitions[1].outstanding
    assert facts(await lasting.kept()) == facts(lasting.state())
    letters = await read_records(lasting.log, "dead")
    for record in member.got:
        place = (await lasting.receipt(record))["dead_letter"]["offset"]
        assert letters[Offset.parse(place).position - 1] == record.data


async def test_a_letter_that_is_gone_before_it_is_known_where_it_was(lasting: Stage, disk: Disk) -> None:
    """Killed between the move and the note of it, with a dead-letter stream that is not there any more: the record is dead,
    and the group goes on."""
    await numbers(lasting, 1)
    await create(lasting.log, "dead")
    await lasting.put(retries=0, dead_letter="dead")
    member = await lasting.member()
    gate = disk.gate()
    gate.shut()
    answer = member.begin((), [member.got[0].nack()])
    await until(lambda: lasting.state().counts["dead"])
    gate.let()
    await answer.wait()
    await disk.crash()
    gate.open()
    lasting.groups.stop()
    assert [letter.since is None for letter in (await lasting.kept()).dead.values()] == [False]
    await delete(lasting.log, "dead")
    lasting.take_up()
    await lasting.groups.start()
    await lasting.settle()
    receipt = await lasting.receipt(member.got[0])
    assert receipt["state"] == "dead"
    assert "dead_letter" not in receipt
    await lasting.publish("s", b"1")
    again = await lasting.member()
    assert await lasting.redrive() == 1
    assert sorted(again.data) == [b"0", b"1"]
    assert facts(await lasting.kept()) == facts(lasting.state())


def test_events_and_snapshots_of_before_are_read() -> None:
    """A death that says where its letter is, as version 0.1 wrote it, is the same death."""
    place = ["dead", "00000000001_0000000000000001"]
    written = [
        [1, 1, "s", 7, 0],
        [2, 1, "m", 1000, 30.0, [[1, 0, 1]]],
        [4, 2000, [[1, 0, 1, 0]], True, "why"],
        [5, 3000, 1, 0, "why", place],
    ]
    state = GroupState(GroupSpec(["s"]))
    for event in decode_events(msgspec.msgpack.encode(written)):
        state.apply(event)
    letter = DeadLetter(1, "s", 0, 3000, 1, "why", ("dead", place[1]))
    assert state.dead == {(1, 0): letter}
    snapshot = msgspec.msgpack.decode(encode(state.snapshot(4)))
    snapshot[-1] = [each[:7] for each in snapshot[-1]]
    kept = GroupState.restore(decode_snapshot(msgspec.msgpack.encode(snapshot)))
    assert kept.dead == {(1, 0): letter}


async def test_redriven_records_are_held_and_outlive_the_hub(lasting: Stage) -> None:
    """What is brought back is kept by retention like anything else that is outstanding."""
    await numbers(lasting, 3)
    await lasting.put(retries=0)
    member = await lasting.member()
    await member.nack(*member.got[:2])
    await member.ack(member.got[2])
    await member.leave()
    assert await lasting.redrive() == 2
    assert lasting.state().partitions[1].lowest() == 0
    assert [since() for since in lasting.log.find("s").holds] == [0]
    await lasting.crash()
    member = await lasting.member()
    assert [(held.position, held.attempt) for held in member.got] == [(0, 1), (1, 1)]


@pytest.mark.parametrize("snapshots", [False, True])
async def test_a_record_that_only_its_copy_is_left_of(
    lasting: Stage, monkeypatch: pytest.MonkeyPatch, snapshots: bool
) -> None:
    """Let go of by its stream, it comes back from the dead-letter stream, as often as it takes."""
    if snapshots:
        patch_constants(monkeypatch, SNAPSHOT_BYTES=1, SNAPSHOT_BYTES_MAX=1)
    await create(lasting.log, "s", creation(BYTES, retention_bytes=1))
    await lasting.put(retries=0, dead_letter="dead", backoff_s=0)
    await lasting.publish("s", b"precious")
    member = await lasting.member()
    await member.nack(*member.take())
    await lasting.publish("s", b"x" * 600_000)
    await member.ack(*member.take())
    await lasting.publish("s", b"y" * 600_000)
    await member.ack(*member.take())
    assert lasting.log.find("s").start > 0
    assert await lasting.redrive() == 1
    assert [held.data for held in member.got] == [b"precious"]
    await member.nack(*member.take(), kind="released")
    assert [held.data for held in member.got] == [b"precious"]
    before = facts(lasting.state())
    await lasting.crash()
    assert facts(lasting.state()) == before
    await member.settle((), [member.got[0].nack("released")])
    again = await lasting.member("again")
    assert [held.data for held in again.got] == [b"precious"]
    assert (await again.ack(*again.got)).acked == 1


async def test_a_mistake_of_ours_is_told_and_the_record_is_moved_all_the_same(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong between the last failure and the dead letter: the record is not forgotten."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    patch_constants(monkeypatch, STUCK_S=0.0)
    await numbers(stage, 1)
    group = await stage.put(retries=0, dead_letter="dead")
    journal = group.journal
    transact, broken = journal.transact, [RuntimeError("of ours")]

    def once(*arguments: Any) -> None:
        if broken:
            raise broken.pop()
        transact(*arguments)

    monkeypatch.setattr(journal, "transact", once)
    member = await stage.member()
    await member.nack(member.got[0])
    await until(lambda: group.journal.state.counts["dead"])
    assert [str(error) for error in reported] == ["of ours"]
    await until(lambda: stage.log.find("dead").tail)
    assert await read_records(stage.log, "dead") == [b"0"]
