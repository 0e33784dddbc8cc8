"""Streams as resources: their paths, their methods, their list."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.support.server import JSON, TEXT, Running, Serve
from tests.support.wire import request

METHODS = {"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"}


async def _list(hub: Running, **query: str) -> Any:
    answer = await hub.ask("GET", f"/v1/stream/?{urlencode(query)}")
    assert (answer.status, answer["Content-Type"], answer["Cache-Control"]) == (200, "application/json", "no-store")
    return json.loads(answer.body)


# -- paths


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("a", "a"),
        ("orders/eu/42", "orders/eu/42"),
        ("a%2Fb", "a/b"),
        ("%61", "a"),
        ("a%20b", "a b"),
        ("%C3%A4%E2%82%AC%F0%9F%98%80", "ä€😀"),
        ("a+b", "a+b"),
        ("a;b=c,d", "a;b=c,d"),
        ("a:b@c", "a:b@c"),
        ("...", "..."),
        ("a..b", "a..b"),
        (".a", ".a"),
        ("a%3Fb%23c", "a?b#c"),
        ("a%25b", "a%b"),
        ("%2561", "%61"),
        ("__dsx/a", "__dsx/a"),
        ("x" * 1024, "x" * 1024),
    ],
)
async def test_a_path_is_what_it_decodes_to(serve: Serve, written: str, path: str) -> None:
    """A stream has one path however its URL is written, and is listed by it; it survives a restart of the question."""
    hub = await serve(disk=True)
    assert (await hub.ask("PUT", f"/v1/stream/{written}", TEXT, b"one")).status == 201
    listed = [stream["path"] for stream in (await _list(hub))["streams"]]
    assert listed == [path]
    again = await hub.ask("GET", f"/v1/stream/{quote(path, safe='')}")
    assert (again.status, again.body) == (200, b"one")


@pytest.mark.parametrize(
    "written",
    ["/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "%2E%2E/a", "a/%2e%2e", "a%2F%2Fb", "a%00", "a%0Ab", "a%0D%0AX:y",
     "a%7F", "a%1B", "%FF", "%C3", "x" * 1025, "%C3%A4" * 513, "a%E2%80%AE", "a%C2%A0b", "a%E2%80%A8"],
)  # fmt: skip
async def test_a_path_that_some_reader_would_take_for_another_is_refused(memory: Running, written: str) -> None:
    """Empty and dot segments, control and invisible characters, broken UTF-8 and too long paths are refused with 400."""
    for method in ("PUT", "GET", "POST", "DELETE"):
        answer = await memory.ask(method, f"/v1/stream/{written}", TEXT, b"one" if method != "GET" else None)
        assert (answer.status, json.loads(answer.body)["code"]) == (400, "path-invalid"), method
    assert (await _list(memory))["streams"] == []


@pytest.mark.parametrize("path", ["__ds", "__ds/a", "__ds/subscriptions", "%5F_ds/a", "__ds%2Fa"])
async def test_the_protocol_s_own_paths_are_reserved(memory: Running, path: str) -> None:
    """Nothing can be created under ``__ds``."""
    for method in ("PUT", "POST", "GET"):
        answer = await memory.ask(method, f"/v1/stream/{path}", TEXT, b"one" if method != "GET" else None)
        assert (answer.status, json.loads(answer.body)["code"]) == (404, "reserved")


async def test_a_location_leads_to_the_stream(memory: Running) -> None:
    """The Location of a creation is an URL that reads the stream, also for a path of many characters."""
    host, port = memory.server.address
    wire = await memory.connect()
    for path in ("a", "orders/eu/42", "a%20b", "%C3%A4", "a%3Fb"):
        headers = {**TEXT, "X-Forwarded-Proto": "https"} if path == "a" else TEXT
        await wire.send(request("PUT", f"/v1/stream/{path}", headers, b"one", host=f"{host}:{port}"))
        location = (await wire.response())["Location"]
        scheme = "https" if path == "a" else "http"
        assert location == f"{scheme}://{host}:{port}/v1/stream/{path}"
        assert (await wire.ask("GET", location)).body == b"one"


# -- methods


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "PROPFIND", "LINK", "SEARCH"])
async def test_another_method_is_answered_with_those_there_are(memory: Running, method: str) -> None:
    """405 says in Allow what is possible, for a stream, the collection and the operations; a stream need not exist."""
    for target, allowed in (
        ("/v1/stream/a", METHODS),
        ("/v1/stream/", {"GET", "OPTIONS"}),
        ("/v1/stream", {"GET", "OPTIONS"}),
        ("/healthz", {"GET", "HEAD", "OPTIONS"}),
        ("/metrics", {"GET", "HEAD", "OPTIONS"}),
        ("/openapi.json", {"GET", "HEAD", "OPTIONS"}),
    ):
        answer = await memory.ask(method, target)
        assert answer.status == 405, target
        assert set(answer["Allow"].split(", ")) >= allowed - {"HEAD"}, target
        assert method not in answer["Allow"]


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_the_collection_is_only_read(memory: Running, method: str) -> None:
    """The collection cannot be written or deleted."""
    await memory.create("a")
    answer = await memory.ask(method, "/v1/stream/", TEXT, b"x")
    assert answer.status == 405
    assert "GET" in answer["Allow"]
    assert len((await _list(memory))["streams"]) == 1


async def test_creating_again_changes_nothing(memory: Running) -> None:
    """PUT with the same configuration is 200 and changes nothing; with another it is 409 and says what differs."""
    await memory.create("a", {**TEXT, "Stream-TTL": "3600"}, b"one")
    assert (await memory.ask("PUT", "/v1/stream/a", {**TEXT, "Stream-TTL": "3600"}, b"one")).status == 200
    assert await memory.body_of("/v1/stream/a") == b"one"
    for headers in (JSON, {**TEXT, "Stream-TTL": "60"}, {**TEXT, "Stream-TTL": "3600", "Stream-Closed": "true"}):
        answer = await memory.ask("PUT", "/v1/stream/a", headers)
        assert answer.status == 409
        assert json.loads(answer.body)["difference"]


async def test_a_deleted_stream_is_no_more(memory: Running) -> None:
    """After DELETE nothing can be read, appended or deleted there."""
    target = await memory.create("a", TEXT, b"one")
    assert (await memory.ask("DELETE", target)).status == 204
    for method, body in (("GET", None), ("HEAD", None), ("POST", b"x"), ("DELETE", None)):
        wire = await memory.connect()
        await wire.send(request(method, target, TEXT, body))
        assert (await wire.response(method)).status == 404, method
    assert (await _list(memory))["streams"] == []


# -- the list


async def test_the_list_says_what_each_stream_is(memory: Running) -> None:
    """Each stream is listed with its path, type, ends, size and whether it is closed."""
    await memory.create("a", {**JSON, "Stream-TTL": "60"}, b"[1,22]")
    await memory.ask("POST", "/v1/stream/a", {"Stream-Closed": "true"}, b"")
    (listed,) = (await _list(memory))["streams"]
    assert listed["path"] == "a"
    assert listed["content_type"] == "application/json"
    assert (listed["closed"], listed["records"], listed["bytes"], listed["ttl_s"]) == (True, 2, 3, 60)
    assert listed["tail"] == (await memory.ask("GET", "/v1/stream/a")).offset
    assert listed["earliest"] < listed["tail"]


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
async def test_pages_of_the_list_have_each_stream_once(serve: Serve, disk: bool) -> None:
    """Following ``next`` page by page gives every stream once, by path, whatever the size of a page."""
    hub = await serve(disk=disk)
    paths = sorted(["a", "a/1", "a/2", "a-b", "B", "z/9", "ä", "a/10", "a!", "😀"])
    for path in paths:
        await hub.ask("PUT", f"/v1/stream/{quote(path)}", TEXT)
    for size in (1, 2, 3, 7, 10, 11, 1000):
        got: list[str] = []
        after = ""
        for _ in range(20):
            page = await _list(hub, limit=str(size), after=after)
            assert len(page["streams"]) <= size
            got += [stream["path"] for stream in page["streams"]]
            if page["next"] is None:
                break
            after = page["next"]
        assert got == paths, size


async def test_a_prefix_selects(memory: Running) -> None:
    """``prefix`` selects by the beginning of the path, character by character, and goes with pages."""
    for path in ("a", "a/1", "a/2", "ab", "b", "a%", "a_"):
        await memory.ask("PUT", f"/v1/stream/{quote(path)}", TEXT)

    async def paths(**query: str) -> list[str]:
        return [stream["path"] for stream in (await _list(memory, **query))["streams"]]

    assert await paths(prefix="a/") == ["a/1", "a/2"]
    assert await paths(prefix="a") == ["a", "a%", "a/1", "a/2", "a_", "ab"]
    assert await paths(prefix="a%") == ["a%"]
    assert await paths(prefix="a_") == ["a_"]
    assert await paths(prefix="a/", after="a/1") == ["a/2"]
    assert await paths(prefix="c") == []
    assert await paths(after="zzz") == []
    page = await _list(memory, prefix="a/", limit="1")
    assert (page["streams"][0]["path"], page["next"]) == ("a/1", "a/1")


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "1.5", "", "99999999999999", "²"])
async def test_a_limit_that_is_none_is_refused(memory: Running, limit: str) -> None:
    """``limit`` is a number from 1 to 1000."""
    answer = await memory.ask("GET", f"/v1/stream/?limit={quote(limit)}")
    assert answer.status == 400 if limit else answer.status in (200, 400)


async def test_the_list_forgets_what_is_deleted_or_expired(memory: Running) -> None:
    """A stream that was deleted, or whose time is over, is not listed."""
    await memory.create("a", {**TEXT, "Stream-Expires-At": "2001-01-01T00:00:00Z"})
    await memory.create("b")
    await memory.create("c")
    await memory.ask("DELETE", "/v1/stream/b")
    assert [stream["path"] for stream in (await _list(memory))["streams"]] == ["c"]
    assert (await memory.ask("GET", "/v1/stream/a")).status in (404, 410)


@pytest.mark.parametrize(
    "fields",
    [{"Stream-Seq": "x" * 1025}, {"Producer-Id": "x" * 1025, "Producer-Epoch": "0", "Producer-Seq": "0"}],
)
async def test_a_name_that_a_stream_keeps_has_a_bound(memory: Running, fields: dict[str, str]) -> None:
    """A producer's id or a Stream-Seq over 1,024 characters is refused, and nothing is appended."""
    await memory.ask("PUT", "/v1/stream/s", TEXT)
    answer = await memory.ask("POST", "/v1/stream/s", {**TEXT, **fields}, b"x")
    assert answer.status == 400
    assert json.loads(answer.body)["code"] == "header-too-long"
    assert (await memory.ask("GET", "/v1/stream/s")).body == b""
