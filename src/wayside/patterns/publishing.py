"""Publishing: append a body as records, close a stream (Durable Streams sections 5.2, 5.2.1, 5.3); with what is said of
the records beside their bytes, and now or later."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial

from wayside.contracts import Log
from wayside.delaying import Delaying, Held
from wayside.errors import BadRequest
from wayside.exchange import Exchange, Request
from wayside.metadata import Said, rfc3339
from wayside.model import Append, Appended, Producer

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
