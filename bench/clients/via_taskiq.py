"""A Taskiq task with Redis as broker (a list) and result backend, and a client that keeps N tasks in flight.

Taskiq polls for results. Its own `wait_result` asks whether there is one, then for it: asking for it at once is faster.
"""

import asyncio
import importlib
import sys
from typing import Any

from bench.clients import load

#: A call takes some 40 ms with 64 in flight. Polling more often takes the client's time, less often the call's.
POLL_S = 0.008

taskiq: Any = importlib.import_module("taskiq")
exceptions: Any = importlib.import_module("taskiq.exceptions")
taskiq_redis: Any = importlib.import_module("taskiq_redis")
backend = taskiq_redis.RedisAsyncResultBackend(load.URL, keep_results=False)
broker = taskiq_redis.ListQueueBroker(load.URL).with_result_backend(backend)


async def _echo(value: dict[str, Any]) -> dict[str, Any]:
    return value


async def _ready(_: Any) -> None:
    print("ready")


echo = broker.register_task(_echo, "echo")
broker.add_event_handler(taskiq.TaskiqEvents.WORKER_STARTUP, _ready)


async def main(count: int, seconds: float) -> None:
    """Call it."""
    await broker.startup()

    async def once() -> None:
        task = await echo.kiq(load.VALUE)
        await asyncio.wait_for(answered(task), load.CALL_S_MAX)

    async def answered(task: Any) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                result = await task.get_result()
            except exceptions.ResultGetError:  # not yet
                continue
            result.raise_for_error()
            load.same(result.return_value)
            return

    await load.loops(once, count, seconds)
    await broker.shutdown()


if __name__ == "__main__":
    load.run(main, int(sys.argv[1]), float(sys.argv[2]))
