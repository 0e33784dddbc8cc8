"""Members of groups over real sockets: what they are given, what they say, and what a lost connection costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import wayside
from tests.support.disk import Gate
from tests.support.server import Running
from tests.support.waiting import until
from wayside import LeaseFenced, UnknownOutcome, sync
from wayside.client.member import Pace
from wayside.core.errors import Conflict, NotFound
from wayside.hub import Hub
from wayside.link.connection import Channels, WebSocket
from wayside.link.frames import Settlement
from wayside.testing import ManualClock


@pytest.fixture
async def client(disk: Running) -> AsyncIterator[wayside.Client]:
    """A client of ``disk``."""
    async with wayside.connect(url_of(disk)) as client:
        yield client


def url_of(running: Running) -> str:
    host, port = running.server.address[:2]
    return f"http://{host}:{port}"


async def take(group: wayside.GroupMember, count: int) -> list[wayside.Delivery]:
    """So many records."""
    taken: list[wayside.Delivery] = []
    while len(taken) < count:
        taken += await group.take(count - len(taken))
    return taken


async def records(client: wayside.Client, stream: str) -> list[bytes]:
    return [record.data async for record in client.read(stream, follow=False)]


def cut(running: Running) -> None:
    """Break all connections."""
    for connection in list(running.server.connections):
        connection.cut()


# -- taking and acking


async def test_every_record_comes_once_and_its_ack_is_kept(client: wayside.Client) -> None:
    """Records come in order, with what is known of them, and when the ack was awaited the group counts them as done."""
    await client.publish("orders/eu", *range(600))
    values = []
    async with client.group("billing", "orders/*") as group:
        async for delivery in group:
            values.append(delivery.value)
            acked = delivery.ack()
            if len(values) == 600:
                break
        assert await acked == []
        assert (delivery.stream, delivery.attempt, delivery.group) == ("orders/eu", 1, "billing")
        assert (delivery.data, delivery.json(), delivery.settled) == (b"599", 599, True)
        assert delivery.offset == (await client.info("orders/eu"))["stream-next-offset"]
        assert group.held == 0
    assert values == list(range(600))
    described = await client.describe_group("billing")
    assert (described["counts"]["acked"], described["in_flight"], described["waiting"]) == (600, 0, 0)


async def test_acks_of_one_turn_go_out_as_one_run(disk: Running, client: wayside.Client) -> None:
    """Each turn of the event loop is one settlement, with neighbours as one run, in whatever order they were acked."""
    await client.publish("orders", *range(20))
    async with client.group("billing", "orders") as group:
        taken = await take(group, 20)
        settlements: list[Settlement] = []
        hubs = disk.hub.groups.group("billing")
        settle = hubs.settle

        def noted(settlement: Settlement, *rest: Any) -> None:
            settlements.append(settlement)
            settle(settlement, *rest)

        setattr(hubs, "settle", noted)  # noqa: B010 - a method
        said = [delivery.ack() for delivery in reversed(taken)]
        await asyncio.gather(*(each.wait() for each in said))
    assert [[(ack.first, ack.count) for ack in each.acks] for each in settlements] == [[(0, 20)]]


async def test_a_member_is_given_no_more_than_its_credit(disk: Running, client: wayside.Client) -> None:
    """A member that takes nothing holds as many records as it has credit for, however many there are."""
    await client.publish("orders", *range(100))
    async with client.group("billing", "orders", credit=10) as group:
        state = disk.hub.groups.group("billing").journal.state
        await until(lambda: group.held == 10)
        await client.publish("orders", 100)
        await client.describe_group("billing")
        assert (state.in_flight, group.held) == (10, 10)
        await take(group, 5)
        await until(lambda: group.held == 15)
        assert state.in_flight == 15


async def test_several_tasks_share_a_member(client: wayside.Client) -> None:
    """Tasks that iterate over one member are each given other records."""
    await client.publish("orders", *range(50))
    seen: list[int] = []
    done = asyncio.Event()

    async def consume(group: wayside.GroupMember) -> None:
        async for delivery in group:
            seen.append(delivery.value)
            delivery.ack()
            await asyncio.sleep(0)
            if len(seen) == 50:
                done.set()

    async with client.group("billing", "orders", credit=8) as group:
        tasks = [asyncio.create_task(consume(group)) for _ in range(3)]
        await done.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert sorted(seen) == list(range(50))


async def test_what_was_not_settled_is_given_back_at_the_end(client: wayside.Client) -> None:
    """Whoever leaves, a block or a loop without one, gives back the rest at once; that is no failure."""
    await client.publish("orders", *range(4))
    await client.put_group("billing", "orders", retries=0)
    async for delivery in client.group("billing"):
        delivery.ack()
        break
    async with client.group("billing") as group:
        assert [delivery.value for delivery in await take(group, 3)] == [1, 2, 3]
    async with client.group("billing") as group:
        taken = await take(group, 3)
        assert [(delivery.value, delivery.attempt) for delivery in taken] == [(1, 3), (2, 3), (3, 3)]
    assert (await client.describe_group("billing"))["counts"]["failed"] == 0


async def test_a_nack_a_release_and_a_rejection_are_told_apart(client: wayside.Client) -> None:
    """A failed record comes again, a released one, too, without a failure; a rejected one is a dead letter at once."""
    await client.publish("orders", "fail", "release", "reject")
    async with client.group("billing", "orders", backoff=0, dead_letter="dead") as group:
        failed, released, rejected = await take(group, 3)
        failed.nack(delay=0, reason="no")
        released.release()
        await rejected.reject("poison")
        again = await take(group, 2)
        assert sorted((delivery.value, delivery.attempt) for delivery in again) == [("fail", 2), ("release", 2)]
        await asyncio.gather(*(delivery.ack().wait() for delivery in again))
    assert await records(client, "dead") == [b'"reject"']
    counts = (await client.describe_group("billing"))["counts"]
    assert (counts["acked"], counts["dead"]) == (2, 1)


async def test_a_record_is_settled_once(client: wayside.Client) -> None:
    """To settle a delivery twice is a mistake of the program, and is told at once."""
    await client.publish("orders", 1)
    async with client.group("billing", "orders") as group:
        (delivery,) = await take(group, 1)
        await delivery.ack()
        with pytest.raises(RuntimeError, match="settled before"):
            delivery.nack()


async def test_a_group_that_is_not_there_is_said(client: wayside.Client) -> None:
    """To join a group that does not exist fails, and says how to make it; settings that make no sense fail at once."""
    with pytest.raises(NotFound, match="no group 'nope'"):
        async with client.group("nope"):
            pass
    with pytest.raises(TypeError, match="retry"):
        client.group("billing", "orders", retry=1)


async def test_a_deleted_group_ends_its_members(client: wayside.Client) -> None:
    """Whoever waits for records of a group that is deleted is told, and an ack says that nothing is known of it."""
    await client.publish("orders", 1)
    async with client.group("billing", "orders") as group:
        (delivery,) = await take(group, 1)
        await client.delete_group("billing")
        with pytest.raises(NotFound):
            await group.take(1)
        with pytest.raises(UnknownOutcome):
            await delivery.ack()


async def test_groups_are_changed_over_the_same_connection(client: wayside.Client) -> None:
    """Pause, seek, dead letters, their way back and receipts are methods of the client."""
    await client.publish("orders", 1, 2)
    await client.put_group("billing", ["orders"], retries=0, backoff=0, lease=5, paused=True)
    assert [group["name"] for group in await client.groups()] == ["billing"]
    await client.resume_group("billing")
    async with client.group("billing") as group:
        first, second = await take(group, 2)
        await first.reject("bad")
        await second.ack()
        assert [letter["reason"] for letter in await client.dead("billing")] == ["bad"]
        assert (await client.receipts("billing", "orders", second.offset))["state"] == "acked"
        assert await client.redrive("billing", reason="bad") == 1
        (again,) = await take(group, 1)
        assert (again.value, again.attempt) == (1, 1)
        await again.ack()
        assert await client.seek("billing", "-1") == ["orders"]
        assert [delivery.value for delivery in await take(group, 2)] == [1, 2]
    await client.pause_group("billing")
    assert (await client.describe_group("billing"))["paused"] is True


# -- transactions


async def test_an_ack_and_what_it_publishes_are_one(client: wayside.Client) -> None:
    """Records published with an ack are there when it is, in streams that are made if need be, as those are."""
    await client.create("notes", content_type="text/plain")
    await client.publish("orders", 1, 2)
    async with client.group("billing", "orders") as group:
        first, second = await take(group, 2)
        offsets = await first.ack([("bills", {"n": 1}), ("notes", "paid"), ("bills", {"n": 2})])
        assert offsets[0] == (await client.info("bills"))["stream-next-offset"]
        async with second.transaction() as transaction:
            transaction.publish("bills", {"n": 3})
        assert len(transaction.offsets) == 1
    assert await records(client, "bills") == [b'{"n":1}', b'{"n":2}', b'{"n":3}']
    assert await records(client, "notes") == [b"paid"]


async def test_a_refused_transaction_leaves_the_record_held(client: wayside.Client) -> None:
    """Where the records cannot be appended nothing is acked, and the record can be settled otherwise."""
    await client.create("closed")
    await client.close_stream("closed")
    await client.publish("orders", 1)
    async with client.group("billing", "orders") as group:
        (delivery,) = await take(group, 1)
        with pytest.raises(Conflict, match="closed"):
            await delivery.ack([("bills", 1), ("closed", 2)])
        assert not delivery.settled
        assert group.held == 1
        await delivery.ack([("bills", 1)])
    assert await records(client, "bills") == [b"1"]


async def test_what_a_transaction_publishes_is_checked(client: wayside.Client) -> None:
    """Bytes that are no JSON value do not get into a JSON stream with an ack either."""
    await client.create("bills")
    await client.publish("orders", 1)
    async with client.group("billing", "orders") as group:
        (delivery,) = await take(group, 1)
        for wrong in (b"{", b"1,2", b""):
            with pytest.raises(wayside.Refusal):
                await delivery.ack([("bills", wrong)])
        await delivery.ack()
    assert await records(client, "bills") == []


# -- leases


async def test_an_ack_after_the_lease_is_refused_and_counted(tmp_path: Path) -> None:
    """A member that is stopped for longer than its lease loses the record to another, and its ack is refused."""
    clock = ManualClock()
    async with Hub(f"file:{tmp_path}", clock=clock) as hub:
        server = await hub.serve(port=0)
        url = f"http://{server.address[0]}:{server.address[1]}"
        async with wayside.connect(url) as one, wayside.connect(url) as other:
            await one.publish("orders", 1, 2)
            async with one.group("billing", "orders", credit=2, backoff=0) as late:
                first, second = await take(late, 2)
                clock.advance(31)
                hub.calls.timers.run()
                async with other.group("billing") as group:
                    taken = await take(group, 2)
                    assert [(each.value, each.attempt) for each in taken] == [(1, 2), (2, 2)]
                    with pytest.raises(LeaseFenced) as refused:
                        await first.ack()
                    assert refused.value.code == "lease-fenced"
                    with pytest.raises(LeaseFenced):
                        await second.ack([("bills", 1)])
                    assert late.fenced == 2
                    await taken[0].ack()
                    await taken[1].ack()
                    assert group.fenced == 0
            with pytest.raises(NotFound):
                await one.info("bills")
        server.stop()


async def test_leases_are_extended_while_the_process_lives(tmp_path: Path) -> None:
    """What is held for hours stays held: its lease is extended; what was asked for longer is not made shorter."""
    clock = ManualClock()
    async with Hub(f"file:{tmp_path}", clock=clock) as hub:
        server = await hub.serve(port=0)
        url = f"http://{server.address[0]}:{server.address[1]}"
        pace = Pace(clock)
        async with wayside.Client(Channels(WebSocket(url)), url, pace) as client:
            await client.publish("orders", 1, 2)
            async with client.group("billing", "orders") as group:
                first, second = await take(group, 2)
                await second.extend(3600)
                for _ in range(40):
                    clock.advance(10)
                    pace.timers.run()
                    await client.describe_group("billing")  # behind the extension, on the same connection
                    hub.calls.timers.run()
                state = hub.groups.group("billing").journal.state
                deadlines = {lease.deadline - clock.monotonic() for lease, _, _ in state.held()}
                assert len(deadlines) == 2
                assert max(deadlines) > 3000
                await first.ack()
                await second.ack()
                assert group.fenced == 0
        server.stop()


# -- connections


async def test_leases_outlive_the_connection_and_the_hub(tmp_path: Path) -> None:
    """A member whose hub was restarted goes on as the same member: what it holds is acked, and nothing comes twice."""
    place = f"file:{tmp_path}"
    hub = Hub(place)
    server = await hub.serve(port=0)
    host, port = server.address[:2]
    async with wayside.connect(f"http://{host}:{port}") as client:
        await client.publish("orders", *range(10))
        async with client.group("billing", "orders", credit=5) as group:
            held = await take(group, 3)
            server.stop()
            await hub.close()
            said = [delivery.ack() for delivery in held]
            hub = Hub(place)
            server = await hub.serve(host, port)
            for acked in said:
                await acked
            rest = await take(group, 7)
            assert [(each.value, each.attempt) for each in rest] == [(n, 1) for n in range(3, 10)]
            for each in rest:
                each.ack()
        counts = (await client.describe_group("billing"))["counts"]
        assert (counts["delivered"], counts["acked"]) == (10, 10)
    server.stop()
    await hub.close()


async def test_an_ack_whose_answer_was_lost_is_said_again(disk: Running, client: wayside.Client, gate: Gate) -> None:
    """The hub has the ack, and the connection breaks before it says so: it is sent again, and counts once."""
    await client.publish("orders", 1)
    async with client.group("billing", "orders") as group:
        (delivery,) = await take(group, 1)
        gate.shut()
        acked = asyncio.ensure_future(delivery.ack().wait())
        await gate.reached()
        cut(disk)
        await until(lambda: not client.channels.connected)
        gate.open()
        await acked
    assert (await client.describe_group("billing"))["counts"]["acked"] == 1


async def test_a_transaction_whose_answer_was_lost_is_not_known(
    disk: Running, client: wayside.Client, gate: Gate
) -> None:
    """A transaction is said again, too, and done once; but who did it then is for the receipt to say."""
    await client.create("bills")
    await client.publish("orders", 1)
    async with client.group("billing", "orders") as group:
        (delivery,) = await take(group, 1)
        gate.shut()
        acked = asyncio.ensure_future(delivery.ack([("bills", 1)]).wait())
        await gate.reached()
        cut(disk)
        await until(lambda: not client.channels.connected)
        gate.open()
        with pytest.raises(UnknownOutcome, match="receipt"):
            await acked
    receipt = await client.receipts("billing", "orders", delivery.offset)
    assert (receipt["state"], receipt["deliveries"][-1]["lease"]) == ("acked", delivery.lease)
    assert await records(client, "bills") == [b"1"]


async def test_records_that_got_lost_on_their_way_come_at_once(disk: Running, client: wayside.Client) -> None:
    """Whoever connects again says what it has: the rest of its leases is delivered again, and is no failure."""
    await client.publish("orders", *range(3))
    async with client.group("billing", "orders", credit=3) as group:
        taken = await take(group, 3)
        link = group._link
        assert link is not None
        lost = taken[1]._hold
        link._holds.clear()  # as if the delivery had not arrived
        cut(disk)
        again = await take(group, 3)
        assert [(each.value, each.attempt) for each in again] == [(0, 2), (1, 2), (2, 2)]
        assert lost is not again[1]._hold
    assert (await client.describe_group("billing"))["counts"]["failed"] == 0


# -- threads


async def test_threads_have_the_same_names(disk: Running, client: wayside.Client) -> None:
    """The blocking client iterates over a group, acks, and publishes in a transaction."""
    await client.publish("orders", *range(10))

    def consume() -> list[int]:
        seen: list[int] = []
        with sync.connect(url_of(disk)) as hub:
            with hub.group("billing", "orders", credit=4) as group:
                for delivery in group:
                    seen.append(delivery.json())
                    if len(seen) == 10:
                        with delivery.transaction() as transaction:
                            transaction.publish("bills", seen)
                        break
                    delivery.ack()
                assert group.take(1, timeout=0.01) == []
            for delivery in hub.group("other", "orders"):
                assert delivery.ack().wait(5) == []
                break
            assert hub.describe_group("other")["waiting"] == 9
        return seen

    assert await asyncio.to_thread(consume) == list(range(10))
    assert (await client.describe_group("billing"))["counts"]["acked"] == 10
    assert await records(client, "bills") == [b"[0,1,2,3,4,5,6,7,8,9]"]


async def test_whoever_gives_up_joining_is_no_member(disk: Running, client: wayside.Client) -> None:
    """A join that is cancelled on its way leaves nobody behind to whom records would go."""
    await client.publish("orders", 1)
    await client.put_group("billing", "orders")
    joining = asyncio.ensure_future(client.group("billing").join())
    hubs = disk.hub.groups.group("billing")
    await asyncio.sleep(0)
    joining.cancel()
    await asyncio.wait([joining])
    async with client.group("billing") as group:
        (delivery,) = await take(group, 1)
        assert len(hubs.members) == 1
        await delivery.ack()
