"""What is asked for: a request from what a client said, and the name of the call that it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from wayside.codecs import Payload
from wayside.errors import BadRequest
from wayside.state.calls import PRIORITY_MAX, Request, fingerprint, json_of

__all__ = ["KEYED", "keyed_id", "may_be_before", "new_id", "request_of"]

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
) -> Request:
    """What was asked for. Raises :class:`BadRequest` where it makes no sense."""
    kind = payload.content_type
    json = json_of(payload.data) if kind == "application/json" else msgspec.UNSET
    body: dict[str, Any] = {"base64": payload.data} if json is msgspec.UNSET else {"json": json}
    if not (key or query or priority or delay_s or callback or parent):
        return Request(new_id(now_ms), service, now_ms, content_type=kind, accept=accept or None, **body)
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        raise BadRequest(f"A priority is from {-PRIORITY_MAX} to {PRIORITY_MAX}.", code="parameter-invalid")
    if not 0 <= delay_s <= DELAY_S_MAX:
        raise BadRequest(f"A delay is from 0 to {DELAY_S_MAX:.0f} s.", code="parameter-invalid")
    if len(key) > KEY_CHARACTERS_MAX:
        raise BadRequest(f"An idempotency key has up to {KEY_CHARACTERS_MAX} characters.", code="parameter-invalid")
    if delay_s and not (durable or key):
        raise BadRequest("Only a call that is submitted can start later.", code="delay-needs-submit")
    return Request(
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
