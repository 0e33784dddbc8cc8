"""Callbacks: how they are made so that a failure does not reach whoever makes them, and how one is awaited.

What a callback raises is a mistake of ours. It goes to the event loop's exception handler, which logs it, and the
others are called all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Done", "asked", "being_cancelled", "guarded", "report"]

Done = Callable[[Any], None]
"""Called once, from the event loop, with a result or with an exception *instance*. Never raises."""


def guarded(call: Callable[[], object]) -> None:
    """Call; an exception is reported and goes no further."""
    try:
        call()
    except Exception as error:
        report(error, call)


def report(error: Exception, call: object) -> None:
    """Tell the event loop's exception handler."""
    asyncio.get_running_loop().call_exception_handler({"message": f"{call!r} failed", "exception": error})


def being_cancelled() -> bool:
    """Whether the task that runs is being cancelled. Where not, a ``CancelledError`` is a failure of what it waits for, such
    as a client library whose connection was closed under it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def asked(begin: Callable[[Callable[[Any], None]], object]) -> Any:
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
