"""The one connection to a hub, ``/v1/connect``: it carries the frames of many channels, and is made anew when it breaks.

What a channel does when that happens is its own business (:mod:`wayside.link.channels`). This module knows frames and
connections, not what is said over them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from wayside.core.backoff import Backoff
from wayside.core.callbacks import guarded
from wayside.core.errors import BadRequest, Overloaded, Refusal
from wayside.link import frames as f

__all__ = ["Channel", "Channels", "FrameTransport", "Local", "Unreachable", "WebSocket"]

RECONNECT = Backoff(0.1, 5.0)
"""Before a connection is tried again: doubled each time, with full jitter."""
MESSAGE_BYTES_MAX = 256 * 1024 * 1024
SENT_BYTES_MAX = 64 * 1024 * 1024
"""Of a message: the hub closes the connection with a larger one, as often as it is sent."""
BATCH_BYTES_MAX = 1024 * 1024
"""Frames that are larger together do not share a message: the hub bounds it."""
PING_S = 20.0


class Unreachable(Overloaded):
    """There is no connection to a hub, and there was none for as long as it was tried."""

    code, title = "unreachable", "No hub reachable"


class FrameTransport(Protocol):
    """What carries frames to a hub and back. ``take`` is given each list of frames, ``lost`` told once that it is over."""

    async def open(self, take: Callable[[list[Any]], None], lost: Callable[[str], None]) -> None:
        """Connect. Raises OSError, or a refusal that no other attempt would change."""
        ...

    def send(self, frames: list[Any]) -> None:
        """Send all of them, or raise TypeError, ValueError, OverflowError or RecursionError for what cannot be sent."""
        ...

    async def close(self) -> None:
        """Disconnect; ``lost`` need not be told."""
        ...


class Channel(Protocol):
    """What has a number on the connection, and is given the frames with that number."""

    def take(self, frame: Any) -> None:
        """A frame of the hub."""
        ...

    def lost(self, error: Exception, again: bool) -> bool:
        """The connection is lost. ``again``: another is being made, and ``resume`` will be called if this returns true;
        else this is the end."""
        ...

    def resume(self) -> None:
        """There is a connection again: say what is to be said."""
        ...


class WebSocket:
    """A connection to the hub at ``url``."""

    def __init__(self, url: str) -> None:
        base = url.rstrip("/")
        scheme, found, rest = base.partition("://")
        if not found or scheme not in ("http", "https") or not rest:
            raise ValueError(f"{url!r} is not the URL of a hub, such as http://127.0.0.1:7070")
        self.url = base
        self._target = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/v1/connect"
        self._transport: WSTransport | None = None

    async def open(self, take: Callable[[list[Any]], None], lost: Callable[[str], None]) -> None:
        try:
            transport, _ = await ws_connect(
                lambda: _Listener(take, lost),
                self._target,
                extra_headers={"Sec-WebSocket-Protocol": f.SUBPROTOCOL},
                enable_auto_ping=True,
                auto_ping_idle_timeout=PING_S,
                auto_ping_reply_timeout=PING_S,
                max_frame_size=MESSAGE_BYTES_MAX,
            )
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        if transport.is_disconnected:  # during the handshake, or since: then picows tells nobody
            raise ConnectionResetError("the connection broke at once")
        self._transport = transport

    def send(self, frames: list[Any]) -> None:
        if self._transport is not None:
            for message in _messages(frames):  # all of them are made before any is sent
                self._transport.send(WSMsgType.BINARY, message)

    async def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            with contextlib.suppress(Exception):
                transport.send_close()
            transport.disconnect()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await transport.wait_disconnected()


def _messages(frames: list[Any]) -> list[bytes]:
    """Frames as messages that the hub takes: as few as can be."""
    message = f.encode(frames)
    if len(message) > SENT_BYTES_MAX and len(frames) == 1:
        raise ValueError(f"it has {len(message)} bytes, and {SENT_BYTES_MAX} are taken at most")
    if len(message) <= BATCH_BYTES_MAX or len(frames) == 1:
        return [message]
    half = len(frames) // 2
    return _messages(frames[:half]) + _messages(frames[half:])


class _Listener(WSListener):  # type: ignore[misc, unused-ignore]
    def __init__(self, take: Callable[[list[Any]], None], lost: Callable[[str], None]) -> None:
        self._take = take
        self._lost = lost
        self._reason = "the connection broke"

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.BINARY:
            try:
                frames = f.decode_from_hub(frame.get_payload_as_bytes())
            except msgspec.DecodeError as error:
                self._reason = f"the hub sent what is no frame: {error}"
                transport.disconnect()
                return
            self._take(frames)
        elif kind == WSMsgType.CLOSE:
            self._reason = str(frame.get_close_reason() or f"the hub closed it: {frame.get_close_code()}")
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._lost(self._reason)

    def pause_writing(self) -> None:
        """Nothing: what is sent is queued. Without this method it is logged as a warning."""

    def resume_writing(self) -> None:
        """Nothing."""


class HubsEnd(Protocol):
    """The hub's end of a connection in its own process."""

    def receive(self, received: list[Any]) -> None:
        """Take frames of the client."""
        ...

    def stop(self) -> None:
        """The client is gone."""
        ...


class Local:
    """A connection to a hub in this process. ``enter`` is given the way to the client, and returns the hub's end."""

    def __init__(self, enter: Callable[[Any], HubsEnd]) -> None:
        self._enter = enter
        self._end: HubsEnd | None = None
        self._lost: Callable[[str], None] = _ignore

    async def open(self, take: Callable[[list[Any]], None], lost: Callable[[str], None]) -> None:
        self._lost = lost
        self._end = self._enter(_LocalWire(take, self.drop))

    @property
    def connected(self) -> bool:
        return self._end is not None

    def send(self, frames: list[Any]) -> None:
        if self._end is not None:
            self._end.receive(frames)

    def drop(self, reason: str) -> None:
        """Break it, as a network may."""
        end, self._end = self._end, None
        if end is not None:
            end.stop()
            self._lost(reason)

    async def close(self) -> None:
        self._lost = _ignore
        self.drop("")


class _LocalWire:
    """What the hub sees of a client in its own process."""

    def __init__(self, take: Callable[[list[Any]], None], closed: Callable[[str], None]) -> None:
        self.send = take
        self._closed = closed

    def ping(self) -> None:
        return None

    def close(self, _code: int, reason: str) -> None:
        self._closed(reason)


def _ignore(_what: Any) -> None:
    return None


class Channels:
    """The channels of one connection, by number. ``retry_s``: for how long a connection that was lost is tried again; None:
    for ever."""

    def __init__(self, transport: FrameTransport, *, retry_s: float | None = 60.0) -> None:
        self._transport = transport
        self._retry_s = retry_s
        self._open: dict[int, Channel] = {}
        self._number = 0
        self._out: list[Any] = []
        self.connected = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.on_connected: Callable[[], None] | None = None
        """Called with each connection that is made, before anything else is sent."""
        self.on_frame: Callable[[Any], None] = _ignore
        """Given the frames of channel 0."""

    def __repr__(self) -> str:
        return f"<Channels {'connected' if self.connected else 'not connected'}, {len(self._open)} open>"

    async def open(self) -> None:
        """Connect, or connect again at once. Raises :class:`Unreachable` where nobody listens."""
        self._loop = asyncio.get_running_loop()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        try:
            await self._transport.open(self._take, self._lost)
        except OSError as error:
            raise Unreachable(f"No answer from a hub: {error}. Is it running? `wayside serve` starts one.") from error
        self._established()

    async def close(self) -> None:
        """Say what is still to be said, and close."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        self._flush()
        self.connected = False
        await self._transport.close()
        self._end(Unreachable("The client was closed.", code="client-closed"))

    def _established(self) -> None:
        self.connected = True
        if self.on_connected is not None:
            self.on_connected()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        for channel in list(self._open.values()):
            guarded(channel.resume)

    def add(self, channel: Channel) -> int:
        """A new channel. Returns its number."""
        self._number += 1
        self._open[self._number] = channel
        return self._number

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    def remove(self, number: int) -> None:
        """Give nothing more to a channel."""
        self._open.pop(number, None)

    def put(self, frame: Any) -> None:
        """Send a frame at the end of this turn of the loop."""
        out = self._out
        if not out:
            asyncio.get_running_loop().call_soon(self._flush)
        out.append(frame)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self.connected:
            try:
                self._transport.send(out)
            except (TypeError, ValueError, OverflowError, RecursionError):  # nothing of it was sent
                for frame in out:
                    self._send_one(frame)

    def _send_one(self, frame: Any) -> None:
        """What cannot be put into a frame fails its own channel, and not the others."""
        try:
            self._transport.send([frame])
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            channel = self._open.get(frame.channel)
            if channel is None:
                self._report(error)
            else:
                refusal = BadRequest(f"This cannot be sent: {error}.", code="not-sendable")
                channel.take(f.ErrorFrame(frame.channel, refusal.problem()))

    async def ready(self) -> None:
        """Wait for a connection. Raises :class:`Unreachable` when it is given up."""
        while not self.connected:  # it may be lost again before whoever waits goes on
            if self._loop is None:
                await self.open()
                return
            if self._closed:
                raise Unreachable("The client was closed.", code="client-closed")
            self._reconnect()
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _take(self, frames: list[Any]) -> None:
        channels = self._open
        for frame in frames:
            number = frame.channel
            if number == 0:
                self.on_frame(frame)
                continue
            channel = channels.get(number)
            if channel is not None:
                try:
                    channel.take(frame)
                except Exception as error:
                    self._report(error)

    def _report(self, error: Exception) -> None:
        if self._loop is not None:
            self._loop.call_exception_handler({"message": "a frame was not understood", "exception": error})

    def _lost(self, reason: str) -> None:
        if not self.connected:
            return
        self.connected = False
        self._out.clear()
        if self._closed:
            return
        error = Unreachable(f"The connection to the hub was lost: {reason}.", code="connection-lost")
        staying = False
        for number, channel in list(self._open.items()):
            if channel.lost(error, True):
                staying = True
            else:
                self._open.pop(number, None)
        if staying or self._retry_s is None:
            self._reconnect()

    def _reconnect(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._try_again())

    async def _try_again(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        attempts = 0
        while not self._closed:
            attempts += 1
            await asyncio.sleep(RECONNECT.delay_s(attempts))
            try:
                await self._transport.open(self._take, self._lost)
            except OSError as error:
                if self._retry_s is not None and loop.time() - began > self._retry_s:
                    self._end(Unreachable(f"No hub was reachable for {self._retry_s:g} s: {error}."))
                    return
                continue
            except Refusal as refusal:
                self._end(refusal)
                return
            self._established()
            return

    def _end(self, error: Exception) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        channels, self._open = self._open, {}
        for channel in channels.values():
            channel.lost(error, False)
