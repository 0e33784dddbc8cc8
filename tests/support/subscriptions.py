"""Subscriptions in a test: a receiver that answers as it was told, and the operations as coroutines."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tests.support.log import Answer as Told
from tests.support.waiting import until
from wayside.testing import TestHub
from wayside.webhooks.post import WebhookResponse
from wayside.webhooks.subscription import Config, DurableSubscription, Kind
from wayside.webhooks.subscriptions import Confirmed, Work

BASE = "http://hub/v1/stream/"
LEASE_S = 10.0


class Receiver:
    """Stands in the place of the network: it answers as it was told, the last again and again, and keeps what it got."""

    def __init__(self, *answers: int | WebhookResponse | Exception) -> None:
        self.answers = list(answers) or [200]
        self.wakes: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> WebhookResponse:
        with self._lock:
            self.wakes.append({**msgspec.json.decode(body), "url": url, "timeout_s": timeout_s, "headers": headers})
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return WebhookResponse(answer) if isinstance(answer, int) else answer


class Slow(Receiver):
    """WebhookResponses each attempt only when it is let."""

    def __init__(self, *answers: int | WebhookResponse | Exception) -> None:
        super().__init__(*answers)
        self._passes = threading.Semaphore(0)

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> WebhookResponse:
        answer = super().__call__(url, headers, body, timeout_s)
        assert self._passes.acquire(timeout=30), "nobody let it answer"
        return answer

    def let(self) -> None:
        self._passes.release()


DONE = WebhookResponse(200, body=b'{"done": true}')


class Subscribed:
    """The subscriptions of a :class:`TestHub`, over its lives."""

    def __init__(self, test: TestHub, receiver: Receiver | None = None) -> None:
        self.test = test
        self.receiver = receiver or Receiver()

    @property
    def parts(self) -> Any:
        """The subscriptions of this life."""
        self.test.hub.poster.transport = self.receiver
        parts = self.test.hub.subscriptions
        parts.wakes.backoff.jitter = lambda: 0.5
        return parts

    def state(self, identity: str = "s") -> DurableSubscription:
        state: DurableSubscription = self.parts.entries[identity].state
        return state

    async def put(self, identity: str = "s", **options: Any) -> Confirmed:
        """Of type pull-wake, unless there is a URL."""
        kind = Kind.WEBHOOK if options.get("url") else Kind.PULL_WAKE
        lease_ms = round(options.pop("lease_s", LEASE_S) * 1000)
        options.setdefault("wake_stream", "" if kind is Kind.WEBHOOK else "wakes")
        told = Told()
        self.parts.put(identity, Config(kind, lease_ms, **options), BASE, told)
        confirmed: Confirmed = await told.wait()
        return confirmed

    async def claim(self, worker: str = "one", identity: str = "s") -> dict[str, Any]:
        told = Told()
        self.parts.claim(identity, worker, told)
        answer: dict[str, Any] = await told.wait()
        return answer

    async def ack(
        self, wake: Mapping[str, Any], acks: Sequence[tuple[str, str]] = (), *, done: bool = False, identity: str = "s"
    ) -> dict[str, Any]:
        """Ack what a claim, or a webhook, gave."""
        kind = self.state(identity).config.type
        token = wake.get("token") or wake.get("callback_token")
        told = Told()
        work = Work(str(token), wake["wake_id"], wake["generation"], acks, done)
        self.parts.ack(identity, kind, work, told)
        answer: dict[str, Any] = await told.wait()
        return answer

    async def release(self, wake: Mapping[str, Any]) -> None:
        told = Told()
        self.parts.release("s", Work(wake["token"], wake["wake_id"], wake["generation"]), told)
        await told.wait()

    async def delete(self) -> None:
        told = Told()
        self.parts.delete("s", told)
        await told.wait()

    async def attempts(self, count: int) -> list[dict[str, Any]]:
        """What the receiver got, once that is so much, and the hub knows."""
        await until(
            lambda: len(self.receiver.wakes) >= count and not any(e.posting for e in self.parts.entries.values())
        )
        await self.test.settle()
        assert len(self.receiver.wakes) == count
        return self.receiver.wakes

    async def wakes(self, stream: str = "wakes") -> list[dict[str, Any]]:
        """The records of the wake stream."""
        await self.test.settle()
        return [record.json() async for record in self.test.hub.read(stream, follow=False)]


def pending(wake: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Acks of all that a wake has pending."""
    return [(each["path"], each["tail_offset"]) for each in wake["streams"] if each["has_pending"]]
