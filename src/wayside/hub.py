"""``Hub``: the one place where everything is put together.

``Hub("file:./data")`` keeps its streams in a directory, ``Hub("memory:")`` nowhere. The same object is
used in process (``publish``, ``read``), mounted in an ASGI application (``asgi``), or served (``serve``).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from wayside.calls.handler import Call, Handler
from wayside.calls.housekeeping import Keeping
from wayside.calls.local import LocalWorker
from wayside.calls.queue import ServiceSpec
from wayside.calls.services import Calls
from wayside.calls.workers import WorkerLeases
from wayside.client.calls import CallHandle
from wayside.client.client import Client, PolicyName
from wayside.client.subscriber import CONCURRENCY, Subscribers, Subscription, subscription
from wayside.core.clock import Clock, SystemClock
from wayside.core.engine import Engine
from wayside.core.errors import BadRequest
from wayside.core.limits import Limits
from wayside.core.metadata import Publication, Published, Said
from wayside.core.records import JSON, Durability, Record, StreamConfig, StreamInfo, require_public
from wayside.groups.registry import Groups
from wayside.groups.webhook import GroupPush
from wayside.link.connection import Channels, Local
from wayside.server.http.asgi import AsgiApp
from wayside.server.http.listener import Server
from wayside.server.http.operations import Operations
from wayside.server.http.routes import Routes
from wayside.server.patterns.multiplexing import Connections
from wayside.storage.embedded.engine import EmbeddedEngine
from wayside.storage.embedded.files import CHECKED_VFS
from wayside.storage.memory import MemoryEngine
from wayside.streams.delayed import Delaying
from wayside.streams.inprocess import InProcess
from wayside.streams.presence import Presence, PresenceEvent, Presences
from wayside.streams.streams import Streams
from wayside.webhooks.post import Poster
from wayside.webhooks.standard import Webhooks, sign
from wayside.webhooks.subscriptions import Subscriptions

__all__ = ["Hub", "Parts", "detach", "package_version"]

F = TypeVar("F", bound=Callable[..., Any])
ENGINES: dict[str, Callable[[str, str, Clock], Engine]] = {
    "file": lambda place, vfs, clock: EmbeddedEngine(Path(place), vfs=vfs, clock=clock),
    "memory": lambda _place, _vfs, _clock: MemoryEngine(),
}
"""What a hub keeps its streams in, by what its URL begins with: made of the rest of the URL, SQLite's VFS, and the clock."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def package_version() -> str:
    """The installed version of Wayside."""
    try:
        return version("wayside")
    except PackageNotFoundError:  # pragma: no cover - run from a source tree that was never installed
        return "0"


class _Reads(TypedDict):
    """How to read, as ``read`` is told."""

    follow: bool
    policy: PolicyName
    key: str
    interval: float
    lag: int
    member: str


@dataclass(slots=True)
class Parts:
    """What a hub is made of: made together by its first use or its start, gone when it is closed."""

    log: Streams
    calls: Calls
    leases: WorkerLeases
    present: Presence
    delaying: Delaying
    inprocess: InProcess
    poster: Poster
    webhooks: Webhooks | None
    groups: Groups
    group_push: GroupPush | None
    subscriptions: Subscriptions
    keeping: Keeping
    connections: Connections
    operations: Operations
    routes: Routes
    client: Client
    worker: LocalWorker
    subscribers: Subscribers


def detach(hub: Hub) -> Parts | None:
    """Have a hub be as if it had never been used: for whoever crashes it, and starts it again. Returns the parts that it
    had, which nobody has closed."""
    parts, hub._parts = hub._parts, None
    hub._loop = hub._starting = None
    hub._closed = False
    return parts


class Hub:
    """Streams, and every way to reach them.

    ``url`` is ``file:DIRECTORY`` or ``memory:``. A directory belongs to one hub at a time; opening it
    raises :class:`~wayside.errors.StoreInUse`, ``StoreUnusable`` or ``DamagedStore``. The hub works on
    the event loop on which it was first used. ``async with hub:`` starts and closes it; started by its
    first use, it is to be closed with :meth:`close`, which commits what was accepted. Without a ``url`` it is
    ``memory:``, and where ``wayside serve`` serves it, the directory that is served by default.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        vfs: str = CHECKED_VFS,
        webhook_secrets: Sequence[str] = (),
        webhook_private: bool = False,
    ) -> None:
        self._parts: Parts | None = None
        self._lent: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._vfs = vfs
        self.placed = url is not None
        """Whether it was said where it keeps its streams."""
        self.place("memory:" if url is None else url)
        self.limits = limits or Limits()
        self.clock = clock or SystemClock()
        self.handlers: dict[str, Handler] = {}
        """Of services, by name."""
        self.subscribed: dict[str, Subscription] = {}
        """Handlers of records, by group."""
        self.subscribes = True
        """Whether it runs its subscriptions in this process."""
        self.webhook_secrets = list(webhook_secrets)
        self.webhook_private = webhook_private

    def __repr__(self) -> str:
        return f"<Hub {self.url} {'closed' if self._closed else 'open'}>"

    def place(self, url: str) -> None:
        """Say where it keeps its streams, before its first use. Raises BadRequest for what is no place."""
        kind, _, rest = url.partition(":")
        if kind not in ENGINES or (kind == "memory") == bool(rest):
            raise BadRequest(f"{url!r} is not a hub's place: use file:DIRECTORY or memory:", code="hub-url")
        if self._parts is not None:
            raise RuntimeError("The hub has been used: it has its place already.")
        self.url = url
        self.directory = Path(rest) if kind == "file" else None

    def lend(self, client: Client) -> None:
        """Stand for the hub of a ``client``, as in a worker: calls, ``publish`` and ``read`` go there; nothing is opened
        here, and the rest raises RuntimeError."""
        self.url = client.url
        self._lent = client

    # -- parts: a hub that is only imported opens no store

    def _build(self) -> Parts:
        """All parts, in the order in which they need each other. Raises where the directory cannot be opened, and ValueError
        for a webhook secret that is none."""
        limits, clock = self.limits, self.clock
        secrets, private = self.webhook_secrets, self.webhook_private
        for secret in secrets:
            sign(secret, "check", 0, b"")  # raises for what is none: nobody would close a store that was opened before
        log = Streams(self._open_engine(), limits=limits, clock=clock)
        calls = Calls(log, clock, limits)
        timers = calls.timers
        leases = WorkerLeases(calls)
        poster = Poster(allow_private=private)
        webhooks = Webhooks(poster, secrets=secrets, clock=clock, timers=timers) if secrets else None
        present = Presence(log, timers, clock)
        delaying = Delaying(log, timers, clock)
        group_push = None
        if webhooks is not None:  # it and the groups hear of each other
            group_push = GroupPush(lambda name, spec, done: groups.put(name, spec, done), webhooks, timers)
        told = (group_push.webhooks.check, group_push.specified) if group_push is not None else ()
        groups = Groups(log, clock, timers, *told)
        subscriptions = Subscriptions(log, timers, clock, poster)
        keeping = Keeping(calls, leases, webhooks)
        calls.on_declared, calls.check_callback = keeping.declared, keeping.check
        calls.attempts.on_ending, calls.attempts.on_ended = keeping.ending, keeping.ended
        connections = Connections(log, calls, leases, present, groups, delaying)
        operations = Operations(log, package_version(), calls, groups, delaying, subscriptions)
        routes = Routes(log, operations, calls, connections, present, subscriptions, delaying, groups)
        connections.resolve = routes.resolve
        client = Client(Channels(Local(connections.enter_local)))
        worker = LocalWorker(calls, self.handlers, limits.worker_calls_max, self._open, lambda: client)
        return Parts(
            log=log,
            calls=calls,
            leases=leases,
            present=present,
            delaying=delaying,
            inprocess=InProcess(log, delaying, present),
            poster=poster,
            webhooks=webhooks,
            groups=groups,
            group_push=group_push,
            subscriptions=subscriptions,
            keeping=keeping,
            connections=connections,
            operations=operations,
            routes=routes,
            client=client,
            worker=worker,
            subscribers=Subscribers({}, client, worker.threads),
        )

    def _open_engine(self) -> Engine:
        kind, _, rest = self.url.partition(":")
        return ENGINES[kind](rest, self._vfs, self.clock)

    @property
    def _own(self) -> Parts:
        """The parts, made now if they were not."""
        if self._parts is None:
            if self._lent is not None:
                raise RuntimeError(
                    f"In a worker this stands for the hub at {self.url}, for calls, publish and read only: for anything "
                    "else use wayside.connect."
                )
            if self._closed:
                raise RuntimeError("This hub is closed: make another Hub.")
            self._parts = self._build()
        return self._parts

    @property
    def log(self) -> Streams:
        """What stores its streams. Raises where the directory cannot be opened."""
        return self._own.log

    @property
    def calls(self) -> Calls:
        """Services, and calls of them."""
        return self._own.calls

    @property
    def leases(self) -> WorkerLeases:
        """Leases of the workers elsewhere."""
        return self._own.leases

    @property
    def present(self) -> Presence:
        """Who follows streams."""
        return self._own.present

    @property
    def delaying(self) -> Delaying:
        """What appends now and later."""
        return self._own.delaying

    @property
    def groups(self) -> Groups:
        """Named shared readers."""
        return self._own.groups

    @property
    def poster(self) -> Poster:
        """What makes requests to URLs that others chose: for callbacks, groups and subscriptions."""
        return self._own.poster

    @property
    def webhooks(self) -> Webhooks | None:
        """What is signed after Standard Webhooks; None without a secret to sign with."""
        return self._own.webhooks

    @property
    def group_push(self) -> GroupPush | None:
        """What pushes for groups; None without a secret to sign with."""
        return self._own.group_push

    @property
    def connections(self) -> Connections:
        """The clients that are connected."""
        return self._own.connections

    @property
    def operations(self) -> Operations:
        """Health, metrics, documents."""
        return self._own.operations

    @property
    def routes(self) -> Routes:
        """From a request to what answers it."""
        return self._own.routes

    @property
    def subscriptions(self) -> Subscriptions:
        """Those of the Durable Streams protocol."""
        return self._own.subscriptions

    @property
    def keeping(self) -> Keeping:
        """What is kept of calls beside their streams."""
        return self._own.keeping

    @property
    def worker(self) -> LocalWorker:
        """What runs services in this process."""
        return self._own.worker

    @property
    def subscribers(self) -> Subscribers:
        """What runs its subscriptions in this process."""
        return self._own.subscribers

    @property
    def client(self) -> Client:
        """The hub as its own client: calls, handles, events, as over a connection."""
        return self._lent or self._own.client

    # -- life

    async def start(self) -> None:
        """Begin to serve; further calls do nothing. Raises RuntimeError on another event loop, or after ``close``."""
        loop = asyncio.get_running_loop()
        if self._lent is not None:
            return
        if self._loop is None and not self._closed:
            parts = self._own
            parts.log.start()
            self._loop = loop
            self._starting = loop.create_task(self._begin(parts))
        elif self._closed or loop is not self._loop:
            raise RuntimeError("This hub is closed, or belongs to another event loop: make another Hub.")
        if self._starting is not None:  # whoever waits may be cancelled, as by a timeout: it begins all the same
            await asyncio.shield(self._starting)

    async def _begin(self, parts: Parts) -> None:
        """Take up what was. Where that fails, ``_starting`` says so to everybody who would use the hub."""
        await parts.log.ready()
        await parts.keeping.start()
        await parts.groups.start()  # before anything is appended: they look for what a crash took
        await parts.delaying.start()
        await parts.subscriptions.start()
        if self.handlers:
            parts.worker.join()
        parts.operations.ready = True
        begun = 0
        while self.subscribes and begun < len(self.subscribed):  # more may be declared meanwhile
            await parts.subscribers.add([*self.subscribed.values()][begun])
            begun += 1
        self._starting = None

    async def close(self) -> None:
        """Let handlers finish, or hand their calls back; commit what was accepted, tell followers where to resume, close
        the store."""
        if self._closed:
            return
        self._closed = True
        parts = self._parts
        if parts is None:
            return
        if self._loop is None:
            parts.log.start()  # it was opened, and nothing else has begun
        else:
            await self._stop(parts)
        await parts.log.close()
        self._parts = None

    async def _stop(self, parts: Parts) -> None:
        parts.operations.ready = False
        await self.rest()
        await parts.keeping.stop()
        await parts.delaying.stop()
        await parts.subscriptions.stop()
        await parts.client.close()
        parts.present.stop()
        parts.connections.stop()
        if parts.group_push is not None:
            parts.group_push.stop()
        parts.poster.close()
        parts.groups.stop()
        parts.calls.stop()

    async def rest(self, seconds: float | None = None) -> None:
        """Take no more calls in this process; let handlers finish, for so long (as long as a drain may take, unless it is
        said), and hand back the others' calls."""
        if self._parts is None:
            return
        worker, subscribers = self._parts.worker, self._parts.subscribers
        seconds = self.limits.drain_s if seconds is None else seconds
        loop = asyncio.get_running_loop()
        over = loop.time() + seconds
        worker.worker.stopping = True
        await subscribers.stop(seconds)
        await worker.stop(max(0.0, over - loop.time()))

    async def __aenter__(self) -> Hub:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Any = None) -> AsyncIterator[None]:
        """For ``FastAPI(lifespan=hub.lifespan)``: a mounted application is not told when the outer one stops."""
        async with self:
            yield

    def asgi(self) -> AsgiApp:
        """The hub as an ASGI application, to mount or to run."""
        return AsgiApp(lambda: self._own.routes, self.limits, self.start, self.close, self.directory)

    async def serve(self, host: str = "127.0.0.1", port: int = 7070) -> Server:
        """Listen with the hub's own server; returns it once it does. Raises OSError where it cannot."""
        await self.start()
        server = Server(self.routes.resolve, self.limits, self.directory)
        self.operations.listening(server.shared)
        await server.start(host, port)
        return server

    # -- streams

    async def create(
        self,
        stream: str,
        *,
        content_type: str = JSON,
        durability: Durability | Literal["fsync", "async", "memory"] | None = None,
        ttl_s: int | None = None,
        retention_bytes: int | None = None,
        retention_age_s: int | None = None,
    ) -> StreamInfo:
        """Create a stream, or find it as it is asked for. Raises :class:`~wayside.errors.Conflict` where it differs."""
        config = StreamConfig(
            content_type=content_type,
            durability=Durability(durability) if durability else Durability.FSYNC,
            ttl_s=ttl_s,
            retention_bytes=retention_bytes,
            retention_age_s=retention_age_s,
        )
        said = {
            "durability": durability,
            "ttl_s": ttl_s,
            "retention_bytes": retention_bytes,
            "retention_age_s": retention_age_s,
        }
        stated = ["content_type", *(name for name, value in said.items() if value is not None)]
        require_public(stream)
        await self.start()
        return await self._own.inprocess.create(stream, config, stated)

    async def publish(
        self,
        stream: str,
        *records: Any,
        close: bool = False,
        id: str = "",
        key: str = "",
        headers: Mapping[str, str] | None = None,
        ttl: float = 0.0,
        delay: float = 0.0,
    ) -> str:
        """Append records, and return the offset after them when they are as durable as the stream promises.

        In a JSON stream each argument is one value; elsewhere each is ``bytes`` or ``str``. A stream that
        does not exist is created, as JSON. Raises a :class:`~wayside.errors.Refusal`. If the wait is
        cancelled, the records may or may not have been appended.

        ``key``, ``headers`` and ``ttl`` (seconds for which readers are given them) are of each record, ``id`` is the
        message id of one: published again with it soon, it is not appended again, and the offset is that of the first.
        With a ``delay`` in seconds they are appended later, and "" is returned when that is certain.
        """
        require_public(stream)
        await self.start()
        said = Said(id, key, dict(headers or {}), ttl, delay)
        if self._lent is None:
            return await self._own.inprocess.publish(stream, records, said, close)
        there = self._lent
        offset = ""
        if records:
            offset = await there.publish(stream, *records, id=id, key=key, headers=headers, ttl=ttl, delay=delay)
        if close:
            await there.close_stream(stream)
        return offset if offset or delay else (await there.info(stream))["stream-next-offset"]

    async def publish_all(self, publications: Iterable[Publication]) -> list[Published]:
        """Append records to several streams in one transaction: all of them, or none. Streams that do not exist are created
        first, as JSON. Returns what became of each. Raises a :class:`~wayside.errors.Refusal`."""
        publications = list(publications)
        for publication in publications:
            require_public(publication.stream)
        await self.start()
        if self._lent is not None:
            return await self._lent.publish_all(publications)
        return await self._own.inprocess.publish_all(publications)

    async def read(
        self,
        stream: str,
        *,
        offset: str = "-1",
        follow: bool = True,
        policy: PolicyName = "catch-up",
        key: str = "",
        interval: float = 0.0,
        lag: int = 0,
        member: str = "",
    ) -> AsyncIterator[Record]:
        """Records from ``offset`` (``-1``: the start, ``now``: the tail) on; with ``follow``, as they come, until the
        stream is closed; ``policy`` and ``member`` as of :meth:`wayside.client.client.Client.read`. A glob such as ``orders/**`` reads all
        streams that it matches: each record says its ``stream``. Raises ``NotFound``, ``Gone``,
        ``Lagged`` or ``BadRequest``."""
        await self.start()
        options: _Reads = {
            "follow": follow,
            "policy": policy,
            "key": key,
            "interval": interval,
            "lag": lag,
            "member": member,
        }
        if self._lent is not None:
            async for record in self._lent.read(stream, offset, **options):
                yield record
            return
        reading = await self._own.inprocess.read(stream, offset, **options)
        try:
            async for batch in reading.batches():
                for index in range(len(batch.records)):
                    yield reading.record(batch, index)
        finally:
            reading.stop()

    async def presence(self, stream: str) -> Presences:
        """Who is present at a stream: :meth:`wayside.client.client.Client.presence`."""
        await self.start()
        return await self.client.presence(stream)

    async def presence_events(self, stream: str, offset: str = "-1") -> AsyncIterator[PresenceEvent]:
        """Joins and leaves at a stream: :meth:`wayside.client.client.Client.presence_events`."""
        await self.start()
        async for event in self.client.presence_events(stream, offset):
            yield event

    async def close_stream(self, stream: str) -> str:
        """Nothing can be appended any more; followers end. Returns the last offset."""
        require_public(stream)
        await self.start()
        return await self._own.inprocess.close(stream)

    async def delete(self, stream: str) -> None:
        """Delete a stream and its records."""
        require_public(stream)
        await self.start()
        await self._own.inprocess.delete(stream)

    async def info(self, stream: str) -> StreamInfo:
        """What a stream is now."""
        await self.start()
        return self._own.inprocess.info(stream)

    # -- services

    def service(
        self,
        name: str,
        *,
        retries: int = 0,
        timeout: float = 0.0,
        backoff: float = 1.0,
        concurrency: int = 0,
        queue: int = 10_000,
    ) -> Callable[[F], F]:
        """Make a function the handler of a service. A coroutine function runs on the event loop, a plain one in a thread;
        one that yields streams its answer. A parameter annotated :class:`~wayside.Call` is given the call itself.

        ``retries`` are attempts after the first, ``timeout`` the seconds of one (0: no bound), ``backoff`` the seconds
        before the second, doubled for each that follows, with jitter; ``concurrency`` attempts at most run at a time
        over all workers (0: no bound), ``queue`` calls at most wait. Raises TypeError for a function whose parameters
        cannot be read from a request, ValueError for settings that make no sense.
        """
        _require_name(name)
        if retries < 0 or timeout < 0 or backoff < 0 or concurrency < 0 or queue < 0:
            raise ValueError(f"The settings of service {name} cannot be negative.")

        def decorate(function: F) -> F:
            if name in self.handlers:
                raise ValueError(f"There is a service {name} already.")
            spec = ServiceSpec(
                name=name,
                retries=retries,
                timeout_s=float(timeout),
                backoff_s=float(backoff),
                concurrency=concurrency,
                queue_max=queue,
            )
            self.handlers[name] = Handler(function, spec)
            if self._loop is not None and self._parts is not None:
                self._parts.worker.join()
            return function

        return decorate

    def pipeline(self, name: str, *steps: str, retries: int = 100, backoff: float = 1.0) -> None:
        """A service that hands its input through ``steps``, each a service that is given what the one before it gave.
        Each step is a call of its own, which is made once: killed anywhere, the pipeline goes on after the last step
        that was completed. A step that fails, with its own retries spent, fails the pipeline."""
        if not steps:
            raise ValueError(f"The pipeline {name} has no steps.")

        async def pipeline(value: Any = None, *, call: Call) -> Any:
            for number, step in enumerate(steps, 1):
                await call.progress(step=step, number=number, of=len(steps))
                value = await call.step(step, value)
            return value

        pipeline.__doc__ = f"A pipeline: {', '.join(steps)}."
        self.service(name, retries=retries, backoff=backoff)(pipeline)

    def subscribe(
        self,
        streams: str | Iterable[str],
        *,
        group: str = "",
        concurrency: int = CONCURRENCY,
        **settings: Any,
    ) -> Callable[[F], F]:
        """Make a function the handler of records: those of ``streams``, paths or globs, each handled once in the group::

            @hub.subscribe("orders/*", group="billing", retries=5, dead_letter="orders.dead", order_by="customer_id")
            async def bill(order: Order, delivery: Delivery) -> None: ...

        A coroutine function runs on the event loop, a plain one in a thread; what it takes is read as a service's input
        is, and a parameter annotated :class:`~wayside.Delivery` is given the delivery. When it returns, the record is
        acked, in one transaction with what it published with ``delivery.publish``. When it raises, the record comes again
        later; with :class:`~wayside.Retry` when that says, with :class:`~wayside.Reject` never: then it goes to the
        dead letters, as does a record that does not fit the parameters.

        ``group`` is the function's module and name where it is not given, so that the group outlives a restart;
        ``concurrency`` handlers at most run at one time in one process. ``settings`` are those of
        :meth:`wayside.Client.put_group`. Raises TypeError or ValueError for what makes no sense.
        """
        subscribed = subscription(streams, group, concurrency, settings)

        def decorate(function: F) -> F:
            made = subscribed(function)
            if made.group in self.subscribed:
                raise ValueError(f"There is a handler of the group {made.group} already: give each its own group.")
            self.subscribed[made.group] = made
            if self._parts is not None and self._loop is not None and self._starting is None and self.subscribes:
                self._parts.subscribers.add_soon(made)
            return function

        return decorate

    async def _open(self, path: str) -> AsyncIterator[bytes]:
        """A byte stream from its start to its end."""
        require_public(path)
        async for record in self.read(path):
            yield record.data

    async def call(self, service: str, *arguments: Any, **options: Any) -> Any:
        """Call a service and wait for its result: :meth:`wayside.client.client.Client.call`."""
        await self.start()
        return await self.client.call(service, *arguments, **options)

    async def submit(self, service: str, *arguments: Any, **options: Any) -> CallHandle:
        """Have a service called, and be given its handle: :meth:`wayside.client.client.Client.submit`."""
        await self.start()
        return await self.client.submit(service, *arguments, **options)

    async def stream(self, service: str, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """Call a service that yields: :meth:`wayside.client.client.Client.stream`."""
        await self.start()
        async for item in self.client.stream(service, *arguments, **options):
            yield item

    def get(self, identity: str) -> CallHandle:
        """The handle of a call by its name."""
        return self.client.get(identity)


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a service: use up to 128 letters, digits, dots, dashes, underscores."
        )
