"""The hub's end of a connection, as far as a worker is at the other: what it says, and the way to it."""

from __future__ import annotations

from functools import partial
from typing import Any

from wayside import frames as f
from wayside.calls import Calls
from wayside.channelled import problem_of
from wayside.codecs import Payload
from wayside.errors import BadRequest
from wayside.leases import LOCAL, Leases
from wayside.state.calls import Call, Outcome
from wayside.state.queues import Worker, spec_of, worker_name

__all__ = ["WorkerSide"]

WORKER_CHARACTERS_MAX = 256
"""Of the name that a worker makes up."""


class WorkerSide:
    """A part of the hub's end of a connection. Takes the frames of a worker; to :class:`~wayside.calls.Calls` it is the
    way to that worker."""

    def __init__(self, calls: Calls, leases: Leases) -> None:
        self._calls = calls
        self._leases = leases
        self.worker: Worker | None = None

    def put(self, frame: Any, size: int = 0) -> None:
        """Send a frame."""
        raise NotImplementedError

    def settle(self) -> None:
        """Something has ended that a drain may wait for."""
        raise NotImplementedError

    def detach(self) -> None:
        """The worker is not at the other end any more."""
        worker, self.worker = self.worker, None
        if worker is not None and worker.link is self:
            worker.link = None

    def take_work(self, frame: f.WorkFrame) -> None:
        calls, leases = self._calls, self._leases
        specs = [spec_of(document) for document in frame.services]
        if frame.worker.startswith(LOCAL) or not 0 < len(frame.worker) <= WORKER_CHARACTERS_MAX:
            raise BadRequest("A worker makes up its own id, not one of the hub's.", code="worker-invalid")
        name = worker_name(frame.worker)
        worker = calls.workers.get(name)
        if self.worker is not worker:
            self.detach()
        if worker is None:
            worker = Worker(name, [], 0, None)
            worker.lease_s = self._calls.limits.lease_s
            worker.renewed = calls.clock.monotonic()
            calls.workers[worker.id] = worker
            leases.watch(worker)
        worker.renewed = calls.clock.monotonic()
        worker.services = [spec.name for spec in specs]
        worker.capacity = max(0, frame.capacity)
        worker.link, worker.stopping = self, False
        self.worker = worker
        self.put(f.WorkingFrame(frame.channel, worker.lease_s, leases.lost(worker, frame.held)))
        leases.resend(worker, frame.held)
        calls.join(worker, specs)

    def run(self, call: Call) -> None:
        request = call.request
        payload = request.payload
        self.put(
            f.RunFrame(
                0,
                call.id,
                call.attempt,
                request.service,
                payload.data,
                payload.content_type,
                request.accept or "",
                request.query,
                call.items,
                call.durable,
                call.spec.spec.timeout_s,
            )
        )

    def cancel(self, call_id: str, attempt: int) -> None:
        self.put(f.CancelFrame(0, call_id, attempt))

    def _working(self) -> Worker:
        if self.worker is None:
            raise BadRequest("Send a work frame first.", code="not-a-worker")
        return self.worker

    def take_emit(self, frame: f.EmitFrame) -> None:
        if frame.kind not in ("progress", "item"):
            raise BadRequest(
                f"An attempt sends progress or an item, not {frame.kind[:40]!r}.", code="parameter-invalid"
            )
        taken = partial(self._taken, frame.channel, frame.call, frame.attempt, frame.seq)
        payload = Payload(frame.body, frame.content_type)
        self._calls.emit(self._working(), frame.call, frame.attempt, frame.seq, frame.kind, payload, taken)

    def take_finish(self, frame: f.FinishFrame) -> None:
        payload = None if frame.error else Payload(frame.body, frame.content_type)
        outcome = Outcome(payload, frame.error, frame.again)
        taken = partial(self._taken, frame.channel, frame.call, frame.attempt, -1)
        self._calls.finish(self._working(), frame.call, frame.attempt, outcome, taken)

    def take_return(self, frame: f.ReturnFrame) -> None:
        taken = partial(self._taken, frame.channel, frame.call, frame.attempt, -1)
        self._calls.hand_back(self._working(), frame.call, frame.attempt, taken)

    def _taken(self, channel: int, call: str, attempt: int, seq: int, result: Any) -> None:
        problem = problem_of(result) if isinstance(result, Exception) else None
        self.put(f.TakenFrame(channel, call, attempt, seq, problem))
        self.settle()

    def take_rest(self, frame: f.RestFrame) -> None:
        worker = self._working()
        worker.stopping = True
        if frame.bye:
            self.worker = None
            for call in list(worker.held.values()):  # on their way to it when it stopped
                self._calls.hand_back(worker, call.id, call.attempt, lambda _result: None)
            self._leases.leave(worker, "it stopped")
