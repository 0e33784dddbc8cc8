"""Members of a group: who takes deliveries, and how many."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Member", "MemberLink"]


class MemberLink(Protocol):
    """The hub's way to a member."""

    def deliver(self, lease: int, seconds: float, parts: list[Any]) -> None:
        """Take records: they are on record as leased, for so long."""
        ...

    def ended(self, error: Exception) -> None:
        """There will be no more."""
        ...


class Member:
    """One that takes records: a channel, a request that waits, a webhook. Several may share a ``name``: what one of them
    was given any of them may settle."""

    __slots__ = ("credit", "link", "name", "once", "taken")

    def __init__(self, name: str, link: MemberLink, credit: int, *, once: bool = False) -> None:
        self.name = name
        self.link: MemberLink | None = link
        """None: it has left."""
        self.credit = credit
        """Records that it still takes."""
        self.once = once
        """Whether it takes one delivery only, as a request does."""
        self.taken = False
        """A delivery is on its way to one that takes no other."""

    def __repr__(self) -> str:
        return f"<Member {self.name} credit {self.credit}{'' if self.link else ' left'}>"
