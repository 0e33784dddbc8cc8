"""Services to call, and what calls them: over the wire, or through the ASGI application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from google.protobuf import type_pb2

from tests.http.wire import PATIENCE_S, Response
from wayside import Call, Hub
from wayside.core.errors import NotFound, Refusal

Ask = Callable[..., Awaitable[Response]]
"""``ask(method, target, headers, body)``."""


class Size(msgspec.Struct):
    width: int
    height: int = 1


class Picky(msgspec.Struct):
    """A type whose own code fails."""

    value: int

    def __post_init__(self) -> None:
        raise RuntimeError("Never good enough.")


class Teapot(Refusal):
    """A refusal of a program's own, with a status that HTTP does not name."""

    status, code, title = 499, "teapot", "A teapot"


async def double(size: Size, times: int = 2) -> Size:
    return Size(size.width * times, size.height * times)


def add(a: int, b: int, *, c: int = 0) -> int:
    return a + b + c


async def greet(name: str) -> str:
    return f"Hello, {name}!"


async def number(value: type_pb2.EnumValue) -> type_pb2.EnumValue:
    return type_pb2.EnumValue(name=value.name, number=value.number + 1)


async def reverse(data: bytes) -> bytes:
    return data[::-1]


async def nothing() -> None:
    return None


async def refuse(kind: str) -> None:
    if kind == "teapot":
        raise Teapot("It is one.", fields={"spout": "short"})
    raise NotFound("There is no such parcel.", code="parcel-not-found", fields={"parcel": kind})


async def pick(picky: Picky) -> None:
    raise AssertionError(picky)


async def fail(text: str) -> None:
    raise ValueError(text)


async def count(n: int) -> AsyncIterator[int]:
    for each in range(n):
        yield each


class Holder:
    """The service ``hold``: its handler tells when it has begun, and ends when it is told to; ``drip`` is one that yields
    each value that it is given; ``bound`` runs one call at a time and lets one wait."""

    def __init__(self, hub: Hub) -> None:
        self.begun = asyncio.Semaphore(0)
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()
        self.values: asyncio.Queue[int | None] = asyncio.Queue()
        self.runs = 0
        hub.service("hold")(self.hold)
        hub.service("drip")(self.drip)
        hub.service("bound", concurrency=1, queue=1)(self.hold)

    async def hold(self, call: Call, value: int = 0) -> int:
        self.runs += 1
        self.begun.release()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await call.progress(1.0)
        return value

    async def drip(self) -> AsyncIterator[int]:
        self.begun.release()
        try:
            while (value := await self.values.get()) is not None:
                yield value
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    def let_go(self) -> None:
        """End what still runs, so that a hub which closes does not wait for it."""
        self.release.set()
        for _ in range(10):
            self.values.put_nowait(None)

    async def began(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.begun.acquire()

    async def was_cancelled(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.cancelled.wait()


def offer(hub: Hub) -> Holder:
    """Give a hub the services of this module."""
    for handler in (double, add, greet, number, reverse, nothing, refuse, fail, pick, count):
        hub.service(handler.__name__)(handler)
    return Holder(hub)


def problem_of(answer: Response) -> dict[str, Any]:
    """The problem document of a refusal, which must be a whole one."""
    assert answer["Content-Type"] == "application/problem+json", answer
    document: dict[str, Any] = json.loads(answer.body)
    assert document["status"] == answer.status
    assert {"type", "title", "detail", "code", "retry"} <= set(document)
    assert document["request_id"] == answer["X-Request-Id"]
    return document


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
    ) -> None:
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
        self._incoming.put_nowait({"type": "http.request", "body": body or b""})
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._run(hub))

    async def _run(self, hub: Hub) -> None:
        async def send(message: Any) -> None:
            self.sent.put_nowait(dict(message))

        await hub.asgi()(self._scope, self._incoming.get, send)

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
