"""What is compared of an answer, in 0.1.0 and in today's version. Knows HTTP only, as both versions run it."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import httpx

JSON = {"Content-Type": "application/json"}
SECRET = "whsec_d2F5c2lkZS13YXlzaWRlLXdheXNpZGUtd2F5c2lkZQ=="
CALLBACKS = "http://127.7.1.1:17071"
"""Nobody listens there when the store is made; the tests do. An address of its own, so that the port is free."""
HEADERS = (
    "content-type",
    "location",
    "retry-after",
    "stream-bytes",
    "stream-closed",
    "stream-durability",
    "stream-earliest-offset",
    "stream-expires-at",
    "stream-next-offset",
    "stream-retention-age",
    "stream-retention-bytes",
    "stream-ttl",
    "stream-up-to-date",
    "upload-length",
    "upload-metadata",
    "upload-offset",
)
"""What a reader keeps or goes by; others, such as ETag and Date, may change."""
FLEETING = {"again_ms", "credit", "ended_ms", "request_id", "seen_ms"}
"""Of documents: other in each life of one store."""
LONG = 2000
"""Longer bodies are known by their hash."""


def sure(answer: httpx.Response) -> httpx.Response:
    """Raises where it was refused."""
    assert answer.status_code < 400, f"{answer.request.method} {answer.request.url}: {answer.text}"
    return answer


def answer_of(answer: httpx.Response) -> dict[str, Any]:
    """Status, headers and body as they are compared."""
    headers = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
    return {"status": answer.status_code, "headers": headers, **_body(answer)}


def _body(answer: httpx.Response) -> dict[str, Any]:
    """Records of a stream byte for byte; what else is JSON as a document."""
    data = answer.content
    if not data:
        return {}
    url = answer.request.url
    records = url.path.startswith("/v1/stream/") and "offset" in url.params and answer.is_success
    if "json" in answer.headers.get("content-type", "") and not records:
        return {"document": json.loads(data)}
    if len(data) > LONG:
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        return {"body": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def same(kept: Any, given: Any) -> bool:
    """Whether ``given`` says all that ``kept`` says, but for what is fleeting and for sentences. It may say more."""
    if isinstance(kept, dict) and isinstance(given, dict):
        passing = FLEETING | ({"detail"} if "code" in kept else set())
        return all(name in passing or (name in given and same(each, given[name])) for name, each in kept.items())
    if isinstance(kept, list) and isinstance(given, list):
        return len(kept) == len(given) and all(map(same, kept, given))
    return bool(kept == given)
