"""Those who make calls while everything is being killed, and note what they were promised."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx

import wayside
from tests.crash.calls_oracle import answer_of
from tests.support.killed import client_of_killed
from wayside import CallCancelled, CallHandle, Client, Refusal, UnknownOutcome
from wayside.calls.call import keyed_id
from wayside.client.calls import Via
from wayside.core.errors import Conflict

WATCHED_MAX = 40
"""Calls that one client waits for at a time."""
REST_S = (0.0, 0.08)
"""Of a client, between one call and the next."""
SETTLE_S = 45.0
"""What the calls that are left may take, once nobody is killed any more."""
AGAIN_S = 0.1

PARAMETERS: dict[str, tuple[str, ...]] = {
    "add": ("values", "ms"),
    "sort": ("values", "ms"),
    "flaky": ("number", "failures"),
    "hopeless": ("number", "final"),
    "once": ("number", "ms"),
    "long": ("number",),
    "items": ("count", "ms"),
    "resumed": ("count", "ms"),
    "progress": ("count", "ms"),
    "pipe": ("value",),
    "fork": ("value",),
    "local.inc": ("value",),
    "local.items": ("count", "ms"),
}
FAILURES = {"hopeless": ("hopeless", "call-failed", "worker-lost"), "once": ("worker-lost",)}
"""With what a service may fail."""


@dataclass
class Asked:
    """A call, as whoever asked for it knows it."""

    service: str
    arguments: tuple[Any, ...]
    key: str = ""
    id: str = ""
    """Empty: it was never acknowledged."""
    cancelled: bool = False
    """The hub said so."""
    events: list[tuple[str, Any]] = field(default_factory=list)
    """What somebody who followed it was given."""
    followed: bool = False
    """To its end."""

    @property
    def name(self) -> str:
        """What it is called, where that is known whether it exists or not."""
        return self.id or (keyed_id(self.service, self.key) if self.key else "")

    def answered(self, value: Any) -> None:
        assert value == answer_of(self.service, self.arguments), f"{self} gave {value!r}"

    def refused(self, refusal: Refusal) -> None:
        if not isinstance(refusal, CallCancelled):
            assert refusal.code in FAILURES.get(self.service, ()), f"{self} failed: {refusal.code} {refusal}"


class Caller:
    """A client that makes calls until it is told to stop. ``asked`` has each that may have been taken."""

    def __init__(self, url: str, name: str, seed: int) -> None:
        self.url = url
        self.name = name
        self.random = random.Random(f"{seed}-{name}")
        self.stopping = False
        self.calls = True
        """Whether it makes calls; else it waits for those that it made."""
        self.doing: Asked | None = None
        self.asked: list[Asked] = []
        self.counts: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._number = 0
        self._watching: dict[asyncio.Task[None], str] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, last with {self.doing}>"

    async def run(self) -> None:
        raise NotImplementedError

    def new(self, *, keyed: bool) -> Asked:
        """A call of some service, with arguments for it."""
        draw = self.random
        number, ms = draw.randrange(1000), draw.choice((0, 5, 30, 150))
        values = [draw.randrange(1000) for _ in range(draw.randrange(1, 20))]
        choices: dict[str, tuple[Any, ...]] = {
            "add": (values, ms),
            "sort": (values, ms),
            "flaky": (number, draw.choice((0, 1, 1, 2, 4))),
            "hopeless": (number, draw.random() < 0.5),
            "once": (number, ms),
            "long": (number,),
            "items": (draw.choice((0, 1, 60, 400)), min(ms, 30)),
            "resumed": (draw.choice((1, 60, 150)), draw.choice((5, 20))),
            "progress": (draw.randrange(1, 12), draw.choice((0, 5, 30))),
            "pipe": (number,),
            "fork": (number,),
            "local.inc": (number,),
            "local.items": (draw.choice((1, 20, 60)), 10),
        }
        service = draw.choice(list(choices))
        self._number += 1
        asked = Asked(service, choices[service], f"{self.name}-{self._number}" if keyed else "")
        self.asked.append(asked)
        return asked

    def again(self) -> Asked | None:
        """A call with a key that was asked for before, now and then."""
        keyed = [asked for asked in self.asked if asked.key and asked.id]
        return self.random.choice(keyed) if keyed and self.random.random() < 0.1 else None

    def acknowledged(self, asked: Asked, identity: str) -> None:
        if asked.key:
            assert identity == keyed_id(asked.service, asked.key), f"{asked} has another name: {identity}"
        self.counts["asked again" if asked.id else "acknowledged"] += 1
        asked.id = identity

    def unknown(self, asked: Asked) -> None:
        """It was taken or not."""
        assert not asked.key, f"{asked} has a key, and its outcome is not known"
        self.counts["unknown"] += 1

    def stopped(self, asked: Asked, refusal: Refusal) -> None:
        """It was not taken."""
        assert refusal.code == "stopping", f"{asked} was refused: {refusal.code} {refusal}"
        assert not asked.key, f"{asked} has a key, and was not made again"
        self.counts["refused"] += 1
        self.asked.remove(asked)

    async def rest(self) -> None:
        await asyncio.sleep(self.random.uniform(*REST_S))
        while len(self._watching) >= WATCHED_MAX and not self.stopping:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def watch(self, what: str, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._watching[task] = what
        task.add_done_callback(self._watched)

    def _watched(self, task: asyncio.Task[None]) -> None:
        del self._watching[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)

    async def settle(self) -> None:
        """Whoever waits gets an answer."""
        if self._watching:
            await asyncio.wait(list(self._watching), timeout=SETTLE_S)
        assert not self._watching, f"they wait for ever: {', '.join(sorted(self._watching.values())[:20])}"


class Channelled(Caller):
    """Over one connection of the asyncio client: calls, submits, followers, cancellations."""

    async def run(self) -> None:
        async with wayside.connect(self.url, retry_s=None) as client:
            while not self.stopping:
                await self.rest()
                await self._one(client)
            self.calls = False
            await self.settle()

    async def _one(self, client: Client) -> None:
        draw = self.random.random()
        asked = self.again()
        if asked is not None:
            await self._submit(client, asked)
        elif draw < 0.2:
            asked = self.new(keyed=draw < 0.1)
            self.watch(f"call of {asked}", self._call(client, asked))
        else:
            await self._submit(client, self.new(keyed=draw < 0.6))

    async def _call(self, client: Client, asked: Asked) -> None:
        """With a key it is durable; without, it lives as long as this connection."""
        try:
            asked.answered(await client.call(asked.service, *asked.arguments, idempotency_key=asked.key))
        except UnknownOutcome:
            self.unknown(asked)
            return
        except Refusal as refusal:
            if refusal.code == "stopping":
                self.stopped(asked, refusal)
                return
            asked.refused(refusal)
        self.counts["called"] += 1
        asked.id = asked.name

    async def _submit(self, client: Client, asked: Asked) -> None:
        self.doing = asked
        again = bool(asked.id)
        try:
            handle = await client.submit(asked.service, *asked.arguments, idempotency_key=asked.key)
        except UnknownOutcome:
            self.unknown(asked)
            return
        except Refusal as refusal:
            self.stopped(asked, refusal)
            return
        self.acknowledged(asked, handle.id)
        draw = self.random.random()
        if draw < 0.12:
            self.watch(f"cancelling {handle.id}", self._cancel(handle, asked))
        elif draw < 0.3:
            self.watch(f"result of {handle.id}", self._result(handle, asked))
        elif draw < 0.5 and not again:
            via: Via = self.random.choice(("push", "sse", "long-poll", "poll"))
            self.watch(f"{via} of {handle.id}", self._follow(handle, asked, via))

    async def _cancel(self, handle: CallHandle, asked: Asked) -> None:
        await asyncio.sleep(self.random.choice((0, 0.01, 0.1, 0.5)))
        with contextlib.suppress(Conflict):  # it has ended
            asked.cancelled = (await handle.cancel()).state == "cancelled"
            assert asked.cancelled

    async def _result(self, handle: CallHandle, asked: Asked) -> None:
        try:
            asked.answered(await handle.result())
        except Refusal as refusal:
            asked.refused(refusal)

    async def _follow(self, handle: CallHandle, asked: Asked, via: Via) -> None:
        async with contextlib.aclosing(handle.events(via, interval=0.1)) as events:
            async for event in events:
                asked.events.append((event.kind, event.data))
        asked.followed = True


class Plain(Caller):
    """Over HTTP: asks for an asynchronous call, and with a key again until it is taken."""

    async def run(self) -> None:
        async with client_of_killed(20) as client:
            while not self.stopping:
                await self.rest()
                await self._submit(client, self.again() or self.new(keyed=self.random.random() < 0.6))
        self.calls = False

    async def _submit(self, client: httpx.AsyncClient, asked: Asked) -> None:
        self.doing = asked
        headers = {"Prefer": "respond-async"} | ({"Idempotency-Key": f'"{asked.key}"'} if asked.key else {})
        names = PARAMETERS[asked.service]
        body = asked.arguments[0] if len(names) == 1 else dict(zip(names, asked.arguments, strict=True))
        while True:
            try:
                answer = await client.post(f"{self.url}/v1/service/{asked.service}", json=body, headers=headers)
            except httpx.TransportError:
                if not asked.key:
                    self.unknown(asked)
                    return
            else:
                identity = _name_of(answer)
                if identity:
                    self.acknowledged(asked, identity)
                    return
                assert answer.status_code == 503, f"{asked} was answered with {answer.status_code} {answer.text}"
                if not asked.key:
                    self.counts["refused"] += 1
                    self.asked.remove(asked)
                    return
            await asyncio.sleep(AGAIN_S)


def _name_of(answer: httpx.Response) -> str:
    """The name of the call that was answered with: its URL, its result or what it failed with."""
    if answer.status_code == 202:
        return answer.headers["Location"].rpartition("/")[2]
    return answer.headers.get("Wayside-Call") or str(answer.json().get("call", ""))


class Blocking(Caller):
    """The blocking client, in a thread of its own."""

    async def run(self) -> None:
        thread = threading.Thread(target=self._guarded, daemon=True)
        thread.start()
        while thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def _guarded(self) -> None:
        try:
            with wayside.sync.connect(self.url, retry_s=None) as hub:
                while not self.stopping:
                    self._one(hub, self.again() or self.new(keyed=self.random.random() < 0.7))
        except BaseException as error:
            self.failures.append(error)
        self.calls = False

    def _one(self, hub: wayside.sync.BlockingClient, asked: Asked) -> None:
        self.doing = asked
        try:
            handle = hub.submit(asked.service, *asked.arguments, idempotency_key=asked.key)
        except UnknownOutcome:
            self.unknown(asked)
            return
        except Refusal as refusal:
            self.stopped(asked, refusal)
            return
        self.acknowledged(asked, handle.id)
        try:
            asked.answered(handle.result())
        except Refusal as refusal:
            asked.refused(refusal)
