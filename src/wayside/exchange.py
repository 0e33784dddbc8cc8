"""What a pattern sees of one request: its method, path, headers and body, and where it writes the answer.

The HTTP server and the ASGI adapter each implement :class:`Exchange`; a pattern does not know which one
it talks to. ``headers`` of an answer are complete field lines, each ended by CRLF, because most of them
never change and are made once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote_to_bytes

from wayside.contracts import Sink, StreamView
from wayside.errors import BadRequest, Refusal
from wayside.model import Offset, Spool
from wayside.policies import Policy, policy_of

__all__ = [
    "Exchange",
    "Frames",
    "InPieces",
    "Memo",
    "Pieces",
    "Request",
    "Socket",
    "member_of",
    "origin_of",
    "parse_query",
    "policy_for",
    "position_of",
    "preferred_wait_s",
    "quote_header",
    "unquote_path",
]

Memo = tuple[Any, object, Callable[[], None]]
"""(subject, version, note): the answer to this very request stays right while ``subject.version is version``. ``note`` is
called each time that it is given again."""


class Request:
    """A parsed request head. Equal heads may share one object: it is never changed."""

    __slots__ = (
        "headers",
        "keep_alive",
        "length",
        "memo",
        "method",
        "path",
        "plain",
        "query",
        "route",
        "scheme",
        "takes_pieces",
        "target",
        "version_10",
    )

    def __init__(
        self, method: str, target: str, path: str, query: dict[str, list[str]], headers: dict[str, str]
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        """Decoded, without the query."""
        self.query = query
        self.headers = headers
        """Names in lower case; several lines of one name are joined by ``, ``."""
        self.route: Any = None
        """What answers it; set by the server."""
        self.takes_pieces = False
        """Whether what answers it takes the body while it arrives, of any length: set when it is resolved."""
        self.memo: Any = None
        """The last answer, while it stays right; the server's."""
        self.scheme = "http"
        self.version_10 = False
        self.keep_alive = True
        self.length = 0
        self.plain = False
        """Whether its answer needs no fields but its own: HTTP/1.1, kept alive, of the same origin."""

    def one(self, name: str) -> str | None:
        """The only value of a query parameter; None without it. Raises :class:`BadRequest` where there are several."""
        values = self.query.get(name)
        if not values:
            return None
        if len(values) > 1:
            raise BadRequest(
                f"The parameter {name} is given {len(values)} times; give it once.", code="parameter-repeated"
            )
        return values[0]

    def is_true(self, name: str) -> bool:
        """Whether a header is exactly ``true``, in any case (Durable Streams section 4.1)."""
        return self.headers.get(name, "").strip().lower() == "true"


class Frames(Protocol):
    """How messages become what a socket's ``write`` takes. Sockets with equal ``key`` share what is made."""

    @property
    def key(self) -> object: ...

    @property
    def ping(self) -> Any:
        """A message that asks for a sign of life, or None."""
        ...

    def text(self, payload: bytes) -> Any: ...

    def binary(self, payload: bytes) -> Any: ...

    def close(self, code: int, reason: str) -> Any: ...

    def join(self, messages: list[Any]) -> Any: ...


class Socket(Sink, Protocol):
    """An accepted WebSocket."""

    @property
    def frames(self) -> Frames: ...

    def close(self, code: int, reason: str) -> None: ...


class Pieces(Protocol):
    """A body that is taken while it arrives."""

    def take(self, on_piece: Callable[[bytes], None], on_end: Callable[[Refusal | None], None]) -> None:
        """Begin: nothing is read before. ``on_piece`` gets what one read brings, also while paused; ``on_end`` gets None
        after the last, or why the rest does not come while the client can still be answered. Neither may raise. A client
        that has gone is told by the exchange's ``on_lost`` alone."""
        ...

    def pause(self) -> None:
        """Read nothing more; the client is held back by TCP."""
        ...

    def resume(self) -> None: ...


@runtime_checkable
class InPieces(Protocol):
    """What an exchange can do, beside, whose request ``takes_pieces``; one that cannot has the whole in ``body``."""

    @property
    def pieces(self) -> Pieces | None:
        """The body, of which ``body`` has nothing; None: it is whole in ``body`` all the same."""
        ...


class Exchange(Protocol):
    """One request and its answer, which is given exactly once: ``respond``, ``refuse``, ``open`` or ``accept``."""

    request: Request
    body: bytes | Spool
    on_lost: Callable[[], None] | None
    """Called when the client goes before it was answered."""
    on_eof: Callable[[], None] | None
    """Called when the client will send nothing more. It may still read an answer, but has most likely gone."""
    on_drain: Callable[[], None] | None
    """Called when the hub stops: answer now."""

    @property
    def framing(self) -> tuple[str, Callable[[bytes], bytes]]:
        """Name, and function, of how a piece of an open response goes onto the wire."""
        ...

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: Memo | None = None) -> None:
        """Answer. The server may give an answer with a memo again without asking."""
        ...

    def refuse(self, error: Exception) -> None:
        """Answer with an error as a problem document."""
        ...

    def open(self, status: int, headers: bytes, *, seconds: float | None = None) -> Sink:
        """Begin an answer without a known length; it is finished with ``expired`` after ``seconds``."""
        ...

    def accept(
        self,
        subprotocol: str | None,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None] | None = None,
    ) -> Socket:
        """Accept a WebSocket; ``on_text`` gets each text message of the client, ``on_binary`` each other."""
        ...


def parse_query(query: str) -> dict[str, list[str]]:
    """The parameters of a query string (WHATWG URL, application/x-www-form-urlencoded)."""
    result: dict[str, list[str]] = {}
    for pair in query.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            result.setdefault(_unquote(name), []).append(_unquote(value))
    return result


def unquote_path(path: str | bytes) -> str:
    """A percent-encoded path as text. Raises :class:`BadRequest` where it is not UTF-8."""
    try:
        return unquote_to_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise BadRequest("The path is not UTF-8 when percent-decoded.", code="path-invalid") from error


def _unquote(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "replace")


def preferred_wait_s(prefer: str | None) -> float | None:
    """Seconds of the preference ``wait`` (RFC 7240 section 4.3); None without it or where it makes no sense."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            value = value.strip().strip('"')
            return float(value) if value.isascii() and value.isdecimal() and len(value) < 9 else None
    return None


def position_of(request: Request, stream: StreamView, *, first: int = 0, required: bool = False) -> int:
    """Where a read begins: ``Last-Event-ID`` if there is one (a browser's resumption knows better than its URL), else
    the parameter ``offset``, else the start; but not before ``first``. Raises ``BadRequest`` or ``Gone``."""
    return max(first, _position_of(request, stream, required))


def _position_of(request: Request, stream: StreamView, required: bool) -> int:
    text = request.headers.get("last-event-id") or request.one("offset")
    if text is None:
        if required:
            raise BadRequest(
                "A live read needs the parameter offset: -1 (start), now, or an offset.", code="offset-missing"
            )
        return stream.start
    if text == "-1":
        return stream.start
    if text == "now":
        return stream.tail
    return stream.resolve(Offset.parse(text))


def policy_for(request: Request, stream: StreamView, *, follows: bool) -> Policy | None:
    """The delivery policy that a read names; None for ``catch-up``, or without one. Raises ``BadRequest``."""
    if "policy" not in request.query:
        return None
    one = request.one
    policy = policy_of(one("policy"), one("key"), one("interval"), one("lag"))
    if policy is not None:
        policy.require_fit(is_json=stream.config.is_json, follows=follows)
    return policy


def member_of(request: Request) -> str | None:
    """Who says to be present: the parameter ``member``, or the header ``Wayside-Member``."""
    return request.one("member") if "member" in request.query else request.headers.get("wayside-member")


def origin_of(request: Request) -> str:
    """Scheme and host as the client, or the proxy before the hub, has them; empty where they are not known."""
    host = request.headers.get("host")
    scheme = request.headers.get("x-forwarded-proto", request.scheme).partition(",")[0].strip()
    return f"{scheme if scheme in ('http', 'https') else 'http'}://{host}" if host else ""


def quote_header(value: str) -> str:
    """A header value without anything that could end it."""
    return value.encode("latin-1", "replace").decode("latin-1").translate({10: 32, 13: 32, 0: 32})
