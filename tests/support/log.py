"""A log in a test: its callbacks as coroutines, and short words for what is done most."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

from tests.support.waiting import PATIENCE_S, until
from wayside.core.records import (
    JSON,
    Append,
    Appended,
    Batch,
    Create,
    Created,
    Durability,
    Meta,
    Offset,
    Producer,
    Spool,
    StreamConfig,
)
from wayside.streams.contract import StreamView
from wayside.streams.streams import Streams

TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"


class Answer:
    """A ``Done`` that keeps what it was told."""

    def __init__(self) -> None:
        self.result: Any = None
        self.given = False
        self._event = asyncio.Event()

    def __call__(self, result: Any) -> None:
        assert not self.given, f"answered twice: {self.result!r}, then {result!r}"
        self.result = result
        self.given = True
        self._event.set()

    async def wait(self) -> Any:
        """The result; an exception is raised."""
        async with asyncio.timeout(PATIENCE_S):
            await self._event.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def creation(
    content_type: str = JSON,
    *,
    durability: Durability | None = None,
    body: bytes | Spool = b"",
    closed: bool = False,
    source: str | None = None,
    fork_offset: Offset | str | None = None,
    fork_sub_offset: int = 0,
    **config: Any,
) -> Create:
    """A creation; what is given counts as stated by the client."""
    explicit = set(config)
    if source is None:
        explicit.add("content_type")
    if durability is not None:
        explicit.add("durability")
    return Create(
        StreamConfig(content_type=content_type, durability=durability or Durability.FSYNC, **config),
        frozenset(explicit),
        body=body,
        closed=closed,
        source=source,
        fork_offset=fork_offset,
        fork_sub_offset=fork_sub_offset,
    )


def begin_create(log: Streams, path: str, create: Create | None = None) -> Answer:
    """Ask for a stream; its answer comes when it is committed."""
    answer = Answer()
    log.create(path, create or creation(), answer)
    return answer


async def create(log: Streams, path: str, create: Create | None = None) -> Created:
    result: Created = await begin_create(log, path, create).wait()
    return result


def begin_append(
    log: Streams,
    path: str,
    body: bytes | Spool = b"",
    *,
    close: bool = False,
    seq: str | None = None,
    producer: tuple[str, int, int] | None = None,
    content_type: str | None = None,
) -> Answer:
    """Append; the content type is the stream's unless one is given. Refusals of the check are raised at once."""
    answer = Answer()
    kind = content_type or log.find(path, touch=False).config.content_type
    log.append(path, Append(body, kind, close, seq, Producer(*producer) if producer else None), answer)
    return answer


async def append(log: Streams, path: str, body: bytes | Spool = b"", **options: Any) -> Appended:
    result: Appended = await begin_append(log, path, body, **options).wait()
    return result


def begin_publish(log: Streams, path: str, *records: bytes, meta: dict[int, Meta] | Meta | None = None) -> Answer:
    """Append records with what is known beside them."""
    answer = Answer()
    log.append(path, Append(b"", records=records, meta=meta), answer)
    return answer


async def publish(log: Streams, path: str, *records: bytes, meta: dict[int, Meta] | Meta | None = None) -> Appended:
    result: Appended = await begin_publish(log, path, *records, meta=meta).wait()
    return result


async def delete(log: Streams, path: str) -> None:
    answer = Answer()
    log.delete(path, answer)
    await answer.wait()


async def read_batches(stream: StreamView, position: int | None = None, bytes_max: int = 1 << 20) -> list[Batch]:
    """Everything from ``position`` (None: the start) to the tail, a page at a time."""
    at = stream.start if position is None else position
    result: list[Batch] = []
    while at < stream.tail:
        page = await stream.read(at, bytes_max)
        assert page, f"nothing at {at} of {stream!r}"
        for batch in page:
            assert batch.position == at, f"{batch!r} where {at} was next"
            at = batch.end
        result += page
    return result


async def read_records(log: Streams, path: str, position: int | None = None, bytes_max: int = 1 << 20) -> list[bytes]:
    """The records of :func:`read_batches`."""
    batches = await read_batches(log.find(path, touch=False), position, bytes_max)
    return [record for batch in batches for record in batch.records]


def offset_at(log: Streams, path: str, position: int) -> Offset:
    return log.find(path, touch=False).offset(position)


async def settle(log: Streams) -> None:
    """Wait until everything that was acknowledged is on the disk."""
    await until(lambda: not log.statistics().uncommitted_bytes)


def spool(data: bytes) -> Spool:
    """A body that was too large for memory."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives with the body
    file.write(data)
    return Spool(file, len(data))


def expire(log: Streams) -> None:
    """What the sweep does once a second: end streams whose time is over."""
    log.retention.expire(log.clock.wall_ms())


def retain_by_age(log: Streams) -> None:
    """What the sweep does now and then: let old records go."""
    log.retention.retain_by_age(log.clock.wall_ms())
