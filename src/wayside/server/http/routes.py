"""One URL per thing; headers choose the pattern. A request head is resolved once to what answers it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from wayside.calls.services import Calls
from wayside.core.errors import BadRequest, MethodNotAllowed, NotFound, Refusal
from wayside.core.globs import Glob, is_glob
from wayside.core.records import is_reserved, require_path, require_public
from wayside.groups.registry import Groups
from wayside.server.exchange import Exchange, Handler, Request, asking, member_of, preferred_wait_s
from wayside.server.http.head import PREFLIGHT
from wayside.server.http.operations import Operations
from wayside.server.patterns import (
    consumer_groups,
    durable_streams,
    globs,
    long_polling,
    polling,
    presence,
    publish,
    push,
    request_reply,
    server_sent_events,
    streams,
    upload,
)
from wayside.server.patterns.multiplexing import Connections
from wayside.streams.contract import Log, StreamView
from wayside.streams.delayed import Delaying
from wayside.streams.presence import Presence
from wayside.webhooks.subscriptions import Subscriptions

Read = Callable[..., None]
"""Answers a read: given the exchange, the stream, and ``first``, a position before which nothing is for readers."""

STREAMS = "/v1/stream/"
SERVICES = "/v1/service/"
CALLS = "/v1/call/"
GROUPS = "/v1/group/"
WORKERS = "/v1/worker/"
CONNECT = "/v1/connect"
PRESENCE = "/v1/presence/"
PUBLISH = "/v1/publish"
UPLOADS = "/v1/upload/"


class Routes:
    """From a request head to a handler. ``prefix`` is where the hub is mounted: empty, or like ``/wayside``."""

    def __init__(
        self,
        log: Log,
        operations: Operations,
        calls: Calls,
        connections: Connections,
        presence: Presence,
        subscriptions: Subscriptions,
        delaying: Delaying,
        groups: Groups,
    ) -> None:
        self._log = log
        self._presence = presence
        self._subscriptions = subscriptions
        self._delaying = delaying
        self._groups = groups
        self._calls = calls
        self._connections = connections
        self._operations = operations
        self._uploads = upload.Uploads(log)

    def resolve(self, request: Request, prefix: str = "") -> Handler:
        """What answers the request; a refusal is a handler too."""
        try:
            return self._resolve(request, prefix)
        except Refusal as refusal:
            return partial(_refuse, refusal)

    def _resolve(self, request: Request, prefix: str) -> Handler:
        path = request.path
        if path.startswith(UPLOADS) or path == UPLOADS[:-1]:
            return self._upload(request, path[len(UPLOADS) :], prefix)
        if request.method == "OPTIONS":
            return partial(_preflight, _allowed(path))
        if path.startswith(STREAMS) or path == STREAMS[:-1]:
            return self._stream(request, path[len(STREAMS) :], prefix + STREAMS)
        if path.startswith(SERVICES) or path == SERVICES[:-1]:
            return self._service(request, path[len(SERVICES) :], prefix)
        if path.startswith(CALLS) or path == CALLS[:-1]:
            return self._call(request, path[len(CALLS) :])
        if path.startswith(GROUPS) or path == GROUPS[:-1]:
            return self._group(request, path[len(GROUPS) :], prefix + GROUPS)
        if path == CONNECT:
            if request.method != "GET":
                raise _not_allowed(request, _allowed(path))
            return self._connections.accept
        if path == PUBLISH:
            if request.method != "POST":
                raise _not_allowed(request, _allowed(path))
            return lambda exchange: publish.publish(exchange, self._log, self._delaying)
        if path.startswith(PRESENCE):
            return self._present(request, path[len(PRESENCE) :])
        if path.startswith(WORKERS) and path.endswith("/lease"):
            if request.method != "POST":
                raise _not_allowed(request, _allowed(path))
            worker = path[len(WORKERS) : -len("/lease")]
            return lambda exchange: request_reply.renew_lease(exchange, self._connections.leases, worker)
        found = self._operations.find(path)
        if found is None:
            raise NotFound(
                f"There is nothing at {path[:200]}. Streams are at {STREAMS}NAME, services at {SERVICES}NAME; see "
                "/openapi.json.",
                code="not-found",
            )
        if request.method not in ("GET", "HEAD"):
            raise _not_allowed(request, _allowed(path))
        return found

    def _stream(self, request: Request, name: str, base: str) -> Handler:
        log = self._log
        if not name:
            if request.method != "GET":
                raise _not_allowed(request, _allowed(request.path))
            return lambda exchange: streams.list_streams(exchange, log)
        path = name
        if is_glob(path) and not is_reserved(path):
            return self._read_all(request, path)
        require_path(path, log.limits.path_bytes_max)
        if path.startswith(durable_streams.CONTROL):
            return durable_streams.resolve(request, self._subscriptions, path, base)
        require_public(path)
        match request.method:
            case "POST" if publish.is_plain(request):
                return publish.plain(request, log, path)
            case "POST":
                return lambda exchange: publish.append(exchange, log, self._delaying, path)
            case "PUT":
                return lambda exchange: streams.create(exchange, log, path, base)
            case "DELETE":
                return asking(log, path, lambda exchange: streams.delete(exchange, log, path))
            case "HEAD":
                return asking(log, path, lambda exchange: streams.head(exchange, log.find(path, touch=False)))
            case "GET":
                return asking(log, path, self._read(request, path))
        raise _not_allowed(request, _allowed(request.path))

    def _service(self, request: Request, name: str, prefix: str) -> Handler:
        calls = self._calls
        if request.method == "POST" and name:
            events = None
            if _accepts_events(request.headers.get("accept", "")):
                events = partial(_events, self._log)
            return lambda exchange: request_reply.call_service(exchange, calls, name, prefix + CALLS, events)
        if request.method != "GET":
            raise _not_allowed(request, _allowed(request.path))
        if not name:
            return lambda exchange: request_reply.list_services(exchange, calls)
        return lambda exchange: request_reply.describe_service(exchange, calls, name)

    def _call(self, request: Request, name: str) -> Handler:
        """A call is a stream: it is read like one, but for its status, which is what a plain GET asks for."""
        calls = self._calls
        if not name:
            if request.method != "GET":
                raise _not_allowed(request, _allowed(request.path))
            return lambda exchange: request_reply.list_calls(exchange, calls)
        identity, _, rest = name.partition("/")
        if rest not in ("", "result"):
            raise NotFound(f"A call has /result, and nothing at /{rest[:80]}.", code="not-found")
        if request.method == "DELETE" and not rest:
            return lambda exchange: request_reply.cancel(exchange, calls, identity)
        if request.method != "GET":
            raise _not_allowed(request, _allowed(request.path))
        wait_s = preferred_wait_s(request.headers.get("prefer"))
        read = None if rest else self._reader(request, as_stream=False)
        if read is None:
            return lambda exchange: request_reply.read_status(exchange, calls, identity, wait_s, result=bool(rest))
        reader = read
        return lambda exchange: request_reply.with_stream(exchange, calls, identity, reader)

    def _group(self, request: Request, name: str, base: str) -> Handler:
        groups = self._groups
        name, _, action = name.partition("/")
        if action and action not in consumer_groups.ACTIONS:
            raise NotFound(
                f"A group has {', '.join(f'/{each}' for each in consumer_groups.ACTIONS)}, and nothing at /{action[:80]}.",
                code="not-found",
            )
        if request.method not in _allowed(request.path).split(", "):
            raise _not_allowed(request, _allowed(request.path))
        if action:
            act = consumer_groups.ACTIONS[action][1]
            return lambda exchange: act(exchange, groups, name)
        if not name:
            return lambda exchange: consumer_groups.list_groups(exchange, groups)
        match request.method:
            case "PUT":
                return lambda exchange: consumer_groups.put(exchange, groups, name, base)
            case "DELETE":
                return lambda exchange: consumer_groups.delete(exchange, groups, name)
        return lambda exchange: consumer_groups.get(exchange, groups, name)

    def _upload(self, request: Request, identity: str, prefix: str) -> Handler:
        uploads = self._uploads
        allow = "GET, HEAD, POST, PATCH, DELETE, OPTIONS" if identity else "POST, OPTIONS"
        match upload.method_of(request):
            case "OPTIONS":
                return lambda exchange: uploads.options(exchange, PREFLIGHT + b"Allow: %b\r\n" % allow.encode())
            case "POST" if not identity:
                request.takes_pieces = upload.in_pieces(request)
                return lambda exchange: uploads.create(exchange, prefix + UPLOADS, prefix + STREAMS)
            case "PATCH" if identity:
                request.takes_pieces = upload.in_pieces(request)
                return lambda exchange: uploads.patch(exchange, identity)
            case "HEAD" if identity:
                return lambda exchange: uploads.head(exchange, identity, prefix + STREAMS)
            case "DELETE" if identity:
                return lambda exchange: uploads.delete(exchange, identity)
            case "GET" if identity:
                return lambda exchange: uploads.get(exchange, identity, prefix + STREAMS)
        raise upload.said(_not_allowed(request, allow))

    def _read(self, request: Request, path: str) -> Handler:
        log = self._log
        read = self._reader(request, as_stream=True)
        assert read is not None
        member = member_of(request)
        if member is None:
            return lambda exchange: read(exchange, log.find(path))
        stay = self._presence.stay(path, member)
        return lambda exchange: read(exchange, log.find(path), stay=stay)

    def _read_all(self, request: Request, path: str) -> Handler:
        """A glob: all streams that it matches."""
        log = self._log
        globs.require_read(request, path)
        glob = Glob(path)
        if request.method == "HEAD":
            return lambda exchange: globs.with_union(exchange, log, glob, streams.head)
        read = self._reader(request, as_stream=True)
        assert read is not None
        reader = read
        return lambda exchange: globs.with_union(exchange, log, glob, reader)

    def _present(self, request: Request, path: str) -> Handler:
        """Who is at a stream; or with an offset, or by another way than polling, the stream of joins and leaves."""
        there = self._presence
        require_path(path, self._log.limits.path_bytes_max)
        require_public(path)
        if request.method != "GET":
            raise _not_allowed(request, _allowed(request.path))
        read = self._reader(request, as_stream=False)
        if read is None:
            return lambda exchange: presence.members(exchange, there, path)
        reader = read
        return lambda exchange: presence.events(exchange, there, path, reader)

    def _reader(self, request: Request, *, as_stream: bool) -> Read | None:
        """What reads a stream as the headers choose; None where they choose nothing, and it is no stream to read."""
        log = self._log
        headers = request.headers
        _one_offset(request)
        live = request.one("live")
        wait_s = preferred_wait_s(headers.get("prefer"))
        if headers.get("upgrade", "").lower() == "websocket" and not request.version_10:
            return lambda exchange, stream, **at: push.read(exchange, log, stream, **at)
        if live == "long-poll":
            return lambda exchange, stream, **at: long_polling.read(exchange, log, stream, None, **at)
        if live == "sse":
            return lambda exchange, stream, **at: server_sent_events.read(exchange, log, stream, protocol=True, **at)
        if live is not None:
            raise BadRequest(f"live is long-poll or sse, not {live[:40]!r}.", code="parameter-invalid")
        if _accepts_events(headers.get("accept", "")):
            return partial(_events, log)
        if polling.RECORDS in headers.get("accept", "").lower():
            return lambda exchange, stream, **at: polling.read_records(exchange, log, stream, wait_s, **at)
        if not as_stream and request.one("offset") is None:
            return None
        if wait_s is not None:
            return lambda exchange, stream, **at: long_polling.read(exchange, log, stream, wait_s, **at)
        return lambda exchange, stream, **at: polling.read(exchange, log, stream, **at)


def _events(log: Log, exchange: Exchange, stream: StreamView, **more: Any) -> None:
    server_sent_events.read(exchange, log, stream, protocol=False, **more)


def _accepts_events(accept: str) -> bool:
    """Whether ``text/event-stream`` is named in ``Accept``, and not to say no to it."""
    for media_range in accept.lower().split(","):
        name, *parameters = [part.strip() for part in media_range.split(";")]
        if name == "text/event-stream":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def _one_offset(request: Request) -> None:
    if request.one("offset") == "":
        raise BadRequest(
            "The parameter offset is empty. Leave it out, or give -1, now, or an offset.", code="offset-malformed"
        )


_ALLOW = (
    (STREAMS, "GET", "GET, HEAD, PUT, POST, DELETE"),
    (SERVICES, "GET", "GET, POST"),
    (CALLS, "GET", "GET, DELETE"),
    (GROUPS, "GET", "GET, PUT, DELETE"),
    (WORKERS, "POST", "POST"),
    (CONNECT, "GET", "GET"),
    (PUBLISH, "POST", "POST"),
    (PRESENCE, "GET", "GET"),
)
"""Beginning of a path; methods there, and below it."""


def _allowed(path: str) -> str:
    """Methods of what is at a path, as ``Allow`` has them."""
    if path.startswith(GROUPS) and (action := path[len(GROUPS) :].partition("/")[2]) in consumer_groups.ACTIONS:
        return f"{consumer_groups.ACTIONS[action][0]}, OPTIONS"
    if path.startswith(STREAMS + durable_streams.CONTROL):
        return durable_streams.allowed(path[len(STREAMS) :])
    for start, root, below in _ALLOW:
        if path.startswith(start) or path == start[:-1]:
            methods = root if len(path) <= len(start) else below
            return f"{'GET' if path.endswith('/result') and start == CALLS else methods}, OPTIONS"
    return "GET, HEAD, OPTIONS"


def _not_allowed(request: Request, allow: str) -> MethodNotAllowed:
    return MethodNotAllowed(f"{request.method} is not possible here; use {allow}.", headers={"Allow": allow})


def _refuse(refusal: Refusal, exchange: Exchange) -> None:
    exchange.refuse(refusal)


def _preflight(allow: str, exchange: Exchange) -> None:
    exchange.respond(204, PREFLIGHT + b"Allow: %b\r\n" % allow.encode())
