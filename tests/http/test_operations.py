"""Health, readiness, figures, the OpenAPI document; and the form in which everything is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.http.events import EventSource
from tests.http.harness import JSON, TEXT, Gate, Running, Serve, eventually
from tests.http.wire import Response, request

# -- refusals


def _problem(answer: Response) -> dict[str, Any]:
    """The problem document of a refusal, which must be a whole one."""
    assert answer["Content-Type"] == "application/problem+json"
    assert answer["Cache-Control"] == "no-store"
    problem: dict[str, Any] = json.loads(answer.body)
    assert problem["status"] == answer.status
    assert problem["type"] == f"urn:wayside:problem:{problem['code']}"
    assert re.fullmatch("[a-z0-9-]+", problem["code"])
    assert problem["title"]
    assert len(problem["detail"]) > 20
    assert isinstance(problem["retry"], bool)
    assert problem["request_id"] == answer["X-Request-Id"]
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

    store: Any = disk.hub.log.store
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
    await eventually(lambda: disk.followers("sse") == 1)
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


async def test_refused_connections_are_counted(serve: Serve) -> None:
    """Connections over the limit are seen in the figures as answers of 503."""
    hub = await serve(connections_max=2)
    wires = [await hub.connect() for _ in range(2)]
    extra = await hub.connect()
    assert (await extra.response()).status == 503
    extra.close()
    wires[1].close()
    await eventually(lambda: len(hub.server.connections) == 1)
    assert (await _figures(hub))["wayside_responses_total{5xx}"] == 1


# -- OpenAPI


async def _document(hub: Running) -> dict[str, Any]:
    answer = await hub.ask("GET", "/openapi.json")
    assert (answer.status, answer["Content-Type"]) == (200, "application/json")
    document: dict[str, Any] = json.loads(answer.body)
    return document


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    verbs = ("get", "head", "put", "post", "delete", "patch", "options", "trace")
    return [(path, v, item[v]) for path, item in document["paths"].items() for v in verbs if v in item]


async def test_the_openapi_document_is_one(memory: Running) -> None:
    """The document is OpenAPI 3.1: what is required is there, references lead somewhere, parameters are declared once."""
    document = await _document(memory)
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"]
    assert document["info"]["version"]
    names = set()
    for path, verb, operation in _operations(document):
        where = f"{verb} {path}"
        assert operation.get("summary"), where
        assert operation["responses"], where
        if "operationId" in operation:
            assert operation["operationId"] not in names, where
            names.add(operation["operationId"])
        for status, answer in operation["responses"].items():
            assert re.fullmatch(r"[1-5](\d\d|XX)|default", status), where
            assert answer["description"], where
        parameters = operation.get("parameters", []) + document["paths"][path].get("parameters", [])
        keys = [(p["in"], p["name"].lower()) for p in parameters]
        assert len(set(keys)) == len(keys), where
        assert {n for i, n in keys if i == "path"} == set(re.findall(r"{(\w+)}", path)), where
        for parameter in parameters:
            assert parameter["in"] in ("query", "header", "path", "cookie"), where
            assert "schema" in parameter or "content" in parameter, where
            assert parameter["required"] or parameter["in"] != "path", where
            assert parameter["name"].lower() not in ("accept", "content-type", "authorization"), where
    for reference in re.findall(r'"\$ref":\s*"([^"]+)"', json.dumps(document)):
        at: Any = document
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


async def test_the_openapi_document_lists_what_there_is_and_nothing_else(memory: Running) -> None:
    """Every route and method that answers is in the document, and every one in the document answers."""
    document = await _document(memory)
    listed: dict[str, set[str]] = {}
    for path, verb, _ in _operations(document):
        listed.setdefault(path, set()).add(verb.upper())
    index = (await memory.ask("GET", "/")).body.decode()
    assert set(re.findall(r"/(?:v1/stream/|[a-z.]+)(?=\s|$)", index)) <= set(listed)
    for path in [*listed, "/"]:
        target = path.replace("{name}", "a")
        allowed = set((await memory.ask("PATCH", target))["Allow"].split(", ")) - {"OPTIONS"}
        if "HEAD" not in listed.get(path, set()):
            allowed.discard("HEAD")  # goes without saying where there is GET
        assert listed.get(path) == allowed, path
    await memory.create("a", TEXT)
    for path, verbs in listed.items():
        for verb in sorted(verbs - {"DELETE"}):
            wire = await memory.connect()
            await wire.send(request(verb, path.replace("{name}", "a"), TEXT, b"x" if verb in ("PUT", "POST") else None))
            assert (await wire.response(verb)).status < 300, (verb, path)


async def test_the_document_s_refusals_are_what_is_refused(memory: Running) -> None:
    """The schema of a problem in the document fits the problems that are answered."""
    schema = (await _document(memory))["components"]["schemas"]["Problem"]
    problem = _problem(await memory.ask("GET", "/v1/stream/none"))
    assert set(schema["required"]) <= set(problem)
    types = {"string": str, "integer": int, "boolean": bool}
    for name, property_ in schema["properties"].items():
        assert isinstance(problem[name], types[property_["type"]]), name
