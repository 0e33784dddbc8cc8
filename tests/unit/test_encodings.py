"""How records go onto the wire: server-sent events, push, whole bodies, cursors."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.support.events import Event, EventParser, events_in
from tests.support.log import BYTES, TEXT, append, begin_append, create, creation, read_batches
from wayside.core.records import JSON, Durability
from wayside.server.exchange import CURSOR_EPOCH_S, CURSOR_INTERVAL_S, WholeBody, body_of, cursor_after
from wayside.server.patterns.push import Bare, Envelopes, close_of
from wayside.server.patterns.server_sent_events import PlainEvents, ProtocolEvents, lines
from wayside.streams.streams import Streams

NOW_S = CURSOR_EPOCH_S + 1000 * CURSOR_INTERVAL_S
"""In the middle of no interval: the 1000th begins."""


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cursors are counted from the machine's clock: let it stand still."""
    monkeypatch.setattr("wayside.server.exchange.time.time", lambda: float(NOW_S))


def _plain(data: bytes) -> bytes:
    return data


async def _encoded(log: Streams, encoding: Any, content_type: str, records: list[bytes]) -> Any:
    """A stream ``s`` with ``records``, encoded."""
    await create(log, "s", creation(content_type))
    for answer in [begin_append(log, "s", record) for record in records]:
        await answer.wait()
    stream = log.find("s")
    return encoding.encode(stream, await read_batches(stream))


TEXTS = [
    "one line",
    "two\nlines",
    "ends with a newline\n",
    "\n",
    "\n\n",
    "\nbegins with one",
    "carriage\rreturn",
    "both\r\nof them",
    "\r",
    "\r\n\r\n",
    " leading space",
    "  two spaces",
    "line\n with leading space",
    "line\n  with two",
    "\n ",
    " \n \n ",
    "data: not a field",
    "event: end\n\n",
    ": not a comment",
    "id: 7",
    "ünïcode \U0001f600",
    "tab\there",
    "nul\x00inside",
]


@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_record_survives_plain_events(log: Streams, text: str) -> None:
    """What a browser gets as data is the record, except that every kind of line break is a line feed there."""
    frame = await _encoded(log, PlainEvents("n", _plain), TEXT, [text.encode(), b"next"])
    first, second = events_in(frame)
    assert first.data == text.replace("\r\n", "\n").replace("\r", "\n")
    assert second.data == "next"


@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_record_survives_the_protocols_events(log: Streams, text: str) -> None:
    """The same in the dialect of ``live=sse``, where a batch is one event."""
    frame = await _encoded(log, ProtocolEvents("n", _plain, 0), TEXT, [text.encode(), b"next"])
    data, control = events_in(frame)
    assert data.type == "data"
    assert data.data == (text + "next").replace("\r\n", "\n").replace("\r", "\n")
    assert control.type == "control"


@pytest.mark.parametrize("text", TEXTS)
def test_lines_read_back(text: str) -> None:
    """The value of ``data`` fields is the text again for a reader that follows the standard."""
    (event,) = events_in(b"data:" + lines(text.encode()) + b"\n\n")
    assert event.data == text.replace("\r\n", "\n").replace("\r", "\n")


async def test_each_record_is_an_event_with_the_offset_after_it(log: Streams) -> None:
    """A plain event's id is where to read on, so that ``Last-Event-ID`` resumes without loss or repetition."""
    frame = await _encoded(log, PlainEvents("n", _plain), JSON, [b'{"a":1}', b"[2,3]"])
    events = events_in(frame)
    stream = log.find("s")
    assert [event.data for event in events] == ['{"a":1}', "2", "3"]
    assert [event.id for event in events] == [str(stream.offset(at)) for at in (1, 2, 3)]


async def test_ids_of_a_fork_are_in_the_epoch_of_each_record(log: Streams) -> None:
    """Events of inherited records carry the source's offsets, those of its own the fork's."""
    await create(log, "s")
    await append(log, "s", b"[1,2]")
    await create(log, "f", creation(source="s"))
    await append(log, "f", b"3")
    stream = log.find("f")
    frame = PlainEvents("n", _plain).encode(stream, await read_batches(stream))
    assert [event.id for event in events_in(frame)] == [str(stream.offset(at)) for at in (1, 2, 3)]
    assert str(stream.offset(2))[:11] != str(stream.offset(3))[:11]


@pytest.mark.parametrize("record", [b"\x00\xff\n\n", b"", b"text", bytes(range(256))])
async def test_bytes_are_base64_in_events(log: Streams, record: bytes) -> None:
    """A stream that is not text survives events as base64."""
    frame = await _encoded(log, PlainEvents("n", _plain), BYTES, [record or b"x", b"next"])
    first, second = events_in(frame)
    assert base64.b64decode(first.data) == (record or b"x")
    assert base64.b64decode(second.data) == b"next"
    stream = log.find("s")
    data, _ = events_in(ProtocolEvents("n", _plain, 0).encode(stream, await read_batches(stream)))
    assert base64.b64decode(data.data) == (record or b"x") + b"next"


async def test_json_goes_into_events_as_it_is(log: Streams) -> None:
    """A JSON record is one line and needs nothing; a batch is an array."""
    records = [b'{"a": "x\\ny"}', b'"\\r"', b"[1]"]
    await _encoded(log, PlainEvents("n", _plain), JSON, [b"[" + b",".join(records) + b"]"])
    stream = log.find("s")
    batches = await read_batches(stream)
    assert [event.data.encode() for event in events_in(PlainEvents("n", _plain).encode(stream, batches))] == records
    data, _ = events_in(ProtocolEvents("n", _plain, 0).encode(stream, batches))
    assert data.data.encode() == b"[" + b",".join(records) + b"]"


async def test_control_says_where_the_reader_stands(log: Streams) -> None:
    """After each batch the protocol's dialect tells the next offset, and whether that is the tail or the end."""
    await create(log, "s")
    await append(log, "s", b"1")
    await append(log, "s", b"2")
    stream = log.find("s")
    encoding = ProtocolEvents("n", _plain, 0)

    def control(frame: bytes) -> dict[str, object]:
        *_, last = events_in(frame)
        assert last.type == "control"
        fields: dict[str, object] = json.loads(last.data)
        return fields

    behind = [batch.until(1) for batch in await read_batches(stream) if batch.position == 0]
    assert control(encoding.encode(stream, behind)) == {
        "streamNextOffset": str(stream.offset(1)),
        "streamCursor": "1000",
    }
    everything = {"streamNextOffset": str(stream.offset(2)), "streamCursor": "1000", "upToDate": True}
    assert control(encoding.encode(stream, await read_batches(stream))) == everything
    assert control(encoding.caught_up(stream, 2)) == everything
    await append(log, "s", close=True)
    closed = {"streamNextOffset": str(stream.offset(2)), "streamClosed": True, "upToDate": True}
    end = encoding.end(stream, 2, "closed", False)
    assert end is not None
    assert control(end) == closed
    assert encoding.end(stream, 2, "closed", True) is None, "told already"


async def test_the_end_of_plain_events_is_an_event(log: Streams) -> None:
    """A closed or deleted stream says so under that name; a drained one gives the offset to resume from, and no data."""
    await create(log, "s")
    await append(log, "s", b"1")
    stream = log.find("s")
    encoding = PlainEvents("n", _plain)
    offset = str(stream.offset(1))
    for reason in ("closed", "deleted"):
        frame = encoding.end(stream, 1, reason, False)
        assert frame is not None
        assert events_in(frame) == [Event(reason, offset, offset)]
    drained = encoding.end(stream, 1, "drain", False)
    assert drained is not None
    parser = EventParser()
    parser.feed(drained)
    assert (parser.last_id, list(parser.events)) == (offset, [])


@pytest.mark.parametrize("encoding", [PlainEvents("n", _plain), ProtocolEvents("n", _plain, 0)])
def test_a_heartbeat_is_a_comment(encoding: PlainEvents | ProtocolEvents) -> None:
    """What keeps a connection open is no event."""
    assert events_in(encoding.heartbeat) == [] or encoding.heartbeat.startswith(b":")
    assert encoding.heartbeat.endswith(b"\n\n")


def test_encodings_are_shared_only_where_they_are_the_same() -> None:
    """The key of an encoding differs by dialect, framing and cursor."""
    keys = [
        PlainEvents("a", _plain).key,
        PlainEvents("b", _plain).key,
        ProtocolEvents("a", _plain, 0).key,
        ProtocolEvents("a", _plain, 7).key,
        Bare(Frames()).key,
        Envelopes(Frames()).key,
    ]
    assert len(set(keys)) == len(keys)
    assert PlainEvents("a", _plain).key == PlainEvents("a", _plain).key
    assert Envelopes(Frames()).key == Envelopes(Frames()).key


# -- cursors


@pytest.mark.parametrize("given", [None, "", "0", "999", "-1", "1e9", "abc", "٣", "9" * 16, " 1000"])
def test_a_cursor_is_the_interval_of_the_moment(given: str | None) -> None:
    """Without a cursor, or with an old or a strange one, the cursor is the number of the current interval."""
    assert cursor_after(given) == 1000


@pytest.mark.parametrize("given", ["1000", "1001", "5000"])
def test_a_cursor_moves_on_from_the_clients_own(given: str) -> None:
    """A client that is not behind gets a later cursor than its own, by at most an hour, so that no cache loops."""
    for _ in range(200):
        assert int(given) < cursor_after(given) <= int(given) + 3600 // CURSOR_INTERVAL_S


def test_a_cursor_grows_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every interval has its own number."""
    seen = []
    for seconds in (0, CURSOR_INTERVAL_S - 1, CURSOR_INTERVAL_S, 10 * CURSOR_INTERVAL_S):
        monkeypatch.setattr("wayside.server.exchange.time.time", lambda seconds=seconds: float(NOW_S + seconds))
        seen.append(cursor_after(None))
    assert seen == [1000, 1000, 1001, 1010]


async def test_a_floor_holds_the_cursor_up(log: Streams) -> None:
    """The cursor of a response that began with the client's own never falls behind it."""
    await create(log, "s")
    frame = ProtocolEvents("n", _plain, 2000).caught_up(log.find("s"), 0)
    (event,) = events_in(frame)
    assert json.loads(event.data)["streamCursor"] == "2000"


# -- push


class Frames:
    """WebSocket messages as tuples."""

    key = "test"
    ping = ("ping",)

    def text(self, payload: bytes) -> Any:
        return ("text", payload.decode())

    def binary(self, payload: bytes) -> Any:
        return ("binary", payload)

    def close(self, code: int, reason: str) -> Any:
        return ("close", code, reason)

    def join(self, messages: list[Any]) -> Any:
        return messages


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [(JSON, "text"), (TEXT, "text"), ("text/csv", "text"), (BYTES, "binary"), ("image/png", "binary")],
)
async def test_a_bare_message_is_a_record(log: Streams, content_type: str, kind: str) -> None:
    """Each record is one message, text or binary as its stream is."""
    messages = await _encoded(log, Bare(Frames()), content_type, [b"1", b"22"])
    assert messages == [(kind, b"1".decode() if kind == "text" else b"1"), (kind, "22" if kind == "text" else b"22")]


@pytest.mark.parametrize(
    ("content_type", "record", "value", "encoding"),
    [
        (JSON, b'{"a":"\\u00e4"}', {"a": "ä"}, None),
        (JSON, b"null", None, None),
        (TEXT, 'say "hi"\n\\ \x00 ä'.encode(), 'say "hi"\n\\ \x00 ä', None),
        (TEXT, b"not \xff UTF-8", "bm90IP8gVVRGLTg=", "base64"),
        (BYTES, b"\x00\xff", "AP8=", "base64"),
    ],
)
async def test_an_envelope_holds_offset_and_record(
    log: Streams, content_type: str, record: bytes, value: object, encoding: str | None
) -> None:
    """An envelope is JSON: where to read on, and the record; bytes as base64, and said to be so."""
    messages = await _encoded(log, Envelopes(Frames()), content_type, [record])
    ((kind, text),) = messages
    expected = {"offset": str(log.find("s").offset(1)), "data": value}
    if encoding:
        expected["encoding"] = encoding
    assert kind == "text"
    assert json.loads(text) == expected


async def test_envelopes_of_a_batch_have_each_its_own_offset(log: Streams) -> None:
    """A reader can resume after any message."""
    messages = await _encoded(log, Envelopes(Frames()), JSON, [b"[1,2]", b"3"])
    stream = log.find("s")
    assert [json.loads(text)["offset"] for _, text in messages] == [str(stream.offset(at)) for at in (1, 2, 3)]


@pytest.mark.parametrize(("reason", "code"), [("closed", 1000), ("deleted", 4404), ("drain", 1012), ("expired", 1012)])
async def test_the_close_frame_says_how_it_ended(log: Streams, reason: str, code: int) -> None:
    """A reader knows from the close frame whether it is done, and otherwise where to resume."""
    await create(log, "s", creation(durability=Durability.MEMORY))
    await append(log, "s", b"1")
    stream = log.find("s")
    given, text = close_of(stream, 1, reason)
    assert given == code
    assert len(text.encode()) <= 123, "RFC 6455 section 5.5"
    assert (str(stream.offset(1)) in text) == (reason != "deleted")
    assert Bare(Frames()).end(stream, 1, reason, False) == [("close", code, text)]
    said, close = Envelopes(Frames()).end(stream, 1, reason, False)
    assert close == ("close", code, text)
    assert str(stream.offset(1)) in said[1]


# -- bodies


async def test_a_body_is_an_array_or_the_bytes(log: Streams) -> None:
    """Records as one body: a JSON array, or one after another."""
    for path, content_type, expected in (("j", JSON, b'[1,"a",3]'), ("t", TEXT, b'[1,"a"]3')):
        await create(log, path, creation(content_type))
        await append(log, path, b'[1,"a"]')
        await append(log, path, b"3")
        stream = log.find(path)
        assert body_of(stream, await read_batches(stream)) == expected
        assert body_of(stream, []) == (b"[]" if content_type == JSON else b"")


@pytest.mark.parametrize("content_type", [JSON, TEXT])
async def test_a_long_body_in_parts_is_the_body(log: Streams, content_type: str) -> None:
    """A body that is sent piece by piece reads as if it had been sent at once, an empty one too."""
    await create(log, "s", creation(content_type))
    for number in range(5):
        await append(log, "s", b"[%d,%d]" % (number, number))
    stream = log.find("s")
    batches = await read_batches(stream)
    whole = WholeBody(stream, _plain)
    parts = [
        whole.encode(stream, batches[:2]),
        whole.encode(stream, batches[2:]),
        whole.end(stream, 10, "complete", False),
    ]
    assert b"".join(part for part in parts if part) == body_of(stream, batches)
    empty = WholeBody(stream, _plain).end(stream, 0, "complete", False)
    assert (empty or b"") == body_of(stream, [])
