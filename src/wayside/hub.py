"""``Hub``: the one place where everything is put together.

``Hub("file:./data")`` keeps its streams in a directory, ``Hub("memory:")`` nowhere. The same object is
used in process (``publish``, ``read``), mounted in an ASGI application (``asgi``), or served (``serve``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from wayside.calls.handler import Call, Handler
from wayside.calls.housekeeping import Keeping
from wayside.calls.local import LocalWorker
from wayside.calls.queue import ServiceSpec
from wayside.calls.services import Calls
from wayside.calls.workers import Leases
from wayside.client.client import CallHandle, Client
from wayside.client.connection import Channels, Local
from wayside.client.subscriber import Subscribers, Subscribing, Subscription
from wayside.core.callbacks import Done
from wayside.core.clock import Clock, SystemClock
from wayside.core.engine import Engine
from wayside.core.errors import BadRequest
from wayside.core.limits import Limits
from wayside.core.records import require_public
from wayside.groups.events import GroupSpec
from wayside.groups.registry import Groups
from wayside.groups.webhook import GroupPush
from wayside.inprocess import InProcess
from wayside.server.http.asgi import AsgiApp
from wayside.server.http.listener import Server
from wayside.server.http.metrics import Operations
from wayside.server.http.routes import Routes
from wayside.server.patterns.multiplexing import Connections
from wayside.storage.embedded.engine import EmbeddedEngine
from wayside.storage.embedded.files import CHECKED_VFS
from wayside.storage.memory import MemoryEngine
from wayside.streams.delayed import Delaying
from wayside.streams.presence import Presence
from wayside.streams.streams import Streams
from wayside.webhooks.post import Direct
from wayside.webhooks.standard import Webhooks
from wayside.webhooks.subscriptions import Subscriptions
from wayside.webhooks.wakes import Poster

__all__ = ["Hub", "package_version"]

F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def package_version() -> str:
    """The installed version of Wayside."""
    try:
        return version("wayside")
    except PackageNotFoundError:  # pragma: no cover - run from a source tree that was never installed
        return "0"


class Hub(InProcess, Subscribing):
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
        engine: Engine | None = None,
        webhook_secrets: Sequence[str] = (),
        webhook_private: bool = False,
    ) -> None:
        self.placed = url is not None
        """Whether it was said where it keeps its streams."""
        self.place("memory:" if url is None else url)
        self.limits = limits or Limits()
        self.clock = clock or SystemClock()
        self.handlers: dict[str, Handler] = {}
        self.subscribed: dict[str, Subscription] = {}
        self.subscribes = True
        """Whether it runs its subscriptions in this process."""
        self.webhook_secrets = list(webhook_secrets)
        self.webhook_private = webhook_private
        self._vfs = vfs
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._lent = False

    def __repr__(self) -> str:
        return f"<Hub {self.url} {'closed' if self._closed else 'open'}>"

    def place(self, url: str) -> None:
        """Say where it keeps its streams, before its first use. Raises BadRequest for what is no place."""
        kind, _, rest = url.partition(":")
        if kind not in ("file", "memory") or (kind == "file") != bool(rest):
            raise BadRequest(f"{url!r} is not a hub's place: use file:DIRECTORY or memory:", code="hub-url")
        if "log" in self.__dict__:
            raise RuntimeError("The hub has been used: it has its place already.")
        self.url = url
        self.directory = Path(rest) if kind == "file" else None

    def lend(self, client: Client) -> None:
        """Stand for the hub of a ``client``, as in a worker: calls, ``publish`` and ``read`` go there; nothing is opened
        here, and the rest raises RuntimeError."""
        self.url = client.url
        self.__dict__["client"] = client
        self._lent = True

    # -- parts, each made when it is first needed: a hub that is only imported opens no store

    @functools.cached_property
    def log(self) -> Streams:
        """What stores its streams. Raises where the directory cannot be opened."""
        if self._lent:
            raise RuntimeError(
                f"In a worker this stands for the hub at {self.url}, for calls, publish and read only: for anything else "
                "use wayside.connect."
            )
        engine = self._engine
        if engine is None:
            vfs, clock = self._vfs, self.clock
            engine = EmbeddedEngine(self.directory, vfs=vfs, clock=clock) if self.directory else MemoryEngine()
        return Streams(engine, limits=self.limits, clock=self.clock)

    @functools.cached_property
    def calls(self) -> Calls:
        return Calls(self.log, self.clock, self.limits)

    @functools.cached_property
    def leases(self) -> Leases:
        return Leases(self.calls)

    @functools.cached_property
    def present(self) -> Presence:
        return Presence(self.log, self.calls.timers, self.clock)

    @functools.cached_property
    def delaying(self) -> Delaying:
        return Delaying(self.log, self.calls.timers, self.clock)

    @functools.cached_property
    def groups(self) -> Groups:
        push, timers = self.group_push, self.calls.timers
        if push is None:
            return Groups(self.log, self.clock, timers)
        return Groups(self.log, self.clock, timers, push.check, push.specified)

    @functools.cached_property
    def group_push(self) -> GroupPush | None:
        """What pushes for groups; None without a secret to sign with."""
        if not self.webhook_secrets:
            return None
        transport = Direct(allow_private=self.webhook_private)
        private, secrets = self.webhook_private, self.webhook_secrets

        def put(name: str, spec: GroupSpec, done: Done) -> None:
            self.groups.put(name, spec, done)  # which are given what pushes for them

        return GroupPush(self.clock, put, secrets=secrets, allow_private=private, transport=transport)

    @functools.cached_property
    def connections(self) -> Connections:
        return Connections(self.log, self.calls, self.leases, self.present, self.groups, self.delaying)

    @functools.cached_property
    def operations(self) -> Operations:
        return Operations(self.log, package_version(), self.calls, self.groups, self.delaying, self.subscriptions)

    @functools.cached_property
    def routes(self) -> Routes:
        return Routes(
            self.log,
            self.operations,
            self.calls,
            self.connections,
            self.present,
            self.subscriptions,
            self.delaying,
            self.groups,
        )

    @functools.cached_property
    def subscriptions(self) -> Subscriptions:
        """Those of the Durable Streams protocol."""
        post = Poster(allow_private=self.webhook_private)
        timers, private = self.calls.timers, self.webhook_private
        return Subscriptions(self.log, timers, self.clock, post=post, allow_private=private)

    @functools.cached_property
    def keeping(self) -> Keeping:
        secrets, clock = self.webhook_secrets, self.clock
        webhooks = Webhooks(secrets=secrets, allow_private=self.webhook_private, clock=clock) if secrets else None
        calls = self.calls
        keeping = Keeping(calls, self.leases, webhooks)
        calls.on_declared, calls.check_callback = keeping.declared, keeping.check
        calls.attempts.on_ending, calls.attempts.on_ended = keeping.ending, keeping.ended
        return keeping

    @functools.cached_property
    def worker(self) -> LocalWorker:
        return LocalWorker(self.calls, self.handlers, self.limits.worker_calls_max, self._open, lambda: self.client)

    @functools.cached_property
    def client(self) -> Client:
        """The hub as its own client: calls, handles, events, as over a connection."""
        return Client(Channels(Local(self.connections.enter_local)))

    @functools.cached_property
    def subscribers(self) -> Subscribers:
        """What runs its subscriptions in its own process."""
        return Subscribers(self.subscribed, self.client, self.worker.threads)

    def on_subscribed(self, subscription: Subscription) -> None:
        if self._loop is not None and self._starting is None and self.subscribes:
            self.subscribers.add_soon(subscription)

    # -- life

    async def start(self) -> None:
        """Begin to serve; further calls do nothing. Raises RuntimeError on another event loop, or after ``close``."""
        loop = asyncio.get_running_loop()
        if self._lent:
            return
        if self._loop is None and not self._closed:
            self.log.start()
            self._loop = loop
            self._starting = loop.create_task(self._begin())
        elif self._closed or loop is not self._loop:
            raise RuntimeError("This hub is closed, or belongs to another event loop: make another Hub.")
        if self._starting is not None:  # whoever waits may be cancelled, as by a timeout: it begins all the same
            await asyncio.shield(self._starting)

    async def _begin(self) -> None:
        """Take up what was. Where that fails, ``_starting`` says so to everybody who would use the hub."""
        await self.log.ready()
        await self.keeping.start()
        await self.groups.start()  # before anything is appended: they look for what a crash took
        await self.delaying.start()
        await self.subscriptions.start()
        if self.handlers:
            self.worker.join()
        self.connections.resolve = self.routes.resolve
        self.operations.ready = True
        if self.subscribed and self.subscribes:
            await self.subscribers.start()
        self._starting = None

    async def close(self) -> None:
        """Let handlers finish, or hand their calls back; commit what was accepted, tell followers where to resume, close
        the store."""
        if not self._closed:
            self._closed = True
            if self._loop is not None:
                self.operations.ready = False
                await self.rest()
                await self.keeping.stop()
                await self.delaying.stop()
                await self.subscriptions.stop()
                if "client" in self.__dict__:
                    await self.client.close()
                self.present.stop()
                self.connections.stop()
                if self.group_push is not None:
                    self.group_push.stop()
                self.groups.stop()
                self.calls.stop()
                await self.log.close()
            elif "log" in self.__dict__:
                await self.log.engine.close()

    async def rest(self, seconds: float | None = None) -> None:
        """Take no more calls in this process; let handlers finish, for so long (as long as a drain may take, unless it is
        said), and hand back the others' calls."""
        seconds = self.limits.drain_s if seconds is None else seconds
        over = asyncio.get_running_loop().time() + seconds
        if "worker" in self.__dict__:
            self.worker.worker.stopping = True
        if "subscribers" in self.__dict__:
            await self.subscribers.stop(seconds)
        if "worker" in self.__dict__:
            await self.worker.stop(max(0.0, over - asyncio.get_running_loop().time()))

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
        return AsgiApp(lambda: self.routes, self.limits, self.start, self.close, self.directory)

    async def serve(self, host: str = "127.0.0.1", port: int = 7070) -> Server:
        """Listen with the hub's own server; returns it once it does. Raises OSError where it cannot."""
        await self.start()
        server = Server(self.routes, self.limits, self.directory)
        self.operations.server = server
        await server.start(host, port)
        return server

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
            if self._loop is not None:
                self.worker.join()
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
