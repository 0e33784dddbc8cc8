"""One request on a connection of the hub's own server, as a pattern sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from wayside.contracts import Sink
from wayside.exchange import Memo, Request
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

    def accept(self, subprotocol: str | None, on_text: Callable[[str], None]) -> NativeSocket:
        headers = accept_headers(self.request, subprotocol)
        self.answered = True
        return self._connection.accept(headers, on_text)
