"""Records that are published now and appended later.

What is not due yet is in the stream ``__delayed/due``. When it is, its append and the note that it is over are one
transaction: whatever is killed when, it is appended once. A stream that does not take it then (it was closed, or
deleted) never will: the record is dropped, which is logged and counted. It does not know who publishes, or how.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import structlog

from wayside.core.callbacks import Done
from wayside.core.clock import Clock
from wayside.core.engine import require_atomic
from wayside.core.errors import BadRequest, Conflict, Gone, NotFound, Overloaded, Refusal, StoreFailed, TooLarge
from wayside.core.metadata import Said
from wayside.core.records import (
    WHOLE_MAX,
    Append,
    Appended,
    Batch,
    Create,
    Meta,
    Spool,
    StreamConfig,
    media_type,
    require_size,
    split_records,
)
from wayside.core.schedule import Timer, Timers
from wayside.streams.contract import Log, StreamView

__all__ = ["DUE", "Delaying", "Held", "Item", "cut", "require_type"]

DUE = "__delayed/due"
TOGETHER_MAX = 256
"""Records that are appended in one transaction when they are due."""
AGAIN_S = 1.0
"""How soon those are tried again for which there was no room."""
TRIM_RECORDS = 1000
"""What is over is let go when there is so much of it."""
COMPACT_RECORDS = 4096
"""With more records than these, and few of them waiting, those are written anew, and all others let go."""
READ_BYTES = 64 * 1024

_log = structlog.get_logger("wayside.delayed")


class Item(NamedTuple):
    """Records for a stream: ``append`` has them cut up, and nothing beside them but metadata."""

    path: str
    append: Append
    delay_s: float = 0.0


class Held(NamedTuple):
    """What became of an item with a delay."""

    due_ms: int
    duplicate: bool


class _Hold(msgspec.Struct, tag="hold", array_like=True):
    """A record of ``DUE``: what is to be appended, and when (wall-clock milliseconds)."""

    stream: str
    content_type: str
    due_ms: int
    data: bytes
    meta: Meta | None = None
    first: int = -1
    """Where it was before it was written anew; -1: it was not."""


class _Over(msgspec.Struct, tag="over", array_like=True):
    """Another: the records at these positions are appended, dropped, or written anew."""

    positions: list[int]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Hold | _Over).decode


class Delaying:
    """Publishes to ``log``, now and later."""

    def __init__(self, log: Log, timers: Timers, clock: Clock) -> None:
        self._log = log
        self._timers = timers
        self._clock = clock
        self._waiting: set[int] = set()
        """Positions in ``DUE``."""
        self._oldest: list[int] = []
        """Heap of the same, and of some that are over."""
        self._due: list[tuple[float, int, int]] = []
        """Heap of when each is due (monotonic seconds), its first position, its position."""
        self._armed: tuple[float, Timer] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._trimmed = 0
        self.appended = self.dropped = 0
        """Delayed records that were appended, and those that their stream did not take, since the start."""

    def __repr__(self) -> str:
        return f"<Delaying {len(self._waiting)} waiting, {self.appended} appended, {self.dropped} dropped>"

    @property
    def waiting(self) -> int:
        """Records that are not due yet."""
        return len(self._waiting)

    async def start(self) -> None:
        """Take up what was held. The log is open."""
        try:
            stream = self._log.find(DUE)
        except Refusal:
            return
        at = stream.start
        waiting: dict[int, _Hold] = {}
        while at < stream.tail:
            for batch in await stream.read(at, self._log.limits.read_bytes_max):
                for position, record in enumerate(batch.records, batch.position):
                    event = _decode(record)
                    if isinstance(event, _Hold):
                        waiting[position] = event
                    else:
                        for over in event.positions:
                            waiting.pop(over, None)
                at = batch.end
        for position, hold in waiting.items():
            self._await(position, hold.due_ms, hold.first)
        self._arm()

    async def stop(self) -> None:
        """What is being appended is, or is not."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # -- publishing

    def meta(self, said: Said) -> Meta | None:
        """What is said of records, as the log keeps it. Raises :class:`BadRequest` or :class:`TooLarge`."""
        return said.meta(self._clock, self._log.limits)

    def append_all(self, items: Sequence[Item], done: Done) -> None:
        """Append to several streams in one transaction: all of them, or none. ``done`` gets an ``Appended`` for each, or
        a :class:`Held` for one with a delay, when they are as durable as their streams promise; or an exception. Raises
        at once what can be known now."""
        now_ms = self._clock.wall_ms()
        due = [now_ms + round(item.delay_s * 1000) for item in items]
        held = sum(len(item.append.records or ()) for item in items if item.delay_s > 0)
        if not held:
            self._log.append_all([(item.path, item.append) for item in items], done, in_line=True)
            return
        require_atomic(
            self._log.abilities, "a delayed record could be appended twice, or not at all. Send it when it is due"
        )
        limit = self._log.limits.delayed_max
        if self.waiting + held > limit:
            raise Overloaded(
                f"{self.waiting} records wait for their time, and at most {limit} may (--delayed-max). Try again when some are due.",
                code="too-many-delayed",
                headers={"Retry-After": "60"},
            )
        for item in items:
            if item.delay_s > 0:
                _require_open(self._log.find(item.path))
        try:
            self._log.find(DUE, touch=False)
        except NotFound:
            config = StreamConfig(retention_bytes=WHOLE_MAX)
            self._log.create(DUE, Create(config), partial(self._made, items, due, done))
        else:
            self._append(items, due, done)

    def append_later(self, path: str, append: Append, delay_s: float, done: Done) -> None:
        """Append a body, which may be cut up already, in so many seconds. ``done`` gets a :class:`Held`, or an
        exception."""
        if append.close or append.seq is not None or append.producer is not None:
            raise BadRequest(
                "Only records can be delayed: no close, no Stream-Seq, no producer. A message id makes it safe to repeat.",
                code="delay-plain",
            )
        require_type(self._log, path, append.content_type)
        if append.records is None:
            append.records = cut(self._log, path, append.body, append.content_type)

        def told(results: Any) -> None:
            done(results if isinstance(results, Exception) else results[0])

        self.append_all([Item(path, append, delay_s)], told)

    def _made(self, items: Sequence[Item], due: list[int], done: Done, result: Any) -> None:
        try:
            if isinstance(result, Exception):
                raise result
            self._append(items, due, done)
        except Exception as error:
            done(error)

    def _append(self, items: Sequence[Item], due: list[int], done: Done) -> None:
        appends: list[tuple[str, Append]] = []
        for item, due_ms in zip(items, due, strict=True):
            if item.delay_s > 0:
                content_type = self._log.find(item.path, touch=False).config.content_type
                appends.append((DUE, _holding(item, content_type, due_ms)))
            else:
                appends.append((item.path, item.append))
        self._log.append_all(appends, partial(self._held, items, due, done), in_line=True)

    def _held(self, items: Sequence[Item], due: list[int], done: Done, results: Any) -> None:
        if isinstance(results, Exception):
            done(results)
            return
        told: list[Appended | Held] = []
        for item, due_ms, result in zip(items, due, results, strict=True):
            if item.delay_s <= 0:
                told.append(result)
                continue
            told.append(Held(due_ms, result.duplicate))
            if not result.duplicate:
                count = len(item.append.records or ())
                for position in range(result.position - count, result.position):
                    self._await(position, due_ms)
        self._arm()
        done(told)

    # -- waiting

    def _await(self, position: int, due_ms: int, first: int = -1) -> None:
        self._waiting.add(position)
        heapq.heappush(self._oldest, position)
        at = self._clock.monotonic() + max(0.0, (due_ms - self._clock.wall_ms()) / 1000)
        heapq.heappush(self._due, (at, position if first < 0 else first, position))

    def _arm(self, not_before_s: float = 0.0) -> None:
        """Wake when the first is due, and nothing is being appended."""
        if self._stopped or not self._due or self._task is not None:
            return
        now = self._clock.monotonic()
        at = max(self._due[0][0], now + not_before_s)
        if self._armed is not None:
            if self._armed[0] <= at:
                return
            self._armed[1].cancel()
        self._armed = (at, self._timers.after(at - now, self._wake))

    def _wake(self) -> None:
        self._armed = None
        if not self._stopped and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._release())

    async def _release(self) -> None:
        """Append what is due, as much in one transaction as may be."""
        again_s = 0.0
        try:
            while self._due and self._due[0][0] <= self._clock.monotonic():
                taken = [heapq.heappop(self._due)]
                while self._due and self._due[0][0] <= self._clock.monotonic() and len(taken) < TOGETHER_MAX:
                    taken.append(heapq.heappop(self._due))
                try:
                    await self._give([position for _at, _first, position in taken])
                except Refusal as refusal:
                    for entry in taken:
                        if entry[2] in self._waiting:
                            heapq.heappush(self._due, entry)
                    if isinstance(refusal, StoreFailed):
                        self._stopped = True  # nothing is acknowledged any more; the next start takes them up
                        return
                    again_s = AGAIN_S
                    break
            with contextlib.suppress(Refusal):
                await self._let_go()
        finally:
            self._task = None
            self._arm(again_s)

    async def _give(self, positions: list[int]) -> None:
        """Append these, which are due; raises what may be otherwise the next time."""
        holds = await self._read(positions)
        appends = [(hold.stream, Append(b"", hold.content_type, records=[hold.data], meta=hold.meta)) for hold in holds]
        try:
            await self._appended([*appends, (DUE, _over(positions))])
        except (BadRequest, NotFound, Gone, Conflict, TooLarge) as refusal:
            if len(positions) > 1:
                for position in positions:  # not all of their streams take them: each by itself
                    await self._give([position])
                return
            await self._appended([(DUE, _over(positions))])
            self.dropped += 1
            _log.warning("delayed record dropped", stream=holds[0].stream, code=refusal.code, detail=refusal.detail)
        else:
            self.appended += len(positions)
        self._waiting.difference_update(positions)

    async def _read(self, positions: list[int]) -> list[_Hold]:
        """The records at ``positions``, in that order."""
        stream = self._log.find(DUE, touch=False)
        found: dict[int, _Hold] = {}
        batches: list[Batch] = []
        for position in sorted(positions):
            if not batches or position >= batches[-1].end:
                batches = await stream.read(position, READ_BYTES)
            batch = next(batch for batch in batches if batch.position <= position < batch.end)
            hold = _decode(batch.records[position - batch.position])
            assert isinstance(hold, _Hold)
            found[position] = hold
        return [found[position] for position in positions]

    async def _appended(self, appends: list[tuple[str, Append]]) -> list[Appended]:
        future: asyncio.Future[list[Appended]] = asyncio.get_running_loop().create_future()

        def done(result: Any) -> None:
            if future.cancelled():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        self._log.append_all(appends, done)
        return await future

    async def _let_go(self) -> None:
        """Of what is over; where little else is left, write that anew behind it first."""
        stream = self._log.find(DUE, touch=False)
        if self._waiting and stream.tail - self._floor(stream) > max(COMPACT_RECORDS, 4 * self.waiting):
            waiting = sorted(self._waiting)
            for start in range(0, len(waiting), TOGETHER_MAX):
                await self._move(waiting[start : start + TOGETHER_MAX])
        floor = self._floor(stream)
        if floor - self._trimmed >= TRIM_RECORDS or not self._waiting:
            self._trimmed = floor
            self._log.trim(DUE, floor)

    def _floor(self, stream: StreamView) -> int:
        """The position before which all is over."""
        oldest = self._oldest
        while oldest and oldest[0] not in self._waiting:
            heapq.heappop(oldest)
        return oldest[0] if oldest else stream.tail

    async def _move(self, positions: list[int]) -> None:
        """Write these anew."""
        holds = await self._read(positions)
        for position, hold in zip(positions, holds, strict=True):
            hold.first = position if hold.first < 0 else hold.first
        records = [*map(_encode, holds), _encode(_Over(positions))]
        (result,) = await self._appended([(DUE, Append(b"", records=records))])
        moved = dict(zip(positions, range(result.position - len(records), result.position), strict=False))
        self._waiting.difference_update(positions)
        self._waiting.update(moved.values())
        for position in moved.values():
            heapq.heappush(self._oldest, position)
        self._due = [(at, first, moved.get(position, position)) for at, first, position in self._due]
        heapq.heapify(self._due)


def require_type(log: Log, path: str, content_type: str | None) -> None:
    """Raise :class:`Conflict` where the stream at ``path`` is not of this type."""
    config = log.find(path).config
    if content_type is None or media_type(content_type) != media_type(config.content_type):
        raise Conflict(
            f"{path} takes {config.content_type}, not {content_type}. Send it with that Content-Type.",
            code="content-type-mismatch",
            fields={"content_type": config.content_type},
        )


def cut(log: Log, path: str, body: bytes | Spool, content_type: str | None) -> list[bytes]:
    """A body as records of the stream at ``path``. Raises refusals as an append of it does."""
    config = log.find(path).config
    limits = log.limits
    require_type(log, path, content_type)
    size = body.size if isinstance(body, Spool) else len(body)
    require_size(size, limits.json_body_bytes_max if config.is_json else limits.body_memory_bytes_max, "The body")
    records = split_records(config, body.read(0, size) if isinstance(body, Spool) else body) if size else []
    if not records:
        raise BadRequest("The body is empty: there is nothing to append.", code="empty-append")
    if len(records) > limits.append_records_max:
        raise TooLarge(
            f"The array has {len(records)} records; the limit of one append is {limits.append_records_max}.",
            fields={"limit_records": limits.append_records_max},
        )
    return records


def _holding(item: Item, content_type: str, due_ms: int) -> Append:
    """What holds an item; its message id is one in its own stream."""
    records = item.append.records or ()
    metas = item.append.metas(len(records))
    identity = next((meta.id for meta in metas.values() if meta.id), "")
    if identity and len(records) != 1:
        raise BadRequest(
            f"A message id names one record, and this append has {len(records)}. Publish them with an id each.",
            code="message-id-records",
        )
    return Append(
        b"",
        records=[
            _encode(_Hold(item.path, content_type, due_ms, data, metas.get(index)))
            for index, data in enumerate(records)
        ],
        meta=Meta(id=f"{item.path}\n{identity}") if identity else None,
    )


def _over(positions: list[int]) -> Append:
    return Append(b"", records=[_encode(_Over(positions))])


def _require_open(stream: StreamView) -> None:
    if stream.closed:
        raise Conflict(
            f"{stream.path} is closed: nothing can be appended any more.",
            code="stream-closed",
            headers={"Stream-Closed": "true", "Stream-Next-Offset": str(stream.offset(stream.tail))},
        )
