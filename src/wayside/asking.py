"""Awaiting what is told to a callback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["asked"]


async def asked(begin: Callable[[Callable[[Any], None]], None]) -> Any:
    """Call ``begin`` with a callback, and await what that is given; an exception is raised."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(result: Any) -> None:
        if future.done():  # whoever waited was cancelled
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    begin(done)
    return await future
