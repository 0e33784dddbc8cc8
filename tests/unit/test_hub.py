"""The hub in process: what ``Hub`` takes and refuses, and how its readers end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from wayside import Hub
from wayside.core.errors import BadRequest, Conflict, NotFound, Overloaded, Refusal, StoreInUse
from wayside.hub import detach

UNPRINTABLE = "a\ud800"


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory:" if request.param == "memory" else f"file:{tmp_path / 'data'}"


@pytest.mark.parametrize("path", ["", "a//b", "/a", "a/", "..", "a\r\nX: y", UNPRINTABLE, "__ds/x", "x" * 1025])
async def test_a_path_is_as_good_in_process_as_in_a_url(url: str, path: str) -> None:
    """What is no stream path in a URL is none here, and asking for it harms nothing."""
    async with Hub(url) as hub:
        with pytest.raises((BadRequest, NotFound)):
            await hub.create(path)
        with pytest.raises((BadRequest, NotFound)):
            await hub.publish(path, {"id": 1})
        with pytest.raises(NotFound):
            await hub.info(path)
        await hub.publish("fine", {"id": 1})
        assert hub.log.failed is None


@pytest.mark.parametrize(
    "options",
    [
        {"content_type": "text/\ud800"},
        {"content_type": "text/plain\r\nX: y"},
        {"content_type": ""},
        {"ttl_s": 2**70},
        {"ttl_s": -1},
        {"retention_bytes": 0},
        {"retention_bytes": 2**70},
        {"retention_age_s": 2**70},
    ],
)
async def test_a_configuration_that_cannot_be_is_refused(url: str, options: dict[str, Any]) -> None:
    """What no stream can be made with is refused before anything is queued: the store goes on."""
    async with Hub(url) as hub:
        with pytest.raises(BadRequest):
            await hub.create("a", **options)
        await hub.publish("a", {"id": 1})
        assert hub.log.failed is None


@pytest.mark.parametrize("record", ["", b"", 1, None])
async def test_what_is_no_record_is_refused(url: str, record: object) -> None:
    """A stream that is not JSON takes bytes and text that are not empty; as over HTTP."""
    async with Hub(url) as hub:
        await hub.create("a", content_type="text/plain")
        with pytest.raises(BadRequest):
            await hub.publish("a", "fine", record)
        assert [each async for each in hub.read("a", follow=False)] == []


async def test_a_close_ends_readers_that_are_behind(url: str) -> None:
    """A reader that has not read all when the hub closes ends after what it was given, and never waits for ever."""
    hub = Hub(url)
    await hub.create("a", content_type="text/plain")
    for _ in range(20):
        await hub.publish("a", "x" * 50_000)
    following = hub.read("a")
    await anext(following)
    await hub.close()
    async with asyncio.timeout(30):
        rest = [record async for record in following]
    assert len(rest) < 20


async def test_a_close_is_told_to_readers_that_want_it_all(url: str) -> None:
    """A reader that was to read up to the tail is told that it did not."""
    hub = Hub(url)
    await hub.create("a", content_type="text/plain")
    for _ in range(20):
        await hub.publish("a", "x" * 50_000)
    reading = hub.read("a", follow=False)
    await anext(reading)
    await hub.close()
    with pytest.raises(Overloaded) as refused:
        _rest = [record async for record in reading]
    assert refused.value.code == "closing"


async def test_a_deletion_beside_an_append_leaves_nothing_counted(url: str) -> None:
    """Memory that a stream took is given back when it is deleted in the very tick in which it was appended to."""
    async with Hub(url) as hub:
        for _ in range(20):
            await hub.create("a", content_type="text/plain")
            results = await asyncio.gather(hub.publish("a", "x" * 10_000), hub.delete("a"), return_exceptions=True)
            assert not [r for r in results if isinstance(r, BaseException) and not isinstance(r, Refusal)]
        statistics = hub.log.statistics()
        assert (statistics.streams, statistics.cached_bytes, statistics.uncommitted_bytes) == (0, 0, 0)


async def test_a_client_publishes_values_as_the_stream_is(url: str) -> None:
    """``str`` is a JSON string in a JSON stream and text in another, one or several; what is no text is refused there."""
    async with Hub(url) as hub:
        await hub.create("texts", content_type="text/plain")
        for stream in ("values", "texts"):
            await hub.client.publish(stream, "one")
            await hub.client.publish(stream, "two", b'"three"')
        for records in ([{"id": 1}], [{"id": 1}, {"id": 2}]):
            with pytest.raises(Conflict):
                await hub.client.publish("texts", *records)
        assert [r.data async for r in hub.read("values", follow=False)] == [b'"one"', b'"two"', b'"three"']
        assert [r.data async for r in hub.read("texts", follow=False)] == [b"one", b"two", b'"three"']


# -- its parts


async def test_a_hub_that_is_only_made_opens_nothing(tmp_path: Path) -> None:
    """Declaring services and subscriptions, mounting and closing leave no trace on disk: the first use opens the store."""
    hub = Hub(f"file:{tmp_path / 'data'}")

    async def handler(value: int) -> None:
        return None

    hub.service("echo")(handler)
    hub.subscribe("a", group="g")(handler)
    hub.asgi()
    await hub.close()
    assert not (tmp_path / "data").exists()


async def test_a_store_that_was_opened_and_never_served_is_closed(tmp_path: Path) -> None:
    """What opened the store, such as a look at its log, need not start the hub: closing lets go of the directory."""
    hub = Hub(f"file:{tmp_path / 'data'}")
    assert hub.log.durable
    with pytest.raises(StoreInUse):
        _ = Hub(hub.url).log
    await hub.close()
    async with Hub(hub.url) as other:
        await other.publish("a", 1)


async def test_what_cannot_be_served_leaves_no_store_open(tmp_path: Path) -> None:
    """A secret that is none is refused before the directory is opened: it is there for others."""
    hub = Hub(f"file:{tmp_path / 'data'}", webhook_secrets=["whsec_short"])
    with pytest.raises(ValueError):
        await hub.start()
    async with Hub(hub.url) as other:
        await other.publish("a", 1)


@pytest.mark.parametrize("used", [True, False])
async def test_a_closed_hub_makes_nothing_anew(url: str, used: bool) -> None:
    """Nothing is opened again by whoever still has a hub that was closed."""
    hub = Hub(url)
    if used:
        await hub.publish("a", 1)
    await hub.close()
    await hub.close()
    with pytest.raises(RuntimeError):
        _ = hub.log
    with pytest.raises(RuntimeError):
        await hub.publish("a", 2)


async def test_a_directory_in_use_can_be_had_later(tmp_path: Path) -> None:
    """A hub whose directory is another's is refused each time that it is used, until it is free."""
    hub = Hub(f"file:{tmp_path / 'data'}")
    async with Hub(hub.url):
        for _ in range(2):
            with pytest.raises(StoreInUse):
                await hub.start()
    await hub.publish("a", 1)
    await hub.close()


async def test_subscriptions_are_taken_up_whenever_they_are_declared(url: str) -> None:
    """Before the parts are made, after it, and after the start."""
    hub = Hub(url)
    seen: asyncio.Queue[str] = asyncio.Queue()

    def declare(name: str) -> None:
        async def handler(value: int) -> None:
            seen.put_nowait(name)

        hub.subscribe("a", group=name)(handler)

    declare("first")
    _ = hub.log
    declare("second")
    async with hub:
        declare("third")
        await hub.publish("a", 1)
        async with asyncio.timeout(30):
            assert {await seen.get() for _ in range(3)} == {"first", "second", "third"}


async def test_a_detached_hub_is_as_new(url: str) -> None:
    """Its parts are whoever's who detached them; it makes others, in another place."""
    hub = Hub(url)
    await hub.publish("a", 1)
    with pytest.raises(RuntimeError):
        hub.place("memory:")
    parts = detach(hub)
    assert parts is not None
    hub.place("memory:")
    async with hub:
        assert hub.log is not parts.log
        with pytest.raises(NotFound):
            await hub.info("a")
    await parts.log.close()
    assert detach(hub) is None
