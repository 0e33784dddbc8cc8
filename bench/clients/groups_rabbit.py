"""A quorum queue of RabbitMQ, read with aio-pika, or with FastStream; every message is acked.

``consume COUNT`` is the consumer, ``consume-faststream COUNT`` the other, ``feed COUNT RATE`` the publisher: RATE 0
publishes as fast as it can, confirmed.
"""

import asyncio
import importlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from bench.clients import load, pacing
from bench.clients.consuming import Consumed

PREFETCH = 500
QUORUM = {"x-queue-type": "quorum"}


def _library(name: str) -> Any:
    return importlib.import_module(name)


async def prepare() -> None:
    """The queue."""
    connection = await _library("aio_pika").connect(load.URL)
    channel = await connection.channel()
    await channel.declare_queue("t", durable=True, arguments=QUORUM)
    await connection.close()


async def consume(count: float) -> None:
    """Take and ack, one after the other."""
    connection = await _library("aio_pika").connect(load.URL)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    queue = await channel.get_queue("t")
    print("ready", flush=True)
    consumed = Consumed(int(count))
    async with queue.iterator() as messages:
        async for message in messages:
            last = consumed.take(message.body)
            await message.ack()
            if last:
                break
    consumed.show()
    await connection.close()


async def consume_faststream(count: float) -> None:
    """The same in a subscriber, which acks when it returns."""
    rabbit = _library("faststream.rabbit")
    broker = rabbit.RabbitBroker(load.URL, logger=None)
    kind = rabbit.QueueType.QUORUM
    channel = rabbit.Channel(prefetch_count=PREFETCH)
    consumed, done = Consumed(int(count)), asyncio.Event()

    @broker.subscriber(rabbit.RabbitQueue("t", durable=True, queue_type=kind), channel=channel)  # type: ignore[untyped-decorator, unused-ignore]
    async def take(body: Any) -> None:  # a number, as it finds that it is JSON
        if consumed.take(body):
            done.set()

    await broker.start()
    print("ready", flush=True)
    await done.wait()
    consumed.show()
    await broker.stop()


async def feed(count: float, rate: float) -> None:
    """Publish `count` records."""
    library = _library("aio_pika")
    connection = await library.connect(load.URL)
    channel = await connection.channel(publisher_confirms=True)
    mode = library.DeliveryMode.PERSISTENT

    async def publish(records: list[bytes]) -> None:
        exchange = channel.default_exchange
        await asyncio.gather(
            *(exchange.publish(library.Message(record, delivery_mode=mode), routing_key="t") for record in records)
        )

    await pacing.feed(publish, count, rate)
    await connection.close()


PROGRAMS: dict[str, Callable[..., Awaitable[None]]] = {
    "prepare": prepare,
    "consume": consume,
    "consume-faststream": consume_faststream,
    "feed": feed,
}

if __name__ == "__main__":
    load.run(PROGRAMS[sys.argv[1]], *map(float, sys.argv[2:]))
