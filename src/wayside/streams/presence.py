"""Who follows a stream: members with leases, so that those who poll are counted, too.

A request that names a member renews its lease; a connection holds it, and begins it anew when it ends, so that whoever
comes back within its time has never left. Joins and leaves are records of a stream in memory, ``__presence/STREAM``.
Nothing of this outlives the hub: members join anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from wayside.core.callbacks import Done
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, NotFound, Refusal, TooMany
from wayside.core.lease import Lease, Leases
from wayside.core.records import JSON, Append, Create, Durability, StreamConfig, require_public
from wayside.core.schedule import Timers
from wayside.streams.contract import Log, StreamView

__all__ = ["PRESENCE", "Presence", "PresenceEvent", "Presences", "PresentMember", "event_at"]

PRESENCE = "__presence/"
"""Where the streams of joins and leaves are."""
NAME_MAX = 128
"""Characters of a member's name."""
TTL_S = 3600
RETENTION_BYTES = 1024 * 1024
"""Of a stream of joins and leaves."""
STREAMS_FULL = 10
"""Over all streams there may be so many times as many members as at one."""
_CONFIG = StreamConfig(JSON, Durability.MEMORY, ttl_s=TTL_S, retention_bytes=RETENTION_BYTES)


class PresentMember(msgspec.Struct, frozen=True):
    """One who is present."""

    member: str
    since_ms: int
    seen_ms: int
    """When it was last heard of; of one that is connected, now."""
    ways: list[str]
    """Patterns by which it reads."""


class PresenceEvent(msgspec.Struct, frozen=True):
    """A member has joined, or left."""

    event: str
    """``join`` or ``leave``."""
    member: str
    time_ms: int
    offset: str = ""
    """Where to read on after it."""


class Presences(msgspec.Struct, frozen=True):
    """Who is present at a stream."""

    stream: str
    offset: str
    """Where to read on for joins and leaves after this."""
    members: list[PresentMember]


class _Present:
    """A member at one stream."""

    __slots__ = ("connections", "name", "path", "seen_ms", "since_ms", "ways")

    def __init__(self, path: str, name: str, now_ms: int) -> None:
        self.path = path
        self.name = name
        self.since_ms = self.seen_ms = now_ms
        self.ways: dict[str, Lease[tuple[_Present, str]]] = {}
        """A lease for each way by which it reads; held while it is connected that way."""
        self.connections: dict[str, int] = {}
        """Those that are open, by way."""


class _Stay:
    """A member at a stream, for what answers its requests (:class:`wayside.streams.contract.Stay`)."""

    __slots__ = ("_name", "_path", "_presence")

    def __init__(self, presence: Presence, path: str, name: str) -> None:
        self._presence = presence
        self._path = path
        self._name = name

    def renew(self, way: str) -> None:
        self._presence.renew(self._path, self._name, way)

    def hold(self, way: str) -> Callable[[], None]:
        return self._presence.hold(self._path, self._name, way)


class Presence:
    """The members at all streams of one hub. Leases run on ``clock.monotonic``."""

    def __init__(self, log: Log, timers: Timers, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._lease_s = log.limits.presence_lease_s
        self._members_max = log.limits.presence_members_max
        self._streams: dict[str, dict[str, _Present]] = {}
        self._leases: Leases[Lease[tuple[_Present, str]]] = Leases(clock, timers, self._over)
        self._stopped = False
        self.count = 0
        """Members over all streams."""
        self.connections = 0
        """Of all members, those that are open."""

    def __repr__(self) -> str:
        return f"<Presence {self.count} members at {len(self._streams)} streams>"

    def stop(self) -> None:
        """The hub stops: nobody leaves any more."""
        self._stopped = True
        self._leases.clear()

    # -- coming and going

    def stay(self, path: str, name: str) -> _Stay:
        """A member at a stream, who is not present before it asks for something. Raises ``BadRequest`` for a name that is
        none."""
        if not 0 < len(name) <= NAME_MAX or not name.isprintable():
            raise BadRequest(
                f"{name[:40]!r} names no member: use 1 to {NAME_MAX} printable characters.", code="member-invalid"
            )
        return _Stay(self, path, name)

    def renew(self, path: str, name: str, way: str) -> None:
        """A member has asked for something. Raises ``TooMany`` for one more than there may be."""
        member = self._enter(path, name)
        member.seen_ms = self._clock.wall_ms()
        if way not in member.connections:
            self._renew(self._lease(member, way))

    def hold(self, path: str, name: str, way: str) -> Callable[[], None]:
        """A member is connected, until what is returned is called."""
        member = self._enter(path, name)
        member.connections[way] = member.connections.get(way, 0) + 1
        self.connections += 1
        self._leases.hold(self._lease(member, way))
        released = False

        def release() -> None:
            nonlocal released
            if released:
                return
            released = True
            self.connections -= 1
            member.seen_ms = self._clock.wall_ms()
            member.connections[way] -= 1
            if not member.connections[way]:
                del member.connections[way]
                self._renew(member.ways[way])

        return release

    def _lease(self, member: _Present, way: str) -> Lease[tuple[_Present, str]]:
        lease = member.ways.get(way)
        if lease is None:
            lease = member.ways[way] = Lease((member, way), self._lease_s)
        return lease

    def _renew(self, lease: Lease[tuple[_Present, str]]) -> None:
        if not self._stopped:
            self._leases.renew(lease)

    def _over(self, leases: list[Lease[tuple[_Present, str]]]) -> None:
        """Members read by these ways no longer. Those who read by no other have left."""
        for lease in leases:
            member, way = lease.holder
            del member.ways[way]
            if member.ways:
                continue
            members = self._streams[member.path]
            del members[member.name]
            if not members:
                del self._streams[member.path]
            self.count -= 1
            self._tell(member.path, "leave", member.name)

    def _enter(self, path: str, name: str) -> _Present:
        members = self._streams.get(path)
        member = members.get(name) if members is not None else None
        if member is not None:
            return member
        if len(members or ()) >= self._members_max or self.count >= STREAMS_FULL * self._members_max:
            raise TooMany(
                f"As many members are present as may be (--presence-members-max {self._members_max}). Read without "
                "naming a member, or come later.",
                code="presence-full",
            )
        member = _Present(path, name, self._clock.wall_ms())
        self._streams.setdefault(path, {})[name] = member
        self.count += 1
        self._tell(path, "join", name)
        return member

    # -- telling

    def _tell(self, path: str, event: str, name: str) -> None:
        """Append an event. A stream that is made for it begins with all who are present."""
        record = _record(event, name, self._clock.wall_ms())
        at = PRESENCE + path
        with contextlib.suppress(Refusal):  # there is no room: who is present is still known
            try:
                self._log.append(at, Append(b"", records=[record]), _told)
            except NotFound:
                self._create(path, [record] if event == "leave" else [], _told)

    def _create(self, path: str, more: list[bytes], done: Done) -> None:
        joins = [_record("join", member.name, member.since_ms) for member in self._streams.get(path, {}).values()]
        create = Create(_CONFIG, records=joins + more, fresh=True)
        self._log.create(PRESENCE + path, create, done)

    # -- asking

    def find(self, path: str) -> StreamView | None:
        """The joins and leaves at a stream; None where they are to be made. Raises ``NotFound`` for no stream at all."""
        require_public(path)
        self._log.find(path, touch=False)
        try:
            return self._log.find(PRESENCE + path)
        except NotFound:
            return None

    def make(self, path: str, done: Done) -> None:
        """Make the joins and leaves at a stream, beginning with who is present; ``done`` is called when they can be read."""
        self._create(path, [], done)

    def events(self, path: str) -> StreamView:
        """The joins and leaves at a stream, made if need be: then a follower is given what they begin with later."""
        found = self.find(path)
        if found is None:
            self.make(path, _told)
            found = self._log.find(PRESENCE + path)
        return found

    def members(self, path: str, stream: StreamView) -> Presences:
        """Who is present at a stream, those first who have been for longest; ``stream`` are its joins and leaves."""
        now_ms = self._clock.wall_ms()
        members = []
        for present in self._streams.get(path, {}).values():
            ways = sorted(way for way, lease in present.ways.items() if self._leases.runs(lease))
            seen_ms = now_ms if present.connections else present.seen_ms
            members.append(PresentMember(present.name, present.since_ms, seen_ms, ways))
        return Presences(path, str(stream.offset(stream.tail)), members)


def _record(event: str, name: str, time_ms: int) -> bytes:
    return msgspec.json.encode({"event": event, "member": name, "time_ms": time_ms})


def event_at(offset: str, record: bytes) -> PresenceEvent:
    """A record of a stream of joins and leaves."""
    return msgspec.structs.replace(msgspec.json.decode(record, type=PresenceEvent), offset=offset)


def _told(_result: Any) -> None:
    """Appended, in memory; or not, where the hub stops."""
