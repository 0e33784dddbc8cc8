"""A subscription of the Durable Streams protocol as a state machine, and the records that its stream is made of.

A subscription has a cursor in each of its streams, and one wake at a time: pending work wakes a worker, which acks and is
done. :meth:`DurableSubscription.apply` of each event in order gives the subscription as it is, but for the tails of its
streams (:meth:`DurableSubscription.see`). Nothing here waits, reads a clock or touches a log. Durable Streams sections 6
and 7.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from wayside.core.errors import BadRequest, Conflict, NotFound, Refusal, Unauthorized
from wayside.core.globs import Glob
from wayside.core.records import Offset

__all__ = [
    "Claimed",
    "Config",
    "DurableSubscription",
    "Kind",
    "Linked",
    "BaseMoved",
    "Released",
    "SubscriptionEvent",
    "SubscriptionOpened",
    "Unlinked",
    "WakeDelivered",
    "WakeFailed",
    "Woken",
    "WorkAcked",
    "decode",
    "encode",
    "globs_of",
    "refused",
]

WAKE_STREAMS_MAX = 1000
"""Streams that one wake tells of, those with pending work first: its document is sent, and kept, whole. Others have the
next one."""
LINKS_MAX = 1000
"""Cursors in one record of a subscription's stream."""
BEFORE_FIRST = "-1"
"""The cursor in a stream that has never been seen, in the protocol's words."""

_STATUS: dict[str, type[Refusal]] = {
    "INVALID_REQUEST": BadRequest,
    "WEBHOOK_URL_REJECTED": BadRequest,
    "TOKEN_INVALID": Unauthorized,
    "SUBSCRIPTION_NOT_FOUND": NotFound,
    "SUBSCRIPTION_ALREADY_EXISTS": Conflict,
    "FENCED": Conflict,
    "ALREADY_CLAIMED": Conflict,
    "NO_PENDING_WORK": Conflict,
    "INVALID_OFFSET": Conflict,
}


def refused(code: str, text: str, **more: object) -> Refusal:
    """A refusal with the protocol's ``code`` in its member ``error``, and ``more`` beside it."""
    fields = {"error": {"code": code, "message": text, **more}}
    kind = _STATUS[code]
    headers = {"WWW-Authenticate": "Bearer"} if kind is Unauthorized else {}
    return kind(text, code=code.lower().replace("_", "-"), headers=headers, fields=fields)


# -- what is kept


class Kind(enum.StrEnum):
    """How a subscription wakes its workers."""

    WEBHOOK = "webhook"
    PULL_WAKE = "pull-wake"


class Config(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a subscription was created with. Two are the same where all of it is."""

    type: Kind
    lease_ttl_ms: int
    pattern: str = ""
    streams: tuple[str, ...] = ()
    """By path, each once."""
    url: str = ""
    """Of the webhook."""
    wake_stream: str = ""
    description: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class SubscriptionEvent(msgspec.Struct, omit_defaults=True, tag_field="event", tag=str.lower):
    """A record of a subscription's stream."""


class SubscriptionOpened(SubscriptionEvent, tag="opened"):
    """It exists. Where it is not the first record, it begins a snapshot: what came before no longer counts."""

    id: str
    config: Config
    base: str
    """URL below which the hub's streams are, as whoever made the subscription saw it."""
    created_ms: int
    generation: int = 0


class Linked(SubscriptionEvent):
    """Streams and their cursors, as offsets."""

    explicit: dict[str, str] = {}
    glob: dict[str, str] = {}


class BaseMoved(SubscriptionEvent, tag="moved"):
    """The hub's streams are below another URL now."""

    base: str


class Unlinked(SubscriptionEvent):
    """A stream is no longer named."""

    path: str


class Woken(SubscriptionEvent):
    """A wake begins; ``tails`` are those of the streams with pending work."""

    wake: str
    generation: int
    tails: dict[str, str]
    time_ms: int


class WakeDelivered(SubscriptionEvent, tag="delivered"):
    """The wake has been told of: the receiver took it, or the wake stream did."""


class WakeFailed(SubscriptionEvent, tag="failed"):
    """It could not be told of, so many times in a row; and is tried again then."""

    attempts: int
    next_ms: int


class Claimed(SubscriptionEvent):
    """A worker holds the lease."""

    worker: str


class WorkAcked(SubscriptionEvent, tag="acked"):
    """Everything up to these offsets is processed; ``done``: and the lease is given back."""

    acks: dict[str, str] = {}
    done: bool = False


class Released(SubscriptionEvent):
    """The lease is over, by its holder's will or by time."""


encode: Callable[[SubscriptionEvent], bytes] = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(
    SubscriptionOpened
    | BaseMoved
    | Linked
    | Unlinked
    | Woken
    | WakeDelivered
    | WakeFailed
    | Claimed
    | WorkAcked
    | Released
).decode


def globs_of(pattern: str) -> list[Glob]:
    """A pattern of the protocol, in which ``**`` also stands for no segment at all."""
    globs = [Glob(pattern)]
    while pattern.endswith("/**"):
        pattern = pattern.removesuffix("/**")
        globs.append(Glob(pattern))
    return globs


@dataclass(slots=True)
class LinkedStream:
    """One stream as a subscription knows it."""

    acked: Offset | None
    tail: Offset | None = None
    """None: the stream does not exist."""
    explicit: bool = False
    glob: bool = False

    @property
    def offset(self) -> str:
        return BEFORE_FIRST if self.acked is None else str(self.acked)


class DurableSubscription:
    """A subscription, as its events have it, and what it has seen of its streams."""

    def __init__(self, opened: SubscriptionOpened) -> None:
        self.id = opened.id
        self._open(opened)

    def _open(self, event: SubscriptionOpened) -> None:
        self.config = event.config
        self.base = event.base
        self.created_ms = event.created_ms
        self.generation = event.generation
        self.links: dict[str, LinkedStream] = {}
        self.pending: set[str] = set()
        """Paths of streams with records after the cursor."""
        self.wake = ""
        """The wake under way; none where empty."""
        self.woken_ms = 0
        self.snapshot: dict[str, Offset] = {}
        self.delivered = False
        self.holder = ""
        self.attempts = self.next_ms = 0
        self.globs = globs_of(event.config.pattern) if event.config.pattern else []

    def __repr__(self) -> str:
        wake = f" {self.wake} of {self.holder or 'nobody'}" if self.wake else ""
        return f"<Subscription {self.id} {self.generation}{wake}, {len(self.pending)} of {len(self.links)} pending>"

    def matches(self, path: str) -> bool:
        """Whether its pattern means a stream. Its own wake stream is not meant: each wake would be work."""
        return path != self.config.wake_stream and any(glob.matches(path) for glob in self.globs)

    # -- events

    def apply(self, event: SubscriptionEvent) -> None:
        """Make an event true."""
        _APPLY[type(event)](self, event)

    def _moved(self, event: BaseMoved) -> None:
        self.base = event.base

    def _linked(self, event: Linked) -> None:
        for explicit, links in ((True, event.explicit), (False, event.glob)):
            for path, text in links.items():
                link = self.links.get(path)
                if link is None:
                    link = self.links[path] = LinkedStream(_parsed(text))
                if explicit:
                    link.explicit = True
                link.glob = self.matches(path)

    def _unlinked(self, event: Unlinked) -> None:
        link = self.links.get(event.path)
        if link is not None:
            link.explicit = False
            if not link.glob:
                del self.links[event.path]
                self.pending.discard(event.path)

    def _woken(self, event: Woken) -> None:
        self.wake, self.generation, self.woken_ms = event.wake, event.generation, event.time_ms
        self.snapshot = {path: Offset.parse(tail) for path, tail in event.tails.items()}
        self.delivered = False
        self.holder = ""

    def _delivered(self, _event: WakeDelivered) -> None:
        self.delivered = True
        self.attempts = self.next_ms = 0

    def _failed(self, event: WakeFailed) -> None:
        self.attempts, self.next_ms = event.attempts, event.next_ms

    def _claimed(self, event: Claimed) -> None:
        self.holder = event.worker
        self._delivered(WakeDelivered())

    def _acked(self, event: WorkAcked) -> None:
        for path, text in event.acks.items():
            link = self.links.get(path)
            if link is None and self.matches(path):  # read again: no record says that the pattern meant it
                link = self.links[path] = LinkedStream(None, glob=True)
            if link is not None:
                link.acked = Offset.parse(text)
                if link.tail is None or link.acked >= link.tail:
                    self.pending.discard(path)
        if event.done:
            self._released(Released())

    def _released(self, _event: Released) -> None:
        self.wake = self.holder = ""
        self.snapshot = {}
        self.delivered = False

    # -- what is seen of streams

    def see(self, path: str, earliest: Offset, tail: Offset) -> None:
        """A stream is so long now. One that was never linked is newer than the subscription: all of it is pending."""
        link = self.links.get(path)
        if link is None:
            link = self.links[path] = LinkedStream(None, glob=True)
        if link.acked is None:
            link.acked = earliest
        link.tail = tail
        if tail > link.acked and tail.position > earliest.position:
            self.pending.add(path)
        else:
            self.pending.discard(path)

    def lose(self, path: str) -> None:
        """A stream is no more. Should there be another of its name, that one is new."""
        self.pending.discard(path)
        if (link := self.links.get(path)) is not None:
            if link.explicit:
                link.acked = link.tail = None
            else:
                del self.links[path]

    def keep_only(self, paths: Iterable[str]) -> None:
        """Those are all streams that there are."""
        known = set(paths)
        for path in [path for path, link in self.links.items() if path not in known and not link.explicit]:
            self.lose(path)

    # -- decisions

    def next_wake(self, wake: str, now_ms: int) -> Woken | None:
        """The wake that pending work makes now; None where there is none, or a wake is under way."""
        if self.wake or not self.pending:
            return None
        paths = sorted(self.pending)[:WAKE_STREAMS_MAX]
        return Woken(wake, self.generation + 1, {path: str(self.links[path].tail) for path in paths}, now_ms)

    def require_current(self, wake: object, generation: object) -> None:
        """Raise the refusal ``FENCED`` unless these are the wake under way."""
        if not self.wake or wake != self.wake or generation != self.generation:
            raise refused(
                "FENCED",
                "This wake is over: its lease was given back, or ended. Nothing was changed; wait for the next.",
            )

    def acks_of(self, acks: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Check what a worker acks, and leave out what does not count any more: streams of this wake that are gone.
        Raises the refusal ``INVALID_OFFSET``, and then none of them counts."""
        result: dict[str, str] = {}
        for path, text in acks:
            link = self.links.get(path)
            if link is None and path not in self.snapshot:
                raise refused("INVALID_OFFSET", f"{path[:200]!r} is no stream of this subscription.")
            try:
                offset = Offset.parse(text)
            except BadRequest as error:
                raise refused("INVALID_OFFSET", error.detail) from error
            if link is None or link.tail is None:
                continue
            before = Offset.parse(result[path]) if path in result else link.acked
            if before is not None and offset < before:
                seen = self.snapshot.get(path)
                if seen is not None and offset.epoch <= seen.epoch < before.epoch:
                    continue  # of the stream that had this name when the worker was woken
                raise refused("INVALID_OFFSET", f"{text} of {path} is before {before}, which was acked before.")
            if offset > link.tail:
                raise refused("INVALID_OFFSET", f"{text} of {path} is after its tail, {link.tail}.")
            result[path] = str(offset)
        return result

    def snapshot_acks(self) -> dict[str, str]:
        """What the wake under way told of, as acks. Cursors that have gone further stay there."""
        links = self.links
        return {
            path: str(tail)
            for path, tail in self.snapshot.items()
            if path in links and ((acked := links[path].acked) is None or acked < tail)
        }

    # -- as others see it

    def stream_infos(self, *, now: bool) -> list[dict[str, Any]]:
        """What a worker is told of the streams: those with pending work, and others as far as there is room. As of ``now``,
        or as of the wake under way, which then is the same however often it is told."""
        first = sorted(self.pending) if now else [*self.snapshot]
        paths = dict.fromkeys(first[:WAKE_STREAMS_MAX])
        for path in self.links:
            if len(paths) >= WAKE_STREAMS_MAX:
                break
            paths[path] = None
        infos = []
        for path in sorted(paths):
            if (link := self.links.get(path)) is not None:
                tail = (link.tail if now else self.snapshot.get(path)) or link.acked
                pending = path in self.pending if now else path in self.snapshot
                told = link.offset if tail is None else str(tail)
                infos.append({**self._link_info(path, link), "tail_offset": told, "has_pending": pending})
        return infos

    def link_infos(self) -> list[dict[str, Any]]:
        return [self._link_info(path, self.links[path]) for path in sorted(self.links)]

    @staticmethod
    def _link_info(path: str, link: LinkedStream) -> dict[str, Any]:
        return {"path": path, "link_type": "explicit" if link.explicit else "glob", "acked_offset": link.offset}

    def events(self) -> list[SubscriptionEvent]:
        """A snapshot: these events alone give the subscription as it is."""
        opened = SubscriptionOpened(self.id, self.config, self.base, self.created_ms, self.generation)
        events: list[SubscriptionEvent] = [opened, *linked(self.links)]
        if self.wake:
            tails = {path: str(tail) for path, tail in self.snapshot.items()}
            events.append(Woken(self.wake, self.generation, tails, self.woken_ms))
        if self.holder:
            events.append(Claimed(self.holder))
        elif self.delivered:
            events.append(WakeDelivered())
        if self.attempts:
            events.append(WakeFailed(self.attempts, self.next_ms))
        return events


def linked(links: dict[str, LinkedStream]) -> list[SubscriptionEvent]:
    """Links as events of a bounded size each."""
    items = list(links.items())
    return [
        Linked(
            {path: link.offset for path, link in some if link.explicit},
            {path: link.offset for path, link in some if not link.explicit},
        )
        for some in (items[at : at + LINKS_MAX] for at in range(0, len(items), LINKS_MAX))
    ]


def _parsed(text: str) -> Offset | None:
    return None if text == BEFORE_FIRST else Offset.parse(text)


_APPLY: dict[type[SubscriptionEvent], Callable[[DurableSubscription, Any], None]] = {
    SubscriptionOpened: DurableSubscription._open,
    BaseMoved: DurableSubscription._moved,
    Linked: DurableSubscription._linked,
    Unlinked: DurableSubscription._unlinked,
    Woken: DurableSubscription._woken,
    WakeDelivered: DurableSubscription._delivered,
    WakeFailed: DurableSubscription._failed,
    Claimed: DurableSubscription._claimed,
    WorkAcked: DurableSubscription._acked,
    Released: DurableSubscription._released,
}
