"""A delivery in a thread: what is said of it there is told to the event loop that has the connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from wayside.client.deliveries import Delivery, Settling, publications

__all__ = ["ThreadDelivery", "ThreadSettling"]


class ThreadSettling:
    """What was said of a record. :meth:`wait` to know that it is kept; or do not."""

    __slots__ = ("_error", "_loop", "_settling")

    def __init__(self, loop: asyncio.AbstractEventLoop, say: Callable[[], Settling]) -> None:
        self._loop = loop
        self._settling: Settling | None = None
        self._error: Exception | None = None
        loop.call_soon_threadsafe(self._say, say)

    def _say(self, say: Callable[[], Settling]) -> None:
        try:
            self._settling = say()
        except Exception as error:  # it was settled before: whoever waits hears of it
            self._error = error

    def wait(self, timeout: float | None = None) -> list[str]:
        """Wait until it is kept. Returns the offsets after what was published with it. Raises what it was refused for, and
        TimeoutError."""
        return asyncio.run_coroutine_threadsafe(self._wait(), self._loop).result(timeout)

    async def _wait(self) -> list[str]:  # behind _say, as the loop takes what threads give it in order
        if self._settling is None:
            raise self._error or RuntimeError("The event loop was closed.")
        return await self._settling.wait()


class ThreadDelivery(Delivery):
    """See :class:`wayside.client.deliveries.Delivery`: the same names, for a thread. What its methods return has ``wait``
    instead of being awaitable."""

    __slots__ = ("_inner", "_loop")

    def __init__(self, delivery: Delivery, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(delivery._hold, delivery._index, delivery.data)
        self._inner = delivery
        self._loop = loop

    def _tell(self, say: Callable[[], Settling]) -> Any:
        if self.settled:
            raise RuntimeError(f"This was settled before: {self!r}.")
        return ThreadSettling(self._loop, say)

    def ack(self, publish: Iterable[tuple[str, Any]] = ()) -> Any:
        records = list(publish)
        publications(records)  # raises here what has no encoding
        return self._tell(lambda: self._inner.ack(records))

    def nack(self, delay: float | None = None, reason: str = "") -> Any:
        return self._tell(lambda: self._inner.nack(delay, reason))

    def reject(self, reason: str = "") -> Any:
        return self._tell(lambda: self._inner.reject(reason))

    def release(self) -> Any:
        return self._tell(self._inner.release)

    def extend(self, seconds: float) -> Any:
        return self._tell(lambda: self._inner.extend(seconds))

    def publish(self, stream: str, *values: Any) -> None:
        publications((stream, value) for value in values)
        self._inner.publish(stream, *values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[_Transaction]:  # type: ignore[override]
        transaction = _Transaction()
        yield transaction
        transaction.offsets = self.ack(transaction.records).wait()


class _Transaction:
    """An ack with records, as one."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Any]] = []
        self.offsets: list[str] = []
        """After the records, one for each stream; known at the end."""

    def publish(self, stream: str, *values: Any) -> None:
        """Records of a stream."""
        self.records += [(stream, value) for value in values]
