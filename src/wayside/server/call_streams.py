"""The stream of a call as its readers have it: made when the first of them asks, and read from behind the request."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from wayside.calls.ledger import call_path, no_such_call
from wayside.calls.services import Calls
from wayside.core.callbacks import Done
from wayside.core.errors import Refusal
from wayside.core.records import Batch
from wayside.streams.contract import StreamView


class CallStream(NamedTuple):
    """What readers of a call are given."""

    stream: StreamView
    first: int
    """The position behind the request, which is the first record and not for them."""


def open_call_stream(calls: Calls, identity: str, done: Done) -> None:
    """Give ``done`` the :class:`CallStream` of a call, or an exception: ``NotFound`` where there is no such call."""

    def made(result: object = None) -> None:
        if isinstance(result, Exception):
            done(result)
            return
        try:
            stream = calls.log.find(call_path(identity))
            batches = stream.read_nowait(stream.start, 1)
        except Refusal:
            done(no_such_call(identity))
            return
        if batches is not None:
            done(CallStream(stream, _behind_first(stream, batches)))
        else:
            calls.keep(asyncio.get_running_loop().create_task(_read(stream, identity, done)))

    call = calls.ledger.known(identity)
    if call is not None:
        calls.ledger.stream(call, made)
    else:
        made()


async def _read(stream: StreamView, identity: str, done: Done) -> None:
    try:
        first = _behind_first(stream, await stream.read(stream.start, 1))
    except Refusal:
        done(no_such_call(identity))
    except Exception as error:
        done(error)
    else:
        done(CallStream(stream, first))


def _behind_first(stream: StreamView, batches: list[Batch]) -> int:
    return batches[0].position + 1 if batches else stream.start
