"""XML as values and back: an element is a field, or one item of a field that is a list; so is an attribute.

XML has no numbers, no lists and no names for items: all is text, and only the type tells a list of one from a field.
So what xmltodict reads is fitted to a type here; text becomes numbers later. Knows nothing of media types or refusals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from xml.parsers import expat

import xmltodict
from msgspec import inspect as shapes

__all__ = ["Fields", "ReadError", "fit", "parse", "unparse"]

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
