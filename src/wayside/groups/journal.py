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
from wayside.core.records import Append, Create, StreamConfig
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
        """In the stream of events, after all that was noted."""
        self._events: list[Event] = []
        self._kept: list[Kept] = []
        self._since_snapshot = 0
        self._snapshot_bytes = 0
        self._needed = 0
        """From this event on they are needed to load the group."""
        self._release: Callable[[], None] | None = None
        self._lost = False
        self._flying = 0
        """Appends that the log has not answered."""
        self._landed = asyncio.Event()
        self._landed.set()
        self._last: list[Kept] | None = None
        """Who is told of the newest of them."""
        self._blocked = False
        """The newest of them waits in the log: whatever comes after it waits here."""

    def __repr__(self) -> str:
        return f"<Journal {self.path} {self._position}>"

    # -- making and loading

    def make(self, events: list[Event], done: Done) -> None:
        """Make the streams of a new group; ``done`` gets None, or an exception."""
        made: list[Any] = []

        def told(result: Any) -> None:
            made.append(result)
            if len(made) == 2:
                failed = next((each for each in made if isinstance(each, Exception)), None)
                if failed is None and not all(each.new for each in made):
                    failed = Conflict(
                        f"{self.path} is on disk, and could not be read when the hub started: see its log. Delete the group "
                        "to begin anew.",
                        code="group-unreadable",
                    )
                if failed is None:
                    for event in events:
                        self.state.apply(event)
                    self._position = 1
                    self._hold(self._log.find(self.path, touch=False), 0)
                done(failed)

        limits = self._log.limits
        config = StreamConfig(retention_bytes=limits.group_history_bytes)
        explicit = frozenset({"content_type", "retention_bytes"})
        for path, create in (
            (self.path, Create(config, explicit, records=[encode(events)])),
            (f"{self.path}/state", Create(StreamConfig(retention_bytes=STATE_BYTES), explicit)),
        ):
            try:
                self._log.create(path, create, told)
            except Refusal as refusal:
                told(refusal)

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
        if snapshots.tail:
            last: Snapshot | None = None
            for batch in await snapshots.read(snapshots.tail - 1, 1):
                last = decode_snapshot(batch.records[-1])
            assert last is not None
            self._snapshot_bytes = len(encode(last))
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
                self._append(events, [], kept)
            except Refusal as refusal:
                self._told(kept, None, refusal)
        else:
            for tell in kept:
                guarded(partial(tell, None))

    def transact(
        self, events: list[Event], appends: Sequence[tuple[str, Append]], kept: Kept, offsets: list[str] | None = None
    ) -> None:
        """Make events true in one transaction with appends to other streams; ``offsets`` gets those after each append.
        Raises a :class:`Refusal` with nothing done."""
        self.flush()
        if self._lost or self._blocked:
            raise self._unkept()
        self._append(events, appends, [kept], offsets)
        for event in events:
            self.state.apply(event)

    def _append(
        self,
        events: list[Event],
        appends: Sequence[tuple[str, Append]],
        kept: list[Kept],
        offsets: list[str] | None = None,
    ) -> None:
        if self._lost:
            raise self._unkept()
        record = encode(events)
        own = Append(b"", records=[record])
        done = partial(self._answered, kept, offsets)
        if appends:
            stream = self._log.find(self.path, touch=False)
            before = stream.next
            self._log.append_all([(self.path, own), *appends], done)
            self._blocked = stream.next == before  # until it is known which message ids there are
        else:
            self._log.append(self.path, own, done)
        self._flying += 1
        self._landed.clear()
        self._last = kept
        self._position += 1
        self._since_snapshot += len(record)
        if self._snapshot_due:
            asyncio.get_running_loop().call_soon(self._snap)

    def _snap(self) -> None:
        self.flush()
        if self._lost or self._blocked or not self._snapshot_due:
            return
        position = self._position
        record = encode(self.state.snapshot(position))
        self._snapshot_bytes = len(record)
        self._since_snapshot = 0

        def told(result: Any) -> None:
            if not isinstance(result, Exception):
                self._needed = position

        try:
            self._log.append(f"{self.path}/state", Append(b"", records=[record]), told)
        except Refusal:
            self._since_snapshot = SNAPSHOT_BYTES_MAX  # there is no room now

    @property
    def _snapshot_due(self) -> bool:
        return self._since_snapshot > min(max(SNAPSHOT_BYTES, 2 * self._snapshot_bytes), SNAPSHOT_BYTES_MAX)

    def _answered(self, kept: list[Kept], offsets: list[str] | None, result: Any) -> None:
        self._flying -= 1
        if not self._flying:
            self._landed.set()
        if self._last is kept:
            self._last = None
            if self._blocked:
                self._blocked = False
                asyncio.get_running_loop().call_soon(self.flush)
        self._told(kept, offsets, result)

    def _told(self, kept: list[Kept], offsets: list[str] | None, result: Any) -> None:
        failed = result if isinstance(result, Exception) else None
        if offsets is not None and failed is None:
            offsets += [str(appended.offset) for appended in result[1:]]
        if failed is not None and not self._lost:
            self._lost = True
            self._events, self._kept, dropped = [], [], self._kept
            kept = [*kept, *dropped]
            guarded(partial(self._on_lost, failed))
        for tell in kept:
            guarded(partial(tell, failed))

    @staticmethod
    def _unkept() -> Refusal:
        return Overloaded(
            "The group is being read again from the disk. Try again shortly.", headers={"Retry-After": "1"}
        )
