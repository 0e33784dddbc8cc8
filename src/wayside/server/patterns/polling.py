"""Polling: read after a cursor, answer at once (Durable Streams protocol, section 5.6)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from wayside.core.policies import Policy
from wayside.core.records import Batch
from wayside.server.exchange import (
    Exchange,
    HeldRead,
    answer,
    cache_control,
    etag_of,
    head_fields,
    matches,
    policy_for,
    position_of,
)
from wayside.streams.contract import Log, Stay, StreamView

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


DETAILED = "detailed"
RECORDS = "application/vnd.wayside.records+json"


def read_records(
    exchange: Exchange,
    log: Log,
    stream: StreamView,
    wait_s: float | None,
    *,
    first: int = 0,
    stay: Stay | None = None,
) -> None:
    """Answer a GET; where there is nothing, within ``wait_s`` seconds."""
    position = position_of(exchange.request, stream, first=first)
    if stay is not None:
        stay.renew(DETAILED)
    policy = policy_for(exchange.request, stream, follows=False)
    seconds = min(wait_s or 0.0, log.limits.wait_s_max)
    give = partial(_answer, exchange, log, stream, position, policy)
    if position < stream.tail or stream.closed or seconds <= 0:
        give()
    else:
        HeldRead(exchange, stream, position, give).wait(seconds, stay.hold(DETAILED) if stay is not None else None)


def _answer(exchange: Exchange, log: Log, stream: StreamView, position: int, policy: Policy | None) -> None:
    head = head_fields(stream, stream.tail, etag=None, cache=b"no-store")
    _, _, rest = head.partition(b"\r\n")  # the stream's own content type
    sink = exchange.open(200, b"Content-Type: %b\r\n%b" % (RECORDS.encode(), rest))
    log.follow(stream, position, _Details(exchange.framing[1]), sink, DETAILED, until=stream.tail, policy=policy)


class _Details:
    """Encoding of one answer, for one reader."""

    heartbeat = None

    def __init__(self, frame: Callable[[bytes], bytes]) -> None:
        self.key = self
        self._frame = frame
        self._before = b"["

    def encode(self, stream: StreamView, batches: list[Batch]) -> bytes:
        parts = [msgspec.json.encode(record) for batch in batches for record in _records(stream, batch)]
        before, self._before = self._before, b","
        return self._frame(before + b",".join(parts))

    def caught_up(self, _stream: StreamView, _position: int) -> None:
        return None

    def end(self, _stream: StreamView, _position: int, _reason: str, _announced: bool) -> bytes:
        return self._frame(b"]" if self._before == b"," else b"[]")


def _records(stream: StreamView, batch: Batch) -> list[dict[str, Any]]:
    config = stream.config
    metas = batch.meta or {}
    result: list[dict[str, Any]] = []
    for index, record in enumerate(batch.records):
        told: dict[str, Any] = {"offset": str(stream.offset(batch.position + index + 1)), "time_ms": batch.time_ms}
        meta = metas.get(index)
        if meta is not None:
            told |= {name: value for name in ("headers", "id", "key") if (value := getattr(meta, name))}
            if meta.expires_ms:
                told["expires_ms"] = meta.expires_ms
        if config.is_json:
            told["data"] = msgspec.Raw(record)
        else:
            try:
                if not config.is_text:
                    raise ValueError
                told["data"] = record.decode()
            except ValueError:
                told["data_base64"] = base64.b64encode(record).decode()
        result.append(told)
    return result
