"""Records whose last attempt has failed: they are moved to the dead-letter stream, and brought back from there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from wayside.core.callbacks import Done, asked, report
from wayside.core.clock import Clock
from wayside.core.errors import Conflict, Refusal
from wayside.core.records import JSON, Append, Create, Meta, Offset, StreamConfig
from wayside.core.schedule import Timers
from wayside.groups.events import Dead, Redriven, Waiting
from wayside.groups.reading import Single
from wayside.groups.settlement import Settling
from wayside.groups.state import Partition
from wayside.streams.contract import Log, StreamView

__all__ = ["Burying"]

STUCK_S = 1.0
"""How soon a record that could not be put where dead ones go is put there again."""

_log = structlog.get_logger("wayside.groups")


class Burying(Settling):
    """A group's dead records. One is in one place at any time: the move is one transaction."""

    def __init__(self, name: str, log: Log, clock: Clock, timers: Timers) -> None:
        super().__init__(name, log, clock, timers)
        self.stuck = ""
        """Why a dead record could not be put where it belongs, if that is so."""
        self._burying: set[tuple[int, int]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _find(self, path: str) -> StreamView | None:
        try:
            return self.log.find(path, touch=False)
        except Refusal:
            return None

    # -- dead records

    def exhausted(self, number: int, waiting: Waiting) -> None:
        """A record's last attempt has failed: put it where dead ones go."""
        at = (number, waiting.position)
        if at not in self._burying and self.open:
            self._burying.add(at)
            self._keep(asyncio.get_running_loop().create_task(self._bury(at, waiting)))

    async def _bury(self, at: tuple[int, int], waiting: Waiting) -> None:
        number, position = at
        while self.open:
            partition = self.journal.state.partitions.get(number)
            if partition is None or partition.waiting.get(position) is not waiting:
                break
            try:
                if await self._buried(partition, waiting):
                    self.stuck = ""
                    break
            except Exception as error:
                if not isinstance(error, Refusal):
                    report(error, self._bury)
                self.stuck = f"{partition.path} {position}: {error}"
                _log.warning("not-dead-lettered", group=self.name, stream=partition.path, error=str(error))
                await asyncio.sleep(STUCK_S)
        self._burying.discard(at)

    async def _buried(self, partition: Partition, waiting: Waiting) -> bool:
        """One transaction: the record is dead, and in the dead-letter stream."""
        number, position = partition.number, waiting.position
        target = self.spec.dead_letter
        event = Dead(self.clock.wall_ms(), number, position, waiting.reason)
        if not target:
            self.journal.note(event)
            self.keep_hold(partition)
            self.wake()
            return True
        while True:
            single = self.reading.single(partition, position, waiting.copy)
            if single is not True:
                break
            await asyncio.sleep(0.001)
        if partition.waiting.get(position) is not waiting or not self.open:
            return True
        if isinstance(single, bool):
            _log.warning("dead-letter-gone", group=self.name, stream=partition.path, position=position)
            self.journal.note(event)  # it is nowhere to be had: expired, or let go
            self.keep_hold(partition)
            self.wake()
            return True
        stream = self.reading.find(partition)
        kind = stream.config.content_type if stream is not None else "application/octet-stream"
        grave = self._find(target)
        if grave is None:
            with contextlib.suppress(Conflict):  # somebody was faster
                await asked(lambda done: self.log.create(target, Create(StreamConfig(kind)), done))
            grave = self._find(target)
        if grave is None:
            await asyncio.sleep(0.001)  # it is being made
            return False
        self.journal.require_same_durability(grave)
        if partition.waiting.get(position) is not waiting or not self.open:
            return True
        offset = str(Offset(stream.offset(position + 1).epoch if stream else partition.epoch, position + 1))
        data, meta = _letter(single, self.name, partition.path, offset, waiting, as_json=_differs(grave, kind))
        kept: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def told(failed: Exception | None) -> None:
            if not kept.done():
                kept.set_result(failed)

        event.copy = (target, str(grave.offset(grave.next + 1)))
        self.journal.transact([event], [(target, Append(b"", records=[data], meta={0: meta}))], told)
        self.keep_hold(partition)
        self.wake()
        if (failed := await kept) is not None and not isinstance(failed, Refusal):
            raise failed
        return True

    def redrive(self, only: Callable[[Any], bool], done: Done) -> None:
        """Deliver dead records again, as if for the first time; ``done`` gets how many."""
        self.require_open()
        state = self.journal.state
        chosen = [at for at, letter in state.dead.items() if only(letter) and at[0] in state.partitions]
        if not chosen:
            done(0)
            return
        self.journal.note(Redriven(self.clock.wall_ms(), chosen), lambda failed: done(failed or len(chosen)))
        for number, position in chosen:
            self.keep_hold(state.partitions[number])
            self.enqueue(number, state.partitions[number].waiting[position])


def _differs(grave: StreamView, kind: str) -> bool:
    """Whether a record of another type has to be put into JSON."""
    return grave.config.is_json and kind.partition(";")[0].strip().lower() != JSON


def _letter(
    single: Single, group: str, path: str, offset: str, waiting: Waiting, *, as_json: bool
) -> tuple[bytes, Meta]:
    """A dead record, and what is said of it in headers."""
    data = msgspec.json.encode({"base64": single.data}) if as_json else single.data
    own = single.meta
    headers = {
        **(own.headers if own else {}),
        "wayside-dead-group": group,
        "wayside-dead-stream": path,
        "wayside-dead-offset": offset,
        "wayside-dead-attempts": str(waiting.deliveries),
        "wayside-dead-reason": waiting.reason,
    }
    return data, Meta(headers, "", own.key if own else "")
