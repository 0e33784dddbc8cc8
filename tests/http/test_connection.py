"""One connection: how long it lives, which forms of a request it takes, and what each answer says of itself."""

from __future__ import annotations

import datetime as dt
import email.utils

import pytest

from tests.support.disk import Gate
from tests.support.events import EventSource
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import until
from tests.support.wire import Wire, post, request


async def test_a_connection_serves_one_request_after_another(memory: Running) -> None:
    """Requests of HTTP/1.1 share a connection until somebody closes it."""
    wire = await memory.connect()
    assert (await wire.ask("PUT", "/v1/stream/a", TEXT)).status == 201
    for number in range(20):
        await wire.send(post("/v1/stream/a", b"%d," % number))
        assert (await wire.response()).status == 204
    answer = await wire.ask("GET", "/v1/stream/a")
    assert answer.body == b"".join(b"%d," % n for n in range(20))
    assert not answer.closes
    assert len(memory.server.connections) == 1


async def test_a_refusal_leaves_the_connection_open(memory: Running) -> None:
    """A request that is refused for what it asks does not end its connection."""
    wire = await memory.connect()
    for method, target, status in (
        ("GET", "/v1/stream/none", 404),
        ("PATCH", "/v1/stream/none", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/stream/a//b", 400),
        ("DELETE", "/v1/stream/none", 404),
    ):
        answer = await wire.ask(method, target)
        assert (answer.status, answer.closes) == (status, False)
    assert (await wire.ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close", "foo,close"])
async def test_connection_close_is_answered_and_done(memory: Running, value: str) -> None:
    """``Connection: close`` is answered with the same, and the connection ends after that answer."""
    wire = await memory.connect()
    await wire.send(request("GET", "/healthz", {"Connection": value}))
    assert (await wire.last_response()).status == 200


async def test_connection_close_is_kept_when_the_head_was_seen_before(memory: Running) -> None:
    """A head that asks to close does so each time, also when it need not be parsed again."""
    await memory.create("a", TEXT, b"x")
    for target in ("/healthz", "/v1/stream/a", "/v1/stream/a", "/v1/stream/a"):
        wire = await memory.connect()
        await wire.send(request("GET", target, {"Connection": "close"}))
        assert (await wire.last_response()).status == 200


async def test_http_10_closes_unless_asked_to_stay(memory: Running) -> None:
    """A request of HTTP/1.0 is the last of its connection, unless it asks for keep-alive, which is confirmed."""
    wire = await memory.connect()
    await wire.send(request("GET", "/healthz", version="1.0", host=None))
    assert (await wire.last_response()).status == 200

    wire = await memory.connect()
    for _ in range(3):
        answer = await wire.ask("GET", "/healthz", {"Connection": "keep-alive"}, version="1.0")
        assert answer.status == 200
        assert (answer.get("Connection") or "").lower() == "keep-alive"
    await wire.send(request("GET", "/healthz", version="1.0"))
    assert (await wire.last_response()).status == 200


async def test_http_10_gets_no_chunks(disk: Running) -> None:
    """A long answer to HTTP/1.0 is ended by the end of the connection, and is whole."""
    body = bytes(range(256)) * 8192  # 2 MiB: more than is kept in memory
    target = await disk.create("a", BYTES)
    await disk.append(target, body, BYTES)
    wire = await disk.connect()
    answer = await wire.ask("GET", target, {"Connection": "keep-alive"}, version="1.0")
    assert answer.closes
    assert not answer.is_chunked
    assert answer.body == body


async def test_http_10_events_are_not_chunked(memory: Running) -> None:
    """Server-sent events for HTTP/1.0 come without framing, and end with the connection."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    await wire.send(request("GET", target, {"Accept": "text/event-stream"}, version="1.0"))
    head = await wire.head()
    assert head.status == 200
    assert not head.is_chunked
    assert head.closes
    await wire.until(b"data:one\n\n")
    await memory.ask("POST", target, {"Stream-Closed": "true"}, b"")
    assert (await wire.rest()).startswith(b"event: closed\n")


@pytest.mark.parametrize("target", ["http://hub{path}", "http://elsewhere.example:81{path}", "HTTPS://hub{path}"])
async def test_the_target_may_be_a_whole_url(memory: Running, target: str) -> None:
    """A target in absolute form names the resource by its path and query (RFC 9112 section 3.2.2)."""
    path = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    assert (await wire.ask("GET", target.format(path=path))).body == b"one"
    assert (await wire.ask("GET", target.format(path=path + "?offset=now"))).body == b""


async def test_a_url_without_a_path_is_the_root(memory: Running) -> None:
    """A target that is only an authority, with or without a query, is the root."""
    root = await memory.ask("GET", "/")
    for target in ("http://hub", "http://hub/", "http://hub?a=b"):
        answer = await memory.ask("GET", target)
        assert (answer.status, answer.body) == (200, root.body)


@pytest.mark.parametrize("target", ["v1/stream/a", "a", "*"])
async def test_a_target_that_is_no_path_reads_nothing(memory: Running, target: str) -> None:
    """A target that is neither a path nor a URL is refused."""
    answer = await memory.ask("GET", target)
    assert answer.status in (400, 404)


async def test_head_is_get_without_the_body(memory: Running) -> None:
    """HEAD has an answer's head and never its body, whether it is good or refused, and the next answer follows it."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    requests = ["/v1/stream/a", "/v1/stream/none", "/healthz", "/metrics", "/openapi.json", "/nothing", "/v1/stream/"]
    await wire.send(b"".join(request("HEAD", path) for path in requests) + request("GET", target))
    statuses = [(await wire.response("HEAD")).status for _ in requests]
    assert statuses == [200, 404, 200, 200, 200, 404, 405]
    assert (await wire.response()).body == b"one"


async def test_head_tells_what_a_stream_is(memory: Running) -> None:
    """HEAD of a stream says its type, its ends, its size and whether it is closed."""
    target = await memory.create("a", JSON, b"[1,22,333]")
    wire = await memory.connect()
    answer = await wire.ask("HEAD", target)
    assert answer["Content-Type"] == "application/json"
    assert answer["Stream-Bytes"] == "6"
    assert answer.offset.endswith("_0000000000000003")
    assert answer["Stream-Earliest-Offset"].endswith("_0000000000000000")
    assert answer["Cache-Control"] == "no-store"
    assert answer.get("Stream-Closed") is None
    await wire.ask("POST", target, {"Stream-Closed": "true"}, b"")
    assert (await wire.ask("HEAD", target))["Stream-Closed"] == "true"


async def test_a_preflight_allows_what_the_protocol_uses(memory: Running) -> None:
    """OPTIONS answers a browser's preflight for every method and header field of the protocol."""
    asked = "Content-Type, Producer-Id, Producer-Epoch, Producer-Seq, Stream-Seq, Stream-TTL, Prefer, Last-Event-ID"
    wire = await memory.connect()
    for target in ("/v1/stream/a", "/v1/stream/", "*", "/healthz"):
        answer = await wire.ask(
            "OPTIONS",
            target,
            {
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "PUT",
                "Access-Control-Request-Headers": asked,
            },
        )
        assert answer.status == 204
        assert answer["Access-Control-Allow-Origin"] in ("*", "https://app.example")
        assert set(answer["Access-Control-Allow-Methods"].split(", ")) >= {"GET", "HEAD", "PUT", "POST", "DELETE"}
        allowed = {name.lower() for name in answer["Access-Control-Allow-Headers"].split(", ")}
        assert allowed >= {name.lower() for name in asked.split(", ")}
        assert int(answer["Access-Control-Max-Age"]) > 0


async def test_every_answer_to_a_browser_may_be_read_by_it(memory: Running) -> None:
    """With Origin each answer, good, refused or open, allows that origin and exposes the protocol's fields."""
    target = await memory.create("a", TEXT, b"one")
    origin = {"Origin": "https://app.example"}
    for method, path, headers, body in (
        ("GET", target, {}, None),
        ("GET", target, {}, None),  # from memory
        ("HEAD", target, {}, None),
        ("POST", target, TEXT, b"two"),
        ("GET", "/v1/stream/none", {}, None),
        ("PATCH", target, {}, None),
        ("GET", "/nothing", {}, None),
        ("GET", target, {"Accept": "text/event-stream"}, None),
    ):
        wire = await memory.connect()
        await wire.send(request(method, path, origin | headers, body))
        answer = await wire.head()
        assert answer["Access-Control-Allow-Origin"] in ("*", "https://app.example"), (method, path)
        exposed = answer["Access-Control-Expose-Headers"].split(", ")
        assert {"Stream-Next-Offset", "Stream-Up-To-Date", "Stream-Closed", "Stream-Cursor", "ETag"} <= set(exposed)


async def test_without_an_origin_nothing_is_said_of_it(memory: Running) -> None:
    """Clients that are not browsers get no CORS fields."""
    target = await memory.create("a", TEXT, b"one")
    answer = await memory.ask("GET", target)
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer["X-Content-Type-Options"] == "nosniff"


async def test_continue_is_said_before_the_body(memory: Running) -> None:
    """``Expect: 100-continue`` is granted while the body is still with the client."""
    target = await memory.create("a")
    wire = await memory.connect()
    for expect in ("100-continue", "100-Continue"):
        await wire.send(request("POST", target, {**TEXT, "Expect": expect, "Content-Length": "5"}))
        assert (await wire.response()).status == 100
        await wire.send(b"hello")
        assert (await wire.response()).status == 204
    assert await memory.body_of(target) == b"hellohello"


async def test_a_body_that_will_be_refused_is_not_asked_for(serve: Serve) -> None:
    """With ``Expect: 100-continue`` a length over the limit is refused with 413 and no 100 before it."""
    hub = await serve(body_bytes_max=1000)
    target = await hub.create("a")
    wire = await hub.connect()
    await wire.send(request("POST", target, {**TEXT, "Expect": "100-continue", "Content-Length": "1001"}))
    assert (await wire.last_response()).status == 413


@pytest.mark.parametrize("expect", ["200-ok", "100-continue, 200-ok", "100-continued", "x"])
async def test_other_expectations_fail(memory: Running, expect: str) -> None:
    """An expectation that is not ``100-continue`` is refused with 417, and the request is not executed."""
    target = await memory.create("a")
    wire = await memory.connect()
    await wire.send(post(target, b"hello", {"Expect": expect}))
    assert (await wire.last_response()).status == 417
    assert await memory.body_of(target) == b""


async def test_http_10_is_never_told_to_continue(memory: Running) -> None:
    """A client of HTTP/1.0 cannot read a 100 (RFC 9110 section 10.1.1), so it gets none."""
    target = await memory.create("a")
    wire = await memory.connect()
    await wire.send(request("POST", target, {**TEXT, "Expect": "100-continue"}, b"hello", version="1.0"))
    assert (await wire.last_response()).status == 204


async def test_empty_lines_before_a_request_are_skipped(memory: Running) -> None:
    """CRLF before a request line is ignored (RFC 9112 section 2.2), on a new connection and on a used one."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    for _ in range(3):
        await wire.send(b"\r\n\r\n" + request("GET", target))
        assert (await wire.response()).body == b"one"
        for empty in (b"\r\n", b"\r\n\r\n"):
            await wire.send_apart(empty)
            assert wire.is_quiet()
            await wire.send(request("GET", target))
            assert (await wire.response()).body == b"one"


async def test_a_request_may_come_byte_by_byte(memory: Running) -> None:
    """However a request is cut into packets, its answer is the same."""
    target = await memory.create("a")
    wire = await memory.connect()
    data = post(target, b"hello")
    for _ in range(2):
        await wire.send_apart(*(data[i : i + 1] for i in range(len(data))))
        assert (await wire.response()).status == 204
    assert await memory.body_of(target) == b"hellohello"


async def test_header_names_are_read_in_any_case(memory: Running) -> None:
    """Field names are case-insensitive, and white space around values does not count."""
    target = await memory.create("a", JSON)
    wire = await memory.connect()
    head = f"POST {target} HTTP/1.1\r\nhOST:hub\r\ncontent-TYPE:   application/json \t\r\nCONTENT-length:\t3 \r\n\r\n"
    await wire.send(head.encode() + b"[1]")
    assert (await wire.response()).status == 204


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        (b"Host: hub\r\nContent-Length: 0\r\nStream-Closed: true\r\n", b"1.1"),
        (b"Host: hub\r\nStream-Closed: true\r\n", b"1.1"),
        (b"Stream-Closed: true\r\n", b"1.0"),
        (b"Host: hub\r\nStream-Closed: true\r\nTransfer-Encoding: chunked\r\n", b"1.1"),
    ],
)
async def test_a_short_head_can_close_a_stream(memory: Running, fields: bytes, version: bytes) -> None:
    """A POST with ``Stream-Closed: true`` closes the stream however few header fields it has."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    body = b"0\r\n\r\n" if b"chunked" in fields else b""
    await wire.send(b"POST %b HTTP/%b\r\n%b\r\n%b" % (target.encode(), version, fields, body))
    answer = await wire.response()
    assert (answer.status, answer.get("Stream-Closed")) == (204, "true")


async def test_a_short_head_keeps_its_sequence(memory: Running) -> None:
    """``Stream-Seq`` counts also where HTTP/1.0 leaves Host out and the head has three fields."""
    target = await memory.create("a")
    statuses = []
    for _ in range(2):
        wire = await memory.connect()
        await wire.send(request("POST", target, {**TEXT, "Stream-Seq": "7"}, b"x", version="1.0", host=None))
        statuses.append((await wire.response()).status)
    assert statuses == [204, 409]


async def test_a_client_that_half_closes_gets_the_answer_of_an_append(disk: Running, gate: Gate) -> None:
    """A client that has shut its sending side still gets the acknowledgement it waits for."""
    target = await disk.create("a")
    gate.shut()
    wire = await disk.connect()
    await wire.send(post(target, b"one"))
    wire.half_close()
    await gate.reached()
    gate.open()
    assert (await wire.last_response()).status == 204


async def test_a_client_that_half_closes_gets_the_answer_of_a_long_poll(memory: Running) -> None:
    """A long poll whose client has shut its sending side is answered when there is something."""
    target = await memory.create("a")
    wire = await memory.connect()
    await wire.send(request("GET", target, {"Prefer": "wait=20"}))
    wire.half_close()
    await until(lambda: memory.waiters("a") == 1)
    await memory.append(target, b"one")
    assert (await wire.last_response()).body == b"one"


async def _half_closed(hub: Running, data: bytes) -> Wire:
    wire = await hub.connect()
    await wire.send(data)
    wire.half_close()
    return wire


async def test_a_client_that_half_closes_gets_the_whole_of_a_long_history(disk: Running) -> None:
    """A long answer is not cut because its reader has shut its sending side."""
    body = bytes(range(256)) * 16384  # 4 MiB
    target = await disk.create("a", BYTES)
    await disk.append(target, body, BYTES)
    wire = await _half_closed(disk, request("GET", target))
    answer = await wire.response()
    assert answer.body == body
    assert await wire.ended()


async def test_a_client_that_half_closes_gets_every_answer_it_asked_for(memory: Running) -> None:
    """Requests that came before the client shut its sending side are all answered, the slow reader's too."""
    body = b"x" * 200_000
    target = await memory.create("a", BYTES, body)
    wire = await _half_closed(memory, request("GET", target) * 30)
    for _ in range(30):
        assert (await wire.response()).body == body
    assert await wire.ended()


@pytest.mark.parametrize("pause", [0, 1])
async def test_a_client_that_half_closes_and_reads_late_gets_every_answer(memory: Running, pause: int) -> None:
    """The same where the client begins to read after its end has been noticed."""
    body = b"x" * 200_000
    target = await memory.create("a", BYTES, body)
    wire = await memory.connect(receive_buffer=4096)
    await wire.send(request("GET", target) * 40)
    if pause:
        await memory.ask("GET", "/healthz")
    wire.half_close()
    await memory.ask("GET", "/healthz")
    for _ in range(40):
        assert (await wire.response()).body == body
    assert await wire.ended()


async def test_a_half_closed_event_stream_may_end(memory: Running) -> None:
    """A reader of events that shuts its sending side leaves no follower behind when it goes."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    source = await EventSource.open(wire, target)
    assert (await source.next()).data == "one"
    wire.half_close()
    wire.reset()
    await until(lambda: memory.followers("sse") == 0)


async def test_answers_carry_a_date_of_now(memory: Running) -> None:
    """Every answer has a Date in GMT that is the time of the answer."""
    answer = await memory.ask("GET", "/healthz")
    age = dt.datetime.now(dt.UTC) - email.utils.parsedate_to_datetime(answer["Date"])
    assert abs(age.total_seconds()) < 60
