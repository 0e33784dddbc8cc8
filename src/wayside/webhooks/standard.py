"""Webhooks: a JSON document, pushed to a URL until its receiver has taken it (standardwebhooks.com, specification 1.0).

What is waiting is held in memory only: whoever sends records the outcome, and sends again after a restart, with the same
identity, so that receivers can tell a repetition. What a document means is not known here, nor how a request is made.
"""

from __future__ import annotations

import asyncio
import base64
import enum
import heapq
import hmac
import random
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from secrets import token_bytes
from typing import NamedTuple

from wayside.core.callbacks import guarded, report
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, Overloaded
from wayside.core.records import JSON, require_size
from wayside.webhooks.post import Answer, Direct, Transport, Unreachable, target_of

__all__ = ["Delivery", "Outcome", "WebhookStatistics", "Webhooks", "new_secret", "retry_after_s", "sign", "verify"]

RETRY_S = (1, 5, 30, 120, 600, 1800, 7200)
"""The longest pause after each failed attempt; the last one again and again. On average half of their sum, 81 minutes,
for the usual eight attempts: receivers are redeployed in minutes, and repaired in an hour or two."""
RETRY_AFTER_S_MAX = 3600.0
"""How far a receiver may put off its next attempt."""

# -- signatures

_SECRET_PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)
"""192 to 512 bits, says the specification."""
_IDENTITY = re.compile(r"[A-Za-z0-9_-]{1,256}", re.ASCII)
"""No full stop: it separates what is signed."""


def new_secret() -> str:
    """A random secret of 32 bytes, as ``whsec_BASE64``."""
    return _SECRET_PREFIX + base64.b64encode(token_bytes(32)).decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_SECRET_PREFIX) or len(key) not in _SECRET_BYTES:
        raise ValueError("A webhook secret is whsec_ and 24 to 64 bytes in base64, as new_secret() makes it.") from None
    return key


def _require_identity(identity: str) -> None:
    if not _IDENTITY.fullmatch(identity):
        raise BadRequest(
            f"{identity[:80]!r} is no webhook-id. Use 1 to 256 letters, digits, _ and -.", code="webhook-id"
        )


def sign(secret: str, identity: str, timestamp: int, body: bytes) -> str:
    """The signature ``v1,BASE64`` of one attempt.

    ``identity`` is the ``webhook-id``, ``timestamp`` the seconds since 1970 of the attempt, ``body`` the very bytes that
    are sent. Raises ``ValueError`` where ``secret`` is not one, and :class:`BadRequest` (``webhook-id``) where
    ``identity`` is not one.
    """
    _require_identity(identity)
    content = b"%b.%d.%b" % (identity.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(_key(secret), content, "sha256")).decode()


def verify(
    secrets: Sequence[str], headers: Mapping[str, str], body: bytes, *, now_s: float, tolerance_s: float = 300
) -> None:
    """Check a push that was received: for the receiving side, which also remembers each ``webhook-id``, as one may come
    twice.

    ``secrets`` are all that may have signed it, ``headers`` those of the request, ``body`` its bytes before any parsing;
    ``now_s`` is the time in seconds since 1970, and the attempt's may be ``tolerance_s`` away from it. Raises
    :class:`BadRequest`: ``webhook-unsigned`` where header fields are missing or malformed, ``webhook-stale`` for another
    time, ``webhook-signature`` where no signature is right. One of ``secrets`` that is none is a ``ValueError``.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    identity, timestamp = fields.get("webhook-id", ""), fields.get("webhook-timestamp", "")
    if not (_IDENTITY.fullmatch(identity) and re.fullmatch(r"[0-9]{1,12}", timestamp, re.ASCII)):
        raise BadRequest(
            "This is not a signed webhook: webhook-id or webhook-timestamp is missing or malformed.",
            code="webhook-unsigned",
        )
    if abs(now_s - int(timestamp)) > tolerance_s:
        raise BadRequest(
            f"The webhook was sent more than {tolerance_s:g} seconds away from now. Compare the clocks.",
            code="webhook-stale",
        )
    given = [signature.encode(errors="replace") for signature in fields.get("webhook-signature", "").split(" ")]
    for secret in secrets:
        expected = sign(secret, identity, int(timestamp), body).encode()
        if any(hmac.compare_digest(expected, signature) for signature in given):
            return
    raise BadRequest(
        "No signature of the webhook is right. Compare the secrets, and check the body before it is parsed.",
        code="webhook-signature",
    )


# -- pushing


class Outcome(enum.StrEnum):
    """What became of a push, in the end."""

    DELIVERED = "delivered"
    """The receiver answered with 2xx."""
    GONE = "gone"
    """It answered with 410: it wants no more of them."""
    GIVEN_UP = "given-up"
    """As many attempts failed as are made."""
    STOPPING = "given-up: stopping"
    """We are stopping: send it again after the restart. The receiver may have had it."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one push."""

    identity: str
    outcome: Outcome
    attempts: int
    """Those that were begun."""
    status: int | None
    """Of the last answer, if there was one to the last attempt that ended."""
    detail: str
    """The last attempt that ended, for people."""


class WebhookStatistics(NamedTuple):
    """A snapshot, for metrics and tests: of pushes that are over, by outcome, and of those that are held."""

    outcomes: dict[Outcome, int]
    attempts: int
    running: int
    ready: int
    pausing: int
    held_bytes: int


@dataclass(slots=True, eq=False)
class _Push:
    url: str
    identity: str
    body: bytes
    done: Callable[[Delivery], None]
    attempts: int = 0
    status: int | None = None
    detail: str = "Not yet tried."


class Webhooks:
    """Pushes, each tried until its receiver takes it, for as long as this process runs. Used from one event loop.

    Every attempt is signed with all of ``secrets`` (``whsec_BASE64``; more than one while they are rotated): one that is
    not a secret is a ``ValueError``. At most ``concurrency_max`` attempts run at a time, each in a thread for at most
    ``timeout_s``; a push is tried at most ``attempts_max`` times. ``held_max`` pushes of ``held_bytes_max`` bytes together
    are waiting, running or between two attempts, and more are refused. ``allow_private`` lets them go to any address:
    for tests, and for networks where whoever names a URL is trusted. ``jitter`` gives numbers from 0 to 1, and
    ``transport`` makes an attempt: :class:`Direct` unless another is given.
    """

    def __init__(
        self,
        *,
        secrets: Sequence[str],
        allow_private: bool = False,
        clock: Clock,
        concurrency_max: int = 16,
        attempts_max: int = 8,
        timeout_s: float = 10.0,
        held_max: int = 10_000,
        held_bytes_max: int = 64 * 1024 * 1024,
        jitter: Callable[[], float] = random.random,
        transport: Transport | None = None,
    ) -> None:
        if not secrets:
            raise ValueError("Webhooks need a secret to sign with; new_secret() makes one.")
        for secret in secrets:
            _key(secret)
        self._secrets = tuple(secrets)
        self._allow_private = allow_private
        self._clock = clock
        self._concurrency_max = concurrency_max
        self._attempts_max = attempts_max
        self._timeout_s = timeout_s
        self._held_max = held_max
        self._held_bytes_max = held_bytes_max
        self._jitter = jitter
        self._transport = transport or Direct(allow_private=allow_private, timeout_s=timeout_s)
        self._threads = ThreadPoolExecutor(concurrency_max, "wayside-webhook")
        self._ready: deque[_Push] = deque()
        self._running: dict[_Push, asyncio.Future[Answer]] = {}
        self._pausing: list[tuple[float, int, _Push]] = []
        """A heap, by the time on the monotonic clock when each is tried again."""
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._attempts = 0
        self._held_bytes = 0

    def __repr__(self) -> str:
        state = " stopping" if self._stopping else ""
        return f"<Webhooks {len(self._running)} running, {len(self._ready)} ready, {len(self._pausing)} pausing{state}>"

    def statistics(self) -> WebhookStatistics:
        counts = len(self._running), len(self._ready), len(self._pausing)
        return WebhookStatistics(dict(self._outcomes), self._attempts, *counts, self._held_bytes)

    def check(self, url: str) -> None:
        """Raise :class:`BadRequest` (``callback-url``) for what can never be sent to: to be asked before ``url`` is
        recorded. The names' addresses are looked up and checked with each attempt."""
        target_of(url, allow_private=self._allow_private)

    def send(self, url: str, identity: str, body: bytes, done: Callable[[Delivery], None]) -> None:
        """Push ``body``, a JSON document, to ``url``; ``done`` is told the outcome once, later, on the event loop.

        ``identity`` (1 to 256 letters, digits, ``_`` and ``-``) is the ``webhook-id``: the same when the push is sent
        again after a restart. Raises, and then does not call ``done``: :class:`BadRequest` (``callback-url``,
        ``webhook-id``); :class:`~wayside.errors.TooLarge`; :class:`Overloaded` while too many are held
        (``webhooks-full``), and when we are stopping (``closing``).
        """
        self.check(url)
        _require_identity(identity)
        require_size(len(body), self._held_bytes_max, "The webhook's body")
        if self._stopping:
            raise Overloaded("The hub is stopping. Send the webhook when it is back.", code="closing")
        held = len(self._ready) + len(self._running) + len(self._pausing)
        if held >= self._held_max or self._held_bytes + len(body) > self._held_bytes_max:
            raise Overloaded(
                f"{held} webhooks of {self._held_bytes} bytes are waiting, as many as may. Try again shortly.",
                code="webhooks-full",
                headers={"Retry-After": "5"},
            )
        self._held_bytes += len(body)
        self._ready.append(_Push(url, identity, body, done))
        self._start()

    def _start(self) -> None:
        """Begin attempts, in order, as many as may run."""
        while self._ready and len(self._running) < self._concurrency_max:
            push = self._ready.popleft()
            push.attempts += 1
            self._attempts += 1
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._threads, self._transport, push.url, self._headers(push), push.body)
            self._running[push] = future
            future.add_done_callback(partial(self._ended, push))

    def _headers(self, push: _Push) -> dict[str, str]:
        timestamp = self._clock.wall_ms() // 1000
        signatures = [sign(secret, push.identity, timestamp, push.body) for secret in self._secrets]
        return {
            "Content-Type": JSON,
            "User-Agent": "wayside",
            "webhook-id": push.identity,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(signatures),
        }

    def _ended(self, push: _Push, future: asyncio.Future[Answer]) -> None:
        """An attempt is over."""
        error = future.exception()
        if self._running.pop(push, None) is None:
            return  # close did not wait any longer
        answer = None if error else future.result()
        if answer is None:
            push.status, push.detail = None, str(error)
            if isinstance(error, Exception) and not isinstance(error, Unreachable):
                report(error, self._transport)  # a mistake of ours; the push is tried again all the same
        else:
            push.status, push.detail = answer.status, f"The receiver answered with {answer.status}."
        if answer is not None and 200 <= answer.status < 300:
            self._finish(push, Outcome.DELIVERED)
        elif answer is not None and answer.status == 410:
            self._finish(push, Outcome.GONE)
        elif push.attempts >= self._attempts_max:
            self._finish(push, Outcome.GIVEN_UP)
        elif self._stopping:
            self._finish(push, Outcome.STOPPING)
        else:
            self._pause(push, answer.retry_after if answer is not None else None)
        self._start()

    def _pause(self, push: _Push, retry_after: str | None) -> None:
        """Full jitter: anything up to the pause (Brooker, "Exponential Backoff and Jitter", 2015), and no sooner than the
        receiver wishes."""
        pause_s = RETRY_S[min(push.attempts, len(RETRY_S)) - 1] * self._jitter()
        if retry_after is not None:
            pause_s = max(pause_s, retry_after_s(retry_after, self._clock.wall_ms() / 1000))
        heapq.heappush(self._pausing, (self._clock.monotonic() + pause_s, id(push), push))
        self._set_timer()

    def _set_timer(self) -> None:
        """One timer, for the earliest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pausing:
            delay_s = max(0.001, self._pausing[0][0] - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.wake)

    def wake(self) -> None:
        """Try again what is to be tried again by now. A timer calls this; so does whoever moves the clock by hand."""
        now = self._clock.monotonic()
        while self._pausing and self._pausing[0][0] <= now:
            self._ready.append(heapq.heappop(self._pausing)[2])
        self._set_timer()
        self._start()

    def _finish(self, push: _Push, outcome: Outcome) -> None:
        self._held_bytes -= len(push.body)
        self._outcomes[outcome] += 1
        guarded(partial(push.done, Delivery(push.identity, outcome, push.attempts, push.status, push.detail)))

    async def close(self) -> None:
        """Begin no attempt any more, and wait ``timeout_s`` for those under way; the outcome of all that is not over then
        is :attr:`Outcome.STOPPING`. When cancelled, it only does not wait: every ``done`` is called."""
        self._stopping = True
        waiting = [*self._ready, *(push for _, _, push in sorted(self._pausing))]
        self._ready.clear()
        self._pausing.clear()
        self._set_timer()
        for push in waiting:
            self._finish(push, Outcome.STOPPING)
        try:
            if self._running:
                await asyncio.wait(self._running.values(), timeout=self._timeout_s)
        finally:
            left, self._running = list(self._running), {}
            for push in left:
                self._finish(push, Outcome.STOPPING)
            self._threads.shutdown(wait=False)


def retry_after_s(value: str, now_s: float) -> float:
    """Seconds of ``Retry-After`` (RFC 9110 section 10.2.3), within bounds; 0 where it makes no sense."""
    value = value.strip()
    if value.isascii() and value.isdecimal() and len(value) < 10:
        return min(float(value), RETRY_AFTER_S_MAX)
    try:
        date = parsedate_tz(value)
        at_s = mktime_tz(date) if date else 0
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, min(at_s - now_s, RETRY_AFTER_S_MAX))
