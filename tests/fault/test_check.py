"""What ``check`` finds that no checksum of a page tells: rows that are missing, left over, or do not fit each other."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.fault.sample import DAMAGED, Sample, fingerprint, use
from wayside.storage.embedded.check import check
from wayside.storage.embedded.files import CHECKED_VFS, DATABASE, LOCK, open_database
from wayside.storage.embedded.tables import chunk_crc

pytestmark = pytest.mark.fault

SID = "(SELECT sid FROM stream WHERE path='{}')"
JSON = SID.format("json")
SECOND = f"(SELECT id FROM chunk WHERE sid={SID.format('bytes')} ORDER BY position LIMIT 1 OFFSET 1)"
Spoil = Callable[[str], Path]


def _chunk_crc(*arguments: Any) -> int:
    return chunk_crc(*arguments)


@pytest.fixture
def spoil(closed: Sample, tmp_path: Path) -> Spoil:
    """Runs SQL on a copy of a good store, as no hub would."""

    def run(sql: str) -> Path:
        directory = tmp_path / "copy"
        shutil.copytree(closed.directory, directory)
        with contextlib.closing(open_database(directory / DATABASE, CHECKED_VFS)) as connection:
            connection.create_scalar_function("chunk_crc", _chunk_crc, 2)
            connection.execute(sql)
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return directory

    return run


@pytest.mark.parametrize(
    ("sql", "stream", "text"),
    [
        (f"DELETE FROM chunk WHERE id={SECOND}", "bytes", "is next"),
        (f"DELETE FROM chunk WHERE sid={JSON} AND position=0", "json", "stand where 0 is next"),
        (f"UPDATE stream SET start=0, tail=10000 WHERE sid={JSON}", "json", "to 9999 are missing"),
        (f"UPDATE chunk SET data=CAST(replace(data, 'turn', 'turm') AS BLOB) WHERE sid={JSON}", "json", "checksum of records"),
        (f"UPDATE chunk SET sizes=zeroblob(length(sizes)) WHERE sid={JSON}", "json", "checksum of records"),
        (f"UPDATE chunk SET size=size+1 WHERE sid={JSON} AND position=0", "json", "contradicts itself"),
        (f"UPDATE chunk SET count=count+1 WHERE sid={JSON} AND position=0", "json", "contradicts itself"),
        ("UPDATE stream SET lineage='[]' WHERE path='json'", "json", "lineage"),
        ("UPDATE stream SET lineage='[[0,7],[3,5]]' WHERE path='json'", "json", "lineage"),
        ("UPDATE stream SET lineage='[[0,99999999999999]]' WHERE path='json'", "json", "lineage"),
        ("UPDATE stream SET config='{' WHERE path='json'", "json", ""),
        (f"UPDATE chunk SET data=zeroblob(length(data)), crc=chunk_crc(sizes, zeroblob(length(data))) WHERE sid={JSON}",
         "json", "malformed"),
        ("DELETE FROM stream WHERE path='json'", "fork", "shares records with a stream, which is damaged"),
        ("DELETE FROM stream WHERE path='text'", None, "which does not exist"),
        ("INSERT INTO chunk SELECT max(id) + 1, 4242, 0, 1, 1, 0, x'01000000', 'x', 0, NULL FROM chunk",
         None, "records of a stream 00000001092, which does not exist"),
        ("UPDATE meta SET value=99 WHERE key='format'", None, "store format 99"),
        ("INSERT INTO journal VALUES(1, x'90', 5)", None, "checksum of row 1"),
        ("INSERT INTO journal VALUES(1, x'90', 0), (3, x'90', 0)", None, ""),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(closed: Sample, spoil: Spoil, sql: str, stream: str | None, text: str) -> None:
    """Each is named with its file and, where that is known, its stream; the others are whole; nothing is changed."""
    directory = spoil(sql)
    before = fingerprint(directory)
    report = check(directory, parse=True)
    assert fingerprint(directory) == before
    found = [problem for problem in report.problems if problem.stream == stream and text in problem.text]
    assert found, str(report)
    assert found[0].file == DATABASE
    assert not report.ok
    assert found[0].text in str(report)
    if stream is not None:
        assert stream not in report.whole
        assert set(closed.content) - set(report.whole) <= {stream, "json", "fork"}


async def test_a_missing_row_is_noticed_by_readers_too(closed: Sample, spoil: Spoil) -> None:
    """A hub does not pass over records that are missing in the middle of a stream."""
    directory = spoil(f"DELETE FROM chunk WHERE id={SECOND}")
    outcome = await use(directory, set(closed.content))
    assert outcome.content is not None
    assert outcome.content["bytes"] == DAMAGED
    assert outcome.content["json"] == closed.content["json"]


def test_what_a_report_says(closed: Sample, spoil: Spoil) -> None:
    """A good store is told in one line; of a bad one, the problems, the streams that are whole, and what to do."""
    good = check(closed.directory)
    assert str(good).startswith(f"{closed.directory} is whole: {len(closed.content)} streams, {good.records} records")
    assert "\n" not in str(good)
    bad = check(spoil("UPDATE stream SET lineage='[]' WHERE path='text'"))
    lines = str(bad).split("\n")
    assert lines[0].endswith("bytes of records.")
    assert "is damaged" in lines[0]
    assert lines[1] == f"  {DATABASE}, stream text: its lineage [] cannot be"
    assert lines[2].startswith("Whole streams")
    assert "async, bytes, fork, json" in lines[2]
    assert "Restore" in lines[3]
    assert good.streams == bad.streams == len(bad.whole) + 1


def test_a_store_without_a_lock_file(closed: Sample, tmp_path: Path) -> None:
    """It can be opened and is whole, but it is not as it was left."""
    directory = tmp_path / "copy"
    shutil.copytree(closed.directory, directory, ignore=shutil.ignore_patterns(LOCK))
    report = check(directory)
    assert [problem.file for problem in report.problems] == [LOCK]
    assert set(report.whole) == set(closed.content)
    assert not (directory / LOCK).exists()
