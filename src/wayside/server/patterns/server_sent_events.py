"""Server-sent events: read and wait in a loop on one unending response.

Two dialects on one URL. ``live=sse`` is the Durable Streams protocol's (section 5.8): ``data`` and
``control`` events. ``Accept: text/event-stream`` alone is plain SSE (WHATWG HTML, section 9.2) for
``EventSource``: each record one event, its ``id`` the offset after it, resumed by ``Last-Event-ID``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

from wayside.core.records import Batch
from wayside.server.exchange import Exchange, body_of, cursor_after, head_fields, policy_for, position_of
from wayside.streams.contract import Log, Stay, StreamView

PATTERN = "sse"
RETRY_MS = 1000
"""What a browser waits before it connects again."""

_HEADERS = b"Content-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n"


def read(
    exchange: Exchange,
    log: Log,
    stream: StreamView,
    *,
    protocol: bool,
    first: int = 0,
    fields: bytes = b"",
    stay: Stay | None = None,
) -> None:
    """Answer a GET with events; ``protocol`` chooses the dialect of ``live=sse``, ``fields`` are more header fields."""
    request = exchange.request
    position = position_of(request, stream, first=first, required=protocol)
    policy = policy_for(request, stream, follows=True)
    if stay is not None:
        stay.renew(PATTERN)
    if not protocol and stream.closed and position >= stream.tail and "last-event-id" in request.headers:
        exchange.respond(204, head_fields(stream, stream.tail, etag=None, cache=b"no-store"))  # EventSource stops
        return
    headers = _HEADERS + fields
    if not stream.config.is_text:
        headers += b"Stream-SSE-Data-Encoding: base64\r\n"
    name, frame = exchange.framing
    if protocol:
        cursor = request.one("cursor")
        floor = cursor_after(cursor)
        encoding: PlainEvents | ProtocolEvents = ProtocolEvents(
            name, frame, floor if cursor is not None and floor > cursor_after(None) else 0
        )
        sink = exchange.open(200, headers, seconds=log.limits.sse_s)
    else:
        encoding = PlainEvents(name, frame)
        sink = exchange.open(200, headers)
        sink.write(frame(b"retry: %d\n\n" % RETRY_MS))
    ended = stay.hold(PATTERN) if stay is not None else None
    log.follow(stream, position, encoding, sink, PATTERN, policy=policy, ended=ended)


def lines(record: bytes) -> bytes:
    """A record as the value of ``data`` fields: each of its lines begins one, and keeps its leading space."""
    if b"\n" in record or b"\r" in record:
        record = (
            record.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n ", b"\n  ").replace(b"\n", b"\ndata:")
        )
    return b" " + record if record[:1] == b" " else record


class PlainEvents:
    """One event for each record."""

    __slots__ = ("_frame", "heartbeat", "key")

    def __init__(self, name: str, frame: Callable[[bytes], bytes]) -> None:
        self.key = ("plain", name)
        self.heartbeat = frame(b":\n\n")
        self._frame = frame

    def encode(self, stream: StreamView, batches: list[Batch]) -> bytes:
        config = stream.config
        value = (lambda r: r) if config.is_json else lines if config.is_text else base64.b64encode
        parts: list[bytes] = []
        for batch in batches:
            position = batch.position
            if len(stream.lineage) == 1:
                before = b"id: %011x_" % stream.lineage[0][1]
                for record in batch.records:
                    position += 1
                    parts.append(b"%b%016d\ndata:%b\n\n" % (before, position, value(record)))
            else:
                for record in batch.records:
                    position += 1
                    parts.append(b"id: %b\ndata:%b\n\n" % (str(stream.offset(position)).encode(), value(record)))
        return self._frame(b"".join(parts))

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None

    def end(self, stream: StreamView, position: int, reason: str, _told: bool) -> bytes | None:
        offset = str(stream.offset(position)).encode()
        if reason in ("closed", "deleted", "lagged"):
            return self._frame(b"event: %b\nid: %b\ndata:%b\n\n" % (reason.encode(), offset, offset))
        return self._frame(b"retry: %d\nid: %b\n\n" % (RETRY_MS, offset))


class ProtocolEvents:
    """A ``data`` event for each batch, followed by a ``control`` event that says where the reader stands."""

    __slots__ = ("_floor", "_frame", "heartbeat", "key")

    def __init__(self, name: str, frame: Callable[[bytes], bytes], floor: int) -> None:
        self.key = ("protocol", name, floor)
        self.heartbeat = frame(b":\n\n")
        self._frame = frame
        self._floor = floor

    def encode(self, stream: StreamView, batches: list[Batch]) -> bytes:
        body = body_of(stream, batches)
        if not stream.config.is_text:
            body = base64.b64encode(body)
        elif not stream.config.is_json:
            body = lines(body)
        return self._frame(b"event: data\ndata:%b\n\n%b" % (body, self._control(stream, batches[-1].end)))

    def _control(self, stream: StreamView, position: int) -> bytes:
        fields: dict[str, object] = {"streamNextOffset": str(stream.offset(position))}
        at_tail = position >= stream.tail
        if at_tail and stream.closed:
            fields["streamClosed"] = True
        else:
            fields["streamCursor"] = str(max(cursor_after(None), self._floor))
        if at_tail:
            fields["upToDate"] = True
        return b"event: control\ndata:%b\n\n" % json.dumps(fields, separators=(",", ":")).encode()

    def caught_up(self, stream: StreamView, position: int) -> bytes:
        return self._frame(self._control(stream, position))

    def end(self, stream: StreamView, position: int, reason: str, told: bool) -> bytes | None:
        if reason == "lagged":  # the protocol has no word for it; its clients pass over events that they do not know
            return self._frame(b"event: lagged\ndata:%b\n\n" % str(stream.offset(position)).encode())
        if told or reason in ("expired", "deleted", "drain"):
            return None  # the last control event says where to resume
        return self._frame(self._control(stream, position))
