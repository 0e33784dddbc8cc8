"""A hub that is killed again and again while others publish: nothing that it acknowledged may be lost.

Every publisher keeps its own record of what was acknowledged, and at which offset. The hub is killed by SIGKILL
at random moments, also while it starts. ``WAYSIDE_CRASH_KILLS`` sets how often, ``WAYSIDE_CRASH_SEED`` repeats a run.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import pytest

from tests.support.events import EventParser
from wayside.storage.embedded.store import Store

KILLS = int(os.environ.get("WAYSIDE_CRASH_KILLS", "100"))
SEED = int(os.environ.get("WAYSIDE_CRASH_SEED", str(random.SystemRandom().randrange(1 << 32))))
RUN_S = (0.01, 0.25)
"""How long the hub lives before it is killed."""
STARTING_KILLS = 0.1
"""The part of the kills that hits a hub while it starts."""
FULL_CHECK = 25
"""Everything is read back from the start after so many kills; what is new after each."""
START_SLICES = 120
"""Seconds that a hub may take to start."""
MEMORY_BYTES, PIECE_BYTES = 64 * 1024, 256 * 1024
JSON_HEADERS = {"Content-Type": "application/json"}
LOST = (OSError, http.client.HTTPException)

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(max(300, 3 * KILLS))]


class Hub:
    """The process under test, and where it listens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recoveries_s: list[float] = []
        self.kills = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._address: tuple[str, int] | None = None
        self._stopped = False

    def spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "wayside", "serve", "--port", "0", "--data", str(self.directory)]
        command += ["--body-memory-bytes-max", str(MEMORY_BYTES), "--log-level", "error"]
        environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        return self._process

    def start(self) -> tuple[str, int]:
        """Start it; returns its address once it listens. Publishers are not let loose yet."""
        began = time.perf_counter()
        process = self.spawn()
        assert process.stdout is not None
        # Counted in slices: a machine that stands still for a minute has waited for one of them, and the hub for none.
        ready = any(select.select([process.stdout], [], [], 1)[0] for _ in range(START_SLICES))
        line = process.stdout.readline().decode() if ready else ""
        if not line.startswith("listening on http://"):
            waited_s = time.perf_counter() - began
            process.send_signal(signal.SIGABRT)  # where it hangs, it says where
            said = line + process.stdout.read().decode(errors="replace")
            pytest.fail(f"the hub did not start in {waited_s:.1f} s, and ended with {process.wait()}: {said}")
        self.recoveries_s.append(time.perf_counter() - began)
        host, _, port = line.removeprefix("listening on http://").strip().rpartition(":")
        return host, int(port)

    def release(self, address: tuple[str, int]) -> None:
        """Let the publishers have it."""
        with self._changed:
            self._address = address
            self._changed.notify_all()

    def kill(self) -> None:
        with self._changed:
            self._address = None
        process = self._process
        assert process is not None
        assert process.poll() is None or process.returncode == -signal.SIGKILL, "the hub ended by itself"
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self.kills += 1

    def stop(self) -> None:
        """The publishers may go home."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def address(self) -> tuple[str, int] | None:
        """Where it listens; waits until it does. None: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._address is not None)
            return None if self._stopped else self._address


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def next_offset(self) -> str:
        return self.headers["stream-next-offset"]


class Client:
    """One connection. Raises ``LOST`` errors when the hub goes."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self._connection = http.client.HTTPConnection(*address, timeout=20)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        self._connection.request(method, f"/v1/stream/{path}", body, headers or {})
        response = self._connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def events(self, path: str, until: str) -> Iterator[tuple[str, bytes]]:
        """Offset and record of each event from the start to an offset."""
        self._connection.request("GET", f"/v1/stream/{path}", None, {"Accept": "text/event-stream"})
        response = self._connection.getresponse()
        assert response.status == 200
        parser = EventParser()
        while parser.last_id != until:
            parser.feed(response.readline())
            assert not response.isclosed(), "the events ended before the tail"
            while parser.events:
                event = parser.events.popleft()
                yield event.id, event.data.encode()

    def close(self) -> None:
        self._connection.close()


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[Client]:
    client = Client(address)
    try:
        yield client
    finally:
        client.close()


def position_of(token: str) -> int:
    return int(token.rpartition("_")[2])


class Publisher(threading.Thread):
    """Publishes whenever there is a hub. ``check`` is called while there is one and nobody publishes."""

    stream = ""
    headers: dict[str, str] = JSON_HEADERS

    def __init__(self, hub: Hub, number: int) -> None:
        super().__init__(daemon=True)
        self.hub = hub
        self.number = number
        self.random = random.Random(f"{SEED}-{type(self).__name__}-{number}")
        self.failure: BaseException | None = None
        self.acknowledged = 0
        self.idle = threading.Lock()
        """Held while a request is under way, or its outcome is being written down."""

    def run(self) -> None:
        try:
            while (address := self.hub.address()) is not None:
                try:
                    with connected(address) as client:
                        while True:
                            with self.idle:
                                self.publish(client)
                except LOST:
                    time.sleep(0.005)  # it is being killed
        except BaseException as error:
            self.failure = error

    def publish(self, client: Client) -> None:
        raise NotImplementedError

    def check(self, client: Client, *, full: bool) -> None:
        raise NotImplementedError


class Ledger:
    """What is known of one ``fsync`` JSON stream: which record is at which position, for ever."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.epoch = ""
        self.records: dict[int, Any] = {}
        """Position after a record to the record: acknowledged, or seen by a reader."""
        self.end = 0
        """The last of these positions."""
        self.checked = 0
        self._lock = threading.Lock()

    def note(self, token: str, records: list[Any]) -> None:
        """``records`` are the last ones before an offset that the hub gave out."""
        with self._lock:
            epoch, end = token.split("_")[0], position_of(token)
            self.epoch = self.epoch or epoch
            assert self.epoch == epoch, f"{self.stream} has another epoch"
            for at, record in enumerate(records, end - len(records) + 1):
                self.end = max(self.end, at)
                known = self.records.setdefault(at, record)
                assert known == record, f"offset {at} of {self.stream} was {known}, and is {record}"

    def check(self, client: Client, *, full: bool) -> list[Any]:
        """All that was acknowledged or seen is there, at its place. Returns what was read: from the start, or since the
        last check."""
        start = 0 if full else self.checked
        query = f"?offset={self.epoch}_{start:016d}" if self.epoch else ""
        reply = client.ask("GET", self.stream + query)
        assert reply.status == 200, reply
        found: list[Any] = json.loads(reply.body)
        tail = position_of(reply.next_offset)
        assert tail == start + len(found), f"{self.stream} says it ends at {tail}, and gave {len(found)} after {start}"
        assert tail >= self.end, f"{self.stream} lost {self.end - tail} records"
        self.note(reply.next_offset, found)
        if full:
            identities = {record["id"] for record in found}
            assert len(identities) == len(found), f"a record is twice in {self.stream}"
        self.checked = tail
        return found


class Plain(Publisher):
    """Appends each record once, alone or with others; what was under way at a kill may be there or not."""

    ledger = Ledger("plain")

    def __init__(self, hub: Hub, number: int) -> None:
        super().__init__(hub, number)
        self.next = 0

    def publish(self, client: Client) -> None:
        records = []
        for _ in range(self.random.choice((1, 1, 1, 3, 20))):
            self.next += 1
            records.append({"id": f"{self.number}-{self.next}", "text": "x" * self.random.choice((0, 10, 100, 2000))})
        reply = client.ask("POST", "plain", json.dumps(records).encode(), JSON_HEADERS)
        assert reply.status == 204, reply
        self.ledger.note(reply.next_offset, records)
        self.acknowledged += len(records)

    def check(self, client: Client, *, full: bool) -> None:
        if self.number == 0:
            self.ledger.check(client, full=full)


class Idempotent(Publisher):
    """Sends each record until it is acknowledged: it must be there exactly once, in order."""

    ledger = Ledger("exactly-once")
    there: ClassVar[dict[int, int]] = {}
    """How many records of each producer the last check found."""

    def __init__(self, hub: Hub, number: int) -> None:
        super().__init__(hub, number)
        self.seq = 0

    def publish(self, client: Client) -> None:
        record = {"id": f"{self.number}-{self.seq}", "text": "y" * (self.seq % 7) * 30}
        headers = {"Producer-Id": f"p{self.number}", "Producer-Epoch": "0", "Producer-Seq": str(self.seq)}
        reply = client.ask("POST", "exactly-once", json.dumps(record).encode(), JSON_HEADERS | headers)
        assert reply.status in (200, 204), reply
        if reply.status == 200:  # else it is a duplicate: appended before a kill, and its offset is unknown
            self.ledger.note(reply.next_offset, [record])
        self.seq += 1
        self.acknowledged += 1

    def check(self, client: Client, *, full: bool) -> None:
        if self.number == 0:
            if full:
                self.there.clear()
            for record in self.ledger.check(client, full=full):
                number, seq = map(int, record["id"].split("-"))
                assert seq == self.there.get(number, 0), "records of one producer are missing, out of order or twice"
                self.there[number] = seq + 1
        assert self.seq <= self.there.get(self.number, 0) <= self.seq + 1, "an acknowledged record is missing"


class Follower(Publisher):
    """Reads what the plain publishers write: what a reader has seen is on disk, and stays."""

    def __init__(self, hub: Hub, number: int) -> None:
        super().__init__(hub, number)
        self.offset = "-1"

    def publish(self, client: Client) -> None:
        reply = client.ask("GET", f"plain?offset={self.offset}", headers={"Prefer": "wait=1"})
        if reply.status == 200:
            Plain.ledger.note(reply.next_offset, json.loads(reply.body))
        assert reply.status in (200, 204), reply
        self.offset = reply.next_offset

    def check(self, client: Client, *, full: bool) -> None:
        pass


class Bytes(Publisher):
    """Bodies of any size: the large ones are spooled, and whole or not there at all."""

    def __init__(self, hub: Hub, number: int) -> None:
        super().__init__(hub, number)
        self.next = 0
        self.ends: dict[int, int] = {}
        """Number of a body to the position after it, as acknowledged."""
        self.offset = "-1"
        self.last_found = 0
        self.found: dict[int, int] = {}
        self.large = 0

    def publish(self, client: Client) -> None:
        self.next += 1
        size = self.random.choice((10, 100, 5000, 30_000))
        if self.large < self.hub.kills // 4:
            self.large += 1
            size = self.random.choice((PIECE_BYTES, 300_000, 900_000))
        payload = self.random.randbytes(size)
        body = b"#%09d %09d %08x\n%b" % (self.next, size, zlib.crc32(payload), payload)
        reply = client.ask("POST", "bytes", body, {"Content-Type": "application/octet-stream"})
        assert reply.status == 204, reply
        self.ends[self.next] = position_of(reply.next_offset)
        self.acknowledged += 1

    def check(self, client: Client, *, full: bool) -> None:
        if full:
            self.offset, self.last_found, self.found = "-1", 0, {}
        reply = client.ask("GET", f"bytes?offset={self.offset}")
        assert reply.status == 200
        at, position = 0, 0 if self.offset == "-1" else position_of(self.offset)
        while at < len(reply.body):
            head = reply.body[at : at + 30]
            assert head[:1] == b"#", "a body is cut"
            number, size, crc = int(head[1:10]), int(head[11:20]), int(head[21:29], 16)
            payload = reply.body[at + 30 : at + 30 + size]
            assert zlib.crc32(payload) == crc, f"body {number} is not what was sent"
            at += 30 + size
            position += -(-(size + 30) // PIECE_BYTES) if size + 30 > MEMORY_BYTES else 1
            assert number > self.last_found, "bodies are out of order"
            self.last_found = number
            self.found[number] = position
        assert position == position_of(reply.next_offset)
        lost = {number: end for number, end in self.ends.items() if self.found.get(number) != end}
        assert not lost, f"acknowledged bodies that are not where they were: {lost}"
        self.offset = reply.next_offset


class Async(Publisher):
    """An ``async`` stream may lose its newest records; but an offset it gave out never names another record."""

    def __init__(self, hub: Hub, number: int) -> None:
        super().__init__(hub, number)
        self.next = 0
        self.named: dict[str, bytes] = {}
        self.gone: set[str] = set()
        """Offsets that name nothing any more."""
        self.lost = 0
        self.answered: set[int] = set()

    def publish(self, client: Client) -> None:
        self.next += 1
        record = b'{"id":%d}' % self.next
        reply = client.ask("POST", "async", record, JSON_HEADERS)
        assert reply.status == 204, reply
        self.answered.add(self.next)
        self.note(reply.next_offset, record)
        self.acknowledged += 1

    def note(self, token: str, record: bytes) -> None:
        assert self.named.setdefault(token, record) == record, f"offset {token} of async names another record"
        assert token not in self.gone, f"offset {token} of async was lost, and is there again"

    def check(self, client: Client, *, full: bool) -> None:
        if not full and self.hub.kills % 5:
            return
        tail = client.ask("HEAD", "async")
        here: dict[str, bytes] = {}
        if position_of(tail.next_offset):
            with connected(client.address) as other:
                here = dict(other.events("async", tail.next_offset))
        numbers = [json.loads(record)["id"] for record in here.values()]
        assert numbers == sorted(set(numbers)), "records of async are out of order, or twice there"
        for token, record in here.items():
            self.note(token, record)
        gone = {token for token in self.named if token not in here}
        new = sorted(gone - self.gone)
        for token in {*new[:1], *new[-1:], *self.random.sample(new, min(len(new), 8))}:
            reply = client.ask("GET", f"async?offset={token}")
            assert reply.status == 410, f"offset {token} was lost, and is answered with {reply.status}"
        self.gone = gone
        self.lost = len(self.answered.difference(numbers))


State = tuple[bool, tuple[int, ...], bool]
"""Whether a stream exists, its records, whether it is closed."""
NOTHING: State = (False, (), False)


class Lives(Publisher):
    """Creates streams, appends to them, closes and deletes them: each step is wholly done or not at all."""

    def __init__(self, hub: Hub, number: int) -> None:
        super().__init__(hub, number)
        self.states: dict[str, State] = {f"life/{n}": NOTHING for n in range(12)}
        self.maybe: dict[str, State] = {}
        """What a stream is if the step under way at the kill was done."""
        self.epochs: dict[str, str] = {}
        self.next = 0

    def publish(self, client: Client) -> None:
        for path in list(self.maybe):
            self.resolve(client, path)
        path = self.random.choice(list(self.states))
        exists, records, closed = self.states[path]
        self.next += 1
        if not exists:
            self.step(client, path, (True, (self.next,), False), "PUT", b"[%d]" % self.next)
        elif closed or self.random.random() < 0.1:
            self.step(client, path, NOTHING, "DELETE", None)
        else:
            close = len(records) > 5
            flag = {"Stream-Closed": "true"} if close else {}
            self.step(client, path, (True, (*records, self.next), close), "POST", b"%d" % self.next, flag)

    def step(
        self,
        client: Client,
        path: str,
        after: State,
        method: str,
        body: bytes | None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.maybe[path] = after
        reply = client.ask(method, path, body, JSON_HEADERS | (headers or {}))
        assert reply.status in (200, 201, 204), reply
        del self.maybe[path]
        self.states[path] = after
        self.acknowledged += 1
        if method == "PUT":
            epoch = reply.next_offset.split("_")[0]
            assert epoch > self.epochs.get(path, ""), f"{path} was made again with an old epoch"
            self.epochs[path] = epoch

    def resolve(self, client: Client, path: str) -> None:
        found = self.look(client, path)
        assert found in (self.states[path], self.maybe[path]), f"{path} is {found}, which it never was to be"
        self.states[path] = found
        del self.maybe[path]

    @staticmethod
    def look(client: Client, path: str) -> State:
        reply = client.ask("GET", path)
        if reply.status == 404:
            return NOTHING
        assert reply.status == 200, reply
        return True, tuple(json.loads(reply.body)), "stream-closed" in reply.headers

    def check(self, client: Client, *, full: bool) -> None:
        for path in self.states:
            if path in self.maybe:
                self.resolve(client, path)
            else:
                found = self.look(client, path)
                assert found == self.states[path], f"{path} was {self.states[path]}, and is {found}"


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """Killed at any moment, any number of times, the hub has everything that it ever acknowledged, where it was."""
    print(f"\nWAYSIDE_CRASH_SEED={SEED} WAYSIDE_CRASH_KILLS={KILLS}")
    moments = random.Random(SEED)
    hub = Hub(tmp_path / "data")
    Plain.ledger, Idempotent.ledger = Ledger("plain"), Ledger("exactly-once")
    Idempotent.there.clear()
    kinds: list[type[Publisher]] = [Plain, Plain, Idempotent, Idempotent, Follower, Bytes, Async, Lives]
    publishers = [kind(hub, sum(k is kind for k in kinds[:index])) for index, kind in enumerate(kinds)]
    opens_s: list[float] = []
    address = hub.start()
    with connected(address) as client:
        for path, headers in (
            ("plain", JSON_HEADERS),
            ("exactly-once", JSON_HEADERS),
            ("bytes", {"Content-Type": "application/octet-stream"}),
            ("async", JSON_HEADERS | {"Stream-Durability": "async"}),
        ):
            assert client.ask("PUT", path, None, headers).status == 201
    for publisher in publishers:
        publisher.start()
    try:
        while True:
            hub.release(address)
            time.sleep(moments.uniform(*RUN_S))
            hub.kill()
            if hub.kills < KILLS and moments.random() < STARTING_KILLS:
                hub.spawn()
                time.sleep(moments.uniform(0, 0.8))
                hub.kill()
            for publisher in publishers:
                if publisher.failure is not None:
                    raise publisher.failure
            last = hub.kills >= KILLS
            full = last or hub.kills % FULL_CHECK == 0
            if full:
                opens_s.append(_store_open_s(hub.directory, tmp_path / "copy"))
            address = hub.start()
            with connected(address) as client:
                for publisher in publishers:
                    with publisher.idle:
                        publisher.check(client, full=full)
            if last:
                break
    finally:
        hub.stop()
        hub.kill()
    acknowledged = sum(publisher.acknowledged for publisher in publishers)
    lost = sum(publisher.lost for publisher in publishers if isinstance(publisher, Async))
    starts = sorted(hub.recoveries_s)
    print(
        f"{hub.kills} kills, {acknowledged} acknowledged, 0 lost (and {lost} of the async stream, which may). "
        f"Start to listening: p50 {median(starts) * 1000:.0f} ms, max {starts[-1] * 1000:.0f} ms. "
        f"Opening the store: p50 {median(opens_s) * 1000:.1f} ms, max {max(opens_s) * 1000:.1f} ms."
    )
    assert acknowledged > KILLS, "the publishers hardly got through: this was no test"


def _store_open_s(directory: Path, copy: Path) -> float:
    """Seconds that the store of a killed hub takes to open."""
    shutil.copytree(directory, copy)
    began = time.perf_counter()
    store = Store(copy, now_ms=time.time_ns() // 1_000_000)
    seconds = time.perf_counter() - began
    store.close()
    shutil.rmtree(copy)
    return seconds
