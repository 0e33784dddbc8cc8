"""A Dramatiq actor with Redis as broker and result backend, and a client that keeps N messages in flight.

Results are waited for in Redis (``BRPOPLPUSH``), not polled.
"""

import importlib
import sys
from typing import Any

from bench.clients import load

dramatiq: Any = importlib.import_module("dramatiq")
brokers: Any = importlib.import_module("dramatiq.brokers.redis")
results: Any = importlib.import_module("dramatiq.results")
backends: Any = importlib.import_module("dramatiq.results.backends")
backend = backends.RedisBackend(url=load.URL)
broker = brokers.RedisBroker(url=load.URL)
broker.add_middleware(results.Results(backend=backend, store_results=True))
dramatiq.set_broker(broker)


def _echo(value: dict[str, Any]) -> dict[str, Any]:
    return value


echo = dramatiq.actor(_echo, actor_name="echo")


def main(count: int, seconds: float) -> None:
    """Call it."""

    def wait(message: Any) -> None:
        load.same(message.get_result(backend=backend, block=True, timeout=load.CALL_S_MAX * 1000))

    load.window(lambda: echo.send(load.VALUE), wait, count, seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
