"""Services that are called and waited for: what goes in and comes out, what is refused, and callers who do not wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from google.protobuf import type_pb2

from tests.support.asgi import Asgi
from tests.support.server import JSON, TEXT, Running, Serve, problem_of
from tests.support.services import Ask, Holder, offer
from tests.support.waiting import until
from tests.support.wire import Response, Wire, request
from wayside import Hub

MSGPACK = {"Content-Type": "application/msgpack"}
XML = {"Content-Type": "application/xml"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}
ONE = type_pb2.EnumValue(name="one", number=1)
TWO = type_pb2.EnumValue(name="one", number=2)


@pytest.fixture(params=["wire", "asgi"])
async def ask(request: pytest.FixtureRequest, serve: Serve) -> AsyncIterator[Ask]:
    """Asks a hub with services, over the wire or as an ASGI application."""
    if request.param == "wire":
        running = await serve()
        offer(running.hub)
        yield running.ask
        return
    async with Hub() as hub:
        offer(hub)

        async def ask_asgi(*what: Any) -> Response:
            return await Asgi(hub, *what, *[None] * (4 - len(what))).response()

        yield ask_asgi


@pytest.fixture
async def holder(memory: Running) -> AsyncIterator[Holder]:
    """The services of ``memory``."""
    holder = offer(memory.hub)
    yield holder
    holder.let_go()


async def _call(hub: Running, name: str, headers: dict[str, str], body: bytes = b"") -> Wire:
    """A connection on which a service has been called and not answered."""
    wire = await hub.connect()
    await wire.send(request("POST", f"/v1/service/{name}", headers, body))
    return wire


# -- in and out


@pytest.mark.parametrize(
    ("name", "headers", "body", "result"),
    [
        ("double", JSON, b'{"width": 3}', {"width": 6, "height": 2}),
        ("double", {"Content-Type": "application/json; charset=utf-8"}, b'{"width": 3}', {"width": 6, "height": 2}),
        ("double", {"Content-Type": "application/vnd.size+json"}, b'{"width": 3}', {"width": 6, "height": 2}),
        ("double", MSGPACK, msgspec.msgpack.encode({"width": 3}), {"width": 6, "height": 2}),
        ("double", XML, b"<size><width>3</width></size>", {"width": 6, "height": 2}),
        ("double?times=5", JSON, b'{"width": 3}', {"width": 15, "height": 5}),
        ("add", JSON, b'{"a": 1, "b": 2}', 3),
        ("add", XML, b"<add><a>1</a><b>2</b></add>", 3),
        ("add?c=10", JSON, b'{"a": 1, "b": 2}', 13),
        ("add?a=1&b=2&c=3", {}, b"", 6),
        ("greet", TEXT, "Zoë".encode(), "Hello, Zoë!"),
        ("greet", JSON, b'"you"', "Hello, you!"),
        ("number", PROTOBUF, ONE.SerializeToString(), {"name": "one", "number": 2}),
        ("number", JSON, b'{"name": "one", "number": 1}', {"name": "one", "number": 2}),
        ("nothing", {}, b"", None),
        ("count", JSON, b"3", None),
    ],
)
async def test_a_service_takes_what_is_sent_and_answers_in_json(
    ask: Ask, name: str, headers: dict[str, str], body: bytes, result: object
) -> None:
    """A body of any type that fits, and the query, become the handler's arguments; the bare result is the answer."""
    answer = await ask("POST", f"/v1/service/{name}", headers, body)
    assert (answer.status, json.loads(answer.body)) == (200, result), answer
    assert answer["Content-Type"] == "application/json"
    assert answer["Cache-Control"] == "no-store"
    assert answer["Vary"] == "Accept"
    status = await ask("GET", f"/v1/call/{answer['Wayside-Call']}")
    assert json.loads(status.body)["state"] == "done"


@pytest.mark.parametrize(
    ("name", "accept", "content_type", "body"),
    [
        ("double", "application/msgpack", "application/msgpack", msgspec.msgpack.encode({"width": 2, "height": 2})),
        ("double", "text/xml", "text/xml", b"<size><width>2</width><height>2</height></size>"),
        ("double", "application/json;q=0.5, application/msgpack;q=0.1", "application/json", b'{"width":2,"height":2}'),
        ("number", "application/x-protobuf", "application/x-protobuf", TWO.SerializeToString()),
        ("greet", "text/plain", "text/plain; charset=utf-8", b"Hello, you!"),
        ("reverse", "*/*", "application/octet-stream", b"cba"),
        ("reverse", "application/json", "application/json", b'"Y2Jh"'),
    ],
)
async def test_a_result_is_given_in_what_is_accepted(
    ask: Ask, name: str, accept: str, content_type: str, body: bytes
) -> None:
    """``Accept`` chooses among what a result can be given in."""
    bodies = {"double": b'{"width": 1}', "number": b'{"name": "one", "number": 1}', "greet": b'"you"'}
    given, headers = bodies.get(name, b"abc"), JSON if name in bodies else {"Content-Type": "application/octet-stream"}
    answer = await ask("POST", f"/v1/service/{name}", {**headers, "Accept": accept}, given)
    assert (answer.status, answer["Content-Type"]) == (200, content_type), answer
    assert answer.body.partition(b"?>\n")[2] or answer.body == body
    assert body in answer.body


@pytest.mark.parametrize(
    ("name", "headers", "body", "status", "code", "fields"),
    [
        ("double", JSON, b'{"width": "x"}', 422, "invalid-input", {"field": "$.width"}),
        ("double", JSON, b"{}", 422, "invalid-input", {"field": "$.width"}),
        ("double", {}, b"", 422, "invalid-input", {"field": "$.size"}),
        ("double?times=x", JSON, b'{"width": 1}', 422, "invalid-input", {"field": "$.times"}),
        ("double?time=1", JSON, b'{"width": 1}', 422, "invalid-input", {"field": "$.time"}),
        ("add", JSON, b'{"a": 1, "b": 2, "d": 3}', 422, "invalid-input", {"field": "$.d"}),
        ("add?a=1", JSON, b'{"a": 1, "b": 2}', 422, "invalid-input", {"field": "$.a"}),
        ("double", JSON, b'{"width": ', 400, "json-malformed", {}),
        ("double", JSON, b'\xff', 400, "json-malformed", {}),
        ("double", MSGPACK, b"\xc1", 400, "msgpack-malformed", {}),
        ("double", XML, b"<a>", 400, "xml-malformed", {}),
        ("number", PROTOBUF, b"\xff", 400, "protobuf-malformed", {}),
        ("double", PROTOBUF, b"", 415, "media-type-unsupported", {}),
        ("double", {"Content-Type": "image/png"}, b"x", 415, "media-type-unsupported", {}),
        ("double", {}, b'{"width": 1}', 415, "media-type-unsupported", {}),
        ("double", {**JSON, "Accept": "image/png"}, b'{"width": 1}', 406, "not-acceptable", {}),
        ("refuse", JSON, b'"p1"', 404, "parcel-not-found", {"parcel": "p1"}),
        ("refuse", JSON, b'"teapot"', 499, "teapot", {"spout": "short"}),
        ("fail", JSON, b'"oops"', 500, "call-failed", {"error": "ValueError", "message": "oops"}),
        ("pick", JSON, b'{"value": 1}', 500, "call-failed", {"error": "RuntimeError", "message": "Never good enough."}),
        ("number", JSON, b'{"options": [{"value": {"@type": 0}}]}', 422, "invalid-input", {"field": "$"}),
        ("none", JSON, b"1", 404, "service-not-found", {"service": "none"}),
        ("a/b", JSON, b"1", 404, "service-not-found", {"service": "a/b"}),
        ("greet", {**JSON, "Idempotency-Key": ""}, b'""', 400, "idempotency-key-invalid", {}),
        ("greet", {**JSON, "Idempotency-Key": '"a'}, b'""', 400, "idempotency-key-invalid", {}),
        ("greet", {**JSON, "Idempotency-Key": '"a", "b"'}, b'""', 400, "idempotency-key-invalid", {}),
        ("greet", {**JSON, "Idempotency-Key": "\xe4"}, b'""', 400, "idempotency-key-invalid", {}),
        ("greet", {**JSON, "Idempotency-Key": "x" * 256}, b'""', 400, "parameter-invalid", {}),
        ("greet", {**JSON, "Wayside-Priority": "101"}, b'""', 400, "parameter-invalid", {}),
        ("greet", {**JSON, "Wayside-Priority": "high"}, b'""', 400, "parameter-invalid", {}),
        ("greet", {**JSON, "Wayside-Priority": "1.5"}, b'""', 400, "parameter-invalid", {}),
        ("greet", {**JSON, "Wayside-Delay": "nan"}, b'""', 400, "parameter-invalid", {}),
        ("greet", {**JSON, "Wayside-Delay": "-1", "Prefer": "respond-async"}, b'""', 400, "parameter-invalid", {}),
        ("greet", {**JSON, "Wayside-Delay": "1"}, b'""', 400, "delay-needs-submit", {}),
        ("greet", {**JSON, "Wayside-Callback": "https://example.org/"}, b'""', 400, "callbacks-off", {}),
    ],
)  # fmt: skip
async def test_what_a_call_is_refused_for(
    ask: Ask, name: str, headers: dict[str, str], body: bytes, status: int, code: str, fields: dict[str, str]
) -> None:
    """Each has its status and code, and 422 names the field; what a handler refuses with is given as it is."""
    answer = await ask("POST", f"/v1/service/{name}", {**headers, "X-Request-Id": "r-1"}, body)
    problem = problem_of(answer)
    assert (problem["status"], problem["code"], problem["request_id"]) == (status, code, "r-1")
    assert {name: problem.get(name) for name in fields} == fields


@pytest.mark.parametrize("name", ["double", "add"])
@pytest.mark.parametrize("prefer", ["wait=10", "respond-async"])
async def test_a_refused_media_type_says_which_would_do(ask: Ask, name: str, prefer: str) -> None:
    """415 lists them in ``Accept-Post`` and in the problem document, whoever found out."""
    answer = await ask("POST", f"/v1/service/{name}", {"Content-Type": "image/png", "Prefer": prefer}, b"x")
    takes = ["application/json", "application/msgpack", "application/xml"]
    assert (answer.status, answer["Accept-Post"], problem_of(answer)["media_types"]) == (415, ", ".join(takes), takes)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_body_over_the_limit_is_413(serve: Serve, asynchronous: bool) -> None:
    """A body is bounded like any, and spooled ones by what a call may hold in memory."""
    hub = await serve(body_bytes_max=3000, body_memory_bytes_max=1000, json_body_bytes_max=2000)
    offer(hub.hub)
    headers = {**TEXT, **({"Prefer": "respond-async"} if asynchronous else {})}
    assert (await hub.ask("POST", "/v1/service/greet", headers, b"x" * 1500)).status == 202 if asynchronous else 200
    for size in (2500, 3500):
        answer = await hub.ask("POST", "/v1/service/greet", headers, b"x" * size)
        assert (answer.status, problem_of(answer)["code"]) == (413, "too-large")


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("HEAD", "/v1/service/greet", "GET, POST, OPTIONS"),
        ("PUT", "/v1/service/greet", "GET, POST, OPTIONS"),
        ("POST", "/v1/service/", "GET, OPTIONS"),
        ("POST", "/v1/service", "GET, OPTIONS"),
        ("DELETE", "/v1/call/", "GET, OPTIONS"),
        ("HEAD", "/v1/call/x", "GET, DELETE, OPTIONS"),
        ("POST", "/v1/call/x", "GET, DELETE, OPTIONS"),
        ("DELETE", "/v1/call/x/result", "GET, OPTIONS"),
        ("GET", "/v1/worker/x/lease", "POST, OPTIONS"),
        ("POST", "/v1/connect", "GET, OPTIONS"),
    ],
)
async def test_other_methods_are_405(ask: Ask, memory: Running, method: str, target: str, allow: str) -> None:
    """405 says in ``Allow`` what is possible, as OPTIONS does."""
    answer = await ask(method, target, {}, None) if method != "HEAD" else await _head(memory, target)
    assert (answer.status, answer["Allow"]) == (405, allow)
    options = await ask("OPTIONS", target, {}, None)
    assert (options.status, options["Allow"]) == (204, allow)


async def _head(hub: Running, target: str) -> Response:
    wire = await hub.connect()
    await wire.send(request("HEAD", target))
    return await wire.response("HEAD")


async def test_a_page_of_another_origin_may_call(ask: Ask) -> None:
    """CORS lets scripts send what a call needs, and read what its answer says."""
    asked = "Idempotency-Key, Prefer, Wayside-Callback, Wayside-Delay, Wayside-Priority"
    preflight = await ask("OPTIONS", "/v1/service/greet", {"Origin": "https://a.example"}, None)
    assert set(asked.split(", ")) <= set(preflight["Access-Control-Allow-Headers"].split(", "))
    assert {"POST", "DELETE"} <= set(preflight["Access-Control-Allow-Methods"].split(", "))
    answer = await ask("POST", "/v1/service/greet", {**JSON, "Origin": "https://a.example"}, b'"you"')
    assert answer["Access-Control-Allow-Origin"] == "*"
    exposed = set(answer["Access-Control-Expose-Headers"].split(", "))
    assert {"Location", "Preference-Applied", "Retry-After", "Wayside-Call", "X-Request-Id"} <= exposed


# -- connections


async def test_an_http_1_0_client_is_answered(memory: Running, holder: Holder) -> None:
    """A call over HTTP/1.0 is answered when it has ended, with a length, and the connection is closed."""
    wire = await memory.connect()
    await wire.send(request("POST", "/v1/service/hold", JSON, b"7", version="1.0"))
    await holder.began()
    holder.release.set()
    answer = await wire.response("POST", "1.0")
    assert (answer.status, answer.body) == (200, b"7")
    assert await wire.ended()


async def test_an_http_1_0_client_gets_events_to_the_end_of_the_connection(memory: Running, holder: Holder) -> None:
    """Without chunks, the end of the connection is the end of the events."""
    wire = await memory.connect()
    await wire.send(request("POST", "/v1/service/count", {**JSON, "Accept": "text/event-stream"}, b"2", version="1.0"))
    head = await wire.head()
    assert (head.status, head["Content-Type"], head.closes) == (200, "text/event-stream", True)
    assert (await wire.rest()).count(b'"event":"item"') == 2


async def test_pipelined_calls_are_answered_in_order(memory: Running, holder: Holder) -> None:
    """The second call begins when the first is answered; each gets its own result."""
    wire = await memory.connect()
    await wire.send(
        request("POST", "/v1/service/hold", JSON, b"1")
        + request("POST", "/v1/service/greet", JSON, b'"you"')
        + request("POST", "/v1/service/fail", JSON, b'"no"')
    )
    await holder.began()
    assert wire.is_quiet()
    holder.release.set()
    assert (await wire.response("POST")).body == b"1"
    assert (await wire.response("POST")).body == b'"Hello, you!"'
    assert (await wire.response("POST")).status == 500


# -- callers who do not wait


@pytest.mark.parametrize("farewell", ["close", "reset", "half-close"])
async def test_a_caller_that_goes_takes_its_call_with_it(memory: Running, holder: Holder, farewell: str) -> None:
    """Nobody can hear the result of a call in memory whose caller has gone: its handler is cancelled. A client that only
    says that it will send no more is told."""
    wire = await _call(memory, "hold", JSON, b"1")
    await holder.began()
    if farewell == "close":
        wire.close()
    elif farewell == "reset":
        wire.reset()
    else:
        wire.half_close()
    await holder.was_cancelled()
    if farewell == "half-close":
        answer = await wire.last_response("POST")
        assert (answer.status, problem_of(answer)["code"]) == (409, "call-cancelled")
    assert not memory.hub.calls.ledger.open


async def test_a_caller_that_goes_takes_its_call_out_of_the_queue(memory: Running, holder: Holder) -> None:
    """A call that has not begun is not begun for nobody."""
    first = await _call(memory, "bound", JSON, b"1")
    await holder.began()
    second = await _call(memory, "bound", JSON, b"2")
    await until(lambda: memory.hub.calls.services["bound"].waiting == 1)
    second.close()
    await until(lambda: len(memory.hub.calls.ledger.open) == 1)
    holder.release.set()
    assert (await first.response("POST")).body == b"1"
    assert holder.runs == 1


async def test_an_asgi_client_that_goes_takes_its_call_with_it() -> None:
    """The same through ASGI's ``http.disconnect``."""
    async with Hub() as hub:
        holder = offer(hub)
        asgi = Asgi(hub, "POST", "/v1/service/hold", JSON, b"1")
        await holder.began()
        asgi.leave()
        await holder.was_cancelled()
        await asgi.task
        assert asgi.sent.empty()


@pytest.mark.parametrize("prefer", ["wait=0", "foo, wait=0; bar"])
async def test_a_call_that_takes_too_long_is_504_and_cancelled(memory: Running, holder: Holder, prefer: str) -> None:
    """``Prefer: wait`` bounds a call; when it is over, the handler is cancelled, and nothing more is sent."""
    wire = await _call(memory, "hold", {**JSON, "Prefer": prefer}, b"1")
    answer = await wire.response("POST")
    problem = problem_of(answer)
    assert (answer.status, problem["code"], problem["retry"]) == (504, "call-timeout", True)
    await holder.was_cancelled()
    status = json.loads((await wire.ask("GET", f"/v1/call/{problem['call']}")).body)
    assert status["state"] == "cancelled"


async def test_a_call_that_has_told_of_progress_is_cancelled_too(memory: Running, holder: Holder) -> None:
    """A call that has a stream is nobody's either, when its caller goes and nobody follows it."""
    wire = await _call(memory, "drip", {})
    await holder.began()
    holder.values.put_nowait(1)
    await until(lambda: [call.items for call in memory.hub.calls.ledger.open.values()] == [1])
    wire.close()
    await holder.was_cancelled()


async def test_a_long_wait_is_cut_to_what_a_hub_allows(serve: Serve) -> None:
    """``wait`` beyond the hub's longest is that, and the refusal says so."""
    hub = await serve(wait_s_max=0.01)
    offer(hub.hub)
    answer = await hub.ask("POST", "/v1/service/hold", {**JSON, "Prefer": "wait=1000"}, b"1")
    assert answer.status == 504
    assert "0.01 s" in problem_of(answer)["detail"]


# -- events


async def test_a_service_that_yields_is_read_as_it_goes(memory: Running, holder: Holder) -> None:
    """A POST that accepts events is answered with those of its call: each item as it is yielded, then the end."""
    wire = await _call(memory, "drip", {"Accept": "text/event-stream"})
    head = await wire.head()
    assert (head.status, head["Content-Type"]) == (200, "text/event-stream")
    await holder.began()
    for value in range(3):
        holder.values.put_nowait(value)
        received = b""
        while b'"event":"item"' not in received:
            received = await wire.chunk()
        assert json.loads(received.partition(b"data:")[2])["data"] == value
    holder.values.put_nowait(None)
    rest = b"".join([chunk async for chunk in _chunks(wire)])
    assert b'"event":"done"' in rest
    assert b"event: closed" in rest
    status = json.loads((await wire.ask("GET", f"/v1/call/{head['Wayside-Call']}")).body)
    assert (status["state"], status["items"]) == ("done", 3)


async def _chunks(wire: Wire) -> AsyncIterator[bytes]:
    while chunk := await wire.chunk():
        yield chunk


async def test_a_call_ends_with_its_only_reader(memory: Running, holder: Holder) -> None:
    """A call in memory that was made to be followed is cancelled when who follows it goes."""
    wire = await _call(memory, "drip", {"Accept": "text/event-stream"})
    await wire.head()
    await holder.began()
    wire.close()
    await holder.was_cancelled()
    await until(lambda: not memory.hub.calls.ledger.open)


async def test_a_call_goes_on_while_somebody_follows_it(memory: Running, holder: Holder) -> None:
    """A caller that goes leaves a call in memory to whoever else follows it; the last one takes it with it."""
    wire = await _call(memory, "drip", {"Accept": "text/event-stream"})
    identity = (await wire.head())["Wayside-Call"]
    await holder.began()
    other = await memory.connect()
    await other.send(request("GET", f"/v1/call/{identity}", {"Accept": "text/event-stream"}))
    await other.head()
    await until(lambda: memory.followers("sse") == 2)
    wire.close()
    await until(lambda: memory.followers("sse") == 1)
    holder.values.put_nowait(1)
    received = b""
    while b'"event":"item"' not in received:
        received = await other.chunk()
    assert not holder.cancelled.is_set()
    other.close()
    await holder.was_cancelled()


async def test_a_handler_that_refuses_ends_the_events_with_its_problem(memory: Running, holder: Holder) -> None:
    """Events have begun before a handler can refuse: the last one has the problem document."""
    answer = await memory.ask("POST", "/v1/service/refuse", {**JSON, "Accept": "text/event-stream"}, b'"p1"')
    last = json.loads(answer.body.rpartition(b"\n\nevent: closed")[0].rpartition(b"data:")[2])
    assert (last["event"], last["error"]["status"], last["error"]["code"]) == ("failed", 404, "parcel-not-found")


async def test_malformed_input_ends_the_events_with_its_problem(memory: Running, holder: Holder) -> None:
    """A body that is no JSON spoils no record of the call's stream."""
    answer = await memory.ask("POST", "/v1/service/double", {**JSON, "Accept": "text/event-stream"}, b'{"width": ')
    assert b'"code":"json-malformed"' in answer.body
    call = await memory.hub.calls.ledger.read(answer["Wayside-Call"])
    assert (call.state, call.request.payload.data) == ("failed", b'{"width": ')


# -- queues and stops


@pytest.mark.parametrize("headers", [JSON, {**JSON, "Prefer": "respond-async"}, {**JSON, "Idempotency-Key": "c"}])
async def test_a_full_queue_is_429(memory: Running, holder: Holder, headers: dict[str, str]) -> None:
    """When as many calls wait as may, another is refused, and told when to try again; then there is room."""
    first = await _call(memory, "bound", JSON, b"1")
    await holder.began()
    second = await _call(memory, "bound", JSON, b"2")
    await until(lambda: memory.hub.calls.services["bound"].waiting == 1)
    answer = await memory.ask("POST", "/v1/service/bound", headers, b"3")
    assert (answer.status, answer["Retry-After"], problem_of(answer)["code"]) == (429, "1", "queue-full")
    holder.release.set()
    assert [(await wire.response("POST")).body for wire in (first, second)] == [b"1", b"2"]
    assert (await memory.ask("POST", "/v1/service/bound", headers, b"3")).status in (200, 202)


async def test_a_service_without_a_queue_runs_what_can_begin(memory: Running) -> None:
    """``queue=0`` lets nothing wait; what a worker has a place for is run."""
    hub = memory.hub
    holder = Holder(Hub())
    hub.service("strict", concurrency=1, queue=0)(holder.hold)
    first = await _call(memory, "strict", JSON, b"1")
    await holder.began()
    assert (await memory.ask("POST", "/v1/service/strict", JSON, b"2")).status == 429
    holder.release.set()
    assert (await first.response("POST")).body == b"1"
    assert (await memory.ask("POST", "/v1/service/strict", JSON, b"2")).body == b"2"


async def test_a_stop_waits_for_calls_under_way(memory: Running, holder: Holder) -> None:
    """A hub that stops answers the calls that are waited for, as the last of their connections."""
    wire = await _call(memory, "hold", JSON, b"5")
    await holder.began()
    draining = asyncio.create_task(memory.server.drain(10))
    await until(lambda: memory.server.draining)
    holder.release.set()
    answer = await wire.last_response("POST")
    assert (answer.status, answer.body) == (200, b"5")
    await draining


async def test_a_stop_hands_out_calls_that_may_be(disk: Running) -> None:
    """A call with ``respond-async, wait`` is handed out, and a wait for a call is answered as it stands."""
    holder = offer(disk.hub)
    wire = await _call(disk, "hold", {**JSON, "Prefer": "respond-async, wait=60"}, b"5")
    await holder.began()
    (identity,) = disk.hub.calls.ledger.open
    waiting = await disk.connect()
    await waiting.send(request("GET", f"/v1/call/{identity}", {"Prefer": "wait=60"}))
    await until(lambda: len(disk.hub.calls.ledger.open[identity].waiters) == 2)
    draining = asyncio.create_task(disk.server.drain(10))
    answer = await wire.last_response("POST")
    assert (answer.status, answer["Location"]) == (202, f"/v1/call/{identity}")
    answer = await waiting.last_response()
    assert (answer.status, json.loads(answer.body)["state"]) == (200, "running")
    await draining
    holder.release.set()
