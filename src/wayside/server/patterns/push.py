"""Push: the same loop over a WebSocket (RFC 6455).

A bare client gets each record as one message: text, or binary where the stream is. With the subprotocol
``wayside.v1`` it gets ``{"offset": ..., "data": ...}``, as many as it has granted by ``{"credit": n}``.
Either way the close frame says how it ended: 1000 ``closed``, 1012 ``resume=OFFSET``, 4404 ``deleted``, 4408 ``lagged``.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec

from wayside.core.records import Batch, Meta
from wayside.server.exchange import Exchange, Frames, Socket, policy_for, position_of
from wayside.streams.contract import Log, Reader, Stay, StreamView

PATTERN = "push"
SUBPROTOCOL = "wayside.v1"
CREDIT_MAX = 1_000_000


def read(exchange: Exchange, log: Log, stream: StreamView, *, first: int = 0, stay: Stay | None = None) -> None:
    """Answer an upgrade."""
    request = exchange.request
    position = position_of(request, stream, first=first)
    policy = policy_for(request, stream, follows=True)
    if stay is not None:
        stay.renew(PATTERN)
    offered = [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",")]
    enveloped = SUBPROTOCOL in offered
    session = _Session()
    socket = exchange.accept(SUBPROTOCOL if enveloped else None, session.on_text if enveloped else _ignore)
    session.socket = socket
    encoding = Envelopes(socket.frames) if enveloped else Bare(socket.frames)
    ended = stay.hold(PATTERN) if stay is not None else None
    session.reader = log.follow(
        stream, position, encoding, socket, PATTERN, credit=0 if enveloped else None, policy=policy, ended=ended
    )


def close_of(stream: StreamView, position: int, reason: str) -> tuple[int, str]:
    """Close code and reason of a push that ends."""
    offset = stream.offset(position)
    if reason == "closed":
        return 1000, f"closed at={offset}"
    if reason == "deleted":
        return 4404, "deleted"
    if reason == "lagged":
        return 4408, f"lagged resume={offset}"
    return 1012, f"resume={offset}"


def _ignore(_text: str) -> None:
    return None


def _is_utf_8(record: bytes) -> bool:
    """Whether a record may go into a text message (RFC 6455 section 8.1). A text stream may be of another charset."""
    try:
        return record.isascii() or bool(record.decode())
    except UnicodeDecodeError:
        return False


class _Session:
    __slots__ = ("reader", "socket")

    def __init__(self) -> None:
        self.socket: Socket | None = None
        self.reader: Reader | None = None

    def on_text(self, text: str) -> None:
        """``{"credit": n}``: n more records may be sent."""
        assert self.socket is not None
        try:
            grant = msgspec.json.decode(text, type=_Grant).credit
        except (msgspec.DecodeError, RecursionError):
            grant = 0
        if not 0 < grant <= CREDIT_MAX:
            self.socket.close(1008, f'send {{"credit": n}} with n from 1 to {CREDIT_MAX}')
        elif self.reader is not None:
            self.reader.grant(grant)


class _Grant(msgspec.Struct):
    credit: int


class _Messages:
    __slots__ = ("_frames", "heartbeat", "key")

    def __init__(self, frames: Frames) -> None:
        self.key: Any = (type(self).__name__, frames.key)
        self.heartbeat = frames.ping
        self._frames = frames

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None


class Bare(_Messages):
    """Records as they are: text, or binary where they are not UTF-8."""

    __slots__ = ()

    def encode(self, stream: StreamView, batches: list[Batch]) -> Any:
        make = self._frames.text if stream.config.is_text else self._frames.binary
        records = [record for batch in batches for record in batch.records]
        if stream.config.is_text and not stream.config.is_json:
            return self._frames.join([make(r) if _is_utf_8(r) else self._frames.binary(r) for r in records])
        return self._frames.join([make(record) for record in records])

    def end(self, stream: StreamView, position: int, reason: str, _told: bool) -> Any:
        return self._frames.join([self._frames.close(*close_of(stream, position, reason))])


def _beside(meta: Meta) -> bytes:
    """What is known of a record, as the rest of its envelope."""
    said = {name: value for name in ("headers", "id", "key") if (value := getattr(meta, name))}
    return b"," + json.dumps(said).encode()[1:] if said else b"}"


class Envelopes(_Messages):
    """``{"offset": where to read on, "data": the record}``; binary records as base64, said by ``encoding``. What its
    publisher said of a record stands beside it: ``headers``, ``id``, ``key``."""

    __slots__ = ()

    def encode(self, stream: StreamView, batches: list[Batch]) -> Any:
        config = stream.config
        text = self._frames.text
        messages: list[Any] = []
        for batch in batches:
            metas = batch.meta or {}
            for index, record in enumerate(batch.records):
                offset = str(stream.offset(batch.position + index + 1)).encode()
                if config.is_json:
                    message = b'{"offset":"%b","data":%b}' % (offset, record)
                elif config.is_text and _is_utf_8(record):
                    message = b'{"offset":"%b","data":%b}' % (offset, json.dumps(record.decode()).encode())
                else:
                    message = b'{"offset":"%b","encoding":"base64","data":"%b"}' % (offset, base64.b64encode(record))
                messages.append(text(message[:-1] + _beside(metas[index]) if index in metas else message))
        return self._frames.join(messages)

    def end(self, stream: StreamView, position: int, reason: str, _told: bool) -> Any:
        said: dict[str, object]
        offset = str(stream.offset(position))
        said = {"resume": offset}
        if reason in ("closed", "deleted", "lagged"):
            said = {reason: True, "offset": offset}
        close = self._frames.close(*close_of(stream, position, reason))
        return self._frames.join([self._frames.text(json.dumps(said).encode()), close])
