"""A stream's life: create or fork it, ask about it, list streams, delete it (Durable Streams 4.2, 5.1, 5.4, 5.5)."""

from __future__ import annotations

import datetime as dt
import re

import msgspec

from wayside.core.errors import BadRequest
from wayside.core.records import (
    Create,
    Created,
    Durability,
    Offset,
    Spool,
    StreamConfig,
    StreamInfo,
    is_reserved,
    require_public,
)
from wayside.server.exchange import JSON_HEAD, Exchange, Request, limit_of, origin_of, quote_header, unquote_path
from wayside.streams.contract import Log, StreamView


def create(exchange: Exchange, log: Log, path: str, base: str) -> None:
    """Answer a PUT; ``base`` is the URL path under which streams live."""
    request = exchange.request
    wanted = create_of(request, exchange.body, base)
    location = quote_header(f"{origin_of(request)}{request.target.partition('?')[0]}").encode("latin-1")

    def done(result: Created | Exception) -> None:
        if isinstance(result, Created):
            head = describe(result.info)
            if result.new:
                head += b"Location: %b\r\n" % location
            exchange.respond(201 if result.new else 200, head)
        else:
            exchange.refuse(result)

    log.create(path, wanted, done)


def delete(exchange: Exchange, log: Log, path: str) -> None:
    """Answer a DELETE."""

    def done(result: Exception | None) -> None:
        if result is None:
            exchange.respond(204, b"")
        else:
            exchange.refuse(result)

    log.delete(path, done)


def head(exchange: Exchange, stream: StreamView) -> None:
    """Answer a HEAD: what the stream is now."""
    exchange.respond(200, describe(stream.info()) + b"Cache-Control: no-store\r\n")


def list_streams(exchange: Exchange, log: Log) -> None:
    """Answer a GET of the collection: ``{"streams": [...], "next": "PATH" or null}``, by path, a page at a time."""
    request = exchange.request
    limit = limit_of(request)
    infos = _public(log, request.one("prefix") or "", request.one("after") or "", limit)
    body = msgspec.json.encode(
        {
            "streams": [as_json(info) for info in infos],
            "next": infos[-1].path if len(infos) == limit else None,
        }
    )
    exchange.respond(200, JSON_HEAD, body)


def _public(log: Log, prefix: str, after: str, limit: int) -> list[StreamInfo]:
    """A page of the list, without the streams that the hub keeps for itself."""
    found: list[StreamInfo] = []
    while True:
        page = log.list(prefix, after, limit - len(found))
        own = next((info.path.partition("/")[0] for info in page if is_reserved(info.path)), None)
        found += [info for info in page if not is_reserved(info.path)]
        if own is None or len(found) >= limit:
            return found[:limit]
        after = f"{own}/\U0010ffff"  # what is behind all of those
        found = [info for info in found if info.path <= after]


def as_json(info: StreamInfo) -> dict[str, object]:
    """A stream as the collection lists it."""
    config = info.config
    return {
        "path": info.path,
        "content_type": config.content_type,
        "durability": config.durability.value,
        "closed": info.closed,
        "tail": str(info.tail),
        "earliest": str(info.earliest),
        "records": info.tail.position - info.earliest.position,
        "bytes": info.size,
        "ttl_s": config.ttl_s,
        "expires_at": config.expires_at,
        "retention_bytes": config.retention_bytes,
        "retention_age_s": config.retention_age_s,
    }


def describe(info: StreamInfo) -> bytes:
    """The header fields that tell what a stream is."""
    config = info.config
    lines = [
        f"Content-Type: {quote_header(config.content_type)}",
        f"Stream-Next-Offset: {info.tail}",
        f"Stream-Earliest-Offset: {info.earliest}",
        f"Stream-Durability: {config.durability.value}",
        f"Stream-Bytes: {info.size}",
    ]
    if config.ttl_s is not None:
        lines.append(f"Stream-TTL: {config.ttl_s}")
    if config.expires_at is not None:
        lines.append(f"Stream-Expires-At: {config.expires_at}")
    if config.retention_bytes is not None:
        lines.append(f"Stream-Retention-Bytes: {config.retention_bytes}")
    if config.retention_age_s is not None:
        lines.append(f"Stream-Retention-Age: {config.retention_age_s}")
    if info.closed:
        lines.append("Stream-Closed: true")
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1", "replace")


def create_of(request: Request, body: bytes | Spool, base: str) -> Create:
    """A PUT as a creation. Raises :class:`BadRequest` for each malformed header."""
    headers = request.headers
    explicit: set[str] = set()
    values: dict[str, object] = {}

    def take(name: str, value: object) -> None:
        values[name] = value
        explicit.add(name)

    if content_type := headers.get("content-type", "").strip():
        take("content_type", content_type)
    if (text := headers.get("stream-durability")) is not None:
        try:
            take("durability", Durability(text.strip().lower()))
        except ValueError as error:
            raise BadRequest("Stream-Durability is fsync, async or memory.", code="durability-invalid") from error
    if (text := headers.get("stream-ttl")) is not None:
        take("ttl_s", whole_number("Stream-TTL", text))
    if (text := headers.get("stream-expires-at")) is not None:
        take("expires_at", text.strip())
        values["expires_at_ms"] = _time_ms(text.strip())
    for header, name in (("stream-retention-bytes", "retention_bytes"), ("stream-retention-age", "retention_age_s")):
        if (text := headers.get(header)) is not None:
            number = whole_number(header.title(), text)
            if number == 0:
                raise BadRequest(f"{header.title()} must be at least 1.", code="parameter-invalid")
            take(name, number)
    source = headers.get("stream-forked-from")
    offset: Offset | str | None = None
    sub = 0
    if source is not None:
        source = source_path(source, base)
        require_public(source)
        if (text := headers.get("stream-fork-offset")) is not None:
            offset = text if text in ("-1", "now") else Offset.parse(text)
        if (text := headers.get("stream-fork-sub-offset")) is not None:
            sub = whole_number("Stream-Fork-Sub-Offset", text)
            if sub and offset is None:
                raise BadRequest(
                    "Stream-Fork-Sub-Offset counts from Stream-Fork-Offset: give that too.",
                    code="fork-sub-offset-invalid",
                )
    elif "stream-fork-offset" in headers or "stream-fork-sub-offset" in headers:
        raise BadRequest("Stream-Fork-Offset needs Stream-Forked-From.", code="fork-source-missing")
    return Create(
        config=StreamConfig(**values),  # type: ignore[arg-type]
        explicit=frozenset(explicit),
        body=body,
        closed=request.is_true("stream-closed"),
        source=source,
        fork_offset=offset,
        fork_sub_offset=sub,
    )


_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def whole_number(name: str, text: str) -> int:
    """A non-negative integer as the protocol writes it: no sign, point, exponent or leading zero."""
    if not (text.isascii() and text.isdecimal()) or (len(text) > 1 and text[0] == "0") or len(text) > 15:
        raise BadRequest(f"{name} must be a whole number such as 3600, not {text[:40]!r}.", code="parameter-invalid")
    return int(text)


def _time_ms(text: str) -> int:
    """An RFC 3339 time in milliseconds since 1970."""
    try:
        if not _TIME.fullmatch(text):
            raise ValueError(text)
        return int(dt.datetime.fromisoformat(text.upper()).timestamp() * 1000)
    except ValueError as error:
        raise BadRequest(
            f"Stream-Expires-At must be a time like 2030-01-31T12:00:00Z (RFC 3339), not {text[:40]!r}.",
            code="parameter-invalid",
        ) from error


def source_path(url_path: str, base: str) -> str:
    """The stream that a URL path names; a bare stream path is taken as it is."""
    path = unquote_path(url_path.strip())
    return path.removeprefix(base) if path.startswith(base) else path.lstrip("/")
