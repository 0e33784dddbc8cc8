"""What the hub or its worker answers calls with, when it is measured: ``wayside serve bench.services:hub``."""

import asyncio
from typing import Any

from wayside import Call, Hub

hub = Hub()
_relays: list[Call] = []


@hub.service("echo")
async def echo(value: dict[str, Any]) -> dict[str, Any]:
    """Returns its argument."""
    return value


@hub.service("relay")
async def relay(value: None, call: Call) -> None:
    """Runs until it is cancelled, and reports as its progress what `tick` is given."""
    _relays.append(call)
    await asyncio.Event().wait()


@hub.service("tick")
async def tick(value: dict[str, Any]) -> None:
    """One event of progress of each `relay` of this process."""
    if not _relays:
        raise RuntimeError("no relay runs yet")
    for call in _relays:
        await call.progress(value)
