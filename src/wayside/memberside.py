"""The hub's end of a connection, as far as members of groups are at the other: what they say, and the way to them."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from wayside import frames as f
from wayside.channelled import problem_of
from wayside.deliveries import Part, Settled
from wayside.errors import BadRequest, Refusal
from wayside.group import Group
from wayside.groups import Groups
from wayside.model import require_size
from wayside.state.members import Member

__all__ = ["ChannelMember", "member_of", "require_member"]

MEMBER_CHARACTERS_MAX = 256
"""Of the name of a member."""


class _Peer(Protocol):
    def put(self, frame: Any, size: int = 0) -> None: ...

    def forget(self, channel: int) -> None: ...


def require_member(name: str) -> None:
    """Raise :class:`BadRequest` or ``TooLarge`` for what is no name of a member."""
    require_size(len(name.encode()), MEMBER_CHARACTERS_MAX, "The name of the member")
    if not name.isprintable() or not name:
        raise BadRequest("A member has a printable name.", code="member-invalid")


class ChannelMember:
    """A member of a group, on a channel."""

    __slots__ = ("_channel", "_group", "_member", "_peer")

    def __init__(self, peer: _Peer, frame: f.JoinFrame, groups: Groups) -> None:
        require_member(frame.member)
        self._peer = peer
        self._channel = frame.channel
        self._group: Group = groups.group(frame.group)
        self._member = Member(frame.member, self, max(0, frame.credit))
        if frame.held is not None:
            self._group.recall(frame.member, frame.held)
        self._group.join(self._member)
        peer.put(f.JoinedFrame(frame.channel, self._group.spec.lease_s))

    def deliver(self, lease: int, seconds: float, parts: list[Part]) -> None:
        size = sum(len(record) for part in parts for record in part.records)
        self._peer.put(f.DeliverFrame(self._channel, lease, seconds, parts), size)

    def ended(self, error: Exception) -> None:
        self._peer.put(f.ErrorFrame(self._channel, problem_of(error)))
        self._peer.forget(self._channel)

    def grant(self, credit: int) -> None:
        """It takes that many more."""
        self._member.credit += credit
        self._group.wake()

    def rest(self) -> None:
        """It is given no more; what it has it may still settle."""
        self._group.leave(self._member, give_back=False)

    def leave(self) -> None:
        """It gives back what it has."""
        self._group.leave(self._member, give_back=True)

    def stop(self) -> None:
        """Its connection is lost: what it has is its own until its leases end."""
        self._group.leave(self._member, give_back=False)

    def settle(self, frame: f.SettleFrame) -> None:
        """Take what it says of its records."""
        told = partial(self._settled, frame.seq)
        try:
            self._group.settle(frame.settlement, told, self._member.name)
        except Refusal as refusal:
            told(refusal)

    def _settled(self, seq: int, result: Settled | Exception) -> None:
        if isinstance(result, Exception):
            refused = f.SettledFrame(self._channel, seq, [], problem_of(result))
            self._peer.put(refused)
        else:
            self._peer.put(f.SettledFrame(self._channel, seq, result.refused, None, result.offsets))


def member_of(entry: object) -> ChannelMember:
    """What is on a channel, as a member. Raises :class:`BadRequest` where it is none."""
    if not isinstance(entry, ChannelMember):
        raise BadRequest("Join the group first: this channel is no member of one.", code="not-a-member")
    return entry
