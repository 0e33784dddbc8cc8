"""wayside.js in a real browser and in Node.js: calls, events and streams, over reloads, restarts and crashes."""

from __future__ import annotations

import base64
import json
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from examples.chat.app import pretend
from tests.support.browser import Browser, serve_pages
from tests.support.processes import JS, ROOT, WAYSIDE, Hub, Program, Publisher, Run, node
from tests.support.waiting import eventually

MODULE = ROOT / "src" / "wayside" / "client" / "browser" / "wayside.js"
VIA = ("push", "sse", "long-poll", "poll")
PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>wayside.js</title>
<script type="module">
import { begin } from "/inside.mjs"
await begin(new URLSearchParams(location.search).get("module"))
</script>
"""


def work(run: Run, hub: Hub) -> Program:
    """A worker with the services of chat_app."""
    program = run([*WAYSIDE, "work", "tests.e2e.chat_app:hub", "--hub", hub.url])
    program.out.wait_for("^working on .*chat.complete")
    return program


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Serves tests/js and a page, from another origin than the hub."""
    with serve_pages({"/": ("text/html; charset=utf-8", PAGE.encode())}, JS) as origin:
        yield origin


class Inside:
    """Where wayside.js runs: opens a page, or starts Node.js, with a client of a hub."""

    def __init__(self, kind: str, run: Run, request: pytest.FixtureRequest) -> None:
        self._kind = kind
        self._run = run
        self._request = request

    def __call__(self, hub: Hub) -> Browser:
        if self._kind == "node":
            command: list[str | Path] = [
                node(),
                "--experimental-websocket",
                "--no-warnings",
                JS / "node.mjs",
                MODULE.as_uri(),
                hub.url,
            ]
            inside = Browser(self._run(command))
            inside.log.wait_for("^ready$")
        else:
            inside = self._request.getfixturevalue("chromium")
            inside.open(f"{self._request.getfixturevalue('origin')}/?module={hub.url}/wayside.js")
        return inside


@pytest.fixture(params=["chromium", "node"])
def inside(request: pytest.FixtureRequest, run: Run) -> Inside:
    return Inside(request.param, run, request)


@pytest.fixture(scope="module")
def app_hub(shared_hub: Hub) -> Iterator[Hub]:
    """A hub with a worker, for the tests that break neither."""
    run = Run()
    work(run, shared_hub)
    yield shared_hub
    run.dispose()


@pytest.fixture
def client(inside: Inside, app_hub: Hub) -> Browser:
    return inside(app_hub)


def gauge(hub: Hub, name: str, pattern: str = "multiplexing") -> float:
    """One of the hub's metrics of a pattern."""
    for line in httpx.get(f"{hub.url}/metrics").text.splitlines():
        if line.startswith(f'{name}{{pattern="{pattern}"}}'):
            return float(line.split()[-1])
    return 0.0


# -- calls


def test_calls(client: Browser) -> None:
    """A service is called with a value, with bytes and with a query, and its result is what it returned."""
    value = {"text": "Grüße \u2028 🌊", "list": [1, -1.5, None, True], "nested": {"": {}}}
    assert client.evaluate(f"hub.call('echo', JSON.parse({json.dumps(json.dumps(value))}))") == value
    assert client.evaluate("hub.call('reverse', new Uint8Array([1, 2, 3])).then((b) => [b.constructor.name, ...b])") == [
        "Uint8Array", 3, 2, 1,
    ]  # fmt: skip
    assert client.evaluate("hub.call('reverse', new Blob(['abc'])).then((b) => new TextDecoder().decode(b))") == "cba"
    assert client.evaluate("hub.call('add', 40, {query: {b: 2}, priority: 3})") == 42
    assert client.evaluate("hub.call('add', undefined, {query: {a: 1}})") == 2
    size = 200_000
    assert client.evaluate(f"hub.call('reverse', new Uint8Array({size})).then((b) => b.length)") == size
    many = "Promise.all(Array.from({length: 300}, (_, i) => hub.call('add', i, {query: {b: 0}})))"
    assert client.evaluate(many) == list(range(300))


def test_errors(client: Browser) -> None:
    """What the hub or a handler refuses is thrown, with its code, status and fields."""
    refused = client.evaluate("attempt(hub.call('order'))")
    assert refused.pop("fields")["left"] == 0
    assert refused == {
        "name": "WaysideError",
        "code": "sold-out",
        "status": 409,
        "detail": "There is none left.",
        "retry": False,
    }
    assert client.evaluate("attempt(hub.call('crash'))")["fields"]["error"] == "ValueError"
    assert client.evaluate("attempt(hub.call('add', 'x'))")["code"] == "invalid-input"
    assert client.evaluate("attempt(hub.call('nothing'))")["status"] == 404
    assert client.evaluate("attempt(collect(hub.stream('nothing')))")["code"] == "service-not-found"
    assert client.evaluate("attempt(collect(hub.get('1a2b3c').events()))")["code"] == "call-not-found"
    assert client.evaluate("attempt(hub.request('HEAD', '/v1/stream/nothing'))")["code"] == "stream-not-found"
    sse = client.evaluate("attempt(collect(hub.get('1a2b3c').events({via: 'sse'})))")
    assert (sse["code"], sse["status"]) == ("call-not-found", 404)


def test_giving_up(client: Browser) -> None:
    """After its timeout, or when its signal is aborted, a call is cancelled; with a key it goes on, and is the same."""
    late = client.evaluate("attempt(hub.call('sleep', 'late', {query: {seconds: 60}, timeout: 50}))")
    assert (late["code"], late["status"], late["retry"]) == ("call-timeout", 504, True)
    aborted = client.evaluate(
        "attempt(hub.call('sleep', 'abort', {query: {seconds: 60}, signal: AbortSignal.timeout(50)}))"
    )
    assert aborted["name"] == "TimeoutError"

    def states() -> list[str]:
        return [call["state"] for call in client.evaluate("hub.calls({service: 'sleep'})")]

    eventually(lambda: "running" not in states(), "both are cancelled")
    key = client.evaluate("globalThis.key = `${Math.random()}`")
    again = f"hub.call('sleep', {json.dumps(key)}, {{query: {{seconds: 0.3}}, key, timeout"
    assert client.evaluate(f"attempt({again}: 50}}))")["code"] == "call-timeout"
    assert client.evaluate(f"{again}: 20000}})") == key
    assert client.evaluate(f"hub.call('runs', {json.dumps(key)})") == 1


def test_a_call_that_was_submitted(client: Browser) -> None:
    """It has a name, a URL, a status and a result; it can be waited for and cancelled, by any handle of its name."""
    assert client.evaluate(
        "hub.submit('sleep', 'one', {query: {seconds: 0.3}}).then((c) => (globalThis.call = c).url)"
    ) == (client.evaluate("hub.url") + "/v1/call/" + client.evaluate("call.id"))
    assert client.evaluate("hub.get(call.id).wait(20000).then((s) => [s.state, s.ended])") == ["done", True]
    assert client.evaluate("call.result()") == "one"
    assert client.evaluate(
        "hub.submit('reverse', new Uint8Array([1, 2])).then((c) => c.result()).then((b) => [...b])"
    ) == [2, 1]
    assert client.evaluate("hub.submit('sleep', 'two', {query: {seconds: 60}}).then((c) => (globalThis.call = c).id)")
    assert client.evaluate("call.wait(20).then((s) => [s.state, s.ended])") == ["running", False]
    assert client.evaluate("attempt(call.result({timeout: 30}))")["code"] == "call-timeout"
    assert client.evaluate("call.cancel().then((s) => s.state)") == "cancelled"
    assert client.evaluate("attempt(call.result())")["code"] == "call-cancelled"
    ended = "hub.submit('echo', 1).then(async (c) => (await c.wait(), c.cancel()))"
    assert client.evaluate(f"attempt({ended})")["code"] == "call-ended"
    assert (
        client.evaluate("hub.submit('echo', 1, {delay: 60000}).then((c) => c.status()).then((s) => s.state)")
        == "queued"
    )
    same = "hub.submit('echo', 1, {key: 'same'}).then((c) => c.id)"
    assert client.evaluate(same) == client.evaluate(same)
    assert client.evaluate("attempt(hub.submit('echo', 2, {key: 'same'}))")["code"] == "idempotency-key-reused"


def test_events_in_four_ways(client: Browser) -> None:
    """Each way gives the same events of a call, and from the offset of any the same rest."""
    client.evaluate("hub.submit('job', 5).then((c) => (globalThis.call = c).id)")
    told = {via: client.evaluate(f"collect(call.events({{via: '{via}', interval: 10}}))") for via in VIA}
    events = told["push"]
    assert [event["kind"] for event in events] == ["running", *["progress"] * 5, "done"]
    assert [event["data"] for event in events][1:] == [
        *({"value": step / 5, "step": f"step {step}"} for step in range(5)),
        {"steps": 5},
    ]
    assert [event["final"] for event in events] == [False] * 6 + [True]
    for via in VIA:
        assert told[via] == events
        for place, event in enumerate(events[:-1]):
            rest = client.evaluate(f"collect(call.events({{via: '{via}', offset: '{event['offset']}'}}))")
            assert rest == events[place + 1 :], (via, place)
    assert client.evaluate("attempt(collect(hub.get(call.id).items()))") == {"value": []}


def test_a_service_that_yields(client: Browser) -> None:
    """What a service yields comes as it comes; from an offset the rest; what it failed with is thrown."""
    client.evaluate("void (globalThis.tokens = hub.stream('chat.complete', 40))")
    assert client.evaluate("collect(tokens, undefined, 15)") == list(range(15))
    assert client.evaluate("tokens.next()") == {"done": True}
    assert client.evaluate("tokens.call.then((c) => collect(c.items({offset: tokens.offset})))") == list(range(15, 40))
    client.evaluate("void (globalThis.held = hold(hub.stream('chat.complete', 4000)))")
    eventually(lambda: client.evaluate("held.seen.length") > 5, "some tokens")
    client.evaluate("held.sequence.call.then((c) => c.cancel()).then(() => {})")
    client.log.wait_for("^ended call-cancelled$")


# -- streams


def test_streams(client: Browser, app_hub: Hub) -> None:
    """Records are published and read: as JSON, as text, as bytes, from the start, an offset or now."""
    name = client.evaluate("globalThis.name = `orders/ü ${Math.random()}`")
    offset = client.evaluate("hub.publish(name, {id: 1}, {id: 2})")
    assert client.evaluate("collect(hub.read(name), (r) => [r.json(), r.offset], 2)")[1] == [{"id": 2}, offset]
    client.evaluate("void (globalThis.held = hold(hub.read(name, {offset: 'now'}), (r) => r.json().id))")
    eventually(lambda: gauge(app_hub, "wayside_followers") >= 1, "a follower")
    client.evaluate("hub.publish(name, {id: 3})")
    eventually(lambda: client.evaluate("held.seen") == [3], "what was published")
    assert client.evaluate(f"collect(hub.read(name, {{offset: '{offset}'}}), (r) => r.text(), 1)") == ['{"id":3}']
    answer = client.evaluate("hub.request('POST', `/v1/stream/${encodeURIComponent(name)}`, {'stream-closed': 'true'})")
    assert answer["status"] == 204
    client.log.wait_for("^ended $")
    assert client.evaluate("collect(hub.read(name), (r) => r.json().id)") == [1, 2, 3]
    assert name

    bytes_ = "hub.create(name = `b${Math.random()}`, {content_type: 'image/png', durability: 'memory', ttl_s: 60})"
    assert client.evaluate(f"{bytes_}.then(() => hub.publish(name, new Uint8Array([0, 255]))).then(Boolean)")
    assert client.evaluate("collect(hub.read(name), (r) => [...r.data], 1)") == [[0, 255]]
    assert client.evaluate("hub.request('HEAD', `/v1/stream/${name}`).then((a) => a.headers['stream-ttl'])") == "60"
    assert client.evaluate("attempt(hub.create(name, {durability: 'fsync'}))")["code"] == "stream-exists"


def test_leaving(client: Browser, app_hub: Hub) -> None:
    """Leaving a loop, `return()` while it waits, and an aborted signal each end a follower on the hub as well."""
    client.evaluate("hub.publish(globalThis.name = `left${Math.random()}`, 1)")
    eventually(lambda: gauge(app_hub, "wayside_followers") == 0, "none is left from before")
    assert client.evaluate("collect(hub.read(name), (r) => r.json(), 1)") == [1]
    eventually(lambda: gauge(app_hub, "wayside_followers") == 0, "a loop was left")

    client.evaluate("void (globalThis.held = hold(hub.read(name)))")
    eventually(lambda: gauge(app_hub, "wayside_followers") == 1, "it follows")
    assert client.evaluate("held.sequence.return()") == {"done": True}
    client.log.wait_for("^ended $")
    eventually(lambda: gauge(app_hub, "wayside_followers") == 0, "it has returned")

    client.evaluate("void (globalThis.stop = new AbortController())")
    for via in VIA:
        client.evaluate("hub.submit('sleep', 'x', {query: {seconds: 60}}).then((c) => (globalThis.call = c).id)")
        client.evaluate(f"void (globalThis.held = hold(call.events({{via: '{via}', signal: stop.signal}})))")
        eventually(lambda: client.evaluate("held.seen.length") == 1, "it runs")
        client.evaluate("(stop.abort(), globalThis.stop = new AbortController(), undefined)")
        eventually(lambda: client.evaluate("held.end?.name") == "AbortError", f"{via} was aborted")
        client.evaluate("call.cancel().then(() => {})")
    eventually(lambda: gauge(app_hub, "wayside_followers") == 0, "all were aborted")


def test_a_reader_that_does_not_read(client: Browser, app_hub: Hub) -> None:
    """A reader that takes nothing is sent what it gave credit for and no more, and holds up no other channel."""
    count = 3000
    client.evaluate("hub.publish(globalThis.name = `slow${Math.random()}`, 'first')")
    client.evaluate(
        f"hub.publish(name, ...Array.from({{length: {count}}}, (_, i) => i + 'y'.repeat(200))).then(() => {{}})"
    )
    before = gauge(app_hub, "wayside_deliveries_total")
    assert client.evaluate("(globalThis.slow = hub.read(name)).next().then(({value}) => value.json())") == "first"
    eventually(lambda: gauge(app_hub, "wayside_deliveries_total") >= before + 256, "its credit is used")
    assert client.evaluate("hub.call('echo', 'prompt')") == "prompt"
    assert gauge(app_hub, "wayside_deliveries_total") == before + 256
    assert client.evaluate(f"collect(hub.read(name), () => 1, {count + 1}).then((all) => all.length)") == count + 1
    assert client.evaluate(f"collect(slow, (r) => parseInt(r.json()), {count})") == list(range(count))


# -- what breaks


def test_a_call_without_a_key_is_never_repeated(inside: Inside, run: Run, hub: Hub) -> None:
    """When the hub is killed under calls, those without a key are of unknown outcome and were run once; one with a key
    is asked for again, and its one run answers."""
    work(run, hub)
    client = inside(hub)
    client.evaluate("void (globalThis.plain = attempt(hub.call('sleep', 'plain', {query: {seconds: 2}})))")
    client.evaluate("void (globalThis.keyed = attempt(hub.call('sleep', 'keyed', {query: {seconds: 2}, key: 'k'})))")
    eventually(
        lambda: client.evaluate("Promise.all(['plain', 'keyed'].map((n) => hub.call('runs', n)))") == [1, 1], "both"
    )
    hub.kill()
    broken = client.evaluate("plain")
    assert (broken["name"], broken["code"], broken["status"]) == ("UnknownOutcome", "unknown-outcome", 502)
    client.evaluate("void (globalThis.later = attempt(hub.call('echo', 'said while there is no hub')))")
    hub.start()
    assert client.evaluate("later") == {"value": "said while there is no hub"}
    assert client.evaluate("keyed") == {"value": "keyed"}
    assert client.evaluate("hub.call('runs', 'plain')") == 1
    assert client.evaluate("hub.call('runs', 'keyed')") == 1


def test_a_reader_over_crashes(inside: Inside, hub: Hub) -> None:
    """A reader gets every acknowledged record once and in order, although the hub is killed and stopped meanwhile."""
    client = inside(hub)
    publisher = Publisher(hub.create("crash"))
    client.evaluate("void (globalThis.held = hold(hub.read('crash'), (r) => r.json()))")
    for end in (hub.kill, hub.stop, hub.kill):
        publisher.wait_more(50)
        seen = client.evaluate("held.seen.length")
        eventually(lambda seen=seen: client.evaluate("held.seen.length") > seen, "it reads on")  # type: ignore[misc]
        end()
        hub.start()
    publisher.wait_more(50)
    count = publisher.stop()
    hub.close_stream("crash")
    client.log.wait_for("^ended $")
    assert client.evaluate("held.seen") == list(range(count))


def test_a_hub_that_stops(inside: Inside, run: Run, hub: Hub) -> None:
    """While a hub stops, what runs is answered; what is said then waits for the next one, and nothing fails."""
    work(run, hub)
    client = inside(hub)
    client.evaluate("hub.publish('calm', 1)")
    client.evaluate("void (globalThis.running = attempt(hub.call('sleep', 'x', {query: {seconds: 2}})))")
    eventually(lambda: client.evaluate("hub.call('runs', 'x')") == 1, "it runs")
    hub.program.signal(signal.SIGTERM)
    hub.program.err.wait_for("draining")
    client.evaluate("void (globalThis.later = attempt(hub.call('echo', 'later')))")
    client.evaluate("void (globalThis.held = hold(hub.read('calm'), (r) => r.json()))")
    assert client.evaluate("running") == {"value": "x"}
    assert hub.program.wait() == 0
    hub.start()
    assert client.evaluate("later") == {"value": "later"}
    eventually(lambda: client.evaluate("held.seen") == [1], "it reads")


def test_events_in_four_ways_over_a_crash(inside: Inside, run: Run, hub: Hub) -> None:
    """The hub is killed under a call that yields: in each of the four ways every token is told once, of one attempt."""
    work(run, hub)
    client = inside(hub)
    count = 400
    client.evaluate(f"hub.submit('chat.complete', {count}).then((c) => (globalThis.call = c).id)")
    client.evaluate(f"void (globalThis.all = {json.dumps(VIA)}.map((via) => hold(call.items({{via, interval: 20}}))))")
    eventually(lambda: client.evaluate("Math.min(...all.map((each) => each.seen.length))") > 50, "all hear of it")
    hub.kill()
    hub.start()
    eventually(lambda: client.evaluate("all.every((each) => each.end)"), "all are at the end")
    for via, seen in zip(VIA, client.evaluate("all.map((each) => each.seen)"), strict=True):
        assert seen == list(range(count)), via
    assert client.evaluate("call.status().then((s) => [s.state, s.attempt, s.items])") == ["done", 1, count]


def test_no_hub(inside: Inside, hub: Hub) -> None:
    """Where there is no hub, connecting fails at once; one that is lost for too long fails what waits for it."""
    client = inside(hub)
    client.evaluate("connect(hub.url, {retry: 300}).then((hub) => { globalThis.brief = hub })")
    client.evaluate("void (globalThis.held = hold(brief.get('x').events({via: 'push'})))")
    eventually(lambda: client.evaluate("held.end?.code") == "call-not-found", "it is refused")
    hub.append(hub.create("calm").rpartition("/")[2], "1")
    client.evaluate("void (globalThis.held = hold(brief.read('calm')))")
    eventually(lambda: client.evaluate("held.seen.length") == 1, "it reads")
    hub.kill()
    assert client.evaluate("attempt(connect(hub.url))")["code"] == "unreachable"
    eventually(lambda: client.evaluate("held.end?.code") == "unreachable", "it gives up")
    assert client.evaluate("hub.close()") is None
    assert client.evaluate("attempt(hub.call('echo', 1))")["code"] == "client-closed"


# -- the conversation that goes on


def test_a_conversation_survives_reloads_and_crashes(chromium: Browser, origin: str, run: Run, hub: Hub) -> None:
    """A page that streams tokens loads itself anew, is closed and opened, and the hub is killed and stopped meanwhile: its
    lives together have each token once, in order, of one attempt."""
    worker = work(run, hub)
    count = 1000
    url = f"{origin}/chat.html?hub={hub.url}&count={count}&pause=0.005&every=130"
    chromium.evaluate(f"goto {origin}/inside.mjs")
    chromium.evaluate("localStorage.clear()")
    already = len(chromium.log.lines)

    def told(count: int) -> None:
        """Wait until the page has said that it has so many tokens; the last words of a life may be lost."""

        def numbers() -> list[int]:
            said = [line.split() for line in chromium.log.lines[already:]]
            return [int(words[-1]) for words in said if words[0] in ("tokens", "life")]

        eventually(lambda: max(numbers(), default=0) >= count, f"{count} tokens\n{chromium.log.text}")
        assert "done 1" not in chromium.log.lines[already:]

    chromium.evaluate(f"goto {url}")
    told(200)
    hub.kill()
    hub.start()
    told(350)
    chromium.evaluate("goto about:blank")
    chromium.evaluate(f"goto {url}")
    told(475)
    assert hub.stop() == 0
    hub.start()
    told(650)
    hub.kill()
    hub.start()
    chromium.log.wait_for("^done 1$")
    kept = chromium.evaluate("JSON.parse(localStorage.chat)")
    assert kept["tokens"] == list(range(count))
    assert kept["lives"] >= 6
    assert worker.running
    chromium.evaluate("goto about:blank")


CLIENT = """
import asyncio, os, sys
import wayside

async def follow(hub, identity, via, path):
    lines = open(path).read().split("\\n")[:-1] if os.path.exists(path) else []
    offset = lines[-1].split()[0] if lines else "-1"
    with open(path, "a") as file:
        async for event in hub.get(identity).events(via, offset=offset, interval=0.2):
            value = event.data if event.kind == "item" else event.kind
            file.write(f"{event.offset} {value}\\n")
            file.flush()

async def main(url, identity, directory, *ways):
    async with wayside.connect(url) as hub:
        await asyncio.gather(*(follow(hub, identity, via, f"{directory}/{via}") for via in ways))
    print("done", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_python_client_goes_on_where_it_was(run: Run, hub: Hub, tmp_path: Path) -> None:
    """A client that is killed and started again from its last offsets, while the hub is killed too, has each token once in
    each of the four ways."""
    work(run, hub)
    count = 400
    answer = httpx.post(
        f"{hub.url}/v1/service/chat.complete?pause=0.005",
        json=count,
        headers={"Prefer": "respond-async", "Idempotency-Key": "one"},
    )
    identity = answer.headers["Location"].rpartition("/")[2]
    command: list[str | Path] = [sys.executable, "-c", CLIENT, hub.url, identity, tmp_path, *VIA]

    def lines(via: str) -> list[str]:
        kept = tmp_path / via
        return kept.read_text().splitlines() if kept.exists() else []

    for goal in (60, 140, 220):
        client = run(command)
        eventually(lambda goal=goal: all(len(lines(via)) > goal for via in VIA), f"{goal} events")  # type: ignore[misc]
        client.kill()
        if goal == 140:
            hub.kill()
            hub.start()
    client = run(command)
    client.out.wait_for("^done$")
    for via in VIA:
        assert [line.split()[1] for line in lines(via)] == ["running", *map(str, range(count)), "done"], via


def test_the_example(chromium: Browser, start_hub: Callable[..., Hub]) -> None:
    """The chat under examples/, opened as a file, tells the whole answer although the hub that gives it is killed."""
    hub = start_hub("examples.chat.app:hub")
    chromium.evaluate(f"goto {(ROOT / 'examples' / 'chat' / 'index.html').as_uri()}?hub={hub.url}")
    chromium.evaluate("sessionStorage.clear()")
    eventually(lambda: chromium.evaluate("!document.querySelector('#send').disabled"), "a connection")
    chromium.evaluate("void (document.querySelector('input').value = 'Well?')")
    chromium.evaluate("document.querySelector('#send').click()")
    said = "document.querySelector('article:last-of-type').textContent"
    eventually(lambda: len(chromium.evaluate(said)) > 60, "some words")
    hub.kill()
    hub.start()
    eventually(lambda: chromium.evaluate("!document.querySelector('#send').hidden"), "the end of the answer")
    assert chromium.evaluate(said) == "".join(pretend("Well?"))
    chromium.evaluate("goto about:blank")


# -- how it is served, and MessagePack


def test_served(shared_hub: Hub) -> None:
    """The hub serves the module and what it imports, to any origin; a browser that has it is told that it did not
    change."""
    for name in ("wayside.js", "wayside/connection.js", "wayside/msgpack.js"):
        url = f"{shared_hub.url}/{name}"
        answer = httpx.get(url, headers={"Origin": "http://elsewhere"})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.content == (MODULE.parent / name).read_bytes()
        assert httpx.get(url, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
        assert httpx.head(url).headers["ETag"] == answer.headers["ETag"]
        assert httpx.post(url).status_code == 405
        assert len(answer.text.splitlines()) <= 500


def test_a_mounted_hub(chromium: Browser, origin: str, run: Run) -> None:
    """Loaded from a hub inside another application, it finds that hub by itself."""
    program = run([sys.executable, "-m", "uvicorn", "tests.e2e.mounted:shop", "--port", "0"], env={"PLACE": "memory:"})
    url = program.err.wait_for(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")[1]
    chromium.open(f"{origin}/?module={url}/wayside/wayside.js")
    assert chromium.evaluate("hub.url") == f"{url}/wayside"
    chromium.evaluate("hub.publish('orders', {number: 1})")
    assert httpx.get(f"{url}/orders").json() == [{"number": 1}]
    assert chromium.evaluate("collect(hub.read('orders'), (r) => r.json(), 1)") == [{"number": 1}]
    chromium.evaluate("goto about:blank")


def test_messagepack(client: Browser) -> None:
    """Its MessagePack is msgspec's, at every boundary of every type."""
    edges = [2**n + d for n in (5, 7, 8, 15, 16, 31, 32, 53, 62, 63) for d in (-1, 0, 1)]
    lengths = (0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536)
    values: list[Any] = [
        None, True, False, 0, *edges, *(-edge for edge in edges if edge <= 2**63), 2**64 - 1, 0.5, -1e300, 5e-324,
        *("ü" * (length // 2) + "x" * (length % 2) for length in lengths), "🌊\0",
        *(b"\xff" * length for length in lengths),
        *([1] * length for length in lengths),
        *({str(n): n for n in range(length)} for length in (0, 1, 15, 16, 65536)),
    ]  # fmt: skip
    client.evaluate("void (globalThis.bytes = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0)))")
    for value in values:
        packed = msgspec.msgpack.encode(value)
        again = f"Array.from(msgpack.encode(msgpack.decode(bytes('{base64.b64encode(packed).decode()}'))))"
        assert msgspec.msgpack.decode(bytes(client.evaluate(again))) == value, repr(value)[:80]
    for when in (
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2026, 11, 24, 1, 2, 3, 4000, UTC),
        datetime(1900, 1, 1, tzinfo=UTC),
    ):
        stamp = base64.b64encode(msgspec.msgpack.encode(when)).decode()
        text = client.evaluate(f"msgpack.decode(bytes('{stamp}'))")
        assert datetime.fromisoformat(text) == when
    for bad in (b"\xc4\x05ab", b"\x92\x01", b""):
        failed = client.evaluate(f"attempt((async () => msgpack.decode(bytes('{base64.b64encode(bad).decode()}')))())")
        assert "value" not in failed
