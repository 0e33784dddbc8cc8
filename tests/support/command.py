"""The ``wayside`` command in this process, which takes milliseconds where a process of its own takes half a second.

For what is typed, and ends by itself. What is signalled, watched while it runs, or piped is started as a program.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from click.testing import CliRunner

from wayside.cli.main import cli


@dataclass(frozen=True)
class Ended:
    """What came of a command."""

    status: int
    data: bytes
    """Standard output."""
    err: str

    @property
    def out(self) -> str:
        """Standard output as text, without its last newline."""
        return self.data.decode().removesuffix("\n")


class Command:
    """Commands for a hub, which is told to them as ``WAYSIDE_HUB``."""

    def __init__(self, url: str | None = None) -> None:
        # Nothing that happens to be set where the tests run is to configure a command.
        self._env: dict[str, str | None] = {name: None for name in os.environ if name.startswith("WAYSIDE_")}
        self._env["WAYSIDE_HUB"] = url

    def run(self, *arguments: str, stdin: str | bytes = "") -> Ended:
        """Run a command to its end. What it does not translate into a sentence is raised."""
        result = CliRunner().invoke(cli, arguments, input=stdin, env=self._env, catch_exceptions=False)
        return Ended(result.exit_code, result.stdout_bytes, result.stderr)

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """What a command printed, which is to succeed."""
        ended = self.run(*arguments, stdin=stdin)
        assert ended.status == 0, ended.err
        return ended.out

    def fails(self, *arguments: str, status: int = 1) -> str:
        """What a command says that is to fail."""
        ended = self.run(*arguments)
        assert ended.status == status, ended.err
        assert ended.data == b""
        return ended.err
