"""The demo: real figures of this machine, once a second, on the stream ``demo/machine``; and services to call."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any, Literal

import psutil
import structlog

from wayside.calls.handler import Call
from wayside.core.errors import Refusal
from wayside.hub import Hub

STREAM = "demo/machine"
COUNTDOWN = "demo.countdown"
RETENTION_BYTES = 1024 * 1024
STEP_S = 1.0

_log = structlog.get_logger("wayside.demo")


def figures() -> dict[str, object]:
    """CPU and memory in percent, network in bytes since the machine started."""
    network = psutil.net_io_counters()
    return {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "cpu_percent": psutil.cpu_percent(),
        "memory_percent": psutil.virtual_memory().percent,
        "network_sent_bytes": network.bytes_sent,
        "network_received_bytes": network.bytes_recv,
    }


async def run(hub: Hub) -> None:
    """Publish until cancelled."""
    durability: Literal["async", "memory"] = "async" if hub.directory else "memory"
    psutil.cpu_percent()
    while True:
        try:
            await hub.create(STREAM, durability=durability, retention_bytes=RETENTION_BYTES)
            await asyncio.sleep(1)
            await hub.publish(STREAM, figures())
        except Refusal as refusal:
            _log.warning("the demo could not publish", detail=refusal.detail)
            if not refusal.retry:
                return
            await asyncio.sleep(1)


async def echo(value: Any = None) -> Any:
    """Answers with what it is given."""
    return value


async def countdown(seconds: int = 5, *, call: Call) -> dict[str, object]:
    """Counts down, and tells each second how far it is."""
    for left in range(seconds, 0, -1):
        await call.progress(round(1 - left / seconds, 3), left=left)
        await asyncio.sleep(STEP_S)
    return {"counted": seconds, "at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")}


async def words(text: str = "One word after the other, as a language model gives them.") -> AsyncIterator[str]:
    """Yields the words of a text, four a second."""
    for word in text.split():
        yield word
        await asyncio.sleep(STEP_S / 4)


def offer(hub: Hub) -> None:
    """Have the hub run ``demo.echo``, ``demo.countdown`` and ``demo.words``."""
    hub.service("demo.echo")(echo)
    hub.service(COUNTDOWN, retries=3)(countdown)
    hub.service("demo.words")(words)
