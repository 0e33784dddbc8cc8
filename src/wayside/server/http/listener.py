"""The HTTP/1.1 server: listens, keeps time for its connections, drains.

One timer for all connections runs once a second; each has at most one deadline. A drain stops listening,
ends every open response where its reader can resume, lets requests under way finish, then closes.
"""

from __future__ import annotations

import asyncio
import socket
import time
from functools import partial
from pathlib import Path

from wayside.core.callbacks import guarded
from wayside.core.limits import Limits
from wayside.server.http.connection import Connection
from wayside.server.http.shared import Connected, Resolve, Shared


class Server:
    """Answers requests by what ``resolve`` finds for them, on one event loop."""

    def __init__(self, resolve: Resolve, limits: Limits, spool_directory: Path | None = None) -> None:
        self.shared = Shared(resolve, limits, spool_directory)
        self.address = ("", 0)
        self._listeners: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> set[Connected]:
        """Those that are open."""
        return self.shared.connections

    @property
    def draining(self) -> bool:
        return self.shared.draining

    async def start(self, host: str, port: int, *, backlog: int = 4096) -> None:
        """Listen; ``address`` is then the address and port in use. Raises OSError where it cannot."""
        loop = asyncio.get_running_loop()
        self._tick()
        listener = await loop.create_server(partial(Connection, self.shared), host, port, backlog=backlog)
        for each in listener.sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listeners.append(listener)
        address = listener.sockets[0].getsockname()
        self.address = (str(address[0]), int(address[1]))

    def _tick(self) -> None:
        """Once a second: the time, the Date header, whose deadline has passed."""
        self.shared.tick()
        now = self.shared.now
        self._timer = asyncio.get_running_loop().call_later(1.0, self._tick)
        for connection in [c for c in self.connections if c.deadline is not None and c.deadline <= now]:
            guarded(connection.expire)

    async def drain(self, seconds: float) -> None:
        """End as promised to readers and publishers; after ``seconds`` cut what is left."""
        self.shared.draining = True
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
