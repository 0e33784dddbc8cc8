"""Calls whose failure must not reach whoever makes them: one of many callbacks, in a loop over all of them.

What a callback raises is a mistake of ours. It goes to the event loop's exception handler, which logs it, and the
others are called all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["guarded", "report"]


def guarded(call: Callable[[], object]) -> None:
    """Call; an exception is reported and goes no further."""
    try:
        call()
    except Exception as error:
        report(error, call)


def report(error: Exception, call: object) -> None:
    """Tell the event loop's exception handler."""
    asyncio.get_running_loop().call_exception_handler({"message": f"{call!r} failed", "exception": error})
