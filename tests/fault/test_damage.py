"""Damage to any file of a store is noticed: refused at the opening, or by whoever reads what is affected; never read."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.sample import DAMAGED, Content, Sample, fingerprint, use
from wayside.storage.embedded.check import check
from wayside.storage.embedded.files import DATABASE, LOCK, PAGE_BYTES

pytestmark = pytest.mark.fault

WAL = f"{DATABASE}-wal"
FRAME_BYTES = PAGE_BYTES + 24
Damage = Callable[[bytes], bytes]


@pytest.fixture
def powerless(crashed: Sample, tmp_path: Path) -> Sample:
    """The same after a power failure: what the lock file says of the write-ahead log did not reach the disk."""
    directory = tmp_path / "powerless"
    shutil.copytree(crashed.directory, directory)
    lock = directory / LOCK
    lock.write_bytes(lock.read_bytes()[:64])
    return Sample(directory, crashed.content, crashed.before)


def _flip(at: int, bits: int) -> Damage:
    return lambda data: data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def _cut(length: int) -> Damage:
    return lambda data: data[:length]


def _zero(start: int, length: int) -> Damage:
    return lambda data: data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _flips(data: bytes, count: int, often: list[range]) -> Iterator[tuple[str, Damage]]:
    """Half of them in the places named by ``often``, the others anywhere."""
    dice = random.Random(20261123)
    for number in range(count):
        at = dice.choice(dice.choice(often)) if number % 2 else dice.randrange(len(data))
        yield f"flip at {at}", _flip(at, dice.choice([1, 2, 4, 8, 16, 32, 64, 128, 255, data[at] or 1]))


def _cuts(data: bytes, unit: int, *more: int) -> Iterator[tuple[str, Damage]]:
    dice = random.Random(4)
    size = len(data)
    lengths = {
        0,
        1,
        31,
        32,
        99,
        100,
        unit - 1,
        unit,
        unit + 1,
        size // 2,
        size - unit,
        size - unit - 1,
        size - 1,
        *more,
    }
    lengths.update(dice.randrange(size) for _ in range(8))
    lengths.update(32 * (unit == FRAME_BYTES) + dice.randrange(size // unit) * unit for _ in range(8))
    for length in sorted(length for length in lengths if 0 <= length < size):
        yield f"cut to {length}", _cut(length)


def _zeroed(data: bytes, unit: int, first: int, count: int) -> Iterator[tuple[str, Damage]]:
    dice = random.Random(9)
    units = (len(data) - first) // unit
    for index in sorted(dice.sample(range(units), min(count, units))):
        start = first + index * unit
        yield f"zero at {start}", _zero(start, unit)
        if index % 3 == 0:
            yield f"torn at {start}", _zero(start + unit // 2, unit // 2)


async def _try(sample: Sample, tmp_path: Path, name: str, damages: Iterator[tuple[str, Damage]]) -> Counter[str]:
    """Apply each to a copy; fails where a reader would be told anything but the truth. Counts what happened."""
    seen: Counter[str] = Counter()
    original = (sample.directory / name).read_bytes()
    for title, damage in damages:
        spoiled = damage(original)
        if spoiled == original:
            continue
        directory = tmp_path / "copy"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(sample.directory, directory)
        (directory / name).write_bytes(spoiled)
        seen[await _one(sample, directory, f"{name}, {title}")] += 1
    return seen


async def _one(sample: Sample, directory: Path, title: str) -> str:
    before = fingerprint(directory)
    entries = sorted(path.name for path in directory.iterdir())
    report = check(directory)
    assert fingerprint(directory) == before, f"{title}: check has changed a file"
    assert sorted(path.name for path in directory.iterdir()) == entries, f"{title}: check has left a file"
    outcome = await use(directory, set(sample.content))
    if outcome.content is None:
        assert outcome.refusal is not None
        file = Path(str(outcome.refusal.fields["file"]))
        assert file.parent == directory, title
        assert file.name in str(outcome.refusal), title
        assert fingerprint(directory) == before, f"{title}: a refused opening has changed a file"
        assert not report.ok, f"{title}: refused ({outcome.refusal}), and check finds nothing"
        return "refused"
    acknowledged = sample.content
    missing = _wrong(outcome.content, acknowledged)
    if missing:
        acknowledged = sample.before
        wrong = _wrong(outcome.content, acknowledged)
        assert wrong == [], f"{title}: wrong: {missing}"
    unlike = [path for path in report.whole if outcome.content.get(path) != acknowledged[path]]
    assert unlike == [], f"{title}: check calls streams whole that are not"
    if missing:
        return "last transaction missing"
    if DAMAGED in outcome.content.values():
        assert not report.ok, f"{title}: cannot be read, and check finds nothing"
        return "noticed"
    return "right"


def _wrong(found: dict[str, Content | str], expected: dict[str, Content]) -> list[str]:
    """Streams that are neither as expected nor refused, and those that should not be there."""
    return [
        path[:20]
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path) and not (found.get(path) == DAMAGED and path in expected)
    ]


async def test_undamaged(closed: Sample, crashed: Sample, powerless: Sample, tmp_path: Path) -> None:
    """The copies are right before anything is done to them, and check says so."""
    for number, sample in enumerate((closed, crashed, powerless)):
        directory = tmp_path / str(number)
        shutil.copytree(sample.directory, directory)
        assert await _one(sample, directory, "untouched") == "right"
        report = check(sample.directory, parse=True)
        if sample is not powerless:
            assert report.ok, str(report)
        assert set(report.whole) == set(sample.content)
        assert report.records == sum(len(records) for *_, records in sample.content.values()) - 5  # of the fork


async def test_flips_in_a_database(closed: Sample, tmp_path: Path) -> None:
    """No flipped byte of a database is read as if it were true."""
    data = (closed.directory / DATABASE).read_bytes()
    often = [range(100), range(100, PAGE_BYTES)]
    often += [range(page, page + 16) for page in range(PAGE_BYTES, len(data), PAGE_BYTES)]
    often += [range(page - 8, page) for page in range(PAGE_BYTES, len(data), PAGE_BYTES)]
    often = often[:2] * (len(often) // 4) + often[2:]
    seen = await _try(closed, tmp_path, DATABASE, _flips(data, 200, often))
    assert seen["refused"] > 20 < seen["noticed"]
    assert not seen["last transaction missing"]


async def test_cut_and_zeroed_databases(closed: Sample, tmp_path: Path) -> None:
    """A database that lost its end, or a page, or half of one, is not read as if it were whole."""
    data = (closed.directory / DATABASE).read_bytes()
    seen = await _try(closed, tmp_path, DATABASE, _cuts(data, PAGE_BYTES))
    assert set(seen) == {"refused"}
    seen = await _try(closed, tmp_path, DATABASE, _zeroed(data, PAGE_BYTES, 0, 120))
    assert seen["noticed"] > 10
    assert not seen["last transaction missing"]


async def test_a_database_with_a_log(crashed: Sample, tmp_path: Path) -> None:
    """The same holds for a database of which the newest pages are in the write-ahead log."""
    data = (crashed.directory / DATABASE).read_bytes()
    often = [range(100), range(100, PAGE_BYTES)]
    seen = await _try(crashed, tmp_path, DATABASE, _flips(data, 60, often))
    seen += await _try(crashed, tmp_path, DATABASE, _cuts(data, PAGE_BYTES))
    seen += await _try(crashed, tmp_path, DATABASE, _zeroed(data, PAGE_BYTES, 0, 40))
    assert seen["refused"]
    assert not seen["last transaction missing"]


def _transactions(wal: bytes) -> list[range]:
    """Where each transaction of this round of the log stands; an earlier round's, with other salts, may stand behind."""
    found: list[range] = []
    start = 32
    for at in range(32, len(wal), FRAME_BYTES):
        if wal[at + 8 : at + 16] == wal[16:24] and any(wal[at + 4 : at + 8]):
            found.append(range(start, at + FRAME_BYTES))
            start = at + FRAME_BYTES
    return found


def _heads(transactions: list[range]) -> list[range]:
    return [range(at, at + 24) for part in transactions for at in range(part.start, part.stop, FRAME_BYTES)]


async def test_a_write_ahead_log(crashed: Sample, tmp_path: Path) -> None:
    """After a crash of the process, nothing that was committed in the log can be missing unnoticed, its end included."""
    data = (crashed.directory / WAL).read_bytes()
    transactions = _transactions(data)
    end = transactions[-1].stop
    assert end < len(data)
    seen = await _try(crashed, tmp_path, WAL, _flips(data[:end], 150, [range(32), *_heads(transactions)]))
    seen += await _try(crashed, tmp_path, WAL, _cuts(data[:end], FRAME_BYTES))
    seen += await _try(crashed, tmp_path, WAL, _zeroed(data[:end], FRAME_BYTES, 32, 40))
    assert set(seen) == {"refused"}
    behind = [(f"flip at {at}", _flip(at, 255)) for at in range(end, len(data), (len(data) - end) // 20)]
    seen = await _try(crashed, tmp_path, WAL, iter(behind))
    assert set(seen) == {"right"}


async def test_a_write_ahead_log_after_a_power_failure(powerless: Sample, tmp_path: Path) -> None:
    """Then damage to the last transaction cannot be told from an interrupted write: that one may be missing, no more."""
    data = (powerless.directory / WAL).read_bytes()
    transactions = _transactions(data)
    end, last = transactions[-1].stop, transactions[-2:]
    seen = await _try(powerless, tmp_path, WAL, _flips(data[:end], 150, [range(32), *last, *_heads(last)]))
    assert set(seen) == {"refused", "last transaction missing"}
    assert seen["last transaction missing"] > 20 < seen["refused"]


@pytest.mark.parametrize("name", [DATABASE, WAL, LOCK])
async def test_a_missing_file(crashed: Sample, tmp_path: Path, name: str) -> None:
    """A store of which a file is gone is refused; without the lock file it is complete."""
    directory = tmp_path / "copy"
    shutil.copytree(crashed.directory, directory)
    (directory / name).unlink()
    assert await _one(crashed, directory, f"without {name}") == ("right" if name == LOCK else "refused")


async def test_the_lock_file(crashed: Sample, tmp_path: Path) -> None:
    """Whatever happens to the lock file alone harms nobody."""
    data = (crashed.directory / LOCK).read_bytes()
    every = [(f"flip at {at}", _flip(at, 1 << at % 8)) for at in range(0, len(data), 3)]
    seen = await _try(crashed, tmp_path, LOCK, iter(every))
    seen += await _try(crashed, tmp_path, LOCK, iter([(f"cut to {n}", _cut(n)) for n in (0, 5, 40, 64, 70, 86)]))
    assert set(seen) == {"right"}


async def test_the_index_of_the_log_is_made_anew(crashed: Sample, tmp_path: Path) -> None:
    """What is in a ``-shm`` file that a crash left is not believed."""
    directory = tmp_path / "copy"
    shutil.copytree(crashed.directory, directory)
    (directory / f"{DATABASE}-shm").write_bytes(random.Random(1).randbytes(32768))
    assert await _one(crashed, directory, "random -shm") == "right"
