"""Handlers of calls: what they are given, what they may do while they run, and what becomes of an attempt by how they end.

Knows nothing of where calls come from: an :class:`AttemptReport` is told what became of attempts. The hub's own process
has one, and each ``wayside work``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from concurrent.futures import Future as ConcurrentFuture
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import msgspec
import structlog

from wayside.calls.call import AttemptOutcome, plain
from wayside.calls.queue import ServiceSpec
from wayside.calls.runner import Running, Threads, trace_of
from wayside.core.codecs import Payload, encode
from wayside.core.errors import CallFailed, Fenced, Refusal
from wayside.core.signature import Signature, schemas

__all__ = ["Attempt", "AttemptReport", "Call", "Handler", "Handling"]

UNACKNOWLEDGED_MAX = 256
"""Values that a handler may be ahead of the hub before it waits."""

T = TypeVar("T")
_log = structlog.get_logger("wayside.worker")


class Handler:
    """A function that runs a service, and how it is to be run."""

    __slots__ = ("function", "signature", "spec")

    def __init__(self, function: Callable[..., Any], spec: ServiceSpec) -> None:
        self.function = function
        self.signature = Signature(function, call_type=Call)
        described = {"streams": self.signature.streams, "description": self.signature.description}
        self.spec = msgspec.structs.replace(spec, **described, interface=interface_of(self.signature))


def interface_of(signature: Signature) -> dict[str, Any]:
    """What a handler takes and gives, for the OpenAPI document of a hub: media types, and JSON Schemas that refer to
    ``$defs`` beside them. Plain values, equal to themselves after a way through JSON."""
    (described,), defs = schemas([signature], "#/$defs/{name}")
    try:
        signature.bind(Payload(b""))
    except Refusal:
        required = True
    else:
        required = False
    interface = {
        "takes": signature.media_types_in(),
        "gives": [*signature.media_types_out(), *(["*/*"] if signature.returns is Any else [])],
        "required": required,
        **described._asdict(),
        "$defs": defs,
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(interface))
    return plain


class Attempt(NamedTuple):
    """One attempt of one call, as a runner is handed it."""

    call: str
    attempt: int
    service: str
    payload: Payload
    accept: str | None
    query: Mapping[str, list[str]]
    items: int
    """Values that earlier attempts have yielded."""
    durable: bool


class AttemptReport(Protocol):
    """Who is told what becomes of attempts. ``emit`` calls back with None, or with what it was refused for."""

    def emit(
        self, call: str, attempt: int, seq: int, kind: str, payload: Payload, done: Callable[[Exception | None], None]
    ) -> None: ...

    def finish(self, call: str, attempt: int, outcome: AttemptOutcome) -> None: ...

    def opener(self, path: str) -> AsyncIterator[bytes]:
        """The records of a byte stream, from its start to its end."""
        ...

    def client(self) -> Any:
        """How a handler calls other services."""
        ...


class Call:
    """The call that a handler is running: annotate a parameter with it to be given it.

    ``id`` is its name at ``/v1/call/``, ``attempt`` counts from 1, ``yielded`` are the values that earlier attempts
    have yielded: a handler that can go on behind them skips so many. Its methods can be awaited in a coroutine; in a
    plain function, which runs in a thread, they wait by themselves.
    """

    __slots__ = (
        "_emitted",
        "_loop",
        "_publications",
        "_refused",
        "_report",
        "_room",
        "_running",
        "_steps",
        "_threads_wait",
        "attempt",
        "cancelled",
        "durable",
        "failed_step",
        "id",
        "service",
        "yielded",
    )

    def __init__(
        self, attempt: Attempt, report: AttemptReport, running: Running, loop: asyncio.AbstractEventLoop
    ) -> None:
        running.on_cancel = self._stop
        self.id = attempt.call
        self.attempt = attempt.attempt
        self.service = attempt.service
        self.durable = attempt.durable
        self.yielded = attempt.items
        self.cancelled = False
        """Nobody wants the result any more. A coroutine is cancelled; a plain function has to look here."""
        self._report = report
        self._running = running
        self._loop = loop
        self._emitted = 0
        self._room: asyncio.Semaphore | None = None
        self._refused: Exception | None = None
        """What was not kept of what the handler sent: nothing can follow it, so the attempt is at its end."""
        self._threads_wait: set[ConcurrentFuture[Any]] = set()
        self._steps = 0
        self._publications = 0
        self.failed_step: Refusal | None = None
        """What a step failed with: a step is made once, so another attempt would find the same."""

    def __repr__(self) -> str:
        return f"<Call {self.id} of {self.service}, attempt {self.attempt}>"

    @property
    def waits(self) -> int:
        """Steps that it waits for: to be handed back in between costs it nothing."""
        return self._running.waits

    def progress(self, value: Any = None, **fields: Any) -> Awaitable[None]:
        """Tell everybody who follows the call how far it is: a record of its stream, kept when this returns.

        ``value`` is usually a number from 0 to 1; ``fields`` such as ``step="compress"`` stand beside it. Raises
        :class:`~wayside.Refusal` where the attempt is not this worker's any more.
        """
        data = {"value": value, **fields} if value is not None else fields
        return self._wait(self._emit("progress", encode(data, "application/json")))

    def step(self, service: str, *arguments: Any, name: str = "", **keywords: Any) -> Awaitable[Any]:
        """Call another service as a step of this call: once, however often this handler is run. Returns its result, at
        once where an earlier attempt had it. Its progress is shown as progress of this call. Raises what it failed
        with. ``name`` tells steps apart whose order may change from attempt to attempt."""
        self._steps += 1
        key = name or str(self._steps)
        return self._wait(self._waited(self._step(service, key, arguments, keywords)))

    async def _waited(self, step: Coroutine[Any, Any, T]) -> T:
        self._running.waits += 1
        try:
            return await step
        finally:
            self._running.waits -= 1

    async def _step(self, service: str, key: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        client = self._report.client()
        identity = f"{self.id}/{key}"
        handle = await client.submit(service, *arguments, idempotency_key=identity, parent=self.id, **keywords)
        if self.attempt == 1 or not (await handle.status()).ended:  # else an earlier attempt has shown its progress
            async for event in handle.events():
                if event.kind == "progress":
                    fields = event.data if isinstance(event.data, dict) else {"value": event.data}
                    await self._emit("progress", encode({"step": service, **fields}, "application/json"))
        try:
            return await handle.result()
        except Refusal as refusal:
            if (await handle.status()).ended:
                self.failed_step = refusal
            raise

    def publish(self, stream: str, *records: Any) -> Awaitable[str]:
        """Append records to a JSON stream, which is made if need be: once, however often this handler is run, as long as
        its attempts publish in the same order. Returns the offset after them. Raises what the append is refused for."""
        self._publications += 1
        return self._wait(self._publish(stream, self._publications, records))

    async def _publish(self, stream: str, number: int, records: tuple[Any, ...]) -> str:
        client = self._report.client()
        target = "/v1/stream/" + quote(stream, safe="/")
        headers = {"Content-Type": "application/json", "Producer-Id": f"{self.id}/{number}"}
        headers |= {"Producer-Epoch": "0", "Producer-Seq": "0"}
        body = encode(list(records), "application/json").data
        try:
            answer = await client.request("POST", target, headers, body)
        except Refusal as refusal:
            if refusal.code != "stream-not-found":
                raise
            await client.create(stream)
            answer = await client.request("POST", target, headers, body)
        return str(answer.headers["stream-next-offset"])

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """The coroutine itself on the event loop; in a thread its result, once it is there."""
        if threading.get_ident() == getattr(self._loop, "_thread_id", None) or _running() is self._loop:
            return coroutine
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._threads_wait.add(future)
        if self.cancelled:  # before it could be seen here
            future.cancel()
        try:
            return _Ready(future.result())
        finally:
            self._threads_wait.discard(future)

    def _stop(self) -> None:
        """Nobody wants the result any more; a thread that waits for the hub waits no longer."""
        self.cancelled = True
        for future in list(self._threads_wait):
            future.cancel()

    async def _emit(self, kind: str, payload: Payload) -> None:
        future = self._loop.create_future()
        self._send(kind, payload, lambda error: _settle(future, error))
        await future

    def _send(self, kind: str, payload: Payload, done: Callable[[Exception | None], None]) -> None:
        if self._refused is not None:
            raise self._refused
        seq = self._emitted
        self._emitted += 1

        def taken(error: Exception | None) -> None:
            self._refused = self._refused or error
            done(error)

        self._report.emit(self.id, self.attempt, seq, kind, payload, taken)

    async def yield_(self, payload: Payload) -> None:
        """Send a value that the handler yielded; waits only where the hub is far behind."""
        if self._room is None:
            self._room = asyncio.Semaphore(UNACKNOWLEDGED_MAX)
        room = self._room
        await room.acquire()
        if self.cancelled:
            raise Fenced("The attempt is not this worker's any more.", code="attempt-fenced")
        self._send("item", payload, lambda _error: room.release())

    async def settle(self) -> None:
        """Wait until everything that was yielded is kept."""
        if self._room is not None:
            for _ in range(UNACKNOWLEDGED_MAX):
                await self._room.acquire()
        if self._refused is not None:
            raise self._refused


class _Ready(Generic[T]):
    """What can be awaited and is there."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self.value


def _running() -> asyncio.AbstractEventLoop | None:
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class Handling:
    """What is done with attempts: for a :class:`~wayside.calls.runner.Runner`. Their ends go to ``report``."""

    def __init__(self, handlers: Mapping[str, Handler], report: AttemptReport, threads: Threads) -> None:
        self.handlers = handlers
        """By the names of their services."""
        self.before_finish: Callable[[], bool] | None = None
        """Asked before the end of an attempt is told: whether whoever runs it has crashed, in a test."""
        self._report = report
        self._threads = threads

    async def handle(self, attempt: Attempt, running: Running) -> None:
        """Run the handler of an attempt, and report what became of it, unless nobody wants that any more."""
        handler = self.handlers.get(attempt.service)
        if handler is None:
            self._finish(
                attempt, AttemptOutcome(error=CallFailed(f"This worker has no service {attempt.service}.").problem())
            )
            return
        signature = handler.signature
        call: Call | None = None
        outcome: AttemptOutcome | None = None
        try:
            arguments, keywords = signature.bind(attempt.payload, attempt.query)
            if signature.reads_uploads:
                await signature.read_uploads(arguments, keywords, self._report.opener)
            if signature.call_parameter is not None or signature.streams:
                call = Call(attempt, self._report, running, asyncio.get_running_loop())
                if signature.call_parameter is not None:
                    keywords[signature.call_parameter] = call
        except Refusal as refusal:
            outcome = AttemptOutcome(error=refusal.problem(), again=refusal.retry)
        except Exception as error:  # of a type's own code, such as a validator
            outcome = _failed(attempt, error, again=False)
        if outcome is None:
            try:
                if signature.streams:
                    assert call is not None
                    await self._stream(handler, call, arguments, keywords)
                    outcome = AttemptOutcome(Payload(b"null", "application/json"))
                elif signature.threaded:
                    value = await self._threads.run(handler.function, arguments, keywords)
                    outcome = AttemptOutcome(signature.encode(value, attempt.accept))
                else:
                    value = await handler.function(*arguments, **keywords)
                    outcome = AttemptOutcome(signature.encode(value, attempt.accept))
            except Refusal as refusal:
                again = (refusal.status >= 500 or refusal.retry) and not (call and call.failed_step is refusal)
                outcome = AttemptOutcome(error=refusal.problem(), again=again)
            except (Exception, SystemExit) as error:
                outcome = _failed(attempt, error, again=True)
        if not running.unwanted:
            self._finish(attempt, outcome)

    async def _stream(self, handler: Handler, call: Call, arguments: list[Any], keywords: dict[str, Any]) -> None:
        """Send what the handler yields."""
        signature = handler.signature
        if signature.is_async:
            async with contextlib.aclosing(handler.function(*arguments, **keywords)) as values:
                async for value in values:
                    await call.yield_(signature.encode(value, "application/json"))
        else:
            values = handler.function(*arguments, **keywords)
            end = object()
            while (value := await self._threads.run(next, (values, end), {})) is not end:
                await call.yield_(signature.encode(value, "application/json"))
        await call.settle()

    def failed(self, attempt: Attempt, error: BaseException) -> None:
        """Something that the handler waited for was cancelled."""
        self._finish(attempt, AttemptOutcome(error=failure(error)))

    def _finish(self, attempt: Attempt, outcome: AttemptOutcome) -> None:
        if outcome.error is not None:
            outcome.error = plain(outcome.error)  # else what a handler put in could not be said, and it never ended
        if self.before_finish is None or not self.before_finish():
            self._report.finish(attempt.call, attempt.attempt, outcome)


def _failed(attempt: Attempt, error: BaseException, *, again: bool) -> AttemptOutcome:
    """What no refusal foresaw."""
    _log.warning("handler failed", service=attempt.service, call=attempt.call, exception=trace_of(error))
    return AttemptOutcome(error=failure(error), again=again)


def failure(error: BaseException) -> dict[str, Any]:
    """What a handler raised, as a problem document: its type and its text, and where it was raised, but no data."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].name} ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    text = str(error)[:2000]
    return CallFailed(
        f"The handler raised {type(error).__name__}{f': {text}' if text else ''}.",
        fields={"error": type(error).__name__, "message": text, "where": where},
    ).problem()
