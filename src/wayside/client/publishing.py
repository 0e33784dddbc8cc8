"""Publishing of the Python client: records of one stream, or of several in one transaction."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from wayside import frames as f
from wayside.client.channels import Channels
from wayside.client.entries import Answer
from wayside.errors import Refusal
from wayside.metadata import NOTHING, Publication, Published, Said
from wayside.model import JSON

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
