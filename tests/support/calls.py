"""Calls in a test: a worker that does nothing by itself, and what is in a call's stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tests.support.log import read_records
from tests.support.waiting import turns
from wayside.calls.call import CallRequest, ServiceCall
from wayside.calls.queue import worker_name
from wayside.core.codecs import Payload
from wayside.link import frames as f
from wayside.streams.streams import Streams
from wayside.testing import TestHub

Key = tuple[str, int]
"""A call and the number of an attempt."""


class PuppetWorker:
    """A worker as the hub sees one: it is given attempts, and says what the test has it say."""

    def __init__(self, test: TestHub, name: str, *services: dict[str, Any] | str, capacity: int = 16) -> None:
        self.id = f"w-{name}"
        self.name = worker_name(self.id)
        """What the hub calls it."""
        self.capacity = capacity
        self.given: list[Key] = []
        """Attempts, in the order in which they came."""
        self.given_at: dict[Key, float] = {}
        """When each came last, on the test's monotonic clock."""
        self.yielded: list[int] = []
        """Values that earlier attempts had yielded, for each that came."""
        self.cancelled: list[Key] = []
        self.lost: list[Key] = []
        self.taken: list[tuple[str, int, int, str]] = []
        """Call, attempt, seq, and the code of the refusal if it was one."""
        self._test = test
        self._services = [{"name": each} if isinstance(each, str) else each for each in services]
        self._peer: Any = None

    def connect(self, held: Iterable[Key] = ()) -> None:
        self._peer = self._test.hub.connections.enter_local(self)
        self._peer.receive([f.WorkFrame(0, self.id, self._services, self.capacity, list(held))])

    def disconnect(self) -> None:
        self._peer.stop()

    def renew(self) -> None:
        self._test.hub.leases.renew(self.id)

    # -- from the hub

    def send(self, frames: list[Any]) -> None:
        for frame in frames:
            match frame:
                case f.RunFrame():
                    self.given.append((frame.call, frame.attempt))
                    self.given_at[frame.call, frame.attempt] = self._test.clock.monotonic()
                    self.yielded.append(frame.items)
                case f.CancelFrame():
                    self.cancelled.append((frame.call, frame.attempt))
                case f.TakenFrame():
                    code = str((frame.problem or {}).get("code", ""))
                    self.taken.append((frame.call, frame.attempt, frame.seq, code))
                case f.WorkingFrame():
                    self.lost = [(call, attempt) for call, attempt in frame.lost]
                case _:
                    raise AssertionError(f"not for a worker: {frame!r}")

    def ping(self) -> None:
        return None

    def close(self, _code: int, _reason: str) -> None:
        return None

    # -- to the hub

    async def emit(self, key: Key, seq: int, value: Any, kind: str = "progress") -> str:
        """Send something; returns the code of the refusal, or nothing."""
        return await self._say(f.EmitFrame(0, *key, seq, kind, msgspec.json.encode(value)), seq)

    async def finish(self, key: Key, value: Any = None) -> str:
        return await self._say(f.FinishFrame(0, *key, msgspec.json.encode(value), "application/json"))

    async def fail(self, key: Key, code: str = "call-failed", *, again: bool = True) -> str:
        error = {"code": code, "detail": "It went wrong.", "status": 500}
        return await self._say(f.FinishFrame(0, *key, error=error, again=again))

    async def hand_back(self, key: Key) -> str:
        return await self._say(f.ReturnFrame(0, *key))

    async def rest(self, *, bye: bool = False) -> None:
        self._peer.receive([f.RestFrame(0, bye)])
        await self._test.settle()

    def say(self, frame: Any) -> None:
        """Any frame, whose answer is not waited for."""
        self._peer.receive([frame])

    async def _say(self, frame: Any, seq: int = -1) -> str:
        before = len(self.taken)
        self._peer.receive([frame])
        await self._test.settle()
        (answer,) = self.taken[before:]
        assert answer[:3] == (frame.call, frame.attempt, seq)
        return answer[3]


def find(test: TestHub, identity: str) -> ServiceCall:
    """A call that is in the hub's memory."""
    call = test.hub.calls.ledger.known(identity)
    assert call is not None
    return call


def request(test: TestHub, service: str, value: Any = None, **options: Any) -> CallRequest:
    return test.hub.calls.request(service, Payload(msgspec.json.encode(value), "application/json"), **options)


async def events(log: Streams, identity: str) -> list[str]:
    """What is in a call's stream, after the request."""
    records = await read_records(log, f"__call/{identity}")
    return [msgspec.json.decode(record)["event"] for record in records[1:]]


async def few_turns() -> None:
    """What can happen while the disk does not answer."""
    await turns(20)
