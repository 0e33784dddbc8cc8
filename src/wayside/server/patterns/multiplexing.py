"""Multiplexing: calls, followers, publishes and workers of one client on one connection, a channel for each.

A channel spends its own credit, so one that is not read does not hold up the others. What is due in one turn of the
event loop goes out as one message. The frames are those of :mod:`wayside.link.frames`; the other end is a WebSocket, or a
client in the hub's own process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from wayside.calls.call import CallState, ServiceCall
from wayside.calls.ledger import call_path, no_such_call
from wayside.calls.services import Calls
from wayside.calls.workers import Leases
from wayside.core.callbacks import guarded, report
from wayside.core.codecs import Payload
from wayside.core.errors import BadRequest, Overloaded, Refusal, Unsupported
from wayside.core.globs import Glob, is_glob
from wayside.core.policies import policy_of
from wayside.core.records import Offset, is_reserved, require_public, require_size
from wayside.groups.registry import Groups
from wayside.link import frames as f
from wayside.server.channels import (
    ENCODING,
    ChannelCall,
    ChannelExchange,
    ChannelFollower,
    ChannelMember,
    SocketWire,
    Wire,
    WorkerSide,
    member_of,
    problem_of,
    publish,
)
from wayside.server.exchange import Exchange, Request, parse_query, unquote_path
from wayside.streams.contract import Log, StreamView
from wayside.streams.delayed import Delaying
from wayside.streams.presence import PRESENCE, Presence

__all__ = ["Connections", "Peer"]

PATTERN = "multiplexing"
OWED_BYTES_MAX = 256 * 1024
"""More does not wait for the end of the turn: then it is known whether the client takes it."""
HELD_FRAMES_MAX = 100_000
Handler = Callable[[Exchange], None]


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


class Peer(WorkerSide):
    """One client. To its connection it is the reader that feeds it; to :class:`~wayside.calls.services.Calls` the way to a
    worker."""

    credit: int | None = None
    until: int | None = None
    at = 0

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections.calls, connections.leases)
        self._connections = connections
        self._log = connections.log
        self._wire: Wire | None = None
        self._out: list[Any] = []
        self._channels: dict[int, Any] = {}
        """A call, a follower or a request."""
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
                _TAKES[type(frame)](self, frame)
            except Refusal as refusal:
                self._put(f.ErrorFrame(frame.channel, refusal.problem()))
            except Exception as error:
                report(error, frame)
                self._put(f.ErrorFrame(frame.channel, Refusal("Something went wrong inside the hub.").problem()))

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
                calls.submit(request, partial(self._submitted, entry, frame.submitted))
            else:
                entry.call = calls.call(request, entry)
        except Exception:
            self._channels.pop(channel, None)
            raise

    def _submitted(self, entry: ChannelCall, told: bool, result: Any) -> None:
        channel = entry.channel
        if self._channels.get(channel) is not entry:
            return  # the client has left it
        if isinstance(result, Exception):
            self._channels.pop(channel, None)
            self._put(f.ErrorFrame(channel, problem_of(result)))
            self.settle()
            return
        call: ServiceCall = result
        entry.call = call
        if told:
            self._put(f.AcceptedFrame(channel, call.id))
        if call.final:
            self.answer(entry, call)
        else:
            call.waiters.append(entry)
            self.settle()

    def answer(self, entry: ChannelCall, call: ServiceCall) -> None:
        """A call has ended: a client that has left its channel is not told."""
        channel = entry.channel
        if self._wire is None or self._channels.get(channel) is not entry:
            return
        del self._channels[channel]
        if call.state is CallState.DONE:
            payload = call.result
            assert payload is not None
            self._put(f.ResultFrame(channel, payload.data, payload.content_type), len(payload.data))
        else:
            self._put(f.ErrorFrame(channel, {**(call.error or {}), "call": call.id}))
        self.settle()

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
        publish(frame, self._log, self._connections.delaying, self._put)

    def _follow(self, frame: f.FollowFrame) -> None:
        self._open(frame.channel)
        sink = self._channels[frame.channel] = ChannelFollower(self, frame.channel)
        call = self._calls.ledger.known(frame.stream) if frame.call else None
        if call is not None:
            self._calls.ledger.stream(call, lambda _result: self._begin(frame, sink))
        elif is_glob(frame.stream) and not frame.call:
            try:
                self._log.union(Glob(frame.stream), partial(self._begin, frame, sink))
            except Exception:
                self._channels.pop(frame.channel, None)
                raise
        else:
            self._begin(frame, sink)

    def _begin(self, frame: f.FollowFrame, sink: ChannelFollower, union: StreamView | Exception | None = None) -> None:
        """There is a stream to follow, if there is one at all; of a glob it is given."""
        channel, offset = frame.channel, frame.offset
        if self._channels.get(channel) is not sink:
            return
        try:
            stream = self._stream(frame, union)
            position = (
                stream.start
                if offset == "-1"
                else stream.tail
                if offset == "now"
                else stream.resolve(Offset.parse(offset))
            )
            terms = self._terms(frame.options, stream)
        except Exception as error:
            self._channels.pop(channel)
            self._put(f.ErrorFrame(channel, problem_of(error)))
            return
        position = max(position, 1 if frame.call else 0)  # the request itself is not for readers
        self._put(f.FollowingFrame(channel, stream.config.content_type, str(stream.offset(position))))
        self._log.follow(stream, position, ENCODING, sink, PATTERN, credit=frame.credit, **terms)

    def _terms(self, options: f.FollowOptions | None, stream: StreamView) -> dict[str, Any]:
        """The policy of a follower, and its presence."""
        if options is None:
            return {}
        interval, lag = (str(number) if number else None for number in (options.interval_s, options.lag))
        policy = policy_of(options.policy or None, options.key or None, interval, lag)
        if policy is not None:
            policy.require_fit(is_json=stream.config.is_json, follows=True)
        until = stream.tail if options.whole else None
        if not options.member:
            return {"policy": policy, "until": until}
        if is_reserved(stream.path):
            raise BadRequest("Presence is of streams, and not of calls or of presence itself.", code="member-invalid")
        stay = self._connections.presence.stay(stream.path, options.member)
        stay.renew(PATTERN)
        return {"policy": policy, "until": until, "ended": stay.hold(PATTERN)}

    def _stream(self, frame: f.FollowFrame, union: StreamView | Exception | None) -> StreamView:
        if isinstance(union, Exception):
            raise union
        if union is not None:
            if frame.options is not None and frame.options.member:
                raise BadRequest(f"Presence is of one stream, and {frame.stream!r} is a glob.", code="glob-member")
            return union
        if not frame.call:
            if frame.stream.startswith(PRESENCE):
                return self._connections.presence.events(frame.stream[len(PRESENCE) :])
            require_public(frame.stream)
            return self._log.find(frame.stream)
        try:
            return self._log.find(call_path(frame.stream))
        except Refusal as refusal:
            raise no_such_call(frame.stream) from refusal

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
        member_of(self._channels.get(frame.channel)).settle(frame)

    def _rest(self, frame: f.RestFrame) -> None:
        entry = self._channels.get(frame.channel)
        entry.rest() if isinstance(entry, ChannelMember) else self.take_rest(frame)

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

    def _put(self, frame: Any, size: int = 0) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(frame)
        self._owed += size
        if self._owed > OWED_BYTES_MAX:
            self._flush()

    put = _put

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
        if self.worker is not None:
            self.worker.stopping = True
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
            held = self.worker is not None and any(not call.durable for call in self.worker.held.values())
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
        self.detach()  # first: what ends now gives its places to others
        channels, self._channels = self._channels, {}
        for entry in channels.values():
            guarded(entry.stop)


_TAKES: dict[type, Callable[[Peer, Any], None]] = {
    f.CallFrame: Peer._call,
    f.LeaveFrame: Peer._leave,
    f.PublishFrame: Peer._publish,
    f.FollowFrame: Peer._follow,
    f.CreditFrame: Peer._credit,
    f.RequestFrame: Peer._request,
    f.JoinFrame: Peer._join,
    f.SettleFrame: Peer._settle,
    f.WorkFrame: Peer.take_work,
    f.EmitFrame: Peer.take_emit,
    f.FinishFrame: Peer.take_finish,
    f.ReturnFrame: Peer.take_return,
    f.RestFrame: Peer._rest,
}
