"""Who may open a store, and with what."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import apsw
import pytest

from wayside.core.errors import DamagedStore, StoreInUse, StoreUnusable
from wayside.hub import Hub
from wayside.storage.embedded.check import check
from wayside.storage.embedded.files import DATABASE, LOCK, open_database
from wayside.storage.embedded.store import Store

pytestmark = pytest.mark.fault

HOLDER = """
import asyncio, sys
from wayside.hub import Hub

async def main():
    async with Hub("file:" + sys.argv[1]) as hub:
        number = 0
        while True:
            await hub.publish("s", number)
            print(number, flush=True)
            number += 1

asyncio.run(main())
"""


async def test_a_killed_holder_gives_the_directory_back(tmp_path: Path) -> None:
    """While a process has a store open every other is refused, and told its pid; killed, it holds nothing back, and what
    it had acknowledged is there."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        async with asyncio.timeout(30):
            for _ in range(20):
                await holder.stdout.readline()
            for attempt in (lambda: Hub(f"file:{tmp_path}").log, lambda: check(tmp_path)):
                with pytest.raises(StoreInUse) as refused:
                    attempt()
                assert refused.value.fields["pid"] == str(holder.pid)
                assert f"pid {holder.pid}" in refused.value.detail
    finally:
        holder.send_signal(signal.SIGKILL)
        rest = await holder.stdout.read()
        await holder.wait()
    last = int(rest.split()[-1]) if rest.split() else 19
    assert check(tmp_path).ok
    async with Hub(f"file:{tmp_path}") as hub:
        records = [record.json() async for record in hub.read("s", follow=False)]
    assert records[: last + 1] == list(range(last + 1))
    assert len(records) <= last + 2


def test_a_hub_is_refused_during_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written while a check reads."""
    Store(tmp_path, now_ms=0).close()

    def during(_directory: Path) -> bool:
        with pytest.raises(StoreInUse):
            Store(tmp_path, now_ms=0)
        return True

    monkeypatch.setattr("wayside.storage.embedded.check.check_before", during)
    assert check(tmp_path).ok


@pytest.mark.parametrize("version", ["3.51.2", "3.40.1", "3.9.0"])
def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A SQLite that can corrupt a write-ahead log does not get to open one; the text says what to install."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    with pytest.raises(StoreUnusable) as refused:
        _ = Hub(f"file:{tmp_path}").log
    assert version in refused.value.detail
    assert "pip install" in refused.value.detail
    assert not (tmp_path / DATABASE).exists()


def test_a_store_whose_making_was_interrupted(tmp_path: Path) -> None:
    """A crash in the first moments leaves an empty database: it is made on, as nothing was ever in it."""
    open_database(tmp_path / DATABASE, "cksmvfs").close()
    assert (tmp_path / DATABASE).stat().st_size
    Store(tmp_path, now_ms=0).close()
    assert check(tmp_path).ok


def test_an_empty_database_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """Where a store was made, a database without tables is not filled anew."""
    Store(tmp_path, now_ms=0).close()
    (tmp_path / DATABASE).unlink()
    open_database(tmp_path / DATABASE, "cksmvfs").close()
    before = (tmp_path / DATABASE).read_bytes()
    for _ in range(2):
        with pytest.raises(DamagedStore):
            Store(tmp_path, now_ms=0)
    assert (tmp_path / DATABASE).read_bytes() == before
    assert not check(tmp_path).ok


def test_a_log_of_another_time_is_refused(tmp_path: Path) -> None:
    """A write-ahead log that is older than the one last written to, as from a backup of one file, is not used."""
    store = Store(tmp_path, now_ms=0)
    store.failed = "as if killed"
    old = (tmp_path / f"{DATABASE}-wal").read_bytes()
    store.failed = None
    store._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
    store._collect()
    store._writer.execute("INSERT INTO garbage VALUES(1, 1)")
    store.failed = "as if killed"
    store.close()
    (tmp_path / f"{DATABASE}-wal").write_bytes(old)
    with pytest.raises(DamagedStore, match="pages were committed in it, and 0 are left"):
        Store(tmp_path, now_ms=0)


def test_a_directory_without_a_store(tmp_path: Path) -> None:
    """Checking what is not there says so, and makes nothing."""
    with pytest.raises(StoreUnusable, match="no store"):
        check(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_lock_file_can_be_read(tmp_path: Path) -> None:
    """Its first line says who had the store open last."""
    Store(tmp_path, now_ms=0).close()
    assert (tmp_path / LOCK).read_text().splitlines()[0].strip() == f"wayside store pid {os.getpid()}"
