"""What a channel of a connection can have: a call, a follower, a request, a member of a group, a worker. Each takes what
its client says of it and writes frames; none knows of the others, nor of what the connection is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec

from wayside.calls.call import AttemptOutcome, CallState, ServiceCall
from wayside.calls.queue import Worker, spec_of, worker_name
from wayside.calls.services import Calls
from wayside.calls.workers import LOCAL, Leases
from wayside.core.callbacks import report
from wayside.core.codecs import Payload
from wayside.core.errors import BadRequest, Overloaded, Refusal, TooLarge, Unsupported
from wayside.core.records import (
    Batch,
    Meta,
    Spool,
)
from wayside.groups.group import Group
from wayside.groups.registry import Groups
from wayside.groups.state import Member
from wayside.link import frames as f
from wayside.link.frames import Part, Settled
from wayside.server.exchange import Memo, Request, require_member
from wayside.streams.contract import Reader, StreamView

COLLECTED_BYTES_MAX = 64 * 1024 * 1024
"""Of long answers on one connection, which are collected before they are sent."""
WORKER_CHARACTERS_MAX = 256
"""Of the name that a worker makes up."""


class Channelling(Protocol):
    """A connection with channels, as what is on one of them has it."""

    paused: bool
    collected: int
    """Bytes of answers that are being collected."""

    def put(self, frame: Any, size: int = 0) -> None:
        """Send a frame at the end of this turn of the loop; sooner where its ``size`` makes much of what waits."""
        ...

    def forget(self, channel: int) -> None:
        """A channel has ended."""
        ...

    def settle(self) -> None:
        """Something has ended that a drain may wait for."""
        ...


def problem_of(error: Exception) -> dict[str, Any]:
    """The problem document of an error; one of ours is reported, and said without its inside."""
    if isinstance(error, Refusal):
        return error.problem()
    report(error, problem_of)
    return Refusal("Something went wrong inside the hub.").problem()


class ChannelCall:
    """A call on a channel; itself what the call tells of its end. ``call`` is None while it is being submitted."""

    __slots__ = ("_abandon", "_channel", "_left", "_peer", "call")

    def __init__(self, peer: Channelling, channel: int, abandon: Callable[[ServiceCall], None]) -> None:
        self._peer = peer
        self._channel = channel
        self._abandon = abandon
        self._left = False
        """Nobody wants its answer any more."""
        self.call: ServiceCall | None = None

    def submitted(self, told: bool, result: ServiceCall | Exception) -> None:
        """It is kept, of which the client is ``told``; or was refused."""
        if self._left:
            return
        if isinstance(result, Exception):
            self._peer.put(f.ErrorFrame(self._channel, problem_of(result)))
            self._peer.forget(self._channel)
            return
        self.call = result
        if told:
            self._peer.put(f.AcceptedFrame(self._channel, result.id))
        if result.final:
            self(result)
        else:
            result.waiters.append(self)
            self._peer.settle()

    def __call__(self, call: ServiceCall) -> None:
        """It has ended."""
        if self._left:
            return
        if call.state is CallState.DONE:
            payload = call.result
            assert payload is not None
            self._peer.put(f.ResultFrame(self._channel, payload.data, payload.content_type), len(payload.data))
        else:
            self._peer.put(f.ErrorFrame(self._channel, {**(call.error or {}), "call": call.id}))
        self._peer.forget(self._channel)

    @property
    def lasts(self) -> bool:
        """Whether the call goes on without its connection."""
        return self.call is not None and self.call.durable

    def stop(self) -> None:
        """The client is gone, or wants no answer any more."""
        self._left = True
        call = self.call
        if call is not None and not call.final:
            if self in call.waiters:
                call.waiters.remove(self)
            self._abandon(call)


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


class ChannelMember:
    """A member of a group, on a channel."""

    __slots__ = ("_channel", "_group", "_member", "_peer")

    def __init__(self, peer: Channelling, frame: f.JoinFrame, groups: Groups) -> None:
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


class ChannelWorker:
    """The worker at the other end of a connection, if there is one: it has channel 0. To
    :class:`~wayside.calls.services.Calls` this is the way to it."""

    __slots__ = ("_calls", "_leases", "_put", "_settle", "worker")

    def __init__(self, peer: Channelling, calls: Calls, leases: Leases) -> None:
        self._put: Callable[[Any], None] = peer.put
        self._settle: Callable[[], None] = peer.settle
        self._calls = calls
        self._leases = leases
        self.worker: Worker | None = None

    def detach(self) -> None:
        """The worker is not at the other end any more."""
        worker, self.worker = self.worker, None
        if worker is not None and worker.link is self:
            worker.link = None

    def stop(self) -> None:
        """The client is gone. Its connection is let go of: each held the other."""
        self.detach()
        self._put, self._settle = _unheard, _nothing

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
        self._put(f.WorkingFrame(frame.channel, worker.lease_s, leases.lost(worker, frame.held)))
        leases.resend(worker, frame.held)
        calls.join(worker, specs)

    def run(self, call: ServiceCall) -> None:
        request = call.request
        payload = request.payload
        self._put(
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
        self._put(f.CancelFrame(0, call_id, attempt))

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
        self._put(f.TakenFrame(channel, call, attempt, seq, problem))
        self._settle()

    def take_rest(self, frame: f.RestFrame) -> None:
        worker = self._working()
        worker.stopping = True
        if frame.bye:
            self.worker = None
            for call in list(worker.held.values()):  # on their way to it when it stopped
                self._calls.attempts.hand_back(worker, call.id, call.attempt, lambda _result: None)
            self._leases.leave(worker, "it stopped")


def _unheard(_frame: Any) -> None:
    return None


def _nothing() -> None:
    return None
