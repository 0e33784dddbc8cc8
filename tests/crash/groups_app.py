"""The hub of the kill test of groups, and the members of its groups, as processes.

    python -m tests.crash.groups_app hub DIRECTORY PORT [POINT] NOTES
    python -m tests.crash.groups_app client URL NOTES
    python -m tests.crash.groups_app plain URL NOTES

A ``client`` is a member by the Python client, a ``plain`` one claims and settles over HTTP; each is a member of all
groups. NOTES is a file in which they say themselves what they were given, did and were answered. The hub has no part in
it. With a POINT the hub kills itself when it moves a record to the dead letters: ``before`` the transaction is given to
the disk, ``during`` it, or ``after`` it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, NamedTuple

import httpx
import uvloop

import wayside
from tests.crash.calls_processes import CRASHED
from tests.support.killed import client_of_killed
from wayside import Client, Hub, Limits, Refusal
from wayside.cli.process import configure_logs, leave, stop_event
from wayside.cli.serve import serve_hub
from wayside.client.delivery import Delivery
from wayside.core.callbacks import Done
from wayside.core.errors import LeaseFenced, NotFound, UnknownOutcome
from wayside.groups.events import Dead, Event
from wayside.groups.journal import Journal
from wayside.link.connection import Unreachable

LEASE_S = 1.0
DRAIN_S = 0.4
PLAIN, ORDERED, TRANSFORM = "plain", "ordered", "transform"
OUT, DEAD = "out/transformed", "dead/ordered"
RETRIES = 3
"""Of the group that has dead letters; in the others a record is never given up."""
COMMON: dict[str, Any] = {"streams": ["work/**"], "lease_s": LEASE_S, "backoff_s": 0.05, "backoff_s_max": 0.5}
GROUPS: dict[str, dict[str, Any]] = {
    PLAIN: {**COMMON, "retries": -1},
    ORDERED: {**COMMON, "retries": RETRIES, "order_by": "key", "dead_letter": DEAD},
    TRANSFORM: {**COMMON, "retries": -1},
}
TAKEN = 6
"""Records that a member has at one time, of each group."""
CRASHES = float(os.environ.get("WAYSIDE_CRASH_MEMBERS", "0.002"))
"""How often a member ends itself between an effect and its ack."""
AGAIN, STALE, FOREIGN, RELEASED = 0.1, 0.1, 0.05, 0.02
"""How often it repeats an ack, sends one under a lease that is over, or in another's name, and gives a record back
untried."""
REST_S = 0.1

Answer = tuple[int, dict[str, Any]]
Post = Callable[[str, dict[str, Any]], Awaitable[Answer | None]]
"""Sends a request about records of a group, as (group, body); None: it is not known what became of it."""


class Given(NamedTuple):
    """A record as a member was given it."""

    group: str
    stream: str
    offset: str
    attempt: int
    lease: int
    record: dict[str, Any]

    def mark(self, *, lease: int | None = None) -> dict[str, Any]:
        return {"stream": self.stream, "offset": self.offset, "lease": self.lease if lease is None else lease}


class Notes:
    """What a process says of itself: a line is one write to a file that outlives it."""

    def __init__(self, path: str, kind: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.member = f"{kind}-{os.getpid()}-{os.urandom(3).hex()}"

    def note(self, what: str, given: Given, **more: Any) -> None:
        group, stream, offset, attempt, lease, _ = given
        line = {"what": what, "group": group, "stream": stream, "offset": offset, "attempt": attempt, "lease": lease}
        line |= {"member": self.member, "pid": os.getpid(), "time_ms": time.time_ns() // 1_000_000, **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Working:
    """What members of both kinds do with a record."""

    def __init__(self, notes: Notes, post: Post) -> None:
        self.notes = notes
        self.post = post
        self.random = random.Random()

    async def work(self, given: Given) -> str:
        """Do what is to be done with a record. Returns what is to be said of it: ``ack``, ``failed``, ``rejected`` or
        ``released``."""
        draw = self.random
        self.notes.note("began", given)
        await asyncio.sleep(draw.choice((0, 0.001, 0.01, 0.04)))
        said = self._judge(given)
        if said == "ack":
            self.notes.note("effect", given)
            if draw.random() < CRASHES:
                os._exit(CRASHED)
        if draw.random() < STALE:
            await self._extra("stale", given, given.mark(lease=given.lease - 1), self.notes.member)
        if draw.random() < FOREIGN:
            await self._extra("foreign", given, given.mark(), "somebody-else")
        return said

    def _judge(self, given: Given) -> str:
        record = given.record
        if given.group == ORDERED and record["fate"] != "good":
            return "rejected" if record["fate"] == "reject" else "failed"
        if given.group != TRANSFORM and given.attempt <= record["failures"]:
            return "failed"
        return "released" if self.random.random() < RELEASED else "ack"

    async def again(self, given: Given) -> None:
        """Now and then an ack that was answered is sent another time."""
        if self.random.random() < AGAIN:
            await self._extra("again", given, given.mark(), self.notes.member)

    async def _extra(self, what: str, given: Given, mark: dict[str, Any], member: str) -> None:
        answer = await self.post(given.group, {"member": member, "acks": [mark]})
        if answer is not None and answer[0] != 503:
            status, document = answer
            told = {"status": status, "code": document.get("code", ""), "acked": document["acked"]}
            self.notes.note(what, given, **told)

    def product(self, given: Given) -> dict[str, Any]:
        """What comes of a record."""
        return {"of": given.record["id"], "stream": given.stream, "offset": given.offset, "lease": given.lease}


# -- by the Python client


class Channelled(Working):
    """A member by the Python client."""

    def __init__(self, notes: Notes, client: Client) -> None:
        super().__init__(notes, self._request)
        self._client = client

    async def _request(self, group: str, body: dict[str, Any]) -> Answer | None:
        try:
            target = f"/v1/group/{group}/ack"
            answer = await self._client.request(
                "POST", target, {"Content-Type": "application/json"}, json.dumps(body).encode()
            )
        except UnknownOutcome:
            return None
        except Refusal as refusal:
            if refusal.retry or refusal.code == "stopping":
                return None
            return refusal.status, refusal.problem()
        return answer.status, json.loads(answer.body)

    async def run(self, group: str) -> None:
        joined = self._client.group(group, member=self.notes.member, credit=2 * TAKEN)
        while True:
            try:
                await joined.join()
                break
            except NotFound:  # the test has yet to make it
                await asyncio.sleep(REST_S)
        async with joined:
            while True:
                deliveries = await joined.take(TAKEN)
                self.random.shuffle(deliveries)
                await asyncio.gather(*(self._deliver(delivery) for delivery in deliveries))

    async def _deliver(self, delivery: Delivery) -> None:
        record = delivery.json()
        given = Given(delivery.group, delivery.stream, delivery.offset, delivery.attempt, delivery.lease, record)
        said = await self.work(given)
        self.notes.note("saying", given, said=said)
        try:
            if said == "ack" and given.group == TRANSFORM:
                async with delivery.transaction() as transaction:
                    transaction.publish(OUT, self.product(given))
            elif said == "ack":
                settling = delivery.ack()
                if self.random.random() < 0.3:  # nothing has to be awaited
                    return
                await settling
            elif said == "rejected":
                await delivery.reject("it shall not be tried again")
            elif said == "released":
                await delivery.release()
            else:
                await delivery.nack(self.random.choice((None, 0.02)), f"attempt {given.attempt} fails")
        except LeaseFenced:
            self.notes.note("refused", given, said=said)
        except UnknownOutcome:
            self.notes.note("unknown", given, said=said)
        else:
            exact = given.group == TRANSFORM and said == "ack"  # else it may be another's ack that it was told of
            self.notes.note("kept", given, said=said, exact=exact)
            if said == "ack":
                await self.again(given)


async def run_client(url: str, notes: Notes) -> None:
    while True:
        try:
            async with wayside.connect(url, retry_s=None) as client:
                await _all(Channelled(notes, client).run(group) for group in GROUPS)
        except Unreachable:  # there was no hub at first
            await asyncio.sleep(REST_S)


# -- over HTTP


class Plain(Working):
    """A member that claims and settles over HTTP."""

    def __init__(self, notes: Notes, url: str, client: httpx.AsyncClient) -> None:
        super().__init__(notes, self._ack)
        self._url = url
        self._client = client

    async def _post(self, group: str, action: str, body: dict[str, Any]) -> Answer | None:
        try:
            answer = await self._client.post(f"{self._url}/v1/group/{group}/{action}", json=body)
        except httpx.TransportError:
            return None
        return answer.status_code, answer.json()

    async def _ack(self, group: str, body: dict[str, Any]) -> Answer | None:
        return await self._post(group, "ack", body)

    async def run(self, group: str) -> None:
        while True:
            claim = {"max": TAKEN, "wait": 2, "member": self.notes.member}
            answer = await self._post(group, "claim", claim)
            if answer is None or answer[0] in (404, 503):  # it is not made yet, or the hub starts
                await asyncio.sleep(REST_S)
                continue
            status, document = answer
            if status != 200:
                raise AssertionError(f"a claim of {group} was answered with {status} {document}")
            lease = document["lease"]
            given = [
                Given(group, each["stream"], each["offset"], each["attempt"], lease, each["data"])
                for each in document["records"]
            ]
            self.random.shuffle(given)
            said = list(zip(given, await asyncio.gather(*map(self.work, given)), strict=True))
            if group == TRANSFORM or self.random.random() < 0.5:
                await asyncio.gather(*(self._settle(group, [one]) for one in said))
            elif said:
                await self._settle(group, said)

    async def _settle(self, group: str, said: list[tuple[Given, str]]) -> None:
        """Say what became of records, until it is answered."""
        body: dict[str, Any] = {"member": self.notes.member, "acks": [], "nacks": []}
        for given, what in said:
            self.notes.note("saying", given, said=what)
            if what != "ack":
                reason = {"rejected": "it shall not be tried again"}.get(what, f"attempt {given.attempt} fails")
                delay = self.random.choice((None, 0.02)) if what == "failed" else None
                body["nacks"].append({**given.mark(), "kind": what, "delay": delay, "reason": reason})
            else:
                body["acks"].append(given.mark())
                if group == TRANSFORM:
                    body["publish"] = [{"stream": OUT, "data": self.product(given)}]
        times = 0
        while True:
            times += 1
            answer = await self._ack(group, body)
            if answer is not None and answer[0] != 503:
                break
            await asyncio.sleep(REST_S)
        status, document = answer
        if status not in (200, 409):
            raise AssertionError(f"{body} was answered with {status} {document}")
        refused = {(each["stream"], each["offset"]) for each in document.get("refused", ())}
        already = {(each["stream"], each["offset"]) for each in document["already"]}
        for given, what in said:
            at = (given.stream, given.offset)
            if at in already and not (status == 409 and times == 1):
                self.notes.note("kept" if status == 200 else "unknown", given, said=what, exact=False)
            elif at in refused or at in already:
                sure = times == 1  # else what was not answered may have been taken: its record came back, say
                self.notes.note("refused" if sure else "unknown", given, said=what)
            else:
                self.notes.note("kept", given, said=what, exact=True)
                if what == "ack":
                    await self.again(given)


async def run_plain(url: str, notes: Notes) -> None:
    async with client_of_killed(20) as client:
        plain = Plain(notes, url, client)
        await _all(plain.run(group) for group in GROUPS)


# -- processes


async def _all(running: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for each in running:
            tasks.create_task(each)


async def run_member(kind: str, url: str, notes: Notes) -> int:
    stop = stop_event()
    task = asyncio.get_running_loop().create_task((run_client if kind == "client" else run_plain)(url, notes))
    stopping = asyncio.get_running_loop().create_task(stop.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        task.result()
    task.cancel()
    await asyncio.wait([task])
    return 0


def die_at(point: str) -> None:
    transact = Journal.transact

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(journal: Journal, events: list[Event], appends: Any, done: Done) -> None:
        buries = any(isinstance(event, Dead) for event in events)
        if buries and point == "before":
            die()
        transact(journal, events, appends, die if buries and point == "after" else done)
        if buries and point == "during":
            die()

    setattr(Journal, "transact", dying)  # noqa: B010 - a method


async def run_hub(directory: str, port: int) -> int:
    return await serve_hub(Hub(f"file:{directory}", limits=Limits(drain_s=DRAIN_S)), "127.0.0.1", port, False)


def main(kind: str, where: str, *rest: str) -> None:
    configure_logs("warning", "console")
    if kind == "hub":
        for point in rest[1:-1]:
            die_at(point)
        leave(uvloop.run(run_hub(where, int(rest[0]))))
    leave(uvloop.run(run_member(kind, where, Notes(rest[-1], kind))))


if __name__ == "__main__":
    main(*sys.argv[1:])
