"""What has a channel of the connection to a hub: a request that is answered once, a call that was submitted, a follower.

Each knows what to do when the connection is lost: a follower reads on from its cursor on the next one, a request that
does no harm when it is repeated is sent again, and whoever waits for any other is told that its outcome is not known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from wayside.core.errors import Lagged, UnknownOutcome, refusal_of
from wayside.core.records import Meta
from wayside.link import frames as f
from wayside.link.connection import Channels

__all__ = ["FollowChannel", "ReplyChannel", "Row", "SubmitChannel"]

SUBMITTED_MAX = 4096
"""Channels beyond which a call that was submitted keeps none."""
CREDIT = 256
"""Records that a follower lets the hub be ahead."""


class ReplyChannel:
    """A channel that is answered once."""

    __slots__ = ("_channels", "_frame", "_future", "_repeat", "channel", "sent")

    def __init__(self, channels: Channels, repeat: bool) -> None:
        self._channels = channels
        self._future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._repeat = repeat
        """Whether it may be said again on another connection."""
        self._frame: Any = None
        self.channel = channels.add(self)

    def send(self, frame: Any) -> asyncio.Future[Any]:
        self._frame = frame
        self._channels.put(frame)
        return self._future

    def take(self, frame: Any) -> None:
        if self._repeat and _later(frame):
            return
        self._channels.remove(self.channel)
        if not self._future.done():
            if type(frame) is f.ErrorFrame:
                self._future.set_exception(refusal_of(frame.problem))
            else:
                self._future.set_result(frame)

    def lost(self, error: Exception, again: bool) -> bool:
        if self._repeat and again:
            return True
        if not self._future.done():
            if not self._repeat:
                detail = getattr(error, "detail", str(error))
                error = UnknownOutcome(
                    f"{detail} It may have been done, or not: look, or send it with an idempotency key."
                )
            self._future.set_exception(error)
        return False

    def resume(self) -> None:
        if self._future.done():
            self._channels.remove(self.channel)
        else:
            self._channels.put(self._frame)

    def leave(self) -> None:
        """Nobody waits any more."""
        self._channels.remove(self.channel)
        self._channels.put(f.LeaveFrame(self.channel))


class SubmitChannel:
    """The channel of a call that was submitted: first its name, then its answer."""

    def __init__(self, channels: Channels, keyed: bool) -> None:
        loop = asyncio.get_running_loop()
        self._channels = channels
        self._keyed = keyed
        self.accepted: asyncio.Future[str] = loop.create_future()
        self.ended: asyncio.Future[Any] = loop.create_future()
        self.frame: Any = None
        self.channel = channels.add(self)

    def take(self, frame: Any) -> None:
        kind = type(frame)
        if kind is f.AcceptedFrame:
            if not self.accepted.done():
                self.accepted.set_result(frame.id)
            if self._channels.count > SUBMITTED_MAX:  # the hub bounds them: its answer is asked for by its name
                self.ended.set_result(None)
                self._channels.remove(self.channel)
                self._channels.put(f.LeaveFrame(self.channel))
            return
        if self._keyed and not self.accepted.done() and _later(frame):
            return
        self._channels.remove(self.channel)
        if not self.accepted.done():
            self.accepted.set_exception(refusal_of(frame.problem) if kind is f.ErrorFrame else _odd(frame))
        elif not self.ended.done():
            self.ended.set_result(frame)

    def lost(self, error: Exception, again: bool) -> bool:
        if not self.accepted.done():
            if self._keyed and again:
                return True
            detail = getattr(error, "detail", str(error))
            self.accepted.set_exception(
                error if self._keyed else UnknownOutcome(f"{detail} The call may have been taken, or not.")
            )
        if not self.ended.done():
            self.ended.set_result(None)  # whoever wants the answer asks for it by its name
        return False

    def resume(self) -> None:
        self._channels.put(self.frame)


def _later(frame: Any) -> bool:
    """Whether the hub stops: it took nothing, closes the connection, and is to be asked again on the next."""
    return type(frame) is f.ErrorFrame and frame.problem.get("code") == "stopping" and "call" not in frame.problem


def _odd(frame: Any) -> Exception:
    return UnknownOutcome(f"The hub answered with {type(frame).__name__}.")


class Row(msgspec.Struct, array_like=True, gc=False):
    """A record as it comes."""

    offset: str
    """After it."""
    data: bytes
    meta: Meta | None = None


class FollowChannel:
    """A follower's channel, which resumes on another connection."""

    def __init__(
        self, channels: Channels, stream: str, offset: str, *, call: bool, options: f.FollowOptions | None = None
    ) -> None:
        self._channels = channels
        self._stream = stream
        self._call = call
        self._options = options
        self._held: deque[Row] = deque()
        self._changed = asyncio.Event()
        self._spent = 0
        self._ended = ""
        self._error: Exception | None = None
        self.content_type = ""
        self.offset = offset
        self.channel = channels.add(self)
        self.resume()

    def resume(self) -> None:
        self._held.clear()
        self._spent = 0
        self._channels.put(f.FollowFrame(self.channel, self._stream, self.offset, CREDIT, self._call, self._options))

    def take(self, frame: Any) -> None:
        kind = type(frame)
        if kind is f.RecordsFrame:
            self._held.extend(_rows(frame.records))
        elif kind is f.FollowingFrame:
            self.content_type = frame.content_type
            if self.offset in ("-1", "now"):
                self.offset = frame.offset
        elif kind is f.EndFrame:
            if frame.reason in ("closed", "deleted", "complete"):
                self._ended = frame.reason
                self._channels.remove(self.channel)
            elif frame.reason == "lagged":
                self._error = Lagged(
                    f"The reader of {self._stream} was too far behind. Read on from {frame.offset}, or afresh from now.",
                    fields={"offset": frame.offset},
                )
                self._channels.remove(self.channel)
        elif kind is f.ErrorFrame and not _later(frame):
            self._error = refusal_of(frame.problem)
            self._channels.remove(self.channel)
        self._changed.set()

    def lost(self, error: Exception, again: bool) -> bool:
        if again and not self._ended and self._error is None:
            return True
        self._error = self._error or error
        self._changed.set()
        return False

    async def records(self) -> AsyncGenerator[Row, None]:
        """What is in it, until it is closed."""
        try:
            while True:
                while self._held:
                    row = self._held.popleft()
                    self.offset = row.offset
                    self._spent += 1
                    if self._spent >= CREDIT // 2:
                        self._channels.put(f.CreditFrame(self.channel, self._spent))
                        self._spent = 0
                    yield row
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        if not self._ended and self._error is None:
            self._ended = "left"
            self._channels.remove(self.channel)
            if self._channels.connected:
                self._channels.put(f.LeaveFrame(self.channel))


_rows = msgspec.msgpack.Decoder(list[Row]).decode
