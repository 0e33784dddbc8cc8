"""The hub as an ASGI 3 application: the same routes and patterns under uvicorn, hypercorn or granian, mounted in
FastAPI or Starlette, or beside Django. Slower than the hub's own server, and otherwise the same."""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from wayside.core.errors import BadRequest, Refusal, TimedOut, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import Spool
from wayside.server.exchange import Pieces, Request, parse_query, unquote_path
from wayside.server.http.head import CORS, SECURITY, identity, problem, request_id, spool_failed
from wayside.server.http.request import ArrivingBody
from wayside.server.http.routes import Routes
from wayside.streams.contract import Reader, Sink

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Start = Callable[[], Awaitable[None]]


class AsgiApp:
    """``await app(scope, receive, send)``. ``start`` is awaited before the first request is answered."""

    def __init__(
        self, routes: Callable[[], Routes], limits: Limits, start: Start, stop: Start, spool_directory: Path | None
    ) -> None:
        self._routes = routes
        self._limits = limits
        self._start = start
        self._stop = stop
        self._spool_directory = spool_directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        await self._start()
        prefix = scope.get("root_path", "")
        path, unreadable = scope["path"], None
        raw = scope.get("raw_path")
        if raw and unquote_to_bytes(raw).decode("utf-8", "replace") == path:  # else somebody has rewritten the path
            try:
                unquote_path(raw)  # two that are not UTF-8 could be one when the server has decoded them
            except BadRequest as refusal:
                unreadable = refusal
        if prefix and path.startswith(prefix):  # ASGI 2.3 and later include the mount point in the path
            path = path[len(prefix) :]
        request = _request_of(scope, path or "/")
        exchange: _Exchange = (_WebSocket if scope["type"] == "websocket" else _Http)(request, self._limits, send)
        try:
            if scope["type"] == "websocket":
                request.headers["upgrade"] = "websocket"
            answer = self._routes().resolve(request, prefix)
            if scope["type"] == "websocket":
                exchange.deniable = "websocket.http.response" in (scope.get("extensions") or {})
                await receive()  # websocket.connect
            elif request.takes_pieces and unreadable is None:
                exchange.arriving = ArrivingBody()
            else:
                exchange.body = await self._body(receive)
            if unreadable is not None:
                raise unreadable
            answer(exchange)
        except _Disconnected:
            return
        except Exception as error:
            exchange.refuse(error)
        await exchange.run(receive)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._start()
                except Refusal as refusal:
                    await send({"type": "lifespan.startup.failed", "message": refusal.detail})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _body(self, receive: Receive) -> bytes | Spool:
        parts: list[bytes] = []
        size = 0
        spool: Any = None
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            part = message.get("body", b"")
            size += len(part)
            if size > self._limits.body_bytes_max:
                limit = self._limits.body_bytes_max
                raise TooLarge(
                    f"The body is over {limit} bytes. Send it in several appends.", fields={"limit_bytes": limit}
                )
            try:
                if spool is None and size > self._limits.body_memory_bytes_max:
                    spool = tempfile.TemporaryFile(dir=self._spool_directory)  # noqa: SIM115 - lives with the body
                    spool.write(b"".join(parts))
                    parts.clear()
                if spool is not None:
                    spool.write(part)
                elif part:
                    parts.append(part)
            except OSError as error:
                raise spool_failed(error) from error
            if not message.get("more_body"):
                return Spool(spool, size) if spool is not None else b"".join(parts)


class _Disconnected(Exception):
    pass


def _request_of(scope: Scope, path: str) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    query = scope.get("query_string", b"").decode("latin-1")
    target = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
    request = Request(scope.get("method", "GET"), target, path, parse_query(query), headers)
    request.scheme = scope.get("scheme", "http")
    if scope["type"] == "websocket":
        headers["sec-websocket-protocol"] = ", ".join(scope.get("subprotocols", []))
    return request


def _fields(headers: bytes) -> list[tuple[bytes, bytes]]:
    """Field lines as ASGI's pairs."""
    pairs = []
    for line in headers.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b":")
            pairs.append((name.lower(), value.strip()))
    return pairs


class _Exchange:
    """What both kinds have in common: messages are queued by patterns, and sent by :meth:`run`. Also the sink of an
    open answer."""

    framing: tuple[str, Callable[[bytes], bytes]] = ("asgi", identity)

    def __init__(self, request: Request, limits: Limits, send: Send) -> None:
        self.request = request
        self.body: bytes | Spool = b""
        self.arriving: ArrivingBody | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_eof: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        self.paused = False
        self._send = send
        self._limits = limits
        self._limit = limits.write_buffer_bytes_max
        self._out: deque[tuple[Message, int]] = deque()
        self._buffered = 0
        self._ready = asyncio.Event()
        self._ended = False
        self._reader: Reader | None = None
        self._seconds: float | None = None
        self._answered = False
        self._on_text: Callable[[str], object] = id
        self._on_binary: Callable[[bytes], object] = id

    @property
    def pieces(self) -> Pieces | None:
        return self.arriving

    def attach(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def send(self) -> Callable[[Any], int | None]:
        return self.write

    def queue(self, frame: Any, sent: int) -> None:
        raise AssertionError("write takes everything")

    def finish(self, _reason: str) -> None:
        raise NotImplementedError

    def write(self, frame: Any) -> None:
        raise NotImplementedError

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: object = None) -> None:
        raise NotImplementedError

    def refuse(self, error: Exception) -> None:
        raise NotImplementedError

    def open(self, status: int, headers: bytes, *, seconds: float | None = None) -> Sink:
        raise NotImplementedError

    def accept(
        self,
        subprotocol: str | None,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None] | None = None,
    ) -> Any:
        raise NotImplementedError

    def abort(self, error: Exception) -> None:
        self._error = error
        self._out.clear()
        self._put(None, 0)

    _error: Exception | None = None
    deniable = False
    """Whether a refused WebSocket can be answered with a body (ASGI extension ``websocket.http.response``)."""

    def _put(self, message: Message | None, size: int) -> None:
        if message is None:
            self._ended = True
        else:
            self._out.append((message, size))
            self._buffered += size
            if self._buffered > self._limit and not self.paused:
                self.paused = True
                if self._reader is not None:
                    self._reader.pause()
        self._ready.set()

    async def run(self, receive: Receive) -> None:
        """Send what is queued until the answer is complete or the client gone."""
        watch = asyncio.create_task(self._watch(receive))
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._seconds, self._expire) if self._seconds else None
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                while self._out:
                    message, size = self._out.popleft()
                    await self._send(message)
                    self._buffered -= size
                if self._ended:
                    break
                if self.paused and self._buffered <= self._limit // 4:
                    self.paused = False
                    if self._reader is not None:
                        self._reader.pump()
        except OSError:
            pass  # the client is gone
        finally:
            watch.cancel()
            if timer is not None:
                timer.cancel()
            if self._reader is not None:
                self._reader.stop()
            if self.on_lost is not None and not self._answered:
                self.on_lost()
        if self._error is not None:
            raise self._error  # the server cuts the answer

    def _expire(self) -> None:
        if self._reader is not None:
            self._reader.finish("expired")

    async def _watch(self, receive: Receive) -> None:
        there = self.arriving is None or await self._arrive(self.arriving, receive)
        while True:
            message = await receive() if there else {"type": "http.disconnect"}
            if message["type"] in ("http.disconnect", "websocket.disconnect"):
                self._out.clear()
                self._put(None, 0)
                return
            text, data = message.get("text"), message.get("bytes")
            if isinstance(text, str):
                self._on_text(text)
            elif isinstance(data, bytes):
                self._on_binary(data)

    async def _arrive(self, body: ArrivingBody, receive: Receive) -> bool:
        """Give a body on as it comes; returns whether the client has stayed."""
        flowing = asyncio.Event()
        body.on_flow = flowing.set
        while not body.ended:
            while body.rests:
                flowing.clear()
                await flowing.wait()
            seconds = self._limits.header_timeout_s
            try:
                async with asyncio.timeout(seconds):
                    message = await receive()
            except TimeoutError:
                body.end(TimedOut(f"The rest of the request did not come within {seconds:g} s."))
            else:
                if message["type"] == "http.disconnect":
                    return False
                body.hold(message.get("body", b""))
                if not message.get("more_body"):
                    body.end()
            body.deliver()
        return True


class _Http(_Exchange):
    def _start(self, status: int, headers: bytes) -> None:
        self._answered = True
        if "origin" in self.request.headers:
            headers += CORS
        self._put({"type": "http.response.start", "status": status, "headers": _fields(SECURITY + headers)}, 0)

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: object = None) -> None:
        if self._answered:
            return
        if self.request.method == "HEAD":
            body = b""
        elif status not in (204, 304):
            headers += b"Content-Length: %d\r\n" % len(body)
        self._start(status, headers)
        self._put({"type": "http.response.body", "body": body}, 0)
        self._put(None, 0)

    def refuse(self, error: Exception) -> None:
        if not isinstance(error, Refusal):
            if not self._answered:
                self.abort(error)
            return
        self.respond(*problem(error, request_id(self.request)))

    def open(self, status: int, headers: bytes, *, seconds: float | None = None) -> Sink:
        self._seconds = seconds
        self._start(status, headers)
        return self

    def write(self, frame: bytes) -> None:
        self._put({"type": "http.response.body", "body": frame, "more_body": True}, len(frame))

    def finish(self, _reason: str) -> None:
        self._put({"type": "http.response.body", "body": b""}, 0)
        self._put(None, 0)


class AsgiFrames:
    """Messages as ASGI events."""

    key = "asgi"
    ping = None

    def text(self, payload: bytes) -> Message:
        return {"type": "websocket.send", "text": payload.decode("utf-8", "replace")}

    def binary(self, payload: bytes) -> Message:
        return {"type": "websocket.send", "bytes": payload}

    def close(self, code: int, reason: str) -> Message:
        return {"type": "websocket.close", "code": code, "reason": reason}

    def join(self, messages: list[Message]) -> list[Message]:
        return messages


class _WebSocket(_Exchange):
    frames = AsgiFrames()

    def accept(
        self,
        subprotocol: str | None,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None] | None = None,
    ) -> Any:
        self._answered = True
        self._on_text = on_text
        self._on_binary = on_binary or id
        self._put({"type": "websocket.accept", "subprotocol": subprotocol}, 0)
        return self

    def write(self, frame: list[Message]) -> None:
        for message in frame:
            payload = message.get("text") or message.get("bytes") or b""
            self._put(message, len(payload))

    def finish(self, _reason: str) -> None:
        self._put(None, 0)

    def close(self, code: int, reason: str) -> None:
        if self._reader is not None:
            self._reader.stop()
        self._put(self.frames.close(code, reason), 0)
        self._put(None, 0)

    def refuse(self, error: Exception) -> None:
        if isinstance(error, Refusal) and self.deniable and not self._answered:
            status, headers, body = problem(error, request_id(self.request))
            self._answered = True
            headers = SECURITY + headers + b"Content-Length: %d\r\n" % len(body)
            self._put({"type": "websocket.http.response.start", "status": status, "headers": _fields(headers)}, 0)
            self._put({"type": "websocket.http.response.body", "body": body}, 0)
            self._put(None, 0)
        elif isinstance(error, Refusal):
            self.close(error.close_code, error.code)
        else:
            self.abort(error)

    def respond(self, status: int, headers: bytes, body: bytes = b"", memo: object = None) -> None:
        self.close(1008, f"HTTP {status}")
