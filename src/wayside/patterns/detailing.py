"""Reading with what is known of records: a JSON array of them, each with its offset, time, headers, id and key.

It is asked for by ``Accept: application/vnd.wayside.records+json``; it may wait, as a long poll does.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec

from wayside.answers import HeldRead, head_fields
from wayside.contracts import Log, Stay, StreamView
from wayside.exchange import Exchange, policy_for, position_of
from wayside.model import Batch
from wayside.policies import Policy

PATTERN = "detailed"
RECORDS = "application/vnd.wayside.records+json"


def read(
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
        stay.renew(PATTERN)
    policy = policy_for(exchange.request, stream, follows=False)
    seconds = min(wait_s or 0.0, log.limits.wait_s_max)
    if position < stream.tail or stream.closed or seconds <= 0:
        _answer(exchange, log, stream, position, policy)
    else:
        _Wait(exchange, log, stream, position, policy, stay).wait(seconds)


def _answer(exchange: Exchange, log: Log, stream: StreamView, position: int, policy: Policy | None) -> None:
    head = head_fields(stream, stream.tail, etag=None, cache=b"no-store")
    _, _, rest = head.partition(b"\r\n")  # the stream's own content type
    sink = exchange.open(200, b"Content-Type: %b\r\n%b" % (RECORDS.encode(), rest))
    log.follow(stream, position, _Details(exchange.framing[1]), sink, PATTERN, until=stream.tail, policy=policy)


class _Wait(HeldRead):
    __slots__ = ()

    pattern = PATTERN

    def answer(self) -> None:
        _answer(self.exchange, self.log, self.stream, self.position, self.policy)


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
