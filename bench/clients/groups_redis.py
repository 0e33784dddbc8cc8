"""A Redis stream, read through a group with redis-py: one XACK for each entry, or one for each 100.

``consume COUNT BATCH`` is the consumer, ``feed COUNT RATE`` the publisher, with 256 XADD in a pipeline.
"""

import importlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from bench.clients import load, pacing
from bench.clients.consuming import Consumed


def _connect() -> Any:
    return importlib.import_module("redis.asyncio").Redis.from_url(load.URL)


async def prepare() -> None:
    """The stream and the group."""
    redis = _connect()
    await redis.xgroup_create("t", "g", id="0", mkstream=True)
    await redis.aclose()


async def consume(count: float, batch: float) -> None:
    """Take and ack, `batch` at a time."""
    redis = _connect()
    print("ready", flush=True)
    consumed = Consumed(int(count))
    while consumed.seen < count:
        for _, entries in await redis.xreadgroup("g", "c", {"t": ">"}, count=100, block=5000) or []:
            for at in range(0, len(entries), int(batch)):
                some = entries[at : at + int(batch)]
                for _, fields in some:
                    consumed.take(fields[b"d"])
                await redis.xack("t", "g", *(identity for identity, _ in some))
    consumed.show()
    await redis.aclose()


async def feed(count: float, rate: float) -> None:
    """Publish `count` records."""
    redis = _connect()

    async def publish(records: list[bytes]) -> None:
        pipeline = redis.pipeline(transaction=False)
        for record in records:
            pipeline.xadd("t", {"d": record})
        await pipeline.execute()

    await pacing.feed(publish, count, rate)
    await redis.aclose()


PROGRAMS: dict[str, Callable[..., Awaitable[None]]] = {"prepare": prepare, "consume": consume, "feed": feed}

if __name__ == "__main__":
    load.run(PROGRAMS[sys.argv[1]], *map(float, sys.argv[2:]))
