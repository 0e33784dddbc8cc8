"""Followers with a delivery policy: they are given not everything, or not for ever.

A policy decides what becomes of the batches that a follower reads by itself; one that keeps up is in a cohort like any
other, and is given everything. What is skipped is never the newest record of its key, nor the last before the tail, so
that whoever resumes after any record that was sent gets the same again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from wayside.core.policies import Policy, key_reader
from wayside.core.records import BATCH_COST, Batch, Meta
from wayside.streams.followers import Choice, Follower

__all__ = ["choice_of"]

_Row = tuple[int, int, bytes, Meta | None]
"""Position, time, record and metadata: it does not keep the batch that it was read with in memory."""


class _Counted:
    """What all policies have in common: their followers are counted."""

    __slots__ = ("follower", "policy")
    settles = True

    def __init__(self, policy: Policy, follower: Follower) -> None:
        self.policy = policy
        self.follower = follower

    def start(self) -> None:
        policies = self.follower.tally.policies
        policies[self.policy.kind] = policies.get(self.policy.kind, 0) + 1

    def pump(self) -> None:
        self.follower.read_on()

    def left(self) -> None:
        """It reads by itself from now on."""

    def stop(self) -> None:
        self.follower.tally.policies[self.policy.kind] -= 1


class Conflating(_Counted):
    """One that is given the newest record per key of what it has missed, in order of position.

    It reads to the tail first, and holds the newest of each key. When it holds as much as it may it gives that, and goes
    on behind it: then a key may come again.
    """

    __slots__ = ("_held", "_held_bytes", "_key_of", "_scanned", "_vain")

    def __init__(self, policy: Policy, follower: Follower) -> None:
        super().__init__(policy, follower)
        self._key_of = key_reader(policy.key) if policy.key else None
        self._held: OrderedDict[object, _Row] = OrderedDict()
        """By key, in order of position."""
        self._held_bytes = 0
        self._scanned = self.follower.position
        """Position up to which records are held, sent or skipped."""
        self._vain = -1
        """Position before which the newest record was looked for, and had expired."""

    def pump(self) -> None:
        """Read to the tail, hold what is newest, and write that until the buffer or the credit stops it."""
        while not (
            self.follower.done
            or self.follower.reading
            or self.follower.sink.paused
            or self.follower.cohort is not None
            or self._rests()
        ):
            if not self._held:
                self._scanned = self.follower.position
            end = self.follower.stream.tail if self.follower.until is None else self.follower.until
            unread = self._scanned < end
            if not (unread or self._held):
                self.follower.reach_end()
                return
            if self.follower.credit is not None and self.follower.credit <= 0:
                return
            if not unread or self._is_full():
                self._emit()
            elif not self._scan(end):
                return

    def _rests(self) -> bool:
        """Whether nothing may be sent now."""
        return False

    def _is_full(self) -> bool:
        limits = self.follower.stream.limits
        count = len(self._held)
        return count >= limits.conflated_keys_max or self._held_bytes + count * BATCH_COST >= limits.conflated_bytes_max

    def _scan(self, end: int) -> bool:
        """Take in one read; False where it goes on later."""
        stream = self.follower.stream
        newest = self._key_of is None and self._vain != end  # it stands for all
        position = max(self._scanned, end - 1) if newest else self._scanned
        try:
            batches = stream.read_nowait(position, stream.limits.read_bytes_max)
        except Exception as error:  # the reader is told, the others go on
            self.follower.fail(error)
            return False
        if batches is None:
            self.follower.reading = True
            task = asyncio.get_running_loop().create_task(self._read_from(position, end))
            self.follower.tally.tasks.add(task)
            task.add_done_callback(self.follower.tally.tasks.discard)
            return False
        self._hold(batches, position, end)
        if self._scanned < end:  # between two reads others have their turn
            self.follower.reading = True
            asyncio.get_running_loop().call_soon(self._go_on)
            return False
        return True

    def _go_on(self) -> None:
        self.follower.reading = False
        self.pump()

    async def _read_from(self, position: int, end: int) -> None:
        try:
            batches = await self.follower.stream.read(position, self.follower.stream.limits.read_bytes_max)
        except Exception as error:
            self.follower.reading = False
            if not self.follower.done:
                self.follower.fail(error)
            return
        if not self.follower.done:
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
            self.follower.position = self._scanned

    def _skip(self, count: int) -> None:
        if count:
            skipped = self.follower.tally.skipped
            skipped[self.policy.kind] = skipped.get(self.policy.kind, 0) + count

    def _emit(self) -> None:
        """Write one frame of what is held, the oldest first."""
        stream, held = self.follower.stream, self._held
        limits = stream.limits
        count_max = (
            limits.read_records_max
            if self.follower.credit is None
            else min(limits.read_records_max, self.follower.credit)
        )
        batches: list[Batch] = []
        size = time_ms = 0
        while held and len(batches) < count_max and size < limits.read_bytes_max:
            position, time_ms, record, meta = held.popitem(last=False)[1]
            size += len(record)
            batches.append(Batch(position, time_ms, [record], meta={0: meta} if meta is not None else None))
        count = len(batches)
        self._held_bytes -= size
        self.follower.position = next(iter(held.values()))[0] if held else self._scanned
        if (
            not held and batches[-1].end < self.follower.position
        ):  # what is last has expired: where to read on is behind it
            batches.append(Batch(self.follower.position, time_ms, []))
        self.follower.announced = self.follower.position == stream.tail
        self.follower.told_end = self.follower.announced and stream.closed
        if self.follower.credit is not None:
            self.follower.credit -= count
        self.follower.sink.write(self.follower.encoding.encode(stream, batches))
        self.follower.tally.delivered(self.follower.pattern, count)

    def stop(self) -> None:
        super().stop()
        self._held.clear()


class Sampling(Conflating):
    """One that is given at most one frame per interval. It is in no cohort: at the tail it waits by itself."""

    __slots__ = ("_beat", "_due", "_forget", "_quiet", "_timer")
    settles = False

    def __init__(self, policy: Policy, follower: Follower) -> None:
        super().__init__(policy, follower)
        self._due = 0.0
        """Time of the event loop from which on the next frame may be sent."""
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._forget: Callable[[], None] | None = None
        self._quiet = True

    def start(self) -> None:
        super().start()
        if self.follower.encoding.heartbeat is not None:
            self._beat = asyncio.get_running_loop().call_later(self.follower.stream.limits.heartbeat_s, self._heartbeat)

    def pump(self) -> None:
        super().pump()
        if not (self.follower.done or self.follower.reading or self.follower.sink.paused):
            self._wait()

    def _rests(self) -> bool:
        stream = self.follower.stream
        ends = stream.closed or stream.deleted or self.follower.until is not None  # then what is left is given at once
        return not ends and asyncio.get_running_loop().time() < self._due

    def _wait(self) -> None:
        """Go on when the interval is over, if there is something to send; or when something comes."""
        if self._forget is None:
            self._forget = self.follower.stream.wait(self._woken)
        if self._timer is None and self.follower.position < self.follower.stream.tail and self._rests():
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

    def _heartbeat(self) -> None:
        self._beat = asyncio.get_running_loop().call_later(self.follower.stream.limits.heartbeat_s, self._heartbeat)
        if self._quiet and not self.follower.sink.paused:
            self.follower.sink.write(self.follower.encoding.heartbeat)
        self._quiet = True

    def stop(self) -> None:
        super().stop()
        for timer in (self._timer, self._beat):
            if timer is not None:
                timer.cancel()
        if self._forget is not None:
            self._forget()


class Disconnecting(_Counted):
    """One that is ended, with a reason, when it does not take what comes and is more than ``lag`` records behind. Until it
    has been at the tail once it may be as far behind as it began."""

    __slots__ = ("_forget",)

    def __init__(self, policy: Policy, follower: Follower) -> None:
        super().__init__(policy, follower)
        self._forget: Callable[[], None] | None = None

    def left(self) -> None:
        if self._forget is None:
            self._forget = self.follower.stream.wait(self._look)

    def _look(self) -> None:
        """Something has come."""
        self._forget = None
        if self.follower.done or self.follower.cohort is not None:
            return
        waits = self.follower.reading and not self.follower.sink.paused  # for the disk: it is the hub that is behind
        if self.follower.stream.records_after(self.follower.position) > self.policy.lag and not waits:
            self.follower.tally.lagged += 1
            self.follower.finish("lagged")
        else:
            self._forget = self.follower.stream.wait(self._look)

    def stop(self) -> None:
        super().stop()
        if self._forget is not None:
            self._forget()


_KINDS: dict[str, type[_Counted]] = {"conflate": Conflating, "sample": Sampling, "disconnect": Disconnecting}


def choice_of(policy: Policy) -> Callable[[Follower], Choice]:
    """What makes the part of a follower that keeps its policy."""
    return partial(_KINDS[policy.kind], policy)
