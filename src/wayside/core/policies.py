"""Delivery policies: what a follower that does not keep up is given of what it has missed. Values only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from wayside.core.errors import BadRequest

__all__ = ["INTERVAL_S", "KINDS", "LAG", "Policy", "is_field", "key_reader", "policy_of"]

KINDS = ("catch-up", "conflate", "sample", "disconnect")
INTERVAL_S, LAG = 1.0, 1000
"""Of a sample, and of ``disconnect``, that names none."""
INTERVAL_S_MIN, INTERVAL_S_MAX = 0.01, 86_400.0
LAG_MAX = 10**12
KEY_MAX, DEPTH_MAX = 256, 16
"""Characters of a key, and names in it."""
_NO_NAME = set('"\\') | {chr(code) for code in range(32)}


@dataclass(frozen=True, slots=True)
class Policy:
    """``conflate``: of what it has missed, the newest record per key. ``sample``: at most one frame per interval, of the
    newest record per key. ``disconnect``: ended once it is too far behind. (``catch-up`` is no policy at all: None.)"""

    kind: str
    key: str = ""
    """Path of a field of JSON records, its names joined by dots. Empty: the newest record stands for all."""
    interval_s: float = 0.0
    """Seconds between two frames of a sample."""
    lag: int = 0
    """Records that a follower may be behind before it is disconnected."""

    def require_fit(self, *, is_json: bool, follows: bool) -> None:
        """Raise :class:`BadRequest` where the stream, or the way it is read, has no room for this policy."""
        if self.key and not is_json:
            raise BadRequest(
                "The parameter key names a field of JSON records, and this stream is not JSON. Leave it out: the newest "
                "record then stands for all.",
                code="policy-needs-json",
            )
        if not follows and self.kind != "conflate":
            raise BadRequest(
                f"policy={self.kind} is for followers: server-sent events, a WebSocket, /v1/connect. A poll can have "
                "policy=conflate.",
                code="policy-needs-follower",
            )


def policy_of(kind: str | None, key: str | None, interval: str | None, lag: str | None) -> Policy | None:
    """A policy as a request names it; None for ``catch-up``, and where there is none. Raises :class:`BadRequest`."""
    if kind is None:
        return None
    if kind not in KINDS:
        raise BadRequest(f"policy is one of {', '.join(KINDS)}, not {kind[:40]!r}.", code="policy-unknown")
    takes = {"conflate": ("key",), "sample": ("key", "interval"), "disconnect": ("lag",)}.get(kind, ())
    for name, value in (("key", key), ("interval", interval), ("lag", lag)):
        if value is not None and name not in takes:
            raise BadRequest(f"policy={kind} takes no parameter {name}: leave it out.", code="policy-parameter")
    match kind:
        case "conflate":
            return Policy(kind, _key(key))
        case "sample":
            return Policy(kind, _key(key), interval_s=_interval_s(interval))
        case "disconnect":
            return Policy(kind, lag=_lag(lag))
    return None


def _key(text: str | None) -> str:
    if text is None:
        return ""
    if not is_field(text):
        raise BadRequest(
            f"key={text[:80]!r} is no field: give its name, or several joined by dots for one that is further in, such as "
            "order.customer.",
            code="policy-parameter",
        )
    return text


def is_field(text: str) -> bool:
    """Whether it can name a field of a JSON record, for :func:`key_reader`."""
    names = text.split(".")
    return all(names) and len(text) <= KEY_MAX and len(names) <= DEPTH_MAX and _NO_NAME.isdisjoint(text)


def _interval_s(text: str | None) -> float:
    try:
        seconds = INTERVAL_S if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not INTERVAL_S_MIN <= seconds <= INTERVAL_S_MAX:
        raise BadRequest(
            f"interval is seconds, from {INTERVAL_S_MIN:g} to {INTERVAL_S_MAX:g}, not {text[:40] if text else ''!r}.",
            code="policy-parameter",
        )
    return seconds


def _lag(text: str | None) -> int:
    if text is None:
        return LAG
    if not (text.isascii() and text.isdecimal()) or len(text) > 13 or not 1 <= int(text) <= LAG_MAX:
        raise BadRequest(
            f"lag is a whole number of records, from 1 to {LAG_MAX}, not {text[:40]!r}.", code="policy-parameter"
        )
    return int(text)


@lru_cache(maxsize=256)
def key_reader(path: str) -> Callable[[bytes], str | bytes | None]:
    """What finds the field at ``path`` in a JSON record: a text as it is, any other value as its JSON, and None where a
    record has no such field. Only the names on the way are decoded."""
    kind: Any = Any
    for name in reversed(path.split(".")):
        field = ("value", kind | msgspec.UnsetType if kind is not Any else Any, msgspec.UNSET)
        kind = msgspec.defstruct("Keyed", [field], rename={"value": name})
    decode = msgspec.json.Decoder(kind).decode
    depth = path.count(".") + 1
    encode = msgspec.json.encode

    def read(record: bytes) -> str | bytes | None:
        try:
            value = decode(record)
            for _ in range(depth):
                value = value.value
        except (
            msgspec.DecodeError,
            AttributeError,
            RecursionError,
        ):  # no object, somewhere on the way; or no field
            return None
        if type(value) is str:
            return value
        return None if value is msgspec.UNSET else encode(value)

    return read
