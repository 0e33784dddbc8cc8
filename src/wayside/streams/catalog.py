"""The streams of one log that are in memory, and how one that is not gets there.

Streams are loaded from the store when they are first asked for; those with records that only the journal
has are loaded at the start. Which caches may be dropped is decided by whoever was used least recently.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import count, islice
from typing import Any

from wayside.core.clock import Clock
from wayside.core.engine import Head, Heads, Submits
from wayside.core.errors import Gone, NotFound
from wayside.core.globs import Glob
from wayside.core.limits import Limits
from wayside.core.records import StreamTail
from wayside.streams.stream import ReadLater, Stream

Told = Callable[[Stream], None]
LOADED_MAX = 100_000
"""Streams held in memory; idle ones beyond it are let go and read from the store again when needed."""


class Catalog:
    """Streams by path and by sid. ``engine`` None: there are no others."""

    def __init__(
        self, engine: Submits | None, limits: Limits, clock: Clock, later: ReadLater, *, awaited: bool = False
    ) -> None:
        self.limits = limits
        self.awaited = awaited
        self.streams: dict[str, Stream] = {}
        self.by_sid: dict[int, Stream] = {}
        self.leaving: dict[str, Stream] = {}
        """Those whose deletion is on its way to the disk, and may yet be taken back."""
        self.recent: OrderedDict[Stream, None] = OrderedDict()
        """Those that the store has too, about least recently appended to first."""
        self._numbers = count()
        self.deadlines: list[tuple[int, int, Stream]] = []
        """Heap of (time in ms, a number, stream); a stream whose time has moved on is put back when it comes up."""
        self.cached_bytes = 0
        """Memory that records take of streams that the store has too."""
        self.memory_bytes = 0
        """The same, of streams that are in memory only."""
        self.history: Heads | None = engine.heads if engine else None
        self.count = self.history.count() if self.history else 0
        """Streams that exist, loaded or not."""
        self._clock = clock
        self._later = later
        self._watches = Watches()
        if engine:
            self._restore(engine)

    def new(self, row: Head, source: Stream | None) -> Stream:
        """A stream that is not entered yet."""
        awaited = self.awaited
        return Stream(row, limits=self.limits, clock=self._clock, later=self._later, source=source, awaited=awaited)

    def lookup(self, path: str) -> Stream | None:
        """The stream at ``path``, whatever its state."""
        stream = self.streams.get(path)
        if stream is None and self.history is not None and path.isprintable():  # else there is none
            row = self.history.find(path)
            if row is not None and row.sid not in self.by_sid:  # else its deletion is on its way to the disk
                stream = self._load(row)
        return stream

    def _load(self, row: Head) -> Stream:
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
        stream.watchers = self._watches.of(stream.path)
        if not stream.memory:
            self.recent[stream] = None
        if stream.source is not None:
            stream.source.branches.add(stream)
        self.charge(stream, stream.cached_bytes)
        if stream.deadline_ms is not None:
            self.watch_deadline(stream)

    def watch_deadline(self, stream: Stream) -> None:
        """Have it looked at when its time is over."""
        assert stream.deadline_ms is not None
        heapq.heappush(self.deadlines, (stream.deadline_ms, next(self._numbers), stream))

    def watch(self, glob: Glob, told: Told) -> Callable[[], None]:
        """Have every stream that ``glob`` matches tell of its changes; returns how to end it."""
        told = partial(told)  # so that one who watches the same twice can end either
        forget = self._watches.add(glob, told)
        for stream in self._loaded(glob):  # others get theirs when they enter
            stream.watchers = (*stream.watchers, told)

        def unwatch() -> None:
            forget()
            for stream in self._loaded(glob):
                stream.watchers = tuple([other for other in stream.watchers if other is not told])

        return unwatch

    def _loaded(self, glob: Glob) -> list[Stream]:
        """The streams in memory that ``glob`` matches."""
        if glob.literal:
            return [by[glob.text] for by in (self.streams, self.leaving) if glob.text in by]
        return [stream for stream in self.by_sid.values() if glob.matches(stream.path)]

    def tails(self, glob: Glob, now_ms: int) -> list[StreamTail]:
        """The streams that ``glob`` matches, by path. What is in memory is newer than what the store has; the others stay
        there, but for forks, whose beginning is another stream's to say."""
        found: list[StreamTail] = []
        loaded = ([glob.text] if glob.text in self.streams else []) if glob.literal else self.streams
        for path in [path for path in loaded if glob.matches(path)]:
            stream = self.streams[path]
            over = stream.deadline_ms is not None and stream.deadline_ms <= now_ms and not stream.is_read
            if stream.live and not stream.gone and not over:
                found.append(_tail_of(stream))
        if self.history is not None:
            for sid, tail in self.history.tails(glob.prefix, now_ms, exact=glob.literal):
                if sid not in self.by_sid and glob.matches(tail.path):
                    found.append(tail)
            for path in self.history.forks(glob.prefix, now_ms, exact=glob.literal):
                if path not in self.streams and glob.matches(path):
                    fork = self.lookup(path)
                    if fork is not None and not fork.gone:
                        found.append(_tail_of(fork))
        found.sort()
        return found

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

    def _restore(self, engine: Submits) -> None:
        """Load the streams whose last records have to be in memory."""
        for sid, (head, batches) in engine.recent().items():
            stream = self.by_sid.get(sid)
            if stream is None or stream.cached_bytes:
                stream = self._load(head)
            else:  # loaded as the source of a fork, without what the journal has
                stream.adopt(head.state)
            for batch in batches:
                stream.tail = stream.next = max(stream.tail, batch.end)
                if batch.end <= stream.start:
                    continue  # let go before the journal was
                stream.cache(batch)
                stream.size += batch.since(stream.start).size
                self.charge(stream, batch.cost)

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


class Watches:
    """Who is to be told of changes, by glob."""

    def __init__(self) -> None:
        self._literal: dict[str, list[Told]] = {}
        self._wild: dict[Glob, list[Told]] = {}

    def add(self, glob: Glob, told: Told) -> Callable[[], None]:
        """Returns how to forget it; that may be called again, to no effect."""
        by: dict[Any, list[Told]] = self._literal if glob.literal else self._wild
        key = glob.text if glob.literal else glob
        by.setdefault(key, []).append(told)

        def forget() -> None:
            left = [other for other in by.get(key, []) if other is not told]
            if left:
                by[key] = left
            else:
                by.pop(key, None)

        return forget

    def of(self, path: str) -> tuple[Told, ...]:
        """Whom the stream at ``path`` tells."""
        if not self._wild and not self._literal:
            return ()
        found = list(self._literal.get(path, ()))
        for glob, watching in self._wild.items():
            if glob.matches(path):
                found += watching
        return tuple(found)


def no_such_stream(path: str) -> NotFound:
    """The refusal for a path without a stream."""
    return NotFound(
        f"There is no stream {path!r}. Create it first: PUT /v1/stream/{path}, or `wayside create {path}`.",
        fields={"stream": path},
    )


def _tail_of(stream: Stream) -> StreamTail:
    return StreamTail(stream.path, stream.offset(stream.start), stream.offset(stream.tail), stream.closed)


def kept_for_forks(path: str) -> Gone:
    """The refusal for a stream that was deleted while forks of it exist."""
    return Gone(
        f"{path} was deleted; its records are kept only for the streams that were forked from it.",
        code="stream-deleted",
    )
