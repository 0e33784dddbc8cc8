"""A group as a state machine.

A group reads streams through *partitions*, one for each stream: everything before ``next`` was delivered, and is settled
unless it is outstanding: leased to a member, waiting for its redelivery, or parked behind an earlier record with its key.
Positions are ordered, and follow one another inside one batch of records; between batches there may be gaps.
:meth:`GroupState.apply` of each event in order gives the group as it is; nothing here waits, reads a clock or touches a
log. Deadlines of leases are not kept: they are on the monotonic clock of whoever runs the group, and begin anew with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from wayside.groups.events import (
    Acked,
    Dead,
    DeadLetter,
    Dropped,
    Event,
    Extended,
    GroupSpec,
    Leased,
    Located,
    Nacked,
    Opened,
    Passed,
    Redriven,
    Shortened,
    Snapshot,
    SnapshotLease,
    SnapshotPartition,
    Sought,
    Specified,
    Waiting,
)

__all__ = ["GroupState", "Lease", "Member", "MemberLink", "Partition"]


DEAD_MAX = 10_000
"""Dead records that a group remembers; older ones are only where they were put."""
STEPS_MAX = 1000
"""Positions that are looked at one by one for the first outstanding record; it is farther behind a gap only."""


class Lease:
    """What one member was given at one time. ``epoch`` is its number; no two leases of a group have the same."""

    __slots__ = ("count", "deadline", "epoch", "keys", "member", "past", "seconds")

    def __init__(self, epoch: int, member: str, seconds: float) -> None:
        self.epoch = epoch
        self.member = member
        self.seconds = seconds
        self.deadline = 0.0
        """On the monotonic clock; whoever runs the group sets it."""
        self.count = 0
        """Records that it still has."""
        self.past: dict[tuple[int, int], Waiting] | None = None
        """What was true before of records that had been delivered before."""
        self.keys: dict[tuple[int, int], str] | None = None

    def __repr__(self) -> str:
        return f"<Lease {self.epoch} of {self.member}: {self.count}>"


class Partition:
    """One stream as a group reads it."""

    __slots__ = ("epoch", "floor", "leased", "next", "number", "parked", "path", "waiting")

    def __init__(self, number: int, path: str, epoch: int, position: int) -> None:
        self.number = number
        self.path = path
        self.epoch = epoch
        self.next = position
        """The first position that was never delivered or parked."""
        self.floor = position
        """Everything before is settled."""
        self.leased: dict[int, Lease] = {}
        self.waiting: dict[int, Waiting] = {}
        self.parked: dict[int, str] = {}
        """Position to key."""

    @property
    def outstanding(self) -> int:
        return len(self.leased) + len(self.waiting) + len(self.parked)

    def lowest(self) -> int:
        """The first position that is not settled."""
        floor, end = self.floor, self.next
        leased, waiting, parked = self.leased, self.waiting, self.parked
        if not (leased or waiting or parked):
            floor = end
        steps_end = min(end, floor + STEPS_MAX)
        while floor < steps_end and floor not in leased and floor not in waiting and floor not in parked:
            floor += 1
        if floor == steps_end < end:
            floor = min((*leased, *waiting, *parked))
        self.floor = floor
        return floor

    def __repr__(self) -> str:
        return f"<Partition {self.path} next {self.next} leased {len(self.leased)} waiting {len(self.waiting)}>"


class GroupState:
    """A group, as its events have it."""

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.partitions: dict[int, Partition] = {}
        self.by_path: dict[str, Partition] = {}
        self.leases: dict[int, list[Lease]] = {}
        """By epoch; several where a part of one was extended."""
        self.lines: dict[str, deque[tuple[int, int]]] = {}
        """Keys of which a record is under way, with those parked behind it, in order."""
        self.free: deque[tuple[int, int]] = deque()
        """Parked records that nothing is before any more, and those to be delivered again as if for the first time."""
        self.dead: dict[tuple[int, int], DeadLetter] = {}
        self.leases_next = self.numbers_next = 1
        self.in_flight = self.parked = 0
        self.counts: dict[str, int] = dict.fromkeys(("delivered", "acked", "failed", "dead", "missed", "expired"), 0)
        self.member_in_flight: dict[str, int] = {}

    # -- events

    def apply(self, event: Event) -> None:
        """Make an event true."""
        _APPLY[type(event)](self, event)

    def _opened(self, event: Opened) -> None:
        partition = Partition(event.number, event.path, event.epoch, event.position)
        self.partitions[event.number] = self.by_path[event.path] = partition
        self.numbers_next = max(self.numbers_next, event.number + 1)

    def _leased(self, event: Leased) -> None:
        lease = Lease(event.lease, event.member, event.seconds)
        self.leases[event.lease] = [lease]
        self.leases_next = max(self.leases_next, event.lease + 1)
        keys = iter(event.keys)
        for number, position in event.again:
            partition = self.partitions[number]
            waiting = partition.waiting.pop(position, None)
            if partition.parked.pop(position, None) is not None:
                self.parked -= 1
            if waiting is not None:
                if lease.past is None:
                    lease.past = {}
                lease.past[number, position] = waiting
            partition.leased[position] = lease
            lease.count += 1
            if event.keys:
                self._take_key(lease, number, position, next(keys))
        self._prune_free()
        for number, first, count in event.fresh:
            partition = self.partitions[number]
            end = first + count
            leased = partition.leased
            for position in range(first, end):
                leased[position] = lease
            if end > partition.next:
                partition.next = end
            lease.count += count
            if event.keys:
                for position in range(first, end):
                    self._take_key(lease, number, position, next(keys))
        for number, position, key in event.parked:
            partition = self.partitions[number]
            partition.parked[position] = key
            self.parked += 1
            if position >= partition.next:
                partition.next = position + 1
            self.lines.setdefault(key, deque()).append((number, position))
        self.in_flight += lease.count
        self.counts["delivered"] += lease.count
        if lease.count:
            self.member_in_flight[event.member] = self.member_in_flight.get(event.member, 0) + lease.count
        else:
            del self.leases[event.lease]

    def _prune_free(self) -> None:
        """Whoever delivers takes from ``free`` itself; where events are applied again nobody has."""
        free = self.free
        while free:
            number, position = free[0]
            partition = self.partitions.get(number)
            if partition is not None and position in partition.parked:
                return
            free.popleft()

    def _take_key(self, lease: Lease, number: int, position: int, key: str | None) -> None:
        if key is not None:
            if lease.keys is None:
                lease.keys = {}
            lease.keys[number, position] = key
            self.lines.setdefault(key, deque())

    def _acked(self, event: Acked) -> None:
        total = 0
        for number, first, count, _epoch in event.runs:
            leased = self.partitions[number].leased
            held, same = leased[first], 0
            for position in range(first, first + count):
                lease = leased.pop(position)
                if lease is not held:
                    self._let_go(held, same)
                    held, same = lease, 0
                same += 1
                if lease.keys is not None:
                    self._free_key(lease.keys.pop((number, position), None))
            self._let_go(held, same)
            total += count
        self.counts["acked"] += total

    def _nacked(self, event: Nacked) -> None:
        for number, position, _epoch, delay_ms in event.entries:
            partition = self.partitions[number]
            lease = partition.leased.pop(position)
            self._let_go(lease)
            past = lease.past.pop((number, position), None) if lease.past else None
            partition.waiting[position] = Waiting(
                position,
                (past.deliveries if past else 0) + 1,
                (past.failures if past else 0) + event.failed,
                event.time_ms + delay_ms,
                delay_ms,
                event.reason,
                lease.keys.pop((number, position), None) if lease.keys else None,
                past.copy if past else None,
            )
            self.counts["failed"] += event.failed

    def _let_go(self, lease: Lease, count: int = 1) -> None:
        lease.count -= count
        self.in_flight -= count
        left = self.member_in_flight[lease.member] - count
        if left:
            self.member_in_flight[lease.member] = left
        else:
            del self.member_in_flight[lease.member]
        if not lease.count:
            parts = self.leases[lease.epoch]
            parts.remove(lease)
            if not parts:
                del self.leases[lease.epoch]

    def _free_key(self, key: str | None) -> None:
        """The record under way with this key is settled: the next may be."""
        if key is None:
            return
        line = self.lines[key]
        while line:
            number, position = line.popleft()
            partition = self.partitions.get(number)
            if partition is not None and position in partition.parked:
                self.free.append((number, position))
                return
        del self.lines[key]

    def _dead(self, event: Dead) -> None:
        partition = self.partitions[event.number]
        waiting = partition.waiting.pop(event.position)
        at = (event.number, event.position)
        self.dead.pop(at, None)
        self.dead[at] = DeadLetter(
            event.number,
            partition.path,
            event.position,
            event.time_ms,
            waiting.deliveries,
            event.reason,
            event.copy or waiting.copy,
            event.since,
        )
        while len(self.dead) > DEAD_MAX:
            del self.dead[next(iter(self.dead))]
        self.counts["dead"] += 1
        self._free_key(waiting.key)

    def _located(self, event: Located) -> None:
        at = (event.number, event.position)
        letter = self.dead.get(at)
        if letter is not None:
            self.dead[at] = msgspec.structs.replace(letter, copy=event.copy or letter.copy, since=None)

    def _extended(self, event: Extended) -> None:
        """A lease of which only a part is extended becomes two."""
        parts = self.leases[event.lease]
        total = sum(count for _, _, count in event.runs)
        if len(parts) == 1 and parts[0].count == total:
            parts[0].seconds = event.seconds
            return
        new = Lease(event.lease, parts[0].member, event.seconds)
        for number, first, count in event.runs:
            leased = self.partitions[number].leased
            for position in range(first, first + count):
                old = leased[position]
                leased[position] = new
                old.count -= 1
                new.count += 1
                at = (number, position)
                if old.past and at in old.past:
                    new.past = new.past or {}
                    new.past[at] = old.past.pop(at)
                if old.keys and at in old.keys:
                    new.keys = new.keys or {}
                    new.keys[at] = old.keys.pop(at)
        self.leases[event.lease] = [*(part for part in parts if part.count), new]

    def _passed(self, event: Passed) -> None:
        partition = self.partitions[event.number]
        if event.upto > partition.next:
            partition.next = event.upto
        for position in event.positions:
            waiting = partition.waiting.pop(position, None)
            key = waiting.key if waiting else None
            if waiting is None:
                key = partition.parked.pop(position, None)
                self.parked -= key is not None
            self._free_key(key)
        self.counts["expired" if event.reason == "expired" else "missed"] += event.count

    def _sought(self, event: Sought) -> None:
        partition = self.partitions[event.number]
        self._empty(partition)
        self._forget_dead(event.number, event.position)
        partition.next = partition.floor = event.position

    def _shortened(self, event: Shortened) -> None:
        partition = self.partitions[event.number]
        self._empty(partition, event.position)
        self._forget_dead(event.number, event.position)
        partition.next = min(partition.next, event.position)
        partition.floor = min(partition.floor, event.position)

    def _forget_dead(self, number: int, since: int = 0) -> None:
        """Those from a position on are to be delivered anew, or are not there any more."""
        for at in [at for at in self.dead if at[0] == number and at[1] >= since]:
            del self.dead[at]

    def _empty(self, partition: Partition, since: int = 0) -> None:
        """Nothing is outstanding in it from a position on."""
        number = partition.number
        keys: list[str | None] = []
        for position in [position for position in partition.waiting if position >= since]:
            keys.append(partition.waiting.pop(position).key)
        for position in [position for position in partition.leased if position >= since]:
            lease = partition.leased.pop(position)
            if lease.past:
                lease.past.pop((number, position), None)
            if lease.keys:
                keys.append(lease.keys.pop((number, position), None))
            self._let_go(lease)
        free = {at for at in self.free if at[0] == number and at[1] >= since}
        keys += [partition.parked[position] for _, position in free if position in partition.parked]
        if free:
            self.free = deque(at for at in self.free if at not in free)
        lines: set[str] = set()
        for position in [position for position in partition.parked if position >= since]:
            lines.add(partition.parked.pop(position))
            self.parked -= 1
        for line in lines:  # they may come again, in another order
            self.lines[line] = deque(at for at in self.lines[line] if at[0] != number or at[1] < since)
        for key in keys:
            self._free_key(key)

    def _dropped(self, event: Dropped) -> None:
        partition = self.partitions[event.number]
        self._empty(partition)
        del self.partitions[event.number]
        if self.by_path.get(partition.path) is partition:
            del self.by_path[partition.path]
        self._forget_dead(event.number)

    def _specified(self, event: Specified) -> None:
        self.spec = event.spec

    def _redriven(self, event: Redriven) -> None:
        for number, position in event.entries:
            letter = self.dead.pop((number, position))
            partition = self.partitions[number]
            partition.waiting[position] = Waiting(position, 0, 0, event.time_ms, 0, "redriven", None, letter.copy)
            partition.floor = min(partition.floor, position)

    # -- looking

    def held(self) -> Iterator[tuple[Lease, int, int]]:
        """Every record that is leased: its lease, partition and position."""
        for partition in self.partitions.values():
            for position, lease in partition.leased.items():
                yield lease, partition.number, position

    # -- snapshots

    def snapshot(self, position: int = 0) -> Snapshot:
        """All of it, as of a position in the stream of events; what follows changes nothing of what is returned."""
        leases: dict[int, SnapshotLease] = {}
        for lease, number, at in self.held():
            kept = leases.get(id(lease))
            if kept is None:
                kept = leases[id(lease)] = SnapshotLease(lease.epoch, lease.member, lease.seconds, [])
            past = lease.past.get((number, at)) if lease.past else None
            key = lease.keys.get((number, at)) if lease.keys else None
            before = (past.deliveries, past.failures) if past else (0, 0)
            kept.held.append((number, at, *before, key, past.copy if past else None))
        lines = [at for line in self.lines.values() for at in line]
        order = {at: index for index, at in enumerate(dict.fromkeys([*self.free, *lines]))}
        partitions = [
            SnapshotPartition(
                p.number,
                p.path,
                p.epoch,
                p.next,
                list(p.waiting.values()),
                sorted((order[p.number, position], position, key) for position, key in p.parked.items()),
            )
            for p in self.partitions.values()
        ]
        return Snapshot(
            position,
            self.spec,
            self.leases_next,
            self.numbers_next,
            dict(self.counts),
            partitions,
            list(leases.values()),
            list(self.dead.values()),
        )

    @classmethod
    def restore(cls, snapshot: Snapshot) -> GroupState:
        """The group that a snapshot was made of."""
        state = cls(snapshot.spec)
        state.counts.update(snapshot.counts)
        for saved in snapshot.partitions:
            state._opened(Opened(saved.number, saved.path, saved.epoch, saved.next))
            partition = state.partitions[saved.number]
            for waiting in saved.waiting:
                partition.waiting[waiting.position] = waiting
                if waiting.key is not None:
                    state.lines.setdefault(waiting.key, deque())
        for held in snapshot.leases:
            lease = Lease(held.lease, held.member, held.seconds)
            state.leases.setdefault(held.lease, []).append(lease)
            for number, position, deliveries, failures, key, copy in held.held:
                state.partitions[number].leased[position] = lease
                lease.count += 1
                if deliveries or copy:
                    lease.past = lease.past or {}
                    lease.past[number, position] = Waiting(position, deliveries, failures, 0, 0, "", key, copy)
                state._take_key(lease, number, position, key)
            state.in_flight += lease.count
            state.member_in_flight[held.member] = state.member_in_flight.get(held.member, 0) + lease.count
        parked = [(place, each.number, at, line) for each in snapshot.partitions for place, at, line in each.parked]
        for _, number, at, line in sorted(parked):
            state.partitions[number].parked[at] = line
            state.parked += 1
            if line in state.lines:
                state.lines[line].append((number, at))
            else:
                state.lines[line] = deque()
                state.free.append((number, at))
        for partition in state.partitions.values():
            outstanding = [*partition.leased, *partition.waiting, *partition.parked]
            partition.floor = min(outstanding, default=partition.next)
        for letter in snapshot.dead:
            state.dead[letter.number, letter.position] = letter
        state.leases_next, state.numbers_next = snapshot.leases_next, snapshot.numbers_next
        return state


_APPLY: dict[type, Callable[[GroupState, Any], None]] = {
    Opened: GroupState._opened,
    Leased: GroupState._leased,
    Acked: GroupState._acked,
    Nacked: GroupState._nacked,
    Dead: GroupState._dead,
    Extended: GroupState._extended,
    Passed: GroupState._passed,
    Sought: GroupState._sought,
    Shortened: GroupState._shortened,
    Dropped: GroupState._dropped,
    Specified: GroupState._specified,
    Redriven: GroupState._redriven,
    Located: GroupState._located,
}


class MemberLink(Protocol):
    """The hub's way to a member."""

    def deliver(self, lease: int, seconds: float, parts: list[Any]) -> None:
        """Take records: they are on record as leased, for so long."""
        ...

    def ended(self, error: Exception) -> None:
        """There will be no more."""
        ...


class Member:
    """One that takes records: a channel, a request that waits, a webhook. Several may share a ``name``: what one of them
    was given any of them may settle."""

    __slots__ = ("credit", "link", "name", "once", "taken")

    def __init__(self, name: str, link: MemberLink, credit: int, *, once: bool = False) -> None:
        self.name = name
        self.link: MemberLink | None = link
        """None: it has left."""
        self.credit = credit
        """Records that it still takes."""
        self.once = once
        """Whether it takes one delivery only, as a request does."""
        self.taken = False
        """A delivery is on its way to one that takes no other."""

    def __repr__(self) -> str:
        return f"<Member {self.name} credit {self.credit}{'' if self.link else ' left'}>"
