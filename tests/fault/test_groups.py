"""Groups when clocks jump, when retention runs past what is leased, and when the disk or the hub fails while a record is
put among the dead letters. Kills of whole processes are in tests/crash."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.support.disk import Disk
from tests.support.failing_disk import FailingDisk, failure
from tests.support.groups import PuppetMember, Stage
from tests.support.log import BYTES, create, creation, read_records, retain_by_age
from tests.support.server import JSON, Running, ServeDirectory, stop
from tests.support.waiting import turns, until
from wayside.core.errors import NotFound
from wayside.storage.embedded.check import check
from wayside.testing import ManualClock

pytestmark = pytest.mark.fault

HOUR_MS = 3_600_000


@pytest.fixture
async def files(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Disk]:
    disk = Disk(tmp_path, clock=clock)
    yield disk
    await disk.close()


@pytest.fixture
async def stage(files: Disk, clock: ManualClock) -> AsyncIterator[Stage]:
    """Groups on a disk that can crash."""
    stage = Stage(files, clock)
    yield stage
    stage.groups.stop()


async def _numbers(stage: Stage, count: int) -> None:
    await create(stage.log, "s", creation())
    await stage.publish("s", *(b"%d" % number for number in range(count)))


# -- clocks


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
async def test_the_wall_clock_jumps(stage: Stage, clock: ManualClock, jump_ms: int) -> None:
    """Leases, their extensions and backoffs last as long as they were to, to the second, whatever the wall clock does."""
    await _numbers(stage, 3)
    await stage.put(lease_s=10, backoff_s=0)
    member = await stage.member()
    lost, extended, failed = member.take()
    await member.settle((), [failed.nack(delay_s=8)], [extended.extend(15)])
    clock.jump(jump_ms / 1000)
    await stage.advance(7.9)
    assert not member.got
    await stage.advance(0.2)
    assert [held.position for held in member.take()] == [failed.position]
    clock.jump(jump_ms / 1000)
    await stage.advance(1.8)
    assert not member.got
    await stage.advance(0.2)
    assert [(held.position, held.attempt) for held in member.take()] == [(lost.position, 2)]
    assert (await member.ack(lost)).refused[0].code == "lease-fenced"
    clock.jump(-2 * jump_ms / 1000)
    await stage.advance(4.8)
    assert not member.got
    assert (await member.ack(extended)).acked == 1
    await stage.advance(3.2)
    assert [(held.position, held.attempt) for held in member.take()] == [(failed.position, 3)]


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
async def test_the_wall_clock_jumps_while_there_is_no_hub(stage: Stage, clock: ManualClock, jump_ms: int) -> None:
    """After a restart with another time a lease is given its whole length again, and no delay lasts longer than it was
    to."""
    await _numbers(stage, 2)
    await stage.put(lease_s=10, backoff_s=0)
    member = await stage.member()
    held, failed = member.take()
    await member.settle((), [failed.nack(delay_s=30)])
    clock.jump(jump_ms / 1000)
    await stage.crash()
    back = await PuppetMember(stage, "g", "m").join()
    if jump_ms > 0:
        assert [each.position for each in back.take()] == [failed.position]
    await stage.advance(9)
    assert not back.got
    assert (await back.ack(held)).acked == 1
    if jump_ms < 0:
        await stage.advance(20.9)
        assert not back.got
        await stage.advance(0.2)
        assert [(each.position, each.attempt) for each in back.take()] == [(failed.position, 2)]


# -- retention


@pytest.mark.parametrize("how", ["bytes", "age"])
async def test_retention_runs_past_leases(stage: Stage, clock: ManualClock, how: str) -> None:
    """What is leased, or waits to come again, is kept, over crashes too; what is acked is let go; what was never delivered
    is counted as missed, and its receipt says so."""
    config: dict[str, Any] = {"retention_bytes": 1} if how == "bytes" else {"retention_age_s": 60}
    await create(stage.log, "s", creation(BYTES, **config))
    await stage.put(lease_s=600, backoff_s=0)
    member = await stage.member(credit=4)
    for number in range(4):
        await stage.publish("s", b"%d" % number * 30_000)
    acked, leased, failed, later = member.take()
    await member.settle([acked, later], [failed.nack(delay_s=300)])

    async def run_past() -> None:
        """There are others, and older ones than those are not kept."""
        for _ in range(3):
            await stage.publish("s", b"x" * 30_000)
        await stage.advance(61)
        retain_by_age(stage.log)

    member.grant(-member.member.credit)  # it takes nothing for now
    await run_past()
    assert stage.log.find("s").start == leased.position
    await stage.crash()
    await run_past()
    assert stage.log.find("s").start == leased.position
    await stage.advance(600)
    back = await stage.member(credit=2)
    given = back.take()
    wanted = [(failed.position, 2, failed.data), (leased.position, 2, leased.data)]
    assert [(held.position, held.attempt, held.data) for held in given] == wanted
    await back.ack(*given)
    await run_past()
    stream = stage.log.find("s")
    start, first = stream.start, later.position + 1
    assert start > first, "nothing was let go"
    back.grant(1000)
    await stage.publish("s", b"new" * 10_000)
    assert [held.position for held in back.got] == list(range(start, stream.tail))
    assert stage.state().counts["missed"] == start - first
    states = [(await stage.receipt("s", str(stream.offset(at + 1))))["state"] for at in range(stream.tail)]
    assert states == ["acked"] * first + ["missed"] * (start - first) + ["in-flight"] * (stream.tail - start)


# -- dead letters


async def _letters(stage: Stage) -> int:
    """How many dead letters there are."""
    try:
        return len(await read_records(stage.log, "dead"))
    except NotFound:
        return 0


@pytest.mark.parametrize("commits", range(3))
async def test_a_crash_while_a_record_dies(files: Disk, stage: Stage, commits: int) -> None:
    """However much of it had reached the disk, the record is in one place: in the group, or among the dead letters."""
    await _numbers(stage, 1)
    await stage.put(retries=0, dead_letter="dead")
    member = await stage.member()
    (held,) = member.take()
    gate = files.gate()
    gate.shut()
    answer = member.begin(nacks=[held.nack(reason="no use")])
    await turns()
    for _ in range(commits):
        gate.let()
        await turns()
    assert answer.given == bool(commits)
    # the first commit has the failure, and the stream for dead ones; the second has the move
    assert await _after_crash(stage) == ("in-flight", "waiting", "dead")[commits]
    gate.open()
    await stage.settle()
    if not commits:  # that it failed was not on record: nobody has said anything of it
        await (await stage.member()).nack(held)
    assert (len(stage.state().dead), await _letters(stage)) == (1, 1)
    receipt = await stage.receipt("s", held.offset)
    assert (receipt["state"], receipt["attempts"], receipt["dead_letter"]["stream"]) == ("dead", 1, "dead")
    await stage.crash()
    assert (len(stage.state().dead), await _letters(stage)) == (1, 1)


async def _after_crash(stage: Stage) -> str:
    """Start again on what the disk has. Returns where the record was, before the group has done anything."""
    assert stage.disk is not None
    await stage.disk.crash()
    stage.groups.stop()
    stage.take_up()
    state = await stage.kept()
    (partition,) = state.partitions.values()
    places = {"in-flight": len(partition.leased), "waiting": len(partition.waiting), "dead": len(state.dead)}
    assert sum(places.values()) == 1
    assert places["dead"] == await _letters(stage)
    await stage.groups.start()
    return next(name for name, count in places.items() if count)


async def _ask(running: Running, action: str, body: Any) -> tuple[int, Any]:
    answer = await running.ask("POST", f"/v1/group/g/{action}", JSON, msgspec.json.encode(body))
    return answer.status, msgspec.json.decode(answer.body)


@pytest.mark.parametrize("synced", [0, 1])
async def test_the_disk_fails_while_a_record_dies(
    tmp_path: Path, serve: ServeDirectory, disk: FailingDisk, synced: int
) -> None:
    """Whether the disk fails under the failure or under the move: after a restart the record is moved once, and the other
    that was held is held."""
    running = await serve(tmp_path, vfs=disk.name)
    await running.create("s", JSON)
    spec = {"streams": ["s"], "retries": 0, "dead_letter": "dead"}
    assert (await running.ask("PUT", "/v1/group/g", JSON, msgspec.json.encode(spec))).status == 201
    await running.append("/v1/stream/s", b"[0,1]", JSON)
    _, claimed = await _ask(running, "claim", {"max": 2})
    marks = [{"stream": "s", "offset": each["offset"], "lease": claimed["lease"]} for each in claimed["records"]]
    left = synced

    def sync(_size: int) -> Exception | None:
        nonlocal left
        left -= 1
        return failure(apsw.SQLITE_IOERR_FSYNC) if left < 0 else None

    disk.rules["sync", "wal"] = sync
    status, _ = await _ask(running, "ack", {"nacks": [marks[0]]})
    assert status == (200 if synced else 503)
    await until(lambda: left < 0)
    await stop(running)
    disk.heal()
    assert check(tmp_path).ok
    running = await serve(tmp_path)
    await _ask(running, "ack", {"nacks": [marks[0]]})  # for the case that the failure was not on record
    state = running.hub.groups.group("g").journal.state
    await until(lambda: bool(state.dead))
    assert (await _ask(running, "ack", {"acks": [marks[1]]}))[1]["acked"] == 1
    assert msgspec.json.decode(await running.body_of("/v1/stream/dead")) == [0]
    assert (state.in_flight, state.counts["dead"], state.counts["acked"]) == (0, 1, 1)
