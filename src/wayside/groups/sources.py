"""Which streams a group reads: those that its globs match, as long as they are there; each is a partition of its state.

It watches them while the group has members, and for a while after; what is read of them, and when, is left to others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wayside.core.callbacks import Done
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, NotFound
from wayside.core.globs import Glob
from wayside.core.records import start_position
from wayside.core.schedule import Timer, Timers
from wayside.groups.dispatch import Dispatch
from wayside.groups.events import Dropped, Opened, Shortened, Sought
from wayside.groups.journal import Journal
from wayside.groups.reading import Reading, identity_of
from wayside.groups.state import Partition
from wayside.streams.contract import Log, StreamView

__all__ = ["Sources"]

LINGER_S = 60.0
"""For how long a group that nobody takes from goes on hearing of its streams."""


class Sources:
    """The streams of one group."""

    def __init__(
        self, log: Log, clock: Clock, timers: Timers, journal: Journal, reading: Reading, dispatch: Dispatch
    ) -> None:
        self._log = log
        self._clock = clock
        self._timers = timers
        self._journal = journal
        self._reading = reading
        self._dispatch = dispatch
        self.globs: list[Glob] = []
        self._watching: list[Callable[[], None]] = []
        self._lingering: Timer | None = None

    def __repr__(self) -> str:
        what = "lingering" if self._lingering else "watching" if self._watching else "resting"
        return f"<Sources {[glob.text for glob in self.globs]} {what}>"

    @property
    def watching(self) -> bool:
        """Whether it hears of what is new in its streams."""
        return bool(self._watching)

    def begin(self) -> None:
        """The state is as the disk has it: a crash may have taken records of streams that are not synced since; other
        streams may have been deleted."""
        self.globs = [Glob(text) for text in self._journal.state.spec.streams]
        for partition in list(self._journal.state.by_path.values()):
            stream = self._reading.find(partition)
            if stream is None:
                self._drop(partition)
            elif stream.tail < partition.next:
                self._journal.note(Shortened(partition.number, stream.tail))

    def respecify(self) -> None:
        """The group is told to read other streams, or the same."""
        self.globs = [Glob(text) for text in self._journal.state.spec.streams]
        for partition in list(self._journal.state.partitions.values()):
            if not self.matches(partition.path):
                self._drop(partition)

    def matches(self, path: str) -> bool:
        """Whether the group reads what is at a path."""
        return any(glob.matches(path) for glob in self.globs)

    # -- watching

    def watch(self) -> None:
        """Hear of what is new, until further notice."""
        self._stay()
        if not self._watching:
            self._watching = [self._log.watch(glob, self._told) for glob in self.globs]
            self._look()

    def linger(self) -> None:
        """Hear of it for a while only."""
        if self._watching and self._lingering is None:
            self._lingering = self._timers.after(LINGER_S, self.rest)

    def rest(self) -> None:
        """Hear of it no longer."""
        for unwatch in self._watching:
            unwatch()
        self._watching.clear()
        self._dispatch.neglect()
        self._stay()

    def _stay(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def _look(self) -> None:
        """Find all that there is to read."""
        state = self._journal.state
        gone = set(state.by_path)
        for glob in self.globs:
            for path, _earliest, tail, _closed in self._log.tails(glob):
                gone.discard(path)
                partition = state.by_path.get(path)
                if partition is None or tail.position != partition.next or tail.epoch != partition.epoch:
                    stream = self._reading.at(path)
                    if stream is not None:
                        self._told(stream)
        for path in gone:
            if self._reading.at(path) is None or not self.matches(path):
                self._drop(state.by_path[path])

    def _told(self, stream: StreamView) -> None:
        """A stream has changed."""
        if not self._dispatch.open:
            return
        partition = self._journal.state.by_path.get(stream.path)
        if stream.deleted:
            if partition is not None and partition.epoch == identity_of(stream):
                self._drop(partition)
            return
        if partition is None or partition.epoch != identity_of(stream):
            partition = self._open(stream, stream.start)
        self._dispatch.offer(partition, stream)

    # -- partitions

    def _open(self, stream: StreamView, position: int) -> Partition:
        """Read a stream from a position on, and no longer what was at its path before."""
        state = self._journal.state
        known = state.by_path.get(stream.path)
        if known is not None:
            self._drop(known)
        number = state.numbers_next
        self._journal.note(Opened(number, stream.path, identity_of(stream), position))
        return state.partitions[number]

    def _drop(self, partition: Partition) -> None:
        self._dispatch.forget(partition.number)
        self._reading.forget(partition.number)
        self._journal.note(Dropped(partition.number))
        self._dispatch.wake()  # there may be room for others

    def seek(self, to: str, only: Callable[[str], bool], done: Done) -> None:
        """Read streams from elsewhere on: ``-1``, ``now``, or an offset of the one stream that ``only`` leaves. What was
        outstanding in them is not any more, and attempts count anew. ``done`` gets the paths. Raises :class:`NotFound`
        where there is no such stream, :class:`BadRequest` for an offset of several, :class:`Gone` for one that is not
        there."""
        streams: dict[str, StreamView] = {}
        for glob in self.globs:
            for tail in self._log.tails(glob):
                if only(tail.path) and (stream := self._reading.at(tail.path)) is not None:
                    streams[tail.path] = stream
        if not streams:
            raise NotFound("The group reads no such stream.", code="stream-not-found")
        if to not in ("-1", "now") and len(streams) > 1:
            raise BadRequest("An offset is of one stream: say which.", code="offset-malformed")
        for path, stream in streams.items():
            position = start_position(stream, to)
            partition = self._journal.state.by_path.get(path)
            if partition is None or partition.epoch != identity_of(stream):
                partition = self._open(stream, position)
            self._journal.note(Sought(self._clock.wall_ms(), partition.number, position))
            self._reading.forget(partition.number)
            self._dispatch.retry(partition.number)
        self._journal.then(partial(_answer, done, sorted(streams)))
        self._dispatch.wake()


def _answer(done: Done, paths: list[str], failed: Exception | None) -> None:
    done(paths if failed is None else failed)
