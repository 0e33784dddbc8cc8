"""A hub that listens on a port of its own, and what tests do to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from tests.embedded import store_of
from tests.http.wire import PATIENCE_S, Response, Wire
from wayside.hub import Hub

TEXT = {"Content-Type": "text/plain"}
JSON = {"Content-Type": "application/json"}
BYTES = {"Content-Type": "application/octet-stream"}


class Gate:
    """Stands before the disk: while it is shut, what was accepted waits for its commit."""

    def __init__(self, hub: Hub) -> None:
        self._open = threading.Event()
        self._open.set()
        self._reached = threading.Event()
        store: Any = store_of(hub.log)
        commit = store.commit

        def wait(unit: Any) -> Any:
            self._reached.set()
            assert self._open.wait(PATIENCE_S), "nobody opened the gate"
            return commit(unit)

        store.commit = wait

    def shut(self) -> None:
        self._reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def reached(self) -> None:
        """Wait until a commit stands before the gate."""
        assert await asyncio.to_thread(self._reached.wait, PATIENCE_S)


class Running:
    """A hub, its server, and what talks to it."""

    def __init__(self, hub: Hub, server: Any) -> None:
        self.hub = hub
        self.server = server
        self.wires: list[Wire] = []

    async def connect(self, *, receive_buffer: int | None = None) -> Wire:
        wire = await Wire.connect(self.server.address, receive_buffer=receive_buffer)
        self.wires.append(wire)
        return wire

    async def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        """One request on a connection of its own."""
        wire = await Wire.connect(self.server.address)
        try:
            return await wire.ask(method, target, headers, body)
        finally:
            wire.close()

    async def create(self, path: str, headers: Mapping[str, str] = TEXT, body: bytes | None = None) -> str:
        """Create a stream; its URL path."""
        answer = await self.ask("PUT", f"/v1/stream/{path}", headers, body)
        assert answer.status == 201, answer
        return f"/v1/stream/{path}"

    async def append(self, target: str, body: bytes, headers: Mapping[str, str] = TEXT) -> str:
        """Append; the offset after it."""
        answer = await self.ask("POST", target, headers, body)
        assert answer.status == 204, answer
        return answer.offset

    async def body_of(self, target: str) -> bytes:
        answer = await self.ask("GET", target)
        assert answer.status == 200, answer
        return answer.body

    def connection_of(self, wire: Wire) -> Any:
        """The server's side of a connection."""
        for connection in self.server.connections:
            if connection.transport.get_extra_info("peername") == wire.local:
                return connection
        raise AssertionError("the server does not have this connection")

    def followers(self, pattern: str) -> int:
        return self.hub.log.statistics().followers.get(pattern, 0)

    def waiters(self, path: str) -> int:
        """Long polls that wait for a stream."""
        return len(self.hub.log.find(path, touch=False).waiters)


class Serve(Protocol):
    def __call__(self, *, disk: bool = False, **limits: Any) -> Awaitable[Running]: ...


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds of which no event tells."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
