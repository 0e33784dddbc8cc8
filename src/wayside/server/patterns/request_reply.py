"""Request/response, synchronous and asynchronous: a service is called, and its call read, waited for or cancelled.

``Prefer: respond-async`` (RFC 7240 section 4.1) answers 202 with the call's URL, once the call is on disk;
``Prefer: respond-async, wait=5`` gives it five seconds first. ``Idempotency-Key`` follows
draft-ietf-httpapi-idempotency-key-header: a key makes the call durable, and the same request with it is the same call,
whose end it waits for as well.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import msgspec

from wayside.calls.call import CallRequest, CallState, ServiceCall
from wayside.calls.ledger import call_path, no_such_call
from wayside.calls.queue import Service
from wayside.calls.services import Calls
from wayside.calls.workers import Leases
from wayside.core.callbacks import report
from wayside.core.codecs import Payload, transcode
from wayside.core.errors import BadRequest, CallFailed, CallTimedOut, Conflict, NotAcceptable, Overloaded, Refusal
from wayside.core.records import Spool, require_size
from wayside.server.exchange import Exchange, Request, preferred_wait_s, quote_header
from wayside.streams.contract import StreamView

CALLS_URL = "/v1/call/"
LIST_MAX = 1000
RETRY_AFTER_S = 1
"""When a poll for the end of a call makes sense again."""
Then = Callable[[Exchange, StreamView], None]
Events = Callable[..., None]
"""The same; ``fields`` are header fields to add."""

_JSON = b"Content-Type: application/json\r\nCache-Control: no-store\r\n"


def call_service(exchange: Exchange, calls: Calls, name: str, base: str, events: Events | None) -> None:
    """Answer a POST of a service. ``events`` answers with the call's stream, where that is what the client accepts."""
    request = exchange.request
    headers = request.headers
    preferences = [p.partition(";")[0].strip().lower() for p in headers.get("prefer", "").split(",")]
    wait_s = preferred_wait_s(headers.get("prefer"))
    key = _key(headers.get("idempotency-key"))
    asynchronous = "respond-async" in preferences
    durable = asynchronous or bool(key)
    accept = headers.get("accept")
    wanted = calls.request(
        name,
        payload_of(exchange, calls),
        None if events is not None else _kept_as(accept) if durable else accept,
        query=request.query,
        key=key,
        priority=_number(headers, "wayside-priority", int) or 0,
        delay_s=_number(headers, "wayside-delay", float) or 0.0,
        callback=headers.get("wayside-callback", ""),
        durable=asynchronous,
    )
    if durable and (service := calls.services.get(name)) is not None and service.check_input is not None:
        service.check_input(wanted.payload, wanted.query)
    if events is not None:
        _answer_events(exchange, calls, wanted, durable, events)
        return
    waiting = _Waiting(exchange, calls, base, wait_s, asynchronous)
    if durable:
        calls.submit(wanted, waiting.submitted)
    else:
        waiting.wait(calls.call(wanted, waiting.ended))


def _kept_as(accept: str | None) -> str | None:
    """What the result of a durable call is to be kept in: JSON, of which others can be made when it is read; but for
    those, such as Protobuf, that only its handler can make."""
    try:
        transcode(_ANY, accept)
    except NotAcceptable:
        return accept
    return None


_ANY = Payload(b"null", "application/json")


def _answer_events(exchange: Exchange, calls: Calls, wanted: CallRequest, durable: bool, events: Events) -> None:
    """Make a call and answer with its stream. A call in memory ends with its only reader."""

    gone = False

    def lost() -> None:
        nonlocal gone
        gone = True

    exchange.on_lost = lost

    def follow(call: ServiceCall) -> None:
        if gone:
            calls.abandon(call)
            return

        def then(exchange: Exchange, stream: StreamView) -> None:
            events(exchange, stream, fields=b"Wayside-Call: %b\r\n" % call.id.encode())
            calls.abandon(call)

        with_stream(exchange, calls, call.id, then, lambda: calls.abandon(call))

    if durable:
        calls.submit(
            wanted, lambda result: exchange.refuse(result) if isinstance(result, Exception) else follow(result)
        )
    else:
        follow(calls.call(wanted, lambda _call: None))


def payload_of(exchange: Exchange, calls: Calls) -> Payload:
    """The body of a request."""
    body = exchange.body
    if isinstance(body, Spool):
        require_size(body.size, calls.limits.json_body_bytes_max, "The body")
        body = body.read(0, body.size)
    kind = exchange.request.headers.get("content-type", "").strip()
    return Payload(body, kind or ("application/octet-stream" if body else ""))


def _key(text: str | None) -> str:
    """An ``Idempotency-Key``: a string of RFC 8941, or bare."""
    if text is None:
        return ""
    found = _KEY.fullmatch(text.strip())
    key = found and (_ESCAPED.sub(r"\1", found["quoted"]) if found["quoted"] is not None else found["bare"])
    if not key:
        raise BadRequest(
            'Idempotency-Key is a string of printable ASCII such as "8e03978e-40d5".', code="idempotency-key-invalid"
        )
    return key


_KEY = re.compile(r'"(?P<quoted>(?:[ !#-\[\]-~]|\\["\\])*)"|(?P<bare>[!#-~][ -~]*)', re.ASCII)
_ESCAPED = re.compile(r"\\(.)")


def _number(headers: dict[str, str], name: str, kind: Callable[[str], Any]) -> Any:
    text = headers.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or (kind is int and "." in text):
        raise BadRequest(f"{name.title()} is a number, not {text[:40]!r}.", code="parameter-invalid")
    return kind(text)


_NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{0,6})?", re.ASCII)


class _Waiting:
    """An exchange that waits for the end of a call, for so long."""

    __slots__ = ("_asynchronous", "_base", "_call", "_calls", "_exchange", "_timer", "_wait_s")

    def __init__(self, exchange: Exchange, calls: Calls, base: str, wait_s: float | None, asynchronous: bool) -> None:
        self._exchange = exchange
        self._calls = calls
        self._base = base
        self._wait_s = None if wait_s is None else min(wait_s, calls.limits.wait_s_max)
        self._asynchronous = asynchronous
        self._timer: asyncio.TimerHandle | None = None
        self._call: ServiceCall | None = None

    def submitted(self, result: Any) -> None:
        """A durable call is on disk, or was refused."""
        if isinstance(result, Exception):
            self._exchange.refuse(result)
        elif result.final:
            self.ended(result)
        elif self._asynchronous and not self._wait_s:
            self._call = result
            self._hand_out()
        else:
            result.waiters.append(self.ended)
            self.wait(result)

    def wait(self, call: ServiceCall) -> None:
        """Answer when the call has ended; with its handle, or 504, when the time is over."""
        self._call = call
        if call.final:
            return
        self._exchange.on_lost = self._lost
        if not call.durable:
            self._exchange.on_eof = self._lost
        if self._wait_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._over)
        self._exchange.on_drain = self._over if self._asynchronous else self._drain

    def _drain(self) -> None:
        """The hub stops. What runs is waited for, and what its own process will still run; other workers are leaving."""
        call = self._call
        if call is None or call.durable or call.state is not CallState.QUEUED:
            return
        if not any(worker.stays for worker in call.spec.workers):
            stopping = Overloaded(
                "The hub is stopping, and the call had not begun. Send it again shortly.", code="stopping"
            )
            stopping.headers["Retry-After"] = "1"
            self._exchange.refuse(stopping)
            self._lost()

    def ended(self, call: ServiceCall) -> None:
        if self._timer is not None:
            self._timer.cancel()
        answer_result(self._exchange, call)

    def _leave(self) -> ServiceCall:
        """The end of the call is not waited for any more."""
        if self._timer is not None:
            self._timer.cancel()
        call = self._call
        assert call is not None
        if call.durable and self.ended in call.waiters:  # else the end of the call is all that is left to happen
            call.waiters.remove(self.ended)
        return call

    def _over(self) -> None:
        call = self._leave()
        if self._asynchronous:
            self._hand_out()
            return
        kept = f" It goes on: read {self._base}{call.id}." if call.durable else " It was cancelled."
        self._exchange.refuse(
            CallTimedOut(f"The call did not end within {self._wait_s:g} s.{kept}", fields={"call": call.id})
        )
        self._calls.abandon(call)

    def _hand_out(self) -> None:
        call = self._call
        assert call is not None
        location = quote_header(f"{self._base}{call.id}").encode("latin-1")
        applied = b"respond-async" if self._wait_s is None else b"respond-async, wait=%d" % self._wait_s
        head = b"Location: %b\r\nRetry-After: %d\r\nPreference-Applied: %b\r\n" % (location, RETRY_AFTER_S, applied)
        self._exchange.respond(202, head + _JSON, msgspec.json.encode(call.status()))

    def _lost(self) -> None:
        self._calls.abandon(self._leave())


def answer_result(exchange: Exchange, call: ServiceCall) -> None:
    """A call that has ended: its bare result, or why there is none."""
    try:
        if call.state is not CallState.DONE:
            exchange.refuse(problem_as_refusal(call))
            return
        assert call.result is not None
        result = transcode(call.result, exchange.request.headers.get("accept"))
        head = b"Content-Type: %b\r\nCache-Control: no-store\r\nVary: Accept\r\nWayside-Call: %b\r\n" % (
            quote_header(result.content_type).encode("latin-1"),
            call.id.encode(),
        )
        exchange.respond(200, head, result.data)
    except Exception as error:
        exchange.refuse(error)


class _Recorded(Refusal):
    """A problem document that was kept: given again as it was, and made whole where a worker has left something out."""

    code = "recorded"
    """Until it is told which."""

    def __init__(self, document: dict[str, Any], identity: str) -> None:
        super().__init__(str(document.get("detail", "")), code=str(document.get("code", "call-failed")))
        status = document.get("status")
        self.status = status if isinstance(status, int) and 400 <= status < 600 else 500  # type: ignore[misc]
        whole = CallFailed(self.detail or "The handler did not say why.", code=self.code).problem()
        self._document = {**whole, **document, "status": self.status, "call": identity}
        if self.status in (429, 503):
            self.headers["Retry-After"] = str(RETRY_AFTER_S)
        if self.status == 415 and isinstance(takes := document.get("media_types"), list):
            self.headers["Accept-Post"] = ", ".join(map(str, takes))

    def problem(self) -> dict[str, object]:
        return self._document


def problem_as_refusal(call: ServiceCall) -> Refusal:
    """Why a call has no result."""
    return _Recorded(call.error or {}, call.id)


# -- reading a call


def find(exchange: Exchange, calls: Calls, identity: str, then: Callable[[ServiceCall], None]) -> None:
    """Go on with a call, which may have to be read from the disk first; or refuse."""
    call = calls.ledger.known(identity)
    if call is not None:
        then(call)
        return

    async def load() -> None:
        try:
            then(await calls.ledger.load(identity))
        except Exception as error:
            exchange.refuse(error)

    calls.keep(asyncio.get_running_loop().create_task(load()))


def with_stream(
    exchange: Exchange, calls: Calls, identity: str, then: Then, lost: Callable[[], None] = lambda: None
) -> None:
    """Go on with the stream of a call; ``lost`` is called where the client goes before it is there."""
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        lost()

    exchange.on_lost = leave

    def go(result: Any = None) -> None:
        if gone:  # a follower that began now would never be stopped
            return
        if isinstance(result, Exception):
            exchange.refuse(result)
            return
        try:
            stream = calls.log.find(call_path(identity))
        except Refusal:
            exchange.refuse(no_such_call(identity))
            return
        try:
            then(exchange, stream)
        except Exception as error:
            if not isinstance(error, Refusal):
                report(error, then)
            exchange.refuse(error)

    call = calls.ledger.known(identity)
    if call is not None:
        calls.ledger.stream(call, go)
    else:
        go()


def read_status(exchange: Exchange, calls: Calls, identity: str, wait_s: float | None, *, result: bool = False) -> None:
    """Answer with the call as it is; with ``wait_s`` once it has ended, or when that time is over. ``result``: with its
    bare result, once there is one."""

    def answer(call: ServiceCall) -> None:
        if result and call.final:
            answer_result(exchange, call)
            return
        head = _JSON
        if not call.final:
            head += b"Retry-After: %d\r\n" % RETRY_AFTER_S
        if wait_s is not None:
            head += b"Preference-Applied: wait=%d\r\n" % min(wait_s, calls.limits.wait_s_max)
        document = call.status()
        if call.state is CallState.DONE and call.result is not None and call.result.content_type == "application/json":
            document["result"] = msgspec.Raw(call.result.data)
        exchange.respond(202 if result else 200, head, msgspec.json.encode(document))

    def found(call: ServiceCall) -> None:
        if call.final or not wait_s:
            answer(call)
            return
        timer = asyncio.get_running_loop().call_later(min(wait_s, calls.limits.wait_s_max), lambda: over())

        def ended(call: ServiceCall) -> None:
            timer.cancel()
            answer(call)

        def forget() -> None:
            timer.cancel()
            if ended in call.waiters:
                call.waiters.remove(ended)

        def over() -> None:
            forget()
            answer(call)

        call.waiters.append(ended)
        exchange.on_lost = forget
        exchange.on_drain = over

    find(exchange, calls, identity, found)


def cancel(exchange: Exchange, calls: Calls, identity: str) -> None:
    """Answer a DELETE: the call ends, and its handler is stopped."""

    def done(result: Any) -> None:
        if isinstance(result, Exception):
            exchange.refuse(result)
        elif result.state is not CallState.CANCELLED:
            exchange.refuse(Conflict(f"Call {identity} has ended: it cannot be cancelled.", code="call-ended"))
        else:
            exchange.respond(200, _JSON, msgspec.json.encode(result.status()))

    def found(call: ServiceCall) -> None:
        if call.state is CallState.CANCELLED:
            done(call)
        else:
            calls.attempts.cancel(identity, "It was cancelled by request.", done)

    find(exchange, calls, identity, found)


def list_calls(exchange: Exchange, calls: Calls) -> None:
    """Answer with the calls that have not ended and those that have lately, the newest first."""
    request = exchange.request
    limit = _limit(request)
    service, state = request.one("service") or "", request.one("state") or ""
    if state and state not in [s.value for s in CallState]:
        raise BadRequest(f"state is one of {', '.join(s.value for s in CallState)}.", code="parameter-invalid")
    found = [
        call
        for call in [*calls.ledger.open.values(), *calls.ledger.recent.values()]
        if (not service or call.request.service == service) and (not state or call.state == state)
    ]
    found.sort(key=lambda call: call.created_ms, reverse=True)
    body = msgspec.json.encode({"calls": [call.status() for call in found[:limit]], "found": len(found)})
    exchange.respond(200, _JSON, body)


def _limit(request: Request) -> int:
    text = request.one("limit") or "100"
    if not (text.isascii() and text.isdecimal() and len(text) < 9) or not 1 <= int(text) <= LIST_MAX:
        raise BadRequest(f"limit must be from 1 to {LIST_MAX}.", code="parameter-invalid")
    return int(text)


def list_services(exchange: Exchange, calls: Calls) -> None:
    """Answer with the services that are known."""
    body = msgspec.json.encode({"services": [_describe(s) for _, s in sorted(calls.services.items())]})
    exchange.respond(200, _JSON, body)


def describe_service(exchange: Exchange, calls: Calls, name: str) -> None:
    """Answer with one service."""
    exchange.respond(200, _JSON, msgspec.json.encode(_describe(calls.service(name))))


def _describe(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "description": service.spec.description,
        "workers": len(service.workers),
        "running": service.running,
        "waiting": service.waiting + service.delayed,
        "retries": service.spec.retries,
        "timeout_s": service.spec.timeout_s,
        "concurrency": service.spec.concurrency,
        "queue_max": service.spec.queue_max,
        "streams": service.spec.streams,
    }


def renew_lease(exchange: Exchange, leases: Leases, worker: str) -> None:
    """Answer a worker's sign of life."""
    exchange.respond(200, _JSON, msgspec.json.encode({"lease_s": leases.renew(worker)}))
