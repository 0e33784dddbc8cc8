"""A hub that is killed again and again while others publish with message ids, now and later, and repeat what was not
answered: each record is there once, in its publisher's order.

The publishers are the oracle: they know what they were answered. ``WAYSIDE_CRASH_KILLS`` sets how often it is killed.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.test_kill import JSON_HEADERS, LOST, RUN_S, SEED, Hub, connected

KILLS = int(os.environ.get("WAYSIDE_CRASH_KILLS", "12"))
DELAY_S = 0.3
"""At most; long enough that the hub is killed meanwhile, often."""

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(max(300, 3 * KILLS))]


class Publisher(threading.Thread):
    """Publishes numbers to ``stream``, each under its id, until it is answered; the next one then."""

    def __init__(self, hub: Hub, stream: str, *, delayed: bool) -> None:
        super().__init__(daemon=True)
        self._hub = hub
        self._delayed = delayed
        self._random = random.Random(f"{SEED}-{stream}")
        self.stream = stream
        self.answered: list[str] = []
        """The offset of each number, or when it is due."""
        self.duplicates = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while (address := self._hub.address()) is not None:
                try:
                    with connected(address) as client:
                        while True:
                            self._publish(client)
                except LOST:
                    continue
        except BaseException as error:
            self.error = error

    def _publish(self, client: object) -> None:
        number = len(self.answered)
        headers = JSON_HEADERS | {"Wayside-Message-Id": f"n-{number}"}
        if self._delayed:
            headers |= {"Wayside-Delay": f"{self._random.uniform(0.01, DELAY_S):.3f}"}
        reply = client.ask("POST", self.stream, b"%d" % number, headers)  # type: ignore[attr-defined]
        assert reply.status == (202 if self._delayed else 204), (reply.status, reply.body)
        self.duplicates += reply.headers.get("wayside-duplicate") == "true"
        self.answered.append(reply.headers["wayside-due" if self._delayed else "stream-next-offset"])


def test_each_is_there_once(tmp_path: Path) -> None:
    """Whatever was answered, or not: none lost, none doubled; those that are not delayed in order, at their offsets."""
    hub = Hub(tmp_path)
    address = hub.start()
    publishers = [Publisher(hub, f"s{number}", delayed=number > 1) for number in range(4)]
    with connected(address) as client:
        for publisher in publishers:
            assert client.ask("PUT", publisher.stream, headers=JSON_HEADERS).status == 201
    for publisher in publishers:
        publisher.start()
    pauses = random.Random(SEED)
    for _ in range(KILLS):
        hub.release(address)
        time.sleep(pauses.uniform(*RUN_S))
        hub.kill()
        address = hub.start()
    hub.release(address)
    while any(len(publisher.answered) < 10 for publisher in publishers):
        assert all(publisher.error is None for publisher in publishers), [p.error for p in publishers]
        time.sleep(0.01)
    hub.stop()
    hub.kill()  # the last of them with what is still delayed
    for publisher in publishers:
        publisher.join(30)
        assert publisher.error is None
    address = hub.start()
    try:
        with connected(address) as client:
            for publisher in publishers:
                numbers: list[int] = []
                deadline = time.monotonic() + 60
                while len(set(numbers)) < len(publisher.answered) and time.monotonic() < deadline:
                    numbers = json.loads(client.ask("GET", publisher.stream).body)
                counts = Counter(numbers)
                lost = [number for number in range(len(publisher.answered)) if number not in counts]
                doubled = [number for number, count in counts.items() if count > 1]
                unknown = [number for number in counts if number > len(publisher.answered)]
                assert (lost, doubled, unknown) == ([], [], []), publisher.stream
                if publisher.stream in ("s0", "s1"):
                    assert numbers == sorted(numbers)
                    positions = [int(offset.rpartition("_")[2]) for offset in publisher.answered]
                    assert positions == list(range(1, len(positions) + 1))
    finally:
        hub.kill()
