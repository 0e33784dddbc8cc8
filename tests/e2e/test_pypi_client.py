"""Other people's client: the PyPI package ``durable-streams``, blocking and asynchronous.

Its version 0.1.0 does not know of closing: a long poll of a closed stream is asked again at once, for ever. So followers
by long poll leave when they have all; followers by SSE end when the hub ends the response.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal
from uuid import uuid4

import httpx
import pytest
from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    DurableStreamError,
    RetentionGoneError,
    SeqConflictError,
    StreamExistsError,
    StreamNotFoundError,
    stream,
)

from tests.support.processes import Hub
from tests.support.waiting import PATIENCE_S, eventually

JSON = "application/json"
BYTES = "application/octet-stream"
Live = Literal["long-poll", "sse"]


@pytest.fixture
def url(shared_hub: Hub) -> str:
    """Where no stream is yet."""
    return shared_hub.stream(f"pypi/{uuid4()}")


@pytest.fixture
def handle(url: str) -> Iterator[DurableStream]:
    """A new JSON stream."""
    with DurableStream.create(url, content_type=JSON) as handle:
        yield handle


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Run something in another thread; what it raises is raised."""
    with ThreadPoolExecutor() as pool:
        future = pool.submit(work)
        yield
        future.result(PATIENCE_S)


def close(url: str) -> None:
    """The client cannot do that."""
    assert httpx.post(url, headers={"Stream-Closed": "true"}).status_code == 204


def test_json(handle: DurableStream) -> None:
    """Values are appended, read back from the start, and from an offset."""
    for number in range(10):
        result = handle.append({"n": number})
    assert handle.head().offset == result.next_offset
    assert handle.head().content_type == JSON
    with handle.stream(live=False) as response:
        assert response.read_json() == [{"n": number} for number in range(10)]
    handle.append([1, 2])
    handle.append("grüße")
    with handle.stream(offset=result.next_offset, live=False) as response:
        assert list(response.iter_json()) == [[1, 2], "grüße"]
        assert response.up_to_date


def test_concurrent_appends_are_batched(handle: DurableStream) -> None:
    """What several threads append at once arrives whole, each value once."""
    threads = [threading.Thread(target=handle.append, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    with handle.stream(live=False) as response:
        assert sorted(response.read_json()) == list(range(50))


def test_bytes(url: str) -> None:
    """Bytes of any value come back as they were."""
    sent = bytes(range(256)) * 300
    with DurableStream.create(url, content_type=BYTES) as handle:
        handle.append(sent[:1000])
        handle.append(sent[1000:])
        with handle.stream(live=False) as response:
            assert response.read_bytes() == sent
    with stream(url, live=False) as response:
        assert b"".join(response) == sent


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_follow(handle: DurableStream, live: Live) -> None:
    """A follower gets history and what is appended meanwhile, each once and in order; closing ends its events."""
    seen: list[int] = []
    for number in range(3):
        handle.append(number)

    def write() -> None:
        eventually(lambda: len(seen) == 3, "history was read")
        with DurableStream.connect(handle.url) as other:
            for number in range(3, 40):
                other.append(number)
        close(handle.url)

    with meanwhile(write), handle.stream(offset="-1", live=live) as response:
        for value in response.iter_json():
            seen.append(value)
            if live == "long-poll" and len(seen) == 40:
                break
    assert seen == list(range(40))


def test_follow_bytes(url: str) -> None:
    """Bytes are followed by long polls."""
    seen = b""
    with DurableStream.create(url, content_type=BYTES) as handle:
        handle.append(b"\x00\x01")

        def write() -> None:
            eventually(lambda: seen, "history was read")
            handle.append(b"\xff\n")

        with meanwhile(write), stream(url, offset="-1", live="long-poll") as response:
            for part in response:
                seen += part
                if len(seen) == 4:
                    break
    assert seen == b"\x00\x01\xff\n"


def test_closed(handle: DurableStream) -> None:
    """A closed stream is read to its end, by a plain read and by events, which end."""
    handle.append(1)
    close(handle.url)
    with handle.stream(live=False) as response:
        assert list(response.iter_json()) == [1]
        assert response.headers["stream-closed"] == "true"
    with handle.stream(offset="-1", live="sse") as response:
        assert list(response.iter_json()) == [1]
        assert response.up_to_date


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_asynchronous(url: str, live: Live) -> None:
    """The asynchronous client appends and follows at once."""
    async with await AsyncDurableStream.create(url, content_type=JSON) as handle:
        seen: list[int] = []
        begun = asyncio.Event()

        async def follow() -> None:
            async with handle.stream(offset="-1", live=live) as response:
                async for value in response.iter_json():
                    seen.append(value)
                    begun.set()
                    if live == "long-poll" and len(seen) == 100:
                        break

        await handle.append(0)
        follower = asyncio.create_task(follow())
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()
            await asyncio.gather(*(handle.append(number) for number in range(1, 100)))
            await asyncio.to_thread(close, url)
            await follower
    assert sorted(seen) == list(range(100))


def test_resume(handle: DurableStream) -> None:
    """Each event tells the offset to go on from."""
    for number in range(5):
        handle.append(number)
    with handle.stream(live=False) as response:
        event = next(iter(response.iter_events(mode="json_batches")))
    handle.append(5)
    assert event.data == list(range(5))
    with handle.stream(offset=event.next_offset, live=False) as response:
        assert response.read_json() == [5]


def test_errors(url: str) -> None:
    """Refusals arrive as the client's own errors."""
    with pytest.raises(StreamNotFoundError):
        DurableStream.connect(url)
    with DurableStream.create(url, content_type=JSON, batching=False) as handle:
        with pytest.raises(StreamExistsError):
            DurableStream.create(url, content_type="text/plain")
        handle.append(1, seq="b")
        with pytest.raises(SeqConflictError):
            handle.append(2, seq="a")
        offset = handle.head().offset
        close(url)
        with pytest.raises(DurableStreamError):
            handle.append(3)
        handle.delete()
        handle.create_stream(content_type=JSON)
        with pytest.raises(RetentionGoneError):
            stream(url, offset=offset, live=False)
        handle.delete()
        with pytest.raises(StreamNotFoundError):
            handle.delete()
