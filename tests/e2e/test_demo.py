"""``wayside serve --demo``: something to look at without writing a line."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from itertools import islice, pairwise

import httpx

from tests.support.events import events_of
from tests.support.processes import WAYSIDE, Hub, Run
from tests.support.waiting import PATIENCE_S, eventually


def test_demo(start_hub: Callable[..., Hub]) -> None:
    """Real figures of this machine come every second on demo/machine, and the hub says how to look at them."""
    hub = start_hub("--demo")
    url = hub.stream("demo/machine")
    hub.program.out.wait_for(f"curl {url}")
    eventually(lambda: httpx.head(url).is_success, "the stream")
    with httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=PATIENCE_S) as response:
        figures = [json.loads(event.data) for event in islice(events_of(response.iter_lines()), 3)]
    times = [dt.datetime.fromisoformat(figure["time"]) for figure in figures]
    assert all(before < after for before, after in pairwise(times)), times
    assert abs((dt.datetime.now(dt.UTC) - times[-1]).total_seconds()) < 60
    for figure in figures:
        assert 0 <= figure["cpu_percent"] <= 100
        assert 0 < figure["memory_percent"] <= 100
        assert figure["network_received_bytes"] >= 0
    assert figures[-1]["network_sent_bytes"] >= figures[0]["network_sent_bytes"]
    assert hub.stop() == 0
    hub.start()
    assert hub.read("demo/machine")[: len(figures)] == figures


def test_demo_in_memory(run: Run) -> None:
    """The demo works where nothing is kept on disk too."""
    program = run([*WAYSIDE, "serve", "--memory", "--demo", "--port", "0"])
    url = program.out.wait_for("^listening on (.*)")[1] + "/v1/stream/demo/machine"
    eventually(lambda: httpx.head(url).is_success, "the stream")
    eventually(lambda: httpx.get(url).json(), "a first figure")
    assert httpx.head(url).headers["Stream-Durability"] == "memory"
