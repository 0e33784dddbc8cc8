"""Records whose last attempt has failed: they are moved to the dead-letter stream, and brought back from there.

A record is in one place at any time: that it is dead is on record in the transaction that appends its letter. Where the
letter is, is known with the result of that, and is put on record after it; where a crash came between the two, the letter
is looked for, from where its stream ended before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import structlog

from wayside.core.callbacks import Done, asked, report
from wayside.core.clock import Clock
from wayside.core.errors import Conflict, Gone, NotFound, Refusal
from wayside.core.records import JSON, Append, Appended, Create, Meta, Offset, StreamConfig
from wayside.groups.events import Dead, DeadLetter, Located, Redriven, Waiting
from wayside.groups.journal import Journal
from wayside.groups.reading import Reading, Single
from wayside.groups.state import Partition
from wayside.streams.contract import Log, StreamView

__all__ = ["DeadLetters"]

STUCK_S = 1.0
"""How soon a record that could not be put where dead ones go is put there again."""

_log = structlog.get_logger("wayside.groups")


class DeadLetters:
    """A group's dead records. ``is_open`` says whether the group delivers, ``requeue`` takes records that are to be delivered
    again, and ``wake`` is called when others may be."""

    def __init__(
        self,
        name: str,
        log: Log,
        clock: Clock,
        journal: Journal,
        reading: Reading,
        is_open: Callable[[], bool],
        requeue: Callable[[int, Waiting], None],
        wake: Callable[[], None],
    ) -> None:
        self._name = name
        self._log = log
        self._clock = clock
        self._journal = journal
        self._reading = reading
        self._is_open = is_open
        self._requeue = requeue
        self._wake = wake
        self.stuck = ""
        """Why a dead record could not be put where it belongs, if that is so."""
        self._moving: dict[int, asyncio.Task[None]] = {}
        """What moves a record, by the identity of its ``Waiting``: one that came back meanwhile has another."""

    def __repr__(self) -> str:
        return f"<DeadLetters of {self._name}: {len(self._moving)} on their way{', stuck' if self.stuck else ''}>"

    @property
    def idle(self) -> bool:
        """Whether no record is on its way."""
        return not self._moving

    def stop(self) -> None:
        """Move nothing more."""
        for task in self._moving.values():
            task.cancel()
        self._moving.clear()

    # -- moving

    def move(self, number: int, waiting: Waiting) -> None:
        """A record's last attempt has failed: put it where dead ones go."""
        if id(waiting) not in self._moving and self._is_open():
            task = self._moving[id(waiting)] = asyncio.get_running_loop().create_task(self._move(number, waiting))
            task.add_done_callback(partial(self._over, waiting))

    def _over(self, waiting: Waiting, task: asyncio.Task[None]) -> None:
        if self._moving.get(id(waiting)) is task:
            del self._moving[id(waiting)]

    async def _move(self, number: int, waiting: Waiting) -> None:
        while self._is_open():
            partition = self._journal.state.partitions.get(number)
            if partition is None or partition.waiting.get(waiting.position) is not waiting:
                break
            try:
                if await self._try(partition, waiting):
                    self.stuck = ""
                    break
            except Exception as error:
                if not isinstance(error, Refusal):
                    report(error, self._move)
                self.stuck = f"{partition.path} {waiting.position}: {error}"
                _log.warning("not-dead-lettered", group=self._name, stream=partition.path, error=str(error))
                await asyncio.sleep(STUCK_S)

    async def _try(self, partition: Partition, waiting: Waiting) -> bool:
        """Move a record, or find that it is not to be moved any more; False: it is to be tried again. One transaction has the
        letter, and that the record is dead."""
        position, target = waiting.position, self._journal.state.spec.dead_letter
        single = await self._read(partition, waiting) if target else None
        if partition.waiting.get(position) is not waiting or not self._is_open():
            return True
        event = Dead(self._clock.wall_ms(), partition.number, position, waiting.reason)
        if single is None:
            if target:  # it is nowhere to be had: expired, or let go
                _log.warning("dead-letter-gone", group=self._name, stream=partition.path, position=position)
            self._journal.note(event)
            self._reading.hold(partition)
            self._wake()
            return True
        stream = self._reading.find(partition)
        kind = stream.config.content_type if stream is not None else "application/octet-stream"
        letters = await self._made(target, kind)
        if letters is None:
            await asyncio.sleep(0.001)  # it is being made
            return False
        self._journal.require_same_durability(letters)
        if partition.waiting.get(position) is not waiting or not self._is_open():
            return True
        offset = str(Offset(stream.offset(position + 1).epoch if stream else partition.epoch, position + 1))
        data, meta = _letter(single, self._name, partition.path, offset, waiting, as_json=_differs(letters, kind))
        event.since = (target, str(letters.offset(letters.tail)))

        def transact(done: Done) -> None:
            appends = [(target, Append(b"", records=[data], meta={0: meta}))]
            self._journal.transact([event], appends, partial(self._locate, event, done))
            self._reading.hold(partition)
            self._wake()

        await asked(transact)
        return True

    async def _read(self, partition: Partition, waiting: Waiting) -> Single | None:
        """A record as it is in its stream, or in the dead letters already; None where it is not there any more."""
        while True:
            single = self._reading.single(partition, waiting.position, waiting.copy)
            if not isinstance(single, bool):
                return single
            if not single:
                return None
            await asyncio.sleep(0.001)

    async def _made(self, path: str, kind: str) -> StreamView | None:
        """The stream of dead letters, made if there is none."""
        stream = self._reading.at(path)
        if stream is None:
            with contextlib.suppress(Conflict):  # somebody was faster
                await asked(lambda done: self._log.create(path, Create(StreamConfig(kind)), done))
            stream = self._reading.at(path)
        return stream

    # -- where letters are

    def _locate(self, event: Dead, done: Done, result: list[Appended] | Exception) -> None:
        """A letter is on disk: so is where it is, soon."""
        if not isinstance(result, Exception) and event.since is not None and self._is_open():
            copy = (event.since[0], str(result[0].offset))
            self._journal.note(Located(event.number, event.position, copy))
        done(result)

    async def find_letters(self) -> list[Located]:
        """Look for the letters of which it is not on record where they are."""
        found: list[Located] = []
        for letter in list(self._journal.state.dead.values()):
            if letter.since is None:
                continue
            try:
                found.append(Located(letter.number, letter.position, await self._look_for(letter, *letter.since)))
            except Exception as error:  # the next time that the group is read it is looked for again
                _log.warning("dead-letter-not-found", group=self._name, stream=letter.path, error=str(error))
                if not isinstance(error, Refusal):
                    report(error, self.find_letters)
        return found

    async def _look_for(self, letter: DeadLetter, path: str, since: str) -> tuple[str, str] | None:
        """The stream of a letter and the offset after it; None where it is no more."""
        try:
            stream = self._log.find(path, touch=False)
            at = _place(stream, Offset.parse(since))
            while at < stream.tail:
                for batch in await stream.read(at, self._log.limits.read_bytes_max):
                    at = batch.end
                    for index, meta in (batch.meta or {}).items():
                        if _is_letter(meta, self._name, letter):
                            return path, str(stream.offset(batch.position + index + 1))
        except (Gone, NotFound):
            pass
        return None

    # -- bringing back

    def redrive(self, only: Callable[[Any], bool], done: Done) -> None:
        """Deliver dead records again, as if for the first time; ``done`` gets how many."""
        state = self._journal.state
        chosen = [at for at, letter in state.dead.items() if only(letter) and at[0] in state.partitions]
        if not chosen:
            done(0)
            return
        self._journal.note(Redriven(self._clock.wall_ms(), chosen), lambda failed: done(failed or len(chosen)))
        for number, position in chosen:
            self._reading.hold(state.partitions[number])
            self._requeue(number, state.partitions[number].waiting[position])


def _differs(letters: StreamView, kind: str) -> bool:
    """Whether a record of another type has to be put into JSON."""
    return letters.config.is_json and kind.partition(";")[0].strip().lower() != JSON


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


def _is_letter(meta: Meta, group: str, letter: DeadLetter) -> bool:
    """Whether a record in a stream of dead letters is the letter of a dead record."""
    headers = meta.headers
    return (
        headers.get("wayside-dead-group") == group
        and headers.get("wayside-dead-stream") == letter.path
        and headers.get("wayside-dead-offset", "")[-16:] == str(Offset(0, letter.position + 1))[-16:]
    )


def _place(stream: StreamView, offset: Offset) -> int:
    """The position of an offset, or where the stream begins if it is before that. Raises :class:`Gone`."""
    try:
        return stream.resolve(offset)
    except Gone as gone:
        if gone.code != "offset-expired":
            raise
        return stream.start
