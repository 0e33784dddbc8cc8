"""What a group knows after the hub was gone, or the disk was full: stopped in order, killed, or without room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.groups import PuppetMember, Stage, again, facts
from tests.support.log import Answer, append, begin_append, create, creation, delete, publish, settle
from tests.support.waiting import until
from wayside.core.errors import Conflict, NotFound, Overloaded, StoreFull
from wayside.core.limits import Limits
from wayside.core.records import Durability, Meta
from wayside.link.frames import Publish
from wayside.testing import ManualClock


@pytest.fixture
async def stage(disk: Disk, clock: ManualClock) -> AsyncIterator[Stage]:
    stage = Stage(disk, clock)
    yield stage
    stage.groups.stop()


@pytest.fixture(params=["restart", "crash"])
def gone(request: pytest.FixtureRequest, stage: Stage) -> Callable[[], Awaitable[None]]:
    """Have the hub gone and come back, in order or not."""
    return stage.crash if request.param == "crash" else stage.restart


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has failed is tried again at once."""
    patch_constants(monkeypatch, LOST_S=0.002, STUCK_S=0.002, FAILED_S=0.002)


async def numbers(stage: Stage, count: int, path: str = "s") -> None:
    await create(stage.log, path)
    if count:
        await stage.publish(path, *(b"%d" % number for number in range(count)))


def begin(stage: Stage) -> PuppetMember:
    """A member that has joined; nothing more has happened."""
    member = PuppetMember(stage, "g", "m")
    stage.group("g").join(member.member)
    return member


# -- gone, and back


async def test_position_leases_and_attempts_outlive_the_hub(stage: Stage, gone: Callable[[], Awaitable[None]]) -> None:
    """What was acked stays acked, what is held stays held by whom it was, and attempts go on being counted."""
    await numbers(stage, 6)
    await stage.put(lease_s=10, backoff_s=0)
    one = await stage.member("one", 4)
    await one.ack(one.got[0])
    await one.nack(one.got[1])
    before = facts(stage.state())
    await gone()
    assert facts(stage.state()) == before
    two = await stage.member("two")
    assert [(held.position, held.attempt) for held in two.got] == [(1, 2), (4, 1), (5, 1)]
    assert (await one.ack(one.got[2])).acked == 1  # under the lease from before
    assert [each.code for each in (await one.ack(one.got[0])).refused] == ["already-settled"]
    await gone()
    three = await stage.member("three")
    await stage.advance(11)
    assert [(held.position, held.attempt) for held in three.got] == [(1, 3), (3, 2), (4, 2), (5, 2)]
    receipt = await stage.receipt(three.got[0])
    assert (receipt["attempts"], receipt["complete"]) == (3, True)
    assert [each["member"] for each in receipt["deliveries"]] == ["one", "two", "three"]


async def test_a_lease_that_was_not_kept_was_not_given(stage: Stage, disk: Disk) -> None:
    """Killed before the lease is on disk, nobody has the record, and it counts as never delivered."""
    await numbers(stage, 2)
    await stage.put()
    gate = disk.gate()
    gate.shut()
    member = begin(stage)
    await until(lambda: stage.state().in_flight == 2)
    await stage.crash()
    gate.open()
    assert not member.got
    again = await stage.member()
    assert [held.attempt for held in again.got] == [1, 1]


async def test_delays_outlive_the_hub(stage: Stage, gone: Callable[[], Awaitable[None]]) -> None:
    """A record waits for its redelivery as long as it was to, whether the hub runs or not."""
    await numbers(stage, 1)
    await stage.put()
    member = await stage.member()
    await member.nack(*member.got, delay_s=30)
    await stage.advance(10)
    await gone()
    member = await stage.member()
    await stage.advance(19)
    assert not member.got
    await stage.advance(1.1)
    assert [held.attempt for held in member.got] == [2]


async def test_a_wall_clock_that_went_back_meanwhile_delays_nothing_for_long(stage: Stage, clock: ManualClock) -> None:
    """A delay is over after its length at the latest, whatever the wall clock says."""
    await numbers(stage, 1)
    await stage.put()
    member = await stage.member()
    await member.nack(*member.got, delay_s=30)
    clock.jump(-3600)
    await stage.crash()
    member = await stage.member()
    await stage.advance(30)
    assert [held.attempt for held in member.got] == [2]


async def test_order_and_parked_records_outlive_the_hub(stage: Stage, gone: Callable[[], Awaitable[None]]) -> None:
    """Keys that are under way, and the lines behind them, are what they were."""
    await create(stage.log, "a")
    await create(stage.log, "b")
    await stage.put(streams=["*"], order_by="k", backoff_s=0)
    await stage.publish("a", b'{"k":1,"n":0}', b'{"k":1,"n":1}')
    await stage.publish("b", b'{"k":1,"n":2}', b'{"k":2,"n":3}')
    member = await stage.member()
    seen = [held.data for held in member.got]
    while member.got:
        held = member.take()
        before = facts(stage.state())
        await gone()
        assert facts(stage.state()) == before
        await member.ack(*held)
        await stage.settle()
        member = await stage.member()
        seen += [each.data for each in member.got]
    assert sorted(seen) == [b'{"k":1,"n":0}', b'{"k":1,"n":1}', b'{"k":1,"n":2}', b'{"k":2,"n":3}']
    assert seen.index(b'{"k":1,"n":0}') < seen.index(b'{"k":1,"n":1}')


@pytest.mark.parametrize("bytes_", [1, 300])
async def test_snapshots_hold_all_that_is_true(
    stage: Stage, gone: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, bytes_: int
) -> None:
    """A group that is loaded from a snapshot and what came after it is the group that it was."""
    patch_constants(monkeypatch, SNAPSHOT_BYTES=bytes_, SNAPSHOT_BYTES_MAX=bytes_)
    await create(stage.log, "s")
    await stage.put(order_by="k", backoff_s=0, retries=1, dead_letter="dead", lease_s=10)
    member = await stage.member("m", 6)
    for turn in range(8):
        await stage.publish("s", *(b'{"k":%d}' % (number % 3) for number in range(turn)), b'{"k":"x"}')
        held = member.take()
        await member.settle(
            held[1:2], [each.nack(delay_s=turn % 3) for each in held[2:4]], [each.extend(20) for each in held[:1]]
        )
        member.grant(4)
        await stage.advance(3)
        before = facts(stage.state())
        assert facts(again(stage.state())) == before
        assert facts(await stage.kept()) == before
    assert stage.log.find("__group/g/state").tail > 0
    before = facts(stage.state())
    await gone()
    assert facts(stage.state()) == before


async def test_events_are_kept_as_long_as_they_are_needed(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little history a group may have: what no snapshot has is not let go."""
    patch_constants(monkeypatch, SNAPSHOT_BYTES=900_000)
    limits = Limits(group_history_bytes=1, stream_cache_bytes_max=1, cache_bytes_max=1)
    disk = Disk(tmp_path, clock=clock, limits=limits)
    stage = Stage(disk, clock)
    await numbers(stage, 100)
    await stage.put(retries=-1)
    member = await stage.member("m", 10**6)
    for turn in range(24):
        held = member.take()
        await member.settle((), [each.nack("failed", 0, f"{each.position:1000}") for each in held])
        if turn == 6:
            assert stage.log.find("__group/g").cache_from > 0
            assert stage.log.find("__group/g").start == 0
    assert stage.log.find("__group/g").start > 0
    before = facts(stage.state())
    await stage.crash()
    assert facts(stage.state()) == before
    assert {past.deliveries for lease in stage.state().leases[25] for past in (lease.past or {}).values()} == {24}
    stage.groups.stop()
    await disk.close()


async def test_a_group_that_cannot_be_read_hinders_no_other(stage: Stage) -> None:
    """It is told of, not overwritten, and can be deleted."""
    await numbers(stage, 1)
    await stage.put("g")
    await stage.put("broken")
    await publish(
        stage.log, "__group/broken", b"\x91\x93\x03\x00\x91\x94\x09\x00\x01\x01"
    )  # an ack of what is not held
    await stage.crash()
    assert [group.name for group in stage.groups.all()] == ["g"]
    with pytest.raises(Conflict) as refused:
        await stage.put("broken")
    assert refused.value.code == "group-unreadable"
    answer = Answer()
    stage.groups.delete("broken", answer)
    await answer.wait()
    await stage.put("broken")
    with pytest.raises(NotFound):
        stage.groups.delete("none", answer)


# -- streams that change meanwhile


@pytest.mark.usefixtures("hasty")
async def test_an_async_stream_that_lost_records(stage: Stage, disk: Disk) -> None:
    """What a crash took is not waited for, and what comes in its place is delivered as new."""
    await create(stage.log, "s", creation(durability=Durability.ASYNC))
    await append(stage.log, "s", b"[0,1]")
    await settle(stage.log)
    await stage.put(retries=0)
    member = await stage.member()
    gate = disk.gate()
    gate.full = 1  # then leases are written before these records are
    await append(stage.log, "s", b"[2,3]")
    await until(lambda: len(member.got) == 4)
    lost = [held for held in member.got if held.position >= 2]
    await stage.crash()
    assert stage.log.find("s").tail == 2
    assert stage.state().in_flight == 2
    await append(stage.log, "s", b"[20,30]")
    await stage.settle()
    member = await stage.member()
    assert [(held.position, held.data, held.attempt) for held in member.got] == [(2, b"20", 1), (3, b"30", 1)]
    assert (await member.ack(*lost)).fenced
    receipt = await stage.receipt(member.got[0])
    assert (receipt["state"], receipt["attempts"]) == ("in-flight", 1)
    assert (await stage.receipt(lost[0]))["state"] == "unknown"


async def test_streams_that_are_gone_after_the_restart(stage: Stage, gone: Callable[[], Awaitable[None]]) -> None:
    """A stream in memory does not outlive the hub; what was held of it is nobody's."""
    await create(stage.log, "s", creation(durability=Durability.MEMORY))
    await append(stage.log, "s", b"1")
    await stage.put()
    await stage.member()
    await gone()
    assert not stage.state().partitions
    await create(stage.log, "s", creation(durability=Durability.MEMORY))
    await append(stage.log, "s", b"2")
    member = await stage.member()
    assert [(held.data, held.attempt) for held in member.got] == [(b"2", 1)]


# -- no room


@pytest.mark.usefixtures("hasty")
async def test_a_full_disk_while_leasing(stage: Stage, disk: Disk) -> None:
    """Nobody is given what could not be written down; with room again it goes on, and attempts are exact."""
    await numbers(stage, 5)
    await stage.put()
    gate = disk.gate()
    gate.full = 1
    member = begin(stage)
    await until(lambda: len(member.got) == 5)
    assert [held.attempt for held in member.got] == [1] * 5
    assert member.member.credit == 995
    await stage.settle()
    assert facts(await stage.kept()) == facts(stage.state())
    assert (await member.ack(*member.got)).acked == 5


@pytest.mark.usefixtures("hasty")
async def test_a_full_disk_while_acking(stage: Stage, disk: Disk) -> None:
    """An ack that was refused for want of room was not taken; it is said again, and counts once."""
    await numbers(stage, 5)
    await stage.put()
    member = await stage.member()
    gate = disk.gate()
    gate.full = 1
    refused = [member.begin(member.got[:2]), member.begin(member.got[2:3])]
    for answer in refused:
        with pytest.raises(StoreFull):
            await answer.wait()
    with pytest.raises(Overloaded):
        member.begin(member.got[3:])
    await until(lambda: stage.group("g").open)
    await stage.settle()
    assert (await member.ack(*member.got)).acked == 5
    assert stage.state().counts["acked"] == 5
    assert facts(await stage.kept()) == facts(stage.state())


@pytest.mark.usefixtures("hasty")
async def test_a_full_disk_while_burying(stage: Stage, disk: Disk) -> None:
    """A dead record is in one place at any time, and in the end where dead ones are."""
    await numbers(stage, 3)
    await create(stage.log, "dead")
    await stage.put(retries=0, dead_letter="dead")
    member = await stage.member()
    gate = disk.gate()
    gate.shut()
    answer = member.begin((), [held.nack() for held in member.got])
    await until(lambda: stage.group("g").journal.under_way)
    gate.let()
    gate.full = 1
    gate.open()
    await answer.wait()
    await until(lambda: stage.log.find("dead").tail == 3)
    await stage.settle()
    assert stage.state().counts["dead"] == 3
    assert not stage.state().partitions[1].outstanding
    assert len(member.got) == 3
    assert facts(await stage.kept()) == facts(stage.state())


@pytest.mark.usefixtures("hasty")
async def test_a_full_disk_while_a_transaction_is_made(stage: Stage, disk: Disk) -> None:
    """Neither the ack nor what was to be published with it is there; the next time both are."""
    await numbers(stage, 1)
    await create(stage.log, "out")
    await stage.put()
    member = await stage.member()
    disk.gate().full = 1
    with pytest.raises(StoreFull):
        await member.begin(member.got, publish=[Publish("out", [b"1"])]).wait()
    await until(lambda: stage.group("g").open)
    assert stage.log.find("out").tail == 0
    settled = await member.settle(member.got, publish=[Publish("out", [b"1"])])
    assert settled.acked == 1
    assert stage.log.find("out").tail == 1


@pytest.mark.usefixtures("hasty")
async def test_numbers_that_were_not_kept_stand_for_other_streams(stage: Stage, disk: Disk) -> None:
    """What was read of a stream whose beginning was not written down is not taken for another's."""
    await stage.put(streams=["*"])
    member = await stage.member()
    await create(stage.log, "a", creation(body=b'["a0","a1"]'))
    await stage.settle()
    await member.ack(*member.take())
    gate = disk.gate()
    gate.full = 1
    await create(stage.log, "memory", creation(body=b'["m0"]', durability=Durability.MEMORY))
    await until(lambda: not stage.group("g").open)
    await delete(stage.log, "memory")
    await create(stage.log, "b", creation(body=b'["b0","b1"]'))
    await until(lambda: stage.group("g").open)
    await stage.settle()
    assert [held.data for held in member.got] == [b'"b0"', b'"b1"']
    assert sorted(partition.path for partition in stage.state().partitions.values()) == ["a", "b"]


@pytest.mark.usefixtures("hasty")
async def test_what_is_still_on_its_way_counts_when_a_group_is_read_again(tmp_path: Path, clock: ManualClock) -> None:
    """An append that the log refuses at once does not hide the ones before it, which are kept all the same."""
    disk = Disk(tmp_path, clock=clock, limits=Limits(uncommitted_bytes_max=20_000))
    stage = Stage(disk, clock)
    await numbers(stage, 4)
    await stage.put()
    member = await stage.member()
    gate = disk.gate()
    gate.shut()
    first = member.begin(member.got[:1])
    await until(lambda: stage.group("g").journal.under_way)
    begin_append(disk.log, "s", b'"%b"' % (b"x" * 30_000))
    second = member.begin(member.got[1:2])
    with pytest.raises(Overloaded):
        await second.wait()
    assert not stage.group("g").open
    gate.open()
    assert (await first.wait()).acked == 1
    await until(lambda: stage.group("g").open)
    await stage.settle()
    assert stage.state().counts["acked"] == 1
    assert facts(await stage.kept()) == facts(stage.state())
    assert [each.code for each in (await member.ack(member.got[0])).refused] == ["already-settled"]
    assert (await member.ack(*member.got[1:])).acked == 4
    stage.groups.stop()
    await disk.close()


async def test_events_stay_in_order_behind_a_transaction_that_waits_for_ids(tmp_path: Path, clock: ManualClock) -> None:
    """Where the log has first to read which message ids a stream has had, what comes after the transaction waits too."""
    disk = Disk(tmp_path, clock=clock, limits=Limits(stream_cache_bytes_max=1, cache_bytes_max=1))
    stage = Stage(disk, clock)
    await numbers(stage, 4)
    await create(stage.log, "out", creation("text/plain"))
    for number in range(4):
        await publish(stage.log, "out", b"x" * 200_000, meta=Meta(id=f"id-{number}"))
    await stage.put(retries=0)
    member = await stage.member()
    await stage.crash()
    held = member.got
    answer = member.begin(held[:1], [held[1].nack()], publish=[Publish("out", [b"y"], {0: Meta(id="id-9")})])
    journal = stage.group("g").journal
    takes = journal.takes
    await stage.seek("-1")
    assert (await answer.wait()).acked == 1
    assert not takes
    await stage.settle()
    assert facts(await stage.kept()) == facts(stage.state())
    await stage.crash()
    assert stage.state().counts["acked"] == 1
    assert stage.log.find("out").tail == 5
    stage.groups.stop()
    await disk.close()
