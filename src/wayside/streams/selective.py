"""Followers with a delivery policy: they are given not everything, or not for ever.

A policy decides what becomes of the batches that a follower reads by itself; one that keeps up is in a cohort like any
other, and is given everything. What is skipped is never the newest record of its key, nor the last before the tail, so
that whoever resumes after any record that was sent gets the same again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from wayside.core.policies import Policy, key_reader
from wayside.core.records import BATCH_COST, Batch, Meta
from wayside.streams.followers import Follower

__all__ = ["selective"]

_Row = tuple[int, int, bytes, Meta | None]
"""Position, time, record and metadata: it does not keep the batch that it was read with in memory."""


def selective(policy: Policy, *arguments: Any, **options: Any) -> Follower:
    """A follower with a policy."""
    return _KINDS[policy.kind](policy, *arguments, **options)


class _Selective(Follower):
    """A follower that is counted under its policy."""

    __slots__ = ("policy",)

    def __init__(self, policy: Policy, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.policy = policy

    def start(self) -> None:
        policies = self.tally.policies
        policies[self.policy.kind] = policies.get(self.policy.kind, 0) + 1
        super().start()

    def stop(self) -> None:
        if not self.done:
            self.tally.policies[self.policy.kind] -= 1
        super().stop()


class Conflating(_Selective):
    """One that is given the newest record per key of what it has missed, in order of position.

    It reads to the tail first, and holds the newest of each key. When it holds as much as it may it gives that, and goes
    on behind it: then a key may come again.
    """

    __slots__ = ("_held", "_held_bytes", "_key_of", "_scanned", "_vain")

    def __init__(self, policy: Policy, *arguments: Any, **options: Any) -> None:
        super().__init__(policy, *arguments, **options)
        self._key_of = key_reader(policy.key) if policy.key else None
        self._held: OrderedDict[object, _Row] = OrderedDict()
        """By key, in order of position."""
        self._held_bytes = 0
        self._scanned = self.position
        """Position up to which records are held, sent or skipped."""
        self._vain = -1
        """Position before which the newest record was looked for, and had expired."""

    def pump(self) -> None:
        """Read to the tail, hold what is newest, and write that until the buffer or the credit stops it."""
        while not (self.done or self._reading or self.sink.paused or self.cohort is not None or self._rests()):
            if not self._held:
                self._scanned = self.position
            end = self.stream.tail if self.until is None else self.until
            unread = self._scanned < end
            if not (unread or self._held):
                self._reach_end()
                return
            if self.credit is not None and self.credit <= 0:
                return
            if not unread or self._is_full():
                self._emit()
            elif not self._scan(end):
                return

    def _rests(self) -> bool:
        """Whether nothing may be sent now."""
        return False

    def _is_full(self) -> bool:
        limits = self.stream.limits
        count = len(self._held)
        return count >= limits.conflated_keys_max or self._held_bytes + count * BATCH_COST >= limits.conflated_bytes_max

    def _scan(self, end: int) -> bool:
        """Take in one read; False where it goes on later."""
        stream = self.stream
        newest = self._key_of is None and self._vain != end  # it stands for all
        position = max(self._scanned, end - 1) if newest else self._scanned
        try:
            batches = stream.read_nowait(position, stream.limits.read_bytes_max)
        except Exception as error:  # the reader is told, the others go on
            self._fail(error)
            return False
        if batches is None:
            self._reading = True
            task = asyncio.get_running_loop().create_task(self._read_from(position, end))
            self.tally.tasks.add(task)
            task.add_done_callback(self.tally.tasks.discard)
            return False
        self._hold(batches, position, end)
        if self._scanned < end:  # between two reads others have their turn
            self._reading = True
            asyncio.get_running_loop().call_soon(self._go_on)
            return False
        return True

    def _go_on(self) -> None:
        self._reading = False
        self.pump()

    async def _read_from(self, position: int, end: int) -> None:
        try:
            batches = await self.stream.read(position, self.stream.limits.read_bytes_max)
        except Exception as error:
            self._reading = False
            if not self.done:
                self._fail(error)
            return
        if not self.done:
            self._hold(batches, position, end)
        self._go_on()

    def _hold(self, batches: list[Batch], position: int, end: int) -> None:
        """Hold the newest record per key of what was held and of ``batches``, read from ``position``, up to ``end``."""
        held, key_of = self._held, self._key_of
        if position > self._scanned:
            if not any(batch.records and batch.position < end for batch in batches):
                self._vain = end
                return
            self._skip(position - self._scanned)
        for batch in batches:
            if batch.position >= end:
                self._scanned = end
                break
            batch = batch.until(end)
            position, time_ms, metas = batch.position, batch.time_ms, batch.meta
            skipped = size = 0
            for record in batch.records:
                key: object = key_of(record) if key_of is not None else ""
                if key is None:  # it has no such field, and stands for itself
                    key = position
                size += len(record)
                old = held.pop(key, None)
                if old is not None:
                    skipped += 1
                    size -= len(old[2])
                meta = metas.get(position - batch.position) if metas is not None else None
                held[key] = (position, time_ms, record, meta)
                position += 1
            self._held_bytes += size
            self._skip(skipped)
            self._scanned = batch.end
        if not held:
            self.position = self._scanned

    def _skip(self, count: int) -> None:
        if count:
            skipped = self.tally.skipped
            skipped[self.policy.kind] = skipped.get(self.policy.kind, 0) + count

    def _emit(self) -> None:
        """Write one frame of what is held, the oldest first."""
        stream, held = self.stream, self._held
        limits = stream.limits
        count_max = limits.read_records_max if self.credit is None else min(limits.read_records_max, self.credit)
        batches: list[Batch] = []
        size = time_ms = 0
        while held and len(batches) < count_max and size < limits.read_bytes_max:
            position, time_ms, record, meta = held.popitem(last=False)[1]
            size += len(record)
            batches.append(Batch(position, time_ms, [record], meta={0: meta} if meta is not None else None))
        count = len(batches)
        self._held_bytes -= size
        self.position = next(iter(held.values()))[0] if held else self._scanned
        if not held and batches[-1].end < self.position:  # what is last has expired: where to read on is behind it
            batches.append(Batch(self.position, time_ms, []))
        self._announced = self.position == stream.tail
        self._told_end = self._announced and stream.closed
        if self.credit is not None:
            self.credit -= count
        self.sink.write(self.encoding.encode(stream, batches))
        self.tally.delivered(self.pattern, count)

    def stop(self) -> None:
        super().stop()
        self._held.clear()


class Sampling(Conflating):
    """One that is given at most one frame per interval. It is in no cohort: at the tail it waits by itself."""

    __slots__ = ("_beat", "_due", "_forget", "_quiet", "_timer")

    def __init__(self, policy: Policy, *arguments: Any, **options: Any) -> None:
        super().__init__(policy, *arguments, **options)
        self._due = 0.0
        """Time of the event loop from which on the next frame may be sent."""
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._forget: Callable[[], None] | None = None
        self._quiet = True

    def start(self) -> None:
        super().start()
        if not self.done and self.encoding.heartbeat is not None:
            self._beat = asyncio.get_running_loop().call_later(self.stream.limits.heartbeat_s, self._heartbeat)

    def pump(self) -> None:
        super().pump()
        if not (self.done or self._reading or self.sink.paused):
            self._wait()

    def _rests(self) -> bool:
        stream = self.stream
        ends = stream.closed or stream.deleted or self.until is not None  # then what is left is given at once
        return not ends and asyncio.get_running_loop().time() < self._due

    def _wait(self) -> None:
        """Go on when the interval is over, if there is something to send; or when something comes."""
        if self._forget is None:
            self._forget = self.stream.wait(self._woken)
        if self._timer is None and self.position < self.stream.tail and self._rests():
            self._timer = asyncio.get_running_loop().call_at(self._due, self._tick)

    def _woken(self) -> None:
        self._forget = None
        self.pump()

    def _tick(self) -> None:
        self._timer = None
        self._due = 0.0  # the loop's clock may be a hair before the time that it was set to
        self.pump()

    def _emit(self) -> None:
        self._due = asyncio.get_running_loop().time() + self.policy.interval_s
        self._quiet = False
        super()._emit()

    def _settle(self) -> None:
        """It stands at the tail."""

    def _heartbeat(self) -> None:
        self._beat = asyncio.get_running_loop().call_later(self.stream.limits.heartbeat_s, self._heartbeat)
        if self._quiet and not self.sink.paused:
            self.sink.write(self.encoding.heartbeat)
        self._quiet = True

    def stop(self) -> None:
        super().stop()
        for timer in (self._timer, self._beat):
            if timer is not None:
                timer.cancel()
        if self._forget is not None:
            self._forget()


class Disconnecting(_Selective):
    """One that is ended, with a reason, when it does not take what comes and is more than ``lag`` records behind. Until it
    has been at the tail once it may be as far behind as it began."""

    __slots__ = ("_forget",)

    def __init__(self, policy: Policy, *arguments: Any, **options: Any) -> None:
        super().__init__(policy, *arguments, **options)
        self._forget: Callable[[], None] | None = None

    def leave(self) -> None:
        leaves = self.cohort is not None
        super().leave()
        if leaves and self._forget is None:
            self._forget = self.stream.wait(self._look)

    def _look(self) -> None:
        """Something has come."""
        self._forget = None
        if self.done or self.cohort is not None:
            return
        waits = self._reading and not self.sink.paused  # for the disk: it is the hub that is behind
        if self.stream.records_after(self.position) > self.policy.lag and not waits:
            self.tally.lagged += 1
            self.finish("lagged")
        else:
            self._forget = self.stream.wait(self._look)

    def stop(self) -> None:
        super().stop()
        if self._forget is not None:
            self._forget()


_KINDS: dict[str, type[_Selective]] = {"conflate": Conflating, "sample": Sampling, "disconnect": Disconnecting}
