"""Where readers of a call begin: behind its request, wherever that stands, and in memory or not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from wayside.core.errors import Gone, NotFound
from wayside.core.records import Batch
from wayside.server.call_streams import CallStream, open_call_stream


class _Stream:
    """A stream whose positions have gaps. ``cached`` is what can be read without waiting."""

    start, tail = 0, 52

    def __init__(self, *, cached: bool, failure: Exception | None = None) -> None:
        self._cached = cached
        self._failure = failure

    def read_nowait(self, position: int, bytes_max: int) -> list[Batch] | None:
        return self._batches(position) if self._cached else None

    async def read(self, position: int, bytes_max: int) -> list[Batch]:
        if self._failure is not None:
            raise self._failure
        return self._batches(position)

    def _batches(self, position: int) -> list[Batch]:
        assert position == self.start
        return [Batch(40, 1, [b"the request", b"queued"])]


async def _opened(stream: _Stream | None, *, made: object = None) -> Any:
    """What is given for call ``c``; ``made`` is what becomes of making its stream, where it is in memory."""

    def find(path: str) -> _Stream:
        assert path == "__call/c"
        if stream is None:
            raise NotFound("There is no such stream.")
        return stream

    tasks: list[asyncio.Task[Any]] = []
    known = None if made is None else object()
    ledger = SimpleNamespace(known=lambda _identity: known, stream=lambda _call, done: done(made))
    calls: Any = SimpleNamespace(log=SimpleNamespace(find=find), ledger=ledger, keep=tasks.append)
    given: list[Any] = []
    open_call_stream(calls, "c", given.append)
    await asyncio.gather(*tasks)
    (result,) = given
    return result


@pytest.mark.parametrize("cached", [True, False])
async def test_readers_begin_behind_the_request_wherever_it_stands(cached: bool) -> None:
    """The first record is not for them; its position is that of its batch, and no number that is known beforehand."""
    stream = _Stream(cached=cached)
    assert await _opened(stream) == CallStream(stream, 41)  # type: ignore[arg-type]


async def test_a_stream_that_cannot_be_made_is_told_of() -> None:
    """What stands in the way of a call's stream is what its reader is refused with."""
    failure = OSError("no room")
    assert await _opened(_Stream(cached=True), made=failure) is failure


@pytest.mark.parametrize("stream", [None, _Stream(cached=False, failure=Gone("It was let go."))])
async def test_a_call_that_is_not_there_is_not_found(stream: _Stream | None) -> None:
    """A call that never was, and one that is let go while it is read, are no call."""
    result = await _opened(stream)
    assert isinstance(result, NotFound)
    assert result.code == "call-not-found"


async def test_what_else_fails_while_it_is_read_is_given_on() -> None:
    """A mistake is not taken for a call that is not there."""
    failure = RuntimeError("broken")
    assert await _opened(_Stream(cached=False, failure=failure)) is failure
