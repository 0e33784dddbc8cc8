"""Who works for the calls: the leases of workers, what they hold after a break, and what is taken up after a restart."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from wayside.calls.call import AttemptOutcome, CallState, ServiceCall
from wayside.calls.ledger import CALLS
from wayside.calls.queue import ServiceSpec, Worker, worker_name
from wayside.calls.services import Calls
from wayside.core.errors import CallFailed, Fenced

__all__ = ["LOCAL", "Leases"]

LOCAL = "hub-"
"""Workers in the hub's own process: they end with it."""


class Leases:
    """The workers of ``calls`` that have a lease. A lease runs on the monotonic clock."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def lost(self, worker: Worker, held: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """What a worker that is back says it holds, and does not."""
        mine = worker.held
        return [
            (name, attempt)
            for name, attempt in held
            if (name not in mine or mine[name].attempt != attempt) and not self._ending(worker, name, attempt)
        ]

    def _ending(self, worker: Worker, identity: str, attempt: int) -> bool:
        """Whether this worker has told the end of the attempt, and the disk has yet to take it: it is to tell it again,
        lest it be lost with the hub."""
        call = self._calls.ledger.open.get(identity)
        return call is not None and call.settling and call.said == attempt and call.worker_id == worker.id

    def resend(self, worker: Worker, held: Iterable[tuple[str, int]]) -> None:
        """What a worker that is back does not know that it holds."""
        told = dict(held)
        for identity, call in list(worker.held.items()):
            if told.get(identity) != call.attempt and not call.settling:
                self._calls.attempts.run_attempt(call)

    def leave(self, worker: Worker, reason: str) -> None:
        """A worker is no more: what it held has failed."""
        self._calls.workers.pop(worker.id, None)
        worker.link = None
        worker.stopping = True
        for name in worker.services:
            service = self._calls.services.get(name)
            if service is not None and worker in service.workers:
                service.workers.remove(worker)
        error = CallFailed(f"The worker that ran it was lost: {reason}.", code="worker-lost").problem()
        for call in list(worker.held.values()):
            if not call.settling:  # else it was never given to the worker, and is taken back when it has settled
                self._calls.attempts.end_attempt(call, AttemptOutcome(error=error), None)

    async def recover(self) -> None:
        """Take up the calls that had not ended when the hub did. Attempts of workers that may come back are theirs for
        another lease; those that ran in the hub's own process have failed."""
        after = ""
        found: list[ServiceCall] = []
        while infos := self._calls.log.list(CALLS, after, 1000, open_only=True):
            after = infos[-1].path
            for info in infos:
                call = await self._calls.ledger.read(info.path[len(CALLS) :])
                if not call.final:
                    found.append(call)
        for call in sorted(found, key=lambda call: call.created_ms):
            self._take_up(call)

    def _take_up(self, call: ServiceCall) -> None:
        service = self._calls.services.get(call.request.service) or self._calls.declare(
            ServiceSpec(call.request.service)
        )
        call.spec = service
        self._calls.ledger.enter(call)
        if call.state is CallState.QUEUED:
            self._calls.attempts.wait(call, max(call.request.not_before_ms, call.due_ms) - self._calls.clock.wall_ms())
            return
        worker = self.enter(call.worker_id)
        worker.held[call.id] = call
        call.worker = worker
        service.running += 1
        self._calls.attempts.bound(call)

    def enter(self, name: str) -> Worker:
        """The worker that others see by this name, known or new: its lease begins, or begins anew."""
        worker = self._calls.workers.get(name)
        if worker is None:
            worker = self._calls.workers[name] = Worker(name, [], 0, None)
            worker.lease_s = 0.0 if name.startswith(LOCAL) else self._calls.limits.lease_s
            self._calls.timers.after(worker.lease_s, partial(self._look, worker))
        worker.renewed = self._calls.clock.monotonic()
        return worker

    def _look(self, worker: Worker) -> None:
        """A lease may be over: then the worker is lost."""
        if self._calls.workers.get(worker.id) is not worker:
            return
        left_s = worker.renewed + worker.lease_s - self._calls.clock.monotonic()
        if left_s > 0:
            self._calls.timers.after(left_s, partial(self._look, worker))
        else:
            self.leave(worker, "its lease was not renewed" if worker.lease_s else "the hub's own process ended")

    def renew(self, identity: str) -> float:
        """A worker lives, by the id that it made up: its lease begins anew. Returns its length in seconds. Raises
        :class:`Fenced`."""
        name = worker_name(identity)
        if name not in self._calls.workers:
            raise Fenced(
                f"The lease of worker {name[:80]} is over; what it held was given to others. Connect anew.",
                code="lease-over",
            )
        return self.enter(name).lease_s
