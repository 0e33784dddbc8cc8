"""Groups that push to a URL: each record is a request, which the receiver settles by its answer.

A request is one attempt of the group, with its leases, backoff and dead letters: 2xx acks, anything else is a failure,
``Retry-After`` puts the next attempt off, and 410 ends the pushing. Requests are signed after Standard Webhooks
(standardwebhooks.com, specification 1.0); with ``cloudevents`` they are CloudEvents in binary mode (CloudEvents 1.0, HTTP
protocol binding, section 3.1).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import msgspec
import structlog

from wayside.core.callbacks import Done, report
from wayside.core.clock import Clock
from wayside.core.errors import Refusal
from wayside.groups.events import GroupSpec
from wayside.groups.group import Group
from wayside.groups.state import Member
from wayside.link.frames import Ack, Extend, Nack, Part, Settlement
from wayside.webhooks.post import Answer, Transport, Unreachable, target_of
from wayside.webhooks.standard import retry_after_s, sign

__all__ = ["GroupPush", "headers_of"]

THREADS_MAX = 64
"""Requests under way, over all groups."""
MEMBER = "webhook"
"""The member's name in receipts."""
DETAIL_CHARS_MAX = 200
STUCK_S = 1.0
"""How soon a receiver is asked again that wants no more, where that could not be written down."""

_log = structlog.get_logger("wayside.groups")


class GroupPush:
    """The webhooks of all groups. ``put`` gives a group other settings; ``transport`` makes one attempt, in a thread."""

    def __init__(
        self,
        clock: Clock,
        put: Callable[[str, GroupSpec, Done], None],
        *,
        secrets: Sequence[str],
        allow_private: bool,
        transport: Transport,
    ) -> None:
        self._clock = clock
        self._put = put
        self._secrets = tuple(secrets)
        self._allow_private = allow_private
        self.transport = transport
        self._threads = ThreadPoolExecutor(THREADS_MAX, "wayside-group-push")
        self._receivers: dict[str, _Receiver] = {}
        self.stopped = False

    def check(self, url: str) -> None:
        """Raise :class:`BadRequest` for a URL that is not pushed to."""
        target_of(url, allow_private=self._allow_private)

    def specified(self, group: Group) -> None:
        """A group is new, has changed, or is no more."""
        spec = group.spec
        known = self._receivers.get(group.name)
        wanted = bool(spec.webhook) and not spec.webhook_disabled and not group.deleted
        if known is not None and (not wanted or known.stale(group)):
            known.stop(give_back=False)
            del self._receivers[group.name]
            known = None
        if wanted and known is None:
            self._receivers[group.name] = _Receiver(self, group)

    def stop(self) -> None:
        self.stopped = True
        for receiver in self._receivers.values():
            receiver.stop(give_back=True)
        self._receivers.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def disable(self, group: Group, reason: str) -> None:
        """The receiver wants no more."""
        _log.warning("webhook-disabled", group=group.name, url=group.spec.webhook, reason=reason)
        spec = msgspec.structs.replace(group.spec, webhook_disabled=reason)
        self._put(group.name, spec, lambda _result: None)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> asyncio.Future[Answer]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, self.transport, url, headers, body)

    def headers(self, group: Group, part: Part, index: int) -> dict[str, str]:
        """Those of one attempt."""
        identity = _identity(group.name, part, index)
        seconds = self._clock.wall_ms() // 1000
        body = part.records[index]
        signatures = " ".join(sign(secret, identity, seconds, body) for secret in self._secrets)
        return {
            "webhook-id": identity,
            "webhook-timestamp": str(seconds),
            "webhook-signature": signatures,
            **headers_of(group.name, part, index, cloudevents=group.spec.cloudevents),
        }

    @property
    def now_s(self) -> float:
        return self._clock.wall_ms() / 1000


class _Receiver:
    """One URL, as a member of its group: it is given as many records as requests may run."""

    def __init__(self, push: GroupPush, group: Group) -> None:
        self._push = push
        self._group = group
        self._url = group.spec.webhook
        self._concurrency = group.spec.webhook_concurrency
        self._member = Member(MEMBER, self, self._concurrency)
        self._running: set[asyncio.Future[Any]] = set()
        group.join(self._member)

    def stale(self, group: Group) -> bool:
        """Whether it is not what the group wants any more."""
        return (self._group, self._url, self._concurrency) != (
            group,
            group.spec.webhook,
            group.spec.webhook_concurrency,
        )

    def stop(self, *, give_back: bool) -> None:
        """Begin no more requests. Those under way go on to their ends, which count, unless their records are given back."""
        if self._member.link is not None:
            self._group.leave(self._member, give_back=give_back)

    def ended(self, _error: Exception) -> None:
        return None

    def deliver(self, lease: int, seconds: float, parts: list[Part]) -> None:
        for part in parts:
            for index in range(len(part.records)):
                task = asyncio.get_running_loop().create_task(self._attempt(lease, seconds, part, index))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _attempt(self, lease: int, seconds: float, part: Part, index: int) -> None:
        group, position = self._group, part.first + index
        keeping = asyncio.get_running_loop().create_task(self._keep(lease, seconds, part.number, position))
        nack: Nack | None = None
        try:
            answer = await self._push.post(self._url, self._push.headers(group, part, index), part.records[index])
        except Unreachable as error:
            nack = Nack(part.number, position, lease, "failed", None, str(error)[:DETAIL_CHARS_MAX])
        except Exception as error:
            if self._push.stopped:
                nack = Nack(part.number, position, lease, "released", None, "the hub stops")
            else:  # a record that cannot be made a request must not cost the group a request for ever
                report(error, self._attempt)
                reason = f"{type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]
                nack = Nack(part.number, position, lease, "failed", None, reason)
        else:
            if answer.status == 410:
                nack = self._gone(part.number, position, lease)
            elif not 200 <= answer.status < 300:
                nack = Nack(part.number, position, lease, "failed", self._after(answer), f"HTTP {answer.status}")
        finally:
            keeping.cancel()
        self._member.credit += 1
        self._settle(Settlement([Ack(part.number, position, 1, lease)]) if nack is None else Settlement([], [nack]))

    def _gone(self, number: int, position: int, lease: int) -> Nack:
        """The receiver wants no more: what that makes of the record."""
        reason = "the receiver answered 410: it wants no more"
        try:
            if self._member.link is not None:  # else it is another that is pushed to by now
                self._push.disable(self._group, reason)
        except Refusal as refusal:  # it is asked again, and not at once
            _log.warning("webhook-not-disabled", group=self._group.name, error=refusal.detail)
            return Nack(number, position, lease, "released", STUCK_S, reason)
        return Nack(number, position, lease, "released", None, reason)

    def _after(self, answer: Answer) -> float | None:
        """What the receiver wishes, where it is more than nothing; else the group's backoff."""
        if answer.retry_after is None:
            return None
        return retry_after_s(answer.retry_after, self._push.now_s) or None

    async def _keep(self, lease: int, seconds: float, number: int, position: int) -> None:
        """The lease lasts as long as the request."""
        while True:
            await asyncio.sleep(seconds / 3)
            self._settle(Settlement([], [], [Extend(number, position, 1, lease)]))

    def _settle(self, settlement: Settlement) -> None:
        try:
            self._group.settle(settlement, lambda _result: None, MEMBER)
        except Refusal as refusal:  # its lease ends, and it comes again
            _log.warning("push-not-settled", group=self._group.name, error=refusal.detail)
        self._group.wake()


def _identity(group: str, part: Part, index: int) -> str:
    """The same for each attempt of one record in one group, so that a receiver can tell a repetition."""
    text = f"{group}\n{part.path}\n{part.offset(index)}"
    return "msg_" + hashlib.sha256(text.encode()).hexdigest()[:32]


def headers_of(group: str, part: Part, index: int, *, cloudevents: bool) -> dict[str, str]:
    """What a request says of its record."""
    offset = part.offset(index)
    meta = part.metas.get(index) if part.metas else None
    own = {name.lower(): value for name, value in meta.headers.items()} if meta else {}
    fields = {
        "Content-Type": part.content_type,
        "Wayside-Group": group,
        "Wayside-Stream": quote(part.path),
        "Wayside-Offset": offset,
        "Wayside-Attempt": str(part.attempt),
    }
    if meta is not None and meta.key:
        fields["Wayside-Key"] = quote(meta.key)
    if cloudevents:
        time = dt.datetime.fromtimestamp(part.time_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")
        fields |= {
            "ce-specversion": "1.0",
            "ce-id": (meta.id if meta else "") or offset,
            "ce-source": f"/v1/stream/{quote(part.path)}",
            "ce-type": "wayside.record",
            "ce-time": time.replace("+00:00", "Z"),
        }
        if meta is not None and meta.key:
            fields["ce-partitionkey"] = meta.key
        fields = {name: _escaped(value) if name.startswith("ce-") else value for name, value in fields.items()}
        fields |= {name: _escaped(value) for name, value in own.items() if name.startswith("ce-")}
    return fields | {
        f"Wayside-Header-{name}": _escaped(value)
        for name, value in own.items()
        if not (cloudevents and name[:3] == "ce-")
    }


def _escaped(value: str) -> str:
    """As CloudEvents has it in a header (HTTP protocol binding, section 3.1.3.2): what is not printable ASCII, the blank,
    the quote and the percent sign as %XX."""
    return quote(value, safe="!#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
