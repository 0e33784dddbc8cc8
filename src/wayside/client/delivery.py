"""A record as a member of a group is given it, and what can be said of it: done, not done, or still needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

import msgspec

from wayside.client.values import value_of
from wayside.core.codecs import Payload
from wayside.core.errors import LeaseFenced, Refusal
from wayside.core.records import JSON, Meta
from wayside.link.frames import Ack, Nack, Part, Publish

__all__ = ["Confirmation", "Delivery", "Hold", "Transaction", "publications"]

HELD, SETTLED, LOST = 0, 1, 2
"""Of a record: nothing was said of it yet; something was; its lease is over."""
_NOTHING = Meta()


class SettlementOutcome(Protocol):
    """What became of a settlement that has several records."""

    async def of(self, number: int, position: int) -> list[str]:
        """Wait until it is kept. Returns the offsets after what was published with it. Raises what it, or that record of
        it, was refused for."""
        ...


class Settles(Protocol):
    """Who tells the hub."""

    name: str
    """Of the group."""

    def ack(self, number: int, position: int, lease: int) -> SettlementOutcome: ...

    def nack(self, nack: Nack) -> SettlementOutcome: ...

    def transact(self, delivery: Delivery, publish: list[Publish]) -> SettlementOutcome: ...

    def extend(self, hold: Hold, index: int, seconds: float) -> SettlementOutcome: ...

    def held_again(self, hold: Hold) -> None:
        """Nothing is kept of what was said of a record of it."""
        ...

    def settled(self, hold: Hold) -> None:
        """Something was said of all records of a part."""
        ...

    def too_late(self) -> SettlementOutcome:
        """Something is said of a record whose lease is over."""
        ...


class Hold:
    """Neighbouring records that a member has under one lease."""

    __slots__ = ("lease", "left", "longer", "member", "part", "renewed", "states")

    def __init__(self, member: Settles, lease: int, part: Part, now: float) -> None:
        self.member = member
        self.lease = lease
        self.part = part
        self.left = len(part.records)
        """Of which nothing was said yet."""
        self.states = bytearray(self.left)
        self.renewed = now
        """When its lease began, on the monotonic clock."""
        self.longer: dict[int, float] | None = None
        """Until when records are leased for which more time was asked, by index."""

    def deliveries(self) -> list[Delivery]:
        return [Delivery(self, index, data) for index, data in enumerate(self.part.records)]

    def runs(self, within: Callable[[int], bool] | None = None) -> list[tuple[int, int]]:
        """Runs (first index, count) of the records that it holds, of those that are ``within``."""
        runs: list[tuple[int, int]] = []
        start = -1
        for index, state in enumerate(self.states):
            if state == HELD and (within is None or within(index)):
                if start < 0:
                    start = index
            elif start >= 0:
                runs.append((start, index - start))
                start = -1
        if start >= 0:
            runs.append((start, len(self.states) - start))
        return runs


class Confirmation:
    """What was said of a record. Await it to know that it is kept; or do not."""

    __slots__ = ("_number", "_outcome", "_position")

    def __init__(self, outcome: SettlementOutcome, number: int, position: int) -> None:
        self._outcome = outcome
        self._number = number
        self._position = position

    def __await__(self) -> Generator[Any, None, list[str]]:
        return self._outcome.of(self._number, self._position).__await__()

    async def wait(self) -> list[str]:
        """Wait until it is kept. Returns the offsets after what was published with it, one for each stream. Raises
        :class:`~wayside.LeaseFenced` where the record is not this member's any more, and
        :class:`~wayside.UnknownOutcome` where the connection broke and the answer cannot be had."""
        return await self._outcome.of(self._number, self._position)


class Delivery:
    """A record, leased to this member: it is to say what became of it. ``data`` are its bytes.

    As long as nothing is said and the process lives, the lease is extended by itself. A program that blocks its event
    loop for longer than the lease loses it: others are given the record, and what is said of it here is refused.
    """

    __slots__ = ("_hold", "_index", "_queued", "data")

    def __init__(self, hold: Hold, index: int, data: bytes) -> None:
        self._hold = hold
        self._index = index
        self._queued: list[tuple[str, Any]] | None = None
        self.data = data

    def __repr__(self) -> str:
        state = ("held", "settled", "fenced")[self._hold.states[self._index]]
        return f"<Delivery {self.stream} {self.offset} attempt {self.attempt} {state}>"

    # -- what it is

    @property
    def group(self) -> str:
        return self._hold.member.name

    @property
    def stream(self) -> str:
        return self._hold.part.path

    @property
    def offset(self) -> str:
        """Where a reader of the stream goes on after it; with the stream it names the record."""
        return self._hold.part.offset(self._index)

    @property
    def attempt(self) -> int:
        """Deliveries of the record, this one included."""
        return self._hold.part.attempt

    @property
    def time_ms(self) -> int:
        """When it was appended, in milliseconds since 1970."""
        return self._hold.part.time_ms

    @property
    def lease(self) -> int:
        """Number of the lease: no two of a group are the same, and later ones are greater."""
        return self._hold.lease

    @property
    def content_type(self) -> str:
        return self._hold.part.content_type

    @property
    def _meta(self) -> Meta:
        metas = self._hold.part.metas
        return _NOTHING if metas is None else metas.get(self._index, _NOTHING)

    @property
    def headers(self) -> dict[str, str]:
        return self._meta.headers

    @property
    def id(self) -> str:
        """Message id, if its publisher gave one."""
        return self._meta.id

    @property
    def key(self) -> str:
        return self._meta.key

    @property
    def payload(self) -> Payload:
        return Payload(self.data, self._hold.part.content_type)

    @property
    def value(self) -> Any:
        """Its value, as the media type of the stream says: JSON, MessagePack, text, else bytes."""
        return value_of(self.payload, None)

    def json(self, returns: Any = Any) -> Any:
        """Its value as JSON, of a type. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.data, type=returns)

    @property
    def settled(self) -> bool:
        """Whether something was said of it."""
        return self._hold.states[self._index] == SETTLED

    @property
    def fenced(self) -> bool:
        """Whether its lease is known to be over."""
        return self._hold.states[self._index] == LOST

    # -- what is said of it

    def ack(self, publish: Iterable[tuple[str, Any]] = ()) -> Confirmation:
        """It is done. What is acked in one turn of the event loop goes to the hub together.

        Nothing has to be awaited; what is awaited returns when the hub has it on disk. With ``publish``, pairs of
        a stream and a value, the ack and these records are one transaction: all of it is true, or nothing. Streams that
        do not exist are made. Once it is awaited it raises :class:`~wayside.LeaseFenced` where the record is not this
        member's any more, or what the records were refused for: then nothing was published, and the record is still held.
        RuntimeError where something else was said of it before.
        """
        hold, index = self._hold, self._index
        states = hold.states
        part = hold.part
        number, position = part.number, part.first + index
        if states[index]:
            return self._again(hold.member)
        if publish or self._queued:
            grouped = publications([*(self._queued or ()), *publish])
            outcome = hold.member.transact(self, grouped)
            self._say(SETTLED)
            return Confirmation(outcome, number, position)
        states[index] = 1
        hold.left -= 1
        if not hold.left:
            hold.member.settled(hold)
        return Confirmation(hold.member.ack(number, position, hold.lease), number, position)

    def nack(self, delay: float | None = None, reason: str = "") -> Confirmation:
        """It failed: it comes again after ``delay`` seconds (None: after the group's backoff), or is dead if that was the
        last attempt."""
        return self._nack("failed", delay, reason)

    def reject(self, reason: str = "") -> Confirmation:
        """Nobody shall try it again: it goes to the dead letters at once."""
        return self._nack("rejected", None, reason)

    def release(self) -> Confirmation:
        """It was not tried: it is for anybody, at once. That is no failure."""
        return self._nack("released", None, "")

    def extend(self, seconds: float) -> Confirmation:
        """Its lease ends in so many seconds from now, and not sooner. Only for what stops the event loop: else it is
        extended by itself."""
        hold, part = self._hold, self._hold.part
        number, position = part.number, part.first + self._index
        if hold.states[self._index]:
            return self._again(hold.member)
        return Confirmation(hold.member.extend(hold, self._index, seconds), number, position)

    def publish(self, stream: str, *values: Any) -> None:
        """Have records published in one transaction with the ack of this one."""
        if self._queued is None:
            self._queued = []
        self._queued += [(stream, value) for value in values]

    @property
    def publishes(self) -> bool:
        """Whether anything is to be published with its ack."""
        return bool(self._queued)

    def transaction(self) -> Transaction:
        """``async with delivery.transaction() as tx: tx.publish(...)``: acks at its end, with what was published, if
        nothing was raised."""
        return Transaction(self)

    def _nack(self, kind: str, delay: float | None, reason: str) -> Confirmation:
        hold, part = self._hold, self._hold.part
        number, position = part.number, part.first + self._index
        if hold.states[self._index]:
            return self._again(hold.member)
        self._say(SETTLED)
        return Confirmation(hold.member.nack(Nack(number, position, hold.lease, kind, delay, reason)), number, position)

    def _say(self, state: int) -> None:
        hold = self._hold
        hold.states[self._index] = state
        hold.left -= 1
        if not hold.left:
            hold.member.settled(hold)

    def run(self) -> Ack:
        """It alone, as a run of records."""
        hold = self._hold
        return Ack(hold.part.number, hold.part.first + self._index, 1, hold.lease)

    def reopen(self, member: Settles) -> None:
        """What was said of it is not kept, and it is still held."""
        self._hold.states[self._index] = HELD
        self._hold.left += 1
        self._queued = None
        member.held_again(self._hold)

    def _again(self, member: Settles) -> Confirmation:
        if self.settled:
            raise RuntimeError(f"This was settled before: {self!r}.")
        part = self._hold.part
        return Confirmation(member.too_late(), part.number, part.first + self._index)


class Transaction:
    """An ack with records, as one: see :meth:`Delivery.transaction`."""

    __slots__ = ("_delivery", "_records", "offsets")

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._records: list[tuple[str, Any]] = []
        self.offsets: list[str] = []
        """After the records, one for each stream, in the order of its first; known at the end."""

    async def __aenter__(self) -> Transaction:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.offsets = await self._delivery.ack(self._records)

    def publish(self, stream: str, *values: Any) -> None:
        """Records of a stream: JSON values, ``str`` or ``bytes`` as the stream is."""
        self._records += [(stream, value) for value in values]


def publications(records: Iterable[tuple[str, Any]]) -> list[Publish]:
    """Records by their streams, in order; encoded. Raises TypeError for what has no encoding."""
    found: dict[str, Publish] = {}
    for stream, value in records:
        each = found.get(stream)
        if each is None:
            each = found[stream] = Publish(stream, [])
        if isinstance(value, bytes):
            each.records.append(value)
        else:
            each.records.append(msgspec.json.encode(value))
            each.content_type = JSON
    return list(found.values())


def fenced(group: str) -> LeaseFenced:
    """What is said of a record that another member has by now."""
    return LeaseFenced(f"The lease of this record of group {group} is over: others are, or were, given it.")


class TooLate:
    """The outcome of what is said of a record whose lease is over."""

    def __init__(self, error: Refusal) -> None:
        self._error = error

    async def of(self, number: int, position: int) -> list[str]:
        await asyncio.sleep(0)
        raise self._error
