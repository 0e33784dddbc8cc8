"""Other people's client: the npm package ``@durable-streams/client`` (tests/js/client.mjs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.processes import JS, Hub, Run, node

Use = Callable[..., str]


@pytest.fixture
def use(run: Run, shared_hub: Hub) -> Use:
    """Runs one use of the client on a new stream, and returns its URL."""
    program = node("@durable-streams/client")

    def start(name: str, *arguments: str) -> str:
        url = shared_hub.stream(f"npm/{name}/{uuid4()}")
        script = run([program, JS / "client.mjs", name, url, *arguments])
        assert script.wait() == 0, script.err.text
        return url

    return start


def numbers(url: str) -> Any:
    return [record["n"] for record in httpx.get(url).json()]


def test_json(use: Use) -> None:
    """Appends one by one and batched are read back, whole and from an offset."""
    assert sorted(numbers(use("json"))) == list(range(63))


def test_bytes(use: Use) -> None:
    """Bytes of any value, also appended as a stream, come back as they were."""
    assert httpx.get(use("bytes")).content == bytes(index % 251 for index in range(70_000))


def test_text(use: Use) -> None:
    """Text beyond ASCII comes back as it was."""
    assert httpx.get(use("text")).content.decode() == "grüße\nsecond line\n"


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_follow(use: Use, live: str) -> None:
    """A follower gets history and what is appended meanwhile, each once and in order, and ends with the stream."""
    assert numbers(use("follow", live)) == list(range(41))


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_follow_bytes(use: Use, live: str) -> None:
    """Bytes are followed as they are, base64 on the wire where events need it."""
    assert httpx.get(use("followBytes", live)).content == bytes([0, 1, 2, 255, 254, 10, 13])


def test_close(use: Use) -> None:
    """A closed stream has an end, which every read tells; appends to it are refused."""
    assert httpx.head(use("close")).headers["Stream-Closed"] == "true"


def test_idempotent_producer(use: Use) -> None:
    """Several batches in flight arrive once and in order, and a producer of an older epoch is fenced."""
    assert numbers(use("producer")) == list(range(502))


def test_errors(use: Use) -> None:
    """Refusals arrive as errors with the status that tells them apart, and change nothing."""
    assert httpx.head(use("errors")).status_code == 404
