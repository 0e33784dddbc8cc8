"""From a request's payload to a handler's arguments, and from its result to a payload: what a handler takes and gives.

A :class:`Signature` is made once for each handler, and is also what its OpenAPI description is made from. Knows
nothing of who calls or how a handler is run.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from inspect import Parameter
from typing import Any, NamedTuple

import msgspec

from wayside.core.codecs import (
    MSGPACK,
    OCTETS,
    PROTOBUF,
    XML,
    Codec,
    Payload,
    codec_for,
    encode,
    is_message,
    is_model,
    kind_of,
    media_types_out,
    register,
    registered_schema,
)
from wayside.core.errors import InvalidInput, UnsupportedMediaType
from wayside.core.records import JSON

__all__ = [
    "ARGUMENTS",
    "BINARY",
    "Described",
    "Opener",
    "Signature",
    "Upload",
    "has_schema",
    "pack_arguments",
    "schemas",
    "schemas_of",
]


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


ARGUMENTS = "application/vnd.wayside.arguments+msgpack"
"""MessagePack of ``[[positional, ...], {name: value, ...}]``: what the Python client sends for more than one argument."""

Opener = Callable[[str], AsyncIterator[bytes]]
"""The bytes of a stream, by its path, in chunks."""

_STREAM = "$stream"
_STREAM_URL = "/v1/stream/"
_NO_QUERY: Mapping[str, list[str]] = {}


class Upload:
    """A byte stream as an argument, by reference: ``{"$stream": "uploads/abc"}`` on the wire.

    Read it whole, or iterate over its chunks with ``async for``. A new iteration begins at the start.
    """

    __slots__ = ("_opener", "path")

    def __init__(self, path: str) -> None:
        self.path = path.removeprefix(_STREAM_URL)
        self._opener: Opener | None = None

    def attach(self, opener: Opener) -> None:
        """Say where the bytes come from."""
        self._opener = opener

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._opener is None:
            raise RuntimeError(f"The upload {self.path} is not attached to a hub: only a running handler can read it.")
        return self._opener(self.path)

    async def read(self) -> bytes:
        """All bytes. Raises what the opener raises: NotFound where there is no such stream."""
        return b"".join([chunk async for chunk in self])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Upload) and other.path == self.path

    def __hash__(self) -> int:
        return hash((Upload, self.path))

    def __repr__(self) -> str:
        return f"<Upload {self.path}{'' if self._opener else ' detached'}>"


def _upload(value: object) -> Upload:
    if (
        not isinstance(value, dict)
        or set(value) != {_STREAM}
        or not isinstance(path := value[_STREAM], str)
        or not path
    ):
        raise ValueError('An upload is {"$stream": "PATH"}, the path of a stream that holds its bytes')
    return Upload(path)


register(
    Upload,
    lambda upload: {_STREAM: upload.path},
    _upload,
    {
        "type": "object",
        "properties": {_STREAM: {"type": "string", "description": "The path of a stream that holds the bytes"}},
        "required": [_STREAM],
    },
)


def pack_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Payload:
    """The arguments of a call as one payload, as compact as their number allows. Raises TypeError for one that has no
    encoding."""
    if kwargs or len(args) > 1:
        return Payload(encode([args, kwargs], MSGPACK).data, ARGUMENTS)
    if not args:
        return Payload(b"")
    return encode(args[0], _ALONE)


_ALONE = f"{OCTETS}, {PROTOBUF}, {MSGPACK};q=0.5"
"""Bytes as they are, a message as Protobuf, and anything else as MessagePack."""


class _Parameter(NamedTuple):
    name: str
    codec: Codec
    default: Any
    positional: bool
    """Whether it can be given by position."""
    by_position: bool
    """Whether it can only be given so."""
    uploads: bool
    """Whether there can be an upload in its value."""

    @property
    def required(self) -> bool:
        return self.default is Parameter.empty

    def decode(self, payload: Payload, at: str) -> Any:
        """Its value. For bytes a reference to a stream will do, too: its content is read later."""
        try:
            return self.codec.decode(payload, at)
        except InvalidInput:
            if self.codec.is_bytes and payload.data and kind_of(payload.content_type) in ("json", "msgpack"):
                try:
                    return _UPLOAD.decode(payload)
                except InvalidInput:
                    pass  # it is not one: the first refusal says what is wrong
            raise


_UPLOAD = codec_for(Upload)
_OBJECT = codec_for(dict[str, msgspec.Raw])
_ARGUMENTS = codec_for(tuple[list[msgspec.Raw], dict[str, msgspec.Raw]])
_UNTYPED = codec_for(Any)


class Signature:
    """What a handler takes and gives.

    The *body parameter* is the only one without a default, or the only one there is: the body is its value, and the
    query gives the others. Without one the body is an object of all parameters, by name. What the body does not give,
    the query may. ``call_type`` marks the parameter, if there is one, that the runner fills itself.

    Raises TypeError for a function that cannot be called so: annotations that cannot be resolved or read, ``*args``.
    """

    def __init__(self, function: Callable[..., Any], *, call_type: type | None = None) -> None:
        self.function = function
        self.name = getattr(function, "__qualname__", repr(function))
        target = _target(function)
        hints = self._hints(target)
        self.streams = inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)
        self.is_async = inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target)
        self.threaded = not self.is_async
        """Whether it may block, and so runs in a thread."""
        self.call_parameter: str | None = None
        self._parameters: dict[str, _Parameter] = {}
        for parameter in inspect.signature(function).parameters.values():
            hint = hints.get(parameter.name, Any)
            if _is_call(hint, call_type):
                self._take_call(parameter)
            else:
                self._parameters[parameter.name] = self._parameter(parameter, hint)
        self.returns: Any = hints.get("return", Any)
        if self.streams:
            self.returns = _item_type(self.returns)
        self._body = self._body_parameter()
        self.reads_uploads = any(each.uploads for each in self._parameters.values())
        """Whether there is anything for :meth:`read_uploads` to do."""

    # -- what it takes: once

    def _hints(self, target: Any) -> dict[str, Any]:
        try:
            return typing.get_type_hints(target, include_extras=True)
        except (NameError, AttributeError, TypeError, SyntaxError) as error:
            raise TypeError(
                f"The annotations of {self.name} cannot be resolved: {error}. Import or define their types at the top"
                " level of its module (not under TYPE_CHECKING, and not inside a function)."
            ) from error

    def _take_call(self, parameter: Parameter) -> None:
        if self.call_parameter is not None:
            raise TypeError(f"{self.name} takes the call twice: as {self.call_parameter} and as {parameter.name}.")
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            raise TypeError(f"{self.name} must take {parameter.name} by name: move the / before it, or leave it out.")
        self.call_parameter = parameter.name

    def _parameter(self, parameter: Parameter, hint: Any) -> _Parameter:
        kind, name = parameter.kind, parameter.name
        if kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            raise TypeError(
                f"{self.name} takes any number of arguments ({parameter}). Name each one, or take one list or dict."
            )
        try:
            codec = codec_for(hint)
            described = schemas_of([hint], "{name}")  # what has none cannot be read either: say so now, not in a call
        except (TypeError, NotImplementedError) as error:
            raise TypeError(f"The parameter {name} of {self.name} cannot be read from a request: {error}") from error
        positional = kind is not Parameter.KEYWORD_ONLY
        uploads = codec.is_bytes or _STREAM in repr(described)
        return _Parameter(name, codec, parameter.default, positional, kind is Parameter.POSITIONAL_ONLY, uploads)

    def _body_parameter(self) -> _Parameter | None:
        parameters = list(self._parameters.values())
        if len(parameters) != 1:
            parameters = [each for each in parameters if each.required]
        return parameters[0] if len(parameters) == 1 else None

    # -- binding: for each call

    def bind(self, payload: Payload, query: Mapping[str, list[str]] = _NO_QUERY) -> tuple[list[Any], dict[str, Any]]:
        """The arguments to call with, by position (only those that must be) and by name; the call itself is not among
        them. Raises ``InvalidInput`` for what is missing, unknown, given twice or does not fit, and what decoding
        raises."""
        body = self._body
        values: dict[str, Any] = {}
        if payload.content_type == ARGUMENTS:
            values = self._from_arguments(payload)
        elif body is not None:
            if payload.data or payload.content_type:
                values[body.name] = body.decode(payload, "$")
        elif payload.data:
            values = self._from_object(payload)
        if query:
            self._add_query(values, query)
        if len(values) < len(self._parameters):
            self._require(values)
        if not self._by_position:
            return [], values
        return [values.pop(each.name, each.default) for each in self._by_position], values

    @functools.cached_property
    def _by_position(self) -> list[_Parameter]:
        return [each for each in self._parameters.values() if each.by_position]

    def _from_object(self, payload: Payload) -> dict[str, Any]:
        """A body without a body parameter: an object of parameters by name."""
        kind = kind_of(payload.content_type or JSON)
        if kind == "xml":
            members = _UNTYPED.decode(payload) or {}
            if not isinstance(members, dict):
                raise _invalid("$", f"The root element must have an element for each parameter. {self}.")
            names = [name for name in members if name[0] not in "@#"]
            return {name: self._known(name).codec.parse(members[name], f"$.{name}") for name in names}
        if kind not in ("json", "msgpack"):
            takes = ", ".join(self.media_types_in())
            raise UnsupportedMediaType(
                f"The body is {payload.content_type[:80]!r}. {self}: send an object of them, as {takes}.",
                headers={"Accept-Post": takes},
                fields={"media_types": self.media_types_in()},
            )
        return self._from_raw(_OBJECT.decode(payload), JSON if kind == "json" else MSGPACK)

    def _from_raw(self, members: Mapping[str, Any], content_type: str) -> dict[str, Any]:
        return {
            name: self._known(name).decode(Payload(raw, content_type), f"$.{name}") for name, raw in members.items()
        }

    def _from_arguments(self, payload: Payload) -> dict[str, Any]:
        args, kwargs = _ARGUMENTS.decode(Payload(payload.data, MSGPACK))
        positional = [each.name for each in self._parameters.values() if each.positional]
        if len(args) > len(positional):
            raise _invalid(f"$[0][{len(positional)}]", f"There are {len(args)} positional arguments. {self}.")
        members = dict(zip(positional, args, strict=False))
        for name, raw in kwargs.items():
            if name in members:
                raise _invalid(f"$.{name}", f"The parameter {name} is given twice, by position and by name.")
            members[name] = raw
        return self._from_raw(members, MSGPACK)

    def _add_query(self, values: dict[str, Any], query: Mapping[str, list[str]]) -> None:
        for name, texts in query.items():
            parameter = self._known(name)
            if name in values:
                raise _invalid(f"$.{name}", f"The parameter {name} is given twice, in the body and in the query.")
            try:
                values[name] = parameter.codec.from_text(texts[0] if len(texts) == 1 else texts)
            except ValueError:
                values[name] = parameter.codec.parse(texts[0] if len(texts) == 1 else texts, f"$.{name}")

    def _known(self, name: str) -> _Parameter:
        try:
            return self._parameters[name]
        except KeyError:
            raise _invalid(f"$.{name[:80]}", f"There is no parameter {name[:80]!r}. {self}.") from None

    def _require(self, values: Mapping[str, Any]) -> None:
        for name, parameter in self._parameters.items():
            if parameter.required and name not in values:
                raise _invalid(f"$.{name}", f"The parameter {name} is missing. {self}.")

    def __str__(self) -> str:
        """Which parameters there are, for people."""
        names = [each.name if each.required else f"{each.name} (optional)" for each in self._parameters.values()]
        return f"{self.name} takes {', '.join(names) or 'no parameters'}"

    def __repr__(self) -> str:
        return f"<Signature {self}>"

    # -- uploads

    async def read_uploads(self, args: list[Any], kwargs: dict[str, Any], opener: Opener) -> None:
        """Make the uploads among bound arguments readable, in place; those for a ``bytes`` parameter become their content.

        Costs nothing where no parameter's type has room for an upload. Raises what the opener raises.
        """
        if not self.reads_uploads:
            return
        for place, parameter in enumerate(self._by_position):
            args[place] = await _attached(args[place], parameter, opener)
        for name, value in kwargs.items():
            if name in self._parameters:  # and is not the call, or the delivery
                kwargs[name] = await _attached(value, self._parameters[name], opener)

    # -- what it gives, and its description

    def encode(self, value: Any, accept: str | None = None) -> Payload:
        """The handler's result, or one item of a stream, as :func:`wayside.core.codecs.encode` does."""
        return encode(value, accept)

    @property
    def description(self) -> str:
        """The first paragraph of the handler's docstring, as one line."""
        return " ".join((inspect.getdoc(self.function) or "").partition("\n\n")[0].split())

    def media_types_in(self) -> tuple[str, ...]:
        """What a body may be, each by its first name; nothing where there are no parameters."""
        if self._body is not None:
            takes = self._body.codec.takes
            return (*takes, "*/*") if OCTETS in takes else takes
        return (JSON, MSGPACK, XML) if self._parameters else ()

    def media_types_out(self) -> tuple[str, ...]:
        """What a result can be given in, each by its first name, the default first."""
        return media_types_out(self.returns)

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the body, complete in itself."""
        return self._standalone(lambda described: described.input)

    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the result, or of one item of a stream, complete in itself."""
        return self._standalone(lambda described: described.output)

    def query_parameters(self) -> list[dict[str, Any]]:
        """The parameters that only the query gives: ``name``, ``schema``, ``required``, and ``default`` if JSON has it."""
        return schemas([self], "#/$defs/{name}")[0][0].query

    def _standalone(self, part: Callable[[Described], dict[str, Any]]) -> dict[str, Any]:
        (described,), components = schemas([self], "#/$defs/{name}")
        return {**part(described), "$defs": components} if components else part(described)

    def _described(self, found: Iterator[dict[str, Any]]) -> Described:
        """``found`` has the schema of each parameter, then of the result."""
        parameters = self._parameters.values()
        members = {each.name: {**next(found), **_default(each)} for each in parameters}
        output = next(found)
        if media_types_out(self.returns)[0] == OCTETS:
            output = BINARY
        body = self._body
        if body is not None:
            query = [
                {"name": each.name, "schema": members[each.name], "required": False, **_default(each)}
                for each in parameters
                if each is not body
            ]
            return Described(BINARY if body.codec.is_bytes else members[body.name], output, query)
        required = [each.name for each in parameters if each.required]
        whole = {"type": "object", "properties": members, "additionalProperties": False}
        return Described({**whole, "required": required} if required else whole, output, [])


# -- what a function is


def _target(function: Any) -> Any:
    """The function that holds the annotations, and says whether it is a coroutine: behind partials and instances."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def _is_call(hint: Any, call_type: type | None) -> bool:
    cls = typing.get_origin(hint) or hint
    return call_type is not None and isinstance(cls, type) and issubclass(cls, call_type)


def _item_type(returns: Any) -> Any:
    """What a generator yields, of ``AsyncIterator[Item]`` and the like."""
    arguments = typing.get_args(returns)
    return arguments[0] if arguments else Any


def _invalid(field: str, text: str) -> InvalidInput:
    return InvalidInput(text, fields={"field": field})


# -- uploads among arguments


async def _attached(value: Any, parameter: _Parameter, opener: Opener) -> Any:
    if isinstance(value, Upload) and parameter.codec.is_bytes:
        value.attach(opener)
        return await value.read()
    _attach(value, opener)
    return value


def _attach(value: Any, opener: Opener) -> None:
    """Attach every upload in ``value``, as deep as the codecs can have put one."""
    if isinstance(value, Upload):
        value.attach(opener)
    elif isinstance(value, Mapping):
        _attach(list(value.values()), opener)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _attach(item, opener)
    elif isinstance(value, msgspec.Struct):
        _attach([getattr(value, name) for name in value.__struct_fields__], opener)
    elif is_dataclass(value):
        _attach([getattr(value, field.name) for field in dataclass_fields(value)], opener)


# -- schemas


class Described(NamedTuple):
    """JSON Schemas of one signature."""

    input: dict[str, Any]
    output: dict[str, Any]
    query: list[dict[str, Any]]
    """``name``, ``schema``, ``required`` and perhaps ``default`` of each parameter that only the query gives."""


def schemas(
    signatures: Sequence[Signature], ref_template: str = "#/components/schemas/{name}"
) -> tuple[list[Described], dict[str, Any]]:
    """The schemas of signatures, in their order, and the components that they refer to (JSON Schema 2020-12)."""
    types: list[Any] = []
    for signature in signatures:
        types += [each.codec.type for each in signature._parameters.values()]
        types.append(signature.returns if has_schema(signature.returns) else Any)  # the handler may know better
    found, components = schemas_of(types, ref_template)
    in_order = iter(found)
    return [signature._described(in_order) for signature in signatures], components


def _default(parameter: _Parameter) -> dict[str, Any]:
    if parameter.required:
        return {}
    try:
        return {"default": msgspec.json.decode(encode(parameter.default).data)}
    except (TypeError, ValueError):
        return {}
