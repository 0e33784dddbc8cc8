"""What a pattern sees of one request: its method, path, headers and body, and where it writes the answer.

The HTTP server and the ASGI adapter each implement :class:`Exchange`; a pattern does not know which one
it talks to. ``headers`` of an answer are complete field lines, each ended by CRLF, because most of them
never change and are made once. Behind it stands what patterns have in common: where a read begins, what its answer says
of the stream, how a read waits, and how an answer goes on when something else has been done first.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import unquote_to_bytes

from wayside.core.callbacks import Done, report
from wayside.core.codecs import Payload, codec_for
from wayside.core.errors import BadRequest, Gone, NotFound, Refusal, UnsupportedMediaType
from wayside.core.policies import Policy, policy_of
from wayside.core.records import JSON, Batch, Spool, media_type, require_size, start_position
from wayside.streams.contract import Log, Sink, StreamView

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


Handler = Callable[[Exchange], None]
"""Answers one request. What it raises is answered as ``refuse`` does."""


JSON_HEAD = b"Content-Type: application/json\r\nCache-Control: no-store\r\n"
"""The header fields of most documents."""


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
    text = request.headers.get("last-event-id") or request.one("offset")
    if text is None:
        if required:
            raise BadRequest(
                "A live read needs the parameter offset: -1 (start), now, or an offset.", code="offset-missing"
            )
        text = "-1"
    return max(first, start_position(stream, text))


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


CURSOR_EPOCH_S = 1728432000
"""2024-10-09 00:00:00 UTC (Durable Streams section 10.1)."""
CURSOR_INTERVAL_S = 20


def answer(
    exchange: Exchange,
    log: Log,
    stream: StreamView,
    position: int,
    head: bytes,
    pattern: str,
    policy: Policy | None = None,
) -> None:
    """Send what is from ``position`` to the tail: everything, or what a policy lets through."""
    batches: list[Batch] | None = []
    if position < stream.tail and policy is None:
        batches = stream.read_nowait(position, log.limits.read_bytes_max)
    if policy is None and batches is not None and (not batches or batches[-1].end >= stream.tail):
        note = partial(log.delivered, pattern, sum([batch.count for batch in batches]))
        note()
        config = stream.config
        lasts = config.ttl_s is None and config.expires_at_ms is None and not any(batch.meta for batch in batches)
        memo = (stream, stream.version, note) if lasts and member_of(exchange.request) is None else None
        exchange.respond(200, head, body_of(stream, batches), memo)
        return
    sink = exchange.open(200, head)
    log.follow(
        stream, position, WholeBody(stream, exchange.framing[1]), sink, pattern, until=stream.tail, policy=policy
    )


def body_of(stream: StreamView, batches: list[Batch]) -> bytes:
    """The records of ``batches`` as one body: a JSON array, or the bytes one after another."""
    if stream.config.is_json:
        return b"[" + b",".join([record for batch in batches for record in batch.records]) + b"]"
    return b"".join([record for batch in batches for record in batch.records])


def cache_control(lasting: bool) -> bytes:
    """Records at a named offset never change; what comes after the tail, or at the start, does."""
    return b"public, max-age=60, stale-while-revalidate=300" if lasting else b"no-cache"


def etag_of(stream: StreamView, position: int) -> str:
    """Entity tag of what is between a position and the tail, and whether that is all there will be."""
    return f'"{stream.offset(stream.tail)}:{position}{":c" if stream.closed else ""}"'


def matches(given: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names the tag: a star, or a list that is compared weakly (RFC 9110 section 13.1.2)."""
    return given is not None and (given == "*" or etag in [tag.strip().removeprefix("W/") for tag in given.split(",")])


def head_fields(stream: StreamView, end: int, *, etag: str | None, cache: bytes, cursor: str | None = None) -> bytes:
    """The header fields of a read that ends at ``end``."""
    offset = str(stream.offset(end)).encode()
    parts = [
        b"Content-Type: %b\r\nStream-Next-Offset: %b\r\nCache-Control: %b\r\nVary: Accept, Last-Event-ID, Origin, Prefer\r\n"
        % (stream.config.content_type.encode("latin-1", "replace"), offset, cache)
    ]
    if end == stream.tail:
        parts.append(b"Stream-Up-To-Date: true\r\n")
        if stream.closed:
            parts.append(b"Stream-Closed: true\r\n")
    if etag is not None:
        parts.append(b"ETag: %b\r\n" % etag.encode())
    if cursor is not None:
        parts.append(b"Stream-Cursor: %b\r\n" % cursor.encode())
    return b"".join(parts)


class WholeBody:
    """Encoding of one long body, for one reader."""

    heartbeat = None

    def __init__(self, stream: StreamView, frame: Callable[[bytes], bytes]) -> None:
        self.key = self
        self._json = stream.config.is_json
        self._frame = frame
        self._before = b"["

    def encode(self, stream: StreamView, batches: list[Batch]) -> bytes:
        if not self._json:
            return self._frame(body_of(stream, batches))
        before, self._before = self._before, b","
        return self._frame(before + body_of(stream, batches)[1:-1])

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None

    def end(self, _stream: StreamView, _position: int, _reason: str, _announced: bool) -> bytes | None:
        if not self._json:
            return None
        return self._frame(b"]" if self._before == b"," else b"[]")


def cursor_after(given: str | None) -> int:
    """The cursor of a live answer: the number of the current interval, or past the client's own (section 10.1)."""
    now = int((time.time() - CURSOR_EPOCH_S) // CURSOR_INTERVAL_S)
    if given is None or not (given.isascii() and given.isdecimal()) or len(given) > 15 or int(given) < now:
        return now
    return int(given) + max(1, random.randint(1, 3600) // CURSOR_INTERVAL_S)


class HeldRead:
    """A read with nothing to give yet: ``answer`` is called when there is something, when its time is over, or when the hub
    stops."""

    __slots__ = ("_answer", "_exchange", "_forget", "_position", "_release", "_stream", "_timer")

    def __init__(self, exchange: Exchange, stream: StreamView, position: int, answer: Callable[[], None]) -> None:
        self._exchange = exchange
        self._stream = stream
        self._position = position
        self._answer = answer

    def wait(self, seconds: float, release: Callable[[], None] | None) -> None:
        """Hold it for so long at most; ``release`` is called when it is not held any more."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)
        self._forget = self._stream.wait(self._woken)
        self._release = release
        self._exchange.on_lost = self._leave
        self._exchange.on_drain = self._end

    def _woken(self) -> None:
        stream = self._stream
        if stream.deleted:
            self._leave()
            self._exchange.refuse(NotFound(f"{stream.path} was deleted.", fields={"stream": stream.path}))
        elif stream.tail > self._position or stream.closed:
            self._end()
        else:
            self._forget = stream.wait(self._woken)

    def _leave(self) -> None:
        self._exchange.on_lost = self._exchange.on_drain = None  # each held the other
        self._timer.cancel()
        self._forget()
        if self._release is not None:
            self._release()

    def _end(self) -> None:
        self._leave()
        self._answer()


def once_there(
    exchange: Exchange,
    begin: Callable[[Done], None],
    then: Callable[[Any], None],
    left: Callable[[Any], None] = lambda _result: None,
) -> None:
    """Go on to ``then`` with what ``begin`` gives its callback, at once or later; or refuse with that. Where the client has
    gone by then, ``left`` is given it instead: a follower that began now would never be stopped."""
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True

    def go(result: Any) -> None:
        if gone:
            left(result)
            return
        exchange.on_lost = None
        try:
            if isinstance(result, Exception):
                raise result
            then(result)
        except Exception as error:
            if not isinstance(error, Refusal):
                report(error, then)
            exchange.refuse(error)

    exchange.on_lost = leave
    begin(go)


def asking(log: Log, path: str, handler: Handler) -> Handler:
    """``handler``, of a stream that another hub of the same engine may have made, or appended to, just now: the engine is
    asked before it refuses."""
    if log.abilities.exclusive:
        return handler

    def answer(exchange: Exchange) -> None:
        try:
            handler(exchange)
        except (NotFound, Gone):
            once_there(exchange, partial(log.refresh, path), lambda _none: handler(exchange))

    return answer


T = TypeVar("T")
LIST_MAX = 1000


def json_body(exchange: Exchange, kind: type[T], bytes_max: int) -> T:
    """The body as a value of this type; an empty one is ``{}``. Raises ``InvalidInput`` with the ``field`` that does not fit,
    ``BadRequest`` where it is not JSON, ``UnsupportedMediaType``, ``TooLarge``."""
    body = exchange.body
    size = body.size if isinstance(body, Spool) else len(body)
    require_size(size, bytes_max, "The body")
    content_type = exchange.request.headers.get("content-type", "")
    if size and media_type(content_type) != JSON:
        said = f"{content_type[:80]!r}" if content_type else "of no type"
        raise UnsupportedMediaType(
            f"The body is {said}. Send it as {JSON}, and say so in Content-Type.",
            headers={"Accept-Post": JSON},
            fields={"media_types": [JSON]},
        )
    data = body.read(0, size) if isinstance(body, Spool) else body
    value: T = codec_for(kind).decode(Payload(data or b"{}", JSON))
    return value


def limit_of(request: Request) -> int:
    """The parameter ``limit`` of a list. Raises ``BadRequest``."""
    text = request.one("limit") or "100"
    if not (text.isascii() and text.isdecimal() and len(text) < 9) or not 1 <= int(text) <= LIST_MAX:
        raise BadRequest(f"limit must be from 1 to {LIST_MAX}.", code="parameter-invalid")
    return int(text)


MEMBER_CHARACTERS_MAX = 256
"""Of the name of a member."""


def require_member(name: str) -> None:
    """Raise :class:`BadRequest` or ``TooLarge`` for what is no name of a member."""
    require_size(len(name.encode()), MEMBER_CHARACTERS_MAX, "The name of the member")
    if not name.isprintable() or not name:
        raise BadRequest("A member has a printable name.", code="member-invalid")
