"""The applications of test_fastapi: a hub inside somebody else's application. For uvicorn, as ``tests.e2e.mounted:shop``.

The environment variable PLACE is the hub's.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from wayside import Hub

hub = Hub(os.environ.get("PLACE", "memory:"))

shop = FastAPI(lifespan=hub.lifespan)
shop.mount("/wayside", hub.asgi())


@shop.post("/orders/{number}")
async def order(number: int) -> dict[str, str]:
    """A route that publishes."""
    return {"offset": await hub.publish("orders", {"number": number})}


@shop.get("/orders")
async def orders() -> list[Any]:
    """A route that reads."""
    return [record.json() async for record in hub.read("orders", follow=False)]


async def hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


plain = Starlette(routes=[Route("/hello", hello), Mount("/wayside", hub.asgi())])
"""Nobody tells this hub when the application starts or stops."""
