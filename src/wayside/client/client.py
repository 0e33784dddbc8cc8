"""The Python client: calls, streams and events over one connection. Blocking, it is :mod:`wayside.sync`.

A call that may have run is never repeated by the client, unless it has an idempotency key; when the connection breaks
under one, :class:`~wayside.errors.UnknownOutcome` says so. Followers resume from their cursor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from wayside.client.connection import Answer, Channels, Following, Row, Submitted
from wayside.client.groups import GroupRequests
from wayside.client.member import Pace
from wayside.client.streams import Publishing, http_events
from wayside.client.values import CallEvent, CallStatus, event_of, refusal_of, value_of
from wayside.core.codecs import Payload
from wayside.core.errors import CallTimedOut
from wayside.core.globs import is_glob
from wayside.core.records import JSON, Offset, Record
from wayside.core.signature import pack_arguments
from wayside.link import frames as f
from wayside.streams.presence import PRESENCE, PresenceEvent, Presences, event_at
from wayside.streams.union import unwrap

__all__ = ["CallHandle", "Client", "PolicyName", "Via"]

ACCEPT = "application/msgpack, */*;q=0.5"
WAIT_S = 20.0
Via = Literal["push", "sse", "long-poll", "poll"]
PolicyName = Literal["catch-up", "conflate", "sample", "disconnect"]


class Client(Publishing, GroupRequests):
    """A hub, from outside or from inside its process. Made by :func:`wayside.connect`, and by ``Hub`` for itself."""

    def __init__(self, channels: Channels, url: str = "", pace: Pace | None = None) -> None:
        self.channels = channels
        self.url = url
        self.pace = pace or Pace()

    def __repr__(self) -> str:
        return f"<Client {self.url} {self.channels!r}>"

    async def __aenter__(self) -> Client:
        await self.channels.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connection. Calls that were submitted go on; others are cancelled."""
        await self.channels.close()

    # -- calls

    async def call(
        self,
        service: str,
        *arguments: Any,
        timeout: float | None = None,
        idempotency_key: str = "",
        priority: int = 0,
        returns: Any = None,
        **keywords: Any,
    ) -> Any:
        """Call a service and wait for its result: of the type ``returns`` if that is given.

        ``timeout`` are seconds; then :class:`CallTimedOut` is raised and the call is cancelled, unless it has an
        ``idempotency_key``: with one it is durable, and can be asked for again. Raises what the handler raised as a
        refusal (:class:`CallFailed` for what it did not foresee), and :class:`UnknownOutcome` where the connection broke.
        """
        channels = self.channels
        if not channels.connected:
            await channels.ready()
        payload = pack_arguments(arguments, keywords)
        options = _options(service, key=idempotency_key, priority=priority) if idempotency_key or priority else None
        answer = Answer(channels, bool(idempotency_key))
        future = answer.send(
            f.CallFrame(answer.channel, service, payload.data, payload.content_type, ACCEPT, False, options)
        )
        try:
            if timeout is None:
                frame = await future
            else:
                async with asyncio.timeout(timeout):
                    frame = await future
        except TimeoutError as error:
            answer.leave()
            raise CallTimedOut(f"{service} did not answer within {timeout:g} s.") from error
        except asyncio.CancelledError:
            answer.leave()
            raise
        return value_of(Payload(frame.body, frame.content_type), returns)

    async def submit(
        self,
        service: str,
        *arguments: Any,
        idempotency_key: str = "",
        priority: int = 0,
        delay: float = 0.0,
        callback: str = "",
        parent: str = "",
        **keywords: Any,
    ) -> CallHandle:
        """Have a service called, and do not wait: the call is on disk when this returns, and its handle is good from
        anywhere. ``delay`` are seconds before it may start; ``callback`` is a URL that is told of its end. With an
        ``idempotency_key`` the same request gives the same call, however often it is submitted.
        """
        channels = self.channels
        if not channels.connected:
            await channels.ready()
        payload = pack_arguments(arguments, keywords)
        options = None
        if idempotency_key or priority or delay or callback or parent:
            options = _options(
                service, key=idempotency_key, priority=priority, delay_s=delay, callback=callback, parent=parent
            )
        entry = Submitted(channels, bool(idempotency_key))
        entry.frame = f.CallFrame(entry.channel, service, payload.data, payload.content_type, "", True, options)
        channels.put(entry.frame)
        identity = await entry.accepted
        return CallHandle(self, identity, entry.ended)

    def get(self, identity: str) -> CallHandle:
        """The handle of a call by its name."""
        return CallHandle(self, identity, None)

    async def stream(self, service: str, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """Call a service that yields, and give what it yields, as it comes. The call is submitted, so that the connection
        and the hub may break meanwhile."""
        handle = await self.submit(service, *arguments, **options)
        async for item in handle.items():
            yield item

    async def calls(self, service: str = "", state: str = "", limit: int = 100) -> list[CallStatus]:
        """Calls that have not ended, and those that have lately; the newest first."""
        target = f"/v1/call/?service={quote(service)}&state={quote(state)}&limit={limit}"
        return msgspec.json.decode((await self.request("GET", target)).body, type=_Calls).calls

    # -- streams

    async def create(
        self,
        stream: str,
        *,
        content_type: str = JSON,
        durability: Literal["fsync", "async", "memory"] | None = None,
        ttl_s: int | None = None,
        retention_bytes: int | None = None,
        retention_age_s: int | None = None,
    ) -> None:
        """Create a stream, or find it as it is asked for."""
        headers = {"Content-Type": content_type}
        given = {
            "Stream-Durability": durability,
            "Stream-TTL": ttl_s,
            "Stream-Retention-Bytes": retention_bytes,
            "Stream-Retention-Age": retention_age_s,
        }
        headers |= {name: str(value) for name, value in given.items() if value is not None}
        await self.request("PUT", _stream(stream), headers)

    async def read(
        self,
        stream: str,
        offset: str = "-1",
        *,
        follow: bool = True,
        policy: PolicyName = "catch-up",
        key: str = "",
        interval: float = 0.0,
        lag: int = 0,
        member: str = "",
    ) -> AsyncIterator[Record]:
        """The records of a stream from an offset (``-1``: the start, ``now``: the tail); with ``follow`` until it is
        closed, across lost connections, else up to its end of now.

        ``policy`` says what is given when this reader does not keep up: everything, later (``catch-up``); the newest record
        per ``key``, a field of JSON records (``conflate``); at most one frame each ``interval`` seconds (``sample``); or
        nothing, and :class:`Lagged` is raised once it is more than ``lag`` records behind (``disconnect``). ``member``
        is who reads, for :meth:`presence`. A glob such as ``orders/**`` reads all streams that it matches, also those made
        later: each record says its ``stream``, and its ``offset`` is that of all of them.
        """
        until = None
        globbed = is_glob(stream)
        if not follow:
            answer = await self.request("HEAD", _stream(stream))
            until = answer.headers["stream-next-offset"]
            if offset == "now" or offset == until or answer.headers.get("stream-earliest-offset") == until:
                return
        await self.channels.ready()
        options = follow_options(policy, key, interval, lag, member, whole=not follow)
        following = Following(self.channels, stream, offset, call=False, options=options)
        async with contextlib.aclosing(following.records()) as records:
            async for row in records:
                yield _record(row, globbed)
                if row.offset == until:
                    return

    async def presence(self, stream: str) -> Presences:
        """Who is present at a stream."""
        answer = await self.request("GET", "/v1/presence/" + quote(stream, safe="/"))
        return msgspec.json.decode(answer.body, type=Presences)

    async def presence_events(self, stream: str, offset: str = "-1") -> AsyncIterator[PresenceEvent]:
        """Joins and leaves at a stream, from an offset on, such as that of :meth:`presence`."""
        await self.channels.ready()
        following = Following(self.channels, PRESENCE + stream, offset, call=False)
        async with contextlib.aclosing(following.records()) as records:
            async for row in records:
                yield event_at(row.offset, row.data)

    async def close_stream(self, stream: str) -> None:
        """Nothing can be appended any more."""
        await self.request("POST", _stream(stream), {"Stream-Closed": "true"})

    async def delete(self, stream: str) -> None:
        """Delete a stream and its records."""
        await self.request("DELETE", _stream(stream))

    async def info(self, stream: str) -> dict[str, str]:
        """The header fields that say what a stream is, in lower case."""
        return (await self.request("HEAD", _stream(stream))).headers

    # -- anything else

    async def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        repeat: bool = False,
    ) -> f.ResponseFrame:
        """Any request of the HTTP interface, over the same connection. ``repeat``: to send it again does no harm. Raises
        refusals."""
        if not self.channels.connected:
            await self.channels.ready()
        repeatable = repeat or method in ("GET", "HEAD", "PUT", "DELETE") or "Idempotency-Key" in (headers or {})
        answer = Answer(self.channels, repeatable)
        sent = answer.send(f.RequestFrame(answer.channel, method, target, headers or {}, body))
        try:
            response: f.ResponseFrame = await sent
        except asyncio.CancelledError:
            answer.leave()
            raise
        if response.status >= 400:
            problem: Any = None
            with contextlib.suppress(msgspec.DecodeError):
                problem = msgspec.json.decode(response.body)
            if not isinstance(problem, dict):
                problem = {
                    "status": response.status,
                    "detail": f"HTTP {response.status} from {method} {target}",
                    "code": "http",
                }
                if response.status == 404:
                    problem["code"] = "stream-not-found"
            raise refusal_of(problem)
        return response


class _Calls(msgspec.Struct):
    calls: list[CallStatus]


def _options(service: str, **options: Any) -> f.CallOptions:
    """Raises TypeError for what the hub would not understand: it would close the connection for everybody on it."""
    try:
        return msgspec.convert(options, f.CallOptions)
    except msgspec.ValidationError as error:
        raise TypeError(f"This is no way to call {service}: {error}.") from error


def _record(row: Row, wrapped: bool) -> Record:
    stream, data, meta = "", row.data, row.meta
    if wrapped:
        stream, _, data, meta = unwrap(data)
    if meta is None:
        return Record(row.offset, data, 0, stream)
    return Record(row.offset, data, 0, stream, meta.headers, meta.id, meta.key)


def follow_options(
    policy: str, key: str, interval: float, lag: int, member: str, *, whole: bool = False
) -> f.FollowOptions | None:
    """What a follower says beside its offset; None where it is nothing."""
    if policy == "catch-up" and not (key or interval or lag or member or whole):
        return None
    return f.FollowOptions(policy, key, float(interval), lag, member, whole)


def _stream(path: str) -> str:
    return "/v1/stream/" + quote(path, safe="/")


class CallHandle:
    """A call that was submitted. ``id`` is its name: ``hub.get(id)`` is the same handle, from anywhere."""

    __slots__ = ("_client", "_ended", "id")

    def __init__(self, client: Client, identity: str, ended: asyncio.Future[Any] | None) -> None:
        self._client = client
        self.id = identity
        self._ended = ended

    def __repr__(self) -> str:
        return f"<CallHandle {self.id}>"

    @property
    def url(self) -> str:
        """Where the call can be read, in any of the four ways."""
        return f"{self._client.url}/v1/call/{self.id}"

    async def status(self) -> CallStatus:
        """What the call is now."""
        return _status((await self._client.request("GET", f"/v1/call/{self.id}")).body)

    async def wait(self, seconds: float = WAIT_S) -> CallStatus:
        """Wait for its end, for so long at most. Returns what it is then: look at ``ended``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            left = max(0.0, deadline - loop.time())
            prefer = {"Prefer": f"wait={min(60, int(left) + 1)}"} if left else {}
            try:
                async with asyncio.timeout(left + 0.001 if left else None):
                    answer = await self._client.request("GET", f"/v1/call/{self.id}", prefer)
            except TimeoutError:
                return await self.status()
            status = _status(answer.body)
            if status.ended or loop.time() >= deadline:
                return status

    async def result(self, timeout: float | None = None, *, returns: Any = None) -> Any:
        """Its result, once it has ended. Raises :class:`CallFailed`, or the refusal that its handler raised;
        :class:`CallCancelled`; after ``timeout`` seconds :class:`CallTimedOut`: the call goes on."""
        try:
            async with asyncio.timeout(timeout):
                return await self._result(returns)
        except TimeoutError as error:
            raise CallTimedOut(f"Call {self.id} did not end within {timeout:g} s; it goes on.") from error

    async def _result(self, returns: Any) -> Any:
        if self._ended is not None:
            frame = await asyncio.shield(self._ended)
            if frame is not None:
                if type(frame) is f.ErrorFrame:
                    raise refusal_of(frame.problem)
                return value_of(Payload(frame.body, frame.content_type), returns)
        while True:
            answer = await self._client.request("GET", f"/v1/call/{self.id}/result", {"Prefer": "wait=30"})
            if answer.status != 202:
                return value_of(Payload(answer.body, answer.headers.get("content-type", "")), returns)

    async def cancel(self) -> CallStatus:
        """End it. Raises :class:`Conflict` where it has ended already."""
        return _status((await self._client.request("DELETE", f"/v1/call/{self.id}")).body)

    async def events(
        self, via: Via = "push", *, offset: str = "-1", interval: float = 1.0
    ) -> AsyncGenerator[CallEvent, None]:
        """What happens to it, from an offset on, until it has ended; across lost connections. ``via`` chooses how to
        hear of it: push over the client's own connection, server-sent events, long polling, or a poll each
        ``interval`` seconds."""
        async with contextlib.aclosing(self._records(via, offset, interval)) as records:
            async for at, record in records:
                event = event_of(at, record)
                yield event
                if event.final:
                    return

    async def _records(self, via: Via, offset: str, interval: float) -> AsyncGenerator[tuple[str, bytes], None]:
        client = self._client
        if via == "push":
            await client.channels.ready()
            async for row in Following(client.channels, self.id, offset, call=True).records():
                yield row.offset, row.data
        elif via == "sse":
            if not client.url:
                raise ValueError("In the hub's own process there is no HTTP: use via='push'.")
            async for pair in http_events(f"{client.url}/v1/call/{self.id}", offset):
                yield pair
        else:
            prefer = {"Prefer": "wait=20"} if via == "long-poll" else {}
            while True:
                answer = await client.request("GET", f"/v1/call/{self.id}?offset={offset}", prefer)
                rows = msgspec.json.decode(answer.body or b"[]", type=list[msgspec.Raw])
                offset = answer.headers["stream-next-offset"]
                end = Offset.parse(offset)
                for position, row_ in enumerate(rows, end.position - len(rows) + 1):
                    yield str(end._replace(position=position)), bytes(row_)
                if answer.headers.get("stream-closed") == "true":
                    return
                if via == "poll":
                    await asyncio.sleep(interval)

    async def items(self) -> AsyncIterator[Any]:
        """What a service that yields has yielded and yields. Raises what it failed with."""
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                if event.kind == "item":
                    yield event.data
                elif event.kind in ("failed", "cancelled"):
                    raise refusal_of(event.error or {})


def _status(body: bytes) -> CallStatus:
    return msgspec.json.decode(body, type=CallStatus)
