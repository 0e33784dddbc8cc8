"""A body that its route takes while it arrives: between what reads the connection and the pattern that takes it.

It holds no more than one read: what comes is given on when the parser is done with it, and while the taker has paused,
or has not begun, whoever reads the connection is to rest. It knows no sockets.
"""

from __future__ import annotations

from collections.abc import Callable

from wayside.errors import Refusal


class ArrivingBody:
    """See :class:`wayside.exchange.Pieces`. ``on_flow`` is called when reading may have to rest, or to go on."""

    __slots__ = ("_held", "_on_end", "_on_piece", "_paused", "_told", "ended", "error", "on_flow")

    def __init__(self, on_flow: Callable[[], None] | None = None) -> None:
        self.on_flow = on_flow
        self.ended = False
        """Nothing more comes."""
        self.error: Refusal | None = None
        """Why the rest did not come."""
        self._held: list[bytes] = []
        self._on_piece: Callable[[bytes], None] | None = None
        self._on_end: Callable[[Refusal | None], None] | None = None
        self._paused = False
        self._told = False

    def __repr__(self) -> str:
        state = "ended" if self.ended else "rests" if self.rests else "flows"
        return f"<ArrivingBody {state}>"

    @property
    def rests(self) -> bool:
        """Whether nothing more is to be read now."""
        return self._paused or self._on_piece is None

    @property
    def whole(self) -> bool:
        """Whether all of it has come."""
        return self.ended and self.error is None

    # -- from the connection

    def hold(self, data: bytes) -> None:
        """Take what was read; :meth:`deliver` gives it on."""
        if data:
            self._held.append(data)

    def end(self, error: Refusal | None = None) -> None:
        """Nothing more comes; ``error`` says why not, where it is not whole."""
        if not self.ended:
            self.ended = True
            self.error = error

    def deliver(self) -> None:
        """Give on what was read, and that it has ended."""
        if self._on_piece is None or self._on_end is None:
            return
        if self._held:
            piece = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            self._on_piece(piece)
        if self.ended and not self._told:
            self._told = True
            self._on_end(self.error)

    # -- from the pattern

    def take(self, on_piece: Callable[[bytes], None], on_end: Callable[[Refusal | None], None]) -> None:
        self._on_piece, self._on_end = on_piece, on_end
        self.deliver()
        self._flow()

    def pause(self) -> None:
        self._paused = True
        self._flow()

    def resume(self) -> None:
        self._paused = False
        self._flow()

    def _flow(self) -> None:
        if self.on_flow is not None:
            self.on_flow()
