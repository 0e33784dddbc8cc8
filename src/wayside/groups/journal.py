"""What a group keeps on disk: its stream of events, and snapshots of it.

``__group/NAME`` has the events, a record for each turn of the event loop in which there were any. Enough of them are kept
to tell what became of lately delivered records; where they begin is bounded by size. ``__group/NAME/state`` has
snapshots, each with the position in the events from which on they are to be applied to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from wayside.core.callbacks import Done, guarded
from wayside.core.errors import Conflict, Gone, NotFound, Overloaded, Refusal
from wayside.core.records import Append, Appended, Create, StreamConfig, StreamInfo
from wayside.groups.events import Event, GroupSpec, Snapshot, decode_events, decode_snapshot, encode
from wayside.groups.state import GroupState
from wayside.streams.contract import Log, StreamView

__all__ = ["GROUPS", "Journal", "Kept"]

GROUPS = "__group/"
"""Where the streams of groups are."""
SNAPSHOT_BYTES = 1024 * 1024
"""Events after which there is a snapshot: what is read of them at a start."""
SNAPSHOT_BYTES_MAX = 4 * 1024 * 1024
"""The same, where a snapshot is large itself."""
STATE_BYTES = 4096
"""Kept of the snapshots, at least: the last one."""

Kept = Callable[[Exception | None], None]
"""Told None once what was noted is on disk, or why it is not."""


class Journal:
    """The events of one group. ``on_lost`` is told when some could not be kept: then what is on disk is what is true."""

    def __init__(self, log: Log, name: str, on_lost: Callable[[Exception], None]) -> None:
        self._log = log
        self._on_lost = on_lost
        self.path = GROUPS + name
        self.state = GroupState(GroupSpec([]))
        self._position = 0
        """In the stream of events, after all that the log has answered."""
        self._events: list[Event] = []
        self._kept: list[Kept] = []
        self._since_snapshot = 0
        self._snapshot_bytes = 0
        self._needed = 0
        """From this event on they are needed to load the group."""
        self._release: Callable[[], None] | None = None
        self._lost = False
        self.under_way = 0
        """Appends of events that the log has not answered."""
        self._snapping = 0
        """Snapshots that it has not answered."""
        self._landed = asyncio.Event()
        self._landed.set()
        self._last: list[Kept] | None = None
        """Who is told of the newest of them."""
        self._blocked = False
        """The newest of them waits in the log: whatever comes after it waits here."""

    def __repr__(self) -> str:
        what = "lost" if self._lost else "blocked" if self._blocked else "idle" if self.idle else "busy"
        return f"<Journal {self.path} {self._position} {what}>"

    @property
    def idle(self) -> bool:
        """Whether all that was noted is on disk."""
        return not (self._events or self._kept or self.under_way or self._snapping)

    # -- making and loading

    def make(self, events: list[Event], done: Done) -> None:
        """Make the streams of a new group; ``done`` gets None, or an exception."""
        made: dict[str, Any] = {}

        def told(path: str, result: Any) -> None:
            made[path] = result
            if len(made) == 2:
                failed = next((each for each in made.values() if isinstance(each, Exception)), None)
                done(failed if failed is not None else self._made(made, events))

        limits = self._log.limits
        config = StreamConfig(retention_bytes=limits.group_history_bytes)
        explicit = frozenset({"content_type", "retention_bytes"})
        for path, create in (
            (self.path, Create(config, explicit, records=[encode(events)])),
            (f"{self.path}/state", Create(StreamConfig(retention_bytes=STATE_BYTES), explicit)),
        ):
            try:
                self._log.create(path, create, partial(told, path))
            except Refusal as refusal:
                told(path, refusal)

    def _made(self, made: dict[str, Any], events: list[Event]) -> Conflict | None:
        """Begin with the first events, unless the streams were there before."""
        if not all(each.new for each in made.values()):
            return Conflict(
                f"{self.path} is on disk, and could not be read when the hub started: see its log. Delete the group to begin "
                "anew.",
                code="group-unreadable",
            )
        for event in events:
            self.state.apply(event)
        info: StreamInfo = made[self.path].info
        self._position = info.tail.position
        self._hold(self._log.find(self.path, touch=False), info.earliest.position)
        return None

    async def load(self) -> None:
        """Read what is on disk, once all that is on its way there has arrived. Raises :class:`NotFound` where there is no
        such group."""
        await self._landed.wait()
        try:
            events, snapshots = self._log.find(self.path), self._log.find(f"{self.path}/state")
        except NotFound:
            raise NotFound(f"There is no group {self.path[len(GROUPS) :][:200]!r}.", code="group-not-found") from None
        state = GroupState(GroupSpec([]))
        at = events.start
        record = await self._last_snapshot(snapshots)
        if record is not None:
            last = decode_snapshot(record)
            self._snapshot_bytes = len(record)
            state = GroupState.restore(last)
            at = last.position
        self._hold(events, at)
        self._since_snapshot = 0
        while at < events.tail:
            for batch in await events.read(at, self._log.limits.read_bytes_max):
                at = batch.end
                for record in batch.records:
                    self._since_snapshot += len(record)
                    for event in decode_events(record):
                        state.apply(event)
        self.state = state
        self._position = at
        self._lost = self._blocked = False

    async def _last_snapshot(self, snapshots: StreamView) -> bytes | None:
        """The newest record of the snapshots that are kept; there are few."""
        record: bytes | None = None
        at = snapshots.start
        while at < snapshots.tail:
            for batch in await snapshots.read(at, self._log.limits.read_bytes_max):
                at = batch.end
                record = batch.records[-1] if batch.records else record
        return record

    def _hold(self, events: StreamView, position: int) -> None:
        """Retention lets go of nothing that is needed to load the group."""
        self._needed = position
        if self._release is not None:
            self._release()
        self._release = events.hold(lambda: self._needed)

    def close(self, error: Exception) -> None:
        """Keep nothing more: the group was deleted."""
        self._lost = True
        self._events, kept, self._kept = [], self._kept, []
        if self._release is not None:
            self._release()
        for tell in kept:
            guarded(partial(tell, error))

    async def history(self) -> AsyncIterator[Event]:
        """The events that are kept, oldest first."""
        stream = self._log.find(self.path)
        at = stream.start
        while at < stream.tail:
            try:
                batches = await stream.read(at, self._log.limits.read_bytes_max)
            except Gone:
                if stream.deleted or at >= stream.start:
                    raise
                at = stream.start  # retention was faster
                continue
            for batch in batches:
                at = batch.end
                for record in batch.records:
                    for event in decode_events(record):
                        yield event

    def require_same_durability(self, stream: StreamView) -> None:
        """Raise :class:`Conflict` where a stream cannot share a transaction with the group."""
        if stream.config.durability is not self._log.find(self.path, touch=False).config.durability:
            raise Conflict(
                f"{stream.path} is {stream.config.durability.value}: dead letters, and what is published together with acks, "
                "go to streams with durability fsync.",
                code="durability-mismatch",
            )

    # -- noting

    def note(self, event: Event, kept: Kept | None = None) -> None:
        """Make an event true; ``kept`` is told once it is on disk."""
        self.state.apply(event)
        if not self._events:
            asyncio.get_running_loop().call_soon(self.flush)
        self._events.append(event)
        if kept is not None:
            self._kept.append(kept)

    def then(self, kept: Kept) -> None:
        """Tell ``kept`` once all that was noted is on disk."""
        if not self._events:
            asyncio.get_running_loop().call_soon(self.flush)
        self._kept.append(kept)

    @property
    def takes(self) -> bool:
        """Whether what is noted goes to the disk at once."""
        return not (self._lost or self._blocked)

    def flush(self) -> None:
        """Send what was noted on its way."""
        if self._blocked:
            return
        events, self._events = self._events, []
        kept, self._kept = self._kept, []
        if not events and self._last is not None and not self._lost:
            self._last += kept
        elif events or (kept and self._lost):
            try:
                self._append(events, (), kept)
            except Refusal as refusal:
                self._told(kept, refusal)
        else:
            for tell in kept:
                guarded(partial(tell, None))

    def transact(self, events: list[Event], appends: Sequence[tuple[str, Append]], done: Done) -> None:
        """Make events true in one transaction with appends to other streams; ``done`` gets a list of what became of each
        append, or an exception. Raises a :class:`Refusal` with nothing done."""
        self.flush()
        if not self.takes:
            raise self._unkept()
        appended: list[Appended] = []

        def kept(failed: Exception | None) -> None:
            done(appended if failed is None else failed)

        self._append(events, appends, [kept], appended)
        for event in events:
            self.state.apply(event)

    def _append(
        self,
        events: list[Event],
        appends: Sequence[tuple[str, Append]],
        kept: list[Kept],
        appended: list[Appended] | None = None,
    ) -> None:
        """Append events; ``appended`` is given what became of ``appends``, in the same transaction."""
        if self._lost:
            raise self._unkept()
        record = encode(events)
        own = Append(b"", records=[record])
        done = partial(self._answered, kept, appended)
        if appended is None:
            self._log.append(self.path, own, done)
        else:
            self._blocked = self._log.append_all([(self.path, own), *appends], done)
        self.under_way += 1
        self._landed.clear()
        self._last = kept
        self._since_snapshot += len(record)
        if self._snapshot_due:
            asyncio.get_running_loop().call_soon(self._snap)

    def _answered(self, kept: list[Kept], appended: list[Appended] | None, result: Any) -> None:
        self.under_way -= 1
        if not self.under_way:
            self._landed.set()
        if self._last is kept:
            self._last = None
            if self._blocked:
                self._blocked = False
                asyncio.get_running_loop().call_soon(self.flush)
        if isinstance(result, Exception):
            self._told(kept, result)
            return
        if appended is None:
            self._position = result.position
        else:
            self._position = result[0].position
            appended += result[1:]
        self._told(kept, None)

    def _told(self, kept: list[Kept], failed: Exception | None) -> None:
        if failed is not None and not self._lost:
            self._lost = True
            self._events, self._kept, dropped = [], [], self._kept
            kept = [*kept, *dropped]
            guarded(partial(self._on_lost, failed))
        for tell in kept:
            guarded(partial(tell, failed))

    # -- snapshots

    @property
    def _snapshot_due(self) -> bool:
        return self._since_snapshot > min(max(SNAPSHOT_BYTES, 2 * self._snapshot_bytes), SNAPSHOT_BYTES_MAX)

    def _snap(self) -> None:
        """Take a snapshot of what is true now; it is written once the position is known from which on it is."""
        self.flush()
        if not self.takes or not self._snapshot_due:
            return
        self._since_snapshot = 0
        write = partial(self._write, self.state.snapshot())
        if self._last is None:
            write(None)
        else:
            self._last.append(write)

    def _write(self, snapshot: Snapshot, failed: Exception | None) -> None:
        """Write a snapshot of what was true when the last append was sent that is answered."""
        if failed is not None or self._lost:
            return
        position = snapshot.position = self._position
        record = encode(snapshot)
        self._snapshot_bytes = len(record)

        def told(result: Any) -> None:
            self._snapping -= 1
            if not isinstance(result, Exception):
                self._needed = position

        try:
            self._log.append(f"{self.path}/state", Append(b"", records=[record]), told)
        except Refusal:
            self._since_snapshot = SNAPSHOT_BYTES_MAX  # there is no room now
        else:
            self._snapping += 1

    @staticmethod
    def _unkept() -> Refusal:
        return Overloaded(
            "The group is being read again from the disk. Try again shortly.", headers={"Retry-After": "1"}
        )
