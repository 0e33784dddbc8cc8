"""What members say of records that they have: done, not done, or still needed. Each by its lease, and only by that."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

import msgspec

from wayside.core.callbacks import Done
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, Conflict, LeaseFenced
from wayside.core.records import Append, Durability, require_public, split_records
from wayside.core.schedule import Timers
from wayside.groups.dispatch import Promising
from wayside.groups.events import DOOMED, Acked, Event, Extended, GroupSpec, Nacked
from wayside.groups.state import Lease, Partition
from wayside.link.frames import Nack, Publish, Refused, Settled, Settlement
from wayside.streams.contract import Log

__all__ = ["Settling"]

LEASE_S_MAX = 12 * 3600.0
"""The longest extension of a lease."""
SETTLED_MAX = 100_000
"""Records that one settlement names: as many as a group may have in flight."""


class Settling(Promising):
    """The taking side of one group."""

    def __init__(self, name: str, log: Log, clock: Clock, timers: Timers) -> None:
        super().__init__(name, log, clock, timers)
        self._random = random.Random()

    @property
    def spec(self) -> GroupSpec:
        return self.journal.state.spec

    def require_open(self) -> None:
        """Raise what stands in the way of a change."""
        raise NotImplementedError

    def _give_back(self, entries: list[tuple[int, int, int, int]], reason: str, *, failed: bool = False) -> None:
        if not entries:
            return
        self.journal.note(Nacked(self.clock.wall_ms(), entries, failed, reason))
        self._requeue(entries)

    def _requeue(self, entries: Iterable[tuple[int, int, int, int]]) -> None:
        for number, position, _, _ in entries:
            partition = self.journal.state.partitions[number]
            self.enqueue(number, partition.waiting[position])

    def release(self, lease: int, name: str) -> None:
        """A lease comes back without having been delivered."""
        held = [(n, at, each.epoch, 0) for each, n, at in self.journal.state.held() if each.epoch == lease]
        self._give_back(held, "its member left")

    def expire(self, leases: Sequence[Lease]) -> None:
        """Leases were not extended."""
        over = {id(lease): lease for lease in leases}
        entries: dict[str, list[tuple[int, int, int, int]]] = {}
        for lease, number, position in self.journal.state.held():
            if id(lease) in over:
                entry = (number, position, lease.epoch, self._backoff_ms(lease, number, position))
                entries.setdefault(lease.member, []).append(entry)
        for member, held in entries.items():
            self._give_back(held, f"the lease of {member} ended", failed=True)

    def _backoff_ms(self, lease: Lease, number: int, position: int) -> int:
        past = lease.past.get((number, position)) if lease.past else None
        spec = self.spec
        longest = min(spec.backoff_s_max, spec.backoff_s * 2.0 ** min(past.failures if past else 0, 64))
        return round(self._random.uniform(0, longest) * 1000)

    # -- settling

    def settle(self, settlement: Settlement, done: Done, member: str | None = None) -> None:
        """Take what a member says; ``done`` gets :class:`Settled` once it is on disk, or an exception. Of a member that
        names itself only its own leases are taken. Raises a :class:`Refusal` with nothing done."""
        self.require_open()
        named = sum(run.count for run in settlement.acks) + sum(run.count for run in settlement.extends)
        if named + len(settlement.nacks) > SETTLED_MAX:
            raise BadRequest(f"A settlement is of {SETTLED_MAX} records at most.", code="parameter-invalid")
        settled = Settled(refused=[])
        now_ms = self.clock.wall_ms()
        events: list[Event] = []
        runs: list[tuple[int, int, int, int]] = []
        for ack in settlement.acks:
            runs += self._own(ack.number, ack.first, ack.count, ack.lease, member, settled)
        if runs:
            settled.acked = sum(run[2] for run in runs)
            events.append(Acked(now_ms, runs))
        nacked = self._nacks(settlement.nacks, member, settled, now_ms)
        events += nacked
        extended: list[Extended] = []
        for extend in settlement.extends:
            if not 0 <= extend.seconds < math.inf:  # NaN is neither
                raise BadRequest(
                    "A lease is extended by seconds from now, or by 0 for the group's own.", code="parameter-invalid"
                )
            seconds = min(extend.seconds or self.spec.lease_s, LEASE_S_MAX)
            own = self._own(extend.number, extend.first, extend.count, extend.lease, member, settled)
            if own:
                extended.append(Extended(extend.lease, seconds, [run[:3] for run in own]))
        settled.extended = sum(run[2] for event in extended for run in event.runs)
        events += extended
        _require_once(
            [run[:3] for run in runs]
            + [(number, position, 1) for event in nacked for number, position, _, _ in event.entries]
            + [run for event in extended for run in event.runs]
        )
        if settlement.publish:
            self._transact(settlement.publish, settled, events, done)
        else:
            for event in events:
                self.journal.note(event)
            self.journal.then(partial(_answer, done, settled))
        self._after(runs, nacked, extended)

    def _own(
        self, number: int, first: int, count: int, epoch: int, member: str | None, settled: Settled
    ) -> list[tuple[int, int, int, int]]:
        """The runs of a run of records that are leased under this epoch; the others are refused."""
        partition = self.journal.state.partitions.get(number)
        if count < 1 or first < 0:
            raise BadRequest("A run begins at a position, and has at least one record.", code="parameter-invalid")
        if partition is None:
            settled.refused.append(Refused(number, first, "lease-fenced"))
            return []
        runs: list[tuple[int, int, int, int]] = []
        leased = partition.leased
        start = first
        for position in range(first, first + count):
            lease = leased.get(position)
            if lease is None or lease.epoch != epoch or (member is not None and lease.member != member):
                settled.refused.append(Refused(number, position, _why(partition, position, lease)))
                if position > start:
                    runs.append((number, start, position - start, epoch))
                start = position + 1
        if first + count > start:
            runs.append((number, start, first + count - start, epoch))
        return runs

    def _nacks(self, nacks: Sequence[Nack], member: str | None, settled: Settled, now_ms: int) -> list[Nacked]:
        events: dict[tuple[bool, str], Nacked] = {}
        for nack in nacks:
            if nack.kind not in ("failed", "released", "rejected"):
                raise BadRequest("A nack is failed, released or rejected.", code="parameter-invalid")
            if nack.delay_s is not None and not 0 <= nack.delay_s <= 366 * 86_400:
                raise BadRequest("A delay is from 0 seconds to a year.", code="parameter-invalid")
            if not self._own(nack.number, nack.position, 1, nack.lease, member, settled):
                continue
            lease = self.journal.state.partitions[nack.number].leased[nack.position]
            failed = nack.kind != "released"
            if nack.kind == "rejected":
                delay_ms = DOOMED
            elif nack.delay_s is not None:
                delay_ms = round(nack.delay_s * 1000)
            else:
                delay_ms = self._backoff_ms(lease, nack.number, nack.position) if failed else 0
            reason = nack.reason[:1000] or ("it was handed back" if not failed else "its handler failed")
            event = events.setdefault((failed, reason), Nacked(now_ms, [], failed, reason))
            event.entries.append((nack.number, nack.position, nack.lease, delay_ms))
            settled.nacked += 1
        return list(events.values())

    def _transact(self, publish: list[Publish], settled: Settled, events: list[Event], done: Done) -> None:
        if settled.refused:
            raise LeaseFenced(
                "Some records are not held under these leases: nothing was published, nothing acked.",
                fields={"refused": [msgspec.to_builtins(each) for each in settled.refused[:100]]},
            )
        appends: list[tuple[str, Append]] = []
        for each in publish:
            require_public(each.stream)
            appends.append((each.stream, self._append_of(each)))
        self.journal.transact(events, appends, partial(_answer, done, settled), settled.offsets)

    def _append_of(self, publish: Publish) -> Append:
        """Records as an append. Raises :class:`BadRequest` for what the stream cannot have, and where there is none."""
        config, records = self.log.find(publish.stream).config, publish.records
        if not records or not all(records) or len(records) > self.log.limits.append_records_max:
            raise BadRequest("Publish records that are not empty, and not too many.", code="empty-append")
        if config.is_json:
            body = b"[%b]" % b",".join(records)
            if len(found := split_records(config, body)) != len(records):
                raise BadRequest("A record is not one JSON value.", code="json-malformed")
            records = found
        if self.log.durable and config.durability is not Durability.FSYNC:
            raise Conflict(
                f"{publish.stream} is {config.durability.value}: what is one transaction with an ack goes to streams with "
                "durability fsync.",
                code="durability-mismatch",
            )
        kind = publish.content_type or config.content_type
        return Append(b"", kind, records=records, meta=publish.metas)

    def _after(self, runs: list[tuple[int, int, int, int]], nacked: list[Nacked], extended: list[Extended]) -> None:
        """What follows from a settlement that is true now."""
        state = self.journal.state
        for event in nacked:
            self._requeue(event.entries)
        for number in {run[0] for run in runs}:
            partition = state.partitions[number]
            if not (partition.leased or partition.waiting or partition.parked):
                self.drop_hold(number)
        for extension in extended:
            number, first, _ = extension.runs[0]
            self.watch_lease(state.partitions[number].leased[first])
        self.wake()


def _why(partition: Partition, position: int, lease: Lease | None) -> str:
    if lease is not None or position in partition.waiting or position in partition.parked:
        return "lease-fenced"
    return "not-delivered" if position >= partition.next else "already-settled"


def _require_once(runs: list[tuple[int, int, int]]) -> None:
    """No record is settled twice by one settlement."""
    runs.sort()
    for (number, first, count), after in pairwise(runs):
        if after[0] == number and after[1] < first + count:
            raise BadRequest("One record is named twice: settle it once.", code="settled-twice")


def _answer(done: Done, settled: Settled, failed: Exception | None) -> None:
    done(failed if failed is not None else settled)
