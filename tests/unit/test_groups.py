"""Groups: who is given what, how often, in which order, and what may be said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.embedded import embedded
from tests.support.groups import Held, PuppetMember, Stage
from tests.support.log import Answer, create, creation, delete
from tests.support.waiting import until
from wayside.core.errors import BadRequest, Conflict, LeaseFenced, NotFound
from wayside.core.limits import Limits
from wayside.core.records import JSON, Durability, Meta
from wayside.groups.events import GroupSpec
from wayside.link.frames import Ack, Nack, Publish, Settlement
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


async def numbers(stage: Stage, count: int, path: str = "s", content_type: str = JSON) -> None:
    """A stream of so many records: 0, 1, 2 and so on."""
    await create(stage.log, path, creation(content_type))
    if count:
        await stage.publish(path, *(str(number).encode() for number in range(count)))


def texts(held: list[Held]) -> list[str]:
    return [each.data.decode() for each in held]


# -- sharing


async def test_members_share_the_records_and_none_is_given_twice(stage: Stage) -> None:
    """Each record goes to one member; nobody is given more than it takes."""
    await numbers(stage, 20)
    await stage.put()
    one, two = await stage.member("one", 7), await stage.member("two", 5)
    assert (len(one.got), len(two.got)) == (7, 5)
    assert sorted(int(data) for data in one.data + two.data) == list(range(12))
    one.grant(100)
    await stage.settle()
    assert sorted(int(data) for data in one.data + two.data) == list(range(20))
    assert {held.attempt for held in one.got + two.got} == {1}


async def test_members_that_wait_share_what_comes(stage: Stage) -> None:
    """Records that come while several wait are not all given to one of them."""
    await numbers(stage, 0)
    await stage.put()
    members = [await stage.member(name) for name in "abcd"]
    await stage.publish("s", *(b"%d" % number for number in range(40)))
    assert sorted(len(member.got) for member in members) == [10, 10, 10, 10]


async def test_a_member_of_one_delivery_is_given_one(stage: Stage) -> None:
    """A request that waits is answered once, whatever credit it has left."""
    await numbers(stage, 1)
    await stage.put()
    once = await stage.member(credit=10, once=True)
    await stage.publish("s", b"1")
    assert texts(once.got) == ["0"]


async def test_bounds_of_what_is_in_flight(stage: Stage) -> None:
    """Neither the group nor one member, over all its connections, has more at a time than they may."""
    await numbers(stage, 30)
    await stage.put(in_flight_max=8, member_in_flight_max=5)
    first, second, other = await stage.member("a"), await stage.member("a"), await stage.member("b")
    assert len(first.got) + len(second.got) == 5
    assert len(other.got) == 3
    await other.ack(*other.take())
    assert len(other.got) == 3
    state = stage.state()
    assert state.in_flight == 8
    assert state.member_in_flight == {"a": 5, "b": 3}


async def test_room_that_a_lost_lease_makes_is_used_at_once(stage: Stage) -> None:
    """A record that waits for its redelivery holds up no other."""
    await numbers(stage, 2)
    await stage.put(in_flight_max=1, lease_s=10, backoff_s=300)
    member = await stage.member()
    assert texts(member.take()) == ["0"]
    await stage.advance(11)
    assert texts(member.got)[:1] == ["1"]


async def test_a_paused_group_gives_nothing_and_takes_acks(stage: Stage) -> None:
    """Paused, a group delivers nothing new; what is in flight may be settled; resumed, it goes on."""
    await numbers(stage, 4)
    await stage.put(in_flight_max=2)
    member = await stage.member()
    await stage.put(in_flight_max=2, paused=True)
    await member.ack(*member.take())
    assert not member.got
    await stage.put(in_flight_max=2)
    assert texts(member.got) == ["2", "3"]


async def test_where_a_group_starts(stage: Stage) -> None:
    """From the start, from now, or from an offset; what comes later is read from its start in any case."""
    await numbers(stage, 4)
    await stage.put("start", ["s"])
    await stage.put("now", ["*"], start="now")
    await stage.put("offset", ["s"], start=str(stage.log.find("s").offset(3)))
    members = {name: await stage.member(group=name) for name in ("start", "now", "offset")}
    await stage.publish("s", b"4")
    await numbers(stage, 1, "later")
    found = {name: texts(member.got) for name, member in members.items()}
    assert found == {"start": ["0", "1", "2", "3", "4"], "now": ["4", "0"], "offset": ["3", "4"]}
    receipt = await stage.groups.receipt("now", "s", str(stage.log.find("s").offset(2)))
    assert (receipt["state"], receipt["attempts"], receipt["complete"]) == ("skipped", 0, True)


async def test_globs_and_streams_that_come_and_go(stage: Stage) -> None:
    """A glob's streams are read as they are made; one that is deleted and made again is another one."""
    await stage.put(streams=["orders/*"])
    member = await stage.member()
    await numbers(stage, 2, "orders/a")
    await numbers(stage, 1, "orders/b/c")
    assert texts(member.take()) == ["0", "1"]
    await delete(stage.log, "orders/a")
    await stage.settle()
    assert stage.state().in_flight == 0
    assert not stage.state().partitions
    await create(stage.log, "orders/a", creation())
    await stage.publish("orders/a", b'"new"')
    assert texts(member.got) == ['"new"']
    settled = await member.ack(Held(1, "", 0, 1, 1, b"", ""))
    assert [refused.code for refused in settled.refused] == ["lease-fenced"]
    assert (await member.ack(*member.got)).acked == 1


async def test_a_stream_that_was_replaced_while_nobody_took(stage: Stage) -> None:
    """A group without members notices when it has some that its stream is another one now."""
    await numbers(stage, 3)
    await stage.put()
    member = await stage.member()
    await member.ack(*member.take())
    await member.leave()
    await stage.advance(61)
    await delete(stage.log, "s")
    await create(stage.log, "s", creation())
    await stage.publish("s", b"7", b"8")
    offset = str(stage.log.find("s").offset(1))
    assert (await stage.receipt("s", offset))["state"] == "pending"
    again = await stage.member()
    assert texts(again.got) == ["7", "8"]


async def test_many_partitions(stage: Stage) -> None:
    """Many streams are read to their end, with little credit at a time."""
    for number in range(150):
        await create(stage.log, f"p/{number}", creation(body=b"[1,2]"))
    await stage.put(streams=["p/*"])
    member = await stage.member(credit=50)
    seen: list[Held] = []
    while member.got:
        taken = member.take()
        seen += taken
        member.grant(len(taken))
        await member.ack(*taken)
    assert len({(held.path, held.position) for held in seen}) == len(seen) == 300
    assert stage.groups.describe(stage.group("g"))["lag"] == 0


# -- settling


async def test_every_kind_of_ack_is_answered(stage: Stage) -> None:
    """Duplicate, late, foreign, unknown: each changes nothing, and is told why."""
    await numbers(stage, 4)
    await stage.put(lease_s=10, backoff_s=0)
    one = await stage.member("one", 4)
    first, second, third, fourth = one.take()
    two = await stage.member("two", 4)
    assert (await one.ack(third, first)).acked == 2  # in any order
    assert [each.code for each in (await one.ack(first)).refused] == ["already-settled"]
    assert [each.code for each in (await two.ack(second)).refused] == ["lease-fenced"]  # not its own
    made_up = Held(first.number, "s", 99, first.lease, 1, b"", "")
    assert [each.code for each in (await one.ack(made_up)).refused] == ["not-delivered"]
    assert [each.code for each in (await one.ack(Held(77, "s", 0, 1, 1, b"", ""))).refused] == ["lease-fenced"]
    await stage.advance(11)
    late = await one.settle([second], [fourth.nack()])
    assert late.fenced
    assert [each.code for each in late.refused] == ["lease-fenced", "lease-fenced"]
    given = one.take() + two.take()
    assert sorted(texts(given)) == ["1", "3"]
    assert {held.attempt for held in given} == {2}
    counts = stage.state().counts
    assert (counts["delivered"], counts["acked"], counts["failed"]) == (6, 2, 2)


async def test_nothing_is_on_record_before_its_time(
    stage: Stage, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that becomes due while a delivery is being made is in it, and the delivery is not said to be from before."""
    await numbers(stage, 1)
    await stage.put(lease_s=10)
    member = await stage.member()
    await member.nack(*member.take(), delay_s=5.0)
    await stage.advance(4.999)
    wall_ms = clock.wall_ms

    def passing() -> int:
        now = wall_ms()
        clock.advance(0.001)
        return now

    monkeypatch.setattr(clock, "wall_ms", passing)
    stage.group("g").dispatch.wake()
    await stage.settle()
    again = member.got[-1]
    deliveries = (await stage.receipt(again))["deliveries"]
    assert deliveries[0]["again_ms"] <= deliveries[1]["time_ms"]


async def test_a_run_is_acked_as_far_as_it_is_held(stage: Stage) -> None:
    """Of a run of records those that are held are done; the others are named one by one."""
    await numbers(stage, 6)
    await stage.put()
    member = await stage.member(credit=5)
    await member.ack(member.got[2])
    answer = Answer()
    stage.group("g").settle(Settlement([Ack(1, 0, 6, 1)]), answer)
    settled = await answer.wait()
    assert settled.acked == 4
    assert [(each.position, each.code) for each in settled.refused] == [(2, "already-settled"), (5, "not-delivered")]


@pytest.mark.parametrize(
    "settlement",
    [
        Settlement([Ack(1, 0, 1, 1), Ack(1, 0, 1, 1)]),
        Settlement([Ack(1, 0, 2, 1)], [Nack(1, 1, 1)]),
        Settlement([Ack(1, 0, 0, 1)]),
        Settlement([Ack(1, -1, 1, 1)]),
        Settlement([Ack(1, 0, 10**9, 1)]),
        Settlement([], [Nack(1, 0, 1, "lost")]),
        Settlement([], [Nack(1, 0, 1, "failed", float("nan"))]),
        Settlement([], [], [Held(1, "s", 0, 1, 1, b"", "").extend(float("nan"))]),
        Settlement([], [], [Held(1, "s", 0, 1, 1, b"", "").extend(-1)]),
    ],
)
async def test_a_settlement_that_makes_no_sense_changes_nothing(stage: Stage, settlement: Settlement) -> None:
    """It is refused as a whole, and what it names is held as before."""
    await numbers(stage, 2)
    await stage.put()
    member = await stage.member()
    with pytest.raises(BadRequest):
        stage.group("g").settle(settlement, Answer())
    assert stage.state().in_flight == 2
    assert (await member.ack(*member.got)).acked == 2


async def test_attempts_are_counted_exactly(stage: Stage) -> None:
    """Failures, leases that ended and records handed back are deliveries each; only the first two are failures."""
    await numbers(stage, 1)
    await stage.put(retries=2, lease_s=10, backoff_s=0)
    member = await stage.member()
    await member.nack(member.got[-1], kind="released")
    await member.nack(member.got[-1], reason="no luck")
    await stage.advance(11)
    assert [held.attempt for held in member.got] == [1, 2, 3, 4]
    receipt = await stage.receipt(member.got[-1])
    assert (receipt["state"], receipt["attempts"], receipt["member"]) == ("in-flight", 4, "m")
    ended = [each.get("ended", "") for each in receipt["deliveries"]]
    assert ended == ["released", "failed", "failed", ""]
    assert receipt["deliveries"][1]["reason"] == "no luck"
    await member.nack(member.got[-1])
    assert [held.attempt for held in member.got] == [1, 2, 3, 4]
    receipt = await stage.receipt(member.got[-1])
    assert (receipt["state"], receipt["attempts"], receipt["complete"]) == ("dead", 4, True)


async def test_backoff_doubles_up_to_its_bound_with_jitter(stage: Stage) -> None:
    """The delay before a redelivery is anywhere from nothing to a bound that doubles with each failure."""
    await numbers(stage, 100)
    await stage.put(retries=-1, backoff_s=8, backoff_s_max=20)
    member = await stage.member()
    for bound in (8, 16, 20):
        held = member.take()
        assert len(held) == 100
        await stage.put(retries=-1, backoff_s=8, backoff_s_max=20, paused=True)
        await member.nack(*held)
        delays = [waiting.delay_ms / 1000 for waiting in stage.state().partitions[1].waiting.values()]
        assert max(delays) <= bound
        assert max(delays) > bound * 0.8
        assert min(delays) < bound * 0.2
        await stage.put(retries=-1, backoff_s=8, backoff_s_max=20)
        await stage.advance(bound)


async def test_a_delay_that_a_member_asks_for(stage: Stage) -> None:
    """A nack says when the record is to come back: not before, and not later."""
    await numbers(stage, 1)
    await stage.put()
    member = await stage.member()
    await member.nack(*member.take(), delay_s=50)
    await stage.advance(49)
    assert not member.got
    await stage.advance(1)
    assert [held.attempt for held in member.got] == [2]


async def test_an_extended_lease_lasts(stage: Stage) -> None:
    """What is extended is held longer; the rest of the same lease is not."""
    await numbers(stage, 3)
    await stage.put(lease_s=10, backoff_s=0)
    member = await stage.member()
    first, second, third = member.take()
    await stage.advance(9)
    assert (await member.settle(extends=[first.extend(30), third.extend(0)])).extended == 2
    await stage.advance(2)
    assert texts(member.take()) == ["1"]
    await member.leave(give_back=False)
    assert (await member.ack(third)).acked == 1
    await stage.advance(27)
    assert (await member.ack(first)).acked == 1
    assert (await member.ack(second)).fenced


async def test_clocks_that_jump_end_no_lease(stage: Stage, clock: ManualClock) -> None:
    """The wall clock may go an hour ahead or back: leases and delays last as long as they were to."""
    await numbers(stage, 2)
    await stage.put(lease_s=10, backoff_s=0)
    member = await stage.member()
    first, _ = member.take()
    for jump in (3_600_000, -7_200_000):
        clock.jump(jump / 1000)
        await stage.advance(3)
        assert not member.got
    await member.nack(first, delay_s=2)
    clock.jump(-3600)
    await stage.advance(1)
    assert not member.got
    await stage.advance(1)
    assert texts(member.take()) == ["0"]
    await stage.advance(3)
    assert texts(member.take()) == ["1"]


async def test_a_member_that_leaves_gives_back_what_its_name_holds(stage: Stage) -> None:
    """At once and as no failure, unless another has its name; or after the lease, if it is only gone."""
    await numbers(stage, 2)
    await stage.put(lease_s=10, backoff_s=0)
    one, same = await stage.member("one", 2), await stage.member("one", 0)
    other = await stage.member("other")
    await one.leave()
    assert not other.got
    await same.leave()
    assert [(held.data, held.attempt) for held in other.take()] == [(b"0", 2), (b"1", 2)]
    assert stage.state().counts["failed"] == 0
    await other.leave(give_back=False)
    last = await stage.member("last")
    assert not last.got
    await stage.advance(11)
    assert [held.attempt for held in last.got] == [3, 3]


async def test_a_member_that_leaves_while_its_lease_is_on_its_way(tmp_path: Path, clock: ManualClock) -> None:
    """What it was not given is for others; it is not held until a lease ends."""
    disk = Disk(tmp_path, clock=clock)
    stage = Stage(disk, clock)
    await numbers(stage, 3)
    await stage.put()
    gate = disk.gate()
    gate.shut()
    gone, stays = PuppetMember(stage, "g", "gone"), PuppetMember(stage, "g", "stays")
    stage.group("g").join(gone.member)
    await until(lambda: stage.state().in_flight == 3)
    stage.group("g").leave(gone.member, give_back=False)
    gate.open()
    await stage.settle()
    assert not gone.got
    stage.group("g").join(stays.member)
    await stage.settle()
    assert texts(stays.got) == ["0", "1", "2"]
    await disk.close()


# -- order


async def test_records_with_one_key_come_one_after_the_other(stage: Stage) -> None:
    """While one with a key is out, none that is after it is given; a nack or a member that leaves changes nothing of it."""
    await create(stage.log, "s")
    await stage.put(order_by="k", backoff_s=0)
    await stage.publish("s", *(b'{"k":%d,"n":%d}' % (number % 2, number) for number in range(8)), b'{"n":8}')
    one, two = await stage.member("one", 100), await stage.member("two", 100)
    order: dict[int, list[int]] = {0: [], 1: []}
    for turn in range(40):
        for member in (one, two):
            for held in member.take():
                number = int(held.data.split(b":")[-1][:-1])
                if number == 8:
                    await member.ack(held)
                elif turn % 3 == 0:
                    await member.nack(held)
                elif turn % 3 == 1:
                    await member.leave()
                    member.__init__(stage, "g", member.member.name, 100)  # type: ignore[misc]
                    await member.join()
                else:
                    order[number % 2].append(number)
                    await member.ack(held)
    assert order == {0: [0, 2, 4, 6], 1: [1, 3, 5, 7]}
    assert not stage.state().lines
    assert stage.state().parked == 0


async def test_order_by_the_key_of_the_record(stage: Stage) -> None:
    """``$key`` is what the publisher said; records without a key wait for none."""
    await create(stage.log, "s", creation("text/plain"))
    await stage.put(order_by="$key")
    metas = {0: Meta(key="a"), 1: Meta(key="a"), 2: Meta(key="b")}
    await stage.publish("s", b"0", b"1", b"2", b"3", meta=metas)
    member = await stage.member()
    assert sorted(texts(member.got)) == ["0", "2", "3"]
    assert [held.meta for held in member.got] == [Meta(key="a"), Meta(key="b"), None]
    await member.ack(*member.take())
    assert texts(member.got) == ["1"]


async def test_an_order_that_is_given_up_holds_nobody_up(stage: Stage) -> None:
    """Without an order any more, what was parked is given when the record before it is settled."""
    await create(stage.log, "s")
    await stage.put(order_by="k")
    await stage.publish("s", *(b'{"k":1,"n":%d}' % number for number in range(4)))
    member = await stage.member(credit=3)
    await stage.put(order_by="")
    await stage.publish("s", b'{"k":1,"n":4}', b'{"k":1,"n":5}')
    seen: list[bytes] = []
    for _ in range(10):
        held = member.take()
        seen += [each.data for each in held]
        member.grant(len(held))
        await member.nack(*held[:1], delay_s=0) if len(seen) == 1 else await member.ack(*held)
    assert sorted(set(seen)) == [b'{"k":1,"n":%d}' % number for number in range(6)]
    assert not stage.state().lines


async def test_a_seek_behind_a_busy_key_keeps_the_order(stage: Stage) -> None:
    """Records that were parked come again in their order, also where they had been parked from a later place on."""
    await create(stage.log, "a", creation(body=b'{"k":1,"n":0}'))
    await create(stage.log, "b", creation(body=b'[{"k":1,"n":1},{"k":1,"n":2},{"k":1,"n":3}]'))
    await stage.put(streams=["*"], order_by="k")
    member = await stage.member()
    await stage.seek(str(stage.log.find("b").offset(2)), path="b")
    await stage.seek("-1", path="b")
    seen: list[bytes] = []
    while member.got:
        held = member.take()
        seen += [each.data for each in held]
        await member.ack(*held)
    assert seen == [b'{"k":1,"n":%d}' % number for number in range(4)]


async def test_many_parked_records_do_not_hide_others(stage: Stage) -> None:
    """A long run of one busy key is passed by; what is behind it is given."""
    await create(stage.log, "s", creation("text/plain"))
    await stage.put(order_by="$key")
    for _ in range(6):
        await stage.publish("s", *[b"x"] * 1000, meta=Meta(key="busy"))
    await stage.publish("s", b"free", meta=Meta(key="other"))
    member = await stage.member()
    assert sorted(texts(member.got)) == ["free", "x"]


# -- what is not there any more


async def test_expired_records_are_passed_over_and_counted(stage: Stage, clock: ManualClock) -> None:
    """In the middle, at the end, or while they wait: nobody is given them, nobody is held up, and the receipt says so."""
    await create(stage.log, "s", creation("text/plain"))
    soon = Meta(expires_ms=clock.wall_ms() + 5000)
    await stage.publish("s", b"0", b"1", b"2", b"3", meta={1: soon, 3: soon})
    await stage.put(backoff_s=0)
    await stage.advance(6)
    member = await stage.member()
    assert texts(member.take()) == ["0", "2"]
    assert stage.state().counts["expired"] == 2
    stream = stage.log.find("s")
    for position in (1, 3):
        assert (await stage.receipt("s", str(stream.offset(position + 1))))["state"] == "expired"
    await stage.publish("s", b"4", meta=Meta(expires_ms=clock.wall_ms() + 5000))
    await stage.publish("s", b"5")
    four = member.got[0]
    await member.nack(four, delay_s=10)
    await stage.advance(11)
    assert texts(member.take()) == ["4", "5"]
    assert (await stage.receipt(four))["state"] == "expired"
    assert stage.state().counts == {"delivered": 4, "acked": 0, "failed": 1, "dead": 0, "missed": 0, "expired": 3}


async def test_a_stream_of_expired_records_only(stage: Stage, clock: ManualClock) -> None:
    """There is nothing to deliver, and the next record is."""
    await create(stage.log, "s", creation("text/plain"))
    await stage.publish("s", b"0", b"1", meta=Meta(expires_ms=clock.wall_ms() + 5000))
    await stage.put()
    await stage.advance(6)
    member = await stage.member()
    assert not member.got
    await stage.publish("s", b"2")
    assert texts(member.got) == ["2"]


async def test_retention_keeps_what_is_outstanding_and_misses_are_counted(stage: Stage) -> None:
    """What a member has stays until it is settled; what was never delivered may be let go, and is counted."""
    await create(stage.log, "s", creation("application/octet-stream", retention_bytes=1))
    await stage.put(backoff_s=0)
    member = await stage.member(credit=1)
    for number in range(100):
        await stage.publish("s", b"%d" % number * 20_000)
    stream = stage.log.find("s")
    assert stream.start == 0
    await member.ack(*member.take())
    await stage.publish("s", b"x" * 60_000)
    assert stream.start > 1
    start = stream.start
    member.grant(1000)
    await stage.settle()
    assert member.got[0].position == start
    assert stage.state().counts["missed"] == start - 1
    assert (await stage.receipt("s", str(stream.offset(2))))["state"] == "missed"


# -- seek


async def test_a_seek_makes_what_is_outstanding_void(stage: Stage) -> None:
    """After a seek all is delivered as if for the first time, and what was held before is fenced."""
    await numbers(stage, 3)
    await stage.put(retries=0)
    member = await stage.member()
    old = member.take()
    await member.nack(old[0])  # dead
    await member.ack(old[1])
    assert await stage.seek("-1") == ["s"]
    new = member.take()
    assert [(held.data, held.attempt) for held in new] == [(b"0", 1), (b"1", 1), (b"2", 1)]
    assert not stage.state().dead
    assert (await member.ack(old[2])).fenced
    assert (await member.ack(*new)).acked == 3
    assert await stage.redrive() == 0
    receipt = await stage.receipt(new[0])
    assert (receipt["state"], receipt["attempts"]) == ("acked", 2)
    assert stage.state().in_flight == 0


async def test_a_seek_ahead_skips(stage: Stage) -> None:
    """What is passed over is told as that, be it outstanding or never delivered."""
    await numbers(stage, 4)
    await stage.put()
    member = await stage.member(credit=1)
    await stage.seek("now")
    member.grant(5)
    await stage.publish("s", b"4")
    assert texts(member.got) == ["0", "4"]
    stream = stage.log.find("s")
    states = [(await stage.receipt("s", str(stream.offset(position + 1))))["state"] for position in range(5)]
    assert states == ["skipped"] * 4 + ["in-flight"]


# -- life


async def test_a_group_is_made_once_and_changed_later(stage: Stage) -> None:
    """PUT again with other settings changes them; with the same it does nothing."""
    await numbers(stage, 1)
    group = await stage.put(retries=3)
    assert await stage.put(retries=4) is group
    assert stage.state().spec.retries == 4
    answer = Answer()
    stage.groups.put("g", GroupSpec(["s"], retries=4), answer)
    assert await answer.wait() == (group, False)


async def test_streams_that_a_group_gives_up_are_let_go(stage: Stage) -> None:
    """With other globs, what was held of other streams is nobody's any more."""
    await numbers(stage, 2, "a")
    await numbers(stage, 2, "b")
    await stage.put(streams=["a", "b"])
    member = await stage.member()
    await stage.put(streams=["b", "c"])
    await numbers(stage, 1, "c")
    assert {held.path for held in member.got} == {"a", "b", "c"}
    assert stage.state().in_flight == 3
    assert not stage.log.find("a").holds


async def test_a_deleted_group_tells_its_members(stage: Stage) -> None:
    """Deleted while a lease is on its way, and made again at once: the new one knows nothing of the old."""
    await numbers(stage, 5)
    await stage.put()
    member = await stage.member(credit=2)
    old = stage.group("g")
    member.grant(2)
    await member.ack(member.got[0])
    deleted = Answer()
    old.settle(Settlement([member.got[1].ack]), lambda _result: None)
    stage.groups.delete("g", deleted)
    assert isinstance(member.error, NotFound)
    with pytest.raises(NotFound):
        old.settle(Settlement(), Answer())
    await deleted.wait()
    await stage.put()
    again = await stage.member()
    assert [held.attempt for held in again.got] == [1] * 5
    await again.ack(*again.got)
    assert stage.state().counts["acked"] == 5
    assert (await stage.kept()).counts["acked"] == 5


async def test_lag_and_description(stage: Stage) -> None:
    """What is told of a group adds up."""
    await numbers(stage, 5)
    await stage.put()
    assert stage.groups.describe(stage.group("g"))["lag"] == 5
    member = await stage.member(credit=3)
    await member.ack(member.got[0])
    told = stage.groups.describe(stage.group("g"))
    assert (told["lag"], told["in_flight"], told["waiting"], told["dead"]) == (2, 2, 0, 0)
    assert told["streams"] == [
        {"stream": "s", "lag": 2, "in_flight": 2, "waiting": 0, "parked": 0, "position": 1, "next": 3}
    ]
    assert [(each["name"], each["in_flight"], each["connected"]) for each in told["members"]] == [("m", 2, True)]


async def test_receipts_of_what_was_not_delivered(stage: Stage) -> None:
    """Pending, parked, or of no record at all: it is told apart."""
    await create(stage.log, "s", creation(body=b'[{"k":1},{"k":1},{"k":2}]'))
    await stage.put(order_by="k")
    member = await stage.member(credit=1)
    stream = stage.log.find("s")
    states = [(await stage.receipt("s", str(stream.offset(position + 1))))["state"] for position in range(3)]
    assert states == ["in-flight", "pending", "pending"]
    member.grant(1)
    await stage.settle()
    states = [(await stage.receipt("s", str(stream.offset(position + 1))))["state"] for position in range(3)]
    assert states == ["in-flight", "parked", "in-flight"]
    assert (await stage.receipt("other", str(stream.offset(1))))["state"] == "unknown"
    with pytest.raises(BadRequest):
        await stage.receipt("s", str(stream.offset(0)))


# -- transactions


async def test_acks_and_what_is_published_are_one(stage: Stage) -> None:
    """With a record that is not held any more nothing is published and nothing acked; else all of it is."""
    await numbers(stage, 2)
    await create(stage.log, "out", creation("text/plain"))
    await stage.put(lease_s=10, backoff_s=0)
    member = await stage.member()
    first, second = member.got
    await member.ack(second)
    with pytest.raises(LeaseFenced):
        member.begin([first, second], publish=[Publish("out", [b"0"])])
    assert stage.log.find("out").next == 0
    settled = await member.settle([first], publish=[Publish("out", [b"0", b"1"])])
    assert settled.acked == 1
    assert settled.offsets == [str(stage.log.find("out").offset(2))]
    with pytest.raises(LeaseFenced):
        member.begin([first], publish=[Publish("out", [b"0"])])
    assert stage.log.find("out").next == 2
    assert (await stage.kept()).counts["acked"] == 2


async def test_what_cannot_be_published_acks_nothing(stage: Stage) -> None:
    """No stream, a closed one, no JSON, nothing at all: refused with nothing done."""
    await numbers(stage, 1)
    await create(stage.log, "closed", creation(closed=True))
    await create(stage.log, "json")
    await stage.put()
    member = await stage.member()
    for publish in (
        Publish("none", [b"1"]),
        Publish("closed", [b"1"]),
        Publish("json", [b"{"]),
        Publish("json", []),
        Publish("__group/g", [b"1"]),
    ):
        with pytest.raises((BadRequest, NotFound, Conflict)):
            member.begin(member.got, publish=[Publish("json", [b"1"]), publish])
    assert stage.log.find("json").next == 0
    assert (await member.ack(*member.got)).acked == 1


async def test_a_transaction_needs_streams_that_share_the_disk(tmp_path: Path, clock: ManualClock) -> None:
    """What is published together with an ack cannot go to a stream that a crash may take."""
    disk = Disk(tmp_path, clock=clock)
    stage = Stage(disk, clock)
    await numbers(stage, 1)
    await create(stage.log, "out", creation(durability=Durability.ASYNC))
    await stage.put()
    member = await stage.member()
    with pytest.raises(Conflict) as refused:
        member.begin(member.got, publish=[Publish("out", [b"1"])])
    assert refused.value.code == "durability-mismatch"
    await disk.close()


# -- from the disk


@pytest.fixture
async def trimmed(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Stage]:
    """Groups on a log that has nearly nothing in memory."""
    disk = Disk(
        tmp_path, clock=clock, limits=Limits(stream_cache_bytes_max=1, cache_bytes_max=1, read_bytes_max=50_000)
    )
    stage = Stage(disk, clock)
    yield stage
    stage.groups.stop()
    await disk.close()


async def large(stage: Stage, path: str, count: int) -> None:
    await create(stage.log, path, creation("application/octet-stream"))
    for number in range(count):
        await stage.publish(path, b"%04d" % number + b"x" * 40_000)


async def test_records_that_only_the_disk_has(trimmed: Stage) -> None:
    """Fresh ones, redelivered ones and dead ones are read from there, in their order."""
    await large(trimmed, "s", 30)
    assert trimmed.log.find("s").cache_from > 20
    await trimmed.put(backoff_s=0, retries=1, dead_letter="dead")
    member = await trimmed.member(credit=100)
    assert [int(held.data[:4]) for held in member.got] == list(range(30))
    held = member.take()
    await member.nack(*held[:20], delay_s=5)
    await member.ack(*held[20:])
    await trimmed.advance(5)
    assert [(int(each.data[:4]), each.attempt) for each in member.got] == [(number, 2) for number in range(20)]
    await member.nack(*member.take())
    dead = trimmed.log.find("dead")
    assert dead.tail == 20
    assert trimmed.state().counts["dead"] == 20
    assert not trimmed.log.find("s").holds


async def test_records_that_expired_on_the_disk(trimmed: Stage, clock: ManualClock) -> None:
    """They are passed over and counted, at the beginning, between others and at the end; the others are given."""
    await create(trimmed.log, "s", creation("application/octet-stream"))
    for number in range(12):
        lapses = number % 4 in (0, 3)
        meta = Meta(expires_ms=clock.wall_ms() + 1000) if lapses else None
        await trimmed.publish("s", b"%04d" % number + b"x" * 40_000, meta=meta)
    assert trimmed.log.find("s").cache_from > 6
    clock.advance(2)
    await trimmed.put()
    member = await trimmed.member(credit=100)
    assert [held.position for held in member.got] == [1, 2, 5, 6, 9, 10]
    counts = trimmed.state().counts
    assert (counts["delivered"], counts["expired"], counts["missed"]) == (6, 6, 0)
    stream = trimmed.log.find("s")
    states = [(await trimmed.receipt("s", str(stream.offset(at + 1))))["state"] for at in range(12)]
    assert states == ["expired", "in-flight", "in-flight", "expired"] * 3


async def test_many_streams_that_only_the_disk_has(trimmed: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With little credit no more of them is held in memory than is of use."""
    patch_constants(monkeypatch, HELD_MAX=4)
    for number in range(20):
        await create(trimmed.log, f"p/{number}", creation("application/octet-stream"))
        for _ in range(3):
            await trimmed.publish(f"p/{number}", b"x" * 300_000)
        assert trimmed.log.find(f"p/{number}").cache_from == 3
    await trimmed.put(streams=["p/*"])
    member = await trimmed.member(credit=1)
    seen = 0
    while member.got:
        held = member.take()
        seen += len(held)
        assert len(trimmed.group("g").reading.fetched) <= 4
        member.grant(3)
        await member.ack(*held)
    assert seen == 60
    assert not trimmed.group("g").reading.fetched


async def test_a_stream_that_is_deleted_while_it_is_read(trimmed: Stage) -> None:
    """Reads that are on their way when their stream goes leave nothing behind."""
    await large(trimmed, "s", 30)
    await trimmed.put(streams=["*"])
    member = PuppetMember(trimmed, "g", "m")
    trimmed.group("g").join(member.member)
    async with asyncio.timeout(10):
        while not trimmed.group("g").reading.busy:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
    await delete(trimmed.log, "s")
    await create(trimmed.log, "s", creation("application/octet-stream", body=b"new"))
    await trimmed.settle()
    assert [held.data for held in member.got][-1:] == [b"new"]
    reading = trimmed.group("g").reading
    assert not reading.fetched
    assert not reading.singles
    assert not reading.busy
