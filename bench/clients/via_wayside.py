"""Our client. HOW is ``call``, ``submit`` (a call that is on disk before its result is waited for), or ``publish``
to a stream whose durability is ``memory`` or ``fsync``.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import Literal

import wayside
from bench.clients import load


async def call(count: int, seconds: float) -> None:
    """Call and wait for the answer."""
    async with wayside.connect(load.URL) as hub:

        async def once() -> None:
            load.same(await hub.call("echo", load.VALUE))

        await load.loops(once, count, seconds)


async def submit(count: int, seconds: float) -> None:
    """Hand a call over, then wait for its result."""
    async with wayside.connect(load.URL) as hub:

        async def once() -> None:
            handle = await hub.submit("echo", load.VALUE)
            load.same(await handle.result())

        await load.loops(once, count, seconds)


async def publish(count: int, seconds: float, durability: Literal["memory", "fsync"]) -> None:
    """Publish, each confirmed by the hub."""
    async with wayside.connect(load.URL) as hub:
        await hub.create("t", durability=durability)

        async def once() -> None:
            await hub.publish("t", load.VALUE)

        await load.loops(once, count, seconds)


if __name__ == "__main__":
    programs: dict[str, Callable[..., Awaitable[None]]] = {"call": call, "submit": submit, "publish": publish}
    load.run(programs[sys.argv[3]], int(sys.argv[1]), float(sys.argv[2]), *sys.argv[4:])
