"""Calls under way: who is given them, what their attempts say, and how each ends.

Stands on the contract ``Log`` and on :mod:`wayside.calls.call`. What is true of a call is kept before anything is done about
it: each attempt of a durable call is on disk before it runs, its answer before it is shown. While a record is on its
way to the disk the call is ``settling``, and nothing else happens to it.

Everything here runs on one event loop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wayside.calls.call import AttemptOutcome, CallState, Event, ServiceCall, encode, fields_of, plain
from wayside.calls.ledger import Ledger
from wayside.calls.queue import Queued, Service, ServiceSpec, Worker
from wayside.core.callbacks import Done, guarded
from wayside.core.clock import Clock
from wayside.core.codecs import Payload
from wayside.core.errors import CallCancelled, CallFailed, Conflict, Fenced, NotFound, Refusal, StoreFull
from wayside.core.records import JSON, Append, Appended
from wayside.core.schedule import Timers
from wayside.streams.contract import Log

__all__ = ["Attempts"]

FULL_S = 1.0
"""How soon an answer that found no room on the disk is tried again."""


class Attempts:
    """The attempts at the calls of ``ledger`` that have not ended, by ``workers`` that offer ``services``. ``on_ended`` is
    told of each call that has."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        timers: Timers,
        ledger: Ledger,
        services: Mapping[str, Service],
        workers: Mapping[str, Worker],
    ) -> None:
        self.begun = 0
        """How many workers were given."""
        self.fenced = 0
        """How often an attempt was reported of that another worker has."""
        self.on_ended: Callable[[ServiceCall], None] | None = None
        self.on_ending: Callable[[ServiceCall], None] | None = None
        """Told of the end of a durable call that has a callback, with each try to keep it: what is appended then shares
        its commit."""
        self.random = random.Random()
        """For the jitter between attempts."""
        self._log = log
        self._clock = clock
        self._timers = timers
        self._ledger = ledger
        self._services = services
        self._workers = workers

    def __repr__(self) -> str:
        return f"<Attempts {self.begun} begun, {self.fenced} fenced>"

    # -- who runs what

    def fill(self, worker: Worker) -> None:
        """Give a worker what it has places for: the most urgent first."""
        parents = self._ledger.children
        while (free := worker.free > 0) or (parents and worker.free_for_steps(parents) > 0):
            first: Queued | None = None
            chosen: Service | None = None
            for name in worker.services:
                service = self._services[name]
                head = service.head() if service.waiting else None
                if head is not None and (free or head[-1].request.parent) and (first is None or head < first):
                    first, chosen = head, service
            if chosen is None:
                return
            self._grant(chosen.pop(), worker)

    def wait(self, call: ServiceCall, delay_ms: float) -> None:
        """Queue a call, now or when its time comes."""
        if delay_ms <= 0:
            self.place(call)
            return
        service: Service = call.spec
        service.delayed += 1

        def due() -> None:
            service.delayed -= 1
            call.timer = None
            if call.waits:
                self.place(call)

        call.timer = self._timers.after(delay_ms / 1000, due)

    def place(self, call: ServiceCall) -> None:
        """Grant a call if somebody has a place for it and nobody is before it; else it waits."""
        service: Service = call.spec
        worker = self.choose(call) if not service.waiting and service.may_start else None
        if worker is not None:
            self._grant(call, worker)
            return
        service.push(call)
        if service.waiting > 1:  # another may have a place that none before had
            worker = self.choose(call)
            if worker is not None:
                self.fill(worker)

    def choose(self, call: ServiceCall) -> Worker | None:
        """A worker with a place for a call."""
        service: Service = call.spec
        return service.choose() or (service.choose(self._ledger.children) if call.request.parent else None)

    def take(self, call: ServiceCall, worker: Worker, now_ms: int) -> bytes:
        """Reserve a place, and make the record of the attempt."""
        worker.held[call.id] = call
        call.worker = worker
        call.spec.running += 1
        event = Event("running", now_ms, call.attempt + 1, worker=worker.id)
        call.apply(event)
        return encode(event) if call.streamed else b""

    def _grant(self, call: ServiceCall, worker: Worker) -> None:
        record = self.take(call, worker, self._clock.wall_ms())
        if not call.streamed:
            self.granted(call)
            return
        call.settling = True

        def done(result: Appended | Exception) -> None:
            if not isinstance(result, Exception) or self._let_go(call, result):
                self.granted(call)
                return
            # It did not run: as if it had never been granted, once the disk has room.
            self.release(call)
            call.state = CallState.QUEUED
            call.attempt -= 1
            self.settled(call, FULL_S * 1000)

        self._append(call, record, done)

    def granted(self, call: ServiceCall) -> None:
        """The attempt is on record, where there is one."""
        call.settling = False
        worker: Worker = call.worker
        if call.doomed:
            self.cancel(call.id, call.doomed, _ignore)
        elif self._workers.get(worker.id) is not worker:  # it was lost meanwhile, and never had it
            self.hand_back(worker, call.id, call.attempt, _ignore)
        else:
            self.begun += 1
            self.run_attempt(call)

    def settled(self, call: ServiceCall, delay_ms: float) -> None:
        """What was on the way to the disk is there, and the call may be granted."""
        call.settling = False
        if call.doomed:
            self.cancel(call.id, call.doomed, _ignore)
        else:
            self.wait(call, delay_ms)

    # -- an attempt

    def run_attempt(self, call: ServiceCall) -> None:
        """Have the worker run the attempt that it holds."""
        worker: Worker = call.worker
        if call.spec.spec.timeout_s and call.timer is None:
            self.bound(call)
        if worker.link is not None:
            worker.link.run(call)

    def bound(self, call: ServiceCall) -> None:
        """The time of its attempt begins, where it has a bound."""
        timeout_s = call.spec.spec.timeout_s
        if timeout_s:
            call.timer = self._timers.after(timeout_s, partial(self._expire, call, call.attempt))

    def _expire(self, call: ServiceCall, attempt: int) -> None:
        call.timer = None
        if call.state is CallState.RUNNING and call.attempt == attempt and not call.settling:
            self._stop_attempt(call)
            seconds = call.spec.spec.timeout_s
            error = CallFailed(f"The attempt took longer than {seconds:g} s.", code="attempt-timeout").problem()
            self.end_attempt(call, AttemptOutcome(error=error), None)

    def _stop_attempt(self, call: ServiceCall) -> None:
        worker: Worker | None = call.worker
        if worker is not None and worker.link is not None:
            worker.link.cancel(call.id, call.attempt)

    def release(self, call: ServiceCall) -> None:
        """Its place is free for another call."""
        worker: Worker | None = call.worker
        service: Service = call.spec
        call.worker = None
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if worker is None:
            return
        worker.held.pop(call.id, None)
        service.running -= 1
        if service.spec.concurrency and service.waiting:
            for other in service.workers:
                self.fill(other)
        self.fill(worker)

    def _own(self, worker: Worker, identity: str, attempt: int) -> ServiceCall:
        """The call, if this worker holds this attempt of it. Raises :class:`Fenced`."""
        call = worker.held.get(identity)
        if call is None or call.attempt != attempt or call.state is not CallState.RUNNING or call.settling:
            self.fenced += 1
            raise Fenced(
                f"Attempt {attempt} of call {identity} is not this worker's any more. Drop what it did.",
                code="attempt-fenced",
                fields={"call": identity, "attempt": attempt},
            )
        return call

    def emit(
        self, worker: Worker, identity: str, attempt: int, seq: int, kind: str, payload: Payload, ack: Done
    ) -> None:
        """An attempt sends ``progress`` or an ``item``; ``ack`` gets None once it is kept, or a refusal."""
        try:
            call = self._own(worker, identity, attempt)
            if seq > call.seq:
                raise Conflict(f"Number {call.seq} is next, not {seq}.", code="emit-gap")
        except Refusal as refusal:
            ack(refusal)
            return
        if seq < call.seq:  # it came before
            if call.emits and seq in call.emits:
                call.emits[seq].append(ack)
            else:
                ack(None)
            return
        if not call.streamed:
            self._ledger.stream(call)
            if not call.streamed:
                ack(StoreFull("There is no room for what the call says.", code="memory-full"))
                return
        call.seq = seq + 1
        emits = call.emits = {} if call.emits is None else call.emits
        emits[seq] = [ack]
        event = Event(kind, self._clock.wall_ms(), attempt, seq, **fields_of(payload))

        def done(result: Appended | Exception) -> None:
            refused = result if isinstance(result, Exception) else None
            if refused is not None:
                call.seq = min(call.seq, seq)
            elif not call.final:
                call.apply(event)
            for told in emits.pop(seq, ()):
                guarded(partial(told, refused))

        self._append(call, encode(event), done)

    def finish(self, worker: Worker, identity: str, attempt: int, outcome: AttemptOutcome, ack: Done) -> None:
        """An attempt has ended; ``ack`` gets None once that is kept, or a refusal."""
        try:
            call = self._own(worker, identity, attempt)
        except Refusal as refusal:
            known = self._ledger.known(identity)
            if known is None or known.worker_id != worker.id or known.said != attempt:
                ack(refusal)
            elif known.settling:
                known.acks.append(ack)
            else:
                ack(None)  # it was said before, and kept
            return
        call.said = attempt
        if outcome.error is not None:
            outcome.error = plain(outcome.error)  # it may come from anywhere
        self.end_attempt(call, outcome, ack)

    def hand_back(self, worker: Worker, identity: str, attempt: int, ack: Done) -> None:
        """A worker will not go on with an attempt: another shall, and it counts as no failure."""
        try:
            call = self._own(worker, identity, attempt)
        except Refusal as refusal:
            ack(refusal)
            return
        event = Event("returned", self._clock.wall_ms(), attempt)
        self.release(call)
        self._requeue(call, event, 0.0, ack)

    # -- how it ends

    def end_attempt(self, call: ServiceCall, outcome: AttemptOutcome, ack: Done | None) -> None:
        now = self._clock.wall_ms()
        spec: ServiceSpec = call.spec.spec
        if outcome.error is None:
            payload = outcome.payload or Payload(b"null", "application/json")
            if not call.streamed:  # nothing has to be encoded for it
                call.state, call.result, call.ended_ms = CallState.DONE, payload, now
                self.release(call)
                self._ended(call)
                if ack is not None:
                    ack(None)
                return
            self.release(call)
            self._end(call, Event("done", now, call.attempt, **fields_of(payload)), ack)
            return
        self.release(call)
        if outcome.again and call.failures < spec.retries:
            delay_s = self._pause_s(call, spec)
            event = Event("retry", now, call.attempt, error=outcome.error, delay_ms=round(delay_s * 1000))
            self._requeue(call, event, delay_s, ack)
        else:
            self._end(call, Event("failed", now, call.attempt, error=outcome.error), ack)

    def _pause_s(self, call: ServiceCall, spec: ServiceSpec) -> float:
        """Before its next attempt: anything up to a bound that doubles with each failure."""
        return self.random.uniform(0, min(spec.backoff_s_max, spec.backoff_s * 2.0 ** min(call.failures, 64)))

    def _requeue(self, call: ServiceCall, event: Event, delay_s: float, ack: Done | None) -> None:
        """Another attempt is due."""
        self._settle(call, event, partial(self.settled, call, delay_s * 1000), ack, close=False)

    def _end(self, call: ServiceCall, event: Event, ack: Done | None) -> None:
        """The last record, and with it the end of the stream."""
        self._settle(call, event, partial(self._ended, call), ack, close=True)

    def _settle(
        self, call: ServiceCall, event: Event, then: Callable[[], None], ack: Done | None, *, close: bool
    ) -> None:
        """Keep what ended an attempt; until that is done nothing else can happen to the call. Where there is no room on
        the disk it is kept here, and tried again."""
        call.settling = True
        if ack is not None:
            call.acks.append(ack)

        def done(result: Appended | Exception | None) -> None:
            refused = result if isinstance(result, Exception) and not self._let_go(call, result) else None
            if refused is not None and getattr(refused, "retry", False):
                self._timers.after(FULL_S, again)
                return
            if refused is None:
                call.settling = False
                call.apply(event)
                then()
            acks, call.acks = call.acks, []
            for told in acks:
                guarded(partial(told, refused))

        def again() -> None:
            if close and call.durable and call.request.callback and self.on_ending is not None:
                self.on_ending(call)
            if call.streamed:
                self._append(call, encode(event), done, close=close)
            else:
                done(None)  # nothing is kept of it

        again()

    def _let_go(self, call: ServiceCall, refused: Exception) -> bool:
        """Whether the stream of a call in memory is no more, as happens after a jump of the clock: it goes on without."""
        if isinstance(refused, NotFound) and not call.durable:
            call.streamed = False
            return True
        return False

    def _ended(self, call: ServiceCall) -> None:
        self._ledger.close(call)
        waiters, call.waiters = call.waiters, []
        for waiter in waiters:
            guarded(partial(waiter, call))
        if call.state is CallState.CANCELLED:
            for child in list(self._ledger.children.get(call.id, ())):
                self.cancel(child, "The call whose step it was has been cancelled.", _ignore)
        if self.on_ended is not None:
            guarded(partial(self.on_ended, call))

    def _append(self, call: ServiceCall, record: bytes, done: Done, *, close: bool = False) -> None:
        try:
            self._log.append(call.path, Append(b"", JSON, close, records=[record]), done)
        except Refusal as refusal:
            done(refusal)

    def cancel(self, identity: str, reason: str, done: Done) -> None:
        """End a call that has not ended; ``done`` gets it once that is kept. Its handler is told; what it still says is
        refused."""
        call = self._ledger.open.get(identity)
        if call is None:
            done(Conflict(f"Call {identity} has ended: it cannot be cancelled.", code="call-ended"))
            return
        call.waiters.append(done)
        if call.settling:
            call.doomed = reason
            return
        if call.state is CallState.RUNNING:
            self._stop_attempt(call)
        error = CallCancelled(reason).problem()
        if call.timer is not None and call.worker is None:  # it waits for its time
            call.timer.cancel()
            call.timer = None
            call.spec.delayed -= 1
        self.release(call)
        self._end(call, Event("cancelled", self._clock.wall_ms(), call.attempt, error=error), None)


def _ignore(_result: Any) -> None:
    return None
