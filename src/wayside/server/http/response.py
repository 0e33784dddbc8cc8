"""One request and its answer, as a pattern has them (:class:`wayside.server.exchange.Exchange`) on our own server; and what
its log is told of refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from wayside.core.errors import Refusal
from wayside.core.records import Spool
from wayside.server.exchange import Memo, Pieces, Request
from wayside.server.http.head import chunk, identity
from wayside.server.http.request import ArrivingBody
from wayside.server.http.websocket import NativeSocket, accept_headers
from wayside.streams.contract import Sink

_log = structlog.get_logger("wayside.http")
_CHUNKED = ("chunked", chunk)
_IDENTITY = ("identity", identity)


class Answering(Protocol):
    """The connection that a request came on."""

    def respond(
        self, request: Request | None, status: int, headers: bytes, body: bytes, memo: Memo | None = None
    ) -> None: ...

    def refuse(self, error: Exception, request: Request | None) -> None:
        """Answer with a problem document."""
        ...

    def open(self, request: Request, status: int, headers: bytes, seconds: float | None) -> Sink:
        """Begin a response without a known length."""
        ...

    def accept(
        self, headers: bytes, on_text: Callable[[str], None], on_binary: Callable[[bytes], None] | None
    ) -> NativeSocket:
        """Answer a WebSocket handshake."""
        ...

    def leave(self, body: ArrivingBody) -> None:
        """A request is about to be answered: if not all of its body has come, the rest is not looked at."""
        ...


class HttpExchange(msgspec.Struct, eq=False):  # a Struct, as one is made for each request
    """See :class:`wayside.server.exchange.Exchange`."""

    _connection: Answering
    request: Request
    body: bytes | Spool
    on_lost: Callable[[], None] | None = None
    on_eof: Callable[[], None] | None = None
    on_drain: Callable[[], None] | None = None
    answered: bool = False

    @property
    def framing(self) -> tuple[str, Callable[[bytes], bytes]]:
        return _IDENTITY if self.request.version_10 else _CHUNKED

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: Memo | None = None) -> None:
        if not self.answered:
            self.answered = True
            self._connection.respond(self.request, status, headers, body, memo)

    def refuse(self, error: Exception) -> None:
        if not self.answered:
            self.answered = True
            self._connection.refuse(error, self.request)

    def open(self, status: int, headers: bytes, *, seconds: float | None = None) -> Sink:
        self.answered = True
        return self._connection.open(self.request, status, headers, seconds)

    def accept(
        self,
        subprotocol: str | None,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None] | None = None,
    ) -> NativeSocket:
        headers = accept_headers(self.request, subprotocol)
        self.answered = True
        return self._connection.accept(headers, on_text, on_binary)


class ArrivingExchange(HttpExchange, eq=False, kw_only=True):
    """The same, of a request whose body is taken while it arrives. What is answered before all of it has come is the last
    answer of the connection: the rest is not looked at."""

    arriving: ArrivingBody

    @property
    def pieces(self) -> Pieces:
        return self.arriving

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: Memo | None = None) -> None:
        self._connection.leave(self.arriving)
        super().respond(status, headers, body, memo)

    def refuse(self, error: Exception) -> None:
        self._connection.leave(self.arriving)
        super().refuse(error)


def refusal_of(error: Exception) -> Refusal:
    """An error as a refusal; what was not foreseen is our fault, and is said without its inside."""
    if isinstance(error, Refusal):
        return error
    return Refusal("Something went wrong inside the hub. Its log says what, under this request_id.")


def note_refusal(refusal: Refusal, error: Exception, request: Request | None, identity: str) -> None:
    """Log what an operator wants to know of."""
    where = {"method": request.method, "path": request.path} if request is not None else {}
    if not isinstance(error, Refusal):
        _log.error("request failed", request_id=identity, **where, exc_info=error)
    elif refusal.status >= 500:
        _log.warning("request refused", request_id=identity, code=refusal.code, detail=refusal.detail, **where)
    else:
        _log.debug("request refused", request_id=identity, code=refusal.code, status=refusal.status, **where)


def note_abort(error: Exception) -> None:
    """A response was cut because its stream could not be read on."""
    detail = error.detail if isinstance(error, Refusal) else repr(error)
    _log.warning("response cut", detail=detail, exc_info=None if isinstance(error, Refusal) else error)
