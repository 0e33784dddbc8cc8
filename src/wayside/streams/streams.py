"""The streams of one hub: what it makes of an engine. The implementation of :class:`~wayside.streams.contract.Log`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from wayside.core.callbacks import Done
from wayside.core.clock import Clock, SystemClock
from wayside.core.engine import Abilities, DeleteStream, Engine, Statistics, Submits, require_atomic
from wayside.core.errors import BadRequest, Gone, NotFound, Overloaded, Refusal, TooLarge
from wayside.core.globs import Glob
from wayside.core.limits import Limits
from wayside.core.policies import Policy
from wayside.core.records import (
    Append,
    Appended,
    Batch,
    Create,
    Durability,
    Meta,
    Spool,
    StreamInfo,
    StreamTail,
    is_reserved,
    require_config,
    require_path,
    runs,
)
from wayside.streams.admission import check
from wayside.streams.catalog import Catalog, kept_for_forks, no_such_stream
from wayside.streams.commit import Commits
from wayside.streams.contract import Encoding, Sink
from wayside.streams.creation import Creation
from wayside.streams.deduplication import Deduplication, Found, identity_of, require_one
from wayside.streams.followers import Follower, Tally
from wayside.streams.mirror import Mirror
from wayside.streams.optimistic import OptimisticCommits
from wayside.streams.retention import Retention
from wayside.streams.selective import choice_of
from wayside.streams.stream import Stream
from wayside.streams.union import Unions

EPOCH_BITS = 43
"""Of those of an engine with several hubs: an offset has room for one more."""
SHORT_S = 0.002
"""How soon a read is repeated that ended before what is acknowledged."""


class Streams:
    """The streams of one hub, on an engine. Everything here runs on one event loop.

    An engine that ``Submits`` is asked at once, and has its transactions made up here (:mod:`wayside.streams.commit`); any
    other is waited for (:mod:`wayside.streams.optimistic`): what it has is mirrored here, by its feed of changes. Streams
    with durability ``memory`` are nowhere but here, whatever the engine.
    """

    def __init__(self, engine: Engine, *, limits: Limits | None = None, clock: Clock | None = None) -> None:
        self.engine = engine
        self.limits = limits or Limits()
        self.clock = clock or SystemClock()
        self.durable = engine.abilities.durable
        self.tally = Tally()
        self._submits = engine if isinstance(engine, Submits) else None
        awaited = self.durable and self._submits is None
        self.abilities = (
            dataclasses.replace(engine.abilities, atomic=False) if awaited else Abilities(durable=self.durable)
        )
        """What its streams can do. Those in memory are this hub's own, and can do everything."""
        self._epoch = self.clock.wall_ms()
        self._catalog = Catalog(self._submits, self.limits, self.clock, self._read_later, awaited=awaited)
        self._dedupe = Deduplication(self.clock, self.limits, self._load_identities if self.durable else None)
        self._commits = Commits(self._submits, self._catalog, self.limits, self.clock)
        self._creation = Creation(self._catalog, self._commits, self.clock, self._lookup, self._take_epoch)
        self.retention = Retention(self._catalog, self._commits, self.clock, self._lookup, self._remove)
        self._commits.on_shown = self.retention.bound
        self._optimistic: OptimisticCommits | None = None
        self._mirror: Mirror | None = None
        if awaited:
            self._mirror = Mirror(engine, self._catalog, self.clock, self._busy, self._ask)
            optimistic = self._optimistic = OptimisticCommits(
                engine,
                self._catalog,
                self._dedupe,
                self.limits,
                self.clock,
                partial(self._mirror.adopt, between=True),
                self.retention.bound,
                self._idle,
            )
            self._creation.awaits(engine, optimistic, self._mirror.adopt)
        self._unions = Unions(self, self.clock, self.tally)
        self.retention.views = lambda: self._unions.views
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Streams on {self.engine!r}>"

    # -- life

    def start(self) -> None:
        """Begin to serve, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._commits.start(self._loop)
        self.retention.start(self._loop)
        if self._mirror is not None:
            self._mirror.start()

    async def ready(self) -> None:
        """Wait until what the engine has is known here."""
        if self._mirror is not None:
            await self._mirror.ready()

    async def close(self) -> None:
        """End followers as by a drain, commit what is accepted, close the engine."""
        assert self._loop is not None
        self.retention.stop()
        self._unions.stop()
        for stream in list(self._catalog.streams.values()):
            stream.end_followers("drain")
        for follower in list(self.tally.behind):
            follower.leave_behind()
        await self._dedupe.settle()
        self.retention.settle()
        await self._commits.close()
        if self._optimistic is not None:
            await self._optimistic.close()
        if self._mirror is not None:
            await self._mirror.stop()
        await self.engine.close()

    @property
    def idle(self) -> bool:
        """Whether the engine has all that it is to have."""
        return self._commits.idle and (self._optimistic is None or self._optimistic.idle)

    async def quiet(self) -> None:
        """Wait for what is being read from the engine now, if it reads one thing after another."""
        if self._submits is not None:
            await self._submits.look_up(int)

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
        if self._optimistic is not None:
            self._optimistic.on_commit = told

    def statistics(self) -> Statistics:
        commits: list[Commits | OptimisticCommits] = [self._commits]
        if self._optimistic is not None:
            commits.append(self._optimistic)
        return Statistics(
            streams=self._catalog.count,
            appends=sum([each.appends for each in commits]),
            records=sum([each.records for each in commits]),
            bytes=sum([each.bytes for each in commits]),
            deliveries=dict(self.tally.deliveries),
            followers=dict(self.tally.followers),
            policies=dict(self.tally.policies),
            skipped=dict(self.tally.skipped),
            lagged=self.tally.lagged,
            lag_records=self.tally.lag_records(),
            store_bytes=self._submits.size if self._submits is not None else 0,
            uncommitted_bytes=sum([each.uncommitted_bytes for each in commits]),
            cached_bytes=self._catalog.cached_bytes + self._catalog.memory_bytes,
        )

    # -- an engine that is waited for

    def _busy(self, stream: Stream) -> bool:
        return self._optimistic is not None and self._optimistic.busy(stream)

    def _idle(self, stream: Stream) -> None:
        assert self._mirror is not None
        if self._mirror.has_news(stream):
            self._ask(stream.path)

    def _ask(self, path: str) -> None:
        """Have the engine asked what is at a path, in the background."""
        assert self._optimistic is not None
        self._optimistic.spawn(self._asked(path))

    async def _asked(self, path: str) -> None:
        assert self._mirror is not None
        try:
            await self._refresh(path)
        except Refusal:
            self._mirror.note(path)  # the next time that something is on its way there

    def refresh(self, path: str, done: Done) -> None:
        """Ask the engine what is at a path, if it may have more than is known here; ``done`` gets None, or an exception."""

        async def ask() -> None:
            try:
                await self._refresh(path)
            except Exception as error:
                done(error)
            else:
                done(None)

        if self._optimistic is None:
            done(None)
        else:
            self._optimistic.spawn(ask())

    async def _refresh(self, path: str) -> None:
        if self._optimistic is None or self._mirror is None:
            return
        stream = self._catalog.streams.get(path)
        if stream is None:
            self._mirror.adopt(path, await self._optimistic.asked(lambda: self.engine.head(path)))
        elif stream.awaited:
            await self._optimistic.look(stream)

    async def _trim_awaited(self, stream: Stream, position: int) -> None:
        """Let go of a beginning, as far as the engine can; what could not be let go now is with the next trim."""
        assert self._optimistic is not None
        with contextlib.suppress(Refusal):
            await self._optimistic.asked(lambda: self.engine.trim(stream.path, stream.sid, position))

    # -- finding

    def find(self, path: str, *, touch: bool = True) -> Stream:
        """The stream at ``path``; ``touch`` counts as a read of it. Raises ``NotFound`` or ``Gone``."""
        stream = self._catalog.streams.get(path)
        if stream is not None and stream.deadline_ms is None and stream.live and not stream.gone:
            return stream
        stream = self._lookup(path)
        if stream is None or not stream.live:
            raise no_such_stream(path)
        if stream.gone:
            raise no_such_stream(path) if stream.awaited else kept_for_forks(path)
        if touch and stream.config.ttl_s is not None:
            stream.deadline_ms = self.clock.wall_ms() + stream.config.ttl_s * 1000
        return stream

    def _lookup(self, path: str) -> Stream | None:
        """The stream at ``path``, removed first if its time is over."""
        stream = self._catalog.lookup(path)
        if stream is not None and stream.deadline_ms is not None and not stream.gone:
            read = stream.is_read and stream.config.ttl_s is not None
            if not read and self.clock.wall_ms() >= stream.deadline_ms:
                self._remove(stream)
                return None if stream.awaited else self._catalog.streams.get(path)
        return stream

    async def _read_later(self, stream: Stream, position: int, bytes_max: int) -> list[Batch]:
        records_max = self.limits.read_records_max
        engine = self._submits
        if engine is not None:
            read = partial(engine.heads.read, stream.sid, position, bytes_max, records_max, stream.separator)
            return await engine.look_up(read)
        if not stream.awaited or self._optimistic is None:
            raise Gone(f"{stream.path} has been let go.", code="stream-deleted")
        while True:
            batches = await self._optimistic.asked(
                lambda: self.engine.read(stream.path, stream.sid, position, bytes_max, records_max)
            )
            if batches or position >= stream.tail:
                return within(batches, bytes_max)
            await asyncio.sleep(SHORT_S)  # whoever answered has not all that is acknowledged yet

    async def _load_identities(self, stream: Stream, since_ms: int, count_max: int, start: int) -> Found:
        engine = self._submits
        if engine is not None:
            return await engine.look_up(partial(engine.heads.identities, stream.sid, since_ms, count_max))
        found: Found = []
        at, end = max(start, stream.start), stream.cache_from
        while at < end:
            batches = await self._read_later(stream, at, self.limits.read_bytes_max)
            for batch in batches:
                at = batch.end
                metas = batch.meta or {} if batch.time_ms >= since_ms else {}
                found += [(meta.id, batch.position + n + 1, batch.time_ms) for n, meta in metas.items() if meta.id]
        found.reverse()
        return found[:count_max]

    def list(self, prefix: str, after: str, limit: int, *, open_only: bool = False) -> list[StreamInfo]:
        """Streams whose path begins with ``prefix``, after ``after``, by path; ``open_only`` leaves out closed ones."""
        catalog = self._catalog
        infos: list[StreamInfo] = []
        while True:
            page = catalog.history.paths(prefix, after, limit, open_only=open_only) if catalog.history else []
            last = page[-1] if len(page) == limit else None  # there may be more behind it
            loaded = [p for p in catalog.streams if after < p and p.startswith(prefix) and (not last or p <= last)]
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
        return self._catalog.watch(glob, told)

    def tails(self, glob: Glob) -> Iterator[StreamTail]:
        """The streams that ``glob`` matches, by path, as of the call; none is loaded for it."""
        return iter(self._catalog.tails(glob, self.clock.wall_ms()))

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
        if self._submits is not None:
            return self._submits.take_epoch()
        if self._optimistic is not None:  # no other hub of this engine gives the same
            return 1 << EPOCH_BITS | secrets.randbits(EPOCH_BITS)
        self._epoch = max(self._epoch + 1, self.clock.wall_ms())
        return self._epoch

    def append(self, path: str, append: Append, done: Done) -> None:
        """Append; ``done`` gets ``Appended`` after the commit, or an exception. Raises at once what can be known now."""
        known = self._catalog.streams.get(path)
        if known is not None and self._commits.take(known, append, done):
            return
        self._append(path, append, done)

    def _append(self, path: str, append: Append, done: Done, *, settled: bool = False) -> None:
        try:
            stream = self.find(path)
        except NotFound:
            if settled or self._optimistic is None or is_reserved(path):
                raise
            self._optimistic.require_working()
            self._optimistic.spawn(self._append_elsewhere(path, append, done))
            return
        identity = "" if append.meta is None else identity_of(append)
        if stream.awaited:
            if append.meta is not None:
                _require_whole(stream, append)
            assert self._optimistic is not None
            self._optimistic.append(stream, append, identity, done)
            return
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
            self._dedupe.note(stream, identity, stream.next)

    async def _append_elsewhere(self, path: str, append: Append, done: Done) -> None:
        """Append to a stream that is not known here: another hub may have made it just now."""
        try:
            await self._refresh(path)
            self._append(path, append, done, settled=True)
        except Exception as error:
            done(error)

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
        if self._optimistic is not None and self._append_one(appends, done):
            return False
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
                self._dedupe.note(stream, identity, stream.next)
        if not checked:
            done([])
        return False

    def _append_one(self, appends: Sequence[tuple[str, Append]], done: Done) -> bool:
        """Append to one stream what comes in several appends, where several streams cannot share a transaction. False where
        all of them are in memory. Raises :class:`BadRequest` where there are several."""
        streams = {path: self.find(path) for path, _ in appends}
        if not any(stream.awaited for stream in streams.values()):
            return False
        identities = [identity_of(append) for _, append in appends if append.meta is not None]
        if len(streams) > 1 or (len(appends) > 1 and any(identities)):
            require_atomic(
                self.abilities,
                "records of several streams, or several with message ids, cannot be appended all or none. Send them one at "
                "a time",
            )
        records: list[bytes] = []
        metas: dict[int, Meta] = {}
        ends: list[int] = []
        for _, append in appends:
            assert append.records is not None, "append_all takes records"
            metas |= {len(records) + n: meta for n, meta in append.metas(len(append.records)).items()}
            records += append.records
            ends.append(len(records))

        def told(result: Any) -> None:
            if not isinstance(result, Exception):
                first = result.position - len(records)
                result = [replace(result, position=first + end) for end in ends]
            done(result)

        if records:
            self.append(appends[0][0], Append(b"", records=records, meta=metas or None), told)
        else:
            done([])
        return True

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
        stream = self.find(path, touch=False)
        if not stream.awaited:
            self.retention.trim(stream, position)
        elif self.engine.abilities.trims and self._optimistic is not None:
            for since in stream.holds:
                position = min(position, since())
            self._optimistic.spawn(self._trim_awaited(stream, min(position, stream.tail)))

    def _append_again(self, path: str, append: Append, done: Done, *, settled: bool = False) -> None:
        try:
            self._append(path, append, done, settled=settled)
        except Exception as error:
            done(error)

    def delete(self, path: str, done: Done) -> None:
        """Delete; ``done`` gets None after the commit, or an exception."""
        stream = self.find(path, touch=False)
        if stream.awaited:
            self._remove_awaited(stream, done)
            return
        self._commits.require_working(stream.config.durability, adding=False)
        self._remove(stream)
        self._commits.answer(stream, done, lambda: None)

    def _remove_awaited(self, stream: Stream, done: Done, *, expired: bool = False) -> None:
        """Delete a stream once what was accepted before is answered; where it has ``expired``, unless it was used since, here
        or by another hub. It is out of sight when the engine says so."""
        optimistic, mirror = self._optimistic, self._mirror
        assert optimistic is not None
        assert mirror is not None

        async def delete() -> None:
            try:
                if expired:
                    mirror.adopt(stream.path, await optimistic.asked(lambda: self.engine.head(stream.path)))
                    if stream.deadline_ms is None or self.clock.wall_ms() < stream.deadline_ms:
                        raise Overloaded(f"{stream.path} is in use.", code="stream-used")
                await optimistic.asked(lambda: self.engine.delete(stream.path, stream.sid))
                mirror.retire(stream)
                done(None)
            except Exception as error:
                done(error)

        optimistic.then(stream, lambda: optimistic.spawn(delete()))

    def _remove(self, stream: Stream) -> None:
        """Take a stream out of sight at once, and off the disk with the next commit; then its source too, where this was
        the last fork of a deleted one."""
        if stream.awaited:
            if not stream.gone:
                stream.gone = True
                self._remove_awaited(stream, partial(self._removed_awaited, stream), expired=True)
            return
        soft, was_gone = stream.forks > 0, stream.gone
        if not was_gone:
            self._catalog.count -= 1
        stream.gone = True
        stream.version = object()
        if not soft:
            self._catalog.streams.pop(stream.path, None)
            stream.deleted = True
            if stream.source is not None:
                stream.source.forks -= 1
        if stream.config.durability is Durability.MEMORY:
            self._removed(stream, soft)
        else:
            if not soft:
                self._catalog.leaving[stream.path] = stream
            self._commits.operate(DeleteStream(stream.sid, soft), partial(self._unremove, stream, soft, was_gone))
            self._commits.then(partial(self._removed, stream, soft))
        source = stream.source
        if not soft and source is not None and source.gone and source.forks == 0:
            self._remove(source)

    def _removed_awaited(self, stream: Stream, result: Any) -> None:
        if isinstance(result, Exception) and stream.deadline_ms is not None:  # tried again by the next sweep
            stream.gone = False
            self._catalog.watch_deadline(stream)

    def _removed(self, stream: Stream, soft: bool) -> None:
        if not soft:
            self._catalog.leaving.pop(stream.path, None)
            self._catalog.let_go(stream)
        stream.retire()

    def _unremove(self, stream: Stream, soft: bool, was_gone: bool) -> None:
        """Take back a deletion whose commit failed."""
        stream.gone, stream.deleted = was_gone, False
        if not was_gone:
            self._catalog.count += 1
        if not soft:
            self._catalog.leaving.pop(stream.path, None)
            self._catalog.streams.setdefault(stream.path, stream)
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
        choice = None if policy is None else choice_of(policy)
        follower = Follower(
            stream,
            position,
            encoding,
            sink,
            pattern,
            self.tally,
            until=until,
            credit=credit,
            ended=ended,
            choice=choice,
        )
        sink.attach(follower)
        follower.start()
        return follower

    def delivered(self, pattern: str, count: int) -> None:
        """Count records given by a pattern that follows nothing."""
        self.tally.delivered(pattern, count)


def within(batches: list[Batch], bytes_max: int) -> list[Batch]:
    """The beginning of ``batches``, of about ``bytes_max`` bytes: an engine may give a batch only whole."""
    result: list[Batch] = []
    for batch in batches:
        if batch.size > bytes_max:
            first = runs(batch.records, batch.size, bytes_max, batch.count)[0]
            batch = batch.until(batch.position + len(first))
        result.append(batch)
        bytes_max -= batch.size
        if bytes_max <= 0:
            break
    return result


def _require_whole(stream: Stream, append: Append) -> None:
    """Raise :class:`TooLarge` for a body that becomes several records, or would, because of its size."""
    if isinstance(append.body, Spool) and not stream.json:
        raise TooLarge(
            f"A body of {append.body.size} bytes becomes several records: headers, an id, a key and an expiry are for "
            f"one of at most {stream.limits.body_memory_bytes_max} bytes. Send it in smaller parts, or without them.",
            fields={"limit_bytes": stream.limits.body_memory_bytes_max},
        )
