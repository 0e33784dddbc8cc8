"""Subscriptions: handlers that are given the records of groups, and what becomes of a record by how they end.

A :class:`Subscription` is declared with ``@hub.subscribe``; :class:`Subscribers` run them with a client, in the hub's own
process or in a worker's. What returns is acked, what raises is tried again later, what does not fit is dead at once.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import structlog

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

THREADS_MAX = 64
"""Plain functions that run at one time."""
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
    """Runs subscriptions with a client. ``wrap`` may put something around their functions."""

    def __init__(self, subscriptions: Mapping[str, Subscription], client: Client, wrap: Wrap | None = None) -> None:
        self.subscriptions = dict(subscriptions)
        self.member = member_name()
        self._client = client
        self.wrap = wrap or (lambda subscription: subscription.function)
        self._running: list[_Runner] = []
        self._pool: ThreadPoolExecutor | None = None
        self._adding: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Subscribers of {', '.join(sorted(self.subscriptions))}>"

    @property
    def running(self) -> int:
        """Handlers that run."""
        return sum(len(runner.tasks) for runner in self._running)

    @property
    def threads(self) -> bool:
        """Whether a handler runs in a thread."""
        return any(runner.subscription.signature.threaded and runner.tasks for runner in self._running)

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
        runner = _Runner(self, subscription, self.wrap(subscription))
        self._running.append(runner)
        runner.begin(client, self.member)
        await runner.link.joined

    def add_soon(self, subscription: Subscription) -> None:
        """Another one, in a task. What it is refused for is logged."""
        task = asyncio.get_running_loop().create_task(self.add(subscription))
        self._adding.add(task)
        task.add_done_callback(self._added)

    def _added(self, task: asyncio.Task[None]) -> None:
        self._adding.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("subscription-refused", error=str(error))

    async def in_thread(self, run: Callable[[], Any]) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS_MAX, "wayside-subscriber")
        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

    def rest(self) -> None:
        """Take no more."""
        for runner in self._running:
            runner.rest()

    async def stop(self, seconds: float) -> None:
        """Take no more; let handlers finish, for so long; give back the rest."""
        self.rest()
        tasks = {task for runner in self._running for task in runner.tasks}
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for runner in self._running:
            runner.cancel()
        await asyncio.gather(*(runner.link.leave() for runner in self._running))
        self.close()

    def close(self) -> None:
        """End without a word."""
        for runner in self._running:
            runner.cancel()
        self._running.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


class _Runner:
    """One subscription that runs: a task for each record that is handled, and no more records than that."""

    link: Membership

    def __init__(self, subscribers: Subscribers, subscription: Subscription, function: Callable[..., Any]) -> None:
        self.subscription = subscription
        self.tasks: dict[asyncio.Task[None], Delivery] = {}
        self._function = function
        self._subscribers = subscribers
        self._client: Client | None = None
        self._member = ""
        self._unwanted = self._resting = False
        self._again: asyncio.Task[None] | None = None

    def begin(self, client: Client, member: str) -> None:
        self._client, self._member = client, member
        self.link = Membership(client.channels, self.subscription.group, member, self, client.pace, client.prepare)

    def rest(self) -> None:
        self._resting = True
        self.link.rest()

    def cancel(self) -> None:
        self._unwanted = self._resting = True
        if self._again is not None:
            self._again.cancel()
        for task in list(self.tasks):
            task.cancel()

    # -- as the owner of the link

    def room(self) -> int:
        return max(0, self.subscription.concurrency - len(self.tasks))

    def delivered(self, deliveries: list[Delivery]) -> None:
        if self._unwanted:
            return
        loop = asyncio.get_running_loop()
        for delivery in deliveries:
            task = loop.create_task(self._handle(delivery))
            self.tasks[task] = delivery
            task.add_done_callback(self._done)

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
        assert self._client is not None
        try:
            await _declare(self._client, self.subscription)
        except Refusal as refusal:
            _log.error("subscription-ended", group=self.subscription.group, error=str(refusal))
        else:
            self.begin(self._client, self._member)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self.tasks[task]
        if not self._resting:
            self.link.grant(1)

    # -- handling

    async def _handle(self, delivery: Delivery) -> None:
        try:
            arguments, keywords = await self._bind(delivery)
        except asyncio.CancelledError:
            return  # what is not settled is given back
        except Refusal as refusal:
            self._misfit(delivery, refusal.detail)
            return
        except Exception as error:  # of a type's own code, such as a validator
            self._misfit(delivery, _text(error))
            return
        try:
            await self._call(delivery, arguments, keywords)
        except asyncio.CancelledError as error:
            if not self._unwanted and not _cancelling():  # of something that the handler waited for
                self._failed(delivery, error)
        except Retry as retry:
            _say(delivery.nack, retry.delay, _text(retry) if retry.args[0] else "to be tried again")
        except Reject as rejected:
            _say(delivery.reject, str(rejected)[:REASON_CHARACTERS_MAX] or "its handler rejected it")
        except (Exception, SystemExit) as error:
            self._failed(delivery, error)

    async def _bind(self, delivery: Delivery) -> tuple[list[Any], dict[str, Any]]:
        signature = self.subscription.signature
        arguments, keywords = signature.bind(delivery.payload)
        if signature.call_parameter is not None:
            own = ThreadDelivery(delivery, asyncio.get_running_loop()) if signature.threaded else delivery
            keywords[signature.call_parameter] = own
        return arguments, keywords

    async def _open(self, path: str) -> AsyncIterator[bytes]:
        """A byte stream from its start to its end."""
        assert self._client is not None
        async for record in self._client.read(path):
            yield record.data

    async def _call(self, delivery: Delivery, arguments: list[Any], keywords: dict[str, Any]) -> None:
        function = self._function
        if self.subscription.signature.reads_uploads:
            await self.subscription.signature.read_uploads(arguments, keywords, self._open)
        if self.subscription.signature.threaded:
            result = await self._subscribers.in_thread(lambda: _called(function, arguments, keywords))
            await asyncio.sleep(0)  # behind what the thread had said on the event loop
        else:
            result = await function(*arguments, **keywords)
        if inspect.isawaitable(result):
            await result
        if not (delivery.settled or self._unwanted):
            acked = delivery.ack()
            if delivery.publishes:
                await acked  # what it publishes may be refused: then it has failed

    def _misfit(self, delivery: Delivery, text: str) -> None:
        _log.warning("record-rejected", group=self.subscription.group, stream=delivery.stream, reason=text[:200])
        _say(delivery.reject, f"it does not fit: {text}"[:REASON_CHARACTERS_MAX])

    def _failed(self, delivery: Delivery, error: BaseException) -> None:
        trace = "".join(traceback.format_exception(error))  # without the values of variables, which may be secret
        _log.warning(
            "handler failed",
            group=self.subscription.group,
            stream=delivery.stream,
            attempt=delivery.attempt,
            exception=trace,
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


def _called(function: Callable[..., Any], arguments: list[Any], keywords: dict[str, Any]) -> Any:
    try:
        return function(*arguments, **keywords)
    except StopIteration as error:  # no future can have it
        raise RuntimeError("The handler raised StopIteration.") from error


def _say(say: Callable[..., Any], *arguments: Any) -> None:
    """Unless the handler has said something itself."""
    delivery: Delivery = say.__self__  # type: ignore[attr-defined]
    if not (delivery.settled or delivery.fenced):
        say(*arguments)


def _text(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}"[:REASON_CHARACTERS_MAX]


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
