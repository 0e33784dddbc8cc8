"""The Durable Streams protocol's subscriptions in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from wayside.server.openapi.components import (
    READ,
    STREAM_HEADERS,
    TEXT,
    WHOLE,
    answer,
    array,
    header_fields,
    json_answer,
    object_of,
    parameter,
    refusals,
    schema_of,
)

ROOT = "/v1/stream/__ds"
_OFFSET = {"type": "string", "description": "`-1`: before the first"}
_IDENTITY = parameter("path", "id", "The subscription's name, one segment.")

SECURITY: dict[str, Any] = {
    "wake": {"type": "http", "scheme": "bearer", "description": "The token that came with the wake"},
}
SCHEMAS: dict[str, Any] = {
    "ProtocolProblem": {
        "description": "A problem document with the protocol's `error` in it",
        "allOf": [
            schema_of("Problem"),
            object_of(
                "",
                error=object_of(
                    "",
                    *("code", "message"),
                    code={
                        "enum": [
                            *("INVALID_REQUEST", "WEBHOOK_URL_REJECTED", "TOKEN_INVALID", "SUBSCRIPTION_NOT_FOUND"),
                            *("SUBSCRIPTION_ALREADY_EXISTS", "FENCED", "ALREADY_CLAIMED", "NO_PENDING_WORK"),
                            "INVALID_OFFSET",
                        ]
                    },
                    message=TEXT,
                    current_holder=TEXT,
                    generation=WHOLE,
                ),
            ),
        ],
    },
    "SubscriptionStream": object_of(
        "A stream of a subscription, and its cursor there",
        *("path", "link_type", "acked_offset"),
        path=TEXT,
        link_type={"enum": ["glob", "explicit"]},
        acked_offset=_OFFSET,
        tail_offset=_OFFSET,
        has_pending={"type": "boolean"},
    ),
    "NewSubscription": object_of(
        "`pattern` or `streams`, or both; `webhook` or `wake_stream`, as the type has it",
        "type",
        type={"enum": ["webhook", "pull-wake"]},
        pattern={"type": "string", "description": "`*` is one segment, `**` any number of them, none included"},
        streams=array(TEXT),
        webhook=object_of("", "url", url={"type": "string", "format": "uri"}),
        wake_stream={"type": "string", "description": "An existing stream that wakes are appended to"},
        lease_ttl_ms={"type": "integer", "minimum": 1000, "maximum": 600_000, "default": 30_000},
        description=TEXT,
    ),
    "Subscription": object_of(
        "A subscription",
        *("id", "subscription_id", "type", "streams", "lease_ttl_ms", "created_at", "status"),
        id=TEXT,
        subscription_id=TEXT,
        type={"enum": ["webhook", "pull-wake"]},
        pattern={"type": ["string", "null"]},
        streams=array(schema_of("SubscriptionStream")),
        webhook={
            "type": ["object", "null"],
            "properties": {"url": TEXT, "signing": object_of("", alg=TEXT, kid=TEXT, jwks_url=TEXT)},
        },
        wake_stream={"type": ["string", "null"]},
        lease_ttl_ms=WHOLE,
        created_at={"type": "string", "format": "date-time"},
        status={
            "enum": ["active", "failed"],
            "description": "`failed` while an attempt to tell of a wake is to be repeated",
        },
        description={"type": ["string", "null"]},
    ),
    "Work": object_of(
        "What a worker says of the wake that it was given",
        *("wake_id", "generation"),
        wake_id=TEXT,
        generation=WHOLE,
        acks=array(object_of("", "stream", "offset", stream=TEXT, offset=TEXT)),
        done={"type": "boolean", "description": "The lease is given back"},
    ),
}
_WORKED = object_of("", "ok", "next_wake", ok={"const": True}, next_wake={"type": "boolean"})


def _refused(*statuses: int) -> dict[str, Any]:
    content = {
        "application/json": {"schema": schema_of("ProtocolProblem")},
        "application/problem+json": {"schema": schema_of("Problem")},
    }
    return {
        str(status): {"description": "Refused; the document says why", "content": content}
        for status in (*statuses, 503, 507)
    }


def _operation(
    identity: str, summary: str, responses: dict[str, Any], *, body: str = "", secured: bool = False
) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": identity, "tags": ["subscriptions"], "summary": summary}
    if body:
        schema = schema_of(body) if body[0].isupper() else _BODIES[body]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if secured:
        operation["security"] = [{name: []} for name in SECURITY]
    return {**operation, "responses": responses}


_BODIES = {
    "streams": object_of("", "streams", streams=array(TEXT)),
    "claim": object_of("", "worker", worker={"type": "string", "minLength": 1, "maxLength": 256}),
}


def subscription_paths() -> dict[str, Any]:
    """The paths of the document; ``SCHEMAS`` are theirs."""
    worked = {"200": json_answer("Taken", _WORKED), **_refused(400, 401, 404, 409, 413)}
    shown = json_answer("The subscription", schema_of("Subscription"))
    claimed = object_of(
        "",
        *("wake_id", "generation", "token", "streams", "lease_ttl_ms"),
        wake_id=TEXT,
        generation=WHOLE,
        token=TEXT,
        streams=array(schema_of("SubscriptionStream")),
        lease_ttl_ms=WHOLE,
    )
    key_set = {"application/jwk-set+json": {"schema": object_of("", "keys", keys=array({"type": "object"}))}}
    nothing = {"204": answer("Done")}
    below = f"{ROOT}/subscriptions/{{id}}"
    name = parameter("path", "name", "The stream's path; slashes are part of it.")
    return {
        f"{ROOT}/jwks.json": {
            "get": _operation(
                "readKeys",
                "The keys that webhooks are verified with (RFC 7517)",
                {"200": {"description": "The key set", "content": key_set}, **_refused()},
            )
        },
        below: {
            "parameters": [_IDENTITY],
            "put": _operation(
                "subscribe",
                "Create a subscription, or confirm it",
                {"200": shown, "201": shown, **_refused(400, 409, 413)},
                body="NewSubscription",
            ),
            "get": _operation("readSubscription", "A subscription as it is", {"200": shown, **_refused(400, 404)}),
            "delete": _operation("unsubscribe", "Delete a subscription", {**nothing, **_refused(400)}),
        },
        f"{below}/streams": {
            "parameters": [_IDENTITY],
            "post": _operation(
                "linkStreams", "Add streams by name", {**nothing, **_refused(400, 404, 413)}, body="streams"
            ),
        },
        f"{below}/streams/{{name}}": {
            "parameters": [_IDENTITY, name],
            "delete": _operation(
                "unlinkStream", "Take a stream away that was added by name", {**nothing, **_refused(400, 404)}
            ),
        },
        f"{below}/claim": {
            "parameters": [_IDENTITY],
            "post": _operation(
                "claimWake",
                "Take the lease of a subscription of type pull-wake",
                {"200": json_answer("It is the worker's", claimed), **_refused(400, 404, 409, 413)},
                body="claim",
            ),
        },
        f"{below}/ack": {
            "parameters": [_IDENTITY],
            "post": _operation("ackWake", "Ack, and keep the lease or give it back", worked, body="Work", secured=True),
        },
        f"{below}/release": {
            "parameters": [_IDENTITY],
            "post": _operation(
                "releaseWake",
                "Give the lease back",
                {**nothing, **_refused(400, 401, 404, 409, 413)},
                body="Work",
                secured=True,
            ),
        },
        f"{below}/callback": {
            "parameters": [_IDENTITY],
            "post": _operation("callBack", "The same for whoever a webhook told", worked, body="Work", secured=True),
        },
    }


def presence_paths() -> dict[str, Any]:
    """Who follows a stream."""
    events = array(schema_of("PresenceEvent"))
    return {
        "/v1/presence/{name}": {
            "parameters": [parameter("path", "name", "The stream's path; slashes are part of it.")],
            "get": {
                "operationId": "readPresence",
                "tags": ["streams"],
                "summary": "Who is present at a stream; or joins and leaves, as of any stream",
                "description": (
                    "A plain GET gives the `Presences`. `offset` gives joins and leaves by polling, with `Prefer: wait=N` "
                    "or `live` by long polling; `Accept: text/event-stream` by server-sent events, `Upgrade: websocket` "
                    "by push."
                ),
                "parameters": READ,
                "responses": {
                    "101": {"description": "Push over a WebSocket"},
                    "200": {
                        "description": "Who is present, or joins and leaves",
                        "headers": header_fields(STREAM_HEADERS),
                        "content": {
                            "application/json": {"schema": {"oneOf": [schema_of("Presences"), events]}},
                            "text/event-stream": {"schema": TEXT, "x-item-schema": schema_of("PresenceEvent")},
                        },
                    },
                    "204": {"description": "Nothing within the wait"},
                    "304": {"description": "As the entity tag says"},
                    **refusals(400, 404, 410, 503),
                },
            },
        }
    }
