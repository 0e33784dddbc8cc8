"""Groups in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from wayside.server.openapi.components import (
    LIMIT,
    MS,
    TEXT,
    WHOLE,
    array,
    json_answer,
    object_of,
    parameter,
    refusals,
    schema_of,
    shared,
)

_NUMBER, _BOOL = {"type": "number"}, {"type": "boolean"}
_TEXTS, _OBJECT = array(TEXT), {"type": "object"}
_HEADERS = {"type": "object", "additionalProperties": TEXT}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _closed(text: str, /, *required: str, **properties: Any) -> dict[str, Any]:
    return {**object_of(text, *required, **properties), "additionalProperties": False}


def _seconds(text: str, most: float, least: float = 0) -> dict[str, Any]:
    return {"type": "number", "minimum": least, "maximum": most, "description": text}


def _count(text: str, least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most, "description": text}


_GLOBS = {"anyOf": [TEXT, _TEXTS], "description": "A path or a glob, or several"}
_YEAR_S = 366 * 86_400
_MARK: dict[str, Any] = {
    "stream": TEXT,
    "lease": {"type": "integer", "description": "As the claim had it"},
    "offset": {"type": "string", "description": "Of one record: the offset after it"},
    "from": {"type": "string", "description": "Of neighbours: the offset after the first"},
    "to": {"type": "string", "description": "The one after the last"},
}


def _mark(text: str, /, **properties: Any) -> dict[str, Any]:
    return array(_closed(text, "stream", "lease", **_MARK, **properties))


SCHEMAS: dict[str, Any] = {
    "GroupSettings": _closed(
        "What is chosen for a group",
        "streams",
        streams={
            "anyOf": [TEXT, {**_TEXTS, "minItems": 1, "maxItems": 1000}],
            "description": "Paths, or globs: `*` is one segment, `**` any number",
        },
        start={
            "type": "string",
            "description": "Where streams begin that are there already: `-1`, `now`, or an offset of the only one",
        },
        lease_s=_seconds("For how long a member has a record", 43_200, 0.1),
        retries=_count("Redeliveries after a failure; -1: no bound", -1, 1_000_000),
        backoff_s=_seconds("Before the first redelivery; doubled for each that follows, with jitter", 86_400),
        backoff_s_max=_seconds("The longest of these", 604_800),
        in_flight_max=_count("Records under way at one time", 1, 100_000),
        member_in_flight_max=_count("The same, of one member; 0: as many as it takes", 0, 100_000),
        dead_letter={"type": "string", "description": "Stream for records whose last attempt has failed"},
        order_by={
            "type": "string",
            "description": "Field whose equal values are delivered one after the other; `$key`: the record's key",
        },
        paused={"type": "boolean", "description": "Whether nothing is delivered"},
        webhook={"type": "string", "description": "URL that deliveries are pushed to"},
        webhook_concurrency=_count("Pushes at one time", 1, 256),
        webhook_disabled={"type": "string", "description": "Why nothing is pushed any more; empty begins anew"},
        cloudevents={"type": "boolean", "description": "Whether they are CloudEvents (binary mode)"},
        description=TEXT,
    ),
    "GroupSummary": object_of(
        "A group in a list",
        *("name", "streams", "lag", "in_flight", "waiting", "parked", "dead", "members", "paused"),
        name=TEXT,
        streams=_TEXTS,
        lag={
            **_nullable(WHOLE),
            "description": "Records that were never delivered; null: too many streams to look at for a list",
        },
        in_flight={"type": "integer", "description": "Records that members have"},
        waiting={"type": "integer", "description": "Records that wait for their redelivery"},
        parked={"type": "integer", "description": "Records that wait behind others with their key"},
        dead={"type": "integer", "description": "Dead records that can be redriven"},
        members=WHOLE,
        paused=_BOOL,
        webhook=_nullable(TEXT),
    ),
    "Group": object_of(
        "A group as it is now",
        *(
            "name",
            "settings",
            "members",
            "lag",
            "in_flight",
            "waiting",
            "parked",
            "dead",
            "counts",
            "streams",
            "paused",
        ),
        name=TEXT,
        settings=_OBJECT,
        members=array(
            object_of(
                "",
                "name",
                "in_flight",
                "connected",
                "credit",
                name=TEXT,
                in_flight=WHOLE,
                connected=_BOOL,
                credit=WHOLE,
            )
        ),
        lag=WHOLE,
        in_flight=WHOLE,
        waiting=WHOLE,
        parked=WHOLE,
        dead=WHOLE,
        counts={"type": "object", "additionalProperties": WHOLE, "description": "Since the group was made"},
        streams=array(
            object_of(
                "",
                *("stream", "lag"),
                stream=TEXT,
                lag=WHOLE,
                in_flight=WHOLE,
                waiting=WHOLE,
                parked=WHOLE,
                position=WHOLE,
                next=WHOLE,
            )
        ),
        paused=_BOOL,
        stuck={**_nullable(TEXT), "description": "Why a dead record cannot be put into the dead-letter stream"},
    ),
    "Claim": _closed(
        "What a member takes",
        max=_count("Records at most; 1 without it", 1, 1000),
        wait=_seconds("For how long to wait for one; wins over `Prefer`", _YEAR_S),
        member={"type": "string", "maxLength": 256, "description": "Its name; one is made up without it"},
    ),
    "Claimed": object_of(
        "Records that were leased; none when the wait is over",
        *("lease", "lease_s", "member", "records"),
        lease={**_nullable(WHOLE), "description": "What acks name"},
        lease_s={"type": "number", "description": "Until then they are the member's"},
        member=TEXT,
        records=array(
            object_of(
                "",
                *("stream", "offset", "attempt", "time_ms", "content_type"),
                stream=TEXT,
                offset={"type": "string", "description": "After the record"},
                attempt={"type": "integer", "description": "Of how many deliveries; this one included"},
                time_ms=MS,
                content_type=TEXT,
                data={"description": "A JSON value"},
                text=TEXT,
                base64={"type": "string", "contentEncoding": "base64"},
                headers=_HEADERS,
                id=TEXT,
                key=TEXT,
            )
        ),
    ),
    "Settle": _closed(
        "What became of records",
        member={"type": "string", "description": "Take only what this member has"},
        acks=_mark("Done"),
        nacks=_mark(
            "Not done",
            delay={**_nullable(_seconds("Until the next delivery", _YEAR_S)), "description": "Null: after the backoff"},
            reason=TEXT,
            kind={
                "enum": ["failed", "released", "rejected"],
                "description": "`released`: it was not tried; `rejected`: nobody shall try it again",
            },
        ),
        extends=_mark("Still needed", seconds=_seconds("From now; 0: the group's lease", _YEAR_S)),
        publish=array(
            _closed(
                "A record that is appended if, and only if, all of the request is taken",
                "stream",
                stream=TEXT,
                data={"description": "A JSON value, for a JSON stream"},
                text=_nullable(TEXT),
                base64=_nullable(TEXT),
                headers=_HEADERS,
                id=TEXT,
                key=TEXT,
                ttl=_seconds("Until it expires; 0: never", _YEAR_S),
            )
        ),
    ),
    "Settled": object_of(
        "What was taken",
        *("acked", "nacked", "extended", "already", "offsets"),
        acked=WHOLE,
        nacked=WHOLE,
        extended=WHOLE,
        already={
            **array(object_of("", "stream", "offset", stream=TEXT, offset=TEXT)),
            "description": "Was settled before, which is harmless",
        },
        offsets={**_TEXTS, "description": "After what was published"},
    ),
    "Receipt": object_of(
        "What is known of one record in a group",
        *("group", "stream", "offset", "state", "attempts", "deliveries", "complete"),
        group=TEXT,
        stream=TEXT,
        offset=TEXT,
        state={
            "enum": [
                *(
                    "pending",
                    "in-flight",
                    "waiting",
                    "parked",
                    "acked",
                    "dead",
                    "expired",
                    "missed",
                    "settled",
                    "unknown",
                )
            ]
        },
        attempts=_nullable(WHOLE),
        appended_ms=_nullable(MS),
        deliveries=array(
            object_of(
                "",
                *("lease", "member", "time_ms"),
                lease=WHOLE,
                member=TEXT,
                time_ms=MS,
                ended={"enum": ["acked", "failed", "released", "forgotten"]},
                ended_ms=MS,
                reason=TEXT,
                again_ms=MS,
            )
        ),
        complete={"type": "boolean", "description": "Whether these are all deliveries that there were"},
        dead_letter=object_of("Where its copy is", "stream", "offset", stream=TEXT, offset=TEXT),
        detail=TEXT,
    ),
    "DeadRecord": object_of(
        "A record that its group has given up on",
        *("stream", "offset", "died_ms", "attempts", "reason", "dead_letter"),
        stream=TEXT,
        offset=TEXT,
        died_ms=MS,
        attempts=WHOLE,
        reason=TEXT,
        dead_letter=_nullable(object_of("Where its copy is", "stream", "offset", stream=TEXT, offset=TEXT)),
    ),
    "Redrive": _closed(
        "Which dead records; all without any of these",
        streams=_GLOBS,
        offsets=_TEXTS,
        reason={"type": "string", "description": "In whose reason this text is"},
        max={**_nullable({"type": "integer", "minimum": 1}), "description": "At most so many, the oldest first"},
    ),
    "Seek": _closed(
        "Where to read on",
        "to",
        to={"type": "string", "description": "`-1`, `now`, or an offset of the one stream that is chosen"},
        streams=_GLOBS,
    ),
}


def group_paths() -> dict[str, Any]:
    """Groups and what is below them."""
    group = parameter("path", "group", "The group's name: up to 128 letters, digits, dots, dashes, underscores.")

    def below(identity: str, method: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
        operation = {"operationId": identity, "tags": ["groups"], "summary": summary, **more, "responses": responses}
        return {"parameters": [group], method: operation}

    def body(name: str, *, required: bool = False) -> dict[str, Any]:
        return {"required": required, "content": {"application/json": {"schema": schema_of(name)}}}

    taken = json_answer("Taken", schema_of("Settled"))
    paused = json_answer("It is so", object_of("", "paused", paused=_BOOL))
    changed = (400, 404, 413, 415, 422, 503)
    return {
        "/v1/group/": {
            "get": {
                "operationId": "listGroups",
                "tags": ["groups"],
                "summary": "List groups by name",
                "parameters": [
                    parameter("query", "prefix", "Only names that begin so."),
                    parameter("query", "after", "Only names after this one."),
                    LIMIT,
                ],
                "responses": {
                    "200": json_answer(
                        "`next` is the value of `after` for the next page",
                        object_of("", "groups", "next", groups=array(schema_of("GroupSummary")), next=_nullable(TEXT)),
                    ),
                    **refusals(400),
                },
            }
        },
        "/v1/group/{group}": {
            "parameters": [group],
            "get": {
                "operationId": "describeGroup",
                "tags": ["groups"],
                "summary": "Settings, members, lag, what is in flight and dead",
                "responses": {"200": json_answer("The group", schema_of("Group")), **refusals(404)},
            },
            "put": {
                "operationId": "putGroup",
                "tags": ["groups"],
                "summary": "Make a group, or give it these settings; the same again changes nothing",
                "requestBody": body("GroupSettings", required=True),
                "responses": {
                    "200": json_answer("It has these settings", schema_of("Group")),
                    "201": {**json_answer("Made", schema_of("Group")), "links": _LINKS},
                    **refusals(400, 404, 409, 410, 413, 415, 422, 503, 507),
                },
            },
            "delete": {
                "operationId": "deleteGroup",
                "tags": ["groups"],
                "summary": "Forget a group; its streams stay",
                "responses": {"204": {"description": "Forgotten"}, **refusals(404, 503, 507)},
            },
        },
        "/v1/group/{group}/claim": below(
            "claimRecords",
            "post",
            "Take records, by polling or long polling",
            {"200": json_answer("Leased, or none within the wait", schema_of("Claimed")), **refusals(*changed)},
            parameters=[shared("Wait")],
            requestBody=body("Claim"),
        ),
        "/v1/group/{group}/ack": below(
            "settleRecords",
            "post",
            "Acks, nacks and extensions of leases; with `publish` one transaction",
            {"200": taken, **refusals(*changed, 409, 410, 507)},
            requestBody=body("Settle"),
        ),
        "/v1/group/{group}/receipts": below(
            "readReceipt",
            "get",
            "What is known of one record",
            {"200": json_answer("The receipt", schema_of("Receipt")), **refusals(400, 404, 503)},
            parameters=[
                parameter("query", "stream", "Its stream.") | {"required": True},
                parameter("query", "offset", "The offset after it.") | {"required": True},
            ],
        ),
        "/v1/group/{group}/dead": below(
            "listDead",
            "get",
            "Dead records, those that died last first",
            {
                "200": json_answer(
                    "`found` counts those that were left out, too",
                    object_of("", "dead", "found", dead=array(schema_of("DeadRecord")), found=WHOLE),
                ),
                **refusals(400, 404),
            },
            parameters=[parameter("query", "stream", "Only of this path, or of those that a glob matches."), LIMIT],
        ),
        "/v1/group/{group}/redrive": below(
            "redrive",
            "post",
            "Deliver dead records again, as if for the first time",
            {"200": json_answer("How many", object_of("", "redriven", redriven=WHOLE)), **refusals(*changed)},
            requestBody=body("Redrive"),
        ),
        "/v1/group/{group}/seek": below(
            "seek",
            "post",
            "Read on from elsewhere; what is outstanding is not any more",
            {"200": json_answer("Which streams", object_of("", "streams", streams=_TEXTS)), **refusals(*changed, 410)},
            requestBody=body("Seek", required=True),
        ),
        "/v1/group/{group}/pause": below(
            "pauseGroup", "post", "Deliver nothing more", {"200": paused, **refusals(400, 404, 409, 503)}
        ),
        "/v1/group/{group}/resume": below(
            "resumeGroup", "post", "Deliver again", {"200": paused, **refusals(400, 404, 409, 503)}
        ),
    }


_LINKS = {
    operation: {"operationId": operation, "parameters": {"group": "$request.path.group"}}
    for operation in ("describeGroup", "claimRecords", "listDead", "pauseGroup", "redrive", "deleteGroup")
}
