"""HTTP/1.1 as bytes: request heads in, response heads out; no sockets, no clocks.

Requests are read by llhttp (httptools), which refuses what smuggles: both lengths, bad chunk sizes, bare CR
or LF, folded lines. What it leaves open is refused here (RFC 9112 sections 3.2, 6.1, 7).
"""

from __future__ import annotations

import errno
import http
import re
import secrets
from itertools import count

import msgspec

from wayside.core.errors import BadRequest, Overloaded, Refusal, StoreFull, Unsupported
from wayside.server.exchange import Request, parse_query, quote_header, unquote_path

STATUS = {s: b"HTTP/1.1 %d \r\n" % s for s in range(100, 600)}
"""Status lines; those that HTTP does not name, which a handler may refuse with, have no phrase."""
STATUS.update((s.value, b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode())) for s in http.HTTPStatus)
STATUS[460] = b"HTTP/1.1 460 Checksum Mismatch\r\n"  # tus 1.0.0, the checksum extension
SECURITY = b"X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: cross-origin\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

METHODS = "GET, HEAD, PUT, POST, PATCH, DELETE, OPTIONS"
"""Of all that is served."""
REQUEST_HEADERS = (
    "Accept, Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Prefer, Producer-Epoch, Producer-Id, "
    "Producer-Seq, Stream-Closed, Stream-Durability, Stream-Expires-At, Stream-Fork-Offset, Stream-Fork-Sub-Offset, "
    "Stream-Forked-From, Stream-Retention-Age, Stream-Retention-Bytes, Stream-Seq, Stream-TTL, "
    "Tus-Resumable, Upload-Checksum, Upload-Defer-Length, Upload-Length, Upload-Metadata, Upload-Offset, "
    "Wayside-Callback, Wayside-Delay, Wayside-Key, Wayside-Member, Wayside-Message-Id, Wayside-Priority, Wayside-TTL, X-HTTP-Method-Override, X-Request-Id, X-Requested-With"
)
RESPONSE_HEADERS = (
    "ETag, Location, Preference-Applied, Producer-Epoch, Producer-Expected-Seq, Producer-Received-Seq, Producer-Seq, "
    "Retry-After, Stream-Bytes, Stream-Closed, Stream-Cursor, Stream-Durability, Stream-Earliest-Offset, "
    "Stream-Expires-At, Stream-Next-Offset, Stream-Retention-Age, Stream-Retention-Bytes, Stream-SSE-Data-Encoding, "
    "Stream-TTL, Stream-Up-To-Date, Tus-Checksum-Algorithm, Tus-Extension, Tus-Max-Size, Tus-Resumable, Tus-Version, "
    "Upload-Defer-Length, Upload-Expires, Upload-Length, Upload-Metadata, Upload-Offset, Wayside-Call, Wayside-Due, Wayside-Duplicate, Wayside-Stream, "
    "X-Request-Id"
)
CORS = b"Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: %b\r\n" % RESPONSE_HEADERS.encode()
PREFLIGHT = (
    b"Access-Control-Allow-Methods: %b\r\nAccess-Control-Allow-Headers: %b\r\nAccess-Control-Max-Age: 86400\r\n"
    % (METHODS.encode(), REQUEST_HEADERS.encode())
)

_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?")
"""RFC 9110 section 7.2, but for the comma, by which two hosts are joined to one."""
_boot = secrets.token_hex(4)
_numbers = count(1)


class HeadTooLarge(Refusal):
    """The request head is over its limit."""

    status, code, title = 431, "head-too-large", "Request head too large"


class VersionNotSupported(Refusal):
    """Not HTTP/1.0 or HTTP/1.1."""

    status, code, title = 505, "http-version", "HTTP version not supported"


class ExpectationFailed(Refusal):
    """An ``Expect`` other than ``100-continue``."""

    status, code, title = 417, "expectation-failed", "Expectation failed"


def chunk(data: bytes) -> bytes:
    """One chunk of ``Transfer-Encoding: chunked``; nothing for no data, as an empty one would be the last."""
    if not data:
        return b""
    return b"%x\r\n%b\r\n" % (len(data), data)


def identity(data: bytes) -> bytes:
    return data


def request_of(
    method: str, target: bytes, fields: list[tuple[bytes, bytes]], version: str, keep_alive: bool
) -> Request:
    """A request head as a :class:`Request`. Raises a refusal for what a proxy could read otherwise than we do."""
    if version not in ("1.1", "1.0"):
        raise VersionNotSupported(f"HTTP/{version} is not spoken here; use HTTP/1.1.")
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1").strip(" \t")
        if name in headers:
            if name in ("host", "content-length", "transfer-encoding"):
                raise BadRequest(f"The header {name} is given twice.", code="header-repeated")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    if version == "1.1" and "host" not in headers:
        raise BadRequest("HTTP/1.1 requires a Host header.", code="host-missing")
    if not _HOST.fullmatch(headers.get("host", "")):
        raise BadRequest("The Host header is not a host with or without a port.", code="host-invalid")
    if method == "CONNECT":  # what follows its head is not HTTP
        raise Unsupported("CONNECT is for proxies; this is none.")
    coding = headers.get("transfer-encoding")
    if coding is not None and (coding.lower() != "chunked" or version == "1.0"):
        raise Unsupported(f"Transfer-Encoding: {coding[:40]} is not spoken here; use chunked, with HTTP/1.1.")
    text = target.decode("latin-1")
    if not text.startswith("/") and text != "*":
        _, found, rest = text.partition("://")
        if not found:
            raise BadRequest("The request target must be a path.", code="target-invalid")
        text = "/" + rest.partition("/")[2]
    path, _, query = text.partition("?")
    request = Request(method, text, unquote_path(path.encode("latin-1")), parse_query(query) if query else {}, headers)
    request.version_10 = version == "1.0"
    request.keep_alive = keep_alive
    request.plain = keep_alive and version == "1.1" and "origin" not in headers
    request.length = int(headers.get("content-length", 0))
    return request


def field_lines(headers: dict[str, str]) -> bytes:
    """Header fields as lines."""
    return "".join(f"{name}: {quote_header(value)}\r\n" for name, value in headers.items()).encode("latin-1")


def request_id(request: Request | None) -> str:
    """The client's ``X-Request-Id`` if it is short and harmless, else a new one."""
    given = request.headers.get("x-request-id", "") if request is not None else ""
    if 0 < len(given) <= 64 and given.isascii() and given.isprintable():
        return given
    return f"{_boot}-{next(_numbers)}"


def spool_failed(error: OSError) -> Refusal:
    """A body that is too large for memory could not be kept on disk."""
    later = {"Retry-After": "1"}
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("There is no room on the disk for the body.", headers=later)
    return Overloaded(f"The body cannot be kept now: {error.strerror or type(error).__name__}.", headers=later)


def problem(refusal: Refusal, identity: str) -> tuple[int, bytes, bytes]:
    """A refusal as status, header fields and body (RFC 9457)."""
    body = msgspec.json.encode({**refusal.problem(), "request_id": identity})
    fields = {"Content-Type": "application/problem+json", "Cache-Control": "no-store", "X-Request-Id": identity}
    return refusal.status, field_lines(fields | refusal.headers), body
