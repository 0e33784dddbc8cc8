"""Server-sent events as a browser reads them (WHATWG HTML, section 9.2.6), over a :class:`Wire` or from lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.support.wire import Response, Wire


@dataclass(frozen=True)
class Event:
    """One dispatched event; ``id`` is the last event id when it was dispatched."""

    type: str
    data: str
    id: str


class EventParser:
    """Bytes in, events out."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.comments = 0
        self.retry: int | None = None
        self.last_id = ""
        self._line = bytearray()
        self._data: list[str] = []
        self._type = ""
        self._id = ""

    def feed(self, data: bytes) -> None:
        assert b"\r" not in data, "a carriage return would end a line of the event stream"
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            self._take(line.decode())

    @property
    def is_whole(self) -> bool:
        """Whether the last event is complete."""
        return not (self._line or self._data)

    def _take(self, line: str) -> None:
        if not line:
            self.last_id = self._id
            if self._data:
                self.events.append(Event(self._type or "message", "\n".join(self._data), self.last_id))
            self._data, self._type = [], ""
            return
        if line.startswith(":"):
            self.comments += 1
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "id":
                self._id = value
            case "event":
                self._type = value
            case "retry":
                self.retry = int(value)
            case _:
                raise AssertionError(f"not a field of the event stream: {line!r}")


class EventSource:
    """An open answer of events."""

    def __init__(self, wire: Wire, response: Response) -> None:
        self.wire = wire
        self.response = response
        self.parser = EventParser()
        self.ended = False

    @classmethod
    async def open(cls, wire: Wire, target: str, headers: dict[str, str] | None = None) -> EventSource:
        """Ask for events as a browser does, unless ``headers`` says otherwise."""
        lines = {"Accept": "text/event-stream", **(headers or {})}
        await wire.send(f"GET {target} HTTP/1.1\r\nHost: hub\r\n".encode())
        await wire.send("".join(f"{n}: {v}\r\n" for n, v in lines.items()).encode() + b"\r\n")
        response = await wire.head()
        assert response.status == 200, response
        assert response["Content-Type"] == "text/event-stream"
        assert response.is_chunked
        return cls(wire, response)

    async def more(self) -> None:
        """Read one chunk."""
        assert not self.ended, "the events have ended"
        data = await self.wire.chunk()
        self.parser.feed(data)
        self.ended = not data

    async def next(self) -> Event:
        while not self.parser.events:
            await self.more()
        return self.parser.events.popleft()

    async def take(self, count: int) -> list[Event]:
        return [await self.next() for _ in range(count)]

    async def comment(self) -> int:
        """Wait for one more comment; how many there were."""
        before = self.parser.comments
        while self.parser.comments == before:
            await self.more()
        return self.parser.comments

    async def opened(self) -> None:
        """Wait for the first bytes, which say that the reader is in place."""
        while self.parser.retry is None:
            await self.more()

    async def rest(self) -> list[Event]:
        """The events until the answer ends as it should: after a whole event, with a last chunk."""
        while not self.ended:
            await self.more()
        assert self.parser.is_whole
        result = list(self.parser.events)
        self.parser.events.clear()
        return result


def events_of(lines: Iterable[str]) -> Iterator[Event]:
    """The events of an answer that is read line by line, as they come."""
    parser = EventParser()
    for line in lines:
        parser.feed(f"{line}\n".encode())
        while parser.events:
            yield parser.events.popleft()


def events_in(data: bytes) -> list[Event]:
    """The events of bytes that end after a whole one."""
    parser = EventParser()
    parser.feed(data)
    assert parser.is_whole
    return list(parser.events)
