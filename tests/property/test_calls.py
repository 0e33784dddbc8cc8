"""Calls against a plain model, over any sequence of submissions, grants, ends, lost workers and crashes of the hub.

The model knows who holds which attempt, and from that who may say what. It does not know who is given a call next: that
it observes. A crash is a copy of the store's files while the hub is running.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.calls import Key, PuppetWorker
from tests.support.embedded import store_of
from tests.support.log import read_records
from wayside.calls import call
from wayside.calls.call import CallState
from wayside.core.errors import IdempotencyMismatch, TooManyCalls
from wayside.link import frames as f
from wayside.testing import TestHub

LEASE_S = 15.0
QUEUE_MAX = 6
SERVICES: list[dict[str, Any]] = [
    {"name": "plain", "queue_max": QUEUE_MAX},
    {"name": "again", "retries": 2, "backoff_s": 3.0, "queue_max": QUEUE_MAX},
    {"name": "narrow", "retries": 1, "backoff_s": 0.0, "concurrency": 1, "timeout_s": 20.0, "queue_max": QUEUE_MAX},
]
RETRIES = {service["name"]: service.get("retries", 0) for service in SERVICES}
TIMEOUT_S = 20.0
NEXT = {
    "": {"queued", "running"},
    "queued": {"running", "cancelled"},
    "running": {"progress", "item", "retry", "returned", "done", "failed", "cancelled"},
    "retry": {"running", "cancelled"},
    "returned": {"running", "cancelled"},
}
NEXT["progress"] = NEXT["item"] = NEXT["running"]
"""What may follow what in the stream of a call."""

T = TypeVar("T")


@dataclass
class Made:
    """What the model knows of a call."""

    service: str
    value: int
    key: str
    final: str = ""
    results: set[int] = field(default_factory=set)
    """Results that were kept: at most one."""
    emitted: dict[int, list[int]] = field(default_factory=dict)
    """Values that were acknowledged, by attempt."""
    begun: dict[int, float] = field(default_factory=dict)
    """When each attempt was given to a worker."""


@dataclass
class Member:
    """What the model knows of a worker."""

    puppet: PuppetWorker
    connected: bool = False
    known: bool = False
    """Whether the hub gives it calls over this connection: not when its lease ended since it connected."""
    renewed: float = 0.0
    seen: int = 0
    """How many of ``puppet.given`` the model has."""
    holds: set[Key] = field(default_factory=set)
    """What the hub has given it and not taken away."""
    believes: set[Key] = field(default_factory=set)
    """What it thinks that it holds."""
    past: list[Key] = field(default_factory=list)


class CallsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patch = pytest.MonkeyPatch()
        numbers = count()
        self.patch.setattr(call, "os", SimpleNamespace(urandom=lambda size: next(numbers).to_bytes(size, "big")))
        self.made: dict[str, Made] = {}
        self.members: list[Member] = []
        self.refused: set[int] = set()
        """Results and values that were refused: they must be nowhere."""
        self.givers: dict[Key, str] = {}
        self.serial = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(60):
                return await work

        return self.loop.run_until_complete(bounded())

    @initialize()
    def open(self) -> None:
        self.test = TestHub(local=False)
        self.run(self.test.__aenter__())
        self.join(2)
        self.join(1)

    def teardown(self) -> None:
        if hasattr(self, "test"):
            try:
                self.finish_all()
            finally:
                self.run(self.test.__aexit__())
        self.loop.close()
        self.patch.undo()

    def number(self) -> int:
        self.serial += 1
        return self.serial

    # -- what the model is told

    def now(self) -> float:
        return self.test.clock.monotonic()

    def observe(self) -> None:
        """Attempts that came to workers."""
        for member in self.members:
            for key in member.puppet.given[member.seen :]:
                assert member.connected
                assert self.givers.setdefault(key, member.puppet.name) == member.puppet.name, f"{key} was given to two"
                assert key[0] in self.made
                member.holds.add(key)
                member.believes.add(key)
                member.past.append(key)
                self.made[key[0]].begun.setdefault(key[1], member.puppet.given_at[key])
            member.seen = len(member.puppet.given)

    def take_away(self, key: Key) -> None:
        for member in self.members:
            member.holds.discard(key)

    def expire(self) -> None:
        """What time has taken from workers."""
        now = self.now()
        for member in self.members:
            if now >= member.renewed + LEASE_S - 1e-6:
                member.holds.clear()
                member.known = False
            for key in list(member.holds):
                made = self.made[key[0]]
                if made.service == "narrow" and now >= made.begun[key[1]] + TIMEOUT_S - 1e-6:
                    member.holds.discard(key)

    # -- rules: callers

    @rule(service=st.sampled_from(sorted(RETRIES)), delay=st.sampled_from([0, 0, 0, 4]), priority=st.integers(-2, 2))
    def submit(self, service: str, delay: int, priority: int) -> None:
        value = self.number()
        self.note(service, value, "", delay=delay, priority=priority)

    @rule(service=st.sampled_from(["plain", "again"]), key=st.sampled_from("ab"), value=st.sampled_from([-1, -2]))
    def submit_with_a_key(self, service: str, key: str, value: int) -> None:
        known = [made for made in self.made.values() if (made.service, made.key) == (service, key)]
        before = set(self.made)
        try:
            self.note(service, value, key, idempotency_key=key)
        except IdempotencyMismatch:
            assert known
            assert known[0].value != value
        else:
            assert not known or (known[0].value == value and set(self.made) == before)

    def note(self, service: str, value: int, key: str, **options: Any) -> None:
        try:
            handle = self.run(self.test.submit(service, value, **options))
        except TooManyCalls:
            open_ = [made for made in self.made.values() if made.service == service and not made.final]
            assert len(open_) >= QUEUE_MAX
            return
        self.made.setdefault(handle.id, Made(service, value, key))
        self.observe()

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.made)))
        made = self.made[identity]
        try:
            status = self.run(self.test.get(identity).cancel())
        except Exception as error:
            assert getattr(error, "code", "") == "call-ended"  # noqa: PT017 - there may be none
            assert made.final in ("done", "failed")
        else:
            assert status.state == "cancelled"
            assert made.final in ("", "cancelled")
            for member in self.members:
                for key in [key for key in member.holds if key[0] == identity]:
                    member.holds.discard(key)
        self.run(self.test.settle())
        self.observe()

    # -- rules: workers

    @precondition(lambda self: len(self.members) < 6)
    @rule(capacity=st.integers(1, 3))
    def join(self, capacity: int) -> None:
        puppet = PuppetWorker(self.test, f"{len(self.members)}", *SERVICES, capacity=capacity)
        self.members.append(Member(puppet))
        self.connect(self.members[-1])

    def connect(self, member: Member) -> None:
        async def connect() -> None:
            member.puppet.connect(sorted(member.believes))
            await self.test.settle()

        member.connected = member.known = True
        member.renewed = self.now()
        self.run(connect())
        assert set(member.puppet.lost) == member.believes - member.holds
        member.believes &= member.holds
        self.observe()

    @precondition(lambda self: any(not member.connected for member in self.members))
    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        self.connect(data.draw(st.sampled_from([member for member in self.members if not member.connected])))

    @precondition(lambda self: any(member.connected for member in self.members))
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from([member for member in self.members if member.connected]))
        self.run(self.cut(member))

    async def cut(self, member: Member) -> None:
        member.puppet.disconnect()
        member.connected = False
        await self.test.settle()

    def speaker(self, data: st.DataObject) -> tuple[Member, Key, bool] | None:
        """A worker, an attempt that it once had, and whether it is its own still."""
        able = [member for member in self.members if member.connected and member.past]
        if not able:
            return None
        member = data.draw(st.sampled_from(able))
        keys = sorted(member.holds) or member.past
        key = data.draw(st.sampled_from(keys if data.draw(st.integers(0, 3)) else member.past))
        return member, key, key in member.holds

    @rule(data=st.data(), how=st.sampled_from(["finish", "finish", "fail", "fail for good", "hand back"]))
    def end(self, data: st.DataObject, how: str) -> None:
        chosen = self.speaker(data)
        if chosen is None:
            return
        member, key, own = chosen
        puppet, made, value = member.puppet, self.made[key[0]], self.number() + 1_000_000
        if how == "finish":
            code = self.run(puppet.finish(key, value))
        elif how == "hand back":
            code = self.run(puppet.hand_back(key))
        else:
            code = self.run(puppet.fail(key, again=how == "fail"))
        if own:
            assert code == ""
            if how == "finish":
                made.results.add(value)
        else:
            assert code in ("attempt-fenced", "")
            if how == "finish":
                self.refused.add(value)  # be it late or said before
        self.take_away(key)
        member.believes.discard(key)
        self.observe()

    @rule(data=st.data(), again=st.booleans())
    def emit(self, data: st.DataObject, again: bool) -> None:
        chosen = self.speaker(data)
        if chosen is None:
            return
        member, key, own = chosen
        values = self.made[key[0]].emitted.setdefault(key[1], [])
        value = self.number() + 2_000_000
        seq = len(values)
        if own and again and values:
            seq, value = seq - 1, values[-1]
        code = self.run(member.puppet.emit(key, seq, value, "item"))
        if own:
            assert code == ""
            if value not in values:
                values.append(value)
        else:
            assert code == "attempt-fenced"
            self.refused.add(value)
        self.observe()

    # -- rules: time and crashes

    @rule(seconds=st.sampled_from([0.5, 2.0, 7.0, 16.0]), renewing=st.booleans())
    def advance(self, seconds: float, renewing: bool) -> None:
        if renewing:
            for member in self.members:
                if member.connected and member.known:
                    member.puppet.renew()
                    member.renewed = self.now()
        self.run(self.test.advance(seconds))
        self.observe()
        self.expire()

    @rule(crash=st.booleans())
    def lose_the_hub(self, crash: bool) -> None:
        self.run(self.test.crash() if crash else self.test.restart())
        self.hub_was_gone()

    @rule(data=st.data(), kept=st.booleans())
    def crash_while_an_end_is_on_its_way(self, data: st.DataObject, kept: bool) -> None:
        """Before it is on the disk, or when it is, and before anybody hears of that."""
        chosen = self.speaker(data)
        if chosen is None:
            return
        member, key, own = chosen
        value = self.number() + 3_000_000
        end = f.FinishFrame(0, *key, msgspec.json.encode(value), "application/json")

        async def crash() -> None:
            store = store_of(self.test.hub.log)
            assert store is not None
            commit = store.commit

            def killing(unit: Any) -> Any:
                outcome = commit(unit)
                self.loop.call_soon_threadsafe(self.test._kill)  # ahead of the report of this commit
                return outcome

            if kept and own:
                setattr(store, "commit", killing)  # noqa: B010 - a method
                crashes = self.test.crashes
                member.puppet.say(end)
                while self.test.crashes == crashes:  # noqa: ASYNC110 - a thread brings it about
                    await asyncio.sleep(0)
            else:
                member.puppet.say(end)
                self.test._kill()
            await self.test.settle()

        self.run(crash())
        if kept and own:
            self.made[key[0]].results.add(value)
            self.take_away(key)
        else:
            self.refused.add(value)
        self.observe()
        self.hub_was_gone()

    def hub_was_gone(self) -> None:
        """What it held a worker holds for another lease, if it is still so in the hub's files."""
        for member in self.members:
            member.connected = member.known = False
            member.renewed = self.now()
            worker = self.test.hub.calls.workers.get(member.puppet.name)
            held = {(call.id, call.attempt) for call in worker.held.values()} if worker is not None else set()
            assert member.holds <= held, f"{member.holds - held} was forgotten"
            for key in held - member.holds:  # granted in the very commit
                assert key not in self.givers, f"{key} came back"
                self.givers[key] = member.puppet.name
            for key in held:
                self.made[key[0]].begun[key[1]] = self.now()
            member.holds = held

    # -- what must be true

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        if hasattr(self, "test"):
            self.run(self.check())

    async def check(self) -> None:
        calls = self.test.hub.calls
        for member in self.members:
            worker = calls.workers.get(member.puppet.name)
            held = {(call.id, call.attempt) for call in worker.held.values()} if worker is not None else set()
            assert held == member.holds
            if member.known:
                assert len(held) <= member.puppet.capacity
        for identity, made in self.made.items():
            await self.check_call(identity, made)
        assert set(calls.ledger.open) == {identity for identity, made in self.made.items() if not made.final}
        states = Counter((call.request.service, call.state) for call in calls.ledger.open.values())
        for name, service in calls.services.items():
            assert service.running == states[name, CallState.RUNNING]
            timed = [c for c in calls.ledger.open.values() if c.request.service == name and c.timer and not c.worker]
            assert service.delayed == len(timed)
            assert name != "narrow" or service.running <= 1 or not service.may_start

    async def check_call(self, identity: str, made: Made) -> None:
        """Its stream tells a story that is possible, and the one that its workers know."""
        records = [msgspec.json.decode(r) for r in await read_records(self.test.hub.log, f"__call/{identity}")][1:]
        before, attempt, failures = "", 0, 0
        items: dict[int, list[int]] = {}
        for record in records:
            event = record["event"]
            assert event in NEXT[before], f"{event} after {before}"
            if event == "running":
                assert record["attempt"] == attempt + 1
                attempt += 1
                assert self.givers.get((identity, attempt), record["worker"]) == record["worker"]
            elif event != "queued":
                assert record.get("attempt", 0) == attempt
            if event == "item":
                items.setdefault(attempt, []).append(record["data"])
            failures += event in ("retry", "failed")
            before = event
        assert failures <= RETRIES[made.service] + 1
        assert {number: values for number, values in made.emitted.items() if values} == items
        assert not self.refused & {value for values in items.values() for value in values}
        final = before if before in ("done", "failed", "cancelled") else ""
        assert made.final in ("", final), f"it was {made.final}, and is {final}"
        made.final = final
        assert self.test.hub.log.find(f"__call/{identity}").closed == bool(final)
        status = await self.test.get(identity).status()
        assert status.attempt == attempt
        assert status.state == (final or ("running" if before in ("running", "progress", "item") else "queued"))
        if final == "done":
            assert {records[-1]["data"]} == {status.result} == made.results
            assert status.result not in self.refused
        else:
            assert not made.results

    def finish_all(self) -> None:
        """Given a worker that does its work, every call ends."""
        for member in self.members:
            if member.connected:
                self.run(self.cut(member))
        last = Member(PuppetWorker(self.test, "last", *SERVICES, capacity=100))
        self.members.append(last)
        self.connect(last)
        for _ in range(60):
            for key in sorted(last.holds):
                value = self.number() + 4_000_000
                if self.run(last.puppet.finish(key, value)) == "":
                    self.made[key[0]].results.add(value)
                self.take_away(key)
                self.observe()
            if not self.test.hub.calls.ledger.open:
                break
            self.advance(2.0, renewing=last.connected)
        self.run(self.check())
        assert all(made.final for made in self.made.values())


CallsMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("WAYSIDE_PROPERTY_EXAMPLES", "60")),
    stateful_step_count=40,
    deadline=None,
    derandomize="WAYSIDE_PROPERTY_EXAMPLES" not in os.environ,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

TestCalls = CallsMachine.TestCase
