"""An application with services, as somebody would write it: tests put it into a directory of their own as ``app.py``."""

from __future__ import annotations

from pathlib import Path

APP = '''
import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from wayside import Call, Hub

hub = Hub()


@hub.service("greet")
async def greet(name: str, punctuation: str = "!") -> str:
    """Greets somebody."""
    return f"Hello {name}{punctuation}"


@hub.service("count")
async def count(to: int = 3) -> AsyncIterator[dict[str, int]]:
    """Yields numbers."""
    for number in range(1, to + 1):
        yield {"n": number}


@hub.service("size")
def size(data: bytes, factor: int = 1) -> int:
    """Measures bytes."""
    return len(data) * factor


@hub.service("turn")
def turn(data: bytes) -> bytes:
    """Turns bytes round."""
    return data[::-1]


@hub.service("fail")
def fail() -> None:
    """Fails."""
    raise ValueError("no luck today")


@hub.service("hold", retries=3, backoff=0.0)
async def hold(gate: str, *, call: Call) -> dict[str, int]:
    """Waits for a file."""
    await call.progress(0.5, pid=os.getpid())
    while not Path(gate).exists():
        await asyncio.sleep(0.01)
    return {"pid": os.getpid(), "attempt": call.attempt}


@hub.service("stubborn")
def stubborn(gate: str) -> str:
    """Waits for a file in a thread, which nobody can stop."""
    import time
    Path(gate + ".begun").touch()
    while not Path(gate).exists():
        time.sleep(0.01)
    return "at last"


@hub.service("relay")
async def relay(name: str) -> Any:
    """Uses the hub from within a handler."""
    await hub.publish("relayed", name)
    seen = [record.json() async for record in hub.read("relayed", follow=False)]
    return [seen, await hub.call("greet", name)]
'''


def write(directory: Path, source: str = APP) -> Path:
    """Returns the directory."""
    directory.mkdir(exist_ok=True)
    (directory / "app.py").write_text(source)
    return directory
