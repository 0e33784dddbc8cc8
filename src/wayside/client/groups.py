"""Groups as a client sees them: made, looked at and changed by requests, and read as a member."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any
from urllib.parse import quote

import msgspec

from wayside.client.connection import Channels
from wayside.client.delivery import Delivery
from wayside.client.member import Member, Pace
from wayside.core.errors import Conflict
from wayside.core.records import JSON, media_type
from wayside.groups.events import GroupSpec
from wayside.link import frames as f
from wayside.link.frames import Publish

__all__ = ["CREDIT", "GroupMember", "GroupRequests", "member_name", "spec_of"]

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
    paths = _texts(streams)
    given = {SETTINGS.get(name, name): value for name, value in settings.items() if value is not None}
    try:
        return msgspec.convert({"streams": paths, **given}, GroupSpec)
    except msgspec.ValidationError as error:
        known = sorted({*(set(GroupSpec.__struct_fields__) - {*SETTINGS.values()}), *SETTINGS} - {"streams"})
        raise TypeError(f"These are no settings of a group: {error}. There are {', '.join(known)}.") from error


def member_name() -> str:
    """A name that nobody else has."""
    return f"{socket.gethostname()[:64]}-{secrets.token_hex(6)}"


def _texts(streams: str | Iterable[str]) -> list[str]:
    return [streams] if isinstance(streams, str) else list(streams)


def _group(name: str, action: str = "") -> str:
    return f"/v1/group/{quote(name, safe='')}{action}"


class GroupRequests:
    """The requests of a client that are of groups."""

    channels: Channels
    pace: Pace

    async def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        repeat: bool = False,
    ) -> f.ResponseFrame:
        """Any request of the HTTP interface."""
        raise NotImplementedError

    async def create(self, stream: str) -> None:
        """Create a stream."""
        raise NotImplementedError

    async def info(self, stream: str) -> dict[str, str]:
        """What a stream is."""
        raise NotImplementedError

    def group(
        self,
        name: str,
        streams: str | Iterable[str] = (),
        *,
        member: str | None = None,
        credit: int = CREDIT,
        **settings: Any,
    ) -> GroupMember:
        """A member of a group, which is given its share of the records::

            async with client.group("billing", "orders/*", retries=5) as group:
                async for delivery in group:
                    bill(delivery.json())
                    delivery.ack()

        With ``streams``, paths or globs, the group is made, or given these settings, as by :meth:`put_group`; else it has
        to be there. ``member`` is its name in what is told of the group (by default one that nobody else has), ``credit``
        how many records it is given ahead. Leaving the block gives back what was not settled.
        """
        if streams or settings:
            spec_of(streams, settings)  # says now what is wrong
        paths = _texts(streams)
        return GroupMember(self, name, paths, settings, member or member_name(), credit)

    async def _answer(self, method: str, target: str, body: Any = None) -> Any:
        headers = {} if body is None else {"Content-Type": JSON}
        answer = await self.request(method, target, headers, b"" if body is None else msgspec.json.encode(body))
        return msgspec.json.decode(answer.body) if answer.body else None

    async def groups(self) -> list[dict[str, Any]]:
        """All groups, by name."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = await self._answer("GET", f"/v1/group/?limit=1000&after={quote(after)}")
            found += page["groups"]
            after = page["next"]
            if after is None:
                return found

    async def put_group(self, name: str, streams: str | Iterable[str], **settings: Any) -> dict[str, Any]:
        """Make a group of ``streams`` (paths or globs), or give it other settings. Returns its description.

        ``start`` (``-1``, ``now``, or an offset of the only stream), ``lease`` (seconds), ``retries`` (-1: no bound),
        ``backoff`` and ``backoff_max`` (seconds), ``dead_letter`` (a stream), ``order_by`` (a field, or ``$key``),
        ``in_flight`` and ``member_in_flight`` (records), ``paused``, ``webhook`` and more: see docs/PROTOCOL.md.
        """
        return await self.declare_group(name, spec_of(streams, settings))

    async def declare_group(self, name: str, spec: GroupSpec) -> dict[str, Any]:
        """Make a group, or give it other settings, as :meth:`put_group` does."""
        described: dict[str, Any] = await self._answer("PUT", _group(name), spec)
        return described

    async def describe_group(self, name: str) -> dict[str, Any]:
        """A group: its settings, members, lag, what is in flight, waiting and dead."""
        described: dict[str, Any] = await self._answer("GET", _group(name))
        return described

    async def delete_group(self, name: str) -> None:
        """Forget a group. The streams that it reads stay."""
        await self._answer("DELETE", _group(name))

    async def seek(self, name: str, to: str, streams: str | Iterable[str] = ()) -> list[str]:
        """Have a group read from elsewhere on: ``-1``, ``now``, or an offset of the one stream; only ``streams`` (paths or
        globs), where they are given. What was outstanding is not any more, and attempts count anew. Returns the paths."""
        found: list[str] = (await self._answer("POST", _group(name, "/seek"), {"to": to, "streams": _texts(streams)}))[
            "streams"
        ]
        return found

    async def pause_group(self, name: str) -> None:
        """Deliver nothing, until :meth:`resume_group`. What is held may still be settled."""
        await self._answer("POST", _group(name, "/pause"))

    async def resume_group(self, name: str) -> None:
        """Deliver again."""
        await self._answer("POST", _group(name, "/resume"))

    async def dead(self, name: str, stream: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Dead records, those that died last first: of ``stream`` (a path or a glob), or of all."""
        query = f"?limit={limit}" + (f"&stream={quote(stream, safe='')}" if stream else "")
        found: list[dict[str, Any]] = (await self._answer("GET", _group(name, "/dead") + query))["dead"]
        return found

    async def redrive(
        self,
        name: str,
        streams: str | Iterable[str] = (),
        *,
        offsets: Iterable[str] = (),
        reason: str = "",
        limit: int | None = None,
    ) -> int:
        """Have dead records delivered again, as if for the first time: of ``streams``, with these ``offsets`` (those after
        them), whose reason has this in it, the oldest ``limit``; all, where nothing is said. Returns how many."""
        wanted = {"streams": _texts(streams), "offsets": list(offsets), "reason": reason, "max": limit}
        redriven: int = (await self._answer("POST", _group(name, "/redrive"), wanted))["redriven"]
        return redriven

    async def receipts(self, group: str, stream: str, offset: str) -> dict[str, Any]:
        """What is known of one record in a group: where it is, and each of its deliveries."""
        query = f"?stream={quote(stream, safe='')}&offset={quote(offset)}"
        found: dict[str, Any] = await self._answer("GET", _group(group, "/receipts") + query)
        return found

    async def prepare(self, publish: list[Publish]) -> None:
        """Make streams that are not there, and texts as those are that are not JSON."""
        for each in publish:
            try:
                await self.create(each.stream)
            except Conflict:
                kind = (await self.info(each.stream)).get("content-type", "")
                if each.content_type == JSON and media_type(kind) != JSON:
                    try:
                        each.records = [msgspec.json.decode(record, type=str).encode() for record in each.records]
                    except msgspec.DecodeError as error:
                        raise Conflict(
                            f"{each.stream} is {kind}: publish texts or bytes to it.", code="content-type-mismatch"
                        ) from error
                    each.content_type = ""


class GroupMember:
    """A member of a group. Iterate over it: records come as they are there, each to one member. Several tasks may iterate
    over one. See :meth:`wayside.Client.group`."""

    def __init__(
        self,
        client: GroupRequests,
        name: str,
        streams: list[str],
        settings: dict[str, Any],
        member: str,
        credit: int,
    ) -> None:
        if credit < 1:
            raise ValueError("A member takes at least one record: credit is from 1.")
        self.name = name
        self.member = member
        self.credit = credit
        self._client = client
        self._streams = streams
        self._settings = settings
        self._link: Member | None = None
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
            client = self._client
            await client.channels.ready()
            if self._streams:
                await client.put_group(self.name, self._streams, **self._settings)
            self._error = None
            link = Member(client.channels, self.name, self.member, self, client.pace, client.prepare)
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
