"""Fixtures: real hubs and other real programs, which end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Browser, start_chromium
from tests.support.command import Command
from tests.support.processes import Hub, Run

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("e2e")


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts a program: ``run([...])``."""
    run = Run()
    yield run
    run.dispose()


@pytest.fixture
def start_hub(run: Run, tmp_path: Path) -> Callable[..., Hub]:
    """Starts a hub with these options, on a directory of the test."""

    def start(*options: str, **settings: Any) -> Hub:
        return Hub(run, tmp_path / "data", *options, **settings)

    return start


@pytest.fixture
def hub(start_hub: Callable[..., Hub]) -> Hub:
    """A hub as ``wayside serve`` starts it."""
    return start_hub()


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One hub for the tests of a file that neither stop it nor look at each other's streams."""
    run = Run()
    yield Hub(run, tmp_path_factory.mktemp("shared") / "data")
    run.dispose()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for the tests of a file."""
    run = Run()
    browser = start_chromium(run, tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.quit()
    run.dispose()


@pytest.fixture
def wayside(shared_hub: Hub) -> Command:
    """Commands for the hub of the file."""
    return Command(shared_hub.url)
