"""One request on a connection of the hub's own server, as a pattern sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from wayside.contracts import Sink
from wayside.exchange import Memo, Pieces, Request
from wayside.http.arriving import ArrivingBody
from wayside.http.socket import NativeSocket, accept_headers
from wayside.http.wire import chunk, identity
from wayside.model import Spool

if TYPE_CHECKING:
    from wayside.http.connection import Connection

_CHUNKED = ("chunked", chunk)
_IDENTITY = ("identity", identity)


class HttpExchange(msgspec.Struct, eq=False):  # a Struct, as one is made for each request
    """See :class:`wayside.exchange.Exchange`."""

    _connection: Connection
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
