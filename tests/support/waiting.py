"""Waiting for what no event tells: in a coroutine, or, for what other processes do, in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 30.0
"""What anything may take on a busy machine; only a failing test waits so long."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds that a thread, a timer or another connection brings about."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


def eventually(check: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """Block until ``check`` gives something true; returns it. For what other processes do, which no clock of ours moves."""
    deadline = time.monotonic() + within_s
    while True:
        if result := check():
            return result
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)


async def turns(count: int = 10) -> None:
    """Let the event loop turn a few times: what waits for nothing else gets done."""
    for _ in range(count):
        await asyncio.sleep(0)
