"""Who may run what: services with their queues and bounds, workers with their capacity.

Grants follow credit: a worker is given as many calls as it has free places, never more. Pure bookkeeping: it decides,
:mod:`wayside.calls.services` acts.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Callable, Container, Mapping
from typing import Any, Protocol

import msgspec

from wayside.calls.call import ServiceCall
from wayside.core.codecs import Payload
from wayside.core.errors import BadRequest

__all__ = ["NAME", "Queued", "Service", "ServiceSpec", "Worker", "WorkerLink", "spec_of", "worker_name"]


class ServiceSpec(msgspec.Struct, omit_defaults=True, frozen=True):
    """What is declared of a service, by whoever runs its handler."""

    name: str
    retries: int = 0
    """Attempts after the first."""
    timeout_s: float = 0.0
    """Of one attempt; 0: no bound."""
    backoff_s: float = 1.0
    """Before the second attempt; doubled for each that follows, with full jitter."""
    backoff_s_max: float = 300.0
    concurrency: int = 0
    """Attempts that run at one time, over all workers; 0: as many as the workers have places."""
    queue_max: int = 10_000
    """Calls that wait; more are refused with 429."""
    streams: bool = False
    """Whether it yields its answer."""
    description: str = ""
    interface: dict[str, Any] = {}
    """Its part of the OpenAPI document."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
"""Of a service."""


def spec_of(document: dict[str, Any]) -> ServiceSpec:
    """The declaration of a service by a worker, which may be anybody. Raises :class:`BadRequest`."""
    try:
        spec = msgspec.convert(document, ServiceSpec)
    except msgspec.ValidationError as error:
        raise BadRequest(f"Not the declaration of a service: {error}", code="service-invalid") from error
    numbers = (spec.retries, spec.timeout_s, spec.backoff_s, spec.backoff_s_max, spec.concurrency, spec.queue_max)
    if not NAME.fullmatch(spec.name) or not all(0 <= number < 1e15 for number in numbers):
        raise BadRequest(f"{spec.name[:200]!r} is not declared as a service can be.", code="service-invalid")
    return spec


def worker_name(secret: str) -> str:
    """The name by which others see a worker that made up this id. The id itself is the right to act for the worker, and
    is told to nobody; what stands before its last dash stays readable."""
    label = secret.rpartition("-")[0] or "w"
    return f"{label}-{hashlib.sha256(secret.encode(errors='replace')).hexdigest()[:16]}"


class WorkerLink(Protocol):
    """The hub's way to whatever runs handlers."""

    def run(self, call: ServiceCall) -> None:
        """Run the attempt that the call is at."""
        ...

    def cancel(self, call_id: str, attempt: int) -> None:
        """Nobody wants this attempt any more."""
        ...


class Worker:
    """A worker as the hub knows it: over all its connections, until its lease ends."""

    __slots__ = ("capacity", "held", "id", "lease_s", "link", "renewed", "services", "stopping")

    def __init__(self, identity: str, services: list[str], capacity: int, link: WorkerLink | None) -> None:
        self.id = identity
        self.services = services
        self.capacity = capacity
        self.link = link
        """None while it is not connected."""
        self.held: dict[str, ServiceCall] = {}
        self.stopping = False
        self.lease_s = 0.0
        """0: it lives as long as the hub."""
        self.renewed = 0.0
        """When its lease was renewed last (monotonic)."""

    @property
    def stays(self) -> bool:
        """Whether it goes on until the hub itself ends: it is in the same process."""
        return not self.lease_s and not self.stopping

    @property
    def free(self) -> int:
        """Places that it has left."""
        return 0 if self.link is None or self.stopping else self.capacity - len(self.held)

    def free_for_steps(self, waiting: Container[str]) -> int:
        """Places that it has left for steps. Of those it holds, the calls in ``waiting`` wait for steps of theirs and need
        none: else workers full of such calls would wait for each other for ever."""
        if self.link is None or self.stopping:
            return 0
        return self.capacity - sum(name not in waiting for name in self.held)

    def __repr__(self) -> str:
        return f"<Worker {self.id} {len(self.held)}/{self.capacity} {'' if self.link else 'not connected'}>"


Queued = tuple[bool, int, int, ServiceCall]
"""What waits: whether it is no step, its priority, negated, and its order."""


class Service:
    """A service: its declaration, who runs it, and what waits for it: steps of calls under way first, then by priority,
    then in order."""

    __slots__ = ("_heap", "check_input", "delayed", "name", "running", "spec", "workers")

    def __init__(self, spec: ServiceSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.workers: list[Worker] = []
        self.check_input: Callable[[Payload, Mapping[str, list[str]]], object] | None = None
        """Raises what its handler would refuse, where that is known in this process."""
        self.running = 0
        self.delayed = 0
        """Calls that wait for their time."""
        self._heap: list[Queued] = []

    def __repr__(self) -> str:
        return f"<Service {self.name} running {self.running} waiting {self.waiting} workers {len(self.workers)}>"

    @property
    def waiting(self) -> int:
        """How many are queued. Those that were cancelled count until they come up."""
        return len(self._heap)

    @property
    def crowded(self) -> bool:
        """Whether as many calls wait as may."""
        if len(self._heap) + self.delayed < self.spec.queue_max:
            return False
        self._heap = [entry for entry in self._heap if entry[-1].waits]
        heapq.heapify(self._heap)
        return len(self._heap) + self.delayed >= self.spec.queue_max

    @property
    def full(self) -> bool:
        """Whether a call that may start now would have to wait, and may not."""
        return self.crowded and (bool(self._heap) or not self.may_start or self.choose() is None)

    @property
    def may_start(self) -> bool:
        return not self.spec.concurrency or self.running < self.spec.concurrency

    def push(self, call: ServiceCall) -> None:
        heapq.heappush(self._heap, (not call.request.parent, -call.request.priority, call.order, call))

    def head(self) -> Queued | None:
        """What is next, if it may start."""
        while self._heap and not self._heap[0][-1].waits:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap and self.may_start else None

    def pop(self) -> ServiceCall:
        return heapq.heappop(self._heap)[-1]

    def choose(self, waiting: Container[str] | None = None) -> Worker | None:
        """The worker with the most free places, if one may start now and none is before it; for a step, with ``waiting``
        as :meth:`Worker.free_for_steps` wants it."""
        best, most = None, 0
        for worker in self.workers:
            free = worker.free if waiting is None else worker.free_for_steps(waiting)
            if free > most:
                best, most = worker, free
        return best
