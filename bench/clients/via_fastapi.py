"""A handler in FastAPI, served by uvicorn, and an aiohttp client that keeps its connections."""

import importlib
import sys
from typing import Any

import msgspec
from fastapi import FastAPI

from bench.clients import load

app = FastAPI()


@app.post("/echo")
async def echo(value: dict[str, Any]) -> dict[str, Any]:
    """Returns its argument."""
    return value


async def main(count: int, seconds: float) -> None:
    """Call it."""
    aiohttp: Any = importlib.import_module("aiohttp")
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def once() -> None:
            async with session.post(f"{load.URL}/echo", data=msgspec.json.encode(load.VALUE)) as answer:
                load.same(msgspec.json.decode(await answer.read()))

        await load.loops(once, count, seconds)


if __name__ == "__main__":
    load.run(main, int(sys.argv[1]), float(sys.argv[2]))
