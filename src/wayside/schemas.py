"""JSON Schemas (2020-12, as in OpenAPI 3.1) of every type that the codecs read: msgspec's, pydantic's and Protobuf's.

Schemas of named types are components, which others refer to. Knows nothing of handlers and parameters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from wayside.codecs import is_message, is_model, registered_schema

__all__ = ["BINARY", "has_schema", "schemas_of"]

Schema = dict[str, Any]

BINARY: Schema = {"type": "string", "format": "binary"}
"""A body that is taken, or given, as it is."""

_WELL_KNOWN: dict[str, Schema] = {
    "Any": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
    "BoolValue": {"type": "boolean"},
    "BytesValue": {"type": "string", "contentEncoding": "base64"},
    "DoubleValue": {"type": "number"},
    "Duration": {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?s$"},
    "FieldMask": {"type": "string"},
    "FloatValue": {"type": "number"},
    "Int32Value": {"type": "integer"},
    "Int64Value": {"type": ["string", "integer"], "format": "int64"},
    "ListValue": {"type": "array"},
    "StringValue": {"type": "string"},
    "Struct": {"type": "object"},
    "Timestamp": {"type": "string", "format": "date-time"},
    "UInt32Value": {"type": "integer", "minimum": 0},
    "UInt64Value": {"type": ["string", "integer"], "format": "uint64"},
    "Value": {},
}
"""Messages of google.protobuf whose JSON is special: protobuf.dev, ProtoJSON format."""


def schemas_of(types: Sequence[Any], ref_template: str) -> tuple[list[Schema], dict[str, Schema]]:
    """A schema for each of ``types``, in their order, and the components by name; ``ref_template`` has ``{name}``.

    Raises TypeError where there is none: values of such a type cannot be read.
    """
    _, taken = msgspec.json.schema_components(types, schema_hook=lambda _: _SOME, ref_template=ref_template)
    foreign = _Foreign(ref_template, taken)
    found, own = msgspec.json.schema_components(types, schema_hook=foreign.schema, ref_template=ref_template)
    return list(found), {**own, **foreign.components}


def has_schema(type_: Any) -> bool:
    """Whether :func:`schemas_of` has one for the type."""
    try:
        schemas_of([type_], "{name}")
    except TypeError:
        return False
    return True


_SOME: Schema = {"type": "object"}
"""Stands for a foreign schema while msgspec says which names it gives out itself."""


class _Foreign:
    """Schemas of types that msgspec does not know; ``taken`` are names of components that are not ours to give."""

    def __init__(self, ref_template: str, taken: Collection[str]) -> None:
        self.components: dict[str, Schema] = {}
        self._ref_template = ref_template
        self._taken = set(taken)
        self._names: dict[object, str] = {}

    def schema(self, cls: Any) -> Schema:
        registered = registered_schema(cls)
        if registered is not None:
            return registered
        if is_message(cls):
            return self._message(cls.DESCRIPTOR)
        if is_model(cls):
            return self._model(cls)
        raise TypeError(f"a {cls.__qualname__} cannot be made of JSON; use a struct, a dataclass or a plain type")

    def _model(self, cls: Any) -> Schema:
        if cls not in self._names:
            schema = cls.model_json_schema(ref_template=self._ref_template.replace("{name}", "{model}"))
            for name, inner in schema.pop("$defs", {}).items():
                self.components.setdefault(name, inner)
            self.components[self._claim(cls, cls.__name__, f"{cls.__module__}.{cls.__qualname__}")] = schema
        return self._ref(cls)

    def _message(self, descriptor: Any) -> Schema:
        package, _, name = descriptor.full_name.rpartition(".")
        if package == "google.protobuf" and name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        if descriptor not in self._names:  # named before its fields are looked at: it may hold itself
            component = self._claim(descriptor, descriptor.full_name, descriptor.full_name + ".Message")
            properties = {field.json_name: self._field(field) for field in descriptor.fields}
            self.components[component] = {
                "title": name,
                "type": "object",
                "properties": properties,
                "additionalProperties": False,
            }
        return self._ref(descriptor)

    def _field(self, field: Any) -> Schema:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self._field(message.fields_by_name["value"])}
        one = self._message(message) if message is not None else _scalar(field)
        return {"type": "array", "items": one} if field.is_repeated else one

    def _claim(self, owner: object, name: str, longer: str) -> str:
        """A component's name: the short one where nobody else has it."""
        chosen = longer if name in self._taken or name in self.components else name
        self._names[owner] = re.sub(r"[^\w.-]", "_", chosen, flags=re.ASCII)
        self._taken.add(chosen)
        return self._names[owner]

    def _ref(self, owner: object) -> Schema:
        return {"$ref": self._ref_template.format(name=self._names[owner])}


def _scalar(field: Any) -> Schema:
    """The schema of a field's one value: integers of 64 bits are text in ProtoJSON, and numbers are taken, too."""
    if field.enum_type is not None:
        return {"enum": [value.name for value in field.enum_type.values]}
    if field.type == field.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
        return {"type": ["string", "integer"], "format": "int64" if field.cpp_type == field.CPPTYPE_INT64 else "uint64"}
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32):
        return {"type": "integer"}
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return {"type": "number"}
    return {"type": "boolean" if field.cpp_type == field.CPPTYPE_BOOL else "string"}
