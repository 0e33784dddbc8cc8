"""An engine as unlike the embedded one as the contract allows: it is waited for, its positions have gaps, it has no
transactions, forks or trims, its answers get lost, its reads and its feed are behind, and somebody else writes beside the
hub."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from wayside.core.engine import Abilities, Change, Head, Outcome, Put, Stored, TailMoved, Unknown
from wayside.core.errors import StoreFailed
from wayside.core.records import Batch
from wayside.storage.memory import MemoryEngine

__all__ = ["ForeignEngine"]


class ForeignEngine(MemoryEngine):
    """``others(path)``: whether another writer appends to a path now and then. ``lost``: the part of answers that do not
    come, whether what was asked was done or not. It keeps what it has when a hub closes it."""

    def __init__(self, *, seed: int = 0, lost: float = 0.0, others: Callable[[str], bool] | None = None) -> None:
        super().__init__()
        self.abilities = Abilities(
            exclusive=False,
            atomic=False,
            dense=False,
            trims=False,
            forks=False,
            entry_bytes_max=1_000_000,
            entry_records_max=4096,
        )
        self.random = random.Random(seed)
        self.lost = lost
        self.silent = False
        """Whether nobody is told of changes."""
        self._told_at = 0.0
        self.others = others
        self.conflicts = 0
        """Batches that were refused as another writer was faster."""
        self.unknown = 0
        self.intruded = 0
        """Records of the other writer."""

    def place(self, head: Head) -> int:
        """There is always a gap, and never the same."""
        return head.tail + self.random.randint(1, 9)

    def loses(self) -> bool:
        """Whether this answer does not come."""
        lost = self.random.random() < self.lost / 2
        self.unknown += lost
        return lost

    async def create(self, head: Head, first: Put | None) -> Head:
        if self.loses():
            raise TimeoutError("nothing was done, and nothing said")
        made = await super().create(head, first)
        if self.loses():
            raise TimeoutError("the answer was lost")
        return made

    async def commit(self, puts: Sequence[Put]) -> list[Outcome]:
        for put in puts:
            if self.others is not None and self.others(put.path) and self.random.random() < 0.3:
                await self.intrude(put.path)
        if self.loses():  # as a client library does whose connection is closed under it
            raise asyncio.CancelledError
        outcomes: list[Outcome] = []
        for put in puts:
            if self.loses():
                outcomes.append(Unknown(StoreFailed("nothing was done, and nothing said")))
                continue
            (outcome,) = await super().commit([put])
            if isinstance(outcome, TailMoved):
                self.conflicts += 1
            elif self.loses():
                outcome = Unknown(StoreFailed("the answer was lost"))
            outcomes.append(outcome)
        if self.loses():
            raise TimeoutError("the answers were lost")
        return outcomes

    async def find_batch(self, path: str, sid: int, position: int, id: str) -> int | None:
        if self.loses():
            raise TimeoutError("the answer was lost")
        return await super().find_batch(path, sid, position, id)

    async def head(self, path: str) -> Head | None:
        found = await super().head(path)
        await asyncio.sleep(0)  # it is on its way while others write
        return found

    async def read(self, path: str, sid: int, position: int, bytes_max: int, records_max: int) -> list[Batch]:
        batches = await super().read(path, sid, position, bytes_max, records_max)
        if batches and self.random.random() < 0.2:
            return batches[:-1]  # of a replica that has not all yet
        return batches

    async def intrude(self, path: str, records: Sequence[bytes] = (b'"intruder"',)) -> Stored | None:
        """Append as another hub would."""
        head = await MemoryEngine.head(self, path)
        if head is None or head.state.closed:
            return None
        put = Put(head.sid, head.tail, 0, list(records), sum(map(len, records)), b"", 1 << 20, path=path)
        (outcome,) = await MemoryEngine.commit(self, [put])
        if not isinstance(outcome, Stored):
            return None
        self.intruded += len(records)
        return outcome

    def send(self, queue: asyncio.Queue[list[Change]], changes: list[Change]) -> None:
        """Heads as they are now, told a while later: what came since is told after them."""
        if not self.silent:
            loop = asyncio.get_running_loop()
            at = max(self._told_at, loop.time() + self.random.choice((0, 0, 0.001, 0.005)))
            self._told_at = at + 1e-6
            loop.call_at(at, queue.put_nowait, changes)

    async def settle(self) -> None:
        """Let those who follow its changes hear of them."""
        await asyncio.sleep(0.03)
        for _ in range(10):
            await asyncio.sleep(0)
