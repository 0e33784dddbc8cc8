"""What all connections of a listener share: its limits, the time, who is connected, what goes out at the end of a tick.

The listener makes it and hands it down, to connections, to the parsers of their requests, and to the metrics. It knows
neither what a request means nor how it is answered: ``resolve`` finds what answers one.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from wayside.core.limits import Limits
from wayside.server.exchange import Handler, Request
from wayside.server.http.head import SECURITY, STATUS

HEADS_MAX = 2048
"""Request heads remembered; at most 2 KiB each."""

Resolve = Callable[[Request], Handler]
"""What answers a request; a refusal is a handler too. It may set ``takes_pieces``."""


class Connected(Protocol):
    """A connection, as what keeps time for it, drains it, and sends what was posted to it has it."""

    deadline: float | None
    """When ``expire`` is to be called; None: never."""
    queued: bool
    """Whether the transport may hold bytes that have to go out first: then only ``transmit`` may be used."""
    send_nowait: Callable[[bytes], int]
    """The socket's own: how much of it was taken. Raises ``OSError``."""

    def transmit(self, data: bytes) -> None: ...

    def queue(self, data: bytes, sent: int) -> None: ...

    def expire(self) -> None: ...

    def drain(self) -> None: ...

    def cut(self) -> None: ...


class Shared:
    """The state of one listener that its connections work with."""

    def __init__(self, resolve: Resolve, limits: Limits, spool_directory: Path | None) -> None:
        self.resolve = resolve
        self.limits = limits
        self.spool_directory = spool_directory
        self.connections: set[Connected] = set()
        self.heads: dict[bytes, Request] = {}
        """What was parsed, by its bytes."""
        self.responses = [0] * 6
        """By the first digit of their status."""
        self.draining = False
        self.outbox: list[tuple[Connected, bytes]] = []
        """Answers that go out at the end of this tick."""
        self.tick()

    def tick(self) -> None:
        """It is another second."""
        self.now = time.monotonic()
        self.idle_deadline = self.now + self.limits.idle_timeout_s
        """Deadline of a connection that becomes idle now."""
        self.common = b"Date: %b\r\n%b" % (email.utils.formatdate(usegmt=True).encode(), SECURITY)
        """Header fields of every answer; a new object whenever it changes."""
        self.no_content = STATUS[204] + self.common
        """Status line and those fields of an answer without a body."""

    def remember(self, head: bytes, request: Request) -> None:
        """Not to parse these bytes again."""
        if len(self.heads) >= HEADS_MAX:
            self.heads.clear()
        self.heads[head] = request

    def post(self, connection: Connected, answer: bytes) -> None:
        """Send an answer at the end of this tick. Answers that become due together, as after a commit, then go out
        without anything in between, so that a client which has many of them is woken once and not for each."""
        if not self.outbox:
            asyncio.get_running_loop().call_soon(self.flush)
        self.outbox.append((connection, answer))

    def flush(self) -> None:
        """Send what was posted."""
        outbox, self.outbox = self.outbox, []
        for connection, answer in outbox:  # as ``transmit`` does, without a call for each
            if connection.queued:
                connection.transmit(answer)
                continue
            try:
                sent = connection.send_nowait(answer)
            except OSError:
                sent = 0
            if sent != len(answer):
                connection.queue(answer, sent)
