"""Followers of a log by hand: a sink that keeps what it is given, and an encoding that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wayside.core.records import Batch
from wayside.streams.contract import Reader, StreamView


class Recorder:
    """A sink that keeps every frame. ``room`` frames fit into its buffer before it is full; None: any number."""

    def __init__(self, room: int | None = None) -> None:
        self.frames: list[Any] = []
        self.room = room
        self.paused = False
        self.reader: Reader | None = None
        self.finished: str | None = None
        self.aborted: Exception | None = None

    def attach(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def send(self) -> Callable[[Any], int | None]:
        return self.write

    def queue(self, frame: Any, sent: int) -> None:
        raise AssertionError(f"all of {frame!r} was taken, not {sent}")

    def write(self, frame: Any) -> None:
        self.frames.append(frame)
        if self.room is not None:
            self.room -= 1
            if self.room <= 0 and not self.paused:
                self.paused = True
                assert self.reader is not None
                self.reader.pause()

    def drain(self, room: int | None = None) -> None:
        """The buffer is empty again, and takes ``room`` frames."""
        self.room = room
        self.paused = False
        assert self.reader is not None
        self.reader.pump()

    def finish(self, reason: str) -> None:
        self.finished = reason

    def abort(self, error: Exception) -> None:
        self.aborted = error


class Plainly:
    """An encoding that leaves batches as they are, and says what else it was asked for."""

    heartbeat = "heartbeat"

    def __init__(self, key: object = "plainly") -> None:
        self.key = key
        self.encoded = 0

    def encode(self, _stream: StreamView, batches: list[Batch]) -> list[Batch]:
        self.encoded += 1
        return list(batches)

    def caught_up(self, _stream: StreamView, position: int) -> tuple[str, int]:
        return ("caught-up", position)

    def end(self, _stream: StreamView, position: int, reason: str, told: bool) -> tuple[str, int, str, bool]:
        return ("end", position, reason, told)


def records_in(frames: list[Any]) -> list[bytes]:
    """The records of the frames that :class:`Plainly` made, in order; their positions must follow one another."""
    result: list[bytes] = []
    at: int | None = None
    for frame in frames:
        if isinstance(frame, list):
            for batch in frame:
                assert at is None or batch.position == at, f"{batch!r} where {at} was next"
                at = batch.end
                result += batch.records
    return result
