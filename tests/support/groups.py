"""Groups in a test: over a log that can crash, with a clock that stands still, and members by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.support.disk import Disk
from tests.support.log import Answer, publish
from tests.support.waiting import turns, until
from wayside.core.records import Meta
from wayside.core.schedule import Timers
from wayside.groups.events import GroupSpec, decode_snapshot, encode
from wayside.groups.group import Group
from wayside.groups.registry import Groups
from wayside.groups.state import GroupState, Member
from wayside.link.frames import Ack, Extend, Nack, Part, Publish, Settled, Settlement
from wayside.streams.streams import Streams
from wayside.testing import ManualClock


@dataclass(frozen=True)
class Held:
    """One record as a member was given it."""

    number: int
    path: str
    position: int
    lease: int
    attempt: int
    data: bytes
    offset: str
    meta: Meta | None = None

    @property
    def ack(self) -> Ack:
        return Ack(self.number, self.position, 1, self.lease)

    def nack(self, kind: str = "failed", delay_s: float | None = None, reason: str = "") -> Nack:
        return Nack(self.number, self.position, self.lease, kind, delay_s, reason)

    def extend(self, seconds: float) -> Extend:
        return Extend(self.number, self.position, 1, self.lease, seconds)


class PuppetMember:
    """A member that does what the test says. ``got`` is all that it was ever given."""

    def __init__(self, stage: Stage, group: str, name: str, credit: int = 1000, *, once: bool = False) -> None:
        self.got: list[Held] = []
        self.error: Exception | None = None
        self._stage = stage
        self._group = group
        self.member = Member(name, self, credit, once=once)

    def deliver(self, lease: int, seconds: float, parts: list[Part]) -> None:
        for part in parts:
            for index, data in enumerate(part.records):
                meta = part.metas.get(index) if part.metas else None
                at = part.first + index
                self.got.append(Held(part.number, part.path, at, lease, part.attempt, data, part.offset(index), meta))

    def ended(self, error: Exception) -> None:
        self.error = error

    @property
    def group(self) -> Group:
        return self._stage.group(self._group)

    @property
    def data(self) -> list[bytes]:
        return [held.data for held in self.got]

    async def join(self) -> PuppetMember:
        self.group.join(self.member)
        await self._stage.settle()
        return self

    async def leave(self, *, give_back: bool = True) -> None:
        self.group.leave(self.member, give_back=give_back)
        await self._stage.settle()

    def grant(self, credit: int) -> None:
        self.member.credit += credit
        self.group.wake()

    def begin(
        self,
        acks: Iterable[Held] = (),
        nacks: Iterable[Nack] = (),
        extends: Iterable[Extend] = (),
        publish: Iterable[Publish] = (),
        name: str | None = "",
    ) -> Answer:
        """Settle; the answer comes when it is on disk. ``name`` None: whosever the leases are."""
        answer = Answer()
        settlement = Settlement([held.ack for held in acks], list(nacks), list(extends), list(publish))
        self.group.settle(settlement, answer, self.member.name if name == "" else name)
        return answer

    async def settle(self, *args: Any, **options: Any) -> Settled:
        answer = self.begin(*args, **options)
        settled: Settled = await answer.wait()
        await self._stage.settle()
        return settled

    async def ack(self, *held: Held) -> Settled:
        return await self.settle(held)

    async def nack(self, *held: Held, **options: Any) -> Settled:
        return await self.settle((), [each.nack(**options) for each in held])

    def take(self) -> list[Held]:
        """What it was given since the last call."""
        taken, self.got = self.got, []
        return taken


class Stage:
    """Groups on a disk that can crash, or in memory."""

    def __init__(self, disk: Disk | None, clock: ManualClock, log: Streams | None = None) -> None:
        self.disk = disk
        self.clock = clock
        self._log = log
        self.take_up()

    @property
    def log(self) -> Streams:
        found = self.disk.log if self.disk is not None else self._log
        assert found is not None
        return found

    def take_up(self) -> None:
        """Make the groups of the log, which know nothing yet."""
        self.timers = Timers(self.clock)
        self.groups = Groups(self.log, self.clock, self.timers)

    def group(self, name: str) -> Group:
        return self.groups.group(name)

    def state(self, name: str = "g") -> GroupState:
        return self.group(name).journal.state

    async def put(self, name: str = "g", streams: str | list[str] = "s", **spec: Any) -> Group:
        answer = Answer()
        paths = [streams] if isinstance(streams, str) else streams
        self.groups.put(name, GroupSpec(paths, **spec), answer)
        group: Group = (await answer.wait())[0]
        await self.settle()
        return group

    async def member(
        self, name: str = "m", credit: int = 1000, *, group: str = "g", once: bool = False
    ) -> PuppetMember:
        return await PuppetMember(self, group, name, credit, once=once).join()

    async def publish(self, path: str, *records: bytes, meta: dict[int, Meta] | Meta | None = None) -> None:
        await publish(self.log, path, *records, meta=meta)
        await self.settle()

    async def seek(self, to: str, name: str = "g", path: str | None = None) -> Any:
        answer = Answer()
        self.group(name).seek(to, lambda each: path is None or each == path, answer)
        result = await answer.wait()
        await self.settle()
        return result

    async def redrive(self, name: str = "g") -> int:
        answer = Answer()
        self.group(name).redrive(lambda _letter: True, answer)
        count: int = await answer.wait()
        await self.settle()
        return count

    async def receipt(self, held: Held | str, offset: str = "", name: str = "g") -> dict[str, Any]:
        if isinstance(held, Held):
            return await self.groups.receipt(name, held.path, held.offset)
        return await self.groups.receipt(name, held, offset)

    # -- time and trouble

    def busy(self) -> bool:
        """Whether something happens that waits for no time to pass."""
        return bool(self.log.statistics().uncommitted_bytes) or not all(group.idle for group in self.groups.all())

    async def settle(self) -> None:
        """Let everything happen that waits for no time to pass."""
        await turns(3)
        while True:
            await until(lambda: not self.busy())
            await turns(5)
            if not self.busy():
                return

    async def advance(self, seconds: float) -> None:
        """Let time pass: what is due in it happens in order, each at its time."""
        end = self.clock.monotonic() + seconds
        await self.settle()
        while True:
            at = self.timers.next_at
            self.clock.advance_to(end if at is None else min(end, at))
            now = self.clock.monotonic()
            self.timers.run()
            await self.settle()
            if now >= end:
                return

    async def crash(self) -> None:
        """Kill it, and start it on what its files held at this moment."""
        assert self.disk is not None
        old = self.groups
        await self.disk.crash()
        old.stop()
        self.take_up()
        await self.groups.start()
        await self.settle()

    async def restart(self) -> None:
        """Stop it in order, and start it."""
        assert self.disk is not None
        self.groups.stop()
        await self.disk.restart()
        self.take_up()
        await self.groups.start()
        await self.settle()

    async def kept(self, name: str = "g") -> GroupState:
        """The group as another reading of the disk has it."""
        group = Group(name, self.log, self.clock, Timers(self.clock))
        await group.journal.load()
        group.journal.close(RuntimeError("the test has read it"))
        return group.journal.state


def facts(state: GroupState, *, deadlines: bool = True) -> Any:
    """All that is true of a group, to be compared. Delays of records that wait are left out on demand."""
    leases: dict[int, Any] = {}
    for lease, number, position in state.held():
        past = lease.past.get((number, position)) if lease.past else None
        key = lease.keys.get((number, position)) if lease.keys else None
        before = (past.deliveries, past.failures, past.copy) if past else (0, 0, None)
        leases.setdefault(id(lease), (lease.epoch, lease.member, lease.seconds, []))[3].append(
            (number, position, before, key)
        )
    assert sum(len(held) for *_, held in leases.values()) == state.in_flight
    known = {id(lease) for parts in state.leases.values() for lease in parts}
    assert known == set(leases)
    free = [at for at in state.free if at[0] in state.partitions and at[1] in state.partitions[at[0]].parked]
    return {
        "spec": state.spec,
        "partitions": {
            number: (
                each.path,
                each.epoch,
                each.next,
                each.lowest(),
                sorted(each.leased),
                sorted((msgspec.to_builtins(waiting) for waiting in each.waiting.values()), key=lambda w: w[0]),
                dict(sorted(each.parked.items())),
            )
            for number, each in sorted(state.partitions.items())
        },
        "leases": sorted((epoch, member, seconds, sorted(held)) for epoch, member, seconds, held in leases.values()),
        "free": free,
        "lines": {key: list(line) for key, line in sorted(state.lines.items())},
        "dead": {at: msgspec.to_builtins(letter) for at, letter in sorted(state.dead.items())},
        "counts": dict(state.counts),
        "members": dict(sorted(state.member_in_flight.items())),
        "numbers": (state.in_flight, state.parked, state.leases_next, state.numbers_next),
    }


def again(state: GroupState) -> GroupState:
    """The group that its snapshot makes."""
    return GroupState.restore(decode_snapshot(encode(state.snapshot(1))))
