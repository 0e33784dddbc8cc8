"""One group: its parts, how they are joined, its life and its members.

A part is given those that it uses, and calls back for what is done above it; none knows the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from wayside.core.callbacks import Done, guarded, report
from wayside.core.clock import Clock
from wayside.core.errors import NotFound, Overloaded, Refusal
from wayside.core.schedule import Timers
from wayside.groups.deadletters import DeadLetters
from wayside.groups.dispatch import Dispatch
from wayside.groups.events import DOOMED, GroupSpec, Located, Specified, Waiting
from wayside.groups.journal import Journal
from wayside.groups.reading import Reading
from wayside.groups.schedule import Schedule
from wayside.groups.settlement import Settler
from wayside.groups.sources import Sources
from wayside.groups.state import Member
from wayside.link.frames import Ack
from wayside.streams.contract import Log

__all__ = ["Group"]

LOST_S = 1.0
"""How soon a group is read again whose state could not be kept."""

_log = structlog.get_logger("wayside.groups")


class Group:
    """A named shared reader. It delivers from :meth:`begin` on, which follows :meth:`load`, or ``journal.make``.
    ``on_specified`` is told when its settings have changed."""

    def __init__(
        self,
        name: str,
        log: Log,
        clock: Clock,
        timers: Timers,
        on_specified: Callable[[Group], object] = id,
    ) -> None:
        self.name = name
        self.log = log
        self.deleted = False
        self._clock = clock
        self._on_specified = on_specified
        self._located: list[Located] = []
        """Letters that were found when it was loaded."""
        self._reloading: asyncio.Task[None] | None = None
        self.journal = Journal(log, name, self._lost)
        self.reading = Reading(log, lambda: self.wake())
        self.schedule = Schedule(clock, timers, lambda: self.wake(), lambda leases: self.settler.expire(leases))
        self.dispatch = Dispatch(
            clock, self.journal, self.reading, self.schedule, lambda lease: self.settler.release(lease)
        )
        self.members = self.dispatch.members
        self.wake = self.dispatch.wake
        """There may be something to deliver, as where a member takes more."""
        self.settler = Settler(
            log, clock, self.journal, self.reading, self.schedule, self.require_open, self._requeue, self.wake
        )
        self.settle = self.settler.settle
        """Take what a member says of its records."""
        self.dead_letters = DeadLetters(
            name, log, clock, self.journal, self.reading, lambda: self.open, self._requeue, self.wake
        )
        self.sources = Sources(log, clock, timers, self.journal, self.reading, self.dispatch)

    def __repr__(self) -> str:
        return f"<Group {self.name} {len(self.members)} members, {self.journal.state.in_flight} in flight>"

    @property
    def spec(self) -> GroupSpec:
        """Its settings."""
        return self.journal.state.spec

    @property
    def open(self) -> bool:
        """Whether it delivers: its state is known, and can be kept."""
        return self.dispatch.open

    @property
    def stuck(self) -> str:
        """Why a dead record could not be put where it belongs, if that is so."""
        return self.dead_letters.stuck

    @property
    def idle(self) -> bool:
        """Whether nothing happens in it until it is told something, or time passes."""
        busy = self.reading.busy or self._reloading is not None
        return self.journal.idle and self.dispatch.idle and self.dead_letters.idle and not busy

    def require_open(self) -> None:
        """Raise what stands in the way of a change."""
        if self.deleted:
            raise NotFound(f"There is no group {self.name!r}.", code="group-not-found")
        if not self.dispatch.open:
            raise Overloaded("The group is being read from the disk. Try again shortly.", headers={"Retry-After": "1"})

    # -- life

    async def load(self) -> None:
        """Read what is on disk. Raises :class:`NotFound` where there is no such group."""
        await self.journal.load()
        self._located = await self.dead_letters.find_letters()

    def begin(self) -> None:
        """Deliver: its state is as the disk has it."""
        self.sources.begin()
        located, self._located = self._located, []
        for event in located:
            self.journal.note(event)
        state = self.journal.state
        self.schedule.begin(lease for leases in state.leases.values() for lease in leases)
        self.dispatch.begin()
        for number, partition in state.partitions.items():
            for waiting in list(partition.waiting.values()):
                self._requeue(number, waiting)
            self.reading.hold(partition)
        self.wake()
        if self.members:
            self.sources.watch()

    def end(self) -> None:
        """Deliver nothing more; what is on its way to the disk gets there."""
        self.dispatch.stop()
        self.reading.stop()
        self.schedule.stop()
        self.sources.rest()
        self.dead_letters.stop()
        if self._reloading is not None:
            self._reloading.cancel()
            self._reloading = None

    def discard(self) -> None:
        """The group was deleted."""
        self.deleted = True
        self.end()
        self.journal.close(NotFound(f"The group {self.name} was deleted.", code="group-not-found"))
        for member in list(self.members):
            link, member.link = member.link, None
            if link is not None:
                error = NotFound(f"The group {self.name} was deleted.", code="group-not-found")
                guarded(partial(link.ended, error))
        self.members.clear()

    def _lost(self, error: Exception) -> None:
        """What was noted last is not on disk: what is there is true."""
        _log.warning("group-not-kept", group=self.name, error=str(error))
        self.end()
        self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        while True:
            await asyncio.sleep(LOST_S)
            try:
                await self.load()
            except Exception as error:
                _log.warning("group-not-read", group=self.name, error=str(error))
                if not isinstance(error, Refusal):
                    report(error, self._reload)
            else:
                self._reloading = None
                self.begin()
                return

    def _requeue(self, number: int, waiting: Waiting) -> None:
        """A record waits: for its time, or to be moved to the dead letters."""
        if waiting.delay_ms == DOOMED or waiting.failures > self.journal.state.spec.failures_max:
            self.dead_letters.move(number, waiting)
        else:
            self.schedule.put_back(number, waiting)

    # -- members

    def join(self, member: Member) -> None:
        """A member takes records, as far as it has credit. Raises where there can be none."""
        self.require_open()
        self.members.add(member)
        self.sources.watch()
        self.wake()

    def recall(self, name: str, held: list[Ack]) -> None:
        """A member connects again and says what it has: what else is leased to its name never reached it, unless another
        has that name, too."""
        self.require_open()
        if not self._has(name):
            self.settler.recall(name, held)

    def leave(self, member: Member, *, give_back: bool) -> None:
        """It takes no more. ``give_back``: what its name holds is for others at once, if no other has that name; else
        until its leases end."""
        member.link = None
        self.members.discard(member)
        if give_back and self.open and not self._has(member.name):
            self.settler.leave(member.name)
        if not self.members:
            self.sources.linger()

    def _has(self, name: str) -> bool:
        """Whether a member has a name."""
        return any(member.name == name for member in self.members)

    # -- changing

    def specify(self, spec: GroupSpec, done: Done) -> None:
        """Other settings, from now on."""
        self.require_open()
        self.journal.note(Specified(self._clock.wall_ms(), spec), done)
        self.sources.respecify()
        for number, partition in self.journal.state.partitions.items():
            for waiting in list(partition.waiting.values()):
                if waiting.failures > spec.failures_max:
                    self.dead_letters.move(number, waiting)
        watching = self.sources.watching
        self.sources.rest()
        if watching or self.members:
            self.sources.watch()
            if not self.members:
                self.sources.linger()
        self._on_specified(self)
        self.wake()

    def seek(self, to: str, only: Callable[[str], bool], done: Done) -> None:
        """Read streams from elsewhere on: :meth:`~wayside.groups.sources.Sources.seek`."""
        self.require_open()
        self.sources.seek(to, only, done)

    def redrive(self, only: Callable[[Any], bool], done: Done) -> None:
        """Deliver dead records again, as if for the first time, once those that die now are on disk; ``done`` gets how
        many."""
        self.require_open()

        def kept(failed: Exception | None) -> None:
            if failed is None:
                self.dead_letters.redrive(only, done)
            else:
                done(failed)

        self.journal.then(kept)
