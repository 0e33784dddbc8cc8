"""Uploading: tus 1.0.0 (tus.io/protocols/resumable-upload) as a thin adapter over a stream of bytes.

An upload is the stream ``uploads/{id}``, which is closed when it is complete. Nothing of it is let go, so its size is the
upload's offset. What a stream cannot say, the length and what the client calls the file, is in a companion stream,
``__upload/{id}``. A body is appended while it arrives: what came before a cut is kept.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.utils
import hashlib
import re
import secrets
import time
import zlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from wayside.core.callbacks import asked
from wayside.core.errors import (
    BadRequest,
    Conflict,
    NotFound,
    Overloaded,
    Refusal,
    TooLarge,
    Unsupported,
    UnsupportedMediaType,
)
from wayside.core.records import JSON, Append, Create, Spool, StreamConfig
from wayside.server.exchange import Exchange, InPieces, Pieces, Request, origin_of
from wayside.streams.contract import Log, StreamView

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,creation-defer-length,termination,checksum,expiration"
ALGORITHMS = ("sha1", "md5", "sha256", "crc32")
BYTES = "application/octet-stream"
PATCH_TYPE = "application/offset+octet-stream"
UPLOAD_BYTES_MAX = 1 << 40
"""``Tus-Max-Size``: more than most disks have. What there is no room for is refused with 507 when it comes."""
UPLOAD_TTL_S = 24 * 3600
"""How long an upload is kept without a read or a write."""
PIECES_WAITING_MAX = 4
"""What may wait behind the append under way, in pieces of ``piece_bytes_max``: the next append is made of it."""

_IDENTITY = re.compile(r"[0-9a-f]{32}", re.ASCII)
_PAIR = re.compile(r"([\x21-\x2b\x2d-\x7e]+)(?: ([A-Za-z0-9+/]*={0,2}))?", re.ASCII)
_RESUMABLE = f"Tus-Resumable: {VERSION}\r\n".encode()


class Filling:
    """One append is under way at a time; what arrives meanwhile becomes the next. When too much waits, reading rests.

    It is to be made at once when a request comes, so that a client that goes, or a hub that stops, is noticed.
    """

    __slots__ = (
        "_broken",
        "_bytes_max",
        "_closed",
        "_error",
        "_flying",
        "_held",
        "_length",
        "_log",
        "_offset",
        "_paused",
        "_pieces",
        "_size",
        "_stream",
        "ending",
        "over",
    )

    def __init__(self, log: Log, exchange: Exchange) -> None:
        self._log = log
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The size of the stream after the body, or why not all of it is there."""
        self.ending = False
        """Nothing more comes: it is over when all that has come is committed."""
        self._error: Exception | None = None
        self._broken = False
        """What comes is not taken any more."""
        self._pieces: Pieces | None = None
        self._held: list[bytes] = []
        self._size = 0
        self._flying: int | None = None
        """Bytes of the append under way."""
        self._paused = False
        stopped = Overloaded("The hub stops. Ask it later how far this came, and go on.", headers={"Retry-After": "1"})
        exchange.on_drain = partial(self._end, stopped)
        exchange.on_lost = partial(self._end, BadRequest("The client has gone.", code="body-incomplete"))

    def __repr__(self) -> str:
        state = (
            "over" if self.over.done() else "ending" if self.ending else "waiting" if self._pieces is None else "open"
        )
        return f"<Filling {state} {self._size} bytes held, {self._flying or 0} under way>"

    def begin(self, pieces: Pieces, stream: StreamView, length: int | None, bytes_max: int) -> asyncio.Future[int]:
        """Take the body to the end of ``stream``; returns ``over``.

        ``length`` is what the whole stream will have, if that is known: then it is closed. It may have ``bytes_max`` at
        most. ``over`` fails with a refusal of the log, with :class:`TooLarge`, or with why the rest did not come.
        """
        self._stream, self._offset = stream, stream.info().size
        self._closed = stream.closed
        self._length, self._bytes_max = length, bytes_max
        self._pieces = pieces
        pieces.take(self._on_piece, self._end)
        self._push()
        return self.over

    def _on_piece(self, data: bytes) -> None:
        if self._broken or self.over.done():
            return
        self._held.append(data)
        self._size += len(data)
        try:
            require_room(self._offset + (self._flying or 0) + self._size, self._length, self._bytes_max)
        except TooLarge as refusal:
            self._break(refusal)
        if self._size > PIECES_WAITING_MAX * self._log.limits.piece_bytes_max and not self._paused:
            assert self._pieces is not None
            self._paused = True
            self._pieces.pause()
        self._push()

    def _end(self, error: Exception | None) -> None:
        if not self.ending:
            self.ending = True
            self._error = error
        self._push()

    def _break(self, error: Exception) -> None:
        """Take nothing more, and nothing of what waits."""
        self.ending = self._broken = True
        self._error = error
        self._held.clear()
        self._size = 0

    def _push(self) -> None:
        """Append what waits, unless an append is under way; end where nothing waits and nothing comes."""
        if self._pieces is None or self._flying is not None or self.over.done():
            return
        size, offset = min(self._size, self._log.abilities.entry_bytes_max), self._offset
        closes = offset + size == self._length and not (self._closed or self._broken)
        if size or closes:
            held = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            data, rest = (held, b"") if size == len(held) else (held[:size], held[size:])
            piece = self._log.limits.piece_bytes_max
            records = [data[at : at + piece] for at in range(0, size, piece)]
            self._held.clear()
            if rest:  # more than the engine takes at a time
                self._held.append(rest)
            self._size, self._flying, self._closed = len(rest), size, self._closed or closes
            append = Append(b"", close=closes, seq=seq_of(offset) if size else None, records=records)
            try:
                self._log.append(self._stream.path, append, self._done)
            except Exception as error:
                self._done(error)
        elif self.ending and self._error is not None:
            self.over.set_exception(self._error)
        elif self.ending:
            self.over.set_result(offset)

    def _done(self, result: object) -> None:
        size, self._flying = self._flying, None
        if isinstance(result, Exception):
            self._break(result)
        else:
            self._offset += size or 0
        self._push()
        if self._paused and self._pieces is not None and not self.over.done():
            self._paused = False
            self._pieces.resume()


def require_room(end: int, length: int | None, bytes_max: int) -> None:
    """Raise :class:`TooLarge` where ``end`` bytes are more than the whole is to have, or may have."""
    limit = bytes_max if length is None else length
    if end > limit:
        why = "may have" if length is None else "was declared to have"
        raise TooLarge(f"The body goes to byte {end}; all of it {why} {limit}.", fields={"limit_bytes": limit})


def seq_of(offset: int) -> str:
    """``Stream-Seq`` of what is appended at an offset in bytes: of two hubs on one engine, only one can append there."""
    return f"{offset:016d}"


class VersionMismatch(Refusal):
    """A version of tus that is not spoken here, or none."""

    status, code, title, close_code = 412, "tus-version", "Version of tus not supported", 1008


class UploadLocked(Refusal):
    """Another request is filling this upload."""

    status, code, title, close_code, retry = 423, "upload-locked", "Upload is being filled", 1013, True


class ChecksumMismatch(Refusal):
    """The body is not what its checksum says. Nothing of it was taken."""

    status, code, title, close_code, retry = 460, "checksum-mismatch", "Checksum mismatch", 1008, True


class _Facts(msgspec.Struct, omit_defaults=True):
    """A record of a companion stream: the first says all that is known when the upload is created, another the length
    that was deferred."""

    length: int | None = None
    metadata: str | None = None
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Upload:
    """An upload as it is now. ``length`` None: not known yet."""

    identity: str
    stream: StreamView
    length: int | None
    metadata: str | None

    @property
    def offset(self) -> int:
        return self.stream.info().size


def method_of(request: Request) -> str:
    """The method; ``X-HTTP-Method-Override`` is for clients that cannot send PATCH or DELETE."""
    return request.headers.get("x-http-method-override", request.method).strip().upper()


def in_pieces(request: Request) -> bool:
    """Whether the body is appended while it arrives: not where its checksum has to be verified first."""
    return "upload-checksum" not in request.headers


def said(error: Exception) -> Exception:
    """A refusal as tus has it: with ``Tus-Resumable``."""
    if not isinstance(error, Refusal):
        return error
    return type(error)(
        error.detail, code=error.code, headers={**error.headers, "Tus-Resumable": VERSION}, fields=error.fields
    )


class Uploads:
    """Answers tus requests."""

    bytes_max = UPLOAD_BYTES_MAX
    ttl_s = UPLOAD_TTL_S

    def __init__(self, log: Log) -> None:
        self._log = log
        self._fillings: dict[str, Filling] = {}
        """Uploads that are being filled."""
        self._tasks: set[asyncio.Task[None]] = set()

    def options(self, exchange: Exchange, preflight: bytes) -> None:
        """Answer OPTIONS: what is spoken here."""
        spoken = (
            f"Tus-Version: {VERSION}\r\nTus-Extension: {EXTENSIONS}\r\nTus-Max-Size: {self.bytes_max}\r\n"
            f"Tus-Checksum-Algorithm: {','.join(ALGORITHMS)}\r\n"
        )
        exchange.respond(204, _RESUMABLE + spoken.encode() + preflight)

    def create(self, exchange: Exchange, base: str, streams: str) -> None:
        """Answer a POST; ``base`` and ``streams`` are the URL paths under which uploads and streams live."""
        self._begin(exchange, self._create(exchange, Filling(self._log, exchange), base, streams))

    def head(self, exchange: Exchange, identity: str, streams: str) -> None:
        """Answer a HEAD: where to go on."""
        self._begin(exchange, self._head(exchange, identity, streams))

    def patch(self, exchange: Exchange, identity: str) -> None:
        """Answer a PATCH: append the body."""
        self._begin(exchange, self._patch(exchange, Filling(self._log, exchange), identity))

    def delete(self, exchange: Exchange, identity: str) -> None:
        """Answer a DELETE: the upload is no more, complete or not."""
        self._begin(exchange, self._delete(exchange, identity))

    def get(self, exchange: Exchange, identity: str, streams: str) -> None:
        """Answer a GET, which tus does not have: the bytes are at the stream."""
        if not _IDENTITY.fullmatch(identity):
            raise _not_found(identity)
        location = f"Location: {streams}uploads/{identity}\r\nCache-Control: no-store\r\n"
        exchange.respond(303, _RESUMABLE + location.encode())

    def _begin(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(exchange, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        try:
            if exchange.request.headers.get("tus-resumable") != VERSION:
                work.close()
                raise VersionMismatch(f"Say Tus-Resumable: {VERSION}.", headers={"Tus-Version": VERSION})
            await work
        except Exception as error:
            exchange.refuse(said(error))

    # -- the requests

    async def _create(self, exchange: Exchange, filling: Filling, base: str, streams: str) -> None:
        request, log = exchange.request, self._log
        if "upload-concat" in request.headers:
            raise Unsupported("The extension concatenation is not spoken here; send the parts one after another.")
        length = self._declared(request)
        if request.headers.get("upload-defer-length") != ("1" if length is None else None):
            raise BadRequest("Say Upload-Length, or else Upload-Defer-Length: 1.", code="upload-length-missing")
        metadata = _metadata_of(request)
        filled = _is_patch_type(request)
        if not filled and (_content_length(request) or "transfer-encoding" in request.headers):
            raise _wrong_type(request)
        checksum = _checksum_of(request)
        require_room(_content_length(request), length, self.bytes_max)
        identity = secrets.token_hex(16)
        keep = max(self.bytes_max if length is None else length, log.limits.retention_bytes)
        config = StreamConfig(BYTES, ttl_s=self.ttl_s, retention_bytes=keep)
        facts = msgspec.json.encode(_Facts(length, metadata, time.time_ns() // 1_000_000))
        companion = Create(StreamConfig(JSON, ttl_s=self.ttl_s), body=facts)
        await asyncio.gather(
            asked(partial(log.create, _path(identity), Create(config, closed=length == 0))),
            asked(partial(log.create, _companion(identity), companion)),
        )
        upload = await self._find(identity)
        offset = await self._take(exchange, filling, upload, checksum) if filled else 0
        location = f"Location: {origin_of(request)}{base}{identity}\r\n"
        exchange.respond(
            201, self._state(upload, offset) + location.encode("latin-1", "replace") + _at(upload, streams)
        )

    async def _head(self, exchange: Exchange, identity: str, streams: str) -> None:
        await self._settled(identity)
        upload = await self._find(identity)
        head = self._state(upload, upload.offset) + _at(upload, streams) + b"Cache-Control: no-store\r\n"
        head += b"Upload-Defer-Length: 1\r\n" if upload.length is None else b"Upload-Length: %d\r\n" % upload.length
        if upload.metadata:
            head += b"Upload-Metadata: %b\r\n" % upload.metadata.encode()
        exchange.respond(200, head)

    async def _patch(self, exchange: Exchange, filling: Filling, identity: str) -> None:
        request = exchange.request
        if not _is_patch_type(request):
            raise _wrong_type(request)
        text = request.headers.get("upload-offset")
        if text is None:
            raise BadRequest("Say Upload-Offset: where the body begins.", code="upload-offset-missing")
        at = _whole("Upload-Offset", text)
        checksum = _checksum_of(request)
        await self._settled(identity)
        if identity in self._fillings:
            raise UploadLocked(
                f"Another request is filling upload {identity}. Ask with HEAD how far it came.",
                headers={"Retry-After": "1"},
            )
        self._fillings[identity] = filling
        try:
            upload = await self._find(identity)
            offset = upload.offset
            if at != offset:
                raise Conflict(
                    f"Upload {identity} is at offset {offset}, not {at}. Go on from there.",
                    code="upload-offset-mismatch",
                    headers={"Upload-Offset": str(offset)},
                    fields={"offset": offset},
                )
            if (length := self._declared(request)) is not None and length != upload.length:
                upload = await self._set_length(upload, length)
            require_room(offset + _content_length(request), upload.length, self.bytes_max)
            offset = await self._take(exchange, filling, upload, checksum)
        finally:
            del self._fillings[identity]
            filling.over.cancel()  # nothing, where it is over
        exchange.respond(204, self._state(upload, offset))

    async def _delete(self, exchange: Exchange, identity: str) -> None:
        await self._find(identity)
        await asyncio.gather(
            *[asked(partial(self._log.delete, path)) for path in (_path(identity), _companion(identity))]
        )
        exchange.respond(204, _RESUMABLE)

    # -- their parts

    async def _settled(self, identity: str) -> None:
        """Wait until what a client that is cut off had sent has been appended, so that it is told all that there is."""
        filling = self._fillings.get(identity)
        if filling is not None and filling.ending:
            await asyncio.wait([filling.over])

    async def _find(self, identity: str) -> _Upload:
        """The upload, whose life begins anew. Raises ``NotFound``."""
        log = self._log
        if not _IDENTITY.fullmatch(identity):
            raise _not_found(identity)
        try:
            stream, companion = log.find(_path(identity)), log.find(_companion(identity))
            length = metadata = None
            position = companion.start
            while position < companion.tail:
                for batch in await companion.read(position, log.limits.read_bytes_max):
                    for record in batch.records:
                        facts = msgspec.json.decode(record, type=_Facts)
                        length = length if facts.length is None else facts.length
                        metadata = metadata or facts.metadata
                    position = batch.end
        except NotFound as error:
            raise _not_found(identity) from error
        if stream.config.content_type != BYTES:  # somebody has deleted it, and made another of that name
            raise _not_found(identity)
        return _Upload(identity, stream, length, metadata)

    def _declared(self, request: Request) -> int | None:
        """``Upload-Length``, if it is given."""
        text = request.headers.get("upload-length")
        if text is None:
            return None
        length = _whole("Upload-Length", text)
        require_room(length, None, self.bytes_max)
        return length

    async def _set_length(self, upload: _Upload, length: int) -> _Upload:
        """Keep a length that was deferred."""
        if upload.length is not None or length < upload.offset:
            known = "is declared to have" if upload.length is not None else "already has"
            size = upload.offset if upload.length is None else upload.length
            raise BadRequest(
                f"Upload {upload.identity} {known} {size} bytes: its length cannot be {length}.",
                code="upload-length-invalid",
            )
        record = msgspec.json.encode(_Facts(length))
        await asked(partial(self._log.append, _companion(upload.identity), Append(record, JSON)))
        return _Upload(upload.identity, upload.stream, length, upload.metadata)

    async def _take(
        self, exchange: Exchange, filling: Filling, upload: _Upload, checksum: tuple[str, bytes] | None
    ) -> int:
        """Append the body; returns the offset after it."""
        if isinstance(exchange, InPieces) and exchange.pieces is not None:
            return await filling.begin(exchange.pieces, upload.stream, upload.length, self.bytes_max)
        body, offset = exchange.body, upload.offset
        end = offset + (body.size if isinstance(body, Spool) else len(body))
        require_room(end, upload.length, self.bytes_max)
        if checksum is not None:
            name, wanted = checksum
            found = await asyncio.to_thread(_digest, name, body) if isinstance(body, Spool) else _digest(name, body)
            if found != wanted:
                raise ChecksumMismatch(f"The body's {name} is not what Upload-Checksum says. Send it again.")
        closes = end == upload.length and not upload.stream.closed
        if end > offset or closes:
            append = Append(body, BYTES, closes, seq_of(offset) if end > offset else None)
            await asked(partial(self._log.append, upload.stream.path, append))
        return end

    def _state(self, upload: _Upload, offset: int) -> bytes:
        """The header fields that tell how far an upload is."""
        head = _RESUMABLE + b"Upload-Offset: %d\r\n" % offset
        if offset != upload.length:
            head += b"Upload-Expires: %b\r\n" % email.utils.formatdate(time.time() + self.ttl_s, usegmt=True).encode()
        return head


def _path(identity: str) -> str:
    return f"uploads/{identity}"


def _companion(identity: str) -> str:
    return f"__upload/{identity}"


def _at(upload: _Upload, streams: str) -> bytes:
    """Where the bytes can be read, and what to name as an argument of a call."""
    return f"Wayside-Stream: {streams}{upload.stream.path}\r\n".encode("latin-1", "replace")


def _not_found(identity: str) -> NotFound:
    return NotFound(
        f"There is no upload {identity[:64]}: it was never made, has expired, or was terminated. Create another.",
        code="upload-not-found",
    )


def _wrong_type(request: Request) -> UnsupportedMediaType:
    given = request.headers.get("content-type", "nothing")
    return UnsupportedMediaType(f"The body must be {PATCH_TYPE}, not {given[:80]}.")


def _is_patch_type(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == PATCH_TYPE


def _content_length(request: Request) -> int:
    """What the body says of its length; 0 where it says nothing."""
    return int(request.headers.get("content-length", 0))


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 15:
        raise BadRequest(f"{name} must be a whole number of bytes, not {text[:40]!r}.", code="parameter-invalid")
    return int(text)


def _metadata_of(request: Request) -> str | None:
    """``Upload-Metadata`` as it came: keys with their values in base64, between commas."""
    text = request.headers.get("upload-metadata", "").strip()
    if not text:
        return None
    seen: set[str] = set()
    for pair in text.split(","):
        found = _PAIR.fullmatch(pair.strip())
        if found is None or found[1] in seen or len(found[2] or "") % 4:
            raise BadRequest(
                f"Upload-Metadata must be pairs of a key and its value in base64, each key once; {pair[:80]!r} is not.",
                code="upload-metadata-invalid",
            )
        seen.add(found[1])
    return text


def _checksum_of(request: Request) -> tuple[str, bytes] | None:
    """Algorithm and digest of ``Upload-Checksum``."""
    text = request.headers.get("upload-checksum")
    if text is None:
        return None
    name, _, digest = text.strip().partition(" ")
    if name not in ALGORITHMS:
        raise BadRequest(
            f"Upload-Checksum can be of {', '.join(ALGORITHMS)}, not {name[:40]!r}.", code="checksum-algorithm"
        )
    try:
        return name, base64.b64decode(digest.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("The digest of Upload-Checksum must be base64.", code="parameter-invalid") from error


def _digest(name: str, body: bytes | Spool) -> bytes:
    """The digest of a body; that of ``crc32`` as four bytes, the highest first."""
    if name == "crc32":
        crc = 0
        for part in _parts(body):
            crc = zlib.crc32(part, crc)
        return crc.to_bytes(4, "big")
    digest = hashlib.new(name, usedforsecurity=False)
    for part in _parts(body):
        digest.update(part)
    return digest.digest()


def _parts(body: bytes | Spool) -> Iterator[bytes]:
    if isinstance(body, Spool):
        for start, length in body.pieces(1 << 20, text=False):
            yield body.read(start, length)
    else:
        yield body
