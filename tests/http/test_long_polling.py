"""Long polling: ``Prefer: wait=N`` (RFC 7240), and ``live=long-poll`` of the Durable Streams protocol."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.server import JSON, TEXT, Running, Serve
from tests.support.waiting import until
from tests.support.wire import Wire, post, request

WAYS = [pytest.param({"Prefer": "wait=20"}, "", id="Prefer"), pytest.param({}, "&live=long-poll", id="live")]


async def _waiting(hub: Running, target: str, headers: dict[str, str], live: str) -> tuple[Wire, str]:
    """A long poll that waits at the tail, and where that is."""
    offset = (await hub.ask("HEAD", target)).offset
    wire = await hub.connect()
    await wire.send(request("GET", f"{target}?offset={offset}{live}", headers))
    await until(lambda: hub.waiters(target.removeprefix("/v1/stream/")) == 1)
    return wire, offset


@pytest.mark.parametrize(("headers", "live"), WAYS)
async def test_what_is_there_is_answered_at_once(memory: Running, headers: dict[str, str], live: str) -> None:
    """A long poll behind the tail does not wait."""
    target = await memory.create("a", JSON, b"[1,2]")
    wire = await memory.connect()
    answer = await wire.ask("GET", f"{target}?offset=-1{live}", headers)
    assert (answer.status, json.loads(answer.body), answer["Stream-Up-To-Date"]) == (200, [1, 2], "true")
    assert answer.get("Preference-Applied") == ("wait=20" if headers else None)


@pytest.mark.parametrize(("headers", "live"), WAYS)
async def test_an_append_wakes_those_who_wait(memory: Running, headers: dict[str, str], live: str) -> None:
    """A long poll at the tail is answered by the next append, with all that was appended."""
    target = await memory.create("a", JSON, b"[1]")
    wire, offset = await _waiting(memory, target, headers, live)
    assert wire.is_quiet()
    await memory.append(target, b"[2,3]", JSON)
    answer = await wire.response()
    assert (answer.status, json.loads(answer.body)) == (200, [2, 3])
    assert answer.offset > offset
    assert answer["Stream-Cursor"]


@pytest.mark.parametrize(("headers", "live"), WAYS)
async def test_a_close_wakes_those_who_wait(memory: Running, headers: dict[str, str], live: str) -> None:
    """A long poll at the tail of a stream that is closed is answered with 204 and that it is closed; so is the next."""
    target = await memory.create("a", TEXT, b"one")
    wire, offset = await _waiting(memory, target, headers, live)
    await memory.ask("POST", target, {"Stream-Closed": "true"}, b"")
    answer = await wire.response()
    assert (answer.status, answer["Stream-Closed"], answer.offset) == (204, "true", offset)
    again = await wire.ask("GET", f"{target}?offset={offset}{live}", headers)
    assert (again.status, again["Stream-Closed"]) == (204, "true")


@pytest.mark.parametrize(("headers", "live"), WAYS)
async def test_a_last_append_that_closes_is_answered_with_both(
    memory: Running, headers: dict[str, str], live: str
) -> None:
    """An append that closes the stream answers a long poll with its records and the end."""
    target = await memory.create("a", TEXT, b"one")
    wire, _ = await _waiting(memory, target, headers, live)
    await memory.ask("POST", target, {**TEXT, "Stream-Closed": "true"}, b"two")
    answer = await wire.response()
    assert (answer.status, answer.body, answer["Stream-Closed"]) == (200, b"two", "true")


@pytest.mark.parametrize(("headers", "live"), WAYS)
async def test_a_deletion_wakes_those_who_wait(memory: Running, headers: dict[str, str], live: str) -> None:
    """A long poll of a stream that is deleted is answered with 404."""
    target = await memory.create("a", TEXT, b"one")
    wire, _ = await _waiting(memory, target, headers, live)
    assert (await memory.ask("DELETE", target)).status == 204
    answer = await wire.response()
    assert (answer.status, json.loads(answer.body)["code"]) == (404, "stream-not-found")


async def test_a_wait_that_is_over_is_answered_with_nothing(serve: Serve) -> None:
    """When the time is over the answer is 204 with the same offset, in each way of asking, and may be asked again."""
    hub = await serve(long_poll_s=0.2)
    target = await hub.create("a", TEXT, b"one")
    offset = (await hub.ask("GET", target)).offset
    wires = [await hub.connect() for _ in range(2)]
    await wires[0].send(request("GET", f"{target}?offset={offset}", {"Prefer": "wait=1"}))
    await wires[1].send(request("GET", f"{target}?offset={offset}&live=long-poll"))
    for wire in wires:
        answer = await wire.response()
        assert (answer.status, answer.offset, answer["Stream-Up-To-Date"]) == (204, offset, "true")
        assert answer["Cache-Control"] == "no-store"
        assert answer["Stream-Cursor"]
        assert hub.waiters("a") <= 1
    assert hub.waiters("a") == 0


async def test_the_wait_that_is_applied_is_said(serve: Serve) -> None:
    """``Preference-Applied`` says the wait that was applied: what was asked for, or the longest there is."""
    hub = await serve(wait_s_max=30)
    target = await hub.create("a", TEXT, b"one")
    wire = await hub.connect()
    for prefer, applied in (
        ("wait=20", "wait=20"),
        ("wait=9999", "wait=30"),
        ("WAIT = 5", "wait=5"),
        ('wait="7"', "wait=7"),
        ("respond-async, wait=10; x=y", "wait=10"),
        ("wait=0", "wait=0"),
        ("respond-async", None),
        ("wait", None),
        ("wait=soon", None),
        ("wait=-1", None),
        ("waiting=5", None),
    ):
        answer = await wire.ask("GET", target, {"Prefer": prefer})
        assert (answer.body, answer.get("Preference-Applied")) == (b"one", applied), prefer


async def test_no_wait_is_no_wait(memory: Running) -> None:
    """``Prefer: wait=0`` at the tail is answered at once with 204."""
    target = await memory.create("a", TEXT, b"one")
    answer = await memory.ask("GET", f"{target}?offset=now", {"Prefer": "wait=0"})
    assert (answer.status, answer["Preference-Applied"]) == (204, "wait=0")


async def test_many_who_wait_are_all_woken(memory: Running) -> None:
    """One append answers every long poll that waits, each with the same records."""
    target = await memory.create("a", TEXT, b"one")
    wires = [await memory.connect() for _ in range(200)]
    for wire in wires:
        await wire.send(request("GET", f"{target}?offset=now", {"Prefer": "wait=20"}))
    await until(lambda: memory.waiters("a") == 200)
    await memory.append(target, b"two")
    assert {(await wire.response()).body for wire in wires} == {b"two"}
    assert memory.waiters("a") == 0


async def test_a_poller_misses_nothing_between_its_polls(disk: Running) -> None:
    """A client that long-polls from offset to offset while others append gets every record once, in order."""
    target = await disk.create("a", JSON)
    total = 200

    async def publish() -> None:
        wire = await disk.connect()
        for number in range(total):
            await wire.send(post(target, b"%d" % number, JSON))
            assert (await wire.response()).status == 204

    publishing = asyncio.create_task(publish())
    wire = await disk.connect()
    got: list[int] = []
    offset = "-1"
    while len(got) < total:
        answer = await wire.ask("GET", f"{target}?offset={offset}&live=long-poll")
        assert answer.status == 200
        got += json.loads(answer.body)
        offset = answer.offset
    await publishing
    assert got == list(range(total))


async def test_the_cursor_of_a_live_answer_goes_on(memory: Running) -> None:
    """An answer's ``Stream-Cursor`` is never behind the one that the client sent back, so that no cache answers twice."""
    target = await memory.create("a", TEXT, b"one")
    wire = await memory.connect()
    cursor = (await wire.ask("GET", f"{target}?offset=-1&live=long-poll"))["Stream-Cursor"]
    for _ in range(5):
        later = (await wire.ask("GET", f"{target}?offset=-1&live=long-poll&cursor={cursor}"))["Stream-Cursor"]
        assert int(later) > int(cursor)
        cursor = later
