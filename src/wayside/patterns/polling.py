"""Polling: read after a cursor, answer at once (Durable Streams protocol, section 5.6)."""

from __future__ import annotations

from wayside.answers import answer, cache_control, etag_of, head_fields, matches
from wayside.contracts import Log, StreamView
from wayside.exchange import Exchange, position_of

PATTERN = "polling"


def read(exchange: Exchange, log: Log, stream: StreamView, *, first: int = 0) -> None:
    """Answer a plain GET."""
    position = position_of(exchange.request, stream, first=first)
    now = exchange.request.query.get("offset") == ["now"] and "last-event-id" not in exchange.request.headers
    if now:
        head = head_fields(stream, stream.tail, etag=None, cache=b"no-store")
        exchange.respond(200, head, b"[]" if stream.config.is_json else b"")
        return
    explicit = exchange.request.query.get("offset", ["-1"]) != ["-1"]
    data = position < stream.tail
    etag = etag_of(stream, position)
    if matches(exchange.request.headers.get("if-none-match"), etag):
        head = head_fields(stream, stream.tail, etag=etag, cache=cache_control(data and explicit))
        exchange.respond(304, head)
        return
    head = head_fields(stream, stream.tail, etag=etag, cache=cache_control(data and explicit))
    answer(exchange, log, stream, position, head, PATTERN)
