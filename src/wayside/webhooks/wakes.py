"""Wakes of subscriptions: when one begins, how a worker is told of it, and when its lease is over.

A receiver is told by a signed request (Durable Streams section 7.1), pull workers by a record of their wake stream (section
7.2). What is true of a subscription is kept before anybody is told: each wake is on disk before it goes out. Leases and
pauses run on the monotonic clock, and begin anew with the hub. Everything here runs on one event loop; requests to
receivers run in threads.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from secrets import token_hex
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import structlog

from wayside.core.callbacks import Done, report
from wayside.core.clock import Clock
from wayside.core.errors import Overloaded, Refusal
from wayside.core.records import JSON, Append, Appended
from wayside.core.schedule import Timer, Timers
from wayside.streams.contract import Log, StreamView
from wayside.webhooks.keys import Keys
from wayside.webhooks.post import Answer, Direct, Unreachable
from wayside.webhooks.subscription import Acked, Delivered, Event, Failed, Kind, Released, Subscription, Woken, encode

__all__ = ["SUBSCRIPTIONS", "Entry", "Poster", "WakeStatistics", "Wakes", "new_wake", "retry_s"]

SUBSCRIPTIONS = "__ds/subscriptions/"
"""Where the streams of subscriptions are; and, below the streams of a hub, they themselves."""
RETRY_S_MAX = 60.0
RETRY_JITTER = 0.2
"""Pauses between attempts: from one second, doubled each time, up to this, give or take a fifth (section 7.1)."""
TIMEOUT_S_MAX = 10.0
"""For one attempt; less where the lease is shorter, as an answer that comes after it is of no use. Who works for longer
answers at once, and calls back."""
CONCURRENCY_MAX = 16
"""Attempts that run at a time. A subscription has one."""
EVENTS_MIN = 1000
"""Records of a subscription's stream after which a snapshot takes their place; more where the snapshot is long."""
RELOAD_S, RELOAD_S_MAX = 1.0, 60.0
"""How soon a subscription is read again of which something could not be kept; twice as long each time, up to the latter."""

Post = Callable[[str, Mapping[str, str], bytes, float], Answer]
"""Posts a body with header fields to a URL within so many seconds, in a thread; raises :class:`Unreachable`."""

_log = structlog.get_logger("wayside.subscriptions")


def retry_s(attempts: int, jitter: float) -> float:
    """The pause after so many failed attempts in a row; ``jitter`` is from 0 to 1."""
    pause_s: float = min(RETRY_S_MAX, 2.0 ** min(attempts - 1, 16))
    return pause_s * (1 + RETRY_JITTER * (2 * jitter - 1))


class WakeStatistics(NamedTuple):
    """A snapshot, for metrics and tests."""

    subscriptions: int
    pending: int
    """Those with streams that have records after the cursor."""
    working: int
    """Those with a wake under way."""
    failing: int
    """Those that could not be told of it, and are told again."""
    woken: int
    """Wakes since the hub began."""
    failed: int
    """Attempts to tell of one that failed since then."""


class Entry:
    """A subscription that is served."""

    __slots__ = (
        "doubtful",
        "doubts",
        "events",
        "gone",
        "lease",
        "lease_until",
        "live",
        "looking",
        "path",
        "pushing",
        "retry",
        "state",
        "unwatch",
        "waiters",
    )

    def __init__(self, state: Subscription) -> None:
        self.state = state
        self.path = SUBSCRIPTIONS + state.id
        self.events = 0
        """Records of its stream since the last snapshot."""
        self.live = True
        """Whether its creation is committed."""
        self.waiters: list[Done] = []
        """Who waits for that."""
        self.gone = False
        self.doubtful = False
        """Something could not be kept: what is in memory may never have been."""
        self.doubts = 0
        """How often in a row."""
        self.looking = False
        self.pushing = False
        """An attempt runs."""
        self.retry: Timer | None = None
        """A pause after a failed attempt."""
        self.lease: Timer | None = None
        self.lease_until = 0.0
        self.unwatch: dict[str, Callable[[], None]] = {}
        """How to end its watches, by glob."""

    def __repr__(self) -> str:
        return f"<Entry {self.state!r}>"

    @property
    def busy(self) -> bool:
        """Whether it cannot be woken now, pending work or not."""
        return self.gone or self.doubtful or not self.live or self.pushing or self.retry is not None

    def hold(self) -> None:
        """Cancel its timers."""
        for timer in (self.lease, self.retry):
            if timer is not None:
                timer.cancel()
        self.lease = self.retry = None


class Poster:
    """Posts as :class:`Direct` does, each time within its own time."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._tls: ssl.SSLContext | None = None

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Answer:
        if self._tls is None and url.startswith("https:"):
            self._tls = ssl.create_default_context()
        return Direct(allow_private=self._allow_private, timeout_s=timeout_s, tls=self._tls)(url, headers, body)


class Wakes:
    """The subscriptions of one hub under way."""

    def __init__(
        self,
        log: Log,
        timers: Timers,
        clock: Clock,
        *,
        post: Post,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self._log = log
        self._timers = timers
        self._clock = clock
        self._post = post
        self._jitter = jitter
        self._keys: Keys | None = None
        self._threads = ThreadPoolExecutor(CONCURRENCY_MAX, "wayside-wake")
        self._attempts: set[asyncio.Future[Answer]] = set()
        self._stopped = False
        self._woken = self._failures = 0

    def statistics(self) -> WakeStatistics:
        states = [entry.state for entry in self.entries.values()]
        return WakeStatistics(
            len(states),
            sum(bool(state.pending) for state in states),
            sum(bool(state.wake) for state in states),
            sum(state.attempts > 0 for state in states),
            self._woken,
            self._failures,
        )

    def reload(self, entry: Entry) -> None:
        """Read a doubtful subscription again."""
        raise NotImplementedError

    # -- what is kept

    def keep(self, entry: Entry, events: Sequence[Event], done: Done | None = None) -> None:
        """Make events true, and durable; ``done`` gets :class:`Appended`, or an exception."""
        for event in events:
            entry.state.apply(event)
            self._woken += type(event) is Woken
        self.append(entry, events, done)

    def append(self, entry: Entry, events: Sequence[Event], done: Done | None) -> None:
        """Make events that are true already durable."""
        records = [encode(event) for event in events]

        def kept(result: Appended | Exception) -> None:
            if isinstance(result, Exception):
                self._doubt(entry, result)
            else:
                entry.doubts = 0
            if done is not None:
                done(result)

        entry.events += len(records)
        try:
            self._log.append(entry.path, Append(b"", records=records), kept)
        except Refusal as refusal:
            kept(refusal)
            return
        if entry.events > max(EVENTS_MIN, len(entry.state.links)):
            self._compact(entry)

    def _compact(self, entry: Entry) -> None:
        """Put a snapshot in the place of everything before it."""
        events = entry.state.events()

        def kept(result: Appended | Exception) -> None:
            if isinstance(result, Appended) and not entry.gone:
                self._log.trim(entry.path, result.position - len(events))

        entry.events = 0
        self.append(entry, events, kept)
        entry.events = 0

    def _doubt(self, entry: Entry, error: Exception) -> None:
        if entry.gone or entry.doubtful or self._stopped:
            return
        _log.warning("not kept", subscription=entry.state.id, detail=getattr(error, "detail", str(error)))
        entry.doubtful = True
        entry.hold()
        self._timers.after(min(RELOAD_S_MAX, RELOAD_S * 2.0 ** min(entry.doubts, 16)), partial(self.reload, entry))
        entry.doubts += 1

    # -- what is seen of streams

    def told(self, entry: Entry, stream: StreamView) -> None:
        """A stream that it watches has changed."""
        state, path = entry.state, stream.path
        if stream.deleted:
            state.lose(path)
        elif path in state.links or state.matches(path):
            state.see(path, stream.offset(stream.start), stream.offset(stream.tail))
        if state.pending and not state.wake and not entry.looking:
            entry.looking = True
            asyncio.get_running_loop().call_soon(self.look, entry)

    # -- wakes

    def look(self, entry: Entry) -> None:
        """Wake a worker, if there is work for one and none has it."""
        entry.looking = False
        state = entry.state
        if entry.busy or self._stopped:
            return
        woken = state.next_wake(new_wake(), self._clock.wall_ms())
        if woken is None:
            return

        def kept(result: Appended | Exception) -> None:
            if not isinstance(result, Exception) and state.wake == woken.wake and not state.holder:
                self.tell(entry)

        self.keep(entry, [woken], kept)
        if state.config.type is Kind.WEBHOOK and state.wake:
            self.lease(entry)

    def tell(self, entry: Entry) -> None:
        """Tell of the wake under way."""
        if entry.gone or entry.doubtful or self._stopped or entry.pushing:
            return
        if entry.state.config.type is Kind.WEBHOOK:
            self._push(entry)
        else:
            self._announce(entry)

    def _announce(self, entry: Entry) -> None:
        """By a record of the wake stream."""
        state = entry.state
        wake = state.wake
        record = {
            "type": "wake",
            "subscription_id": state.id,
            "stream": next(iter(state.snapshot), ""),
            "generation": state.generation,
            "ts": state.woken_ms,
        }

        def written(result: Appended | Exception) -> None:
            if entry.gone or entry.doubtful or entry.state.wake != wake or entry.state.holder:
                return
            if isinstance(result, Exception):
                self._failed(entry, getattr(result, "detail", str(result)))
            else:
                self.keep(entry, [Delivered()])

        try:
            self._log.append(state.config.wake_stream, Append(b"", records=[msgspec.json.encode(record)]), written)
        except Refusal as refusal:
            written(refusal)

    def _push(self, entry: Entry) -> None:
        """By a request to the receiver."""
        state, keys = entry.state, self._keys
        assert keys is not None, "subscriptions have keys"
        actions = f"{state.base}{SUBSCRIPTIONS}{quote(state.id, safe='')}"
        body = msgspec.json.encode(
            {
                "subscription_id": state.id,
                "wake_id": state.wake,
                "generation": state.generation,
                "streams": state.stream_infos(now=False),
                "callback_url": f"{actions}/callback",
                "callback_token": self.token(state),
            }
        )
        url, timeout_s = state.config.url, min(TIMEOUT_S_MAX, state.config.lease_ttl_ms / 1000)

        def attempt() -> Answer:
            signature = keys.sign(self._clock.wall_ms() // 1000, body)
            headers = {"Content-Type": JSON, "User-Agent": "wayside", "Webhook-Signature": signature}
            return self._post(url, headers, body, timeout_s)

        entry.pushing = True
        future = asyncio.get_running_loop().run_in_executor(self._threads, attempt)
        self._attempts.add(future)
        future.add_done_callback(partial(self._pushed, entry, state.wake))

    def _pushed(self, entry: Entry, wake: str, future: asyncio.Future[Answer]) -> None:
        """An attempt is over. What the receiver says to a wake that is over itself is too late."""
        entry.pushing = False
        self._attempts.discard(future)
        if future.cancelled() or entry.gone:
            return
        state, error = entry.state, future.exception()
        if entry.doubtful:
            return
        if isinstance(error, Exception) and not isinstance(error, Unreachable):
            report(error, self._post)  # a mistake of ours; tried again all the same
        answer = future.result() if error is None else None
        if answer is None or not 200 <= answer.status < 300:
            self._failed(entry, str(error) if answer is None else f"The receiver answered with {answer.status}.")
            return
        events: list[Event] = []
        if state.wake == wake or state.attempts:
            events.append(Delivered())
        if state.wake == wake and _says_done(answer.body):
            events.append(Acked(state.snapshot_acks(), done=True))
            self.end_lease(entry)
        if events:
            self.keep(entry, events)
        self.look(entry)

    def _failed(self, entry: Entry, detail: str) -> None:
        """Try again after a pause."""
        self._failures += 1
        attempts = entry.state.attempts + 1
        pause_s = retry_s(attempts, self._jitter())
        _log.warning("wake failed", subscription=entry.state.id, attempts=attempts, pause_s=pause_s, detail=detail)
        self.keep(entry, [Failed(attempts, self._clock.wall_ms() + round(pause_s * 1000))])
        self.pause(entry, pause_s)

    def pause(self, entry: Entry, pause_s: float) -> None:
        if entry.retry is not None:
            entry.retry.cancel()
        if not entry.doubtful and not self._stopped:
            entry.retry = self._timers.after(pause_s, partial(self._resume, entry))

    def _resume(self, entry: Entry) -> None:
        entry.retry = None
        state = entry.state
        if state.wake and not state.delivered and not state.holder:
            self.tell(entry)
        else:
            self.look(entry)

    def token(self, state: Subscription) -> str:
        """For whoever works on the wake under way."""
        assert self._keys is not None, "subscriptions have keys"
        return self._keys.token(sub=state.id, generation=state.generation, wake=state.wake)

    # -- leases

    def lease(self, entry: Entry) -> None:
        """The lease begins, or begins anew."""
        if entry.doubtful:
            return
        ttl_s = entry.state.config.lease_ttl_ms / 1000
        entry.lease_until = self._clock.monotonic() + ttl_s
        if entry.lease is None:
            entry.lease = self._timers.after(ttl_s, partial(self._lease_over, entry))

    def end_lease(self, entry: Entry) -> None:
        if entry.lease is not None:
            entry.lease.cancel()
            entry.lease = None

    def _lease_over(self, entry: Entry) -> None:
        entry.lease = None
        left_s = entry.lease_until - self._clock.monotonic()
        if left_s > 0:
            entry.lease = self._timers.after(left_s, partial(self._lease_over, entry))
        elif entry.state.wake and not entry.gone:
            self.keep(entry, [Released()])
            self.look(entry)

    # -- life

    def arm(self, entry: Entry) -> None:
        """Take up a subscription that was read: its wake under way has a whole lease again, and is told of where that did
        not succeed."""
        state = entry.state
        if state.wake and (state.config.type is Kind.WEBHOOK or state.holder):
            self.lease(entry)
        if state.attempts:
            left_s = (state.next_ms - self._clock.wall_ms()) / 1000
            self.pause(entry, min(max(0.0, left_s), RETRY_S_MAX * (1 + RETRY_JITTER)))
        elif state.wake and not state.delivered and not state.holder:
            self.tell(entry)
        self.look(entry)

    def require_sure(self, entry: Entry) -> None:
        """Raise :class:`Overloaded` while it is read again."""
        if entry.doubtful:
            raise Overloaded(
                "A change of this subscription could not be kept, and it is read again. Try again in a second.",
                code="subscription-unsure",
                headers={"Retry-After": "1"},
            )

    async def stop(self) -> None:
        """Wake nobody any more, and wait for attempts under way, which all end in time. Those that have to wait for others
        are not made: the next hub makes them."""
        self._stopped = True
        for entry in self.entries.values():
            entry.hold()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=TIMEOUT_S_MAX)


def new_wake() -> str:
    """A name that no other wake has."""
    return f"w_{token_hex(12)}"


def _says_done(body: bytes) -> bool:
    """Whether an answer is ``{"done": true}``."""
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("done") is True
