"""A group against a plain model, over any sequence of publications, settlements, members that come and go, time, seeks,
full disks and crashes.

The model knows of each record who holds it, how often it was tried and whether it is done with; it does not know who is
given what next: that it observes, and says whether it may be. After each step the group must be what its snapshot makes
of it, and what its events on disk make of it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support.constants import patch_constants
from tests.support.disk import Disk, Gate
from tests.support.groups import Held, PuppetMember, Stage, again, facts
from tests.support.log import create, read_records
from tests.support.waiting import until
from wayside.core.errors import StoreFull
from wayside.groups.state import GroupState
from wayside.link.frames import Part
from wayside.testing import ManualClock

LEASE_S = 10.0
RETRIES = 2
PATHS = ("s/a", "s/b")
NAMES = ("one", "two", "three")
Key = tuple[str, int]
T = TypeVar("T")


@dataclass
class Record:
    """What the model knows of a record."""

    key: int | None
    state: str = "undelivered"
    """Or leased, waiting, acked, dead, skipped."""
    attempts: int = 0
    failures: int = 0
    held: Held | None = None
    by: str = ""
    until: float = 0.0
    seconds: float = LEASE_S
    ordered: bool = True
    """Not, once it was brought back from the dead."""


class Watched(PuppetMember):
    """A member that says when it was given what."""

    def __init__(self, machine: GroupMachine, name: str, credit: int) -> None:
        super().__init__(machine.stage, "g", name, credit)
        self.machine = machine

    def deliver(self, lease: int, seconds: float, parts: list[Part]) -> None:
        super().deliver(lease, seconds, parts)
        for held in self.take():
            self.machine.given(held, self.member.name)


class GroupMachine(RuleBasedStateMachine):
    order_by = "k"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        self.root = Path(tempfile.mkdtemp(prefix="wayside-test-"))
        self.records: dict[Key, Record] = {}
        self.members: list[Watched] = []
        self.past: list[tuple[str, Held]] = []
        self.retries = RETRIES
        self.buried = 0
        self.state: GroupState | None = None
        self.serial = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(60):
                return await work

        return self.loop.run_until_complete(bounded())

    @initialize(snapshots=st.booleans())
    def open(self, snapshots: bool) -> None:
        patch_constants(self.patch, LOST_S=0.001, STUCK_S=0.001, FAILED_S=0.001)
        if snapshots:
            patch_constants(self.patch, SNAPSHOT_BYTES=150, SNAPSHOT_BYTES_MAX=150)

        async def begin() -> None:
            self.clock = ManualClock()
            self.disk = Disk(self.root, clock=self.clock)
            self.stage = Stage(self.disk, self.clock)
            for path in PATHS:
                await create(self.stage.log, path)
            await create(self.stage.log, "dead")
            await self.specify()

        self.run(begin())
        self.state = self.stage.state()

    async def specify(self, **spec: Any) -> None:
        await self.stage.put(
            streams=["s/*"],
            lease_s=LEASE_S,
            backoff_s=4,
            backoff_s_max=8,
            dead_letter="dead",
            order_by=self.order_by,
            in_flight_max=6,
            member_in_flight_max=4,
            **{"retries": self.retries, **spec},
        )

    def teardown(self) -> None:
        try:
            if hasattr(self, "stage"):
                try:
                    self.run(self.drain())
                finally:
                    self.stage.groups.stop()
                    self.run(self.disk.close())
        finally:
            self.loop.close()
            self.patch.undo()
            shutil.rmtree(self.root, ignore_errors=True)

    # -- what the model sees

    def given(self, held: Held, name: str) -> None:
        """A record has come to a member: whether it may."""
        self.expire()
        record = self.records[held.path, held.position]
        assert record.state in ("undelivered", "waiting"), f"{held} is {record}"
        assert held.attempt == record.attempts + 1
        record.state, record.attempts, record.held, record.by = "leased", record.attempts + 1, held, name
        record.until, record.seconds = self.clock.monotonic() + LEASE_S, LEASE_S
        self.past.append((name, held))
        if self.order_by and record.key is not None and record.ordered:
            for (path, position), other in self.records.items():
                if other.key == record.key and other is not record and other.ordered:
                    assert other.state != "leased", f"two with key {record.key} are under way"
                    if path == held.path and position < held.position:
                        assert other.state in ("acked", "dead", "skipped"), f"{held} came before {position}"

    def expire(self) -> None:
        for record in self.records.values():
            if record.state == "leased" and record.until <= self.clock.monotonic() + 1e-9:
                self.fail(record)

    def fail(self, record: Record, *, failed: bool = True, doomed: bool = False) -> None:
        record.state, record.held = "waiting", None
        record.failures += failed
        if doomed or record.failures > self.retries:
            self.bury(record)

    def bury(self, record: Record) -> None:
        record.state = "dead"
        self.buried += 1

    async def check(self) -> None:
        """After each step: everything that there is to know agrees."""
        stage = self.stage
        await until(lambda: stage.group("g").open)
        await stage.settle()
        state = stage.state()
        if state is not self.state:  # it was read from the disk again: leases began anew
            for record in self.records.values():
                record.until = self.clock.monotonic() + record.seconds
            self.state = state
        self.expire()
        found = {
            (path, position): "leased" if position in partition.leased else "waiting"
            for path, partition in state.by_path.items()
            for position in (*partition.leased, *partition.waiting)
        }
        assert found == {
            at: record.state for at, record in self.records.items() if record.state in ("leased", "waiting")
        }
        for path, partition in state.by_path.items():
            where = [set(partition.leased), set(partition.waiting), set(partition.parked)]
            assert sum(map(len, where)) == len(set.union(*where)), "a record is in two places"
            for position in partition.parked:
                assert self.records[path, position].state == "undelivered"
            for position, waiting in partition.waiting.items():
                record = self.records[path, position]
                assert (waiting.deliveries, waiting.failures) == (record.attempts, record.failures)
            outstanding = set.union(*where)
            assert partition.lowest() == min(outstanding, default=partition.next)
            assert len(stage.log.find(path).holds) == bool(outstanding)
            for position in range(partition.next):
                record = self.records[path, position]
                if position not in outstanding:
                    assert record.state in ("acked", "dead", "skipped"), f"{path} {position} is nowhere: {record}"
        dead = {at for at, record in self.records.items() if record.state == "dead"}
        assert {(letter.path, letter.position) for letter in state.dead.values()} == dead
        assert stage.log.find("dead").tail == self.buried == state.counts["dead"]
        assert state.in_flight <= 6
        held: dict[str, int] = {}
        for record in self.records.values():
            if record.state == "leased":
                held[record.by] = held.get(record.by, 0) + 1
        assert state.member_in_flight == held
        assert max(held.values(), default=0) <= 4
        true = facts(state)
        assert facts(again(state)) == true
        assert facts(await stage.kept()) == true

    def step(self, work: Coroutine[Any, Any, Any]) -> None:
        async def whole() -> None:
            await work
            await self.check()

        self.run(whole())

    # -- rules

    @rule(path=st.sampled_from(PATHS), keys=st.lists(st.sampled_from([0, 1, 2, None]), min_size=1, max_size=4))
    def publish(self, path: str, keys: list[int | None]) -> None:
        tail = self.stage.log.find(path).tail
        data = []
        for index, key in enumerate(keys):
            self.serial += 1
            self.records[path, tail + index] = Record(key)
            data.append(msgspec.json.encode({"n": self.serial} | ({"k": key} if key is not None else {})))
        self.step(self.stage.publish(path, *data))

    @rule(name=st.sampled_from(NAMES), credit=st.sampled_from([1, 3, 100]))
    def join(self, name: str, credit: int) -> None:
        member = Watched(self, name, credit)
        self.members.append(member)
        self.step(member.join())

    @rule(number=st.integers(0, 5), give_back=st.booleans())
    def leave(self, number: int, give_back: bool) -> None:
        if self.members:
            member = self.members.pop(number % len(self.members))
            name = member.member.name
            if give_back and not any(other.member.name == name for other in self.members):
                for record in self.records.values():
                    if record.state == "leased" and record.by == name:
                        self.fail(record, failed=False)
            self.step(member.leave(give_back=give_back))

    @rule(number=st.integers(0, 5))
    def grant(self, number: int) -> None:
        if self.members:
            member = self.members[number % len(self.members)]

            async def grant() -> None:
                member.grant(2)

            self.step(grant())

    @rule(
        numbers=st.lists(st.integers(0, 60), min_size=1, max_size=4, unique=True),
        what=st.sampled_from(["ack", "ack", "ack", "failed", "released", "rejected", "extend"]),
        own=st.booleans(),
        full=st.sampled_from([False, False, False, True]),
    )
    def settle(self, numbers: list[int], what: str, own: bool, full: bool) -> None:
        """Say something of deliveries, the latest first, be they over or not; the disk may be full."""
        chosen: dict[tuple[int, int], tuple[str, Held]] = {}
        for number in numbers:
            if number < len(self.past):
                name, held = self.past[-1 - number]
                chosen.setdefault((held.number, held.position), (name, held))
        if not chosen:
            return
        name = next(iter(chosen.values()))[0]
        puppet = Watched(self, name, 0)
        good = []
        for by, held in chosen.values():
            record = self.records[held.path, held.position]
            if record.state == "leased" and record.held == held and (by == name or not own):
                good.append(record)
        helds = [held for _, held in chosen.values()]

        async def say() -> None:
            if full:
                self.gate().full = 1
            acks = helds if what == "ack" else []
            nacks = [held.nack(what, 2.0) for held in helds] if what in ("failed", "released", "rejected") else []
            extends = [held.extend(15) for held in helds] if what == "extend" else []
            answer = puppet.begin(acks, nacks, extends, name=name if own else None)
            try:
                settled = await answer.wait()
            except StoreFull:
                assert full
                return
            finally:
                self.gate().full = 0
            done = settled.acked + settled.nacked + settled.extended
            assert (done, len(settled.refused)) == (len(good), len(helds) - len(good))

        fails = full and bool(good)
        if not fails:
            for record in good:
                if what == "ack":
                    record.state, record.held = "acked", None
                elif what == "extend":
                    record.until, record.seconds = self.clock.monotonic() + 15, 15
                else:
                    self.fail(record, failed=what != "released", doomed=what == "rejected")
        self.step(say())

    def gate(self) -> Gate:
        if getattr(self, "gated", None) is not self.disk.log:
            self.gated, self._gate = self.disk.log, self.disk.gate()
        return self._gate

    @rule(name=st.sampled_from(NAMES))
    def join_with_a_full_disk(self, name: str) -> None:
        member = Watched(self, name, 3)
        self.members.append(member)

        async def join() -> None:
            self.gate().full = 1
            self.stage.group("g").join(member.member)
            await self.stage.settle()
            self.gate().full = 0
            await until(lambda: self.stage.group("g").open)

        self.step(join())

    @rule(seconds=st.sampled_from([1.0, 2.5, 5.0, 10.5]), jump=st.sampled_from([0, 0, 3_600_000, -3_600_000]))
    def advance(self, seconds: float, jump: int) -> None:
        self.clock.jump(jump / 1000)
        self.step(self.stage.advance(seconds))

    @rule(path=st.sampled_from(PATHS), to=st.sampled_from(["-1", "now"]))
    def seek(self, path: str, to: str) -> None:
        for (of, _), record in self.records.items():
            if of == path and to == "-1":
                record.state, record.attempts, record.failures, record.held = "undelivered", 0, 0, None
                record.ordered = True
            elif of == path and record.state in ("undelivered", "leased", "waiting"):
                record.state, record.held = "skipped", None
        self.step(self.stage.seek(to, path=path))

    @rule()
    def redrive(self) -> None:
        for record in self.records.values():
            if record.state == "dead":
                record.state, record.attempts, record.failures, record.ordered = "waiting", 0, 0, False
        self.step(self.stage.redrive())

    @rule(retries=st.integers(0, 3), paused=st.booleans())
    def change(self, retries: int, paused: bool) -> None:
        self.retries = retries
        for record in self.records.values():
            if record.state == "waiting" and record.failures > retries:
                self.bury(record)
        self.step(self.specify(paused=paused))

    @rule(how=st.sampled_from(["crash", "crash", "restart"]))
    def gone(self, how: str) -> None:
        self.members.clear()
        self.step(self.stage.crash() if how == "crash" else self.stage.restart())

    async def drain(self) -> None:
        """In the end everything is settled, and nothing is lost."""
        self.gate().full = 0
        await self.specify()
        for member in self.members:
            await member.leave(give_back=False)
        self.members.clear()
        last = Watched(self, "last", 10_000)
        await last.join()
        for _ in range(400):
            await self.check()
            held = [record for record in self.records.values() if record.state == "leased" and record.by == "last"]
            if not held and all(record.state in ("acked", "dead", "skipped") for record in self.records.values()):
                break
            for record in held:
                assert record.held is not None
            answer = last.begin([record.held for record in held if record.held is not None])
            for record in held:
                record.state, record.held = "acked", None
            await answer.wait()
            if not held:
                await self.stage.advance(6)
        else:
            raise AssertionError(f"never delivered: {self.records}")
        state = self.stage.state()
        assert not state.lines
        assert not state.free
        assert not state.leases
        assert len(await read_records(self.stage.log, "dead")) == self.buried


class UnorderedMachine(GroupMachine):
    order_by = ""


for machine in (GroupMachine, UnorderedMachine):
    machine.TestCase.settings = settings(
        max_examples=int(os.environ.get("WAYSIDE_PROPERTY_EXAMPLES", "15")),
        stateful_step_count=30,
        deadline=None,
        derandomize="WAYSIDE_PROPERTY_EXAMPLES" not in os.environ,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )

TestGroupsInOrder = GroupMachine.TestCase
TestGroups = UnorderedMachine.TestCase
