"""A Celery task with Redis as broker and result backend, and a client that keeps N tasks in flight.

Tuned: tasks are prefetched, no events, no remote control, no rate limits.
"""

import importlib
import sys
from typing import Any

from bench.clients import load

celery: Any = importlib.import_module("celery")
signals: Any = importlib.import_module("celery.signals")
app = celery.Celery("bench", broker=load.URL, backend=load.URL)
app.conf.update(
    worker_prefetch_multiplier=64, worker_redirect_stdouts=False, worker_disable_rate_limits=True,
    worker_enable_remote_control=False, worker_send_task_events=False, task_send_sent_event=False,
    broker_connection_retry_on_startup=True, broker_heartbeat=0,
)  # fmt: skip


def _echo(value: dict[str, Any]) -> dict[str, Any]:
    return value


echo = app.task(_echo, name="echo")
signals.worker_ready.connect(lambda **_: print("ready"), weak=False)


def main(count: int, seconds: float) -> None:
    """Call it."""

    def wait(result: Any) -> None:
        load.same(result.get(timeout=load.CALL_S_MAX))

    load.window(lambda: echo.delay(load.VALUE), wait, count, seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
