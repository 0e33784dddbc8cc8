"""A call that was submitted, as a client has it: what it is, its result, its events by any way of reading."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

from wayside.client.events import http_events
from wayside.client.values import CallEvent, CallStatus, event_of, value_of
from wayside.core.codecs import Payload
from wayside.core.errors import CallTimedOut, refusal_of
from wayside.link import frames as f
from wayside.link.channels import FollowChannel
from wayside.link.connection import Channels

__all__ = ["CallHandle", "Via"]

WAIT_S = 20.0
RECORDS = "application/vnd.wayside.records+json"
"""Records with their offsets."""
Via = Literal["push", "sse", "long-poll", "poll"]


class Requests(Protocol):
    """The client that a call was submitted by."""

    url: str
    channels: Channels

    async def request(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> f.ResponseFrame: ...


class CallHandle:
    """A call that was submitted. ``id`` is its name: ``hub.get(id)`` is the same handle, from anywhere."""

    __slots__ = ("_client", "_ended", "id")

    def __init__(self, client: Requests, identity: str, ended: asyncio.Future[Any] | None) -> None:
        self._client = client
        self.id = identity
        self._ended = ended

    def __repr__(self) -> str:
        return f"<CallHandle {self.id}>"

    @property
    def url(self) -> str:
        """Where the call can be read, in any of the four ways."""
        return f"{self._client.url}/v1/call/{self.id}"

    async def status(self) -> CallStatus:
        """What the call is now."""
        return _status((await self._client.request("GET", f"/v1/call/{self.id}")).body)

    async def wait(self, seconds: float = WAIT_S) -> CallStatus:
        """Wait for its end, for so long at most. Returns what it is then: look at ``ended``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            left = max(0.0, deadline - loop.time())
            prefer = {"Prefer": f"wait={min(60, int(left) + 1)}"} if left else {}
            try:
                async with asyncio.timeout(left + 0.001 if left else None):
                    answer = await self._client.request("GET", f"/v1/call/{self.id}", prefer)
            except TimeoutError:
                return await self.status()
            status = _status(answer.body)
            if status.ended or loop.time() >= deadline:
                return status

    async def result(self, timeout: float | None = None, *, returns: Any = None) -> Any:
        """Its result, once it has ended. Raises :class:`CallFailed`, or the refusal that its handler raised;
        :class:`CallCancelled`; after ``timeout`` seconds :class:`CallTimedOut`: the call goes on."""
        try:
            async with asyncio.timeout(timeout):
                return await self._result(returns)
        except TimeoutError as error:
            raise CallTimedOut(f"Call {self.id} did not end within {timeout:g} s; it goes on.") from error

    async def _result(self, returns: Any) -> Any:
        if self._ended is not None:
            frame = await asyncio.shield(self._ended)
            if frame is not None:
                if type(frame) is f.ErrorFrame:
                    raise refusal_of(frame.problem)
                return value_of(Payload(frame.body, frame.content_type), returns)
        while True:
            answer = await self._client.request("GET", f"/v1/call/{self.id}/result", {"Prefer": "wait=30"})
            if answer.status != 202:
                return value_of(Payload(answer.body, answer.headers.get("content-type", "")), returns)

    async def cancel(self) -> CallStatus:
        """End it. Raises :class:`Conflict` where it has ended already."""
        return _status((await self._client.request("DELETE", f"/v1/call/{self.id}")).body)

    async def events(
        self, via: Via = "push", *, offset: str = "-1", interval: float = 1.0
    ) -> AsyncGenerator[CallEvent, None]:
        """What happens to it, from an offset on, until it has ended; across lost connections. ``via`` chooses how to
        hear of it: push over the client's own connection, server-sent events, long polling, or a poll each
        ``interval`` seconds."""
        async with contextlib.aclosing(self._records(via, offset, interval)) as records:
            async for at, record in records:
                event = event_of(at, record)
                yield event
                if event.final:
                    return

    async def _records(self, via: Via, offset: str, interval: float) -> AsyncGenerator[tuple[str, bytes], None]:
        client = self._client
        if via == "push":
            await client.channels.ready()
            async for row in FollowChannel(client.channels, self.id, offset, call=True).records():
                yield row.offset, row.data
        elif via == "sse":
            if not client.url:
                raise ValueError("In the hub's own process there is no HTTP: use via='push'.")
            async for pair in http_events(f"{client.url}/v1/call/{self.id}", offset):
                yield pair
        else:
            headers = {"Accept": RECORDS} | ({"Prefer": "wait=20"} if via == "long-poll" else {})
            while True:
                answer = await client.request("GET", f"/v1/call/{self.id}?offset={offset}", headers)
                for polled in msgspec.json.decode(answer.body, type=list[_Row]):
                    yield polled.offset, bytes(polled.data)
                offset = answer.headers["stream-next-offset"]
                if answer.headers.get("stream-closed") == "true":
                    return
                if via == "poll":
                    await asyncio.sleep(interval)

    async def items(self) -> AsyncIterator[Any]:
        """What a service that yields has yielded and yields. Raises what it failed with."""
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                if event.kind == "item":
                    yield event.data
                elif event.kind in ("failed", "cancelled"):
                    raise refusal_of(event.error or {})


class _Row(msgspec.Struct):
    offset: str
    """After it."""
    data: msgspec.Raw


def _status(body: bytes) -> CallStatus:
    return msgspec.json.decode(body, type=CallStatus)
