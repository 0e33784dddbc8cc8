"""Server-sent events: plain for ``EventSource``, and ``live=sse`` of the Durable Streams protocol."""

from __future__ import annotations

import base64
import json

import pytest

from tests.support.events import Event, EventSource
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import until
from tests.support.wire import request

EVENTS = {"Accept": "text/event-stream"}


async def _open(hub: Running, target: str, headers: dict[str, str] | None = None) -> EventSource:
    return await EventSource.open(await hub.connect(), target, headers)


# -- plain


async def test_each_record_is_an_event_whose_id_is_the_offset_after_it(memory: Running) -> None:
    """History and what comes later are one sequence of events; the id of each is a cursor behind it."""
    target = await memory.create("a", JSON, b'[{"n":1},"two"]')
    source = await _open(memory, target)
    events = await source.take(2)
    await memory.append(target, b"[3,[4,5]]", JSON)
    events += await source.take(2)
    assert [e.data for e in events] == ['{"n":1}', '"two"', "3", "[4,5]"]
    assert {e.type for e in events} == {"message"}
    assert source.parser.retry is not None
    rest = [[3, [4, 5]], [[4, 5]], []]
    for event, expected in zip(events[1:], rest, strict=True):
        assert json.loads((await memory.ask("GET", f"{target}?offset={event.id}")).body) == expected


async def test_the_answer_may_not_be_kept_or_changed_by_a_proxy(memory: Running) -> None:
    """The head of an event stream keeps caches, transformations and a proxy's buffering away."""
    source = await _open(memory, await memory.create("a", TEXT))
    assert "no-cache" in source.response["Cache-Control"]
    assert "no-transform" in source.response["Cache-Control"]
    assert source.response["X-Accel-Buffering"] == "no"


async def test_a_browser_that_comes_again_goes_on_behind_its_last_event(memory: Running) -> None:
    """``Last-Event-ID`` wins over the offset in the URL, which a browser sends again unchanged."""
    target = await memory.create("a", JSON, b"[1,2,3]")
    first = await (await _open(memory, f"{target}?offset=-1")).next()
    for query in ("", "?offset=-1", "?offset=now"):
        source = await _open(memory, target + query, {"Last-Event-ID": first.id})
        assert [e.data for e in await source.take(2)] == ["2", "3"]
    source = await _open(memory, f"{target}?offset={first.id}", {"Last-Event-ID": ""})
    assert (await source.next()).data == "2"


async def test_now_begins_with_the_next_record(memory: Running) -> None:
    """From ``offset=now`` only later records are events."""
    target = await memory.create("a", TEXT, b"before")
    source = await _open(memory, f"{target}?offset=now")
    await until(lambda: memory.followers("sse") == 1)
    await memory.append(target, b"after")
    assert (await source.next()).data == "after"


@pytest.mark.parametrize(
    "record",
    ["one", "two\nlines", "dos\r\nlines", "mac\rlines", "\n", "\n\n", "a\n", "\na", " space", "\n space", "a\n b", ": c",
     "data: x", "event: y\ndata: z", "id: 1\n\ndata: 2", "tab\t", "ä€😀", "a\n\n\nb", "\r", "x\r\n\r\ny", "retry: 1", " ", "  "],
)  # fmt: skip
async def test_a_text_is_what_it_was(memory: Running, record: str) -> None:
    """Whatever lines a text has, a browser gets the same text; CRLF and CR become LF, as the format has no others."""
    target = await memory.create("a", {"Content-Type": "text/plain; charset=utf-8"}, record.encode())
    source = await _open(memory, target)
    await memory.append(target, b"end", {"Content-Type": "text/plain; charset=utf-8"})
    first, second = await source.take(2)
    assert first == Event("message", record.replace("\r\n", "\n").replace("\r", "\n"), first.id)
    assert second.data == "end"
    assert source.parser.last_id == second.id


async def test_json_of_several_lines_is_one_line(memory: Running) -> None:
    """A JSON value that was written over several lines is the same value in an event."""
    value = {"a": [1, 2], "b": "x\ny\r\u2028", "c": None}
    target = await memory.create("a", JSON, json.dumps(value, indent=2).replace("\n", "\r\n").encode())
    assert json.loads((await (await _open(memory, target)).next()).data) == value


async def test_bytes_are_base64_and_said_to_be(memory: Running) -> None:
    """Records that are not text are base64, which a header field says; text is not."""
    data = bytes(range(256))
    source = await _open(memory, await memory.create("a", BYTES, data))
    assert source.response["Stream-SSE-Data-Encoding"] == "base64"
    assert base64.b64decode((await source.next()).data, validate=True) == data
    text = await _open(memory, await memory.create("b", TEXT, b"x"))
    assert text.response.get("Stream-SSE-Data-Encoding") is None


async def test_the_end_of_a_stream_is_an_event(memory: Running) -> None:
    """A closed stream ends with an event ``closed`` behind the last record, and the answer ends."""
    target = await memory.create("a", TEXT, b"one")
    live = await _open(memory, target)
    assert (await live.next()).data == "one"
    closed = await memory.ask("POST", target, {**TEXT, "Stream-Closed": "true"}, b"two")
    late = await _open(memory, target)
    for source, expected in ((live, ["two"]), (late, ["one", "two"])):
        *events, end = await source.rest()
        assert [e.data for e in events] == expected
        assert (end.type, end.id, end.data) == ("closed", closed.offset, closed.offset)
        assert (await source.wire.ask("GET", "/healthz")).status == 200


async def test_a_browser_that_comes_back_to_the_end_is_told_to_stop(memory: Running) -> None:
    """Resuming behind the last record of a closed stream is answered with 204, which ends an ``EventSource``."""
    target = await memory.create("a", TEXT, b"one")
    closed = await memory.ask("POST", target, {"Stream-Closed": "true"}, b"")
    answer = await memory.ask("GET", target, {**EVENTS, "Last-Event-ID": closed.offset})
    assert (answer.status, answer["Stream-Closed"]) == (204, "true")
    fresh = await _open(memory, f"{target}?offset={closed.offset}")
    assert [e.type for e in await fresh.rest()] == ["closed"]


async def test_a_deleted_stream_ends_with_an_event(memory: Running) -> None:
    """Those who follow a stream that is deleted are told so, and their answer ends."""
    target = await memory.create("a", TEXT, b"one")
    source = await _open(memory, target)
    await source.next()
    await memory.ask("DELETE", target)
    assert [e.type for e in await source.rest()] == ["deleted"]
    assert (await memory.ask("GET", target, {**EVENTS, "Last-Event-ID": source.parser.last_id})).status == 404


async def test_silence_is_broken_by_comments(serve: Serve) -> None:
    """After ``heartbeat_s`` without a record a reader gets a comment, in each dialect, which is no event."""
    hub = await serve(heartbeat_s=1.0)
    target = await hub.create("a", TEXT, b"one")
    plain = await _open(hub, f"{target}?offset=now")
    protocol = await _open(hub, f"{target}?offset=now&live=sse")
    assert await plain.comment() >= 1
    assert await protocol.comment() >= 1
    assert not plain.parser.events
    await hub.append(target, b"two")
    assert (await plain.next()).data == "two"


async def test_a_follower_is_counted_while_it_is_there(memory: Running) -> None:
    """A reader of events is a follower until its connection goes."""
    target = await memory.create("a", TEXT, b"one")
    sources = [await _open(memory, target) for _ in range(3)]
    await until(lambda: memory.followers("sse") == 3)
    sources[0].wire.close()
    sources[1].wire.reset()
    await until(lambda: memory.followers("sse") == 1)
    await memory.append(target, b"two")
    assert [e.data for e in await sources[2].take(2)] == ["one", "two"]
    assert memory.hub.log.statistics().deliveries["sse"] >= 4


async def test_a_recreated_stream_is_not_resumed(memory: Running) -> None:
    """A browser that resumes in a stream that was made anew gets 410, and no records of another life."""
    target = await memory.create("a", TEXT, b"one")
    event = await (await _open(memory, target)).next()
    await memory.ask("DELETE", target)
    await memory.create("a", TEXT, b"two")
    answer = await memory.ask("GET", target, {**EVENTS, "Last-Event-ID": event.id})
    assert (answer.status, json.loads(answer.body)["code"]) == (410, "stream-recreated")


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("TEXT/Event-Stream", True),
        ("text/html, text/event-stream;q=0.9", True),
        ("*/*", False),
        ("application/json", False),
        ("text/event-streams", False),
        ("text/event-stream;q=0", False),
    ],
)
async def test_accept_chooses_events(memory: Running, accept: str, events: bool) -> None:
    """``Accept: text/event-stream`` chooses events, and nothing else does."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    await wire.send(request("GET", target, {"Accept": accept}))
    answer = await wire.head()
    assert (answer["Content-Type"] == "text/event-stream") is events


# -- the protocol's


async def test_the_protocol_tells_the_position_after_each_batch(memory: Running) -> None:
    """``live=sse`` sends data and control events; the control says the offset, and whether it is the tail."""
    target = await memory.create("a", JSON, b"[1,2]")
    source = await _open(memory, f"{target}?offset=-1&live=sse", {"Accept": "*/*"})
    data, control = await source.take(2)
    assert (data.type, json.loads(data.data)) == ("data", [1, 2])
    said = json.loads(control.data)
    assert control.type == "control"
    assert (said["upToDate"], said["streamCursor"].isdecimal()) == (True, True)
    offset = await memory.append(target, b"3", JSON)
    data, control = await source.take(2)
    assert json.loads(data.data) == [3]
    assert json.loads(control.data)["streamNextOffset"] == offset
    await memory.ask("POST", target, {"Stream-Closed": "true"}, b"")
    (end,) = await source.rest()
    assert json.loads(end.data) == {"streamNextOffset": offset, "streamClosed": True, "upToDate": True}


async def test_the_protocol_tells_a_reader_at_the_tail_where_it_stands(memory: Running) -> None:
    """A reader that has missed nothing gets a control event at once."""
    target = await memory.create("a", TEXT, b"one")
    offset = (await memory.ask("GET", target)).offset
    source = await _open(memory, f"{target}?offset={offset}&live=sse")
    event = await source.next()
    assert (event.type, json.loads(event.data)["streamNextOffset"]) == ("control", offset)


async def test_the_protocol_s_answer_ends_by_itself(serve: Serve) -> None:
    """``live=sse`` ends after ``sse_s`` in a whole answer, so that caches may share it; its connection goes on, and
    nothing is missed by the next."""
    hub = await serve(sse_s=1.0)
    target = await hub.create("a", JSON, b"[1]")
    plain = await _open(hub, target)
    source = await _open(hub, f"{target}?offset=-1&live=sse")
    _, control = await source.take(2)
    assert await source.rest() == []
    await hub.append(target, b"2", JSON)
    offset = json.loads(control.data)["streamNextOffset"]
    again = await EventSource.open(source.wire, f"{target}?offset={offset}&live=sse")
    assert json.loads((await again.next()).data) == [2]
    assert [e.data for e in await plain.take(2)] == ["1", "2"]


async def test_the_protocol_s_text_and_bytes_are_what_they_were(memory: Running) -> None:
    """Data events carry text line by line, and bytes as base64 that a header field announces."""
    target = await memory.create("a", TEXT, b"one\n two\r\n")
    source = await _open(memory, f"{target}?offset=-1&live=sse")
    assert (await source.next()).data == "one\n two\n"
    target = await memory.create("b", BYTES, b"\x00\xff")
    source = await _open(memory, f"{target}?offset=-1&live=sse")
    assert source.response["Stream-SSE-Data-Encoding"] == "base64"
    assert base64.b64decode((await source.next()).data) == b"\x00\xff"
