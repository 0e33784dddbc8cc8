"""Server-sent events as a client hears them: one GET whose answer does not end, made again from the last id when it does.

This is HTTP of its own, beside the one connection to a hub: to hear of a call the way that a browser would.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from wayside.core.errors import Refusal, refusal_of
from wayside.link.connection import RECONNECT, Unreachable

__all__ = ["http_events"]

SILENCE_S = 60.0
"""After which a connection is taken for broken: the hub says something every 15 s."""
RETRIES_MAX = 20
"""Attempts in a row to have an answer."""


async def http_events(url: str, offset: str) -> AsyncIterator[tuple[str, bytes]]:
    """``(id, data)`` of each event until one says that the stream is closed. Reconnects."""
    failures = 0
    while True:
        try:
            async for kind, identity, data in _once(url, offset):
                failures = 0
                offset = identity or offset
                if kind in ("closed", "deleted"):
                    return
                if kind:
                    yield identity, data
        except OSError as error:
            failures += 1
            if failures > RETRIES_MAX:
                raise Unreachable(f"{url} gives no events: {error}.") from error
        await asyncio.sleep(RECONNECT.delay_s(failures + 1))


class _Response:
    """The answer to one GET, as llhttp reads it."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.parts: list[bytes] = []
        self.begun = self.complete = False

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


async def _once(url: str, offset: str) -> AsyncIterator[tuple[str, str, bytes]]:
    """``(kind, id, data)`` of each event; of no kind first, when the answer has begun."""
    parts = urlsplit(url)
    secure: Any = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure)
    try:
        resume = f"Last-Event-ID: {offset}\r\n" if offset not in ("-1", "now") else ""
        query = f"?offset={offset}" if not resume else ""
        writer.write(
            f"GET {parts.path}{query} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\n{resume}\r\n".encode()
        )
        answer = _Response()
        held = b""
        told = False
        while data := await asyncio.wait_for(reader.read(65536), SILENCE_S):  # what is over is an OSError
            answer.parser.feed_data(data)
            if not answer.begun:
                continue
            status = answer.parser.get_status_code()
            if status == 204:
                yield "closed", "", b""
                return
            body = b"".join(answer.parts)
            answer.parts.clear()
            if status != 200:
                held += body
                if answer.complete:
                    raise _refused(status, held)
                continue
            if not told:
                told = True
                yield "", "", b""
            *blocks, held = (held + body).split(b"\n\n")
            for block in blocks:
                event = _event(block)
                if event is not None:
                    yield event
            if answer.complete:
                break
        raise ConnectionResetError("the answer ended")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _event(block: bytes) -> tuple[str, str, bytes] | None:
    kind, identity = "message", ""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"id":
            identity = value.decode("latin-1")
        elif name == b"event":
            kind = value.decode("latin-1")
    return (kind, identity, b"\n".join(data)) if data else None


def _refused(status: int, body: bytes) -> Refusal:
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {"status": status, "detail": f"The answer was HTTP {status}.", "code": "http"}
    return refusal_of(problem)
