"""The hub's own process as a worker: it has no connection and no lease, and ends with the hub."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from wayside.calls.call import AttemptOutcome, ServiceCall
from wayside.calls.handler import Attempt, Handler, Handling
from wayside.calls.queue import Worker
from wayside.calls.runner import Runner, Threads
from wayside.calls.services import Calls
from wayside.calls.workers import LOCAL
from wayside.core.codecs import Payload

__all__ = ["LocalWorker"]


class LocalWorker:
    """Runs ``handlers`` for ``calls``: ``capacity`` attempts at a time."""

    def __init__(
        self,
        calls: Calls,
        handlers: Mapping[str, Handler],
        capacity: int,
        opener: Callable[[str], AsyncIterator[bytes]],
        client: Callable[[], Any],
    ) -> None:
        self.threads = Threads()
        self.handling = Handling(handlers, self, self.threads)
        self.runner: Runner[tuple[str, int], Attempt] = Runner(
            self.handling.handle, self.handling.failed, concurrency=capacity
        )
        self.worker = Worker(f"{LOCAL}{secrets.token_hex(8)}", [], capacity, self)
        self.opener = opener
        self.client = client
        self._calls = calls
        self._handlers = handlers

    def join(self) -> None:
        """Offer the handlers; again when there are more."""
        self.worker.services = list(self._handlers)
        self._calls.join(self.worker, [handler.spec for handler in self._handlers.values()])
        for name, handler in self._handlers.items():
            self._calls.services[name].check_input = handler.signature.bind

    # -- from the calls

    def run(self, call: ServiceCall) -> None:
        request = call.request
        attempt = Attempt(
            call.id,
            call.attempt,
            request.service,
            request.payload,
            request.accept,
            request.query,
            call.items,
            call.durable,
        )
        self.runner.run((call.id, call.attempt), attempt)

    def cancel(self, call_id: str, attempt: int) -> None:
        self.runner.cancel((call_id, attempt))

    # -- from the handlers

    def emit(
        self, call: str, attempt: int, seq: int, kind: str, payload: Payload, done: Callable[[Exception | None], None]
    ) -> None:
        self._calls.attempts.emit(self.worker, call, attempt, seq, kind, payload, done)

    def finish(self, call: str, attempt: int, outcome: AttemptOutcome) -> None:
        self._calls.attempts.finish(self.worker, call, attempt, outcome, _ignore)

    async def stop(self, seconds: float) -> None:
        """Take no more; finish what runs, for so long; hand back the rest."""
        self.worker.stopping = True
        for call, attempt in await self.runner.drain(seconds):
            self._calls.attempts.hand_back(self.worker, call, attempt, _ignore)
        self.threads.close()


def _ignore(_result: Any) -> None:
    return None
