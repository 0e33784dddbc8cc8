"""What a client says of streams and is told of them, in the words of the hub's interface."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec

from wayside.core.errors import Conflict
from wayside.core.metadata import Publication, Published
from wayside.core.records import Record
from wayside.link import frames as f
from wayside.link.channels import Row
from wayside.streams.union import unwrap

__all__ = ["as_texts", "follow_options", "publish_body", "publish_results", "record_of", "stream_target"]


def stream_target(path: str) -> str:
    """Where a stream is."""
    return "/v1/stream/" + quote(path, safe="/")


def follow_options(
    policy: str, key: str, interval: float, lag: int, member: str, *, whole: bool = False
) -> f.FollowOptions | None:
    """What a follower says beside its offset; None where it is nothing."""
    if policy == "catch-up" and not (key or interval or lag or member or whole):
        return None
    return f.FollowOptions(policy, key, float(interval), lag, member, whole)


def record_of(row: Row, wrapped: bool) -> Record:
    """A record as it came. ``wrapped``: of a glob, so that it says its stream."""
    stream, data, meta = "", row.data, row.meta
    if wrapped:
        stream, _, data, meta = unwrap(data)
    if meta is None:
        return Record(row.offset, data, 0, stream)
    return Record(row.offset, data, 0, stream, meta.headers, meta.id, meta.key)


def publish_body(publications: Iterable[Publication]) -> bytes:
    """Publications as ``/v1/publish`` takes them."""
    return msgspec.json.encode({"records": [_published(publication) for publication in publications]})


class _Result(msgspec.Struct):
    offset: str = ""
    duplicate: bool = False
    due: str = ""


class _Results(msgspec.Struct):
    records: list[_Result]


def publish_results(body: bytes) -> list[Published]:
    """What became of each, as ``/v1/publish`` answers."""
    results = msgspec.json.decode(body, type=_Results).records
    return [Published(result.offset, result.duplicate, result.due) for result in results]


def _published(publication: Publication) -> dict[str, Any]:
    data = publication.data
    value = {"data_base64": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"data": data}
    said = publication.said
    more = {"id": said.id, "key": said.key, "headers": said.headers, "ttl": said.ttl_s, "delay": said.delay_s}
    return {"stream": publication.stream, **value, **{name: value for name, value in more.items() if value}}


def as_texts(each: f.Publish, content_type: str) -> None:
    """Make JSON strings the texts that they are, for a stream that is not JSON. Raises Conflict for what is no string."""
    try:
        each.records = [msgspec.json.decode(record, type=str).encode() for record in each.records]
    except msgspec.DecodeError as error:
        raise Conflict(
            f"{each.stream} is {content_type}: publish texts or bytes to it.", code="content-type-mismatch"
        ) from error
    each.content_type = ""
