"""What a client is given: the status of a call, its events, values."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from wayside.core.codecs import Payload, decode
from wayside.core.records import JSON, media_type

__all__ = ["CallEvent", "CallStatus", "event_of", "value_of"]


class CallStatus(msgspec.Struct):
    """What a call is now. Times are milliseconds since 1970."""

    id: str
    service: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    attempt: int
    created_ms: int
    started_ms: int = 0
    ended_ms: int = 0
    priority: int = 0
    not_before_ms: int = 0
    progress: Any = None
    """What the handler said last."""
    items: int = 0
    """Values that it has yielded."""
    error: dict[str, Any] | None = None
    parent: str = ""
    result: Any = None

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class CallEvent(msgspec.Struct):
    """A record of a call's stream. ``kind``: queued, running, progress, item, retry, returned, done, failed, cancelled."""

    kind: str
    offset: str
    """Where to read on after it."""
    time_ms: int
    attempt: int = 0
    data: Any = None
    """What came with it: of progress a number or an object, of an item and of done the value."""
    error: dict[str, Any] | None = None

    @property
    def final(self) -> bool:
        return self.kind in ("done", "failed", "cancelled")


class _Wire(msgspec.Struct):
    event: str
    time_ms: int = 0
    attempt: int = 0
    data: Any = None
    content_type: str = ""
    base64: bytes | None = None
    error: dict[str, Any] | None = None
    delay_ms: int = 0


_decode_wire = msgspec.json.Decoder(_Wire).decode


def event_of(offset: str, record: bytes) -> CallEvent:
    """A record of a call's stream."""
    wire = _decode_wire(record)
    data = wire.data if wire.base64 is None else value_of(Payload(wire.base64, wire.content_type), None)
    return CallEvent(wire.event, offset, wire.time_ms, wire.attempt, data, wire.error)


def value_of(payload: Payload, returns: Any) -> Any:
    """A body as a value: of the type that is wanted, else as its media type says."""
    if returns is not None:
        return decode(payload, returns)
    kind = media_type(payload.content_type)
    if kind == "application/msgpack":
        return msgspec.msgpack.decode(payload.data)
    if kind == JSON:
        return msgspec.json.decode(payload.data)
    if kind == "text/plain":
        return payload.data.decode()
    return payload.data
