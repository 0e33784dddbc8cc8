"""Standard Webhooks: requests that are signed, and documents that are sent until their receiver has taken them
(standardwebhooks.com, specification 1.0).

What is waiting is held in memory only: whoever sends records the outcome, and sends again after a restart, with the same
identity, so that receivers can tell a repetition. What a document means is not known here, nor how a request is made.
"""

from __future__ import annotations

import base64
import enum
import hmac
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from secrets import token_bytes
from typing import NamedTuple

from wayside.core.backoff import Backoff
from wayside.core.callbacks import guarded
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, Overloaded
from wayside.core.records import JSON, require_size
from wayside.core.schedule import Timer, Timers
from wayside.webhooks.post import TIMEOUT_S, Answered, NoResponse, Poster, Posting, WebhookResponse, ended

__all__ = [
    "DeliveryOutcome",
    "DeliveryReport",
    "WebhookStatistics",
    "Webhooks",
    "new_secret",
    "retry_after_s",
    "sign",
    "verify",
]

RETRY_S, RETRY_S_MAX, RETRY_FACTOR = 1.0, 7200.0, 4.5
"""The longest pause after the first failed attempt, after any, and how much longer each is than the one before. On average
80 minutes in all for the usual eight attempts: receivers are redeployed in minutes, and repaired in an hour or two."""
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


# -- sending


class DeliveryOutcome(enum.StrEnum):
    """What became of a document, in the end."""

    DELIVERED = "delivered"
    """The receiver answered with 2xx."""
    GONE = "gone"
    """It answered with 410: it wants no more of them."""
    GIVEN_UP = "given-up"
    """As many attempts failed as are made."""
    STOPPING = "given-up: stopping"
    """We are stopping: send it again after the restart. The receiver may have had it."""


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """The outcome for one document."""

    identity: str
    outcome: DeliveryOutcome
    attempts: int
    """Those that were begun."""
    status: int | None
    """Of the last answer, if there was one to the last attempt that ended."""
    detail: str
    """The last attempt that ended, for people."""


class WebhookStatistics(NamedTuple):
    """A snapshot, for metrics and tests: of documents that are over, by outcome, and of those that are held."""

    outcomes: dict[DeliveryOutcome, int]
    attempts: int
    """Those that ended."""
    running: int
    ready: int
    pausing: int
    held_bytes: int


@dataclass(slots=True, eq=False)
class _Push:
    url: str
    identity: str
    body: bytes
    done: Callable[[DeliveryReport], None]
    attempts: int = 0
    status: int | None = None
    detail: str = "Not yet tried."
    posting: Posting | None = None
    """The attempt that runs, or waits for its turn."""
    pause: Timer | None = None


class Webhooks:
    """What a hub signs with the secrets that it shares with receivers. Used from one event loop.

    Every request is signed with all of ``secrets`` (``whsec_BASE64``; more than one while they are rotated): one that is
    not a secret is a ``ValueError``. ``poster`` makes the requests, each for at most ``timeout_s``. A document is tried at
    most ``attempts_max`` times. ``held_max`` documents of ``held_bytes_max`` bytes together are waiting, running or
    between two attempts, and more are refused. ``jitter`` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        poster: Poster,
        *,
        secrets: Sequence[str],
        clock: Clock,
        timers: Timers,
        attempts_max: int = 8,
        timeout_s: float = TIMEOUT_S,
        held_max: int = 10_000,
        held_bytes_max: int = 64 * 1024 * 1024,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not secrets:
            raise ValueError("Webhooks need a secret to sign with; new_secret() makes one.")
        for secret in secrets:
            _key(secret)
        self._poster = poster
        self._secrets = tuple(secrets)
        self._clock = clock
        self._timers = timers
        self._attempts_max = attempts_max
        self._timeout_s = timeout_s
        self._held_max = held_max
        self._held_bytes_max = held_bytes_max
        self._backoff = Backoff(RETRY_S, RETRY_S_MAX, jitter, factor=RETRY_FACTOR)
        self._held: dict[_Push, None] = {}
        self._stopping = False
        self._outcomes = dict.fromkeys(DeliveryOutcome, 0)
        self._attempts = 0
        self._held_bytes = 0

    def __repr__(self) -> str:
        _, _, running, ready, pausing, _ = self.statistics()
        return f"<Webhooks {running} running, {ready} ready, {pausing} pausing{' stopping' if self._stopping else ''}>"

    def statistics(self) -> WebhookStatistics:
        postings = [push.posting for push in self._held if push.posting is not None]
        running = sum(posting.running is not None for posting in postings)
        counts = running, len(postings) - running, len(self._held) - len(postings)
        return WebhookStatistics(dict(self._outcomes), self._attempts, *counts, self._held_bytes)

    def check(self, url: str) -> None:
        """Raise :class:`BadRequest` (``callback-url``) for what can never be sent to: to be asked before ``url`` is
        recorded."""
        self._poster.check(url)

    def post(
        self,
        url: str,
        identity: str,
        body: bytes,
        headers: Callable[[], Mapping[str, str]],
        done: Answered,
    ) -> Posting:
        """Make one request, with the header fields that ``headers`` makes in a thread, and with its signature;
        ``identity`` (1 to 256 letters, digits, ``_`` and ``-``) is the ``webhook-id``. As :meth:`Poster.post`."""

        def signed() -> dict[str, str]:
            timestamp = self._clock.wall_ms() // 1000
            signatures = [sign(secret, identity, timestamp, body) for secret in self._secrets]
            return {
                "webhook-id": identity,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": " ".join(signatures),
                **headers(),
            }

        return self._poster.post(url, signed, body, self._timeout_s, done)

    def after_s(self, response: WebhookResponse) -> float:
        """Seconds by which a receiver puts off the next attempt, within bounds; 0 where it does not."""
        return retry_after_s(response.retry_after, self._clock.wall_ms() / 1000) if response.retry_after else 0.0

    def send(self, url: str, identity: str, body: bytes, done: Callable[[DeliveryReport], None]) -> None:
        """Push ``body``, a JSON document, to ``url`` until it is taken; ``done`` is told the outcome once, later, on the
        event loop.

        ``identity`` is the ``webhook-id``: the same when the document is sent again after a restart. Raises, and then
        does not call ``done``: :class:`BadRequest` (``callback-url``, ``webhook-id``); :class:`~wayside.errors.TooLarge`;
        :class:`Overloaded` while too many are held (``webhooks-full``), and when we are stopping (``closing``).
        """
        self.check(url)
        _require_identity(identity)
        require_size(len(body), self._held_bytes_max, "The webhook's body")
        if self._stopping:
            raise Overloaded("The hub is stopping. Send the webhook when it is back.", code="closing")
        held = len(self._held)
        if held >= self._held_max or self._held_bytes + len(body) > self._held_bytes_max:
            raise Overloaded(
                f"{held} webhooks of {self._held_bytes} bytes are waiting, as many as may. Try again shortly.",
                code="webhooks-full",
                headers={"Retry-After": "5"},
            )
        push = _Push(url, identity, body, done)
        self._held[push] = None
        self._held_bytes += len(body)
        self._attempt(push)

    def _attempt(self, push: _Push) -> None:
        push.pause = None
        push.posting = self.post(push.url, push.identity, push.body, _document_headers, partial(self._answered, push))

    def _answered(self, push: _Push, result: WebhookResponse | NoResponse) -> None:
        """An attempt is over."""
        if push not in self._held:
            return  # close did not wait any longer
        push.posting = None
        push.attempts += 1
        self._attempts += 1
        response = result if isinstance(result, WebhookResponse) else None
        push.status = response.status if response else None
        push.detail = f"The receiver answered with {response.status}." if response else str(result)
        if response and response.ok:
            self._finish(push, DeliveryOutcome.DELIVERED)
        elif push.status == 410:
            self._finish(push, DeliveryOutcome.GONE)
        elif push.attempts >= self._attempts_max:
            self._finish(push, DeliveryOutcome.GIVEN_UP)
        elif self._stopping:
            self._finish(push, DeliveryOutcome.STOPPING)
        else:  # no sooner than the receiver wishes
            pause_s = max(self._backoff.delay_s(push.attempts), self.after_s(response) if response else 0.0)
            push.pause = self._timers.after(pause_s, partial(self._attempt, push))

    def _finish(self, push: _Push, outcome: DeliveryOutcome) -> None:
        del self._held[push]
        self._held_bytes -= len(push.body)
        self._outcomes[outcome] += 1
        guarded(partial(push.done, DeliveryReport(push.identity, outcome, push.attempts, push.status, push.detail)))

    async def close(self) -> None:
        """Begin no attempt any more, and wait ``timeout_s`` for those under way; the outcome of all that is not over then
        is :attr:`DeliveryOutcome.STOPPING`. When cancelled, it only does not wait: every ``done`` is called."""
        self._stopping = True
        running: list[Posting] = []
        for push in list(self._held):
            if push.posting is not None and not push.posting.cancel():
                running.append(push.posting)
                continue
            if push.pause is not None:
                push.pause.cancel()
            self._finish(push, DeliveryOutcome.STOPPING)
        try:
            await ended(running, self._timeout_s)
        finally:
            for push in list(self._held):
                push.attempts += 1
                self._finish(push, DeliveryOutcome.STOPPING)


def _document_headers() -> dict[str, str]:
    return {"Content-Type": JSON, "User-Agent": "wayside"}


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
