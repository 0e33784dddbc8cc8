"""Records that are leased while they are still on their way to the disk.

A delivery is on disk before it goes out. Where a group has given out all that there is, and a member waits for more, the
lease of what comes next shares the transaction of the records themselves: they go out one commit sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wayside.contracts import Clock, Log, StreamView
from wayside.deliveries import Part
from wayside.dispatch import GRANT_BYTES_MAX, GRANT_MAX, PARKED_MAX, Dispatch
from wayside.model import Batch
from wayside.state.groupevents import Leased
from wayside.state.groups import Partition
from wayside.state.timers import Timers

__all__ = ["Promising"]


class Promising(Dispatch):
    """Dispatch that begins with the commit of a record, and not after it."""

    def __init__(self, name: str, log: Log, clock: Clock, timers: Timers) -> None:
        super().__init__(name, log, clock, timers)
        self._promises: dict[int, tuple[StreamView, Callable[[], None]]] = {}

    def attend(self, partition: Partition, stream: StreamView) -> None:
        """Hear of what is about to be committed to a stream."""
        known = self._promises.get(partition.number)
        if known is None or known[0] is not stream:
            self.neglect(partition.number)
            release = stream.promise(partial(self._promised, partition, stream))
            self._promises[partition.number] = (stream, release)

    def neglect(self, number: int) -> None:
        """Hear of it no longer."""
        if (known := self._promises.pop(number, None)) is not None:
            known[1]()

    def neglect_all(self) -> None:
        for number in list(self._promises):
            self.neglect(number)

    @property
    def _behind(self) -> bool:
        """Whether there is, or may be, something to deliver already: that comes first."""
        due = self._due and self._due[0][0] <= self.clock.monotonic()
        return bool(self.ready or due or self.journal.state.free)

    def _promised(self, partition: Partition, stream: StreamView, batch: Batch) -> None:
        """Records are about to be committed: lease them to those who wait, in their transaction."""
        state = self.journal.state
        if (
            not self.open
            or state.spec.paused
            or partition.next != batch.position
            or state.partitions.get(partition.number) is not partition
            or self._behind
            or not self.journal.takes
            or (batch.meta is not None and any(meta.expires_ms for meta in batch.meta.values()))
        ):
            return
        self._set_order()
        while batch.records and state.parked < PARKED_MAX and (member := self._taker()) is not None:
            self._bytes_left = GRANT_BYTES_MAX
            takers = sum(self._room(other) > 0 for other in self.members)
            share = min(self._room(member), GRANT_MAX, -(-batch.count // takers))
            event = Leased(state.leases_next, member.name, self.clock.wall_ms(), state.spec.lease_s)
            parts: list[Part] = []
            _taken, end = self._take_batches(event, parts, partition, stream, [batch], share, set())
            if parts:
                self._give(member, event, parts)
            elif event.parked:
                self.journal.note(event)
                self._hold_parked(event)
            batch = batch.since(end) if end < batch.end else Batch(end, batch.time_ms, [])
        self.journal.flush()
