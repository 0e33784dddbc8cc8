"""A real browser: the page comes from another origin than the hub, and uses nothing but what browsers bring."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, serve_pages
from tests.support.processes import Hub, Publisher

PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>Wayside in a browser</title>
<script>
const seen = []
const log = (...words) => console.log(words.join(" "))

function listen(url) {
  const source = new EventSource(url)
  source.onopen = () => log("open")
  source.onerror = () => log("error", source.readyState)
  source.onmessage = (event) => seen.push(JSON.parse(event.data))
  source.addEventListener("closed", (event) => log("closed", event.data))
  return source
}

// Push with credit: two records ahead, one more for each that came; connects again at the offset it has.
function push(url) {
  let offset = "-1"
  const connect = () => {
    const socket = new WebSocket(url + "?offset=" + offset, "wayside.v1")
    let ahead = 0
    socket.onopen = () => { log("open", socket.protocol, offset); ahead = 2; socket.send('{"credit":2}') }
    socket.onmessage = (event) => {
      const envelope = JSON.parse(event.data)
      if (envelope.data === undefined) return log("told", event.data)
      if (--ahead < 0) log("more than was granted")
      seen.push(envelope.data)
      offset = envelope.offset
      ahead += 1
      socket.send('{"credit":1}')
    }
    socket.onclose = (event) => {
      log("close", event.code, event.reason, "at", offset)
      if (event.code !== 1000) setTimeout(connect, 100)
    }
  }
  connect()
}

// Everything else that the protocol needs, through fetch and CORS.
async function publish(url) {
  const type = {"Content-Type": "application/json"}
  const created = await fetch(url, {method: "PUT", headers: {...type, "Stream-TTL": "3600"}})
  const producer = {"Producer-Id": "page", "Producer-Epoch": "0", "Producer-Seq": "0"}
  const first = await fetch(url, {method: "POST", headers: {...type, ...producer}, body: "1"})
  const again = await fetch(url, {method: "POST", headers: {...type, ...producer}, body: "1"})
  const read = await fetch(url, {headers: {Prefer: "wait=5"}})
  const unchanged = await fetch(url, {headers: {"If-None-Match": read.headers.get("ETag")}})
  const missing = await fetch(url + "/nothing")
  const deleted = await fetch(url, {method: "DELETE"})
  return {
    statuses: [created, first, again, read, unchanged, missing, deleted].map((answer) => answer.status),
    offsets: [first, again, read].map((answer) => answer.headers.get("Stream-Next-Offset")),
    applied: read.headers.get("Preference-Applied"),
    records: await read.json(),
    problem: (await missing.json()).code,
  }
}
log("ready")
</script>
"""


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """Serves the page; its URL."""
    with serve_pages({"/": ("text/html; charset=utf-8", PAGE.encode())}) as url:
        yield f"{url}/"


@pytest.fixture
def browser(chromium: Browser, page: str) -> Iterator[Browser]:
    """The browser, with the page freshly loaded."""
    chromium.open(page)
    yield chromium
    chromium.evaluate("goto about:blank")


def test_event_source_over_crashes_and_a_restart(hub: Hub, browser: Browser) -> None:
    """EventSource gets every acknowledged record once and in order, although the hub is killed, and stopped in order,
    in the middle."""
    url = hub.create("crash")
    browser.evaluate(f"void listen('{url}')")
    publisher = Publisher(url)
    publisher.wait_more(50)
    browser.wait_seen(50)
    hub.kill()
    browser.wait_log("error 0", 1)
    hub.start()
    publisher.wait_more(50)
    browser.wait_log("open", 2)
    hub.kill()
    hub.start()
    publisher.wait_more(50)
    browser.wait_log("open", 3)
    assert hub.stop() == 0
    hub.start()
    publisher.wait_more(50)
    count = publisher.stop()
    assert browser.wait_seen(count) == list(range(count))
    assert hub.read("crash") == list(range(count))
    assert publisher.repeated > 0


def test_event_source_of_a_stream_that_closes(hub: Hub, browser: Browser) -> None:
    """EventSource is told that a stream was closed, asks once more, and stops for good."""
    url = hub.create("closing")
    hub.append("closing", "[1, 2]")
    browser.evaluate(f"void (window.source = listen('{url}'))")
    browser.wait_seen(2)
    hub.append("closing", "3")
    hub.close_stream("closing")
    assert browser.wait_seen(3) == [1, 2, 3]
    browser.wait_log("closed", 1)
    browser.wait_log("error 2", 1)
    assert browser.evaluate("source.readyState") == 2
    assert browser.count("open") == 1
    assert browser.count("closed") == 1
    assert browser.evaluate("seen") == [1, 2, 3]


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_push_over_a_restart(hub: Hub, browser: Browser, ending: str) -> None:
    """Push resumes at the offset of the last envelope: no gap, no duplicate, never more than was granted."""
    url = hub.create("push")
    browser.evaluate(f"push('{url.replace('http:', 'ws:')}')")
    publisher = Publisher(url)
    publisher.wait_more(50)
    browser.wait_seen(50)
    if ending == "stop":
        assert hub.stop() == 0
        told = browser.log.wait_for(r"^told (.*)")[1]
        closed = browser.log.wait_for(r"^close 1012 resume=(\S+) at (\S+)$")
        assert json.loads(told) == {"resume": closed[1]}
        assert closed[1] == closed[2]
    else:
        hub.kill()
        browser.log.wait_for(r"^close 1006 ")
    hub.start()
    browser.log.wait_for(r"^open wayside\.v1 [0-9a-f]+_\d+$")
    publisher.wait_more(50)
    count = publisher.stop()
    assert browser.wait_seen(count) == list(range(count))
    hub.close_stream("push")
    browser.log.wait_for(r"^close 1000 closed at=")
    assert browser.evaluate("seen.length") == count
    assert browser.count("more than") == 0


def test_fetch_across_origins(hub: Hub, browser: Browser) -> None:
    """A page of another origin may use every header and read every answer that the protocol has."""
    result = browser.evaluate(f"publish('{hub.stream('page')}')")
    assert result["statuses"] == [201, 200, 204, 200, 304, 404, 204]
    assert len(set(result["offsets"])) == 1
    assert result["applied"] == "wait=5"
    assert result["records"] == [1]
    assert result["problem"] == "stream-not-found"
