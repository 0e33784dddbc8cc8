"""Groups that push to a URL: each record is a request, which the receiver settles by its answer.

A request is one attempt of the group, with its leases, backoff and dead letters: 2xx acks, anything else is a failure,
``Retry-After`` puts the next attempt off, and 410 ends the pushing. Requests are signed after Standard Webhooks
(standardwebhooks.com, specification 1.0); with ``cloudevents`` they are CloudEvents in binary mode (CloudEvents 1.0, HTTP
protocol binding, section 3.1).
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import msgspec
import structlog

from wayside.core.callbacks import Done
from wayside.core.errors import Refusal
from wayside.core.schedule import Timer, Timers
from wayside.groups.events import GroupSpec
from wayside.groups.group import Group
from wayside.groups.state import Member
from wayside.link.frames import Ack, Extend, Nack, Part, Settlement
from wayside.webhooks.post import NoResponse, Posting, WebhookResponse
from wayside.webhooks.standard import Webhooks

__all__ = ["GroupPush", "headers_of"]

MEMBER = "webhook"
"""The member's name in receipts."""
DETAIL_CHARS_MAX = 200
STUCK_S = 1.0
"""How soon a receiver is asked again that wants no more, where that could not be written down."""

_log = structlog.get_logger("wayside.groups")


class GroupPush:
    """The webhooks of all groups. ``put`` gives a group other settings."""

    def __init__(self, put: Callable[[str, GroupSpec, Done], None], webhooks: Webhooks, timers: Timers) -> None:
        self.webhooks = webhooks
        self.timers = timers
        self._put = put
        self._receivers: dict[str, _Receiver] = {}

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
        """Begin no more requests; what waits for its turn, or is under way, is for the next hub."""
        for receiver in self._receivers.values():
            receiver.stop(give_back=True)
        self._receivers.clear()

    def disable(self, group: Group, reason: str) -> None:
        """The receiver wants no more."""
        _log.warning("webhook-disabled", group=group.name, url=group.spec.webhook, reason=reason)
        spec = msgspec.structs.replace(group.spec, webhook_disabled=reason)
        self._put(group.name, spec, lambda _result: None)


class _Request:
    """One record on its way."""

    __slots__ = ("lease", "number", "position", "posting")

    def __init__(self, number: int, position: int, lease: int) -> None:
        self.number = number
        self.position = position
        self.lease = lease
        self.posting: Posting | None = None

    def nack(self, kind: str, delay_s: float | None, reason: str) -> Settlement:
        return Settlement([], [Nack(self.number, self.position, self.lease, kind, delay_s, reason)])


class _Receiver:
    """One URL, as a member of its group: it is given as many records as requests may run."""

    def __init__(self, push: GroupPush, group: Group) -> None:
        self._push = push
        self._group = group
        self._url = group.spec.webhook
        self._concurrency = group.spec.webhook_concurrency
        self._member = Member(MEMBER, self, self._concurrency)
        self._running: set[_Request] = set()
        self._extending: Timer | None = None
        self._lease_s = 0.0
        """The shortest lease of what runs."""
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
        if give_back:
            for request in self._running:
                if request.posting is not None:
                    request.posting.cancel()
            self._running.clear()

    def ended(self, _error: Exception) -> None:
        return None

    def deliver(self, lease: int, seconds: float, parts: list[Part]) -> None:
        group, webhooks = self._group, self._push.webhooks
        for part in parts:
            for index, record in enumerate(part.records):
                request = _Request(part.number, part.first + index, lease)
                self._running.add(request)
                headers = partial(headers_of, group.name, part, index, cloudevents=group.spec.cloudevents)
                identity = _identity(group.name, part, index)
                answered = partial(self._answered, request)
                request.posting = webhooks.post(self._url, identity, record, headers, answered)
        if self._extending is not None and seconds < self._lease_s:
            self._extending.cancel()
            self._extending = None
        if self._extending is None:
            self._extend_in(seconds)

    def _answered(self, request: _Request, result: WebhookResponse | NoResponse) -> None:
        if request not in self._running:
            return  # it was given back
        self._running.discard(request)
        if isinstance(result, NoResponse):
            settlement = request.nack("failed", None, str(result)[:DETAIL_CHARS_MAX])
        elif result.ok:
            settlement = Settlement([Ack(request.number, request.position, 1, request.lease)])
        elif result.status == 410:
            settlement = self._gone(request)
        else:  # put off by more than nothing, or by the group's backoff
            settlement = request.nack("failed", self._push.webhooks.after_s(result) or None, f"HTTP {result.status}")
        self._member.credit += 1
        self._settle(settlement)

    def _gone(self, request: _Request) -> Settlement:
        """The receiver wants no more: what that makes of the record."""
        reason = "the receiver answered 410: it wants no more"
        try:
            if self._member.link is not None:  # else it is another that is pushed to by now
                self._push.disable(self._group, reason)
        except Refusal as refusal:  # it is asked again, and not at once
            _log.warning("webhook-not-disabled", group=self._group.name, error=refusal.detail)
            return request.nack("released", STUCK_S, reason)
        return request.nack("released", None, reason)

    def _extend_in(self, lease_s: float) -> None:
        """Leases last as long as the requests: extend all of them long before they end."""
        self._lease_s = lease_s
        self._extending = self._push.timers.after(lease_s / 3, self._extend)

    def _extend(self) -> None:
        self._extending = None
        if self._running:
            extends = [Extend(each.number, each.position, 1, each.lease) for each in self._running]
            self._settle(Settlement([], [], extends))
            self._extend_in(self._group.spec.lease_s)

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
