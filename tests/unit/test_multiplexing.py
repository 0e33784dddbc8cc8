"""What a connection with channels leaves behind."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from wayside import Hub
from wayside.link import frames as f


class _Wire:
    """Where frames go that nobody looks at."""

    def send(self, frames: list[Any]) -> None: ...

    def ping(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...


async def test_a_connection_that_has_ended_is_freed_at_once() -> None:
    """Not when cycles are looked for, which a hub that serves seldom does: it is held by nothing, a worker at its other
    end or not."""
    async with Hub("memory:") as hub:
        await hub.create("s")
        peer = hub.connections.enter_local(_Wire())
        peer.receive(
            [
                f.WorkFrame(1, "w", [], 4),
                f.FollowFrame(2, "s", "-1"),
                f.PublishFrame(3, "s", [b"1"]),
            ]
        )
        await asyncio.sleep(0)
        left = weakref.ref(peer)
        gc.disable()
        try:
            peer.stop()
            del peer
            for _ in range(3):
                await asyncio.sleep(0)
            assert left() is None
        finally:
            gc.enable()
