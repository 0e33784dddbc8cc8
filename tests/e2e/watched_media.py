"""The services of examples/media under watch: a log says which step ran when, and a step can be held until it is killed.

``WATCHED_LOG`` names the log, a line for each beginning and end. ``WATCHED_HOLD`` is ``before STEP`` or ``after STEP``: of
its work; the log has ``held STEP`` then, and it goes on when there is a file of the log's name with ``.go``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from examples.media.app import hub

LOG = Path(os.environ["WATCHED_LOG"])
HOLD = os.environ.get("WATCHED_HOLD", "")


def note(what: str, step: str) -> None:
    with LOG.open("a") as log:
        log.write(f"{what} {step}\n")


def held(when: str, step: str) -> Iterator[float]:
    """How long to sleep, as often as it is to."""
    if f"{when} {step}" == HOLD:
        note("held", step)
        while not LOG.with_suffix(".go").exists():
            yield 0.02


def watched(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def coroutine(*arguments: Any, **keywords: Any) -> Any:
        note("begin", step)
        for seconds in held("before", step):
            await asyncio.sleep(seconds)
        result = await function(*arguments, **keywords)
        for seconds in held("after", step):
            await asyncio.sleep(seconds)
        note("end", step)
        return result

    @functools.wraps(function)
    def plain(*arguments: Any, **keywords: Any) -> Any:
        note("begin", step)
        for seconds in held("before", step):
            time.sleep(seconds)
        result = function(*arguments, **keywords)
        for seconds in held("after", step):
            time.sleep(seconds)
        note("end", step)
        return result

    return coroutine if inspect.iscoroutinefunction(function) else plain


for name, handler in hub.handlers.items():
    if name != "media":
        handler.function = watched(name, handler.function)
