"""Publishing of the Python client: records of one stream, or of several in one transaction."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from wayside.client.connection import RECONNECT_S_MAX, Answer, Channels, Unreachable
from wayside.client.values import refusal_of
from wayside.core.errors import Refusal
from wayside.core.metadata import NOTHING, Publication, Published, Said
from wayside.core.records import JSON
from wayside.link import frames as f

__all__ = ["Publishing"]


class Publishing:
    """What a client publishes with."""

    channels: Channels

    async def create(self, stream: str) -> None:
        """Create a stream of JSON, or find it."""
        raise NotImplementedError

    async def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        repeat: bool = False,
    ) -> f.ResponseFrame:
        """Any request of the HTTP interface."""
        raise NotImplementedError

    async def publish(
        self,
        stream: str,
        *records: Any,
        create: bool = True,
        id: str = "",
        key: str = "",
        headers: Mapping[str, str] | None = None,
        ttl: float = 0.0,
        delay: float = 0.0,
    ) -> str:
        """Append records: JSON values, ``str`` or ``bytes`` as the stream is. Returns the offset after them, once they
        are as durable as the stream promises. A stream that does not exist is made, as JSON, unless ``create`` is
        false.

        ``key``, ``headers`` and ``ttl`` (seconds for which readers are given them) are of each record, ``id`` is the
        message id of one: published again with it soon, it is not appended again, and the offset is that of the first;
        so it is sent again when the connection breaks. With a ``delay`` in seconds they are appended later, and "" is
        returned when that is certain."""
        channels = self.channels
        if not channels.connected:
            await channels.ready()
        encoded = [r if isinstance(r, bytes) else msgspec.json.encode(r) for r in records]
        kind = "" if all(isinstance(r, bytes) for r in records) else JSON
        said = Said(id, key, dict(headers or {}), float(ttl), float(delay))
        try:
            return await self._publish(stream, encoded, kind, said)
        except Refusal as refusal:
            if refusal.code == "content-type-mismatch" and all(isinstance(r, bytes | str) for r in records):
                texts = [r.encode() if isinstance(r, str) else r for r in records]  # it is no JSON stream: as they are
                return await self._publish(stream, texts, "", said)
            if refusal.code != "stream-not-found" or not create:
                raise
        await self.create(stream)
        return await self._publish(stream, encoded, kind, said)

    async def _publish(self, stream: str, records: list[bytes], content_type: str, said: Said) -> str:
        answer = Answer(self.channels, bool(said.id))
        frame = f.PublishFrame(answer.channel, stream, records, content_type)
        if said != NOTHING:
            frame.said = said
        published = await answer.send(frame)
        return str(published.offset)

    async def publish_all(self, publications: Iterable[Publication], *, create: bool = True) -> list[Published]:
        """Append records to several streams in one transaction: all of them, or none. Returns what became of each. Streams
        that do not exist are made first, as JSON, unless ``create`` is false. With a message id for each it is sent again
        when the connection breaks."""
        publications = list(publications)
        body = msgspec.json.encode({"records": [_published(publication) for publication in publications]})
        repeat = all(publication.id for publication in publications)
        for _ in range(len({publication.stream for publication in publications})):
            try:
                response = await self.request("POST", "/v1/publish", {"Content-Type": JSON}, body, repeat=repeat)
                return _results(response.body)
            except Refusal as refusal:
                if refusal.code != "stream-not-found" or not create:
                    raise
                missing = str(refusal.fields["stream"])
            await self.create(missing)
        response = await self.request("POST", "/v1/publish", {"Content-Type": JSON}, body, repeat=repeat)
        return _results(response.body)


class _Result(msgspec.Struct):
    offset: str = ""
    duplicate: bool = False
    due: str = ""


class _Results(msgspec.Struct):
    records: list[_Result]


def _results(body: bytes) -> list[Published]:
    results = msgspec.json.decode(body, type=_Results).records
    return [Published(result.offset, result.duplicate, result.due) for result in results]


def _published(publication: Publication) -> dict[str, Any]:
    """As ``/v1/publish`` takes it."""
    data = publication.data
    value = {"data_base64": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"data": data}
    said = publication.said
    more = {"id": said.id, "key": said.key, "headers": said.headers, "ttl": said.ttl_s, "delay": said.delay_s}
    return {"stream": publication.stream, **value, **{name: value for name, value in more.items() if value}}


SILENCE_S = 60.0
"""After which a connection is taken for broken: the hub says something every 15 s."""
RETRIES_MAX = 20
"""Attempts in a row to have an answer."""


async def http_events(url: str, offset: str) -> AsyncIterator[tuple[str, bytes]]:
    """``(id, data)`` of each event until one says that the stream is closed. Reconnects."""
    failures = 0
    while True:
        try:
            async for kind, identity, data in _once(url, offset):
                failures = 0
                offset = identity or offset
                if kind in ("closed", "deleted"):
                    return
                if kind:
                    yield identity, data
        except OSError as error:
            failures += 1
            if failures > RETRIES_MAX:
                raise Unreachable(f"{url} gives no events: {error}.") from error
        await asyncio.sleep(random.uniform(0, min(RECONNECT_S_MAX, 0.1 * 2**failures)))


class _Answer:
    """The answer to one GET, as llhttp reads it."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.parts: list[bytes] = []
        self.begun = self.complete = False

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


async def _once(url: str, offset: str) -> AsyncIterator[tuple[str, str, bytes]]:
    """``(kind, id, data)`` of each event; of no kind first, when the answer has begun."""
    parts = urlsplit(url)
    secure: Any = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure)
    try:
        resume = f"Last-Event-ID: {offset}\r\n" if offset not in ("-1", "now") else ""
        query = f"?offset={offset}" if not resume else ""
        writer.write(
            f"GET {parts.path}{query} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\n{resume}\r\n".encode()
        )
        answer = _Answer()
        held = b""
        told = False
        while data := await asyncio.wait_for(reader.read(65536), SILENCE_S):  # what is over is an OSError
            answer.parser.feed_data(data)
            if not answer.begun:
                continue
            status = answer.parser.get_status_code()
            if status == 204:
                yield "closed", "", b""
                return
            body = b"".join(answer.parts)
            answer.parts.clear()
            if status != 200:
                held += body
                if answer.complete:
                    raise _refused(status, held)
                continue
            if not told:
                told = True
                yield "", "", b""
            *blocks, held = (held + body).split(b"\n\n")
            for block in blocks:
                event = _event(block)
                if event is not None:
                    yield event
            if answer.complete:
                break
        raise ConnectionResetError("the answer ended")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _event(block: bytes) -> tuple[str, str, bytes] | None:
    kind, identity = "message", ""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"id":
            identity = value.decode("latin-1")
        elif name == b"event":
            kind = value.decode("latin-1")
    return (kind, identity, b"\n".join(data)) if data else None


def _refused(status: int, body: bytes) -> Refusal:
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {"status": status, "detail": f"The answer was HTTP {status}.", "code": "http"}
    return refusal_of(problem)
