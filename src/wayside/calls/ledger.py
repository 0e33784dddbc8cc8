"""Which calls there are: those that have not ended, those that have lately, and those that only their streams know."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable

from wayside.calls.call import UNSET, CallState, Event, ServiceCall, decode_event, decode_request, encode, fields_of
from wayside.core.callbacks import Done
from wayside.core.errors import NotFound, Refusal
from wayside.core.records import JSON, Create, Durability, StreamConfig
from wayside.streams.contract import Log

__all__ = ["CALLS", "Ledger", "call_path", "no_such_call"]

CALLS = "__call/"
"""Where the streams of calls are."""
RECENT_MAX = 10_000
"""Calls that have ended and are remembered in memory; others are read from their streams."""
RECENT_BYTES_MAX = 64 * 1024 * 1024
"""What they were given and gave. One is remembered whatever its size."""


def call_path(identity: str) -> str:
    """The stream of a call."""
    return CALLS + identity


class Ledger:
    """The calls of one hub."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.open: dict[str, ServiceCall] = {}
        self.recent: OrderedDict[str, ServiceCall] = OrderedDict()
        self._recent_bytes = 0
        self.ended: dict[tuple[str, str], int] = {}
        """How many, by service and state."""
        self.children: dict[str, set[str]] = {}
        """Calls that others wait for as a step of theirs, by those."""
        self._orders = 0

    def __repr__(self) -> str:
        return f"<Ledger {len(self.open)} open, {len(self.recent)} recent>"

    def enter(self, call: ServiceCall) -> None:
        """A call that has not ended."""
        self._orders += 1
        call.order = self._orders
        self.open[call.id] = call
        if call.request.parent:
            self.children.setdefault(call.request.parent, set()).add(call.id)

    def forget(self, call: ServiceCall) -> None:
        """It is none of those that have not ended."""
        identity = call.id
        self.open.pop(identity, None)
        parent = call.request.parent
        if parent and (siblings := self.children.get(parent)) is not None:
            siblings.discard(identity)
            if not siblings:
                del self.children[parent]

    def close(self, call: ServiceCall) -> None:
        """It has ended."""
        self.forget(call)
        self.recent[call.id] = call
        self._recent_bytes += _size(call)
        self._bound()
        counted = (call.request.service, call.state.value)
        self.ended[counted] = self.ended.get(counted, 0) + 1

    def _bound(self) -> None:
        recent = self.recent
        while len(recent) > RECENT_MAX or (self._recent_bytes > RECENT_BYTES_MAX and len(recent) > 1):
            self._recent_bytes -= _size(recent.popitem(last=False)[1])

    def let_go(self, identity: str) -> None:
        """Remember no longer one that has ended."""
        call = self.recent.pop(identity, None)
        if call is not None:
            self._recent_bytes -= _size(call)

    def known(self, identity: str) -> ServiceCall | None:
        """A call that is in memory."""
        return self.open.get(identity) or self.recent.get(identity)

    def has(self, identity: str) -> bool:
        """Whether there is a call, in memory or on disk."""
        try:
            return self.known(identity) is not None or self._log.find(call_path(identity), touch=False) is not None
        except Refusal:
            return False

    async def load(self, identity: str) -> ServiceCall:
        """A call, read from its stream if need be. Raises :class:`NotFound`."""
        call = self.known(identity)
        if call is None:
            call = await self.read(identity)
            if call.final and identity not in self.recent:  # another may have read it meanwhile
                self.recent[identity] = call
                self.recent.move_to_end(identity, last=False)  # before others
                self._recent_bytes += _size(call)
                self._bound()
        return call

    async def read(self, identity: str) -> ServiceCall:
        """A call as its stream has it."""
        try:
            stream = self._log.find(call_path(identity), touch=False)
        except Refusal as refusal:
            raise no_such_call(identity) from refusal
        call: ServiceCall | None = None
        at = stream.start
        while at < stream.tail:
            for batch in await stream.read(at, self._log.limits.read_bytes_max):
                at = batch.end
                for record in batch.records:
                    if call is None:
                        durable = stream.config.durability is not Durability.MEMORY
                        call = ServiceCall(decode_request(record), stream.path, durable=durable)
                        call.streamed = True
                    else:
                        call.apply(decode_event(record))
        if call is None:
            raise no_such_call(identity)
        return call

    def stream(self, call: ServiceCall, done: Done | None = None) -> None:
        """Have a stream for a call in memory that has none yet; ``done`` is called once it can be read."""
        if call.streamed:
            if done is not None:
                done(None)
            return
        call.streamed = True
        records = [encode(call.request)]
        if call.started_ms and call.state is not CallState.QUEUED:
            records.append(encode(Event("running", call.started_ms, call.attempt, worker=call.worker_id)))
        else:
            records.append(encode(Event("queued", call.created_ms)))
        if call.final:
            records.append(encode(self._last_of(call)))
        config = StreamConfig(JSON, Durability.MEMORY, ttl_s=max(1, int(self._log.limits.call_linger_s)))
        create = Create(config, frozenset({"content_type", "durability"}), records=records, closed=call.final)

        def created(result: object) -> None:
            if isinstance(result, Exception):
                call.streamed = False
            if done is not None:
                done(result)

        self._log.create(call.path, create, created)

    def touch(self) -> None:
        """Have the streams of calls in memory live on for as long as those have not ended."""
        for call in self.open.values():
            if call.streamed and not call.durable:
                with contextlib.suppress(NotFound):
                    self._log.find(call.path)

    def unless_read(self, call: ServiceCall, then: Callable[[], None]) -> None:
        """Call ``then`` when nobody follows a call in memory: now, or when the last has gone."""
        try:
            stream = self._log.find(call.path, touch=False) if call.streamed else None
        except Refusal:
            stream = None
        if stream is not None and stream.readers:
            stream.on_unread = then
        else:
            then()

    @staticmethod
    def _last_of(call: ServiceCall) -> Event:
        result = fields_of(call.result) if call.result is not None else {}
        return Event(call.state.value, call.ended_ms, call.attempt, error=call.error, **result)


def _size(call: ServiceCall) -> int:
    """What it was given and gave, in bytes."""
    request = call.request
    given = len(request.base64) if request.json is UNSET else memoryview(request.json).nbytes
    return given + (len(call.result.data) if call.result is not None else 0)


def no_such_call(identity: str) -> NotFound:
    return NotFound(
        f"There is no call {identity[:80]!r}: it never was, or was let go (calls are kept for a day, those that nobody "
        "submitted for a minute).",
        code="call-not-found",
    )
