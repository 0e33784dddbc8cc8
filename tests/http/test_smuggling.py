"""Requests that two readers could understand differently are refused, and nothing behind them is executed.

Each case is sent in front of an append, alone on a new connection, and behind a request that was answered.
"""

from __future__ import annotations

import pytest

from tests.support.server import Running
from tests.support.wire import chunked, post, request

TARGET = "/v1/stream/victim"
SMUGGLED = post(TARGET, b"smuggled")
HEAD = f"POST {TARGET} HTTP/1.1\r\nHost: hub\r\nContent-Type: text/plain\r\n".encode()
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def length(*values: bytes) -> bytes:
    return HEAD + b"".join(b"Content-Length: %b\r\n" % v for v in values) + b"\r\nabc"


def coding(*values: bytes, version: bytes = b"1.1") -> bytes:
    lines = b"".join(b"Transfer-Encoding: %b\r\n" % v for v in values)
    return HEAD.replace(b"HTTP/1.1", b"HTTP/" + version) + lines + b"\r\n3\r\nabc\r\n0\r\n\r\n"


def field(line: bytes) -> bytes:
    return b"GET /healthz HTTP/1.1\r\nHost: hub\r\n" + line + b"\r\n\r\n"


LENGTHS = {
    "length and chunks": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "two lengths": length(b"3", b"4"),
    "two equal lengths": length(b"3", b"3"),
    "two lengths in one field": length(b"3, 4"),
    "two equal lengths in one field": length(b"3, 3"),
    "a plus before the length": length(b"+3"),
    "a minus before the length": length(b"-3"),
    "a hexadecimal length": length(b"0x3"),
    "a length with a point": length(b"3.0"),
    "a length with an underscore": length(b"1_0"),
    "a length in two words": length(b"3 3"),
    "an empty length": length(b""),
    "a length that is no number": length(b"abc"),
    "a length of other digits": length("３".encode()),
    "a length over 64 bits": length(b"18446744073709551619"),
    "a length of a hundred digits": length(b"9" * 100),
}

CODINGS = {
    "identity": coding(b"identity"),
    "identity and chunked": coding(b"identity, chunked"),
    "chunked and identity": coding(b"chunked, identity"),
    "chunked twice": coding(b"chunked, chunked"),
    "chunked in two fields": coding(b"chunked", b"chunked"),
    "identity in front in its own field": coding(b"identity", b"chunked"),
    "gzip and chunked": coding(b"gzip, chunked"),
    "an unknown coding": coding(b"xchunked"),
    "a coding with a vertical tab": coding(b"\x0bchunked"),
    "a quoted coding": coding(b'"chunked"'),
    "a coding with a parameter": coding(b"chunked;a=b"),
    "an empty coding": coding(b""),
    "a coding and a comma": coding(b"chunked,"),
    "chunks for HTTP/1.0": coding(b"chunked", version=b"1.0"),
}

CHUNKS = {
    "a plus before the size": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "a minus before the size": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "a prefix before the size": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a space before the size": CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n",
    "a size that is no number": CHUNKED + b"g\r\nabc\r\n0\r\n\r\n",
    "no size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "an extension without a size": CHUNKED + b";a=b\r\nabc\r\n0\r\n\r\n",
    "a size over 64 bits": CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "a size ended by LF": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "a size ended by CR": CHUNKED + b"3\rabc\r\n0\r\n\r\n",
    "an extension ended by LF": CHUNKED + b"3;a=b\nabc\r\n0\r\n\r\n",
    "an extension with CR in it": CHUNKED + b"3;a=\rb\r\nabc\r\n0\r\n\r\n",
    "a quoted extension with LF in it": CHUNKED + b'3;a="\n"\r\nabc\r\n0\r\n\r\n',
    "more data than the size": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "less data than the size": CHUNKED + b"4\r\nabc\r\n0\r\n\r\n",
    "data ended by LF": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "the last chunk ended by LF": CHUNKED + b"3\r\nabc\r\n0\n\n",
    "an end of LF": CHUNKED + b"3\r\nabc\r\n0\r\n\n",
    "a trailer without a colon": CHUNKED + b"3\r\nabc\r\n0\r\ntrailer\r\n\r\n",
    "a trailer folded": CHUNKED + b"3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
    "a trailer ended by LF": CHUNKED + b"3\r\nabc\r\n0\r\nA: b\n\r\n",
    "a length in the trailers": CHUNKED + b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n",
}

FIELDS = {
    "a space before the colon": field(b"A : b"),
    "a tab before the colon": field(b"A\t: b"),
    "a space before the length's colon": HEAD + b"Content-Length : 3\r\n\r\nabc",
    "a folded field": field(b"A: b\r\n c"),
    "a folded field of nothing": field(b"A:\r\n b"),
    "a fold after the request line": b"GET /healthz HTTP/1.1\r\n Host: hub\r\n\r\n",
    "a field ended by LF": field(b"A: b\nC: d"),
    "a field ended by CR": field(b"A: b\rC: d"),
    "CR in a value": field(b"A: b\rc"),
    "LF before the empty line": b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\n",
    "a head ended by two LF": b"GET /healthz HTTP/1.1\nHost: hub\n\n",
    "a request line ended by LF": b"GET /healthz HTTP/1.1\nHost: hub\r\n\r\n",
    "a request line ended by CR": b"GET /healthz HTTP/1.1\rHost: hub\r\n\r\n",
    "NUL in a value": field(b"A: b\x00c"),
    "NUL in a name": field(b"A\x00: b"),
    "NUL in the target": b"GET /healthz\x00 HTTP/1.1\r\nHost: hub\r\n\r\n",
    "a control character in a value": field(b"A: b\x01c"),
    "a control character in a name": field(b"A\x01b: c"),
    "a name that is no token": field(b"A(b): c"),
    "a name that is not ASCII": field("Ä: b".encode()),
    "an empty name": field(b": b"),
    "no colon": field(b"abc"),
}

LINES = {
    "no Host": b"GET /healthz HTTP/1.1\r\nA: b\r\n\r\n",
    "two Hosts": field(b"Host: hub"),
    "two different Hosts": field(b"hOST: other"),
    "a Host of two names": b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a Host with a path": b"GET /healthz HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a Host with a user": b"GET /healthz HTTP/1.1\r\nHost: user@hub\r\n\r\n",
    "Hosts in a list": b"GET /healthz HTTP/1.1\r\nHost: a,b\r\n\r\n",
    "HTTP/2.0": b"GET /healthz HTTP/2.0\r\nHost: hub\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/0.9 by name": b"GET /healthz HTTP/0.9\r\nHost: hub\r\n\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\nHost: hub\r\n\r\n",
    "HTTP/1.10": b"GET /healthz HTTP/1.10\r\nHost: hub\r\n\r\n",
    "HTTP/11": b"GET /healthz HTTP/11\r\nHost: hub\r\n\r\n",
    "http in lower case": b"GET /healthz http/1.1\r\nHost: hub\r\n\r\n",
    "a target with a space": b"GET /health z HTTP/1.1\r\nHost: hub\r\n\r\n",
    "a method in lower case": b"get /healthz HTTP/1.1\r\nHost: hub\r\n\r\n",
    "an unknown method": b"SMUGGLE /healthz HTTP/1.1\r\nHost: hub\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "bytes": bytes(range(128, 256)) + b"\r\n\r\n",
}

CASES = [
    pytest.param(data, id=name) for cases in (LENGTHS, CODINGS, CHUNKS, FIELDS, LINES) for name, data in cases.items()
]


@pytest.mark.parametrize("data", CASES)
async def test_an_ambiguous_request_is_refused_and_nothing_behind_it_is_executed(memory: Running, data: bytes) -> None:
    """One refusal of 400, 501 or 505, the end of the connection, and no record, whether the bytes come alone, with what
    they would smuggle, behind an answered request, or one at a time."""
    target = await memory.create("victim")
    good = request("GET", "/healthz")
    for parts in ([data + SMUGGLED], [good + data + SMUGGLED], [data, SMUGGLED], [bytes([b]) for b in data + SMUGGLED]):
        wire = await memory.connect()
        for part in parts:
            try:
                await wire.send_apart(part)
            except (ConnectionResetError, BrokenPipeError):
                break
        if parts[0].startswith(good):
            assert (await wire.response()).status == 200
        answer = await wire.last_response()
        assert answer.status in (400, 501, 505), answer
        assert answer["Content-Type"] == "application/problem+json"
        wire.close()
    assert await memory.body_of(target) in (b"", b"abc")
    assert b"smuggled" not in await memory.body_of(target)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "PATCH", "PURGE", "BREW"])
async def test_other_methods_do_nothing(memory: Running, method: str) -> None:
    """A method that the hub does not have is refused, and a body it brings is not taken for a request."""
    target = await memory.create("victim")
    wire = await memory.connect()
    await wire.send(request(method, target, {"Content-Type": "text/plain"}, SMUGGLED))
    answer = await wire.response()
    assert answer.status in (400, 405, 501)
    assert await memory.body_of(target) == b""


async def test_a_body_that_looks_like_a_request_is_a_body(memory: Running) -> None:
    """A request inside a body, in either framing, or behind a GET with a body, is data."""
    target = await memory.create("victim")
    wire = await memory.connect()
    for _ in range(2):
        await wire.send(request("GET", "/healthz", {"Content-Length": str(len(SMUGGLED))}) + SMUGGLED)
        assert (await wire.response()).status == 200
        await wire.send(request("HEAD", target, {"Content-Length": str(len(SMUGGLED))}) + SMUGGLED)
        assert (await wire.response("HEAD")).status == 200
        await wire.send(request("DELETE", "/v1/stream/none", {}, SMUGGLED))
        assert (await wire.response()).status == 404
    assert await memory.body_of(target) == b""
    await wire.send(post(target, SMUGGLED))
    assert (await wire.response()).status == 204
    assert await memory.body_of(target) == SMUGGLED
    assert wire.is_quiet()


async def test_an_upgrade_that_is_not_taken_is_a_request(memory: Running) -> None:
    """What follows a request to upgrade to a protocol that the hub does not have is HTTP, and executed once."""
    target = await memory.create("victim")
    wire = await memory.connect()
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    await wire.send(request("GET", "/healthz", upgrade) + post(target, b"one,") + request("GET", target))
    assert [(await wire.response()).status for _ in range(3)] == [200, 204, 200]


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_an_upgrade_that_is_not_taken_keeps_its_body(memory: Running, framing: str) -> None:
    """Java's client offers h2c with every request: the body is the request's, and never taken for another request."""
    target = await memory.create("victim")
    wire = await memory.connect()
    headers = {"Connection": "Upgrade", "Upgrade": "h2c", "Content-Type": "text/plain"}
    inner = request("DELETE", target) + b";"
    if framing == "length":
        data = request("POST", target, headers, inner)
    else:
        data = request("POST", target, {**headers, "Transfer-Encoding": "chunked"}) + chunked(inner[:9], inner[9:])
    packet = data + request("HEAD", target) + data
    for cut in range(0, len(packet), 3):
        await wire.send_apart(packet[:cut], packet[cut:])
        assert [(await wire.response(m)).status for m in ("POST", "HEAD", "POST")] == [204, 200, 204], cut
    assert await memory.body_of(target) == inner * 2 * len(range(0, len(packet), 3))
    expecting = {**headers, "Expect": "100-continue", "Content-Length": "5"}
    await wire.send(request("POST", target, expecting))
    assert (await wire.response()).status == 100
    await wire.send(b"hello")
    assert (await wire.response()).status == 204
    assert (await memory.body_of(target)).endswith(b";hello")
