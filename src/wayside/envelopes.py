"""Records of several streams in one: each is wrapped in a JSON object that says whose it is.

``{"stream": path, "offset": where to read on in that stream, "data": the record}``. The record of a text stream is a
string, said by ``"encoding": "text"``, any other that is not JSON is base64, said by ``"encoding": "base64"``. What a
publisher said of a record is beside it: ``headers``, ``id``, ``key``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from wayside.contracts import StreamView
from wayside.model import Batch, Meta

__all__ = ["Unwrapped", "unwrap", "wrap"]


class _Envelope(msgspec.Struct):
    stream: str
    offset: str
    data: msgspec.Raw
    encoding: str = ""
    headers: dict[str, str] = {}
    id: str = ""
    key: str = ""


class Unwrapped(NamedTuple):
    """What was wrapped."""

    stream: str
    offset: str
    """In that stream."""
    data: bytes
    meta: Meta | None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Envelope).decode
_text_of = msgspec.json.Decoder(str).decode


def wrap(stream: StreamView, batch: Batch) -> list[bytes]:
    """The records of ``batch``, each in its envelope."""
    config = stream.config
    head = b'{"stream":%b,"offset":"' % _encode(stream.path)
    value: Callable[[bytes], bytes] = _json if config.is_json else _text if config.is_text else _base64
    metas = batch.meta or {}
    result: list[bytes] = []
    for index, record in enumerate(batch.records):
        offset = str(stream.offset(batch.position + index + 1)).encode()
        beside = _beside(metas[index]) if index in metas else b""
        result.append(b'%b%b"%b%b}' % (head, offset, beside, value(record)))
    return result


def unwrap(envelope: bytes) -> Unwrapped:
    """What :func:`wrap` wrapped."""
    held = _decode(envelope)
    data = bytes(held.data)
    if held.encoding == "base64":
        data = base64.b64decode(_text_of(data))
    elif held.encoding == "text":
        data = _text_of(data).encode()
    said = held.headers or held.id or held.key
    return Unwrapped(held.stream, held.offset, data, Meta(held.headers, held.id, held.key) if said else None)


def _json(record: bytes) -> bytes:
    return b',"data":' + record


def _text(record: bytes) -> bytes:
    try:
        return b',"encoding":"text","data":' + _encode(record.decode())
    except UnicodeDecodeError:  # of another charset
        return _base64(record)


def _base64(record: bytes) -> bytes:
    return b',"encoding":"base64","data":"%b"' % base64.b64encode(record)


def _beside(meta: Meta) -> bytes:
    said = {"headers": meta.headers, "id": meta.id, "key": meta.key}
    return b"".join([b',"%b":%b' % (name.encode(), _encode(value)) for name, value in said.items() if value])
