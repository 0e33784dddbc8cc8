"""Subscriptions: handlers that are given the records of groups, and what becomes of a record by how they end.

A :class:`Subscription` is declared with ``@hub.subscribe``; :class:`Subscribers` run them with a client, in the hub's own
process or in a worker's. What returns is acked, what raises is tried again later, what does not fit is dead at once.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import msgspec
import structlog

from wayside.calls.runner import Runner, Running, Threads, trace_of
from wayside.client.client import Client
from wayside.client.delivery import Delivery
from wayside.client.groups import member_name, spec_of
from wayside.client.member import Membership
from wayside.client.sync import ThreadDelivery
from wayside.core.errors import NotFound, Refusal
from wayside.core.globs import Glob
from wayside.core.signature import Signature
from wayside.groups.events import GroupSpec

__all__ = ["Reject", "Retry", "Subscribers", "Subscription", "subscription"]

REASON_CHARACTERS_MAX = 1000
CONCURRENCY = 16
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)
_log = structlog.get_logger("wayside.groups")


class Retry(Exception):
    """Raised by a handler: try this record again after ``delay`` seconds (None: after the group's backoff). It counts as a
    failure, as whatever else is raised, and is logged as less."""

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        super().__init__(reason)
        self.delay = delay


class Reject(Exception):
    """Raised by a handler: nobody shall try this record again. It goes to the dead letters at once."""


class Subscription:
    """A handler of the records of a group, and how it is to be run."""

    __slots__ = ("concurrency", "function", "group", "signature", "spec")

    def __init__(self, function: Callable[..., Any], group: str, spec: GroupSpec, concurrency: int) -> None:
        self.function = function
        self.group = group
        self.spec = spec
        self.concurrency = concurrency
        self.signature = Signature(function, call_type=Delivery)
        if self.signature.streams:
            raise TypeError(f"{self.signature.name} yields: a handler of records returns; publish with its delivery.")

    def __repr__(self) -> str:
        return f"<Subscription {self.group} to {', '.join(self.spec.streams)}>"


def subscription(
    streams: str | Iterable[str], group: str, concurrency: int, settings: dict[str, Any]
) -> Callable[[Callable[..., Any]], Subscription]:
    """What makes a function a :class:`Subscription`, in the group of its own name where none is given. What makes no sense
    raises TypeError or ValueError here, or there."""
    if concurrency < 1:
        raise ValueError("At least one handler runs at a time: concurrency is from 1.")
    spec = spec_of(streams, settings)
    for text in spec.streams:
        Glob(text)
    return lambda function: Subscription(function, group or _name_of(function), spec, concurrency)


def _name_of(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "") or ""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return _NO_NAME.sub("-", f"{module}.{name}".replace("<locals>.", "")).strip("-._")[:128]


Wrap = Callable[[Subscription], Callable[..., Any]]


class Subscribers:
    """Runs subscriptions with a client, plain functions in ``threads``, which belong to whoever made them. ``wrap`` may put
    something around their functions."""

    def __init__(
        self, subscriptions: Mapping[str, Subscription], client: Client, threads: Threads, wrap: Wrap | None = None
    ) -> None:
        self.subscriptions = dict(subscriptions)
        self.member = member_name()
        self.wrap = wrap or (lambda subscription: subscription.function)
        self._client = client
        self._threads = threads
        self._consumers: list[_Consumer] = []
        self._adding: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Subscribers of {', '.join(sorted(self.subscriptions))}>"

    @property
    def running(self) -> int:
        """Handlers that run."""
        return sum(len(consumer.runner.running) for consumer in self._consumers)

    @property
    def threads(self) -> bool:
        """Whether a handler runs in a thread."""
        return any(each.subscription.signature.threaded and each.runner.running for each in self._consumers)

    async def start(self) -> None:
        """Declare the groups, and take their records. Raises what a group is refused for."""
        for subscription in self.subscriptions.values():
            await self.add(subscription)

    async def add(self, subscription: Subscription) -> None:
        """Another one."""
        self.subscriptions[subscription.group] = subscription
        client = self._client
        await client.channels.ready()
        await _declare(client, subscription)
        consumer = _Consumer(subscription, self.wrap(subscription), client, self.member, self._threads)
        self._consumers.append(consumer)
        consumer.begin()
        await consumer.link.joined

    def add_soon(self, subscription: Subscription) -> None:
        """Another one, in a task. What it is refused for is logged."""
        task = asyncio.get_running_loop().create_task(self.add(subscription))
        self._adding.add(task)
        task.add_done_callback(self._added)

    def _added(self, task: asyncio.Task[None]) -> None:
        self._adding.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("subscription-refused", error=str(error))

    def rest(self) -> None:
        """Take no more."""
        for consumer in self._consumers:
            consumer.rest()

    async def stop(self, seconds: float) -> None:
        """Take no more; let handlers finish, for so long; give back the rest."""
        self.rest()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        for consumer in self._consumers:
            await consumer.runner.drain(max(0.0, deadline - loop.time()))
            consumer.close()
        await asyncio.gather(*(consumer.link.leave() for consumer in self._consumers))
        self._consumers.clear()

    def close(self) -> None:
        """End without a word."""
        for consumer in self._consumers:
            consumer.close()
        self._consumers.clear()


class _Consumer:
    """One subscription that runs: a member of its group, which takes as many records as handlers may run."""

    link: Membership

    def __init__(
        self,
        subscription: Subscription,
        function: Callable[..., Any],
        client: Client,
        member: str,
        threads: Threads,
    ) -> None:
        self.subscription = subscription
        self.runner: Runner[Delivery, Delivery] = Runner(
            self._handle, self._failed, concurrency=subscription.concurrency, ended=self._ended
        )
        self._function = function
        self._client = client
        self._member = member
        self._threads = threads
        self._closed = self._resting = False
        self._again: asyncio.Task[None] | None = None

    def begin(self) -> None:
        client = self._client
        group, pace, prepare = self.subscription.group, client.pace, client.prepare
        self.link = Membership(client.channels, group, self._member, self, pace, prepare)

    def rest(self) -> None:
        self._resting = True
        self.link.rest()

    def close(self) -> None:
        self._closed = self._resting = True
        if self._again is not None:
            self._again.cancel()
        self.runner.cancel_all()

    # -- as the owner of the link

    def room(self) -> int:
        return self.runner.room

    def delivered(self, deliveries: list[Delivery]) -> None:
        if not self._closed:
            for delivery in deliveries:
                self.runner.run(delivery, delivery)

    def ended(self, error: Exception) -> None:
        """The group was deleted, or the client was closed; or another hub is there now, which does not know the group."""
        if self._resting:
            return
        if isinstance(error, NotFound) and not self.link.told:
            task = self._again = asyncio.get_running_loop().create_task(self._declare())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        else:
            _log.error("subscription-ended", group=self.subscription.group, error=str(error))

    async def _declare(self) -> None:
        """Make the group again, where the hub has forgotten it."""
        try:
            await _declare(self._client, self.subscription)
        except Refusal as refusal:
            _log.error("subscription-ended", group=self.subscription.group, error=str(refusal))
        else:
            self.begin()

    # -- handling

    def _ended(self) -> None:
        if not self._resting:
            self.link.grant(1)

    async def _handle(self, delivery: Delivery, running: Running) -> None:
        signature, function = self.subscription.signature, self._function
        try:
            arguments, keywords = signature.bind(delivery.payload)
        except Refusal as refusal:
            self._misfit(delivery, refusal.detail)
            return
        except Exception as error:  # of a type's own code, such as a validator
            self._misfit(delivery, _text(error))
            return
        if signature.call_parameter is not None:
            own = ThreadDelivery(delivery, asyncio.get_running_loop()) if signature.threaded else delivery
            keywords[signature.call_parameter] = own
        try:
            if signature.reads_uploads:
                await signature.read_uploads(arguments, keywords, self._open)
            if signature.threaded:
                async with self._threads.records:
                    result = await self._threads.run(function, arguments, keywords)
                await asyncio.sleep(0)  # behind what the thread had said on the event loop
            else:
                result = await function(*arguments, **keywords)
            if inspect.isawaitable(result):
                await result
            if not (delivery.settled or running.unwanted):
                acked = delivery.ack()
                if delivery.publishes:
                    await acked  # what it publishes may be refused: then it has failed
        except Retry as retry:
            _say(delivery.nack, retry.delay, _text(retry) if retry.args[0] else "to be tried again")
        except Reject as rejected:
            _say(delivery.reject, str(rejected)[:REASON_CHARACTERS_MAX] or "its handler rejected it")

    async def _open(self, path: str) -> AsyncIterator[bytes]:
        """A byte stream from its start to its end."""
        async for record in self._client.read(path):
            yield record.data

    def _misfit(self, delivery: Delivery, text: str) -> None:
        _log.warning("record-rejected", group=self.subscription.group, stream=delivery.stream, reason=text[:200])
        _say(delivery.reject, f"it does not fit: {text}"[:REASON_CHARACTERS_MAX])

    def _failed(self, delivery: Delivery, error: BaseException) -> None:
        _log.warning(
            "handler failed",
            group=self.subscription.group,
            stream=delivery.stream,
            attempt=delivery.attempt,
            exception=trace_of(error),
        )
        _say(delivery.nack, None, _text(error))


async def _declare(client: Client, subscription: Subscription) -> None:
    """Make its group, or give it its settings; one that somebody has paused stays so."""
    spec = subscription.spec
    try:
        if (await client.describe_group(subscription.group))["paused"]:
            spec = msgspec.structs.replace(spec, paused=True)
    except NotFound:
        pass
    await client.declare_group(subscription.group, spec)


def _say(say: Callable[..., Any], *arguments: Any) -> None:
    """Unless the handler has said something itself."""
    delivery: Delivery = say.__self__  # type: ignore[attr-defined]
    if not (delivery.settled or delivery.fenced):
        say(*arguments)


def _text(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}"[:REASON_CHARACTERS_MAX]
