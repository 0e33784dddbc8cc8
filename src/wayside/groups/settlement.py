"""What becomes of records that members have: done, not done, or still needed. Each by its lease, and only by that.

Members say it themselves; it is said in their place where a lease ends, or where a member leaves. When a record comes
back, and to whom, is left to others.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise

import msgspec

from wayside.core.callbacks import Done
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, Conflict, LeaseFenced
from wayside.core.records import Append, Appended, Durability, require_public, split_records
from wayside.groups.events import DOOMED, Acked, Event, Extended, Nacked, Waiting
from wayside.groups.journal import Journal
from wayside.groups.reading import Reading
from wayside.groups.schedule import Schedule
from wayside.groups.state import Lease, Partition
from wayside.link.frames import Ack, Nack, Publish, Refused, Settled, Settlement
from wayside.streams.contract import Log

__all__ = ["Settler"]

LEASE_S_MAX = 12 * 3600.0
"""The longest extension of a lease."""
SETTLED_MAX = 100_000
"""Records that one settlement names: as many as a group may have in flight."""


class Settler:
    """The taking side of one group. ``require_open`` raises what stands in the way of a change, ``requeue`` takes records that
    come back, and ``wake`` is called when there is room for others."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        journal: Journal,
        reading: Reading,
        schedule: Schedule,
        require_open: Callable[[], None],
        requeue: Callable[[int, Waiting], None],
        wake: Callable[[], None],
    ) -> None:
        self._log = log
        self._clock = clock
        self._journal = journal
        self._reading = reading
        self._schedule = schedule
        self._require_open = require_open
        self._requeue = requeue
        self._wake = wake
        self._random = random.Random()

    # -- in the place of members

    def release(self, lease: int) -> None:
        """A lease comes back without having been delivered."""
        held = [(n, at, each.epoch, 0) for each, n, at in self._journal.state.held() if each.epoch == lease]
        self._give_back(held, "its member left")

    def expire(self, leases: Sequence[Lease]) -> None:
        """Leases were not extended."""
        over = {id(lease): lease for lease in leases}
        entries: dict[str, list[tuple[int, int, int, int]]] = {}
        for lease, number, position in self._journal.state.held():
            if id(lease) in over:
                entry = (number, position, lease.epoch, self._backoff_ms(lease, number, position))
                entries.setdefault(lease.member, []).append(entry)
        for member, held in entries.items():
            self._give_back(held, f"the lease of {member} ended", failed=True)

    def leave(self, name: str) -> None:
        """Nobody has a member's name any more: what was leased to it is for others at once."""
        entries = [(n, at, lease.epoch, 0) for lease, n, at in self._journal.state.held() if lease.member == name]
        self._give_back(entries, "its member left")

    def recall(self, name: str, held: list[Ack]) -> None:
        """A member says what it has: what else is leased to its name never reached it."""
        runs: dict[tuple[int, int], list[Ack]] = {}
        for run in sorted(held, key=lambda run: run.first):
            runs.setdefault((run.number, run.lease), []).append(run)
        entries: list[tuple[int, int, int, int]] = []
        for lease, number, position in self._journal.state.held():
            if lease.member != name:
                continue
            found = runs.get((number, lease.epoch), [])
            at = bisect_right(found, position, key=lambda run: run.first) - 1
            if at < 0 or position >= found[at].first + found[at].count:
                entries.append((number, position, lease.epoch, 0))
        self._give_back(entries, "its connection was lost")

    def _give_back(self, entries: list[tuple[int, int, int, int]], reason: str, *, failed: bool = False) -> None:
        if not entries:
            return
        self._journal.note(Nacked(self._clock.wall_ms(), entries, failed, reason))
        self._requeue_all(entries)

    def _requeue_all(self, entries: Iterable[tuple[int, int, int, int]]) -> None:
        for number, position, _, _ in entries:
            self._requeue(number, self._journal.state.partitions[number].waiting[position])

    def _backoff_ms(self, lease: Lease, number: int, position: int) -> int:
        past = lease.past.get((number, position)) if lease.past else None
        spec = self._journal.state.spec
        longest = min(spec.backoff_s_max, spec.backoff_s * 2.0 ** min(past.failures if past else 0, 64))
        return round(self._random.uniform(0, longest) * 1000)

    # -- what members say

    def settle(self, settlement: Settlement, done: Done, member: str | None = None) -> None:
        """Take what a member says; ``done`` gets :class:`Settled` once it is on disk, or an exception. Of a member that
        names itself only its own leases are taken. Raises a :class:`Refusal` with nothing done."""
        self._require_open()
        named = sum(run.count for run in settlement.acks) + sum(run.count for run in settlement.extends)
        if named + len(settlement.nacks) > SETTLED_MAX:
            raise BadRequest(f"A settlement is of {SETTLED_MAX} records at most.", code="parameter-invalid")
        settled = Settled(refused=[])
        now_ms = self._clock.wall_ms()
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
            seconds = min(extend.seconds or self._journal.state.spec.lease_s, LEASE_S_MAX)
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
                self._journal.note(event)
            self._journal.then(partial(_answer, done, settled))
        self._after(runs, nacked, extended)

    def _own(
        self, number: int, first: int, count: int, epoch: int, member: str | None, settled: Settled
    ) -> list[tuple[int, int, int, int]]:
        """The runs of a run of records that are leased under this epoch; the others are refused."""
        partition = self._journal.state.partitions.get(number)
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
            lease = self._journal.state.partitions[nack.number].leased[nack.position]
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
        self._journal.transact(events, appends, partial(_published, done, settled))

    def _append_of(self, publish: Publish) -> Append:
        """Records as an append. Raises :class:`BadRequest` for what the stream cannot have, and where there is none."""
        config, records = self._log.find(publish.stream).config, publish.records
        if not records or not all(records) or len(records) > self._log.limits.append_records_max:
            raise BadRequest("Publish records that are not empty, and not too many.", code="empty-append")
        if config.is_json:
            body = b"[%b]" % b",".join(records)
            if len(found := split_records(config, body)) != len(records):
                raise BadRequest("A record is not one JSON value.", code="json-malformed")
            records = found
        if self._log.durable and config.durability is not Durability.FSYNC:
            raise Conflict(
                f"{publish.stream} is {config.durability.value}: what is one transaction with an ack goes to streams with "
                "durability fsync.",
                code="durability-mismatch",
            )
        kind = publish.content_type or config.content_type
        return Append(b"", kind, records=records, meta=publish.metas)

    def _after(self, runs: list[tuple[int, int, int, int]], nacked: list[Nacked], extended: list[Extended]) -> None:
        """What follows from a settlement that is true now."""
        state = self._journal.state
        for event in nacked:
            self._requeue_all(event.entries)
        for number in {run[0] for run in runs}:
            partition = state.partitions[number]
            if not (partition.leased or partition.waiting or partition.parked):
                self._reading.hold(partition)
        for extension in extended:
            number, first, _ = extension.runs[0]
            self._schedule.watch(state.partitions[number].leased[first])
        self._wake()


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


def _published(done: Done, settled: Settled, result: list[Appended] | Exception) -> None:
    if isinstance(result, Exception):
        done(result)
        return
    settled.offsets += [str(appended.offset) for appended in result]
    done(settled)
