"""The client, blocking: the same names as :mod:`wayside.client.client`, for programs without an event loop.

    with wayside.sync.connect("http://127.0.0.1:7070") as hub:
        thumb = hub.call("images.thumbnail", data, width=128, timeout=5)

One background thread runs the connection for all of a program's threads; every method may be called from any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from wayside.client.calls import CallHandle, Via
from wayside.client.client import Client
from wayside.client.delivery import Confirmation, Delivery, publications
from wayside.client.groups import GroupMember
from wayside.client.values import CallEvent, CallStatus
from wayside.core.codecs import Payload
from wayside.core.metadata import Publication, Published
from wayside.core.records import Record
from wayside.link.connection import Channels, WebSocket
from wayside.streams.presence import PresenceEvent, Presences

__all__ = ["BlockingClient", "BlockingGroup", "BlockingHandle", "ThreadDelivery", "ThreadConfirmation", "connect"]


class ThreadConfirmation:
    """What was said of a record. :meth:`wait` to know that it is kept; or do not."""

    __slots__ = ("_error", "_loop", "_said")

    def __init__(self, loop: asyncio.AbstractEventLoop, say: Callable[[], Confirmation]) -> None:
        self._loop = loop
        self._said: Confirmation | None = None
        self._error: Exception | None = None
        loop.call_soon_threadsafe(self._say, say)

    def _say(self, say: Callable[[], Confirmation]) -> None:
        try:
            self._said = say()
        except Exception as error:  # it was settled before: whoever waits hears of it
            self._error = error

    def wait(self, timeout: float | None = None) -> list[str]:
        """Wait until it is kept. Returns the offsets after what was published with it. Raises what it was refused for, and
        TimeoutError."""
        return asyncio.run_coroutine_threadsafe(self._wait(), self._loop).result(timeout)

    async def _wait(self) -> list[str]:  # behind _say, as the loop takes what threads give it in order
        if self._said is None:
            raise self._error or RuntimeError("The event loop was closed.")
        return await self._said.wait()


class ThreadDelivery:
    """See :class:`wayside.client.delivery.Delivery`: the same names, for a thread. What its methods return has ``wait``
    instead of being awaitable."""

    __slots__ = ("_delivery", "_loop", "data")

    def __init__(self, delivery: Delivery, loop: asyncio.AbstractEventLoop) -> None:
        self._delivery = delivery
        self._loop = loop
        self.data = delivery.data

    def __repr__(self) -> str:
        return repr(self._delivery)

    # -- what it is

    @property
    def group(self) -> str:
        return self._delivery.group

    @property
    def stream(self) -> str:
        return self._delivery.stream

    @property
    def offset(self) -> str:
        """Where a reader of the stream goes on after it; with the stream it names the record."""
        return self._delivery.offset

    @property
    def attempt(self) -> int:
        """Deliveries of the record, this one included."""
        return self._delivery.attempt

    @property
    def time_ms(self) -> int:
        """When it was appended, in milliseconds since 1970."""
        return self._delivery.time_ms

    @property
    def lease(self) -> int:
        """Number of the lease: no two of a group are the same, and later ones are greater."""
        return self._delivery.lease

    @property
    def content_type(self) -> str:
        return self._delivery.content_type

    @property
    def headers(self) -> dict[str, str]:
        return self._delivery.headers

    @property
    def id(self) -> str:
        """Message id, if its publisher gave one."""
        return self._delivery.id

    @property
    def key(self) -> str:
        return self._delivery.key

    @property
    def payload(self) -> Payload:
        return self._delivery.payload

    @property
    def value(self) -> Any:
        """Its value, as the media type of the stream says: JSON, MessagePack, text, else bytes."""
        return self._delivery.value

    @property
    def settled(self) -> bool:
        """Whether something was said of it."""
        return self._delivery.settled

    @property
    def fenced(self) -> bool:
        """Whether its lease is known to be over."""
        return self._delivery.fenced

    @property
    def publishes(self) -> bool:
        """Whether anything is to be published with its ack."""
        return self._delivery.publishes

    def json(self, returns: Any = Any) -> Any:
        """Its value as JSON, of a type. Raises msgspec.DecodeError."""
        return self._delivery.json(returns)

    # -- what is said of it

    def _say(self, say: Callable[[], Confirmation]) -> ThreadConfirmation:
        if self.settled:
            raise RuntimeError(f"This was settled before: {self!r}.")
        return ThreadConfirmation(self._loop, say)

    def ack(self, publish: Iterable[tuple[str, Any]] = ()) -> ThreadConfirmation:
        records = list(publish)
        publications(records)  # raises here what has no encoding
        return self._say(lambda: self._delivery.ack(records))

    def nack(self, delay: float | None = None, reason: str = "") -> ThreadConfirmation:
        return self._say(lambda: self._delivery.nack(delay, reason))

    def reject(self, reason: str = "") -> ThreadConfirmation:
        return self._say(lambda: self._delivery.reject(reason))

    def release(self) -> ThreadConfirmation:
        return self._say(self._delivery.release)

    def extend(self, seconds: float) -> ThreadConfirmation:
        return self._say(lambda: self._delivery.extend(seconds))

    def publish(self, stream: str, *values: Any) -> None:
        publications((stream, value) for value in values)
        self._delivery.publish(stream, *values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[_Transaction]:
        transaction = _Transaction()
        yield transaction
        transaction.offsets = self.ack(transaction.records).wait()


class _Transaction:
    """An ack with records, as one."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Any]] = []
        self.offsets: list[str] = []
        """After the records, one for each stream; known at the end."""

    def publish(self, stream: str, *values: Any) -> None:
        """Records of a stream."""
        self.records += [(stream, value) for value in values]


T = TypeVar("T")


class _Portal:
    """A thread with an event loop."""

    def __init__(self) -> None:
        self.closed = False
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="wayside-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self.closed or threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("The client is closed, or is used from its own thread.")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def iterate(self, values: AsyncIterator[T]) -> Iterator[T]:
        end: Any = object()
        try:
            while (value := self.run(_next(values, end))) is not end:
                yield value
        finally:
            close = getattr(values, "aclose", None)
            if close is not None and not self.closed:
                if threading.current_thread() is self._thread:  # the garbage collector may run anywhere
                    self.loop.create_task(close())
                else:
                    self.run(close())

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        asyncio.run_coroutine_threadsafe(_cancel_others(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _cancel_others() -> None:
    """Let nobody wait for what will not come."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=1.0)


async def _next(values: AsyncIterator[T], end: T) -> T:
    return await anext(values, end)


class BlockingClient:
    """See :class:`wayside.client.client.Client`."""

    def __init__(self, url: str, *, retry_s: float | None = 60.0) -> None:
        self._portal = _Portal()
        self._client = Client(Channels(WebSocket(url), retry_s=retry_s), url.rstrip("/"))
        try:
            self._portal.run(self._client.channels.open())
        except BaseException:
            self._portal.close()
            raise

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._portal.closed:
            self._portal.run(self._client.close())
            self._portal.close()

    def call(self, service: str, *arguments: Any, **keywords: Any) -> Any:
        return self._portal.run(self._client.call(service, *arguments, **keywords))

    def submit(self, service: str, *arguments: Any, **keywords: Any) -> BlockingHandle:
        return BlockingHandle(self._portal, self._portal.run(self._client.submit(service, *arguments, **keywords)))

    def get(self, identity: str) -> BlockingHandle:
        return BlockingHandle(self._portal, self._client.get(identity))

    def stream(self, service: str, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        return self._portal.iterate(self._client.stream(service, *arguments, **keywords))

    def calls(self, service: str = "", state: str = "", limit: int = 100) -> list[CallStatus]:
        return self._portal.run(self._client.calls(service, state, limit))

    def create(self, stream: str, **config: Any) -> None:
        self._portal.run(self._client.create(stream, **config))

    def publish(self, stream: str, *records: Any, create: bool = True, **said: Any) -> str:
        return self._portal.run(self._client.publish(stream, *records, create=create, **said))

    def publish_all(self, publications: Iterable[Publication], *, create: bool = True) -> list[Published]:
        return self._portal.run(self._client.publish_all(publications, create=create))

    def read(self, stream: str, offset: str = "-1", *, follow: bool = True, **options: Any) -> Iterator[Record]:
        return self._portal.iterate(self._client.read(stream, offset, follow=follow, **options))

    def group(self, name: str, streams: str | Iterable[str] = (), **options: Any) -> BlockingGroup:
        """A member of a group: :meth:`wayside.Client.group`."""
        return BlockingGroup(self._portal, self._client.group(name, streams, **options))

    def groups(self) -> list[dict[str, Any]]:
        return self._portal.run(self._client.groups())

    def put_group(self, name: str, streams: str | Iterable[str], **settings: Any) -> dict[str, Any]:
        return self._portal.run(self._client.put_group(name, streams, **settings))

    def describe_group(self, name: str) -> dict[str, Any]:
        return self._portal.run(self._client.describe_group(name))

    def delete_group(self, name: str) -> None:
        self._portal.run(self._client.delete_group(name))

    def seek(self, name: str, to: str, streams: str | Iterable[str] = ()) -> list[str]:
        return self._portal.run(self._client.seek(name, to, streams))

    def pause_group(self, name: str) -> None:
        self._portal.run(self._client.pause_group(name))

    def resume_group(self, name: str) -> None:
        self._portal.run(self._client.resume_group(name))

    def dead(self, name: str, stream: str = "", limit: int = 100) -> list[dict[str, Any]]:
        return self._portal.run(self._client.dead(name, stream, limit))

    def redrive(self, name: str, streams: str | Iterable[str] = (), **only: Any) -> int:
        return self._portal.run(self._client.redrive(name, streams, **only))

    def receipts(self, group: str, stream: str, offset: str) -> dict[str, Any]:
        return self._portal.run(self._client.receipts(group, stream, offset))

    def presence(self, stream: str) -> Presences:
        return self._portal.run(self._client.presence(stream))

    def presence_events(self, stream: str, offset: str = "-1") -> Iterator[PresenceEvent]:
        return self._portal.iterate(self._client.presence_events(stream, offset))

    def close_stream(self, stream: str) -> None:
        self._portal.run(self._client.close_stream(stream))

    def delete(self, stream: str) -> None:
        self._portal.run(self._client.delete(stream))

    def info(self, stream: str) -> dict[str, str]:
        return self._portal.run(self._client.info(stream))


class BlockingGroup:
    """See :class:`wayside.client.groups.GroupMember`: ``for delivery in group``. What is said of a delivery goes out by
    itself; ``delivery.ack().wait()`` waits until it is kept. As long as the process lives, leases are extended."""

    def __init__(self, portal: _Portal, group: GroupMember) -> None:
        self._portal = portal
        self._group = group
        self._taken = max(1, group.credit // 2)

    def __repr__(self) -> str:
        return f"<BlockingGroup {self._group.member} of {self._group.name}>"

    @property
    def name(self) -> str:
        return self._group.name

    @property
    def member(self) -> str:
        return self._group.member

    @property
    def fenced(self) -> int:
        """Records whose lease was over before something was said of them."""
        return self._group.fenced

    def __enter__(self) -> BlockingGroup:
        self._group.keep()
        self._portal.run(self._group.join())
        return self

    def __exit__(self, *_error: object) -> None:
        if not self._portal.closed:
            self._portal.run(self._group.leave())

    def __iter__(self) -> Iterator[ThreadDelivery]:
        """Records as they come."""
        for deliveries in self._portal.iterate(self._group.batches(self._taken)):
            for delivery in deliveries:
                yield ThreadDelivery(delivery, self._portal.loop)

    def take(self, records: int = 1, timeout: float | None = None) -> list[ThreadDelivery]:
        """From 1 to ``records``; waits for the first, for ``timeout`` seconds at most: then there are none."""
        taken = self._portal.run(_within(self._group.take(records), timeout))
        return [ThreadDelivery(delivery, self._portal.loop) for delivery in taken or ()]

    def leave(self) -> None:
        """Be no member any more: what was said is kept when this returns, and the rest is given back."""
        self._portal.run(self._group.leave())


async def _within(coroutine: Coroutine[Any, Any, T], seconds: float | None) -> T | None:
    try:
        async with asyncio.timeout(seconds):
            return await coroutine
    except TimeoutError:
        return None


class BlockingHandle:
    """See :class:`wayside.client.client.CallHandle`."""

    def __init__(self, portal: _Portal, handle: CallHandle) -> None:
        self._portal = portal
        self._handle = handle

    def __repr__(self) -> str:
        return f"<BlockingHandle {self.id}>"

    @property
    def id(self) -> str:
        return self._handle.id

    @property
    def url(self) -> str:
        return self._handle.url

    def status(self) -> CallStatus:
        return self._portal.run(self._handle.status())

    def wait(self, seconds: float = 20.0) -> CallStatus:
        return self._portal.run(self._handle.wait(seconds))

    def result(self, timeout: float | None = None, *, returns: Any = None) -> Any:
        return self._portal.run(self._handle.result(timeout, returns=returns))

    def cancel(self) -> CallStatus:
        return self._portal.run(self._handle.cancel())

    def events(self, via: Via = "push", *, offset: str = "-1", interval: float = 1.0) -> Iterator[CallEvent]:
        return self._portal.iterate(self._handle.events(via, offset=offset, interval=interval))

    def items(self) -> Iterator[Any]:
        return self._portal.iterate(self._handle.items())


def connect(url: str = "http://127.0.0.1:7070", *, retry_s: float | None = 60.0) -> BlockingClient:
    """Connect to a hub. Raises :class:`~wayside.link.connection.Unreachable` where none answers. ``retry_s``: for how
    long a connection that was lost is tried again."""
    return BlockingClient(url, retry_s=retry_s)
