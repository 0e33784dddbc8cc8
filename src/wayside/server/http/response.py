"""The way out of a connection: to its socket at once while nothing is queued, else through the transport's buffer.

It knows bytes and their order, and nothing of requests.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from wayside.core.records import Spool
from wayside.server.exchange import Memo, Pieces, Request
from wayside.server.http.head import chunk, identity
from wayside.server.http.request import ArrivingBody
from wayside.server.http.websocket import NativeSocket, accept_headers
from wayside.streams.contract import Reader, Sink

if TYPE_CHECKING:
    from wayside.server.http.connection import Connection
    from wayside.server.http.listener import Server


class Outgoing(asyncio.Protocol):
    """The part of a connection that writes."""

    __slots__ = ("_direct", "_queued", "_send", "_server", "reader", "transport")

    def __init__(self, server: Server) -> None:
        self._server = server
        self.transport: asyncio.Transport | None = None
        self._direct: socket.socket | None = None
        """The transport's own socket, for sending while nothing is queued in the transport."""
        self._send: Callable[[bytes], int] = len
        self._queued = False
        """Whether the transport may hold bytes that have to go out first."""
        self.reader: Reader | None = None
        """The follower that feeds the open response."""

    def write(self, data: bytes) -> None:
        """Send at once what the socket takes; the rest, and what comes behind it, is queued in the transport."""
        if self._server.outbox:
            self._server.flush()
        self.transmit(data)

    def transmit(self, data: bytes) -> None:
        """The same, past the answers that wait for the end of the tick."""
        if self._queued:
            transport = self.transport
            if transport is None or transport.get_write_buffer_size():
                if transport is not None:
                    transport.write(data)
                return
            self._queued = False
        try:
            sent = self._send(data)
        except OSError:  # BlockingIOError; or it is broken, which the transport then sees too, and ends it
            sent = 0
        if sent != len(data):
            self.queue(data, sent)

    @staticmethod
    def transmit_each(answers: list[tuple[Outgoing, bytes]]) -> None:
        """:meth:`transmit` for many."""
        for connection, answer in answers:
            if connection._queued:
                connection.transmit(answer)
                continue
            try:
                sent = connection._send(answer)
            except OSError:
                sent = 0
            if sent != len(answer):
                connection.queue(answer, sent)

    @property
    def send(self) -> Callable[[bytes], int | None]:
        return self.write if self._queued else self._send

    def queue(self, data: bytes, sent: int) -> None:
        """Leave the rest of ``data`` to the transport; from now on nothing may pass it."""
        self._queued = True
        if self.reader is not None:
            self.reader.reroute()
        if self.transport is not None:
            self.transport.write(memoryview(data)[sent:])


_CHUNKED = ("chunked", chunk)
_IDENTITY = ("identity", identity)


class HttpExchange(msgspec.Struct, eq=False):  # a Struct, as one is made for each request
    """See :class:`wayside.server.exchange.Exchange`."""

    _connection: Connection
    request: Request
    body: bytes | Spool
    on_lost: Callable[[], None] | None = None
    on_eof: Callable[[], None] | None = None
    on_drain: Callable[[], None] | None = None
    answered: bool = False

    @property
    def framing(self) -> tuple[str, Callable[[bytes], bytes]]:
        return _IDENTITY if self.request.version_10 else _CHUNKED

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: Memo | None = None) -> None:
        if not self.answered:
            self.answered = True
            self._connection.respond(self.request, status, headers, body, memo)

    def refuse(self, error: Exception) -> None:
        if not self.answered:
            self.answered = True
            self._connection.refuse(error, self.request)

    def open(self, status: int, headers: bytes, *, seconds: float | None = None) -> Sink:
        self.answered = True
        return self._connection.open(self.request, status, headers, seconds)

    def accept(
        self,
        subprotocol: str | None,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None] | None = None,
    ) -> NativeSocket:
        headers = accept_headers(self.request, subprotocol)
        self.answered = True
        return self._connection.accept(headers, on_text, on_binary)


class ArrivingExchange(HttpExchange, eq=False, kw_only=True):
    """The same, of a request whose body is taken while it arrives. What is answered before all of it has come is the last
    answer of the connection: the rest is not looked at."""

    arriving: ArrivingBody

    @property
    def pieces(self) -> Pieces:
        return self.arriving

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: Memo | None = None) -> None:
        self._connection.leave(self.arriving)
        super().respond(status, headers, body, memo)

    def refuse(self, error: Exception) -> None:
        self._connection.leave(self.arriving)
        super().refuse(error)
