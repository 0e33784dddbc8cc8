"""Followers and requests on a channel of a connection: what they write, as frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec

from wayside.calls.call import AttemptOutcome, ServiceCall
from wayside.calls.queue import Worker, spec_of, worker_name
from wayside.calls.services import Calls
from wayside.calls.workers import LOCAL, Leases
from wayside.core.callbacks import report
from wayside.core.codecs import Payload
from wayside.core.errors import BadRequest, Overloaded, Refusal, TooLarge, Unsupported
from wayside.core.limits import Limits
from wayside.core.metadata import rfc3339
from wayside.core.records import (
    Append,
    Appended,
    Batch,
    Meta,
    Producer,
    Spool,
    StreamConfig,
    require_public,
    require_size,
)
from wayside.groups.group import Group
from wayside.groups.registry import Groups
from wayside.groups.state import Member
from wayside.link import frames as f
from wayside.link.frames import Part, Settled
from wayside.server.exchange import Memo, Request
from wayside.streams.contract import Log, Reader, StreamView
from wayside.streams.delayed import Delaying, Held

__all__ = [
    "ChannelCall",
    "ChannelExchange",
    "ChannelFollower",
    "ChannelMember",
    "Channelling",
    "ENCODING",
    "SocketWire",
    "Wire",
    "WorkerSide",
    "member_of",
    "problem_of",
    "publish",
    "require_member",
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

    def answer(self, entry: ChannelCall, call: ServiceCall) -> None:
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

    def __init__(self, peer: Channelling, channel: int, abandon: Callable[[ServiceCall], None]) -> None:
        self._peer = peer
        self._abandon = abandon
        self.channel = channel
        self.call: ServiceCall | None = None

    def __call__(self, call: ServiceCall) -> None:
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
    """A request on a channel, as a pattern sees it (:class:`wayside.server.exchange.Exchange`)."""

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


WORKER_CHARACTERS_MAX = 256
"""Of the name that a worker makes up."""


class WorkerSide:
    """A part of the hub's end of a connection. Takes the frames of a worker; to :class:`~wayside.calls.services.Calls` it is the
    way to that worker."""

    def __init__(self, calls: Calls, leases: Leases) -> None:
        self._calls = calls
        self._leases = leases
        self.worker: Worker | None = None

    def put(self, frame: Any, size: int = 0) -> None:
        """Send a frame."""
        raise NotImplementedError

    def settle(self) -> None:
        """Something has ended that a drain may wait for."""
        raise NotImplementedError

    def detach(self) -> None:
        """The worker is not at the other end any more."""
        worker, self.worker = self.worker, None
        if worker is not None and worker.link is self:
            worker.link = None

    def take_work(self, frame: f.WorkFrame) -> None:
        calls, leases = self._calls, self._leases
        specs = [spec_of(document) for document in frame.services]
        if frame.worker.startswith(LOCAL) or not 0 < len(frame.worker) <= WORKER_CHARACTERS_MAX:
            raise BadRequest("A worker makes up its own id, not one of the hub's.", code="worker-invalid")
        worker = leases.enter(worker_name(frame.worker))
        if self.worker is not worker:
            self.detach()
        worker.services = [spec.name for spec in specs]
        worker.capacity = max(0, frame.capacity)
        worker.link, worker.stopping = self, False
        self.worker = worker
        self.put(f.WorkingFrame(frame.channel, worker.lease_s, leases.lost(worker, frame.held)))
        leases.resend(worker, frame.held)
        calls.join(worker, specs)

    def run(self, call: ServiceCall) -> None:
        request = call.request
        payload = request.payload
        self.put(
            f.RunFrame(
                0,
                call.id,
                call.attempt,
                request.service,
                payload.data,
                payload.content_type,
                request.accept or "",
                request.query,
                call.items,
                call.durable,
                call.spec.spec.timeout_s,
            )
        )

    def cancel(self, call_id: str, attempt: int) -> None:
        self.put(f.CancelFrame(0, call_id, attempt))

    def _working(self) -> Worker:
        if self.worker is None:
            raise BadRequest("Send a work frame first.", code="not-a-worker")
        return self.worker

    def take_emit(self, frame: f.EmitFrame) -> None:
        if frame.kind not in ("progress", "item"):
            raise BadRequest(
                f"An attempt sends progress or an item, not {frame.kind[:40]!r}.", code="parameter-invalid"
            )
        taken = partial(self._taken, frame.channel, frame.call, frame.attempt, frame.seq)
        payload = Payload(frame.body, frame.content_type)
        self._calls.attempts.emit(self._working(), frame.call, frame.attempt, frame.seq, frame.kind, payload, taken)

    def take_finish(self, frame: f.FinishFrame) -> None:
        payload = None if frame.error else Payload(frame.body, frame.content_type)
        outcome = AttemptOutcome(payload, frame.error, frame.again)
        taken = partial(self._taken, frame.channel, frame.call, frame.attempt, -1)
        self._calls.attempts.finish(self._working(), frame.call, frame.attempt, outcome, taken)

    def take_return(self, frame: f.ReturnFrame) -> None:
        taken = partial(self._taken, frame.channel, frame.call, frame.attempt, -1)
        self._calls.attempts.hand_back(self._working(), frame.call, frame.attempt, taken)

    def _taken(self, channel: int, call: str, attempt: int, seq: int, result: Any) -> None:
        problem = problem_of(result) if isinstance(result, Exception) else None
        self.put(f.TakenFrame(channel, call, attempt, seq, problem))
        self.settle()

    def take_rest(self, frame: f.RestFrame) -> None:
        worker = self._working()
        worker.stopping = True
        if frame.bye:
            self.worker = None
            for call in list(worker.held.values()):  # on their way to it when it stopped
                self._calls.attempts.hand_back(worker, call.id, call.attempt, lambda _result: None)
            self._leases.leave(worker, "it stopped")


MEMBER_CHARACTERS_MAX = 256
"""Of the name of a member."""


class _Peer(Protocol):
    def put(self, frame: Any, size: int = 0) -> None: ...

    def forget(self, channel: int) -> None: ...


def require_member(name: str) -> None:
    """Raise :class:`BadRequest` or ``TooLarge`` for what is no name of a member."""
    require_size(len(name.encode()), MEMBER_CHARACTERS_MAX, "The name of the member")
    if not name.isprintable() or not name:
        raise BadRequest("A member has a printable name.", code="member-invalid")


class ChannelMember:
    """A member of a group, on a channel."""

    __slots__ = ("_channel", "_group", "_member", "_peer")

    def __init__(self, peer: _Peer, frame: f.JoinFrame, groups: Groups) -> None:
        require_member(frame.member)
        self._peer = peer
        self._channel = frame.channel
        self._group: Group = groups.group(frame.group)
        self._member = Member(frame.member, self, max(0, frame.credit))
        if frame.held is not None:
            self._group.recall(frame.member, frame.held)
        self._group.join(self._member)
        peer.put(f.JoinedFrame(frame.channel, self._group.spec.lease_s))

    def deliver(self, lease: int, seconds: float, parts: list[Part]) -> None:
        size = sum(len(record) for part in parts for record in part.records)
        self._peer.put(f.DeliverFrame(self._channel, lease, seconds, parts), size)

    def ended(self, error: Exception) -> None:
        self._peer.put(f.ErrorFrame(self._channel, problem_of(error)))
        self._peer.forget(self._channel)

    def grant(self, credit: int) -> None:
        """It takes that many more."""
        self._member.credit += credit
        self._group.wake()

    def rest(self) -> None:
        """It is given no more; what it has it may still settle."""
        self._group.leave(self._member, give_back=False)

    def leave(self) -> None:
        """It gives back what it has."""
        self._group.leave(self._member, give_back=True)

    def stop(self) -> None:
        """Its connection is lost: what it has is its own until its leases end."""
        self._group.leave(self._member, give_back=False)

    def settle(self, frame: f.SettleFrame) -> None:
        """Take what it says of its records."""
        told = partial(self._settled, frame.seq)
        try:
            self._group.settle(frame.settlement, told, self._member.name)
        except Refusal as refusal:
            told(refusal)

    def _settled(self, seq: int, result: Settled | Exception) -> None:
        if isinstance(result, Exception):
            refused = f.SettledFrame(self._channel, seq, [], problem_of(result))
            self._peer.put(refused)
        else:
            self._peer.put(f.SettledFrame(self._channel, seq, result.refused, None, result.offsets))


def member_of(entry: object) -> ChannelMember:
    """What is on a channel, as a member. Raises :class:`BadRequest` where it is none."""
    if not isinstance(entry, ChannelMember):
        raise BadRequest("Join the group first: this channel is no member of one.", code="not-a-member")
    return entry
