"""Embedded: a hub mounted in a FastAPI or Starlette application under a real uvicorn."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest
from websockets import Subprotocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.command import Command
from tests.support.events import Event, events_of
from tests.support.processes import Program, Run
from tests.support.waiting import PATIENCE_S

V1 = Subprotocol("wayside.v1")


class Application:
    """One of tests.e2e.mounted under uvicorn."""

    def __init__(self, run: Run, name: str, place: str, *options: str) -> None:
        command = [sys.executable, "-m", "uvicorn", f"tests.e2e.mounted:{name}", "--port", "0", *options]
        self.program: Program = run(command, env={"PLACE": place})
        self.url = self.program.err.wait_for(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")[1]
        self.stream = f"{self.url}/wayside/v1/stream"

    def push(self, stream: str, query: str = "") -> ClientConnection:
        return connect(f"ws{self.stream[4:]}/{stream}{query}", subprotocols=[V1], proxy=None)

    def stop(self) -> None:
        self.program.signal(signal.SIGTERM)
        self.program.wait()


@pytest.fixture
def place(tmp_path: Path) -> str:
    return f"file:{tmp_path / 'data'}"


@pytest.fixture(scope="module")
def open_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    run = Run()
    yield Application(run, "shop", f"file:{tmp_path_factory.mktemp('shop') / 'data'}")
    run.dispose()


@pytest.fixture
def shop(open_shop: Application) -> Iterator[Application]:
    """The FastAPI application, with ``lifespan=hub.lifespan``: one for all tests that do not end it, without streams."""
    yield open_shop
    for stream in httpx.get(f"{open_shop.stream}/").json()["streams"]:
        assert httpx.delete(f"{open_shop.stream}/{stream['path']}").status_code == 204


def order(shop: Application, number: int) -> str:
    """Order by the application's own route; returns the offset after it."""
    answer = httpx.post(f"{shop.url}/orders/{number}")
    assert answer.status_code == 200, answer.text
    return cast(str, answer.json()["offset"])


def test_published_in_a_route_read_by_every_pattern(shop: Application) -> None:
    """What a route publishes is read by polling, long polling, SSE and push through the mount, and by another route."""
    first = order(shop, 1)
    url = f"{shop.stream}/orders"
    assert httpx.get(url).json() == [{"number": 1}]
    assert httpx.get(f"{shop.url}/orders").json() == [{"number": 1}]
    with (
        httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=PATIENCE_S) as response,
        httpx.stream("GET", f"{url}?offset={first}&live=sse", timeout=PATIENCE_S) as protocol,
        shop.push("orders") as socket,
    ):
        assert response.headers["content-type"] == "text/event-stream"
        assert socket.subprotocol == V1
        socket.send('{"credit":10}')
        assert json.loads(socket.recv(PATIENCE_S)) == {"offset": first, "data": {"number": 1}}
        plain, dialect = events_of(response.iter_lines()), events_of(protocol.iter_lines())
        assert next(plain) == Event("message", '{"number":1}', first)
        assert next(dialect).type == "control"
        second = order(shop, 2)
        assert next(plain) == Event("message", '{"number":2}', second)
        assert next(dialect) == Event("data", '[{"number":2}]', "")
        assert json.loads(socket.recv(PATIENCE_S)) == {"offset": second, "data": {"number": 2}}
    waited = httpx.get(f"{url}?offset={first}", headers={"Prefer": "wait=20"})
    assert (waited.json(), waited.headers["preference-applied"]) == ([{"number": 2}], "wait=20")
    nothing = httpx.get(f"{url}?offset={second}", headers={"Prefer": "wait=1"})
    assert (nothing.status_code, nothing.headers["stream-next-offset"]) == (204, second)


def test_published_through_the_mount(shop: Application) -> None:
    """The whole protocol works behind a prefix: Location, appends, producers, close, delete."""
    url = f"{shop.stream}/a/b"
    created = httpx.put(url, headers={"Content-Type": "application/json"})
    assert (created.status_code, created.headers["location"]) == (201, url)
    producer = {"Content-Type": "application/json", "Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}
    assert [httpx.post(url, content="1", headers=producer).status_code for _ in range(2)] == [200, 204]
    assert httpx.head(url).headers["content-type"] == "application/json"
    assert [entry["path"] for entry in httpx.get(f"{shop.stream}/").json()["streams"]] == ["a/b"]
    assert httpx.post(url, headers={"Stream-Closed": "true"}).status_code == 204
    read = httpx.get(url)
    assert (read.json(), read.headers["stream-closed"]) == ([1], "true")
    assert httpx.get(url, headers={"If-None-Match": read.headers["etag"]}).status_code == 304
    assert httpx.delete(url).status_code == 204
    assert httpx.get(url).status_code == 404


def test_fork_by_its_mounted_path(shop: Application) -> None:
    """Stream-Forked-From names the source by its URL path, which has the prefix of the mount."""
    first = order(shop, 1)
    order(shop, 2)
    fork = f"{shop.stream}/fork"
    headers = {"Stream-Forked-From": "/wayside/v1/stream/orders", "Stream-Fork-Offset": first}
    answer = httpx.put(fork, headers=headers)
    assert answer.status_code == 201, answer.text
    order(shop, 3)
    assert httpx.get(fork).json() == [{"number": 1}]


@pytest.mark.parametrize("via", ["poll", "long-poll", "sse", "push"])
def test_the_command_line_at_a_mount(shop: Application, via: str) -> None:
    """The ``wayside`` command works with a mounted hub, whose server writes header names in its own way."""
    wayside = Command(f"{shop.url}/wayside")
    wayside("publish", "mine", '{"n": 1}')
    assert wayside("tail", "mine", "--via", via, "--from", "start", "-n", "1") == '{"n": 1}'


def test_a_path_is_one_path(shop: Application) -> None:
    """What is not UTF-8 when percent-decoded is no path, as on the hub's own server."""
    for path in ("z%C3", "z%FF"):
        answer = httpx.put(f"{shop.stream}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (400, "path-invalid")


def test_problems(shop: Application) -> None:
    """Refusals are problem documents, beside the application's own."""
    missing = httpx.get(f"{shop.stream}/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert missing.json()["code"] == "stream-not-found"
    order(shop, 1)
    for refused, code in (
        (httpx.get(f"{shop.stream}/orders?offset=nonsense"), "offset-malformed"),
        (httpx.get(f"{shop.stream}/orders?live=never"), "parameter-invalid"),
        (httpx.get(f"{shop.stream}/a//b"), "path-invalid"),
    ):
        assert (refused.status_code, refused.json()["code"]) == (400, code)
    with pytest.raises(InvalidStatus) as upgrade:
        shop.push("nothing")
    assert upgrade.value.response.status_code == 404
    assert json.loads(upgrade.value.response.body or b"")["code"] == "stream-not-found"
    assert httpx.get(f"{shop.url}/nothing").json() == {"detail": "Not Found"}


def test_operations_are_mounted_too(shop: Application) -> None:
    """Health, metrics and the API's description are below the prefix, the application's own where they were."""
    assert httpx.get(f"{shop.url}/wayside/readyz").json() == {"status": "ready"}
    assert "wayside_" in httpx.get(f"{shop.url}/wayside/metrics").text
    assert "/v1/stream/{name}" in httpx.get(f"{shop.url}/wayside/openapi.json").text
    assert "/orders/{number}" in httpx.get(f"{shop.url}/openapi.json").json()["paths"]


def test_push_with_credit(shop: Application) -> None:
    """No more is sent than was granted, and closing the stream ends the push."""
    for number in range(3):
        order(shop, number)
    with shop.push("orders") as socket:
        socket.send('{"credit":1}')
        assert json.loads(socket.recv(PATIENCE_S))["data"] == {"number": 0}
        with pytest.raises(TimeoutError):
            socket.recv(0.3)
        socket.send('{"credit":9}')
        assert [json.loads(socket.recv(PATIENCE_S))["data"]["number"] for _ in range(2)] == [1, 2]
        httpx.post(f"{shop.stream}/orders", headers={"Stream-Closed": "true"})
        assert json.loads(socket.recv(PATIENCE_S))["closed"] is True
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_restart(run: Run, place: str, ending: str) -> None:
    """Records are there after a restart, in order or not, and offsets still mean the same."""
    shop = Application(run, "shop", place)
    offsets = [order(shop, number) for number in range(3)]
    if ending == "stop":
        shop.stop()
    else:
        shop.program.kill()
    again = Application(run, "shop", place)
    assert httpx.get(f"{again.stream}/orders?offset={offsets[0]}").json() == [{"number": 1}, {"number": 2}]
    assert order(again, 3) > offsets[-1]


def test_without_lifespan(run: Run, place: str) -> None:
    """A hub that nobody starts is started by its first use, and what it acknowledged is there after the end."""
    plain = Application(run, "plain", place)
    assert httpx.get(f"{plain.url}/hello").text == "hello"
    url = f"{plain.stream}/notes"
    assert httpx.put(url, headers={"Content-Type": "text/plain"}).status_code == 201
    assert httpx.post(url, content="one", headers={"Content-Type": "text/plain"}).status_code == 204
    with httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=PATIENCE_S) as response:
        assert next(events_of(response.iter_lines())).data == "one"
    plain.stop()
    assert httpx.get(f"{Application(run, 'plain', place).stream}/notes").text == "one"


def test_two_workers(run: Run, place: str) -> None:
    """Of two workers on one directory one is refused, with the reason and the process that has it.

    That uvicorn then ends the other one as well is its own decision: see the next test.
    """
    command = [sys.executable, "-m", "uvicorn", "tests.e2e.mounted:shop", "--port", "0", "--workers", "2"]
    program = run(command, env={"PLACE": place})
    refused = program.err.wait_for(r"StoreInUse: (.*)")[1]
    assert place.removeprefix("file:") in refused
    assert "process" in refused


def test_a_second_application(run: Run, place: str) -> None:
    """An application on a directory that another has does not start, and costs that one nothing."""
    shop = Application(run, "shop", place)
    second = run([sys.executable, "-m", "uvicorn", "tests.e2e.mounted:shop", "--port", "0"], env={"PLACE": place})
    assert second.wait() != 0
    assert f"in use by another process (pid {shop.program.pid})" in second.err.text
    assert order(shop, 1)


def test_stop_with_followers(run: Run, place: str) -> None:
    """An application that gives its connections a second to end stops in order although somebody follows.

    Without ``--timeout-graceful-shutdown`` uvicorn waits for the followers, and tells the application nothing until
    they are gone.
    """
    shop = Application(run, "shop", place, "--timeout-graceful-shutdown", "1")
    first = order(shop, 1)
    with (
        httpx.stream(
            "GET", f"{shop.stream}/orders", headers={"Accept": "text/event-stream"}, timeout=PATIENCE_S
        ) as response,
        shop.push("orders") as socket,
    ):
        lines = response.iter_lines()
        assert next(events_of(lines)) == Event("message", '{"number":1}', first)
        socket.send('{"credit":10}')
        socket.recv(PATIENCE_S)
        shop.program.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        shop.program.wait()
        with contextlib.suppress(httpx.HTTPError):
            assert not [line for line in lines if line]
    assert "Application shutdown complete" in shop.program.err.text
    again = Application(run, "shop", place)
    assert httpx.get(f"{again.stream}/orders?offset=-1").json() == [{"number": 1}]
