"""Calls: each is a stream that closes when the answer is in it. Services, and how calls of them are made.

A call that was submitted, or has an idempotency key, is durable: its request is on disk before anybody is told of it.
Any other call lives in memory, and has a stream only once there is more to it than its answer. What becomes of a call
is in :mod:`wayside.calls.attempts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from wayside.calls.attempts import Attempts
from wayside.calls.call import CallRequest, CallState, Event, ServiceCall, encode, request_of
from wayside.calls.ledger import Ledger, call_path
from wayside.calls.queue import Service, ServiceSpec, Worker
from wayside.core.callbacks import Done, guarded
from wayside.core.clock import Clock
from wayside.core.codecs import Payload
from wayside.core.errors import IdempotencyMismatch, NotFound, Refusal, TooManyCalls
from wayside.core.limits import Limits
from wayside.core.records import JSON, Create, Durability, StreamConfig
from wayside.core.schedule import Timers
from wayside.streams.contract import Log

__all__ = ["Calls"]

_DURABLE = StreamConfig(JSON, Durability.FSYNC)
_STATED = frozenset({"content_type"})


class Calls:
    """Services, workers and calls of one hub. ``on_declared`` is told of each declaration that changed."""

    def __init__(self, log: Log, clock: Clock, limits: Limits) -> None:
        self.log = log
        self.clock = clock
        self.limits = limits
        self.timers = Timers(clock)
        self.ledger = Ledger(log)
        """Which calls there are."""
        self.services: dict[str, Service] = {}
        self.workers: dict[str, Worker] = {}
        self.attempts = Attempts(log, clock, self.timers, self.ledger, self.services, self.workers)
        """What becomes of them."""
        self.on_declared: Callable[[ServiceSpec], None] | None = None
        self.check_callback: Callable[[str], None] | None = None
        """Raises what is wrong with a URL that is to be told of the end of a call."""
        self._creating: dict[str, list[Done]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- services and workers

    def declare(self, spec: ServiceSpec) -> Service:
        """A service exists, as declared last."""
        service = self.services.get(spec.name)
        if service is None:
            service = self.services[spec.name] = Service(spec)
        elif service.spec == spec:
            return service
        service.spec = spec
        if self.on_declared is not None:
            self.on_declared(spec)
        return service

    def service(self, name: str) -> Service:
        """Raises :class:`NotFound` where nobody ever declared it."""
        service = self.services.get(name)
        if service is None:
            known = ", ".join(sorted(self.services)[:10]) or "none yet"
            raise NotFound(
                f"There is no service {name[:200]!r}. Known: {known}. Start a worker that has it: "
                "`wayside work app:hub --hub URL`.",
                code="service-not-found",
                fields={"service": name},
            )
        return service

    def join(self, worker: Worker, specs: Iterable[ServiceSpec]) -> None:
        """A worker offers to run services: those that it names, and no others that it did before."""
        for service in self.services.values():
            if worker in service.workers and service.name not in worker.services:
                service.workers.remove(worker)
        for spec in specs:
            service = self.declare(spec)
            if worker not in service.workers:
                service.workers.append(worker)
        self.workers[worker.id] = worker
        self.attempts.fill(worker)

    # -- making calls

    def request(self, service: str, payload: Payload, accept: str | None = None, **options: Any) -> CallRequest:
        """What was asked for, as :func:`wayside.calls.call.request_of` makes it. Raises :class:`BadRequest`."""
        callback = options.get("callback")
        if callback and self.check_callback is not None:
            self.check_callback(callback)
        return request_of(self.clock.wall_ms(), service, payload, accept, **options)

    def call(self, request: CallRequest, done: Callable[[ServiceCall], None]) -> ServiceCall:
        """A call in memory. ``done`` is told when it has ended. Raises what it is refused for."""
        service = self._admit(request)
        call = ServiceCall(request, call_path(request.id), durable=False)
        call.spec = service
        call.waiters.append(done)
        self.ledger.enter(call)
        self.attempts.place(call)
        return call

    def submit(self, request: CallRequest, done: Done) -> None:
        """A durable call. ``done`` gets the :class:`ServiceCall` once it is on disk, or an exception. A known idempotency key
        gives the call that has it."""
        if request.key:
            if (creating := self._creating.get(request.id)) is not None:
                creating.append(partial(self._same, request, done))
                return
            call = self.ledger.known(request.id)
            if call is not None:
                self._same(request, done, call)
                return
            if self.ledger.has(request.id):
                self._creating[request.id] = []
                self.keep(asyncio.get_running_loop().create_task(self._find(request, done)))
                return
        service = self._admit(request)
        call = ServiceCall(request, call_path(request.id), durable=True)
        call.spec = service
        records = [encode(request)]
        worker = None
        now = request.time_ms
        if request.not_before_ms <= now and not service.waiting and service.may_start:
            worker = self.attempts.choose(call)
        if worker is not None:
            records.append(self.attempts.take(call, worker, now))
        else:
            records.append(encode(Event("queued", now)))
            service.delayed += 1
        create = Create(_DURABLE, _STATED, records=records, fresh=True)
        if request.key:
            self._creating[request.id] = []
        call.settling = True
        self.ledger.enter(call)
        self.log.create(call.path, create, partial(self._created, call, done))

    def _created(self, call: ServiceCall, done: Done, result: Any) -> None:
        tellers = [done, *self._creating.pop(call.id, [])]
        told: Any = call
        if call.worker is None:
            call.spec.delayed -= 1
        if isinstance(result, Exception):
            told = result
            call.state = CallState.CANCELLED
            self.ledger.forget(call)
            self.attempts.release(call)
            for waiter in call.waiters:
                guarded(partial(waiter, call))
        elif call.worker is not None:
            self.attempts.granted(call)
        else:
            self.attempts.settled(call, call.request.not_before_ms - self.clock.wall_ms())
        parent = self.ledger.open.get(call.request.parent)
        if parent is not None and parent.worker is not None:
            self.attempts.fill(parent.worker)  # it waits now, and needs no place
        for tell in tellers:
            guarded(partial(tell, told))

    async def _find(self, request: CallRequest, done: Done) -> None:
        """A call with this key ended so long ago that only its stream knows it."""
        found: Any
        try:
            found = await self.ledger.load(request.id)
        except NotFound as error:  # it was let go meanwhile: then this is another call
            found = error
            others = self._creating.pop(request.id, [])
            try:
                self.submit(request, done)
            except Refusal as refusal:
                found = refusal
                others.append(done)
            if (creating := self._creating.get(request.id)) is not None:
                creating.extend(others)
                return
            for tell in others:
                guarded(partial(tell, found))
            return
        except Exception as error:
            found = error
        tellers: list[Done] = [partial(self._same, request, done), *self._creating.pop(request.id, [])]
        for tell in tellers:
            guarded(partial(tell, found))

    def _same(self, request: CallRequest, done: Done, found: Any) -> None:
        """Answer with a call that has the same key, if it is the same call."""
        if isinstance(found, ServiceCall) and found.request.fingerprint != request.fingerprint:
            found = IdempotencyMismatch(
                f"The idempotency key {request.key[:80]!r} was used for another request to {request.service}. "
                "Send the same request again, or choose a new key.",
                fields={"call": found.id},
            )
        done(found)

    def _admit(self, request: CallRequest) -> Service:
        service = self.service(request.service)
        if service.crowded if request.not_before_ms else service.full:
            raise TooManyCalls(
                f"{service.spec.queue_max} calls of {service.name} are waiting, as many as may. Try again shortly.",
                headers={"Retry-After": "1"},
                fields={"service": service.name},
            )
        return service

    def abandon(self, call: ServiceCall) -> None:
        """Whoever called is gone. A call in memory ends when nobody else follows it either."""
        if not call.final and not call.durable:
            self.ledger.unless_read(call, lambda: self.attempts.cancel(call.id, "Whoever called is gone.", _ignore))

    # -- the end

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.timers.stop()


def _ignore(_result: Any) -> None:
    return None
