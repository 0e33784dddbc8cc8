"""Calls that are handed out: 202, the same call again by its key, its status and result, cancelling, the lists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from google.protobuf import type_pb2

from tests.support.asgi import Asgi
from tests.support.disk import Gate
from tests.support.server import JSON, Running, Serve, problem_of
from tests.support.services import Holder, offer
from tests.support.waiting import until
from tests.support.wire import Response, Wire, request
from wayside import Hub
from wayside.calls.call import AttemptOutcome

ASYNC = {**JSON, "Prefer": "respond-async"}


@pytest.fixture(params=["memory", "disk"])
async def hub(request: pytest.FixtureRequest, serve: Serve) -> Running:
    """A hub with services, in memory or on disk."""
    return await serve(disk=request.param == "disk")


@pytest.fixture
async def holder(hub: Running) -> AsyncIterator[Holder]:
    """The services of ``hub``."""
    holder = offer(hub.hub)
    yield holder
    holder.let_go()


def _of(answer: Response) -> dict[str, Any]:
    """A status that was answered."""
    assert answer["Content-Type"] == "application/json"
    assert answer["Cache-Control"] == "no-store"
    status: dict[str, Any] = json.loads(answer.body)
    return status


async def _submit(hub: Running, name: str, body: bytes = b"", **headers: str) -> str:
    """The URL of a call."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    answer = await hub.ask("POST", f"/v1/service/{name}", {**ASYNC, **named}, body)
    assert answer.status == 202, answer
    return answer["Location"]


async def _ended(hub: Running, url: str) -> dict[str, Any]:
    """A call once it has ended."""
    status = _of(await hub.ask("GET", url, {"Prefer": "wait=10"}))
    assert status["state"] in ("done", "failed", "cancelled")
    return status


# -- handing out


async def test_a_call_is_handed_out(hub: Running, holder: Holder) -> None:
    """202 says where the call is, what was preferred and when to ask again; its URL has its result in the end."""
    answer = await hub.ask("POST", "/v1/service/hold", ASYNC, b"5")
    status = _of(answer)
    assert (answer.status, answer["Location"]) == (202, f"/v1/call/{status['id']}")
    assert (answer["Preference-Applied"], answer["Retry-After"]) == ("respond-async", "1")
    assert (status["service"], status["state"], status["attempt"]) == ("hold", "running", 1)
    await holder.began()
    holder.release.set()
    status = await _ended(hub, answer["Location"])
    assert (status["state"], status["result"], status["progress"]) == ("done", 5, {"value": 1.0})
    assert status["created_ms"] <= status["started_ms"] <= status["ended_ms"]


async def test_a_call_that_ends_soon_is_answered_at_once(hub: Running, holder: Holder) -> None:
    """``respond-async, wait`` gives the call so much time before it is handed out."""
    answer = await hub.ask("POST", "/v1/service/double", {**JSON, "Prefer": "respond-async, wait=10"}, b'{"width": 1}')
    assert (answer.status, json.loads(answer.body)) == (200, {"width": 2, "height": 2})
    assert "Preference-Applied" not in answer.headers


async def test_a_call_that_takes_longer_is_handed_out_and_goes_on(serve: Serve) -> None:
    """When that time, cut to the hub's longest, is over, 202 says how long it was."""
    hub = await serve(wait_s_max=0.0)
    holder = offer(hub.hub)
    answer = await hub.ask("POST", "/v1/service/hold", {**JSON, "Prefer": "respond-async, wait=5"}, b"5")
    assert (answer.status, answer["Preference-Applied"]) == (202, "respond-async, wait=0")
    assert not hub.hub.calls.ledger.open[_of(answer)["id"]].waiters
    holder.release.set()
    await until(lambda: not hub.hub.calls.ledger.open)
    assert (await hub.ask("GET", answer["Location"] + "/result")).body == b"5"


async def test_a_caller_that_goes_leaves_its_call(hub: Running, holder: Holder) -> None:
    """A call on disk is its own: it goes on without whoever made it."""
    wire = await hub.connect()
    await wire.send(request("POST", "/v1/service/hold", {**JSON, "Prefer": "respond-async, wait=60"}, b"5"))
    await holder.began()
    (call,) = hub.hub.calls.ledger.open.values()
    await until(lambda: len(call.waiters) == 1)
    wire.reset()
    await until(lambda: not call.waiters)
    holder.release.set()
    assert (await _ended(hub, f"/v1/call/{call.id}"))["result"] == 5


async def test_a_call_can_start_later(hub: Running, holder: Holder) -> None:
    """``Wayside-Delay`` has a call wait for its time; the higher priority starts first."""
    url = await _submit(hub, "greet", b'"you"', Wayside_Delay="3600", Wayside_Priority="7")
    status = _of(await hub.ask("GET", url))
    assert (status["state"], status["attempt"], status["priority"]) == ("queued", 0, 7)
    assert status["not_before_ms"] - status["created_ms"] == 3_600_000
    soon = await _submit(hub, "greet", b'"you"', Wayside_Delay="0.01")
    assert (await _ended(hub, soon))["result"] == "Hello, you!"


async def test_urgent_calls_start_first(hub: Running, holder: Holder) -> None:
    """Of calls that wait, the highest priority starts first, and of equal ones the oldest."""
    hub.hub.service("one", concurrency=1)(holder.hold)
    urls = [await _submit(hub, "one", b"0")]
    urls += [await _submit(hub, "one", b"0", Wayside_Priority=str(priority)) for priority in (-1, 5, 5)]
    holder.release.set()
    began = [(await _ended(hub, url))["started_ms"] for url in urls]
    orders = [hub.hub.calls.ledger.recent[url.rpartition("/")[2]] for url in urls]
    assert [call.id for call in hub.hub.calls.ledger.recent.values()] == [orders[i].id for i in (0, 2, 3, 1)]
    assert began[0] <= began[2] <= began[3] <= began[1]


@pytest.mark.parametrize(
    ("name", "headers", "body", "status"),
    [
        ("double", JSON, b'{"width": "x"}', 422),
        ("double", JSON, b'{"width": ', 400),
        ("double", {"Content-Type": "image/png"}, b"x", 415),
        ("double?times=x", JSON, b'{"width": 1}', 422),
        ("none", JSON, b"1", 404),
    ],
)
async def test_what_cannot_be_run_is_not_handed_out(
    hub: Running, holder: Holder, name: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    """What a handler of this process would refuse is refused at once, and no call is made of it."""
    answer = await hub.ask("POST", f"/v1/service/{name}", {**headers, "Prefer": "respond-async"}, body)
    assert answer.status == status
    problem_of(answer)
    assert not hub.hub.calls.ledger.open
    assert not hub.hub.calls.ledger.recent


async def test_a_mounted_hub_says_where_its_calls_are() -> None:
    """``Location`` has the mount point, where a framework has given one; over ASGI all is as over the wire."""
    async with Hub() as hub:
        offer(hub)
        asgi = Asgi(hub, "POST", "/v1/service/greet", ASYNC, b'"you"', root_path="/wayside")
        answer = await asgi.response()
        assert (answer.status, answer["Preference-Applied"]) == (202, "respond-async")
        assert answer["Location"].startswith("/wayside/v1/call/")
        url = answer["Location"].removeprefix("/wayside")
        assert _of(await Asgi(hub, "GET", url, {"Prefer": "wait=10"}, None).response())["result"] == "Hello, you!"
        result = await Asgi(hub, "GET", url + "/result", {"Accept": "application/msgpack"}, None).response()
        assert msgspec.msgpack.decode(result.body) == "Hello, you!"
        events = await Asgi(hub, "GET", url, {"Accept": "text/event-stream"}, None).response()
        assert events.body.endswith(b"\n\n")
        assert b'"event":"done"' in events.body
        assert (await Asgi(hub, "DELETE", url, None, None).response()).status == 409


# -- keys


@pytest.mark.parametrize("spelled", ['"a b"', "a b", '"a \\"b"'])
async def test_the_same_key_is_the_same_call(hub: Running, holder: Holder, spelled: str) -> None:
    """A key, quoted or bare, makes one call: whoever sends it again gets that one's result, and nothing runs twice."""
    headers = {**JSON, "Idempotency-Key": spelled}
    holder.release.set()
    first = await hub.ask("POST", "/v1/service/hold", headers, b"5")
    second = await hub.ask("POST", "/v1/service/hold", headers, b"5")
    assert (first.status, second.status, first.body, second.body) == (200, 200, b"5", b"5")
    assert first["Wayside-Call"] == second["Wayside-Call"]
    assert holder.runs == 1
    if spelled == "a b":
        again = await hub.ask("POST", "/v1/service/hold", {**JSON, "Idempotency-Key": '"a b"'}, b"5")
        assert again["Wayside-Call"] == first["Wayside-Call"]
    assert (await hub.ask("POST", "/v1/service/hold", {**ASYNC, "Idempotency-Key": spelled}, b"5")).status == 200


async def test_a_key_is_one_service_s(hub: Running, holder: Holder) -> None:
    """Another service's call may have the same key."""
    headers = {**JSON, "Idempotency-Key": "k"}
    assert (await hub.ask("POST", "/v1/service/greet", headers, b'"you"')).body == b'"Hello, you!"'
    assert (await hub.ask("POST", "/v1/service/fail", headers, b'"you"')).status == 500


async def test_requests_with_one_key_wait_for_one_call(hub: Running, holder: Holder) -> None:
    """While the call runs, the same request joins it and waits, with its own time; all are answered alike."""
    wires = [await hub.connect() for _ in range(3)]
    for wire in wires:
        await wire.send(request("POST", "/v1/service/hold", {**JSON, "Idempotency-Key": "k"}, b"5"))
    await holder.began()
    short = await hub.ask("POST", "/v1/service/hold", {**JSON, "Idempotency-Key": "k", "Prefer": "wait=0"}, b"5")
    problem = problem_of(short)
    assert (short.status, problem["code"]) == (504, "call-timeout")
    assert f"/v1/call/{problem['call']}" in problem["detail"]
    asynchronous = await hub.ask("POST", "/v1/service/hold", {**ASYNC, "Idempotency-Key": "k"}, b"5")
    assert (asynchronous.status, _of(asynchronous)["id"]) == (202, problem["call"])
    wires[0].close()
    holder.release.set()
    assert [(await wire.response("POST")).body for wire in wires[1:]] == [b"5", b"5"]
    assert holder.runs == 1


async def test_requests_with_one_key_wait_for_one_commit(disk: Running, gate: Gate) -> None:
    """The same, while the call is not on disk yet."""
    holder = offer(disk.hub)
    holder.release.set()
    wire = await disk.connect()
    assert (await wire.ask("GET", "/healthz")).status == 200
    gate.shut()
    wires = [wire, await disk.connect()]
    for each in wires:
        await each.send(request("POST", "/v1/service/hold", {**JSON, "Idempotency-Key": "k"}, b"5"))
    other = await disk.connect()
    await other.send(request("POST", "/v1/service/hold", {**JSON, "Idempotency-Key": "k"}, b"6"))
    await gate.reached()
    assert holder.runs == 0
    gate.open()
    assert [(await each.response("POST")).body for each in wires] == [b"5", b"5"]
    assert (await other.response("POST")).status == 422
    assert holder.runs == 1


@pytest.mark.parametrize(("target", "body"), [("greet", b'"me"'), ("greet?name=you", b"")])
async def test_a_key_with_another_request_is_422(hub: Running, holder: Holder, target: str, body: bytes) -> None:
    """A key that was used for another body or query is not answered with what that one has got."""
    headers = {"Idempotency-Key": "k"}
    first = await hub.ask("POST", "/v1/service/greet", {**headers, **JSON}, b'"you"')
    second = await hub.ask("POST", f"/v1/service/{target}", {**headers, **JSON} if body else headers, body)
    problem = problem_of(second)
    assert (second.status, problem["code"], problem["call"]) == (422, "idempotency-key-reused", first["Wayside-Call"])


async def test_a_key_is_known_after_a_restart(serve: Serve, tmp_path: Any) -> None:
    """A hub that is started again answers with the call that has the key."""
    place = f"file:{tmp_path / 'kept'}"
    headers = {**JSON, "Idempotency-Key": "k"}
    for run in range(2):
        async with Hub(place) as hub:
            holder = offer(hub)
            holder.release.set()
            answer = await Asgi(hub, "POST", "/v1/service/hold", headers, b"5").response()
            assert (answer.status, answer.body) == (200, b"5")
            assert holder.runs == 1 - run
            other = await Asgi(hub, "POST", "/v1/service/hold", headers, b"6").response()
            assert problem_of(other)["code"] == "idempotency-key-reused"


async def test_a_result_that_only_its_handler_can_make_is_kept_as_asked_for(hub: Running, holder: Holder) -> None:
    """JSON is kept, of which MessagePack and XML are made when the result is read; Protobuf is kept where it is what the
    call was made for."""
    one = type_pb2.EnumValue(name="one", number=1).SerializeToString()
    headers = {"Content-Type": "application/x-protobuf", "Idempotency-Key": "k", "Accept": "application/x-protobuf"}
    answer = await hub.ask("POST", "/v1/service/number", headers, one)
    assert (answer.status, answer["Content-Type"]) == (200, "application/x-protobuf"), answer
    assert type_pb2.EnumValue.FromString(answer.body).number == 2
    result = f"/v1/call/{answer['Wayside-Call']}/result"
    assert (await hub.ask("GET", result)).body == answer.body
    refused = await hub.ask("GET", result, {"Accept": "application/json"})
    assert (refused.status, problem_of(refused)["code"]) == (406, "not-acceptable")


@pytest.mark.parametrize("headers", [{"Prefer": "respond-async"}, {"Idempotency-Key": "k"}])
async def test_a_durable_call_can_be_followed_from_its_start(
    hub: Running, holder: Holder, headers: dict[str, str]
) -> None:
    """A POST that accepts events, and is durable, is answered with those of its call, which goes on without a reader."""
    wire = await hub.connect()
    await wire.send(request("POST", "/v1/service/hold", {**JSON, **headers, "Accept": "text/event-stream"}, b"5"))
    head = await wire.head()
    assert (head.status, head["Content-Type"]) == (200, "text/event-stream")
    await holder.began()
    wire.close()
    await until(lambda: not hub.followers("sse"))
    holder.release.set()
    assert (await _ended(hub, f"/v1/call/{head['Wayside-Call']}"))["result"] == 5


# -- a body that spoils nothing


async def test_a_body_that_is_no_json_harms_no_hub(serve: Serve, tmp_path: Any) -> None:
    """A service of a worker that is not there takes any body: what is no JSON is kept as it came, also over a restart."""
    place = f"file:{tmp_path / 'kept'}"
    bodies = [b'{"a": ', b'"\xff"', b"", b"[1,\r\n 2]"]
    async with Hub(place) as hub:
        hub.service("later")(Holder(Hub()).hold)
        hub.calls.services["later"].workers.clear()
        hub.calls.services["later"].check_input = None
        for body in bodies:
            answer = await Asgi(hub, "POST", "/v1/service/later", ASYNC, body).response()
            assert answer.status == 202, body
    async with Hub(place) as hub:
        kept = [call.request.payload.data for call in hub.calls.ledger.open.values()]
        assert sorted(kept) == sorted([*bodies[:3], b"[1,   2]"])


# -- status and result


async def test_the_result_is_not_there_before_the_end(hub: Running, holder: Holder) -> None:
    """Before the end ``/result`` is 202 with the status; ``Prefer: wait`` waits for it."""
    url = await _submit(hub, "hold", b"5")
    await holder.began()
    early = await hub.ask("GET", url + "/result")
    assert (early.status, early["Retry-After"], _of(early)["state"]) == (202, "1", "running")
    waited = await hub.ask("GET", url + "/result", {"Prefer": "wait=0"})
    assert (waited.status, waited["Preference-Applied"]) == (202, "wait=0")
    wire = await hub.connect()
    await wire.send(request("GET", url + "/result", {"Prefer": "wait=10", "Accept": "application/msgpack"}))
    await until(lambda: any(call.waiters for call in hub.hub.calls.ledger.open.values()))
    holder.release.set()
    answer = await wire.response()
    assert (answer.status, answer["Content-Type"], answer.body) == (200, "application/msgpack", b"\x05")


@pytest.mark.parametrize(
    ("accept", "content_type", "body"),
    [
        ("*/*", "application/json", b'{"width":2,"height":2}'),
        ("application/msgpack", "application/msgpack", msgspec.msgpack.encode({"width": 2, "height": 2})),
        ("application/xml", "application/xml", b"<width>2</width><height>2</height>"),
    ],
)
async def test_a_result_is_read_in_what_is_accepted(
    hub: Running, holder: Holder, accept: str, content_type: str, body: bytes
) -> None:
    """The bare result, translated where it can be; 406 where it cannot."""
    url = await _submit(hub, "double", b'{"width": 1}')
    await _ended(hub, url)
    answer = await hub.ask("GET", url + "/result", {"Accept": accept})
    assert (answer.status, answer["Content-Type"]) == (200, content_type)
    assert body in answer.body
    assert (await hub.ask("GET", url + "/result", {"Accept": "image/png"})).status == 406


async def test_a_call_that_failed_gives_its_problem(hub: Running, holder: Holder) -> None:
    """``/result`` is then the problem document, with the handler's own status; the status of the call has it, too."""
    url = await _submit(hub, "refuse", b'"p1"')
    status = await _ended(hub, url)
    assert (status["state"], status["error"]["code"]) == ("failed", "parcel-not-found")
    assert "result" not in status
    answer = await hub.ask("GET", url + "/result")
    problem = problem_of(answer)
    assert (answer.status, problem["code"], problem["parcel"], problem["call"]) == (
        404,
        "parcel-not-found",
        "p1",
        status["id"],
    )


@pytest.mark.parametrize("error", [{}, {"status": 200}, {"status": "x", "detail": 1}, {"status": 101, "code": "c"}])
async def test_what_a_worker_says_of_a_failure_is_made_whole(
    hub: Running, holder: Holder, error: dict[str, Any]
) -> None:
    """A worker of any make may say what it likes: the answer is a problem document with a status of an error."""
    url = await _submit(hub, "hold", b"5")
    await holder.began()
    (call,) = hub.hub.calls.ledger.open.values()
    hub.hub.calls.attempts.finish(
        call.worker, call.id, call.attempt, AttemptOutcome(error=error, again=False), lambda _result: None
    )
    await _ended(hub, url)
    answer = await hub.ask("GET", url + "/result")
    assert answer.status == 500
    assert problem_of(answer)["call"] == call.id


async def test_a_wait_ends_with_the_call_or_its_time(hub: Running, holder: Holder) -> None:
    """A GET with ``Prefer: wait`` is answered when the call has ended; when its time is over, as it stands."""
    url = await _submit(hub, "hold", b"5")
    await holder.began()
    answer = await hub.ask("GET", url, {"Prefer": "wait=0"})
    assert (_of(answer)["state"], answer["Preference-Applied"], answer["Retry-After"]) == ("running", "wait=0", "1")
    wire, gone = await hub.connect(), await hub.connect()
    for each in (wire, gone):
        await each.send(request("GET", url, {"Prefer": "wait=30"}))
    (call,) = hub.hub.calls.ledger.open.values()
    await until(lambda: len(call.waiters) == 2)
    gone.reset()
    await until(lambda: len(call.waiters) == 1)
    holder.release.set()
    answer = await wire.response()
    assert (_of(answer)["state"], answer["Preference-Applied"]) == ("done", "wait=30")
    assert "Retry-After" not in answer.headers


async def test_a_call_is_found_after_a_restart(tmp_path: Any) -> None:
    """Status, result and events of a call that has ended are read from its stream when they are asked for."""
    place = f"file:{tmp_path / 'kept'}"
    async with Hub(place) as hub:
        offer(hub)
        url = (await Asgi(hub, "POST", "/v1/service/greet", ASYNC, b'"you"').response())["Location"]
        await Asgi(hub, "GET", url, {"Prefer": "wait=10"}, None).response()
    async with Hub(place) as hub:
        assert _of(await Asgi(hub, "GET", url, None, None).response())["result"] == "Hello, you!"
        assert (await Asgi(hub, "GET", url + "/result", None, None).response()).body == b'"Hello, you!"'
        assert (await Asgi(hub, "DELETE", url, None, None).response()).status == 409
    async with Hub(place) as hub:
        assert (await Asgi(hub, "DELETE", url, None, None).response()).status == 409
        events = await Asgi(hub, "GET", url + "?offset=-1", None, None).response()
        assert [event["event"] for event in json.loads(events.body)] == ["running", "done"]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/call/none"),
        ("GET", "/v1/call/none/result"),
        ("GET", "/v1/call/%00"),
        ("GET", "/v1/call/.."),
        ("GET", "/v1/call/none?offset=-1"),
        ("GET", "/v1/call/none?live=sse&offset=-1"),
        ("DELETE", "/v1/call/none"),
    ],
)
async def test_an_unknown_call_is_404(hub: Running, method: str, target: str) -> None:
    """Whatever is asked of a call that is not there."""
    answer = await hub.ask(method, target)
    assert (answer.status, problem_of(answer)["code"]) == (404, "call-not-found")


async def test_there_is_nothing_else_below_a_call(hub: Running) -> None:
    """Below a call there is its result, and no more."""
    answer = await hub.ask("GET", "/v1/call/none/other")
    assert (answer.status, problem_of(answer)["code"]) == (404, "not-found")


# -- cancelling


async def test_a_call_is_cancelled(hub: Running, holder: Holder) -> None:
    """DELETE stops the handler and ends the call; its result is 409; cancelling it again changes nothing."""
    url = await _submit(hub, "hold", b"5")
    await holder.began()
    answer = await hub.ask("DELETE", url)
    status = _of(answer)
    assert (answer.status, status["state"], status["error"]["code"]) == (200, "cancelled", "call-cancelled")
    await holder.was_cancelled()
    result = await hub.ask("GET", url + "/result")
    assert (result.status, problem_of(result)["code"]) == (409, "call-cancelled")
    assert _of(await hub.ask("DELETE", url))["state"] == "cancelled"


async def test_a_call_that_waits_is_cancelled(hub: Running, holder: Holder) -> None:
    """A call that waits for its time never begins, and whoever waits for it is answered."""
    url = await _submit(hub, "hold", b"5", Wayside_Delay="3600")
    wire = await hub.connect()
    await wire.send(request("GET", url, {"Prefer": "wait=30"}))
    await until(lambda: any(call.waiters for call in hub.hub.calls.ledger.open.values()))
    assert (await hub.ask("DELETE", url)).status == 200
    assert _of(await wire.response())["state"] == "cancelled"
    assert hub.hub.calls.services["hold"].delayed == 0
    assert holder.runs == 0


async def test_a_call_that_has_ended_cannot_be_cancelled(hub: Running, holder: Holder) -> None:
    """409 says so."""
    url = await _submit(hub, "greet", b'"you"')
    await _ended(hub, url)
    answer = await hub.ask("DELETE", url)
    assert (answer.status, problem_of(answer)["code"]) == (409, "call-ended")


async def test_whoever_waits_is_told_of_a_cancellation(hub: Running, holder: Holder) -> None:
    """A POST that waits for a call that somebody cancels is answered 409."""
    wire = await hub.connect()
    await wire.send(request("POST", "/v1/service/hold", JSON, b"5"))
    await holder.began()
    (identity,) = hub.hub.calls.ledger.open
    await hub.ask("DELETE", f"/v1/call/{identity}")
    answer = await wire.response("POST")
    assert (answer.status, problem_of(answer)["code"]) == (409, "call-cancelled")


# -- lists


async def test_calls_are_listed(hub: Running, holder: Holder) -> None:
    """The list has calls that have not ended and those that lately have, newest first, by service and by state."""
    urls = [await _submit(hub, "hold", b"5"), await _submit(hub, "greet", b'"you"'), await _submit(hub, "fail", b'""')]
    for url in urls[1:]:
        await _ended(hub, url)

    async def listed(query: str) -> tuple[list[str], int]:
        answer = _of(await hub.ask("GET", f"/v1/call/{query}"))
        return [call["service"] for call in answer["calls"]], answer["found"]

    names, found = await listed("")
    assert (sorted(names), found) == (["fail", "greet", "hold"], 3)
    assert await listed("?service=greet") == (["greet"], 1)
    assert await listed("?state=running") == (["hold"], 1)
    assert await listed("?state=failed&service=greet") == ([], 0)
    assert await listed("?service=none") == ([], 0)
    names, found = await listed("?limit=1")
    assert (len(names), found) == (1, 3)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("state=over", "parameter-invalid"),
        ("limit=0", "parameter-invalid"),
        ("limit=1001", "parameter-invalid"),
        ("limit=x", "parameter-invalid"),
        ("limit=1&limit=2", "parameter-repeated"),
        ("service=a&service=b", "parameter-repeated"),
    ],
)
async def test_a_list_is_asked_for_properly(hub: Running, query: str, code: str) -> None:
    """What no list can be of is 400."""
    answer = await hub.ask("GET", f"/v1/call/?{query}")
    assert (answer.status, problem_of(answer)["code"]) == (400, code)


async def test_services_are_listed(hub: Running, holder: Holder) -> None:
    """Services by name, with how they are set up and how busy they are; one by itself; 404 for what nobody declared."""
    await _submit(hub, "bound", b"5")
    await _submit(hub, "bound", b"6")
    services = {service["name"]: service for service in _of(await hub.ask("GET", "/v1/service/"))["services"]}
    assert list(services) == sorted(services)
    bound = services["bound"]
    assert (bound["workers"], bound["running"], bound["waiting"]) == (1, 1, 1)
    assert (bound["concurrency"], bound["queue_max"], bound["streams"]) == (1, 1, False)
    assert services["count"]["streams"] is True
    assert _of(await hub.ask("GET", "/v1/service/bound")) == bound
    assert _of(await hub.ask("GET", "/v1/service"))["services"]
    unknown = await hub.ask("GET", "/v1/service/none")
    assert (unknown.status, problem_of(unknown)["code"]) == (404, "service-not-found")


async def test_many_waits_are_one_answer_each(hub: Running, holder: Holder) -> None:
    """A thousand requests for one call, on some connections each, are all answered when it ends."""
    url = await _submit(hub, "hold", b"5")
    await holder.began()
    wires: list[Wire] = [await hub.connect() for _ in range(20)]
    for wire in wires:
        await wire.send(request("GET", url + "/result", {"Prefer": "wait=30"}) * 50)
    await asyncio.sleep(0)
    holder.release.set()
    for wire in wires:
        assert [(await wire.response()).body for _ in range(50)] == [b"5"] * 50


async def test_whoever_is_named_is_told_of_the_end() -> None:
    """``Wayside-Callback`` is sent the call as it ended: here it is the URL of a stream, which keeps what it is sent."""
    hub = Hub(webhook_secrets=["whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], webhook_private=True)
    offer(hub)
    server = await hub.serve(port=0)
    running = Running(hub, server)
    await hub.create("told")
    base = "http://{}:{}".format(*server.address)
    url = await _submit(running, "greet", b'"you"', Wayside_Callback=f"{base}/v1/stream/told")
    told = await running.ask("GET", "/v1/stream/told?offset=-1", {"Prefer": "wait=10"})
    (event,) = json.loads(told.body)
    assert (event["type"], event["data"]["id"]) == ("call.done", url.rpartition("/")[2])
    assert event["data"]["result"] == "Hello, you!"
    for wrong in ("x", "ftp://example.org/", "http:///"):
        answer = await running.ask("POST", "/v1/service/greet", {**ASYNC, "Wayside-Callback": wrong}, b'"you"')
        assert answer.status == 400, wrong
        problem_of(answer)
    server.stop()
    await hub.close()
