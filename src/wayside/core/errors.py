"""Every refusal, once: its code, HTTP status, WebSocket close code, and whether to try again.

A refusal is a *decision that the caller can take*: one class for each. The text says what happened
and what to do next; programs look at ``code`` (stable) and at the fields. On the wire a refusal is an
RFC 9457 problem document, or a WebSocket close frame.

This module knows nothing of HTTP servers or stores; foreign errors are translated where they arise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "BadRequest",
    "CallCancelled",
    "CallFailed",
    "CallTimedOut",
    "Conflict",
    "DamagedStore",
    "Fenced",
    "Gone",
    "IdempotencyMismatch",
    "InvalidInput",
    "Lagged",
    "LeaseFenced",
    "MethodNotAllowed",
    "NotAcceptable",
    "NotFound",
    "Overloaded",
    "Refusal",
    "StoreFailed",
    "StoreFull",
    "StoreInUse",
    "StoreUnusable",
    "TimedOut",
    "TooLarge",
    "TooMany",
    "TooManyCalls",
    "Unauthorized",
    "UnknownOutcome",
    "Unsupported",
    "UnsupportedMediaType",
    "refusal_of",
]


class Refusal(Exception):
    """A request that was understood and refused; nothing was lost and nothing was changed.

    ``detail`` is a sentence for people, ``headers`` go out with an HTTP answer, ``fields`` are added to
    the problem document. ``code`` names the case for programs: the class's own unless one is given.
    """

    status: ClassVar[int] = 500
    code: str = "internal"
    title: ClassVar[str] = "Internal error"
    close_code: ClassVar[int] = 1011
    """WebSocket close code, RFC 6455 section 7.4."""
    retry: ClassVar[bool] = False
    """Whether the same request may succeed later."""

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})
        if code is not None:
            self.code = code

    def problem(self) -> dict[str, object]:
        """The RFC 9457 problem document as plain values."""
        return {
            "type": f"urn:wayside:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "retry": self.retry,
            **self.fields,
        }


class BadRequest(Refusal):
    """The request is malformed; the same bytes will never be accepted."""

    status, code, title, close_code = 400, "bad-request", "Bad request", 1008


class Unauthorized(Refusal):
    """The request carries no proof of who may make it, or one that is not ours."""

    status, code, title, close_code = 401, "unauthorized", "Not authorized", 1008


class Fenced(Refusal):
    """A newer producer has taken over this producer id."""

    status, code, title, close_code = 403, "producer-fenced", "Producer is fenced", 1008


class NotFound(Refusal):
    """Nothing of that name exists."""

    status, code, title, close_code = 404, "stream-not-found", "No such stream", 4404


class MethodNotAllowed(Refusal):
    """The resource exists and does not take this method."""

    status, code, title, close_code = 405, "method-not-allowed", "Method not allowed", 1008


class NotAcceptable(Refusal):
    """The answer cannot be given in any media type that the client takes; the text lists those that it can."""

    status, code, title, close_code = 406, "not-acceptable", "Not acceptable", 1008


class TimedOut(Refusal):
    """The client took too long to send its request."""

    status, code, title, close_code, retry = 408, "request-timeout", "Request took too long", 1008, True


class Conflict(Refusal):
    """The request is fine and does not fit the stream as it is now."""

    status, code, title, close_code = 409, "conflict", "Conflict", 1008


class LeaseFenced(Conflict):
    """The lease of a record is over: others were given it, and what was said of it now changes nothing."""

    code, title = "lease-fenced", "The lease is over"


class Lagged(Refusal):
    """A follower with ``policy=disconnect`` was too far behind, and was ended: read on from where it was, or afresh from
    ``now``."""

    status, code, title, close_code = 409, "lagged", "Too far behind", 4408


class Gone(Refusal):
    """It existed and is no more: a stream that was deleted, or an offset that is not retained."""

    status, code, title, close_code = 410, "gone", "Gone", 4410


class TooLarge(Refusal):
    """Something is larger than its limit."""

    status, code, title, close_code = 413, "too-large", "Too large", 1009


class UnsupportedMediaType(Refusal):
    """The body's media type is not one that this resource takes; the text lists those that it does."""

    status, code, title, close_code = 415, "media-type-unsupported", "Media type not supported", 1003


class InvalidInput(Refusal):
    """The input is well-formed and does not fit; ``field`` is the JSON path of what does not, such as ``$.size.width``."""

    status, code, title, close_code = 422, "invalid-input", "Invalid input", 1008


class Unsupported(Refusal):
    """A protocol feature that this server does not speak."""

    status, code, title, close_code = 501, "unsupported", "Not supported", 1003


class Overloaded(Refusal):
    """A bound was reached that will be free again soon."""

    status, code, title, close_code, retry = 503, "overloaded", "Overloaded", 1013, True


class TooMany(Refusal):
    """A bound was reached that only deleting something, or another setting, gives room in."""

    status, code, title, close_code = 503, "too-many", "Too many", 1013


class StoreFailed(Refusal):
    """The disk failed under the store: nothing more is acknowledged until a restart has checked it."""

    status, code, title, close_code = 503, "store-failed", "The store has failed", 1011


class StoreFull(Refusal):
    """There is no room on the disk. Reads go on; appends work again when there is room."""

    status, code, title, close_code, retry = 507, "store-full", "No room on the disk", 1013, True


class StoreUnusable(Refusal):
    """The store cannot be opened as things are; the text says what to change."""

    status, code, title = 503, "store-unusable", "The store cannot be opened"


class StoreInUse(StoreUnusable):
    """Another process has this directory open."""

    code, title = "store-in-use", "The store is in use"


class DamagedStore(StoreUnusable):
    """A file of the store is not what was written to it. Nothing was repaired and nothing deleted."""

    status, code, title = 500, "store-damaged", "The store is damaged"


class TooManyCalls(Refusal):
    """The queue of a service is full."""

    status, code, title, close_code, retry = 429, "queue-full", "Too many calls", 1013, True


class IdempotencyMismatch(Refusal):
    """An idempotency key that was used for another request (draft-ietf-httpapi-idempotency-key-header)."""

    status, code, title, close_code = 422, "idempotency-key-reused", "Idempotency key was used before", 1008


class CallFailed(Refusal):
    """The handler of a call failed, or nobody could run it. ``fields`` say what it raised."""

    status, code, title = 500, "call-failed", "The call failed"


class CallCancelled(Refusal):
    """The call was cancelled: it has no result."""

    status, code, title, close_code = 409, "call-cancelled", "The call was cancelled", 1008


class CallTimedOut(Refusal):
    """The call did not end within the time that its caller gave it."""

    status, code, title, close_code, retry = 504, "call-timeout", "The call took too long", 1013, True


class UnknownOutcome(Refusal):
    """The connection broke while a call ran, and the call cannot be asked about: it may have run, or not."""

    status, code, title = 502, "unknown-outcome", "What became of the call is not known"


def refusal_of(problem: dict[str, Any]) -> Refusal:
    """A problem document (RFC 9457) as the refusal that it was: by its code, else by its status."""
    code = str(problem.get("code", "call-failed"))
    status = problem.get("status", 500)
    kinds = _subclasses(Refusal)
    kind = next((k for k in kinds if k.code == code), None)
    if kind is None:
        kind = CallFailed if status == 500 else next((k for k in kinds if k.status == status), CallFailed)
    known = {"type", "title", "status", "detail", "code", "retry"}
    fields = {name: value for name, value in problem.items() if name not in known}
    return kind(str(problem.get("detail", code)), code=code, fields=fields)


def _subclasses(cls: type[Refusal]) -> list[type[Refusal]]:
    return [cls, *(each for sub in cls.__subclasses__() for each in _subclasses(sub))]
