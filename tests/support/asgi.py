"""Requests to a hub's ASGI application, as a server makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from tests.support.waiting import PATIENCE_S
from tests.support.wire import Response
from wayside import Hub


class Asgi:
    """One request to the ASGI application, and what it sends."""

    def __init__(
        self,
        hub: Hub,
        method: str,
        target: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        *,
        root_path: str = "",
        more: bool = False,
    ) -> None:
        """``more`` of the body comes by :meth:`part`."""
        path, _, query = target.partition("?")
        self._scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": root_path + unquote(path),
            "raw_path": (root_path + path).encode(),
            "root_path": root_path,
            "query_string": query.encode(),
            "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in (headers or {}).items()],
        }
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.part(body or b"", more=more)
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._run(hub))

    async def _run(self, hub: Hub) -> None:
        async def send(message: Any) -> None:
            self.sent.put_nowait(dict(message))

        await hub.asgi()(self._scope, self._incoming.get, send)

    def part(self, data: bytes, *, more: bool = False) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def head(self) -> Response:
        async with asyncio.timeout(PATIENCE_S):
            start = await self.sent.get()
        fields = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
        return Response(start["status"], "", fields)

    async def response(self) -> Response:
        response = await self.head()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                message = await self.sent.get()
                response.body += message["body"]
                if not message.get("more_body"):
                    await self.task
                    return response
