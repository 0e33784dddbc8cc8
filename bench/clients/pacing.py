"""The publishing part of each feeder: as fast as it goes, or so many a second."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from bench.clients import load
from bench.clients.consuming import stamp

#: Records published together where there is no rate.
WINDOW = 256


async def feed(publish: Callable[[list[bytes]], Awaitable[None]], count: float, rate: float) -> None:
    """Publish `count` records; at a `rate`, each when it is due, whatever became of those before."""
    began = load.now()
    if not rate:
        sent = 0
        while sent < count:
            window = min(WINDOW, int(count) - sent)
            await publish([stamp() for _ in range(window)])
            sent += window
    else:
        flying: set[asyncio.Task[None]] = set()

        async def one() -> None:
            await publish([stamp()])

        for index in range(int(count)):
            wait = began + index / rate - load.now()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(one())
            flying.add(task)
            task.add_done_callback(flying.discard)
        await asyncio.gather(*flying)
    print(json.dumps({"fed_per_s": count / (load.now() - began), "errors": 0}))
