"""Values of service calls as bytes and back: JSON, MessagePack, Protobuf, XML, plain text, raw bytes; and which of them.

Types are msgspec's (structs, dataclasses, typed dictionaries, enumerations, times, ...), Protobuf's generated
messages and pydantic's models. The last two are known by their shape, so neither library is needed; nor is a value's
type: :func:`transcode` translates what some other program made. Knows nothing of parameters, handlers or HTTP.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any
from xml.parsers import expat

import msgspec
import xmltodict
from msgspec import inspect as shapes

from wayside.core import codecs
from wayside.core.errors import BadRequest, InvalidInput, NotAcceptable, Refusal, UnsupportedMediaType
from wayside.core.records import JSON, media_type

__all__ = [
    "Codec",
    "Fields",
    "MSGPACK",
    "OCTETS",
    "PROTOBUF",
    "Payload",
    "ReadError",
    "TEXT",
    "XML",
    "codec_for",
    "decode",
    "encode",
    "fit",
    "is_message",
    "is_model",
    "kind_of",
    "media_types_out",
    "parse",
    "register",
    "registered_schema",
    "transcode",
    "unparse",
]


Fields = Mapping[str, tuple[shapes.Type, bool]]
"""Name to type, and whether it is required."""
ReadError = expat.ExpatError

_SEQUENCES = (shapes.ListType, shapes.SetType, shapes.FrozenSetType, shapes.VarTupleType, shapes.CollectionType)
_OBJECTS = (shapes.StructType, shapes.DataclassType, shapes.TypedDictType, shapes.DictType, shapes.CustomType)
_ROWS = (*_SEQUENCES, shapes.TupleType, shapes.NamedTupleType)
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
"""XML Schema's booleans."""


class _Expat:
    """xmltodict's parser, refusing document types: every entity begins there."""

    @staticmethod
    def ParserCreate(encoding: str | None, separator: str | None) -> expat.XMLParserType:
        def refuse(*_: object) -> None:
            raise ValueError("a document type (DOCTYPE) is not taken")

        parser = expat.ParserCreate(encoding, separator)
        parser.StartDoctypeDeclHandler = refuse
        return parser


def parse(data: bytes) -> Any:
    """What stands in the root element, whatever its name: None, text, or a dict. White space around text is dropped.

    Raises ``ReadError`` for what is not XML, and ValueError for a document type or an unknown character encoding.
    """
    try:
        document: dict[str, Any] = xmltodict.parse(data, expat=_Expat)
    except LookupError as error:
        raise ValueError(str(error)) from error
    return next(iter(document.values()))


# -- reading: to the shape of a type


def fit(value: Any, info: shapes.Type, fields_of: Callable[[type], Fields | None]) -> Any:
    """``value``, as :func:`parse` gives it, with the lists, texts and objects that the type has; numbers stay text.

    ``fields_of`` knows the fields of types that msgspec does not. What does not fit is left for msgspec to refuse.
    """

    def one(value: Any, info: shapes.Type) -> Any:
        """A root, or an item of a list: an inner list has its items in elements of its own, of any name."""
        if isinstance(info, _ROWS) and isinstance(value, dict):
            value = [row for name, rows in value.items() if name[0] not in "@#" for row in _rows(rows)]
        return field(value, info)

    def field(value: Any, info: shapes.Type) -> Any:
        match info:
            case shapes.StructType(array_like=True) | shapes.NamedTupleType():
                return [field(row, member.type) for row, member in zip(_rows(value), info.fields, strict=False)]
            case shapes.StructType() | shapes.DataclassType() | shapes.TypedDictType():
                return members(value, {each.encode_name: (each.type, each.required) for each in info.fields})
            case shapes.TupleType(item_types=items):
                return [one(row, item) for row, item in zip(_rows(value), items, strict=False)]
            case shapes.DictType(value_type=item):
                found = {} if value is None else value
                return {name: field(each, item) for name, each in found.items()} if isinstance(found, dict) else value
            case shapes.UnionType():
                return union(value, info)
            case shapes.CustomType(cls=cls):
                fields = fields_of(cls)
                return members(value, fields) if fields is not None else value
            case shapes.AnyType():
                return value
            case shapes.BoolType():  # only Protobuf, which takes no text for it, needs more than msgspec does
                text = _text(value)
                return _TRUTH.get(text, text) if isinstance(text, str) else text
            case shapes.StrType() | shapes.LiteralType() | shapes.EnumType() | shapes.BytesType():
                return _text("" if value is None else value)
        if isinstance(info, _SEQUENCES):
            empty = value is None and not isinstance(info.item_type, shapes.StrType)
            return [] if empty else [one(row, info.item_type) for row in _rows(value)]
        text = _text(value)
        return text.strip() if isinstance(text, str) else text  # an attribute's is as it was written

    def members(value: Any, fields: Fields) -> Any:
        if isinstance(value, str | list):
            return value
        result = {
            name: field(item, fields[name][0]) if name in fields else item for name, item in _named(value, fields)
        }
        for name, (info, required) in fields.items():
            if required and isinstance(info, _SEQUENCES):
                result.setdefault(name, [])  # no element at all is how XML writes an empty list
        return result

    def union(value: Any, info: shapes.UnionType) -> Any:
        types = [each for each in info.types if not isinstance(each, shapes.NoneType)]
        if value is None and len(types) < len(info.types):
            return None
        chosen = types[0] if len(types) == 1 else _chosen(value, types)
        return _text(value) if chosen is None else field(value, chosen)

    return one(value, info)


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> Any:
    """An element's text: where a plain value is wanted its attributes say nothing."""
    if isinstance(value, dict) and all(name[0] in "@#" for name in value):
        return value.get("#text", "")
    return value


def _named(value: dict[str, Any] | None, fields: Iterable[str]) -> list[tuple[str, Any]]:
    """Members by field name. An attribute is a field of its name; others (xmlns, xsi:type) and loose text are no fields."""
    value = value or {}
    attributes = {name[1:]: item for name, item in value.items() if name[0] == "@" and name[1:] in fields}
    elements = {name: item for name, item in value.items() if name in fields or name[0] not in "@#"}
    return list({**attributes, **elements}.items())


def _chosen(value: Any, types: list[shapes.Type]) -> shapes.Type | None:
    """The member of a union that an element is of: by its tag, or the first that is an object or a list as it is."""
    for each in types:
        if isinstance(each, shapes.StructType) and each.tag_field is not None and isinstance(value, dict):
            if str(each.tag) == value.get(each.tag_field):
                return each
        elif isinstance(each, _OBJECTS if isinstance(value, dict) else _SEQUENCES if isinstance(value, list) else ()):
            return each
    return None


# -- writing


_NAME = re.compile(r"@?[^\W\d][\w.\-]*(?::[^\W\d][\w.\-]*)?")
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML 1.0 cannot have, in any form (section 2.2)."""


def unparse(root: str, value: object) -> bytes:
    """A document of plain values. An item of a list that is no field is an element ``item``; an empty list is none.

    Raises ValueError for what XML cannot express: a name that is not one, or control characters.
    """
    text: str = xmltodict.unparse({root if _NAME.fullmatch(root) else "result": _elements(value)})
    return text.encode()


def _elements(value: object) -> object:
    if isinstance(value, dict):
        for name, item in value.items():
            if name != "#text" and not _NAME.fullmatch(name):
                raise ValueError(f"{name[:80]!r} is not a name in XML")
            if name[0] in "@#" and isinstance(item, dict | list | tuple):
                raise ValueError(f"{name[:80]!r} must be a plain value in XML")
        return {name: _field(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return {"item": _field(value)}
    if isinstance(value, str) and _FORBIDDEN.search(value):
        raise ValueError("it has control characters, which XML cannot express")
    return value


def _field(value: object) -> object:
    return [_elements(item) for item in value] if isinstance(value, list | tuple) else _elements(value)


MSGPACK, XML, TEXT, OCTETS = "application/msgpack", "application/xml", "text/plain", "application/octet-stream"
PROTOBUF = "application/x-protobuf"

_MEDIA_TYPES = {
    "json": (JSON,),
    "msgpack": (MSGPACK, "application/x-msgpack", "application/vnd.msgpack"),
    "protobuf": (PROTOBUF, "application/protobuf", "application/vnd.google.protobuf"),
    "xml": (XML, "text/xml"),
    "text": (TEXT,),
    "raw": (OCTETS,),
}
"""The media types of each kind of encoding. An answer carries the name that the client used, the first by default."""
_KINDS = {name: kind for kind, names in _MEDIA_TYPES.items() for name in names}
_SUFFIXES = {"json": "json", "xml": "xml"}
"""Structured syntax suffixes (RFC 6839), for input: an answer never claims to be of a vendor's type."""
_ANY_VALUE = ("json", "msgpack", "xml")


class Payload(msgspec.Struct, frozen=True, gc=False):
    """An encoded value. Without data and type it is no value at all: no argument was given."""

    data: bytes
    content_type: str = ""


# -- types beside msgspec's


class _Registered(msgspec.Struct, frozen=True):
    to_plain: Callable[[Any], object]
    from_plain: Callable[[Any], object]
    schema: dict[str, Any]


_registered: dict[type, _Registered] = {}


def register(
    cls: type, to_plain: Callable[[Any], object], from_plain: Callable[[Any], object], schema: dict[str, Any]
) -> None:
    """Let ``cls`` stand in any value: how it becomes plain values, how it is made of them (ValueError: it cannot), and
    the JSON Schema of those."""
    _registered[cls] = _Registered(to_plain, from_plain, schema)


def registered_schema(cls: type) -> dict[str, Any] | None:
    """The schema of a registered class."""
    return dict(_registered[cls].schema) if cls in _registered else None


def is_message(cls: object) -> bool:
    """Whether ``cls`` is a class that Protobuf generated."""
    return isinstance(cls, type) and all(
        hasattr(cls, name) for name in ("DESCRIPTOR", "FromString", "SerializeToString")
    )


def is_model(cls: object) -> bool:
    """Whether ``cls`` is a pydantic model."""
    return isinstance(cls, type) and hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate_json")


def _to_plain(value: Any) -> object:
    """What msgspec asks for each object that it does not know."""
    cls = type(value)
    if cls in _registered:
        return _registered[cls].to_plain(value)
    if is_model(cls):
        return value.model_dump(mode="python", by_alias=True)
    if is_message(cls):
        from google.protobuf import json_format

        return json_format.MessageToDict(value)
    if cls.__module__.partition(".")[0] == "pydantic":
        return str(value)  # its URLs and secrets, which its own JSON also writes so
    raise TypeError(f"A {cls.__qualname__} cannot be encoded. Return a struct, a dataclass, a dict or a plain value.")


def _from_plain(cls: type, value: Any) -> object:
    """What msgspec asks for each type that it does not know. ValueError: it does not fit."""
    if cls in _registered:
        return _registered[cls].from_plain(value)
    if is_model(cls):
        return cls.model_validate(value)  # type: ignore[attr-defined]
    if is_message(cls):
        return _message(cls, value)
    if isinstance(value, cls):
        return value
    raise NotImplementedError(f"A {cls.__qualname__} cannot be made of plain values. Use a struct or a dataclass.")


class _Misfit(ValueError):
    """What a library other than msgspec found wrong, and where."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self.path = path


_MISFIT = re.compile(r"Failed to parse (\w+) field: ")
_UNKNOWN = re.compile(r'no field named "([^"]*)"')


def _message(cls: Any, value: object) -> object:
    """A Protobuf message of its JSON form (ProtoJSON)."""
    from google.protobuf import json_format

    try:
        return json_format.ParseDict(msgspec.to_builtins(value), cls())  # bytes to base64, times to text
    except json_format.ParseError as error:
        text = str(error).partition("\n")[0]
        unknown = _UNKNOWN.findall(text) if isinstance(value, dict) else []
        path = "".join(f".{name}" for name in [*_MISFIT.findall(text), *unknown])
        raise _Misfit(_MISFIT.sub("", text).rstrip("."), path) from error
    except (AttributeError, KeyError, TypeError) as error:  # it takes for granted that the type of an Any is text
        raise _Misfit(f"It is no {cls.DESCRIPTOR.full_name} ({error})", "") from error


@functools.lru_cache(1024)
def _fields_of(cls: type) -> codecs.Fields | None:
    """The fields of a type that msgspec does not know, as msgspec would describe them."""
    if is_model(cls):
        fields: Mapping[str, Any] = cls.model_fields  # type: ignore[attr-defined]
        return {each.alias or name: (_type_info(each.annotation), each.is_required()) for name, each in fields.items()}
    if is_message(cls):
        return {each.json_name: (_field_info(each), False) for each in cls.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    return None


def _type_info(annotation: Any) -> shapes.Type:
    try:
        return shapes.type_info(annotation)
    except TypeError:
        return shapes.AnyType()  # of pydantic's own: it will see what it can do with text


def _field_info(field: Any) -> shapes.Type:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return shapes.DictType(shapes.StrType(), _field_info(message.fields_by_name["value"]))
    info: shapes.Type
    if message is not None:
        from google.protobuf import message_factory

        info = shapes.CustomType(message_factory.GetMessageClass(message))
    else:
        info = shapes.BoolType() if field.type == field.TYPE_BOOL else shapes.StrType()
    return shapes.ListType(info) if field.is_repeated else info


_json = msgspec.json.Encoder(enc_hook=_to_plain)
_msgpack = msgspec.msgpack.Encoder(enc_hook=_to_plain)


# -- decoding


@functools.lru_cache(256)
def kind_of(content_type: str) -> str:
    """Which encoding a content type names: ``json``, ``msgpack``, ``protobuf``, ``xml``, ``text``, or else ``raw``."""
    name = media_type(content_type)
    return _KINDS.get(name) or _SUFFIXES.get(name.rpartition("+")[2], "raw")


class Codec:
    """How values of one type are read, from each kind of encoding; :func:`codec_for` keeps them.

    A type that allows ``bytes`` takes a body of any media type as it is, but for JSON (a base64 string) and
    MessagePack (a bin). ``Any`` allows everything. A body without a content type is taken as it is, too, where bytes
    are allowed, and as JSON elsewhere. Raises TypeError for a type that msgspec cannot read.
    """

    __slots__ = ("_info", "_readers", "is_bytes", "takes", "type")

    def __init__(self, type_: Any) -> None:
        members = _members(type_)
        self.type = type_
        self.is_bytes = bytes in members
        self._info: shapes.Type | None = None
        self._readers: dict[str, Callable[[Any], Any]] = {
            "json": msgspec.json.Decoder(type_, dec_hook=_from_plain).decode,
            "msgpack": msgspec.msgpack.Decoder(type_, dec_hook=_from_plain).decode,
        }
        if is_message(type_):
            self._readers["protobuf"] = _parser(type_)
        if is_model(type_):
            self._readers["json"] = lambda data: type_.model_validate_json(bytes(data))
        if not self.is_bytes:
            self._readers["xml"] = lambda data: self.from_text(codecs.parse(bytes(data)))
        if str in members or Any in members:
            self._readers["text"] = lambda data: self.convert(str(data, "utf-8"))
        if self.is_bytes or Any in members:
            self._readers["raw"] = self.convert
        self.takes = tuple(_MEDIA_TYPES[kind][0] for kind in _MEDIA_TYPES if kind in self._readers)
        """The media types that fit, each by its first name."""

    def decode(self, payload: Payload, at: str = "$") -> Any:
        """The value of ``payload``; ``at`` is where it stands in the input. Raises ``InvalidInput``, ``BadRequest``
        (malformed) or ``UnsupportedMediaType``."""
        content_type = payload.content_type
        if content_type:
            kind = kind_of(content_type)
        elif payload.data:
            kind = "raw" if "raw" in self._readers else "json"
        else:
            return self._nothing(at)
        reader = self._readers.get(kind) or self._readers.get("raw")
        if reader is None:
            raise _unsupported(content_type, self.takes)
        try:
            return reader(payload.data)
        except (ValueError, RecursionError, codecs.ReadError) as error:
            raise _refusal(error, kind, at) from error

    def convert(self, value: Any) -> Any:
        """The value made of plain values. Raises ValueError where it does not fit."""
        if self.type is Any or self.type is type(value):
            return value
        return msgspec.convert(value, self.type, dec_hook=_from_plain)

    def from_text(self, value: Any) -> Any:
        """The same, of values that are text at the leaves, as in XML: numbers in text are numbers."""
        if self._info is None:
            self._info = shapes.type_info(self.type)
        fitted = codecs.fit(value, self._info, _fields_of)
        return msgspec.convert(fitted, self.type, strict=False, str_keys=True, dec_hook=_from_plain)

    def parse(self, value: Any, at: str) -> Any:
        """:meth:`from_text`, refusing what does not fit with ``InvalidInput``."""
        try:
            return self.from_text(value)
        except (ValueError, RecursionError) as error:
            raise _refusal(error, "xml", at) from error

    def _nothing(self, at: str) -> None:
        if not {None, type(None), Any} & set(_members(self.type)):
            raise InvalidInput("There is no body, and a value is needed.", fields={"field": at})

    def __repr__(self) -> str:
        return f"<Codec {self.type} {' '.join(self._readers)}>"


@functools.lru_cache(4096)
def _cached_codec(type_: Any) -> Codec:
    return Codec(type_)


def codec_for(type_: Any) -> Codec:
    """The codec of a type, made once for each."""
    try:
        return _cached_codec(type_)
    except TypeError:
        return Codec(type_)  # an unhashable one; or it says again why the type cannot be read


def decode(payload: Payload, type_: Any = Any) -> Any:
    """The value of ``payload`` as a ``type_``. Raises ``InvalidInput``, naming the field that does not fit,
    ``BadRequest`` for malformed bytes, and ``UnsupportedMediaType``."""
    return codec_for(type_).decode(payload)


def _members(type_: Any) -> tuple[Any, ...]:
    """The type without annotations, and each of a union's."""
    if typing.get_origin(type_) is Annotated:
        return _members(typing.get_args(type_)[0])
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        return tuple(inner for member in typing.get_args(type_) for inner in _members(member))
    return (type_,)


def _parser(cls: Any) -> Callable[[Any], Any]:
    def parse(data: Any) -> Any:
        try:
            return cls.FromString(bytes(data))
        except Exception as error:  # DecodeError, which only an import would name: nothing else is raised for bytes
            raise BadRequest(
                f"The body is not a {cls.DESCRIPTOR.full_name}: {error}.", code="protobuf-malformed"
            ) from error

    return parse


# -- what did not fit


_AT = re.compile(r"(?P<text>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_NAMED = re.compile(r"(?:missing required|contains unknown) field `(.*)`")


def _refusal(error: Exception, kind: str, at: str) -> Refusal:
    inner = error.__cause__ if isinstance(error, msgspec.ValidationError) else error
    found = getattr(inner, "errors", None)  # only pydantic's has it
    if callable(found) and (first := found()[0])["type"] != "json_invalid":
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        return _invalid(first["msg"], at + _split(error)[1] + path)
    if not isinstance(error, msgspec.ValidationError):
        reason = (
            "it is nested too deeply" if isinstance(error, RecursionError) else str(first["msg"] if found else error)
        )
        return BadRequest(f"The body is not {_NAMES[kind]}: {reason}.", code=f"{kind}-malformed")
    text, path = _split(error)
    if isinstance(inner, _Misfit):
        path += inner.path
    elif named := _NAMED.search(text):
        path += f".{named[1]}"
    return _invalid(text, at + path)


_NAMES = {"json": "JSON", "msgpack": "MessagePack", "xml": "XML", "text": "text in UTF-8", "raw": "readable"}


def _split(error: Exception) -> tuple[str, str]:
    """The text and the path of msgspec's message."""
    match = _AT.fullmatch(str(error))
    assert match
    return match["text"], match["path"] or ""


def _invalid(text: str, field: str) -> InvalidInput:
    return InvalidInput(f"{text.rstrip('.')}, at {field}.", fields={"field": field})


def _unsupported(content_type: str, takes: tuple[str, ...]) -> UnsupportedMediaType:
    return UnsupportedMediaType(
        f"The body is {content_type[:80]!r}. Send it as {' or '.join(takes)}, and say so in Content-Type.",
        headers={"Accept-Post": ", ".join(takes)},
        fields={"media_types": takes},
    )


# -- encoding


def encode(value: object, accept: str | None = None) -> Payload:
    """``value`` in the media type that ``accept`` (an Accept header, RFC 9110 section 12.5.1) likes best.

    The highest ``q`` wins; of equal ones the first that the client names, then the first of ours: JSON, but for bytes
    raw. Raises ``NotAcceptable``; and TypeError (OverflowError: over 64 bits) for what has no encoding, which is the
    handler's mistake.
    """
    name = _choose(accept, _offers(type(value)))  # type: ignore[arg-type]  # mypy asks the instance for __hash__
    return Payload(_WRITERS[_KINDS[name]](value), "text/plain; charset=utf-8" if name == TEXT else name)


def transcode(payload: Payload, accept: str | None) -> Payload:
    """``payload`` in a media type that ``accept`` takes, knowing nothing of its type: as it is if that will do, else from
    JSON, MessagePack or XML into another of them. Raises ``NotAcceptable``; ``BadRequest`` if it is malformed."""
    name = media_type(payload.content_type)
    if not name or accept is None or _quality(name, _ranges(accept))[0] > 0:
        return payload
    kind = kind_of(name)
    if kind not in _ANY_VALUE:
        raise _not_acceptable((payload.content_type,))
    chosen = _choose(accept, _names_of(_ANY_VALUE))
    value = codec_for(Any).decode(payload)
    try:
        return Payload(_WRITERS[_KINDS[chosen]](value), chosen)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # an extension, or a number over 64 bits
        raise _not_acceptable((payload.content_type,)) from error


def media_types_out(type_: Any) -> tuple[str, ...]:
    """The media types that values of ``type_`` can be given in, each by its first name, the default first."""
    members = [member for member in _members(type_) if member not in (None, type(None))]
    offers = _offers(members[0] if len(members) == 1 and isinstance(members[0], type) else object)
    return tuple(name for name in offers if name == _MEDIA_TYPES[_KINDS[name]][0])


def _names_of(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for kind in kinds for name in _MEDIA_TYPES[kind])


@functools.lru_cache(1024)
def _offers(cls: Any) -> tuple[str, ...]:
    """What a value can be given in, the default first."""
    if cls in (bytes, bytearray, memoryview):
        return _names_of(("raw", *_ANY_VALUE))
    if cls is str:
        return _names_of(("json", "text", "msgpack", "xml"))
    if is_message(cls):
        return _names_of(("json", "protobuf", "msgpack", "xml"))
    return _names_of(_ANY_VALUE)


@functools.lru_cache(256)
def _choose(accept: str | None, offers: tuple[str, ...]) -> str:
    ranges = _ranges(accept or "*/*")
    best = max(offers, key=lambda name: _quality(name, ranges))
    if _quality(best, ranges)[0] <= 0:
        raise _not_acceptable(offers)
    return best


_Q = re.compile(r";\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*(?:;|$)", re.IGNORECASE)


@functools.lru_cache(256)
def _ranges(accept: str) -> dict[str, tuple[float, int]]:
    """Media range to quality, and place in the header. Parameters other than q are not looked at."""
    result: dict[str, tuple[float, int]] = {}
    for place, part in enumerate(accept.split(",")):
        quality = _Q.search(part)
        result.setdefault(media_type(part), (float(quality[1]) if quality else 1.0, -place))
    return result


def _quality(name: str, ranges: Mapping[str, tuple[float, int]]) -> tuple[float, int]:
    """By the most specific range that matches: RFC 9110 section 12.5.1. A name counts as named before any wildcard."""
    if name in ranges:
        return ranges[name]
    for wildcard in (name.partition("/")[0] + "/*", "*/*"):
        if wildcard in ranges:
            return ranges[wildcard][0], -len(ranges) - 1
    return 0.0, 0


def _not_acceptable(names: tuple[str, ...]) -> NotAcceptable:
    return NotAcceptable(f"This can be given as {', '.join(names)}. Accept one of them.", fields={"media_types": names})


# -- writers


def _write_xml(value: Any) -> bytes:
    cls = type(value)
    named = isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(cls) or is_model(cls) or is_message(cls)
    try:
        plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_to_plain)
        return codecs.unparse(cls.__name__.lower() if named else "result", plain)
    except (ValueError, RecursionError) as error:
        raise NotAcceptable(
            f"This cannot be written as XML: {error}. Accept {JSON} or {MSGPACK}.",
            fields={"media_types": _names_of(("json", "msgpack"))},
        ) from error


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    "json": _json.encode,
    "msgpack": _msgpack.encode,
    "protobuf": lambda message: bytes(message.SerializeToString()),
    "xml": _write_xml,
    "text": str.encode,
    "raw": bytes,
}
