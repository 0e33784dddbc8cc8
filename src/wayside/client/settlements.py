"""What a member said in one turn of the event loop, on its way to the hub."""

from __future__ import annotations

import asyncio

from wayside import frames as f
from wayside.client.deliveries import Delivery, Hold
from wayside.deliveries import Ack, Settlement

__all__ = ["Said", "merged"]


class Said:
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
