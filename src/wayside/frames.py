"""The frames of ``/v1/connect``, drawn in docs/PROTOCOL.md: what the hub, its clients and its workers say to each other.

A message is a MessagePack array of frames; a frame is the array ``[kind, channel, ...]``. Who opens a channel numbers
it; answers carry the same number. Fields at the end that have their default may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["SUBPROTOCOL", "Frame", "decode_from_client", "decode_from_hub", "encode"]

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


class FollowFrame(_Frame, tag="follow"):
    """Follow a stream, or with ``call`` set a call, from an offset: ``-1``, ``now`` or one that was given. Answered by
    ``following``, then ``records`` as far as there is credit, then ``end``; or by ``error``."""

    stream: str
    offset: str = "-1"
    credit: int = 0
    call: bool = False


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
    """Take no more calls; with ``bye`` set the worker ends, and holds nothing any more."""

    bye: bool = False


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
    offset: str


class FollowingFrame(_Frame, tag="following"):
    content_type: str
    offset: str


class RecordsFrame(_Frame, tag="records"):
    """``[[offset after it, record], ...]``"""

    records: msgspec.Raw


class EndFrame(_Frame, tag="end"):
    """The follower has ended: ``closed``, ``deleted`` or ``drain``; what comes later is read from ``offset``."""

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
)
Frame = FromClient | FromHub

encode: Callable[[list[Any]], bytes] = msgspec.msgpack.Encoder().encode
decode_from_client = msgspec.msgpack.Decoder(list[FromClient]).decode
decode_from_hub = msgspec.msgpack.Decoder(list[FromHub]).decode
