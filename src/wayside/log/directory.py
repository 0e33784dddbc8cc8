"""The streams of one log that are in memory, and how one that is not gets there.

Streams are loaded from the store when they are first asked for; those with records that only the journal
has are loaded at the start. Which caches may be dropped is decided by whoever was used least recently.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from itertools import islice

from wayside.errors import Gone, NotFound
from wayside.limits import Limits
from wayside.log.history import History
from wayside.log.rows import StreamRow
from wayside.log.store import Store
from wayside.log.stream import ReadLater, Stream

LOADED_MAX = 100_000
"""Streams held in memory; idle ones beyond it are let go and read from the store again when needed."""


class Directory:
    """Streams by path and by sid. ``store`` None: there are no others."""

    def __init__(self, store: Store | None, limits: Limits, later: ReadLater) -> None:
        self.limits = limits
        self.streams: dict[str, Stream] = {}
        self.by_sid: dict[int, Stream] = {}
        self.leaving: dict[str, Stream] = {}
        """Those whose deletion is on its way to the disk, and may yet be taken back."""
        self.recent: OrderedDict[Stream, None] = OrderedDict()
        """Those that the store has too, about least recently appended to first."""
        self.deadlines: list[tuple[int, int, Stream]] = []
        """Heap of (time in ms, sid, stream); a stream whose time has moved on is put back when it comes up."""
        self.cached_bytes = 0
        """Memory that records take of streams that the store has too."""
        self.memory_bytes = 0
        """The same, of streams that are in memory only."""
        self.history: History | None = store.history if store else None
        self.count = self.history.count() if self.history else 0
        """Streams that exist, loaded or not."""
        self._later = later
        if store:
            self._restore(store)

    def new(self, row: StreamRow, source: Stream | None) -> Stream:
        """A stream that is not entered yet."""
        return Stream(row, limits=self.limits, later=self._later, source=source)

    def lookup(self, path: str) -> Stream | None:
        """The stream at ``path``, whatever its state."""
        stream = self.streams.get(path)
        if stream is None and self.history is not None and path.isprintable():  # else there is none
            row = self.history.find(path)
            if row is not None and row.sid not in self.by_sid:  # else its deletion is on its way to the disk
                stream = self._load(row)
        return stream

    def _load(self, row: StreamRow) -> Stream:
        assert self.history is not None
        source = self.by_sid.get(row.source) if row.source is not None else None
        if row.source is not None and source is None:
            parent = self.history.find_sid(row.source)
            source = self._load(parent) if parent else None
        stream = self.new(row, source)
        stream.forks = self.history.forks_of(row.sid)
        self.enter(stream)
        return stream

    def enter(self, stream: Stream) -> None:
        self.streams[stream.path] = stream
        self.by_sid[stream.sid] = stream
        stream.entered = True
        if not stream.memory:
            self.recent[stream] = None
        if stream.source is not None:
            stream.source.branches.add(stream)
        self.charge(stream, stream.cached_bytes)
        if stream.deadline_ms is not None:
            heapq.heappush(self.deadlines, (stream.deadline_ms, stream.sid, stream))

    def let_go(self, stream: Stream) -> None:
        """Hold nothing of it any more."""
        if self.streams.get(stream.path) is stream:
            del self.streams[stream.path]
        self.charge(stream, -stream.cached_bytes)
        self.recent.pop(stream, None)
        self.by_sid.pop(stream.sid, None)
        stream.entered = False
        if stream.source is not None:
            stream.source.branches.discard(stream)

    def charge(self, stream: Stream, cost: int) -> None:
        """Count memory that a stream takes, or gives back; not of one that was let go."""
        if stream.entered:
            if stream.memory:
                self.memory_bytes += cost
            else:
                self.cached_bytes += cost

    def _restore(self, store: Store) -> None:
        """Load the streams with records in the journal."""
        for sid, batches in store.replayed.items():
            row = store.history.find_sid(sid)
            if row is None:
                continue
            for state in store.journalled_states(sid):
                row.state = row.state.merge(state)
            stream = self.by_sid.get(sid)
            if stream is None or stream.cached_bytes:
                stream = self._load(row)
            else:  # loaded as the source of a fork, without what the journal has
                stream.adopt(row.state)
            for batch in batches:
                stream.tail = stream.next = max(stream.tail, batch.end)
                if batch.end <= stream.start:
                    continue  # let go before the journal was
                stream.cache(batch)
                stream.size += batch.since(stream.start).size
                self.charge(stream, batch.cost)
        store.replayed = {}

    def used(self, stream: Stream) -> None:
        """It was appended to; where nothing has to give way soon nobody needs to know."""
        crowded = self.cached_bytes > self.limits.cache_bytes_max // 2 or len(self.streams) > LOADED_MAX // 2
        if crowded and stream in self.recent:
            self.recent.move_to_end(stream)

    def shrink_cache(self) -> None:
        """Drop cached records of the streams least recently appended to, until they fit."""
        for stream in list(islice(self.recent, 1000)):
            self.charge(stream, -stream.trim_cache(0))
            self.recent.move_to_end(stream)  # it has little left: the others come first next time
            if self.cached_bytes <= self.limits.cache_bytes_max:
                return

    def unload(self) -> None:
        """Let idle streams go that the store has whole, if there are too many."""
        if len(self.streams) <= LOADED_MAX:
            return
        for stream in list(islice(self.recent, 10_000)):
            if stream.is_idle:
                self.let_go(stream)
                stream.version = object()
            else:
                self.recent.move_to_end(stream)


def no_such_stream(path: str) -> NotFound:
    """The refusal for a path without a stream."""
    return NotFound(
        f"There is no stream {path!r}. Create it first: PUT /v1/stream/{path}, or `wayside create {path}`.",
        fields={"stream": path},
    )


def kept_for_forks(path: str) -> Gone:
    """The refusal for a stream that was deleted while forks of it exist."""
    return Gone(
        f"{path} was deleted; its records are kept only for the streams that were forked from it.",
        code="stream-deleted",
    )
