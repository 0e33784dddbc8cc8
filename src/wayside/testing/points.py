"""Named points of handlers, at which a test may crash whoever runs them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from wayside.calls.handler import Handler
from wayside.core.signature import Signature

__all__ = ["Crashed", "Handlers", "Noting", "Place", "Reached", "point", "pointed"]


class Crashed(asyncio.CancelledError):
    """Ends a handler whose worker was crashed: a killed process would not go on. Do not catch it; what stands in a
    ``finally`` is run all the same, which a kill would not do."""


class Reached(NamedTuple):
    """A point that a handler came to."""

    worker: str
    """``hub`` for the hub's own process."""
    point: str


_here: ContextVar[Place | None] = ContextVar("wayside_testing_here", default=None)


def point(name: str) -> None:
    """In a handler: a place at which a test may crash whoever runs it. Does nothing in any other process."""
    place = _here.get()
    if place is not None and place.reach(name):
        raise Crashed(f"crashed at {name}")


class Noting(Protocol):
    """A test that hears of points."""

    loop: asyncio.AbstractEventLoop
    thread: int
    """The loop's."""

    def note(self, reached: Reached) -> bool:
        """A handler is at a point. Whether its worker is to be crashed."""
        ...


class Place:
    """Where a handler runs: in which worker of which test."""

    def __init__(self, test: Noting, worker: str, kill: Callable[[], None]) -> None:
        self._test = test
        self._worker = worker
        self._kill = kill

    def reach(self, name: str) -> bool:
        """Whether the worker was crashed here. Called from any thread."""
        if threading.get_ident() == self._test.thread:
            return self._reach(name)
        return asyncio.run_coroutine_threadsafe(self._reach_later(name), self._test.loop).result()

    async def _reach_later(self, name: str) -> bool:
        return self._reach(name)

    def _reach(self, name: str) -> bool:
        if not self._test.note(Reached(self._worker, name)):
            return False
        self._kill()
        return True


class Handlers(Mapping[str, Handler]):
    """The handlers of a hub, with points before and after each."""

    def __init__(self, handlers: Mapping[str, Handler], place: Place, names: Iterable[str] | None = None) -> None:
        self._handlers = handlers
        self._place = place
        self._names = None if names is None else set(names)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._handlers if self._names is None or name in self._names)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> Handler:
        if self._names is not None and name not in self._names:
            raise KeyError(name)
        handler = copy.copy(self._handlers[name])
        handler.function = pointed(handler, self._place)
        return handler


class Runs(Protocol):
    """What runs a function."""

    @property
    def function(self) -> Callable[..., Any]: ...

    @property
    def signature(self) -> Signature: ...


def pointed(handler: Runs, place: Place) -> Callable[..., Any]:
    """The handler's function, of the same kind, with a point before it and one after."""
    function, signature = handler.function, handler.signature

    @contextlib.contextmanager
    def here() -> Iterator[None]:
        token = _here.set(place)
        try:
            yield
        finally:
            _here.reset(token)

    @functools.wraps(function)
    async def coroutine(*arguments: Any, **keywords: Any) -> Any:
        _here.set(place)
        await asyncio.sleep(0)  # so that whoever submitted the call has heard that it is kept
        point("before-run")
        result = await function(*arguments, **keywords)
        point("after-run")
        return result

    @functools.wraps(function)
    async def stream(*arguments: Any, **keywords: Any) -> AsyncIterator[Any]:
        _here.set(place)
        await asyncio.sleep(0)
        point("before-run")
        async with contextlib.aclosing(function(*arguments, **keywords)) as values:
            async for value in values:
                yield value
        point("after-run")

    @functools.wraps(function)
    def plain(*arguments: Any, **keywords: Any) -> Any:
        with here():
            point("before-run")
            result = function(*arguments, **keywords)
            point("after-run")
            return result

    @functools.wraps(function)
    def iterator(*arguments: Any, **keywords: Any) -> Iterator[Any]:
        with here():
            point("before-run")
            values = function(*arguments, **keywords)
        end = object()
        while True:
            with here():  # each value may be made in another thread
                value = next(values, end)
                if value is end:
                    point("after-run")
                    return
            yield value

    if signature.streams:
        return stream if signature.is_async else iterator
    return coroutine if signature.is_async else plain
