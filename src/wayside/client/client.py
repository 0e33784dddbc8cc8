"""The Python client: calls, streams, groups and events over one connection. Blocking, it is :mod:`wayside.sync`.

A call that may have run is never repeated by the client, unless it has an idempotency key; when the connection breaks
under one, :class:`~wayside.errors.UnknownOutcome` says so. Followers resume from their cursor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from wayside.client.calls import CallHandle
from wayside.client.groups import CREDIT, GroupMember, group_target, member_name, spec_of, texts_of
from wayside.client.member import Membership, Owner, Pace
from wayside.client.streams import (
    as_texts,
    follow_options,
    publish_body,
    publish_results,
    record_of,
    stream_target,
)
from wayside.client.values import CallStatus, value_of
from wayside.core.codecs import Payload
from wayside.core.errors import CallTimedOut, Conflict, Refusal, refusal_of
from wayside.core.globs import is_glob
from wayside.core.metadata import NOTHING, Publication, Published, Said
from wayside.core.records import JSON, Record, media_type
from wayside.core.signature import pack_arguments
from wayside.groups.events import GroupSpec
from wayside.link import frames as f
from wayside.link.channels import FollowChannel, ReplyChannel, SubmitChannel
from wayside.link.connection import Channels
from wayside.streams.presence import PRESENCE, PresenceEvent, Presences, event_at

__all__ = ["Client", "PolicyName"]

ACCEPT = "application/msgpack, */*;q=0.5"
PolicyName = Literal["catch-up", "conflate", "sample", "disconnect"]


class Client:
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
        Where the wait is cancelled, so is the call, unless it has a key.
        """
        channels = self.channels
        if not channels.connected:
            await channels.ready()
        payload = pack_arguments(arguments, keywords)
        options = _options(service, key=idempotency_key, priority=priority) if idempotency_key or priority else None
        answer = ReplyChannel(channels, bool(idempotency_key))
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
        ``idempotency_key`` the same request gives the same call, however often it is submitted. Where the wait is
        cancelled, or :class:`UnknownOutcome` is raised, the call may have been taken, or not.
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
        entry = SubmitChannel(channels, bool(idempotency_key))
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
        await self.request("PUT", stream_target(stream), headers)

    async def publish(
        self,
        stream: str,
        *records: Any,
        create: bool = True,
        id: str = "",
        key: str = "",
        headers: Mapping[str, str] | None = None,
        ttl: float = 0.0,
        delay: float = 0.0,
    ) -> str:
        """Append records: JSON values, ``str`` or ``bytes`` as the stream is. Returns the offset after them, once they
        are as durable as the stream promises. A stream that does not exist is made, as JSON, unless ``create`` is
        false.

        ``key``, ``headers`` and ``ttl`` (seconds for which readers are given them) are of each record, ``id`` is the
        message id of one: published again with it soon, it is not appended again, and the offset is that of the first;
        so it is sent again when the connection breaks. With a ``delay`` in seconds they are appended later, and "" is
        returned when that is certain. If the wait is cancelled, they may or may not have been appended."""
        channels = self.channels
        if not channels.connected:
            await channels.ready()
        encoded = [r if isinstance(r, bytes) else msgspec.json.encode(r) for r in records]
        kind = "" if all(isinstance(r, bytes) for r in records) else JSON
        said = Said(id, key, dict(headers or {}), float(ttl), float(delay))
        try:
            return await self._publish(stream, encoded, kind, said)
        except Refusal as refusal:
            if refusal.code == "content-type-mismatch" and all(isinstance(r, bytes | str) for r in records):
                texts = [r.encode() if isinstance(r, str) else r for r in records]  # it is no JSON stream: as they are
                return await self._publish(stream, texts, "", said)
            if refusal.code != "stream-not-found" or not create:
                raise
        await self.create(stream)
        return await self._publish(stream, encoded, kind, said)

    async def _publish(self, stream: str, records: list[bytes], content_type: str, said: Said) -> str:
        answer = ReplyChannel(self.channels, bool(said.id))
        frame = f.PublishFrame(answer.channel, stream, records, content_type)
        if said != NOTHING:
            frame.said = said
        published = await answer.send(frame)
        return str(published.offset)

    async def publish_all(self, publications: Iterable[Publication], *, create: bool = True) -> list[Published]:
        """Append records to several streams in one transaction: all of them, or none. Returns what became of each. Streams
        that do not exist are made first, as JSON, unless ``create`` is false. With a message id for each it is sent again
        when the connection breaks."""
        publications = list(publications)
        body = publish_body(publications)
        repeat = all(publication.id for publication in publications)
        for _ in range(len({publication.stream for publication in publications})):
            try:
                response = await self.request("POST", "/v1/publish", {"Content-Type": JSON}, body, repeat=repeat)
                return publish_results(response.body)
            except Refusal as refusal:
                if refusal.code != "stream-not-found" or not create:
                    raise
                missing = str(refusal.fields["stream"])
            await self.create(missing)
        response = await self.request("POST", "/v1/publish", {"Content-Type": JSON}, body, repeat=repeat)
        return publish_results(response.body)

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
            answer = await self.request("HEAD", stream_target(stream))
            until = answer.headers["stream-next-offset"]
            if offset == "now" or offset == until or answer.headers.get("stream-earliest-offset") == until:
                return
        await self.channels.ready()
        options = follow_options(policy, key, interval, lag, member, whole=not follow)
        following = FollowChannel(self.channels, stream, offset, call=False, options=options)
        async with contextlib.aclosing(following.records()) as records:
            async for row in records:
                yield record_of(row, globbed)
                if row.offset == until:
                    return

    async def presence(self, stream: str) -> Presences:
        """Who is present at a stream."""
        answer = await self.request("GET", "/v1/presence/" + quote(stream, safe="/"))
        return msgspec.json.decode(answer.body, type=Presences)

    async def presence_events(self, stream: str, offset: str = "-1") -> AsyncIterator[PresenceEvent]:
        """Joins and leaves at a stream, from an offset on, such as that of :meth:`presence`."""
        await self.channels.ready()
        following = FollowChannel(self.channels, PRESENCE + stream, offset, call=False)
        async with contextlib.aclosing(following.records()) as records:
            async for row in records:
                yield event_at(row.offset, row.data)

    async def close_stream(self, stream: str) -> None:
        """Nothing can be appended any more."""
        await self.request("POST", stream_target(stream), {"Stream-Closed": "true"})

    async def delete(self, stream: str) -> None:
        """Delete a stream and its records."""
        await self.request("DELETE", stream_target(stream))

    async def info(self, stream: str) -> dict[str, str]:
        """The header fields that say what a stream is, in lower case."""
        return (await self.request("HEAD", stream_target(stream))).headers

    # -- groups

    def group(
        self,
        name: str,
        streams: str | Iterable[str] = (),
        *,
        member: str | None = None,
        credit: int = CREDIT,
        **settings: Any,
    ) -> GroupMember:
        """A member of a group, which is given its share of the records::

            async with client.group("billing", "orders/*", retries=5) as group:
                async for delivery in group:
                    bill(delivery.json())
                    delivery.ack()

        With ``streams``, paths or globs, the group is made, or given these settings, as by :meth:`put_group`; else it has
        to be there. ``member`` is its name in what is told of the group (by default one that nobody else has), ``credit``
        how many records it is given ahead. Leaving the block gives back what was not settled.
        """
        spec = spec_of(streams, settings) if streams or settings else None  # says now what is wrong
        chosen = member or member_name()
        begin = partial(self._begin_membership, name, chosen, spec if streams else None)
        return GroupMember(name, chosen, credit, begin)

    async def _begin_membership(self, name: str, member: str, spec: GroupSpec | None, owner: Owner) -> Membership:
        await self.channels.ready()
        if spec is not None:
            await self.declare_group(name, spec)
        return Membership(self.channels, name, member, owner, self.pace, self.prepare)

    async def _document(self, method: str, target: str, body: Any = None) -> Any:
        headers = {} if body is None else {"Content-Type": JSON}
        answer = await self.request(method, target, headers, b"" if body is None else msgspec.json.encode(body))
        return msgspec.json.decode(answer.body) if answer.body else None

    async def groups(self) -> list[dict[str, Any]]:
        """All groups, by name."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = await self._document("GET", f"/v1/group/?limit=1000&after={quote(after)}")
            found += page["groups"]
            after = page["next"]
            if after is None:
                return found

    async def put_group(self, name: str, streams: str | Iterable[str], **settings: Any) -> dict[str, Any]:
        """Make a group of ``streams`` (paths or globs), or give it other settings. Returns its description.

        ``start`` (``-1``, ``now``, or an offset of the only stream), ``lease`` (seconds), ``retries`` (-1: no bound),
        ``backoff`` and ``backoff_max`` (seconds), ``dead_letter`` (a stream), ``order_by`` (a field, or ``$key``),
        ``in_flight`` and ``member_in_flight`` (records), ``paused``, ``webhook`` and more: see docs/PROTOCOL.md.
        """
        return await self.declare_group(name, spec_of(streams, settings))

    async def declare_group(self, name: str, spec: GroupSpec) -> dict[str, Any]:
        """Make a group, or give it other settings, as :meth:`put_group` does."""
        described: dict[str, Any] = await self._document("PUT", group_target(name), spec)
        return described

    async def describe_group(self, name: str) -> dict[str, Any]:
        """A group: its settings, members, lag, what is in flight, waiting and dead."""
        described: dict[str, Any] = await self._document("GET", group_target(name))
        return described

    async def delete_group(self, name: str) -> None:
        """Forget a group. The streams that it reads stay."""
        await self._document("DELETE", group_target(name))

    async def seek(self, name: str, to: str, streams: str | Iterable[str] = ()) -> list[str]:
        """Have a group read from elsewhere on: ``-1``, ``now``, or an offset of the one stream; only ``streams`` (paths or
        globs), where they are given. What was outstanding is not any more, and attempts count anew. Returns the paths."""
        found: list[str] = (
            await self._document("POST", group_target(name, "/seek"), {"to": to, "streams": texts_of(streams)})
        )["streams"]
        return found

    async def pause_group(self, name: str) -> None:
        """Deliver nothing, until :meth:`resume_group`. What is held may still be settled."""
        await self._document("POST", group_target(name, "/pause"))

    async def resume_group(self, name: str) -> None:
        """Deliver again."""
        await self._document("POST", group_target(name, "/resume"))

    async def dead(self, name: str, stream: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Dead records, those that died last first: of ``stream`` (a path or a glob), or of all."""
        query = f"?limit={limit}" + (f"&stream={quote(stream, safe='')}" if stream else "")
        found: list[dict[str, Any]] = (await self._document("GET", group_target(name, "/dead") + query))["dead"]
        return found

    async def redrive(
        self,
        name: str,
        streams: str | Iterable[str] = (),
        *,
        offsets: Iterable[str] = (),
        reason: str = "",
        limit: int | None = None,
    ) -> int:
        """Have dead records delivered again, as if for the first time: of ``streams``, with these ``offsets`` (those after
        them), whose reason has this in it, the oldest ``limit``; all, where nothing is said. Returns how many."""
        wanted = {"streams": texts_of(streams), "offsets": list(offsets), "reason": reason, "max": limit}
        redriven: int = (await self._document("POST", group_target(name, "/redrive"), wanted))["redriven"]
        return redriven

    async def receipts(self, group: str, stream: str, offset: str) -> dict[str, Any]:
        """What is known of one record in a group: where it is, and each of its deliveries."""
        query = f"?stream={quote(stream, safe='')}&offset={quote(offset)}"
        found: dict[str, Any] = await self._document("GET", group_target(group, "/receipts") + query)
        return found

    async def prepare(self, publish: list[f.Publish]) -> None:
        """Make streams that are not there, and texts as those are that are not JSON."""
        for each in publish:
            try:
                await self.create(each.stream)
            except Conflict:
                kind = (await self.info(each.stream)).get("content-type", "")
                if each.content_type == JSON and media_type(kind) != JSON:
                    as_texts(each, kind)

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
        answer = ReplyChannel(self.channels, repeatable)
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
