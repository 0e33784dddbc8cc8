"""Services and a subscription that every version can run: 0.1.0 ran them when its store was made, and its worker does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from wayside import Call, Delivery, Hub, Reject, Retry

hub = Hub()


@hub.service("greet")
def greet(name: str, greeting: str = "Hello") -> str:
    """In a thread."""
    return f"{greeting}, {name}!"


@hub.service("reverse")
async def reverse(body: bytes) -> bytes:
    """Bytes in, bytes out."""
    return body[::-1]


@hub.service("count")
async def count(to: int, call: Call) -> dict[str, int]:
    """Tells how far it is."""
    for number in range(1, to + 1):
        await call.progress(number / to)
    return {"counted": to}


@hub.service("words")
async def words(text: str) -> AsyncIterator[str]:
    """Streams its answer."""
    for word in text.split():
        yield word


@hub.service("fail")
async def fail(reason: str) -> None:
    """Not foreseen."""
    raise RuntimeError(reason)


@hub.service("hold")
async def hold(seconds: float, call: Call) -> str:
    """Runs for so long, and may be cancelled."""
    await call.progress("begun")
    await asyncio.sleep(seconds)
    return "held"


@hub.subscribe("jobs/*", group="jobs", retries=3, backoff=0.01, dead_letter="jobs.dead")
async def work(job: dict[str, int], delivery: Delivery) -> None:
    """Publishes with its ack, fails once, or rejects, as the job says."""
    if "reject" in job:
        raise Reject("not this one")
    if "retry" in job and delivery.attempt == 1:
        raise Retry("once more", delay=0.01)
    delivery.publish("jobs.done", {"job": job["id"], "attempt": delivery.attempt})
