"""Wakes of subscriptions: when one begins, how a worker is told of it, and when its lease is over.

A receiver is told by a signed request (Durable Streams section 7.1), pull workers by a record of their wake stream (section
7.2). What is true of a subscription is kept before anybody is told: each wake is on disk before it goes out. Leases and
pauses run on the monotonic clock, and begin anew with the hub. Which subscriptions there are, and how one is read from
disk, is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import msgspec
import structlog

from wayside.core.backoff import Backoff
from wayside.core.callbacks import Done
from wayside.core.clock import Clock
from wayside.core.errors import Overloaded, Refusal
from wayside.core.lease import Lease, Leases
from wayside.core.records import JSON, Append, Appended
from wayside.core.schedule import Timer, Timers
from wayside.streams.contract import Log, StreamView
from wayside.webhooks.keys import KeyRing
from wayside.webhooks.post import TIMEOUT_S, NoResponse, Poster, Posting, WebhookResponse, ended
from wayside.webhooks.subscription import (
    DurableSubscription,
    Kind,
    Released,
    SubscriptionEvent,
    WakeDelivered,
    WakeFailed,
    Woken,
    WorkAcked,
    encode,
)

__all__ = ["SUBSCRIPTIONS", "ServedSubscription", "Wakes", "wake_backoff"]

SUBSCRIPTIONS = "__ds/subscriptions/"
"""Where the streams of subscriptions are; and, below the streams of a hub, they themselves."""
RETRY_S, RETRY_S_MAX, RETRY_JITTER = 1.0, 60.0, 0.2
"""Pauses between attempts: from one second, doubled each time, up to this, give or take a fifth (section 7.1)."""
EVENTS_MIN = 1000
"""Records of a subscription's stream after which a snapshot takes their place; more where the snapshot is long."""
RELOAD = Backoff(1.0, 60.0, least=1.0)
"""How soon a subscription is read again of which something could not be kept."""

_log = structlog.get_logger("wayside.subscriptions")


def wake_backoff() -> Backoff:
    """The pauses between attempts to tell of a wake."""
    return Backoff(RETRY_S, RETRY_S_MAX, least=1 - RETRY_JITTER, most=1 + RETRY_JITTER)


@dataclass(slots=True, eq=False, repr=False)
class ServedSubscription:
    """A subscription, and what is under way for it."""

    state: DurableSubscription
    events: int = 0
    """Records of its stream since the last snapshot."""
    position: int = 0
    """After the last of them that is known to be kept."""
    live: bool = True
    """Whether its creation is committed."""
    waiters: list[Done] = field(default_factory=list)
    """Who waits for that."""
    gone: bool = False
    doubtful: bool = False
    """Something could not be kept: what is in memory may never have been."""
    doubts: int = 0
    """How often in a row."""
    looking: bool = False
    posting: Posting | None = None
    """An attempt that runs, or waits for its turn."""
    retry: Timer | None = None
    """A pause after a failed attempt."""
    unwatch: dict[str, Callable[[], None]] = field(default_factory=dict)
    """How to end its watches, by glob."""
    lease: Lease[ServedSubscription] = field(init=False)
    """Of the wake under way; its epoch is the wake's generation."""

    def __post_init__(self) -> None:
        self.lease = Lease(self, self.state.config.lease_ttl_ms / 1000)

    @property
    def path(self) -> str:
        return SUBSCRIPTIONS + self.state.id

    def __repr__(self) -> str:
        return f"<Served {self.state!r}>"

    @property
    def busy(self) -> bool:
        """Whether it cannot be woken now, pending work or not."""
        return self.gone or self.doubtful or not self.live or self.posting is not None or self.retry is not None

    def end_retry(self) -> None:
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

    def require_sure(self) -> None:
        """Raise :class:`Overloaded` while it is read again."""
        if self.doubtful:
            raise Overloaded(
                "A change of this subscription could not be kept, and it is read again. Try again in a second.",
                code="subscription-unsure",
                headers={"Retry-After": "1"},
            )


class Wakes:
    """The wakes of one hub's subscriptions. ``reload`` reads a subscription again of which something could not be kept."""

    def __init__(
        self,
        log: Log,
        timers: Timers,
        clock: Clock,
        poster: Poster,
        keys: KeyRing,
        reload: Callable[[ServedSubscription], None],
    ) -> None:
        self.backoff = wake_backoff()
        self.woken = 0
        """Wakes since the hub began."""
        self.failed = 0
        """Attempts to tell of one that failed since then."""
        self._log = log
        self._timers = timers
        self._clock = clock
        self._poster = poster
        self._keys = keys
        self._reload = reload
        self._leases: Leases[Lease[ServedSubscription]] = Leases(clock, timers, self._over)
        self._stopped = False

    # -- what is kept

    def keep(self, served: ServedSubscription, events: Sequence[SubscriptionEvent], done: Done | None = None) -> None:
        """Make events true, and durable; ``done`` gets :class:`Appended`, or an exception."""
        for event in events:
            self.apply(served, event)
        self.append(served, events, done)

    def apply(self, served: ServedSubscription, event: SubscriptionEvent) -> None:
        """Make an event true; it is to be appended at once."""
        served.state.apply(event)
        self.woken += type(event) is Woken

    def append(self, served: ServedSubscription, events: Sequence[SubscriptionEvent], done: Done | None) -> None:
        """Make events that are true already durable."""
        records = [encode(event) for event in events]

        def kept(result: Appended | Exception) -> None:
            if isinstance(result, Exception):
                self._doubt(served, result)
            else:
                served.doubts = 0
            if done is not None:
                done(result)
            if isinstance(result, Appended):
                served.position = result.position

        served.events += len(records)
        try:
            self._log.append(served.path, Append(b"", records=records), kept)
        except Refusal as refusal:
            kept(refusal)
            return
        if served.events > max(EVENTS_MIN, len(served.state.links)):
            self._compact(served)

    def _compact(self, served: ServedSubscription) -> None:
        """Put a snapshot in the place of everything before it."""

        def kept(result: Appended | Exception) -> None:
            if isinstance(result, Appended) and not served.gone:
                self._log.trim(served.path, served.position)  # as it was before the snapshot

        served.events = 0
        self.append(served, served.state.events(), kept)
        served.events = 0

    def _doubt(self, served: ServedSubscription, error: Exception) -> None:
        if served.gone or served.doubtful or self._stopped:
            return
        _log.warning("not kept", subscription=served.state.id, detail=getattr(error, "detail", str(error)))
        served.doubtful = True
        self.rest(served)
        served.doubts += 1
        self._timers.after(RELOAD.delay_s(served.doubts), partial(self._reload, served))

    # -- what is seen of streams

    def told(self, served: ServedSubscription, stream: StreamView) -> None:
        """A stream that it watches has changed."""
        state, path = served.state, stream.path
        if stream.deleted:
            state.lose(path)
        elif path in state.links or state.matches(path):
            state.see(path, stream.offset(stream.start), stream.offset(stream.tail))
        if state.pending and not state.wake and not served.looking:
            served.looking = True
            asyncio.get_running_loop().call_soon(self.look, served)

    # -- wakes

    def next_wake(self, state: DurableSubscription) -> Woken | None:
        """The wake that pending work makes now, if it makes one."""
        return state.next_wake(f"w_{token_hex(12)}", self._clock.wall_ms())

    def look(self, served: ServedSubscription) -> None:
        """Wake a worker, if there is work for one and none has it."""
        served.looking = False
        state = served.state
        if served.busy or self._stopped:
            return
        woken = self.next_wake(state)
        if woken is None:
            return

        def kept(result: Appended | Exception) -> None:
            if not isinstance(result, Exception) and state.wake == woken.wake and not state.holder:
                self._tell(served)

        self.keep(served, [woken], kept)
        if state.config.type is Kind.WEBHOOK and state.wake:
            self.lease(served)

    def _tell(self, served: ServedSubscription) -> None:
        """Tell of the wake under way."""
        if served.gone or served.doubtful or self._stopped or served.posting is not None:
            return
        if served.state.config.type is Kind.WEBHOOK:
            self._push(served)
        else:
            self._announce(served)

    def _announce(self, served: ServedSubscription) -> None:
        """By a record of the wake stream."""
        state = served.state
        wake = state.wake
        record = {
            "type": "wake",
            "subscription_id": state.id,
            "stream": next(iter(state.snapshot), ""),
            "generation": state.generation,
            "ts": state.woken_ms,
        }

        def written(result: Appended | Exception) -> None:
            if served.gone or served.doubtful or served.state.wake != wake or served.state.holder:
                return
            if isinstance(result, Exception):
                self._failed(served, getattr(result, "detail", str(result)))
            else:
                self.keep(served, [WakeDelivered()])

        try:
            self._log.append(state.config.wake_stream, Append(b"", records=[msgspec.json.encode(record)]), written)
        except Refusal as refusal:
            written(refusal)

    def _push(self, served: ServedSubscription) -> None:
        """By a request to the receiver. It takes no longer than the lease, as an answer that comes after it is of no use:
        who works for longer answers at once, and calls back."""
        state, keys = served.state, self._keys.sure
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

        def headers() -> dict[str, str]:
            signature = keys.sign(self._clock.wall_ms() // 1000, body)
            return {"Content-Type": JSON, "User-Agent": "wayside", "Webhook-Signature": signature}

        pushed = partial(self._pushed, served, state.wake)
        served.posting = self._poster.post(
            state.config.url, headers, body, min(TIMEOUT_S, served.lease.seconds), pushed
        )

    def _pushed(self, served: ServedSubscription, wake: str, result: WebhookResponse | NoResponse) -> None:
        """An attempt is over. What the receiver says to a wake that is over itself is too late."""
        served.posting = None
        if served.gone or served.doubtful:
            return
        if isinstance(result, NoResponse):
            self._failed(served, str(result))
            return
        if not result.ok:
            self._failed(served, f"The receiver answered with {result.status}.")
            return
        state = served.state
        events: list[SubscriptionEvent] = []
        if state.wake == wake or state.attempts:
            events.append(WakeDelivered())
        if state.wake == wake and _says_done(result.body):
            events.append(WorkAcked(state.snapshot_acks(), done=True))
            self.end_lease(served)
        if events:
            self.keep(served, events)
        self.look(served)

    def _failed(self, served: ServedSubscription, detail: str) -> None:
        """Try again after a pause."""
        self.failed += 1
        attempts = served.state.attempts + 1
        pause_s = self.backoff.delay_s(attempts)
        _log.warning("wake failed", subscription=served.state.id, attempts=attempts, pause_s=pause_s, detail=detail)
        self.keep(served, [WakeFailed(attempts, self._clock.wall_ms() + round(pause_s * 1000))])
        self._pause(served, pause_s)

    def _pause(self, served: ServedSubscription, pause_s: float) -> None:
        served.end_retry()
        if not served.doubtful and not self._stopped:
            served.retry = self._timers.after(pause_s, partial(self._resume, served))

    def _resume(self, served: ServedSubscription) -> None:
        served.retry = None
        state = served.state
        if state.wake and not state.delivered and not state.holder:
            self._tell(served)
        else:
            self.look(served)

    def token(self, state: DurableSubscription) -> str:
        """For whoever works on the wake under way."""
        return self._keys.sure.token(sub=state.id, generation=state.generation, wake=state.wake)

    # -- leases

    def lease(self, served: ServedSubscription) -> None:
        """The lease begins, or begins anew."""
        if not served.doubtful:
            served.lease.epoch = served.state.generation
            self._leases.renew(served.lease)

    def end_lease(self, served: ServedSubscription) -> None:
        self._leases.end(served.lease)

    def _over(self, leases: list[Lease[ServedSubscription]]) -> None:
        for lease in leases:
            served = lease.holder
            if served.state.wake and not served.gone:
                self.keep(served, [Released()])
                self.look(served)

    # -- life

    def arm(self, served: ServedSubscription) -> None:
        """Take up a subscription that was read: its wake under way has a whole lease again, and is told of where that did
        not succeed."""
        state = served.state
        if state.wake and (state.config.type is Kind.WEBHOOK or state.holder):
            self.lease(served)
        if state.attempts:
            left_s = (state.next_ms - self._clock.wall_ms()) / 1000
            self._pause(served, min(max(0.0, left_s), RETRY_S_MAX * (1 + RETRY_JITTER)))
        elif state.wake and not state.delivered and not state.holder:
            self._tell(served)
        self.look(served)

    def rest(self, served: ServedSubscription) -> None:
        """Nothing happens to it by time any more."""
        self.end_lease(served)
        served.end_retry()

    async def stop(self, all_served: Iterable[ServedSubscription]) -> None:
        """Wake nobody any more, and wait for attempts under way, which all end in time. Those that have to wait for others
        are not made: the next hub makes them."""
        self._stopped = True
        postings = []
        for served in all_served:
            self.rest(served)
            if served.posting is not None:
                postings.append(served.posting)
        await ended(postings, TIMEOUT_S)


def _says_done(body: bytes) -> bool:
    """Whether an answer is ``{"done": true}``."""
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("done") is True
