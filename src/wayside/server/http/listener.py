"""The HTTP/1.1 server: listens, keeps time for its connections, drains.

One timer for all connections runs once a second; each has at most one deadline. A drain stops listening,
ends every open response where its reader can resume, lets requests under way finish, then closes.
"""

from __future__ import annotations

import asyncio
import email.utils
import socket
import time
from pathlib import Path

import structlog

from wayside.core.callbacks import guarded
from wayside.core.errors import Refusal
from wayside.core.limits import Limits
from wayside.server.exchange import Request
from wayside.server.http.connection import Connection
from wayside.server.http.head import SECURITY, STATUS
from wayside.server.http.response import Outgoing
from wayside.server.http.routes import Routes

HEADS_MAX = 2048
"""Request heads remembered; at most 2 KiB each."""

_log = structlog.get_logger("wayside.http")


class Server:
    """Serves ``routes`` on one event loop."""

    def __init__(self, routes: Routes, limits: Limits, spool_directory: Path | None = None) -> None:
        self.routes = routes
        self.limits = limits
        self.spool_directory = spool_directory
        self.connections: set[Connection] = set()
        self.heads: dict[bytes, Request] = {}
        self.responses = [0] * 6
        """By the first digit of their status."""
        self.refused_connections = 0
        self.draining = False
        self.now = time.monotonic()
        self.idle_deadline = 0.0
        """Deadline of a connection that becomes idle now."""
        self.common = b""
        """Header fields of every answer; a new object whenever it changes."""
        self.address = ("", 0)
        self.no_content = b""
        """Status line and those fields of an answer without a body."""
        self.outbox: list[tuple[Outgoing, bytes]] = []
        """Answers that go out at the end of this tick."""
        self._listeners: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int, *, backlog: int = 4096) -> None:
        """Listen; ``address`` is then the address and port in use. Raises OSError where it cannot."""
        loop = asyncio.get_running_loop()
        self._tick()
        listener = await loop.create_server(lambda: Connection(self), host, port, backlog=backlog)
        for each in listener.sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listeners.append(listener)
        address = listener.sockets[0].getsockname()
        self.address = (str(address[0]), int(address[1]))

    def post(self, connection: Outgoing, answer: bytes) -> None:
        """Send an answer at the end of this tick. Answers that become due together, as after a commit, then go out
        without anything in between, so that a client which has many of them is woken once and not for each."""
        if not self.outbox:
            asyncio.get_running_loop().call_soon(self.flush)
        self.outbox.append((connection, answer))

    def flush(self) -> None:
        """Send what was posted."""
        outbox, self.outbox = self.outbox, []
        Outgoing.transmit_each(outbox)

    def _tick(self) -> None:
        """Once a second: the time, the Date header, whose deadline has passed."""
        self.now = now = time.monotonic()
        self.idle_deadline = now + self.limits.idle_timeout_s
        self.common = b"Date: %b\r\n%b" % (email.utils.formatdate(usegmt=True).encode(), SECURITY)
        self.no_content = STATUS[204] + self.common
        self._timer = asyncio.get_running_loop().call_later(1.0, self._tick)
        for connection in [c for c in self.connections if c.deadline is not None and c.deadline <= now]:
            guarded(connection.expire)

    def remember(self, head: bytes, request: Request) -> None:
        """Not to parse these bytes again."""
        if len(self.heads) >= HEADS_MAX:
            self.heads.clear()
        self.heads[head] = request

    async def drain(self, seconds: float) -> None:
        """End as promised to readers and publishers; after ``seconds`` cut what is left."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            guarded(connection.drain)
        deadline = time.monotonic() + seconds
        while self.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - each connection closes by itself
            await asyncio.sleep(0.02)
        self.stop()
        await asyncio.sleep(0)

    def stop(self) -> None:
        """Cut every connection, now."""
        if self._timer is not None:
            self._timer.cancel()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.cut()

    def refusal_of(self, error: Exception) -> Refusal:
        """An error as a refusal; what was not foreseen is our fault, and is said without its inside."""
        if isinstance(error, Refusal):
            return error
        return Refusal("Something went wrong inside the hub. Its log says what, under this request_id.")

    def note_refusal(self, refusal: Refusal, error: Exception, request: Request | None, identity: str) -> None:
        """Log what an operator wants to know of."""
        where = {"method": request.method, "path": request.path} if request is not None else {}
        if not isinstance(error, Refusal):
            _log.error("request failed", request_id=identity, **where, exc_info=error)
        elif refusal.status >= 500:
            _log.warning("request refused", request_id=identity, code=refusal.code, detail=refusal.detail, **where)
        else:
            _log.debug("request refused", request_id=identity, code=refusal.code, status=refusal.status, **where)

    def note_abort(self, error: Exception) -> None:
        """A response was cut because its stream could not be read on."""
        detail = error.detail if isinstance(error, Refusal) else repr(error)
        _log.warning("response cut", detail=detail, exc_info=None if isinstance(error, Refusal) else error)
