"""One stream in memory: what is committed, what is on its way, recent records, and who follows.

An append that was checked (:mod:`wayside.streams.admission`) takes its position at once, or where other hubs append too
when the engine says so; it is shown to readers only by :meth:`Stream.commit`. :meth:`Pending.undo` takes it back when its
commit failed. Nothing here touches a disk or a socket.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from operator import attrgetter

import msgspec

from wayside.core.callbacks import Done, guarded
from wayside.core.clock import Clock
from wayside.core.engine import END, FORGOTTEN, AppendState, Head, Put, offset_in
from wayside.core.errors import DamagedStore, Gone, Refusal, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import (
    BATCH_COST,
    RECORD_COST,
    Append,
    Batch,
    Durability,
    Meta,
    Offset,
    Producer,
    Spool,
    StreamInfo,
    cost_of,
    metas_between,
    require_size,
    runs,
    split_records,
)
from wayside.streams.contract import Encoding
from wayside.streams.followers import Cohort, Tally

ReadLater = Callable[["Stream", int, int], Awaitable[list[Batch]]]


_position = attrgetter("position")


class Stream:
    """One stream. ``tail`` is what readers see, ``next`` where the next append goes."""

    __slots__ = {
        "_later": "",
        "_now_ms": "",
        "_told": "The version that they were last told of.",
        "awaited": "Whether its engine is waited for and may have other writers, so that what is appended has its place only when the engine says so.",
        "batches": "",
        "branches": "Forks of it that are loaded.",
        "cache_from": "From this position on everything is in memory.",
        "cached_bytes": "About how much memory ``batches`` take.",
        "closed": "",
        "closed_by": "",
        "closing": "",
        "cohorts": "",
        "config": "",
        "deadline_ms": "",
        "deleted": "",
        "entered": "Whether it is in the catalog, which then counts the memory it takes.",
        "fork": "",
        "forks": "",
        "fsync": "Whether its appends are shown by the commit of a transaction that this hub makes up.",
        "gone": "Deleted, and kept for its forks only.",
        "holds": "Each says from where on somebody has still to do with the records: retention lets none of them go.",
        "json": "",
        "keep_bytes": "",
        "kept_by_cost": "Whether ``keep_bytes`` bounds the memory that records take, and not their bytes.",
        "limits": "",
        "lineage": "",
        "live": "Whether its creation is committed.",
        "memory": "",
        "next": "",
        "on_unread": "",
        "open": "What the next append joins.",
        "path": "",
        "plain": "Whether a body is one record as it is, and no append has to wait.",
        "producers": "",
        "promises": "Told of records that are about to be committed.",
        "readers": "",
        "sealed": """Position up to which the store's chunk rows hold the records; later ones must stay in memory.""",
        "seen": "Message ids of the last while (:mod:`wayside.streams.deduplication`); None: not known yet.",
        "separator": "",
        "seq": "",
        "sid": "",
        "size": "",
        "source": "",
        "start": "",
        "stored_deadline_ms": "",
        "tail": "",
        "translate": "Makes of an offset that was given out before positions were numbered anew one of today.",
        "unread": "From here on another hub's records were not looked at for message ids; None: there are none.",
        "unsettled": "Pendings that change more than the records, and may still be taken back.",
        "version": "",
        "waiters": "",
        "waiting": "Appends that wait until they are; None: nobody waits.",
        "watchers": "Told of each change; the catalog fills it in.",
    }

    def __init__(
        self,
        row: Head,
        *,
        limits: Limits,
        clock: Clock,
        later: ReadLater,
        source: Stream | None = None,
        awaited: bool = False,
    ) -> None:
        self.sid = row.sid
        self.path = row.path
        config = self.config = row.config
        self.json = config.is_json
        self.limits = limits
        memory = self.memory = config.durability is Durability.MEMORY
        self.awaited = awaited and not memory
        self.fsync = config.durability is Durability.FSYNC and not awaited
        self.plain = not (self.json or self.awaited)
        self.keep_bytes = config.retention_bytes or (
            limits.retention_bytes_memory if memory else limits.retention_bytes
        )
        self.separator = b"," if self.json else b""
        self.kept_by_cost = memory and config.retention_bytes is None
        self.lineage = row.lineage
        self.start = row.start
        self.tail = self.next = row.tail
        self.size = row.size
        self.adopt(row.state)
        self.deadline_ms = self.stored_deadline_ms = row.expires_ms
        self.source = source
        if source is not None:
            self.start = max(self.start, min(source.start, self.own_start))
        self.fork = row.fork
        self.forks = 0
        self.gone = row.gone
        self.deleted, self.live = False, True
        self.open: Pending | None = None
        self.unsettled = 0
        self.unread: int | None = None
        self.translate: Callable[[Offset], Offset] | None = None
        self.branches: set[Stream] = set()
        self.batches: list[Batch] = []
        self.cached_bytes = 0
        self.cache_from = row.tail
        self.sealed = END if self.awaited else row.tail
        self.cohorts: dict[tuple[object, str], Cohort] = {}
        self.waiters: set[Callable[[], None]] = set()
        self.holds: tuple[Callable[[], int], ...] = ()
        self.promises: tuple[Callable[[Batch], None], ...] = ()
        self.watchers: tuple[Callable[[Stream], None], ...] = ()
        self._told: object = None
        self.readers = 0
        self.on_unread: Callable[[], None] | None = None
        self.seen: dict[str, tuple[int, float]] | None = None
        self.waiting: list[Callable[[Refusal | None], None]] | None = None
        self.version: object = object()
        self._later = later
        self._now_ms = clock.wall_ms
        self.entered = False

    def adopt(self, state: AppendState) -> None:
        """What the store knows beside the records."""
        self.closed = self.closing = state.closed
        self.closed_by = Producer(*state.closed_by) if state.closed_by else None
        self.seq = state.seq
        known = [each for each in state.producers.items() if each[1] != FORGOTTEN]
        self.producers = dict(sorted(known, key=lambda each: each[1][2]))  # the longest silent first

    @property
    def is_read(self) -> bool:
        """Whether somebody follows it or waits for it."""
        return bool(self.readers or self.waiters)

    @property
    def is_idle(self) -> bool:
        """Whether it can be forgotten and loaded again from the store, with nothing lost."""
        used = self.is_read or self.holds or self.forks or self.source or self.open or self.waiting is not None
        busy = used or not self.live or self.deadline_ms is not None
        stored = not (self.memory or self.awaited) and self.sealed >= self.tail == self.next
        return stored and not busy

    def __repr__(self) -> str:
        return f"<Stream {self.path} {self.start}..{self.tail} of {self.next}{' closed' if self.closed else ''}>"

    # -- positions

    @property
    def own_start(self) -> int:
        """The first position that is not inherited from the stream it was forked from."""
        if self.source is None:
            return 0
        # Its epochs are later than those it has from its source.
        return next(first for first, epoch in self.lineage if epoch >= self.sid)

    def offset(self, position: int) -> Offset:
        """The token for a position: in the epoch in which the record before it was written."""
        return offset_in(self.lineage, position)

    def resolve(self, offset: Offset) -> int:
        """The position an offset names. Raises :class:`Gone` for one of an earlier life or no longer retained."""
        if offset == (0, 0):
            offset = Offset(self.lineage[0][1], 0)
        if self.translate is not None:
            offset = self.translate(offset)
        position = offset.position
        for index, (first, epoch) in enumerate(self.lineage):
            if epoch == offset.epoch:
                last = self.lineage[index + 1][0] if index + 1 < len(self.lineage) else self.tail
                if not first <= position <= last:
                    raise self.not_here(offset, "offset-lost", "names records that a crash took, or that never were")
                if position < self.start:
                    raise self.not_here(offset, "offset-expired", "is before what is retained")
                return position
        raise self.not_here(offset, "stream-recreated", "is of another stream that had this name before")

    def not_here(self, offset: Offset, code: str, why: str) -> Gone:
        earliest = str(self.offset(self.start))
        return Gone(
            f"Offset {offset} of {self.path} {why}. Read from {earliest} (the earliest), or from now; "
            "records between may be missing from what you have.",
            code=code,
            headers={"Stream-Earliest-Offset": earliest},
            fields={"earliest": earliest, "tail": str(self.offset(self.tail))},
        )

    def info(self) -> StreamInfo:
        return StreamInfo(
            self.path, self.config, self.offset(self.tail), self.offset(self.start), self.closed, self.size
        )

    # -- appending

    def split(self, body: bytes | Spool, *, empty_array: bool = False) -> list[bytes] | Spool:
        """A body as records; a spool stays one where its records are shown only when the disk has them."""
        if not self.json:
            if type(body) is bytes:
                return [body] if body else []
            assert isinstance(body, Spool)
            if self.fsync:
                return body
            cuts = body.pieces(self.limits.piece_bytes_max, text=self.config.is_text)
            return [body.read(start, length) for start, length in cuts]
        size = body.size if isinstance(body, Spool) else len(body)
        require_size(size, self.limits.json_body_bytes_max, "The JSON body")
        whole = body.read(0, size) if isinstance(body, Spool) else body
        records = split_records(self.config, whole, empty_array=empty_array) if whole else []
        if len(records) > self.limits.append_records_max:
            raise TooLarge(
                f"The array has {len(records)} records; the limit of one append is {self.limits.append_records_max} "
                "(--append-records-max). Send them in several appends.",
                fields={"limit_records": self.limits.append_records_max},
            )
        return records

    def accept(
        self, append: Append, records: list[bytes] | Spool, done: Done | None, clock: Clock
    ) -> tuple[Pending, bool]:
        """Take a checked append; returns what it will be committed with, and whether that is new."""
        pending = self.open
        fresh = pending is None or type(records) is Spool
        if pending is None or fresh:
            pending = Pending(self, self.next, clock.wall_ms())
        if isinstance(records, Spool):
            pending.spool = records
            pending.pieces = records.pieces(self.limits.piece_bytes_max, text=self.config.is_text)
            pending.size = records.size
            self.next += len(pending.pieces)
            self.open = None
        else:
            self.open = pending
            if append.meta is not None:
                pending.note_meta(append.metas(len(records)))
            pending.records += records
            self.next += len(records)
            for record in records:
                pending.size += len(record)
        if append.producer is not None or append.close or append.seq is not None:
            pending.note(append)
        if done is not None:
            pending.acks.append((done, self.next, append.producer))
        return pending, fresh

    # -- becoming visible

    def commit(self, pending: Pending) -> None:
        """The append is as durable as promised: from now on readers see it."""
        if self.open is pending:
            self.open = None
        if pending.before is not None:
            self.unsettled -= 1
        self.version = object()
        self.size += pending.size
        if pending.closes:
            self.closed = True
        if pending.spool is not None:
            self.drop_cache(self.tail)
            self.tail = self.cache_from = pending.position + len(pending.pieces)
            return
        records, size, limits = pending.records, pending.size, self.limits
        if not records:
            return
        self.tail = pending.position + len(records)
        position = pending.position
        metas = pending.meta
        if metas is None and size <= limits.read_bytes_max and len(records) <= limits.read_records_max:
            self.batches.append(Batch(position, pending.time_ms, records, size))  # as cache() does
            self.cached_bytes += size + BATCH_COST + RECORD_COST * len(records)
            return
        for run in runs(records, size, limits.read_bytes_max, limits.read_records_max):  # or one read takes them all
            at = position - pending.position
            self.cache(Batch(position, pending.time_ms, run, meta=metas_between(metas, at, at + len(run))))
            position += len(run)

    def advance(self, head: Head) -> bool:
        """The engine may have more of it than was known here: another hub's. What it said earlier than what is known changes
        nothing. Returns whether there was more."""
        changed = head.tail > self.tail or (head.tail == self.tail and head.state.closed and not self.closed)
        if head.start > self.start:
            self.start = head.start
            self.version = object()
        if not changed:
            return False
        if head.tail > self.tail:
            self.drop_cache(self.tail)
            if self.unread is None:
                self.unread = self.tail
            self.tail = self.next = self.cache_from = head.tail
        self.size = head.size
        self.adopt(head.state)
        self.version = object()
        self.publish()
        return True

    @property
    def knows_identities(self) -> bool:
        """Whether all message ids of the last while are in ``seen``."""
        return self.seen is not None and self.unread is None

    def records_after(self, position: int) -> int:
        """How many records come after a position: counted, where positions have gaps and the records are in memory."""
        if not self.awaited or position >= self.tail:
            return self.tail - position
        found = max(0, self.cache_from - position)
        for batch in reversed(self.batches):
            if batch.end <= position:
                break
            found += min(batch.count, batch.end - position)
        return found

    def cache(self, batch: Batch) -> None:
        """Hold the newest records in memory."""
        if batch.position < self.cache_from and not self.batches:
            self.cache_from = batch.position
        self.batches.append(batch)
        self.cached_bytes += batch.cost

    def trim_cache(self, bytes_max: int) -> int:
        """Drop the oldest cached batches that the store has, down to ``bytes_max``; returns the bytes dropped."""
        dropped = count = 0
        for batch in self.batches:
            if self.cached_bytes - dropped <= bytes_max or batch.end > self.sealed:
                break
            dropped += batch.cost
            count += 1
        if count:
            self._cut(count, dropped)
        return dropped

    def drop_cache(self, position: int) -> int:
        """Drop every cached batch that ends at or before ``position``; returns the bytes dropped."""
        count = bisect_right(self.batches, position, key=_position)
        if count and self.batches[count - 1].end > position:
            count -= 1
        dropped = sum(batch.cost for batch in self.batches[:count])
        if count:
            self._cut(count, dropped)
        return dropped

    def _cut(self, count: int, dropped: int) -> None:
        self.cache_from = self.batches[count - 1].end
        del self.batches[:count]
        self.cached_bytes -= dropped

    def publish(self) -> None:
        """Tell everybody who waits that something has changed."""
        if self.cohorts:
            for cohort in list(self.cohorts.values()):
                cohort.wake()
            if self.closed:
                self.end_followers("closed")
        self.wake()
        if not self.deleted:  # its deletion may yet be taken back: it is told of when it is over
            self.tell()

    def tell(self) -> None:
        """Tell those who watch it of a change, if they have not been told."""
        if self.watchers and self.live and self._told is not self.version:
            self._told = self.version
            for told in self.watchers:
                guarded(partial(told, self))

    def wake(self) -> None:
        """Call and forget those who wait for any change."""
        if self.waiters:
            waiters, self.waiters = self.waiters, set()
            for waiter in waiters:
                guarded(waiter)

    def wait(self, waiter: Callable[[], None]) -> Callable[[], None]:
        """Have ``waiter`` called once at the next change; returns how to forget it."""
        self.waiters.add(waiter)
        return lambda: self.waiters.discard(waiter)

    def hold(self, since: Callable[[], int]) -> Callable[[], None]:
        """Have retention let go of nothing from the position on that ``since`` gives; returns how to end that."""
        self.holds = (*self.holds, since)

        def release() -> None:
            self.holds = tuple(held for held in self.holds if held is not since)

        return release

    def promise(self, told: Callable[[Batch], None]) -> Callable[[], None]:
        """Have ``told`` called with records that are about to be committed: what it appends shares their transaction. They are
        not to be shown before that is done. Returns how to end it."""
        self.promises = (*self.promises, told)

        def release() -> None:
            self.promises = tuple(other for other in self.promises if other is not told)

        return release

    def cohort(self, encoding: Encoding, pattern: str, tally: Tally) -> Cohort:
        """The cohort of an encoding, made if there is none."""
        key = (encoding.key, pattern)
        cohort = self.cohorts.get(key)
        if cohort is None:
            for old in [k for k, c in self.cohorts.items() if not c.members]:
                del self.cohorts[old]
            cohort = self.cohorts[key] = Cohort(self, encoding, pattern, tally)
        return cohort

    def end_followers(self, reason: str) -> None:
        """Give every follower at the tail what it has not been given, and finish it."""
        for cohort in list(self.cohorts.values()):
            cohort.flush()
            for follower in list(cohort.members):
                follower.finish(reason)
        self.cohorts.clear()

    def retire(self) -> None:
        """The stream is no more: end its followers, wake its waiters."""
        self.deleted = True
        self.version = object()
        self.end_followers("deleted")
        self.wake()
        self.tell()
        self.watchers = ()

    # -- reading

    def read_nowait(self, position: int, bytes_max: int) -> list[Batch] | None:
        """Batches from ``position`` on, about ``bytes_max`` bytes of them; [] at the tail; None if it takes the disk.

        Records that have expired are left out: between batches there may be gaps, and the last one may be empty. Raises :class:`Gone` where retention has gone past ``position``.
        """
        if position >= self.tail:
            return []
        if position < self.start:
            raise self.not_here(self.offset(position), "offset-expired", "is before what is retained")
        if self.source is not None and position < self.own_start:
            found = self.source.read_nowait(position, bytes_max)
            return self._inherited(found) if found is not None else None
        if position < self.cache_from or not self.batches:
            return None
        index = bisect_right(self.batches, position, key=_position) - 1
        if index < 0 or position >= self.batches[index].end:
            index += 1  # it is in a gap
        first = self.batches[index].since(position)
        result = [first]
        total, count = first.size, first.count
        batches, count_max = self.batches, self.limits.read_records_max
        while total < bytes_max and count < count_max and (index := index + 1) < len(batches):
            batch = batches[index]
            result.append(batch)
            total += batch.size
            count += batch.count
        return unlapsed(result, self._now_ms)

    async def read(self, position: int, bytes_max: int) -> list[Batch]:
        """The same, from the disk where need be."""
        found = self.read_nowait(position, bytes_max)
        if found is not None:
            return found
        if self.source is not None and position < self.own_start:
            return self._inherited(await self.source.read(position, bytes_max))
        try:
            batches = await self._later(self, position, bytes_max)
        except DamagedStore:
            if position < self.start:  # let go while the read was on its way, and its rows freed
                raise self.not_here(self.offset(position), "offset-expired", "is before what is retained") from None
            if self.deleted:
                raise Gone(f"{self.path} was deleted.", code="stream-deleted") from None
            raise
        # The store has what is sealed; a batch that straddles the cache is as good as the cached one.
        return unlapsed(
            [batch.until(self.tail) for batch in batches if batch.position < self.tail or not batch.records],
            self._now_ms,
        )

    def _inherited(self, batches: list[Batch]) -> list[Batch]:
        end = self.own_start
        own = [batch.until(end) for batch in batches if batch.position < end]
        return own if own and own[-1].end >= min(end, batches[-1].end) else [*own, _lapsed(end, batches[-1])]


class Pending(msgspec.Struct, eq=False):
    """Appends of one stream that will be committed together, and what to do when they are not."""

    stream: Stream
    position: int
    time_ms: int
    records: list[bytes] = []
    size: int = 0
    acks: list[tuple[Done, int, Producer | None]] = []
    """(whom to tell, tail after the append, producer)"""
    spool: Spool | None = None
    pieces: Sequence[tuple[int, int]] = ()
    before: tuple[bool, Producer | None, str | None] | None = None
    """What the stream knew beside the records, where that changes: closing, closed by, seq."""
    producers: dict[str, tuple[int, int, int] | None] | None = None
    """Producers that appended, and what the stream knew of each before; None: nothing of this kind changes."""
    closes: bool = False
    meta: dict[int, Meta] | None = None
    """What is known beside ``records``, by index there."""
    kept: AppendState | None = None
    """What the stream knew when readers were shown it, if that was before it is committed."""

    @property
    def weight(self) -> int:
        """Bytes of its records and of what is known beside them."""
        return self.size if self.meta is None else self.size + cost_of(self.meta)

    def note_meta(self, metas: dict[int, Meta]) -> None:
        """Take what is known, by index, beside the records that come next."""
        if not metas:
            return
        before = len(self.records)
        if self.meta is None:
            self.meta = {}
        self.meta.update((before + index, meta) for index, meta in metas.items())

    def note(self, append: Append) -> None:
        """Take what an append changes beside the records."""
        stream = self.stream
        if self.producers is None:
            self.producers = {}
        if self.before is None:
            self.before = (stream.closing, stream.closed_by, stream.seq)
            stream.unsettled += 1
        producer = append.producer
        if producer:
            if len(stream.producers) >= stream.limits.producers_max and producer.id not in stream.producers:
                self._forget_oldest(self.producers)
            self.producers.setdefault(producer.id, stream.producers.pop(producer.id, None))
            stream.producers.pop(producer.id, None)  # to the end: the longest silent stand first
            stream.producers[producer.id] = (producer.epoch, producer.seq, self.time_ms)
        if append.seq is not None:
            stream.seq = append.seq
        if append.close:
            self.closes = stream.closing = True
            stream.closed_by = producer

    def _forget_oldest(self, before: dict[str, tuple[int, int, int] | None]) -> None:
        known = self.stream.producers
        oldest = next(iter(known))
        before.setdefault(oldest, known.pop(oldest))

    def state(self) -> AppendState:
        """What the store has to keep beside the records."""
        stream = self.stream
        by = stream.closed_by
        return AppendState(
            stream.closing,
            (by.id, by.epoch, by.seq) if by else None,
            stream.seq,
            {name: stream.producers.get(name, FORGOTTEN) for name in self.producers or ()},
        )

    def undo(self) -> None:
        """Put the stream back to before this. Later pendings are undone first."""
        stream = self.stream
        stream.next = self.position
        if self.before is not None:
            stream.unsettled -= 1
            stream.closing, stream.closed_by, stream.seq = self.before
        for name, before in (self.producers or {}).items():
            if before is None:
                stream.producers.pop(name, None)
            else:
                stream.producers[name] = before
        for meta in (self.meta or {}).values():
            if meta.id and stream.seen is not None:
                stream.seen.pop(meta.id, None)
        if stream.open is self:
            stream.open = None


def put_of(pending: Pending, stream: Stream) -> Put:
    """What an engine is given of what was accepted."""
    return Put(
        stream.sid,
        pending.position,
        pending.time_ms,
        pending.records,
        pending.size,
        stream.separator,
        stream.keep_bytes,
        pending.kept or (pending.state() if pending.before is not None else None),
        pending.spool,
        pending.pieces,
        pending.meta,
    )


def unlapsed(batches: list[Batch], now_ms: Callable[[], int]) -> list[Batch]:
    """``batches`` without the records that have expired.

    Where some are left out there are gaps between the batches, and the batch behind one says so. The last one ends where the
    last of ``batches`` did, though it be empty: there the reader reads on.
    """
    for batch in batches:
        if batch.meta is not None:
            return _without(batches, now_ms())
    return batches


def _without(batches: list[Batch], now: int) -> list[Batch]:
    result: list[Batch] = []
    left_out = False

    def keep(batch: Batch) -> None:
        nonlocal left_out
        if left_out:  # a copy: others are given the batch as well
            batch = Batch(batch.position, batch.time_ms, batch.records, batch.size, batch.meta, lapsed=True)
            left_out = False
        result.append(batch)

    for batch in batches:
        metas = batch.meta or {}
        position = batch.position
        for index, meta in sorted(metas.items()):
            if not 0 < meta.expires_ms <= now:
                continue
            at = batch.position + index
            if position < at:
                keep(batch.since(position).until(at))
            position = at + 1
            left_out = True
        if position < batch.end:
            keep(batch.since(position))
    if left_out or not result:
        result.append(_lapsed(batches[-1].end, batches[-1]))
    return result


def _lapsed(end: int, batch: Batch) -> Batch:
    """Nothing, up to a position: what was there has expired."""
    return Batch(end, batch.time_ms, [], lapsed=True)
