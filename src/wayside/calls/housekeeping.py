"""What a hub keeps about calls beside their own streams: which services there are, who has still to be told of an end,
and when calls are let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import structlog

from wayside.calls.call import KEYED, CallState, ServiceCall, may_be_before
from wayside.calls.ledger import CALLS
from wayside.calls.queue import ServiceSpec
from wayside.calls.services import Calls
from wayside.calls.workers import Leases
from wayside.core.callbacks import Done
from wayside.core.errors import BadRequest, Refusal
from wayside.core.records import JSON, Append, Create, StreamConfig
from wayside.webhooks.standard import Delivery, Outcome, Webhooks

__all__ = ["Keeping"]

DECLARED = "__service/declared"
CALLBACKS = "__callback/due"
SWEEP_S = 60.0
SWEEP_BUSY_S = 1.0
"""Until the next sweep, where the last one found something."""
SWEEP_MAX = 1000
"""Calls looked at in one sweep."""
RESEND_S = 30.0
"""How soon a callback for which there was no room is sent again."""

_log = structlog.get_logger("wayside.calls")


class _Callback(msgspec.Struct, omit_defaults=True):
    """A record of ``CALLBACKS``: due, or over."""

    call: str
    url: str = ""
    outcome: str = ""


class Keeping:
    """Works for ``calls``, whose callbacks its :meth:`declared`, :meth:`check`, :meth:`ending` and :meth:`ended` are to be.
    ``webhooks`` None: nobody can ask to be told of an end."""

    def __init__(self, calls: Calls, leases: Leases, webhooks: Webhooks | None) -> None:
        self._calls = calls
        self._leases = leases
        self._log = calls.log
        self._webhooks = webhooks
        self._cursor = ""
        self._stopped = False
        self._reading = False
        """What is declared now is what it kept."""

    async def start(self) -> None:
        """Take up what the hub knew before. Its log is open."""
        calls = self._calls
        self._reading = True
        async for record in self._records(DECLARED):
            calls.declare(msgspec.json.decode(record, type=ServiceSpec))
        self._reading = False
        await self._leases.recover()
        due: dict[str, str] = {}
        async for record in self._records(CALLBACKS):
            callback = msgspec.json.decode(record, type=_Callback)
            if callback.outcome:
                due.pop(callback.call, None)
            else:
                due[callback.call] = callback.url
        for identity in due:
            self._resend(identity)
        if self._webhooks is not None:
            self._make(CALLBACKS, _note)
        calls.timers.after(SWEEP_S, self._sweep)
        self._touch()

    async def _records(self, path: str) -> AsyncIterator[bytes]:
        try:
            stream = self._log.find(path)
        except Refusal:
            return
        at = stream.start
        while at < stream.tail:
            for batch in await stream.read(at, self._log.limits.read_bytes_max):
                at = batch.end
                for record in batch.records:
                    yield record

    def wake(self) -> None:
        """Send what is due: for whoever moves the clock by hand."""
        if self._webhooks is not None:
            self._webhooks.wake()

    async def stop(self) -> None:
        self._stopped = True
        if self._webhooks is not None:
            await self._webhooks.close()

    def _append(self, path: str, value: Any) -> None:
        """To one of the hub's own streams, which is made when there is something to keep in it."""
        record = msgspec.json.encode(value)

        def append(result: Any) -> None:
            if isinstance(result, Exception):
                _note(result)
                return
            try:
                self._log.append(path, Append(b"", records=[record]), _note)
            except Refusal as refusal:
                _note(refusal)

        try:
            self._log.find(path, touch=False)
        except Refusal:
            self._make(path, append)
        else:
            append(None)

    def _make(self, path: str, done: Done) -> None:
        self._log.create(path, Create(StreamConfig(JSON)), done)

    # -- services

    def declared(self, spec: ServiceSpec) -> None:
        """A service is declared, as it was not before."""
        if not self._reading:
            self._append(DECLARED, spec)

    # -- callbacks

    def check(self, url: str) -> None:
        """Raises what is wrong with a URL that is to be told of the end of a call."""
        if self._webhooks is None:
            raise BadRequest(
                "This hub sends no callbacks: it has no secret to sign them with. Start it with --webhook-secret.",
                code="callbacks-off",
            )
        self._webhooks.check(url)

    def ending(self, call: ServiceCall) -> None:
        """In the commit that ends the call: whoever crashes then finds it when it starts."""
        self._append(CALLBACKS, _Callback(call.id, call.request.callback))

    def ended(self, call: ServiceCall) -> None:
        """Its callback is due for certain."""
        if call.request.callback:
            self._send(call)

    def _send(self, call: ServiceCall) -> None:
        if self._webhooks is None or self._stopped:
            return
        document: dict[str, Any] = call.status()
        if call.state is CallState.DONE and call.result is not None and call.result.content_type == "application/json":
            document["result"] = msgspec.Raw(call.result.data)
        body = msgspec.json.encode(
            {"type": f"call.{call.state.value}", "timestamp": _rfc3339(call.ended_ms), "data": document}
        )
        try:
            self._webhooks.send(call.request.callback, f"call_{call.id}", body, partial(self._sent, call.id))
        except Refusal as refusal:
            if refusal.retry:
                self._calls.timers.after(RESEND_S, partial(self._send, call))
            else:
                self._append(CALLBACKS, _Callback(call.id, outcome=refusal.code))

    def _sent(self, identity: str, delivery: Delivery) -> None:
        if delivery.outcome is not Outcome.STOPPING and not self._stopped:
            self._append(CALLBACKS, _Callback(identity, outcome=delivery.outcome.value))
            if delivery.outcome is not Outcome.DELIVERED:
                _log.warning("callback failed", call=identity, outcome=delivery.outcome.value, detail=delivery.detail)

    def _resend(self, identity: str) -> None:
        async def resend() -> None:
            try:
                call = await self._calls.ledger.load(identity)
            except Refusal:
                self._append(CALLBACKS, _Callback(identity, outcome="forgotten"))
                return
            if call.final:
                self._send(call)

        self._calls.keep(asyncio.get_running_loop().create_task(resend()))

    # -- letting calls go

    def _touch(self) -> None:
        self._calls.ledger.touch()
        self._calls.timers.after(max(0.1, self._calls.limits.call_linger_s / 3), self._touch)

    def _sweep(self) -> None:
        async def sweep() -> None:
            gone = 0
            try:
                gone = await self.sweep()
            finally:
                if not self._stopped:
                    self._calls.timers.after(SWEEP_BUSY_S if gone else SWEEP_S, self._sweep)

        self._calls.keep(asyncio.get_running_loop().create_task(sweep()))

    async def sweep(self) -> int:
        """Let go of calls that ended long enough ago; looks at some, and goes on there next time. Returns how many."""
        before_ms = self._calls.clock.wall_ms() - self._calls.limits.call_keep_s * 1000
        infos = self._log.list(CALLS, self._cursor, SWEEP_MAX)
        self._cursor = infos[-1].path if len(infos) == SWEEP_MAX else ""
        gone = 0
        for info in infos:
            if not may_be_before(info.path[len(CALLS) :], before_ms):
                self._cursor = CALLS + KEYED  # nor may any other that is named after its time
                break
            if not info.closed:
                continue
            identity = info.path[len(CALLS) :]
            with contextlib.suppress(Refusal):  # it may have gone by itself meanwhile
                if (await self._calls.ledger.load(identity)).ended_ms < before_ms:
                    self._calls.ledger.let_go(identity)
                    self._log.delete(info.path, _note)
                    gone += 1
        return gone


def _note(result: Any) -> None:
    if isinstance(result, Exception):
        _log.warning("not kept", detail=getattr(result, "detail", str(result)))


def _rfc3339(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
