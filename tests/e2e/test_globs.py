"""One subscription to many streams, over crashes of the hub; and the command line on a glob."""

from __future__ import annotations

import json
import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx

import wayside
from tests.support.events import events_of
from tests.support.processes import JS, ROOT, WAYSIDE, Hub, Run, node
from tests.support.waiting import eventually

BYTES = "application/octet-stream"
MODULE = ROOT / "src" / "wayside" / "client" / "browser" / "wayside.js"
KILLS = 2


class Publishers(threading.Thread):
    """Appends numbers to streams, of which there are ever more, through crashes; each append is tried once."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(daemon=True)
        self._hub = hub
        self._over = threading.Event()
        self.acknowledged: dict[str, list[int]] = {}
        self.unknown: set[int] = set()
        self.count = 0

    def run(self) -> None:
        chance = random.Random(4)
        with httpx.Client(timeout=30) as client:
            while not self._over.is_set():
                name = f"orders/{chance.randrange(5 + self.count // 20)}"
                number = self.count
                try:
                    answer = client.post(self._hub.stream(name), json=number)
                    if answer.status_code == 404:
                        client.put(self._hub.stream(name), headers={"Content-Type": "application/json"})
                        continue
                except httpx.HTTPError:
                    self.unknown.add(number)
                    self.count += 1
                    continue
                if answer.status_code == 204:
                    self.acknowledged.setdefault(name, []).append(number)
                self.count += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


class Subscriber(threading.Thread):
    """Follows by server-sent events, and resumes by the last id."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(daemon=True)
        self._hub = hub
        self._last = ""
        self.items: list[dict[str, Any]] = []
        self.connections = 0
        self.over = threading.Event()

    def has(self, count: int) -> bool:
        return len(self.items) >= count

    def run(self) -> None:
        while not self.over.is_set():
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last} if self._last else {})
            try:
                with httpx.stream("GET", self._hub.stream("orders/**"), headers=headers, timeout=30) as answer:
                    assert answer.status_code == 200, answer.read()
                    self.connections += 1
                    for event in events_of(answer.iter_lines()):
                        self.items.append(json.loads(event.data))
                        self._last = event.id
                        if self.items[-1]["data"] == "end":
                            return
            except httpx.HTTPError:
                continue


def test_a_subscription_over_crashes_gets_each_record_once(hub: Hub) -> None:
    """The hub is killed again and again; whoever comes back with the last id it was given misses nothing and is given
    nothing twice, in each of the streams, also in those that are made meanwhile."""
    publishers, subscriber = Publishers(hub), Subscriber(hub)
    publishers.start()
    subscriber.start()
    for _ in range(KILLS):
        before = len(subscriber.items)
        eventually(partial(subscriber.has, before + 40), "more records")
        hub.kill()
        hub.start()
    publishers.stop()
    hub.append("orders/0", '"end"')
    subscriber.join(30)
    assert not subscriber.is_alive()
    assert subscriber.connections > KILLS
    got: dict[str, list[int]] = {}
    for item in subscriber.items[:-1]:
        got.setdefault(item["stream"], []).append(item["data"])
    assert len(got) > 10
    for name, numbers in got.items():
        assert numbers == sorted(set(numbers)), name
        certain = [number for number in numbers if number not in publishers.unknown]
        assert certain == publishers.acknowledged.get(name, [])
    assert publishers.acknowledged.keys() <= got.keys()


def test_tail_of_a_glob(run: Run, shared_hub: Hub) -> None:
    """Each record in its envelope, a line each; resumed, another way, from what ``--offsets`` printed."""
    one, two = "tailed/one", "tailed/two"
    shared_hub.create(one)
    shared_hub.append(one, "[1,2]")

    def tail(via: str, *options: str) -> list[str]:
        program = run([*WAYSIDE, "tail", "tailed/**", "--via", via, *options], env={"WAYSIDE_HUB": shared_hub.url})
        assert program.wait() == 0, program.err.text
        return program.out.text.splitlines()

    lines = tail("poll", "--from", "start", "-n", "2", "--offsets")
    shared_hub.create(two)
    shared_hub.append(two, "3")
    rest = tail("push", "--from", lines[-1].split()[0], "-n", "1")
    items = [json.loads(line) for line in [line.partition(" ")[2] for line in lines] + rest]
    assert [(item["stream"], item["data"]) for item in items] == [(one, 1), (one, 2), (two, 3)]


def test_the_blocking_client_reads_on_after_a_restart(hub: Hub) -> None:
    """A loop over a glob goes on where it was."""
    hub.create("orders/1")
    hub.append("orders/1", "[1,2]")
    with wayside.sync.connect(hub.url) as client:
        records = client.read("orders/*")
        seen = [next(records), next(records)]
        hub.kill()
        hub.start()
        hub.create("orders/2")
        hub.append("orders/2", "3")
        seen.append(next(records))
        assert [(record.stream, record.json()) for record in seen] == [
            ("orders/1", 1),
            ("orders/1", 2),
            ("orders/2", 3),
        ]


def test_wayside_js_reads_a_glob(run: Run, shared_hub: Hub) -> None:
    """In Node.js: records as they were published, with the stream of each, resumed by the offset."""
    for name, kind, body in (
        ("json", "application/json", '{"a":1}'),
        ("text", "text/plain", "hé"),
        ("b", BYTES, b"\0\xff"),
    ):
        shared_hub.create(f"js/{name}", kind)
        shared_hub.append(f"js/{name}", body, kind)
    command: list[str | Path] = [
        node(),
        "--experimental-websocket",
        "--no-warnings",
        JS / "node.mjs",
        MODULE.as_uri(),
        shared_hub.url,
    ]
    inside = run(command)
    inside.out.wait_for("^ready$")

    def collect(offset: str, count: int) -> list[list[Any]]:
        seen = len(inside.out.lines)
        each = "(r) => [r.stream, r.text(), [...r.data], r.offset]"
        inside.write(f'collect(hub.read("js/**", {{ offset: "{offset}" }}), {each}, {count})\n')
        eventually(lambda: len(inside.out.lines) > seen, "an answer")
        found: list[list[Any]] = json.loads(inside.out.lines[seen].removeprefix("value: "))
        return found

    found = collect("-1", 3)
    assert {name: text for name, text, *_ in found} == {"js/json": '{"a":1}', "js/text": "hé", "js/b": "\0\ufffd"}
    assert [data for name, _, data, _ in found if name == "js/b"] == [[0, 255]]
    assert collect(found[0][3], 2) == found[1:]
