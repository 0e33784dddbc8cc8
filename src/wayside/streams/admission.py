"""Whether a stream takes an append: what the protocol checks, in its order, before anything is queued.

Checked against all that was accepted before it, committed or not. Nothing here changes anything.
"""

from __future__ import annotations

from wayside.core.errors import BadRequest, Conflict, Fenced
from wayside.core.records import Append, Appended, Producer, Spool, media_type
from wayside.streams.stream import Stream


def check(stream: Stream, append: Append) -> Appended | None:
    """Whether an append is accepted: None if so, its answer if it was appended before; else raises a refusal.

    The order of the checks is the protocol's (section 5.2): fencing, closed, content type, sequence.
    """
    producer = append.producer
    plain = producer is None and append.seq is None and not stream.closing
    if plain and append.content_type == stream.config.content_type:
        return None
    known = stream.producers.get(producer.id) if producer else None
    if producer and known and producer.epoch < known[0]:
        raise Fenced(
            f"Producer {producer.id!r} is at epoch {known[0]}; {producer.epoch} is over. "
            "Another instance has taken over: stop, or begin anew with a higher epoch.",
            headers={"Producer-Epoch": str(known[0])},
            fields={"epoch": known[0]},
        )
    if stream.closing:
        if (producer and producer == stream.closed_by) or (producer is None and append.close and not _has_body(append)):
            return Appended(*stream.offset(stream.next), closed=True, duplicate=True, producer=producer)
        raise Conflict(
            f"{stream.path} is closed: nothing can be appended any more.",
            code="stream-closed",
            headers={"Stream-Closed": "true", "Stream-Next-Offset": str(stream.offset(stream.next))},
        )
    said = append.records is None or append.content_type is not None  # who has cut it up knows what the stream is
    if said and _has_body(append) and append.content_type != stream.config.content_type:
        _check_content_type(stream, append.content_type)
    if producer:
        if known is None or producer.epoch > known[0]:
            if producer.seq != 0:
                if known is not None:
                    raise BadRequest(
                        f"Epoch {producer.epoch} of producer {producer.id!r} is new: its first seq must be 0, "
                        f"not {producer.seq}.",
                        code="producer-epoch-start",
                    )
                raise _gap(producer, 0)
        elif producer.seq <= known[1]:
            return Appended(
                *stream.offset(stream.next), duplicate=True, producer=Producer(producer.id, known[0], known[1])
            )
        elif producer.seq != known[1] + 1:
            raise _gap(producer, known[1] + 1)
    if append.seq is not None and stream.seq is not None and append.seq.encode() <= stream.seq.encode():
        raise Conflict(
            f"Stream-Seq {append.seq!r} does not come after {stream.seq!r}, the last one, byte by byte.",
            code="seq-regression",
            fields={"last_seq": stream.seq},
        )
    return None


def _has_body(append: Append) -> bool:
    return bool(append.records) or isinstance(append.body, Spool) or bool(append.body)


def _check_content_type(stream: Stream, content_type: str | None) -> None:
    if content_type is None:
        raise BadRequest(
            f"Say what the body is: {stream.path} takes Content-Type: {stream.config.content_type}.",
            code="content-type-missing",
        )
    if media_type(content_type) != media_type(stream.config.content_type):
        raise Conflict(
            f"{stream.path} takes {stream.config.content_type}, not {content_type}. Send it with that Content-Type.",
            code="content-type-mismatch",
            fields={"content_type": stream.config.content_type},
        )


def _gap(producer: Producer, expected: int) -> Conflict:
    return Conflict(
        f"Producer {producer.id!r} sent seq {producer.seq}; {expected} is next. Send what is missing first.",
        code="producer-gap",
        headers={"Producer-Expected-Seq": str(expected), "Producer-Received-Seq": str(producer.seq)},
    )
