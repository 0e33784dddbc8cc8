"""A publisher with redis-py: XADD over as many connections as are in flight, as redis-py does not share one.

Each connection is a client of its own, which is a fifth faster than one client with a pool.
"""

import importlib
import sys
from typing import Any

import msgspec

from bench.clients import load


async def main(count: int, seconds: float) -> None:
    """Append, each confirmed by the server."""
    redis: Any = importlib.import_module("redis.asyncio")
    idle = [redis.Redis.from_url(load.URL, single_connection_client=True) for _ in range(count)]
    clients = idle.copy()

    async def once() -> None:
        client = idle.pop()
        try:
            await client.xadd("t", {"value": msgspec.json.encode(load.VALUE)})
        finally:
            idle.append(client)

    await load.loops(once, count, seconds)
    for client in clients:
        await client.aclose()


if __name__ == "__main__":
    load.run(main, int(sys.argv[1]), float(sys.argv[2]))
