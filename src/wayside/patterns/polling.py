"""Polling: read after a cursor, answer at once (Durable Streams protocol, section 5.6)."""

from __future__ import annotations

from wayside.answers import answer, cache_control, etag_of, head_fields
from wayside.contracts import Log, StreamView
from wayside.exchange import Exchange, position_of

PATTERN = "polling"


def read(exchange: Exchange, log: Log, stream: StreamView) -> None:
    """Answer a plain GET."""
    position = position_of(exchange.request, stream)
    now = exchange.request.query.get("offset") == ["now"] and "last-event-id" not in exchange.request.headers
    if now:
        head = head_fields(stream, stream.tail, etag=None, cache=b"no-store")
        exchange.respond(200, head, b"[]" if stream.config.is_json else b"")
        return
    explicit = exchange.request.query.get("offset", ["-1"]) != ["-1"]
    data = position < stream.tail
    etag = etag_of(stream, position)
    if _matches(exchange.request.headers.get("if-none-match"), etag):
        head = head_fields(stream, stream.tail, etag=etag, cache=cache_control(data and explicit))
        exchange.respond(304, head)
        return
    head = head_fields(stream, stream.tail, etag=etag, cache=cache_control(data and explicit))
    answer(exchange, log, stream, position, head, PATTERN)


def _matches(given: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names the tag: a star, or a list that is compared weakly (RFC 9110 section 13.1.2)."""
    return given is not None and (given == "*" or etag in [tag.strip().removeprefix("W/") for tag in given.split(",")])
