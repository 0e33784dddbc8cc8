"""One group: its life, its streams and its members."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from wayside.core.callbacks import Done, guarded, report
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, Conflict, NotFound, Overloaded, Refusal
from wayside.core.globs import Glob
from wayside.core.records import Durability, Offset
from wayside.core.schedule import Timer, Timers
from wayside.groups.deadletters import Burying
from wayside.groups.events import Dropped, GroupSpec, Opened, Shortened, Sought, Specified
from wayside.groups.state import Member, Partition
from wayside.link.frames import Ack
from wayside.streams.contract import Log, StreamView

__all__ = ["Group", "identity_of", "require_durable"]

LINGER_S = 60.0
"""For how long a group that nobody takes from goes on hearing of its streams."""
LOST_S = 1.0
"""How soon a group is read again whose state could not be kept."""

_log = structlog.get_logger("wayside.groups")


def identity_of(stream: StreamView) -> int:
    """What tells a stream from another that had its path before."""
    return stream.lineage[0][1]


class Group(Burying):
    """A group that is loaded."""

    def __init__(self, name: str, log: Log, clock: Clock, timers: Timers) -> None:
        super().__init__(name, log, clock, timers)
        self.globs: list[Glob] = []
        self.deleted = False
        self.created_ms = 0
        self.on_specified: Callable[[Group], None] | None = None
        self._watching: list[Callable[[], None]] = []
        self._lingering: Timer | None = None

    def __repr__(self) -> str:
        return f"<Group {self.name} {len(self.members)} members, {self.journal.state.in_flight} in flight>"

    # -- life

    def begin(self) -> None:
        self.globs = [Glob(text) for text in self.spec.streams]
        self._burying.clear()
        self._reconcile(self.journal.state.by_path.values())
        super().begin()
        if self.members:
            self._activate()

    def end(self) -> None:
        super().end()
        self._deactivate()
        for task in self._tasks:
            task.cancel()

    def discard(self) -> None:
        """The group was deleted."""
        self.deleted = True
        self.end()
        self.journal.close(NotFound(f"The group {self.name} was deleted.", code="group-not-found"))
        for member in list(self.members):
            link, member.link = member.link, None
            if link is not None:
                error = NotFound(f"The group {self.name} was deleted.", code="group-not-found")
                guarded(partial(link.ended, error))
        self.members.clear()

    def _on_lost(self, error: Exception) -> None:
        """What was noted last is not on disk: what is there is true."""
        _log.warning("group-not-kept", group=self.name, error=str(error))
        self.end()
        self._keep(asyncio.get_running_loop().create_task(self._reload()))

    async def _reload(self) -> None:
        while not self.deleted:
            await asyncio.sleep(LOST_S)
            try:
                await self.journal.load()
            except Exception as error:
                _log.warning("group-not-read", group=self.name, error=str(error))
                if not isinstance(error, Refusal):
                    report(error, self._reload)
            else:
                self.begin()
                return

    def require_open(self) -> None:
        """Raise what stands in the way of a change."""
        if self.deleted:
            raise NotFound(f"There is no group {self.name!r}.", code="group-not-found")
        if not self.open:
            raise Overloaded("The group is being read from the disk. Try again shortly.", headers={"Retry-After": "1"})

    # -- streams

    def _activate(self) -> None:
        """Hear of what is new in its streams."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._watching:
            return
        for glob in self.globs:
            self._watching.append(self.log.watch(glob, self._told))
        self._look()

    def _look(self) -> None:
        """Find all that there is to read."""
        state = self.journal.state
        gone = set(state.by_path)
        for glob in self.globs:
            for path, _earliest, tail, _closed in self.log.tails(glob):
                gone.discard(path)
                partition = state.by_path.get(path)
                if partition is None or tail.position != partition.next or tail.epoch != partition.epoch:
                    stream = self._find(path)
                    if stream is not None:
                        self._told(stream)
        for path in gone:
            partition = state.by_path[path]
            if self._find(path) is None or not any(glob.matches(path) for glob in self.globs):
                self._drop(partition)

    def _deactivate(self) -> None:
        for unwatch in self._watching:
            unwatch()
        self._watching.clear()
        self.neglect_all()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def _told(self, stream: StreamView) -> None:
        """A stream has changed."""
        if not self.open:
            return
        partition = self.journal.state.by_path.get(stream.path)
        if stream.deleted:
            if partition is not None and partition.epoch == identity_of(stream):
                self._drop(partition)
            return
        if partition is None or partition.epoch != identity_of(stream):
            if partition is not None:
                self._drop(partition)
            partition = self.open_partition(stream, stream.start)
        self.attend(partition, stream)
        if stream.tail > partition.next:
            self.ready[partition.number] = None
            self.wake()

    def open_partition(self, stream: StreamView, position: int) -> Partition:
        """Read a stream from a position on."""
        number = self.journal.state.numbers_next
        self.journal.note(Opened(number, stream.path, identity_of(stream), position))
        return self.journal.state.partitions[number]

    def _drop(self, partition: Partition) -> None:
        self.drop_hold(partition.number)
        self.neglect(partition.number)
        self.ready.pop(partition.number, None)
        self.reading.forget(partition.number)
        self.journal.note(Dropped(partition.number))
        self.wake()  # there may be room for others

    def _reconcile(self, partitions: Iterable[Partition]) -> None:
        """A crash may have taken records of streams that are not synced; others may have been deleted."""
        for partition in list(partitions):
            stream = self._find(partition.path)
            if stream is None or identity_of(stream) != partition.epoch:
                self._drop(partition)
            elif stream.tail < partition.next:
                self.journal.note(Shortened(partition.number, stream.tail))

    # -- members

    def join(self, member: Member) -> None:
        """A member takes records, as far as it has credit. Raises where there can be none."""
        self.require_open()
        self.members.add(member)
        self._activate()
        self.wake()

    def recall(self, name: str, held: list[Ack]) -> None:
        """A member connects again and says what it has: what else is leased to its name never reached it, unless another
        has that name, too."""
        self.require_open()
        if any(other.name == name for other in self.members):
            return
        runs: dict[tuple[int, int], list[Ack]] = {}
        for run in sorted(held, key=lambda run: run.first):
            runs.setdefault((run.number, run.lease), []).append(run)
        entries: list[tuple[int, int, int, int]] = []
        for lease, number, position in self.journal.state.held():
            if lease.member != name:
                continue
            found = runs.get((number, lease.epoch), [])
            at = bisect_right(found, position, key=lambda run: run.first) - 1
            if at < 0 or position >= found[at].first + found[at].count:
                entries.append((number, position, lease.epoch, 0))
        self._give_back(entries, "its connection was lost")

    def leave(self, member: Member, *, give_back: bool) -> None:
        """It takes no more. ``give_back``: what its name holds is for others at once, if no other has that name; else
        until its leases end."""
        member.link = None
        self.members.discard(member)
        if give_back and self.open and not any(other.name == member.name for other in self.members):
            entries = [
                (number, position, lease.epoch, 0)
                for lease, number, position in self.journal.state.held()
                if lease.member == member.name
            ]
            self._give_back(entries, "its member left")
        if not self.members and self._watching and self._lingering is None:
            self._lingering = self.timers.after(LINGER_S, self._rest)

    def _rest(self) -> None:
        self._lingering = None
        if not self.members:
            self._deactivate()

    # -- changing

    def specify(self, spec: GroupSpec, done: Done) -> None:
        """Other settings, from now on."""
        self.require_open()
        self.journal.note(Specified(self.clock.wall_ms(), spec), done)
        self.globs = [Glob(text) for text in spec.streams]
        for partition in list(self.journal.state.partitions.values()):
            if not any(glob.matches(partition.path) for glob in self.globs):
                self._drop(partition)
            for waiting in list(partition.waiting.values()):
                if waiting.failures > spec.failures_max:
                    self.exhausted(partition.number, waiting)
        active = bool(self._watching)
        self._deactivate()
        if active or self.members:
            self._activate()
            if not self.members:
                self._lingering = self.timers.after(LINGER_S, self._rest)
        if self.on_specified is not None:
            self.on_specified(self)
        self.wake()

    def seek(self, to: str, only: Callable[[str], bool], done: Done) -> None:
        """Read streams from elsewhere on: ``-1``, ``now``, or an offset of the one stream that ``only`` leaves. What was
        outstanding in them is not any more, and attempts count anew. ``done`` gets the paths."""
        self.require_open()
        streams: dict[str, StreamView] = {}
        for glob in self.globs:
            for tail in self.log.tails(glob):
                if only(tail.path) and (stream := self._find(tail.path)) is not None:
                    streams[tail.path] = stream
        if not streams:
            raise NotFound("The group reads no such stream.", code="stream-not-found")
        if to not in ("-1", "now") and len(streams) > 1:
            raise BadRequest("An offset is of one stream: say which.", code="offset-malformed")
        for path, stream in streams.items():
            position = stream.start if to == "-1" else stream.tail if to == "now" else stream.resolve(Offset.parse(to))
            partition = self.journal.state.by_path.get(path)
            if partition is not None and partition.epoch != identity_of(stream):
                self._drop(partition)
                partition = None
            if partition is None:
                partition = self.open_partition(stream, position)
            self.journal.note(Sought(self.clock.wall_ms(), partition.number, position))
            self.drop_hold(partition.number)
            self.reading.forget(partition.number)
            self.ready[partition.number] = None
        self.journal.then(lambda failed: done(failed or sorted(streams)))
        self.wake()


def require_durable(log: Log, path: str) -> None:
    """Raise where a stream cannot share a transaction with a group that is on disk."""
    try:
        stream = log.find(path, touch=False)
    except NotFound:
        return
    if log.durable and stream.config.durability is not Durability.FSYNC:
        raise Conflict(
            f"{path} is {stream.config.durability.value}: dead letters need a stream with durability fsync.",
            code="durability-mismatch",
        )
