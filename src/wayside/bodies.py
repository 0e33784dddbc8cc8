"""Bodies of requests that are JSON documents, as the values that they are to be."""

from __future__ import annotations

from typing import TypeVar

from wayside.codecs import Payload, codec_for
from wayside.errors import BadRequest, UnsupportedMediaType
from wayside.exchange import Exchange, Request
from wayside.model import JSON, Spool, media_type, require_size

__all__ = ["json_body", "limit_of"]

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
