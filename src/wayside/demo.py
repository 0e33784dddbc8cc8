"""The demo: real figures of this machine, once a second, on the stream ``demo/machine``."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Literal

import psutil
import structlog

from wayside.errors import Refusal
from wayside.hub import Hub

STREAM = "demo/machine"
RETENTION_BYTES = 1024 * 1024

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
