"""A server as a child process: pinned to the server's core, ready when it says so, ended by its id."""

import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bench.machine import SERVER_CORE, BenchError, tree

READY_S_MAX = 20.0
STOP_S_MAX = 10.0


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str) -> str | None:
    """The path of an executable; daemons are often in ``/usr/sbin``, which a user's PATH may lack."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


class Server(ABC):
    """One private instance, with a folder of its own; use it as a context manager."""

    name: ClassVar[str]
    #: How `fanload` speaks to it: mode, path to follow, path to publish to.
    fan_out: ClassVar[tuple[str, str, str]] = ("sse", "/sub/t", "/pub/t")
    scheme: ClassVar[str] = "http"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @abstractmethod
    def missing(cls) -> str:
        """Why it cannot be started, or an empty string."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Name and version, for the report."""

    @abstractmethod
    def command(self) -> list[str]:
        """Write what it needs into the folder; the command that starts it on `self.port`."""

    def ready(self) -> bool:
        """Does it take connections?"""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def url(self) -> str:
        """Where a client finds it."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def pids(self) -> str:
        """Its process and descendants, with commas between, as the load generators take them."""
        assert self._process is not None
        return ",".join(map(str, tree(self._process.pid)))

    def log(self) -> str:
        """What it has printed so far."""
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["taskset", "-c", str(SERVER_CORE), *self.command()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S_MAX
        while not self.ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                last = (self.log().strip().splitlines() or ["it printed nothing"])[-1]
                raise BenchError(f"{self.name} did not start: {last}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> None:
        """Ask it to end, then insist."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
