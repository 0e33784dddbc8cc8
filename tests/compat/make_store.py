"""Makes the store of 0.1.0 that is kept as a fixture, and writes down every cursor that 0.1.0 gave.

It runs with 0.1.0 and not with today's code: unpack ``wayside-0.1.0.tar.xz`` somewhere, and in the root of the repository

    PYTHONPATH=WHERE .venv/bin/python -m tests.compat.make_store tests/compat

The store lives three times; the first life and the last are killed. Then 0.1.0 opens two copies of what is left, and answers every
question in ``questions``: both have to answer alike, and that is what ``expected.json`` has.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

import wayside
from tests.compat.asking import CALLBACKS, JSON, SECRET, answer_of, same, sure

APP = "tests.compat.app:hub"
TEXT = {"Content-Type": "text/plain; charset=utf-8"}
BYTES = {"Content-Type": "application/octet-stream"}
TUS = {"Tus-Resumable": "1.0.0"}
LATER_S = 31_000_000
"""Nearly the longest delay there is: a year."""
PUSHING = ("--webhook-secret", SECRET, "--webhook-allow-private")
DETAILS = {"Accept": "application/vnd.wayside.records+json"}


class Hub:
    """One life of ``wayside serve``."""

    def __init__(self, data: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "wayside", "serve", *arguments, "--port", "0", "--data", str(data)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = next(filter(None, (re.search(r"listening on (http:\S+)", line) for line in self.process.stdout)))
        self.client = httpx.Client(base_url=found[1], timeout=60)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.client.close()

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait() == 0

    def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: Any = None) -> httpx.Response:
        """Raises where it is refused. A body that is not bytes is sent as JSON."""
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body), {**JSON, **(headers or {})}
        fields = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        return sure(self.client.request(method, target, headers=fields, content=body))


class Maker:
    """What was asked of 0.1.0, and what it said that somebody will have kept."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.hub = Hub(data, APP, *PUSHING)
        self.cursors: dict[str, list[str]] = {}
        self.questions: list[dict[str, Any]] = []
        self.marks: dict[str, Any] = {}
        """To go on with: leases, tokens, names of calls."""

    def live_again(self) -> None:
        """Start a hub without services."""
        self.hub = Hub(self.data, *PUSHING)

    # -- streams

    def _cursor(self, path: str, offset: str) -> str:
        if offset not in (known := self.cursors.setdefault(path, [])):
            known.append(offset)
        return offset

    def create(self, path: str, headers: dict[str, str], body: Any = None, **more: str) -> None:
        fields = {name.replace("_", "-"): value for name, value in more.items()}
        answer = self.hub.ask("PUT", f"/v1/stream/{path}", {**headers, **fields}, body)
        self._cursor(path, answer.headers["Stream-Next-Offset"])

    def append(self, path: str, headers: dict[str, str], body: Any = b"", **more: str) -> str:
        """Returns the offset after it."""
        fields = {name.replace("_", "-"): value for name, value in more.items()}
        answer = self.hub.ask("POST", f"/v1/stream/{path}", {**headers, **fields}, body)
        return self._cursor(path, answer.headers["Stream-Next-Offset"])

    def question(self, what: str, target: str, headers: dict[str, str] | None = None, method: str = "GET") -> None:
        self.questions.append({"what": what, "ask": [method, target, headers or {}]})

    # -- one life after the other

    def first_life(self) -> None:
        """With services."""
        self.kinds()
        self.chunks()
        self.metadata()
        self.forks()
        self.deleted()
        self.glob_begins()
        self.calls()
        self.upload()
        self.subscription()
        self.group()
        self.append("async", JSON, [1, 2, 3])
        self.append("async", JSON, [4])
        time.sleep(0.5)  # both are on the disk
        self.marks["lost"] = self.append("async", JSON, [5])  # this one is not: the hub is killed at once

    def second_life(self) -> None:
        self.append("async", JSON, ["other"])
        self.append("async", JSON, ["others"])
        for path in ("fsync", "closed-later", "glob/a", "glob/b"):
            self.append(path, JSON, {"life": 2, "stream": path})
        self.close("closed-later")
        self.producer(3, 5)
        time.sleep(0.5)

    def third_life(self) -> None:
        self.append("async", JSON, ["last"])
        self.append("fsync", JSON, [{"life": 3}, {"life": 3, "text": "Grüße \u2028 🌊"}])
        self.group_goes_on()
        self.waiting_calls()
        self.hub.ask("GET", "/v1/stream/fsync?offset=-1&member=ann")
        self.delayed()
        time.sleep(0.5)

    def kinds(self) -> None:
        """Streams of each content type and durability."""
        for durability in ("fsync", "async", "memory"):
            self.create(durability, JSON, Stream_Durability=durability)
        for number in range(5):
            self.append("fsync", JSON, {"id": number, "price": 1.50, "tags": ["a", None, True]})
        self.append("fsync", JSON, [{"id": 5}, {"id": 6}, [7]])
        self.append("memory", JSON, [1])
        self.create("closed-later", JSON)
        self.append("closed-later", JSON, [1, 2])
        self.create("text", TEXT, b"first line\n")
        self.append("text", TEXT, "zweite Zeile: Grüße\n".encode())
        self.append("text", TEXT, b"third")
        self.create("binary", BYTES)
        self.append("binary", BYTES, bytes(range(256)))
        self.append("binary", BYTES, b"\x00\xff\x00")
        self.create("closed", JSON, [1, 2])
        self.append("closed", JSON, [3])
        self.close("closed")
        self.create("empty", JSON)
        self.create("ttl", JSON, Stream_TTL="1000000000")
        self.append("ttl", JSON, [1])
        self.create("expires", JSON, Stream_Expires_At="2999-12-31T23:59:59Z")
        self.append("expires", JSON, [1])
        self.create("produced", JSON)
        self.producer(0, 3)
        self.create("sequence", JSON)
        self.append("sequence", JSON, [1], Stream_Seq="a-001")
        self.append("sequence", JSON, [2], Stream_Seq="a-002")

    def close(self, path: str) -> None:
        self._cursor(
            path, self.hub.ask("POST", f"/v1/stream/{path}", {"Stream-Closed": "true"}).headers["Stream-Next-Offset"]
        )

    def producer(self, first: int, end: int) -> None:
        for seq in range(first, end):
            fields = {"Producer_Id": "till-7", "Producer_Epoch": "2", "Producer_Seq": str(seq)}
            self.append("produced", JSON, {"seq": seq}, **fields)
        self.marks["producer"] = {"Producer-Id": "till-7", "Producer-Epoch": "2", "Producer-Seq": str(end)}

    def chunks(self) -> None:
        """Records that have become rows of their own, some after them in the journal, and some let go."""
        self.create("chunked", JSON)
        for start in range(0, 3000, 500):
            self.append("chunked", JSON, [{"id": start + each, "text": "x" * 100} for each in range(500)])
        self.append("chunked", JSON, [{"id": "journalled"}])
        self.create("spooled", BYTES)
        self.append("spooled", BYTES, b"0123456789abcdef" * 75_000)  # over 1 MiB: a file while it arrived
        self.append("spooled", BYTES, b"small")
        self.create("trimmed", JSON, Stream_Retention_Bytes="2000")
        for number in range(0, 60, 10):
            for each in range(10):
                answer = self.hub.ask("POST", "/v1/stream/trimmed", None, {"id": number + each, "text": "y" * 100})
            self._cursor("trimmed", answer.headers["Stream-Next-Offset"])
        self.create("aged", JSON, Stream_Retention_Age="3000000000")
        self.append("aged", JSON, [1])

    def metadata(self) -> None:
        self.create("said", JSON)
        self.append("said", JSON, {"n": 1}, Wayside_Message_Id="m-1", Wayside_Key="eu", Wayside_Header_Trace="7f")
        self.append("said", JSON, [{"n": 2}, {"n": 3}], Wayside_Key="us", Wayside_TTL=str(LATER_S))
        self.append("said", JSON, {"n": 4}, Wayside_Header_Trace="80", Wayside_Header_Name="Grüße")
        records = [
            {"stream": "said", "data": {"n": 5}, "id": "m-5", "key": "eu", "headers": {"trace": "81"}},
            {"stream": "text", "data": "fourth", "key": "eu"},
            {"stream": "binary", "data_base64": "AP8=", "headers": {"kind": "raw"}},
        ]
        for done in self.hub.ask("POST", "/v1/publish", None, {"records": records}).json()["records"]:
            self._cursor(done["stream"], done["offset"])

    def forks(self) -> None:
        """Of a part of a stream, of one that was deleted, and of a fork."""
        middle = self.cursors["fsync"][3]
        self.create("fork/part", JSON, Stream_Forked_From="/v1/stream/fsync", Stream_Fork_Offset=middle)
        self.append("fork/part", JSON, ["own"])
        self.create("fork/source", JSON, [1, 2])
        self.append("fork/source", JSON, [3])
        self.create("fork/heir", JSON, Stream_Forked_From="/v1/stream/fork/source")
        self.append("fork/heir", JSON, ["heir"])
        self.hub.ask("DELETE", "/v1/stream/fork/source")
        self.create("fork/grandchild", JSON, Stream_Forked_From="/v1/stream/fork/heir")
        self.append("fork/grandchild", JSON, ["grandchild"])
        self.create("fork/chunked", JSON, Stream_Forked_From="/v1/stream/chunked")
        self.append("fork/chunked", JSON, ["own"])

    def deleted(self) -> None:
        self.create("recreated", JSON, ["of the first"])
        self.append("recreated", JSON, ["of the first, too"])
        self.hub.ask("DELETE", "/v1/stream/recreated")
        self.create("recreated", JSON, ["of the second"])
        self.append("recreated", JSON, ["of the second, too"])
        self.create("deleted", JSON, [1])
        self.hub.ask("DELETE", "/v1/stream/deleted")

    def delayed(self) -> None:
        self.create("delayed", JSON)
        for number in range(3):
            self.append_later({"n": number}, LATER_S + number)

    def append_later(self, value: Any, seconds: int) -> None:
        answer = self.hub.ask("POST", "/v1/stream/delayed", {"Wayside-Delay": str(seconds)}, value)
        assert answer.status_code == 202, answer.text

    def glob_begins(self) -> None:
        """Somebody follows, so that the order of commits is kept; cursors of the union in its middle."""
        for name in "ab":
            self.create(f"glob/{name}", JSON, [f"{name}0"])
        at = "-1"
        for number in range(1, 6):
            self._cursor("glob/*", at)
            page = self.hub.ask("GET", f"/v1/stream/glob/*?offset={at}")
            at = page.headers["Stream-Next-Offset"]
            for name in "ba" if number % 2 else "ab":
                self.append(f"glob/{name}", JSON, f"{name}{number}")
                time.sleep(0.02)
        self._cursor("glob/*", at)
        page = self.hub.ask("GET", f"/v1/stream/glob/*?offset={at}")
        self._cursor("glob/*", page.headers["Stream-Next-Offset"])

    # -- calls

    def submit(
        self, name: str, service: str, body: Any, headers: dict[str, str] | None = None, wait: bool = True
    ) -> str:
        fields = {"Prefer": "respond-async", **(headers or {})}
        answer = self.hub.ask("POST", f"/v1/service/{service}", fields, body)
        identity: str = answer.json()["id"]
        self.marks.setdefault("calls", {})[name] = identity
        if wait:
            self.hub.ask("GET", f"/v1/call/{identity}", {"Prefer": "wait=20"})
        return identity

    def calls(self) -> None:
        self.submit("done", "greet", "Ada")
        self.submit("bytes", "reverse", b"abc", BYTES)
        self.submit("failed", "fail", "no reason")
        self.submit("progress", "count", 4)
        self.submit("items", "words", "one two three")
        self.submit("keyed", "greet", "Grace", {"Idempotency-Key": "key-1"})
        self.submit("told", "greet", "Told", {"Wayside-Callback": f"{CALLBACKS}/told"})  # nobody listens there
        self.submit("cancelled", "hold", 1000, wait=False)
        self.submit("lost", "hold", 1000, wait=False)
        for name in ("cancelled", "lost"):
            while "progress" not in self.hub.ask("GET", f"/v1/call/{self.marks['calls'][name]}").json():
                time.sleep(0.02)
        self.hub.ask("DELETE", f"/v1/call/{self.marks['calls']['cancelled']}")

    def waiting_calls(self) -> None:
        """No worker is there."""
        self.submit("waiting", "greet", "Alan", {"Wayside-Priority": "3"}, wait=False)
        self.submit("telling", "greet", "Telling", {"Wayside-Callback": f"{CALLBACKS}/telling"}, wait=False)
        self.submit("delayed", "greet", "Edsger", {"Wayside-Delay": str(LATER_S)}, wait=False)

    # -- uploads, subscriptions, groups

    def upload(self) -> None:
        for name, size in (("upload", 10), ("uploaded", 4)):
            fields = {**TUS, "Upload-Length": str(size), "Upload-Metadata": "name Zm9v"}
            made = self.hub.ask("POST", "/v1/upload/", fields)
            target = httpx.URL(made.headers["Location"]).path
            fields = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
            self.hub.ask("PATCH", target, fields, b"abcd")
            self.marks[name] = target
            self.question(f"{name}: how far", target, TUS, "HEAD")
            self.question(f"{name}: what is there", target.replace("/v1/upload/", "/v1/stream/uploads/") + "?offset=-1")

    def subscription(self) -> None:
        """One of the protocol, with its wake claimed."""
        self.create("wakes", JSON)
        self.create("watched/a", JSON, [1, 2])
        target = "/v1/stream/__ds/subscriptions/puller"
        wanted = {"type": "pull-wake", "pattern": "watched/*", "wake_stream": "wakes", "lease_ttl_ms": 600_000}
        self.hub.ask("PUT", target, None, wanted)
        self.append("watched/a", JSON, [3])
        self.create("watched/b", JSON, [1])
        claimed = self.hub.ask("POST", f"{target}/claim", None, {"worker": "w-1"}).json()
        self.marks["subscription"] = claimed
        self.question("the subscription", target)
        wanted = {"type": "webhook", "pattern": "watched/*", "webhook": {"url": f"{CALLBACKS}/wake"}}
        self.hub.ask("PUT", "/v1/stream/__ds/subscriptions/pusher", None, wanted)
        self.append("watched/a", JSON, [4])  # a wake that nobody took

    def group(self) -> None:
        for name in ("eu", "us"):
            self.create(f"shop/{name}", JSON, [{"id": number, "shop": name} for number in range(8)])
        wanted = {
            "streams": "shop/*",
            "retries": 1,
            "lease_s": 43_200,
            "backoff_s": 0,
            "dead_letter": "shop.dead",
            "description": "kept",
        }
        self.hub.ask("PUT", "/v1/group/billing", None, wanted)
        claimed = self.claim("billing", 6)
        acked, released, waiting, rejected, failed, held = claimed
        self.settle("billing", acks=[acked], publish=[{"stream": "invoices", "data": {"of": acked["offset"]}}])
        later = {**waiting, "delay": LATER_S, "reason": "the bank is closed"}
        dead = {**rejected, "kind": "rejected", "reason": "no such customer"}
        self.settle("billing", nacks=[{**released, "kind": "released"}, later, dead, {**failed, "reason": "once"}])
        self.marks["group"] = {"acked": acked, "waiting": waiting, "dead": rejected, "held": held}
        self.create("ordered", JSON)
        for number, key in enumerate("aab"):
            self.append("ordered", JSON, {"n": number}, Wayside_Key=key)
        self.hub.ask("PUT", "/v1/group/ordered", None, {"streams": ["ordered"], "order_by": "$key", "lease_s": 43_200})
        self.marks["ordered"] = self.claim("ordered", 3)
        self.create("pushed", JSON, [{"n": 1}, {"n": 2}])
        wanted = {"streams": ["pushed"], "retries": -1, "lease_s": 1, "webhook": f"{CALLBACKS}/group"}
        self.hub.ask("PUT", "/v1/group/pushing", None, wanted)
        self.snapshot()

    def snapshot(self) -> None:
        """More than 1 MiB of events, which become a snapshot."""
        self.create("many", JSON, [{"n": number} for number in range(300)])
        self.hub.ask("PUT", "/v1/group/snapshot", None, {"streams": ["many"], "retries": -1, "lease_s": 43_200})
        for _ in range(5):
            claimed = enumerate(self.claim("snapshot", 300))
            self.settle("snapshot", nacks=[{**mark, "delay": 0, "reason": f"{n:0999}"} for n, mark in claimed])
        self.settle("snapshot", acks=self.claim("snapshot", 200))
        self.marks["snapshot"] = self.claim("snapshot", 1)

    def claim(self, group: str, count: int) -> list[dict[str, Any]]:
        found = self.hub.ask(
            "POST", f"/v1/group/{group}/claim", None, {"max": count, "wait": 20, "member": "ann"}
        ).json()
        return [
            {"stream": each["stream"], "offset": each["offset"], "lease": found["lease"]} for each in found["records"]
        ]

    def settle(self, group: str, **what: Any) -> None:
        for record in what.get("publish", ()):
            self.hub.client.put(f"/v1/stream/{record['stream']}", headers=JSON)
        self.hub.ask("POST", f"/v1/group/{group}/ack", None, {"member": "ann", **what})

    def group_goes_on(self) -> None:
        """A life later: what was released is acked, and what has failed once fails for the last time."""
        second, fifth = self.claim("billing", 2)
        self.settle("billing", acks=[second], nacks=[{**fifth, "reason": "twice"}])
        self.marks["group"] |= {"second": second, "fifth": fifth}

    # -- everything that is asked of it

    def ask_everything(self) -> None:
        for path, offsets in self.cursors.items():
            given = [each for each in ("-1", "now") if each not in offsets]
            for offset in [*given, *offsets]:
                self.question(f"{path} from {offset}", f"/v1/stream/{path}?offset={offset}")
            self.question(f"{path} is", f"/v1/stream/{path}", method="HEAD")
        for path in ("said", "text", "binary", "async"):
            self.question(f"{path} in detail", f"/v1/stream/{path}?offset=-1", DETAILS)
        self.question("streams", "/v1/stream/?limit=1000")
        for name, identity in self.marks["calls"].items():
            self.question(f"call {name}", f"/v1/call/{identity}")
            self.question(f"events of {name}", f"/v1/call/{identity}?offset=-1")
            if name not in ("waiting", "telling", "delayed", "items"):
                self.question(f"result of {name}", f"/v1/call/{identity}/result")
        for name in ("done", "progress", "items"):
            target = f"/v1/call/{self.marks['calls'][name]}"
            tail = self.hub.ask("GET", f"{target}?offset=-1").headers["Stream-Next-Offset"]
            epoch, position = tail.split("_")
            for number in range(1, int(position) + 1):
                self.question(f"events of {name} behind {number}", f"{target}?offset={epoch}_{number:016}")
        self.question("services", "/v1/service/")
        for group, paths in (("billing", ("shop/eu", "shop/us")), ("ordered", ("ordered",)), ("snapshot", ("many",))):
            self.question(f"group {group}", f"/v1/group/{group}")
            self.question(f"dead of {group}", f"/v1/group/{group}/dead")
            for path in paths:
                epoch = self.cursors[path][-1].split("_")[0]
                for number in range(1, 9 if group == "billing" else 4):
                    query = f"stream={path}&offset={epoch}_{number:016}"
                    self.question(f"receipt of {path} {number} in {group}", f"/v1/group/{group}/receipts?{query}")
        for path in ("shop.dead", "invoices"):
            self.question(f"{path}", f"/v1/stream/{path}?offset=-1", DETAILS)


def answers(data: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What 0.1.0 answers from a copy of the store."""
    with tempfile.TemporaryDirectory() as directory:
        copy = shutil.copytree(data, Path(directory) / "data")
        hub = Hub(copy)
        found = [answer_of(hub.client.request(method, target, headers=headers)) for method, target, headers in
                 (each["ask"] for each in questions)]  # fmt: skip
        hub.kill()
    return found


def main(target: Path) -> None:
    assert not Path(wayside.__file__).is_relative_to(Path(__file__).parents[2]), "this is today's version"
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        maker = Maker(data)
        try:
            maker.first_life()
            maker.hub.kill()
            maker.live_again()
            maker.second_life()
            maker.hub.stop()
            maker.live_again()
            maker.third_life()
            maker.ask_everything()
            made_ms = time.time_ns() // 1_000_000
        finally:
            maker.hub.kill()
        (data / "wayside.db-shm").unlink(missing_ok=True)
        first, second = answers(data, maker.questions), answers(data, maker.questions)
        for question, one, other in zip(maker.questions, first, second, strict=True):
            assert same(one, other), f"{question}\n{one}\n{other}"
            question["answer"] = one
        lost = next(each for each in maker.questions if each["what"] == f"async from {maker.marks['lost']}")
        assert lost["answer"]["document"]["code"] == "offset-lost", "it was on the disk: make it again"
        with tarfile.open(target / "store-0.1.0.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(data.iterdir()):
                archive.add(path, path.name, filter=_anonymous)
        kept = {"made_ms": made_ms, "marks": maker.marks, "questions": maker.questions}
        (target / "expected.json").write_text(_lines(kept))
        print(f"{len(maker.questions)} questions; {(target / 'store-0.1.0.tar.xz').stat().st_size} bytes")


def _lines(kept: dict[str, Any]) -> str:
    """JSON with a line for each question."""
    questions = ",\n".join(json.dumps(each, ensure_ascii=False) for each in kept.pop("questions"))
    return f'{json.dumps(kept, indent=1)[:-2]},\n "questions": [\n{questions}\n]}}\n'


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]))
