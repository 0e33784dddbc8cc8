"""The frames of ``/v1/connect``, drawn in docs/PROTOCOL.md: what the hub, its clients and its workers say to each other.

A message is a MessagePack array of frames; a frame is the array ``[kind, channel, ...]``. Who opens a channel numbers
it; answers carry the same number. Fields at the end that have their default may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from wayside.core.metadata import Said
from wayside.core.records import Meta, Offset

__all__ = [
    "Ack",
    "Extend",
    "Frame",
    "Nack",
    "Part",
    "Publish",
    "Refused",
    "SUBPROTOCOL",
    "Settled",
    "Settlement",
    "decode_from_client",
    "decode_from_hub",
    "encode",
]


class Part(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Records of one stream that a member is given: neighbours, and all with the same past."""

    number: int
    """Of the partition."""
    path: str
    content_type: str
    epoch: int
    """Of the offsets after the records."""
    first: int
    """Position of the first record."""
    time_ms: int
    records: list[bytes]
    attempt: int = 1
    """Deliveries, this one included."""
    metas: dict[int, Meta] | None = None
    """By index in ``records``."""

    def offset(self, index: int) -> str:
        """The offset after a record."""
        return str(Offset(self.epoch, self.first + index + 1))


class Ack(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A run of records is done."""

    number: int
    """Of the partition."""
    first: int
    count: int
    lease: int


class Nack(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A record is not done. ``kind`` is ``failed``, ``released`` (it was not tried: no failure) or ``rejected`` (nobody
    shall try it again). ``delay_s`` None: after the group's backoff."""

    number: int
    position: int
    lease: int
    kind: str = "failed"
    delay_s: float | None = None
    reason: str = ""


class Extend(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """A run of records is needed for so many seconds more, from now; 0: as long as the group's lease."""

    number: int
    first: int
    count: int
    lease: int
    seconds: float = 0.0


class Publish(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Records that become true together with the acks."""

    stream: str
    records: list[bytes]
    metas: dict[int, Meta] | None = None
    content_type: str = ""
    """Empty: whatever the stream is."""


class Settlement(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What a member says of records that it has. With ``publish`` all of it is one transaction: done whole, or refused."""

    acks: list[Ack] = []
    nacks: list[Nack] = []
    extends: list[Extend] = []
    publish: list[Publish] = []


class Refused(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Of one record: ``lease-fenced`` (the lease is over, or was never this one), ``not-delivered``, or
    ``already-settled`` (harmless: it was acked, or is dead)."""

    number: int
    position: int
    code: str


class Settled(msgspec.Struct, gc=False):
    """What became of a settlement."""

    acked: int = 0
    nacked: int = 0
    extended: int = 0
    refused: list[Refused] = []
    offsets: list[str] = []
    """After what was published."""

    @property
    def fenced(self) -> bool:
        return any(refused.code != "already-settled" for refused in self.refused)


SUBPROTOCOL = "wayside.connect.v1"


class _Frame(msgspec.Struct, array_like=True, gc=False, omit_defaults=True):
    channel: int


# -- from a client


class CallOptions(msgspec.Struct, omit_defaults=True, gc=False):
    """What few calls say."""

    query: dict[str, list[str]] = {}
    key: str = ""
    """Idempotency key; makes the call durable."""
    priority: int = 0
    delay_s: float = 0.0
    callback: str = ""
    parent: str = ""


class CallFrame(_Frame, tag="call"):
    """Call a service. Answered by ``result`` or ``error``; where it is ``submitted`` first by ``accepted``, once it is
    durable."""

    service: str
    body: bytes = b""
    content_type: str = ""
    accept: str = ""
    submitted: bool = False
    options: CallOptions | None = None


class LeaveFrame(_Frame, tag="leave"):
    """Forget the channel: cancel a call that was not submitted, stop a follower."""


class PublishFrame(_Frame, tag="publish"):
    """Append records. Answered by ``published`` or ``error``."""

    stream: str
    records: list[bytes]
    content_type: str = ""
    """Empty: whatever the stream is."""
    producer: tuple[str, int, int] | None = None
    said: Said | None = None
    """What is said of them: ``[id, key, headers, ttl_s, delay_s]``."""


class FollowOptions(msgspec.Struct, omit_defaults=True, gc=False):
    """What few followers say: a delivery policy with its parameters, and who they are."""

    policy: str = ""
    key: str = ""
    interval_s: float = 0.0
    lag: int = 0
    member: str = ""
    whole: bool = False
    """End at the stream's tail of now: the end's reason is ``complete``."""


class FollowFrame(_Frame, tag="follow"):
    """Follow a stream, or with ``call`` set a call, from an offset: ``-1``, ``now`` or one that was given. Answered by
    ``following``, then ``records`` as far as there is credit, then ``end``; or by ``error``. ``__presence/STREAM`` are the
    joins and leaves at a stream."""

    stream: str
    offset: str = "-1"
    credit: int = 0
    call: bool = False
    options: FollowOptions | None = None


class CreditFrame(_Frame, tag="credit"):
    """So many more records may be sent."""

    records: int


class RequestFrame(_Frame, tag="request"):
    """Any other request of the HTTP interface. Answered by ``response``."""

    method: str
    target: str
    headers: dict[str, str] = {}
    body: bytes = b""


class WorkFrame(_Frame, tag="work"):
    """Offer to run services (JSON documents of their declarations): ``capacity`` calls at a time. ``held`` are the
    attempts that it has from before, as ``[call, attempt]``. Answered by ``working`` or ``error``; then come ``run`` and
    ``cancel``."""

    worker: str
    services: list[dict[str, Any]]
    capacity: int
    held: list[tuple[str, int]] = []


class EmitFrame(_Frame, tag="emit"):
    """A running attempt sends something: ``progress`` or ``item``, numbered from 0. Answered by ``taken``."""

    call: str
    attempt: int
    seq: int
    kind: str
    body: bytes
    content_type: str = "application/json"


class FinishFrame(_Frame, tag="finish"):
    """An attempt has ended, with a body or a problem document. Answered by ``taken`` with the seq -1."""

    call: str
    attempt: int
    body: bytes = b""
    content_type: str = ""
    error: dict[str, Any] | None = None
    again: bool = True


class ReturnFrame(_Frame, tag="return"):
    """Hand an attempt back: somebody else shall run it. Answered by ``taken`` with the seq -1."""

    call: str
    attempt: int


class RestFrame(_Frame, tag="rest"):
    """Take no more calls; with ``bye`` set the worker ends, and holds nothing any more. On the channel of a member of a
    group: take no more records; what it has it may still settle."""

    bye: bool = False


class JoinFrame(_Frame, tag="join"):
    """Take records of a group, as the member of that name, as far as there is credit (``credit`` frames give more).
    Answered by ``joined``, then ``deliver``; or by ``error``, which also says when the group is no more. ``leave`` gives
    back what the member holds; a lost connection leaves it to the member until its leases end."""

    group: str
    member: str
    credit: int = 0
    held: list[Ack] | None = None
    """What it has of the leases of its name, where it connects again: the rest got lost on its way, and is for others."""


class SettleFrame(_Frame, tag="settle"):
    """Say of records of the group what became of them, on any channel that has joined it. Answered by ``settled`` with the
    same ``seq``, once it is durable."""

    seq: int
    settlement: Settlement


# -- from the hub


class ResultFrame(_Frame, tag="result"):
    body: bytes = b""
    content_type: str = ""


class AcceptedFrame(_Frame, tag="accepted"):
    """The call is durable; ``id`` is its name at ``/v1/call/``."""

    id: str


class ErrorFrame(_Frame, tag="error"):
    """A problem document (RFC 9457)."""

    problem: dict[str, Any]


class PublishedFrame(_Frame, tag="published"):
    """``offset`` is after the records; "" while they are delayed, ``due`` then is when they will be there (RFC 3339)."""

    offset: str
    duplicate: bool = False
    due: str = ""


class FollowingFrame(_Frame, tag="following"):
    content_type: str
    offset: str


class RecordsFrame(_Frame, tag="records"):
    """``[[offset after it, record], ...]``; where something is known of a record beside it, its row has a third value:
    ``[headers, id, key, expires_ms]``."""

    records: msgspec.Raw


class EndFrame(_Frame, tag="end"):
    """The follower has ended: ``closed``, ``deleted``, ``complete``, ``drain`` or ``lagged``; what comes later is read from ``offset``."""

    reason: str
    offset: str


class ResponseFrame(_Frame, tag="response"):
    status: int
    headers: dict[str, str]
    body: bytes


class WorkingFrame(_Frame, tag="working"):
    """The worker is known. Its lease lasts ``lease_s`` seconds from each ``POST /v1/worker/{id}/lease``. ``lost`` are the
    attempts it was said to hold that are no longer its own."""

    lease_s: float
    lost: list[tuple[str, int]] = []


class RunFrame(_Frame, tag="run"):
    """Run an attempt of a call."""

    call: str
    attempt: int
    service: str
    body: bytes = b""
    content_type: str = ""
    accept: str = ""
    query: dict[str, list[str]] = {}
    items: int = 0
    """Values that earlier attempts have yielded."""
    durable: bool = False
    timeout_s: float = 0.0


class CancelFrame(_Frame, tag="cancel"):
    """Nobody wants this attempt any more: stop it; what it still says is refused."""

    call: str
    attempt: int


class JoinedFrame(_Frame, tag="joined"):
    """The member is known; leases last ``lease_s`` seconds."""

    lease_s: float


class DeliverFrame(_Frame, tag="deliver"):
    """Records, leased under one number for so many seconds."""

    lease: int
    seconds: float
    parts: list[Part]


class SettledFrame(_Frame, tag="settled"):
    """What was said is kept, but for ``refused``; or with a ``problem`` nothing of it is. ``offsets`` are those after what
    was published."""

    seq: int
    refused: list[Refused] = []
    problem: dict[str, Any] | None = None
    offsets: list[str] = []


class TakenFrame(_Frame, tag="taken"):
    """What an attempt sent, up to ``seq``, is kept; -1: its end. Or it was refused: the attempt is not this worker's any
    more."""

    call: str
    attempt: int
    seq: int
    problem: dict[str, Any] | None = None


FromClient = (
    CallFrame
    | LeaveFrame
    | PublishFrame
    | FollowFrame
    | CreditFrame
    | RequestFrame
    | WorkFrame
    | EmitFrame
    | FinishFrame
    | ReturnFrame
    | RestFrame
    | JoinFrame
    | SettleFrame
)
FromHub = (
    ResultFrame
    | AcceptedFrame
    | ErrorFrame
    | PublishedFrame
    | FollowingFrame
    | RecordsFrame
    | EndFrame
    | ResponseFrame
    | WorkingFrame
    | RunFrame
    | CancelFrame
    | TakenFrame
    | JoinedFrame
    | DeliverFrame
    | SettledFrame
)
Frame = FromClient | FromHub

encode: Callable[[list[Any]], bytes] = msgspec.msgpack.Encoder().encode
decode_from_client = msgspec.msgpack.Decoder(list[FromClient]).decode
decode_from_hub = msgspec.msgpack.Decoder(list[FromHub]).decode
