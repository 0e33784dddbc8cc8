"""What the operations of the OpenAPI document are made of: parameters, answers and schemas that many of them have."""

from __future__ import annotations

from typing import Any

from wayside.calls.call import PRIORITY_MAX, CallState


def parameter(where: str, name: str, text: str, schema: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    schema = schema or {"type": "string"}
    return {"in": where, "name": name, "description": text, "required": where == "path", "schema": schema, **more}


def shared(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/parameters/{name}"}


def schema_of(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def header_fields(texts: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def answer(text: str, fields: dict[str, str] | None = None) -> dict[str, Any]:
    return {"description": text, "headers": header_fields(fields)} if fields else {"description": text}


def json_answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def object_of(text: str, /, *required: str, **properties: Any) -> dict[str, Any]:
    whole = {"type": "object", "required": [*required], "properties": properties}
    return {**whole, "description": text} if text else whole


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def refusals(*statuses: int | str) -> dict[str, Any]:
    return {str(status): {"$ref": "#/components/responses/Refused"} for status in statuses}


TEXT, WHOLE, MS = {"type": "string"}, {"type": "integer"}, {"type": "integer", "description": "ms since 1970"}
LIMIT = parameter(
    "query", "limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
)
READ = [shared(name) for name in ("Offset", "Live", "Cursor", "Wait", "LastEventId", "IfNoneMatch")]
"""Parameters of reads."""
POLICIES = [shared(name) for name in ("Policy", "Key", "Interval", "Lag", "Member", "WaysideMember")]
"""Those of reads of streams, beside."""

STREAM_HEADERS = {
    "Stream-Next-Offset": "Offset to read on from",
    "Stream-Up-To-Date": "`true` when everything that exists was sent",
    "Stream-Closed": "`true` when nothing will be appended any more, and all was sent",
    "Stream-Cursor": "Echo as `cursor` in the next live read",
}
PARAMETERS = {
    "Prefer": parameter(
        "header",
        "Prefer",
        "`respond-async`: 202 and the call's URL, once the call is on disk. `wait=N`: so many seconds for the result; "
        "without `respond-async` the call is cancelled then, and the answer 504 (RFC 7240).",
        {"type": "string", "examples": ["respond-async", "respond-async, wait=1"]},
    ),
    "IdempotencyKey": parameter(
        "header",
        "Idempotency-Key",
        "The same request with the same key is the same call, and makes no other one.",
        {"type": "string", "minLength": 1, "maxLength": 255},
    ),
    "Priority": parameter(
        "header",
        "Wayside-Priority",
        "Calls of higher priority start first; 0 without it.",
        {"type": "integer", "minimum": -PRIORITY_MAX, "maximum": PRIORITY_MAX},
    ),
    "Delay": parameter(
        "header",
        "Wayside-Delay",
        "Seconds before it starts, of a call with `respond-async` or a key.",
        {"type": "number", "minimum": 0},
    ),
    "Callback": parameter(
        "header",
        "Wayside-Callback",
        "URL that is told of the end (Standard Webhooks), where the hub has a secret to sign with.",
        {"type": "string", "format": "uri"},
    ),
    "Wait": parameter("header", "Prefer", "`wait=N`: wait up to N seconds for more (RFC 7240)."),
    "Offset": parameter(
        "query", "offset", "Where to begin: `-1` (start), `now` (tail), or an offset that the hub gave."
    ),
    "Live": parameter("query", "live", "As the Durable Streams protocol has it.", {"enum": ["long-poll", "sse"]}),
    "Cursor": parameter("query", "cursor", "The last `Stream-Cursor`."),
    "LastEventId": parameter("header", "Last-Event-ID", "Resume after this offset; wins over `offset`."),
    "IfNoneMatch": parameter("header", "If-None-Match", "Entity tag of an earlier answer."),
    "Policy": parameter(
        "query",
        "policy",
        "What is given to whoever does not keep up: everything, later; the newest record per `key`; at most one frame each "
        "`interval`; or nothing more, once it is more than `lag` records behind. Polls can have `conflate`.",
        {"enum": ["catch-up", "conflate", "sample", "disconnect"], "default": "catch-up"},
    ),
    "Key": parameter(
        "query", "key", "With `conflate` and `sample`: field of JSON records; names joined by dots lead further in."
    ),
    "Interval": parameter(
        "query", "interval", "With `sample`: seconds, from 0.01; 1 without it. A number.", {"type": "string"}
    ),
    "Lag": parameter("query", "lag", "With `disconnect`: records; 1000 without it. A number.", {"type": "string"}),
    "Member": parameter(
        "query", "member", "Who reads: present at the stream (`/v1/presence/`).", {"type": "string", "maxLength": 128}
    ),
    "WaysideMember": parameter("header", "Wayside-Member", "The same.", {"type": "string", "maxLength": 128}),
    "TusResumable": parameter("header", "Tus-Resumable", "Version of tus.", {"const": "1.0.0"}, required=True),
    "UploadLength": parameter("header", "Upload-Length", "Bytes in all.", {"type": "integer", "minimum": 0}),
    "UploadChecksum": parameter("header", "Upload-Checksum", "Algorithm and digest in base64: `sha256 47DEQp...`."),
}

RESPONSES = {
    "Refused": {
        "description": "Refused; the problem document says why",
        "headers": header_fields({"X-Request-Id": "As in the document, and in the hub's log"}),
        "content": {"application/problem+json": {"schema": schema_of("Problem")}},
    },
    "Accepted": {
        "description": "The call has not ended yet",
        "headers": header_fields(
            {
                "Location": "URL of the call, where this request has made it",
                "Retry-After": "Seconds after which to ask again",
                "Preference-Applied": "What of `Prefer` was followed",
            }
        ),
        "content": {"application/json": {"schema": schema_of("Call")}},
        "links": {
            operation: {"operationId": operation, "parameters": {"id": "$response.body#/id"}}
            for operation in ("readCall", "readResult", "cancelCall")
        },
    },
}

SCHEMAS: dict[str, Any] = {
    "Problem": object_of(
        "RFC 9457 problem document",
        *("type", "title", "status", "detail", "code", "retry"),
        type=TEXT,
        title=TEXT,
        status=WHOLE,
        detail={"type": "string", "description": "What happened, and what to do next"},
        code={"type": "string", "description": "Stable name of the case"},
        retry={"type": "boolean", "description": "Whether the same request may succeed later"},
        request_id=TEXT,
    ),
    "Call": object_of(
        "A call as it is now",
        *("id", "service", "state", "attempt", "created_ms"),
        id=TEXT,
        service=TEXT,
        state={"enum": [state.value for state in CallState]},
        attempt={"type": "integer", "description": "Of how many times it was begun; 0 before the first"},
        created_ms=MS,
        started_ms=MS,
        ended_ms=MS,
        not_before_ms=MS,
        priority=WHOLE,
        progress={"description": "What its handler said last of how far it is"},
        items={"type": "integer", "description": "Values that its handler has yielded"},
        error={"type": "object", "description": "Why it failed, or its last attempt: a problem document"},
        parent={"type": "string", "description": "The call whose step it is"},
        result={"description": "Of one that is done, where it is JSON"},
    ),
    "CallEvent": object_of(
        "A record of a call's stream",
        *("event", "time_ms"),
        event={"enum": ["queued", "running", "progress", "item", "retry", "returned", "done", "failed", "cancelled"]},
        time_ms=MS,
        attempt=WHOLE,
        seq={"type": "integer", "description": "Of progress and items in one attempt: 0, 1, 2, ..."},
        data={"description": "Of progress, an item, or the result, where it is JSON"},
        base64={"type": "string", "contentEncoding": "base64", "description": "The same where it is not"},
        content_type={"type": "string", "description": "Of the data, where it is not plain JSON"},
        error={"type": "object", "description": "A problem document"},
        delay_ms={"type": "integer", "description": "Before the next attempt"},
        worker=TEXT,
    ),
    "Presences": object_of(
        "Who is present at a stream",
        *("stream", "offset", "members"),
        stream=TEXT,
        offset={"type": "string", "description": "Where to read on for joins and leaves after this"},
        members=array(
            object_of(
                "",
                *("member", "since_ms", "seen_ms", "ways"),
                member=TEXT,
                since_ms=MS,
                seen_ms={"type": "integer", "description": "When it was last heard of, in ms since 1970"},
                ways=array({"type": "string", "description": "A pattern by which it reads"}),
            )
        ),
    ),
    "PresenceEvent": object_of(
        "A record of the joins and leaves at a stream",
        *("event", "member", "time_ms"),
        event={"enum": ["join", "leave"]},
        member=TEXT,
        time_ms=MS,
    ),
    "Service": object_of(
        "A service, and how busy it is",
        *("name", "workers", "running", "waiting"),
        name=TEXT,
        description=TEXT,
        workers={"type": "integer", "description": "Workers that have it"},
        running={"type": "integer", "description": "Attempts under way"},
        waiting={"type": "integer", "description": "Calls that wait for a worker or for their time"},
        retries=WHOLE,
        timeout_s={"type": "number"},
        concurrency=WHOLE,
        queue_max=WHOLE,
        streams={"type": "boolean", "description": "Whether it yields its answer"},
    ),
}
