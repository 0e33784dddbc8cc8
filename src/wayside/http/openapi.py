"""The OpenAPI 3.1 document of what this version serves."""

from __future__ import annotations

from typing import Any

_STREAM_HEADERS = {
    "Stream-Next-Offset": "Offset to read on from",
    "Stream-Up-To-Date": "`true` when everything that exists was sent",
    "Stream-Closed": "`true` when nothing will be appended any more, and all was sent",
    "Stream-Cursor": "Echo as `cursor` in the next live read",
}


def document(version: str) -> dict[str, Any]:
    """The document as plain values."""
    name = _parameter(
        "path", "name", "The stream's path, such as `orders/eu/42`; slashes are part of it.", required=True
    )
    offset = _parameter(
        "query", "offset", "Where to begin: `-1` (start), `now` (tail), or an offset that the hub gave."
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Wayside",
            "version": version,
            "description": "A record is written once, to a durable stream; every reader picks its own way to hear of it.",
        },
        "paths": {
            "/v1/stream/": {
                "get": {
                    "operationId": "listStreams",
                    "summary": "List streams by path",
                    "parameters": [
                        _parameter("query", "prefix", "Only paths that begin so."),
                        _parameter("query", "after", "Only paths after this one."),
                        _parameter("query", "limit", "At most so many, up to 1000."),
                    ],
                    "responses": {"200": _answer("`{streams, next}`", json=True), **_refusals(400)},
                }
            },
            "/v1/stream/{name}": {
                "parameters": [name],
                "get": {
                    "operationId": "readStream",
                    "summary": "Read: polling, long polling, server-sent events or push",
                    "description": (
                        "A plain GET is polling. `Prefer: wait=N` or `live=long-poll` is long polling; "
                        "`Accept: text/event-stream` or `live=sse` is server-sent events; "
                        "`Upgrade: websocket` is push (subprotocol `wayside.v1` for offsets and credit)."
                    ),
                    "parameters": [
                        offset,
                        _parameter("query", "live", "`long-poll` or `sse`, as the Durable Streams protocol has them."),
                        _parameter("query", "cursor", "The last `Stream-Cursor`."),
                        _parameter("header", "Prefer", "`wait=N`: wait up to N seconds for records (RFC 7240)."),
                        _parameter("header", "Last-Event-ID", "Resume after this offset; wins over `offset`."),
                        _parameter("header", "If-None-Match", "Entity tag of an earlier answer."),
                    ],
                    "responses": {
                        "101": {"description": "Push over a WebSocket"},
                        "200": _answer("Records", headers=_STREAM_HEADERS),
                        "204": _answer("Nothing new within the wait", headers=_STREAM_HEADERS),
                        "304": {"description": "As the entity tag says"},
                        **_refusals(400, 404, 410, 503),
                    },
                },
                "head": {
                    "operationId": "describeStream",
                    "summary": "What the stream is",
                    "responses": {"200": _answer("It exists", headers=_STREAM_HEADERS), **_refusals(404, 410)},
                },
                "put": {
                    "operationId": "createStream",
                    "summary": "Create, or fork with Stream-Forked-From; the same again changes nothing",
                    "parameters": [
                        _parameter("header", "Stream-Durability", "`fsync` (default), `async` or `memory`."),
                        _parameter("header", "Stream-TTL", "Seconds without a read or write until it expires."),
                        _parameter("header", "Stream-Expires-At", "Time of expiry (RFC 3339)."),
                        _parameter("header", "Stream-Retention-Bytes", "Bytes to keep at least."),
                        _parameter("header", "Stream-Retention-Age", "Seconds to keep records at least."),
                        _parameter("header", "Stream-Closed", "`true`: the body is all there will be."),
                        _parameter("header", "Stream-Forked-From", "URL path of the stream to fork."),
                        _parameter("header", "Stream-Fork-Offset", "Where to fork it; its tail without this."),
                        _parameter("header", "Stream-Fork-Sub-Offset", "Records (JSON) or bytes after that offset."),
                    ],
                    "requestBody": _body(),
                    "responses": {
                        "200": {"description": "It existed with this configuration"},
                        "201": {"description": "Created"},
                        **_refusals(400, 404, 409, 413, 503, 507),
                    },
                },
                "post": {
                    "operationId": "appendToStream",
                    "summary": "Append; a JSON array is appended as its elements",
                    "parameters": [
                        _parameter("header", "Stream-Closed", "`true`: close after this append."),
                        _parameter("header", "Stream-Seq", "Must be greater than the last, byte by byte."),
                        _parameter("header", "Producer-Id", "Idempotent producer; with the two below."),
                        _parameter("header", "Producer-Epoch", "Grows with each instance of the producer."),
                        _parameter("header", "Producer-Seq", "0, 1, 2, ... within an epoch."),
                    ],
                    "requestBody": _body(),
                    "responses": {
                        "200": {"description": "Appended (idempotent producer)"},
                        "204": {"description": "Appended, or had been appended before"},
                        **_refusals(400, 403, 404, 409, 410, 413, 503, 507),
                    },
                },
                "delete": {
                    "operationId": "deleteStream",
                    "summary": "Delete",
                    "responses": {"204": {"description": "Deleted"}, **_refusals(404, 410)},
                },
            },
            "/": {"get": _operation("What is here, as text")},
            "/healthz": {"get": _operation("The process runs")},
            "/readyz": {"get": _operation("It can take appends; 503 with the reason where it cannot", 503)},
            "/metrics": {"get": _operation("Figures for Prometheus")},
            "/openapi.json": {"get": _operation("This document")},
        },
        "components": {
            "schemas": {
                "Problem": {
                    "type": "object",
                    "description": "RFC 9457 problem document",
                    "required": ["type", "title", "status", "detail", "code", "retry"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string", "description": "What happened, and what to do next"},
                        "code": {"type": "string", "description": "Stable name of the case"},
                        "retry": {"type": "boolean", "description": "Whether the same request may succeed later"},
                        "request_id": {"type": "string"},
                    },
                }
            }
        },
    }


def _parameter(where: str, name: str, text: str, *, required: bool = False) -> dict[str, Any]:
    return {"in": where, "name": name, "description": text, "required": required, "schema": {"type": "string"}}


def _body() -> dict[str, Any]:
    return {"content": {"application/json": {}, "text/plain": {}, "application/octet-stream": {}}}


def _answer(text: str, *, headers: dict[str, str] | None = None, json: bool = False) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": text}
    if headers:
        answer["headers"] = {n: {"description": d, "schema": {"type": "string"}} for n, d in headers.items()}
    if json:
        answer["content"] = {"application/json": {"schema": {"type": "object"}}}
    return answer


def _refusals(*statuses: int) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        str(s): {
            "description": "Refused; the problem document says why",
            "content": {"application/problem+json": schema},
        }
        for s in statuses
    }


def _operation(text: str, *statuses: int) -> dict[str, Any]:
    return {"summary": text, "responses": {"200": {"description": text}, **_refusals(*statuses)}}
