"""A store of 0.1.0, which its hub was killed over: today's version opens it, keeps each cursor, and goes on with it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.compat.asking import CALLBACKS, JSON, SECRET, answer_of, same, sure
from tests.compat.conftest import HERE
from wayside import Hub

EXPECTED = json.loads((HERE / "expected.json").read_text())
MARKS: dict[str, Any] = EXPECTED["marks"]
LATER_S = 31_000_000
"""For how long the delayed records and the delayed call of the store wait."""
TUS = {"Tus-Resumable": "1.0.0"}
PATIENCE_S = 30.0


class Clock:
    """Runs, from a minute after the store was made: what it keeps for a day or a year is there whenever this runs."""

    def __init__(self, later_s: float) -> None:
        self._start_ms: int = EXPECTED["made_ms"] + round(later_s * 1000)
        self._started = time.monotonic()

    def wall_ms(self) -> int:
        return self._start_ms + round((time.monotonic() - self._started) * 1000)

    def monotonic(self) -> float:
        return time.monotonic()


class Opened:
    """Today's hub on the store, and a client of it."""

    def __init__(self, hub: Hub, client: httpx.AsyncClient) -> None:
        self.hub = hub
        self._client = client

    async def answer(self, method: str, target: str, headers: dict[str, str] | None = None, body: Any = None) -> Any:
        """The answer, whatever it is. A body that is not bytes is sent as JSON."""
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body), {**JSON, **(headers or {})}
        return await self._client.request(method, target, headers=headers, content=body)

    async def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: Any = None) -> Any:
        """The document of an answer that is no refusal."""
        answer = sure(await self.answer(method, target, headers, body))
        return answer.json() if answer.content else None

    async def refused(self, method: str, target: str, headers: dict[str, str] | None = None, body: Any = None) -> str:
        """The code of a refusal."""
        answer = await self.answer(method, target, headers, body)
        assert answer.status_code >= 400, answer
        code: str = answer.json()["code"]
        return code

    async def append(self, stream: str, body: Any, **more: str) -> httpx.Response:
        fields = {name.replace("_", "-"): value for name, value in more.items()}
        answer: httpx.Response = await self.answer("POST", f"/v1/stream/{stream}", fields, body)
        return answer

    async def read(self, stream: str, offset: str = "-1") -> Any:
        return await self.ask("GET", f"/v1/stream/{stream}?offset={offset}")

    async def claim(self, group: str, count: int) -> list[dict[str, Any]]:
        """So many records, in as many claims as that takes; and there are no more."""
        found: list[dict[str, Any]] = []
        while left := count - len(found):
            page = await self.ask("POST", f"/v1/group/{group}/claim", None, {"max": left, "wait": 20, "member": "ben"})
            found += [{**where(each), "lease": page["lease"]} for each in page["records"]]
        assert not (await self.ask("POST", f"/v1/group/{group}/claim", None, {}))["records"]
        return found

    async def receipt(self, group: str, mark: dict[str, Any]) -> Any:
        query = f"stream={mark['stream']}&offset={mark['offset']}"
        return await self.ask("GET", f"/v1/group/{group}/receipts?{query}")


def where(record: dict[str, Any]) -> dict[str, Any]:
    """What names a record."""
    return {name: record[name] for name in ("stream", "offset")}


@asynccontextmanager
async def opened(store: Path, *, later_s: float = 60.0, pushing: bool = False) -> AsyncIterator[Opened]:
    """Today's hub on the store, ``later_s`` after it was made. Without ``pushing`` it sends no webhooks."""
    secrets = [SECRET] if pushing else []
    async with Hub(f"file:{store}", clock=Clock(later_s), webhook_secrets=secrets, webhook_private=pushing) as hub:
        server = await hub.serve(port=0)
        host, port = server.address
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=PATIENCE_S) as client:
            yield Opened(hub, client)
        server.stop()


@pytest.fixture
def receiver() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Where the webhooks of the store go: what came, by path. It takes everything."""
    came: dict[str, list[dict[str, Any]]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.setdefault(self.path, []).append(json.loads(body))
            answer = b'{"done": true}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: object) -> None:
            pass

    where = urlsplit(CALLBACKS)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            server = ThreadingHTTPServer((str(where.hostname), int(where.port or 0)), Handler)
            break
        except OSError as error:
            if time.monotonic() > deadline:  # macOS knows no address but 127.0.0.1
                pytest.skip(f"{CALLBACKS} is not free: {error}")
            time.sleep(0.2)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield came
    server.shutdown()
    server.server_close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no answer tells of."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def question(what: str) -> Any:
    """What 0.1.0 answered."""
    return next(each["answer"] for each in EXPECTED["questions"] if each["what"] == what)


def check(store: Path) -> str:
    """What ``wayside check`` says; the store has to be whole."""
    command = [sys.executable, "-m", "wayside", "check", str(store)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# -- what is there


async def test_each_cursor_is_kept_and_answered_as_before(store: Path) -> None:
    """From every cursor that 0.1.0 gave, the same is read: records, ends, 404 and 410; so are calls, receipts, uploads and
    lists. In the life that finds the store as it was killed, in the next, and in one after a clean stop of that."""
    assert "whole" in check(store)
    for _ in range(2):
        async with opened(store) as hub:
            different = []
            for each in EXPECTED["questions"]:
                method, target, headers = each["ask"]
                given = answer_of(await hub.answer(method, target, headers))
                if not same(each["answer"], given):
                    different.append(f"{each['what']}: {each['answer']}, and now {given}")
            assert not different, "\n".join(different)
            assert (await hub.ask("GET", "/v1/presence/fsync"))["members"] == []
    assert "whole" in check(store)


# -- going on


async def test_streams_go_on(store: Path) -> None:
    """Appends come after what was there: on what was killed, recreated, forked, trimmed and in chunks; and stay."""
    streams = ("fsync", "async", "recreated", "fork/part", "fork/heir", "trimmed", "chunked", "said")
    tails = {name: question(f"{name} is")["headers"]["stream-next-offset"] for name in streams}
    async with opened(store) as hub:
        for name in streams:
            sure(await hub.append(name, {"today": name}))
        assert await hub.refused("POST", "/v1/stream/closed", JSON, b"1") == "stream-closed"
        assert await hub.refused("PUT", "/v1/stream/fork/source", JSON) == "stream-deleted"
    async with opened(store) as hub:
        for name in streams:
            assert await hub.read(name, tails[name]) == [{"today": name}]
        assert (await hub.read("fork/grandchild"))[-2:] == ["heir", "grandchild"], "it shares what its source had then"


async def test_writers_go_on(store: Path) -> None:
    """The next number of a producer is taken, and a repeated one, a gap and an old epoch are known as such; so are a
    Stream-Seq that goes back, and a message id that was there."""
    following = MARKS["producer"]
    last = {**following, "Producer-Seq": str(int(following["Producer-Seq"]) - 1)}
    async with opened(store) as hub:
        assert (await hub.append("produced", {"seq": 4}, **last)).status_code == 204
        assert (await hub.append("produced", {"seq": 5}, **following)).status_code == 200
        assert (await hub.append("produced", {"seq": 5}, **following)).status_code == 204
        gap = await hub.append("produced", 9, **{**following, "Producer-Seq": "9"})
        assert (gap.status_code, gap.headers["Producer-Expected-Seq"]) == (409, "6")
        old = {**following, "Producer-Epoch": "1"}
        assert (await hub.append("produced", 9, **old)).status_code == 403
        assert (await hub.append("sequence", 3, Stream_Seq="a-002")).status_code == 409
        assert (await hub.append("sequence", 3, Stream_Seq="a-003")).status_code == 204
        again = sure(await hub.append("said", {"n": 1}, Wayside_Message_Id="m-1"))
        assert again.headers["Wayside-Duplicate"] == "true"
    async with opened(store) as hub:
        assert await hub.read("produced") == [{"seq": number} for number in range(6)]
        assert await hub.read("sequence") == [1, 2, 3]
        assert len(await hub.read("said")) == 5


async def test_a_cursor_of_a_glob_goes_on(store: Path) -> None:
    """What comes after a cursor in the middle of many streams: the rest, and then what is new; each record once."""
    cursors = [each for each in EXPECTED["questions"] if each["what"].startswith("glob/* from 1")]
    async with opened(store) as hub:
        sure(await hub.append("glob/b", "b today"))
        sure(await hub.answer("PUT", "/v1/stream/glob/c", None, ["c"]))
        for each in cursors:
            before = [record["data"] for record in json.loads(each["answer"]["body"])]
            page = await hub.answer("GET", each["ask"][1])
            assert [record["data"] for record in page.json()] == [*before, "b today", "c"]
            target = f"/v1/stream/glob/*?offset={page.headers['Stream-Next-Offset']}"
            assert await hub.ask("GET", target) == []


async def test_groups_go_on(store: Path) -> None:
    """What was leased is acked under its lease, what was acked is known, what is dead is redriven, what was parked
    behind another of its key is delivered, what waits goes on waiting; receipts tell of both versions."""
    marks = MARKS["group"]
    async with opened(store) as hub:
        acked = await hub.ask("POST", "/v1/group/billing/ack", None, {"acks": [marks["held"]]})
        assert acked["acked"] == 1
        again = await hub.ask("POST", "/v1/group/billing/ack", None, {"acks": [marks["acked"], marks["held"]]})
        assert (again["acked"], len(again["already"])) == (0, 2)
        late = await hub.answer("POST", "/v1/group/billing/ack", None, {"acks": [marks["waiting"]]})
        assert (late.status_code, late.json()["code"]) == (409, "lease-fenced")
        assert (await hub.ask("POST", "/v1/group/billing/redrive", None, {}))["redriven"] == 2
        claimed = await hub.claim("billing", 12)
        assert where(marks["dead"]) in map(where, claimed)
        assert where(marks["fifth"]) in map(where, claimed)
        assert where(marks["waiting"]) not in map(where, claimed)
        taken = {"acks": claimed, "publish": [{"stream": "invoices", "data": "today"}]}
        assert (await hub.ask("POST", "/v1/group/billing/ack", None, taken))["acked"] == 12
        first = next(each for each in MARKS["ordered"] if each["offset"].endswith("1"))
        await hub.ask("POST", "/v1/group/ordered/ack", None, {"acks": [first]})
        (parked,) = await hub.claim("ordered", 1)
        assert parked["offset"].endswith("2")
        await hub.ask("POST", "/v1/group/snapshot/ack", None, {"acks": MARKS["snapshot"]})
    async with opened(store) as hub:
        for name in ("acked", "held", "second", "dead", "fifth"):
            assert (await hub.receipt("billing", marks[name]))["state"] == "acked", name
        dead = await hub.receipt("billing", marks["dead"])
        assert [each["member"] for each in dead["deliveries"]] == ["ann", "ben"]
        assert (await hub.receipt("billing", marks["waiting"]))["state"] == "waiting"
        billing = await hub.ask("GET", "/v1/group/billing")
        assert (billing["lag"], billing["in_flight"], billing["dead"]) == (0, 0, 0)
        assert (await hub.receipt("snapshot", MARKS["snapshot"][0]))["state"] == "acked"
        await hub.claim("snapshot", 99)
        assert (await hub.read("invoices"))[-1] == "today"


async def test_calls_go_on(store: Path) -> None:
    """A call that waited is run by today's worker; the request of one that is done is answered with its result; a call
    that has ended cannot be cancelled, and one that waits for its time can."""
    calls = MARKS["calls"]
    async with opened(store) as hub:
        hub.hub.service("greet")(lambda name: f"Today, {name}!")
        for name, result in (("waiting", "Today, Alan!"), ("telling", "Today, Telling!")):
            assert await hub.ask("GET", f"/v1/call/{calls[name]}/result", {"Prefer": "wait=20"}) == result
        key = {"Idempotency-Key": "key-1"}
        assert await hub.ask("POST", "/v1/service/greet", key, "Grace") == "Hello, Grace!"
        assert await hub.refused("POST", "/v1/service/greet", key, "Ada") == "idempotency-key-reused"
        assert await hub.refused("DELETE", f"/v1/call/{calls['done']}") == "call-ended"
        assert (await hub.ask("DELETE", f"/v1/call/{calls['delayed']}"))["state"] == "cancelled"
    async with opened(store) as hub:
        events = await hub.ask("GET", f"/v1/call/{calls['waiting']}?offset=-1")
        assert [each["event"] for each in events] == ["queued", "running", "done"]
        assert (await hub.ask("GET", f"/v1/call/{calls['delayed']}"))["state"] == "cancelled"


async def test_webhooks_go_on(store: Path, receiver: dict[str, list[dict[str, Any]]]) -> None:
    """What nobody took is sent again: the callback of a call that ended under 0.1.0, and of one that ends today; records
    of a group; the wake of a subscription of the protocol. And then it is over: no later life sends it."""
    calls = MARKS["calls"]
    async with opened(store, pushing=True) as hub:
        hub.hub.service("greet")(lambda name: name)
        await until(lambda: {"/told", "/telling", "/group", "/wake"} <= set(receiver) and len(receiver["/group"]) == 2)
        assert [each["data"]["id"] for each in receiver["/told"]] == [calls["told"]]
        assert [each["data"]["id"] for each in receiver["/telling"]] == [calls["telling"]]
        assert sorted(each["n"] for each in receiver["/group"]) == [1, 2]
        assert receiver["/wake"][0]["subscription_id"] == "pusher"
    for life in range(1, 6):
        receiver.clear()
        async with opened(store, pushing=True, later_s=7200 * life) as hub:
            assert (await hub.ask("GET", "/v1/group/pushing"))["counts"]["acked"] >= 2
            await hub.append("pushed", {"n": 3})
            await until(lambda: receiver.get("/group"))
        if list(receiver) == ["/group"]:  # else the life before ended between the answer and the note of it
            return
    pytest.fail(f"it is sent again and again: {receiver}")


async def test_a_subscription_goes_on(store: Path) -> None:
    """Its token is good, what is acked stays so, and what is left is claimed anew."""
    target = "/v1/stream/__ds/subscriptions/puller"
    wake = MARKS["subscription"]
    token = {"Authorization": f"Bearer {wake['token']}"}
    acks = [{"stream": each["path"], "offset": each["tail_offset"]} for each in wake["streams"]]
    work = {"wake_id": wake["wake_id"], "generation": wake["generation"], "acks": acks, "done": True}
    async with opened(store) as hub:
        await hub.ask("POST", f"{target}/ack", token, work)
    async with opened(store) as hub:
        claimed = await hub.ask("POST", f"{target}/claim", None, {"worker": "w-2"})
        assert claimed["generation"] == wake["generation"] + 1
        pending = {each["path"]: each["acked_offset"] for each in claimed["streams"] if each["has_pending"]}
        assert pending == {"watched/a": wake["streams"][0]["tail_offset"]}, "what came after the claim"


async def test_an_upload_goes_on(store: Path) -> None:
    """From where it was cut; then its stream is complete."""
    target, complete = MARKS["upload"], MARKS["uploaded"]
    fields = {**TUS, "Upload-Offset": "4", "Content-Type": "application/offset+octet-stream"}
    async with opened(store) as hub:
        assert (await hub.answer("PATCH", target, {**fields, "Upload-Offset": "3"}, b"x")).status_code == 409
        sure(await hub.answer("PATCH", target, fields, b"efghij"))
    async with opened(store) as hub:
        page = await hub.answer("GET", target.replace("/v1/upload/", "/v1/stream/uploads/"))
        assert (page.content, page.headers["Stream-Closed"]) == (b"abcdefghij", "true")
        assert (await hub.answer("DELETE", complete, TUS)).status_code == 204
        assert (await hub.answer("HEAD", complete, TUS)).status_code == 404


async def test_what_was_delayed_comes_when_it_is_due(store: Path) -> None:
    """Once, in its order; so does the call. What has a time to live of a year is not given any more."""
    async with opened(store, later_s=60.0) as hub:
        assert await hub.read("delayed") == []
    for _ in range(2):
        async with opened(store, later_s=LATER_S + 600) as hub:
            hub.hub.service("greet")(lambda name: name)
            target = "/v1/stream/delayed?offset=-1"
            while len(found := await hub.ask("GET", target, {"Prefer": "wait=1"})) < 3:
                pass
            assert found == [{"n": 0}, {"n": 1}, {"n": 2}]
            identity = MARKS["calls"]["delayed"]
            assert (await hub.ask("GET", f"/v1/call/{identity}", {"Prefer": "wait=20"}))["state"] == "done"
            assert await hub.read("said") == [{"n": 1}, {"n": 4}, {"n": 5}]
            assert await hub.read("expires") == [1]
