"""What is known of one record in one group: what its receipt says, in JSON.

It is told from what is true of the record now, and from what the events of the group that are kept say of it: when it was
delivered, to whom, and how that ended.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from wayside.core.errors import BadRequest, Gone
from wayside.core.records import Offset, require_public
from wayside.groups.events import (
    Acked,
    Dead,
    Dropped,
    Event,
    Extended,
    Leased,
    Located,
    Nacked,
    Opened,
    Passed,
    Redriven,
    Shortened,
    Sought,
)
from wayside.groups.group import Group
from wayside.groups.reading import identity_of
from wayside.groups.state import GroupState, Partition
from wayside.streams.contract import StreamView

__all__ = ["PastDelivery", "Tracing", "receipt_of"]


async def receipt_of(group: Group, path: str, offset: str) -> dict[str, Any]:
    """The receipt of the record before an offset. Raises :class:`BadRequest` where none can be before it, and what else
    stands in the way of reading."""
    require_public(path)
    receipt: dict[str, Any] = {"group": group.name, "stream": path, "offset": offset}
    unknown = {**receipt, "state": "unknown", "attempts": None, "deliveries": [], "complete": False}
    position = Offset.parse(offset).position - 1
    if position < 0:
        raise BadRequest("No record is before that offset.", code="offset-malformed")
    stream = group.reading.at(path)
    if stream is None:
        return {**unknown, "detail": "There is no such stream now."}
    if not group.sources.matches(path):
        return {**unknown, "detail": "The group does not read this stream."}
    appended_ms: int | None = None
    try:
        if stream.resolve(Offset.parse(offset)) != position + 1 or position >= stream.tail:
            raise Gone("")
        if position >= stream.start:
            appended_ms = (await stream.read(position, 1))[0].time_ms
    except Gone as gone:
        if gone.code != "offset-expired":
            return {**unknown, "detail": "The stream has, or had, no such record."}
    return {**receipt, "appended_ms": appended_ms, **await _told(group, stream, position)}


async def _told(group: Group, stream: StreamView, position: int) -> dict[str, Any]:
    """What becomes of a record, once the end of its last delivery is on disk."""
    while True:
        await _kept(group)
        partition = _partition(group, stream)
        tracing = Tracing(stream.path, identity_of(stream), position, partition.number if partition else None)
        async for event in group.journal.history():
            tracing.take(event)
        found = _traced(group.journal.state, _partition(group, stream), position, tracing)  # after all these events
        if not (found["state"] == "settled" and tracing.deliveries and not tracing.deliveries[-1].ended):
            return found
        await asyncio.sleep(0)  # its end is on its way to the disk


def _partition(group: Group, stream: StreamView) -> Partition | None:
    """What the group knows of a stream, as long as it reads that one at its path."""
    partition = group.journal.state.by_path.get(stream.path)
    return partition if partition is not None and partition.epoch == identity_of(stream) else None


async def _kept(group: Group) -> None:
    """All that the group knows is on disk."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    group.journal.then(lambda _failed: None if future.done() else future.set_result(None))
    await future


def _traced(state: GroupState, partition: Partition | None, position: int, tracing: Tracing) -> dict[str, Any]:
    """What a receipt says: from what is true now, and from the events that are kept."""
    deliveries = [msgspec.to_builtins(each) for each in tracing.deliveries]
    found: dict[str, Any] = {"attempts": len(deliveries), "deliveries": deliveries, "complete": tracing.whole}
    letter = state.dead.get((partition.number, position)) if partition is not None else None
    if partition is None or position >= partition.next:
        where, found["complete"] = "pending", True
    elif (lease := partition.leased.get(position)) is not None:
        where = "in-flight"
        past = lease.past.get((partition.number, position)) if lease.past else None
        found["attempts"] = max(len(deliveries), (past.deliveries if past else 0) + 1)
        found |= {"member": lease.member, "lease": lease.epoch}
    elif (waiting := partition.waiting.get(position)) is not None:
        where = "waiting"
        found["attempts"] = max(len(deliveries), waiting.deliveries)
        found |= {"failures": waiting.failures, "reason": waiting.reason}
    elif position in partition.parked:
        where, found["complete"] = "parked", True
    elif (burial := tracing.dead or letter) is not None:
        where = "dead"
        found["reason"] = burial.reason
        if letter is not None:
            found["attempts"] = max(len(deliveries), letter.deliveries)
        copy = (letter.copy if letter is not None else None) or tracing.copy
        if copy is not None:
            found["dead_letter"] = {"stream": copy[0], "offset": copy[1]}
    elif tracing.deliveries and tracing.deliveries[-1].ended == "acked":
        where = "acked"
    elif tracing.passed:
        where = "expired" if tracing.passed == "expired" else "missed"
    elif tracing.skipped:
        where, found["detail"] = "skipped", "The group was told to read from after it."
    else:
        where, found["attempts"] = "settled", None
        found["detail"] = "It was acked, or is dead, or was passed over; the group's events do not reach back to it."
    if not found["complete"] and where != "settled":
        found["detail"] = "There were earlier events of it than are kept."
    return {"state": where, **found}


class PastDelivery(msgspec.Struct, omit_defaults=True):
    """One delivery of a record. Times are milliseconds since 1970."""

    lease: int
    member: str
    time_ms: int
    ended: str = ""
    """``acked``, ``failed``, ``released``, ``forgotten`` (the group was told to read from elsewhere), or empty: it has not."""
    ended_ms: int = 0
    reason: str = ""
    again_ms: int = 0
    """When the record is delivered again, at the earliest."""


class Tracing:
    """Follows one record through the events of its group."""

    def __init__(self, path: str, epoch: int, position: int, number: int | None) -> None:
        self._path = path
        self._epoch = epoch
        self._position = position
        self._number = number
        """Of the partition, where that is known."""
        self.deliveries: list[PastDelivery] = []
        self.whole = False
        """Whether the events reach back to before its first delivery."""
        self.dead: Dead | None = None
        self.copy: tuple[str, str] | None = None
        """Stream of its dead letter, and the offset after that."""
        self.passed = ""
        self.skipped = False
        """Whether the group was told to read from after it."""

    def take(self, event: Event) -> None:
        """The next event."""
        at, position = self._number, self._position
        if isinstance(event, Opened):
            if event.path == self._path and event.epoch == self._epoch:
                self._number = event.number
                self.whole = True
                self.skipped = event.position > position
            return
        if isinstance(event, Leased):
            if any(n == at and first <= position < first + count for n, first, count in event.fresh):
                self.whole = True
            elif (at, position) not in event.again:
                return
            self.deliveries.append(PastDelivery(event.lease, event.member, event.time_ms))
        elif isinstance(event, Acked):
            if any(n == at and first <= position < first + count for n, first, count, _ in event.runs):
                self._end("acked", event.time_ms)
        elif isinstance(event, Nacked):
            for number, where, _, delay_ms in event.entries:
                if number == at and where == position:
                    ended = "failed" if event.failed else "released"
                    self._end(ended, event.time_ms, event.reason, event.time_ms + max(0, delay_ms))
        elif isinstance(event, Dead):
            if event.number == at and event.position == position:
                self.dead, self.copy = event, event.copy
        elif isinstance(event, Located):
            if event.number == at and event.position == position:
                self.copy = event.copy
        elif isinstance(event, Redriven):
            if (at, position) in event.entries:
                self.dead = None
        elif isinstance(event, Passed):
            run = event.upto - event.count if event.upto else position + 1
            if event.number == at and (run <= position < event.upto or position in event.positions):
                self.passed = event.reason
        elif isinstance(event, Sought):
            if event.number == at:
                self._end("forgotten", event.time_ms)
                self.skipped = event.position > position
                if not self.skipped:
                    self.dead, self.passed = None, ""
        elif isinstance(event, Shortened):
            if event.number == at and event.position <= position:  # what was there before was another record
                self.deliveries, self.dead, self.passed, self.skipped, self.whole = [], None, "", False, True
        elif isinstance(event, Dropped):
            if event.number == at:
                self._end("forgotten", 0)
        elif isinstance(event, Extended):
            return

    def _end(self, ended: str, time_ms: int, reason: str = "", again_ms: int = 0) -> None:
        if self.deliveries and not self.deliveries[-1].ended:
            last = self.deliveries[-1]
            last.ended, last.ended_ms, last.reason = ended, time_ms, reason
            last.again_ms = again_ms if ended in ("failed", "released") else 0
