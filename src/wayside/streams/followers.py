"""Followers and cohorts: the one delivery path.

A follower reads from its position, encodes and writes, until it stands at the tail; there it joins the
cohort of all followers of that stream with the same encoding, which reads on for all of them: what is
new is encoded once and written to each member. A member whose buffer is past its high-water mark leaves, and reads on from
its own position when the buffer has drained: there is no queue per follower, and nobody is
disconnected for being slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from wayside.core.callbacks import guarded
from wayside.core.errors import Overloaded, Refusal
from wayside.core.records import Batch
from wayside.streams.contract import Encoding, Sink, StreamView

PACE = 0.25
"""A cohort rests for this part of the time that its last frame took to write, so that records that come meanwhile
share the next one. It adds at most that to a record's way, and only while records come faster than frames go out."""
PACE_S_MIN, PACE_S_MAX = 0.0005, 0.01
"""Shorter rests are not taken (a small cohort), longer ones are cut."""


class Tally:
    """What followers have been given, by pattern; and who follows."""

    __slots__ = ("behind", "deliveries", "followers", "lagged", "policies", "skipped", "tasks")

    def __init__(self) -> None:
        self.deliveries: dict[str, int] = {}
        self.followers: dict[str, int] = {}
        self.policies: dict[str, int] = {}
        """Followers with a policy other than catching up, by policy."""
        self.skipped: dict[str, int] = {}
        """Records that policies did not let through, by policy."""
        self.lagged = 0
        """Followers that were ended for being too far behind."""
        self.behind: set[Follower] = set()
        """Followers that are not in a cohort."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Reads from the disk under way."""

    def delivered(self, pattern: str, count: int) -> None:
        self.deliveries[pattern] = self.deliveries.get(pattern, 0) + count

    def lag_records(self) -> int:
        """Records that the follower furthest behind has yet to be given."""
        return max((f.stream.tail - f.position for f in self.behind), default=0)


class Cohort:
    """Followers that stand at one position, near the tail, with one encoding and one pattern: one reader for all."""

    __slots__ = (
        "_due",
        "_joining",
        "_leaving",
        "_timer",
        "_writing",
        "encoding",
        "members",
        "metered",
        "pattern",
        "position",
        "quiet",
        "stream",
        "tally",
        "told_end",
    )

    def __init__(self, stream: StreamView, encoding: Encoding, pattern: str, tally: Tally) -> None:
        self.stream = stream
        self.encoding = encoding
        self.pattern = pattern
        self.tally = tally
        self.members: dict[Follower, Callable[[Any], int | None]] = {}
        self.metered: set[Follower] = set()
        """Members that spend credit; they are in ``members`` too."""
        self.position = stream.tail
        self.told_end = False
        """Whether the last frame was encoded when the stream was closed."""
        self.quiet = False
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._writing = False
        self._leaving: list[Follower] = []
        self._joining: list[Follower] = []

    def join(self, follower: Follower) -> None:
        """Take a follower that stands at the tail; it catches up on what comes while a frame is being written."""
        if self._writing:
            self._joining.append(follower)
            return
        if self.members:
            self.flush()
        else:
            self.position = self.stream.tail
        if follower.position != self.position:
            follower.pump()
            return
        self.members[follower] = follower.sink.send
        if follower.credit is not None:
            self.metered.add(follower)
        follower.cohort = self
        self.tally.behind.discard(follower)

    def wake(self) -> None:
        """There are new records: write them now, or when the rest after the last frame is over."""
        if self._timer is None and self.members:
            loop = asyncio.get_running_loop()
            if loop.time() < self._due:
                self._timer = loop.call_at(self._due, self.flush)
            else:
                self.flush()

    def flush(self) -> None:
        """Give every member what is between the cohort's position and the tail."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing:
            return
        stream = self.stream
        loop = asyncio.get_running_loop()
        began = loop.time()
        behind = stream.tail - self.position
        while self.members and self.position < stream.tail:
            try:
                batches = stream.read_nowait(self.position, stream.limits.read_bytes_max)
            except Refusal:
                batches = None  # each member is told when it reads by itself
            if batches is None:
                self._dissolve()
                break
            self._broadcast(batches)
        if not self.members:
            self.position = stream.tail
        rest = (loop.time() - began) * PACE if behind > 1 else 0.0
        self._due = loop.time() + min(rest, PACE_S_MAX) if rest >= PACE_S_MIN else 0.0

    def _broadcast(self, batches: list[Batch]) -> None:
        end = batches[-1].end
        count = sum([batch.count for batch in batches])
        if not count:  # all of them have expired
            self.position = end
            return
        for follower in [f for f in self.metered if f.credit is not None and f.credit < count]:
            follower.leave()
            follower.pump()
        frame = self.encoding.encode(self.stream, batches)
        self.position = end
        self.told_end = self.stream.closed and end == self.stream.tail
        for follower in self.metered:
            assert follower.credit is not None
            follower.credit -= count
        self.tally.delivered(self.pattern, len(self.members) * count)
        self._write(frame)

    def _dissolve(self) -> None:
        """The records are not in memory: each member reads them by itself."""
        members = list(self.members)
        for follower in members:
            follower.leave()
        self.position = self.stream.tail
        for follower in members:
            follower.pump()

    def heartbeat(self) -> None:
        """Called at intervals; writes only when nothing was written since the last call."""
        if self.quiet and self.members and self.encoding.heartbeat is not None:
            self._write(self.encoding.heartbeat)
        self.quiet = True

    def _write(self, frame: Any) -> None:
        self.quiet = False
        self._writing = True
        size = len(frame)
        for follower, send in self.members.items():
            try:
                sent = send(frame)
            except OSError:  # its buffer is full; or its connection is broken, and whoever is given the frame ends it
                sent = 0
            if sent is not None and sent != size:
                follower.sink.queue(frame, sent)
        self._writing = False
        leaving, self._leaving = self._leaving, []
        for follower in leaving:
            if follower.cohort is self:
                follower.leave()
        joining, self._joining = self._joining, []
        for follower in joining:
            follower.pump()

    def remove(self, follower: Follower) -> None:
        self.members.pop(follower, None)
        self.metered.discard(follower)
        follower.cohort = None

    def pause(self, follower: Follower) -> None:
        """A member's buffer is full; while a frame is being written its place is given up afterwards."""
        if self._writing:
            self._leaving.append(follower)
        else:
            follower.leave()


def _first(batches: list[Batch], count: int) -> list[Batch]:
    """The first ``count`` records of ``batches``, which have more."""
    result: list[Batch] = []
    for batch in batches:
        result.append(batch if batch.count <= count else batch.until(batch.position + count))
        count -= batch.count
        if count <= 0:
            break
    return result


class Choice(Protocol):
    """What a follower with a delivery policy is given of what it reads by itself."""

    settles: bool
    """Whether the follower joins a cohort when it is at the tail."""

    def start(self) -> None: ...

    def pump(self) -> None:
        """Go on reading and writing."""
        ...

    def left(self) -> None:
        """The follower has left its cohort."""
        ...

    def stop(self) -> None: ...


class Follower:
    """One reader that waits for more. ``position`` is where it stands while it is not in a cohort."""

    __slots__ = (
        "__weakref__",
        "announced",
        "choice",
        "cohort",
        "credit",
        "done",
        "encoding",
        "ended",
        "pattern",
        "position",
        "reading",
        "sink",
        "stream",
        "tally",
        "told_end",
        "until",
    )

    def __init__(
        self,
        stream: StreamView,
        position: int,
        encoding: Encoding,
        sink: Sink,
        pattern: str,
        tally: Tally,
        *,
        until: int | None = None,
        credit: int | None = None,
        ended: Callable[[], None] | None = None,
        choice: Callable[[Follower], Choice] | None = None,
    ) -> None:
        self.stream = stream
        self.position = position
        self.encoding = encoding
        self.sink = sink
        self.pattern = pattern
        self.tally = tally
        self.until = until
        self.credit = credit
        self.ended = ended
        self.cohort: Cohort | None = None
        self.done = False
        self.reading = False
        self.announced = False
        self.told_end = False
        self.choice = choice(self) if choice is not None else None
        """What a delivery policy makes of what it reads; None: it is given everything."""

    def start(self) -> None:
        if self.choice is not None:
            self.choice.start()
        self.tally.followers[self.pattern] = self.tally.followers.get(self.pattern, 0) + 1
        self.tally.behind.add(self)
        self.stream.readers += 1
        self.pump()

    @property
    def at(self) -> int:
        """Where the reader stands: everything before it has been written."""
        return self.position if self.cohort is None else self.cohort.position

    def grant(self, credit: int) -> None:
        """Add to the records that may be sent."""
        if self.credit is None or self.done:
            return
        self.credit += credit
        if self.cohort is None:
            self.pump()

    def pump(self) -> None:
        """Go on until the tail, the buffer, or the credit stops it."""
        if self.choice is not None:
            self.choice.pump()
        else:
            self.read_on()

    def read_on(self) -> None:
        """Read, encode and write everything until the tail, the buffer, or the credit stops it."""
        stream = self.stream
        while not (self.done or self.reading or self.sink.paused or self.cohort is not None):
            end = stream.tail if self.until is None else self.until
            if self.position >= end:
                self.reach_end()
                return
            if self.credit is not None and self.credit <= 0:
                return
            try:
                batches = stream.read_nowait(self.position, stream.limits.read_bytes_max)
            except Exception as error:  # the reader is told, the others go on
                self.fail(error)
                return
            if batches is None:
                self.reading = True
                task = asyncio.get_running_loop().create_task(self._read())
                self.tally.tasks.add(task)
                task.add_done_callback(self.tally.tasks.discard)
                return
            self._give(batches)

    async def _read(self) -> None:
        try:
            batches = await self.stream.read(self.position, self.stream.limits.read_bytes_max)
        except Exception as error:
            self.reading = False
            if not self.done:
                self.fail(error)
            return
        self.reading = False
        if not self.done:
            self._give(batches)
            self.pump()

    def _give(self, batches: list[Batch]) -> None:
        limit = batches[-1].end
        if self.until is not None and self.until < limit:
            limit = self.until
            batches = [batch.until(limit) for batch in batches if batch.position < limit]
        count = sum([batch.count for batch in batches])
        if self.credit is not None and self.credit < count:
            count = self.credit
            batches = _first(batches, count)
            limit = batches[-1].end
        self.position = limit
        self.announced = count > 0 and limit == self.stream.tail
        self.told_end = self.announced and self.stream.closed
        if not count:  # all of them have expired
            return
        if self.credit is not None:
            self.credit -= count
        self.sink.write(self.encoding.encode(self.stream, batches))
        self.tally.delivered(self.pattern, count)

    def reach_end(self) -> None:
        stream = self.stream
        if self.until is not None:
            self.finish("complete")
        elif stream.closed or stream.deleted:
            self.finish("deleted" if stream.deleted else "closed")
        else:
            if not self.announced:
                self.announced = True
                frame = self.encoding.caught_up(stream, self.position)
                if frame is not None:
                    self.sink.write(frame)
                    if self.sink.paused or self.done:
                        return
            if self.choice is None or self.choice.settles:
                self.settle()

    def settle(self) -> None:
        """It stands at the tail, and has been told so."""
        self.stream.cohort(self.encoding, self.pattern, self.tally).join(self)

    def pause(self) -> None:
        """The buffer is past its high-water mark."""
        if self.cohort is not None:
            self.cohort.pause(self)

    def reroute(self) -> None:
        """The sink's ``send`` is another from now on."""
        if self.cohort is not None:
            self.cohort.members[self] = self.sink.send

    def leave(self) -> None:
        """Out of the cohort, standing where it stands."""
        if self.cohort is not None:
            self.position = self.cohort.position
            self.announced = True
            self.told_end = self.cohort.told_end
            self.cohort.remove(self)
            self.tally.behind.add(self)
            if self.choice is not None:
                self.choice.left()

    def finish(self, reason: str) -> None:
        """Write the last frame and let the sink end: ``closed``, ``deleted``, ``complete``, ``drain``, ``expired``,
        ``lagged``."""
        if self.done:
            return
        self.leave()
        frame = self.encoding.end(self.stream, self.position, reason, self.told_end)
        self.stop()
        if frame is not None:
            self.sink.write(frame)
        self.sink.finish(reason)

    def leave_behind(self) -> None:
        """The log is closed before this follower is at the tail: it is told where to resume, or cut if it was to end
        somewhere and has not got there."""
        if self.until is None:
            self.finish("drain")
        else:
            self.fail(Overloaded("The hub was closed before all was read. Read on when it is back.", code="closing"))

    def stop(self) -> None:
        """Forget this follower, without a word to its reader."""
        if self.done:
            return
        self.done = True
        if self.cohort is not None:
            self.cohort.remove(self)
        if self.choice is not None:
            self.choice.stop()
        self.tally.behind.discard(self)
        self.tally.followers[self.pattern] -= 1
        self.stream.readers -= 1
        if not self.stream.readers and self.stream.on_unread is not None:
            guarded(self.stream.on_unread)
        if self.ended is not None:
            guarded(self.ended)

    def fail(self, error: Exception) -> None:
        self.stop()
        self.sink.abort(error)
