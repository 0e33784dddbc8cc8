"""A member of a group, as a program has it: records are taken from it one by one, or several at a time."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import quote

import msgspec

from wayside.client.delivery import Delivery
from wayside.client.member import Membership, Owner
from wayside.groups.events import GroupSpec

__all__ = ["CREDIT", "GroupMember", "group_target", "member_name", "spec_of", "texts_of"]

CREDIT = 256
"""Records that a member is given ahead of what it takes."""

SETTINGS = {
    "lease": "lease_s",
    "backoff": "backoff_s",
    "backoff_max": "backoff_s_max",
    "in_flight": "in_flight_max",
    "member_in_flight": "member_in_flight_max",
}
"""Settings by the names that they have in Python; the others are as in :class:`GroupSpec`."""


def spec_of(streams: str | Iterable[str], settings: dict[str, Any]) -> GroupSpec:
    """What is chosen for a group. Raises TypeError for a setting that there is not, or that is of the wrong type."""
    paths = texts_of(streams)
    given = {SETTINGS.get(name, name): value for name, value in settings.items() if value is not None}
    try:
        return msgspec.convert({"streams": paths, **given}, GroupSpec)
    except msgspec.ValidationError as error:
        known = sorted({*(set(GroupSpec.__struct_fields__) - {*SETTINGS.values()}), *SETTINGS} - {"streams"})
        raise TypeError(f"These are no settings of a group: {error}. There are {', '.join(known)}.") from error


def member_name() -> str:
    """A name that nobody else has."""
    return f"{socket.gethostname()[:64]}-{secrets.token_hex(6)}"


def texts_of(streams: str | Iterable[str]) -> list[str]:
    """Paths or globs, of which one may be given by itself."""
    return [streams] if isinstance(streams, str) else list(streams)


def group_target(name: str, action: str = "") -> str:
    """Where a group is, or what is done with it."""
    return f"/v1/group/{quote(name, safe='')}{action}"


class GroupMember:
    """A member of a group. Iterate over it: records come as they are there, each to one member. Several tasks may iterate
    over one. See :meth:`wayside.Client.group`."""

    def __init__(self, name: str, member: str, credit: int, begin: Callable[[Owner], Awaitable[Membership]]) -> None:
        if credit < 1:
            raise ValueError("A member takes at least one record: credit is from 1.")
        self.name = name
        self.member = member
        self.credit = credit
        self._begin = begin
        """Asks the hub for a membership, whose records go to whom it is given."""
        self._link: Membership | None = None
        self._buffer: deque[Delivery] = deque()
        self._spent = 0
        """Records that were taken, and for which no credit was given yet."""
        self._changed = asyncio.Event()
        self._error: Exception | None = None
        self._kept = False
        """It is a block's, which ends it."""
        self._iterations = 0
        self._joining = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<GroupMember {self.member} of {self.name}>"

    @property
    def fenced(self) -> int:
        """Records whose lease was over before something was said of them: others are, or were, given them."""
        return self._link.fenced if self._link is not None else 0

    @property
    def held(self) -> int:
        """Records of which nothing was said yet."""
        return self._link.held if self._link is not None else 0

    def keep(self) -> None:
        """Be a member until :meth:`leave`, also where nobody iterates."""
        self._kept = True

    async def __aenter__(self) -> GroupMember:
        self.keep()
        await self.join()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._kept = False
        await self.leave()

    async def join(self) -> None:
        """Become a member. Iterating does it. Raises NotFound where there is no such group."""
        async with self._joining:
            if self._link is not None:
                return
            link = await self._begin(self)
            self._error = None
            try:
                await link.joined
            except BaseException:
                await link.leave(0)
                raise
            self._link = link

    async def leave(self) -> None:
        """Be none any more: what was said is kept when this returns, and the rest is given back."""
        link, self._link = self._link, None
        self._buffer.clear()
        self._spent = 0
        if link is not None:
            await link.leave()

    # -- as the owner of the link

    def room(self) -> int:
        self._spent = 0
        return max(0, self.credit - len(self._buffer))

    def delivered(self, deliveries: list[Delivery]) -> None:
        self._buffer.extend(deliveries)
        self._changed.set()

    def ended(self, error: Exception) -> None:
        self._error = error
        self._buffer.clear()
        self._changed.set()

    # -- taking

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self._deliveries()

    async def _deliveries(self) -> AsyncIterator[Delivery]:
        await self.join()
        self._iterations += 1
        buffer = self._buffer
        half = max(1, self.credit // 2)
        try:
            while True:
                while buffer:
                    if self._spent >= half:
                        self._grant()
                        await asyncio.sleep(0)  # what was said so far goes out, and others have their turn
                        continue
                    self._spent += 1
                    yield buffer.popleft()
                await self._more()
        finally:
            await self._stopped()

    async def batches(self, records: int) -> AsyncGenerator[list[Delivery], None]:
        """Records as they come, up to so many at a time."""
        self._iterations += 1
        try:
            while True:
                yield await self.take(records)
        finally:
            await self._stopped()

    async def _stopped(self) -> None:
        """Nobody iterates any more: without a block this is the end."""
        self._iterations -= 1
        if not self._iterations and not self._kept:
            await self.leave()

    async def take(self, records: int) -> list[Delivery]:
        """As many records as are there, from 1 to ``records``; waits for the first."""
        await self.join()
        while not self._buffer:
            await self._more()
        taken = [self._buffer.popleft() for _ in range(min(records, len(self._buffer)))]
        self._spent += len(taken)
        if self._spent >= max(1, self.credit // 2):
            self._grant()
        return taken

    def _grant(self) -> None:
        spent, self._spent = self._spent, 0
        if self._link is not None:
            self._link.grant(spent)

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._changed.clear()
        await self._changed.wait()
