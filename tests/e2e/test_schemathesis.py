"""Schemathesis against a running hub: what it makes of the OpenAPI document is sent, and what comes back is held against it.

All operations are asked but one, and all parameters made up but some: ``LEFT_OUT`` says which and why. The answers of
those are tested in tests/http.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import json
import re
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import msgspec
import pydantic
import pytest
from google.protobuf import type_pb2

from tests.support.processes import ROOT, Run
from wayside import Call, Hub
from wayside.core.errors import Conflict, NotFound

PATIENCE_S = 10.0
SECONDS_MAX = 100.0
"""Of the whole run, which takes about 15 s."""
LEFT_OUT = {
    "/v1/connect": "it is a WebSocket",
    "/v1/stream/__ds/subscriptions/{id}": "its receivers would be made up, and told; see tests/http/test_subscribing.py",
    "Live": "its answers stay open for as long as there may be more",
    "Wait": "the same",
    "Claim.wait": "the same",
    "Callback": "nobody listens at the URLs that are made up, and the hub has no secret to sign with",
    "X-HTTP-Method-Override": "tus has it stand for any method, also for those that the document does not have",
}
"""Paths, parameters and properties that are not asked for, and why."""
CHECKS_LEFT_OUT = {
    "positive_data_acceptance": "some of what JSON Schema allows is refused: 16.0 is an integer there, and a `date-time` "
    "may be empty where another `anyOf` matches",
    "negative_data_rejection": "header fields and parameters that are not known are ignored, as HTTP wants it",
    "missing_required_header": "a request without `Tus-Resumable` is 412, as tus wants it",
}
"""Checks that are not made, and why; all others are."""


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(msgspec.Struct, forbid_unknown_fields=True):
    width: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    height: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class Circle(msgspec.Struct, tag="circle"):
    radius: int


class Square(msgspec.Struct, tag="square"):
    side: int
    colour: Colour = Colour.RED


class Node(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(max_length=20)]
    children: list[Node] = []


class Person(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=0, le=150)


class Parcel(msgspec.Struct):
    id: uuid.UUID
    sent: dt.datetime
    weight: decimal.Decimal
    labels: dict[str, str]
    route: list[float]
    size: Size | None = None
    content: bytes = b""


async def resize(size: Size, times: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2) -> Size:
    """Make it larger."""
    return Size(min(1000, max(1, size.width * times)), size.height)


def area(shape: Circle | Square, *, unit: Literal["mm", "cm"] = "mm", tags: list[str] = []) -> float:  # noqa: B006
    return 3.14 * shape.radius**2 if isinstance(shape, Circle) else float(shape.side**2)


async def add(a: int, b: int, *, c: int = 0) -> int:
    return a + b + c


async def depth(node: Node) -> Node:
    return Node(node.name, [node])


async def birthday(person: Person) -> Person:
    return Person(name=person.name, age=min(150, person.age + 1))


async def send(parcel: Parcel) -> Parcel:
    return parcel


async def increment(value: type_pb2.EnumValue) -> type_pb2.EnumValue:
    return type_pb2.EnumValue(name=value.name, number=value.number)


async def reverse(data: bytes) -> bytes:
    return data[::-1]


async def greet(name: str) -> str:
    return f"Hello, {name}!"


async def anything(value: Any) -> Any:
    return value


async def nothing() -> None:
    return None


async def countdown(n: Annotated[int, msgspec.Meta(ge=0, le=20)], *, call: Call) -> AsyncIterator[int]:
    await call.progress(0)
    for each in range(n):
        yield each


async def refuse(kind: Literal["missing", "conflict"]) -> None:
    raise NotFound("It is not there.", code="missing") if kind == "missing" else Conflict("It is there.")


SERVICES = (resize, area, add, depth, birthday, send, increment, reverse, greet, anything, nothing, countdown, refuse)


class Served:
    """A hub with these services, which listens, on an event loop in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.url = ""
        self.hub = Hub(f"file:{directory}")
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    async def _serve(self) -> None:
        async with self.hub as hub:
            for handler in SERVICES:
                hub.service(handler.__name__)(handler)
            server = await hub.serve(port=0)
            self.url = "http://{}:{}".format(*server.address)
            self._ready.set()
            await self._stop.wait()
            await server.drain(1)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "data")
    yield served
    served.stop()


def _document(served: Served) -> dict[str, Any]:
    """The hub's document, without what is left out, and without ``default``: only the statuses that it names will do."""
    document: dict[str, Any] = httpx.get(f"{served.url}/openapi.json").json()
    found = set(document["paths"]) & set(LEFT_OUT)
    for path in found:
        del document["paths"][path]
    for name, schema in document["components"]["schemas"].items():
        for each in [each for each in schema.get("properties", ()) if f"{name}.{each}" in LEFT_OUT]:
            del schema["properties"][each]
            found.add(f"{name}.{each}")
    operations = [op for item in document["paths"].values() for verb, op in item.items() if verb != "parameters"]
    for operation in operations:
        operation["responses"].pop("default", None)
        names = [
            (each.get("name") or each["$ref"].rpartition("/")[2], each) for each in operation.get("parameters", [])
        ]
        found |= {name for name, _ in names} & set(LEFT_OUT)
        operation["parameters"] = [each for name, each in names if name not in LEFT_OUT]
    assert found == set(LEFT_OUT), "something is left out that is not there any more"
    return document


@pytest.mark.slow
def test_a_hub_is_what_its_document_says(served: Served, run: Run, tmp_path: Path) -> None:
    """Made-up requests to every operation, good and bad, alone and one after another, are answered with a status, a media
    type, headers and a body that the document has; none is a mistake of the hub's own, and none disturbs it."""
    described = tmp_path / "openapi.json"
    described.write_text(json.dumps(_document(served)))
    program = run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("run", str(described), "--url", served.url, "--no-color"),
            *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "10"),
            *("--seed", "1", "--generation-deterministic", "--request-timeout", "10"),
            *("--exclude-checks", ",".join(CHECKS_LEFT_OUT), "--continue-on-failure"),
        ],
        env={"SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    status = program.wait(SECONDS_MAX)
    report = program.out.text[-20_000:]
    assert status == 0, report
    tested = re.search(r"Selected: (\d+)/(\d+)\n +Tested: (\d+)", report)
    assert tested, report
    assert len(set(tested.groups())) == 1, report
    assert served.hub.log.failed is None
    calls = served.hub.calls.ledger.recent.values()
    assert {call.request.service for call in calls} == {handler.__name__ for handler in SERVICES}
    assert {call.durable for call in calls} == {True, False}
    assert not [call for call in calls if (call.error or {}).get("status") == 500]
