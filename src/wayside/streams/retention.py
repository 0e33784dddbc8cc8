"""What keeps a log within its bounds: retention by bytes and by age, caches, expiry, heartbeats.

Retention moves a stream's ``start``, which readers see at once; the store frees the rows behind it later.
What cannot be read of a damaged store is left as it is, and holds up nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Iterable
from functools import partial

from wayside.core.clock import Clock
from wayside.core.engine import END, TouchStream, TrimStream
from wayside.core.errors import DamagedStore
from wayside.streams.catalog import Catalog
from wayside.streams.commit import Commits
from wayside.streams.stream import Stream

SWEEP_S = 1.0
AGE_SWEEPS = 10
"""Retention by age is looked at every so many sweeps."""
AGED_MAX = 250
"""Streams that it looks at in one sweep: one that is not in memory takes a few queries."""
EXPIRED_MAX = 100
"""Streams that expire in one sweep from the store."""


class Retention:
    """``lookup`` finds a stream, removing it if its time is over; ``remove`` deletes one."""

    def __init__(
        self,
        catalog: Catalog,
        commits: Commits,
        clock: Clock,
        lookup: Callable[[str], Stream | None],
        remove: Callable[[Stream], None],
    ) -> None:
        self._catalog = catalog
        self._commits = commits
        self._clock = clock
        self._lookup = lookup
        self._remove = remove
        self.views: Callable[[], Iterable[Stream]] = tuple
        """Streams that are followed and are not in the catalog."""
        self._sweeps = 0
        self._untold: set[Stream] = set()
        """Streams of which a trim could not be committed."""
        self._aged: list[str] = []
        """Paths that retention by age has still to look at."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(SWEEP_S, self._sweep)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        """Once a second."""
        self.start(asyncio.get_running_loop())
        self._sweeps += 1
        now_ms = self._clock.wall_ms()
        with contextlib.suppress(DamagedStore):
            self.expire(now_ms)
        with contextlib.suppress(DamagedStore):
            if self._sweeps % AGE_SWEEPS == 0 and not self._aged:
                self._aged = self._ageing()
            self._retain_by_age(now_ms, AGED_MAX)
        self._tell()
        if self._sweeps % max(1, round(self._catalog.limits.heartbeat_s)) == 0:
            self.heartbeat()
        self.unload()

    def unload(self) -> None:
        """Let idle streams go; not while the store may be behind what is known of one here."""
        if self._commits.idle:
            self._catalog.unload()

    def bound(self, stream: Stream) -> None:
        """After an append: retention by bytes, the stream's cache, the cache of all."""
        if stream.deleted:
            return
        catalog = self._catalog
        limits = catalog.limits
        held = stream.cached_bytes if stream.kept_by_cost else stream.size
        if held > stream.keep_bytes and not stream.awaited:
            self._retain(stream, drop_bytes=held - stream.keep_bytes)
        if stream.cached_bytes > limits.stream_cache_bytes_max and not stream.memory:
            catalog.charge(stream, -stream.trim_cache(limits.stream_cache_bytes_max))
        catalog.used(stream)
        if catalog.cached_bytes > limits.cache_bytes_max:
            catalog.shrink_cache()

    def trim(self, stream: Stream, position: int) -> None:
        """Let the records before ``position`` go, as far as whole chunks and batches are before it."""
        self._retain(stream, drop_bytes=max(stream.size, stream.cached_bytes), upto=min(position, stream.tail))

    def _retain(self, stream: Stream, *, drop_bytes: int = 0, before_ms: int = 0, upto: int = END) -> None:
        """Let the oldest records go: while they fit into ``drop_bytes``, or are older than ``before_ms``; none from the
        position ``upto`` on."""
        start, dropped = max(stream.start, stream.own_start), 0
        for since in stream.holds:
            upto = min(upto, since())
        if upto <= start:
            return
        if start < stream.cache_from:
            assert self._catalog.history is not None
            try:
                start, dropped = self._catalog.history.start_after(
                    stream.sid, start, drop_bytes=drop_bytes, before_ms=before_ms, upto=upto
                )
            except DamagedStore:
                return  # it keeps what it has; who reads that is told
        spent = dropped
        if start >= stream.cache_from:
            for batch in stream.batches:
                if batch.end <= start:
                    continue
                held = batch.cost if stream.kept_by_cost else batch.size
                if batch.end > upto or (spent + held > drop_bytes and batch.time_ms >= before_ms):
                    break
                spent += held
                dropped += batch.size
                start = batch.end
        if not dropped:
            return
        for cohort in list(stream.cohorts.values()):
            if cohort.position < start:
                cohort.flush()  # it rests: its members are given what is about to be let go
        stream.start = start
        stream.size -= dropped
        stream.version = object()
        if stream.forks:
            self._follow(stream)
        self._catalog.charge(stream, -stream.drop_cache(start))
        self._trim(stream)

    def _trim(self, stream: Stream) -> None:
        """Have the disk know where a stream begins; tried again later if it cannot be told now."""
        if not stream.memory:
            self._commits.operate(TrimStream(stream.sid, stream.start), partial(self._untold.add, stream))

    def _tell(self) -> None:
        """What the disk could not be told."""
        if self._commits.failed:
            return
        untold, self._untold = self._untold, set()
        for stream in untold:
            if not stream.deleted:
                self._trim(stream)

    def _follow(self, source: Stream) -> None:
        """Forks begin no earlier than what their source still has."""
        for fork in source.branches:
            if fork.start < min(source.start, fork.own_start):
                fork.start = min(source.start, fork.own_start)
                fork.version = object()
                self._follow(fork)

    def retain_by_age(self, now_ms: int) -> None:
        """Let records go that are older than their stream keeps them, in every stream."""
        self._aged = self._ageing()
        self._retain_by_age(now_ms, len(self._aged))

    def _ageing(self) -> list[str]:
        """Paths of streams that keep records for a time only."""
        history = self._catalog.history
        paths = set(history.aged()) if history else set()
        paths.update(p for p, s in self._catalog.streams.items() if s.config.retention_age_s is not None)
        return list(paths)

    def _retain_by_age(self, now_ms: int, count: int) -> None:
        if self._commits.failed:
            return
        paths, self._aged = self._aged[:count], self._aged[count:]
        for path in paths:
            with contextlib.suppress(DamagedStore):
                stream = self._lookup(path)
                if (
                    stream is not None
                    and stream.config.retention_age_s is not None
                    and not (stream.gone or stream.awaited)
                ):
                    self._retain(stream, before_ms=now_ms - stream.config.retention_age_s * 1000)

    def expire(self, now_ms: int) -> None:
        """Remove streams whose time is over; one that is being read has its time over again."""
        if self._commits.failed:
            return
        heap = self._catalog.deadlines
        while heap and heap[0][0] <= now_ms:
            _, number, stream = heapq.heappop(heap)
            if stream.deleted or stream.gone or stream.deadline_ms is None:
                continue
            if stream.is_read and stream.config.ttl_s is not None:
                stream.deadline_ms = now_ms + stream.config.ttl_s * 1000
            if stream.deadline_ms <= now_ms:
                self._remove(stream)
            else:
                heapq.heappush(heap, (stream.deadline_ms, number, stream))
                self._store_deadline(stream)
        if self._catalog.history:
            for path in self._catalog.history.expired(now_ms, EXPIRED_MAX):
                with contextlib.suppress(DamagedStore):
                    found = self._lookup(path)
                    if found is not None:
                        self._store_deadline(found)

    def settle(self) -> None:
        """Before a stop: have every time to live, and every start, on disk as it is."""
        self._tell()
        for stream in self._catalog.streams.values():
            if stream.live and not stream.gone:
                self._store_deadline(stream)

    def _store_deadline(self, stream: Stream) -> None:
        """A window that slid on must not have ended after a restart."""
        if stream.deadline_ms != stream.stored_deadline_ms and not (stream.memory or stream.awaited):
            untouched = partial(setattr, stream, "stored_deadline_ms", stream.stored_deadline_ms)
            stream.stored_deadline_ms = stream.deadline_ms
            assert stream.deadline_ms is not None
            self._commits.operate(TouchStream(stream.sid, stream.deadline_ms), untouched)

    def heartbeat(self) -> None:
        """Write a comment to every follower that heard nothing since the last call."""
        for stream in [*self._catalog.streams.values(), *self.views()]:
            for cohort in list(stream.cohorts.values()):
                cohort.heartbeat()
