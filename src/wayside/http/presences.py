"""Presence in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from wayside.http.components import READ, STREAM_HEADERS, TEXT, array, header_fields, parameter, refusals, schema_of


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
