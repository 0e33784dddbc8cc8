"""What a publisher says of a record beside its bytes: read, bounded, and as the log keeps it. Knows no wire."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, TooLarge
from wayside.core.limits import Limits
from wayside.core.records import Meta

__all__ = ["NOTHING", "Publication", "Published", "Said", "rfc3339"]

SECONDS_MAX = 366 * 86_400.0
"""Of a time to live and of a delay."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)
"""A header's name (RFC 9110 section 5.6.2)."""


class Said(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True):
    """What was said of records, not looked at yet."""

    id: str = ""
    key: str = ""
    headers: dict[str, str] = {}
    ttl_s: float = 0.0
    """Seconds after which they are not given to readers any more, from when they are in the stream; 0: never."""
    delay_s: float = 0.0
    """Seconds until they are appended; 0: at once."""

    def meta(self, clock: Clock, limits: Limits) -> Meta | None:
        """As the log keeps it; None where there is nothing to keep. Raises :class:`BadRequest` or :class:`TooLarge`."""
        require_seconds("The time to live", self.ttl_s)
        require_seconds("The delay", self.delay_s)
        if not (self.id or self.key or self.headers or self.ttl_s):
            return None
        size = len(self.id.encode()) + len(self.key.encode())
        for what, text in (("The message id", self.id), ("The key", self.key), *self.headers.items()):
            if any(character < " " or character == "\x7f" for character in text):
                raise BadRequest(f"{what} has control characters in it: {text[:80]!r}.", code="metadata-invalid")
        for name, value in self.headers.items():
            if not _TOKEN.fullmatch(name):
                raise BadRequest(
                    f"{name[:80]!r} is no name for a header: use letters, digits and dashes.", code="metadata-invalid"
                )
            size += len(name) + len(value.encode())
        if size > limits.meta_bytes_max:
            raise TooLarge(
                f"Headers, id and key are {size} bytes together; the limit is {limits.meta_bytes_max}. Put it into the "
                "record itself.",
                code="metadata-too-large",
                fields={"limit_bytes": limits.meta_bytes_max},
            )
        expires = clock.wall_ms() + math.ceil((self.delay_s + self.ttl_s) * 1000) if self.ttl_s else 0
        return Meta({name.lower(): value for name, value in self.headers.items()}, self.id, self.key, expires)


NOTHING = Said()


class Publication(msgspec.Struct):
    """One record of several that are published together: ``data`` is a JSON value, ``str`` or ``bytes``, as the stream
    is; ``ttl`` and ``delay`` are seconds."""

    stream: str
    data: Any
    id: str = ""
    key: str = ""
    headers: Mapping[str, str] = {}
    ttl: float = 0.0
    delay: float = 0.0

    @property
    def said(self) -> Said:
        return Said(self.id, self.key, dict(self.headers), self.ttl, self.delay)


class Published(NamedTuple):
    """What became of a record that was published."""

    offset: str
    """Where to read on after it; "" while it is delayed."""
    duplicate: bool = False
    """A record with its message id was there before; nothing was added now."""
    due: str = ""
    """When it will be in its stream (RFC 3339), if it is delayed."""


def require_seconds(what: str, seconds: float) -> None:
    """Raise :class:`BadRequest` for what is no time to wait."""
    if not 0 <= seconds <= SECONDS_MAX:  # NaN is neither
        raise BadRequest(
            f"{what} must be from 0 to {SECONDS_MAX:.0f} seconds, not {seconds}.", code="parameter-invalid"
        )


def rfc3339(time_ms: int) -> str:
    """A time as text, in UTC, to the millisecond."""
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
