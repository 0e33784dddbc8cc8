"""What a client of 0.1.0 does with a hub: run by test_client.py with 0.1.0 in front. Uses what ``wayside`` exports only.

python -m tests.compat.programs HUB            each of PROGRAMS; a line of JSON for each
python -m tests.compat.programs HUB follow     two streams and a glob on one connection: a line for each record
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Literal

import wayside
from wayside import Client, Publication, Refusal

PATIENCE_S = 30.0
VIA: tuple[Literal["push", "sse", "long-poll", "poll"], ...] = ("push", "sse", "long-poll", "poll")


async def first(records: Any, count: int) -> list[Any]:
    """So many of them."""
    found: list[Any] = []
    async with aclosing(records):
        async for each in records:
            found.append(each)
            if len(found) == count:
                break
    return found


async def refused(attempt: Awaitable[Any]) -> Refusal:
    """What it is refused with."""
    try:
        result = await attempt
    except Refusal as refusal:
        return refusal
    raise AssertionError(f"It was not refused: {result!r}.")


async def streams(client: Client) -> None:
    """Create, publish with metadata and once, read from each cursor, delay, close, delete, and be refused."""
    await client.create("c/plain", ttl_s=3600)
    offsets = [await client.publish("c/plain", {"n": number}, id=f"m-{number}") for number in range(3)]
    assert await client.publish("c/plain", {"n": 0}, id="m-0") == offsets[0], "it is a duplicate"
    await client.publish("c/plain", {"n": 3}, {"n": 4}, key="eu", headers={"trace": "7f"}, ttl=3600)
    records = [record async for record in client.read("c/plain", follow=False)]
    assert [record.json()["n"] for record in records] == [0, 1, 2, 3, 4]
    assert (records[3].key, records[3].headers) == ("eu", {"trace": "7f"})
    assert [record.offset for record in records[:3]] == offsets
    behind = [record.json()["n"] async for record in client.read("c/plain", offsets[1], follow=False)]
    assert behind == [2, 3, 4]
    await client.create("c/bytes", content_type="application/octet-stream", durability="async")
    await client.publish("c/bytes", b"\x00\xff", b"more")
    assert [record.data async for record in client.read("c/bytes", follow=False)] == [b"\x00\xff", b"more"]
    published = await client.publish_all([Publication("c/plain", {"n": 5}), Publication("c/other", "made")])
    assert [bool(each.offset) for each in published] == [True, True]
    assert await client.publish("c/late", "later", delay=0.2) == ""
    assert [record.json() for record in await first(client.read("c/late"), 1)] == ["later"]
    assert (await client.info("c/plain"))["stream-ttl"] == "3600"
    await client.close_stream("c/plain")
    assert len([record async for record in client.read("c/plain")]) == 6, "it ends by itself"
    assert (await refused(client.publish("c/plain", 1))).code == "stream-closed"
    assert (await refused(client.info("c/none"))).code == "stream-not-found"
    assert (await refused(client.publish("c/*", 1))).code == "glob-read-only"
    await client.delete("c/plain")


async def readers(client: Client) -> None:
    """Followers with policies, of a glob, and what is present meanwhile."""
    await client.create("r/a")
    await client.publish("r/a", *({"k": number % 2, "n": number} for number in range(10)))
    newest = await first(client.read("r/a", policy="conflate", key="k"), 2)
    assert [record.json()["n"] for record in newest] == [8, 9]
    following = asyncio.ensure_future(first(client.read("r/**", "now"), 2))
    present = asyncio.ensure_future(first(client.read("r/a", "now", member="ann"), 1))
    while not (await client.presence("r/a")).members:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    events = await first(client.presence_events("r/a"), 1)
    assert (events[0].event, events[0].member) == ("join", "ann")
    await asyncio.sleep(0.3)  # the glob is followed
    await client.publish("r/b", "b")
    await client.publish("r/a", "a")
    assert [record.json() for record in await present] == ["a"]
    assert [(record.stream, record.json()) for record in await following] == [("r/b", "b"), ("r/a", "a")]


async def calls(client: Client) -> None:
    """Call, submit, events by all four ways, streamed answers, a key, a failure, a cancellation."""
    assert await client.call("greet", "Ada", greeting="Hi", timeout=PATIENCE_S) == "Hi, Ada!"
    assert await client.call("reverse", b"abc") == b"cba"
    assert [word async for word in client.stream("words", "one two three")] == ["one", "two", "three"]
    handle = await client.submit("count", 3, idempotency_key="count-3")
    assert await handle.result(timeout=PATIENCE_S) == {"counted": 3}
    assert (await client.submit("count", 3, idempotency_key="count-3")).id == handle.id
    kinds = ["running", "progress", "progress", "progress", "done"]
    for via in VIA:
        events = [event async for event in handle.events(via) if event.kind != "queued"]
        assert [event.kind for event in events] == kinds, via
        assert [event.kind async for event in handle.events(via, offset=events[2].offset)] == kinds[3:], via
    failed = await refused(client.call("fail", "so it is", timeout=PATIENCE_S))
    assert (type(failed), failed.code) == (wayside.CallFailed, "call-failed")
    held = await client.submit("hold", 1000)
    while (await held.status()).state != "running":  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert (await held.cancel()).state == "cancelled"
    assert type(await refused(held.result(timeout=PATIENCE_S))) is wayside.CallCancelled
    later = await client.submit("greet", "Later", delay=1000, priority=3)
    assert (await later.wait(0)).state == "queued"
    assert later.id in [each.id for each in await client.calls(service="greet", state="queued")]
    await later.cancel()
    assert (await refused(client.call("greet", 3))).code == "invalid-input"


async def groups(client: Client) -> None:
    """A member that acks, nacks, rejects, extends, publishes with an ack; receipts, dead letters, redrive, seek."""
    await client.create("g/a")
    await client.publish("g/a", *range(6))
    seen: dict[int, int] = {}
    settings: dict[str, Any] = {"retries": 2, "backoff": 0.01, "dead_letter": "g.dead"}
    async with client.group("ours", "g/*", credit=4, **settings) as group:
        async for delivery in group:
            value = delivery.json()
            seen[value] = delivery.attempt
            if value == 1 and delivery.attempt == 1:
                await delivery.nack(0.01, "once more")
            elif value == 2:
                await delivery.reject("not this")
            elif value == 3:
                await delivery.extend(60)
                await delivery.ack(publish=[("g.done", {"of": value})])
            else:
                delivery.ack()
            if seen.keys() >= set(range(6)) and seen[1] == 2:
                break
    assert group.fenced == 0
    (dead,) = await client.dead("ours")
    assert (dead["reason"], dead["attempts"]) == ("not this", 1)
    receipt = await client.receipts("ours", "g/a", dead["offset"])
    assert receipt["state"] == "dead"
    assert [record.json() async for record in client.read("g.dead", follow=False)] == [2]
    assert [record.json() async for record in client.read("g.done", follow=False)] == [{"of": 3}]
    assert await client.redrive("ours") == 1
    async with client.group("ours") as group:
        (again,) = await group.take(5)
        assert again.json() == 2
        await again.ack()
    described = await client.describe_group("ours")
    assert (described["lag"], described["dead"], described["in_flight"]) == (0, 0, 0)
    await client.pause_group("ours")
    assert await client.seek("ours", "-1") == ["g/a"]
    await client.resume_group("ours")
    assert (await client.describe_group("ours"))["lag"] == 6
    assert "ours" in [each["name"] for each in await client.groups()]
    await client.delete_group("ours")


async def subscribers(client: Client) -> None:
    """What the old worker's subscription makes of its records: a retry, a dead letter, and records with its acks."""
    for name in ("jobs.done", "jobs.dead"):
        await client.create(name)
    await client.publish("jobs/a", {"id": 1}, {"id": 2, "retry": 1}, {"id": 3, "reject": 1})
    done = await first(client.read("jobs.done"), 2)
    assert sorted((each.json()["job"], each.json()["attempt"]) for each in done) == [(1, 1), (2, 2)]
    assert [each.json()["id"] for each in await first(client.read("jobs.dead"), 1)] == [3]


async def multiplexed(client: Client) -> None:
    """Many followers and calls on one connection at one time: each has what is its own."""
    names = [f"m/{number}" for number in range(50)]
    for name in names:
        await client.create(name, durability="memory")

    async def follow(name: str) -> list[Any]:
        return [record.json() for record in await first(client.read(name), 20)]

    async def publish(name: str) -> None:
        for number in range(20):
            await client.publish(name, f"{name} {number}")

    followed = asyncio.gather(*map(follow, names))
    calling = asyncio.gather(*(client.call("greet", str(number)) for number in range(50)))
    await asyncio.gather(*map(publish, names))
    assert await followed == [[f"{name} {number}" for number in range(20)] for name in names]
    assert await calling == [f"Hello, {number}!" for number in range(50)]


async def blocking(client: Client) -> None:
    """``wayside.sync``, in a thread: calls, streams, a group."""

    def work() -> None:
        with wayside.sync.connect(client.url) as hub:
            assert hub.call("greet", "Sync") == "Hello, Sync!"
            assert hub.submit("count", 2).result(timeout=PATIENCE_S) == {"counted": 2}
            assert list(hub.stream("words", "a b")) == ["a", "b"]
            hub.publish("s/a", 1, 2, 3)
            assert [record.json() for record in hub.read("s/a", follow=False)] == [1, 2, 3]
            with hub.group("blocking", "s/*") as group:
                deliveries = iter(group)
                for value in (1, 2, 3):
                    delivery = next(deliveries)
                    assert delivery.json() == value
                    delivery.ack().wait(PATIENCE_S)

    await asyncio.to_thread(work)


PROGRAMS: tuple[Callable[[Client], Awaitable[None]], ...] = (
    streams,
    readers,
    calls,
    groups,
    subscribers,
    multiplexed,
    blocking,
)


async def run(url: str) -> None:
    """Each program, and what became of it; before that, which package it is."""
    print(json.dumps({"package": wayside.__file__}), flush=True)
    for program in PROGRAMS:
        error = ""
        try:
            async with asyncio.timeout(2 * PATIENCE_S), wayside.connect(url) as client:
                await program(client)
        except BaseException:
            error = traceback.format_exc()
        print(json.dumps({"program": program.__name__, "error": error}), flush=True)


async def follow(url: str) -> None:
    """Until it is killed."""

    async def reader(name: str) -> None:
        async for record in client.read(name):
            print(f"{name}: {record.json()}", flush=True)

    async with wayside.connect(url) as client:
        await asyncio.gather(*map(reader, ("followed/a", "followed/b", "followed/*")))


if __name__ == "__main__":
    asyncio.run(follow(sys.argv[1]) if sys.argv[2:] else run(sys.argv[1]))
