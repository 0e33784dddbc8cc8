"""Globs over stream paths: ``*`` is one segment, ``**`` any number of them. Whole segments only; no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from wayside.core.errors import BadRequest
from wayside.core.records import is_reserved

__all__ = ["Glob", "is_glob"]

GLOB_BYTES_MAX = 1000
"""About as long as a path may be: what is kept for a glob has a path that is a little longer."""
WILDCARDS = frozenset({"*", "**"})


def is_glob(path: str) -> bool:
    """Whether a segment of it is a wildcard; no stream has such a path."""
    return "*" in path and not WILDCARDS.isdisjoint(path.split("/"))


class Glob:
    """Paths such as ``orders/*/paid`` or ``orders/**``; without a wildcard, the one path it is.

    ``**`` at the end stands for one segment or more: ``orders/**`` is everything below ``orders/``, and ``**`` every
    stream. Elsewhere it may also stand for none. The paths that a hub keeps for itself never match.

    Raises :class:`BadRequest` (``glob-invalid``) for text that can match no stream.
    """

    __slots__ = ("_below", "_segments", "literal", "prefix", "text")

    def __init__(self, text: str) -> None:
        segments = text.split("/")
        if "" in segments or "." in segments or ".." in segments or not text.isprintable():
            raise _invalid(text, "Use printable segments between single slashes, such as orders/*/paid or orders/**.")
        if any("*" in segment and segment not in WILDCARDS for segment in segments):
            raise _invalid(text, "* and ** stand for whole segments: orders/*/paid or orders/**, not orders/eu-*.")
        if len(text.encode()) > GLOB_BYTES_MAX:
            raise _invalid(text, f"At most {GLOB_BYTES_MAX} bytes are allowed.")
        if is_reserved(text):
            raise _invalid(text, f"Paths under {segments[0]}/ are the hub's own, and are never matched.")
        self.text = text
        self.literal = not is_glob(text)
        """Whether it is the path of one stream."""
        fixed = next((at for at, segment in enumerate(segments) if segment in WILDCARDS), len(segments))
        self.prefix = text if self.literal else "".join(segment + "/" for segment in segments[:fixed])
        """What every path that matches begins with."""
        self._below = segments[fixed:] == ["**"]
        self._segments = _plain(segments)

    def matches(self, path: str) -> bool:
        """Whether the stream at ``path`` is meant."""
        if not path.startswith(self.prefix) or is_reserved(path):
            return False
        if self.literal:
            return path == self.text
        return self._below or _match(self._segments, path.split("/"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Glob) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Glob({self.text!r})"


def _plain(segments: list[str]) -> list[str]:
    """With ``**`` for any number of segments, none included, wherever it stands, and never twice in a row."""
    if segments[-1] == "**":
        segments = [*segments[:-1], "*", "**"]
    return [s for at, s in enumerate(segments) if s != "**" or at == 0 or segments[at - 1] != "**"]


def _match(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Greedy, going back to the last ``**`` only: as many steps as the two lengths multiplied, at most."""
    at = here = 0
    star = retry = -1
    while here < len(path):
        if at < len(pattern) and pattern[at] == "**":
            star, retry = at, here
            at += 1
        elif at < len(pattern) and pattern[at] in ("*", path[here]):
            at += 1
            here += 1
        elif star >= 0:
            retry += 1
            at, here = star + 1, retry
        else:
            return False
    return all(segment == "**" for segment in pattern[at:])


def _invalid(text: str, why: str) -> BadRequest:
    return BadRequest(f"{text[:200]!r} is not a glob over stream paths. {why}", code="glob-invalid")
