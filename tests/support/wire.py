"""A client that hides nothing: it sends the bytes it is given, and reads answers strictly.

Whatever RFC 9112 does not allow in an answer is an error here, even where every real client would let it pass.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from tests.support.waiting import PATIENCE_S

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) ([\x20-\x7e]*)")
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\x20-\x7e\x80-\xff]*)")
_CHUNK_LINE = re.compile(rb"[0-9a-f]{1,8}")
_ONCE = ("content-length", "transfer-encoding", "date", "etag", "stream-next-offset", "content-type", "connection")


class Malformed(AssertionError):
    """The server sent what HTTP/1.1 does not allow."""


@dataclass
class Response:
    """An answer as it came; ``body`` is without its framing."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes = b""
    head: bytes = field(default=b"", repr=False)

    def __getitem__(self, name: str) -> str:
        return self.headers[name.lower()]

    def get(self, name: str) -> str | None:
        return self.headers.get(name.lower())

    @property
    def offset(self) -> str:
        return self["Stream-Next-Offset"]

    @property
    def closes(self) -> bool:
        """Whether this is the last answer of its connection."""
        return (self.get("Connection") or "").lower() == "close"

    @property
    def is_chunked(self) -> bool:
        return self.get("Transfer-Encoding") == "chunked"


def request(
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    *,
    version: str = "1.1",
    host: str | None = "hub",
) -> bytes:
    """A request; ``body`` adds its Content-Length."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None and "Transfer-Encoding" not in (headers or {}):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def post(target: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """An append to a text stream, unless ``headers`` says what else it is."""
    return request("POST", target, {"Content-Type": "text/plain", **(headers or {})}, body)


def chunked(*pieces: bytes, trailers: bytes = b"", last: bytes = b"0") -> bytes:
    """Pieces as chunks, the last one included."""
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + last + b"\r\n" + trailers + b"\r\n"


def parse_head(head: bytes) -> Response:
    """An answer's head, with the empty line that ends it."""
    lines = head.split(b"\r\n")
    if lines[-2:] != [b"", b""]:
        raise Malformed(f"the head does not end in an empty line: {head!r}")
    status = _STATUS_LINE.fullmatch(lines[0])
    if status is None:
        raise Malformed(f"not a status line: {lines[0]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        found = _FIELD_LINE.fullmatch(line)
        if found is None:
            raise Malformed(f"not a field line: {line!r}")
        name, value = found[1].decode().lower(), found[2].decode("latin-1")
        if value != value.strip():
            raise Malformed(f"white space around a value: {line!r}")
        if name in headers:
            if name in _ONCE:
                raise Malformed(f"{name} is given twice: {head!r}")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    response = Response(int(status[1]), status[2].decode(), headers, head=head)
    _check_framing(response)
    return response


def _check_framing(response: Response) -> None:
    names = response.headers
    if "content-length" in names and "transfer-encoding" in names:
        raise Malformed(f"two framings: {response.head!r}")
    if (response.status < 200 or response.status == 204) and (
        "content-length" in names or "transfer-encoding" in names
    ):
        raise Malformed(f"a framing for {response.status}: {response.head!r}")
    if response.status >= 200 and "date" not in names:
        raise Malformed(f"no Date: {response.head!r}")
    if "content-length" in names and not re.fullmatch("[0-9]+", names["content-length"]):
        raise Malformed(f"not a length: {response.head!r}")
    if "transfer-encoding" in names and names["transfer-encoding"] != "chunked":
        raise Malformed(f"not a coding: {response.head!r}")


class Wire:
    """One TCP connection to the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._ended = False

    @classmethod
    async def connect(cls, address: tuple[str, int], *, receive_buffer: int | None = None) -> Self:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock)

    @property
    def local(self) -> tuple[str, int]:
        """The client's own address, which is the server's peer name for it."""
        host, port = self.socket.getsockname()
        return host, port

    # -- out

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._loop.sock_sendall(self.socket, data)

    async def send_apart(self, *parts: bytes) -> None:
        """Send parts so that the server reads each by itself: one pass of the event loop, which it shares, reads one."""
        for part in parts:
            if part:
                await self.send(part)
                for _ in range(3):
                    await asyncio.sleep(0)

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go without a word: RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    # -- in

    async def more(self) -> bool:
        """Read what there is, waiting for some; False at the end."""
        if self._ended:
            return False
        async with asyncio.timeout(PATIENCE_S):
            data = await self._loop.sock_recv(self.socket, 256 * 1024)
        self._buffer += data
        self._ended = not data
        return bool(data)

    async def until(self, mark: bytes) -> bytes:
        """Bytes up to and with ``mark``."""
        start = 0
        while (found := self._buffer.find(mark, start)) < 0:
            start = max(0, len(self._buffer) - len(mark) + 1)
            if not await self.more():
                raise Malformed(f"the connection ended in {bytes(self._buffer[:2000])!r}")
        return self._take(found + len(mark))

    async def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not await self.more():
                raise Malformed(f"the connection ended {size - len(self._buffer)} bytes early")
        return self._take(size)

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        while await self.more():
            pass
        return self._take(len(self._buffer))

    async def ended(self) -> bool:
        """Wait for the server to close; whether it sent nothing before."""
        try:
            return await self.rest() == b""
        except ConnectionResetError:
            return True

    def is_quiet(self) -> bool:
        """Whether nothing has arrived that was not read."""
        if self._buffer:
            return False
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b"?never"
        except BlockingIOError:
            return True

    async def head(self) -> Response:
        """The head of the next answer."""
        return parse_head(await self.until(b"\r\n\r\n"))

    async def response(self, method: str = "GET", version: str = "1.1") -> Response:
        """The next answer, to a request of that method and version."""
        response = await self.head()
        if response.status < 200 or response.status in (204, 304) or method == "HEAD":
            return response
        if response.is_chunked:
            if version == "1.0":
                raise Malformed("chunks for HTTP/1.0")
            parts = []
            while part := await self.chunk():
                parts.append(part)
            response.body = b"".join(parts)
        elif (length := response.get("Content-Length")) is not None:
            response.body = await self.exactly(int(length))
        elif version == "1.0" and response.closes:
            response.body = await self.rest()
        else:
            raise Malformed(f"a body without framing: {response.head!r}")
        return response

    async def chunk(self) -> bytes:
        """The next chunk of an open answer; empty for the last."""
        line = (await self.until(b"\r\n"))[:-2]
        if not _CHUNK_LINE.fullmatch(line):
            raise Malformed(f"not a chunk size: {line!r}")
        size = int(line, 16)
        data = await self.exactly(size)
        if await self.exactly(2) != b"\r\n":
            raise Malformed("a chunk does not end where it says")
        return data

    async def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        version: str = "1.1",
    ) -> Response:
        """Send one request and read its answer."""
        await self.send(request(method, target, headers, body, version=version))
        return await self.response(method, version)

    async def last_response(self, method: str = "GET") -> Response:
        """The next answer, which must say that it is the last, and be it."""
        response = await self.response(method)
        assert response.closes, f"this should be the last answer of its connection: {response.head!r}"
        rest = await self.rest()
        assert rest == b"", f"after the last answer came {rest!r}"
        return response
