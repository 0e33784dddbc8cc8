"""Services for the tests of the clients, run by a worker: ``wayside work tests.e2e.chat_app:hub --hub URL``.

``chat.complete`` is like a language model: it yields many small pieces, none twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from wayside import Call, Hub, Refusal

hub = Hub()
_runs: dict[str, int] = {}


class SoldOut(Refusal):
    """What a handler refuses."""

    status, code, title = 409, "sold-out", "Sold out"


@hub.service("echo")
async def echo(value: Any) -> Any:
    return value


@hub.service("reverse")
async def reverse(data: bytes) -> bytes:
    return data[::-1]


@hub.service("add")
async def add(a: int, b: int = 1) -> int:
    return a + b


@hub.service("order")
async def order() -> None:
    raise SoldOut("There is none left.", fields={"left": 0})


@hub.service("crash", retries=0)
async def crash() -> None:
    raise ValueError("what went wrong")


@hub.service("sleep")
async def sleep(name: str, seconds: float = 0.0) -> str:
    """Takes its time; `runs` says how often it was run."""
    _runs[name] = _runs.get(name, 0) + 1
    await asyncio.sleep(seconds)
    return name


@hub.service("runs")
async def runs(name: str) -> int:
    return _runs.get(name, 0)


@hub.service("job")
async def job(steps: int, call: Call) -> dict[str, int]:
    """Tells its progress."""
    for step in range(steps):
        await call.progress(step / steps, step=f"step {step}")
    return {"steps": steps}


@hub.service("chat.complete")
async def complete(count: int, call: Call, pause: float = 0.005) -> AsyncIterator[int]:
    """Yields 0 to count - 1; goes on behind what an earlier attempt has yielded."""
    for token in range(call.yielded, count):
        yield token
        await asyncio.sleep(pause)
