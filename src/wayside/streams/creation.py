"""Making streams: new ones, and forks of others (Durable Streams protocol, sections 4.2 and 5.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from wayside.core.callbacks import Done
from wayside.core.clock import Clock
from wayside.core.engine import CreateStream, Engine, Head, Put
from wayside.core.errors import BadRequest, Conflict, Gone, Overloaded, TooMany
from wayside.core.records import (
    Append,
    Create,
    Created,
    Durability,
    Spool,
    StreamConfig,
    is_reserved,
    media_type,
    start_position,
)
from wayside.streams.catalog import Catalog, no_such_stream
from wayside.streams.commit import Commits
from wayside.streams.optimistic import OptimisticCommits
from wayside.streams.stream import Stream, put_of


class Creation:
    """``lookup`` finds a stream that has not expired; ``take_epoch`` gives a number never given before."""

    def __init__(
        self,
        catalog: Catalog,
        commits: Commits,
        clock: Clock,
        lookup: Callable[[str], Stream | None],
        take_epoch: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._commits = commits
        self._clock = clock
        self._lookup = lookup
        self._take_epoch = take_epoch
        self._tasks: set[asyncio.Task[Any]] = set()
        self._engine: Engine | None = None
        self._optimistic: OptimisticCommits | None = None
        self._adopt: Callable[[str, Head | None], Stream | None] = lambda _path, _head: None

    def awaits(
        self, engine: Engine, optimistic: OptimisticCommits, adopt: Callable[[str, Head | None], Stream | None]
    ) -> None:
        """Streams that are not in memory are made by an engine that is waited for."""
        self._engine, self._optimistic, self._adopt = engine, optimistic, adopt

    def create(self, path: str, create: Create, done: Done) -> None:
        """Make the stream, or answer that it is there as asked for."""
        if create.source is not None and self._engine is not None:
            raise BadRequest(
                "This hub's engine cannot fork: a stream has its own records there. Copy them into a new stream.",
                code="forks-unavailable",
            )
        if create.fork_sub_offset and create.source is not None:
            task = asyncio.get_running_loop().create_task(self._create_inside(path, create, done))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        try:
            if create.fresh or not self._existing(path, create, done):
                self._create(path, create, None, b"", done)
        except Exception as error:
            done(error)

    async def _create_inside(self, path: str, create: Create, done: Done) -> None:
        """A fork whose boundary lies inside a record needs that record, which may be on the disk."""
        try:
            if self._existing(path, create, done):
                return
            source, at = self._fork_point(create)
            at, prefix = await self._point_inside(source, at, create.fork_sub_offset)
            if self._fork_point(create)[0] is not source:
                raise no_such_stream(source.path)
            if not self._existing(path, create, done):
                self._create(path, create, at, prefix, done)
        except Exception as error:
            done(error)

    async def _point_inside(self, source: Stream, at: int, rest: int) -> tuple[int, bytes]:
        """The position ``rest`` records (JSON) or bytes after ``at``, and the bytes of the record that it cuts."""
        overshoot = BadRequest(
            f"Stream-Fork-Sub-Offset is past the end of {source.path}.", code="fork-sub-offset-invalid"
        )
        if source.json:
            if at + rest > source.tail:
                raise overshoot
            return at + rest, b""
        while rest:
            if at >= source.tail:
                raise overshoot
            for batch in await source.read(at, self._catalog.limits.read_bytes_max):
                at = batch.position
                for record in batch.records:
                    if rest < len(record):
                        return at, record[:rest]
                    rest -= len(record)
                    at += 1
        return at, b""

    def _existing(self, path: str, create: Create, done: Done) -> bool:
        """Answer a creation where something is at the path already."""
        existing = self._lookup(path)
        if existing is None:
            return False
        if existing.gone and existing.awaited:
            raise Overloaded(f"{path} is being removed. Try again shortly.", headers={"Retry-After": "1"})
        if existing.gone:
            raise Conflict(f"{path} was deleted and is kept for its forks: its name is taken.", code="stream-deleted")
        if difference := _difference(existing, create):
            raise Conflict(
                f"{path} exists with another {difference}; see it with HEAD or `wayside info {path}`. Use it as it is, "
                "delete it first, or choose another name.",
                code="stream-exists",
                fields={"difference": difference},
            )
        self._commits.answer(existing, done, lambda: Created(False, existing))
        return True

    def _create(self, path: str, create: Create, at: int | None, prefix: bytes, done: Done) -> None:
        catalog, commits = self._catalog, self._commits
        if catalog.count >= catalog.limits.streams_max:
            raise TooMany(
                f"There are {catalog.count} streams, as many as the hub may have (--streams-max). Delete some.",
                code="too-many-streams",
            )
        if self._optimistic is not None and create.config.durability is not Durability.MEMORY:
            self._optimistic.spawn(self._create_awaited(path, create, done))
            return
        row, source = self._new(path, create, at)
        stream = catalog.new(row, source)
        if stream.memory and path in catalog.leaving:
            # It would not share the commit of that deletion, and so not its failure.
            again = partial(self.create, path, create, done)
            commits.then(again, lambda _refusal: again())
            return
        commits.require_working(stream.config.durability)
        records: list[bytes] | Spool = (
            stream.split(create.body, empty_array=True) if create.records is None else [*create.records]
        )
        catalog.enter(stream)
        catalog.count += 1
        if stream.source is not None:
            stream.source.forks += 1
        durable = stream.config.durability is not Durability.MEMORY
        if durable:
            stream.live = False
            commits.operate(CreateStream(row), partial(self._forget, stream))
        if prefix:
            commits.append(stream, Append(b""), [prefix], None)
        if records or create.closed:
            commits.append(stream, Append(b"", close=create.closed), records, None)
        if durable:
            commits.then(partial(self._made, stream, done), done)
        else:
            commits.answer(stream, partial(self._made, stream, done), lambda: None)

    async def _create_awaited(self, path: str, create: Create, done: Done) -> None:
        """Have the engine make it, with its first records; somebody else may be faster."""
        engine, optimistic = self._engine, self._optimistic
        assert engine is not None
        assert optimistic is not None
        try:
            kept = create.explicit & {"retention_bytes", "retention_age_s"}
            if kept and not is_reserved(path):  # the hub's own may grow
                raise BadRequest(
                    "On this hub's engine the beginning of a stream is not let go by itself: leave out the retention, or "
                    "give the stream a time to live.",
                    code="retention-unavailable",
                )
            head, _ = self._new(path, create, None)
            first = self._first(head, create)
            if first is not None:
                optimistic.require_fit(first.weight, len(first.records))
            found = await optimistic.asked(lambda: engine.create(head, first))
            stream = self._adopt(path, found)
            if stream is not None and stream.sid == found.sid == head.sid:
                done(Created(True, stream))
            elif not self._existing(path, create, done):
                raise no_such_stream(path)  # it has gone since
        except Exception as error:
            done(error)

    def _first(self, head: Head, create: Create) -> Put | None:
        """The batch that a stream is made with."""
        stream = self._catalog.new(head, None)
        records = stream.split(create.body, empty_array=True) if create.records is None else [*create.records]
        if not (records or create.closed):
            return None
        pending, _ = stream.accept(Append(b"", close=create.closed), records, None, self._clock)
        put = put_of(pending, stream)
        put.path = head.path
        return put

    @staticmethod
    def _made(stream: Stream, done: Done, _answer: None = None) -> None:
        stream.live = True
        done(Created(True, stream))
        stream.tell()

    def _forget(self, stream: Stream) -> None:
        """Take back a creation whose commit failed."""
        self._catalog.count -= 1
        if stream.source is not None:
            stream.source.forks -= 1
        self._catalog.let_go(stream)
        stream.retire()

    def _new(self, path: str, create: Create, at: int | None) -> tuple[Head, Stream | None]:
        config = create.config
        source = None
        if create.source is not None:
            source, point = self._fork_point(create)
            at = point if at is None else at
            if not source.start <= at <= source.tail:  # retention went on while the record was looked for
                raise BadRequest(
                    f"{source.path} no longer has the records before that point.", code="fork-offset-invalid"
                )
            config = _forked_config(create, source.config)
        elif self._catalog.history is None and self._engine is None:
            if "durability" in create.explicit and config.durability is not Durability.MEMORY:
                raise BadRequest(
                    f"This hub keeps nothing on disk: durability {config.durability.value} cannot be had. Leave it out, or "
                    "start the hub with a data directory.",
                    code="durability-unavailable",
                )
            config = replace(config, durability=Durability.MEMORY)
        epoch = self._take_epoch()
        if source is None:
            row = Head(epoch, path, config, [(0, epoch)])
        else:
            assert at is not None
            lineage = [pair for pair in source.lineage if pair[0] < at] or source.lineage[:1]
            row = Head(epoch, path, config, [*lineage, (at, epoch)], source.start, at)
            row.source, row.fork = source.sid, _fork_request(create)
        if config.ttl_s is not None:
            row.expires_ms = self._clock.wall_ms() + config.ttl_s * 1000
        elif config.expires_at_ms is not None:
            row.expires_ms = config.expires_at_ms
        return row, source

    def _fork_point(self, create: Create) -> tuple[Stream, int]:
        assert create.source is not None
        source = self._lookup(create.source)
        if source is None or not source.live:
            raise no_such_stream(create.source)
        if source.gone:
            raise Conflict(f"{create.source} was deleted: it cannot be forked any more.", code="stream-deleted")
        have, want = source.config, create.config
        if "content_type" in create.explicit and media_type(want.content_type) != media_type(have.content_type):
            raise Conflict(
                f"{create.source} is {have.content_type}; its fork cannot be {want.content_type}.",
                code="content-type-mismatch",
            )
        if "durability" in create.explicit and want.durability is not have.durability:
            raise Conflict(
                f"A fork shares records with its source, and so its durability: {have.durability.value}.",
                code="durability-mismatch",
            )
        try:
            return source, start_position(source, "now" if create.fork_offset is None else str(create.fork_offset))
        except Gone as error:
            raise BadRequest(error.detail, code="fork-offset-invalid", fields=error.fields) from error


def _fork_request(create: Create) -> tuple[str, str | None, int]:
    assert create.source is not None
    return create.source, None if create.fork_offset is None else str(create.fork_offset), create.fork_sub_offset


def _difference(stream: Stream, create: Create) -> str | None:
    """What of an existing stream does not match a creation; None where it may stand for it."""
    have, want = stream.config, create.config
    forked = create.source is not None
    if stream.fork != (_fork_request(create) if forked else None):
        return "fork point"
    if stream.closing != create.closed:
        return "closure status"
    if (not forked or "content_type" in create.explicit) and have.content_type.lower() != want.content_type.lower():
        return "content type"
    if (not forked or create.explicit & {"ttl_s", "expires_at"}) and (
        have.ttl_s != want.ttl_s or have.expires_at_ms != want.expires_at_ms
    ):
        return "time to live"
    for name in ("durability", "retention_bytes", "retention_age_s"):
        if name in create.explicit and getattr(have, name) != getattr(want, name):
            return {"durability": "durability"}.get(name, "retention")
    return None


def _forked_config(create: Create, have: StreamConfig) -> StreamConfig:
    """The configuration of a fork: what was asked for, else the source's (protocol section 4.2)."""
    changes: dict[str, Any] = {
        name: getattr(create.config, name) for name in ("retention_bytes", "retention_age_s") if name in create.explicit
    }
    if create.explicit & {"ttl_s", "expires_at"}:
        changes |= {name: getattr(create.config, name) for name in ("ttl_s", "expires_at_ms", "expires_at")}
    return replace(have, **changes)
