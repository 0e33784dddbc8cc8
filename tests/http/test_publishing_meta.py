"""What publishers say of records over HTTP and through clients: message ids, keys, headers, expiry, delays, batches."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

import wayside
from tests.support.server import BYTES, JSON, TEXT, Running, Serve
from tests.support.waiting import until
from wayside import Publication, Published
from wayside.core.errors import BadRequest, NotFound, TooLarge
from wayside.hub import Hub
from wayside.testing import TestHub

DETAILS = {"Accept": "application/vnd.wayside.records+json"}


async def details(hub: Running, target: str) -> list[dict[str, Any]]:
    """The records of a stream with what is known of them, but their times."""
    answer = await hub.ask("GET", target, DETAILS)
    assert (answer.status, answer["Content-Type"]) == (200, DETAILS["Accept"])
    records: list[dict[str, Any]] = json.loads(answer.body)
    for record in records:
        assert record.pop("time_ms") > 0
    return records


async def publish(hub: Running, *records: dict[str, Any]) -> Any:
    answer = await hub.ask("POST", "/v1/publish", JSON, json.dumps({"records": records}).encode())
    return (answer.status, json.loads(answer.body).get("records", json.loads(answer.body)))


async def test_headers_travel_beside_the_record(serve: Serve) -> None:
    """They are given to who asks for them; the body that others read is the same as ever."""
    hub = await serve(disk=True)
    target = await hub.create("s", JSON)
    said = {"Wayside-Key": "k", "Wayside-Header-Trace-Id": "t-1", "Wayside-Header-Who": "J\u00fcrgen"}
    first = await hub.append(target, b"[1, 2]", JSON | said)
    await hub.append(target, b"3", JSON | {"Wayside-Message-Id": "m"})
    last = await hub.append(target, b"4", JSON)
    beside = {"headers": {"trace-id": "t-1", "who": "J\u00fcrgen"}, "key": "k"}
    records = await details(hub, target)
    assert [record.pop("offset") for record in records][1::2] == [first, last]
    assert records == [{"data": 1} | beside, {"data": 2} | beside, {"id": "m", "data": 3}, {"data": 4}]
    plain = await hub.ask("GET", target)
    assert (plain.body, plain["Content-Type"]) == (b"[1,2,3,4]", "application/json")
    assert await details(hub, f"{target}?offset={last}") == []


async def test_details_of_what_is_not_json(memory: Running) -> None:
    """Text is text, bytes are base64; of an empty stream there are none; who waits is given the next."""
    text, binary = await memory.create("t", TEXT), await memory.create("b", BYTES)
    assert await details(memory, text) == []
    wire = await memory.connect()
    waiting = wire.ask("GET", f"{text}?offset=now", DETAILS | {"Prefer": "wait=30"})
    answered = asyncio.ensure_future(waiting)
    await until(lambda: memory.waiters("t") == 1)
    await memory.append(text, "\u00e4\n".encode(), TEXT)
    await memory.append(binary, b"\xff\x00", BYTES)
    assert [record["data"] for record in json.loads((await answered).body)] == ["\u00e4\n"]
    assert [record["data_base64"] for record in await details(memory, binary)] == ["/wA="]


async def test_a_message_id_is_appended_once(serve: Serve) -> None:
    """The second answer says that it is one, and names the offset of the first; another stream has its own ids."""
    hub = await serve(disk=True)
    target, other = await hub.create("s"), await hub.create("t")
    headers = TEXT | {"Wayside-Message-Id": "order-7"}
    offset = await hub.append(target, b"once", headers)
    again = await hub.ask("POST", target, headers, b"twice")
    assert (again.status, again["Wayside-Duplicate"], again.offset) == (204, "true", offset)
    await hub.append(other, b"there", headers)
    await hub.append(target, b"more")
    assert await hub.body_of(target) == b"oncemore"
    refused = await hub.ask(
        "POST", target, headers | {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}, b"x"
    )
    assert (refused.status, json.loads(refused.body)["code"]) == (400, "message-id-producer")
    records = await hub.create("j", JSON)
    refused = await hub.ask("POST", records, JSON | {"Wayside-Message-Id": "a"}, b"[1,2]")
    assert (refused.status, json.loads(refused.body)["code"]) == (400, "message-id-records")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Wayside-TTL": "soon"}, 400, "parameter-invalid"),
        ({"Wayside-TTL": "-1"}, 400, "parameter-invalid"),
        ({"Wayside-Delay": "1e3"}, 400, "parameter-invalid"),
        ({"Wayside-Delay": "99999999999"}, 400, "parameter-invalid"),
        ({"Wayside-Header-X": "y" * 9000}, 413, "metadata-too-large"),
        ({"Wayside-Delay": "1", "Stream-Closed": "true"}, 400, "delay-plain"),
        ({"Wayside-Delay": "1", "Content-Type": "text/html"}, 409, "content-type-mismatch"),
    ],
)
async def test_what_cannot_be_said(memory: Running, headers: dict[str, str], status: int, code: str) -> None:
    """It is refused, and nothing is appended."""
    target = await memory.create("s")
    refused = await memory.ask("POST", target, TEXT | headers, b"x")
    assert (refused.status, json.loads(refused.body)["code"]) == (status, code)
    assert await memory.body_of(target) == b""


async def test_records_for_several_streams(serve: Serve) -> None:
    """One transaction, answered for each: where it is, whether it was there before, or when it will be."""
    hub = await serve(disk=True)
    for path, kind in (("j", JSON), ("t", TEXT), ("b", BYTES)):
        await hub.create(path, kind)
    status, results = await publish(
        hub,
        {"stream": "j", "data": [1, {"a": "\n"}], "id": "1", "key": "k", "headers": {"X": "y"}},
        {"stream": "t", "data": "text", "content_type": "text/plain"},
        {"stream": "b", "data_base64": base64.b64encode(b"\x00\xff").decode(), "ttl": 60},
        {"stream": "j", "data": None},
        {"stream": "j", "data": "again", "id": "1"},
        {"stream": "j", "data": "later", "id": "2", "delay": 3600},
    )
    assert status == 200
    assert [(result["stream"], result["duplicate"]) for result in results] == [
        ("j", False), ("t", False), ("b", False), ("j", False), ("j", True), ("j", False),
    ]  # fmt: skip
    assert results[0]["offset"] == results[4]["offset"] < results[3]["offset"]
    assert results[5]["due"].endswith("Z")
    assert await hub.body_of("/v1/stream/j") == b'[[1, {"a": "\\n"}],null]'
    assert await hub.body_of("/v1/stream/t") == b"text"
    assert await hub.body_of("/v1/stream/b") == b"\x00\xff"
    assert [set(record) for record in await details(hub, "/v1/stream/b")] == [{"offset", "expires_ms", "data_base64"}]


@pytest.mark.parametrize(
    ("record", "status", "code"),
    [
        ({"stream": "none", "data": 1}, 404, "stream-not-found"),
        ({"stream": "__call/x", "data": 1}, 404, "reserved"),
        ({"stream": "j"}, 400, "record-data"),
        ({"stream": "j", "data": 1, "data_base64": "MQ=="}, 400, "record-data"),
        ({"stream": "j", "data_base64": "*"}, 400, "record-data"),
        ({"stream": "j", "data_base64": "ew=="}, 400, "json-malformed"),
        ({"stream": "t", "data": 1}, 400, "record-data"),
        ({"stream": "t", "data": ""}, 400, "empty-append"),
        ({"stream": "t", "data": "x", "content_type": "text/html"}, 409, "content-type-mismatch"),
        ({"stream": "j", "data": 1, "tll": 5}, 400, "json-malformed"),
        ({"stream": "j", "data": 1, "delay": -1}, 400, "parameter-invalid"),
        ({"stream": "j", "data": 1, "headers": {"a b": "c"}}, 400, "metadata-invalid"),
        ({"stream": "j", "data": 1, "key": "a\u0000"}, 400, "metadata-invalid"),
    ],
)
async def test_all_or_none(memory: Running, record: dict[str, Any], status: int, code: str) -> None:
    """One record that cannot be appended keeps the others out, and is named."""
    await memory.create("j", JSON)
    await memory.create("t", TEXT)
    answered, problem = await publish(memory, {"stream": "j", "data": 0}, record)
    assert (answered, problem["code"]) == (status, code)
    assert await memory.body_of("/v1/stream/j") == b"[]"


async def test_expired_records_are_given_to_nobody() -> None:
    """By no way of reading, and also not by an answer that was kept."""
    async with TestHub() as test:
        hub = Running(test.hub, await test.hub.serve(port=0))
        target = await hub.create("s", JSON)
        await hub.append(target, b"1", JSON)
        await hub.append(target, b"2", JSON | {"Wayside-TTL": "5"})
        for expected in (b"[1,2]", b"[1]"):
            assert await hub.body_of(target) == expected
            assert (
                json.dumps([r["data"] for r in await details(hub, target)], separators=(",", ":")).encode() == expected
            )
            async with wayside.connect(hub.url) as client:
                assert [r.json() async for r in client.read("s", follow=False)] == json.loads(expected)
            assert [r.json() async for r in test.hub.read("s", follow=False)] == json.loads(expected)
            await test.advance(5)
        hub.server.stop()


async def test_a_delay_over_http() -> None:
    """202 says when it will be there; then it is, also after a crash, once, under its message id."""
    async with TestHub() as test:
        hub = Running(test.hub, await test.hub.serve(port=0))
        target = await hub.create("s", JSON)
        headers = JSON | {"Wayside-Delay": "90", "Wayside-Message-Id": "m", "Wayside-Key": "k"}
        answer = await hub.ask("POST", target, headers, b"1")
        assert (answer.status, "wayside-duplicate" in answer.headers) == (202, False)
        again = await hub.ask("POST", target, headers, b"1")
        assert (again.status, again["Wayside-Duplicate"]) == (202, "true")
        hub.server.stop()
        await test.crash()
        await test.advance(89)
        assert test.hub.log.find("s").tail == 0
        await test.advance(1)
        await test.advance(500)
        records = [record async for record in test.hub.read("s", follow=False)]
        assert [(record.data, record.id, record.key) for record in records] == [(b"1", "m", "k")]


@pytest.mark.parametrize("outside", [False, True])
async def test_a_program_says_the_same(tmp_path: Path, outside: bool) -> None:
    """The hub in its own process, and a client of it, take the same words and give the same records."""
    async with Hub(f"file:{tmp_path}") as hub:
        server = await hub.serve(port=0)
        async with wayside.connect(f"http://{server.address[0]}:{server.address[1]}") as client:
            place: Any = client if outside else hub
            first = await place.publish("s", {"n": 1}, id="a", key="k", headers={"Trace": "t"}, ttl=60)
            assert await place.publish("s", {"n": 2}, id="a") == first
            assert await place.publish("s", 3, 4, key="q") > first
            assert await place.publish("s", 5, delay=3600) == ""
            results = await place.publish_all(
                [
                    Publication("s", 6, id="b"),
                    Publication("new", "text", headers={"X": "y"}),
                    Publication("newer", 7, delay=3600),
                    Publication("s", 6, id="b"),
                ]
            )
            assert [type(result) for result in results] == [Published] * 4
            assert [(bool(result.offset), result.duplicate, bool(result.due)) for result in results] == [
                (True, False, False), (True, False, False), (False, False, True), (True, True, False),
            ]  # fmt: skip
            with pytest.raises(BadRequest):
                await place.publish("s", 1, 2, id="c")
            with pytest.raises(TooLarge):
                await place.publish("s", 1, key="x" * 10_000)
            with pytest.raises(NotFound):
                await place.publish("__delayed/due", 1)
            records = [record async for record in place.read("s", follow=False)]
            assert [(r.json(), r.id, r.key, dict(r.headers)) for r in records] == [
                ({"n": 1}, "a", "k", {"trace": "t"}), (3, "", "q", {}), (4, "", "q", {}), (6, "b", "", {}),
            ]  # fmt: skip
        server.stop()


async def test_records_of_one_publisher_stay_in_order(serve: Serve) -> None:
    """Those with an id, those without, batches and single ones, one after another on one connection without waiting."""
    hub = await serve(disk=True)
    await hub.create("s", JSON)
    async with wayside.connect(hub.url) as client:
        sent: list[Any] = []
        for number in range(0, 40, 4):
            sent.append(client.publish("s", number, id=f"i-{number}"))
            sent.append(client.publish("s", number + 1))
            sent.append(
                client.publish_all([Publication("s", number + 2), Publication("s", number + 3, id=f"{number}")])
            )
        await asyncio.gather(*sent)
        assert [record.json() async for record in client.read("s", follow=False)] == list(range(40))


async def test_push_in_envelopes_says_it_too(serve: Serve) -> None:
    """Beside the data, where there is anything to say; other envelopes are as they were."""
    hub = await serve()
    target = await hub.create("s", JSON)
    await hub.append(target, b"1", JSON)
    await hub.append(target, b"2", JSON | {"Wayside-Key": "k", "Wayside-Header-A": "b"})
    url = hub.websocket_url(target)
    async with connect(url, subprotocols=["wayside.v1"]) as socket:  # type: ignore[list-item]
        await socket.send('{"credit":2}')
        messages = [json.loads(await socket.recv()) for _ in range(2)]
    assert [sorted(message) for message in messages] == [["data", "offset"], ["data", "headers", "key", "offset"]]
    assert (messages[1]["key"], messages[1]["headers"]) == ("k", {"a": "b"})
