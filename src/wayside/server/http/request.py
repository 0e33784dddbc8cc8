"""Bytes in, requests out: the state of one connection's reading side while it is within a message.

It exists only then: an idle connection, and one with an open response, has none. Bodies are kept in memory
up to a bound and spooled to disk beyond it; one that its route takes while it arrives is handed out with the head.
What is refused here leaves as a refusal in the request's place; nothing after it is read.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools

from wayside.core.errors import BadRequest, Refusal, TooLarge
from wayside.core.records import Spool
from wayside.server.exchange import Request
from wayside.server.http.head import ExpectationFailed, HeadTooLarge, request_of, spool_failed
from wayside.server.http.shared import Shared


class ArrivingBody:
    """See :class:`wayside.server.exchange.Pieces`. ``on_flow`` is called when reading may have to rest, or to go on."""

    __slots__ = ("_held", "_on_end", "_on_piece", "_paused", "_told", "ended", "error", "on_flow")

    def __init__(self, on_flow: Callable[[], None] | None = None) -> None:
        self.on_flow = on_flow
        self.ended = False
        """Nothing more comes."""
        self.error: Refusal | None = None
        """Why the rest did not come."""
        self._held: list[bytes] = []
        self._on_piece: Callable[[bytes], None] | None = None
        self._on_end: Callable[[Refusal | None], None] | None = None
        self._paused = False
        self._told = False

    def __repr__(self) -> str:
        state = "ended" if self.ended else "rests" if self.rests else "flows"
        return f"<ArrivingBody {state}>"

    @property
    def rests(self) -> bool:
        """Whether nothing more is to be read now."""
        return self._paused or self._on_piece is None

    @property
    def whole(self) -> bool:
        """Whether all of it has come."""
        return self.ended and self.error is None

    # -- from the connection

    def hold(self, data: bytes) -> None:
        """Take what was read; :meth:`deliver` gives it on."""
        if data:
            self._held.append(data)

    def end(self, error: Refusal | None = None) -> None:
        """Nothing more comes; ``error`` says why not, where it is not whole."""
        if not self.ended:
            self.ended = True
            self.error = error

    def deliver(self) -> None:
        """Give on what was read, and that it has ended."""
        if self._on_piece is None or self._on_end is None:
            return
        if self._held:
            piece = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            self._on_piece(piece)
        if self.ended and not self._told:
            self._told = True
            self._on_end(self.error)

    # -- from the pattern

    def take(self, on_piece: Callable[[bytes], None], on_end: Callable[[Refusal | None], None]) -> None:
        self._on_piece, self._on_end = on_piece, on_end
        self.deliver()
        self._flow()

    def pause(self) -> None:
        self._paused = True
        self._flow()

    def resume(self) -> None:
        self._paused = False
        self._flow()

    def _flow(self) -> None:
        if self.on_flow is not None:
            self.on_flow()


HEAD_BYTES_SHARED_MAX = 2048


class Incoming:
    """The parser and what it has found. ``ready`` are whole requests in order, each with its body:
    no more than one read brings, because reading pauses while any wait."""

    __slots__ = (
        "_body",
        "_candidate",
        "_events",
        "_fields",
        "_head_bytes",
        "_in_head",
        "_parser",
        "_replaying",
        "_request",
        "_shared",
        "_size",
        "_spool",
        "_target",
        "began",
        "broken",
        "in_body",
        "pieces",
        "ready",
        "wants_continue",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._parser: Any = httptools.HttpRequestParser(self)
        self.ready: deque[tuple[Request | Refusal, bytes | Spool | ArrivingBody]] = deque()
        self.pieces: ArrivingBody | None = None
        """The body under way, if it is one that is taken while it arrives."""
        self.broken = False
        """A refusal was put into ``ready``: nothing more is read."""
        self.in_body = False
        self.wants_continue = False
        """The client waits for ``100 Continue`` before it sends the body."""
        self.began = shared.now
        """When the head under way began, or could go on."""
        self._in_head = False
        self._head_bytes = 0
        """Bytes since the head began, or since the last byte of the body: of trailers, or of a chunk's extension."""
        self._events = 0
        """Messages begun and pieces of bodies, to see what a packet brought."""
        self._replaying = False
        self._candidate: bytes | None = None
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._spool: Any = None

    @property
    def partial(self) -> bool:
        """Whether a request has begun and not ended."""
        return self._in_head or self.in_body

    def feed(self, data: bytes) -> bytes:
        """Read; returns what came after a request to upgrade, which is not HTTP any more, or nothing."""
        if self.broken:
            return b""
        if not self.partial:
            end = data.find(b"\r\n\r\n") + 4
            self._candidate = data[:end] if 3 < end <= HEAD_BYTES_SHARED_MAX else None
        began, before = self.partial, self._events
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parser = httptools.HttpRequestParser(self)
            rest: bytes = data[upgrade.args[0] :]
            return self._body_of_upgrade(rest)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self.refuse(cause if isinstance(cause, Refusal) else BadRequest(f"The request cannot be read: {cause}."))
        except httptools.HttpParserError as error:
            self.refuse(BadRequest(f"This is not HTTP/1.1: {error}.", code="http-malformed"))
        self._candidate = None
        if self._events == before:
            self._head_bytes += len(data)
        else:  # what this packet brought last may be a small part of it: no more is known than that it is not longer
            self._head_bytes = len(data) if self._in_head and not began and self._events == before + 1 else 0
        if self.partial and self._head_bytes > self._shared.limits.header_bytes_max:
            self.refuse(self._head_too_large())
        return b""

    def _body_of_upgrade(self, rest: bytes) -> bytes:
        """The parser skips the body of a request that offers an upgrade, as Java's client does with any request. It is
        read here by another, which is shown a head with that framing alone."""
        if not self.ready or isinstance(request := self.ready[-1][0], Refusal):
            return rest
        if "transfer-encoding" in request.headers:
            framing = b"Transfer-Encoding: chunked"
        elif request.length:
            framing = b"Content-Length: %d" % request.length
        else:
            return rest
        self.ready.pop()
        self._request = request
        self._replaying = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        self._replaying = False
        self.in_body = True
        if request.takes_pieces:
            self._hand_out(request)
        self.wants_continue = "expect" in request.headers and not request.version_10 and not rest
        return self.feed(rest) if rest else b""

    def _head_too_large(self) -> HeadTooLarge:
        limit = self._shared.limits.header_bytes_max
        return HeadTooLarge(f"The request head is over {limit} bytes (--header-bytes-max).")

    def refuse(self, refusal: Refusal) -> None:
        """Put a refusal where the request, or the rest of its body, would be; nothing more is read."""
        self._in_head = self.in_body = self.wants_continue = False
        self.broken = True
        self._reset()
        if self.pieces is not None:
            self.pieces.end(refusal)  # what takes it answers
            self.pieces = None
        else:
            self.ready.append((refusal, b""))

    def _hand_out(self, request: Request) -> None:
        """Have a request answered from now on, while its body comes."""
        self.pieces = ArrivingBody()
        self.ready.append((request, self.pieces))

    # -- called by httptools

    def on_message_begin(self) -> None:
        self._events += 1
        self._in_head = True
        self.began = self._shared.now
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer, of which nothing is used
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._replaying:
            self._in_head = False
            return
        parser, shared = self._parser, self._shared
        if sum([len(name) + len(value) for name, value in self._fields], len(self._target)) > (
            shared.limits.header_bytes_max
        ):
            raise self._head_too_large()
        method = parser.get_method().decode("latin-1")
        version = parser.get_http_version()
        request = request_of(method, self._target, self._fields, version, parser.should_keep_alive())
        request.route = shared.resolve(request)
        self._request = request
        self._in_head, self.in_body = False, True
        if request.length > shared.limits.body_bytes_max and not request.takes_pieces:
            raise self._too_large(request.length)
        expect = request.headers.get("expect")
        if expect is not None:
            if expect.lower() != "100-continue":
                raise ExpectationFailed(f"Expect: {expect[:40]} cannot be met; only 100-continue can.")
            self.wants_continue = not request.version_10
        if request.takes_pieces:
            self._hand_out(request)
            return
        candidate, self._candidate = self._candidate, None
        framed = request.headers.keys() & {"transfer-encoding", "upgrade", "expect"}
        spooled = request.length > shared.limits.body_memory_bytes_max
        if candidate is not None and not (framed or spooled) and candidate.startswith(parser.get_method()):
            shared.remember(candidate, request)

    def on_body(self, data: bytes) -> None:
        self._events += 1
        self.wants_continue = False
        if self.pieces is not None:
            self.pieces.hold(data)
            return
        self._size += len(data)
        limits = self._shared.limits
        if self._size > limits.body_bytes_max:
            raise self._too_large(self._size)
        if self._spool is None and self._size <= limits.body_memory_bytes_max:
            self._body.append(data)
            return
        try:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(dir=self._shared.spool_directory)  # noqa: SIM115 - lives with the body
                self._spool.write(b"".join(self._body))
                self._body.clear()
            self._spool.write(data)
        except OSError as error:
            raise spool_failed(error) from error

    def _too_large(self, size: int) -> TooLarge:
        limit = self._shared.limits.body_bytes_max
        return TooLarge(
            f"The body has {size} bytes or more; the limit is {limit} (--body-bytes-max). Send it in several appends.",
            fields={"limit_bytes": limit},
        )

    def on_message_complete(self) -> None:
        self.in_body = self.wants_continue = False
        if self.pieces is not None:
            self.pieces.end()
            self.pieces = None
            return
        body: bytes | Spool
        if self._spool is not None:
            body = Spool(self._spool, self._size)
        else:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self.ready.append((self._request, body))
        self._reset()
