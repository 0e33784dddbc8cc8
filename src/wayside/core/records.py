"""The nouns: offset, batch of records, stream configuration, append. Values only: no clock, no disk, no socket."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgspec

from wayside.core.errors import BadRequest, NotFound, TooLarge

__all__ = [
    "batches_from",
    "JSON",
    "Append",
    "Appended",
    "Batch",
    "Create",
    "Created",
    "Durability",
    "Meta",
    "Offset",
    "Producer",
    "Record",
    "Spool",
    "StreamConfig",
    "StreamInfo",
    "is_reserved",
    "cost_of",
    "media_type",
    "metas_between",
    "require_config",
    "require_path",
    "require_public",
    "require_size",
    "runs",
    "split_records",
    "start_position",
]

JSON = "application/json"
RESERVED = frozenset(
    {"__ds", "__call", "__callback", "__index", "__group", "__presence", "__service", "__upload", "__delayed"}
)
"""First segments of the paths that a hub keeps for itself."""
BATCH_COST, RECORD_COST = 300, 60
"""Bytes of memory that a batch, and each record, take beside the records' own bytes (CPython 3.11, 64 bits)."""
META_COST, HEADER_COST = 420, 110
"""The same, of the metadata of a record, and of each header in it."""


class Offset(NamedTuple):
    """A position in one life of a stream, as the text ``EEEEEEEEEEE_PPPPPPPPPPPPPPPP``.

    ``epoch`` (11 hexadecimal digits) is never reused, so a stream that was deleted and made again is
    noticed; ``position`` (16 decimal digits) is the number of records before this point. Epochs grow
    with time, so the text sorts as the offset does (Durable Streams protocol, section 8).
    """

    epoch: int
    position: int

    def __str__(self) -> str:
        return f"{self.epoch:011x}_{self.position:016d}"

    @classmethod
    def parse(cls, text: str) -> Offset:
        """Read an offset token; raises :class:`BadRequest` for anything that this server never gives out."""
        if text == _ZERO:
            return cls(0, 0)
        if not _OFFSET.fullmatch(text):
            raise BadRequest(
                f"{text[:64]!r} is not an offset. Use one that this server gave you, or -1 (start), or now (tail).",
                code="offset-malformed",
            )
        return cls(int(text[:11], 16), int(text[12:]))


_OFFSET = re.compile(r"[0-9a-f]{11}_[0-9]{16}", re.ASCII)
_ZERO = "0000000000000000_0000000000000000"
"""The first position of any stream, as clients of the protocol's own server write it. Never given out here."""


class Durability(enum.StrEnum):
    """When an append is acknowledged: chosen for each stream when it is created."""

    FSYNC = "fsync"
    """After the disk has it."""
    ASYNC = "async"
    """At once; the disk has it within 100 ms. A crash may lose what was acknowledged in that time."""
    MEMORY = "memory"
    """At once; the disk never has it, nor the stream itself."""


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """What is chosen when a stream is created, and never changes."""

    content_type: str = "application/octet-stream"
    durability: Durability = Durability.FSYNC
    ttl_s: int | None = None
    """Seconds without a read or a write after which the stream expires."""
    expires_at_ms: int | None = None
    """Wall-clock time of expiry in milliseconds since 1970."""
    expires_at: str | None = None
    """The same as the client wrote it (RFC 3339)."""
    retention_bytes: int | None = None
    """Bytes of records that are kept at least; the oldest go first. None: the default bound."""
    retention_age_s: int | None = None
    """Seconds for which a record is kept at least. None: no bound by age."""

    @property
    def is_json(self) -> bool:
        return media_type(self.content_type) == JSON

    @property
    def is_text(self) -> bool:
        """Whether records go into server-sent events as they are; all others are base64 there."""
        kind = media_type(self.content_type)
        return kind == JSON or kind.startswith("text/")


def media_type(content_type: str) -> str:
    """``type/subtype`` in lower case, without parameters (RFC 9110 section 8.3.1)."""
    return content_type.partition(";")[0].strip().lower()


class Meta(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True, gc=False):
    """What a publisher said of one record beside its bytes."""

    headers: dict[str, str] = {}
    id: str = ""
    """Message id: a second record with it is a duplicate, for a while."""
    key: str = ""
    """Records with one key are handled one after another, where a reader asks for that."""
    expires_ms: int = 0
    """Wall-clock time in milliseconds since 1970 from which on no reader is given it; 0: never."""

    @property
    def cost(self) -> int:
        """About how many bytes of memory it takes."""
        size = META_COST + len(self.id) + len(self.key)
        for name, value in self.headers.items():
            size += HEADER_COST + len(name) + len(value)
        return size


def cost_of(metas: dict[int, Meta]) -> int:
    """About how many bytes of memory they take."""
    return sum(meta.cost for meta in metas.values())


def metas_between(metas: dict[int, Meta] | None, start: int, end: int) -> dict[int, Meta] | None:
    """Of ``metas``, by index, those from ``start`` to before ``end``, with indices from ``start`` on; None for none."""
    if metas is None:
        return None
    return {index - start: meta for index, meta in metas.items() if start <= index < end} or None


class Batch(msgspec.Struct, eq=False, gc=False):  # a Struct, as one is made for each commit of each stream
    """Records that became visible together: a run of positions in one stream."""

    position: int
    time_ms: int
    records: list[bytes]
    _size: int = -1
    meta: dict[int, Meta] | None = None
    """By index in ``records``, of those that have any; None where none has."""
    lapsed: bool = False
    """Whether records between the batch before it, or the position that was read from, and this one are left out, as they have
    expired. Where it is False there never were any, whatever gap there is between the positions."""

    @property
    def count(self) -> int:
        """How many records."""
        return len(self.records)

    @property
    def end(self) -> int:
        """The position after the last record."""
        return self.position + len(self.records)

    @property
    def size(self) -> int:
        """Bytes of all records."""
        if self._size < 0:
            self._size = sum(map(len, self.records))
        return self._size

    @property
    def cost(self) -> int:
        """About how many bytes of memory it takes."""
        cost = self.size + BATCH_COST + RECORD_COST * self.count
        return cost if self.meta is None else cost + cost_of(self.meta)

    def since(self, position: int) -> Batch:
        """The part at and after ``position``, which must be inside."""
        if position <= self.position:
            return self
        skipped = position - self.position
        return Batch(
            position, self.time_ms, self.records[skipped:], meta=metas_between(self.meta, skipped, len(self.records))
        )

    def until(self, position: int) -> Batch:
        """The part before ``position``, which must be inside."""
        if position >= self.end:
            return self
        count = position - self.position
        metas = metas_between(self.meta, 0, count)
        return Batch(self.position, self.time_ms, self.records[:count], meta=metas, lapsed=self.lapsed)

    def __repr__(self) -> str:
        return f"<Batch {self.position}..{self.end} {self.size} bytes>"


def batches_from(batches: Iterable[Batch], position: int, bytes_max: int, records_max: int) -> list[Batch]:
    """What comes after ``position`` in ``batches``: about so many bytes, at most so many records, at least one batch."""
    found: list[Batch] = []
    for batch in batches:
        if batch.end <= position:
            continue
        if found and (bytes_max <= 0 or records_max <= 0):
            break
        batch = batch.since(position)
        batch = batch.until(batch.position + records_max)
        found.append(batch)
        bytes_max -= batch.size
        records_max -= batch.count
    return found


class Record(NamedTuple):
    """One record as a program sees it."""

    offset: str
    """Where to read on after this record."""
    data: bytes
    time_ms: int
    stream: str = ""
    """Whose it is, where a glob was read."""
    headers: Mapping[str, str] = {}
    """What its publisher said of it; names are in lower case."""
    id: str = ""
    key: str = ""

    def json(self) -> Any:
        """The record's JSON value."""
        return msgspec.json.decode(self.data)


class Spool:
    """A body too large for memory, in an unlinked file on disk; ``pieces`` are (start, length) in bytes."""

    __slots__ = ("file", "size")

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size

    def read(self, start: int, length: int) -> bytes:
        self.file.seek(start)
        return self.file.read(length)

    def pieces(self, piece_bytes: int, *, text: bool) -> list[tuple[int, int]]:
        """Cut into pieces; between characters and not inside one where the body is UTF-8 text."""
        cuts: list[tuple[int, int]] = []
        start = 0
        while start < self.size:
            length = min(piece_bytes, self.size - start)
            if text and start + length < self.size:
                window = self.read(start + length - 3, 4)
                back = next((k for k in range(4) if window[3 - k] & 0xC0 != 0x80), 0)
                length -= back
            cuts.append((start, length))
            start += length
        return cuts


@dataclass(frozen=True, slots=True)
class Producer:
    """An idempotent producer's claim on one append (Durable Streams section 5.2.1)."""

    id: str
    epoch: int
    seq: int


class Append(msgspec.Struct, gc=False):
    """One append as it arrived. ``body`` may be empty only where ``close`` is set."""

    body: bytes | Spool
    content_type: str | None = None
    close: bool = False
    seq: str | None = None
    producer: Producer | None = None
    records: Sequence[bytes] | None = None
    """The body already cut into records, where the caller has them; then ``body`` is not looked at."""
    meta: dict[int, Meta] | Meta | None = None
    """By index of its records; one ``Meta`` is that of each of them. Only an append of one record has an id."""

    def metas(self, count: int) -> dict[int, Meta]:
        """``meta`` by index of its ``count`` records."""
        if isinstance(self.meta, Meta):
            return dict.fromkeys(range(count), self.meta)
        return {index: meta for index, meta in (self.meta or {}).items() if 0 <= index < count}


class Appended(msgspec.Struct, frozen=True, gc=False):
    """What became of an append."""

    epoch: int
    position: int
    """The tail after it, with ``epoch``."""
    closed: bool = False
    duplicate: bool = False
    """It had been appended before; nothing was added now."""
    producer: Producer | None = None
    """Highest accepted epoch and seq of the producer."""

    @property
    def offset(self) -> Offset:
        return Offset(self.epoch, self.position)


@dataclass(frozen=True, slots=True)
class Create:
    """One creation as it was asked for; a fork where ``source`` is set."""

    config: StreamConfig
    explicit: frozenset[str] = frozenset()
    """Names of the fields of ``config`` that the client stated."""
    body: bytes | Spool = b""
    closed: bool = False
    source: str | None = None
    fork_offset: Offset | str | None = None
    fork_sub_offset: int = 0
    records: Sequence[bytes] | None = None
    """The body already cut into records, where the caller has them; then ``body`` is not looked at."""
    fresh: bool = False
    """The caller has made the path up: it is one, and there is nothing at it."""


class Addressed(Protocol):
    """A stream that knows where it begins and ends."""

    start: int
    tail: int

    def resolve(self, offset: Offset) -> int:
        """The position of an offset. Raises ``Gone`` or :class:`BadRequest` where the stream does not have it."""
        ...


def start_position(stream: Addressed, offset: str) -> int:
    """Where a read begins: ``-1`` is the start, ``now`` the tail, else it is an offset that this server gave out. Raises
    :class:`BadRequest` or ``Gone``."""
    if offset == "-1":
        return stream.start
    if offset == "now":
        return stream.tail
    return stream.resolve(Offset.parse(offset))


class Informed(Protocol):
    """A stream that says what it is."""

    def info(self) -> StreamInfo: ...


@dataclass(frozen=True, slots=True)
class Created:
    """What became of a creation. ``new`` is false where the stream existed with this very configuration."""

    new: bool
    stream: Informed

    @property
    def info(self) -> StreamInfo:
        return self.stream.info()


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A snapshot of one stream."""

    path: str
    config: StreamConfig
    tail: Offset
    earliest: Offset
    closed: bool
    size: int
    """Bytes of the records that are retained."""


class StreamTail(NamedTuple):
    """Where a stream begins and ends, as far as readers see."""

    path: str
    earliest: Offset
    tail: Offset
    closed: bool


_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+( *;[\x20-\x7e\t]*)?", re.ASCII)
WHOLE_MAX = 10**15 - 1
"""The largest number of seconds or bytes in a configuration."""


def require_path(path: str, bytes_max: int) -> None:
    """Raise :class:`BadRequest` where ``path`` would be ambiguous in some client or proxy, or is too long."""
    segments = path.split("/")
    if "" in segments or "." in segments or ".." in segments or not path.isprintable():
        raise BadRequest(
            f"{path[:200]!r} is not a stream path. Use printable segments between single slashes, such as orders/eu/42.",
            code="path-invalid",
        )
    if "*" in path and ("*" in segments or "**" in segments) and not is_reserved(path):
        raise BadRequest(
            f"{path[:200]!r} is a glob, and no stream's path: segments that are * or ** stand for others when reading. "
            "Name the stream without them.",
            code="path-invalid",
        )
    size = len(path.encode())
    if size > bytes_max:
        raise BadRequest(f"The stream's path has {size} bytes; at most {bytes_max} are allowed.", code="path-invalid")


def is_reserved(path: str) -> bool:
    """Whether it is one that a hub keeps for itself."""
    return path.startswith("__") and path.partition("/")[0] in RESERVED


def require_public(path: str) -> None:
    """Raise :class:`NotFound` for the paths that a hub keeps for itself."""
    if is_reserved(path):
        raise NotFound(
            f"Paths under {path.partition('/')[0]}/ are the hub's own. Calls are read at /v1/call/ID, uploads at "
            "/v1/upload/ID, the protocol's subscriptions at /v1/stream/__ds/subscriptions/ID.",
            code="reserved",
        )


def require_config(config: StreamConfig) -> None:
    """Raise :class:`BadRequest` for what no stream can be made with."""
    if not _MEDIA_TYPE.fullmatch(config.content_type):
        raise BadRequest(
            f"{config.content_type[:80]!r} is not a media type like application/json.", code="content-type-invalid"
        )
    if config.ttl_s is not None and config.expires_at_ms is not None:
        raise BadRequest("Give Stream-TTL or Stream-Expires-At, not both.", code="expiry-conflict")
    least = {"ttl_s": 0, "retention_bytes": 1, "retention_age_s": 1}
    for name, minimum in least.items():
        value = getattr(config, name)
        if value is not None and not minimum <= value <= WHOLE_MAX:
            raise BadRequest(f"{name} must be from {minimum} to {WHOLE_MAX}, not {value}.", code="parameter-invalid")


def split_records(config: StreamConfig, body: bytes, *, empty_array: bool = False) -> list[bytes]:
    """Cut a body into records.

    A JSON stream's array is flattened by one level (Durable Streams section 9.1.2); white space around
    values, and line breaks between tokens, are not kept, so that a record is one line. Raises
    :class:`BadRequest` for what is not JSON in UTF-8 and, unless ``empty_array``, for ``[]``.
    """
    if not config.is_json:
        return [body] if body else []
    return _json_records(body, empty_array=empty_array)


_raw = msgspec.json.Decoder(msgspec.Raw)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


def _json_records(body: bytes, *, empty_array: bool) -> list[bytes]:
    try:
        if not body.isascii():
            body.decode()
        value = body.strip(b" \t\r\n")
        if value[:1] != b"[":
            _raw.decode(value)
            records = [value]
        else:
            records = [bytes(item) for item in _raw_list.decode(value)]
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8: {error}. Nothing was appended.", code="json-malformed") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}. Nothing was appended.", code="json-malformed") from error
    if not records and not empty_array:
        raise BadRequest(
            "The body is an empty JSON array: there is nothing to append. Send at least one value.", code="empty-append"
        )
    if b"\n" in value or b"\r" in value:  # only between tokens: JSON strings hold no raw control characters
        records = [record.replace(b"\r", b" ").replace(b"\n", b" ") for record in records]
    return records


def runs(records: list[bytes], size: int, bytes_max: int, count_max: int) -> list[list[bytes]]:
    """``records``, of ``size`` bytes together, in runs of at most ``bytes_max`` bytes and ``count_max`` records; a larger
    record is its own."""
    if (size <= bytes_max and len(records) <= count_max) or len(records) == 1:
        return [records]
    result: list[list[bytes]] = []
    start = held = 0
    for index, record in enumerate(records):
        held += len(record)
        if index > start and (held > bytes_max or index - start == count_max):
            result.append(records[start:index])
            start, held = index, len(record)
    result.append(records[start:])
    return result


def require_size(size: int, limit: int, what: str) -> None:
    """Raise :class:`TooLarge` where ``size`` is over ``limit`` (bytes)."""
    if size > limit:
        raise TooLarge(
            f"{what} is {size} bytes; the limit is {limit}. Send it in smaller parts.", fields={"limit_bytes": limit}
        )
