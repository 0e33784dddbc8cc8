"""One URL per thing; headers choose the pattern. A request head is resolved once to what answers it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from wayside.contracts import Log
from wayside.errors import BadRequest, MethodNotAllowed, NotFound, Refusal
from wayside.exchange import Exchange, Request
from wayside.http.operations import Operations
from wayside.model import require_path
from wayside.patterns import lifecycle, long_polling, polling, publishing, push, sse

Handler = Callable[[Exchange], None]

STREAMS = "/v1/stream/"
METHODS = "GET, HEAD, PUT, POST, DELETE, OPTIONS"
REQUEST_HEADERS = (
    "Accept, Authorization, Content-Type, If-None-Match, Last-Event-ID, Prefer, Producer-Epoch, Producer-Id, "
    "Producer-Seq, Stream-Closed, Stream-Durability, Stream-Expires-At, Stream-Fork-Offset, Stream-Fork-Sub-Offset, "
    "Stream-Forked-From, Stream-Retention-Age, Stream-Retention-Bytes, Stream-Seq, Stream-TTL, X-Request-Id"
)
RESPONSE_HEADERS = (
    "ETag, Location, Preference-Applied, Producer-Epoch, Producer-Expected-Seq, Producer-Received-Seq, Producer-Seq, "
    "Retry-After, Stream-Bytes, Stream-Closed, Stream-Cursor, Stream-Durability, Stream-Earliest-Offset, "
    "Stream-Expires-At, Stream-Next-Offset, Stream-Retention-Age, Stream-Retention-Bytes, Stream-SSE-Data-Encoding, "
    "Stream-TTL, Stream-Up-To-Date, X-Request-Id"
)
CORS = b"Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: %b\r\n" % RESPONSE_HEADERS.encode()
PREFLIGHT = (
    b"Access-Control-Allow-Methods: %b\r\nAccess-Control-Allow-Headers: %b\r\nAccess-Control-Max-Age: 86400\r\n"
    % (METHODS.encode(), REQUEST_HEADERS.encode())
)


class Routes:
    """From a request head to a handler. ``prefix`` is where the hub is mounted: empty, or like ``/wayside``."""

    def __init__(self, log: Log, operations: Operations) -> None:
        self._log = log
        self._operations = operations

    def resolve(self, request: Request, prefix: str = "") -> Handler:
        """What answers the request; a refusal is a handler too."""
        try:
            return self._resolve(request, prefix)
        except Refusal as refusal:
            return partial(_refuse, refusal)

    def _resolve(self, request: Request, prefix: str) -> Handler:
        if request.method == "OPTIONS":
            return _preflight
        path = request.path
        if path.startswith(STREAMS) or path == STREAMS[:-1]:
            return self._stream(request, path[len(STREAMS) :], prefix + STREAMS)
        found = self._operations.find(path)
        if found is None:
            raise NotFound(
                f"There is nothing at {path[:200]}. Streams are at {STREAMS}NAME; see /openapi.json.", code="not-found"
            )
        if request.method not in ("GET", "HEAD"):
            raise _not_allowed(request, "GET, HEAD, OPTIONS")
        return found

    def _stream(self, request: Request, name: str, base: str) -> Handler:
        log = self._log
        if not name:
            if request.method != "GET":
                raise _not_allowed(request, "GET, OPTIONS")
            return lambda exchange: lifecycle.list_streams(exchange, log)
        path = name
        require_path(path, log.limits.path_bytes_max)
        match request.method:
            case "POST" if publishing.is_plain(request):
                return publishing.plain(request, log, path)
            case "POST":
                return lambda exchange: publishing.append(exchange, log, path)
            case "PUT":
                return lambda exchange: lifecycle.create(exchange, log, path, base)
            case "DELETE":
                return lambda exchange: lifecycle.delete(exchange, log, path)
            case "HEAD":
                return lambda exchange: lifecycle.head(exchange, log.find(path, touch=False))
            case "GET":
                return self._read(request, path)
        raise _not_allowed(request, METHODS)

    def _read(self, request: Request, path: str) -> Handler:
        log = self._log
        headers = request.headers
        _one_offset(request)
        live = request.one("live")
        wait_s = long_polling.preferred_wait_s(headers.get("prefer"))
        if headers.get("upgrade", "").lower() == "websocket" and not request.version_10:
            return lambda exchange: push.read(exchange, log, log.find(path))
        if live == "long-poll":
            return lambda exchange: long_polling.read(exchange, log, log.find(path), None)
        if live == "sse":
            return lambda exchange: sse.read(exchange, log, log.find(path), protocol=True)
        if live is not None:
            raise BadRequest(f"live is long-poll or sse, not {live[:40]!r}.", code="parameter-invalid")
        if _accepts_events(headers.get("accept", "")):
            return lambda exchange: sse.read(exchange, log, log.find(path), protocol=False)
        if wait_s is not None:
            return lambda exchange: long_polling.read(exchange, log, log.find(path), wait_s)
        return lambda exchange: polling.read(exchange, log, log.find(path))


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


def _not_allowed(request: Request, allow: str) -> MethodNotAllowed:
    return MethodNotAllowed(f"{request.method} is not possible here; use {allow}.", headers={"Allow": allow})


def _refuse(refusal: Refusal, exchange: Exchange) -> None:
    exchange.refuse(refusal)


def _preflight(exchange: Exchange) -> None:
    exchange.respond(204, PREFLIGHT + b"Allow: %b\r\n" % METHODS.encode())
