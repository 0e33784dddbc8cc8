"""Handlers of records: what they are given, and what becomes of a record by how they end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tests.support.waiting import turns, until
from wayside import Delivery, Hub, Reject, Retry
from wayside.testing import TestHub, point


class Order(msgspec.Struct):
    n: int
    customer: str = ""


@dataclass
class Point:
    x: int


async def dead(test: TestHub) -> list[tuple[bytes, str]]:
    """The dead letters, with the reason."""
    return [
        (record.data, record.headers["wayside-dead-reason"]) async for record in test.client.read("dead", follow=False)
    ]


async def records(test: TestHub, stream: str) -> list[bytes]:
    return [record.data async for record in test.client.read(stream, follow=False)]


async def counts(test: TestHub, group: str = "billing") -> dict[str, int]:
    found: dict[str, int] = (await test.client.describe_group(group))["counts"]
    return found


def subscribed(handler: Callable[..., Any], **settings: Any) -> Hub:
    """A hub with a handler of orders."""
    hub = Hub()
    settings = {"group": "billing", "backoff": 0, "dead_letter": "dead", **settings}
    hub.subscribe("orders/*", **settings)(handler)
    return hub


# -- what becomes of a record


async def test_a_handler_that_returns_acks_and_one_that_raises_does_not() -> None:
    """What raises is tried again, with its text as the reason, and is dead after its retries."""
    seen: list[tuple[int, int]] = []

    async def bill(order: Order, delivery: Delivery) -> None:
        seen.append((order.n, delivery.attempt))
        if order.n == 2:
            raise ValueError("no such customer")

    async with TestHub(subscribed(bill, retries=2)) as test:
        await test.client.publish("orders/eu", {"n": 1}, {"n": 2}, {"n": 3})
        await test.settle()
        assert sorted(seen) == [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)]
        assert await dead(test) == [(b'{"n":2}', "ValueError: no such customer")]
        assert (await counts(test))["acked"] == 2


async def test_a_record_that_does_not_fit_is_dead_at_once() -> None:
    """Retries cannot help where the record does not fit the parameters."""
    seen: list[Order] = []

    async def bill(order: Order) -> None:
        seen.append(order)

    async with TestHub(subscribed(bill)) as test:
        await test.client.publish("orders/eu", {"n": "x"}, {"n": 1})
        await test.settle()
        assert seen == [Order(1)]
        ((data, reason),) = await dead(test)
        assert data == b'{"n":"x"}'
        assert reason.startswith("it does not fit: Expected `int`")
        assert (await counts(test))["delivered"] == 2


async def test_a_handler_may_say_when_and_whether_to_try_again() -> None:
    """Retry says when the record comes again, Reject that it does not."""
    seen: list[int] = []

    async def bill(order: Order, delivery: Delivery) -> None:
        seen.append(order.n)
        if order.n == 1:
            raise Reject("a duplicate")
        if delivery.attempt == 1:
            raise Retry("busy", delay=60)

    async with TestHub(subscribed(bill, concurrency=1)) as test:
        await test.client.publish("orders/eu", {"n": 1}, {"n": 2})
        await test.settle()
        await test.advance(59)
        assert seen == [1, 2]
        await test.advance(2)
        assert seen == [1, 2, 2]
        assert await dead(test) == [(b'{"n":1}', "a duplicate")]


async def test_what_a_handler_publishes_is_true_with_its_ack() -> None:
    """Records of a handler that raises are not published; those of the attempt that returns are."""

    async def bill(order: Order, delivery: Delivery) -> None:
        delivery.publish("bills", {"order": order.n, "attempt": delivery.attempt})
        if delivery.attempt == 1:
            raise RuntimeError("after it had published")

    async with TestHub(subscribed(bill)) as test:
        await test.client.publish("orders/eu", {"n": 1})
        await test.settle()
        assert await records(test, "bills") == [b'{"order":1,"attempt":2}']


async def test_a_publication_that_is_refused_is_a_failure() -> None:
    """Where what a handler publishes cannot be appended, the record is tried again, and is dead in the end."""

    async def bill(order: Order, delivery: Delivery) -> None:
        delivery.publish("closed", order.n)

    async with TestHub(subscribed(bill, retries=1)) as test:
        await test.client.create("closed")
        await test.client.close_stream("closed")
        await test.client.publish("orders/eu", {"n": 1})
        await test.settle()
        ((_, reason),) = await dead(test)
        assert "closed" in reason
        assert (await counts(test))["failed"] == 2


async def test_a_handler_may_settle_by_itself() -> None:
    """What a handler has said of its delivery stands, however it ends."""

    async def bill(order: Order, delivery: Delivery) -> None:
        await (delivery.ack() if order.n == 1 else delivery.reject("by hand"))
        raise RuntimeError("too late")

    async with TestHub(subscribed(bill)) as test:
        await test.client.publish("orders/eu", {"n": 1}, {"n": 2})
        await test.settle()
        assert await dead(test) == [(b'{"n":2}', "by hand")]
        assert (await counts(test))["acked"] == 1


# -- what a handler is given


async def test_plain_functions_run_in_threads() -> None:
    """A plain function is given its delivery with the same names, and may block."""
    names: list[str] = []

    def bill(order: Point, delivery: Delivery) -> None:
        names.append(threading.current_thread().name)
        delivery.publish("bills", delivery.offset == "" or order.x)
        if order.x == 2:
            acked: Any = delivery.ack([("bills", "waited")])  # in a thread it waits, and is not awaited
            assert acked.wait(5)

    async with TestHub(subscribed(bill, concurrency=1)) as test:
        await test.client.publish("orders/eu", {"x": 1}, {"x": 2})
        await test.settle()
        assert all(name.startswith("wayside-handler") for name in names)
        assert await records(test, "bills") == [b"1", b"2", b'"waited"']


@pytest.mark.parametrize(
    ("content_type", "data", "hint", "value"),
    [
        ("application/json", b'{"n":1}', dict[str, int], {"n": 1}),
        ("application/json", b'{"n":1}', Any, {"n": 1}),
        ("application/msgpack", msgspec.msgpack.encode({"n": 7}), Order, Order(7)),
        ("text/plain", b"hello", str, "hello"),
        ("application/octet-stream", b"\x00\x01", bytes, b"\x00\x01"),
    ],
)
async def test_a_record_is_read_as_its_stream_says(content_type: str, data: bytes, hint: Any, value: Any) -> None:
    """The media type of the stream says how a record is read, the annotation as what."""
    seen: list[Any] = []

    async def bill(record: Any) -> None:
        seen.append(record)

    bill.__annotations__["record"] = hint
    async with TestHub(subscribed(bill)) as test:
        await test.client.create("orders/eu", content_type=content_type)
        await test.client.publish("orders/eu", data)
        await test.settle()
        assert seen == [value]


async def test_a_reference_to_a_stream_is_its_content() -> None:
    """Where a handler takes bytes, a record may name a stream that has them, or none; while there is no such stream the
    record is tried again, and is not dead."""
    seen: list[tuple[bytes, int]] = []

    async def bill(scan: bytes, delivery: Delivery) -> None:
        seen.append((scan, delivery.attempt))

    async with TestHub(subscribed(bill, retries=3, backoff=10)) as test:
        for path, parts in (("uploads/x", [b"one, ", b"two"]), ("uploads/empty", [])):
            await test.client.create(path, content_type="application/octet-stream")
            for part in parts:
                await test.client.publish(path, part)
            await test.client.close_stream(path)
        await test.client.publish("orders/eu", *({"$stream": f"uploads/{name}"} for name in ("x", "empty", "late")))
        await test.settle()
        assert sorted(seen) == [(b"", 1), (b"one, two", 1)]
        assert await counts(test) == {**await counts(test), "acked": 2, "failed": 1, "dead": 0}

        await test.client.create("uploads/late", content_type="application/octet-stream")
        await test.client.publish("uploads/late", b"at last")
        await test.client.close_stream("uploads/late")
        await test.advance(11)
        assert seen[2:] == [(b"at last", 2)]
        assert (await counts(test))["acked"] == 3


async def test_records_of_one_key_are_handled_one_after_the_other() -> None:
    """With order_by, a record whose handler failed holds up the others of its key, and only those."""
    seen: list[tuple[str, int]] = []

    async def bill(order: Order, delivery: Delivery) -> None:
        seen.append((order.customer, order.n))
        if order.n == 1 and delivery.attempt == 1:
            raise Retry(delay=10)

    async with TestHub(subscribed(bill, order_by="customer")) as test:
        values = [{"n": n, "customer": customer} for n, customer in ((1, "a"), (2, "a"), (3, "b"))]
        await test.client.publish("orders/eu", *values)
        await test.settle()
        assert seen == [("a", 1), ("b", 3)]
        await test.advance(11)
        assert seen[2:] == [("a", 1), ("a", 2)]


async def test_no_more_handlers_run_than_are_to() -> None:
    """Concurrency bounds the handlers, and with them the records that the process holds."""
    running, most = 0, 0
    go = asyncio.Event()

    async def bill(order: Order) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1

    async with TestHub(subscribed(bill, concurrency=3)) as test:
        await test.client.publish("orders/eu", *({"n": n} for n in range(10)))
        await test.settle()
        assert (await test.client.describe_group("billing"))["in_flight"] == 3
        go.set()
        await test.settle()
        assert most == 3
        assert (await counts(test))["acked"] == 10


async def test_records_leave_threads_to_the_calls_that_they_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """More handlers than there are threads, each blocked on a plain service of the same process: all of them end."""
    monkeypatch.setattr("wayside.calls.runner.THREADS_MAX", 4)
    hub = Hub()

    @hub.service("tax")
    def tax(n: int) -> int:
        return n + 1

    @hub.subscribe("orders/*", group="billing", concurrency=20)
    def bill(order: Order, delivery: Delivery) -> None:
        waited = asyncio.run_coroutine_threadsafe(hub.call("tax", order.n), loop)
        assert waited.result(30) == order.n + 1

    loop = asyncio.get_running_loop()
    async with hub:
        await hub.publish("orders/eu", *({"n": n} for n in range(20)))
        counts = hub.groups.group("billing").journal.state.counts
        await until(lambda: counts["acked"] == 20)


# -- declaring


@pytest.mark.parametrize("later", range(0, 60, 3))
async def test_a_handler_may_be_declared_while_its_hub_starts(later: int) -> None:
    """At whatever moment: it is given records."""
    hub = subscribed(lambda order: None)
    starting = asyncio.create_task(hub.start())
    await turns(later)
    seen: list[int] = []

    @hub.subscribe("orders/*", group="late")
    async def note(order: Order) -> None:
        seen.append(order.n)

    await starting
    await hub.publish("orders/eu", {"n": 7})
    await until(lambda: seen == [7])
    await hub.close()


async def test_a_group_is_called_like_its_function_unless_it_has_a_name() -> None:
    """Without a name the group is the function's, so that it is the same after a restart."""
    hub = Hub()

    @hub.subscribe("orders/*")
    async def note(order: Order) -> None: ...

    (name,) = hub.subscribed
    assert name.endswith("test_subscribing.test_a_group_is_called_like_its_function_unless_it_has_a_name.note")
    async with TestHub(hub) as test:
        assert [group["name"] for group in await test.client.groups()] == [name]


async def test_a_group_that_is_paused_stays_so() -> None:
    """A restart, as of a deployment, gives a group its settings, and does not resume what somebody has paused."""
    seen: list[int] = []

    async def bill(order: Order) -> None:
        seen.append(order.n)

    async with TestHub(subscribed(bill)) as test:
        await test.client.pause_group("billing")
        await test.restart()
        await test.client.publish("orders/eu", {"n": 1})
        await test.settle()
        assert seen == []
        await test.client.resume_group("billing")
        await test.settle()
        assert seen == [1]


def test_what_makes_no_sense_is_refused_when_it_is_declared() -> None:
    """Wrong settings, a second handler of a group, and a handler that yields are mistakes of the program."""
    hub = Hub()

    async def bill(order: Order) -> None: ...

    async def stream(order: Order) -> Any:
        yield 1

    with pytest.raises(TypeError, match="retry"):
        hub.subscribe("orders", retry=1)
    with pytest.raises(ValueError, match="concurrency"):
        hub.subscribe("orders", concurrency=0)
    with pytest.raises(TypeError, match="yields"):
        hub.subscribe("orders", group="g")(stream)
    hub.subscribe("orders", group="billing")(bill)
    with pytest.raises(ValueError, match="already"):
        hub.subscribe("bills", group="billing")(bill)


# -- crashes


async def test_a_crash_between_effect_and_ack_repeats_the_effect_and_says_so() -> None:
    """A worker is killed after its handler's effect: when its lease is over another has the record, as attempt 2, and
    what is published with the ack is there once."""
    effects: list[int] = []

    async def bill(order: Order, delivery: Delivery) -> None:
        effects.append(delivery.attempt)
        point("charged")
        delivery.publish("bills", order.n)

    async with TestHub(subscribed(bill, lease=30), local=False) as test:
        await test.worker("one")
        test.crash_at("charged", worker="one")
        await test.client.publish("orders/eu", {"n": 1})
        await test.settle()
        await test.worker("two")
        await test.advance(29)
        assert effects == [1]
        await test.advance(2)
        assert effects == [1, 2]
        assert await records(test, "bills") == [b"1"]
        offset = (await test.client.info("orders/eu"))["stream-next-offset"]
        receipt = await test.client.receipts("billing", "orders/eu", offset)
        deliveries = [(each["member"], each["ended"]) for each in receipt["deliveries"]]
        assert deliveries == [("one", "failed"), ("two", "acked")]


async def test_a_group_survives_a_crash_of_the_hub() -> None:
    """The hub is killed while a handler runs: the record comes again when the lease is over, and the others go on."""
    seen: list[tuple[int, int]] = []

    async def bill(order: Order, delivery: Delivery) -> None:
        seen.append((order.n, delivery.attempt))
        point("charged")

    async with TestHub(subscribed(bill, concurrency=1)) as test:
        test.crash_at("charged")
        await test.client.publish("orders/eu", {"n": 1}, {"n": 2})
        await test.settle()
        assert test.crashes == 1
        await test.advance(31)
        assert sorted(seen) == [(1, 1), (1, 2), (2, 1)]
        assert (await counts(test))["acked"] == 2


async def test_a_worker_that_stops_gives_back_what_it_did_not_finish() -> None:
    """A stop lets nothing begin; what a handler does not finish in time is for others at once, and no failure."""
    attempts: list[int] = []

    async def bill(order: Order, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            await asyncio.Event().wait()

    async with TestHub(subscribed(bill), local=False) as test:
        one = await test.worker("one")
        await test.client.publish("orders/eu", {"n": 1})
        await test.settle()
        await test.worker("two")
        await one.stop()
        await test.settle()
        assert attempts == [1, 2]
        assert await counts(test) == {**await counts(test), "acked": 1, "failed": 0}


async def test_a_stalled_worker_is_fenced() -> None:
    """A worker that stands still for longer than its lease loses its records, and what it says of them is refused."""
    go = asyncio.Event()
    attempts: list[int] = []

    async def bill(order: Order, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            await go.wait()
            delivery.publish("bills", "late")

    async with TestHub(subscribed(bill), local=False) as test:
        one = await test.worker("one")
        await test.client.publish("orders/eu", {"n": 1})
        await test.settle()
        one.stall()
        await test.worker("two")
        await test.advance(31)
        assert attempts == [1, 2]
        go.set()
        await one.resume()
        await test.settle()
        assert attempts == [1, 2]
        assert (await counts(test))["acked"] == 1
        with pytest.raises(Exception, match="bills"):
            await records(test, "bills")
