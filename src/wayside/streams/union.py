"""All streams that a glob matches, read as one: a union. Its records are those streams' own, each in an envelope.

Nothing is copied. The order in which they came is kept in an *index*, a stream at ``__index/GLOB``: each of its records
is an :class:`IndexEntry`, references to runs of records. A position in a union is the number of records before it, so that
followers, cursors and credit are those of any stream. A reference is committed before what it refers to is given to
anybody: a cursor that was given out means the same after a crash.

The index is written while the union is used; whoever uses it next finds what came meanwhile by comparing where each
stream ends with the last reference to it. When it has grown too long the older half is replaced by one reference for
each stream (see :meth:`Union._compact`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import msgspec

from wayside.core.callbacks import Done, asked, guarded, report
from wayside.core.clock import Clock
from wayside.core.engine import END, Head
from wayside.core.errors import Gone, NotFound, Overloaded
from wayside.core.globs import Glob
from wayside.core.records import (
    BATCH_COST,
    JSON,
    RECORD_COST,
    Append,
    Appended,
    Batch,
    Create,
    Durability,
    Meta,
    Offset,
    StreamConfig,
)
from wayside.streams.contract import Log, StreamView
from wayside.streams.followers import Tally
from wayside.streams.stream import Stream

__all__ = ["Unwrapped", "unwrap", "wrap"]


class _Envelope(msgspec.Struct):
    stream: str
    offset: str
    data: msgspec.Raw
    encoding: str = ""
    headers: dict[str, str] = {}
    id: str = ""
    key: str = ""


class Unwrapped(NamedTuple):
    """What was wrapped."""

    stream: str
    offset: str
    """In that stream."""
    data: bytes
    meta: Meta | None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Envelope).decode
_text_of = msgspec.json.Decoder(str).decode


def wrap(stream: StreamView, batch: Batch) -> list[bytes]:
    """The records of ``batch``, each in its envelope."""
    config = stream.config
    head = b'{"stream":%b,"offset":"' % _encode(stream.path)
    value: Callable[[bytes], bytes] = _json if config.is_json else _text if config.is_text else _base64
    metas = batch.meta or {}
    result: list[bytes] = []
    for index, record in enumerate(batch.records):
        offset = str(stream.offset(batch.position + index + 1)).encode()
        beside = _beside(metas[index]) if index in metas else b""
        result.append(b'%b%b"%b%b}' % (head, offset, beside, value(record)))
    return result


def unwrap(envelope: bytes) -> Unwrapped:
    """What :func:`wrap` wrapped."""
    held = _decode(envelope)
    data = bytes(held.data)
    if held.encoding == "base64":
        data = base64.b64decode(_text_of(data))
    elif held.encoding == "text":
        data = _text_of(data).encode()
    said = held.headers or held.id or held.key
    return Unwrapped(held.stream, held.offset, data, Meta(held.headers, held.id, held.key) if said else None)


def _json(record: bytes) -> bytes:
    return b',"data":' + record


def _text(record: bytes) -> bytes:
    try:
        return b',"encoding":"text","data":' + _encode(record.decode())
    except UnicodeDecodeError:  # of another charset
        return _base64(record)


def _base64(record: bytes) -> bytes:
    return b',"encoding":"base64","data":"%b"' % base64.b64encode(record)


def _beside(meta: Meta) -> bytes:
    said = {"headers": meta.headers, "id": meta.id, "key": meta.key}
    return b"".join([b',"%b":%b' % (name.encode(), _encode(value)) for name, value in said.items() if value])


REFERENCES_MAX = 1000
"""In one entry: what is decoded to read one record of them."""


class Reference(NamedTuple):
    """A run of records: ``length`` of them from ``position`` on, of the life ``epoch`` of the stream at ``path``."""

    path: str
    epoch: int
    position: int
    length: int


class IndexEntry(msgspec.Struct, omit_defaults=True):
    """A record of the index. ``at`` is the union's position of the first record that it refers to."""

    at: int
    refs: list[Reference]
    before: int = 0
    """In what stands for everything before a position: that position."""
    epoch: int = 0
    """And what the union's offsets are from then on."""


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(IndexEntry).decode


def reached(stream: StreamView, epoch: int, position: int) -> int | None:
    """Where in a stream the references to it end, given the last; None where they are to another of that name."""
    lives, sid = stream.lineage, stream.sid
    for index, (_, life) in enumerate(lives):
        if life == epoch or sid <= epoch < life:  # of its own epochs the oldest are forgotten after many crashes
            return min(position, lives[index + 1][0] if index + 1 < len(lives) else stream.tail)
    return None


def held(stream: StreamView, ref: Reference) -> tuple[int, int]:
    """What a stream still has of a reference: from a position to another."""
    end = reached(stream, ref.epoch, ref.position + ref.length)
    return (0, 0) if end is None else (max(ref.position, stream.start), end)


def enveloped(stream: StreamView, batches: list[Batch], ref: Reference, at: int, end: int) -> list[Batch]:
    """Batches of a stream, up to a position, as a union has them."""
    shift = at - ref.position
    result: list[Batch] = []
    for batch in batches:
        if batch.position < end and batch.records:
            batch = batch.until(end)
            expiring = {
                n: Meta(expires_ms=meta.expires_ms) for n, meta in (batch.meta or {}).items() if meta.expires_ms
            }
            result.append(Batch(batch.position + shift, batch.time_ms, wrap(stream, batch), meta=expiring or None))
    return result


def entries_of(at: int, refs: list[Reference]) -> list[IndexEntry]:
    entries: list[IndexEntry] = []
    for start in range(0, len(refs), REFERENCES_MAX):
        entries.append(IndexEntry(at, refs[start : start + REFERENCES_MAX]))
        at += sum([ref.length for ref in entries[-1].refs])
    return entries


INDEX = "__index/"
INDEX_BYTES_MAX = 16 * 1024 * 1024
"""About 250,000 references. Longer, and it is compacted."""
INDEX_TTL_S = 30 * 86_400
"""For which nobody used a union until its index is forgotten; cursors are then answered 410."""
LINGER_S = 30.0
"""For which the index is written on when nobody reads, so that those who poll find it up to date."""
USED_MAX = 1000
"""Unions in use at a time: each writes an index of its own."""
ENTRIES_KEPT = 16
"""Decoded entries that are kept: readers behind go through one after another."""


class Union:
    """One union while it is used. ``over`` is called when it is not any more."""

    def __init__(self, glob: Glob, log: Log, clock: Clock, tally: Tally, over: Callable[[], None]) -> None:
        self.glob = glob
        self.view: Stream | None = None
        self.after: list[Done] = []
        """Who wants to use it and came when it had ended, before what it wrote was committed."""
        self._log = log
        self._clock = clock
        self._tally = tally
        self._over = over
        self._path = INDEX + glob.text
        self._known: dict[str, tuple[int, int]] = {}
        """Path to epoch and position up to which there are references."""
        self._next = 0
        """Position after all of them, committed or not."""
        self._size = 0
        """Bytes of the index, where it is in memory with what they take beside."""
        self._overhead = 0
        """Of each of its records."""
        self._limit = INDEX_BYTES_MAX
        self._ats, self._places = array("q"), array("q")
        """Of each entry, in order: the union's position where it begins, and its own in the index."""
        self._entries: OrderedDict[int, IndexEntry] = OrderedDict()
        self._fresh: list[Reference] = []
        self._committed: list[Reference] = []
        """Not shown yet."""
        self._waiting: list[tuple[int, Done]] = []
        """Who is to be given the view once it has got so far."""
        self._on_way = 0
        """Appends to the index that are not committed yet."""
        self._loaded = self._ended = self._compacting = False
        self._used = 0.0
        self._moved = 0
        """Offsets of earlier epochs still mean the same from this position on."""
        self._loop = asyncio.get_running_loop()
        self._unwatch = log.watch(glob, self._told)
        self._timer = self._loop.call_later(LINGER_S, self._rest)
        self._tasks = {self._loop.create_task(self._begin())}

    # -- using it

    def open(self, done: Done) -> None:
        """``done`` gets the view, with everything in it that its streams show now."""
        if self._ended:
            self.after.append(done)
            return
        self._used = self._loop.time()
        if self._loaded and self.view is not None and self.view.tail == self._next:
            done(self.view)
        else:
            self._waiting.append((self._next, done))

    def _rest(self) -> None:
        """Now and then: stop where nobody reads any more; else the index is used, and does not expire."""
        view = self.view
        idle = self._loop.time() - self._used > LINGER_S / 2
        if view is not None and idle and not (view.is_read or self._waiting or self._compacting):
            self.stop()
            return
        self._timer = self._loop.call_later(LINGER_S, self._rest)
        if self._loaded:
            try:
                self._log.find(self._path)
            except Exception as error:
                self._fail(error)

    def stop(self, error: Exception | None = None) -> None:
        """Write no more references. Who waits to use it is told ``error``; who reads, where to resume."""
        if self._ended:
            return
        self._ended = True
        self._timer.cancel()
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        if not self._on_way:
            self._over()
        if self.view is not None:
            self.view.version = object()  # whoever keeps an answer asks again
            self.view.end_followers("drain")
            for follower in [f for f in self._tally.behind if f.stream is self.view]:
                follower.leave_behind()
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            guarded(partial(done, error or Overloaded("The hub is closing. Read on when it is back.", code="closing")))

    def _fail(self, error: Exception) -> None:
        """The index cannot be kept: what comes is found by whoever opens the union next."""
        if not isinstance(error, asyncio.CancelledError):
            self.stop(error)

    # -- the index

    async def _begin(self) -> None:
        try:
            await self._load()
            self._loaded = True
            self._catch_up()
            self._waiting = [(self._next, done) for _, done in self._waiting]
            self._write()
            self._show()
        except Exception as error:
            self._fail(error)

    async def _load(self) -> None:
        index = await self._find_index()
        view = self.view = self._new_view(index)
        if index.config.durability is Durability.MEMORY:
            self._overhead = BATCH_COST + RECORD_COST
        at = index.start
        summary: list[tuple[IndexEntry, int]] = []
        while at < index.tail:
            for batch in await index.read(at, self._log.limits.read_bytes_max):
                for place, record in enumerate(batch.records, batch.position):
                    entry = decode(record)
                    self._remember(entry, len(record))
                    if not entry.before:
                        self._place(entry, place)
                    elif summary and summary[0][0].epoch == entry.epoch:
                        summary.append((entry, place))
                    else:
                        summary = [(entry, place)]
                at = batch.end
            await asyncio.sleep(0)
        if summary:
            self._summarise(view, summary)
        else:
            view.start = self._ats[0] if self._ats else 0
        view.tail = view.next = view.cache_from = self._next

    async def _find_index(self) -> StreamView:
        try:
            return self._log.find(self._path)
        except NotFound:
            config = StreamConfig(
                content_type=JSON, ttl_s=INDEX_TTL_S, retention_bytes=1 << 40
            )  # only compaction trims it
            await asked(partial(self._log.create, self._path, Create(config, frozenset({"content_type"}))))
            return self._log.find(self._path)

    def _new_view(self, index: StreamView) -> Stream:
        config = StreamConfig(content_type=JSON, durability=Durability.MEMORY)
        epoch = index.lineage[0][1]
        row = Head(epoch, self.glob.text, config, [(0, epoch)])
        view = Stream(row, limits=self._log.limits, clock=self._clock, later=self._read)
        view.sealed = END  # nothing has to stay in memory
        view.translate = partial(self._translate, view)
        return view

    def _translate(self, view: Stream, offset: Offset) -> Offset:
        """Offsets of earlier epochs still mean the same where the order was kept."""
        epoch = view.lineage[0][1]
        if not view.sid <= offset.epoch < epoch:
            return offset
        if offset.position < self._moved:
            raise view.not_here(offset, "offset-expired", "is before what is retained in this order")
        return Offset(epoch, offset.position)

    def _remember(self, entry: IndexEntry, size: int) -> None:
        """Learn from an entry that is loaded."""
        self._size += size + self._overhead
        for path, epoch, position, length in entry.refs:
            if not entry.before or path not in self._known:  # else later references to it are known already
                self._known[path] = (epoch, position + length)
        if not entry.before:
            self._next = entry.at + sum([ref.length for ref in entry.refs])

    def _place(self, entry: IndexEntry, place: int) -> None:
        self._ats.append(entry.at)
        self._places.append(place)

    def _catch_up(self) -> None:
        """Refer to what came while nobody used the union; forget streams that have gone."""
        known, self._known = self._known, {}
        for tail in self._log.tails(self.glob):
            last = known.get(tail.path)
            if last is not None:
                self._known[tail.path] = last
                if last[0] != tail.tail.epoch:  # a crash, a fork, another stream
                    with contextlib.suppress(NotFound, Gone):  # its time was over just now
                        self._told(self._log.find(tail.path, touch=False))
                    continue
            start = max(tail.earliest.position, last[1] if last is not None else 0)
            if tail.tail.position > start:
                self._refer(tail.path, tail.tail.epoch, start, tail.tail.position)

    def _told(self, stream: StreamView) -> None:
        """A stream has changed."""
        if not self._loaded:
            return  # it will be compared
        last = self._known.get(stream.path)
        so_far = None if last is None else reached(stream, *last)
        if stream.deleted:
            if so_far is not None:
                del self._known[stream.path]
            return
        start = max(stream.start, so_far or 0)
        if stream.tail > start:
            self._refer(stream.path, stream.offset(stream.tail).epoch, start, stream.tail)

    def _refer(self, path: str, epoch: int, position: int, end: int) -> None:
        if not self._fresh:
            self._loop.call_soon(self._write)
        self._fresh.append(Reference(path, epoch, position, end - position))
        self._known[path] = (epoch, end)
        self._next += end - position
        if self.view is not None:
            self.view.version = object()

    def _write(self) -> None:
        """Append what is to be referred to to the index."""
        if not self._fresh or self._ended:
            return
        fresh, self._fresh = self._fresh, []
        entries = entries_of(self._next - sum([ref.length for ref in fresh]), fresh)
        records = [encode(entry) for entry in entries]
        try:
            self._append(records, partial(self._written, entries, records))
        except Exception as error:
            self._fail(error)

    def _append(self, records: list[bytes], done: Done) -> None:
        """Append to the index. Whoever uses the union next is kept waiting until that is over: it would not know of it."""

        def told(result: Appended | Exception) -> None:
            try:
                done(result)
            finally:
                self._landed()

        self._on_way += 1
        try:
            self._log.append(self._path, Append(b"", records=records), told)
        except Exception:
            self._on_way -= 1
            raise

    def _landed(self) -> None:
        self._on_way -= 1
        if self._ended and not self._on_way:
            self._over()

    def _written(self, entries: list[IndexEntry], records: list[bytes], result: Appended | Exception) -> None:
        if self._ended:
            return
        if isinstance(result, Exception):
            self._fail(result)
            return
        if not self._committed:
            self._loop.call_soon(self._show)  # after those who appended have been answered
        for place, (entry, record) in enumerate(zip(entries, records, strict=True), result.position - len(records)):
            self._place(entry, place)
            self._size += len(record) + self._overhead
            self._committed += entry.refs
        if self._size > self._limit and not self._compacting:
            self._compacting = True
            task = self._loop.create_task(self._compact())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # -- reading

    def _show(self) -> None:
        """Give readers what the index refers to now."""
        view = self.view
        if view is None or self._ended:
            return
        committed, self._committed = self._committed, []
        for ref in committed:
            batches = self._made(ref, view.tail) if view.is_read else None
            view.tail = view.next = view.tail + ref.length
            if batches is None:
                view.drop_cache(view.tail)
                view.cache_from = view.tail
            else:
                for batch in batches:
                    view.cache(batch)
        if committed:
            view.trim_cache(self._log.limits.stream_cache_bytes_max)
            view.version = object()
            guarded(view.publish)
        ready = [done for at, done in self._waiting if at <= view.tail]
        self._waiting = [(at, done) for at, done in self._waiting if at > view.tail]
        for done in ready:
            guarded(partial(done, view))

    def _made(self, ref: Reference, at: int) -> list[Batch] | None:
        """What a reference refers to, where all of it is in memory."""
        if ref.length > self._log.limits.read_records_max:
            return None
        result: list[Batch] = []
        try:
            stream = self._log.find(ref.path, touch=False)
            position, end = held(stream, ref)
            while position < end:
                found = stream.read_nowait(position, self._log.limits.read_bytes_max)
                if not found:
                    return None
                position = found[-1].end
                result += enveloped(stream, found, ref, at, end)
        except (NotFound, Gone):
            return None
        if not result or result[-1].end < at + ref.length:
            result.append(Batch(at + ref.length, 0, []))
        return result

    async def _read(self, view: Stream, position: int, bytes_max: int) -> list[Batch]:
        """Batches from ``position`` on. What is no longer there is left out; the last one ends where to read on."""
        result: list[Batch] = []
        size = looked = 0
        limits = self._log.limits
        while position < view.tail and size < bytes_max and looked < limits.read_records_max:
            entry = await self._entry(self._places[bisect_right(self._ats, position) - 1])
            at = entry.at
            for ref in entry.refs:
                after = at + ref.length
                while position < after and size < bytes_max and looked < limits.read_records_max:
                    found, position = await self._part(ref, at, position, bytes_max - size)
                    result += found
                    size += sum([batch.size for batch in found])
                    looked += 1 + sum([batch.count for batch in found])
                at = after
        if not result or result[-1].end < position:
            result.append(Batch(position, 0, []))
        return result

    async def _part(self, ref: Reference, at: int, position: int, bytes_max: int) -> tuple[list[Batch], int]:
        """Some of what a reference, which begins ``at``, refers to, from ``position`` on; and where to go on."""
        try:
            stream = self._log.find(ref.path, touch=False)
            start, end = held(stream, ref)
            start = max(start, ref.position + position - at)
            if start >= end:
                return [], at + ref.length
            found = await stream.read(start, bytes_max)
        except (NotFound, Gone):
            return [], at + ref.length
        gone_to = found[-1].end if found else end
        after = at + (gone_to - ref.position if gone_to < end else ref.length)
        return enveloped(stream, found, ref, at, end), after

    async def _entry(self, place: int) -> IndexEntry:
        entry = self._entries.get(place)
        if entry is None:
            batches = await self._log.find(self._path).read(place, 1)
            entry = self._entries[place] = decode(batches[0].records[0])
            if len(self._entries) > ENTRIES_KEPT:
                self._entries.popitem(last=False)
        return entry

    # -- compaction

    async def _compact(self) -> None:
        """Keep the order of the later half. What is before it becomes one reference for each stream, to all that it still
        has; offsets there are new, and those of before are answered 410."""
        try:
            await self._replace()
        except Exception as error:
            if not self._ended:
                report(error, self._compact)  # it is tried again with the next entry
        self._compacting = False

    async def _replace(self) -> None:
        view = self.view
        assert view is not None
        middle = len(self._ats) // 2
        before, place = self._ats[middle], self._places[middle]
        refs = await self._everything_before(view, before)
        first = before - sum([ref.length for ref in refs])
        assert first >= 0, "each record was referred to once"
        entries = entries_of(first, refs) or [IndexEntry(before, [])]
        for entry in entries:
            entry.before, entry.epoch = before, view.lineage[0][1] + 1
        records = [encode(entry) for entry in entries]
        appended: Appended = await asked(partial(self._append, records))
        for cohort in list(view.cohorts.values()):
            cohort.flush()
        for follower in [f for f in self._tally.behind if f.stream is view and f.position < before]:
            follower.leave_behind()
        self._size = sum(map(len, records)) + self._size // 2
        self._limit = max(INDEX_BYTES_MAX, 2 * self._size)
        self._summarise(
            view, list(zip(entries, range(appended.position - len(records), appended.position), strict=True))
        )
        self._log.trim(self._path, place)

    async def _everything_before(self, view: Stream, before: int) -> list[Reference]:
        """What the streams still have of what came before a position of the union."""
        known, upto = dict(self._known), self._next
        tails = {tail.path: tail for tail in self._log.tails(self.glob)}
        if view.tail < upto:
            await asked(lambda done: self._waiting.append((upto, done)))
        later: set[str] = set()
        at = before
        while at < upto:
            entry = await self._entry(self._places[bisect_right(self._ats, at) - 1])
            for ref in entry.refs:
                if ref.path not in later:
                    later.add(ref.path)
                    known[ref.path] = (ref.epoch, ref.position)
                at += ref.length
            await asyncio.sleep(0)
        starts = {path: tail.earliest.position for path, tail in tails.items()}
        return [
            Reference(path, epoch, starts[path], position - starts[path])
            for path, (epoch, position) in known.items()
            if path in starts and position > starts[path]
        ]

    def _summarise(self, view: Stream, summary: list[tuple[IndexEntry, int]]) -> None:
        """Let ``summary``, entries and their places, stand for everything before the position that they name."""
        before, epoch = summary[0][0].before, summary[0][0].epoch
        kept = [(entry.at, place) for entry, place in summary if entry.refs]
        cut = bisect_left(self._ats, before)
        self._ats = array("q", [at for at, _ in kept]) + self._ats[cut:]
        self._places = array("q", [place for _, place in kept]) + self._places[cut:]
        self._entries.clear()
        self._moved = before
        view.lineage = [(0, epoch)]
        view.start = kept[0][0] if kept else before
        view.drop_cache(before)
        view.version = object()


class Unions:
    """The unions that are used."""

    def __init__(self, log: Log, clock: Clock, tally: Tally) -> None:
        self._log = log
        self._clock = clock
        self._tally = tally
        self._used: dict[str, Union] = {}
        self._stopped = False

    def open(self, glob: Glob, done: Done) -> None:
        """``done`` gets the view of a union, or an exception. Raises :class:`Overloaded`."""
        if self._stopped:
            raise Overloaded("The hub is closing. Read on when it is back.", code="closing")
        union = self._used.get(glob.text)
        if union is None:
            if len(self._used) >= USED_MAX:
                raise Overloaded(
                    f"{USED_MAX} globs are in use, as many as may be. Use one of them, or try again shortly.",
                    code="too-many-globs",
                )
            over = partial(self._forget, glob.text)
            union = self._used[glob.text] = Union(glob, self._log, self._clock, self._tally, over)
        union.open(done)

    def _forget(self, glob: str) -> None:
        union = self._used.pop(glob)
        for done in union.after:
            try:
                self.open(union.glob, done)
            except Exception as error:
                guarded(partial(done, error))

    @property
    def views(self) -> Iterable[Stream]:
        return [union.view for union in self._used.values() if union.view is not None]

    def stop(self) -> None:
        """The log is closed."""
        self._stopped = True
        for union in list(self._used.values()):
            union.stop()
