"""Followers and requests on a channel of a connection: what they write, as frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from wayside import frames as f
from wayside.contracts import Log, Reader, StreamView
from wayside.delaying import Delaying, Held
from wayside.errors import BadRequest, Overloaded, Refusal, TooLarge, Unsupported
from wayside.exchange import Memo, Request
from wayside.guard import report
from wayside.limits import Limits
from wayside.metadata import rfc3339
from wayside.model import Append, Appended, Batch, Meta, Producer, Spool, StreamConfig, require_public
from wayside.state.calls import Call

__all__ = [
    "ENCODING",
    "ChannelCall",
    "ChannelExchange",
    "ChannelFollower",
    "Channelling",
    "SocketWire",
    "Wire",
    "problem_of",
    "publish",
]

COLLECTED_BYTES_MAX = 64 * 1024 * 1024
"""Of long answers on one connection, which are collected before they are sent."""


class Channelling(Protocol):
    """A connection with channels."""

    paused: bool

    collected: int
    """Bytes of answers that are being collected."""

    def put(self, frame: Any, size: int = 0) -> None:
        """Send a frame at the end of this turn of the loop; sooner where its ``size`` makes much of what waits."""
        ...

    def answer(self, entry: ChannelCall, call: Call) -> None:
        """A call has ended."""
        ...

    def forget(self, channel: int) -> None:
        """A channel has ended."""
        ...


class Wire(Protocol):
    """Where the frames for a client go."""

    def send(self, frames: list[Any]) -> None: ...

    def ping(self) -> None:
        """Keep an idle connection open."""
        ...

    def close(self, code: int, reason: str) -> None: ...


class SocketWire:
    """A WebSocket as a :class:`Wire`."""

    __slots__ = ("_socket",)

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def send(self, frames: list[Any]) -> None:
        made = self._socket.frames
        self._socket.write(made.join([made.binary(f.encode(frames))]))

    def ping(self) -> None:
        made = self._socket.frames
        if made.ping is not None:
            self._socket.write(made.join([made.ping]))

    def close(self, code: int, reason: str) -> None:
        self._socket.close(code, reason)


def _append_of(frame: f.PublishFrame, config: StreamConfig, limits: Limits) -> Append:
    """What a client publishes, as an append to a stream of this kind."""
    records = frame.records
    kind = frame.content_type or config.content_type
    producer = Producer(*frame.producer) if frame.producer else None
    if config.is_json:
        return Append(b"[%b]" % b",".join(records), kind, producer=producer)
    if len(records) == 1:
        return Append(records[0], kind, producer=producer)
    if not all(records) or len(records) > limits.append_records_max:
        raise BadRequest("Publish records that are not empty, and not too many.", code="empty-append")
    return Append(b"", kind, producer=producer, records=records)


def publish(frame: f.PublishFrame, log: Log, delaying: Delaying, put: Callable[[Any], None]) -> None:
    """Append what a client publishes, and have it answered. Raises at once what can be known now."""
    path = frame.stream
    require_public(path)
    append = _append_of(frame, log.find(path).config, log.limits)

    def done(result: Appended | Held | Exception) -> None:
        if isinstance(result, Exception):
            put(f.ErrorFrame(frame.channel, problem_of(result)))
        elif isinstance(result, Held):
            put(f.PublishedFrame(frame.channel, "", result.duplicate, rfc3339(result.due_ms)))
        else:
            put(f.PublishedFrame(frame.channel, str(result.offset), result.duplicate))

    if frame.said is not None:
        append.meta = delaying.meta(frame.said)
        if frame.said.delay_s:
            delaying.append_later(path, append, frame.said.delay_s, done)
            return
    log.append(path, append, done)


def problem_of(error: Exception) -> dict[str, Any]:
    if isinstance(error, Refusal):
        return error.problem()
    report(error, problem_of)
    return Refusal("Something went wrong inside the hub.").problem()


class Channelled:
    """Records as the MessagePack array ``[[offset after it, record], ...]``: the same for all channels. Of which more is
    known have it behind them."""

    key = "channelled"
    heartbeat = None

    def encode(self, stream: StreamView, batches: list[Batch]) -> msgspec.Raw:
        rows: list[tuple[str, bytes] | tuple[str, bytes, Meta]] = []
        for batch in batches:
            position = batch.position
            for record in batch.records:
                position += 1
                rows.append((str(stream.offset(position)), record))
            for index, meta in (batch.meta or {}).items():
                at = index - batch.count
                rows[at] = (rows[at][0], rows[at][1], meta)
        return msgspec.Raw(f.encode(rows))

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None

    def end(self, stream: StreamView, position: int, reason: str, _told: bool) -> tuple[str, str]:
        return reason, str(stream.offset(position))


ENCODING = Channelled()


class ChannelFollower:
    """Sink of a follower on a channel."""

    __slots__ = ("_channel", "_peer", "reader")

    def __init__(self, peer: Channelling, channel: int) -> None:
        self._peer = peer
        self._channel = channel
        self.reader: Reader | None = None

    @property
    def paused(self) -> bool:
        return self._peer.paused

    @property
    def send(self) -> Callable[[Any], int | None]:
        return self.write

    def write(self, frame: Any) -> None:
        if type(frame) is tuple:
            self._peer.put(f.EndFrame(self._channel, *frame))
        else:
            self._peer.put(f.RecordsFrame(self._channel, frame), len(frame))

    def queue(self, frame: Any, sent: int) -> None:
        raise AssertionError("write takes everything")

    def attach(self, reader: Reader) -> None:
        self.reader = reader

    def finish(self, _reason: str) -> None:
        self.reader = None
        self._peer.forget(self._channel)

    def abort(self, error: Exception) -> None:
        self._peer.put(f.ErrorFrame(self._channel, problem_of(error)))
        self.finish("")

    def stop(self) -> None:
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.stop()


class ChannelCall:
    """A call on a channel; itself what the call tells of its end. ``call`` is None while it is being submitted."""

    __slots__ = ("_abandon", "_peer", "call", "channel")

    def __init__(self, peer: Channelling, channel: int, abandon: Callable[[Call], None]) -> None:
        self._peer = peer
        self._abandon = abandon
        self.channel = channel
        self.call: Call | None = None

    def __call__(self, call: Call) -> None:
        self._peer.answer(self, call)

    @property
    def lasts(self) -> bool:
        """Whether the call goes on without its connection."""
        return self.call is not None and self.call.durable

    def stop(self) -> None:
        """The client is gone, or wants no answer any more."""
        call = self.call
        if call is not None and not call.final:
            if self in call.waiters:
                call.waiters.remove(self)
            self._abandon(call)


class ChannelExchange:
    """A request on a channel, as a pattern sees it (:class:`wayside.exchange.Exchange`)."""

    framing = ("channel", bytes)

    def __init__(self, peer: Channelling, channel: int, request: Request, body: bytes) -> None:
        self._peer = peer
        self._channel = channel
        self.request = request
        self.body: bytes | Spool = body
        self.on_lost: Callable[[], None] | None = None
        self.on_eof: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        self._answered = False
        self._parts: list[bytes] = []
        self._size = 0
        self._head: tuple[int, bytes] = (0, b"")
        self.paused = False

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: Memo | None = None) -> None:
        if not self._answered:
            self._answered = True
            fields = dict(_field(line) for line in headers.decode("latin-1").split("\r\n") if line)
            self._let_go()
            self._peer.put(f.ResponseFrame(self._channel, status, fields, body), len(body))
            self._peer.forget(self._channel)

    def refuse(self, error: Exception) -> None:
        problem = problem_of(error)
        status = int(problem.get("status", 500))
        self.respond(status, b"Content-Type: application/problem+json\r\n", msgspec.json.encode(problem))

    def open(self, status: int, headers: bytes, *, seconds: float | None = None) -> Any:
        if b"text/event-stream" in headers:
            raise Unsupported("On a channel, follow: events have no end.", code="use-follow")
        self._head = (status, headers)
        return self

    def accept(self, *_: Any) -> Any:
        raise Unsupported("A channel is no WebSocket: follow.", code="use-follow")

    def stop(self) -> None:
        """The client is gone, or wants no answer any more."""
        self._answered = True
        self._let_go()
        if self.on_lost is not None:
            self.on_lost()

    # -- sink of a long body, which is collected

    @property
    def send(self) -> Callable[[bytes], int | None]:
        return self.write

    def write(self, frame: bytes) -> None:
        if self._answered:
            return
        self._parts.append(frame)
        self._size += len(frame)
        self._peer.collected += len(frame)
        if self._peer.collected > COLLECTED_BYTES_MAX:
            if self.on_lost is not None:
                self.on_lost()
            if self._size > COLLECTED_BYTES_MAX // 2:
                self.refuse(TooLarge("The answer is too large for a channel. Follow the stream, or ask over HTTP."))
            else:
                self.refuse(Overloaded("The answers on this connection are too large together. Ask for one at a time."))

    def _let_go(self) -> None:
        self._peer.collected -= self._size
        self._size = 0
        self._parts = []

    def queue(self, frame: bytes, sent: int) -> None:
        raise AssertionError("write takes everything")

    def attach(self, reader: Reader) -> None:
        self.on_lost = reader.stop

    def finish(self, _reason: str) -> None:
        body = b"".join(self._parts)
        self.respond(*self._head, body)

    def abort(self, error: Exception) -> None:
        self.refuse(error)


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()
