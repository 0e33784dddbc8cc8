"""WebSocket on a connection (RFC 6455): the handshake's answer, frames in through websockets' sans-I/O protocol, and
frames out, made once for all who share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from websockets.exceptions import InvalidHeaderValue
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side, State
from websockets.utils import accept_key

from wayside.contracts import Reader
from wayside.errors import BadRequest
from wayside.exchange import Request

if TYPE_CHECKING:
    from wayside.http.connection import Connection

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


class NativeSocket:
    """An accepted WebSocket on a :class:`Connection`."""

    __slots__ = ("_connection", "_ended", "_fragments", "_in_text", "_on_text", "_protocol")

    frames = _frames

    def __init__(self, connection: Connection, on_text: Callable[[str], None], message_bytes_max: int) -> None:
        self._connection = connection
        self._on_text = on_text
        self._protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=message_bytes_max)
        self._fragments: list[bytes] = []
        self._in_text = False
        """Whether the message whose fragments come is text; others are not kept."""
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
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.TEXT or event.opcode is Opcode.BINARY:
                self._in_text = event.opcode is Opcode.TEXT
            if self._in_text and (event.opcode is Opcode.TEXT or event.opcode is Opcode.CONT) and not self._ended:
                if event.data:
                    self._fragments.append(bytes(event.data))
                if event.fin:
                    message = b"".join(self._fragments)
                    self._fragments.clear()
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


__all__ = ["NativeFrames", "NativeSocket", "accept_headers"]
