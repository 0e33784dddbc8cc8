"""The way out of a connection: to its socket at once while nothing is queued, else through the transport's buffer.

It knows bytes and their order, and nothing of requests.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from wayside.contracts import Reader

if TYPE_CHECKING:
    from wayside.http.server import Server


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
