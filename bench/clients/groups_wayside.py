"""Our group over a stream with durability fsync, read with the Python client; every record is acked.

``consume COUNT`` is the consumer, ``feed COUNT RATE`` the publisher: RATE 0 publishes as fast as it can, confirmed.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import wayside
from bench.clients import load, pacing
from bench.clients.consuming import Consumed


async def prepare() -> None:
    """The stream and the group."""
    async with wayside.connect(load.URL) as hub:
        await hub.create("t", content_type="application/octet-stream", durability="fsync")
        await hub.put_group("g", ["t"])


async def consume(count: float) -> None:
    """Take and ack, one after the other."""
    consumed = Consumed(int(count))
    async with wayside.connect(load.URL) as hub, hub.group("g", credit=1000) as group:
        print("ready", flush=True)
        async for delivery in group:
            last = consumed.take(delivery.data)
            acked = delivery.ack()
            if last:
                await acked
                break
        consumed.show()


async def feed(count: float, rate: float) -> None:
    """Publish `count` records."""
    async with wayside.connect(load.URL) as hub:

        async def publish(records: list[bytes]) -> None:
            await asyncio.gather(*(hub.publish("t", record) for record in records))

        await pacing.feed(publish, count, rate)


PROGRAMS: dict[str, Callable[..., Awaitable[None]]] = {"prepare": prepare, "consume": consume, "feed": feed}

if __name__ == "__main__":
    load.run(PROGRAMS[sys.argv[1]], *map(float, sys.argv[2:]))
