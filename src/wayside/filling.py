"""A body on its way into a stream of bytes, of any length, while it arrives: what came before a cut is kept.

It knows the log and the body, and nothing of the protocol by which the body came.
"""

from __future__ import annotations

import asyncio
from functools import partial

from wayside.contracts import Log, StreamView
from wayside.errors import BadRequest, Overloaded, TooLarge
from wayside.exchange import Exchange, Pieces
from wayside.model import Append

__all__ = ["Filling", "require_room", "seq_of"]

PIECES_WAITING_MAX = 4
"""What may wait behind the append under way, in pieces of ``piece_bytes_max``: the next append is made of it."""


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
        size, offset = self._size, self._offset
        closes = offset + size == self._length and not (self._closed or self._broken)
        if size or closes:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            piece = self._log.limits.piece_bytes_max
            records = [data[at : at + piece] for at in range(0, size, piece)]
            self._held.clear()
            self._size, self._flying, self._closed = 0, size, self._closed or closes
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
