"""A hub that listens on a port of its own, and what tests do to it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.support.wire import Response, Wire
from wayside.hub import Hub
from wayside.storage.embedded.files import CHECKED_VFS

TEXT = {"Content-Type": "text/plain"}
JSON = {"Content-Type": "application/json"}
BYTES = {"Content-Type": "application/octet-stream"}


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

    @property
    def url(self) -> str:
        host, port = self.server.address
        return f"http://{host}:{port}"

    def websocket_url(self, target: str) -> str:
        return f"ws{self.url.removeprefix('http')}{target}"

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


class ServeDirectory(Protocol):
    def __call__(self, directory: Path, *, vfs: str = CHECKED_VFS, **limits: Any) -> Awaitable[Running]: ...


async def stop(running: Running) -> None:
    """End a hub in order. Raises what its store has to say."""
    for wire in running.wires:
        wire.close()
    running.server.stop()
    await running.hub.close()


def problem_of(answer: Response) -> dict[str, Any]:
    """The problem document of a refusal, which must be a whole one."""
    assert answer["Content-Type"] == "application/problem+json", answer
    document: dict[str, Any] = json.loads(answer.body)
    assert document["status"] == answer.status
    assert {"type", "title", "detail", "code", "retry"} <= set(document)
    assert document["request_id"] == answer["X-Request-Id"]
    return document
