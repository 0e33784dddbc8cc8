"""Polling: a plain GET answers at once with what is after the cursor."""

from __future__ import annotations

import json

import pytest

from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.wire import request


async def test_a_reader_resumes_where_it_stopped(memory: Running) -> None:
    """Reading on from each answer's offset gives every record once, in order."""
    target = await memory.create("a", JSON)
    offset, got = "-1", []
    wire = await memory.connect()
    for number in range(5):
        await memory.append(target, b"[%d,%d]" % (number, number + 100), JSON)
        answer = await wire.ask("GET", f"{target}?offset={offset}")
        assert answer["Stream-Up-To-Date"] == "true"
        got += json.loads(answer.body)
        offset = answer.offset
    assert got == [v for n in range(5) for v in (n, n + 100)]
    assert json.loads((await wire.ask("GET", f"{target}?offset={offset}")).body) == []


@pytest.mark.parametrize(
    ("content_type", "records", "expected"),
    [
        (TEXT, [b"one", b"two"], b"onetwo"),
        (BYTES, [b"\x00\xff", b"\r\n"], b"\x00\xff\r\n"),
        (JSON, [b'{"a": 1}', b'[2, [3], "\\u00e4"]', b" 4 "], b'[{"a": 1},2,[3],"\\u00e4",4]'),
    ],
)
async def test_records_come_as_one_body(
    memory: Running, content_type: dict[str, str], records: list[bytes], expected: bytes
) -> None:
    """Records of bytes and text come one after another, JSON values as one array, with the stream's type."""
    target = await memory.create("a", content_type)
    for record in records:
        await memory.append(target, record, content_type)
    answer = await memory.ask("GET", target)
    assert (answer.body, answer["Content-Type"]) == (expected, content_type["Content-Type"])


async def test_nothing_is_an_empty_body(memory: Running) -> None:
    """A stream without records, and a reader at the tail, get 200 with an empty body or array."""
    for content_type, empty in ((TEXT, b""), (JSON, b"[]")):
        target = await memory.create(f"a{len(empty)}", content_type)
        wire = await memory.connect()
        for query in ("", "?offset=-1", "?offset=now", f"?offset={(await wire.ask('HEAD', target)).offset}"):
            answer = await wire.ask("GET", target + query)
            assert (answer.status, answer.body, answer["Stream-Up-To-Date"]) == (200, empty, "true")


async def test_an_etag_holds_until_something_changes(memory: Running) -> None:
    """``If-None-Match`` gets 304 with the offset while nothing changed; an append and a close change the tag."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    tags: list[str] = []
    for change in ("nothing", "append", "close"):
        if change == "append":
            await memory.append(target, b"two")
        elif change == "close":
            await memory.ask("POST", target, {"Stream-Closed": "true"}, b"")
        answer = await wire.ask("GET", target, {"If-None-Match": tags[-1]} if tags else {})
        assert answer.status == 200
        assert answer.get("Stream-Closed") == ("true" if change == "close" else None)
        tags.append(answer["ETag"])
        again = await wire.ask("GET", target, {"If-None-Match": answer["ETag"]})
        assert (again.status, again["ETag"], again.offset) == (304, answer["ETag"], answer.offset)
        assert again.get("Stream-Closed") == answer.get("Stream-Closed")
        assert again["Cache-Control"] == answer["Cache-Control"]
    assert len(set(tags)) == 3


async def test_an_etag_is_of_one_cursor(memory: Running) -> None:
    """The tags of two positions of one stream, and of the same position in two lives of it, differ."""
    target = await memory.create("a", JSON, b"[1,2,3]")
    wire = await memory.connect()
    first = await wire.ask("GET", target)
    stem = first.offset.partition("_")[0]
    second = await wire.ask("GET", f"{target}?offset={stem}_0000000000000001")
    assert json.loads(second.body) == [2, 3]
    assert second["ETag"] != first["ETag"]
    await memory.ask("DELETE", target)
    await memory.create("a", JSON, b"[4,5,6]")
    third = await wire.ask("GET", target, {"If-None-Match": first["ETag"]})
    assert (third.status, json.loads(third.body)) == (200, [4, 5, 6])


@pytest.mark.parametrize("form", ["*", "{tag}", "W/{tag}", '"other", {tag}', '"other",W/{tag} ,"more"'])
async def test_if_none_match_may_be_a_list(memory: Running, form: str) -> None:
    """``If-None-Match`` is a list of tags that are compared weakly, or a star (RFC 9110 section 13.1.2)."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    tag = (await wire.ask("GET", target))["ETag"]
    assert (await wire.ask("GET", target, {"If-None-Match": form.format(tag=tag)})).status == 304
    if form != "*":
        assert (await wire.ask("GET", target, {"If-None-Match": form.format(tag='"none"')})).status == 200


async def test_only_what_never_changes_may_be_kept_by_caches(memory: Running) -> None:
    """Records after a named offset may be kept; the tail, the start without an offset, and ``now`` may not."""
    target = await memory.create("a", JSON, b"[1,2]")
    wire = await memory.connect()
    offset = (await wire.ask("GET", target)).offset
    stem = offset.partition("_")[0]
    named = await wire.ask("GET", f"{target}?offset={stem}_0000000000000001")
    assert "max-age" in named["Cache-Control"]
    assert "public" in named["Cache-Control"]
    for query in ("", f"?offset={offset}", "?offset=now"):
        kept = (await wire.ask("GET", target + query))["Cache-Control"]
        assert kept in ("no-cache", "no-store"), query
    assert "accept" in named["Vary"].lower()
    assert "prefer" in named["Vary"].lower()


async def test_now_is_the_tail(memory: Running) -> None:
    """``offset=now`` answers nothing and says where the tail is, from which the next read has what came since."""
    target = await memory.create("a", TEXT, b"before")
    wire = await memory.connect()
    answer = await wire.ask("GET", f"{target}?offset=now")
    assert (answer.status, answer.body, answer.get("ETag")) == (200, b"", None)
    await memory.append(target, b"after")
    assert (await wire.ask("GET", f"{target}?offset={answer.offset}")).body == b"after"


async def test_the_end_of_a_closed_stream_is_said(memory: Running) -> None:
    """Every read that reaches the end of a closed stream says that nothing will follow."""
    target = await memory.create("a", JSON, b"[1,2]")
    closed = await memory.ask("POST", target, {**JSON, "Stream-Closed": "true"}, b"3")
    wire = await memory.connect()
    for query, expected in (("", [1, 2, 3]), (f"?offset={closed.offset}", []), ("?offset=now", [])):
        answer = await wire.ask("GET", target + query)
        assert (json.loads(answer.body), answer["Stream-Closed"]) == (expected, "true")
    refused = await wire.ask("POST", target, JSON, b"4")
    assert (refused.status, refused["Stream-Closed"], refused.offset) == (409, "true", closed.offset)
    assert json.loads(refused.body)["code"] == "stream-closed"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("offset=", "offset-malformed"),
        ("offset=abc", "offset-malformed"),
        ("offset=-2", "offset-malformed"),
        ("offset=0", "offset-malformed"),
        ("offset=00000000000_000000000000000x", "offset-malformed"),
        ("offset=-1&offset=now", "parameter-repeated"),
        ("live=maybe", "parameter-invalid"),
        ("live=sse", "offset-missing"),
        ("live=long-poll", "offset-missing"),
    ],
)
async def test_a_bad_cursor_is_refused(memory: Running, query: str, code: str) -> None:
    """A cursor that the hub cannot have given is refused with 400, not taken for the start."""
    target = await memory.create("a", TEXT, b"one")
    answer = await memory.ask("GET", f"{target}?{query}")
    assert (answer.status, json.loads(answer.body)["code"]) == (400, code)


async def test_the_last_event_id_is_a_cursor_too(memory: Running) -> None:
    """A GET with ``Last-Event-ID`` reads on from there, whatever the parameter offset says."""
    target = await memory.create("a", JSON, b"[1,2,3]")
    wire = await memory.connect()
    stem = (await wire.ask("GET", target)).offset.partition("_")[0]
    header = {"Last-Event-ID": f"{stem}_0000000000000002"}
    for query in ("", "?offset=-1", "?offset=now", f"?offset={stem}_0000000000000001"):
        assert json.loads((await wire.ask("GET", target + query, header)).body) == [3], query
    assert json.loads((await wire.ask("GET", target, {"Last-Event-ID": ""})).body) == [1, 2, 3]


async def test_offsets_sort_as_text(memory: Running) -> None:
    """The offsets of a stream, and of a stream made anew under the name, sort as text in the order of time."""
    offsets = []
    for _ in range(3):
        target = await memory.create("a", TEXT)
        offsets += [await memory.append(target, b"x") for _ in range(12)]
        await memory.ask("DELETE", target)
    assert offsets == sorted(offsets)
    assert len(set(offsets)) == len(offsets)


async def test_an_offset_that_is_not_kept_says_the_earliest(serve: Serve) -> None:
    """A read from before what is retained is 410 with the earliest offset there is, from which reading works."""
    hub = await serve()
    target = await hub.create("a", {**TEXT, "Stream-Retention-Bytes": "100"})
    first = await hub.append(target, b"x" * 40)
    for _ in range(10):
        await hub.append(target, b"y" * 40)
    answer = await hub.ask("GET", f"{target}?offset={first}")
    problem = json.loads(answer.body)
    assert (answer.status, problem["code"]) == (410, "offset-expired")
    assert problem["earliest"] == answer["Stream-Earliest-Offset"]
    again = await hub.ask("GET", f"{target}?offset={problem['earliest']}")
    assert again.status == 200
    assert again.body
    assert set(again.body) == {ord("y")}
    assert again.offset == problem["tail"]
    assert (await hub.ask("HEAD", target))["Stream-Earliest-Offset"] == problem["earliest"]


@pytest.mark.parametrize("how", ["poll", "wait", "events", "live=sse", "live=long-poll"])
async def test_an_offset_of_an_earlier_life_is_gone(memory: Running, how: str) -> None:
    """A cursor into a stream that was deleted and made anew is 410 in every pattern, and never silently another's."""
    target = await memory.create("a", TEXT, b"one")
    old = (await memory.ask("GET", target)).offset
    await memory.ask("DELETE", target)
    await memory.create("a", TEXT, b"two")
    headers = {"wait": {"Prefer": "wait=20"}, "events": {"Accept": "text/event-stream"}}.get(how, {})
    query = f"&{how}" if "=" in how else ""
    answer = await memory.ask("GET", f"{target}?offset={old}{query}", headers)
    problem = json.loads(answer.body)
    assert (answer.status, problem["code"]) == (410, "stream-recreated")
    assert (await memory.ask("GET", f"{target}?offset={problem['earliest']}")).body == b"two"


async def test_polls_are_counted(memory: Running) -> None:
    """Each record that a poll is answered with counts as delivered, however the answer was made."""
    target = await memory.create("a", JSON, b"[1,2,3]")
    wire = await memory.connect()
    for _ in range(4):
        await wire.send(request("GET", target))
        await wire.response()
    assert memory.hub.log.statistics().deliveries["polling"] >= 3
