"""Health, readiness, figures; and the form in which everything is refused. The OpenAPI document is in test_openapi.py."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.disk import Gate
from tests.support.embedded import store_of
from tests.support.events import EventSource
from tests.support.server import JSON, TEXT, Running, Serve, problem_of
from tests.support.services import offer
from tests.support.waiting import until
from tests.support.wire import Response, request
from wayside.calls.call import AttemptOutcome

# -- refusals


def _problem(answer: Response) -> dict[str, Any]:
    """The problem document of a refusal, which must be a whole one, and kept by no cache."""
    problem = problem_of(answer)
    assert answer["Cache-Control"] == "no-store"
    assert problem["type"] == f"urn:wayside:problem:{problem['code']}"
    assert re.fullmatch("[a-z0-9-]+", problem["code"])
    assert problem["title"]
    assert len(problem["detail"]) > 20
    assert isinstance(problem["retry"], bool)
    return problem


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "status", "code"),
    [
        ("GET", "/nothing", {}, None, 404, "not-found"),
        ("GET", "/v1/stream/none", {}, None, 404, "stream-not-found"),
        ("POST", "/v1/stream/none", TEXT, b"x", 404, "stream-not-found"),
        ("GET", "/v1/stream/a?offset=x", {}, None, 400, "offset-malformed"),
        ("GET", "/v1/stream/a?offset=00000000001_0000000000000001", {}, None, 410, "stream-recreated"),
        ("PATCH", "/v1/stream/a", {}, None, 405, "method-not-allowed"),
        ("POST", "/v1/stream/a", TEXT, b"x", 409, "content-type-mismatch"),
        ("POST", "/v1/stream/a", {}, b"x", 400, "content-type-missing"),
        ("POST", "/v1/stream/a", JSON, b"{", 400, "json-malformed"),
        ("POST", "/v1/stream/a", JSON, b"\xff", 400, "json-malformed"),
        ("POST", "/v1/stream/a", JSON, b"[]", 400, "empty-append"),
        ("POST", "/v1/stream/a", JSON, b"", 400, "empty-append"),
        ("POST", "/v1/stream/a", {**JSON, "Producer-Id": "p"}, b"1", 400, "producer-headers"),
        ("POST", "/v1/stream/a", {**JSON, "Expect": "x"}, b"1", 417, "expectation-failed"),
        ("PUT", "/v1/stream/a", TEXT, b"", 409, "stream-exists"),
        ("PUT", "/v1/stream/b", {"Content-Type": "x"}, b"", 400, "content-type-invalid"),
        ("PUT", "/v1/stream/b", {**TEXT, "Stream-TTL": "+1"}, b"", 400, "parameter-invalid"),
        ("PUT", "/v1/stream/b", {**TEXT, "Stream-Durability": "x"}, b"", 400, "durability-invalid"),
    ],
)  # fmt: skip
async def test_every_refusal_is_a_problem_document(
    memory: Running, method: str, target: str, headers: dict[str, str], body: bytes | None, status: int, code: str
) -> None:
    """A refusal is RFC 9457 with a stable code and a type made of it, says what to do, and is found by its request id."""
    await memory.create("a", JSON, b"[1]")
    answer = await memory.ask(method, target, headers, body)
    assert (answer.status, _problem(answer)["code"]) == (status, code)


@pytest.mark.parametrize(("given", "kept"), [("abc-123", True), ("x" * 64, True), ("x" * 65, False), ("ä", False)])
async def test_a_request_id_is_given_back(memory: Running, given: str, kept: bool) -> None:
    """A short and harmless ``X-Request-Id`` comes back with a refusal; else it gets an own."""
    problem = _problem(await memory.ask("GET", "/v1/stream/none", {"X-Request-Id": given}))
    assert (problem["request_id"] == given) is kept


async def test_request_ids_are_not_given_twice(memory: Running) -> None:
    """Refusals of one request that is sent again have ids of their own."""
    wire = await memory.connect()
    ids = {_problem(await wire.ask("GET", "/v1/stream/none"))["request_id"] for _ in range(20)}
    assert len(ids) == 20


async def test_an_error_of_our_own_says_nothing_of_its_inside(memory: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is 500 with an id and without details, and the connection and others go on."""
    target = await memory.create("a", TEXT, b"one")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the secret of the house")

    wire = await memory.connect()
    with monkeypatch.context() as patch:
        patch.setattr(memory.hub.log, "append", fail)
        answer = await wire.ask("POST", target, TEXT, b"x")
    problem = _problem(answer)
    assert (answer.status, problem["code"]) == (500, "internal")
    assert b"secret" not in answer.body
    assert (await wire.ask("GET", target)).body == b"one"


# -- health


async def test_a_hub_that_runs_is_healthy_and_ready(disk: Running) -> None:
    """``/healthz`` and ``/readyz`` answer 200 in JSON that no cache keeps."""
    for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
        answer = await disk.ask("GET", path)
        assert (answer.status, json.loads(answer.body)) == (200, {"status": status})
        assert answer["Cache-Control"] == "no-store"


async def test_a_hub_whose_store_has_failed_is_alive_and_not_ready(disk: Running) -> None:
    """When the store has failed ``/readyz`` is 503 with the reason, ``/healthz`` 200, and the figures say so."""
    target = await disk.create("a", TEXT, b"one")

    def fail(_unit: object) -> None:
        raise OSError(5, "Input/output error")

    store: Any = store_of(disk.hub.log)
    store.commit = fail
    assert (await disk.ask("POST", target, TEXT, b"two")).status in (500, 503)
    answer = await disk.ask("GET", "/readyz")
    assert answer.status == 503
    assert json.loads(answer.body)["reason"]
    assert (await disk.ask("GET", "/healthz")).status == 200
    assert (await _figures(disk))["wayside_store_failed"] == 1
    refused = await disk.ask("POST", target, TEXT, b"three")
    assert (refused.status, _problem(refused)["code"]) == (503, "store-failed")
    assert await disk.body_of(target) == b"one"


# -- figures


async def _figures(hub: Running) -> dict[str, float]:
    """The samples by name, and by ``name{label}`` where they have one."""
    answer = await hub.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer["Content-Type"].startswith("text/plain")
    figures: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        for sample in family.samples:
            label = "".join(f"{{{value}}}" for value in sample.labels.values())
            assert sample.name + label not in figures
            figures[sample.name + label] = sample.value
    return figures


async def test_the_figures_move_with_what_happens(disk: Running) -> None:
    """Appends, records, bytes, deliveries by pattern, followers, streams, connections, answers and commits are counted."""
    before = await _figures(disk)
    target = await disk.create("a", JSON)
    for _ in range(3):
        await disk.append(target, b"[1,2]", JSON)
    await disk.ask("GET", target)
    await disk.ask("GET", f"{target}?offset=-1", {"Prefer": "wait=1"})
    source = await EventSource.open(await disk.connect(), target)
    await source.take(6)
    await disk.ask("GET", "/v1/stream/none")
    await until(lambda: disk.followers("sse") == 1)
    after = await _figures(disk)

    def moved(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert moved("wayside_appends_total") == 3
    assert moved("wayside_records_total") == 6
    assert moved("wayside_appended_bytes_total") == 6
    assert moved("wayside_streams") == 1
    assert moved("wayside_deliveries_total{polling}") == 6
    assert moved("wayside_deliveries_total{long-polling}") == 6
    assert moved("wayside_deliveries_total{sse}") == 6
    assert after["wayside_followers{sse}"] == 1
    assert after["wayside_connections"] >= 2
    assert moved("wayside_responses_total{2xx}") >= 7
    assert moved("wayside_responses_total{4xx}") == 1
    assert moved("wayside_commit_appends_count") >= 4
    assert moved("wayside_commit_seconds_count") == moved("wayside_commit_appends_count")
    assert moved("wayside_commit_appends_sum") == 3
    assert after["wayside_commit_seconds_sum"] > 0
    assert after["wayside_store_bytes"] > 0
    assert after["wayside_cached_bytes"] > 0
    assert after["wayside_uncommitted_bytes"] == 0
    assert after["wayside_lag_records"] == 0
    assert after["wayside_store_failed"] == 0


async def test_answers_that_are_given_again_are_counted(memory: Running) -> None:
    """A poll that is answered from memory counts as an answer and as a delivery like the first."""
    target = await memory.create("a", JSON, b"[1,2]")
    wire = await memory.connect()
    before = await _figures(memory)
    for _ in range(10):
        await wire.ask("GET", target)
    after = await _figures(memory)
    assert after["wayside_responses_total{2xx}"] - before["wayside_responses_total{2xx}"] == 11
    counted = after["wayside_deliveries_total{polling}"] - before.get("wayside_deliveries_total{polling}", 0)
    assert counted == 20


async def test_what_waits_for_the_disk_is_seen(disk: Running, gate: Gate) -> None:
    """Bytes that wait for their commit are a figure while they wait."""
    target = await disk.create("a", TEXT)
    gate.shut()
    wire = await disk.connect()
    await wire.send(request("POST", target, TEXT, b"x" * 1000))
    await gate.reached()
    assert (await _figures(disk))["wayside_uncommitted_bytes"] == 1000
    gate.open()
    assert (await wire.response()).status == 204
    assert (await _figures(disk))["wayside_uncommitted_bytes"] == 0


async def test_calls_are_counted(memory: Running) -> None:
    """Calls that ended by service and state, those that run and wait by service, workers, attempts, and what was fenced."""
    holder = offer(memory.hub)
    memory.hub.service("narrow", concurrency=1)(holder.hold)
    for name, body in (("greet", b'"you"'), ("greet", b'"me"'), ("fail", b'""'), ("double", b"{}")):
        await memory.ask("POST", f"/v1/service/{name}", JSON, body)
    urls = []
    for delay in ("0", "0", "3600"):
        headers = {**JSON, "Prefer": "respond-async", "Wayside-Delay": delay}
        urls.append((await memory.ask("POST", "/v1/service/narrow", headers, b"1"))["Location"])
    await holder.began()
    (running,) = memory.hub.worker.worker.held.values()
    memory.hub.calls.attempts.finish(memory.hub.worker.worker, running.id, 9, AttemptOutcome(), lambda _result: None)
    figures = await _figures(memory)
    assert figures["wayside_calls_total{greet}{done}"] == 2
    assert figures["wayside_calls_total{fail}{failed}"] == 1
    assert figures["wayside_calls_total{double}{failed}"] == 1
    assert (figures["wayside_calls_running{narrow}"], figures["wayside_calls_waiting{narrow}"]) == (1, 2)
    assert (figures["wayside_calls_running{greet}"], figures["wayside_calls_waiting{greet}"]) == (0, 0)
    assert figures["wayside_calls_open"] == 3
    assert figures["wayside_workers"] == 1
    assert figures["wayside_attempts_total"] == 5
    assert figures["wayside_fenced_total"] == 1
    await memory.ask("DELETE", urls[2])
    holder.let_go()
    await until(lambda: not memory.hub.calls.ledger.open)
    figures = await _figures(memory)
    assert figures["wayside_calls_total{narrow}{cancelled}"] == 1
    assert figures["wayside_calls_total{narrow}{done}"] == 2
    assert (figures["wayside_calls_running{narrow}"], figures["wayside_calls_waiting{narrow}"]) == (0, 0)


async def test_refused_connections_are_counted(serve: Serve) -> None:
    """Connections over the limit are seen in the figures as answers of 503."""
    hub = await serve(connections_max=2)
    wires = [await hub.connect() for _ in range(2)]
    extra = await hub.connect()
    assert (await extra.response()).status == 503
    extra.close()
    wires[1].close()
    await until(lambda: len(hub.server.connections) == 1)
    assert (await _figures(hub))["wayside_responses_total{5xx}"] == 1
