"""A call as a state machine, and the records that its stream is made of.

The records of a call's stream are all there is to know of it: the first is the request, the last the answer, and
:meth:`Call.apply` of each in order gives the call as it is. Nothing here waits, reads a clock or touches a log.
"""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from wayside.core.codecs import Payload
from wayside.core.errors import BadRequest
from wayside.core.records import media_type

__all__ = [
    "AttemptOutcome",
    "CallRequest",
    "CallState",
    "Event",
    "ImpossibleEvent",
    "KEYED",
    "ServiceCall",
    "fingerprint",
    "keyed_id",
    "may_be_before",
    "new_id",
    "plain",
    "request_of",
]


UNSET = msgspec.UNSET
PRIORITY_MAX = 100


class CallState(enum.StrEnum):
    """Where a call stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Mapping[str, tuple[frozenset[CallState], CallState]] = {
    "queued": (frozenset({CallState.QUEUED}), CallState.QUEUED),
    "running": (frozenset({CallState.QUEUED}), CallState.RUNNING),
    "progress": (frozenset({CallState.RUNNING}), CallState.RUNNING),
    "item": (frozenset({CallState.RUNNING}), CallState.RUNNING),
    "retry": (frozenset({CallState.RUNNING}), CallState.QUEUED),
    "returned": (frozenset({CallState.RUNNING}), CallState.QUEUED),
    "done": (frozenset({CallState.RUNNING}), CallState.DONE),
    "failed": (frozenset({CallState.QUEUED, CallState.RUNNING}), CallState.FAILED),
    "cancelled": (frozenset({CallState.QUEUED, CallState.RUNNING}), CallState.CANCELLED),
}
"""Event: from which states, to which. Everything else raises :class:`ImpossibleEvent`."""


class ImpossibleEvent(RuntimeError):
    """A mistake of ours: a call was to take what cannot happen to it as it is."""


FINAL = frozenset({CallState.DONE, CallState.FAILED, CallState.CANCELLED})


class CallRequest(msgspec.Struct, omit_defaults=True, gc=False):
    """The first record of a call's stream: what was asked for. Readers of the stream are not given it."""

    id: str
    service: str
    time_ms: int
    event: str = "request"
    content_type: str = ""
    json: msgspec.Raw | msgspec.UnsetType = UNSET
    base64: bytes = b""
    """The body, where it is not JSON."""
    query: dict[str, list[str]] = {}
    accept: str | None = None
    priority: int = 0
    not_before_ms: int = 0
    key: str = ""
    fingerprint: str = ""
    callback: str = ""
    parent: str = ""
    """The call whose step this is."""

    @property
    def payload(self) -> Payload:
        return Payload(self.base64 if self.json is UNSET else bytes(self.json), self.content_type)


class Event(msgspec.Struct, omit_defaults=True, gc=False):
    """A later record. What readers see is this, as JSON; ``data`` is a JSON value, ``base64`` one of another type."""

    event: str
    time_ms: int
    attempt: int = 0
    seq: int = -1
    """Of those that the handler sent in one attempt: 0, 1, 2, ..."""
    data: msgspec.Raw | msgspec.UnsetType = UNSET
    content_type: str = ""
    base64: bytes = b""
    error: dict[str, Any] | None = None
    delay_ms: int = 0
    worker: str = ""

    @property
    def payload(self) -> Payload:
        if self.data is UNSET:
            return Payload(self.base64, self.content_type)
        return Payload(bytes(self.data), self.content_type or "application/json")


encode: Callable[[CallRequest | Event], bytes] = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(CallRequest).decode
decode_event = msgspec.json.Decoder(Event).decode


_raw = msgspec.json.Decoder(msgspec.Raw).decode


def json_of(data: bytes) -> msgspec.Raw | msgspec.UnsetType:
    """JSON as it can stand in a record, on one line; UNSET for bytes that are no JSON, and would spoil it."""
    try:
        if not data.isascii():
            data.decode()
        value = _raw(data)
    except (ValueError, RecursionError):
        return UNSET
    if b"\n" in data or b"\r" in data:  # only between tokens: JSON strings hold no raw control characters
        return msgspec.Raw(bytes(value).replace(b"\r", b" ").replace(b"\n", b" "))
    return value


def fields_of(payload: Payload) -> dict[str, Any]:
    """A payload as the fields of an :class:`Event`."""
    kind = payload.content_type
    if media_type(kind) == "application/json" and (data := json_of(payload.data)) is not UNSET:
        return {"data": data} if kind == "application/json" else {"data": data, "content_type": kind}
    return {"base64": payload.data, "content_type": kind}


def plain(problem: dict[str, Any]) -> dict[str, Any]:
    """A problem document as it can be kept and sent: what JSON has no word for is told in text."""
    try:
        document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(problem, enc_hook=repr))
        msgspec.msgpack.encode(document)  # it has no words for very large numbers
    except Exception:  # lone surrogates, too deep, what has no text: whoever made it is to be told of its error anyhow
        return {str(name).encode(errors="replace").decode(): _as_text(value) for name, value in problem.items()}
    return document


def _as_text(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else f"<{type(value).__name__}>"


def fingerprint(payload: Payload, query: Mapping[str, list[str]]) -> str:
    """What two requests with one idempotency key must have in common."""
    digest = hashlib.sha256(payload.content_type.encode() + b"\0" + repr(sorted(query.items())).encode() + b"\0")
    digest.update(payload.data)
    return digest.hexdigest()[:32]


class AttemptOutcome(msgspec.Struct, gc=False):
    """How an attempt ended: with a payload, or with a problem document. ``again`` is false where another attempt would
    end the same way."""

    payload: Payload | None = None
    error: dict[str, Any] | None = None
    again: bool = True


class ServiceCall:
    """A call as the hub has it. ``done`` callbacks are told when it has ended, with the call."""

    __slots__ = (
        "acks",
        "attempt",
        "created_ms",
        "doomed",
        "due_ms",
        "durable",
        "emits",
        "ended_ms",
        "error",
        "failures",
        "id",
        "items",
        "order",
        "path",
        "progress",
        "request",
        "result",
        "said",
        "seq",
        "settling",
        "spec",
        "started_ms",
        "state",
        "streamed",
        "timer",
        "waiters",
        "worker",
        "worker_id",
    )

    def __init__(self, request: CallRequest, path: str, *, durable: bool) -> None:
        self.id = request.id
        self.request = request
        self.path = path
        self.durable = durable
        self.state = CallState.QUEUED
        self.attempt = 0
        """Grants to a worker so far."""
        self.failures = 0
        """Attempts that failed: handing a call back is not one."""
        self.items = 0
        """Values that the handler has yielded, in all attempts."""
        self.seq = 0
        """What the handler sends next in this attempt."""
        self.progress: msgspec.Raw | None = None
        self.result: Payload | None = None
        self.error: dict[str, Any] | None = None
        self.created_ms = request.time_ms
        self.due_ms = 0
        """When its next attempt is due."""
        self.started_ms = 0
        self.ended_ms = 0
        self.worker_id = ""
        # What the hub keeps beside it.
        self.worker: Any = None
        self.spec: Any = None
        self.timer: Any = None
        self.waiters: list[Callable[[ServiceCall], None]] = []
        self.settling = False
        """A record of it is on the way to the disk: nothing else happens to it before that is kept."""
        self.acks: list[Callable[[Any], None]] = []
        """Told when it has settled: with None, or with what it was refused for."""
        self.emits: dict[int, list[Callable[[Any], None]]] | None = None
        """Told when what the handler sent is on the disk, by its number."""
        self.said = 0
        """The last attempt whose end was told by its own worker."""
        self.streamed = durable
        """Whether it has a stream."""
        self.doomed = ""
        """Why it is to be cancelled once it has settled."""
        self.order = 0

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def waits(self) -> bool:
        """Whether it can be granted."""
        return self.state is CallState.QUEUED and not self.settling

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.request.service} {self.state} attempt {self.attempt}>"

    def apply(self, event: Event) -> None:
        """Take a record. One of another version, whose event is not known here, changes nothing. Raises
        :class:`ImpossibleEvent` for what cannot happen to a call in its state."""
        transition = TRANSITIONS.get(event.event)
        if transition is None:
            return
        before, after = transition
        if self.state not in before:
            raise ImpossibleEvent(f"{event.event} cannot happen to {self!r}")
        self.state = after
        match event.event:
            case "running":
                self.attempt = event.attempt
                self.worker_id = event.worker
                self.seq = 0
                self.started_ms = event.time_ms
            case "progress":
                self.seq = max(self.seq, event.seq + 1)
                if event.data is not UNSET:
                    self.progress = event.data
            case "item":
                self.seq = max(self.seq, event.seq + 1)
                self.items += 1
            case "retry":
                self.failures += 1
                self.error = event.error
                self.due_ms = event.time_ms + event.delay_ms
            case "done":
                self.result = event.payload
                self.error = None
                self.ended_ms = event.time_ms
            case "failed" | "cancelled":
                self.error = event.error
                self.ended_ms = event.time_ms
        if event.attempt > self.attempt:
            self.attempt = event.attempt

    def status(self) -> dict[str, Any]:
        """The call as its readers see it, but for its result."""
        status: dict[str, Any] = {
            "id": self.id,
            "service": self.request.service,
            "state": self.state.value,
            "attempt": self.attempt,
            "created_ms": self.created_ms,
        }
        if self.started_ms:
            status["started_ms"] = self.started_ms
        if self.ended_ms:
            status["ended_ms"] = self.ended_ms
        if self.request.priority:
            status["priority"] = self.request.priority
        if self.request.not_before_ms and self.state is CallState.QUEUED:
            status["not_before_ms"] = self.request.not_before_ms
        if self.progress is not None:
            status["progress"] = self.progress
        if self.items:
            status["items"] = self.items
        if self.error is not None:
            status["error"] = self.error
        if self.request.parent:
            status["parent"] = self.request.parent
        return status


DELAY_S_MAX = 366 * 86_400.0
KEY_CHARACTERS_MAX = 255
KEYED = "k"
"""Begins the names of calls that have a key: they sort behind those that are named after their time."""


def new_id(now_ms: int) -> str:
    """Sorts by time; its second half cannot be guessed."""
    return f"{now_ms:011x}{os.urandom(8).hex()}"


def may_be_before(identity: str, time_ms: float) -> bool:
    """Whether the call with this name may have been made before that time."""
    return identity.startswith(KEYED) or int(identity[:11], 16) < time_ms


def keyed_id(service: str, key: str) -> str:
    """The only call of a service with this idempotency key."""
    return KEYED + hashlib.sha256(f"{service}\0{key}".encode()).hexdigest()[:32]


def request_of(
    now_ms: int,
    service: str,
    payload: Payload,
    accept: str | None = None,
    *,
    query: Mapping[str, list[str]] | None = None,
    key: str = "",
    priority: int = 0,
    delay_s: float = 0.0,
    callback: str = "",
    parent: str = "",
    durable: bool = True,
) -> CallRequest:
    """What was asked for. Raises :class:`BadRequest` where it makes no sense."""
    kind = payload.content_type
    json = json_of(payload.data) if kind == "application/json" else msgspec.UNSET
    body: dict[str, Any] = {"base64": payload.data} if json is msgspec.UNSET else {"json": json}
    if not (key or query or priority or delay_s or callback or parent):
        return CallRequest(new_id(now_ms), service, now_ms, content_type=kind, accept=accept or None, **body)
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        raise BadRequest(f"A priority is from {-PRIORITY_MAX} to {PRIORITY_MAX}.", code="parameter-invalid")
    if not 0 <= delay_s <= DELAY_S_MAX:
        raise BadRequest(f"A delay is from 0 to {DELAY_S_MAX:.0f} s.", code="parameter-invalid")
    if len(key) > KEY_CHARACTERS_MAX:
        raise BadRequest(f"An idempotency key has up to {KEY_CHARACTERS_MAX} characters.", code="parameter-invalid")
    if delay_s and not (durable or key):
        raise BadRequest("Only a call that is submitted can start later.", code="delay-needs-submit")
    return CallRequest(
        keyed_id(service, key) if key else new_id(now_ms),
        service,
        now_ms,
        content_type=kind,
        query=dict(query or {}),
        accept=accept or None,
        priority=priority,
        not_before_ms=now_ms + round(delay_s * 1000) if delay_s else 0,
        key=key,
        fingerprint=fingerprint(payload, query or {}) if key else "",
        callback=callback,
        parent=parent,
        **body,
    )
