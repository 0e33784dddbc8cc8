"""Publishing records to several streams in one transaction: ``POST /v1/publish``."""

from __future__ import annotations

import base64
import binascii
from functools import partial
from typing import Any

import msgspec

from wayside.contracts import Log
from wayside.delaying import Delaying, Held, Item, require_type
from wayside.errors import BadRequest, Conflict, TooLarge
from wayside.exchange import Exchange
from wayside.metadata import Said, rfc3339
from wayside.model import Append, Spool, StreamConfig, media_type, require_path, require_public, require_size

_JSON = b"Content-Type: application/json\r\nCache-Control: no-store\r\n"


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
    delaying.append_all(items, partial(_answer, exchange, items))


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


def _answer(exchange: Exchange, items: list[Item], results: Any) -> None:
    if isinstance(results, Exception):
        exchange.refuse(results)
        return
    told: list[dict[str, Any]] = []
    for item, result in zip(items, results, strict=True):
        if isinstance(result, Held):
            told.append({"stream": item.path, "due": rfc3339(result.due_ms), "duplicate": result.duplicate})
        else:
            told.append({"stream": item.path, "offset": str(result.offset), "duplicate": result.duplicate})
    exchange.respond(200, _JSON, msgspec.json.encode({"records": told}))
