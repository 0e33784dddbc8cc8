"""The OpenAPI 3.1 document of what this hub serves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wayside.calls.call import CallState
from wayside.calls.queue import Service
from wayside.server.openapi.components import (
    LIMIT,
    PARAMETERS,
    POLICIES,
    READ,
    RESPONSES,
    SCHEMAS,
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
    shared,
)
from wayside.server.openapi.controls import SCHEMAS as CONTROL_SCHEMAS
from wayside.server.openapi.controls import SECURITY, presence_paths, subscription_paths
from wayside.server.openapi.groups import SCHEMAS as GROUP_SCHEMAS
from wayside.server.openapi.groups import group_paths
from wayside.server.openapi.services import HEADERS, REFUSALS, Schemas, service_paths

NAME = parameter("path", "name", "The stream's path, such as `orders/eu/42`; slashes are part of it.")
UPLOAD_HEADERS = {
    "Tus-Resumable": "`1.0.0`",
    "Upload-Offset": "Bytes that the hub has",
    "Upload-Expires": "When an upload that is not complete is let go",
}


def document(version: str, services: Iterable[Service] = ()) -> dict[str, Any]:
    """The document as plain values."""
    schemas = Schemas({**SCHEMAS, **CONTROL_SCHEMAS, **GROUP_SCHEMAS})
    declared = service_paths(services, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Wayside",
            "version": version,
            "description": "A record is written once, to a durable stream; every reader picks its own way to hear of it.",
        },
        "tags": [
            {"name": "services", "description": "What workers have declared, and calls of it"},
            {"name": "streams", "description": "Durable streams"},
            {
                "name": "subscriptions",
                "description": "Of the Durable Streams protocol: durable cursors that wake workers",
            },
            {"name": "groups", "description": "Named readers whose members share the records of streams"},
            {"name": "uploads", "description": "tus 1.0.0: an upload is a stream"},
            {"name": "operations", "description": "For whoever runs the hub"},
        ],
        "paths": {
            **declared,
            **_call_paths(),
            **_stream_paths(),
            **_publish_paths(),
            **presence_paths(),
            **group_paths(),
            **subscription_paths(),
            **_upload_paths(),
            **_operation_paths(),
        },
        "components": {
            "schemas": schemas.all,
            "parameters": PARAMETERS,
            "responses": RESPONSES,
            "securitySchemes": SECURITY,
        },
    }


# -- services and calls


def _call_paths() -> dict[str, Any]:
    service = parameter("path", "service", "The service's name.")
    identity = parameter("path", "id", "The call's name, as its maker was told.")
    worker = parameter("path", "worker", "The worker's name, as it gave it when it connected.")
    events = array(schema_of("CallEvent"))
    return {
        "/v1/service/": {
            "get": {
                "operationId": "listServices",
                "tags": ["services"],
                "summary": "List services",
                "responses": {
                    "200": json_answer("By name", object_of("", "services", services=array(schema_of("Service"))))
                },
            }
        },
        "/v1/service/{service}": {
            "parameters": [service],
            "get": {
                "operationId": "describeService",
                "tags": ["services"],
                "summary": "How a service is set up, and how busy it is",
                "responses": {"200": json_answer("The service", schema_of("Service")), **refusals(404)},
            },
            "post": {
                "operationId": "call",
                "tags": ["services"],
                "summary": "Call a service; those that are known have an operation of their own",
                "parameters": [shared(name) for name in HEADERS],
                "requestBody": {"content": {"*/*": {}}},
                "responses": {
                    "200": answer("The result", {"Wayside-Call": "The call, at /v1/call/"}),
                    "202": {"$ref": "#/components/responses/Accepted"},
                    **refusals(*REFUSALS, "default"),
                },
            },
        },
        "/v1/call/": {
            "get": {
                "operationId": "listCalls",
                "tags": ["services"],
                "summary": "List calls that have not ended, and that have lately; the newest first",
                "parameters": [
                    parameter("query", "service", "Only calls of this service."),
                    parameter("query", "state", "Only calls in this state.", {"enum": [s.value for s in CallState]}),
                    LIMIT,
                ],
                "responses": {
                    "200": json_answer(
                        "`found` counts those that were left out, too",
                        object_of("", "calls", "found", calls=array(schema_of("Call")), found=WHOLE),
                    ),
                    **refusals(400),
                },
            }
        },
        "/v1/call/{id}": {
            "parameters": [identity],
            "get": {
                "operationId": "readCall",
                "tags": ["services"],
                "summary": "How a call stands; or its events, as of any stream",
                "description": (
                    "A plain GET gives the `Call`, with `Prefer: wait=N` once it has ended. `offset` gives its events by "
                    "polling, `live` by long polling or server-sent events, `Accept: text/event-stream` by server-sent "
                    "events, `Upgrade: websocket` by push."
                ),
                "parameters": READ,
                "responses": {
                    "101": {"description": "Push over a WebSocket"},
                    "200": {
                        "description": "The call, or its events",
                        "headers": header_fields(STREAM_HEADERS),
                        "content": {
                            "application/json": {"schema": {"oneOf": [schema_of("Call"), events]}},
                            "text/event-stream": {"schema": TEXT, "x-item-schema": schema_of("CallEvent")},
                        },
                    },
                    "204": answer("No event within the wait, or none after the last", STREAM_HEADERS),
                    "304": {"description": "As the entity tag says"},
                    **refusals(400, 404, 410, 503),
                },
            },
            "delete": {
                "operationId": "cancelCall",
                "tags": ["services"],
                "summary": "Cancel a call",
                "responses": {"200": json_answer("It is cancelled", schema_of("Call")), **refusals(404, 409, 503, 507)},
            },
        },
        "/v1/call/{id}/result": {
            "parameters": [identity],
            "get": {
                "operationId": "readResult",
                "tags": ["services"],
                "summary": "The bare result, in what `Accept` asks for",
                "parameters": [shared("Wait")],
                "responses": {
                    "200": answer("The result", {"Wayside-Call": "The call"}),
                    "202": {"$ref": "#/components/responses/Accepted"},
                    **refusals(*REFUSALS, "default"),
                },
            },
        },
        "/v1/worker/{worker}/lease": {
            "parameters": [worker],
            "post": {
                "operationId": "renewLease",
                "tags": ["services"],
                "summary": "A worker lives: its lease begins anew",
                "responses": {
                    "200": json_answer("Seconds of the lease", object_of("", "lease_s", lease_s={"type": "number"})),
                    **refusals(403),
                },
            },
        },
        "/v1/connect": {
            "get": {
                "operationId": "connect",
                "tags": ["services"],
                "summary": "Calls, followers, publishes and workers as channels of one WebSocket",
                "responses": {"101": {"description": "Frames in MessagePack: see docs/PROTOCOL.md"}, **refusals(400)},
            }
        },
    }


# -- streams


def _stream_paths() -> dict[str, Any]:
    return {
        "/v1/stream/": {
            "get": {
                "operationId": "listStreams",
                "tags": ["streams"],
                "summary": "List streams by path",
                "parameters": [
                    parameter("query", "prefix", "Only paths that begin so."),
                    parameter("query", "after", "Only paths after this one."),
                    LIMIT,
                ],
                "responses": {"200": json_answer("`{streams, next}`", {"type": "object"}), **refusals(400)},
            }
        },
        "/v1/stream/{name}": {
            "parameters": [NAME],
            "get": {
                "operationId": "readStream",
                "tags": ["streams"],
                "summary": "Read: polling, long polling, server-sent events or push",
                "description": (
                    "A plain GET is polling. `Prefer: wait=N` or `live=long-poll` is long polling; "
                    "`Accept: text/event-stream` or `live=sse` is server-sent events; "
                    "`Upgrade: websocket` is push (subprotocol `wayside.v1` for offsets and credit). "
                    "`Accept: application/vnd.wayside.records+json` gives each record with its offset, headers, id and key; "
                    "it may wait too. A glob, such as "
                    "`orders/**`, reads all streams that it matches, each record in an envelope that names its stream."
                ),
                "parameters": [
                    *READ,
                    *POLICIES,
                ],
                "responses": {
                    "101": {"description": "Push over a WebSocket"},
                    "200": answer("Records", STREAM_HEADERS),
                    "204": answer("Nothing new within the wait", STREAM_HEADERS),
                    "304": {"description": "As the entity tag says"},
                    **refusals(400, 404, 410, 503),
                },
            },
            "head": {
                "operationId": "describeStream",
                "tags": ["streams"],
                "summary": "What the stream is",
                "responses": {"200": answer("It exists", STREAM_HEADERS), **refusals(400, 404, 410)},
            },
            "put": {
                "operationId": "createStream",
                "tags": ["streams"],
                "summary": "Create, or fork with Stream-Forked-From; the same again changes nothing",
                "parameters": [
                    parameter("header", "Stream-Durability", "`fsync` (default), `async` or `memory`."),
                    parameter("header", "Stream-TTL", "Seconds without a read or write until it expires."),
                    parameter("header", "Stream-Expires-At", "Time of expiry (RFC 3339)."),
                    parameter("header", "Stream-Retention-Bytes", "Bytes to keep at least."),
                    parameter("header", "Stream-Retention-Age", "Seconds to keep records at least."),
                    parameter("header", "Stream-Closed", "`true`: the body is all there will be."),
                    parameter("header", "Stream-Forked-From", "URL path of the stream to fork."),
                    parameter("header", "Stream-Fork-Offset", "Where to fork it; its tail without this."),
                    parameter("header", "Stream-Fork-Sub-Offset", "Records (JSON) or bytes after that offset."),
                ],
                "requestBody": _body(),
                "responses": {
                    "200": {"description": "It existed with this configuration"},
                    "201": {"description": "Created", "links": _LINKS},
                    **refusals(400, 404, 409, 413, 503, 507),
                },
            },
            "post": {
                "operationId": "appendToStream",
                "tags": ["streams"],
                "summary": "Append; a JSON array is appended as its elements",
                "parameters": [
                    parameter("header", "Stream-Closed", "`true`: close after this append."),
                    parameter("header", "Stream-Seq", "Must be greater than the last, byte by byte."),
                    parameter("header", "Producer-Id", "Idempotent producer; with the two below."),
                    parameter("header", "Producer-Epoch", "Grows with each instance of the producer."),
                    parameter("header", "Producer-Seq", "0, 1, 2, ... within an epoch."),
                    parameter("header", "Wayside-Message-Id", "Of the one record: sent again soon, it is a duplicate."),
                    parameter("header", "Wayside-Key", "Of the records."),
                    parameter("header", "Wayside-TTL", "Seconds for which readers are given the records."),
                    parameter("header", "Wayside-Delay", "Seconds until the records are appended."),
                ],
                "requestBody": _body(),
                "responses": {
                    "200": {"description": "Appended (idempotent producer)"},
                    "202": answer("It will be appended", {"Wayside-Due": "When (RFC 3339)", **_DUPLICATE}),
                    "204": answer("Appended, or had been appended before", {**STREAM_HEADERS, **_DUPLICATE}),
                    **refusals(400, 403, 404, 409, 410, 413, 503, 507),
                },
            },
            "delete": {
                "operationId": "deleteStream",
                "tags": ["streams"],
                "summary": "Delete",
                "responses": {"204": {"description": "Deleted"}, **refusals(400, 404, 410, 503, 507)},
            },
        },
    }


_LINKS = {
    operation: {"operationId": operation, "parameters": {"name": "$request.path.name"}}
    for operation in ("readStream", "describeStream", "appendToStream", "deleteStream")
}


_DUPLICATE = {"Wayside-Duplicate": "`true`: a record with its message id was there before"}


def _publish_paths() -> dict[str, Any]:
    seconds = {"type": "number", "minimum": 0}
    record = object_of(
        "`data` or `data_base64`",
        "stream",
        stream=TEXT,
        data={"description": "A JSON value; for a stream of text a string"},
        data_base64={"type": "string", "contentEncoding": "base64"},
        content_type=TEXT,
        id=TEXT,
        key=TEXT,
        headers={"type": "object", "additionalProperties": TEXT},
        ttl=seconds,
        delay=seconds,
    )
    due = {"type": "string", "format": "date-time"}
    result = object_of("", "stream", "duplicate", stream=TEXT, offset=TEXT, due=due, duplicate={"type": "boolean"})
    request = object_of("", "records", records={**array(record), "minItems": 1})
    return {
        "/v1/publish": {
            "post": {
                "operationId": "publish",
                "tags": ["streams"],
                "summary": "Append records to several streams in one transaction",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": request}},
                },
                "responses": {
                    "200": json_answer("What became of each", object_of("", "records", records=array(result))),
                    **refusals(400, 404, 409, 410, 413, 503, 507),
                },
            }
        }
    }


def _body() -> dict[str, Any]:
    return {"content": {"application/json": {}, "text/plain": {}, "application/octet-stream": {}}}


# -- uploads


def _upload_paths() -> dict[str, Any]:
    version, checksum = shared("TusResumable"), shared("UploadChecksum")
    length = shared("UploadLength")
    body = {"content": {"application/offset+octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    where = {"Location": "URL of the upload", "Wayside-Stream": "The stream that it is", **UPLOAD_HEADERS}
    spoken = dict.fromkeys(("Tus-Version", "Tus-Extension", "Tus-Max-Size"), "What of tus is spoken")

    def operation(identity: str, summary: str, *parameters: Any, **more: Any) -> dict[str, Any]:
        tagged = {"operationId": identity, "tags": ["uploads"], "summary": summary}
        return {**tagged, "parameters": [*parameters], **more} if parameters else {**tagged, **more}

    options = {"responses": {"204": answer("What is spoken", spoken)}}
    return {
        "/v1/upload/": {
            "options": operation("describeUploads", "What of tus is spoken", **options),
            "post": operation(
                "createUpload",
                "Begin an upload",
                *(version, length, checksum),
                parameter("header", "Upload-Defer-Length", "`1`: the length is not known yet.", {"const": "1"}),
                parameter("header", "Upload-Metadata", "Names, each with a value in base64, between commas."),
                requestBody=body,
                responses={
                    "201": answer("Created", where),
                    **refusals(400, 412, 413, 415, 460, 501, 503, 507),
                },
            ),
        },
        "/v1/upload/{id}": {
            "parameters": [parameter("path", "id", "The upload, as `Location` had it.")],
            "options": operation("describeUpload", "What of tus is spoken", **options),
            "head": operation(
                "readUploadOffset",
                "How far an upload is",
                version,
                responses={"200": answer("Where to go on", where), **refusals(404, 412)},
            ),
            "get": operation(
                "readUpload",
                "Where its bytes are",
                responses={"303": answer("The stream", {"Location": "URL of the stream"}), **refusals(404)},
            ),
            "patch": operation(
                "fillUpload",
                "Append to an upload",
                *(version, length, checksum),
                parameter("header", "Upload-Offset", "Where the body begins.", WHOLE, required=True),
                requestBody={**body, "required": True},
                responses={
                    "204": answer("It has the body", UPLOAD_HEADERS),
                    **refusals(400, 404, 409, 412, 413, 415, 423, 460, 503, 507),
                },
            ),
            "post": operation(
                "overrideUpload",
                "PATCH or DELETE, for clients that can send neither",
                *(version, length, checksum),
                parameter("header", "X-HTTP-Method-Override", "The method.", {"enum": ["PATCH", "DELETE"]}),
                parameter("header", "Upload-Offset", "Where the body begins.", WHOLE),
                requestBody=body,
                responses={
                    "204": answer("As of that method", UPLOAD_HEADERS),
                    **refusals(400, 404, 405, 409, 412, 413, 415, 423, 460, 503, 507),
                },
            ),
            "delete": operation(
                "deleteUpload",
                "Delete an upload and its stream",
                version,
                responses={"204": {"description": "Deleted"}, **refusals(404, 412, 503, 507)},
            ),
        },
    }


# -- operations


def _operation_paths() -> dict[str, Any]:
    health = json_answer("It is well", object_of("", "status", status=TEXT, reason=TEXT))
    text = {"description": "Text", "content": {"text/plain": {"schema": TEXT}}}
    ready = {**health, "description": "`reason` says why not"}
    return {
        "/": {"get": _page("What is here, as text", {"200": text})},
        "/healthz": {"get": _page("The process runs", {"200": health})},
        "/readyz": {"get": _page("It can take appends", {"200": health, "503": ready})},
        "/metrics": {"get": _page("Figures for Prometheus", {"200": text})},
        "/wayside.js": {
            "get": _page(
                "The client for browsers", {"200": answer("A module"), "304": answer("As the entity tag says")}
            )
        },
        "/openapi.json": {"get": _page("This document", {"200": json_answer("OpenAPI 3.1", {"type": "object"})})},
    }


def _page(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "tags": ["operations"], "responses": responses}
