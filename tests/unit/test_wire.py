"""HTTP as bytes, and what a pattern sees of a request."""

from __future__ import annotations

import json

import pytest

from tests.support.log import append, create, creation
from wayside.core.errors import BadRequest, Conflict, Gone, Refusal, Unsupported
from wayside.core.records import require_path
from wayside.server.exchange import Request, parse_query, position_of, quote_header, unquote_path
from wayside.server.http.head import VersionNotSupported, chunk, field_lines, problem, request_id, request_of
from wayside.streams.streams import Streams

HOST = (b"Host", b"example.org")


def _request(target: bytes = b"/", *fields: tuple[bytes, bytes], version: str = "1.1", method: str = "GET") -> Request:
    return request_of(method, target, [HOST, *fields], version, True)


# -- request heads


def test_a_head_becomes_a_request() -> None:
    """Method, decoded path, query and headers are what was sent."""
    request = _request(b"/v1/stream/a%20b/%C3%A4?offset=-1&x=1&x=2", (b"X-Thing", b" a \t"), (b"Content-Length", b"7"))
    assert request.method == "GET"
    assert request.path == "/v1/stream/a b/ä"
    assert request.query == {"offset": ["-1"], "x": ["1", "2"]}
    assert request.headers["x-thing"] == "a"
    assert request.length == 7
    assert request.keep_alive
    assert not request.version_10


def test_lines_of_one_header_are_joined() -> None:
    """A header given on several lines is their values in order, as RFC 9110 section 5.3 has it."""
    assert _request(b"/", (b"Accept", b"a"), (b"aCCEPT", b"b")).headers["accept"] == "a, b"


@pytest.mark.parametrize("name", [b"Host", b"host", b"Content-Length", b"Transfer-Encoding"])
def test_what_frames_a_request_is_given_once(name: bytes) -> None:
    """Two hosts, lengths or codings, equal or not, could be read differently by a proxy: refused."""
    value = {b"content-length": b"1", b"transfer-encoding": b"chunked"}.get(name.lower(), b"example.org")
    with pytest.raises(BadRequest) as refused:
        _request(b"/", (name, value), (name.upper(), value))
    assert refused.value.code == "header-repeated"


def test_a_host_is_required() -> None:
    """HTTP/1.1 requires a Host header, HTTP/1.0 does not."""
    with pytest.raises(BadRequest) as refused:
        request_of("GET", b"/", [], "1.1", True)
    assert refused.value.code == "host-missing"
    assert request_of("GET", b"/", [], "1.0", False).version_10


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", ""])
def test_other_versions_are_refused(version: str) -> None:
    """Only HTTP/1.0 and HTTP/1.1 are spoken."""
    with pytest.raises(VersionNotSupported):
        request_of("GET", b"/", [HOST], version, True)


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked"])
def test_other_transfer_codings_are_refused(coding: bytes) -> None:
    """A body that is not simply chunked is not understood."""
    with pytest.raises(Unsupported):
        _request(b"/", (b"Transfer-Encoding", coding))


def test_chunked_is_not_of_http_10() -> None:
    """HTTP/1.0 has no transfer codings; a proxy would take the body for another request."""
    with pytest.raises(Unsupported):
        _request(b"/", (b"Transfer-Encoding", b"chunked"), version="1.0")
    assert _request(b"/", (b"Transfer-Encoding", b"Chunked")).length == 0


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"http://example.org/a?b=1", "/a"), (b"http://example.org", "/"), (b"*", "*"), (b"//a", "//a")],
)
def test_every_form_of_target_has_a_path(target: bytes, path: str) -> None:
    """The absolute form is the path behind its host (RFC 9112 section 3.2)."""
    assert _request(target).path == path


@pytest.mark.parametrize("target", [b"", b"a", b"example.org:80", b"?a=1"])
def test_a_target_without_a_path_is_refused(target: bytes) -> None:
    """What is neither a path nor a URL names nothing."""
    with pytest.raises(BadRequest) as refused:
        _request(target)
    assert refused.value.code == "target-invalid"


@pytest.mark.parametrize("target", [b"/%ff", b"/a%C3", b"/%80b", b"/\xff"])
def test_a_path_that_is_not_utf8_is_refused(target: bytes) -> None:
    """A path is text; bytes that are not are refused rather than replaced."""
    with pytest.raises(BadRequest) as refused:
        _request(target)
    assert refused.value.code == "path-invalid"


# -- paths and queries


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("a=1", {"a": ["1"]}),
        ("a=1&b=2&a=3", {"a": ["1", "3"], "b": ["2"]}),
        ("a", {"a": [""]}),
        ("a=", {"a": [""]}),
        ("=1", {"": ["1"]}),
        ("a=b=c", {"a": ["b=c"]}),
        ("&&a=1&", {"a": ["1"]}),
        ("a+b=c+d", {"a b": ["c d"]}),
        ("a%2Bb=%26%3D", {"a+b": ["&="]}),
        ("a=%C3%A4", {"a": ["ä"]}),
        ("a=%ff", {"a": ["\ufffd"]}),
        ("a=%", {"a": ["%"]}),
        ("a=%zz", {"a": ["%zz"]}),
        ("a;b=1", {"a;b": ["1"]}),
    ],
)
def test_a_query_is_read_as_a_form(query: str, expected: dict[str, list[str]]) -> None:
    """Query strings are read as WHATWG URL says, and no query is an error."""
    assert parse_query(query) == expected


def test_a_parameter_that_counts_is_given_once() -> None:
    """A parameter that is asked for by name may not be given twice; others may."""
    request = _request(b"/?offset=1&offset=2&x=1")
    assert request.one("x") == "1"
    assert request.one("y") is None
    with pytest.raises(BadRequest) as refused:
        request.one("offset")
    assert refused.value.code == "parameter-repeated"


def test_a_plus_in_a_path_is_a_plus() -> None:
    """Only a query has pluses for spaces."""
    assert unquote_path("/a+b%2Bc%20d") == "/a+b+c d"


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), (" TRUE ", True), ("1", False), ("", False), ("truth", False)]
)
def test_a_flag_is_exactly_true(value: str, expected: bool) -> None:
    """A header that is a flag is ``true``, in any case, and nothing else."""
    assert _request(b"/", (b"Stream-Closed", value.encode())).is_true("stream-closed") is expected
    assert not _request(b"/").is_true("stream-closed")


# -- where a read begins


async def test_a_read_begins_where_it_is_told(log: Streams) -> None:
    """``offset`` is -1, now or a token; without it a read begins at the start."""
    await create(log, "s")
    await append(log, "s", b"[1,2,3]")
    stream = log.find("s")
    token = str(stream.offset(2)).encode()
    for target, position in ((b"/", 0), (b"/?offset=-1", 0), (b"/?offset=now", 3), (b"/?offset=" + token, 2)):
        assert position_of(_request(target), stream) == position
    with pytest.raises(BadRequest):
        position_of(_request(b"/?offset=2"), stream)
    with pytest.raises(Gone):
        position_of(_request(b"/?offset=00000000001_0000000000000001"), stream)


async def test_last_event_id_wins(log: Streams) -> None:
    """A browser that resumes sends its old URL and the id of the last event: the id counts."""
    await create(log, "s", creation())
    await append(log, "s", b"[1,2,3]")
    stream = log.find("s")
    token = str(stream.offset(2)).encode()
    assert position_of(_request(b"/?offset=now", (b"Last-Event-ID", token)), stream) == 2
    assert position_of(_request(b"/?offset=now", (b"Last-Event-ID", b"")), stream) == 3


async def test_a_live_read_of_the_protocol_names_its_offset(log: Streams) -> None:
    """Where the protocol requires an offset its absence is refused."""
    await create(log, "s")
    with pytest.raises(BadRequest) as refused:
        position_of(_request(b"/"), log.find("s"), required=True)
    assert refused.value.code == "offset-missing"


# -- answers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("a\r\nX-Evil: 1", "a  X-Evil: 1"),
        ("a\nb\rc\x00d", "a b c d"),
        ("größe", "größe"),
        ("日本", "??"),
        ("\udcff", "?"),
    ],
)
def test_a_header_value_cannot_end_itself(value: str, expected: str) -> None:
    """Line breaks and NUL become spaces, what Latin-1 has not becomes a question mark."""
    assert quote_header(value) == expected
    assert field_lines({"X": value}) == f"X: {expected}\r\n".encode("latin-1")


def test_a_chunk_is_its_length_and_its_bytes() -> None:
    """Chunks are framed as RFC 9112 section 7.1 says."""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


def test_a_refusal_is_a_problem_document() -> None:
    """A refusal says its type, status, detail, code and fields, and carries its headers."""
    refusal = Conflict("It does not fit.", code="odd", headers={"X-Next": "1\r\n2"}, fields={"extra": 3})
    status, head, body = problem(refusal, "id-1")
    assert status == 409
    assert b"Content-Type: application/problem+json\r\n" in head
    assert b"X-Next: 1  2\r\n" in head
    assert json.loads(body) == {
        "type": "urn:wayside:problem:odd",
        "title": "Conflict",
        "status": 409,
        "detail": "It does not fit.",
        "code": "odd",
        "retry": False,
        "extra": 3,
        "request_id": "id-1",
    }


def _subclasses(kind: type[Refusal]) -> set[type[Refusal]]:
    found = {kind}
    for each in kind.__subclasses__():
        found |= _subclasses(each)
    return found


def test_every_refusal_has_its_own_code() -> None:
    """Each class of refusal has a code that no other has, an HTTP status, and a valid close code."""
    kinds = _subclasses(Refusal)
    codes = [kind.code for kind in kinds]
    assert sorted(codes) == sorted(set(codes))
    for kind in kinds:
        assert 400 <= kind.status <= 599
        assert kind.close_code in (1003, 1008, 1009, 1011, 1012, 1013) or 4000 <= kind.close_code <= 4999
        assert kind.title


def test_a_request_id_is_taken_over_if_it_is_harmless() -> None:
    """A client's own request id is used; a long or strange one is not, and without one each request has a new one."""
    assert request_id(_request(b"/", (b"X-Request-Id", b"abc-1"))) == "abc-1"
    for value in (b"x" * 65, b"a\x01b", "ä".encode()):
        assert request_id(_request(b"/", (b"X-Request-Id", value))) != value.decode("latin-1")
    assert request_id(None) != request_id(None)


# -- stream paths


@pytest.mark.parametrize(
    "path", ["a", "orders/eu/42", "ä b", "100%", "a%41", "a%2Fb", "%2e%2e", "...", "a..b", "__dsx"]
)
def test_a_stream_path_is_taken_as_it_is(path: str) -> None:
    """The decoded path of a URL is a stream's path: decoded once, so that no two names become one. It is not refused."""
    require_path(path, 1024)


@pytest.mark.parametrize(
    "path", ["a//b", "/a", "a/", ".", "..", "a/../b", "a/./b", "a\nb", "a\x00b", "a\x7fb", "a\ud800b", "x" * 1025]
)
def test_an_ambiguous_stream_path_is_refused(path: str) -> None:
    """Paths that some client or proxy would change on the way name no stream."""
    with pytest.raises(BadRequest) as refused:
        require_path(path, 1024)
    assert refused.value.code == "path-invalid"


@pytest.mark.parametrize("target", [b"/v1/stream/%C3%A4", b"/v1/stream/\xc3\xa4"])
def test_a_path_means_the_same_encoded_or_not(target: bytes) -> None:
    """A client that does not encode its UTF-8 reaches the same stream as one that does."""
    assert _request(target).path == "/v1/stream/ä"
