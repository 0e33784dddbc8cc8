"""The OpenAPI document: what it says of services, wherever they run, and that it is one whatever they declare."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import Mock

import jsonschema_rs
import msgspec
import pydantic
import pytest
from schemathesis.specs.openapi import definitions

from tests.support.server import JSON, TEXT, Running
from tests.support.services import Size, greet, offer
from tests.support.waiting import until
from tests.support.wire import request
from wayside import Upload
from wayside.calls.handler import Handler
from wayside.calls.queue import ServiceSpec
from wayside.client.worker import Remote
from wayside.server.openapi.document import document as document_of

Document = dict[str, Any]


class Cat(msgspec.Struct, tag=True):
    lives: int = 9


class Dog(msgspec.Struct, tag=True):
    owner: Size


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


class Elsewhere:
    """Others of that name."""

    class Size(msgspec.Struct):
        metres: float


class Boxed:
    class Size(pydantic.BaseModel):
        boxes: int


class Item(pydantic.BaseModel):
    id: int
    size: Boxed.Size


async def pet(animal: Cat | Dog, *, loud: bool = False, names: list[str] = [], at: Size | None = None) -> Node:  # noqa: B006
    """Pet an animal,
    gently.

    Not all of this is in the summary.
    """
    raise NotImplementedError


async def measure(size: Elsewhere.Size) -> Elsewhere.Size:
    return size


async def order(item: Item) -> Item:
    return item


async def play(film: Upload) -> AsyncIterator[Size]:
    yield Size(1)


def _offer(hub: Running) -> None:
    for handler in (pet, measure, order, play):
        hub.hub.service(handler.__name__)(handler)


async def _document(hub: Running) -> Document:
    answer = await hub.ask("GET", "/openapi.json")
    assert (answer.status, answer["Content-Type"]) == (200, "application/json")
    document: Document = json.loads(answer.body)
    return document


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        for name, each in value.items():
            yield from each.values() if name == "mapping" else _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _at(document: Document, reference: str) -> Any:
    at: Any = document
    for part in reference.removeprefix("#/").split("/"):
        at = at[part]
    return at


def _schemas(value: Any) -> Iterator[Any]:
    """Every schema of a parameter, a header or a body."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name in ("schema", "x-item-schema"):
                yield each
            else:
                yield from _schemas(each)
    elif isinstance(value, list):
        for each in value:
            yield from _schemas(each)


def _require_valid(document: Document) -> None:
    """The document is OpenAPI 3.1: by its schema, its schemas are schemas, its references lead somewhere, and what must be
    unique is."""
    errors = [
        f"{error.instance_path}: {error.message}" for error in definitions.OPENAPI_31_VALIDATOR.iter_errors(document)
    ]
    assert errors == []
    for schema in [*_schemas(document["paths"]), *document["components"]["schemas"].values()]:
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    for reference in _references(document):
        _at(document, reference)
    for name in document["components"]["schemas"]:
        assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)
    identities = []
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            if verb == "parameters":
                continue
            where = f"{verb} {path}"
            identities.append(operation.get("operationId", where))
            assert operation["summary"], where
            parameters = [
                _at(document, each["$ref"]) if "$ref" in each else each
                for each in [*operation.get("parameters", []), *item.get("parameters", [])]
            ]
            keys = [(each["in"], each["name"].lower()) for each in parameters]
            assert len(set(keys)) == len(keys), where
            assert not {name for place, name in keys if place == "header"} & {"accept", "content-type", "authorization"}
            assert {name for place, name in keys if place == "path"} == set(re.findall(r"{(\w+)}", path)), where
    assert len(set(identities)) == len(identities)


def _standing_alone(document: Document, schema: Any) -> jsonschema_rs.Validator:
    """A validator of one of the document's schemas."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def _operation(document: Document, name: str) -> dict[str, Any]:
    operation: dict[str, Any] = document["paths"][f"/v1/service/{name}"]["post"]
    return operation


# -- the hub itself


async def test_the_document_lists_what_there_is_and_nothing_else(memory: Running) -> None:
    """Every path and method that answers is in the document, and every one in the document answers; the index has no
    other."""
    memory.hub.service("greet")(greet)
    await memory.create("a")
    document = await _document(memory)
    listed = {path: {verb.upper() for verb in item} - {"PARAMETERS"} for path, item in document["paths"].items()}
    values = {"name": "a", "service": "greet", "id": "x", "worker": "w", "group": "g"}
    for path, methods in listed.items():
        target = path.format(**values)
        allowed = set((await memory.ask("PROPFIND", target))["Allow"].split(", "))
        assert methods - allowed == set(), path
        assert allowed - methods <= {"HEAD", "OPTIONS"}, path  # they go without saying
        for method in methods:
            wire = await memory.connect()
            await wire.send(request(method, target, TEXT, b"x" if method in ("PUT", "POST", "PATCH") else None))
            answer = await wire.response(method)
            assert answer.status not in (500, 501), (method, path)
            assert answer.status != 405 or (method, path) == ("POST", "/v1/upload/{id}")  # it names no method
            assert b'"code":"not-found"' not in answer.body, (method, path)
    index = (await memory.ask("GET", "/")).body.decode()
    for found in re.findall(r"/[^\s;]*", index):
        kind = next((kind for kind in ("service", "group") if f"/{kind}/" in found), "name")
        path = found.replace("NAME", f"{{{kind}}}").replace("ID", "{id}")
        assert path in listed, found


async def test_the_document_s_refusals_are_what_is_refused(memory: Running) -> None:
    """The schema of a problem in the document fits the problems that are answered."""
    validator = _standing_alone(await _document(memory), {"$ref": "#/components/schemas/Problem"})
    validator.validate(json.loads((await memory.ask("GET", "/v1/stream/none")).body))
    validator.validate(json.loads((await memory.ask("POST", "/v1/service/none")).body))
    assert not validator.is_valid({"status": 404})


# -- services of this process


async def test_the_document_is_valid_without_and_with_services(memory: Running) -> None:
    """Whatever is declared, the document is OpenAPI 3.1."""
    _require_valid(await _document(memory))
    offer(memory.hub)
    _offer(memory)
    document = await _document(memory)
    _require_valid(document)
    assert {f"/v1/service/{name}" for name in memory.hub.handlers} <= set(document["paths"])


async def test_an_operation_says_what_its_service_takes_and_gives(memory: Running) -> None:
    """Summary, query parameters, the body in each media type, the result in each, and how it is refused."""
    _offer(memory)
    document = await _document(memory)
    operation = _operation(document, "pet")
    assert (operation["operationId"], operation["summary"]) == ("call_pet", "Pet an animal, gently.")
    query = {each["name"]: each for each in operation["parameters"] if "$ref" not in each}
    assert {name: (each["in"], each["required"]) for name, each in query.items()} == {
        "loud": ("query", False),
        "names": ("query", False),
        "at": ("query", False),
    }
    assert query["loud"]["schema"] == {"type": "boolean", "default": False}
    assert query["names"]["schema"]["items"] == {"type": "string"}
    body = operation["requestBody"]
    assert body["required"] is True
    assert list(body["content"]) == ["application/json", "application/msgpack", "application/xml"]
    taken = _standing_alone(document, body["content"]["application/json"]["schema"])
    assert taken.is_valid({"type": "Dog", "owner": {"width": 1}})
    assert not taken.is_valid({"type": "Dog", "owner": {"metres": 1}})
    given = _standing_alone(document, operation["responses"]["200"]["content"]["application/msgpack"]["schema"])
    assert given.is_valid({"value": 1, "children": [{"value": 2, "children": []}]})
    assert not given.is_valid({"value": 1, "children": [{}]})
    assert {"202", "404", "406", "415", "422", "429", "504"} <= set(operation["responses"])
    assert operation["responses"]["202"] == {"$ref": "#/components/responses/Accepted"}


async def test_a_service_that_yields_is_described_as_events(memory: Running) -> None:
    """Its answer is an event stream, with what each item is."""
    _offer(memory)
    document = await _document(memory)
    content = _operation(document, "play")["responses"]["200"]["content"]
    assert list(content) == ["text/event-stream", "application/json"]
    item = _standing_alone(document, content["text/event-stream"]["x-item-schema"])
    assert item.is_valid({"width": 1})
    assert not item.is_valid(1)


@pytest.mark.parametrize(
    ("name", "takes", "gives"),
    [
        ("greet", ["application/json", "application/msgpack", "application/xml", "text/plain"], "text/plain"),
        ("number", ["application/json", "application/msgpack", "application/x-protobuf", "application/xml"], "application/x-protobuf"),
        ("reverse", ["application/json", "application/msgpack", "*/*"], "application/octet-stream"),
    ],
)  # fmt: skip
async def test_bodies_that_are_no_json_are_what_they_are(
    memory: Running, name: str, takes: list[str], gives: str
) -> None:
    """Text is a string, Protobuf and bytes are binary, and bytes within JSON are base64."""
    offer(memory.hub)
    operation = _operation(await _document(memory), name)
    content = operation["requestBody"]["content"]
    assert set(takes) <= set(content)
    given = operation["responses"]["200"]["content"][gives]["schema"]
    assert given["type"] == "string"
    if name == "reverse":
        assert content["application/json"]["schema"] == {"type": "string", "contentEncoding": "base64"}
        assert content["*/*"]["schema"] == given == {"type": "string", "format": "binary"}


async def test_a_service_without_parameters_takes_no_body(memory: Running) -> None:
    """There is nothing to send."""
    offer(memory.hub)
    document = await _document(memory)
    assert "requestBody" not in _operation(document, "nothing")
    assert "requestBody" not in _operation(document, "drip")
    assert "required" not in _operation(document, "hold")["requestBody"]


async def test_what_has_one_name_and_is_not_one_stays_two(memory: Running) -> None:
    """Types of one name, in this process or from others, do not stand for each other; equal ones are there once."""
    offer(memory.hub)
    _offer(memory)
    document = await _document(memory)
    sizes = [name for name in document["components"]["schemas"] if name.endswith("Size")]
    assert len(sizes) == 3
    for name, fits in (
        ("double", {"width": 1}),
        ("order", {"id": 1, "size": {"boxes": 1}}),
        ("measure", {"metres": 1}),
    ):
        schema = _operation(document, name)["requestBody"]["content"]["application/json"]["schema"]
        validator = _standing_alone(document, schema)
        assert validator.is_valid(fits), name
        assert not validator.is_valid({"centuries": 1}), name


async def test_the_document_is_as_services_are_now(memory: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is declared later is in the document; while nothing is, it is not made again."""
    make = Mock(wraps=document_of)
    monkeypatch.setattr("wayside.server.http.operations.document", make)
    first = await memory.ask("GET", "/openapi.json")
    assert (await memory.ask("GET", "/openapi.json")).body == first.body
    assert make.call_count == 1
    offer(memory.hub)
    document = await _document(memory)
    assert "/v1/service/greet" in document["paths"]
    memory.hub.calls.declare(ServiceSpec("greet", description="It is another now."))
    assert _operation(await _document(memory), "greet")["summary"] == "It is another now."


# -- services of others


async def test_services_of_workers_are_described_as_well_as_our_own(memory: Running) -> None:
    """A worker sends what its handlers take and give; the document has the same operations as for handlers of this
    process, also when the worker has gone."""
    handlers = {each.__name__: Handler(each, ServiceSpec(each.__name__)) for each in (pet, measure, order, play)}
    host, port = memory.server.address
    remote = Remote(f"http://{host}:{port}", handlers)
    await remote.start()
    await until(lambda: "play" in memory.hub.calls.services)
    theirs = await _document(memory)
    await remote.stop(0)
    assert await _document(memory) == theirs
    _require_valid(theirs)
    _offer(memory)
    ours = await _document(memory)
    assert ours == theirs


async def test_an_interface_is_kept_over_a_restart(disk: Running) -> None:
    """A hub that is started again knows what its services took; declaring the same again changes nothing."""
    _offer(disk)
    document = await _document(disk)
    specs = {name: service.spec for name, service in disk.hub.calls.services.items()}
    restored = {name: msgspec.json.decode(msgspec.json.encode(spec), type=ServiceSpec) for name, spec in specs.items()}
    assert restored == specs
    for spec in restored.values():
        disk.hub.calls.declare(spec)
    assert {name: service.spec for name, service in disk.hub.calls.services.items()} == specs
    assert await _document(disk) == document


_DEEP: Any = {}
for _ in range(200):
    _DEEP = {"items": _DEEP}


@pytest.mark.parametrize(
    "interface",
    [
        {},
        {"takes": 1},
        {"takes": ["application/json"], "input": {"$ref": "#/$defs/Missing"}},
        {"takes": ["application/json"], "input": {"$ref": "http://169.254.169.254/latest"}},
        {"takes": ["application/json"], "input": {"$ref": "#/$defs/A"}, "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"takes": ["application/json"], "input": {"$ref": "#/$defs/a b/c"}, "$defs": {"a b/c": {"type": "string"}}},
        {"takes": ["application/json"], "input": {"$ref": "#/$defs/Problem"}, "$defs": {"Problem": {"type": "null"}}},
        {"query": [{"name": "a"}, {"name": "a"}]},
        {"query": [{"name": "a", "schema": {"$ref": "#/$defs/A"}}], "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"takes": ["application/json"], "input": _DEEP},
        {"takes": ["application/json"], "input": 5, "output": [1]},
        {"takes": ["", "x"], "gives": [""]},
    ],
)
async def test_what_a_stranger_declares_spoils_nothing(memory: Running, interface: dict[str, Any]) -> None:
    """A declaration that makes no sense costs its own service its description, and no other anything."""
    offer(memory.hub)
    memory.hub.calls.declare(ServiceSpec("strange", interface=interface))
    document = await _document(memory)
    _require_valid(document)
    assert _operation(document, "strange")["responses"]
    assert _operation(document, "double")["requestBody"]["required"] is True
    problem = _at(document, "#/components/schemas/Problem")
    assert "code" in problem["properties"]


async def test_strange_names_are_names(memory: Running) -> None:
    """A service's name is no template and no path of its own; operations of like names are told apart."""
    for name in ("a.b", "a-b", "{a}", "a/b", "ü"):
        memory.hub.calls.declare(ServiceSpec(name))
    document = await _document(memory)
    _require_valid(document)
    assert {"/v1/service/a.b", "/v1/service/%7Ba%7D", "/v1/service/a%2Fb", "/v1/service/%C3%BC"} <= set(
        document["paths"]
    )


# -- what is answered is what is described


@pytest.mark.parametrize(
    ("method", "target", "path", "status"),
    [
        ("GET", "/v1/service/", "/v1/service/", 200),
        ("GET", "/v1/service/hold", "/v1/service/{service}", 200),
        ("GET", "/v1/call/", "/v1/call/", 200),
        ("GET", "{call}", "/v1/call/{id}", 200),
        ("GET", "{call}?offset=-1", "/v1/call/{id}", 200),
        ("GET", "{call}/result", "/v1/call/{id}/result", 202),
        ("DELETE", "{call}", "/v1/call/{id}", 200),
    ],
)
async def test_answers_are_as_the_document_says(
    memory: Running, method: str, target: str, path: str, status: int
) -> None:
    """Statuses, events and services fit the schemas that the document has for them."""
    holder = offer(memory.hub)
    handed = await memory.ask("POST", "/v1/service/hold", {**JSON, "Prefer": "respond-async"}, b"1")
    document = await _document(memory)
    answer = await memory.ask(method, target.format(call=handed["Location"]))
    assert answer.status == status
    response = document["paths"][path][method.lower()]["responses"][str(status)]
    response = _at(document, response["$ref"]) if "$ref" in response else response
    schema = response["content"]["application/json"]["schema"]
    _standing_alone(document, schema).validate(json.loads(answer.body))
    _standing_alone(document, {"$ref": "#/components/schemas/Call"}).validate(json.loads(handed.body))
    holder.let_go()
