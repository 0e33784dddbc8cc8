"""A worker's connection to its hub: attempts in, what becomes of them out, and a lease that a thread renews.

What an attempt has sent is kept until the hub has taken it, and sent again on another connection; the hub knows each by
its number, and takes it once. The lease is renewed by a thread over a connection of its own, so that a handler which
blocks the event loop does not lose it.
"""

from __future__ import annotations

import asyncio
import http.client
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import msgspec
import structlog

from wayside.calls.call import AttemptOutcome
from wayside.calls.handler import Attempt, Handler, Handling
from wayside.calls.runner import Runner, Threads
from wayside.client.client import Client
from wayside.client.connection import Channels, Link, WebSocket
from wayside.client.values import refusal_of
from wayside.core.codecs import Payload
from wayside.core.errors import Refusal, TooLarge
from wayside.link import frames as f

__all__ = ["Remote"]

RENEWALS = 3
"""Of a lease, in its time."""
PAYLOAD_BYTES_MAX = 63 * 1024 * 1024
"""Of what a handler gives: the hub closes a connection with a message that is larger than a body may be."""
Acknowledge = Callable[[Exception | None], None]
_log = structlog.get_logger("wayside.worker")


class Remote:
    """Runs ``handlers`` for the hub at ``url``: ``capacity`` attempts at a time. ``link`` is another way to that hub, and
    ``lease`` another way to renew a lease: given the worker's name, the seconds, and whom to tell when it is over."""

    def __init__(
        self,
        url: str,
        handlers: Mapping[str, Handler],
        *,
        capacity: int = 16,
        link: Link | None = None,
        lease: Callable[[str, float, Callable[[], None]], Renewing] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.id = f"w-{secrets.token_hex(12)}"
        self.threads = Threads()
        """Of this process: for handlers of records too."""
        self.handling = Handling(handlers, self, self.threads)
        self.runner: Runner[tuple[str, int], Attempt] = Runner(
            self.handling.handle, self.handling.failed, concurrency=capacity
        )
        self.ready = asyncio.Event()
        """The hub knows it, or has refused it."""
        self.refused: Refusal | None = None
        self._handlers = handlers
        self._channels = Channels(link or WebSocket(url), retry_s=None)
        self._channels.on_connected = self._introduce
        self._channels.on_frame = self._take
        self._client = Client(self._channels, self.url)
        self._unsent: dict[tuple[str, int], list[tuple[Any, Acknowledge]]] = {}
        """What attempts have sent and the hub has not taken, in order."""
        self._resting = False
        self._known = False
        """This connection's hub knows what is held: what is said before would overtake what is to be said again."""
        self._renewing = lease or partial(_Lease, self.url)
        self._lease: Renewing | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- life

    async def start(self) -> None:
        """Connect, and offer the services. Raises :class:`Unreachable`."""
        self._loop = asyncio.get_running_loop()
        await self._channels.open()

    def rest(self) -> None:
        """Take no more."""
        self._resting = True
        if self._channels.connected:
            self._channels.put(f.RestFrame(0))

    async def stop(self, seconds: float) -> None:
        """Take no more; finish what runs, for so long; hand back the rest."""
        self.rest()
        for call, attempt in await self.runner.drain(seconds):
            self._say((call, attempt), f.ReturnFrame(0, call, attempt), _ignore)
        deadline = asyncio.get_running_loop().time() + 5
        while self._unsent and self._channels.connected and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self._channels.connected:
            self._channels.put(f.RestFrame(0, bye=not self._unsent))
            await asyncio.sleep(0)
        await self.close()

    async def reconnect(self) -> None:
        """Connect again, at once. Raises :class:`Unreachable`."""
        await self._channels.open()

    async def close(self) -> None:
        """Go without a word: what it holds is run by others when its lease is over."""
        if self._lease is not None:
            self._lease.stop()
        await self._channels.close()
        self.runner.cancel_all()
        self.threads.close()

    # -- what runs, reports

    def emit(self, call: str, attempt: int, seq: int, kind: str, payload: Payload, done: Acknowledge) -> None:
        if len(payload.data) > PAYLOAD_BYTES_MAX:
            done(_too_large(payload))
            return
        frame = f.EmitFrame(0, call, attempt, seq, kind, payload.data, payload.content_type)
        self._say((call, attempt), frame, done)

    def finish(self, call: str, attempt: int, outcome: AttemptOutcome) -> None:
        if outcome.error is not None:
            frame = f.FinishFrame(0, call, attempt, error=outcome.error, again=outcome.again)
        else:
            payload = outcome.payload or Payload(b"")
            frame = f.FinishFrame(0, call, attempt, payload.data, payload.content_type)
            if len(payload.data) > PAYLOAD_BYTES_MAX:
                frame = f.FinishFrame(0, call, attempt, error=_too_large(payload).problem(), again=False)
        self._say((call, attempt), frame, _ignore)

    def _say(self, key: tuple[str, int], frame: Any, done: Acknowledge) -> None:
        unsent = self._unsent.get(key)
        if unsent is None:
            self._unsent[key] = [(frame, done)]
        else:
            unsent.append((frame, done))
        if self._known and self._channels.connected:
            self._channels.put(frame)

    def client(self) -> Client:
        return self._client

    async def opener(self, path: str) -> AsyncIterator[bytes]:
        async for record in self._client.read(path):
            yield record.data

    # -- what the hub says

    def _introduce(self) -> None:
        """There is a connection: say who this is, and what it holds."""
        held = {*self.runner.running, *self._unsent}
        specs = [msgspec.to_builtins(handler.spec) for handler in self._handlers.values()]
        capacity = 0 if self._resting else self.runner.concurrency
        self._known = False
        self._channels.put(f.WorkFrame(0, self.id, specs, capacity, sorted(held)))

    def _take(self, frame: Any) -> None:
        match frame:
            case f.RunFrame():
                key = (frame.call, frame.attempt)
                if key not in self._unsent:
                    if self._resting:  # it was on its way
                        self._say(key, f.ReturnFrame(0, *key), _ignore)
                    else:
                        self.runner.run(key, _attempt(frame))
            case f.TakenFrame():
                self._taken(frame)
            case f.CancelFrame():
                self.runner.cancel((frame.call, frame.attempt))
                self._drop([(frame.call, frame.attempt)])
            case f.WorkingFrame():
                self._begin(frame)
            case f.ErrorFrame():
                _log.error("the hub refused", **{k: v for k, v in frame.problem.items() if k in ("code", "detail")})
                if not self.ready.is_set():
                    self.refused = refusal_of(frame.problem)
                    self.ready.set()

    def _begin(self, frame: f.WorkingFrame) -> None:
        for call, attempt in frame.lost:
            _log.warning("an attempt was lost to another worker", call=call, attempt=attempt)
            self.runner.cancel((call, attempt))
        self._drop(frame.lost)
        self._known = True
        for unsent in self._unsent.values():
            for said, _done in unsent:
                self._channels.put(said)
        if self._lease is None:
            self._lease = self._renewing(self.id, frame.lease_s, self._lease_over)
        self.ready.set()

    def _taken(self, frame: f.TakenFrame) -> None:
        key = (frame.call, frame.attempt)
        unsent = self._unsent.get(key)
        if unsent is None:
            return
        error = refusal_of(frame.problem) if frame.problem is not None else None
        if error is not None and error.code == "attempt-fenced":
            self._unsent.pop(key)
            self.runner.cancel(key)
            for _said, done in unsent:
                done(error)
            return
        if error is not None and frame.seq < 0:
            return  # the hub's store has failed: its end is said again when it is back
        for place, (said, done) in enumerate(unsent):
            if getattr(said, "seq", -1) == frame.seq:
                del unsent[place]
                done(error)
                break
        if not unsent:
            del self._unsent[key]

    def _drop(self, keys: Iterable[tuple[str, int]]) -> None:
        for key in keys:
            for _said, done in self._unsent.pop(key, ()):
                done(refusal_of({"code": "attempt-fenced", "status": 403, "detail": "The attempt is over."}))

    def _lease_over(self) -> None:
        """From the thread: the hub has given up on this worker."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._again)

    def _again(self) -> None:
        if self._channels.connected:
            _log.warning("the lease was over; what this worker held is run by others")
            self._introduce()


def _attempt(frame: f.RunFrame) -> Attempt:
    return Attempt(
        frame.call,
        frame.attempt,
        frame.service,
        Payload(frame.body, frame.content_type),
        frame.accept or None,
        frame.query,
        frame.items,
        frame.durable,
    )


def _too_large(payload: Payload) -> TooLarge:
    return TooLarge(
        f"The handler gave {len(payload.data)} bytes; at most {PAYLOAD_BYTES_MAX} are taken. Publish them to a stream.",
        fields={"limit_bytes": PAYLOAD_BYTES_MAX},
    )


def _ignore(_error: Exception | None) -> None:
    return None


class Renewing(Protocol):
    """What renews a lease."""

    def stop(self) -> None: ...


class _Lease:
    """A thread that tells the hub that this process lives."""

    def __init__(self, url: str, worker: str, seconds: float, over: Callable[[], None]) -> None:
        self._url = urlsplit(url)
        self._path = f"{self._url.path.rstrip('/')}/v1/worker/{quote(worker)}/lease"
        self._seconds = seconds
        self._over = over
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wayside-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        made = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection: http.client.HTTPConnection | None = None
        pause_s = self._seconds / RENEWALS
        while not self._stop.wait(pause_s):
            pause_s = self._seconds / RENEWALS
            try:
                if connection is None:
                    connection = made(self._url.hostname or "", self._url.port, timeout=self._seconds / RENEWALS)
                connection.request("POST", self._path)
                response = connection.getresponse()
                response.read()
                if response.status == 403:
                    self._over()
            except (OSError, http.client.HTTPException):
                if connection is not None:
                    connection.close()
                connection = None
                pause_s = min(1.0, pause_s)  # two that fail in a row would else be the lease's end
