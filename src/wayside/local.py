"""The hub's own worker: handlers that run in the hub's process, with nothing between them and the calls."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from wayside.calls import Calls
from wayside.codecs import Payload
from wayside.leases import LOCAL
from wayside.state.calls import Call, Outcome
from wayside.state.queues import Worker
from wayside.worker import Attempt, Handler, Runner

__all__ = ["LocalWorker"]


class LocalWorker:
    """Runs ``handlers`` for ``calls``. It has no lease: it ends with the hub."""

    def __init__(
        self,
        calls: Calls,
        handlers: Mapping[str, Handler],
        capacity: int,
        opener: Callable[[str], AsyncIterator[bytes]],
        client: Callable[[], Any],
    ) -> None:
        self.runner = Runner(handlers, self)
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

    def run(self, call: Call) -> None:
        request = call.request
        self.runner.run(
            Attempt(
                call.id,
                call.attempt,
                request.service,
                request.payload,
                request.accept,
                request.query,
                call.items,
                call.durable,
            )
        )

    def cancel(self, call_id: str, attempt: int) -> None:
        self.runner.cancel(call_id, attempt)

    # -- from the runner

    def emit(
        self, call: str, attempt: int, seq: int, kind: str, payload: Payload, done: Callable[[Exception | None], None]
    ) -> None:
        self._calls.emit(self.worker, call, attempt, seq, kind, payload, done)

    def finish(self, call: str, attempt: int, outcome: Outcome) -> None:
        self._calls.finish(self.worker, call, attempt, outcome, _ignore)

    async def stop(self, seconds: float) -> None:
        """Take no more; finish what runs, for so long; hand back the rest."""
        self.worker.stopping = True
        for call, attempt in await self.runner.drain(seconds):
            self._calls.hand_back(self.worker, call, attempt, _ignore)
        self.runner.close()


def _ignore(_result: Any) -> None:
    return None
