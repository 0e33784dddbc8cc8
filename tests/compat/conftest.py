"""Fixtures: copies of what 0.1.0 left, and 0.1.0 itself."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def unpack(name: str, directory: Path) -> Path:
    """One of the archives beside this file."""
    with tarfile.open(HERE / name) as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the store of 0.1.0, as it was when its hub was killed."""
    return unpack("store-0.1.0.tar.xz", tmp_path / "store")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What to put first into PYTHONPATH to run 0.1.0."""
    return unpack("wayside-0.1.0.tar.xz", tmp_path_factory.mktemp("old"))
