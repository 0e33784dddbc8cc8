"""A store with something of everything in it, what is true of it, and what a hub makes of a damaged copy."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from tests.support.embedded import embedded, store_of
from tests.support.log import (
    BYTES,
    TEXT,
    append,
    begin_append,
    begin_create,
    create,
    creation,
    delete,
    read_records,
    settle,
    spool,
)
from wayside.core.errors import DamagedStore, NotFound
from wayside.core.records import Durability
from wayside.storage.embedded import store
from wayside.streams.streams import Streams
from wayside.testing import ManualClock

DAMAGED = "damaged"

Content = tuple[bool, int, tuple[tuple[str, tuple[int, int, int]], ...], tuple[bytes, ...]]
"""Of a stream: closed, start, producers, records."""


@dataclass
class Sample:
    """A directory, and what was acknowledged in it: by stream; and the same before the last transaction."""

    directory: Path
    content: dict[str, Content] = field(default_factory=dict)
    before: dict[str, Content] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of an attempt to use a copy. ``content`` has DAMAGED for what was refused; None: not opened."""

    content: dict[str, Content | str] | None
    refusal: DamagedStore | None = None


async def make(root: Path, *, closed: bool) -> Sample:
    """``closed``: everything in the database. Else as a crash leaves it: half of it in the write-ahead log."""
    live = root / "live"
    log = embedded(live, clock=ManualClock())
    log.start()
    await create(log, "json", creation())
    await create(log, "text", creation(TEXT))
    await create(log, "bytes", creation(BYTES))
    await create(log, "async", creation(BYTES, durability=Durability.ASYNC))
    await create(log, "trimmed", creation(BYTES, retention_bytes=40_000))
    await create(log, "deleted", creation(BYTES))
    for number in range(24):  # with long names, so that their tables have inner pages
        await create(log, f"small/{number:03d}/{'x' * 400}", creation(body=b"[%d]" % number))
    await _fill(log, 0)
    for seq in range(20):
        await append(log, "text", b"from producer %d" % seq, producer=(f"p{seq % 3}", 0, seq // 3))
    await append(log, "deleted", b"gone" * 20_000)
    await create(log, "fork", creation(source="json", fork_offset=log.find("json").offset(5)))
    await append(log, "fork", b'"of the fork"')
    await append(log, "text", close=True)
    await delete(log, "deleted")
    await settle(log)
    await log.close()
    log = embedded(live, clock=ManualClock())  # all of it is in the database now
    log.start()
    assert store_of(log) is not None
    await _fill(log, 1)
    await _fill(log, 2)
    await settle(log)
    with patch.object(store, "CHECKPOINT_PAGES", 1):  # the log begins anew, with the old one behind it
        for number in range(2):
            await append(log, "json", b"%d" % number)
    await _fill(log, 3, 3)
    await settle(log)
    while store_of(log).has_garbage:  # noqa: ASYNC110 - freeing it would be the last transaction
        await asyncio.sleep(0.01)
    sample = Sample(root / "sample")
    sample.before = _require_whole(await content_of(log))
    last = [begin_create(log, "last", creation(body=b'["transaction"]')), begin_append(log, "json", b'"the last"')]
    for answer in last:
        await answer.wait()
    sample.content = _require_whole(await content_of(log))
    if closed:
        await log.close()
    shutil.copytree(live, sample.directory, ignore=shutil.ignore_patterns("*-shm"))
    if not closed:
        await log.close()
    if closed:
        assert not (sample.directory / "wayside.db-wal").stat().st_size
    return sample


async def _fill(log: Streams, turn: int, json: int = 10) -> None:
    for number in range(json):
        await append(log, "json", b'[%d, {"turn": %d, "pad": "%s"}]' % (number, turn, b"." * 40 * number))
    for number in range(4):
        await append(log, "bytes", (b"%d%d" % (turn, number)) * 9_000)
    await append(log, "bytes", spool(b"%d spooled" % turn * 15_000))
    for number in range(8):
        await append(log, "async", (b"%d-%d" % (turn, number)) * 500)
        await append(log, "trimmed", (b"%d+%d" % (turn, number)) * 3_000)


def _require_whole(content: dict[str, Content | str]) -> dict[str, Content]:
    whole = {path: c for path, c in content.items() if not isinstance(c, str)}
    assert whole.keys() == content.keys()
    return whole


async def content_of(log: Streams, paths: set[str] | None = None) -> dict[str, Content | str]:
    """Every stream as a reader is given it; ``paths`` are asked for even where they are not listed."""
    found: dict[str, Content | str] = {}
    listed: set[str] = set()
    try:
        listed = {info.path for info in log.list("", "", 1000)}
    except DamagedStore:
        assert paths is not None
    for path in listed | (paths or set()):
        try:
            stream = log.find(path, touch=False)
            records = await read_records(log, path)
        except DamagedStore:
            found[path] = DAMAGED
        except NotFound:
            continue
        else:
            found[path] = (stream.closed, stream.start, tuple(sorted(stream.producers.items())), tuple(records))
    return found


async def use(directory: Path, paths: set[str]) -> Outcome:
    """Open a copy and read all of it; then let go of it as a crash would."""
    try:
        log = embedded(directory, clock=ManualClock())
    except DamagedStore as refusal:
        return Outcome(None, refusal)
    log.start()
    try:
        return Outcome(await content_of(log, paths))
    finally:
        assert store_of(log) is not None
        store_of(log).failed = "the test is over"  # nothing is written on the way out
        await log.close()


def fingerprint(directory: Path) -> dict[str, int]:
    """Every file by a hash of its bytes. The index of the write-ahead log holds nothing; an empty log is as good as none."""
    return {
        path.name: hash(path.read_bytes())
        for path in directory.iterdir()
        if not path.name.endswith("-shm") and not (path.name.endswith("-wal") and not path.stat().st_size)
    }
