"""The services of the kill test of calls, and the processes that run them.

    python -m tests.crash.calls_app hub DIRECTORY PORT EXECUTIONS
    python -m tests.crash.calls_app worker URL EXECUTIONS

EXECUTIONS is a file: a line before and after each execution of a handler, written by the handler itself. The hub has no
part in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from wayside import Call, Hub, Limits
from wayside.calls.queue import worker_name
from wayside.cli.process import configure_logs, leave, stop_event
from wayside.cli.serve import serve_hub
from wayside.client.worker import Remote
from wayside.core.errors import BadRequest
from wayside.link.connection import Unreachable

LEASE_S = 1.0
DRAIN_S = 0.4
CAPACITY = 8
LONG_S = 1.5 * LEASE_S
"""When a worker comes back that was given up, another is still at it."""
AGAIN: dict[str, Any] = {"retries": 100, "backoff": 0.02}


class Executions:
    """What this process ran: a line is one write to a file that outlives it."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._worker = ""

    def begin(self, worker: str) -> None:
        """This process is the worker of that name."""
        self._worker = worker
        self._write({"worker": worker, "pid": os.getpid()})

    @contextmanager
    def of(self, call: Call) -> Iterator[None]:
        self._note(call, "began")
        how = "stopped"
        try:
            yield
            how = "returned"
        except Exception:
            how = "raised"
            raise
        finally:
            self._note(call, how)

    def _note(self, call: Call, what: str) -> None:
        noted = {"call": call.id, "attempt": call.attempt, "service": call.service, "durable": call.durable}
        self._write({**noted, "what": what, "worker": self._worker, "time_ms": time.time_ns() // 1_000_000})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def offer_local(hub: Hub, executions: Executions) -> None:
    """The services of the hub's own process."""

    @hub.service("local.inc", **AGAIN)
    async def inc(value: int, *, call: Call) -> int:
        with executions.of(call):
            await asyncio.sleep(0.02)
            return value + 1

    @hub.service("local.items", **AGAIN)
    async def items(count: int, ms: int, *, call: Call) -> AsyncIterator[int]:
        with executions.of(call):
            for number in range(count):
                await asyncio.sleep(ms / 1000)
                yield number * number


def offer(hub: Hub, executions: Executions) -> None:
    """The services of the workers."""

    @hub.service("add", **AGAIN)
    async def add(values: list[int], ms: int, *, call: Call) -> int:
        with executions.of(call):
            await asyncio.sleep(ms / 1000)
            return sum(values)

    @hub.service("sort", concurrency=6, **AGAIN)
    def sort(values: list[int], ms: int, *, call: Call) -> list[int]:
        with executions.of(call):
            time.sleep(ms / 1000)  # in a thread, which nothing stops
            return sorted(values)

    @hub.service("flaky", **AGAIN)
    async def flaky(number: int, failures: int, *, call: Call) -> int:
        with executions.of(call):
            await asyncio.sleep(0.01)
            if call.attempt <= failures:
                raise RuntimeError(f"attempt {call.attempt} fails")
            return number * 7

    @hub.service("hopeless", retries=2, backoff=0.02)
    async def hopeless(number: int, final: bool, *, call: Call) -> int:
        with executions.of(call):
            await asyncio.sleep(0.01)
            if final:
                raise BadRequest("no attempt would do better", code="hopeless")
            raise RuntimeError(f"{number} never works")

    @hub.service("once")
    async def once(number: int, ms: int, *, call: Call) -> int:
        with executions.of(call):
            await asyncio.sleep(ms / 1000)
            return number + 1

    @hub.service("long", **AGAIN)
    async def long(number: int, *, call: Call) -> int:
        with executions.of(call):
            await asyncio.sleep(LONG_S)
            return number + 2

    @hub.service("items", **AGAIN)
    async def items(count: int, ms: int, *, call: Call) -> AsyncIterator[int]:
        with executions.of(call):
            for number in range(count):
                if number % 8 == 0:
                    await asyncio.sleep(ms / 1000)
                yield number * number

    @hub.service("resumed", **AGAIN)
    async def resumed(count: int, ms: int, *, call: Call) -> AsyncIterator[int]:
        with executions.of(call):
            for number in range(call.yielded, count):
                await asyncio.sleep(ms / 1000)
                yield number * number

    @hub.service("progress", **AGAIN)
    async def progress(count: int, ms: int, *, call: Call) -> int:
        with executions.of(call):
            for number in range(count):
                await asyncio.sleep(ms / 1000)
                await call.progress((number + 1) / count, number=number)
            return count

    @hub.service("double", **AGAIN)
    async def double(value: int, *, call: Call) -> int:
        with executions.of(call):
            await asyncio.sleep(0.03)
            return value * 2

    @hub.service("fork", **AGAIN)
    async def fork(value: int, *, call: Call) -> int:
        with executions.of(call):
            steps = [call.step("double", value, name="left"), call.step("local.inc", value, name="right")]
            left, right = await asyncio.gather(*steps)
            return int(left) + int(right)

    hub.pipeline("pipe", "double", "local.inc", "double", **AGAIN)
    pipe = hub.handlers["pipe"].function

    async def noted(*arguments: Any, call: Call, **keywords: Any) -> Any:
        with executions.of(call):
            return await pipe(*arguments, call=call, **keywords)

    hub.handlers["pipe"].function = noted


async def run_hub(directory: str, port: int, executions: Executions) -> int:
    hub = Hub(f"file:{directory}", limits=Limits(lease_s=LEASE_S, drain_s=DRAIN_S))
    offer_local(hub, executions)
    executions.begin(hub.worker.worker.id)
    return await serve_hub(hub, "127.0.0.1", port, False)


async def run_worker(url: str, executions: Executions) -> int:
    hub = Hub("memory:")  # holds the handlers, and is not started
    offer(hub, executions)
    remote = Remote(url, hub.handlers, capacity=CAPACITY)
    executions.begin(worker_name(remote.id))
    stop = stop_event()
    while not stop.is_set():
        try:
            await remote.start()
            break
        except Unreachable:
            await asyncio.sleep(0.05)
    await stop.wait()
    await remote.stop(DRAIN_S / 4)
    return 0


def main(kind: str, where: str, *rest: str) -> None:
    configure_logs("warning", "console")
    executions = Executions(rest[-1])
    leave(uvloop.run(run_hub(where, int(rest[0]), executions) if kind == "hub" else run_worker(where, executions)))


if __name__ == "__main__":
    main(*sys.argv[1:])
