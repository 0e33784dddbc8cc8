"""The first five minutes with a hub: nothing but curl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import uuid4

import pytest

from tests.support.processes import Hub, Program, Run, tool
from tests.support.waiting import eventually

JSON = ("-H", "Content-Type: application/json")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


class Curl:
    """``curl -i``, with the answer taken apart."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._program = tool("curl")

    def start(self, *arguments: str) -> Program:
        return self._run([self._program, "-sS", "-N", *arguments])

    def __call__(self, *arguments: str) -> Answer:
        program = self.start("-i", *arguments)
        assert program.wait() == 0, program.err.text
        head, _, body = program.out.text.replace("\r", "").partition("\n\n")
        status, *fields = head.split("\n")
        pairs = (field.partition(": ") for field in fields)
        return Answer(int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, body)


@pytest.fixture
def curl(run: Run) -> Curl:
    return Curl(run)


@pytest.fixture
def orders(shared_hub: Hub, curl: Curl) -> str:
    """The URL of a JSON stream that curl has created."""
    url = shared_hub.stream(f"orders/{uuid4()}")
    assert curl("-X", "PUT", *JSON, url).status == 201
    return url


def test_create(shared_hub: Hub, curl: Curl) -> None:
    """A stream is created by PUT, told where it is, and created only once."""
    url = shared_hub.stream("orders/eu/42")
    created = curl("-X", "PUT", *JSON, url)
    assert created.status == 201
    assert created.headers["location"] == url
    assert created.headers["content-type"] == "application/json"
    assert curl("-X", "PUT", *JSON, url).status == 200
    refused = curl("-X", "PUT", "-H", "Content-Type: text/plain", url)
    assert refused.status == 409
    assert refused.headers["content-type"] == "application/problem+json"


def test_append_and_poll(orders: str, curl: Curl) -> None:
    """What is appended is read from the start, and from an offset only what came after it."""
    first = curl("-d", '{"id": 1}', *JSON, orders)
    assert first.status == 204
    curl("-d", '[{"id": 2}, {"id": 3}]', *JSON, orders)
    everything = curl(orders)
    assert everything.status == 200
    assert json.loads(everything.body) == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert everything.headers["stream-up-to-date"] == "true"
    rest = curl(f"{orders}?offset={first.headers['stream-next-offset']}")
    assert json.loads(rest.body) == [{"id": 2}, {"id": 3}]
    nothing = curl(f"{orders}?offset={rest.headers['stream-next-offset']}")
    assert json.loads(nothing.body) == []
    unchanged = curl("-H", f"If-None-Match: {everything.headers['etag']}", orders)
    assert (unchanged.status, unchanged.body) == (304, "")


def test_append_text_from_a_file(shared_hub: Hub, curl: Curl) -> None:
    """``curl -T - -X POST`` appends what it reads, of a length it does not know before (chunked)."""
    url = shared_hub.stream("log")
    curl("-X", "PUT", "-H", "Content-Type: text/plain", url)
    sender = curl.start("-X", "POST", "-H", "Content-Type: text/plain", "-T", "-", url)
    sender.write("a line\n")
    sender.write("another\n")
    sender.stdin.close()
    assert sender.wait() == 0
    assert curl(url).body == "a line\nanother"


def test_long_poll(orders: str, curl: Curl) -> None:
    """``Prefer: wait=20`` holds the answer until there is something, and 204 says that there was nothing."""
    waiting = curl.start("-i", "-H", "Prefer: wait=20", f"{orders}?offset=now")
    eventually(lambda: _waiting(orders, curl), "a long poll is held")
    assert waiting.running
    assert not waiting.out.lines
    curl("-d", '{"id": 4}', *JSON, orders)
    assert waiting.wait() == 0
    assert "Preference-Applied: wait=20" in waiting.out.text
    assert json.loads(waiting.out.lines[-1]) == [{"id": 4}]
    nothing = curl("-H", "Prefer: wait=1", f"{orders}?offset=now")
    assert (nothing.status, nothing.body) == (204, "")
    assert nothing.headers["stream-next-offset"] == curl("-I", orders).headers["stream-next-offset"]


def _waiting(orders: str, curl: Curl) -> bool:
    """Whether somebody else is connected beside the one who asks."""
    base = orders.partition("/v1/")[0]
    lines = curl(f"{base}/metrics").body.splitlines()
    return any(line.startswith("wayside_connections ") and float(line.split()[1]) >= 2 for line in lines)


def test_sse(orders: str, curl: Curl) -> None:
    """``Accept: text/event-stream`` gives history and what comes then; the id resumes; closing ends it."""
    curl("-d", '{"id": 1}', *JSON, orders)
    live = curl.start("-H", "Accept: text/event-stream", orders)
    live.out.wait_for(r'^data:\{"id": 1\}')
    curl("-d", '{"id": 2}', *JSON, orders)
    live.out.wait_for(r'^data:\{"id": 2\}')
    first = live.out.wait_for("^id: (.+)")[1]
    curl("-X", "POST", "-H", "Stream-Closed: true", orders)
    assert live.wait() == 0
    assert "event: closed" in live.out.lines
    resumed = curl("-H", "Accept: text/event-stream", "-H", f"Last-Event-ID: {first}", orders)
    assert '{"id": 2}' in resumed.body
    assert '{"id": 1}' not in resumed.body
    last = curl("-I", orders).headers["stream-next-offset"]
    assert curl("-H", "Accept: text/event-stream", "-H", f"Last-Event-ID: {last}", orders).status == 204


def test_head(orders: str, curl: Curl) -> None:
    """HEAD tells what a stream is."""
    offset = curl("-d", '{"id": 1}', *JSON, orders).headers["stream-next-offset"]
    head = curl("-I", orders)
    assert (head.status, head.body) == (200, "")
    assert head.headers["content-type"] == "application/json"
    assert head.headers["stream-next-offset"] == offset
    assert head.headers["stream-durability"] == "fsync"
