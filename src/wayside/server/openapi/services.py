"""The part of the OpenAPI document that services declare: an operation for each, and the schemas that they have in common.

What a service declares comes from a program that may not be ours, and not be Python: what makes no sense in it is left
out, and the rest of the document stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from typing import Any
from urllib.parse import quote

import msgspec

from wayside.calls.queue import Service
from wayside.core.codecs import kind_of
from wayside.server.openapi.components import json_answer, refusals, schema_of, shared

__all__ = ["Schemas", "service_paths"]

REFUSALS = (400, 404, 406, 409, 413, 415, 422, 429, 500, 503, 504, 507)
"""What a call can be answered with beside its result; a handler may refuse with any other status."""
HEADERS = ("Prefer", "IdempotencyKey", "Priority", "Delay", "Callback")
"""Parameters of every call: components of the document."""

_BASE64 = {"type": "string", "contentEncoding": "base64"}
_BINARY = {"type": "string", "format": "binary"}
_REF = "#/$defs/"
_Schema = dict[str, Any] | bool


class _Query(msgspec.Struct):
    name: str
    schema: _Schema = {}
    required: bool = False


class _Interface(msgspec.Struct):
    """What :attr:`wayside.calls.handler.Handler.spec` declares; schemas refer to ``$defs`` of their own."""

    takes: list[str] = []
    gives: list[str] = []
    required: bool = False
    input: _Schema = {}
    output: _Schema = {}
    query: list[_Query] = []
    defs: dict[str, _Schema] = msgspec.field(name="$defs", default_factory=dict)


class Schemas:
    """Schemas by name. One that several services have is there once; of several with one name, each has its own."""

    def __init__(self, schemas: dict[str, Any]) -> None:
        self.all = dict(schemas)
        self._names: dict[bytes, str] = {}
        """Component by name and all that it consists of."""

    def take(self, owner: str, defs: dict[str, Any]) -> Callable[[Any], Any]:
        """Add the schemas that ``owner`` refers to; returns what makes its references lead to them."""
        names: dict[str, str] = {}
        added: dict[str, Any] = {}
        for name, schema in defs.items():
            reached = _reachable(name, defs)
            whole = msgspec.json.encode([name, {each: defs[each] for each in sorted(reached)}])
            chosen = self._names.get(whole)
            if chosen is None:
                chosen = self._names[whole] = self._free(name, owner, added)
                added[chosen] = schema
            names[name] = chosen
        self.all.update({chosen: _led(schema, names) for chosen, schema in added.items()})
        return lambda schema: _led(schema, names)

    def _free(self, name: str, owner: str, added: dict[str, Any]) -> str:
        """A component's name that nobody has: the short one if it can be."""
        plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) or "_"
        longer = re.sub(r"[^\w.-]", "_", f"{owner}.{name}", flags=re.ASCII)
        candidates = chain([plain, longer], (f"{longer}.{number}" for number in count(2)))
        return next(each for each in candidates if each not in self.all and each not in added)


def _references(schema: Any) -> Iterator[str]:
    """The names that a schema refers to, by ``$ref`` or in a discriminator's mapping."""
    if isinstance(schema, dict):
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
    elif isinstance(schema, str) and schema.startswith(_REF):
        yield schema[len(_REF) :]


def _reachable(name: str, defs: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        each = todo.pop()
        if each in defs and each not in found:
            found.add(each)
            todo += _references(defs[each])
    return found


def _led(schema: Any, names: dict[str, str]) -> Any:
    """A schema whose references lead to components; those that lead nowhere are left out."""
    if isinstance(schema, dict):
        kept = {name: value for name, value in schema.items() if name != "$ref" or not _is_lost(value, names)}
        return {name: _led(value, names) for name, value in kept.items()}
    if isinstance(schema, list):
        return [_led(value, names) for value in schema]
    if isinstance(schema, str) and schema.startswith(_REF) and (name := names.get(schema[len(_REF) :])) is not None:
        return f"#/components/schemas/{name}"
    return schema


def _is_lost(reference: Any, names: dict[str, str]) -> bool:
    return isinstance(reference, str) and reference.removeprefix(_REF) not in names


# -- operations


def service_paths(services: Iterable[Service], schemas: Schemas) -> dict[str, Any]:
    """Path items by path; what they refer to is added to ``schemas``."""
    paths: dict[str, Any] = {}
    identities: set[str] = set()
    for service in services:
        try:
            interface = msgspec.convert(service.spec.interface, _Interface)
            lead = schemas.take(service.name, interface.defs)
            operation = _operation(service, interface, lead)
        except (ValueError, TypeError, RecursionError):
            operation = _operation(service, _Interface(), lambda schema: schema)
        plain = "call_" + re.sub(r"\W", "_", service.name, flags=re.ASCII)
        candidates = chain([plain], (f"{plain}_{number}" for number in count(2)))
        identity = next(each for each in candidates if each not in identities)
        identities.add(identity)
        about = {"operationId": f"describe_{identity[len('call_') :]}", **_about(service)}
        post = {"operationId": identity, **operation}
        paths[f"/v1/service/{quote(service.name, safe='')}"] = {"get": about, "post": post}
    return paths


def _about(service: Service) -> dict[str, Any]:
    return {
        "tags": ["services"],
        "summary": f"How {service.name} is set up, and how busy it is",
        "responses": {"200": json_answer("The service", schema_of("Service"))},
    }


def _operation(service: Service, interface: _Interface, lead: Callable[[Any], Any]) -> dict[str, Any]:
    streams = service.spec.streams
    query = {each.name: each for each in interface.query if not _is_object(each.schema, interface.defs)}
    operation: dict[str, Any] = {
        "tags": ["services"],
        "summary": service.spec.description or f"Call {service.name}",
        "description": (
            "Yields its answer: `Accept: text/event-stream` gives it as it comes."
            if streams
            else "`Accept: text/event-stream` gives the progress and the result as events."
        ),
        "parameters": [
            *(shared(name) for name in HEADERS),
            *(_query(each, lead) for each in query.values()),
        ],
        "responses": {
            "200": _result(interface, lead, streams=streams),
            "202": {"$ref": "#/components/responses/Accepted"},
            **refusals(*REFUSALS, "default"),
        },
    }
    if interface.takes or not service.spec.interface:
        operation["requestBody"] = _body(interface, lead)
    return operation


def _is_object(schema: Any, defs: dict[str, Any]) -> bool:
    """Whether no text of a query can be such a value."""
    while isinstance(schema, dict) and isinstance(reference := schema.get("$ref"), str):
        defs, schema = {**defs, reference[len(_REF) :]: None}, defs.get(reference[len(_REF) :])
    return isinstance(schema, dict) and schema.get("type") == "object"


def _query(parameter: _Query, lead: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        "in": "query",
        "name": parameter.name,
        "required": parameter.required,
        "schema": lead(parameter.schema),
    }


def _body(interface: _Interface, lead: Callable[[Any], Any]) -> dict[str, Any]:
    takes = interface.takes or ["*/*"]
    body = {"content": {name: {"schema": _as(name, interface.input, lead)} for name in takes}}
    return {**body, "required": True} if interface.required else body


def _result(interface: _Interface, lead: Callable[[Any], Any], *, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if streams:
        events = (
            "A `CallEvent` each; the values that the service yields are the `data` of those whose `event` is `item`."
        )
        schema = {"type": "string", "description": events}
        content["text/event-stream"] = {"schema": schema, "x-item-schema": _as("", interface.output, lead)}
        content["application/json"] = {"schema": {"type": "null"}}
    else:
        for name in interface.gives or ["*/*"]:
            content[name] = {"schema": _as(name, interface.output, lead)}
    call = {"description": "The call, at /v1/call/", "schema": {"type": "string"}}
    return {"description": "The result", "headers": {"Wayside-Call": call}, "content": content}


def _as(media_type: str, schema: Any, lead: Callable[[Any], Any]) -> Any:
    """The schema of a body of that type."""
    kind = kind_of(media_type) if media_type not in ("", "*/*") else ""
    if kind in ("protobuf", "raw"):
        return _BINARY
    if kind == "text":
        return {"type": "string"}
    if kind and schema == _BINARY:
        return _BASE64
    return lead(schema)
