"""The embedded engine: an implementation of ``Log`` over streams in memory and, unless all of it is to be forgotten,
the store on disk. Everything here runs on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from wayside.core.callbacks import Done
from wayside.core.clock import Clock, SystemClock
from wayside.core.engine import Statistics
from wayside.core.errors import BadRequest, Gone, Refusal, TooLarge
from wayside.core.globs import Glob
from wayside.core.limits import Limits
from wayside.core.policies import Policy
from wayside.core.records import (
    Append,
    Appended,
    Batch,
    Create,
    Durability,
    Spool,
    StreamInfo,
    StreamTail,
    require_config,
    require_path,
)
from wayside.storage.embedded.admission import Dedupe, Found, check, identity_of, require_one
from wayside.storage.embedded.catalog import Directory, kept_for_forks, no_such_stream
from wayside.storage.embedded.commit import Commits
from wayside.storage.embedded.creation import Creation
from wayside.storage.embedded.files import CHECKED_VFS
from wayside.storage.embedded.retention import Upkeep
from wayside.storage.embedded.store import Store
from wayside.storage.embedded.stream import Stream
from wayside.storage.embedded.tables import DeleteStream
from wayside.streams.contract import Encoding, Sink
from wayside.streams.followers import Follower, Tally
from wayside.streams.selective import selective
from wayside.streams.union import Unions


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
        self.durable = directory is not None
        self.tally = Tally()
        self._epoch = self.clock.wall_ms()
        self._directory = Directory(self.store, self.limits, self.clock, self._read_later)
        self._commits = Commits(self.store, self._directory, self.limits, self.clock)
        self._creation = Creation(self._directory, self._commits, self.clock, self._lookup, self._take_epoch)
        self.upkeep = Upkeep(self._directory, self._commits, self.clock, self._lookup, self._remove)
        self._commits.on_shown = self.upkeep.bound
        self._unions = Unions(self, self.clock, self.tally)
        self.upkeep.views = lambda: self._unions.views
        self._dedupe = Dedupe(self.clock, self.limits, self._load_identities if self.store else None)
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
        self._unions.stop()
        for stream in list(self._directory.streams.values()):
            stream.end_followers("drain")
        for follower in list(self.tally.behind):
            follower.leave_behind()
        await self._dedupe.settle()
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
            policies=dict(self.tally.policies),
            skipped=dict(self.tally.skipped),
            lagged=self.tally.lagged,
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

    async def _load_identities(self, stream: Stream, since_ms: int, count_max: int) -> Found:
        assert self.store is not None
        assert self._loop is not None
        read = self.store.history.identities
        return await self._loop.run_in_executor(self._readers, read, stream.sid, since_ms, count_max)

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

    def watch(self, glob: Glob, told: Callable[[Stream], None]) -> Callable[[], None]:
        """Have ``told`` called with each stream that ``glob`` matches and that has changed, once for all of a commit; returns
        how to end it."""
        return self._directory.watch(glob, told)

    def tails(self, glob: Glob) -> Iterator[StreamTail]:
        """The streams that ``glob`` matches, by path, as of the call; none is loaded for it."""
        return iter(self._directory.tails(glob, self.clock.wall_ms()))

    def union(self, glob: Glob, done: Done) -> None:
        """All streams that ``glob`` matches, also those made later, as one: ``done`` gets a view to be read or followed at
        once, or an exception."""
        self._unions.open(glob, done)

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
        identity = "" if append.meta is None else identity_of(append)
        if (identity or stream.waiting is not None) and self._dedupe.wait(
            stream, partial(self._append_waited, path, append, done, bool(identity)), identified=bool(identity)
        ):
            return
        if identity and self._appended_before(stream, identity, done):
            return
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
        if append.meta is not None:
            _require_whole(stream, append)
        records = stream.split(append.body) if append.records is None else [*append.records]
        if identity:
            require_one(len(records) if isinstance(records, list) else 0)
        if not records and not append.close:
            raise BadRequest(
                "The body is empty: there is nothing to append. Send a body, or Stream-Closed: true to close.",
                code="empty-append",
            )
        self._commits.append(stream, append, records, done)
        if identity:
            self._dedupe.note(stream, identity)

    def _appended_before(self, stream: Stream, identity: str, done: Done) -> bool:
        """Whether a record with the id was appended; then it is answered, when that record is committed."""
        end = self._dedupe.find(stream, identity)
        if end is None:
            return False
        self._commits.answer(stream, done, lambda: Appended(*stream.offset(end), closed=stream.closed, duplicate=True))
        return True

    def _append_waited(self, path: str, append: Append, done: Done, identified: bool, refusal: Refusal | None) -> None:
        if refusal is not None and identified:
            done(refusal)
        else:
            self._append_again(path, append, done)

    def append_all(self, appends: Sequence[tuple[str, Append]], done: Done, *, in_line: bool = False) -> bool:
        """Append to several streams in one transaction: all of them, or none; ``done`` gets a list of ``Appended`` after the
        commit, in order, or an exception. Takes records only: no producers, no closing. What has no message id waits for
        nothing, so that who appends may count on its place; ``in_line`` it waits behind what has. Returns whether it waits:
        then later appends to the same streams may come before it. Raises at once what can be known now."""
        checked: list[tuple[Stream, Append, str]] = []
        for path, append in appends:
            stream = self.find(path)
            assert append.records is not None, "append_all takes records"
            identity = "" if append.meta is None else identity_of(append)
            if identity:
                require_one(len(append.records))
            if (identity or (in_line and stream.waiting is not None)) and self._dedupe.wait(
                stream, partial(self._append_all_waited, appends, done, in_line), identified=bool(identity)
            ):
                return True
            if not identity or self._dedupe.find(stream, identity) is None:
                check(stream, append)
            self._commits.require_working(stream.config.durability)
            checked.append((stream, append, identity))
        results: list[Any] = [None] * len(checked)
        left = len(checked)

        def told(number: int, result: Any) -> None:
            nonlocal left
            results[number] = result
            left -= 1
            if not left:
                done(next((result for result in results if isinstance(result, Exception)), results))

        for number, (stream, append, identity) in enumerate(checked):  # nothing is refused from here on
            if identity and self._appended_before(stream, identity, partial(told, number)):
                continue
            self._commits.append(stream, append, [*(append.records or ())], partial(told, number))
            if identity:
                self._dedupe.note(stream, identity)
        if not checked:
            done([])
        return False

    def _append_all_waited(
        self, appends: Sequence[tuple[str, Append]], done: Done, in_line: bool, refusal: Refusal | None
    ) -> None:
        try:
            if refusal is not None:
                raise refusal
            self.append_all(appends, done, in_line=in_line)
        except Exception as error:
            done(error)

    def trim(self, path: str, position: int) -> None:
        """Let go of what a stream has before ``position``, as far as whole chunks and batches are before it."""
        self.upkeep.trim(self.find(path, touch=False), position)

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
        stream.tell()

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
        policy: Policy | None = None,
        ended: Callable[[], None] | None = None,
    ) -> Follower:
        """Start a follower at ``position``: it ends at ``until``, or is sent ``credit`` records until granted more."""
        what: Any = (stream, position, encoding, sink, pattern, self.tally)
        if policy is None:
            follower = Follower(*what, until=until, credit=credit, ended=ended)
        else:
            follower = selective(policy, *what, until=until, credit=credit, ended=ended)
        sink.attach(follower)
        follower.start()
        return follower

    def delivered(self, pattern: str, count: int) -> None:
        """Count records given by a pattern that follows nothing."""
        self.tally.delivered(pattern, count)


def _require_whole(stream: Stream, append: Append) -> None:
    """Raise :class:`TooLarge` for a body that becomes several records, or would, because of its size."""
    if isinstance(append.body, Spool) and not stream.json:
        raise TooLarge(
            f"A body of {append.body.size} bytes becomes several records: headers, an id, a key and an expiry are for "
            f"one of at most {stream.limits.body_memory_bytes_max} bytes. Send it in smaller parts, or without them.",
            fields={"limit_bytes": stream.limits.body_memory_bytes_max},
        )
