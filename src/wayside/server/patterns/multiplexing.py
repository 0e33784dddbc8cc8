"""Multiplexing: calls, followers, publishes and workers of one client on one connection, a channel for each.

A channel spends its own credit, so one that is not read does not hold up the others. What is due in one turn of the
event loop goes out as one message. The frames are those of :mod:`wayside.link.frames`; the other end is a WebSocket, or a
client in the hub's own process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec

from wayside.calls.services import Calls
from wayside.calls.workers import Leases
from wayside.core.callbacks import guarded, report
from wayside.core.codecs import Payload
from wayside.core.errors import BadRequest, Overloaded, Refusal, Unsupported
from wayside.core.globs import Glob, is_glob
from wayside.core.limits import Limits
from wayside.core.metadata import rfc3339
from wayside.core.policies import policy_of
from wayside.core.records import (
    Append,
    Appended,
    Producer,
    StreamConfig,
    is_reserved,
    require_public,
    require_size,
    start_position,
)
from wayside.groups.registry import Groups
from wayside.link import frames as f
from wayside.server.call_streams import CallStream, open_call_stream
from wayside.server.channels import (
    ENCODING,
    ChannelCall,
    ChannelExchange,
    ChannelFollower,
    ChannelMember,
    ChannelWorker,
    problem_of,
)
from wayside.server.exchange import Exchange, Handler, Request, parse_query, unquote_path
from wayside.streams.contract import Log, StreamView
from wayside.streams.delayed import Delaying, Held
from wayside.streams.presence import PRESENCE, Presence

PATTERN = "multiplexing"
OWED_BYTES_MAX = 256 * 1024
"""More does not wait for the end of the turn: then it is known whether the client takes it."""
HELD_FRAMES_MAX = 100_000


class Connections:
    """The clients that are connected, and what they may reach. ``resolve`` finds what answers any other request."""

    def __init__(
        self, log: Log, calls: Calls, leases: Leases, presence: Presence, groups: Groups, delaying: Delaying
    ) -> None:
        self.log = log
        self.calls = calls
        self.leases = leases
        self.presence = presence
        self.groups = groups
        self.delaying = delaying
        self.resolve: Callable[[Request], Handler] = _nothing
        self.peers: set[Peer] = set()
        self._timer: asyncio.TimerHandle | None = None

    def accept(self, exchange: Exchange) -> None:
        """Answer an upgrade of ``/v1/connect``."""
        offered = [name.strip() for name in exchange.request.headers.get("sec-websocket-protocol", "").split(",")]
        if exchange.request.headers.get("upgrade", "").lower() != "websocket" or f.SUBPROTOCOL not in offered:
            raise BadRequest(
                f"This is a WebSocket with the subprotocol {f.SUBPROTOCOL}: see docs/PROTOCOL.md, or use a client.",
                code="websocket-handshake",
            )
        peer = Peer(self)
        socket = exchange.accept(f.SUBPROTOCOL, peer.on_text, peer.on_message)
        peer.start(SocketWire(socket))
        socket.attach(peer)

    def enter_local(self, wire: Wire) -> Peer:
        """A client in this process: its frames go to what is returned, those for it to ``wire``."""
        peer = Peer(self)
        peer.start(wire)
        return peer

    def enter(self, peer: Peer) -> None:
        self.peers.add(peer)
        if self._timer is None:
            self._beat()

    def _beat(self) -> None:
        for peer in list(self.peers):
            guarded(peer.beat)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.log.limits.heartbeat_s, self._beat) if self.peers else None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for peer in list(self.peers):
            peer.stop()


def _nothing(_request: Request) -> Handler:
    raise Unsupported("This hub answers no requests here.")


class Wire(Protocol):
    """Where the frames for a client go."""

    def send(self, frames: list[Any]) -> None: ...

    def ping(self) -> None:
        """Keep an idle connection open."""

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


class Peer:
    """One client. To its connection it is the reader that feeds it; to what is on its channels, the way out."""

    credit: int | None = None
    until: int | None = None
    at = 0

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._calls = connections.calls
        self._log = connections.log
        self._wire: Wire | None = None
        self._out: list[Any] = []
        self._channels: dict[int, Any] = {}
        """A call, a follower, a request or a member."""
        self._working = ChannelWorker(self, connections.calls, connections.leases)
        self._held: list[Any] = []
        """Frames that came while the client did not read."""
        self._owed = 0
        """Bytes in ``_out``, about."""
        self.collected = 0
        self._quiet = False
        self._draining = False
        self.paused = False
        self._limit = connections.log.limits.channels_max

    def start(self, wire: Wire) -> None:
        self._wire = wire
        self._connections.enter(self)

    # -- frames in

    def on_text(self, _text: str) -> None:
        self._fail("messages are binary: MessagePack arrays of frames")

    def on_message(self, data: bytes) -> None:
        try:
            received = f.decode_from_client(data)
        except (msgspec.DecodeError, RecursionError) as error:
            self._fail(f"not an array of frames: {error}"[:120])
            return
        self.receive(received)

    def _fail(self, reason: str) -> None:
        if self._wire is not None:
            self._flush()
            self._wire.close(1008, reason)

    def receive(self, received: list[Any]) -> None:
        """Frames of the client, in order. While it does not read its answers none are taken."""
        for place, frame in enumerate(received):
            if self._held or self.paused:
                self._held += received[place:]
                if len(self._held) > HELD_FRAMES_MAX:
                    self._fail("read the answers before you ask for more")
                return
            if self._wire is None:
                return
            try:
                kind = type(frame)
                take = _TAKES.get(kind)
                if take is not None:
                    take(self, frame)
                else:
                    _OF_WORKERS[kind](self._working, frame)
            except Refusal as refusal:
                self.put(f.ErrorFrame(frame.channel, refusal.problem()))
            except Exception as error:
                report(error, frame)
                self.put(f.ErrorFrame(frame.channel, Refusal("Something went wrong inside the hub.").problem()))

    def _open(self, channel: int) -> None:
        if channel in self._channels:
            raise BadRequest(f"Channel {channel} is in use.", code="channel-in-use")
        if len(self._channels) >= self._limit:
            raise Overloaded(f"There are {self._limit} channels open, as many as may.", code="too-many-channels")
        if self._draining:
            raise Overloaded("The hub is stopping. Connect again shortly.", code="stopping")

    def _call(self, frame: f.CallFrame) -> None:
        channel = frame.channel
        self._open(channel)
        require_size(len(frame.body), self._log.limits.json_body_bytes_max, "The body of the call")
        self._require_head(frame.service, frame.content_type, frame.accept)
        payload = Payload(frame.body, frame.content_type)
        options = frame.options
        calls = self._calls
        if options is None:
            request = calls.request(frame.service, payload, frame.accept)
        else:
            self._require_head(
                options.parent, *(text for pair in options.query.items() for text in (pair[0], *pair[1]))
            )
            request = calls.request(
                frame.service,
                payload,
                None if options.key else frame.accept,  # what is kept is kept as JSON, for whoever reads it
                query=options.query,
                key=options.key,
                priority=options.priority,
                delay_s=options.delay_s,
                callback=options.callback,
                parent=options.parent,
                durable=frame.submitted,
            )
        entry = self._channels[channel] = ChannelCall(self, channel, calls.abandon)
        try:
            if frame.submitted or request.key:
                calls.submit(request, partial(entry.submitted, frame.submitted))
            else:
                entry.call = calls.call(request, entry)
        except Exception:
            self._channels.pop(channel, None)
            raise

    def _leave(self, frame: f.LeaveFrame) -> None:
        entry = self._channels.pop(frame.channel, None)
        if isinstance(entry, ChannelMember):
            entry.leave()
        elif entry is not None:
            entry.stop()

    def _require_head(self, *texts: str) -> None:
        """What HTTP would have in a head is no longer than there."""
        require_size(sum(map(len, texts)), self._log.limits.header_bytes_max, "What is beside the body")

    def _publish(self, frame: f.PublishFrame) -> None:
        _publish(frame, self._log, self._connections.delaying, self.put)

    def _follow(self, frame: f.FollowFrame) -> None:
        channel = frame.channel
        self._open(channel)
        sink = self._channels[channel] = ChannelFollower(self, channel)
        begin = partial(self._begin, frame, sink)
        try:
            if frame.call:
                open_call_stream(self._calls, frame.stream, begin)
            elif is_glob(frame.stream):
                self._log.union(Glob(frame.stream), begin)
            else:
                begin(self._stream(frame.stream))
        except Exception:
            self._channels.pop(channel, None)
            raise

    def _begin(self, frame: f.FollowFrame, sink: ChannelFollower, found: StreamView | CallStream | Exception) -> None:
        """There is a stream to follow, if there is one at all."""
        channel = frame.channel
        if self._channels.get(channel) is not sink:
            return
        try:
            if isinstance(found, Exception):
                raise found
            stream, first = found if isinstance(found, CallStream) else (found, found.start)
            position = max(first, start_position(stream, frame.offset))
            terms = self._terms(frame, stream)
        except Exception as error:
            self._channels.pop(channel)
            self.put(f.ErrorFrame(channel, problem_of(error)))
            return
        self.put(f.FollowingFrame(channel, stream.config.content_type, str(stream.offset(position))))
        self._log.follow(stream, position, ENCODING, sink, PATTERN, credit=frame.credit, **terms)

    def _stream(self, path: str) -> StreamView:
        if path.startswith(PRESENCE):
            return self._connections.presence.events(path[len(PRESENCE) :])
        require_public(path)
        return self._log.find(path)

    def _terms(self, frame: f.FollowFrame, stream: StreamView) -> dict[str, Any]:
        """The policy of a follower, and its presence."""
        options = frame.options
        if options is None:
            return {}
        interval, lag = (str(number) if number else None for number in (options.interval_s, options.lag))
        policy = policy_of(options.policy or None, options.key or None, interval, lag)
        if policy is not None:
            policy.require_fit(is_json=stream.config.is_json, follows=True)
        until = stream.tail if options.whole else None
        if not options.member:
            return {"policy": policy, "until": until}
        if is_glob(frame.stream):
            raise BadRequest(f"Presence is of one stream, and {frame.stream!r} is a glob.", code="glob-member")
        if is_reserved(stream.path):
            raise BadRequest("Presence is of streams, and not of calls or of presence itself.", code="member-invalid")
        stay = self._connections.presence.stay(stream.path, options.member)
        stay.renew(PATTERN)
        return {"policy": policy, "until": until, "ended": stay.hold(PATTERN)}

    def _credit(self, frame: f.CreditFrame) -> None:
        entry = self._channels.get(frame.channel)
        if frame.records <= 0:
            raise BadRequest("Credit is a number of records, from 1.", code="parameter-invalid")
        if isinstance(entry, ChannelFollower) and entry.reader is not None:
            entry.reader.grant(frame.records)
        elif isinstance(entry, ChannelMember):
            entry.grant(frame.records)

    def _join(self, frame: f.JoinFrame) -> None:
        self._open(frame.channel)
        self._channels[frame.channel] = ChannelMember(self, frame, self._connections.groups)

    def _settle(self, frame: f.SettleFrame) -> None:
        _member_of(self._channels.get(frame.channel)).settle(frame)

    def _rest(self, frame: f.RestFrame) -> None:
        entry = self._channels.get(frame.channel)
        entry.rest() if isinstance(entry, ChannelMember) else self._working.take_rest(frame)

    def _request(self, frame: f.RequestFrame) -> None:
        self._open(frame.channel)
        path, _, query = frame.target.partition("?")
        headers = {name.lower(): value for name, value in frame.headers.items()}
        self._require_head(frame.method, frame.target, *headers, *headers.values())
        request = Request(frame.method, frame.target, unquote_path(path), parse_query(query), headers)
        exchange = self._channels[frame.channel] = ChannelExchange(self, frame.channel, request, frame.body)
        try:
            self._connections.resolve(request)(exchange)
        except Exception as error:
            exchange.refuse(error)

    # -- frames out

    def put(self, frame: Any, size: int = 0) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(frame)
        self._owed += size
        if self._owed > OWED_BYTES_MAX:
            self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._owed = 0
        if out and self._wire is not None:
            self._quiet = False
            self._wire.send(out)

    def beat(self) -> None:
        """Keep the connection open."""
        if self._quiet and self._wire is not None:
            self._wire.ping()
        self._quiet = True

    def forget(self, channel: int) -> None:
        """A channel has ended."""
        self._channels.pop(channel, None)
        self.settle()

    # -- as the reader of its connection

    def pump(self) -> None:
        self.paused = False
        held, self._held = self._held, []
        self.receive(held)
        for entry in list(self._channels.values()):
            if isinstance(entry, ChannelFollower) and entry.reader is not None:
                entry.reader.pump()

    def pause(self) -> None:
        self.paused = True
        for entry in list(self._channels.values()):
            if isinstance(entry, ChannelFollower) and entry.reader is not None:
                entry.reader.pause()

    def reroute(self) -> None:
        return None

    def grant(self, _credit: int) -> None:
        return None

    def finish(self, reason: str) -> None:
        """The hub stops: followers are told where to resume, calls under way are answered, then it closes."""
        self._draining = True
        worker = self._working.worker
        if worker is not None:
            worker.stopping = True
        for entry in list(self._channels.values()):
            if isinstance(entry, ChannelFollower) and entry.reader is not None:
                entry.reader.finish(reason)
            elif isinstance(entry, ChannelExchange) and entry.on_drain is not None:
                entry.on_drain()
            elif isinstance(entry, ChannelMember):
                entry.rest()
        self.settle()

    def settle(self) -> None:
        """Close, once a drain has nothing left to wait for."""
        if self._draining and self._wire is not None:
            waiting = [
                e
                for e in self._channels.values()
                if not isinstance(e, ChannelMember) and not (isinstance(e, ChannelCall) and e.lasts)
            ]
            worker = self._working.worker
            held = worker is not None and any(not call.durable for call in worker.held.values())
            if not waiting and not held:
                asyncio.get_running_loop().call_soon(self._close)

    def _close(self) -> None:
        if self._wire is not None:
            self._flush()
            self._wire.close(1012, "the hub stops: connect again")

    def stop(self) -> None:
        """The client is gone."""
        self._connections.peers.discard(self)
        self._wire = None
        self._held.clear()
        self._working.stop()  # first: what ends now gives its places to others
        channels, self._channels = self._channels, {}
        for entry in channels.values():
            guarded(entry.stop)


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


def _publish(frame: f.PublishFrame, log: Log, delaying: Delaying, put: Callable[[Any], None]) -> None:
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


def _member_of(entry: object) -> ChannelMember:
    """What is on a channel, as a member of a group. Raises :class:`BadRequest` where it is none."""
    if not isinstance(entry, ChannelMember):
        raise BadRequest("Join the group first: this channel is no member of one.", code="not-a-member")
    return entry


_TAKES: dict[type, Callable[[Peer, Any], None]] = {
    f.CallFrame: Peer._call,
    f.LeaveFrame: Peer._leave,
    f.PublishFrame: Peer._publish,
    f.FollowFrame: Peer._follow,
    f.CreditFrame: Peer._credit,
    f.RequestFrame: Peer._request,
    f.JoinFrame: Peer._join,
    f.SettleFrame: Peer._settle,
    f.RestFrame: Peer._rest,
}
_OF_WORKERS: dict[type, Callable[[ChannelWorker, Any], None]] = {
    f.WorkFrame: ChannelWorker.take_work,
    f.EmitFrame: ChannelWorker.take_emit,
    f.FinishFrame: ChannelWorker.take_finish,
    f.ReturnFrame: ChannelWorker.take_return,
}
