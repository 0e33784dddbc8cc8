"""Services to call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from google.protobuf import type_pb2

from tests.support.waiting import PATIENCE_S
from tests.support.wire import Response
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
