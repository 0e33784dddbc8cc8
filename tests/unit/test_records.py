"""Cutting a body into records."""

from __future__ import annotations

import json

import pytest

from tests.support.log import BYTES, TEXT, spool
from wayside.core.errors import BadRequest
from wayside.core.records import StreamConfig, split_records

JSON_STREAM = StreamConfig(content_type="application/json")


@pytest.mark.parametrize(
    ("body", "records"),
    [
        (b"1", [b"1"]),
        (b"null", [b"null"]),
        (b'"text"', [b'"text"']),
        (b'{"a":[1,2]}', [b'{"a":[1,2]}']),
        (b"[1,2,3]", [b"1", b"2", b"3"]),
        (b"[[1,2],[3]]", [b"[1,2]", b"[3]"]),
        (b"[[]]", [b"[]"]),
        (b'[{"a":1},"b",[null]]', [b'{"a":1}', b'"b"', b"[null]"]),
        ('["ä","\U0001f600"]'.encode(), ['"ä"'.encode(), '"\U0001f600"'.encode()]),
    ],
)
def test_a_json_array_is_flattened_by_one_level(body: bytes, records: list[bytes]) -> None:
    """Each item of the outermost array is a record; any other value is one record."""
    assert split_records(JSON_STREAM, body) == records


@pytest.mark.parametrize("body", [b" \t\r\n 1 \n", b" [ 1 ] ", b"[\r\n\t1\n]", b"\n1"])
def test_white_space_around_values_is_not_kept(body: bytes) -> None:
    """What stands around a value, or around the items of an array, is not part of a record."""
    assert split_records(JSON_STREAM, body) == [b"1"]


def test_a_record_is_one_line() -> None:
    """Line breaks between tokens are not kept, so that a record fits on one line, with its meaning unchanged."""
    value = {"a": [1, {"b": "x\ny\r\n"}], "c": " \t"}
    for text in (json.dumps(value, indent=2), json.dumps([value], indent=1).replace("\n", "\r\n")):
        (record,) = split_records(JSON_STREAM, text.encode())
        assert b"\n" not in record
        assert b"\r" not in record
        assert json.loads(record) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"1 2",
        b"[1] [2]",
        b"nul",
        b"01",
        b"'a'",
        b'"\\x"',
        b'"a\nb"',
        b"NaN",
        b"[1",
        b"\xef\xbb\xbf1",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """A JSON stream takes only whole, strict JSON."""
    with pytest.raises(BadRequest) as refused:
        split_records(JSON_STREAM, body)
    assert refused.value.code == "json-malformed"


@pytest.mark.parametrize("body", [b'"\xff"', b'"\xc3"', b'["ok","\xed\xa0\x80"]', b'"\xc0\xaf"', "ä".encode("latin-1")])
def test_json_that_is_not_utf8_is_refused(body: bytes) -> None:
    """Bytes that are not UTF-8 never become a record that no reader could decode."""
    with pytest.raises(BadRequest) as refused:
        split_records(JSON_STREAM, body)
    assert refused.value.code == "json-malformed"


def test_nesting_without_end_is_refused() -> None:
    """JSON too deep to be parsed is a bad request, not a failure."""
    with pytest.raises(BadRequest):
        split_records(JSON_STREAM, b"[" * 100_000)


@pytest.mark.parametrize("body", [b"[]", b" [ \n ] "])
def test_an_empty_array_appends_nothing_and_is_refused(body: bytes) -> None:
    """An empty array is refused, except as the body of a creation, where it stands for no records."""
    with pytest.raises(BadRequest) as refused:
        split_records(JSON_STREAM, body)
    assert refused.value.code == "empty-append"
    assert split_records(JSON_STREAM, body, empty_array=True) == []


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", " application/json ;x"]
)
def test_json_is_known_by_its_media_type(content_type: str) -> None:
    """Parameters and case of a content type do not matter."""
    assert split_records(StreamConfig(content_type=content_type), b"[1,2]") == [b"1", b"2"]


@pytest.mark.parametrize("content_type", [BYTES, TEXT, "application/jsonl", "application/problem+json"])
def test_any_other_body_is_one_record_as_it_is(content_type: str) -> None:
    """Bytes of a stream that is not JSON are kept as they came, white space and all."""
    config = StreamConfig(content_type=content_type)
    assert split_records(config, b" [1,\r\n2] ") == [b" [1,\r\n2] "]
    assert split_records(config, b"") == []


@pytest.mark.parametrize("piece_bytes", [4, 5, 6, 7, 8, 64])
def test_text_is_not_cut_inside_a_character(piece_bytes: int) -> None:
    """Each piece of a long UTF-8 body is UTF-8 by itself, as long as may be, and together they are the body."""
    text = "aä€\U0001f600" * 30 + "z"
    body = spool(text.encode())
    pieces = body.pieces(piece_bytes, text=True)
    assert "".join(body.read(*piece).decode() for piece in pieces) == text
    assert all(piece_bytes - 3 <= length <= piece_bytes for _, length in pieces[:-1])


def test_bytes_are_cut_at_the_size() -> None:
    """A body that is not text is cut exactly at the size of a piece."""
    body = spool("€".encode() * 100)
    assert [length for _, length in body.pieces(64, text=False)] == [64, 64, 64, 64, 44]
    assert b"".join(body.read(*piece) for piece in body.pieces(64, text=False)) == "€".encode() * 100


def test_text_that_is_not_utf8_is_cut_all_the_same() -> None:
    """A body of nothing but continuation bytes is cut at the size, and ends."""
    body = spool(b"\x80" * 100)
    assert [length for _, length in body.pieces(64, text=True)] == [64, 36]
