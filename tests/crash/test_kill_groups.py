"""Groups while their hub and their members are killed: nothing that was acknowledged is lost, and whatever happened twice
is explained by its receipt.

What was promised is noted by those who publish (:mod:`tests.crash.groups_publishers`), what happened by the members
themselves (:mod:`tests.crash.groups_app`), and what the hub knows of a record is its receipt;
:mod:`tests.crash.groups_oracle` compares the three. ``WAYSIDE_CRASH_GROUP_KILLS`` sets how many kills there are,
``WAYSIDE_CRASH_SEED`` repeats a run as far as processes can be repeated.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

import wayside
from tests.crash.calls_processes import Process, Stage
from tests.crash.groups_app import DEAD, GROUPS, LEASE_S, ORDERED, OUT, TRANSFORM
from tests.crash.groups_oracle import EXTRA, Story, read_notes, violations
from tests.crash.groups_publishers import Bare, Named, Posted, Publisher, by_stream
from tests.support.killed import client_of_killed
from tests.support.processes import free_port
from wayside import Client

KILLS = int(os.environ.get("WAYSIDE_CRASH_GROUP_KILLS", "16"))
SEED = int(os.environ.get("WAYSIDE_CRASH_SEED", str(random.SystemRandom().randrange(1 << 32))))
MEMBERS = ("client", "client", "plain")
SETTLE_S = 60.0
"""What the records that are left may take, once nobody is killed any more."""

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(max(300, 10 * KILLS))]


class Cast(Stage):
    """A hub and members of its groups."""

    app = "tests.crash.groups_app"
    actor = "member"
    lease_s = LEASE_S

    def kind(self, place: int) -> str:
        return MEMBERS[place]


class Reading:
    """Reads what there is of every record, and compares."""

    def __init__(self, hub: Client, directory: Path) -> None:
        self.stories: dict[tuple[str, str, str], Story] = {}
        self.counts: Counter[str] = Counter()
        """Records of all groups, by what became of them."""
        self.noted: Counter[str] = Counter()
        self.duplicates: Counter[str] = Counter()
        """Effects beyond the first of a record, by why there were any."""
        self.disorder: list[str] = []
        self.absent: Counter[str] = Counter()
        self._hub = hub
        self._notes = read_notes(directory)

    async def check_all(self, publishers: list[Publisher]) -> None:
        """Every record that may have been published, in every group."""
        for stream, published in by_stream(publishers).items():
            there = {record.json()["id"]: record for record in await self._records(stream)}
            known = {each.record["id"]: each for each in published}
            assert set(there) <= set(known), f"{stream} has what nobody published"
            for identity, each in known.items():
                record = there.get(identity)
                assert record is not None or not each.acknowledged, f"{each} was acknowledged, and is lost"
                assert record is None or each.offset in ("", record.offset), f"{each} is at {record}"
                self.absent["unknown"] += record is None
            for group in GROUPS:
                stories = [await self._check(group, stream, record) for record in there.values()]
                if group == ORDERED:
                    self.disorder += violations(stories)
        await self._check_dead()
        await self._check_products()
        strangers = set(self._notes) - set(self.stories)
        assert not strangers, f"members were given what is not there: {sorted(strangers)[:3]}"

    async def _records(self, stream: str) -> list[Any]:
        records = [record async for record in self._hub.read(stream, follow=False)]
        ids = Counter(record.json().get("id") for record in records)
        assert stream in (OUT, DEAD) or max(ids.values(), default=1) == 1, f"{stream}: {ids.most_common(3)}"
        return records

    async def _check(self, group: str, stream: str, record: Any) -> Story:
        receipt = await self._hub.receipts(group, stream, record.offset)
        key = (group, stream, record.offset)
        story = Story(*key, record.json(), receipt, self._notes.get(key, []), GROUPS[group]["retries"])
        self.stories[key] = story
        outcome = story.check()
        story.require(outcome != "lost", "it is acked, and nothing was done")
        story.require(group == ORDERED or outcome != "dead", "it is dead where nothing is given up")
        story.require(outcome == "dead" or group != ORDERED or story.record["fate"] == "good", "it cannot be done")
        self.counts[outcome] += 1
        self.noted.update(note.what for note in story.notes)
        self.noted["late"] += story.late()
        self.noted["deliveries"] += len(story.deliveries)
        for why in story.again():
            self.duplicates[why] += 1
            story.require(why != "unexplained", "it was done twice, and its receipt does not say why")
        return story

    async def _check_dead(self) -> None:
        """Each dead record is among the dead letters, once, and nothing else is."""
        dead = {story.offset_in(DEAD): story for story in self.stories.values() if story.dead}
        letters = await self._records(DEAD)
        named = Counter((each.headers["wayside-dead-stream"], each.headers["wayside-dead-offset"]) for each in letters)
        assert named == Counter((story.stream, story.offset) for story in dead.values()), "not each is there once"
        for letter in letters:
            story = dead[letter.offset]
            story.require(letter.json() == story.record, "its dead letter is another record")
            story.require(int(letter.headers["wayside-dead-attempts"]) == len(story.deliveries), "its letter miscounts")
        self.noted["dead letters"] = len(letters)

    async def _check_products(self) -> None:
        """What was published with acks is there once for each record, from the attempt that was acked."""
        products = [record.json() for record in await self._records(OUT)]
        done = {
            story.record["id"]: {
                "of": story.record["id"],
                "stream": story.stream,
                "offset": story.offset,
                "lease": story.deliveries[-1].lease,
            }
            for story in self.stories.values()
            if story.group == TRANSFORM
        }
        assert Counter(product["of"] for product in products) == Counter(done.keys()), "not each was made once"
        for product in products:
            assert product == done[product["of"]], f"{product} is of another attempt than {done[product['of']]}"
        self.noted["products"] = len(products)


async def _make(hub: Client) -> None:
    for stream in (OUT, "work/a", "work/b"):
        await hub.create(stream)
    for name, settings in GROUPS.items():
        await hub.put_group(name, **settings)


async def _wait_until_settled(hub: Client, stage: Stage, groups: Iterable[str] = GROUPS) -> None:
    """None of the groups has anything to do any more."""
    busy: dict[str, Any] = {}
    try:
        async with asyncio.timeout(SETTLE_S):
            while True:
                stage.tend()
                for process in (stage.hub, *stage.workers):
                    process.require_alive()
                described = [await hub.describe_group(name) for name in groups]
                busy = {
                    each["name"]: each
                    for each in described
                    if each["lag"] or each["in_flight"] or each["waiting"] or each["parked"]
                }
                if not busy:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"they do not come to rest: {busy}") from None


def _raise_failures(running: list[asyncio.Task[None]]) -> None:
    for task in running:
        if task.done():
            task.result()


async def test_no_record_is_lost(tmp_path: Path) -> None:
    """Whatever is killed at whatever moment, a record that was acknowledged is acked or dead in each group, once; each of
    its effects belongs to a delivery on record; equal keys are done one after the other; a dead record is in one place;
    what is published with an ack is there once."""
    print(f"\nWAYSIDE_CRASH_SEED={SEED} WAYSIDE_CRASH_GROUP_KILLS={KILLS}")
    stage = Cast(tmp_path, random.Random(SEED), len(MEMBERS))
    kinds = {"bare": Bare, "named": Named, "posted": Posted}
    publishers: list[Publisher] = [kind(stage.url, name, SEED) for name, kind in kinds.items()]
    running: list[asyncio.Task[None]] = []
    try:
        await stage.ready()
        async with wayside.connect(stage.url, retry_s=None) as hub:
            await _make(hub)
            running = [asyncio.create_task(publisher.run()) for publisher in publishers]
            while stage.kills < KILLS:
                await stage.blow()
                _raise_failures(running)
            await stage.calm()
            for publisher in publishers:
                publisher.stopping = True
            await asyncio.wait(running, timeout=SETTLE_S)
            _raise_failures(running)
            stuck = [each for each, task in zip(publishers, running, strict=True) if not task.done()]
            assert not stuck, f"they wait for ever: {stuck}"
            await _wait_until_settled(hub, stage)
            await stage.dismiss()
            reading = Reading(hub, tmp_path)
            await reading.check_all(publishers)
    finally:
        for task in running:
            task.cancel()
        stage.end()
    asked: Counter[str] = sum((publisher.counts for publisher in publishers), Counter())
    noted, counts = reading.noted, reading.counts
    print(
        f"{stage.kills} kills ({_list(stage.blows)}). {asked['acknowledged']} records acknowledged, {asked['unknown']} of "
        f"unknown outcome ({reading.absent['unknown']} of them are not there), in {len(GROUPS)} groups: {_list(counts)}, "
        f"lost 0. {noted['deliveries']} deliveries, {noted['effect']} effects, {reading.duplicates.total()} of them "
        f"duplicates: {_list(reading.duplicates)}; unexplained 0. {noted['late']} late effects, {noted['refused']} refusals. "
        f"{noted['dead letters']} dead letters and {noted['products']} products, each once. Acks beside: "
        f"{_list(Counter({what: noted[what] for what in EXTRA}))}, all harmless. Key order violated "
        f"{len(reading.disorder)} times."
    )
    assert not reading.disorder, "\n".join(reading.disorder[:3])
    assert not stage.said(), "\n".join(stage.said()[:20])
    assert asked["acknowledged"] > 4 * KILLS, "the publishers hardly got through: this was no test"
    assert counts["dead"], "nothing has died: this was no test"


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


async def _holds(hub: Client, member: Process) -> bool:
    """Wait until a member holds records, or there is nothing to be had any more."""
    while True:
        described = await hub.describe_group(TRANSFORM)
        held = {each["name"]: each["in_flight"] for each in described["members"]}
        if any(count for name, count in held.items() if member.named(name)):
            return True
        if not (described["lag"] or described["in_flight"] or described["waiting"]):
            return False
        await asyncio.sleep(0.005)


async def _stories(hub: Client, directory: Path) -> list[Story]:
    notes = read_notes(directory)
    records = [record async for record in hub.read("work/a", follow=False)]
    stories: list[Story] = []
    for record in records:
        key = (TRANSFORM, "work/a", record.offset)
        receipt = await hub.receipts(*key)
        stories.append(Story(*key, record.json(), receipt, notes.get(key, []), -1))
    return stories


async def test_a_member_that_comes_back_late_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that was stopped for longer than its lease goes on with what others have done by then: what it says is
    refused, and what it would have published is not there."""
    monkeypatch.setenv("WAYSIDE_CRASH_MEMBERS", "0")
    stage = Cast(tmp_path, random.Random(SEED), 2)
    late = stage.workers[0]
    records = [{"id": f"{number}", "key": "", "n": number, "fate": "good", "failures": 0} for number in range(1000)]
    published = 0
    try:
        await stage.ready()
        async with asyncio.timeout(2 * SETTLE_S), wayside.connect(stage.url) as hub:
            await hub.create(OUT)
            await hub.put_group(TRANSFORM, **GROUPS[TRANSFORM])
            taken_over: list[Story] = []
            while not taken_over:  # where it had nothing to lose, it is stopped again
                await hub.publish("work/a", *records[published : published + 40])
                published += 40
                if not await _holds(hub, late):
                    continue
                await late.stop()
                await _wait_until_settled(hub, stage, [TRANSFORM])
                stories = await _stories(hub, tmp_path)
                taken_over = [
                    story
                    for story in stories
                    if any(late.named(each.member) and each.why == "lease ended" for each in story.deliveries)
                ]
                late.send(signal.SIGCONT)
            refused: list[Story] = []
            while not refused:
                await asyncio.sleep(0.05)
                refused = [each for each in await _stories(hub, tmp_path) if each.noted("refused")]
            await stage.dismiss()
            outcomes = Counter([story.check() for story in await _stories(hub, tmp_path)])
            products = Counter([record.json()["of"] async for record in hub.read(OUT, follow=False)])
    finally:
        stage.end()
    assert set(outcomes) <= {"ok", "duplicated"}
    assert outcomes.total() == published
    assert products == Counter(record["id"] for record in records[:published])
    assert not stage.said(), "\n".join(stage.said()[:20])


async def _settle(client: httpx.AsyncClient, url: str, **body: Any) -> dict[str, Any] | None:
    """Say something of records; None where there was no answer."""
    try:
        settled: dict[str, Any] = (await client.post(f"{url}/v1/group/{ORDERED}/ack", json=body)).json()
    except httpx.TransportError:
        return None
    return settled


@pytest.mark.parametrize("point", ["before", "during", "after"])
async def test_a_hub_is_killed_while_a_record_dies(tmp_path: Path, point: str) -> None:
    """Killed between a record's last failure and its move to the dead letters, or in the middle of that: the record is
    moved once, and what else was held is held."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    arguments = ("hub", str(tmp_path / "data"), str(port))
    processes = [Process(tmp_path / "first.said", Cast.app, *arguments, point, "-")]
    try:
        await processes[0].serves(url)
        async with client_of_killed(30) as client:
            stream = "work/a"
            await client.put(
                f"{url}/v1/stream/{stream}", headers={"Content-Type": "application/json"}, content="[0,1,2]"
            )
            settings = {**GROUPS[ORDERED], "lease_s": 600}
            assert (await client.put(f"{url}/v1/group/{ORDERED}", json=settings)).status_code == 201
            claimed = (await client.post(f"{url}/v1/group/{ORDERED}/claim", json={"max": 3})).json()
            marks = [{**record, "lease": claimed["lease"]} for record in claimed["records"]]
            marks = [{name: mark[name] for name in ("stream", "offset", "lease")} for mark in marks]
            rejected = {**marks[0], "kind": "rejected", "reason": "no use"}
            processes[0].killed = True
            await _settle(client, url, nacks=[rejected])
            await processes[0].ended()
            processes.append(Process(tmp_path / "second.said", Cast.app, *arguments, "-"))
            await processes[1].serves(url)
            async with wayside.connect(url) as hub:
                await _settle(client, url, nacks=[rejected])  # for the case that the failure was not on record
                async with asyncio.timeout(SETTLE_S):
                    while not (await hub.describe_group(ORDERED))["counts"]["dead"]:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                settled = await _settle(client, url, acks=marks[1:])
                assert settled is not None
                assert settled["acked"] == 2
                letters = [record async for record in hub.read(DEAD, follow=False)]
                receipts = [await hub.receipts(ORDERED, "work/a", mark["offset"]) for mark in marks]
                described = await hub.describe_group(ORDERED)
    finally:
        for process in processes:
            if process.running:
                process.send(signal.SIGKILL)
                process.wait()
    assert [letter.json() for letter in letters] == [0]
    assert [receipt["state"] for receipt in receipts] == ["dead", "acked", "acked"]
    assert [receipt["attempts"] for receipt in receipts] == [1, 1, 1]
    assert receipts[0]["dead_letter"] == {"stream": DEAD, "offset": letters[0].offset}
    assert [described[what] for what in ("lag", "in_flight", "waiting", "dead")] == [0, 0, 0, 1]
