"""How a payload and a query become a handler's arguments, and what a handler's description says."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import pydantic
import pytest
from google.protobuf import timestamp_pb2, type_pb2

from wayside.core.codecs import MSGPACK, OCTETS, PROTOBUF, XML, Payload, decode, encode
from wayside.core.errors import BadRequest, InvalidInput, UnsupportedMediaType
from wayside.core.records import JSON
from wayside.core.signature import ARGUMENTS, Signature, Upload, pack_arguments, schemas

if TYPE_CHECKING:
    from decimal import Decimal

NOTHING = Payload(b"")


class Call:
    """Stands for what the runner gives a handler that asks for it."""


class Size(msgspec.Struct):
    width: int
    height: int = 1


class Parcel(msgspec.Struct):
    content: Upload
    more: list[Upload] = []
    by_name: dict[str, Upload] = {}


class Item(pydantic.BaseModel):
    id: int


def resize(size: Size, times: int = 1, names: list[str] = []) -> Size:  # noqa: B006
    """Make it larger,
    or smaller.

    This is a second paragraph.
    """
    return size


def add(a: int, b: int, *, c: int = 0) -> int:
    return a + b + c


def store(data: bytes, name: str = "") -> bytes:
    return data


def options(a: int = 1, b: str = "x") -> None: ...


def nothing() -> None: ...


async def receive(upload: Upload) -> None: ...


def json_of(value: Any) -> Payload:
    return encode(value, JSON)


# -- one parameter


@pytest.mark.parametrize("media", [JSON, MSGPACK, XML])
def test_the_body_is_the_only_required_parameter(media: str) -> None:
    """With one parameter that has no default, the body is its value."""
    assert Signature(resize).bind(encode(Size(3), media)) == ([], {"size": Size(3)})


def test_the_query_gives_the_other_parameters() -> None:
    """Text in the query becomes what the parameter is; a repeated one is a list, and so is a single one."""
    signature = Signature(resize)
    query = {"times": ["3"], "names": ["a", "b"]}
    assert signature.bind(json_of(Size(3)), query) == ([], {"size": Size(3), "times": 3, "names": ["a", "b"]})
    assert signature.bind(json_of(Size(3)), {"names": ["a"]})[1]["names"] == ["a"]


def test_an_only_parameter_is_the_body_even_with_a_default() -> None:
    """With one parameter altogether the body is its value, and without a body it has its default."""

    def only(size: Size | None = None) -> None: ...

    assert Signature(only).bind(json_of(Size(1))) == ([], {"size": Size(1)})
    assert Signature(only).bind(NOTHING) == ([], {})


def test_bytes_take_any_body() -> None:
    """A bytes parameter has a body of any type as it is."""
    signature = Signature(store)
    assert signature.bind(Payload(b"\xff", "image/png"), {"name": ["x"]}) == ([], {"data": b"\xff", "name": "x"})
    assert signature.bind(Payload(b"", OCTETS)) == ([], {"data": b""})
    assert signature.bind(Payload(b'"AP8="', JSON)) == ([], {"data": b"\x00\xff"})


def test_an_unannotated_parameter_takes_anything() -> None:
    """Without an annotation, values are plain."""

    def untyped(value):  # type: ignore[no-untyped-def]
        return value

    assert Signature(untyped).bind(json_of({"a": 1})) == ([], {"value": {"a": 1}})
    assert Signature(untyped).bind(pack_arguments((b"x",), {})) == ([], {"value": b"x"})


def test_a_misfit_in_the_body_is_named_from_its_root() -> None:
    """The field of a body parameter is a path in the body."""
    with pytest.raises(InvalidInput) as caught:
        Signature(resize).bind(json_of({"width": "x"}))
    assert caught.value.fields == {"field": "$.width"}
    with pytest.raises(UnsupportedMediaType):
        Signature(resize).bind(Payload(b"x", "image/png"))
    with pytest.raises(BadRequest):
        Signature(resize).bind(Payload(b"{", JSON))


# -- several parameters


@pytest.mark.parametrize("media", [JSON, MSGPACK, XML])
def test_the_body_is_an_object_of_several_parameters(media: str) -> None:
    """With several required parameters, or none, the body names each."""
    assert Signature(add).bind(encode({"a": 1, "b": 2}, media)) == ([], {"a": 1, "b": 2})
    assert Signature(options).bind(encode({"b": "y"}, media)) == ([], {"b": "y"})


def test_no_body_leaves_the_defaults() -> None:
    """Without a body, what has a default has it; an empty one counts as none where it would be an object."""
    assert Signature(options).bind(NOTHING) == ([], {})
    assert Signature(nothing).bind(NOTHING) == ([], {})
    assert Signature(nothing).bind(Payload(b"", JSON)) == ([], {})
    assert Signature(nothing).bind(json_of({})) == ([], {})


def test_the_query_may_give_what_the_body_does_not() -> None:
    """Any parameter may come from the query: a call without a body needs only a URL."""
    assert Signature(add).bind(NOTHING, {"a": ["1"], "b": ["2"]}) == ([], {"a": 1, "b": 2})
    assert Signature(add).bind(json_of({"a": 1}), {"b": ["2"]}) == ([], {"a": 1, "b": 2})


def test_a_positional_only_parameter_is_given_by_position() -> None:
    """Only what cannot be given by name is in the list; defaults before it are filled in."""

    def positional(a: int, b: int = 2, /, c: int = 3) -> None: ...

    signature = Signature(positional)
    assert signature.bind(Payload(b"5", JSON), {"c": ["4"]}) == ([5, 2], {"c": 4})
    assert signature.bind(pack_arguments((1, 7), {"c": 4})) == ([1, 7], {"c": 4})


# -- what the Python client sends


@pytest.mark.parametrize(
    ("args", "kwargs"), [((1, 2), {}), ((1,), {"b": 2}), ((), {"a": 1, "b": 2}), ((1, 2), {"c": 3}), ((1, 2), {"c": 0})]
)
def test_arguments_bind_as_in_python(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    """Arguments by position and by name end up at the same parameters as in a call."""
    payload = pack_arguments(args, kwargs)
    assert payload.content_type == ARGUMENTS
    bound_args, bound = Signature(add).bind(payload)
    assert add(*bound_args, **bound) == add(*args, **kwargs)


def test_arguments_have_their_parameters_types() -> None:
    """Each argument is read as its parameter's type, models and messages too."""

    def several(size: Size, item: Item, field: type_pb2.Field, data: bytes, upload: Upload) -> None: ...

    values = {"size": Size(1), "item": Item(id=1), "field": type_pb2.Field(number=2), "data": b"\xff"}
    upload = Upload("u/1")
    payload = pack_arguments(tuple(values.values()), {"upload": upload})
    assert Signature(several).bind(payload) == ([], {**values, "upload": upload})


@pytest.mark.parametrize(
    ("argument", "payload"),
    [
        (b"x", Payload(b"x", OCTETS)),
        (1, Payload(b"\x01", MSGPACK)),
        ("x", Payload(b"\xa1x", MSGPACK)),
        (None, Payload(b"\xc0", MSGPACK)),
        (Size(1), Payload(msgspec.msgpack.encode({"width": 1, "height": 1}), MSGPACK)),
        (Item(id=1), Payload(msgspec.msgpack.encode({"id": 1}), MSGPACK)),
        (type_pb2.Field(number=1), Payload(type_pb2.Field(number=1).SerializeToString(), PROTOBUF)),
        (Upload("a/b"), Payload(msgspec.msgpack.encode({"$stream": "a/b"}), MSGPACK)),
    ],
)
def test_one_argument_is_sent_alone(argument: Any, payload: Payload) -> None:
    """A single argument is the body, in its shortest form, which a client without Python could send as well."""
    assert pack_arguments((argument,), {}) == payload
    assert pack_arguments((), {}) == NOTHING


@pytest.mark.parametrize(
    ("payload", "query", "field", "text"),
    [
        (pack_arguments((1, 2, 3), {}), {}, "$[0][2]", "3 positional arguments"),
        (pack_arguments((1, 2), {"a": 3}), {}, "$.a", "given twice, by position and by name"),
        (pack_arguments((1, 2), {"d": 3}), {}, "$.d", "no parameter 'd'"),
        (pack_arguments((1,), {"c": 3}), {}, "$.b", "parameter b is missing"),
        (pack_arguments((1, "x"), {}), {}, "$.b", "Expected `int`"),
        (json_of({"a": 1, "b": 2, "d": 3}), {}, "$.d", "add takes a, b, c (optional)"),
        (json_of({"a": 1}), {}, "$.b", "missing"),
        (json_of({"a": 1, "b": "x"}), {}, "$.b", "Expected `int`"),
        (json_of([1, 2]), {}, "$", "Expected `object`"),
        (encode({"a": "1", "b": "x"}, XML), {}, "$.b", "Expected `int`"),
        (encode("x", XML), {}, "$", "an element for each parameter"),
        (json_of({"a": 1, "b": 2}), {"b": ["1"]}, "$.b", "in the body and in the query"),
        (json_of({"a": 1, "b": 2}), {"d": ["1"]}, "$.d", "no parameter"),
        (json_of({"a": 1, "b": 2}), {"c": ["x"]}, "$.c", "Expected `int`"),
        (json_of({"a": 1, "b": 2}), {"c": ["1", "2"]}, "$.c", "Expected `int`"),
        (NOTHING, {}, "$.a", "missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    payload: Payload, query: dict[str, list[str]], field: str, text: str
) -> None:
    """Missing, unknown, doubled and unfitting parameters are 422 with the parameter as the field."""
    with pytest.raises(InvalidInput) as caught:
        Signature(add).bind(payload, query)
    assert caught.value.fields == {"field": field}
    assert text in caught.value.detail


def test_an_object_of_parameters_is_json_messagepack_or_xml() -> None:
    """Nothing else names parameters: 415 says what does."""
    with pytest.raises(UnsupportedMediaType, match="add takes a, b") as caught:
        Signature(add).bind(Payload(b"a=1", "application/x-www-form-urlencoded"))
    assert caught.value.headers == {"Accept-Post": f"{JSON}, {MSGPACK}, {XML}"}


# -- the function


def test_the_call_is_not_bound_from_input() -> None:
    """A parameter of the call's type is the runner's to fill: its name is known, and input cannot give it."""

    def handler(call: Call, size: Size) -> None: ...

    signature = Signature(handler, call_type=Call)
    assert signature.call_parameter == "call"
    assert signature.bind(json_of(Size(1))) == ([], {"size": Size(1)})
    with pytest.raises(InvalidInput):
        signature.bind(json_of(Size(1)), {"call": ["x"]})
    assert Signature(resize, call_type=Call).call_parameter is None


def test_how_a_function_is_run_shows_in_its_kind() -> None:
    """Coroutines and async generators are async, the others go to a thread; generators stream."""

    async def coroutine() -> None: ...

    async def async_stream() -> AsyncIterator[Size]:
        yield Size(1)

    def stream() -> Iterator[Size]:
        yield Size(1)

    class Instance:
        async def __call__(self, size: Size) -> None: ...

        def method(self, size: Size) -> None: ...

    kinds: dict[Any, tuple[bool, bool, bool]] = {
        add: (False, False, True),
        coroutine: (False, True, False),
        async_stream: (True, True, False),
        stream: (True, False, True),
        Instance(): (False, True, False),
        Instance().method: (False, False, True),
        functools.partial(add, c=1): (False, False, True),
    }
    for function, kind in kinds.items():
        signature = Signature(function)
        assert (signature.streams, signature.is_async, signature.threaded) == kind
    assert Signature(stream).returns is Signature(async_stream).returns is Size
    assert Signature(Instance()).bind(json_of(Size(1))) == ([], {"size": Size(1)})


def test_a_function_that_cannot_be_called_is_refused_when_it_is_declared() -> None:
    """Annotations out of reach, types that are no input, *args and a positional call are a TypeError that says what to do."""

    def hidden(x: Decimal) -> None: ...

    def many(*args: int) -> None: ...

    def named(**kwargs: int) -> None: ...

    def odd(x: Call) -> None: ...

    def mixed(x: int | Size | Item) -> None: ...

    def first(call: Call, /) -> None: ...

    def twice(call: Call, other: Call) -> None: ...

    refused: list[tuple[Any, str]] = [
        (hidden, "not under TYPE_CHECKING"),
        (many, "any number of arguments"),
        (named, "any number of arguments"),
        (mixed, "cannot be read from a request"),
        (first, "move the /"),
        (twice, "takes the call twice"),
    ]
    for function, text in refused:
        with pytest.raises(TypeError, match=text):
            Signature(function, call_type=Call)
    with pytest.raises(TypeError, match="a Call cannot be made of JSON"):
        Signature(odd)


# -- uploads


async def content(path: str) -> AsyncIterator[bytes]:
    yield path.encode()
    yield b"!"


async def test_an_upload_is_read_whole_or_in_chunks() -> None:
    """Attached to an opener, an upload gives its stream's bytes, as often as asked."""
    _, kwargs = (signature := Signature(receive)).bind(json_of({"$stream": "/v1/stream/uploads/a"}))
    assert signature.reads_uploads
    assert not Signature(add).reads_uploads
    await signature.read_uploads([], kwargs, content)
    upload = kwargs["upload"]
    assert upload.path == "uploads/a"
    assert await upload.read() == b"uploads/a!"
    assert [chunk async for chunk in upload] == [b"uploads/a", b"!"]


async def test_a_detached_upload_says_so() -> None:
    """Read outside a call, an upload is a RuntimeError that says why."""
    with pytest.raises(RuntimeError, match="not attached"):
        await Upload("a").read()


@pytest.mark.parametrize("media", [JSON, MSGPACK])
async def test_bytes_may_be_sent_as_an_upload(media: str) -> None:
    """A bytes parameter given as a reference gets the content; given as bytes it has them."""
    signature = Signature(store)
    args, kwargs = signature.bind(encode({"$stream": "u/1"}, media), {"name": ["n"]})
    assert kwargs["data"] == Upload("u/1")
    await signature.read_uploads(args, kwargs, content)
    assert kwargs == {"data": b"u/1!", "name": "n"}

    def positional(a: int, data: bytes, /) -> None: ...

    signature = Signature(positional)
    args, kwargs = signature.bind(pack_arguments((1, Upload("u/2")), {}))
    await signature.read_uploads(args, kwargs, content)
    assert args == [1, b"u/2!"]


async def test_uploads_inside_structs_are_attached() -> None:
    """However deep in structs, lists and dictionaries, uploads can be read; and go out as they came in."""

    def parcels(parcels: list[Parcel]) -> None: ...

    parcel = Parcel(Upload("a"), [Upload("b")], {"c": Upload("d")})
    signature = Signature(parcels)
    args, kwargs = signature.bind(pack_arguments(([parcel],), {}))
    await signature.read_uploads(args, kwargs, content)
    (got,) = kwargs["parcels"]
    assert [await each.read() for each in (got.content, *got.more, got.by_name["c"])] == [b"a!", b"b!", b"d!"]
    assert decode(encode(got), Parcel) == parcel


@pytest.mark.parametrize("value", [{"$stream": 1}, {"$stream": ""}, {"stream": "x"}, {"$stream": "x", "y": 1}, "x"])
def test_what_is_no_upload_is_refused(value: Any) -> None:
    """An upload is an object with a path and nothing else."""
    with pytest.raises(InvalidInput):
        Signature(receive).bind(json_of(value))


# -- the description


def test_the_description_is_the_first_paragraph() -> None:
    """As one line; empty without a docstring."""
    assert Signature(resize).description == "Make it larger, or smaller."
    assert Signature(add).description == ""


def test_schemas_say_what_goes_in_and_out() -> None:
    """The body parameter's type, or an object of all; the result's; and the query's parameters."""
    signature = Signature(resize)
    assert signature.input_schema()["$ref"] == signature.output_schema()["$ref"] == "#/$defs/Size"
    assert signature.input_schema()["$defs"]["Size"]["required"] == ["width"]
    assert signature.query_parameters() == [
        {"name": "times", "schema": {"type": "integer", "default": 1}, "required": False, "default": 1},
        {
            "name": "names",
            "schema": {"type": "array", "items": {"type": "string"}, "default": []},
            "required": False,
            "default": [],
        },
    ]
    assert Signature(add).input_schema() == {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "integer", "default": 0}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    assert Signature(add).query_parameters() == []
    binary = {"type": "string", "format": "binary"}
    assert Signature(store).input_schema() == Signature(store).output_schema() == binary
    assert Signature(receive).input_schema()["required"] == ["$stream"]


def test_schemas_share_their_components() -> None:
    """Models and messages are components, as structs are; recursion and Protobuf's own types are known."""

    def many(item: Item, message: type_pb2.Type, times: list[timestamp_pb2.Timestamp]) -> list[Item]:
        return [item]

    def untyped(value):  # type: ignore[no-untyped-def]
        return value

    def unknown() -> Call:
        return Call()

    described, components = schemas([Signature(f) for f in (many, untyped, unknown, resize)])
    assert set(components) >= {"Item", "google.protobuf.Type", "google.protobuf.Field", "Size"}
    properties = described[0].input["properties"]
    assert properties["item"] == {"$ref": "#/components/schemas/Item"}
    assert properties["times"] == {"type": "array", "items": {"type": "string", "format": "date-time"}}
    assert described[0].output == {"type": "array", "items": {"$ref": "#/components/schemas/Item"}}
    fields = components["google.protobuf.Type"]["properties"]
    assert fields["fields"] == {"type": "array", "items": {"$ref": "#/components/schemas/google.protobuf.Field"}}
    assert "SYNTAX_PROTO3" in fields["syntax"]["enum"]
    assert described[1] == described[1]._replace(input={}, output={})
    assert described[2].output == {}
    assert described[3].input == {"$ref": "#/components/schemas/Size"}


def test_media_types_are_those_of_the_parameters() -> None:
    """What a body may be, and what a result can be."""
    assert Signature(resize).media_types_in() == (JSON, MSGPACK, XML)
    assert "*/*" in Signature(store).media_types_in()
    assert Signature(store).media_types_out()[0] == OCTETS
    assert Signature(nothing).media_types_in() == ()
    assert Signature(add).encode(3, MSGPACK) == Payload(b"\x03", MSGPACK)
