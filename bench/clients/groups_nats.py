"""A JetStream stream on disk, read through a durable pull consumer with nats-py; every message is acked.

``consume COUNT`` is the consumer, ``feed COUNT RATE`` the publisher: RATE 0 publishes as fast as it can, confirmed.
"""

import asyncio
import importlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from bench.clients import load, pacing
from bench.clients.consuming import Consumed

BATCH = 500


async def _connect() -> Any:
    return await importlib.import_module("nats").connect(load.URL)


async def prepare() -> None:
    """The stream, and the consumer's place in it."""
    connection = await _connect()
    stream = connection.jetstream()
    await stream.add_stream(name="t", subjects=["t"], storage="file")
    await stream.pull_subscribe("t", durable="g")
    await connection.close()


async def consume(count: float) -> None:
    """Take and ack, one after the other."""
    connection = await _connect()
    subscription = await connection.jetstream().pull_subscribe("t", durable="g")
    print("ready", flush=True)
    consumed = Consumed(int(count))
    while consumed.seen < count:
        try:
            messages = await subscription.fetch(BATCH, timeout=5)
        except TimeoutError:
            continue
        for message in messages:
            consumed.take(message.data)
            await message.ack()
    await connection.flush()
    consumed.show()


async def feed(count: float, rate: float) -> None:
    """Publish `count` records."""
    connection = await _connect()
    stream = connection.jetstream()

    async def publish(records: list[bytes]) -> None:
        await asyncio.gather(*(stream.publish("t", record, timeout=load.CALL_S_MAX) for record in records))

    await pacing.feed(publish, count, rate)
    await connection.close()


PROGRAMS: dict[str, Callable[..., Awaitable[None]]] = {"prepare": prepare, "consume": consume, "feed": feed}

if __name__ == "__main__":
    load.run(PROGRAMS[sys.argv[1]], *map(float, sys.argv[2:]))
