"""What a group delivers next, and to whom.

Grants follow credit: a member is given as many records as it takes, never more. A delivery is on record before it goes
out, so that what a crash repeats can be told from what it does not. Where the log says which records it is about to
commit, they are leased in that commit, and not after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from wayside.core.callbacks import guarded
from wayside.core.clock import Clock
from wayside.core.errors import Refusal
from wayside.core.policies import key_reader
from wayside.core.records import Batch, Meta
from wayside.groups.events import Leased, Passed, Waiting
from wayside.groups.journal import Journal
from wayside.groups.reading import Reading
from wayside.groups.schedule import Due, Schedule
from wayside.groups.state import Member, Partition
from wayside.link.frames import Part
from wayside.streams.contract import StreamView

__all__ = ["BY_KEY", "Dispatch"]


BY_KEY = "$key"
"""``order_by`` of records in the order of their own keys."""
PARKED_MAX = 10_000
"""Records that wait behind others with their key; with more, nothing new is read."""
GRANT_MAX = 1000
"""Records given to one member at one time."""
GRANT_BYTES_MAX = 4 * 1024 * 1024
"""The same, in bytes: no further record is added beyond. Members that claim by HTTP are given it as one document."""
ASKED_MAX = 64
"""Records whose turn it is and that the disk has been asked for: those behind them wait until some are there."""


class Dispatch:
    """The delivering side of one group. ``release`` is told the number of a lease whose member left before its records
    reached it."""

    def __init__(
        self, clock: Clock, journal: Journal, reading: Reading, schedule: Schedule, release: Callable[[int], None]
    ) -> None:
        self._clock = clock
        self._journal = journal
        self._reading = reading
        self._schedule = schedule
        self._release = release
        self.members: set[Member] = set()
        self.open = False
        """Whether it delivers: the group's state is known, and can be kept."""
        self._ready: dict[int, None] = {}
        """Partitions that have, or may have, more."""
        self._awake = False
        self._moved = False
        """Something was passed over: what is behind it may be there to deliver."""
        self._key_of: Callable[[bytes], str | bytes | None] | None = None
        self._key_field = ""
        self._bytes_left = 0
        """Of the delivery that is being made."""
        self._promises: dict[int, tuple[StreamView, Callable[[], None]]] = {}
        """Streams of which it hears what is about to be committed, by partition, and how that is ended."""

    def __repr__(self) -> str:
        what = "awake" if self._awake else "open" if self.open else "closed"
        return f"<Dispatch {what} {len(self.members)} members, {len(self._ready)} partitions>"

    @property
    def idle(self) -> bool:
        """Whether it has looked at all that it was told of."""
        return not self._awake

    def begin(self) -> None:
        """The state is as the disk has it: deliver from any of its partitions."""
        self._set_order()
        self._ready = dict.fromkeys(self._journal.state.partitions)
        self.open = True

    def stop(self) -> None:
        """Deliver nothing more."""
        self.open = False
        self.neglect()

    def _set_order(self) -> None:
        field = self._journal.state.spec.order_by
        if field != self._key_field:
            self._key_field = field
            self._key_of = key_reader(field) if field and field != BY_KEY else None

    # -- partitions

    def offer(self, partition: Partition, stream: StreamView) -> None:
        """A partition is read, and its stream may have more."""
        self._attend(partition, stream)
        if stream.tail > partition.next:
            self._ready[partition.number] = None
            self.wake()

    def retry(self, number: int) -> None:
        """A partition may have more, the next time that it is looked at."""
        self._ready[number] = None

    def forget(self, number: int) -> None:
        """A partition is read no longer."""
        self._neglect(number)
        self._ready.pop(number, None)

    # -- delivering

    def wake(self) -> None:
        """There may be something to deliver: look at the end of this turn of the loop."""
        if not self._awake and self.open:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._awake = False
        self._set_order()
        while self.open and not self._journal.state.spec.paused and (member := self._taker()) is not None:
            if not self._grant(member):
                break

    def _room(self, member: Member) -> int:
        if member.link is None or member.taken:
            return 0
        state = self._journal.state
        room = min(member.credit, state.spec.in_flight_max - state.in_flight)
        if state.spec.member_in_flight_max:
            room = min(room, state.spec.member_in_flight_max - state.member_in_flight.get(member.name, 0))
        return room

    def _taker(self) -> Member | None:
        """The member with the most room."""
        best, most = None, 0
        for member in self.members:
            room = self._room(member)
            if room > most:
                best, most = member, room
        return best

    def _grant(self, member: Member) -> bool:
        """Give a member what it has room for; False where there is nothing."""
        self._moved = False
        self._bytes_left = GRANT_BYTES_MAX
        share = min(self._room(member), GRANT_MAX)
        if len(self.members) > 1:  # the others are to have a part of it
            takers = sum(self._room(other) > 0 for other in self.members)
            share = min(share, max(1, -(-self._backlog(share * takers) // takers)))
        state = self._journal.state
        event = Leased(state.leases_next, member.name, self._clock.wall_ms(), state.spec.lease_s)
        parts: list[Part] = []
        left = self._take_again(event, parts, share)
        if not self._key_field and all(key is None for key in event.keys):
            event.keys = []
        if left:
            self._take_fresh(event, parts, left)
        if not parts:
            if event.parked:
                self._journal.note(event)
                self._hold_parked(event)
            return self._moved or bool(event.parked)
        self._give(member, event, parts)
        return True

    def _give(self, member: Member, event: Leased, parts: list[Part]) -> None:
        """Lease records to a member; it has them when that is on disk."""
        state = self._journal.state
        member.credit -= sum(len(part.records) for part in parts)
        member.taken = member.once
        event.time_ms = self._clock.wall_ms()  # not before what said that a record is due
        self._journal.note(event, partial(self._granted, member, event, parts))
        self._schedule.leases.renew(state.leases[event.lease][0])
        for number in {part.number for part in parts}:
            self._reading.hold(state.partitions[number])
        self._hold_parked(event)

    def _hold_parked(self, event: Leased) -> None:
        for number, _, _ in event.parked:
            self._reading.hold(self._journal.state.partitions[number])

    def _backlog(self, enough: int) -> int:
        """How much there is to deliver, about, as far as that matters: a difference of positions, which may have gaps."""
        state = self._journal.state
        found = len(state.free) + len(self._schedule.records)
        for number in self._ready:
            if found >= enough:
                break
            partition = state.partitions[number]
            stream = self._reading.find(partition)
            if stream is not None:
                found += max(0, stream.tail - partition.next)
        return found

    def _granted(self, member: Member, event: Leased, parts: list[Part], failed: Exception | None) -> None:
        """The lease is on disk, or will never be."""
        if failed is not None:
            member.credit += sum(len(part.records) for part in parts)
            member.taken = False
        elif member.link is None:
            self._release(event.lease)
        else:
            guarded(partial(member.link.deliver, event.lease, event.seconds, parts))

    # -- what is next

    def _take_again(self, event: Leased, parts: list[Part], share: int) -> int:
        """Records whose turn has come, and that were delivered or put back before."""
        state = self._journal.state
        later: list[tuple[int, int]] = []
        while share and self._bytes_left > 0 and state.free and len(later) < ASKED_MAX:
            number, position = state.free.popleft()
            partition = state.partitions.get(number)
            key = partition.parked.get(position) if partition is not None else None
            if partition is None or key is None:
                continue
            taken = self._take_single(event, parts, partition, position, None, key)
            if taken is None:
                later.append((number, position))
            share -= taken is True
        state.free.extendleft(reversed(later))
        schedule = self._schedule
        if not schedule.records:
            return share
        asked: list[Due] = []
        while share and self._bytes_left > 0 and len(asked) < ASKED_MAX and (due := schedule.take()) is not None:
            _, number, position, _, waiting = due
            partition = state.partitions.get(number)
            if partition is None or partition.waiting.get(position) is not waiting:
                continue
            taken = self._take_single(event, parts, partition, position, waiting, waiting.key)
            if taken is None:
                asked.append(due)
            share -= taken is True
        for due in asked:
            schedule.put(due)
        schedule.wait()
        return share

    def _take_single(
        self,
        event: Leased,
        parts: list[Part],
        partition: Partition,
        position: int,
        waiting: Waiting | None,
        key: str | None,
    ) -> bool | None:
        """Take one record; False where it is not there any more, None where the disk has been asked for it."""
        single = self._reading.single(partition, position, waiting.copy if waiting else None)
        if single is True:
            return None
        if isinstance(single, bool):
            stream = self._reading.find(partition)
            reason = "expired" if stream is not None and position >= stream.start else "retention"
            self._journal.note(Passed(self._clock.wall_ms(), partition.number, 0, [position], 1, reason))
            self._reading.hold(partition)
            self._moved = True  # the next with its key may be there to deliver
            return False
        stream = self._reading.find(partition)
        content_type = stream.config.content_type if stream is not None else "application/octet-stream"
        epoch = stream.offset(position + 1).epoch if stream is not None else partition.epoch
        attempt = waiting.deliveries + 1 if waiting else 1
        metas = {0: single.meta} if single.meta else None
        part = Part(
            partition.number,
            partition.path,
            content_type,
            epoch,
            position,
            single.time_ms,
            [single.data],
            attempt,
            metas,
        )
        parts.append(part)
        self._bytes_left -= len(single.data)
        event.again.append((partition.number, position))
        event.keys.append(key)
        return True

    def _take_fresh(self, event: Leased, parts: list[Part], share: int) -> None:
        """Records that were never delivered, from one partition after the other."""
        state = self._journal.state
        taking = {key for key in event.keys if key is not None}
        for number in list(self._ready):
            if not share or self._bytes_left <= 0 or state.parked + len(event.parked) >= PARKED_MAX:
                return
            partition = state.partitions[number]
            stream = self._reading.find(partition)
            del self._ready[number]
            if stream is None:
                continue
            try:
                if partition.next < stream.start:
                    self._pass(partition, stream.start, "retention")
                batches = self._reading.batches(partition, stream) if partition.next < stream.tail else []
            except Refusal:
                continue
            if batches is None:
                self._ready[number] = None  # once the disk has answered
                continue
            if not batches:
                continue
            if batches[0].lapsed:
                self._pass(partition, batches[0].position, "expired")
            taken, end = self._take_batches(event, parts, partition, stream, batches, share, taking)
            share -= taken
            self._reading.prune(number, end)
            if end < stream.tail:
                self._ready[number] = None  # behind the others

    def _pass(self, partition: Partition, upto: int, reason: str) -> None:
        count = upto - partition.next
        self._moved = True
        self._journal.note(Passed(self._clock.wall_ms(), partition.number, upto, [], count, reason))

    def _take_batches(
        self,
        event: Leased,
        parts: list[Part],
        partition: Partition,
        stream: StreamView,
        batches: list[Batch],
        share: int,
        taking: set[str],
    ) -> tuple[int, int]:
        """Up to ``share`` records, as far as none before them have expired; returns how many, and the position after the last
        that was taken or parked. Gaps between batches are no loss."""
        taken = 0
        at = batches[0].position
        whole = True
        for index, batch in enumerate(batches):
            if taken >= share or not whole or self._bytes_left <= 0 or (batch.lapsed and index):
                break
            if not batch.records:  # those at the end have expired
                continue
            if batch.count > share - taken:
                batch = batch.until(batch.position + share - taken)
                whole = False
            pieces = self._keyed(event, partition, batch, taking) if self._key_field else [batch]
            if event.keys and not self._key_field:  # others in this lease have keys from when there was an order
                event.keys += [None] * batch.count
            for piece in pieces:
                for run in _lives(stream, piece):
                    epoch = stream.offset(run.end).epoch
                    number, kind = partition.number, stream.config.content_type
                    parts.append(
                        Part(number, partition.path, kind, epoch, run.position, run.time_ms, run.records, 1, run.meta)
                    )
                    event.fresh.append((number, run.position, run.count))
                    taken += run.count
                    self._bytes_left -= run.size
            at = batch.end
        return taken, at

    def _keyed(self, event: Leased, partition: Partition, batch: Batch, taking: set[str]) -> list[Batch]:
        """The parts of a batch that nothing with their key is before; the rest is parked."""
        lines = self._journal.state.lines
        pieces: list[Batch] = []
        start = batch.position
        for index, record in enumerate(batch.records):
            meta = batch.meta.get(index) if batch.meta else None
            key = self._key(record, meta)
            position = batch.position + index
            if key is None or (key not in lines and key not in taking):
                if key is not None:
                    taking.add(key)
                event.keys.append(key)
                continue
            event.parked.append((partition.number, position, key))
            if position > start:
                pieces.append(batch.until(position).since(start))
            start = position + 1
        if start < batch.end:
            pieces.append(batch.since(start))
        return pieces

    def _key(self, record: bytes, meta: Meta | None) -> str | None:
        """The key that a record is in order by; its own where it has no such field."""
        found = self._key_of(record) if self._key_of is not None else None
        if found is not None:
            return found if isinstance(found, str) else found.decode()
        return meta.key or None if meta is not None else None

    # -- what is about to be committed

    def _attend(self, partition: Partition, stream: StreamView) -> None:
        """Hear of what is about to be committed to a stream."""
        known = self._promises.get(partition.number)
        if known is None or known[0] is not stream:
            self._neglect(partition.number)
            release = stream.promise(partial(self._promised, partition, stream))
            self._promises[partition.number] = (stream, release)

    def _neglect(self, number: int) -> None:
        """Hear of it no longer."""
        if (known := self._promises.pop(number, None)) is not None:
            known[1]()

    def neglect(self) -> None:
        """Hear no longer of what is about to be committed."""
        for number in list(self._promises):
            self._neglect(number)

    @property
    def _behind(self) -> bool:
        """Whether there is, or may be, something to deliver already: that comes first."""
        schedule = self._schedule
        return bool(self._ready or self._journal.state.free or (schedule.records and schedule.due))

    def _promised(self, partition: Partition, stream: StreamView, batch: Batch) -> None:
        """Records are about to be committed, right after all that was delivered: lease them to those who wait, in their
        transaction."""
        state = self._journal.state
        if (
            not self.open
            or state.spec.paused
            or partition.next != batch.position
            or state.partitions.get(partition.number) is not partition
            or self._behind
            or not self._journal.takes
            or (batch.meta is not None and any(meta.expires_ms for meta in batch.meta.values()))
        ):
            return
        self._set_order()
        while batch.records and state.parked < PARKED_MAX and (member := self._taker()) is not None:
            self._bytes_left = GRANT_BYTES_MAX
            takers = sum(self._room(other) > 0 for other in self.members)
            share = min(self._room(member), GRANT_MAX, -(-batch.count // takers))
            event = Leased(state.leases_next, member.name, self._clock.wall_ms(), state.spec.lease_s)
            parts: list[Part] = []
            _taken, end = self._take_batches(event, parts, partition, stream, [batch], share, set())
            if parts:
                self._give(member, event, parts)
            elif event.parked:
                self._journal.note(event)
                self._hold_parked(event)
            batch = batch.since(end) if end < batch.end else Batch(end, batch.time_ms, [])
        self._journal.flush()


def _lives(stream: StreamView, batch: Batch) -> list[Batch]:
    """A batch, cut where a crash lies between its records: offsets after it have another epoch."""
    if stream.offset(batch.position + 1).epoch == stream.offset(batch.end).epoch:
        return [batch]
    return [batch.since(at).until(at + 1) for at in range(batch.position, batch.end)]
