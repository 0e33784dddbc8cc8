"""The measuring part of each client program: calls for a while, N at a time, and one JSON object printed.

Knows nothing of what is called. A warm-up goes before: its calls are not counted, but must succeed.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import uvloop

#: Where the hub, the server or the broker is.
URL = os.environ.get("BENCH_URL", "")
#: What is called and published, by all: 100 B as JSON.
VALUE: dict[str, Any] = {"n": 1, "text": "x" * 83}
WARM_S_MAX = 0.5
CALL_S_MAX = 10.0

Sent = TypeVar("Sent")
now = time.perf_counter


def same(value: object) -> None:
    """Every call is answered with its argument; anything else is an error."""
    if value != VALUE:
        raise ValueError(f"answered {value!r}")


class Tally:
    """When to stop, and what was completed in the time that counts."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begin = now() + min(WARM_S_MAX, seconds)
        self.end = self.begin + seconds
        self._took_us: list[float] = []
        self._errors = 0
        self._started, self._cpu = now(), time.process_time()

    def completed(self, since: float) -> None:
        """One call was, that was made at `since`."""
        at = now()
        if self.begin <= at <= self.end:
            self._took_us.append((at - since) * 1e6)

    def failed(self, error: Exception) -> None:
        """One call was not."""
        self._errors += 1
        if self._errors == 1:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)

    def show(self) -> None:
        """Print the figures: p50_us, p99_us, per_s, errors; load_cpu, the share of a core that this program used."""
        took = sorted(self._took_us)
        if not took:
            raise SystemExit("no call was completed")
        figures = {
            "p50_us": took[len(took) // 2], "p99_us": took[len(took) * 99 // 100],
            "per_s": len(took) / self.seconds, "errors": self._errors,
            "load_cpu": (time.process_time() - self._cpu) / (now() - self._started),
        }  # fmt: skip
        print(json.dumps(figures))


async def loops(once: Callable[[], Awaitable[None]], count: int, seconds: float) -> None:
    """`count` loops, each with one call in flight."""
    await asyncio.wait_for(once(), CALL_S_MAX)
    tally = Tally(seconds)

    async def loop() -> None:
        while (since := now()) < tally.end:
            try:
                await once()
            except Exception as error:
                tally.failed(error)
            else:
                tally.completed(since)

    await asyncio.wait_for(asyncio.gather(*(loop() for _ in range(count))), 2 * seconds + CALL_S_MAX)
    tally.show()


def window(send: Callable[[], Sent], wait: Callable[[Sent], None], count: int, seconds: float) -> None:
    """`count` calls in flight from one thread, for clients that block: the oldest is waited for, the next is sent.

    One worker answers in order, so nothing is held up behind the oldest.
    """
    wait(send())
    tally = Tally(seconds)
    flying: deque[tuple[float, Sent]] = deque()
    while True:
        while len(flying) < count and (since := now()) < tally.end:
            flying.append((since, send()))
        if not flying:
            break
        since, oldest = flying.popleft()
        try:
            wait(oldest)
        except Exception as error:
            tally.failed(error)
        else:
            tally.completed(since)
    tally.show()


def run(main: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Run an asyncio client on uvloop."""

    async def started() -> None:
        await main(*arguments)

    uvloop.run(started())
