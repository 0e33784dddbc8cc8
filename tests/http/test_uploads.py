"""Uploads by tus 1.0.0: every rule of it, and that nothing that arrived before a cut is lost."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.support.asgi import Asgi
from tests.support.disk import Gate
from tests.support.server import BYTES, Running, Serve
from tests.support.waiting import PATIENCE_S, until
from tests.support.wire import Response, Wire, chunked, request
from wayside import Limits
from wayside.hub import Hub
from wayside.server.patterns.upload import Uploads
from wayside.testing import ManualClock

TUS = {"Tus-Resumable": "1.0.0"}
PATCH = {**TUS, "Content-Type": "application/offset+octet-stream"}
UPLOADS = "/v1/upload/"
UNKNOWN = f"{UPLOADS}{'0' * 32}"
MIB = 1024 * 1024


def at(offset: int, **fields: str) -> dict[str, str]:
    """The header of a PATCH; ``upload_length`` is Upload-Length."""
    named = {name.replace("_", "-").title(): value for name, value in fields.items()}
    return {**PATCH, "Upload-Offset": str(offset), **named}


async def make(hub: Running, length: int | None, headers: Mapping[str, str] | None = None) -> str:
    """Create an upload; its URL path."""
    size = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    answer = await hub.ask("POST", UPLOADS, {**TUS, **size, **(headers or {})}, b"")
    assert answer.status == 201, answer.body
    assert answer["Location"].startswith(f"http://hub{UPLOADS}")
    return answer["Location"].removeprefix("http://hub")


async def head(hub: Running, target: str) -> Response:
    answer = await hub.ask("HEAD", target, TUS)
    assert answer.status == 200, answer
    assert answer["Cache-Control"] == "no-store"
    return answer


async def offset_of(hub: Running, target: str) -> int:
    return int((await head(hub, target))["Upload-Offset"])


async def stream_of(hub: Running, target: str) -> Response:
    """What the stream of an upload has."""
    where = (await head(hub, target))["Wayside-Stream"]
    assert where == f"/v1/stream/uploads/{target.removeprefix(UPLOADS)}"
    return await hub.ask("GET", where)


async def filled(hub: Running, target: str, body: bytes) -> None:
    """The upload is complete, and has these bytes."""
    answer = await stream_of(hub, target)
    assert answer.body == body
    assert answer["Stream-Closed"] == "true"
    assert answer["Content-Type"] == "application/octet-stream"


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# -- creation


async def test_an_upload_in_parts_becomes_one_closed_stream(memory: Running) -> None:
    """What is sent by several PATCHes stands in the stream in order, and the last one closes it."""
    target = await make(memory, 11)
    first = await memory.ask("PATCH", target, at(0), b"hello ")
    assert (first.status, first["Upload-Offset"], first["Tus-Resumable"]) == (204, "6", "1.0.0")
    assert "GMT" in first["Upload-Expires"]
    assert (await stream_of(memory, target)).get("Stream-Closed") is None
    last = await memory.ask("PATCH", target, at(6), b"world")
    assert (last.status, last["Upload-Offset"], last.get("Upload-Expires")) == (204, "11", None)
    await filled(memory, target, b"hello world")


async def test_head_says_what_was_said_at_creation(memory: Running) -> None:
    """HEAD gives length, metadata and offset, and the stream to name as an argument; so does the creation."""
    metadata = "filename d29ybGQucGRm,is_confidential,type YQ=="
    answer = await memory.ask("POST", UPLOADS, {**TUS, "Upload-Length": "5", "Upload-Metadata": metadata}, b"")
    assert (answer.status, answer["Upload-Offset"]) == (201, "0")
    target = answer["Location"].removeprefix("http://hub")
    asked = await head(memory, target)
    assert (asked["Upload-Length"], asked["Upload-Metadata"]) == ("5", metadata)
    assert (asked["Upload-Offset"], asked.get("Upload-Defer-Length")) == ("0", None)
    assert asked["Wayside-Stream"] == answer["Wayside-Stream"]
    assert "GMT" in asked["Upload-Expires"]


async def test_an_empty_upload_is_complete_at_once(memory: Running) -> None:
    """An upload of no bytes is a closed stream without any."""
    await filled(memory, await make(memory, 0), b"")


@pytest.mark.parametrize("whole", [True, False])
async def test_a_creation_may_bring_bytes(memory: Running, whole: bool) -> None:
    """The body of a creation is the beginning of the upload, or all of it."""
    answer = await memory.ask("POST", UPLOADS, {**PATCH, "Upload-Length": "5"}, b"hello" if whole else b"he")
    assert (answer.status, answer["Upload-Offset"]) == (201, "5" if whole else "2")
    target = answer["Location"].removeprefix("http://hub")
    if not whole:
        assert (await memory.ask("PATCH", target, at(2), b"llo")).status == 204
    await filled(memory, target, b"hello")


async def test_the_location_is_as_the_client_sees_the_hub(memory: Running) -> None:
    """Behind a proxy that ends TLS, an upload's URL has its scheme."""
    headers = {**TUS, "Upload-Length": "1", "X-Forwarded-Proto": "https"}
    assert (await memory.ask("POST", UPLOADS, headers, b""))["Location"].startswith(f"https://hub{UPLOADS}")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"", 400),
        ({"Upload-Length": "1", "Upload-Defer-Length": "1"}, b"", 400),
        ({"Upload-Defer-Length": "2"}, b"", 400),
        ({"Upload-Length": "-1"}, b"", 400),
        ({"Upload-Length": "1e3"}, b"", 400),
        ({"Upload-Length": str(1 << 41)}, b"", 413),
        ({"Upload-Length": "1", "Upload-Metadata": "a  YQ=="}, b"", 400),
        ({"Upload-Length": "1", "Upload-Metadata": "a ä"}, b"", 400),
        ({"Upload-Length": "1", "Upload-Metadata": "a YQ==,a YQ=="}, b"", 400),
        ({"Upload-Length": "1", "Upload-Metadata": "a YQ"}, b"", 400),
        ({"Upload-Length": "1", "Content-Type": "text/plain"}, b"x", 415),
        ({"Upload-Length": "1", "Content-Type": PATCH["Content-Type"]}, b"xy", 413),
        ({"Upload-Length": "1", "Upload-Concat": "partial"}, b"", 501),
    ],
)
async def test_a_creation_that_makes_no_sense_is_refused(
    memory: Running, headers: Mapping[str, str], body: bytes, status: int
) -> None:
    """A creation is refused for what is wrong with it, and makes nothing."""
    answer = await memory.ask("POST", UPLOADS, {**TUS, **headers}, body)
    assert (answer.status, answer["Tus-Resumable"]) == (status, "1.0.0")
    assert answer["Content-Type"] == "application/problem+json"
    assert memory.hub.log.statistics().streams == 0


async def test_a_length_may_be_said_later(memory: Running) -> None:
    """An upload whose length is deferred takes bytes without it, keeps it once it is said, and is then complete."""
    target = await make(memory, None)
    assert (await head(memory, target))["Upload-Defer-Length"] == "1"
    assert (await memory.ask("PATCH", target, at(0), b"he")).status == 204
    assert (await memory.ask("PATCH", target, at(2, upload_length="5"), b"l")).status == 204
    asked = await head(memory, target)
    assert (asked["Upload-Length"], asked.get("Upload-Defer-Length")) == ("5", None)
    refused = await memory.ask("PATCH", target, at(3, upload_length="6"), b"lo!")
    assert (refused.status, await offset_of(memory, target)) == (400, 3)
    assert (await memory.ask("PATCH", target, at(3, upload_length="5"), b"lo")).status == 204
    await filled(memory, target, b"hello")


async def test_a_length_that_is_reached_when_it_is_said_completes(memory: Running) -> None:
    """A deferred length equal to what has arrived closes the stream without another byte; a shorter one is refused."""
    target = await make(memory, None)
    assert (await memory.ask("PATCH", target, at(0), b"hello")).status == 204
    assert (await memory.ask("PATCH", target, at(5, upload_length="4"), b"")).status == 400
    assert (await memory.ask("PATCH", target, at(5, upload_length="5"), b"")).status == 204
    await filled(memory, target, b"hello")


# -- the rules of the protocol


@pytest.mark.parametrize("target", [UPLOADS, UNKNOWN, UPLOADS[:-1]])
async def test_options_say_what_is_spoken(memory: Running, target: str) -> None:
    """OPTIONS, which needs no version, gives versions, extensions, the largest upload and the checksums."""
    answer = await memory.ask("OPTIONS", target)
    assert answer.status == 204
    assert answer["Tus-Version"] == "1.0.0"
    assert set(answer["Tus-Extension"].split(",")) == {
        "creation",
        "creation-with-upload",
        "creation-defer-length",
        "termination",
        "checksum",
        "expiration",
    }
    assert int(answer["Tus-Max-Size"]) == 1 << 40
    assert answer["Tus-Checksum-Algorithm"] == "sha1,md5,sha256,crc32"
    assert "OPTIONS" in answer["Allow"]


@pytest.mark.parametrize("version", [None, "0.2.2"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
async def test_another_version_is_refused(memory: Running, method: str, version: str | None) -> None:
    """A request of another version, or of none, is answered 412 with the one that is spoken, and does nothing."""
    target = await make(memory, 5)
    headers = {**at(0), "Upload-Length": "5"}
    del headers["Tus-Resumable"]
    if version is not None:
        headers["Tus-Resumable"] = version
    body = b"hello" if method in ("POST", "PATCH") else None
    answer = await memory.ask(method, UPLOADS if method == "POST" else target, headers, body)
    assert (answer.status, answer["Tus-Version"], answer["Tus-Resumable"]) == (412, "1.0.0", "1.0.0")
    assert await offset_of(memory, target) == 0
    assert memory.hub.log.statistics().streams == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (at(0), 409),
        (at(3), 409),
        ({**at(0), "Upload-Offset": "x"}, 400),
        (PATCH, 400),
        ({**at(2), "Content-Type": "application/octet-stream"}, 415),
        ({**at(2), "Upload-Checksum": "sha1 nonsense!"}, 400),
        ({**at(2), "Upload-Checksum": "sha3 AAAA"}, 400),
    ],
)
async def test_a_patch_that_does_not_fit_is_refused(memory: Running, headers: Mapping[str, str], status: int) -> None:
    """A PATCH at another offset, of another content type or with an unknown checksum takes nothing; the connection goes
    on where the body is whole."""
    target = await make(memory, 5)
    wire = await memory.connect()
    assert (await wire.ask("PATCH", target, at(0), b"he")).status == 204
    answer = await wire.ask("PATCH", target, headers, b"llo")
    assert (answer.status, answer["Tus-Resumable"], answer.closes) == (status, "1.0.0", False)
    if status == 409:
        assert answer["Upload-Offset"] == "2"
    assert await offset_of(memory, target) == 2
    assert (await wire.ask("PATCH", target, at(2), b"llo")).status == 204
    await filled(memory, target, b"hello")


@pytest.mark.parametrize("target", [UNKNOWN, f"{UPLOADS}x", f"{UPLOADS}{'0' * 32}/x", f"{UPLOADS}../stream/a"])
@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
async def test_an_unknown_upload_is_not_found(memory: Running, method: str, target: str) -> None:
    """What was never made, or is no upload, is answered 404."""
    answer = await memory.ask(method, target, at(0), b"x" if method == "PATCH" else None)
    assert (answer.status, answer["Tus-Resumable"]) == (404, "1.0.0")


async def test_a_stream_of_somebody_else_is_no_upload(memory: Running) -> None:
    """A stream that is merely named like one, or has taken its place, is not filled by tus."""
    await memory.create(f"uploads/{'0' * 32}", BYTES)
    assert (await memory.ask("PATCH", UNKNOWN, at(0), b"x")).status == 404
    target = await make(memory, 5)
    stream = target.replace("upload", "stream/uploads")
    assert (await memory.ask("DELETE", stream)).status == 204
    assert (await memory.ask("PUT", stream, {"Content-Type": "application/json"})).status == 201
    assert (await memory.ask("PATCH", target, at(0), b"x")).status == 404


@pytest.mark.parametrize("complete", [True, False])
async def test_a_terminated_upload_is_gone(memory: Running, complete: bool) -> None:
    """DELETE takes an upload, complete or not, and all that was kept of it."""
    target = await make(memory, 5)
    where = (await head(memory, target))["Wayside-Stream"]
    assert (await memory.ask("PATCH", target, at(0), b"hello" if complete else b"h")).status == 204
    answer = await memory.ask("DELETE", target, TUS)
    assert (answer.status, answer["Tus-Resumable"]) == (204, "1.0.0")
    for method in ("HEAD", "PATCH", "DELETE"):
        assert (await memory.ask(method, target, at(0))).status == 404
    assert (await memory.ask("GET", where)).status == 404
    assert memory.hub.log.statistics().streams == 0


async def test_a_get_leads_to_the_bytes(memory: Running) -> None:
    """GET, which tus does not have, is sent on to the stream; other methods are not possible."""
    target = await make(memory, 5)
    answer = await memory.ask("GET", target)
    assert (answer.status, answer["Location"]) == (303, (await head(memory, target))["Wayside-Stream"])
    for method, where in (("PUT", target), ("GET", UPLOADS), ("PATCH", UPLOADS), ("POST", target)):
        refused = await memory.ask(method, where, TUS, b"" if method == "POST" else None)
        assert refused.status == 405, (method, where)
        assert method not in refused["Allow"].split(", ") or (method, where) == ("POST", target)


async def test_the_method_may_be_said_by_a_header(memory: Running) -> None:
    """X-HTTP-Method-Override is the method, for clients that have no PATCH, HEAD or DELETE."""
    target = await make(memory, 5)

    async def override(method: str, headers: Mapping[str, str], body: bytes = b"") -> Response:
        return await memory.ask("POST", target, {**headers, "X-HTTP-Method-Override": method}, body)

    assert (await override("PATCH", at(0), b"hello")).status == 204
    assert (await override("HEAD", TUS))["Upload-Offset"] == "5"
    await filled(memory, target, b"hello")
    assert (await override("delete", TUS)).status == 204
    assert (await memory.ask("HEAD", target, TUS)).status == 404


async def test_a_browser_of_another_origin_may_do_all_of_it(memory: Running) -> None:
    """A preflight allows methods and headers of tus, and answers let a page read theirs."""
    asked = {"Origin": "http://page", "Access-Control-Request-Method": "PATCH"}
    preflight = await memory.ask("OPTIONS", UNKNOWN, asked)
    assert {"POST", "HEAD", "PATCH", "DELETE"} <= set(preflight["Access-Control-Allow-Methods"].split(", "))
    allowed = preflight["Access-Control-Allow-Headers"].split(", ")
    sent = ["Tus-Resumable", "Upload-Length", "Upload-Metadata", "Upload-Offset", "Upload-Checksum", "Content-Type"]
    sent += ["Upload-Defer-Length", "X-HTTP-Method-Override", "X-Requested-With", "X-Request-Id"]
    assert set(sent) <= set(allowed)
    answer = await memory.ask("POST", UPLOADS, {**TUS, "Upload-Length": "1", "Origin": "http://page"}, b"")
    assert answer["Access-Control-Allow-Origin"] == "*"
    exposed = set(answer["Access-Control-Expose-Headers"].split(", "))
    given = {name for name in answer.headers if name.startswith(("upload-", "tus-", "wayside-"))} | {"location"}
    assert given <= {name.lower() for name in exposed}


# -- how much


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("deferred", [True, False])
async def test_more_than_there_may_be_is_refused(
    memory: Running, monkeypatch: pytest.MonkeyPatch, framing: str, deferred: bool
) -> None:
    """A body beyond Upload-Length, or beyond Tus-Max-Size, is answered 413, whether or not its length is known before."""
    monkeypatch.setattr(Uploads, "bytes_max", 1000)
    assert (await memory.ask("OPTIONS", UPLOADS))["Tus-Max-Size"] == "1000"
    target = await make(memory, None if deferred else 900)
    assert (await memory.ask("PATCH", target, at(0), b"x" * 100)).status == 204
    wire = await memory.connect()
    if framing == "length":
        await wire.send(request("PATCH", target, at(100), b"x" * 901))
    else:
        await wire.send(request("PATCH", target, {**at(100), "Transfer-Encoding": "chunked"}))
        await wire.send(chunked(b"x" * 500, b"x" * 401))
    answer = await wire.response("PATCH")
    assert answer.status == 413
    assert (b'"limit_bytes":%d' % (1000 if deferred else 900)) in answer.body
    assert await offset_of(memory, target) == 100


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_has_no_limit_but_the_upload_s(serve: Serve, framing: str) -> None:
    """One PATCH may bring far more than a body may have elsewhere, and what memory is given to one."""
    hub = await serve(disk=True, body_bytes_max=MIB, body_memory_bytes_max=1000)
    body = some_bytes(9 * MIB)
    target = await make(hub, len(body))
    wire = await hub.connect()
    if framing == "length":
        await wire.send(request("PATCH", target, at(0), body))
    else:
        pieces = [body[i : i + 100_000] for i in range(0, len(body), 100_000)]
        await wire.send(request("PATCH", target, {**at(0), "Transfer-Encoding": "chunked"}) + chunked(*pieces))
    answer = await wire.response("PATCH")
    assert (answer.status, answer["Upload-Offset"], answer.closes) == (204, str(len(body)), False)
    await filled(hub, target, body)
    assert (await wire.ask("GET", "/healthz")).status == 200


async def test_reading_rests_while_the_disk_is_behind(disk: Running, gate: Gate) -> None:
    """While a commit is under way the client is held back: what waits in memory has a bound."""
    body = some_bytes(16 * MIB)
    target = await make(disk, len(body))
    wire = await disk.connect()
    gate.shut()
    sending = asyncio.create_task(wire.send(request("PATCH", target, at(0), body)))
    await gate.reached()
    connection = disk.connection_of(wire)
    await until(lambda: not connection.transport.is_reading())
    assert disk.hub.log.statistics().uncommitted_bytes < 4 * MIB
    assert not sending.done()
    assert connection.deadline is None  # it is the hub that is slow
    gate.open()
    await sending
    assert (await wire.response("PATCH")).status == 204
    await filled(disk, target, body)


# -- cuts


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
async def test_what_came_before_a_cut_is_kept(disk: Running, framing: str, how: str) -> None:
    """A client that is cut off finds, when it comes again, all that it had sent, and goes on from there."""
    body = some_bytes(MIB)
    target = await make(disk, len(body))
    wire = await disk.connect()
    if framing == "length":
        await wire.send(request("PATCH", target, {**at(0), "Content-Length": str(len(body))}) + body[: MIB // 2])
    else:
        await wire.send(request("PATCH", target, {**at(0), "Transfer-Encoding": "chunked"}))
        await wire.send(chunked(body[: MIB // 2])[:-5])
    if how == "half-close":
        wire.half_close()
        assert (await wire.response("PATCH")).status == 400
    elif how == "close":
        wire.close()
    else:
        await until(lambda: disk.hub.log.statistics().bytes >= MIB // 2)  # a reset takes what was not read
        wire.reset()
    await until(lambda: not disk.server.connections or how == "half-close")
    assert await offset_of(disk, target) == MIB // 2
    assert (await disk.ask("PATCH", target, at(MIB // 2), body[MIB // 2 :])).status == 204
    await filled(disk, target, body)


async def test_a_cut_is_waited_for(disk: Running, gate: Gate) -> None:
    """Who comes again while the rest of the cut request is still on its way to the disk is told of all of it."""
    target = await make(disk, 10)
    wire = await disk.connect()
    gate.shut()
    await wire.send(request("PATCH", target, {**at(0), "Content-Length": "10"}) + b"hello")
    await gate.reached()
    wire.reset()
    await until(lambda: not disk.server.connections)
    asking = asyncio.create_task(disk.ask("HEAD", target, TUS))
    going_on = asyncio.create_task(disk.ask("PATCH", target, at(5), b"world"))
    await until(lambda: len(disk.server.connections) == 2)
    gate.open()
    assert (await asking)["Upload-Offset"] in ("5", "10")
    assert (await going_on).status == 204
    await filled(disk, target, b"helloworld")


async def test_a_client_that_stalls_is_told_and_keeps_what_it_sent(serve: Serve) -> None:
    """A body that does not go on is answered 408; the upload is free again, and has what came."""
    hub = await serve(header_timeout_s=0.1)
    target = await make(hub, 10)
    wire = await hub.connect()
    await wire.send(request("PATCH", target, {**at(0), "Content-Length": "10"}) + b"hello")
    answer = await wire.last_response("PATCH")
    assert (answer.status, answer["Tus-Resumable"]) == (408, "1.0.0")
    assert await offset_of(hub, target) == 5
    assert (await hub.ask("PATCH", target, at(5), b"world")).status == 204


async def test_a_commit_that_takes_long_is_no_stall(serve: Serve) -> None:
    """A client that has sent everything is not cut off for the time that the disk takes."""
    hub = await serve(disk=True, header_timeout_s=0.1)
    gate = Gate(hub.hub.log)
    target = await make(hub, 5)
    wire = await hub.connect()
    gate.shut()
    await wire.send(request("PATCH", target, at(0), b"hello"))
    await gate.reached()
    await asyncio.sleep(1.5)  # the server looks at deadlines once a second
    gate.open()
    assert (await wire.response("PATCH")).status == 204
    await filled(hub, target, b"hello")


async def test_broken_chunks_end_a_body(memory: Running) -> None:
    """A body whose framing breaks is answered 400, as the last of the connection, and keeps what came before."""
    target = await make(memory, 10)
    wire = await memory.connect()
    await wire.send(request("PATCH", target, {**at(0), "Transfer-Encoding": "chunked"}) + b"5\r\nhello\r\n")
    await until(lambda: memory.hub.log.statistics().bytes >= 5)
    await wire.send(b"nonsense\r\n")
    assert (await wire.last_response("PATCH")).status == 400
    assert await offset_of(memory, target) == 5


async def test_a_hub_that_stops_keeps_what_came(serve: Serve) -> None:
    """A drain ends an upload under way with 503: the client comes again and goes on."""
    hub = await serve(disk=True)
    target = await make(hub, 10)
    wire = await hub.connect()
    before = hub.hub.log.statistics().bytes
    await wire.send(request("PATCH", target, {**at(0), "Content-Length": "10"}) + b"hello")
    await until(lambda: hub.hub.log.statistics().bytes >= before + 5)
    draining = asyncio.create_task(hub.server.drain(PATIENCE_S))
    answer = await wire.last_response("PATCH")
    assert (answer.status, answer["Retry-After"]) == (503, "1")
    await draining
    assert hub.hub.log.find(f"uploads/{target.removeprefix(UPLOADS)}").info().size == 5


async def test_an_upload_outlives_the_hub(tmp_path: Path) -> None:
    """Offset, length, deferred length and metadata are there after a restart on the same directory."""
    body = some_bytes(700_000)

    async def live() -> Running:
        hub = Hub(f"file:{tmp_path / 'data'}", limits=Limits())
        return Running(hub, await hub.serve(port=0))

    async def die(hub: Running) -> None:
        await hub.server.drain(PATIENCE_S)
        await hub.hub.close()

    hub = await live()
    whole, half, deferred = await make(hub, 5), await make(hub, len(body)), await make(hub, None)
    assert (await hub.ask("PATCH", whole, at(0), b"hello")).status == 204
    assert (await hub.ask("PATCH", half, at(0), body[:300_000])).status == 204
    assert (await hub.ask("PATCH", deferred, at(0, upload_length="9"), b"abc")).status == 204
    named = await make(hub, None, {"Upload-Metadata": "name YQ=="})
    await die(hub)

    hub = await live()
    await filled(hub, whole, b"hello")
    assert (await head(hub, half))["Upload-Length"] == str(len(body))
    assert (await head(hub, deferred))["Upload-Length"] == "9"
    assert (await head(hub, named))["Upload-Metadata"] == "name YQ=="
    assert (await head(hub, named))["Upload-Defer-Length"] == "1"
    assert await offset_of(hub, half) == 300_000
    wire = await hub.connect()
    await wire.send(request("PATCH", half, {**at(300_000), "Content-Length": "400000"}) + body[300_000:500_000])
    wire.close()
    await until(lambda: not hub.server.connections)
    assert await offset_of(hub, half) == 500_000
    await die(hub)

    hub = await live()
    assert (await hub.ask("PATCH", half, at(500_000), body[500_000:])).status == 204
    await filled(hub, half, body)
    await die(hub)


async def test_an_upload_that_nobody_touches_expires(clock: ManualClock) -> None:
    """A day after the last read or write an upload is gone, and what was kept of it; one that goes on is not."""
    hub = Hub("memory:", clock=clock)
    running = Running(hub, await hub.serve(port=0))
    target, other = await make(running, 5), await make(running, 5)
    clock.advance(23 * 3600)
    assert (await running.ask("PATCH", other, at(0), b"h")).status == 204
    clock.advance(2 * 3600)
    assert (await running.ask("HEAD", target, TUS)).status == 404
    assert await offset_of(running, other) == 1
    hub.log.retention.expire(clock.wall_ms())
    assert hub.log.statistics().streams == 2
    running.server.stop()
    await hub.close()


# -- two at a time


async def test_only_one_fills_an_upload_at_a_time(memory: Running) -> None:
    """A second PATCH while one is under way is answered 423; when that is over, another is taken."""
    target = await make(memory, 10)
    before = memory.hub.log.statistics().bytes
    wire = await memory.connect()
    await wire.send(request("PATCH", target, {**at(0), "Content-Length": "5"}) + b"he")
    await until(lambda: memory.hub.log.statistics().bytes >= before + 2)
    answer = await memory.ask("PATCH", target, at(2), b"other")
    assert (answer.status, answer["Tus-Resumable"], answer["Retry-After"]) == (423, "1.0.0", "1")
    assert await offset_of(memory, target) == 2
    await wire.send(b"llo")
    assert (await wire.response("PATCH")).status == 204
    assert (await memory.ask("PATCH", target, at(5), b"world")).status == 204
    await filled(memory, target, b"helloworld")


async def test_an_upload_that_is_terminated_while_it_is_filled(memory: Running) -> None:
    """A PATCH whose upload is deleted meanwhile is answered 404 when it goes on."""
    target = await make(memory, 10)
    before = memory.hub.log.statistics().bytes
    wire = await memory.connect()
    await wire.send(request("PATCH", target, {**at(0), "Content-Length": "10"}) + b"hello")
    await until(lambda: memory.hub.log.statistics().bytes >= before + 5)
    assert (await memory.ask("DELETE", target, TUS)).status == 204
    await wire.send(b"wo")
    assert (await wire.last_response("PATCH")).status == 404


# -- checksums


def checksum(name: str, body: bytes) -> str:
    digest = zlib.crc32(body).to_bytes(4, "big") if name == "crc32" else hashlib.new(name, body).digest()
    return f"{name} {base64.b64encode(digest).decode()}"


@pytest.mark.parametrize("spooled", [True, False])
@pytest.mark.parametrize("name", ["sha1", "md5", "sha256", "crc32"])
async def test_a_checksum_is_verified(serve: Serve, name: str, spooled: bool) -> None:
    """A body whose checksum does not fit is answered 460, and nothing of it counts; one that fits is taken."""
    hub = await serve(disk=True, body_memory_bytes_max=10_000 if spooled else MIB)
    body = some_bytes(50_000)
    target = await make(hub, len(body))
    wrong = await hub.ask("PATCH", target, {**at(0), "Upload-Checksum": checksum(name, b"other")}, body)
    assert (wrong.status, wrong.reason, await offset_of(hub, target)) == (460, "Checksum Mismatch", 0)
    right = await hub.ask("PATCH", target, {**at(0), "Upload-Checksum": checksum(name, body)}, body)
    assert (right.status, right["Upload-Offset"]) == (204, "50000")
    await filled(hub, target, body)


async def test_a_checksum_is_of_one_body_at_a_time(memory: Running) -> None:
    """Parts with checksums, one of them in the creation, make up an upload."""
    body = b"hello"
    headers = {**PATCH, "Upload-Length": "10", "Upload-Checksum": checksum("sha1", body)}
    answer = await memory.ask("POST", UPLOADS, headers, body)
    assert (answer.status, answer["Upload-Offset"]) == (201, "5")
    target = answer["Location"].removeprefix("http://hub")
    beyond = {**at(5), "Upload-Checksum": checksum("sha1", b"worlds")}
    assert (await memory.ask("PATCH", target, beyond, b"worlds")).status == 413
    rest = {**at(5), "Upload-Checksum": checksum("sha1", b"world")}
    assert (await memory.ask("PATCH", target, rest, b"world")).status == 204
    await filled(memory, target, b"helloworld")


async def test_a_body_with_a_checksum_has_a_limit_of_its_own(serve: Serve) -> None:
    """What has to be verified first is held until then: no more of it than of any body."""
    hub = await serve(body_bytes_max=1000)
    body = b"x" * 1001
    target = await make(hub, 2000)
    answer = await hub.ask("PATCH", target, {**at(0), "Upload-Checksum": checksum("md5", body)}, body)
    assert (answer.status, await offset_of(hub, target)) == (413, 0)


async def test_a_cut_body_with_a_checksum_counts_for_nothing(memory: Running) -> None:
    """A body that was cut cannot be verified: nothing of it is kept."""
    target = await make(memory, 10)
    wire = await memory.connect()
    headers = {**at(0), "Upload-Checksum": checksum("md5", b"helloworld"), "Content-Length": "10"}
    await wire.send(request("PATCH", target, headers) + b"hello")
    wire.close()
    await until(lambda: not memory.server.connections)
    assert await offset_of(memory, target) == 0


# -- on the wire


async def test_a_body_may_be_cut_into_packets_anywhere(memory: Running) -> None:
    """A PATCH and what follows it, cut at every byte, behave as if never cut, in both framings."""
    wire = await memory.connect()
    for framing in ("length", "chunks"):
        cut = 0
        while True:
            target = await make(memory, 5)
            if framing == "length":
                patch = request("PATCH", target, at(0), b"hello")
            else:
                patch = request("PATCH", target, {**at(0), "Transfer-Encoding": "chunked"}) + chunked(b"hel", b"lo")
            packet = patch + request("GET", "/healthz")
            await wire.send_apart(packet[:cut], packet[cut:])
            assert [(await wire.response()).status for _ in range(2)] == [204, 200], cut
            assert (await stream_of(memory, target)).body == b"hello"
            cut += 7
            if cut > len(packet):
                break


async def test_uploads_may_be_pipelined(disk: Running) -> None:
    """Several PATCHes and other requests in one packet are answered in order."""
    targets = [await make(disk, 5) for _ in range(3)]
    wire = await disk.connect()
    await wire.send(b"".join(request("PATCH", t, at(0), b"hello") + request("HEAD", t, TUS) for t in targets))
    for target in targets:
        assert (await wire.response("PATCH")).status == 204
        assert (await wire.response("HEAD"))["Upload-Offset"] == "5"
        await filled(disk, target, b"hello")


async def test_an_upload_behind_a_long_poll_waits_for_its_turn(memory: Running) -> None:
    """A PATCH behind a request that is still being answered is taken when that is over."""
    other = await memory.create("a")
    target = await make(memory, 5)
    wire = await memory.connect()
    await wire.send(request("GET", other, {"Prefer": "wait=20"}) + request("PATCH", target, at(0), b"hello"))
    await until(lambda: memory.waiters("a") == 1)
    assert await offset_of(memory, target) == 0
    await memory.append(other, b"x")
    assert (await wire.response()).status == 200
    assert (await wire.response("PATCH")).status == 204
    await filled(memory, target, b"hello")


async def test_a_client_may_wait_for_100_continue(memory: Running) -> None:
    """Expect: 100-continue is met where the body is wanted; where it is not, the refusal comes instead."""
    target = await make(memory, 5)
    wire = await memory.connect()
    await wire.send(request("PATCH", target, {**at(0), "Content-Length": "5", "Expect": "100-continue"}))
    assert (await wire.head()).status == 100
    await wire.send(b"hello")
    assert (await wire.response("PATCH")).status == 204
    await wire.send(request("PATCH", target, {**at(3), "Content-Length": "5", "Expect": "100-continue"}))
    assert (await wire.last_response("PATCH")).status == 409
    await filled(memory, target, b"hello")


@pytest.mark.parametrize("framing", ["length", "chunks", "none"])
async def test_an_upgrade_that_is_offered_changes_nothing(memory: Running, framing: str) -> None:
    """Java's client offers HTTP/2 with every request; its uploads are taken like all others."""
    target = await make(memory, 0 if framing == "none" else 5)
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    wire = await memory.connect()
    if framing == "chunks":
        await wire.send(request("PATCH", target, {**at(0), **offer, "Transfer-Encoding": "chunked"}))
        await wire.send_apart(chunked(b"hel")[:-5], chunked(b"lo"))
    else:
        body = b"" if framing == "none" else b"hello"
        await wire.send_apart(request("PATCH", target, {**at(0), **offer}, body))
    assert (await wire.response("PATCH")).status == 204
    assert (await wire.ask("GET", "/healthz")).status == 200
    await filled(memory, target, b"" if framing == "none" else b"hello")


async def test_a_client_still_sending_reads_why_it_is_refused(memory: Running) -> None:
    """A refusal that comes while the body is on its way reaches a client that reads only when it has sent everything."""
    target = await make(memory, 16 * MIB)
    wire = await memory.connect()
    await wire.send(request("PATCH", target, {**at(1), "Content-Length": str(8 * MIB)}))
    for _ in range(8):
        await wire.send(b"x" * MIB)
    answer = await wire.last_response("PATCH")
    assert (answer.status, answer["Upload-Offset"]) == (409, "0")


async def test_an_upload_is_read_while_it_is_filled(memory: Running) -> None:
    """The stream of an upload is followed like any other, before it is complete."""
    target = await make(memory, 10)
    where = (await head(memory, target))["Wayside-Stream"]
    wire = await memory.connect()
    await wire.send(request("PATCH", target, {**at(0), "Content-Length": "10"}) + b"hello")
    reader = await memory.connect()
    first = await reader.ask("GET", where, {"Prefer": "wait=10"})
    assert first.body == b"hello"
    await wire.send(b"world")
    rest = await reader.ask("GET", f"{where}?offset={first.offset}", {"Prefer": "wait=10"})
    assert (rest.body, rest["Stream-Closed"]) == (b"world", "true")


# -- as ASGI


async def _through_asgi(
    hub: Hub, method: str, path: str, headers: Mapping[str, str], *parts: bytes | None, stall: bool = False
) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer, as an application gives it that has the hub at ``/hub``; 0 where there was none. A
    part of None is a client that goes."""
    request = Asgi(hub, method, path, {"host": "app", **headers}, b"", root_path="/hub", more=bool(parts))
    for number, part in enumerate(parts, 1):
        if part is None:
            request.leave()
        else:
            request.part(part, more=stall or number < len(parts))
    async with asyncio.timeout(PATIENCE_S):
        await request.task
    if request.sent.empty():
        return 0, {}
    answer = await request.head()
    return answer.status, answer.headers


@pytest.mark.parametrize("kind", ["memory:", "file:"])
async def test_uploads_through_asgi(kind: str, tmp_path: Path) -> None:
    """Mounted in an application, an upload is created, cut off, resumed and completed; a body has no limit there either."""
    async with Hub(
        kind if kind == "memory:" else f"file:{tmp_path / 'data'}", limits=Limits(body_bytes_max=1000)
    ) as hub:
        await _upload_through_asgi(hub)


async def _upload_through_asgi(hub: Hub) -> None:
    asgi = partial(_through_asgi, hub)
    body = some_bytes(100_000)
    status, answer = await asgi("POST", UPLOADS, {**TUS, "Upload-Length": str(len(body))})
    assert status == 201
    target = answer["location"].removeprefix("http://app/hub")
    identity = target.removeprefix(UPLOADS)
    assert answer["wayside-stream"] == f"/hub/v1/stream/uploads/{identity}"
    assert await asgi("PATCH", target, at(0), body[:20_000], body[20_000:50_000], None) == (0, {})
    status, answer = await asgi("HEAD", target, TUS)
    assert (status, answer["upload-offset"], answer["upload-length"]) == (200, "50000", "100000")
    assert (await asgi("PATCH", target, at(0), body))[0] == 409
    status, answer = await asgi("PATCH", target, at(50_000), *[body[i : i + 900] for i in range(50_000, 100_000, 900)])
    assert (status, answer["upload-offset"]) == (204, "100000")
    assert b"".join([r.data async for r in hub.read(f"uploads/{identity}")]) == body
    assert (await hub.info(f"uploads/{identity}")).closed


async def test_a_checksum_through_asgi(hub: Hub) -> None:
    """A body with a checksum is verified there too."""
    asgi = partial(_through_asgi, hub)
    _, answer = await asgi("POST", UPLOADS, {**TUS, "Upload-Length": "5"})
    target = answer["location"].removeprefix("http://app/hub")
    assert (await asgi("PATCH", target, {**at(0), "Upload-Checksum": checksum("md5", b"x")}, b"hello"))[0] == 460
    assert (await asgi("PATCH", target, {**at(0), "Upload-Checksum": checksum("md5", b"hello")}, b"hello"))[0] == 204
    assert (await hub.info(f"uploads/{target.removeprefix(UPLOADS)}")).closed


async def test_a_stall_through_asgi() -> None:
    """A client that stalls is told so there too, and what it sent is kept."""
    async with Hub("memory:", limits=Limits(header_timeout_s=0.05)) as hub:
        asgi = partial(_through_asgi, hub)
        _, answer = await asgi("POST", UPLOADS, {**TUS, "Upload-Length": "10"})
        target = answer["location"].removeprefix("http://app/hub")
        assert (await asgi("PATCH", target, at(0), b"hello", stall=True))[0] == 408
        assert (await asgi("HEAD", target, TUS))[1]["upload-offset"] == "5"


# -- without tus


async def test_an_upload_is_a_stream_that_its_own_protocol_fills(memory: Running) -> None:
    """The stream of an upload takes chunks from an idempotent producer as well; tus then says how far it came."""
    target = await make(memory, 10)
    where = (await head(memory, target))["Wayside-Stream"]
    producer = {**BYTES, "Producer-Id": "p", "Producer-Epoch": "0"}
    for _ in range(2):
        assert (await memory.ask("POST", where, {**producer, "Producer-Seq": "0"}, b"hello")).status in (200, 204)
    assert await offset_of(memory, target) == 5
    assert (await memory.ask("PATCH", target, at(5), b"world")).status == 204
    await filled(memory, target, b"helloworld")


async def test_the_companion_is_the_hub_s_own(memory: Running) -> None:
    """What the hub keeps of an upload is no stream that a client reads or writes."""
    target = await make(memory, 10)
    companion = f"/v1/stream/__upload/{target.removeprefix(UPLOADS)}"
    assert (await memory.ask("GET", companion)).status == 404
    assert (await memory.ask("DELETE", companion)).status == 404
    wire: Wire = await memory.connect()
    assert (await wire.ask("HEAD", target, TUS)).status == 200
