"""Polling: read after a cursor, answer at once (Durable Streams protocol, section 5.6)."""

from __future__ import annotations

from wayside.answers import answer, cache_control, etag_of, head_fields, matches
from wayside.contracts import Log, Stay, StreamView
from wayside.exchange import Exchange, policy_for, position_of

PATTERN = "polling"


def read(exchange: Exchange, log: Log, stream: StreamView, *, first: int = 0, stay: Stay | None = None) -> None:
    """Answer a plain GET."""
    position = position_of(exchange.request, stream, first=first)
    policy = policy_for(exchange.request, stream, follows=False)
    if stay is not None:
        stay.renew(PATTERN)
    now = exchange.request.query.get("offset") == ["now"] and "last-event-id" not in exchange.request.headers
    if now:
        head = head_fields(stream, stream.tail, etag=None, cache=b"no-store")
        exchange.respond(200, head, b"[]" if stream.config.is_json else b"")
        return
    explicit = exchange.request.query.get("offset", ["-1"]) != ["-1"]
    data = position < stream.tail
    etag = etag_of(stream, position)
    cache = b"no-store" if stay is not None else cache_control(data and explicit)  # kept, it would renew no lease
    if matches(exchange.request.headers.get("if-none-match"), etag):
        head = head_fields(stream, stream.tail, etag=etag, cache=cache)
        exchange.respond(304, head)
        return
    head = head_fields(stream, stream.tail, etag=etag, cache=cache)
    answer(exchange, log, stream, position, head, PATTERN, policy)
