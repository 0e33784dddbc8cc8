"""The embedded engine: an implementation of ``Log`` over streams in memory and, unless all of it is to be forgotten,
the store on disk. Everything here runs on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from wayside.contracts import Clock, Done, Encoding, Sink, Statistics, SystemClock
from wayside.errors import BadRequest, Gone, Refusal
from wayside.limits import Limits
from wayside.log.admission import check
from wayside.log.commits import Commits
from wayside.log.creation import Creation
from wayside.log.directory import Directory, kept_for_forks, no_such_stream
from wayside.log.files import CHECKED_VFS
from wayside.log.rows import DeleteStream
from wayside.log.store import Store
from wayside.log.stream import Stream
from wayside.log.tail import Follower, Tally
from wayside.log.upkeep import Upkeep
from wayside.model import Append, Batch, Create, Durability, StreamInfo, require_config, require_path


class EmbeddedLog:
    """Streams of one hub. ``directory`` None keeps everything in memory.

    Raises :class:`~wayside.errors.StoreUnusable` or ``DamagedStore`` where the directory cannot be opened.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        vfs: str = CHECKED_VFS,
    ) -> None:
        self.limits = limits or Limits()
        self.clock = clock or SystemClock()
        self.store = Store(directory, vfs=vfs, now_ms=self.clock.wall_ms()) if directory else None
        self.tally = Tally()
        self._epoch = self.clock.wall_ms()
        self._directory = Directory(self.store, self.limits, self._read_later)
        self._commits = Commits(self.store, self._directory, self.limits, self.clock)
        self._creation = Creation(self._directory, self._commits, self.clock, self._lookup, self._take_epoch)
        self.upkeep = Upkeep(self._directory, self._commits, self.clock, self._lookup, self._remove)
        self._commits.on_shown = self.upkeep.bound
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: ThreadPoolExecutor | None = None

    # -- life

    def start(self) -> None:
        """Begin to serve, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._commits.start(self._loop)
        self.upkeep.start(self._loop)
        if self.store:
            self._readers = ThreadPoolExecutor(1, "wayside-reader")

    async def close(self) -> None:
        """End followers as by a drain, commit what is accepted, close the store."""
        assert self._loop is not None
        self.upkeep.stop()
        for stream in list(self._directory.streams.values()):
            stream.end_followers("drain")
        for follower in list(self.tally.behind):
            follower.leave_behind()
        self.upkeep.settle()
        await self._commits.close()
        if self.store and self._readers:
            self._readers.shutdown()
            await self._loop.run_in_executor(None, self.store.close)

    @property
    def failed(self) -> str | None:
        """Why nothing is acknowledged any more, or None."""
        return self._commits.failed

    @property
    def on_commit(self) -> Callable[[float, int], None] | None:
        """Told the seconds and the number of appends of every commit."""
        return self._commits.on_commit

    @on_commit.setter
    def on_commit(self, told: Callable[[float, int], None] | None) -> None:
        self._commits.on_commit = told

    def statistics(self) -> Statistics:
        return Statistics(
            streams=self._directory.count,
            appends=self._commits.appends,
            records=self._commits.records,
            bytes=self._commits.bytes,
            deliveries=dict(self.tally.deliveries),
            followers=dict(self.tally.followers),
            lag_records=self.tally.lag_records(),
            store_bytes=self.store.size if self.store else 0,
            uncommitted_bytes=self._commits.uncommitted_bytes,
            cached_bytes=self._directory.cached_bytes + self._directory.memory_bytes,
        )

    # -- finding

    def find(self, path: str, *, touch: bool = True) -> Stream:
        """The stream at ``path``; ``touch`` counts as a read of it. Raises ``NotFound`` or ``Gone``."""
        stream = self._directory.streams.get(path)
        if stream is not None and stream.deadline_ms is None and stream.live and not stream.gone:
            return stream
        stream = self._lookup(path)
        if stream is None or not stream.live:
            raise no_such_stream(path)
        if stream.gone:
            raise kept_for_forks(path)
        if touch and stream.config.ttl_s is not None:
            stream.deadline_ms = self.clock.wall_ms() + stream.config.ttl_s * 1000
        return stream

    def _lookup(self, path: str) -> Stream | None:
        """The stream at ``path``, removed first if its time is over."""
        stream = self._directory.lookup(path)
        if stream is not None and stream.deadline_ms is not None and not stream.gone:
            read = stream.is_read and stream.config.ttl_s is not None
            if not read and self.clock.wall_ms() >= stream.deadline_ms:
                self._remove(stream)
                return self._directory.streams.get(path)
        return stream

    async def _read_later(self, stream: Stream, position: int, bytes_max: int) -> list[Batch]:
        if self.store is None or self._readers is None or self._loop is None:
            raise Gone(f"{stream.path} has been let go.", code="stream-deleted")
        read = self.store.history.read
        records_max = self.limits.read_records_max
        return await self._loop.run_in_executor(
            self._readers, read, stream.sid, position, bytes_max, records_max, stream.separator
        )

    def list(self, prefix: str, after: str, limit: int, *, open_only: bool = False) -> list[StreamInfo]:
        """Streams whose path begins with ``prefix``, after ``after``, by path; ``open_only`` leaves out closed ones."""
        directory = self._directory
        infos: list[StreamInfo] = []
        while True:
            page = directory.history.paths(prefix, after, limit, open_only=open_only) if directory.history else []
            last = page[-1] if len(page) == limit else None  # there may be more behind it
            loaded = [p for p in directory.streams if after < p and p.startswith(prefix) and (not last or p <= last)]
            for path in sorted({*page, *loaded}):
                stream = self._lookup(path)
                if stream is not None and stream.live and not stream.gone and not (open_only and stream.closed):
                    infos.append(stream.info())
                    if len(infos) == limit:
                        return infos
            if last is None:
                return infos
            after = last

    # -- changing

    def create(self, path: str, create: Create, done: Done) -> None:
        """Make a stream; ``done`` gets ``Created`` after the commit, or an exception. Raises at once what can be known
        now."""
        if not create.fresh:
            require_path(path, self.limits.path_bytes_max)
            require_config(create.config)
        self._creation.create(path, create, done)

    def _take_epoch(self) -> int:
        if self.store:
            return self.store.take_epoch()
        self._epoch += 1
        return self._epoch

    def append(self, path: str, append: Append, done: Done) -> None:
        """Append; ``done`` gets ``Appended`` after the commit, or an exception. Raises at once what can be known now."""
        known = self._directory.streams.get(path)
        if known is not None and self._commits.take(known, append, done):
            return
        self._append(path, append, done)

    def _append(self, path: str, append: Append, done: Done, *, settled: bool = False) -> None:
        stream = self.find(path)
        try:
            answer = check(stream, append)
        except Refusal:
            if settled or not (stream.unsettled and stream.fsync):
                raise
            # What it is refused for may yet be taken back: then it is looked at anew. If not, it has waited once.
            again = partial(self._append_again, path, append, done)
            self._commits.then(partial(again, settled=True), lambda _refusal: again())
            return
        if answer is not None:
            self._commits.answer(stream, done, lambda: answer)
            return
        self._commits.require_working(stream.config.durability, adding=bool(append.body or append.records))
        records = stream.split(append.body) if append.records is None else [*append.records]
        if not records and not append.close:
            raise BadRequest(
                "The body is empty: there is nothing to append. Send a body, or Stream-Closed: true to close.",
                code="empty-append",
            )
        self._commits.append(stream, append, records, done)

    def _append_again(self, path: str, append: Append, done: Done, *, settled: bool = False) -> None:
        try:
            self._append(path, append, done, settled=settled)
        except Exception as error:
            done(error)

    def delete(self, path: str, done: Done) -> None:
        """Delete; ``done`` gets None after the commit, or an exception."""
        stream = self.find(path, touch=False)
        self._commits.require_working(stream.config.durability, adding=False)
        self._remove(stream)
        self._commits.answer(stream, done, lambda: None)

    def _remove(self, stream: Stream) -> None:
        """Take a stream out of sight at once, and off the disk with the next commit; then its source too, where this was
        the last fork of a deleted one."""
        soft, was_gone = stream.forks > 0, stream.gone
        if not was_gone:
            self._directory.count -= 1
        stream.gone = True
        stream.version = object()
        if not soft:
            self._directory.streams.pop(stream.path, None)
            stream.deleted = True
            if stream.source is not None:
                stream.source.forks -= 1
        if stream.config.durability is Durability.MEMORY:
            self._removed(stream, soft)
        else:
            if not soft:
                self._directory.leaving[stream.path] = stream
            self._commits.operate(DeleteStream(stream.sid, soft), partial(self._unremove, stream, soft, was_gone))
            self._commits.then(partial(self._removed, stream, soft))
        source = stream.source
        if not soft and source is not None and source.gone and source.forks == 0:
            self._remove(source)

    def _removed(self, stream: Stream, soft: bool) -> None:
        if not soft:
            self._directory.leaving.pop(stream.path, None)
            self._directory.let_go(stream)
        stream.retire()

    def _unremove(self, stream: Stream, soft: bool, was_gone: bool) -> None:
        """Take back a deletion whose commit failed."""
        stream.gone, stream.deleted = was_gone, False
        if not was_gone:
            self._directory.count += 1
        if not soft:
            self._directory.leaving.pop(stream.path, None)
            self._directory.streams.setdefault(stream.path, stream)
            if stream.source is not None:
                stream.source.forks += 1

    # -- following

    def follow(
        self,
        stream: Any,
        position: int,
        encoding: Encoding,
        sink: Sink,
        pattern: str,
        until: int | None = None,
        credit: int | None = None,
    ) -> Follower:
        """Start a follower at ``position``: it ends at ``until``, or is sent ``credit`` records until granted more."""
        follower = Follower(stream, position, encoding, sink, pattern, self.tally, until=until, credit=credit)
        sink.attach(follower)
        follower.start()
        return follower

    def delivered(self, pattern: str, count: int) -> None:
        """Count records given by a pattern that follows nothing."""
        self.tally.delivered(pattern, count)
