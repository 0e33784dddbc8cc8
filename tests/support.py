"""What tests of the embedded log share: its callbacks as coroutines, a gate before the disk, a crash, followers.

Only the contract ``Log`` is used, and of the store ``commit`` and ``maintain``, which are wrapped.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clock import ManualClock
from tests.embedded import embedded, store_of
from wayside.core.errors import StoreFull
from wayside.core.limits import Limits
from wayside.core.records import (
    JSON,
    Append,
    Appended,
    Batch,
    Create,
    Created,
    Durability,
    Meta,
    Offset,
    Producer,
    Spool,
    StreamConfig,
)
from wayside.streams.contract import Reader, StreamView
from wayside.streams.streams import Streams

TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"


class Answer:
    """A ``Done`` that keeps what it was told."""

    def __init__(self) -> None:
        self.result: Any = None
        self.given = False
        self._event = asyncio.Event()

    def __call__(self, result: Any) -> None:
        assert not self.given, f"answered twice: {self.result!r}, then {result!r}"
        self.result = result
        self.given = True
        self._event.set()

    async def wait(self) -> Any:
        """The result; an exception is raised."""
        async with asyncio.timeout(30):
            await self._event.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def creation(
    content_type: str = JSON,
    *,
    durability: Durability | None = None,
    body: bytes | Spool = b"",
    closed: bool = False,
    source: str | None = None,
    fork_offset: Offset | str | None = None,
    fork_sub_offset: int = 0,
    **config: Any,
) -> Create:
    """A creation; what is given counts as stated by the client."""
    explicit = set(config)
    if source is None:
        explicit.add("content_type")
    if durability is not None:
        explicit.add("durability")
    return Create(
        StreamConfig(content_type=content_type, durability=durability or Durability.FSYNC, **config),
        frozenset(explicit),
        body=body,
        closed=closed,
        source=source,
        fork_offset=fork_offset,
        fork_sub_offset=fork_sub_offset,
    )


def begin_create(log: Streams, path: str, create: Create | None = None) -> Answer:
    """Ask for a stream; its answer comes when it is committed."""
    answer = Answer()
    log.create(path, create or creation(), answer)
    return answer


async def create(log: Streams, path: str, create: Create | None = None) -> Created:
    result: Created = await begin_create(log, path, create).wait()
    return result


def begin_append(
    log: Streams,
    path: str,
    body: bytes | Spool = b"",
    *,
    close: bool = False,
    seq: str | None = None,
    producer: tuple[str, int, int] | None = None,
    content_type: str | None = None,
) -> Answer:
    """Append; the content type is the stream's unless one is given. Refusals of the check are raised at once."""
    answer = Answer()
    kind = content_type or log.find(path, touch=False).config.content_type
    log.append(path, Append(body, kind, close, seq, Producer(*producer) if producer else None), answer)
    return answer


async def append(log: Streams, path: str, body: bytes | Spool = b"", **options: Any) -> Appended:
    result: Appended = await begin_append(log, path, body, **options).wait()
    return result


def begin_publish(log: Streams, path: str, *records: bytes, meta: dict[int, Meta] | Meta | None = None) -> Answer:
    """Append records with what is known beside them."""
    answer = Answer()
    log.append(path, Append(b"", records=records, meta=meta), answer)
    return answer


async def publish(log: Streams, path: str, *records: bytes, meta: dict[int, Meta] | Meta | None = None) -> Appended:
    result: Appended = await begin_publish(log, path, *records, meta=meta).wait()
    return result


async def delete(log: Streams, path: str) -> None:
    answer = Answer()
    log.delete(path, answer)
    await answer.wait()


async def read_batches(stream: StreamView, position: int | None = None, bytes_max: int = 1 << 20) -> list[Batch]:
    """Everything from ``position`` (None: the start) to the tail, a page at a time."""
    at = stream.start if position is None else position
    result: list[Batch] = []
    while at < stream.tail:
        page = await stream.read(at, bytes_max)
        assert page, f"nothing at {at} of {stream!r}"
        for batch in page:
            assert batch.position == at, f"{batch!r} where {at} was next"
            at = batch.end
        result += page
    return result


async def read_records(log: Streams, path: str, position: int | None = None, bytes_max: int = 1 << 20) -> list[bytes]:
    """The records of :func:`read_batches`."""
    batches = await read_batches(log.find(path, touch=False), position, bytes_max)
    return [record for batch in batches for record in batch.records]


def offset_at(log: Streams, path: str, position: int) -> Offset:
    return log.find(path, touch=False).offset(position)


class Gate:
    """Stands between a log's writer and its disk. Shut, it holds commits back; ``let`` passes some."""

    def __init__(self, log: Streams) -> None:
        store = store_of(log)
        assert store is not None
        self._commit = store.commit
        self._maintain = store.maintain
        self._changed = threading.Condition()
        self._permits: int | None = None
        self._answered = self._reported = 0
        self.full = 0
        """How many of the next commits find the disk full; -1: all."""
        for name, method in (("commit", self._wait), ("maintain", self._rest)):
            setattr(store, name, method)

    def _wait(self, unit: Any) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: self._permits is None or self._permits > 0, 30), (
                "nobody opened the gate"
            )
            if self._permits is not None:
                self._permits -= 1
        if self.full:
            self.full -= 1
            self._answered += 1
            raise StoreFull("There is no room on the disk, says the test.")
        outcome = self._commit(unit)
        self._answered += 1
        return outcome

    def _rest(self) -> None:
        """The writer does this when it has reported a commit to the event loop."""
        self._maintain()
        with self._changed:
            self._reported = self._answered
            self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._permits = 0

    def let(self, commits: int = 1) -> None:
        """Let that many commits pass, and block this thread until they are reported."""
        with self._changed:
            self._permits = (self._permits or 0) + commits
            wanted = self._reported + commits
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._reported >= wanted, 30), "there was nothing to commit"

    def open(self) -> None:
        with self._changed:
            self._permits = None
            self._changed.notify_all()


class Disk:
    """A log on a directory, which can be closed, or crash: opened again from what its files held at that moment."""

    def __init__(self, root: Path, *, limits: Limits | None = None, clock: ManualClock | None = None) -> None:
        self._root = root
        self._lives = 0
        self._limits = limits
        self._crashed: list[Streams] = []
        self._gates: list[Gate] = []
        self._idle = threading.Lock()
        self.clock = clock or ManualClock()
        self.directory = root / "life-0"
        self.log = self._open()

    def _open(self) -> Streams:
        log = embedded(self.directory, limits=self._limits, clock=self.clock)
        log.start()
        store = store_of(log)
        assert store is not None
        for name in ("commit", "maintain"):  # so that a copy is never taken in the middle of either
            setattr(store, name, self._whole(getattr(store, name)))
        return log

    def _whole(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with self._idle:
                return method(*arguments)

        return run

    def gate(self) -> Gate:
        """A gate before the disk of this life."""
        gate = Gate(self.log)
        self._gates.append(gate)
        return gate

    async def restart(self) -> Streams:
        """Stop in order, and open the same directory."""
        await self.log.close()
        self.log = self._open()
        return self.log

    async def crash(self) -> Streams:
        """Open a copy of the files as they are at this moment; the log that wrote them has no say any more."""
        self._lives += 1
        copy = self._root / f"life-{self._lives}"
        with self._idle:
            shutil.copytree(self.directory, copy, ignore=shutil.ignore_patterns("*-shm"))
        self._crashed.append(self.log)
        self.directory = copy
        self.log = self._open()
        return self.log

    async def close_crashed(self) -> None:
        """Let go of the logs that have no say any more; their gates, if any, must be open."""
        crashed, self._crashed = self._crashed, []
        for log in crashed:
            async with asyncio.timeout(30):
                await log.close()

    async def close(self) -> None:
        for gate in self._gates:
            gate.full = 0
            gate.open()
        async with asyncio.timeout(30):
            await self.log.close()
        await self.close_crashed()


class Recorder:
    """A sink that keeps every frame. ``room`` frames fit into its buffer before it is full; None: any number."""

    def __init__(self, room: int | None = None) -> None:
        self.frames: list[Any] = []
        self.room = room
        self.paused = False
        self.reader: Reader | None = None
        self.finished: str | None = None
        self.aborted: Exception | None = None

    def attach(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def send(self) -> Callable[[Any], int | None]:
        return self.write

    def queue(self, frame: Any, sent: int) -> None:
        raise AssertionError(f"all of {frame!r} was taken, not {sent}")

    def write(self, frame: Any) -> None:
        self.frames.append(frame)
        if self.room is not None:
            self.room -= 1
            if self.room <= 0 and not self.paused:
                self.paused = True
                assert self.reader is not None
                self.reader.pause()

    def drain(self, room: int | None = None) -> None:
        """The buffer is empty again, and takes ``room`` frames."""
        self.room = room
        self.paused = False
        assert self.reader is not None
        self.reader.pump()

    def finish(self, reason: str) -> None:
        self.finished = reason

    def abort(self, error: Exception) -> None:
        self.aborted = error


class Plainly:
    """An encoding that leaves batches as they are, and says what else it was asked for."""

    heartbeat = "heartbeat"

    def __init__(self, key: object = "plainly") -> None:
        self.key = key
        self.encoded = 0

    def encode(self, _stream: StreamView, batches: list[Batch]) -> list[Batch]:
        self.encoded += 1
        return list(batches)

    def caught_up(self, _stream: StreamView, position: int) -> tuple[str, int]:
        return ("caught-up", position)

    def end(self, _stream: StreamView, position: int, reason: str, told: bool) -> tuple[str, int, str, bool]:
        return ("end", position, reason, told)


def records_in(frames: list[Any]) -> list[bytes]:
    """The records of the frames that :class:`Plainly` made, in order; their positions must follow one another."""
    result: list[bytes] = []
    at: int | None = None
    for frame in frames:
        if isinstance(frame, list):
            for batch in frame:
                assert at is None or batch.position == at, f"{batch!r} where {at} was next"
                at = batch.end
                result += batch.records
    return result


async def settle(log: Streams) -> None:
    """Wait until everything that was acknowledged is on the disk."""
    await until(lambda: not log.statistics().uncommitted_bytes)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a thread or a timer of the log brings about by itself."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


def spool(data: bytes) -> Spool:
    """A body that was too large for memory."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives with the body
    file.write(data)
    return Spool(file, len(data))


async def turns(count: int = 10) -> None:
    """Let the event loop turn a few times: what waits for nothing else gets done."""
    for _ in range(count):
        await asyncio.sleep(0)


def expire(log: Streams) -> None:
    """What the sweep does once a second: end streams whose time is over."""
    log.upkeep.expire(log.clock.wall_ms())


def retain_by_age(log: Streams) -> None:
    """What the sweep does now and then: let old records go."""
    log.upkeep.retain_by_age(log.clock.wall_ms())


def patch_constants(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Set constants of the engine by name, in whichever modules they are known."""
    for name, value in values.items():
        modules = [m for known, m in list(sys.modules.items()) if known.startswith("wayside.") and name in vars(m)]
        assert modules, f"there is no {name} any more"
        for module in modules:
            monkeypatch.setattr(module, name, value)
