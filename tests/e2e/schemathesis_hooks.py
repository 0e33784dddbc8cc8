"""What Schemathesis is told of media types that it does not know: loaded by its process (``SCHEMATHESIS_HOOKS``)."""

from __future__ import annotations

from typing import Any

import msgspec
import schemathesis

BINARY = ("application/x-protobuf", "application/offset+octet-stream")


@schemathesis.serializer("application/msgpack")
def write_msgpack(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Made-up values are those of JSON; integers beyond 64 bits are what no MessagePack has."""
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return b"\xc1"


@schemathesis.deserializer("application/msgpack")
def read_msgpack(_context: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return msgspec.msgpack.decode(response.content)


@schemathesis.serializer(*BINARY)
def write_bytes(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
