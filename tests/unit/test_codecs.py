"""Values as bytes and back: each format with each kind of type, and what is refused, how."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import pydantic
import pytest
from google.protobuf import struct_pb2, timestamp_pb2, type_pb2, wrappers_pb2
from hypothesis import given
from hypothesis import strategies as st

from wayside.core.codecs import (
    MSGPACK,
    OCTETS,
    PROTOBUF,
    TEXT,
    XML,
    Payload,
    codec_for,
    decode,
    encode,
    kind_of,
    media_types_out,
    transcode,
)
from wayside.core.errors import BadRequest, InvalidInput, NotAcceptable, UnsupportedMediaType
from wayside.core.records import JSON


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(msgspec.Struct):
    width: int
    height: float = 1.0


class Picture(msgspec.Struct):
    name: str
    size: Size
    tags: list[str]
    colour: Colour = Colour.RED
    taken: datetime.datetime | None = None
    layers: list[Size] = []
    data: bytes = b""


@dataclasses.dataclass
class Point:
    x: int
    path: list[int] = dataclasses.field(default_factory=list)


class Options(TypedDict):
    deep: bool
    names: NotRequired[list[str]]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Item(pydantic.BaseModel):
    id: int
    tags: list[str] = []
    url: pydantic.HttpUrl | None = None
    made: datetime.date | None = None


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


class Order(msgspec.Struct):
    items: list[Item]
    message: type_pb2.Field | None = None


PICTURE = Picture(
    "cat & dog",
    Size(3),
    ["one"],
    Colour.BLUE,
    datetime.datetime(2024, 2, 3, tzinfo=datetime.UTC),
    [Size(1, 2.5), Size(2)],
    b"\x00\xff",
)
MESSAGE = type_pb2.Type(
    name="T",
    fields=[type_pb2.Field(number=4, packed=True, kind=type_pb2.Field.TYPE_BOOL)],
    oneofs=["a", "b"],
    syntax=type_pb2.SYNTAX_PROTO3,
)
VALUES: list[tuple[Any, Any]] = [
    (PICTURE, Picture),
    (Point(1, [2]), Point),
    (Point(1, []), Point),
    ({"deep": True, "names": ["a"]}, Options),
    (Pair(1, "x"), Pair),
    (Colour.BLUE, Colour),
    (datetime.date(2024, 1, 2), datetime.date),
    (Item(id=1, tags=["a"], url=pydantic.HttpUrl("http://x.y/z"), made=datetime.date(2024, 1, 2)), Item),
    ([Item(id=1), Item(id=2, tags=["b"])], list[Item]),
    (Order([Item(id=3)], type_pb2.Field(number=1)), Order),
    (MESSAGE, type_pb2.Type),
    (timestamp_pb2.Timestamp(seconds=5), timestamp_pb2.Timestamp),
    (wrappers_pb2.StringValue(value="x"), wrappers_pb2.StringValue),
    (Cat(9), Cat | Dog),
    (Dog(["sit"]), Cat | Dog),
    (b"\x00\xff", bytes),
    ("text", str),
    (5, int),
    (None, int | None),
    ([[1, 2], [3]], list[list[int]]),
    ({"a": [1], "b": [2, 3]}, dict[str, list[int]]),
    ((1, "b"), tuple[int, str]),
    ({1, 2}, set[int]),
]


@pytest.mark.parametrize(
    ("value", "type_", "media"),
    [
        (value, type_, media)
        for value, type_ in VALUES
        for media in (JSON, MSGPACK, XML)
        if (type_, media) != (bytes, XML)  # which bytes take as it is
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_value_survives_each_format(value: Any, type_: Any, media: str) -> None:
    """Every kind of type comes back as it went, through JSON, MessagePack and XML."""
    payload = encode(value, media)
    assert payload.content_type == media
    assert decode(payload, type_) == value


def test_a_protobuf_message_survives_its_own_format() -> None:
    """A message goes out as Protobuf where that is accepted, as JSON by default, and comes back from both."""
    payload = encode(MESSAGE, PROTOBUF)
    assert payload == Payload(MESSAGE.SerializeToString(), PROTOBUF)
    assert decode(payload, type_pb2.Type) == MESSAGE
    assert decode(Payload(payload.data, "application/protobuf"), type_pb2.Type) == MESSAGE
    assert encode(MESSAGE).content_type == JSON
    assert encode(MESSAGE, "application/vnd.google.protobuf").content_type == "application/vnd.google.protobuf"


def test_a_value_of_any_shape_is_a_message_too() -> None:
    """google.protobuf.Struct takes any JSON object."""
    message = struct_pb2.Struct()
    message.update({"a": 1, "b": [True, None]})
    for media in (JSON, MSGPACK, PROTOBUF):
        assert decode(encode(message, media), struct_pb2.Struct) == message


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json; charset=utf-8", "json"),
        ("Application/JSON", "json"),
        ("application/vnd.api+json", "json"),
        ("application/x-msgpack", "msgpack"),
        ("application/vnd.msgpack", "msgpack"),
        ("application/soap+xml", "xml"),
        ("text/xml", "xml"),
        ("text/plain", "text"),
        ("image/png", "raw"),
    ],
)
def test_a_content_type_names_an_encoding(content_type: str, kind: str) -> None:
    """Parameters, case, aliases and structured suffixes are understood."""
    assert kind_of(content_type) == kind


# -- bytes, text, nothing


@pytest.mark.parametrize("content_type", ["image/png", OCTETS, "text/plain", XML, PROTOBUF, ""])
def test_bytes_take_a_body_as_it_is(content_type: str) -> None:
    """Of every type but JSON and MessagePack, the body itself is the value."""
    assert decode(Payload(b"<\xff", content_type), bytes) == b"<\xff"
    assert decode(Payload(b"<\xff", content_type), bytes | None) == b"<\xff"


def test_bytes_in_json_are_base64() -> None:
    """A JSON string is base64, and a MessagePack bin is itself."""
    assert decode(Payload(b'"AP8="', JSON), bytes) == b"\x00\xff"
    assert decode(Payload(b"\xc4\x01x", MSGPACK), bytes) == b"x"


def test_any_takes_everything() -> None:
    """Without a type, values are plain, text is text, and the rest is bytes."""
    assert decode(Payload(b'{"a":1}', JSON)) == {"a": 1}
    assert decode(Payload(b"hi", TEXT)) == "hi"
    assert decode(Payload(b"hi", OCTETS)) == b"hi"
    assert decode(Payload(b"<a><b>1</b></a>", XML)) == {"b": "1"}
    assert decode(Payload(b"")) is None


def test_text_is_for_strings() -> None:
    """Plain text is a str parameter's value, with its bounds, and no other's."""
    assert decode(Payload("ü".encode(), "text/plain; charset=utf-8"), str) == "ü"
    with pytest.raises(InvalidInput):
        decode(Payload(b"long", TEXT), Annotated[str, msgspec.Meta(max_length=2)])
    with pytest.raises(UnsupportedMediaType):
        decode(Payload(b"5", TEXT), int)


def test_no_content_type_is_json() -> None:
    """A body that does not say what it is, is JSON where bytes are not wanted."""
    assert decode(Payload(b'{"width":2}'), Size) == Size(2)


def test_no_payload_is_no_value() -> None:
    """An empty payload is None where the type has room for it, and else refused."""
    assert decode(Payload(b""), int | None) is None
    with pytest.raises(InvalidInput, match="no body") as caught:
        decode(Payload(b""), int)
    assert caught.value.fields == {"field": "$"}


# -- refusals


@pytest.mark.parametrize(
    ("data", "type_", "field"),
    [
        (b'{"width":"x"}', Size, "$.width"),
        (b"{}", Size, "$.width"),
        (b'{"name":"n","size":{"width":null},"tags":[]}', Picture, "$.size.width"),
        (b'{"name":"n","size":{"width":1},"tags":["a",2]}', Picture, "$.tags[1]"),
        (b"[1]", Size, "$"),
        (b'{"id":"x"}', Item, "$.id"),
        (b'{"id":1,"tags":["a",2]}', Item, "$.tags[1]"),
        (b'[{"id":1},{}]', list[Item], "$[1].id"),
        (b'{"items":[{"id":"x"}]}', Order, "$.items[0].id"),
        (b'{"fields":[{"number":"x"}]}', type_pb2.Type, "$.fields.number"),
        (b'{"nope":1}', type_pb2.Type, "$.nope"),
        (b'{"items":[],"message":{"number":"x"}}', Order, "$.message.number"),
        (b'"green"', Colour, "$"),
        (b'"***"', bytes, "$"),
        (b'{"x":1}', dict[Literal["y"], int], "$"),
    ],
)
@pytest.mark.parametrize("media", [JSON, MSGPACK])
def test_a_refusal_names_the_field(data: bytes, type_: Any, field: str, media: str) -> None:
    """What does not fit is 422, with the JSON path of the field, whichever library noticed."""
    if media == MSGPACK:
        data = msgspec.msgpack.encode(msgspec.json.decode(data))
    with pytest.raises(InvalidInput) as caught:
        decode(Payload(data, media), type_)
    assert caught.value.fields == {"field": field}
    assert caught.value.status == 422
    assert caught.value.detail.endswith(f"at {field}.")


@pytest.mark.parametrize(
    ("payload", "type_", "code"),
    [
        (Payload(b"{", JSON), Size, "json-malformed"),
        (Payload(b"", JSON), Size, "json-malformed"),
        (Payload(b'"\xff"', JSON), str, "json-malformed"),
        (Payload(b"[" * 100_000, JSON), Any, "json-malformed"),
        (Payload(b"{", JSON), Item, "json-malformed"),
        (Payload(b"{", JSON), type_pb2.Type, "json-malformed"),
        (Payload(b"\xc1", MSGPACK), Size, "msgpack-malformed"),
        (Payload(b"\x91" * 100_000, MSGPACK), Any, "msgpack-malformed"),
        (Payload(b"<a", XML), Size, "xml-malformed"),
        (Payload(b"", XML), Size, "xml-malformed"),
        (Payload(b'<?xml version="1.0" encoding="nope"?><a/>', XML), str, "xml-malformed"),
        (Payload(b"\xff", PROTOBUF), type_pb2.Type, "protobuf-malformed"),
        (Payload(b"\xff", TEXT), str, "text-malformed"),
    ],
)
def test_malformed_bytes_are_a_bad_request(payload: Payload, type_: Any, code: str) -> None:
    """Bytes that are not of their format are 400, with a code for each format."""
    with pytest.raises(BadRequest) as caught:
        decode(payload, type_)
    assert caught.value.code == code


def test_an_unknown_media_type_is_refused_with_those_taken() -> None:
    """415 says what the resource takes: in the text, a field and Accept-Post."""
    with pytest.raises(UnsupportedMediaType, match="application/x-www-form-urlencoded") as caught:
        decode(Payload(b"a=1", "application/x-www-form-urlencoded"), Size)
    assert caught.value.status == 415
    assert caught.value.headers == {"Accept-Post": f"{JSON}, {MSGPACK}, {XML}"}
    with pytest.raises(UnsupportedMediaType):
        decode(Payload(b"", PROTOBUF), Size)
    assert PROTOBUF in codec_for(type_pb2.Type).takes


def test_a_type_that_cannot_be_read_is_a_type_error() -> None:
    """A type that msgspec cannot read is the handler's mistake."""
    with pytest.raises(TypeError):
        codec_for(int | Size | Item)


# -- XML


@pytest.mark.parametrize(
    ("xml", "tags"),
    [
        ("", []),
        ("<tags>a</tags>", ["a"]),
        ("<tags/>", [""]),
        ("<tags>a</tags><tags>b</tags>", ["a", "b"]),
        ("<tags>a</tags><x/><tags lang='en'>b</tags>", ["a", "b"]),
    ],
)
def test_a_list_in_xml_has_any_number_of_elements(xml: str, tags: list[str]) -> None:
    """No element, one and several are lists of that length; the type says so."""
    document = f"<whatever><name>n</name><size><width>3</width></size>{xml}</whatever>"
    assert decode(Payload(document.encode(), XML), Picture) == Picture("n", Size(3), tags)


def test_an_attribute_is_a_field() -> None:
    """Attributes fill fields of their name; namespaces and others are passed over."""
    document = b"<size xmlns='urn:x' width=' 3 ' unit='mm'><height>2</height></size>"
    assert decode(Payload(document, XML), Size) == Size(3, 2.0)
    assert decode(Payload(b"<f xmlns='urn:x' number='3'><packed>1</packed></f>", XML), type_pb2.Field) == (
        type_pb2.Field(number=3, packed=True)
    )


def test_an_empty_list_of_objects_may_be_an_empty_element() -> None:
    """An element without content is no item, where items are objects."""
    assert decode(Payload(b"<o><items/></o>", XML), Order) == Order([])


def test_a_misfit_in_xml_names_the_field() -> None:
    """Text that is not what the field wants is 422, as in JSON."""
    with pytest.raises(InvalidInput) as caught:
        decode(Payload(b"<p><x>1</x><path>2</path><path>w</path></p>", XML), Point)
    assert caught.value.fields == {"field": "$.path[1]"}


@pytest.mark.parametrize(
    "document",
    [
        b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        b'<!DOCTYPE a SYSTEM "http://example.com/a.dtd"><a/>',
        b"<!DOCTYPE a><a/>",
        b'<!DOCTYPE a [<!ENTITY a "aa"><!ENTITY b "&a;&a;"><!ENTITY c "&b;&b;">]><a>&c;</a>',
    ],
)
def test_a_document_type_is_refused(document: bytes) -> None:
    """Entities, which could read files or grow without bound, are refused with the document type that holds them."""
    with pytest.raises(BadRequest, match="DOCTYPE") as caught:
        decode(Payload(document, XML), Any)
    assert caught.value.code == "xml-malformed"


def test_a_recursive_type_in_deep_xml_is_refused() -> None:
    """Nesting beyond what can be read is 400, not a crash."""
    with pytest.raises(BadRequest, match="deeply"):
        decode(Payload(b"<child>" * 50_000 + b"</child>" * 50_000, XML), Tree)


class Tree(msgspec.Struct):
    child: Tree | None = None


def test_the_root_of_xml_is_named_after_the_value() -> None:
    """A struct's class name in lower case, and `result` for plain values."""
    assert b"<size><width>1</width>" in encode(Size(1), XML).data
    assert b"<result><item>1</item><item>2</item></result>" in encode([1, 2], XML).data
    assert b"<result>true</result>" in encode(True, "text/xml").data


@pytest.mark.parametrize("value", [{"a b": 1}, {"1": 1}, {"": 1}, "\x00", {"@a": {"b": 1}}])
def test_what_xml_cannot_express_is_not_acceptable(value: Any) -> None:
    """Names that are none and control characters are 406, which says why."""
    with pytest.raises(NotAcceptable, match="cannot be written as XML"):
        encode(value, XML)


# -- Accept


@pytest.mark.parametrize(
    ("accept", "value", "chosen"),
    [
        (None, 1, JSON),
        ("", 1, JSON),
        ("*/*", 1, JSON),
        ("application/*", 1, JSON),
        ("text/*", 1, "text/xml"),
        ("text/html, application/xml;q=0.9, */*;q=0.8", 1, XML),
        ("application/json;q=0.5, application/msgpack", 1, MSGPACK),
        ("application/json;q=0, */*", 1, MSGPACK),
        ("application/x-msgpack", 1, "application/x-msgpack"),
        ("Application/MsgPack ; Q=1.0", 1, MSGPACK),
        ("application/msgpack, application/json", 1, MSGPACK),
        ("*/*, application/xml", 1, XML),
        ("application/json;q=bogus", 1, JSON),
        (None, b"x", OCTETS),
        ("*/*", b"x", OCTETS),
        (JSON, b"x", JSON),
        (None, "x", JSON),
        ("text/plain", "x", "text/plain; charset=utf-8"),
        ("text/plain, application/json", "x", "text/plain; charset=utf-8"),
        ("application/json, text/plain, */*", "x", JSON),
        ("application/x-protobuf, */*;q=0.1", MESSAGE, PROTOBUF),
        ("application/x-protobuf, */*;q=0.1", 1, JSON),
        (None, None, JSON),
    ],
)
def test_the_accept_header_chooses(accept: str | None, value: Any, chosen: str) -> None:
    """The highest q wins, the most specific range counts, and among equals the client's order, then ours."""
    assert encode(value, accept).content_type == chosen


@pytest.mark.parametrize("accept", ["image/png", "text/plain", "*/*;q=0", "application/json;q=0"])
def test_an_answer_that_nobody_takes_is_refused_with_what_there_is(accept: str) -> None:
    """406 lists what the answer can be given as."""
    with pytest.raises(NotAcceptable, match=JSON) as caught:
        encode(1, accept)
    assert caught.value.status == 406
    assert JSON in str(caught.value.fields["media_types"])


def test_a_result_without_an_encoding_is_the_handlers_mistake() -> None:
    """An object of an unknown class is a TypeError that names it."""
    with pytest.raises(TypeError, match="object cannot be encoded"):
        encode(object())


def test_what_a_type_can_be_given_in_is_known_before() -> None:
    """The default comes first, None does not matter."""
    assert media_types_out(bytes | None) == (OCTETS, JSON, MSGPACK, XML)
    assert media_types_out(str) == (JSON, TEXT, MSGPACK, XML)
    assert media_types_out(type_pb2.Type) == (JSON, PROTOBUF, MSGPACK, XML)
    assert media_types_out(list[int] | int) == (JSON, MSGPACK, XML)


# -- transcoding


def test_an_acceptable_payload_stays_as_it_is() -> None:
    """Nothing is decoded that need not be."""
    for payload in (Payload(b"{", JSON), Payload(b"x", "image/png"), Payload(b"")):
        assert transcode(payload, "application/*;q=0.1, image/*") is payload
        assert transcode(payload, None) is payload


def test_payloads_are_translated_without_their_type() -> None:
    """JSON, MessagePack and XML become each other; text in XML stays text."""
    payload = encode({"a": [1, 2], "b": None})
    packed = transcode(payload, MSGPACK)
    assert packed == encode({"a": [1, 2], "b": None}, MSGPACK)
    assert transcode(packed, "text/json, application/json") == payload
    document = transcode(packed, "text/xml")
    assert document.content_type == "text/xml"
    assert decode(transcode(document, JSON)) == {"a": ["1", "2"], "b": None}


@pytest.mark.parametrize(
    ("payload", "accept"),
    [
        (Payload(b"x", "image/png"), JSON),
        (Payload(b"1", JSON), "image/png"),
        (Payload(b"123456789012345678901234567890", JSON), MSGPACK),
        (Payload(b"\xd4\x05\x00", MSGPACK), JSON),
        (Payload(b"<a>" * 50_000 + b"</a>" * 50_000, XML), JSON),
        (Payload(MESSAGE.SerializeToString(), PROTOBUF), JSON),
    ],
)
def test_what_cannot_be_translated_is_not_acceptable(payload: Payload, accept: str) -> None:
    """406 where the bytes mean nothing without their type, or the other format cannot hold them."""
    with pytest.raises(NotAcceptable):
        transcode(payload, accept)


# -- properties

_texts = st.text(st.characters(codec="utf-8"))
_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner) | st.dictionaries(_texts, inner),
)
_words = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")))
"""XML keeps neither white space around a text nor control characters."""
_pictures = st.builds(
    Picture,
    name=_words,
    size=st.builds(Size, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)),
    tags=st.lists(_words),
    colour=st.sampled_from(Colour),
    taken=st.none() | st.datetimes(timezones=st.just(datetime.UTC)),
    layers=st.lists(st.builds(Size, st.integers(0, 10))),
    data=st.binary(),
)


@given(_plain, st.sampled_from([JSON, MSGPACK]))
def test_any_plain_value_survives(value: Any, media: str) -> None:
    """What JSON can say comes back equal, with or without a detour through the other format."""
    payload = encode(value, media)
    assert decode(payload) == value
    assert decode(transcode(transcode(payload, MSGPACK), JSON)) == value


@given(_pictures, st.sampled_from([JSON, MSGPACK, XML]))
def test_any_struct_survives(picture: Picture, media: str) -> None:
    """A struct comes back equal from each format."""
    assert decode(encode(picture, media), Picture) == picture


@given(st.binary(), st.sampled_from([JSON, MSGPACK, XML, TEXT, PROTOBUF]), st.sampled_from([t for _, t in VALUES]))
def test_any_bytes_are_read_or_refused(data: bytes, media: str, type_: Any) -> None:
    """Input never raises anything but a refusal of the 400s."""
    with contextlib.suppress(BadRequest, InvalidInput, UnsupportedMediaType):
        decode(Payload(data, media), type_)
