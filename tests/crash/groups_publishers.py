"""Those who publish while everything is being killed, and note what they were promised."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

import wayside
from tests.support.killed import client_of_killed
from wayside import Client, Refusal, UnknownOutcome
from wayside.core.metadata import Publication

STREAMS = ["work/a", "work/b", "work/later/c", "work/later/d", "work/e/f/g", "work/h"]
EARLY = 2
"""Streams that are there from the first; there is one more each time that so many records were published."""
ANOTHER = 40
KEYS = 4
"""Of each publisher, in each stream."""
REST_S = (0.0, 0.07)
"""Of a publisher, between one publication and the next."""
AGAIN_S = 0.1


@dataclass
class Published:
    """A record, as its publisher knows it."""

    stream: str
    record: dict[str, Any]
    acknowledged: bool = False
    """Else its outcome is not known."""
    offset: str = ""
    """The one after it, where that was said."""


class Publisher:
    """Publishes until it is told to stop. ``published`` has each record that may have been taken."""

    def __init__(self, url: str, name: str, seed: int) -> None:
        self.url = url
        self.name = name
        self.random = random.Random(f"{seed}-{name}")
        self.stopping = False
        self.published: list[Published] = []
        self.counts: Counter[str] = Counter()
        self._number = 0
        self._next: Counter[str] = Counter()
        """By key: its next number."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, last {self.published[-1:]}>"

    async def run(self) -> None:
        raise NotImplementedError

    def new(self, stream: str | None = None) -> Published:
        """A record that was not there before."""
        draw = self.random
        there = min(len(STREAMS), EARLY + self._number // ANOTHER)
        stream = stream or draw.choice(STREAMS[:there])
        key = f"{stream}#{self.name}{draw.randrange(KEYS)}"
        self._number += 1
        self._next[key] += 1
        record = {
            "id": f"{self.name}-{self._number}",
            "key": key,
            "n": self._next[key],
            "fate": draw.choices(("good", "poison", "reject"), (90, 6, 4))[0],
            "failures": draw.choices((0, 1, 2), (80, 14, 6))[0],
        }
        published = Published(stream, record)
        self.published.append(published)
        return published

    def acknowledged(self, published: Published, offset: str = "") -> None:
        published.acknowledged = True
        published.offset = offset
        self.counts["acknowledged"] += 1

    def unknown(self, published: Published) -> None:
        self.counts["unknown"] += 1

    def refused(self, published: Published, refusal: Refusal) -> None:
        """It was not taken: the next one with its key has its number."""
        assert refusal.retry or refusal.code == "stopping", f"{published} was refused: {refusal.code} {refusal}"
        self.counts["refused"] += 1
        self._next[published.record["key"]] -= 1
        self.published.remove(published)

    async def rest(self) -> None:
        await asyncio.sleep(self.random.uniform(*REST_S))


class Bare(Publisher):
    """By the client, without message ids: where the connection breaks it is not known what became of a record."""

    async def run(self) -> None:
        async with wayside.connect(self.url, retry_s=None) as client:
            while not self.stopping:
                await self.rest()
                published = self.new()
                try:
                    offset = await client.publish(published.stream, published.record)
                except UnknownOutcome:
                    self.unknown(published)
                except Refusal as refusal:
                    self.refused(published, refusal)
                else:
                    self.acknowledged(published, offset)


class Named(Publisher):
    """By the client, with message ids: published again until it is known that they are there; alone, or with records of
    another stream as one transaction."""

    async def run(self) -> None:
        async with wayside.connect(self.url, retry_s=None) as client:
            while not self.stopping:
                await self.rest()
                several = [self.new()]
                if self.random.random() < 0.3:
                    first = several[0].stream
                    several.append(self.new(STREAMS[0] if first != STREAMS[0] else STREAMS[1]))
                await self._publish(client, several)

    async def _publish(self, client: Client, several: Sequence[Published]) -> None:
        publications = [Publication(each.stream, each.record, each.record["id"]) for each in several]
        while True:
            try:
                if len(several) > 1:
                    offsets = [published.offset for published in await client.publish_all(publications)]
                else:
                    record = several[0].record
                    offsets = [await client.publish(several[0].stream, record, id=record["id"])]
            except Refusal as refusal:
                if not refusal.retry and refusal.code != "stopping":
                    raise
                await asyncio.sleep(AGAIN_S)
            else:
                for published, offset in zip(several, offsets, strict=True):
                    self.acknowledged(published, offset)
                return


class Posted(Publisher):
    """Over HTTP, several records with one request."""

    async def run(self) -> None:
        async with client_of_killed(20) as client:
            while not self.stopping:
                await self.rest()
                first = self.new()
                several = [first, *(self.new(first.stream) for _ in range(self.random.choice((0, 0, 1, 3))))]
                await self._post(client, several)

    async def _post(self, client: httpx.AsyncClient, several: list[Published]) -> None:
        url = f"{self.url}/v1/stream/{several[0].stream}"
        records = [published.record for published in several]
        while True:
            try:
                answer = await client.post(url, json=records)
                if answer.status_code == 404:
                    await client.put(url, headers={"Content-Type": "application/json"})
                    continue
            except httpx.ConnectError:
                await asyncio.sleep(AGAIN_S)
                continue
            except httpx.TransportError:
                for published in several:
                    self.unknown(published)
                return
            if answer.status_code == 503:
                await asyncio.sleep(AGAIN_S)
                continue
            assert answer.status_code == 204, f"{several}: {answer.status_code} {answer.text}"
            for published in several:
                self.acknowledged(published)
            several[-1].offset = answer.headers["Stream-Next-Offset"]
            return


def by_stream(publishers: Sequence[Publisher]) -> dict[str, list[Published]]:
    """All that may have been published."""
    found: dict[str, list[Published]] = defaultdict(list)
    for publisher in publishers:
        for published in publisher.published:
            found[published.stream].append(published)
    return found
