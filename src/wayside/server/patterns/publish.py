"""Publishing: append a body as records, close a stream (Durable Streams sections 5.2, 5.2.1, 5.3); with what is said of
the records beside their bytes, and now or later."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from wayside.core.errors import BadRequest, Conflict, TooLarge
from wayside.core.metadata import Said, rfc3339
from wayside.core.records import (
    Append,
    Appended,
    Producer,
    Spool,
    StreamConfig,
    media_type,
    require_path,
    require_public,
    require_size,
)
from wayside.server.exchange import JSON_HEAD, Exchange, Request
from wayside.streams.contract import Log
from wayside.streams.delayed import Delaying, Held, Item, require_type

INTEGER_MAX = (1 << 53) - 1
"""JavaScript's."""
NAME_CHARACTERS_MAX = 1024
"""Of a producer's id and of a Stream-Seq, which are kept for each stream."""
PLAIN = {"host", "content-type", "content-length"}
"""The header fields of most appends, none of which changes what the append is."""
HEADER = "wayside-header-"
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?", re.ASCII)


def is_plain(request: Request) -> bool:
    """Whether its header fields change nothing about an append."""
    return request.headers.keys() <= PLAIN


def plain(request: Request, log: Log, path: str) -> Callable[[Exchange], None]:
    """What answers POSTs of bytes with this head, when they are as durable as the stream promises."""
    content_type = request.headers.get("content-type")

    def append_plain(exchange: Exchange) -> None:
        log.append(path, Append(exchange.body, content_type), partial(_answer_plain, exchange))

    return append_plain


def _answer_plain(exchange: Exchange, result: Appended | Exception) -> None:
    if type(result) is Appended and not result.closed:
        exchange.respond(204, b"Stream-Next-Offset: %011x_%016d\r\n" % (result.epoch, result.position))
    else:
        _answer(exchange, Append(exchange.body), result)


def append(exchange: Exchange, log: Log, delaying: Delaying, path: str) -> None:
    """The same, with everything that header fields may ask for: a close, a sequence, an idempotent producer, metadata, a
    delay."""
    request = exchange.request
    said = said_of(request)
    append = Append(
        exchange.body,
        request.headers.get("content-type"),
        request.is_true("stream-closed"),
        _bounded("Stream-Seq", seq) if (seq := request.headers.get("stream-seq")) is not None else None,
        producer_of(request),
    )
    if said is not None:
        append.meta = delaying.meta(said)
        if said.delay_s:
            delaying.append_later(path, append, said.delay_s, partial(_answer_later, exchange))
            return
    log.append(path, append, partial(_answer, exchange, append))


def _answer_later(exchange: Exchange, result: Held | Exception) -> None:
    if isinstance(result, Exception):
        exchange.refuse(result)
    else:
        head = b"Wayside-Due: %b\r\n" % rfc3339(result.due_ms).encode()
        exchange.respond(202, head + _DUPLICATE if result.duplicate else head)


_DUPLICATE = b"Wayside-Duplicate: true\r\n"


def said_of(request: Request) -> Said | None:
    """What header fields say of the records of an append; None where they say nothing."""
    headers = request.headers
    if not any(name.startswith("wayside-") for name in headers):
        return None
    return Said(
        _text(headers.get("wayside-message-id", "")),
        _text(headers.get("wayside-key", "")),
        {name[len(HEADER) :]: _text(value) for name, value in headers.items() if name.startswith(HEADER)},
        _seconds("Wayside-TTL", headers.get("wayside-ttl")),
        _seconds("Wayside-Delay", headers.get("wayside-delay")),
    )


def _text(value: str) -> str:
    """A header's value as the UTF-8 that it most likely is."""
    with contextlib.suppress(UnicodeError):
        return value.encode("latin-1").decode()
    return value


def _seconds(name: str, text: str | None) -> float:
    if text is None:
        return 0.0
    if not _SECONDS.fullmatch(text):
        raise BadRequest(
            f"{name} is a number of seconds, such as 90 or 0.5, not {text[:40]!r}.", code="parameter-invalid"
        )
    return float(text)


def _answer(exchange: Exchange, append: Append, result: Appended | Exception) -> None:
    if isinstance(result, Appended):
        new = append.producer is not None and not result.duplicate and append.body
        exchange.respond(200 if new else 204, _head(result, append.meta is not None))
    else:
        assert isinstance(result, Exception)
        exchange.refuse(result)


def _head(result: Appended, marked: bool) -> bytes:
    head = b"Stream-Next-Offset: %b\r\n" % str(result.offset).encode()
    if result.closed:
        head += b"Stream-Closed: true\r\n"
    if marked and result.duplicate:
        head += _DUPLICATE
    if result.producer:
        head += b"Producer-Epoch: %d\r\nProducer-Seq: %d\r\n" % (result.producer.epoch, result.producer.seq)
    return head


def producer_of(request: Request) -> Producer | None:
    """The idempotent producer's headers: all three, or none."""
    names = ("producer-id", "producer-epoch", "producer-seq")
    given = [request.headers.get(name) for name in names]
    if given == [None, None, None]:
        return None
    identity, epoch, seq = given
    if identity is None or epoch is None or seq is None:
        missing = ", ".join(name for name, value in zip(names, given, strict=True) if value is None)
        raise BadRequest(
            f"Producer-Id, Producer-Epoch and Producer-Seq go together: {missing} is missing.", code="producer-headers"
        )
    if not identity.strip():
        raise BadRequest("Producer-Id is empty.", code="producer-headers")
    _bounded("Producer-Id", identity)
    return Producer(identity, _integer("Producer-Epoch", epoch), _integer("Producer-Seq", seq))


def _bounded(name: str, text: str) -> str:
    if len(text) > NAME_CHARACTERS_MAX:
        raise BadRequest(
            f"{name} has {len(text)} characters; at most {NAME_CHARACTERS_MAX} are kept.", code="header-too-long"
        )
    return text


def _integer(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) > INTEGER_MAX:
        raise BadRequest(f"{name} must be a whole number from 0 to 2^53-1, not {text[:40]!r}.", code="producer-headers")
    return int(text)


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    """One record of the request: ``data`` is a JSON value, or text for a stream of text; other bytes are
    ``data_base64``."""

    stream: str
    data: msgspec.Raw = msgspec.Raw()
    data_base64: str | None = None
    content_type: str | None = None
    id: str = ""
    key: str = ""
    headers: dict[str, str] = {}
    ttl: float = 0.0
    delay: float = 0.0


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    records: list[_Record]


_decode = msgspec.json.Decoder(_Request).decode


def publish(exchange: Exchange, log: Log, delaying: Delaying) -> None:
    """Answer a POST: all of its records, or none."""
    body, limits = exchange.body, log.limits
    if media_type(exchange.request.headers.get("content-type", "")) != "application/json":
        raise Conflict('Send application/json: {"records": [...]}.', code="content-type-mismatch")
    size = body.size if isinstance(body, Spool) else len(body)
    require_size(size, limits.json_body_bytes_max, "The body")
    try:
        whole = body.read(0, size) if isinstance(body, Spool) else body
        if not whole.isascii():
            whole.decode()
        records = _decode(whole).records
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(
            f'The body is not {{"records": [{{"stream": ..., "data": ...}}, ...]}}: {error}. Nothing was appended.',
            code="json-malformed",
        ) from error
    if not records:
        raise BadRequest("There are no records: there is nothing to append.", code="empty-append")
    if len(records) > limits.append_records_max:
        raise TooLarge(
            f"There are {len(records)} records; the limit of one append is {limits.append_records_max}.",
            fields={"limit_records": limits.append_records_max},
        )
    items: list[Item] = []
    for number, record in enumerate(records):
        require_path(record.stream, limits.path_bytes_max)
        require_public(record.stream)
        config = log.find(record.stream).config
        if record.content_type is not None:
            require_type(log, record.stream, record.content_type)
        said = Said(record.id, record.key, record.headers, record.ttl, record.delay)
        append = Append(b"", records=[_data(record, config, number)], meta=delaying.meta(said))
        items.append(Item(record.stream, append, record.delay))
    delaying.append_all(items, partial(_answer_all, exchange, items))


def _data(record: _Record, config: StreamConfig, number: int) -> bytes:
    where = f"Record {number}, for {record.stream},"
    data = bytes(record.data)
    if (record.data_base64 is None) == (not data):
        raise BadRequest(f"{where} has to have data or data_base64, and not both.", code="record-data")
    if record.data_base64 is not None:
        try:
            data = base64.b64decode(record.data_base64, validate=True)
        except binascii.Error as error:
            raise BadRequest(f"{where} has data_base64 that is not base64: {error}.", code="record-data") from error
        if config.is_json:
            try:
                data.decode()
                msgspec.json.decode(data, type=msgspec.Raw)
            except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
                raise BadRequest(f"{where} is not JSON: {error}.", code="json-malformed") from error
    elif not config.is_json:
        try:
            data = msgspec.json.decode(data, type=str).encode()
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise BadRequest(
                f"{where} which is {config.content_type}, has to have text as data, or data_base64.", code="record-data"
            ) from error
    if not data.strip():
        raise BadRequest(f"{where} is empty: there is nothing to append.", code="empty-append")
    return data.replace(b"\r", b" ").replace(b"\n", b" ").strip() if config.is_json else data


def _answer_all(exchange: Exchange, items: list[Item], results: Any) -> None:
    if isinstance(results, Exception):
        exchange.refuse(results)
        return
    told: list[dict[str, Any]] = []
    for item, result in zip(items, results, strict=True):
        if isinstance(result, Held):
            told.append({"stream": item.path, "due": rfc3339(result.due_ms), "duplicate": result.duplicate})
        else:
            told.append({"stream": item.path, "offset": str(result.offset), "duplicate": result.duplicate})
    exchange.respond(200, JSON_HEAD, msgspec.json.encode({"records": told}))
