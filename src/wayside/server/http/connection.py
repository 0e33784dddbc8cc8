"""One connection of the HTTP/1.1 server: requests in order, one at a time, answered by their routes.

A request head that was seen before, byte for byte, is not parsed again; an answer that is still right is
not made again. Bytes go to the socket at once while nothing is queued, else through the transport's buffer. Writing
never waits: an open response is fed by a follower, which is told when the buffer is full and when it has drained.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import cast

from wayside.core.errors import BadRequest, Overloaded, Refusal, TimedOut
from wayside.core.records import Spool
from wayside.server.exchange import Memo, Request
from wayside.server.http.head import CONTINUE, CORS, LAST_CHUNK, STATUS, problem, request_id
from wayside.server.http.request import ArrivingBody, Incoming
from wayside.server.http.response import ArrivingExchange, HttpExchange, note_abort, note_refusal, refusal_of
from wayside.server.http.shared import Shared
from wayside.server.http.websocket import NativeSocket
from wayside.streams.contract import Reader

MEMO_BYTES_MAX = 16 * 1024
LINGER_S = 2.0
"""How long a client that is still sending is heard out, so that it reads the refusal and not a reset."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for no time: the connection ends with a reset (RST)."""


class Connection(asyncio.Protocol):
    """The server's side of one TCP connection; also the sink of the response that is open on it."""

    __slots__ = (
        "_direct",
        "_dispatching",
        "_ending",
        "_exchange",
        "_incoming",
        "_open",
        "_shared",
        "_socket",
        "_unsent",
        "deadline",
        "paused",
        "queued",
        "reader",
        "send_nowait",
        "transport",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.transport: asyncio.Transport | None = None
        self._direct: socket.socket | None = None
        """The transport's own socket, for sending while nothing is queued in the transport."""
        self.send_nowait: Callable[[bytes], int] = len
        self.queued = False
        """Whether the transport may hold bytes that have to go out first."""
        self.reader: Reader | None = None
        """The follower that feeds the open response."""
        self.paused = False
        self.deadline: float | None = None
        """When :meth:`expire` is to be called; None while a request is being answered."""
        self._exchange: HttpExchange | None = None
        """The request under way."""
        self._open: Request | None = None
        """The request whose response is open."""
        self._socket: NativeSocket | None = None
        self._incoming: Incoming | None = None
        self._dispatching = False
        self._ending = False
        """Close after the answer under way."""
        self._unsent = 0
        """Bytes that were not sent yet when the connection was closed, or its deadline was moved."""

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        own = self.transport.get_extra_info("socket")
        self._direct = socket.socket(own.family, own.type, own.proto, fileno=own.fileno())
        self.send_nowait = self._direct.send
        shared = self._shared
        limits = shared.limits
        self.transport.set_write_buffer_limits(limits.write_buffer_bytes_max, limits.write_buffer_bytes_max // 4)
        shared.connections.add(self)
        self.deadline = shared.idle_deadline
        if len(shared.connections) > limits.connections_max:
            refusal = Overloaded(
                f"The hub has {limits.connections_max} connections, as many as it may. Try again shortly.",
                code="too-many-connections",
                headers={"Retry-After": "1"},
            )
            self.refuse(refusal, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        if self._direct is not None:
            self._direct.detach()  # the transport closes it
        self.send_nowait = len
        self._ending = True
        if self.reader is not None:
            self.reader.stop()
            self.reader = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.answered = True
            if exchange.on_lost is not None:
                exchange.on_lost()
        self._open = self._socket = self._incoming = None

    def data_received(self, data: bytes) -> None:
        if (
            self._incoming is None
            and self._exchange is None
            and self._open is None
            and not (self._ending or self.paused)
        ):
            end = data.find(b"\r\n\r\n") + 4
            if end > 3:
                request = self._shared.heads.get(data[:end])
                if request is not None and len(data) == end + request.length:
                    self._dispatch(request, data[end:])
                    return
        if self._socket is not None:
            self._socket.receive(data)
        elif not self._ending:
            self._feed(data)

    def eof_received(self) -> bool:
        if self._incoming is not None and self._incoming.pieces is not None:
            self._incoming.refuse(BadRequest("The connection ended within the body.", code="body-incomplete"))
            self._next()
        if self._exchange is not None or (self.reader is not None and self.reader.until is not None):
            self._ending = True  # a client that half-closes still gets its answer
            if self._exchange is not None and self._exchange.on_eof is not None:
                self._exchange.on_eof()
            return True
        self._shared.flush()
        if self.reader is not None:
            self.reader.stop()
            self.reader = None
        self._ending = True
        if self.transport is not None:
            self._shut(self.transport)
        return False

    def pause_writing(self) -> None:
        self.paused = True
        if self._socket is not None and self.transport is not None:
            self.transport.pause_reading()  # what it reads it may have to answer: pings
        if self.reader is not None:
            self.reader.pause()

    def resume_writing(self) -> None:
        self.paused = False
        if self._socket is not None and self.transport is not None:
            self.transport.resume_reading()
        if self.reader is not None:
            self.reader.pump()
        else:
            self._next()

    # -- requests in

    def _feed(self, data: bytes) -> None:
        while data and not self._ending:
            if self._socket is not None:
                self._socket.receive(data)
                return
            if self._incoming is None:
                self._incoming = Incoming(self._shared)
            data = self._incoming.feed(data)
            self._next()

    def _next(self) -> None:
        """Dispatch what has arrived, in order, one at a time."""
        if self._dispatching:
            return
        if type(self._exchange) is ArrivingExchange:
            self.deadline = None
            self._exchange.arriving.deliver()
        incoming = self._incoming
        if incoming is None:
            return
        self._dispatching = True
        while incoming.ready and self._exchange is None and self._open is None and not (self.paused or self._ending):
            request, body = incoming.ready.popleft()
            if isinstance(request, Refusal):
                self._ending = True
                self.refuse(request, None)
            elif isinstance(body, ArrivingBody):
                self._receive(request, body)
            else:
                self._dispatch(request, body)
        self._dispatching = False
        if self.transport is None or self.transport.is_closing() or self._socket is not None:
            return
        pieces = incoming.pieces
        if incoming.ready or (pieces is not None and pieces.rests):
            self.transport.pause_reading()
            if pieces is not None and not incoming.ready:
                self.deadline = None  # the client waits for us
            return
        self.transport.resume_reading()
        if self._ending or not (pieces is not None or (self._exchange is None and self._open is None)):
            return
        if incoming.partial:
            since = self._shared.now if incoming.in_body else incoming.began
            self.deadline = since + self._shared.limits.header_timeout_s
            if incoming.wants_continue:
                incoming.wants_continue = False
                self.write(CONTINUE)
        else:
            self._incoming = None

    def _dispatch(self, request: Request, body: bytes | Spool) -> None:
        self.deadline = None
        if self._shared.draining:
            self._ending = True
        memo = request.memo
        if memo is not None:
            subject, version, note, common, answer = memo
            if subject.version is version and common is self._shared.common and not self._ending:
                self._post(answer)
                note()
                self._shared.responses[2] += 1
                self._done(request)
                return
            request.memo = None
        exchange = self._exchange = HttpExchange(self, request, body)
        try:
            request.route(exchange)
        except Exception as error:
            exchange.refuse(error)

    def _receive(self, request: Request, body: ArrivingBody) -> None:
        """The same, of a request whose body is taken while it arrives."""
        self.deadline = None
        if self._shared.draining:
            self._ending = True
        body.on_flow = self._next
        exchange = self._exchange = ArrivingExchange(self, request, b"", arriving=body)
        try:
            request.route(exchange)
        except Exception as error:
            exchange.refuse(error)

    def leave(self, body: ArrivingBody) -> None:
        """A request is about to be answered: if not all of its body has come, the rest is not looked at."""
        body.on_flow = None
        if not body.whole:
            self._ending = True

    # -- bytes out

    def write(self, data: bytes) -> None:
        """Send at once what the socket takes; the rest, and what comes behind it, is queued in the transport."""
        if self._shared.outbox:
            self._shared.flush()
        self.transmit(data)

    def transmit(self, data: bytes) -> None:
        """Send so past the answers that wait for the end of the tick."""
        if self.queued:
            transport = self.transport
            if transport is None or transport.get_write_buffer_size():
                if transport is not None:
                    transport.write(data)
                return
            self.queued = False
        try:
            sent = self.send_nowait(data)
        except OSError:  # BlockingIOError; or it is broken, which the transport then sees too, and ends it
            sent = 0
        if sent != len(data):
            self.queue(data, sent)

    @property
    def send(self) -> Callable[[bytes], int | None]:
        return self.write if self.queued else self.send_nowait

    def queue(self, data: bytes, sent: int) -> None:
        """Leave the rest of ``data`` to the transport; from now on nothing may pass it."""
        self.queued = True
        if self.reader is not None:
            self.reader.reroute()
        if self.transport is not None:
            self.transport.write(memoryview(data)[sent:])

    # -- answers out

    def respond(
        self, request: Request | None, status: int, headers: bytes, body: bytes, memo: Memo | None = None
    ) -> None:
        shared = self._shared
        shared.responses[status // 100] += 1
        if status == 204 and request is not None and request.plain and not self._ending:
            answer = b"%b%b\r\n" % (shared.no_content, headers)
            if self._incoming is None:  # as _post and _go_on do then, for the answer to most appends
                if not shared.outbox:
                    asyncio.get_running_loop().call_soon(shared.flush)
                shared.outbox.append((self, answer))
                self._exchange = None
                self.deadline = shared.idle_deadline
            else:
                self._post(answer)
                self._go_on()
            return
        keep_alive = request is not None and request.keep_alive and not self._ending
        head = STATUS[status] + shared.common + headers
        if request is not None and "origin" in request.headers:
            head += CORS
        if not keep_alive:
            head += b"Connection: close\r\n"
        elif request is not None and request.version_10:
            head += b"Connection: keep-alive\r\n"
        if status == 204 or status == 304:
            answer = head + b"\r\n"
        elif request is not None and request.method == "HEAD":
            answer = b"%bContent-Length: %d\r\n\r\n" % (head, len(body)) if body else head + b"\r\n"
        else:
            answer = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        if keep_alive and len(answer) <= MEMO_BYTES_MAX:
            self._post(answer)
        else:
            self.write(answer)
        if memo is not None and keep_alive and request is not None and len(answer) <= MEMO_BYTES_MAX:
            request.memo = (*memo, shared.common, answer)
        self._done(request)

    def _post(self, answer: bytes) -> None:
        """Send at the end of the tick; at once where more requests wait, so that a full buffer is noticed before they
        are answered."""
        if self._incoming is not None and self._incoming.ready:
            self.write(answer)
        else:
            self._shared.post(self, answer)

    def _done(self, request: Request | None) -> None:
        """The answer is written: on to the next request, or close."""
        if request is None or self._ending or not request.keep_alive:
            self._exchange = None
            self._linger()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """To the next request."""
        self._exchange = None
        self.deadline = self._shared.idle_deadline
        if self._incoming is not None and not self._dispatching:
            self._incoming.began = self._shared.now
            self._next()

    def _linger(self) -> None:
        """Close; but let a client that is still sending read the answer first (RFC 9112 section 9.6)."""
        self._ending = True
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        incoming = self._incoming
        if incoming is not None and (incoming.broken or incoming.partial) and transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
            self.deadline = self._shared.now + LINGER_S
        else:
            self._shut(transport)

    def _shut(self, transport: asyncio.Transport) -> None:
        """Close when what is written has gone out; a client that takes none of it for as long as an idle connection is
        kept is not waited for."""
        transport.close()
        self._unsent = transport.get_write_buffer_size()
        if self._unsent:
            self.deadline = self._shared.idle_deadline

    def refuse(self, error: Exception, request: Request | None) -> None:
        """Answer with a problem document."""
        refusal = refusal_of(error)
        name = request_id(request)
        note_refusal(refusal, error, request, name)
        status, headers, body = problem(refusal, name)
        self.respond(request, status, headers, body)

    def open(self, request: Request, status: int, headers: bytes, seconds: float | None) -> Connection:
        """Begin a response without a known length."""
        shared = self._shared
        shared.responses[status // 100] += 1
        head = STATUS[status] + shared.common + headers
        if "origin" in request.headers:
            head += CORS
        if request.version_10:
            self.write(head + b"Connection: close\r\n\r\n")
        else:
            self.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        self._exchange = None
        self._open = request
        self.deadline = shared.now + seconds if seconds else None
        if self._incoming is not None and not (self._incoming.ready or self._incoming.partial):
            self._incoming = None
        return self

    def accept(
        self, headers: bytes, on_text: Callable[[str], None], on_binary: Callable[[bytes], None] | None
    ) -> NativeSocket:
        """Answer a WebSocket handshake."""
        shared = self._shared
        shared.responses[1] += 1
        self.write(STATUS[101] + shared.common + headers + b"\r\n")
        assert self._exchange is not None
        self._open = self._exchange.request
        self._exchange = self._incoming = None
        self._socket = NativeSocket(self, on_text, on_binary, shared.limits)
        if self.transport is not None:
            self.transport.resume_reading()
        return self._socket

    # -- sink of an open response

    def attach(self, reader: Reader) -> None:
        self.reader = reader

    def finish(self, _reason: str) -> None:
        request, self._open = self._open, None
        self.reader = None
        if request is None:
            return
        if request.version_10:
            self._ending = True
        else:
            self.write(LAST_CHUNK)
        self._done(request)

    def abort(self, error: Exception) -> None:
        note_abort(error)
        if self._ends_with_connection:
            self.cut()
        else:
            self.close()

    @property
    def _ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection says where the open response ends: an orderly one would say that
        it is whole."""
        return self._open is not None and self._open.version_10

    def cut(self) -> None:
        """End now, whatever is unsent."""
        if self.transport is not None:
            if self._ends_with_connection and self._direct is not None:
                with contextlib.suppress(OSError):  # it is reset already
                    self._direct.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def close(self) -> None:
        """Close when what is written has gone out."""
        self.reader = None
        self._ending = True
        self._shared.flush()
        if self.transport is not None and not self.transport.is_closing():
            self._shut(self.transport)

    def close_within(self, seconds: float) -> None:
        """Let the client close first, for so long."""
        self.reader = None
        self.deadline = self._shared.now + seconds

    # -- time

    def expire(self) -> None:
        """The deadline has passed: end a response of limited length, tell a slow client, close an idle connection."""
        self.deadline = None
        if self.reader is not None:
            self.reader.finish("expired")
        elif self._incoming is not None and self._incoming.partial and not self._ending:
            seconds = self._shared.limits.header_timeout_s
            self._incoming.refuse(TimedOut(f"The rest of the request did not come within {seconds:g} s."))
            self._next()
        elif self.transport is not None:
            self._ending = True
            if self.transport.is_closing() and 0 < self.transport.get_write_buffer_size() < self._unsent:
                self._shut(self.transport)  # it is slow, and still takes some
            elif self.transport.is_closing() or self._incoming:
                self.transport.abort()
            else:
                self._shut(self.transport)

    def drain(self) -> None:
        """The hub stops: end the open response where its reader can resume, answer waiting requests, close."""
        if self._exchange is None and self._open is None and self._incoming is not None and self._incoming.partial:
            return  # when it is whole it is answered, as the last
        self._ending = True
        if self.reader is not None:
            if self.reader.until is None:  # one that ends by itself is not cut: nothing would tell that it is not whole
                self.reader.finish("drain")
        elif self._exchange is not None:
            if self._exchange.on_drain is not None:
                self._exchange.on_drain()
        elif self._open is None:
            self.close()
