"""A responder and a client with nats-py: request/reply over core NATS, and publishing to a JetStream stream.

``respond`` runs the responder. HOW is ``call``, or ``publish`` to a stream whose storage is ``memory`` or ``file``.
"""

import asyncio
import importlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from bench.clients import load

encode, decode = msgspec.json.encode, msgspec.json.decode


def client() -> Any:
    """The library; imported here, for `make check` is not to need it."""
    return importlib.import_module("nats")


async def respond() -> None:
    """Return the argument of each request, until killed."""
    connection = await client().connect(load.URL)

    async def echo(message: Any) -> None:
        await message.respond(encode(decode(message.data)))

    await connection.subscribe("echo", cb=echo)
    await connection.flush()
    print("ready")
    await asyncio.Event().wait()


async def call(count: int, seconds: float) -> None:
    """Request after request."""
    connection = await client().connect(load.URL)

    async def once() -> None:
        answer = await connection.request("echo", encode(load.VALUE), timeout=load.CALL_S_MAX)
        load.same(decode(answer.data))

    await load.loops(once, count, seconds)
    await connection.close()


async def publish(count: int, seconds: float, storage: str) -> None:
    """Publish, each confirmed by the server."""
    connection = await client().connect(load.URL)
    stream = connection.jetstream()
    await stream.add_stream(name="t", subjects=["t"], storage=storage)

    async def once() -> None:
        await stream.publish("t", encode(load.VALUE), timeout=load.CALL_S_MAX)

    await load.loops(once, count, seconds)
    await connection.close()


if __name__ == "__main__":
    if sys.argv[1] == "respond":
        load.run(respond)
    else:
        programs: dict[str, Callable[..., Awaitable[None]]] = {"call": call, "publish": publish}
        load.run(programs[sys.argv[3]], int(sys.argv[1]), float(sys.argv[2]), *sys.argv[4:])
