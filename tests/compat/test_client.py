"""A client, a worker and a ``wayside.js`` of 0.1.0 against today's hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.compat.programs import PROGRAMS
from tests.support.processes import JS, ROOT, Hub, Program, Run, node
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e
Old = Callable[..., Program]
FOLLOWED = ("followed/a", "followed/b", "followed/*")


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    run = Run()
    yield run
    run.dispose()


@pytest.fixture(scope="module")
def start_old(run: Run, old: Path) -> Old:
    """Starts a module of 0.1.0, or one that uses it."""

    def start(module: str, *arguments: str) -> Program:
        return run([sys.executable, "-m", module, *arguments], env={"PYTHONPATH": f"{old}:{ROOT}"})

    return start


@pytest.fixture(scope="module")
def hub(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Today's."""
    return Hub(run, tmp_path_factory.mktemp("hub") / "data")


@pytest.fixture(scope="module")
def worker(start_old: Old, hub: Hub) -> Program:
    """The old one."""
    worker = start_old("wayside", "work", "tests.compat.app:hub", "--hub", hub.url)
    worker.out.wait_for("^working on .*greet")
    return worker


@pytest.fixture(scope="module")
def became(start_old: Old, old: Path, hub: Hub, worker: Program) -> dict[str, str]:
    """What became of each program of the old client."""
    assert worker.running
    program = start_old("tests.compat.programs", hub.url)
    program.wait(120)
    which, *ran = map(json.loads, program.out.lines)
    assert Path(which["package"]).is_relative_to(old), "this is not 0.1.0"
    return {each["program"]: each["error"] for each in ran}


class Page:
    """Node.js with the old ``wayside.js``, connected to a hub: evaluates expressions."""

    def __init__(self, run: Run, old: Path, hub: Hub) -> None:
        module = (old / "wayside" / "browser" / "wayside.js").as_uri()
        flags = ["--experimental-websocket", "--no-warnings"]
        self._program = run([node(), *flags, JS / "node.mjs", module, hub.url])
        self._program.out.wait_for("^ready$")
        self._values = 0

    def evaluate(self, script: str) -> Any:
        self._program.write(f"{script}\n")
        self._values += 1

        def values() -> list[str]:
            return [line for line in self._program.out.lines if line.startswith("value: ")]

        eventually(lambda: len(values()) >= self._values or not self._program.running, script)
        assert len(values()) == self._values, self._program.err.text
        value = values()[-1].removeprefix("value: ")
        return None if value == "undefined" else json.loads(value)


@pytest.fixture(scope="module")
def page(run: Run, old: Path, hub: Hub, worker: Program) -> Page:
    assert worker.running
    return Page(run, old, hub)


@pytest.mark.parametrize("program", [program.__name__ for program in PROGRAMS])
def test_the_old_client_works(became: dict[str, str], program: str) -> None:
    """What it can do with its own hub it can do with today's: see the program of that name."""
    assert not became[program], became[program]


def test_the_old_wayside_js_works(page: Page) -> None:
    """Calls, events, streamed answers, streams, globs and refusals in Node.js."""
    assert page.evaluate("hub.call('greet', 'Ada', {query: {greeting: 'Hi'}})") == "Hi, Ada!"
    assert page.evaluate("hub.call('reverse', new Uint8Array([1, 2, 3])).then((b) => [...b])") == [3, 2, 1]
    assert page.evaluate("collect(hub.stream('words', 'one two'))") == ["one", "two"]
    page.evaluate("hub.submit('count', 2, {key: 'js-1'}).then((call) => void (globalThis.call = call))")
    assert page.evaluate("call.result()") == {"counted": 2}
    for via in ("push", "sse", "long-poll", "poll"):
        kinds = page.evaluate(f"collect(call.events({{via: '{via}'}}), (event) => event.kind)")
        assert [kind for kind in kinds if kind != "queued"] == ["running", "progress", "progress", "done"], via
    assert page.evaluate("attempt(hub.call('fail', 'no')).then((end) => end.code)") == "call-failed"
    assert page.evaluate("attempt(hub.call('nothing')).then((end) => end.code)") == "service-not-found"
    page.evaluate("hub.publish('js/a', {n: 1}, {n: 2})")
    assert page.evaluate("collect(hub.read('js/a'), (record) => record.json().n, 2)") == [1, 2]
    page.evaluate("hub.create('js/b', {content_type: 'application/octet-stream'})")
    page.evaluate("hub.publish('js/b', new Uint8Array([0, 255]))")
    assert page.evaluate("collect(hub.read('js/b'), (record) => [...record.data], 1)") == [[0, 255]]
    assert page.evaluate("collect(hub.read('js/*'), (record) => record.stream, 3)") == ["js/a", "js/a", "js/b"]


def test_all_of_them_go_on_over_a_crash_and_a_stop_of_the_hub(
    hub: Hub, start_old: Old, worker: Program, page: Page
) -> None:
    """Followers of streams and of a glob, in Python and in Node.js, are given each record once and in its order. What the
    worker runs when the hub is killed it tells the next one: it is run once, and ends with its result."""
    for name in "ab":
        hub.create(f"followed/{name}")
    client = start_old("tests.compat.programs", hub.url, "follow")
    page.evaluate("void (globalThis.held = hold(hub.read('followed/*'), (record) => record.json()))")
    answer = httpx.post(f"{hub.url}/v1/service/hold", json=1.5, headers={"Prefer": "respond-async"})
    call = f"{hub.url}{answer.headers['Location']}"
    eventually(lambda: "progress" in httpx.get(call).json(), "the call runs")
    for number, end in enumerate((hub.kill, hub.stop, None)):
        hub.append("followed/a", f'["a{number}"]')
        hub.append("followed/b", f'["b{number}"]')
        lines = 4 * (number + 1)
        eventually(partial(_has, client.out.lines, lines), f"{client.out.text}\n{client.err.text}")
        if end is not None:
            end()
            hub.start()
    seen = {
        name: [line[len(name) + 2 :] for line in client.out.lines if line.startswith(f"{name}: ")] for name in FOLLOWED
    }
    assert seen["followed/a"] == ["a0", "a1", "a2"]
    assert seen["followed/b"] == ["b0", "b1", "b2"]
    eventually(lambda: len(page.evaluate("held.seen")) >= 6, "what came after the stop")
    for globbed in (seen["followed/*"], page.evaluate("held.seen")):
        assert [each for each in globbed if each[0] == "a"] == seen["followed/a"]
        assert [each for each in globbed if each[0] == "b"] == seen["followed/b"]
    assert httpx.get(f"{call}/result", headers={"Prefer": "wait=20"}, timeout=30).json() == "held"
    events = [each["event"] for each in httpx.get(f"{call}?offset=-1").json()]
    assert [event for event in events if event != "queued"] == ["running", "progress", "done"]
    assert worker.running
    client.kill()


def _has(lines: list[str], count: int) -> bool:
    return len(lines) >= count
