"""A member of a group at the client's end of a channel: records come in, what becomes of them goes out.

What was said and not yet answered is said again on another connection; the hub takes it once. Leases are the hub's and
outlive connections, so what is held stays held meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Protocol

import structlog

from wayside.client.delivery import LOST, Delivery, Hold, TooLate, fenced
from wayside.core.clock import Clock, SystemClock
from wayside.core.errors import Refusal, TooLarge, UnknownOutcome, refusal_of
from wayside.core.schedule import Timer, Timers
from wayside.link import frames as f
from wayside.link.connection import Channels
from wayside.link.frames import Ack, Extend, Nack, Publish, Settlement

__all__ = ["Membership", "Owner", "Pace", "PendingSettlement", "merged"]


class PendingSettlement:
    """A settlement on its way."""

    __slots__ = (
        "channel",
        "delivery",
        "future",
        "hold",
        "offsets",
        "over",
        "problem",
        "refused",
        "repaired",
        "seq",
        "settlement",
        "times",
    )

    def __init__(self, channel: int, seq: int) -> None:
        self.channel = channel
        self.seq = seq
        self.settlement = Settlement()
        self.future: asyncio.Future[None] | None = None
        self.problem: Exception | None = None
        """Why nothing of it is kept."""
        self.refused: dict[tuple[int, int], Exception] = {}
        self.offsets: list[str] = []
        self.over = self.repaired = False
        """It was answered, or will never be; what its streams lack was made."""
        self.times = 0
        """How often it was sent."""
        self.hold: Hold | None = None
        """Of an extension."""
        self.delivery: Delivery | None = None
        """Of a transaction."""

    async def of(self, number: int, position: int) -> list[str]:
        if not self.over:
            if self.future is None:
                self.future = asyncio.get_running_loop().create_future()
            await asyncio.shield(self.future)
        error = self.problem or self.refused.get((number, position))
        if error is not None:
            raise error
        return self.offsets

    def end(self, problem: Exception | None = None) -> None:
        self.problem = problem
        self.over = True
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    @property
    def frame(self) -> f.SettleFrame:
        return f.SettleFrame(self.channel, self.seq, self.settlement)


def merged(acks: list[Ack]) -> list[Ack]:
    """Neighbours of one lease as one run."""
    acks.sort(key=lambda ack: (ack.number, ack.lease, ack.first))
    found = [acks[0]]
    for ack in acks[1:]:
        last = found[-1]
        if ack.first == last.first + last.count and ack.lease == last.lease and ack.number == last.number:
            last.count += ack.count
        else:
            found.append(ack)
    return found


EXTENSIONS = 3
"""Of a lease, in its time."""
AGAIN_S = 1.0
"""Before something is said again that the hub could not take now."""
LEAVE_S = 5.0
"""For how long a member that leaves waits to hear that what it said is kept."""
PUBLISHED_BYTES_MAX = 60 * 1024 * 1024
"""Of one transaction: the hub closes a connection with a message that is larger than a body may be."""

MENDED = ("stream-not-found", "content-type-mismatch")
"""Refusals of transactions that the client can do something about."""

_log = structlog.get_logger("wayside.groups")


class Pace:
    """Whose time it is that leases are extended by."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.timers = Timers(self.clock)


Prepare = Callable[[list[Publish]], Awaitable[None]]
"""Makes the streams that records are to go to, and the records as these are."""


class Owner(Protocol):
    """Who takes the records."""

    def room(self) -> int:
        """How many more it takes, where nothing is on its way."""
        ...

    def delivered(self, deliveries: list[Delivery]) -> None: ...

    def ended(self, error: Exception) -> None:
        """There will be no more."""
        ...


class Membership:
    """That of ``member`` in ``group``; ``owner`` takes its records."""

    def __init__(self, channels: Channels, group: str, member: str, owner: Owner, pace: Pace, prepare: Prepare) -> None:
        self.name = group
        self.member = member
        self.fenced = 0
        """Records whose lease was over when something was said of them, or when it was to be extended."""
        self.lease_s = 0.0
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = False
        self.told = False
        """Its end was told to it while it was a member: not found by it on another connection."""
        self._channels = channels
        self._owner = owner
        self._pace = pace
        self._prepare = prepare
        self._holds: dict[Hold, None] = {}
        self._seq = 0
        self._open: PendingSettlement | None = None
        """What this turn of the loop says."""
        self._last: Ack | None = None
        """Of its acks."""
        self._saying: dict[int, PendingSettlement] = {}
        """What was not answered yet, in order."""
        self._credit = 0
        self._known = False
        """This connection's hub knows the member: what is said before would be refused."""
        self._resting = self._leaving = False
        self._timer: Timer | None = None
        self._again: Timer | None = None
        self._drained: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.channel = channels.add(self)
        self.resume()

    def __repr__(self) -> str:
        return f"<Membership {self.member} of {self.name}, holds {sum(hold.left for hold in self._holds)}>"

    @property
    def held(self) -> int:
        """Records of which nothing was said yet."""
        return sum(hold.left for hold in self._holds)

    # -- connection

    def resume(self) -> None:
        self._known = False
        self._again = None
        if not self._channels.connected:
            return
        first = not self.joined.done()
        credit = 0 if self._resting or self._leaving else self._owner.room()
        self._credit = 0
        held = None if first else [*self._has()]
        self._channels.put(f.JoinFrame(self.channel, self.name, self.member, credit, held))

    def _has(self) -> Iterator[Ack]:
        """What the hub may still have as leased to it, as far as it knows of it."""
        for hold in self._holds:
            for start, count in hold.runs():
                yield Ack(hold.part.number, hold.part.first + start, count, hold.lease)
        for said in [*self._saying.values(), *([self._open] if self._open else [])]:
            yield from said.settlement.acks
            for nack in said.settlement.nacks:
                yield Ack(nack.number, nack.position, 1, nack.lease)

    def lost(self, error: Exception, again: bool) -> bool:
        self._known = False
        if again and not self.ended:
            return True
        self._end(error)
        return False

    def take(self, frame: Any) -> None:
        kind = type(frame)
        if kind is f.DeliverFrame:
            self._deliver(frame)
        elif kind is f.SettledFrame:
            self._settled(frame)
        elif kind is f.JoinedFrame:
            self._join(frame)
        elif kind is f.ErrorFrame:
            self._refused(refusal_of(frame.problem))

    def _join(self, frame: f.JoinedFrame) -> None:
        self.lease_s = frame.lease_s
        self._known = True
        for said in self._saying.values():
            self._send(said)
        if self._leaving:
            self._channels.put(f.LeaveFrame(self.channel))
        self._flush_credit()
        if not self.joined.done():
            self.joined.set_result(None)

    def _refused(self, refusal: Refusal) -> None:
        self.told, self._known = self._known, False
        if refusal.code == "stopping":  # the hub closes the connection: it is to be asked again on the next
            return
        if refusal.retry:
            if self._again is None:
                self._again = self._pace.timers.after(AGAIN_S, self.resume)
            return
        self._channels.remove(self.channel)
        self._end(refusal)

    def _end(self, error: Exception) -> None:
        """There is no hub, or no group any more."""
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        detail = getattr(error, "detail", str(error))
        for said in [*self._saying.values(), *([self._open] if self._open else [])]:
            said.end(UnknownOutcome(f"{detail} It may have been kept, or not.") if said.times else error)
        self._saying.clear()
        self._holds.clear()
        if not self.joined.done():
            self.joined.set_exception(error)
            self.joined.exception()  # whoever waits hears of it; nobody has to
        self._drain()
        self._owner.ended(error)

    # -- records

    def _deliver(self, frame: f.DeliverFrame) -> None:
        now = self._pace.clock.monotonic()
        self.lease_s = frame.seconds
        deliveries: list[Delivery] = []
        for part in frame.parts:
            hold = Hold(self, frame.lease, part, now)
            self._holds[hold] = None
            deliveries += hold.deliveries()
        if self._timer is None:
            self._timer = self._pace.timers.after(self.lease_s / EXTENSIONS, self._extend)
        if not self._leaving:
            if self._resting:  # they were on their way
                for delivery in deliveries:
                    delivery.release()
            else:
                self._owner.delivered(deliveries)

    def grant(self, records: int) -> None:
        """So many more are taken. Goes out at the end of this turn."""
        if not self._credit:
            asyncio.get_running_loop().call_soon(self._flush_credit)
        self._credit += records

    def _flush_credit(self) -> None:
        if self._known and self._credit and not (self._resting or self._leaving):
            self._channels.put(f.CreditFrame(self.channel, self._credit))
            self._credit = 0

    # -- what is said

    def ack(self, number: int, position: int, lease: int) -> PendingSettlement:
        said = self._open or self._begin()
        last = self._last
        if last is not None and position == last.first + last.count and number == last.number and lease == last.lease:
            last.count += 1
        else:
            last = self._last = Ack(number, position, 1, lease)
            said.settlement.acks.append(last)
        return said

    def nack(self, nack: Nack) -> PendingSettlement:
        said = self._open or self._begin()
        said.settlement.nacks.append(nack)
        return said

    def transact(self, delivery: Delivery, publish: list[Publish]) -> PendingSettlement:
        size = sum(len(record) for each in publish for record in each.records)
        if size > PUBLISHED_BYTES_MAX:
            raise TooLarge(
                f"The transaction has {size} bytes of records; at most {PUBLISHED_BYTES_MAX} are taken.",
                fields={"limit_bytes": PUBLISHED_BYTES_MAX},
            )
        self.flush()
        said = self._begin()
        said.delivery = delivery
        said.settlement.acks.append(delivery.run())
        said.settlement.publish = publish
        self.flush()
        return said

    def extend(self, hold: Hold, index: int, seconds: float) -> PendingSettlement:
        if hold.longer is None:
            hold.longer = {}
        hold.longer[index] = self._pace.clock.monotonic() + seconds
        return self._extend_runs(hold, [(index, 1)], seconds)

    def _extend_runs(self, hold: Hold, runs: list[tuple[int, int]], seconds: float) -> PendingSettlement:
        """As a frame of its own: no record is named twice in one."""
        self.flush()
        said = self._begin()
        said.hold = hold
        part = hold.part
        said.settlement.extends += [Extend(part.number, part.first + at, n, hold.lease, seconds) for at, n in runs]
        self.flush()
        return said

    def held_again(self, hold: Hold) -> None:
        if not self._leaving:
            self._holds[hold] = None

    def settled(self, hold: Hold) -> None:
        self._holds.pop(hold, None)

    def too_late(self) -> TooLate:
        return TooLate(fenced(self.name))

    def _begin(self) -> PendingSettlement:
        self._seq += 1
        said = self._open = PendingSettlement(self.channel, self._seq)
        self._last = None
        if self.ended:
            said.end(UnknownOutcome("This member has ended: nothing can be said of its records any more."))
            self._open = None
        else:
            asyncio.get_running_loop().call_soon(self.flush)
        return said

    def flush(self) -> None:
        """Send what was said in this turn."""
        said, self._open = self._open, None
        self._last = None
        if said is None:
            return
        if len(said.settlement.acks) > 1:
            said.settlement.acks = merged(said.settlement.acks)
        self._saying[said.seq] = said
        if self._known:
            self._send(said)

    def _send(self, said: PendingSettlement) -> None:
        said.times += 1
        self._channels.put(said.frame)

    def _settled(self, frame: f.SettledFrame) -> None:
        said = self._saying.get(frame.seq)
        if said is None:
            return
        problem = refusal_of(frame.problem) if frame.problem is not None else None
        if problem is not None and problem.retry:  # nothing of it is kept, and later it may be
            self._pace.timers.after(AGAIN_S, partial(self._say_again, said))
            return
        if problem is not None and problem.code in MENDED and said.settlement.publish and not said.repaired:
            said.repaired = True
            self._task = asyncio.get_running_loop().create_task(self._repair(said, problem))
            return
        del self._saying[frame.seq]
        if problem is not None:
            self._fail(said, problem)
        else:
            said.offsets = frame.offsets
            for refused in frame.refused:
                if refused.code != "already-settled":
                    said.refused[refused.number, refused.position] = fenced(self.name)
            if said.refused:
                self._fence(said)
            said.end()
        self._drain()

    async def _repair(self, said: PendingSettlement, problem: Refusal) -> None:
        """Nothing of it was kept, as a stream was not there, or is no JSON: mend that, and say it again."""
        try:
            await self._prepare(said.settlement.publish)
        except Refusal as refusal:
            problem = refusal
        else:
            said.times = 0
            self._say_again(said)
            return
        if self._saying.pop(said.seq, None) is not None:
            self._fail(said, problem)
            self._drain()

    def _say_again(self, said: PendingSettlement) -> None:
        if self._known and said.seq in self._saying:
            self._send(said)

    def _fence(self, said: PendingSettlement) -> None:
        hold = said.hold
        if hold is not None:
            for _, position in said.refused:
                index = position - hold.part.first
                if 0 <= index < len(hold.states) and not hold.states[index]:
                    hold.states[index] = LOST
                    hold.left -= 1
            if not hold.left:
                self.settled(hold)
        if not self.fenced:
            _log.warning(
                "lease-fenced",
                group=self.name,
                member=self.member,
                records=len(said.refused),
                hint="they took too long",
            )
        self.fenced += len(said.refused)

    def _fail(self, said: PendingSettlement, problem: Refusal) -> None:
        """Nothing of it is kept; or, of a transaction that was sent twice, perhaps the first time."""
        error: Exception = problem
        if problem.code == "lease-fenced":
            refused: Any = problem.fields.get("refused", [])
            codes = {code for _number, _position, code in refused}
            if said.times > 1 and codes == {"already-settled"}:
                error = UnknownOutcome(
                    "The answer to the transaction was lost, and its record is settled: by it, or by another member. "
                    "Its receipt says which."
                )
            else:
                self._fence_all(said)
        elif said.delivery is not None:
            said.delivery.reopen(self)
        elif said.future is None:
            _log.error("not-settled", group=self.name, member=self.member, code=problem.code, detail=problem.detail)
        said.end(error)

    def _fence_all(self, said: PendingSettlement) -> None:
        self.fenced += sum(ack.count for ack in said.settlement.acks)

    # -- time

    def _extend(self) -> None:
        """Let no lease end while this process lives."""
        self._timer = None
        now = self._pace.clock.monotonic()
        for hold in list(self._holds):
            if now - hold.renewed < self.lease_s / EXTENSIONS - 0.001:
                continue
            hold.renewed = now
            longer, until = hold.longer, now + self.lease_s
            runs = hold.runs(None if longer is None else lambda index: longer.get(index, 0.0) < until)  # noqa: B023
            if runs and self._known:
                self._extend_runs(hold, runs, 0.0)
        if self._holds and not self.ended:
            self._timer = self._pace.timers.after(self.lease_s / EXTENSIONS, self._extend)

    # -- the end

    def rest(self) -> None:
        """Take no more."""
        if not self._resting:
            self._resting = True
            if self._known:
                self._channels.put(f.RestFrame(self.channel))

    async def leave(self, seconds: float = LEAVE_S) -> None:
        """Say what is still to be said, and give back the rest. Waits until the hub has it, for so long at most."""
        if self._leaving or self.ended:
            return
        self._leaving = True
        if self._timer is not None:
            self._timer.cancel()
        self.flush()
        self._holds.clear()
        if self._known or (self._channels.connected and not self._saying):  # else once it is known again
            self._channels.put(f.LeaveFrame(self.channel))
        if self._saying:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._drained
            except TimeoutError:
                _log.warning("not-confirmed", group=self.name, member=self.member, settlements=len(self._saying))
        self.ended = True
        self._channels.remove(self.channel)
        for said in self._saying.values():
            said.end(UnknownOutcome("The hub did not answer: it may have been kept, or not."))
        self._saying.clear()

    def _drain(self) -> None:
        if self._drained is not None and not self._saying and not self._drained.done():
            self._drained.set_result(None)
