"""Records that are leased in the transaction that commits them: what may happen before it is one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk, Gate
from tests.support.groups import PuppetMember, Stage, facts
from tests.support.log import Answer, begin_append, begin_publish, create, creation, spool
from tests.support.waiting import turns, until
from wayside.core.errors import StoreFull
from wayside.core.records import Meta
from wayside.groups.events import GroupSpec
from wayside.testing import ManualClock


@pytest.fixture
async def stage(disk: Disk, clock: ManualClock) -> AsyncIterator[Stage]:
    stage = Stage(disk, clock)
    yield stage
    stage.groups.stop()


async def waiting(stage: Stage, *names: str, **spec: Any) -> list[PuppetMember]:
    """Members of a group that has been given all that there is: one record, acked."""
    await create(stage.log, "s")
    await stage.put(**spec)
    members = [await stage.member(name) for name in names or ("m",)]
    await stage.publish("s", b'{"k":"first"}')
    for member in members:
        if held := member.take():
            await member.ack(*held)
    return members


async def promised(stage: Stage, gate: Gate, *records: bytes, group: str = "g") -> Answer:
    """Records that are leased, and on their way to a disk that answers nothing."""
    gate.shut()
    answer = begin_publish(stage.log, "s", *records)
    await until(lambda: stage.state(group).by_path["s"].next == stage.log.find("s").tail + len(records))
    return answer


async def kept(stage: Stage, *groups: str) -> None:
    """What the disk has of groups is what they are."""
    for name in groups or ("g",):
        await stage.settle()
        assert facts(await stage.kept(name)) == facts(stage.state(name))


async def test_a_lease_is_committed_with_its_records(stage: Stage, disk: Disk) -> None:
    """One commit is enough: nothing is given out before it, and nothing else is needed after it."""
    (member,) = await waiting(stage)
    gate = disk.gate()
    answer = await promised(stage, gate, b"1", b"2")
    assert not member.got
    gate.let()
    await answer.wait()
    assert [held.data for held in member.got] == [b"1", b"2"]
    await stage.crash()
    gate.open()
    assert stage.state().in_flight == 2
    assert stage.log.find("s").tail == 3
    await kept(stage)


async def test_killed_before_it_there_is_neither(stage: Stage, disk: Disk) -> None:
    """Neither the records nor their leases are there; what comes in their place is new."""
    await waiting(stage)
    gate = disk.gate()
    await promised(stage, gate, b"1", b"2")
    await stage.crash()
    gate.open()
    assert (stage.state().in_flight, stage.log.find("s").tail) == (0, 1)
    member = await stage.member()
    await stage.publish("s", b"3")
    assert [(held.data, held.attempt) for held in member.got] == [(b"3", 1)]
    await kept(stage)


async def test_a_full_disk_takes_both_back(stage: Stage, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several appends, on top of one another, none is given out; sent again, each is given out once."""
    patch_constants(monkeypatch, LOST_S=0.002)
    (member,) = await waiting(stage)
    credit = member.member.credit
    gate = disk.gate()
    first = await promised(stage, gate, b"1")
    second = begin_append(stage.log, "s", b"2", producer=("p", 0, 0))
    await turns()
    gate.full = 1
    gate.open()
    for answer in (first, second):
        with pytest.raises(StoreFull):
            await answer.wait()
    assert not stage.group("g").open
    await until(lambda: stage.group("g").open)
    assert member.member.credit == credit
    await begin_append(stage.log, "s", b"2", producer=("p", 0, 0)).wait()
    await stage.settle()
    assert [(held.data, held.position, held.attempt) for held in member.got] == [(b"2", 1, 1)]
    await kept(stage)


async def test_a_member_that_leaves_meanwhile_loses_nothing(stage: Stage, disk: Disk) -> None:
    """What comes back before it is committed waits for that, and goes to another."""
    one, two = await waiting(stage, "one", "two")
    two.member.credit = 0
    gate = disk.gate()
    answer = await promised(stage, gate, b"1", b"2")
    stage.group("g").leave(one.member, give_back=True)
    two.grant(10)
    await turns()
    gate.open()
    await answer.wait()
    await stage.settle()
    assert not one.got
    assert [(held.data, held.attempt) for held in two.got] == [(b"1", 2), (b"2", 2)]
    assert stage.state().counts["expired"] == stage.state().counts["missed"] == 0
    await kept(stage)


async def test_a_lease_that_ends_meanwhile_loses_nothing(stage: Stage, disk: Disk, clock: ManualClock) -> None:
    """A disk that takes longer than a lease lasts delays what it has, and no more."""
    (member,) = await waiting(stage, lease_s=1, backoff_s=0)
    gate = disk.gate()
    answer = await promised(stage, gate, b"1")
    clock.advance(2)
    stage.timers.run()
    await turns()
    gate.open()
    await answer.wait()
    await stage.settle()
    assert [held.attempt for held in member.got] == [1, 2]
    assert [each.code for each in (await member.ack(member.got[0])).refused] == ["lease-fenced"]
    assert (await member.ack(member.got[1])).acked == 1
    await kept(stage)


async def test_a_turn_that_comes_before_the_commit(stage: Stage, disk: Disk) -> None:
    """A record is parked in its own transaction; that the one before it is acked meanwhile does not lose it."""
    (member,) = await waiting(stage, order_by="k")
    await stage.publish("s", b'{"k":1,"n":1}')
    gate = disk.gate()
    answer = await promised(stage, gate, b'{"k":1,"n":2}', b'{"k":2,"n":3}')
    assert stage.state().parked == 1
    acked = member.begin(member.take())
    await turns()
    gate.open()
    await answer.wait()
    await acked.wait()
    await stage.settle()
    assert [held.data for held in member.got] == [b'{"k":2,"n":3}', b'{"k":1,"n":2}']
    assert stage.state().counts["expired"] == 0
    await kept(stage)


async def test_a_reading_from_elsewhere_meanwhile(stage: Stage, disk: Disk) -> None:
    """What a group is told to read again is given out under the new lease only."""
    (member,) = await waiting(stage)
    gate = disk.gate()
    answer = await promised(stage, gate, b"1")
    sought = Answer()
    stage.group("g").seek("-1", lambda _path: True, sought)
    gate.open()
    await answer.wait()
    await sought.wait()
    await stage.settle()
    newest = {held.position: held for held in member.got}
    assert sorted(newest) == [0, 1]
    assert (await member.ack(*newest.values())).acked == 2
    await kept(stage)


async def test_a_stream_that_is_deleted_in_the_same_turn_is_promised_to_nobody(stage: Stage) -> None:
    """Records that are never on disk are not given out."""
    (member,) = await waiting(stage)
    begin_publish(stage.log, "s", b"1")
    deleted = Answer()
    stage.log.delete("s", deleted)
    await deleted.wait()
    await stage.settle()
    assert not member.got
    assert not stage.state().partitions
    await create(stage.log, "s", creation(body=b"[2]"))
    await stage.settle()
    assert [held.data for held in member.got] == [b"2"]
    await kept(stage)


async def test_a_group_at_rest_that_is_to_read_another_stream_of_that_name(stage: Stage, clock: ManualClock) -> None:
    """What it had of the stream before is not outstanding any more."""
    (member,) = await waiting(stage)
    await stage.publish("s", b"1")
    await member.leave(give_back=False)
    await stage.advance(61)  # nobody tells it of its streams any more
    assert not stage.log.find("s").promises
    deleted = Answer()
    stage.log.delete("s", deleted)
    await deleted.wait()
    await create(stage.log, "s", creation(body=b"[2,3]"))
    await stage.seek("-1")
    assert [partition.path for partition in stage.state().partitions.values()] == ["s"]
    again = await stage.member()
    assert [held.data for held in again.got] == [b"2", b"3"]
    await kept(stage)


@pytest.mark.parametrize("change", ["deleted", "paused", "other streams"])
async def test_a_group_that_changes_meanwhile(stage: Stage, disk: Disk, change: str) -> None:
    """It is what it was told to be; the records are there in any case."""
    (member,) = await waiting(stage)
    gate = disk.gate()
    answer = await promised(stage, gate, b"1")
    changed = Answer()
    if change == "deleted":
        stage.groups.delete("g", changed)
    else:
        gate.open()
        await (stage.put(paused=True) if change == "paused" else stage.put(streams="t"))
    gate.open()
    await answer.wait()
    if change == "deleted":
        await changed.wait()
        assert member.error is not None
    await stage.settle()
    assert stage.log.find("s").tail == 2
    if change == "deleted":
        return
    await kept(stage)
    if change == "paused":
        assert (await member.ack(*member.got)).acked == 1
        await stage.publish("s", b"2")
        assert len(member.got) == 1
    else:
        assert not stage.state().in_flight


async def test_several_groups_and_several_members_share_one_commit(stage: Stage, disk: Disk) -> None:
    """Each group gives out each record once."""
    one, two = await waiting(stage, "one", "two")
    await stage.put("h", order_by="k", start="now")
    other = await stage.member("other", group="h")
    await stage.publish("s", b'{"k":0}')
    for member in (one, two, other):
        if held := member.take():
            await member.ack(*held)
    gate = disk.gate()
    answer = await promised(stage, gate, *(b'{"k":%d}' % (number % 3) for number in range(9)))
    gate.let()
    await answer.wait()
    assert sorted(held.position for held in one.got + two.got) == list(range(2, 11))
    assert one.got
    assert two.got
    assert [held.position for held in other.got] == [2, 3, 4]
    assert stage.state("h").parked == 6
    gate.open()
    while other.got:
        await other.ack(*other.take())
    assert stage.state("h").counts["acked"] == 10
    await kept(stage, "g", "h")


async def test_bodies_on_disk_and_records_beside_them(stage: Stage, disk: Disk) -> None:
    """A body that is spooled is given out after its commit, and in its place."""
    await create(stage.log, "s", creation("text/plain"))
    await stage.put()
    member = await stage.member()
    await stage.publish("s", b"a")
    gate = disk.gate()
    gate.shut()
    answers = [
        begin_append(stage.log, "s", b"b"),
        begin_append(stage.log, "s", spool(b"c" * 100)),
        begin_append(stage.log, "s", b"d"),
    ]
    await turns()
    gate.open()
    for answer in answers:
        await answer.wait()
    await stage.settle()
    assert [held.data[:1] for held in member.got] == [b"a", b"b", b"c", b"d"]
    assert {held.attempt for held in member.got} == {1}
    await kept(stage)


async def test_ids_and_expiries(stage: Stage, disk: Disk, clock: ManualClock) -> None:
    """A duplicate is not given out; a record that may expire is leased when it is there."""
    (member,) = await waiting(stage)
    gate = disk.gate()
    gate.shut()
    answers = [begin_publish(stage.log, "s", b"1", meta=Meta(id="a")) for _ in range(2)]
    answers.append(begin_publish(stage.log, "s", b"2", meta=Meta(expires_ms=clock.wall_ms() + 1000)))
    await turns()
    clock.advance(2)
    gate.open()
    for answer in answers:
        await answer.wait()
    await stage.settle()
    assert [(held.data, held.meta.id if held.meta else "") for held in member.got] == [(b"1", "a")]
    assert stage.state().counts["expired"] == 1
    await kept(stage)


async def test_what_waits_already_comes_first(stage: Stage, disk: Disk) -> None:
    """Records of a busy stream do not take the room of those whose redelivery is due, or of another stream's."""
    (member,) = await waiting(stage, in_flight_max=1, backoff_s=0, streams=["s", "t"])
    await create(stage.log, "t", creation(body=b'["t"]'))
    await stage.settle()
    assert [held.data for held in member.got] == [b'"t"']
    failed = member.take()
    group = stage.group("g")
    answer = begin_publish(stage.log, "s", b"1")  # it is on its way before the group has had its turn
    member.begin((), [failed[0].nack(delay_s=0)])
    await answer.wait()
    await stage.settle()
    assert group.journal.state.in_flight == 1
    assert [held.data for held in member.got] == [b'"t"']
    await kept(stage)


async def test_an_order_that_has_just_been_asked_for(stage: Stage) -> None:
    """Records that are committed after the settings were given are given out in the order that these ask for."""
    (member,) = await waiting(stage)
    changed = Answer()
    answer = begin_publish(stage.log, "s", b'{"k":1}', b'{"k":1}')  # on its way before the group has had its turn
    stage.group("g").specify(GroupSpec(["s"], order_by="k"), changed)
    await answer.wait()
    await stage.settle()
    assert len(member.got) == stage.state().parked == 1
    await kept(stage)


async def test_snapshots_with_leases_of_records_to_come(
    stage: Stage, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot is on disk no sooner than what it speaks of."""
    patch_constants(monkeypatch, SNAPSHOT_BYTES=1, SNAPSHOT_BYTES_MAX=1)
    (member,) = await waiting(stage)
    gate = disk.gate()
    answer = await promised(stage, gate, b"1")
    await turns()
    gate.let()
    await answer.wait()
    assert [held.data for held in member.take()] == [b"1"]
    await stage.crash()
    gate.open()
    assert stage.state().in_flight == 1
    assert stage.log.find("s").tail == 2
    await kept(stage)
