"""What clients, handlers and full disks do to calls over ``/v1/connect``: nothing hangs, and nothing grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from tests.support.waiting import until
from wayside import CallFailed, Hub
from wayside.client.client import Client
from wayside.client.worker import Remote
from wayside.core.errors import BadRequest, InvalidInput, Refusal, StoreFull
from wayside.core.records import Append
from wayside.link import frames as f
from wayside.link.connection import Channels, WebSocket


class Picky(msgspec.Struct):
    """A type whose own code fails."""

    value: int

    def __post_init__(self) -> None:
        raise KeyError("of the application")


class Peer:
    """The client's end of a connection, frame by frame."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def open(self, url: str) -> Peer:
        self.link = WebSocket(url)
        await self.link.open(self.got.extend, lambda _reason: None)
        return self


@pytest.fixture
async def place() -> AsyncIterator[tuple[Hub, str]]:
    """A hub that listens, with a worker elsewhere."""
    hub, app = Hub("memory:"), Hub()

    @app.service("picky")
    async def picky(_value: Picky) -> None: ...

    @app.service("odd")
    async def odd() -> None:
        raise InvalidInput("no", fields={"cause": ValueError("x"), "huge": 10**40})

    @app.service("surrogate")
    async def surrogate() -> None:
        raise ValueError("\udcff")

    @app.service("many")
    async def many() -> AsyncIterator[int]:
        for number in range(300):
            yield number
            await asyncio.sleep(0)

    @app.service("size")
    async def size(body: bytes) -> int:
        return len(body)

    @app.service("slow")
    async def slow() -> None:
        await asyncio.sleep(60)

    server = await hub.serve("127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.address[1]}"
    worker = Remote(url, app.handlers, capacity=100)
    await worker.start()
    await worker.ready.wait()
    yield hub, url
    await worker.close()
    await server.drain(1.0)
    await hub.close()


@pytest.mark.parametrize(
    ("service", "error"), [("picky", CallFailed), ("odd", InvalidInput), ("surrogate", CallFailed)]
)
async def test_whatever_a_handler_raises_ends_its_call(
    place: tuple[Hub, str], service: str, error: type[Refusal]
) -> None:
    hub, url = place
    async with Client(Channels(WebSocket(url)), url) as client:
        arguments = [{"value": 1}] if service == "picky" else []
        with pytest.raises(error):
            await client.call(service, *arguments, timeout=10)
        assert await client.call("size", b"xy", timeout=10) == 2, "the worker works on"
    assert hub.calls.services[service].running == 0


async def test_an_item_that_finds_no_room_ends_the_attempt(
    place: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are on their way behind it are refused as well; the hub is told all the same."""
    hub, _url = place
    append: Callable[..., None] = hub.log.append

    def full(path: str, appended: Append, done: Callable[[Any], None]) -> None:
        if any(b'"item"' in record for record in appended.records or ()):
            asyncio.get_running_loop().call_later(0.004, done, StoreFull("full"))
        else:
            append(path, appended, done)

    monkeypatch.setattr(hub.log, "append", full)
    handle = await hub.submit("many")
    with pytest.raises(StoreFull):
        await handle.result(10)
    assert hub.calls.services["many"].running == 0


async def test_large_calls_of_one_turn_share_no_message(place: tuple[Hub, str]) -> None:
    """Together they are more than the hub takes in one."""
    _hub, url = place
    async with Client(Channels(WebSocket(url)), url) as client:
        body = bytes(2 * 1024 * 1024)
        assert set(await asyncio.gather(*[client.call("size", body) for _ in range(40)])) == {len(body)}


async def test_what_cannot_be_said_fails_alone(place: tuple[Hub, str]) -> None:
    _hub, url = place
    async with Client(Channels(WebSocket(url), retry_s=1), url) as client:
        other = asyncio.ensure_future(client.call("size", b"abc"))
        key: Any = 5
        with pytest.raises(TypeError, match="key"):
            await client.call("size", b"", idempotency_key=key)
        with pytest.raises(BadRequest, match="surrogates"):
            await client.publish("s\udcff", 1)
        assert await other == 3


async def test_a_channel_is_used_again(place: tuple[Hub, str]) -> None:
    """What it was used for before says nothing on it, and keeps nothing."""
    hub, url = place
    peer = await Peer().open(url)
    for submitted in (False, True):
        peer.got.clear()
        again = f.CallFrame(1, "size", b"abc", "application/octet-stream")
        peer.link.send([f.CallFrame(1, "slow", submitted=submitted), f.LeaveFrame(1), again])
        await until(lambda: bool(peer.got))
        await asyncio.sleep(0.05)
        assert [type(frame) for frame in peer.got] == [f.ResultFrame]
    keyed = f.CallFrame(2, "slow", options=f.CallOptions(key="k"))
    for _ in range(3):
        peer.link.send([keyed])
        await asyncio.sleep(0.02)
        peer.link.send([f.LeaveFrame(2)])
    await asyncio.sleep(0.05)
    assert not any(call.waiters for call in hub.calls.ledger.open.values())
    await peer.link.close()


async def test_nobody_takes_the_place_of_the_hubs_own_worker(place: tuple[Hub, str]) -> None:
    hub, url = place
    peer = await Peer().open(url)
    own = hub.worker.worker.id
    for frame in (f.WorkFrame(0, own, [], 5), f.WorkFrame(0, "w", [{"name": "s", "retries": -1}], 5)):
        peer.got.clear()
        peer.link.send([frame])
        await until(lambda: bool(peer.got))
        assert peer.got[0].problem["status"] == 400
    await peer.link.close()


async def test_a_client_that_does_not_read_is_not_read_for(place: tuple[Hub, str]) -> None:
    """Its answers do not pile up in the hub; when it reads again it is given all of them."""
    hub, url = place
    await hub.create("bytes", content_type="application/octet-stream", durability="memory")
    for _ in range(4):
        await hub.publish("bytes", bytes(1024 * 1024))
    peer = await Peer().open(url)
    transport: Any = peer.link._transport
    transport.underlying_transport.pause_reading()
    follows = [f.FollowFrame(number, "bytes", "-1", 1 << 40) for number in range(1, 21)]
    peer.link.send([*follows, *(f.RequestFrame(number, "GET", "/v1/stream/bytes") for number in range(21, 41))])
    await until(lambda: any(each.paused for each in hub.connections.peers))
    (there,) = [each for each in hub.connections.peers if each.paused]
    assert sum(len(getattr(frame, "records", b"")) for frame in there._out) < 2 * 1024 * 1024
    transport.underlying_transport.resume_reading()

    def whole() -> bool:
        answers = [frame.body for frame in peer.got if isinstance(frame, f.ResponseFrame)]
        followed = sum(len(frame.records) for frame in peer.got if isinstance(frame, f.RecordsFrame))
        return len(answers) == 20 and followed >= 80 * 1024 * 1024

    await until(whole)
    await peer.link.close()


async def test_a_start_goes_on_without_whoever_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub("memory:")

    @hub.service("one")
    async def one() -> int:
        return 1

    start = hub.keeping.start

    async def slowly() -> None:
        await asyncio.sleep(0.2)
        await start()

    monkeypatch.setattr(hub.keeping, "start", slowly)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hub.call("one"), 0.05)
    assert await asyncio.wait_for(hub.call("one"), 10) == 1
    await hub.close()
