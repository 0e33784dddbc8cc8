"""Subscriptions under whatever happens: workers that stop, come late, or repeat themselves; streams that come and go; a hub
that dies. What was acked stays acked, what was not is told again, and two workers never have one wake."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest

from tests.support.subscriptions import LEASE_S, Subscribed, pending
from wayside.core.errors import Refusal
from wayside.testing import TestHub

T = TypeVar("T")
SEEDS = int(os.environ.get("WAYSIDE_SUBSCRIPTION_SEEDS", "6"))
STEPS = 80
PATHS = ("a/1", "a/2", "a/3", "b")


async def attempt(answer: Awaitable[T]) -> tuple[T | None, str]:
    """An answer; or None, and the code of what it was refused for."""
    try:
        return await answer, ""
    except Refusal as refusal:
        return None, refusal.code


class Worker:
    """Does anything, and remembers what was true by the answers that it got."""

    def __init__(self, test: TestHub, subscribed: Subscribed, seed: int) -> None:
        self.test = test
        self.subscribed = subscribed
        self.random = random.Random(seed)
        self.held: dict[str, Any] | None = None
        self.fenced: list[dict[str, Any]] = []
        self.offsets: dict[str, list[str]] = {}
        """Of records that are not acked, by stream."""
        self.acked: dict[str, str] = {}
        self.generation = 0

    async def publish(self) -> None:
        path = self.random.choice(PATHS)
        self.offsets.setdefault(path, []).append(await self.test.hub.publish(path, 1))

    async def delete(self) -> None:
        path = self.random.choice(PATHS)
        if path in self.offsets:
            await self.test.hub.delete(path)
            del self.offsets[path]
            self.acked.pop(path, None)

    async def claim(self) -> None:
        claimed, code = await attempt(self.subscribed.claim())
        if claimed is None:
            assert code in ("already-claimed", "no-pending-work")
            assert self.held is not None if code == "already-claimed" else not any(self.offsets.values())
            return
        if self.held is not None:  # the hub knows that the lease was over
            self.fenced.append(self.held)
        assert claimed["generation"] > self.generation
        self.generation, self.held = claimed["generation"], claimed
        self.check(claimed["streams"])

    def check(self, streams: list[dict[str, Any]]) -> None:
        for each in streams:
            path, left = each["path"], self.offsets.get(each["path"], [])
            assert each["has_pending"] == bool(left), each
            if left:
                assert each["tail_offset"] == left[-1]
            if path in self.acked:
                assert each["acked_offset"] == self.acked[path]

    async def ack(self) -> None:
        if self.held is None:
            return
        acks = []
        for path, left in self.offsets.items():
            if left and self.random.random() < 0.5:
                acks.append((path, self.random.choice(left)))
        done = self.random.random() < 0.4
        answer, code = await attempt(self.subscribed.ack(self.held, acks, done=done))
        if answer is None:
            assert code == "fenced"
            self.fenced.append(self.held)
            self.held = None
            return
        for path, offset in acks:
            left = self.offsets[path]
            del left[: left.index(offset) + 1]
            self.acked[path] = offset
        if done:
            assert answer["next_wake"] == any(self.offsets.values())
            self.fenced.append(self.held)
            self.held = None

    async def release(self) -> None:
        if self.held is not None:
            _, code = await attempt(self.subscribed.release(self.held))
            assert code in ("", "fenced")
            self.fenced.append(self.held)
            self.held = None

    async def come_late(self) -> None:
        if self.fenced:
            stale = self.random.choice(self.fenced)
            _, code = await attempt(self.subscribed.ack(stale, pending(stale), done=True))
            assert code == "fenced"

    async def wait(self) -> None:
        await self.test.advance(self.random.choice((0.5, 0.9, 1.1)) * LEASE_S)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_nothing_acked_comes_back_and_nothing_else_is_lost(seed: int) -> None:
    """Whatever a worker and its hub go through, in the end all is acked once, and the cursors are at the tails."""
    async with TestHub() as test:
        subscribed = Subscribed(test)
        await test.hub.create("wakes")
        await test.hub.publish("a/old", 1)
        await subscribed.put(pattern="a/*", streams=("b",))
        worker = Worker(test, subscribed, seed)
        steps = [worker.publish, worker.claim, worker.ack] * 3
        steps += [worker.release, worker.come_late, worker.wait, worker.delete, test.crash, test.restart]
        for _ in range(STEPS):
            await worker.random.choice(steps)()
        await test.advance(LEASE_S + 1)
        while any(worker.offsets.values()):
            claimed = await subscribed.claim()
            worker.check(claimed["streams"])
            await subscribed.ack(claimed, pending(claimed), done=True)
            for path, offset in pending(claimed):
                assert worker.offsets[path][-1] == offset
                worker.offsets[path] = []
        assert subscribed.state().pending == set()
        links = subscribed.state().links
        for path in worker.offsets:
            assert links[path].offset == str((await test.hub.info(path)).tail)
        generations = [wake["generation"] for wake in await subscribed.wakes()]
        assert generations == sorted(set(generations))
