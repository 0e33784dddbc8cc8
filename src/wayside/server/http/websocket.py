"""WebSocket on a connection (RFC 6455): the handshake's answer, frames in through websockets' sans-I/O protocol, and
frames out, made once for all who share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from websockets.exceptions import InvalidHeaderValue
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol as WebSocketProtocol
from websockets.protocol import Side, State
from websockets.utils import accept_key, apply_mask

from wayside.core.errors import BadRequest
from wayside.core.limits import Limits
from wayside.server.exchange import Request
from wayside.streams.contract import Reader

CLOSE_WAIT_S = 5.0


def accept_headers(request: Request, subprotocol: str | None) -> bytes:
    """The header fields of the 101 answer. Raises :class:`BadRequest` where the handshake is not one."""
    headers = request.headers
    key = headers.get("sec-websocket-key", "")
    connection = [token.strip().lower() for token in headers.get("connection", "").split(",")]
    if headers.get("sec-websocket-version") != "13" or len(key) != 24 or "upgrade" not in connection:
        raise BadRequest(
            "This is not a WebSocket handshake of version 13 (RFC 6455).",
            code="websocket-handshake",
            headers={"Sec-WebSocket-Version": "13"},
        )
    try:
        accept = accept_key(key)
    except InvalidHeaderValue as error:  # pragma: no cover - kept for other versions of the library
        raise BadRequest(str(error), code="websocket-handshake") from error
    lines = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    if subprotocol:
        lines += f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
    return lines.encode()


class NativeFrames:
    """Messages as the bytes of server frames, which are not masked and so the same for everybody."""

    key = "native"
    ping = Frame(Opcode.PING, b"").serialize(mask=False)

    def text(self, payload: bytes) -> bytes:
        return Frame(Opcode.TEXT, payload).serialize(mask=False)

    def binary(self, payload: bytes) -> bytes:
        return Frame(Opcode.BINARY, payload).serialize(mask=False)

    def close(self, code: int, reason: str) -> bytes:
        return Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False)

    def join(self, messages: list[bytes]) -> bytes:
        return b"".join(messages)


_frames = NativeFrames()


class Carrier(Protocol):
    """The connection that a WebSocket is on."""

    paused: bool
    reader: Reader | None

    @property
    def send(self) -> Callable[[bytes], int | None]: ...

    def write(self, data: bytes) -> None: ...

    def queue(self, data: bytes, sent: int) -> None: ...

    def attach(self, reader: Reader) -> None: ...

    def close(self) -> None:
        """Close when what is written has gone out."""
        ...

    def close_within(self, seconds: float) -> None:
        """Let the client close first, for so long."""
        ...

    def abort(self, error: Exception) -> None: ...


class NativeSocket:
    """An accepted WebSocket on a connection of our own server."""

    __slots__ = (
        "_binary_max",
        "_connection",
        "_ended",
        "_fragments",
        "_held",
        "_missing",
        "_on_binary",
        "_on_text",
        "_opcode",
        "_protocol",
    )

    frames = _frames

    def __init__(
        self,
        connection: Carrier,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None] | None,
        limits: Limits,
    ) -> None:
        self._connection = connection
        self._on_text = on_text
        self._on_binary = on_binary
        """None: binary messages are not kept."""
        size = limits.body_bytes_max if on_binary is not None else limits.body_memory_bytes_max
        self._binary_max = size
        self._protocol = WebSocketProtocol(Side.SERVER, state=State.OPEN, max_size=size)
        self._held: list[bytes] = []
        """The beginning of a frame whose rest is to come."""
        self._missing = 0
        """Bytes of it that are known to be missing."""
        self._fragments: list[bytes] = []
        self._opcode = Opcode.TEXT
        """Of the message whose fragments come."""
        self._ended = False
        """Our close frame is out: nothing may follow it."""

    def write(self, frame: bytes) -> None:
        self._connection.write(frame)

    @property
    def send(self) -> Callable[[bytes], int | None]:
        return self._connection.send

    def queue(self, frame: bytes, sent: int) -> None:
        self._connection.queue(frame, sent)

    @property
    def paused(self) -> bool:
        return self._connection.paused

    def attach(self, reader: Reader) -> None:
        self._connection.attach(reader)

    def receive(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._on_binary is None:
            self._general(data)
            return
        if self._held:
            self._held.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._held)
            self._held.clear()
        at, size = 0, len(data)
        self._missing = 0
        while size - at >= 6:
            # Whole binary frames of one fragment are taken here (RFC 6455 section 5.2): they are what clients of
            # /v1/connect send; all else goes to the library, frame by frame.
            length, head = data[at + 1] & 0x7F, 6
            if length == 126:
                length, head = int.from_bytes(data[at + 2 : at + 4], "big"), 8
            elif length == 127:
                if size - at < 10:
                    break
                length, head = int.from_bytes(data[at + 2 : at + 10], "big"), 14
            end = at + head + length
            plain = data[at] == 0x82 and data[at + 1] & 0x80 and not self._fragments
            if length > self._binary_max:
                end, plain = size, False  # refused by what it says of itself
            if end > size:
                self._missing = end - size
                break
            if plain and not self._ended:
                self._on_binary(apply_mask(data[at + head : end], data[at + head - 4 : at + head]))
            else:
                self._general(data[at:end])
            at = end
        if at < size:
            self._held.append(data[at:])

    def _general(self, data: bytes) -> None:
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.TEXT or event.opcode is Opcode.BINARY:
                self._opcode = event.opcode
            kept = self._opcode is Opcode.TEXT or self._on_binary is not None
            if kept and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT) and not self._ended:
                if event.data:
                    self._fragments.append(bytes(event.data))
                if event.fin:
                    message = b"".join(self._fragments)
                    self._fragments.clear()
                    if self._opcode is Opcode.BINARY:
                        assert self._on_binary is not None
                        self._on_binary(message)
                        continue
                    try:
                        text = message.decode()
                    except UnicodeDecodeError:
                        self.close(1007, "text must be UTF-8")
                        break
                    self._on_text(text)
            elif event.opcode is Opcode.CLOSE:
                self._leave()
        self._send()

    def _send(self) -> None:
        for data in self._protocol.data_to_send():
            if data and not self._ended:
                self.write(data)
            elif not data:
                self._leave()
                self._connection.close()

    def _leave(self) -> None:
        reader = self._connection.reader
        if reader is not None:
            reader.stop()

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        if self._protocol.state is State.OPEN:
            self._leave()
            self._protocol.send_close(code, reason)
            self._send()
            self.finish("")

    def finish(self, _reason: str) -> None:
        """The close frame is out: wait for the client's, a little."""
        self._ended = True
        self._connection.close_within(CLOSE_WAIT_S)

    def abort(self, error: Exception) -> None:
        self._connection.abort(error)
