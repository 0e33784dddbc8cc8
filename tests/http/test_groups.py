"""Groups over HTTP: made, claimed from, settled, asked about; and members that go, come late, or say what is not true."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.disk import Gate
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import PATIENCE_S, until
from tests.support.wire import Wire, request
from wayside import connect
from wayside.server.patterns.consumer_groups import DISK_S

G = "/v1/group/g"
Document = dict[str, Any]


async def ask(
    hub: Running,
    method: str,
    target: str,
    body: Any = None,
    status: int = 200,
    wire: Wire | None = None,
    **headers: str,
) -> Document:
    """One request with a JSON body; the document that it is answered with."""
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers = {**JSON, **headers}
    answer = await (wire or hub).ask(method, target, headers, data)
    assert answer.status == status, answer
    document: Document = json.loads(answer.body or b"null")
    return document


async def begin(hub: Running, *records: Any, **settings: Any) -> None:
    """A group ``g`` of ``orders/*``, and a stream ``orders/eu`` with these records."""
    await hub.create("orders/eu", JSON, json.dumps(records).encode())
    await ask(hub, "PUT", G, {"streams": "orders/*", **settings}, 201)


async def claim(hub: Running, count: int = 1, **more: Any) -> list[Document]:
    """The marks of records that were claimed: what an ack needs."""
    found = await ask(hub, "POST", f"{G}/claim", {"max": count, "wait": PATIENCE_S, **more})
    return [{**_where(record), "lease": found["lease"]} for record in found["records"]]


def _where(record: Document) -> Document:
    return {name: record[name] for name in ("stream", "offset")}


async def receipt(hub: Running, mark: Document) -> Document:
    return await ask(hub, "GET", f"{G}/receipts?stream={mark['stream']}&offset={mark['offset']}")


# -- life


async def test_a_group_is_made_changed_described_listed_and_deleted(disk: Running) -> None:
    """PUT makes a group (201, Location) or changes it (200); GET tells its settings in full, which PUT takes again; the list
    is by name in pages; what was deleted is 404."""
    answer = await disk.ask("PUT", G, JSON, b'{"streams": "orders/*", "retries": 3}')
    assert (answer.status, answer["Location"]) == (201, G)
    made = await ask(disk, "GET", G)
    assert made["settings"]["streams"] == ["orders/*"]
    assert (made["settings"]["retries"], made["settings"]["lease_s"]) == (3, 30)
    assert await ask(disk, "PUT", G, {**made["settings"], "retries": 4}) == {
        **made,
        "settings": {**made["settings"], "retries": 4},
    }
    for name in ("a", "h"):
        await ask(disk, "PUT", f"/v1/group/{name}", {"streams": ["x"]}, 201)
    page = await ask(disk, "GET", "/v1/group/?limit=2")
    assert ([each["name"] for each in page["groups"]], page["next"]) == (["a", "g"], "g")
    page = await ask(disk, "GET", "/v1/group?after=g&limit=2")
    assert ([each["name"] for each in page["groups"]], page["next"]) == (["h"], None)
    assert [each["name"] for each in (await ask(disk, "GET", "/v1/group/?prefix=g"))["groups"]] == ["g"]
    assert (await disk.ask("DELETE", "/v1/group/%67")).status == 204
    for method, target, body in (
        ("GET", G, None),
        ("DELETE", G, None),
        ("POST", f"{G}/claim", {}),
        ("POST", f"{G}/ack", {}),
    ):
        assert (await ask(disk, method, target, body, 404))["code"] == "group-not-found"


@pytest.mark.parametrize(
    ("target", "body", "status", "code", "field"),
    [
        ("PUT ", b'{"streams": ["a"], "leas_s": 3}', 422, "invalid-input", "$.leas_s"),
        ("PUT ", b'{"streams": [3]}', 422, "invalid-input", "$.streams[0]"),
        ("PUT ", b"{}", 422, "invalid-input", "$.streams"),
        ("PUT ", b'{"streams": []}', 400, "group-invalid", None),
        ("PUT ", b'{"streams": "a-*/*/b*"}', 400, "glob-invalid", None),
        ("PUT ", b'{"streams": "a", "lease_s": 0}', 400, "group-invalid", None),
        ("PUT ", b'{"streams": "a", "order_by": "a\\"b"}', 400, "group-invalid", None),
        ("PUT ", b'{"streams": "a", "dead_letter": "a"}', 400, "group-invalid", None),
        ("PUT ", b'{"streams": "a", "dead_letter": "/x"}', 400, "path-invalid", None),
        ("PUT ", b'{"streams": "a", "start": "soon"}', 400, "offset-malformed", None),
        ("PUT ", b'{"streams": "a"', 400, "json-malformed", None),
        ("PUT ", b"\xff", 400, "json-malformed", None),
        ("POST claim", b'{"max": 0}', 422, "invalid-input", "$.max"),
        ("POST claim", b'{"max": 1001}', 422, "invalid-input", "$.max"),
        ("POST claim", b'{"wait": -1}', 422, "invalid-input", "$.wait"),
        ("POST claim", b'{"member": "a\\nb"}', 400, "member-invalid", None),
        ("POST ack", b'{"acks": [{"stream": "a", "lease": 1}]}', 400, "parameter-invalid", None),
        ("POST ack", b'{"acks": [{"stream": "a", "lease": 1, "from": "x"}]}', 400, "parameter-invalid", None),
        ("POST ack", b'{"acks": [{"stream": "a", "lease": 1, "offset": "x"}]}', 400, "offset-malformed", None),
        ("POST ack", b'{"acks": [{"stream": "a", "offset": "x"}]}', 422, "invalid-input", "$.acks[0].lease"),
        ("POST ack", b'{"nacks": [{"stream": "a", "offset": "x", "lease": 1, "kind": "lost"}]}', 422, "invalid-input", "$.nacks[0].kind"),
        ("POST ack", b'{"publish": [{"stream": "none", "data": 1}]}', 404, "stream-not-found", None),
        ("POST redrive", b'{"max": 0}', 422, "invalid-input", "$.max"),
        ("POST redrive", b'{"offsets": ["x"]}', 400, "offset-malformed", None),
        ("POST seek", b"{}", 422, "invalid-input", "$.to"),
        ("POST seek", b'{"to": "-1", "streams": "none"}', 404, "stream-not-found", None),
        ("GET receipts?stream=a", None, 400, "parameter-missing", None),
        ("GET receipts?stream=a&offset=x", None, 400, "offset-malformed", None),
        ("GET dead?limit=0", None, 400, "parameter-invalid", None),
        ("GET nothing", None, 404, "not-found", None),
    ],
)  # fmt: skip
async def test_what_is_malformed_is_refused(
    memory: Running, target: str, body: bytes | None, status: int, code: str, field: str | None
) -> None:
    """What makes no sense is refused with a stable code, the field that does not fit, and nothing changed."""
    await ask(memory, "PUT", G, {"streams": ["orders/*"]}, 201)
    before = await ask(memory, "GET", G)
    method, _, rest = target.partition(" ")
    answer = await memory.ask(method, f"{G}/{rest}".rstrip("/"), JSON if body else {}, body)
    problem = json.loads(answer.body)
    assert (answer.status, problem["code"], problem.get("field")) == (status, code, field), problem
    assert await ask(memory, "GET", G) == before


async def test_what_cannot_be_is_said(memory: Running) -> None:
    """A name with a slash is no group's; other media types are 415, other methods 405 with those that are possible."""
    assert (await ask(memory, "PUT", "/v1/group/-a", {"streams": ["a"]}, 400))["code"] == "group-name"
    assert (await ask(memory, "PUT", "/v1/group/a%2Fb", {"streams": ["a"]}, 404))["code"] == "not-found"
    answer = await memory.ask("PUT", G, {"Content-Type": "application/x-www-form-urlencoded"}, b'{"streams": "a"}')
    assert (answer.status, answer["Accept-Post"]) == (415, "application/json")
    for target, allow in (
        ("/v1/group/", "GET, OPTIONS"),
        (G, "GET, PUT, DELETE, OPTIONS"),
        (f"{G}/claim", "POST, OPTIONS"),
        (f"{G}/receipts", "GET, OPTIONS"),
    ):
        answer = await memory.ask("PATCH", target)
        assert (answer.status, answer["Allow"]) == (405, allow)
        assert (await memory.ask("OPTIONS", target))["Allow"] == allow


# -- claiming and settling


async def test_records_come_as_what_they_are(memory: Running) -> None:
    """A record is JSON, text, or base64, as its stream is; with what its publisher said of it, the offset after it, and the
    count of its deliveries."""
    await memory.create("a/json", JSON, b'{"n": 1}')
    await memory.create("a/text", {"Content-Type": "text/plain"})
    await memory.append("/v1/stream/a/text", "ä".encode(), {**TEXT, "Wayside-Key": "k", "Wayside-Header-Trace": "t"})
    await memory.append("/v1/stream/a/text", b"\xff", TEXT)
    await memory.create("a/bytes", BYTES, b"\x00\x01")
    await ask(memory, "PUT", G, {"streams": "a/*"}, 201)
    found = await ask(memory, "POST", f"{G}/claim", {"max": 10, "member": "m"})
    assert (found["member"], found["lease_s"]) == ("m", 30)
    records = {(each["stream"], each["offset"][-1]): each for each in found["records"]}
    assert {where: each.get("data", each.get("text", each.get("base64"))) for where, each in records.items()} == {
        ("a/json", "1"): {"n": 1},
        ("a/text", "1"): "ä",
        ("a/text", "2"): "/w==",
        ("a/bytes", "1"): "AAE=",
    }
    marked = records["a/text", "1"]
    assert (marked["key"], marked["headers"], marked["attempt"]) == ("k", {"trace": "t"}, 1)
    assert marked["content_type"] == "text/plain"
    for (stream, _), each in records.items():
        assert (await memory.ask("GET", f"/v1/stream/{stream}?offset={each['offset']}")).status == 200


async def test_acks_nacks_and_extensions(disk: Running) -> None:
    """What is acked does not come again, what is nacked does, counted; what is extended stays; ranges name neighbours."""
    await begin(disk, 1, 2, 3, 4, 5, retries=1)
    one, two, three, four, five = await claim(disk, 5, member="m")
    run = {"stream": one["stream"], "from": one["offset"], "to": two["offset"], "lease": one["lease"]}
    settled = await ask(
        disk,
        "POST",
        f"{G}/ack",
        {
            "acks": [run],
            "nacks": [{**three, "delay": 0, "reason": "busy"}, {**four, "kind": "rejected"}],
            "extends": [{**five, "seconds": 600}],
        },
    )
    assert settled == {"acked": 2, "nacked": 2, "extended": 1, "already": [], "offsets": []}
    again = await ask(disk, "POST", f"{G}/claim", {"max": 5, "wait": PATIENCE_S})
    assert [(each["data"], each["attempt"]) for each in again["records"]] == [(3, 2)]
    assert (await receipt(disk, one))["state"] == "acked"
    assert (await receipt(disk, three))["deliveries"][0]["reason"] == "busy"
    await until(lambda: len(disk.hub.groups.group("g").journal.state.dead) == 1)
    assert (await receipt(disk, four))["state"] == "dead"
    assert (await receipt(disk, five))["state"] == "in-flight"


async def test_late_duplicate_and_foreign_acks_are_answered(disk: Running) -> None:
    """An ack that was taken before is ``already``; one under another lease, of another member or of what was not delivered is
    refused as fenced, and the others are taken all the same."""
    await begin(disk, 1, 2, 3)
    one, two = await claim(disk, 2, member="m")
    assert (await ask(disk, "POST", f"{G}/ack", {"acks": [one]}))["acked"] == 1
    late = {**two, "lease": two["lease"] + 7}
    never = {**two, "offset": two["offset"][:-1] + "3"}
    problem = await ask(disk, "POST", f"{G}/ack", {"acks": [one, late, never]}, 409)
    assert (problem["code"], problem["acked"], problem["already"]) == ("lease-fenced", 0, [_where(one)])
    assert problem["refused"] == [
        {**_where(late), "code": "lease-fenced"},
        {**_where(never), "code": "not-delivered"},
    ]
    assert (await ask(disk, "POST", f"{G}/ack", {"acks": [two], "member": "other"}, 409))["refused"]
    problem = await ask(disk, "POST", f"{G}/ack", {"acks": [two, never], "member": "m"}, 409)
    assert (problem["acked"], len(problem["refused"])) == (1, 1)
    assert (await ask(disk, "POST", f"{G}/ack", {"acks": [two, two]}))["acked"] == 0
    [three] = await claim(disk)
    assert (await ask(disk, "POST", f"{G}/ack", {"acks": [three], "nacks": [three]}, 400))["code"] == "settled-twice"
    assert (await receipt(disk, three))["state"] == "in-flight"


async def test_an_offset_of_a_stream_that_was_there_before_is_fenced(disk: Running) -> None:
    """A stream that was deleted and made again has other offsets: an ack of the old one settles nothing of the new."""
    await begin(disk, 1)
    [old] = await claim(disk)
    assert (await disk.ask("DELETE", "/v1/stream/orders/eu")).status == 204
    gone = await ask(disk, "POST", f"{G}/ack", {"acks": [old]}, 409)
    await disk.create("orders/eu", JSON, b"1")
    [new] = await claim(disk)
    problem = await ask(disk, "POST", f"{G}/ack", {"acks": [{**old, "lease": new["lease"]}]}, 409)
    assert problem["refused"] == gone["refused"] == [{**_where(old), "code": "lease-fenced"}]
    assert (await ask(disk, "POST", f"{G}/ack", {"acks": [new]}))["acked"] == 1


async def test_an_ack_and_what_is_published_with_it_are_one(disk: Running) -> None:
    """With ``publish`` records are appended if, and only if, all acks are taken; a stream that is not there, a record that
    does not fit and a lease that is over leave everything as it was."""
    await begin(disk, 1, 2)
    out, text = await disk.create("out", JSON), await disk.create("text")
    one, two = await claim(disk, 2)
    for bad, status, code in (
        ({"stream": "none", "data": 1}, 404, "stream-not-found"),
        ({"stream": "out", "text": "1"}, 400, "record-data"),
        ({"stream": "text", "data": "x"}, 400, "record-data"),
        ({"stream": "text", "base64": "?"}, 400, "record-data"),
        ({"stream": "text", "text": ""}, 400, "empty-append"),
        ({"stream": "__group/g", "data": 1}, 404, "reserved"),
    ):
        publish = [{"stream": "out", "data": 0}, bad]
        assert (await ask(disk, "POST", f"{G}/ack", {"acks": [one], "publish": publish}, status))["code"] == code
    late = {**two, "lease": 99}
    problem = await ask(disk, "POST", f"{G}/ack", {"acks": [one, late], "publish": [{"stream": "out", "data": 0}]}, 409)
    assert (problem["acked"], problem["refused"]) == (0, [{**_where(late), "code": "lease-fenced"}])
    body = {
        "acks": [one],
        "publish": [{"stream": "out", "data": {"x": 1}, "key": "k"}, {"stream": "text", "text": "y"}],
    }
    settled = await ask(disk, "POST", f"{G}/ack", body)
    assert (settled["acked"], len(settled["offsets"])) == (1, 2)
    assert json.loads(await disk.body_of(out)) == [{"x": 1}]
    assert await disk.body_of(text) == b"y"
    assert (await disk.ask("GET", f"{out}?offset={settled['offsets'][0]}")).body == b"[]"
    problem = await ask(disk, "POST", f"{G}/ack", body, 409)  # again, as its answer might have been lost
    assert (problem["already"], problem["refused"]) == ([_where(one)], [])
    assert json.loads(await disk.body_of(out)) == [{"x": 1}]


# -- waiting


async def _waiting(hub: Running, body: Document, **headers: str) -> Wire:
    """A claim that waits."""
    wire = await hub.connect()
    await wire.send(request("POST", f"{G}/claim", {**JSON, **headers}, json.dumps(body).encode()))
    await until(lambda: bool(hub.hub.groups.group("g").members))
    return wire


async def test_a_claim_waits_for_a_record(disk: Running) -> None:
    """A claim with ``wait``, or ``Prefer: wait``, is answered with the next record; at the end of its wait with none."""
    await begin(disk)
    wire = await _waiting(disk, {}, Prefer="wait=20")
    await disk.append("/v1/stream/orders/eu", b"7", JSON)
    answer = await wire.response()
    assert answer["Preference-Applied"] == "wait=20"
    assert [each["data"] for each in json.loads(answer.body)["records"]] == [7]
    for body in ({"wait": 0.01}, {}, None):
        found = await ask(disk, "POST", f"{G}/claim", body)
        assert (found["lease"], found["records"]) == (None, [])
    assert not disk.hub.groups.group("g").members


async def test_a_claim_without_a_wait_gets_what_is_on_the_disk_only(serve: Serve) -> None:
    """A claim that does not wait is given what has to be read from the disk first."""
    hub = await serve(disk=True, stream_cache_bytes_max=1, cache_bytes_max=1)
    await begin(hub, *range(2000))
    assert len((await ask(hub, "POST", f"{G}/claim", {"max": 1000}))["records"]) == 1000


async def test_a_delivery_is_bounded_in_bytes(disk: Running) -> None:
    """A claim is answered with some 4 MiB at most, however many records it asks for; the others are for the next."""
    for number in range(6):
        await disk.create(f"orders/{number}", BYTES, bytes(1_000_000))
    await ask(disk, "PUT", G, {"streams": "orders/*"}, 201)
    counts = [len((await ask(disk, "POST", f"{G}/claim", {"max": 1000}))["records"]) for _ in range(3)]
    assert counts == [5, 1, 0]


async def test_who_goes_while_waiting_takes_nothing(disk: Running) -> None:
    """The claim of a client that has gone is over: the next record is delivered to another, for the first time."""
    await begin(disk)
    wire = await _waiting(disk, {"wait": 60})
    wire.reset()
    await until(lambda: not disk.hub.groups.group("g").members)
    await disk.append("/v1/stream/orders/eu", b"7", JSON)
    found = await ask(disk, "POST", f"{G}/claim", {"wait": PATIENCE_S})
    assert [each["attempt"] for each in found["records"]] == [1]


@pytest.mark.parametrize("how", ["reset", "half_close"])
async def test_what_was_leased_to_who_has_gone_goes_back(disk: Running, gate: Gate, how: str) -> None:
    """A client goes while the lease for it is being committed: the record is released at once, which is no failure."""
    await begin(disk, 1)
    gate.shut()
    wire = await disk.connect()
    await wire.send(request("POST", f"{G}/claim", JSON, b'{"wait": 60}'))
    await gate.reached()
    getattr(wire, how)()
    await until(lambda: not disk.hub.groups.group("g").members)
    gate.open()
    [mark] = await claim(disk)
    found = await receipt(disk, mark)
    assert [each.get("ended", "") for each in found["deliveries"]] == ["released", ""]
    assert (await ask(disk, "GET", G))["counts"]["failed"] == 0


async def test_a_lease_that_is_being_committed_when_the_wait_ends_is_answered(disk: Running, gate: Gate) -> None:
    """The end of the wait does not lose a delivery that is on its way to the disk."""
    await begin(disk, 1)
    gate.shut()
    wire = await disk.connect()
    await wire.send(request("POST", f"{G}/claim", JSON, b'{"wait": 0.001}'))
    await gate.reached()
    [member] = disk.hub.groups.group("g").members
    link: Any = member.link
    await until(lambda: link._patience < DISK_S)
    assert wire.is_quiet()
    gate.open()
    assert [each["data"] for each in json.loads((await wire.response()).body)["records"]] == [1]


async def test_a_hub_that_stops_answers_claims(memory: Running) -> None:
    """At a drain a claim that waits is answered at once, with no record."""
    await begin(memory)
    wire = await _waiting(memory, {"wait": 60})
    async with asyncio.timeout(PATIENCE_S / 2):
        await memory.server.drain(PATIENCE_S)
    assert json.loads((await wire.last_response()).body)["records"] == []


async def test_a_claim_of_a_group_that_is_deleted_ends(memory: Running) -> None:
    """Whoever waits for a group that is deleted is told."""
    await begin(memory)
    wire = await _waiting(memory, {"wait": 60})
    assert (await memory.ask("DELETE", G)).status == 204
    answer = await wire.response()
    assert (answer.status, json.loads(answer.body)["code"]) == (404, "group-not-found")


# -- operating


async def test_dead_records_are_listed_and_redriven(disk: Running) -> None:
    """Dead records are listed, the last first, with where their copy is; redriven, by stream, offset, reason or number, they
    are delivered again as if for the first time."""
    await begin(disk, 1, 2, 3, 4, retries=0, dead_letter="orders.dead")
    marks = await claim(disk, 4)
    nacks = [{**mark, "reason": f"no customer {number}"} for number, mark in enumerate(marks)]
    await ask(disk, "POST", f"{G}/ack", {"nacks": nacks})
    state = disk.hub.groups.group("g").journal.state
    await until(lambda: len(state.dead) == 4 and disk.hub.log.find("orders.dead").tail == 4)
    found = await ask(disk, "GET", f"{G}/dead?limit=3&stream=orders/*")
    assert (found["found"], len(found["dead"])) == (4, 3)
    assert {each["reason"] for each in found["dead"]} <= {f"no customer {number}" for number in range(4)}
    assert json.loads(await disk.body_of(f"/v1/stream/{found['dead'][0]['dead_letter']['stream']}"))
    assert (await ask(disk, "GET", f"{G}/dead?stream=others"))["dead"] == []
    for body, count in (
        ({"streams": ["others/*"]}, 0),
        ({"offsets": [marks[0]["offset"]]}, 1),
        ({"reason": "customer 1", "streams": "orders/eu"}, 1),
        ({"max": 1}, 1),
        (None, 1),
        ({}, 0),
    ):
        assert (await ask(disk, "POST", f"{G}/redrive", body))["redriven"] == count
    again = await ask(disk, "POST", f"{G}/claim", {"max": 4})
    assert {(each["data"], each["attempt"]) for each in again["records"]} == {(1, 1), (2, 1), (3, 1), (4, 1)}


async def test_a_group_is_paused_resumed_and_sent_elsewhere(disk: Running) -> None:
    """A group that is paused delivers nothing; one that seeks reads on from the start, the tail, or an offset."""
    await begin(disk, 1, 2, 3)
    assert await ask(disk, "POST", f"{G}/pause") == {"paused": True}
    assert (await ask(disk, "GET", G))["paused"]
    assert (await ask(disk, "POST", f"{G}/claim", {"wait": 0.01}))["records"] == []
    assert await ask(disk, "POST", f"{G}/resume") == {"paused": False}
    one, _, _ = await claim(disk, 3)
    for to, data in ((one["offset"], [2, 3]), ("-1", [1, 2, 3]), ("now", [])):
        assert await ask(disk, "POST", f"{G}/seek", {"to": to, "streams": "orders/*"}) == {"streams": ["orders/eu"]}
        assert [each["data"] for each in (await ask(disk, "POST", f"{G}/claim", {"max": 9}))["records"]] == data
    assert (await ask(disk, "POST", f"{G}/ack", {"acks": [one]}, 200))["already"] == [_where(one)]


async def test_what_groups_do_is_in_the_metrics(disk: Running) -> None:
    """/metrics has, for each group, what it has delivered, what is outstanding and dead, its members and its lag."""
    await begin(disk, 1, 2, 3)
    [one] = await claim(disk)
    await ask(disk, "POST", f"{G}/ack", {"acks": [one]})
    await claim(disk)
    text = (await disk.body_of("/metrics")).decode()
    for line in (
        'wayside_group_records_total{event="delivered",group="g"} 2.0',
        'wayside_group_records_total{event="acked",group="g"} 1.0',
        'wayside_group_outstanding{group="g",state="in_flight"} 1.0',
        'wayside_group_dead{group="g"} 0.0',
        'wayside_group_members{group="g"} 0.0',
        'wayside_group_lag_records{group="g"} 1.0',
    ):
        assert line in text
    [listed] = (await ask(disk, "GET", "/v1/group/"))["groups"]
    assert (listed["lag"], listed["in_flight"], listed["members"]) == (1, 1, 1)


async def test_all_of_it_works_on_a_channel(disk: Running) -> None:
    """A claim, an ack and a receipt go over a channel of /v1/connect as they stand; a claim that is left takes nothing."""
    await begin(disk)
    async with connect("http://{}:{}".format(*disk.server.address)) as client:

        async def over(method: str, action: str, body: Any = None) -> Document:
            data = b"" if body is None else json.dumps(body).encode()
            answer = await client.request(method, f"{G}/{action}", JSON if data else {}, data)
            document: Document = json.loads(answer.body)
            return document

        left = asyncio.create_task(over("POST", "claim", {"wait": 60}))
        await until(lambda: bool(disk.hub.groups.group("g").members))
        left.cancel()
        await until(lambda: not disk.hub.groups.group("g").members)
        waiting = asyncio.create_task(over("POST", "claim", {"wait": 60, "member": "m"}))
        await until(lambda: bool(disk.hub.groups.group("g").members))
        await disk.append("/v1/stream/orders/eu", b"7", JSON)
        found = await waiting
        [record] = found["records"]
        assert (record["data"], record["attempt"]) == (7, 1)
        assert (await over("POST", "ack", {"acks": [{**_where(record), "lease": found["lease"]}]}))["acked"] == 1
        told = await over("GET", f"receipts?stream={record['stream']}&offset={record['offset']}")
        assert [each["member"] for each in told["deliveries"]] == ["m"]
