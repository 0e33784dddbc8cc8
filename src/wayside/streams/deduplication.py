"""Message ids that streams were sent lately, so that what is sent again is appended once.

What a stream knows of them is in memory. It is read from the metadata of its records when the stream is first published
to with an id; until then its appends wait in line, those without an id too, so that none overtakes another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from wayside.core.callbacks import guarded
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, Refusal, StoreFailed
from wayside.core.limits import Limits
from wayside.core.records import Append, Meta
from wayside.streams.stream import Stream

Again = Callable[[Refusal | None], None]
"""Called when the ids of a stream are known, or with why they cannot be read."""
Seen = dict[str, tuple[int, float]]
"""Message id to the position after its record, and until when it is remembered (monotonic seconds); oldest first."""
Load = Callable[[Stream, int, int, int], Awaitable["Found"]]
Found = list[tuple[str, int, int]]
"""Message ids of records as (id, position after the record, wall-clock milliseconds), newest first."""


def identity_of(append: Append) -> str:
    """The message id of an append, or "". Raises :class:`BadRequest` where it has a producer too."""
    meta = append.meta
    metas = () if meta is None else (meta,) if isinstance(meta, Meta) else meta.values()
    identity = next((known.id for known in metas if known.id), "")
    if identity and append.producer is not None:
        raise BadRequest(
            "Producer-Id and Wayside-Message-Id each say what a duplicate is: use one of them.",
            code="message-id-producer",
        )
    return identity


def require_one(count: int) -> None:
    """Raise :class:`BadRequest` where an append with a message id has not one record, but ``count``."""
    if count != 1:
        raise BadRequest(
            f"A message id names one record, and this append has {count}. Send them with POST /v1/publish, each with an "
            "id of its own, or one at a time.",
            code="message-id-records",
        )


class Deduplication:
    """``load(stream, since_ms, count_max, start)`` reads ids from the disk, of records from a position on; None where there
    is none."""

    def __init__(self, clock: Clock, limits: Limits, load: Load | None) -> None:
        self._clock = clock
        self._window_s = limits.dedupe_window_s
        self._count_max = limits.dedupe_ids_max
        self._load = load
        self._order: deque[tuple[float, Seen, str]] = deque()
        """All that is remembered, about oldest first."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(self) -> None:
        """Wait for what is being read."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def find(self, stream: Stream, identity: str) -> int | None:
        """The position after the record that had the id; None where there is none, or none that is remembered."""
        assert stream.seen is not None
        end, until = stream.seen.get(identity, (None, 0.0))
        return end if until > self._clock.monotonic() else None

    def note(self, stream: Stream, identity: str, end: int) -> None:
        """The record before ``end`` has the id."""
        assert stream.seen is not None
        now = self._clock.monotonic()
        self._remember(stream.seen, identity, end, now + self._window_s)
        order = self._order
        while order and order[0][0] <= now:
            until, seen, oldest = order.popleft()
            if oldest in seen and seen[oldest][1] <= until:
                del seen[oldest]

    def _remember(self, seen: Seen, identity: str, end: int, until: float) -> None:
        seen.pop(identity, None)
        seen[identity] = (end, until)
        self._order.append((until, seen, identity))
        if len(seen) > self._count_max:
            del seen[next(iter(seen))]

    def wait(self, stream: Stream, again: Again, *, identified: bool) -> bool:
        """Whether an append has to wait, ``identified`` if it has an id; then ``again`` is called later."""
        if stream.waiting is None:
            if stream.seen is not None or not identified:
                return False
            since_ms = self._clock.wall_ms() - int(self._window_s * 1000)
            found = _in_memory(stream, since_ms)
            first = stream.batches[0].time_ms if stream.batches else self._clock.wall_ms()
            behind = max(stream.start, stream.own_start) < stream.cache_from and first >= since_ms
            if not behind or stream.memory or self._load is None:
                self._adopt(stream, found)
                return False
            stream.waiting = []
            stream.plain = False
            task = asyncio.get_running_loop().create_task(self._read(stream, since_ms, found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        stream.waiting.append(again)
        return True

    async def load(self, stream: Stream) -> None:
        """Know the ids of a stream. Raises a :class:`Refusal` where they cannot be read."""
        since_ms = self._clock.wall_ms() - int(self._window_s * 1000)
        start = stream.start if stream.seen is None or stream.unread is None else max(stream.start, stream.unread)
        upto = stream.tail
        found = [each for each in _in_memory(stream, since_ms) if each[1] > start]
        if self._load is not None and start < stream.cache_from:
            found += await self._load(stream, since_ms, self._count_max, start)
        self._adopt(stream, found)
        stream.unread = None if stream.tail == upto else upto

    async def _read(self, stream: Stream, since_ms: int, found: Found) -> None:
        assert self._load is not None
        refusal: Refusal | None = None
        try:
            self._adopt(stream, [*found, *await self._load(stream, since_ms, self._count_max, 0)])
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else StoreFailed(f"Message ids cannot be read: {error}.")
        waiting, stream.waiting = stream.waiting or [], None
        stream.plain = not (stream.json or stream.awaited)
        for again in waiting:
            guarded(lambda again=again: again(refusal))  # type: ignore[misc]

    def _adopt(self, stream: Stream, found: Found) -> None:
        """Remember what was found, newest first, for what is left of its time."""
        now, now_ms = self._clock.monotonic(), self._clock.wall_ms()
        newest: dict[str, tuple[int, int]] = {}
        for identity, end, time_ms in found[: self._count_max]:
            newest.setdefault(identity, (end, time_ms))
        seen: Seen = {} if stream.seen is None else stream.seen
        for identity, (end, time_ms) in reversed(newest.items()):
            left = min(self._window_s, self._window_s - (now_ms - time_ms) / 1000)
            if left > 0:
                self._remember(seen, identity, end, now + left)
        stream.seen = seen


def _in_memory(stream: Stream, since_ms: int) -> Found:
    found: Found = []
    for batch in reversed(stream.batches):
        if batch.time_ms < since_ms:
            break
        for index, meta in sorted((batch.meta or {}).items(), reverse=True):
            if meta.id:
                found.append((meta.id, batch.position + index + 1, batch.time_ms))
    return found
