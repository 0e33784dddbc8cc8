"""An engine as unlike the embedded one as the contract allows: it is waited for, its positions have gaps, it has no
transactions, forks or trims, its answers get lost, and somebody else writes beside the hub."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from wayside.core.engine import Abilities, Head, Outcome, Put, Stored, TailMoved, Unknown
from wayside.core.errors import StoreFailed
from wayside.storage.memory import MemoryEngine

__all__ = ["ForeignEngine"]


class ForeignEngine(MemoryEngine):
    """``others(path)``: whether another writer appends to a path now and then. ``lost``: the part of answers to commits
    that do not come, whether what was asked was done or not. It keeps what it has when a hub closes it."""

    def __init__(self, *, seed: int = 0, lost: float = 0.0, others: Callable[[str], bool] | None = None) -> None:
        super().__init__()
        self.abilities = Abilities(
            exclusive=False, atomic=False, dense=False, trims=False, forks=False, entry_bytes_max=1_000_000
        )
        self.random = random.Random(seed)
        self.lost = lost
        self.silent = False
        """Whether nobody is told of changes."""
        self.others = others
        self.conflicts = 0
        """Batches that were refused as another writer was faster."""
        self.unknown = 0
        self.intruded = 0
        """Records of the other writer."""

    def place(self, head: Head) -> int:
        """There is always a gap, and never the same."""
        return head.tail + self.random.randint(1, 9)

    async def commit(self, puts: Sequence[Put]) -> list[Outcome]:
        for put in puts:
            if self.others is not None and self.others(put.path) and self.random.random() < 0.3:
                await self.intrude(put.path)
        outcomes: list[Outcome] = []
        for put in puts:
            if self.random.random() < self.lost / 2:
                self.unknown += 1
                outcomes.append(Unknown(StoreFailed("nothing was done, and nothing said")))
                continue
            (outcome,) = await super().commit([put])
            if isinstance(outcome, TailMoved):
                self.conflicts += 1
            elif self.random.random() < self.lost / 2:
                self.unknown += 1
                outcome = Unknown(StoreFailed("the answer was lost"))
            outcomes.append(outcome)
        return outcomes

    async def intrude(self, path: str, records: Sequence[bytes] = (b'"intruder"',)) -> Stored | None:
        """Append as another hub would."""
        head = await self.head(path)
        if head is None or head.state.closed:
            return None
        self.intruded += len(records)
        put = Put(head.sid, head.tail, 0, list(records), sum(map(len, records)), b"", 1 << 20, path=path)
        (outcome,) = await MemoryEngine.commit(self, [put])
        assert isinstance(outcome, Stored)
        return outcome

    def tell(self, paths: Sequence[str]) -> None:
        if not self.silent:
            super().tell(paths)

    async def settle(self) -> None:
        """Let those who follow its changes hear of them."""
        for _ in range(10):
            await asyncio.sleep(0)
