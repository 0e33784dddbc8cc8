"""Publishing: append a body as records, close a stream (Durable Streams sections 5.2, 5.2.1, 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wayside.contracts import Log
from wayside.errors import BadRequest
from wayside.exchange import Exchange, Request
from wayside.model import Append, Appended, Producer

INTEGER_MAX = (1 << 53) - 1
"""JavaScript's."""
NAME_CHARACTERS_MAX = 1024
"""Of a producer's id and of a Stream-Seq, which are kept for each stream."""
PLAIN = {"host", "content-type", "content-length"}
"""The header fields of most appends, none of which changes what the append is."""


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


def append(exchange: Exchange, log: Log, path: str) -> None:
    """The same, with everything that header fields may ask for: a close, a sequence, an idempotent producer."""
    request = exchange.request
    append = Append(
        exchange.body,
        request.headers.get("content-type"),
        request.is_true("stream-closed"),
        _bounded("Stream-Seq", seq) if (seq := request.headers.get("stream-seq")) is not None else None,
        producer_of(request),
    )
    log.append(path, append, partial(_answer, exchange, append))


def _answer(exchange: Exchange, append: Append, result: Appended | Exception) -> None:
    if isinstance(result, Appended):
        new = append.producer is not None and not result.duplicate and append.body
        exchange.respond(200 if new else 204, _head(result))
    else:
        assert isinstance(result, Exception)
        exchange.refuse(result)


def _head(result: Appended) -> bytes:
    head = b"Stream-Next-Offset: %b\r\n" % str(result.offset).encode()
    if result.closed:
        head += b"Stream-Closed: true\r\n"
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
