"""Calls while their hub and their workers are killed: each ends once, and whatever ran twice is explained.

What was promised is noted by those who call (:mod:`tests.crash.calls_callers`), what ran by the handlers themselves
(:mod:`tests.crash.calls_app`), and what became of it is read from the calls' streams; :mod:`tests.crash.calls_oracle`
compares the three. ``WAYSIDE_CRASH_CALL_KILLS`` sets how many kills there are, ``WAYSIDE_CRASH_SEED`` repeats a run as
far as processes can be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

import wayside
from tests.crash.calls_app import CAPACITY, LONG_S
from tests.crash.calls_callers import PARAMETERS, SETTLE_S, Blocking, Caller, Channelled, Plain
from tests.crash.calls_oracle import FINAL, Attempt, Execution, Noted, Story, steps_of
from tests.crash.calls_processes import Process, Stage
from tests.support.killed import client_of_killed
from wayside import CallHandle, Client

KILLS = int(os.environ.get("WAYSIDE_CRASH_CALL_KILLS", "25"))
SEED = int(os.environ.get("WAYSIDE_CRASH_SEED", str(random.SystemRandom().randrange(1 << 32))))
WORKERS = 3

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(max(300, 10 * KILLS))]


class Reading:
    """Reads over HTTP what became of calls, and compares."""

    def __init__(self, client: httpx.AsyncClient, stage: Stage, noted: Noted) -> None:
        self.stories: dict[str, Story] = {}
        self.counts: Counter[str] = Counter()
        self.duplicates: Counter[str] = Counter()
        """Executions beyond the first of a call, by why there were any."""
        self.unexplained: list[Story] = []
        self._client = client
        self._stage = stage
        self._noted = noted

    async def check_all(self, callers: list[Caller]) -> None:
        """Every call that was acknowledged, that may have been taken, or that ran."""
        for state in ("running", "queued"):
            document = (await self._get(f"/v1/call/?state={state}&limit=1000")).json()
            for call in document["calls"][:3]:
                story = await self._read(call["id"], call["service"], None)
                raise AssertionError(f"{document['found']} have not ended, such as {story}")
        for asked in [asked for caller in callers for asked in caller.asked if asked.name]:
            assert asked.name not in self.stories, f"there are two of {asked}"
            story = await self.check(asked.name, asked.service, asked.arguments, must=bool(asked.id))
            if story is not None:
                story.require(not asked.cancelled or story.end == "cancelled", "it was cancelled, and ended otherwise")
                told = [(record["event"], record.get("data")) for record in story.records]
                story.require(not asked.followed or asked.events == told, f"a follower was told {asked.events}")
        for identity, executions in self._noted.executions.items():
            if identity not in self.stories and executions[0].durable:
                await self.check(identity, executions[0].service, None, must=True)
                self.counts["not acknowledged"] += 1

    async def check(
        self, identity: str, service: str, arguments: tuple[Any, ...] | None, *, must: bool
    ) -> Story | None:
        """Check a call, and the steps that it made. ``must``: there is to be such a call."""
        story = await self._read(identity, service, arguments)
        if story is None:
            ran = self._noted.executions.get(identity, [])
            assert not must, f"{identity}, {service}{arguments}, is lost; it ran: {ran}"
            return None
        story.check()
        self.stories[identity] = story
        self.counts["executions"] += len(story.executions)
        self.counts["late"] += story.late()
        for before in story.again():
            why = self._why_again(before)
            self.duplicates[why] += 1
            if why == "unexplained":
                self.unexplained.append(story)
        if arguments is not None:
            for step, name, argument in steps_of(identity, service, arguments):
                if await self.check(step, name, argument, must=story.end == "done"):
                    self.counts["steps"] += 1
        return story

    def _why_again(self, before: Attempt) -> str:
        """Why there was another attempt after one."""
        if before.ended == "lost":
            if before.worker.startswith("hub-"):
                return "hub restarted"
            return self._stage.why_lost(self._noted.pids[before.worker], before.ended_ms)
        return before.ended if before.ended in ("failed", "returned") else "unexplained"

    async def _read(self, identity: str, service: str, arguments: tuple[Any, ...] | None) -> Story | None:
        """A call's story; None where there is no such call."""
        records: list[dict[str, Any]] = []
        offset = "-1"
        while True:
            answer = await self._get(f"/v1/call/{identity}?offset={offset}")
            if answer.status_code == 404:
                return None
            assert answer.status_code == 200, f"{identity}: {answer.status_code} {answer.text}"
            batch = answer.json()
            records += batch
            offset = answer.headers["Stream-Next-Offset"]
            closed = answer.headers.get("Stream-Closed") == "true"
            if closed or not batch:
                executions = self._noted.executions.get(identity, [])
                return Story(identity, service, arguments, records, closed, executions)

    async def _get(self, target: str) -> httpx.Response:
        return await self._client.get(f"{self._stage.url}{target}")


async def _wait_for_services(client: httpx.AsyncClient, stage: Stage) -> None:
    """Every worker has said what it offers."""
    wanted = {name: 1 if name.startswith("local.") else len(stage.workers) for name in PARAMETERS}
    async with asyncio.timeout(SETTLE_S):
        while True:
            services = (await client.get(f"{stage.url}/v1/service/")).json()["services"]
            there = {service["name"]: service["workers"] for service in services}
            if all(there.get(name, 0) >= count for name, count in wanted.items()):
                return
            await asyncio.sleep(0.05)


async def _wait_until_settled(client: httpx.AsyncClient, url: str, callers: list[Caller]) -> None:
    """No more calls are made, and every call has ended."""
    async with asyncio.timeout(SETTLE_S):
        while any(caller.calls for caller in callers):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        while True:
            states = [await client.get(f"{url}/v1/call/?state={state}&limit=1") for state in ("running", "queued")]
            if not any(state.json()["found"] for state in states):
                return
            await asyncio.sleep(0.1)


def _raise_failures(callers: list[Caller], running: list[asyncio.Task[None]]) -> None:
    for failure in [failure for caller in callers for failure in caller.failures]:
        raise failure
    for task in running:
        if task.done():
            task.result()


async def test_each_call_ends_once(tmp_path: Path) -> None:
    """Whatever is killed at whatever moment, a call that was acknowledged ends exactly once, with the right result, and
    each execution of a handler belongs to an attempt on record."""
    print(f"\nWAYSIDE_CRASH_SEED={SEED} WAYSIDE_CRASH_CALL_KILLS={KILLS}")
    stage = Stage(tmp_path, random.Random(SEED), WORKERS)
    kinds = {"first": Channelled, "second": Channelled, "plain": Plain, "blocking": Blocking}
    callers: list[Caller] = [kind(stage.url, name, SEED) for name, kind in kinds.items()]
    try:
        async with client_of_killed(30) as client:
            await stage.ready()
            await _wait_for_services(client, stage)
            running = [asyncio.create_task(caller.run()) for caller in callers]
            while stage.kills < KILLS:
                await stage.blow()
                _raise_failures(callers, running)
            await stage.calm()
            for caller in callers:
                caller.stopping = True
            with contextlib.suppress(TimeoutError):  # those that have not ended are looked at next
                await _wait_until_settled(client, stage.url, callers)
            reading = Reading(client, stage, Noted(tmp_path))
            await reading.check_all(callers)
            await asyncio.wait(running, timeout=2 * SETTLE_S)
            _raise_failures(callers, running)
            stuck = [caller for caller, task in zip(callers, running, strict=True) if not task.done()]
            assert not stuck, f"they wait for ever: {stuck}"
    finally:
        for caller in callers:
            caller.stopping = True
        stage.end()
    asked: Counter[str] = sum((caller.counts for caller in callers), Counter())
    counts = reading.counts
    print(
        f"{stage.kills} kills ({_list(stage.blows)}). {asked['acknowledged']} calls acknowledged, {asked['asked again']} "
        f"times asked for again, {asked['called']} called, {asked['unknown']} of unknown outcome. {len(reading.stories)} on "
        f"record, {counts['steps']} of them steps, {counts['not acknowledged']} not acknowledged: lost 0, completed twice 0. "
        f"{counts['executions']} executions, {reading.duplicates.total()} of them duplicates: "
        f"{_list(reading.duplicates)}; unexplained {len(reading.unexplained)}. {counts['late']} late results refused."
    )
    assert not reading.unexplained, "\n".join(map(str, reading.unexplained[:3]))
    assert not stage.said(), "\n".join(stage.said()[:20])
    assert asked["acknowledged"] > 2 * KILLS, "the callers hardly got through: this was no test"


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _under_way(directory: Path, worker: Process) -> list[Execution]:
    """What a worker has begun and not ended, as it noted it."""
    noted = Noted(directory)
    executions = [execution for each in noted.executions.values() for execution in each]
    return [e for e in executions if noted.pids[e.worker] == worker.pid and e.how == "killed"]


async def _come_back_late(hub: Client, directory: Path, worker: Process) -> list[CallHandle]:
    """Calls for more than one worker has places for. The one that is given is stopped while it runs some, until others
    run them and it would have had their results; it goes on, and ends them."""
    handles = [await hub.submit("long", number) for number in range(CAPACITY + CAPACITY // 2)]
    waiting = list(handles)
    while waiting and not _under_way(directory, worker):  # none if all the others had places by then
        waiting = [handle for handle in waiting if (await handle.status()).state not in FINAL]
    await worker.stop()
    held = _under_way(directory, worker)
    over_ms = max((execution.began_ms for execution in held), default=0) + 1000 * LONG_S
    attempts = {execution.call: execution.attempt for execution in held}
    for handle in handles:
        while (await handle.status()).attempt <= attempts.get(handle.id, 0):  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.05)
    await asyncio.sleep(max(0, over_ms / 1000 - time.time()))
    worker.send(signal.SIGCONT)
    while _under_way(directory, worker):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return handles


async def test_a_late_result_is_refused(tmp_path: Path) -> None:
    """A worker that was stopped for longer than its lease comes back with results while others run its calls: it is not
    believed, and they end with what the others say."""
    stage = Stage(tmp_path, random.Random(SEED), 2)
    try:
        await stage.ready()
        async with client_of_killed(30) as client, wayside.connect(stage.url) as hub:
            late = 0
            async with asyncio.timeout(2 * SETTLE_S):
                while not late:  # where it had nothing to end by then, it is stopped again
                    await _wait_for_services(client, stage)
                    handles = await _come_back_late(hub, tmp_path, stage.workers[0])
                    assert [await handle.result() for handle in handles] == [n + 2 for n in range(len(handles))]
                    reading = Reading(client, stage, Noted(tmp_path))
                    for number, handle in enumerate(handles):
                        await reading.check(handle.id, "long", (number,), must=True)
                    assert not reading.unexplained, "\n".join(map(str, reading.unexplained))
                    late = reading.counts["late"]
    finally:
        stage.end()
    assert reading.duplicates["worker lost"] > 0


async def test_steps_find_a_place(tmp_path: Path) -> None:
    """However many pipelines there are for the places of a worker, their steps are run: those that wait for a step do not
    keep it from them."""
    stage = Stage(tmp_path, random.Random(SEED), 1)
    try:
        await stage.ready()
        async with client_of_killed(30) as client, wayside.connect(stage.url) as hub:
            await _wait_for_services(client, stage)
            handles = [await hub.submit("pipe", number) for number in range(4 * CAPACITY)]
            results = [await handle.result(SETTLE_S) for handle in handles]
    finally:
        stage.end()
    assert results == [2 * (2 * number + 1) for number in range(4 * CAPACITY)]
