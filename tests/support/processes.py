"""Real processes: programs with their output as it comes, a hub that can be killed and started again, other tools."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn
from uuid import uuid4

import httpx
import pytest

from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
JS = ROOT / "tests" / "js"
WAYSIDE = (sys.executable, "-m", "wayside")
CHROMIUM = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def missing(what: str) -> NoReturn:
    """Skip for want of a tool; in CI that is a failure."""
    text = f"{what} is missing: run scripts/test-tools"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


def tool(*names: str) -> str:
    """The path of the first of these programs that there is."""
    for name in names:
        if found := shutil.which(name):
            return found
    missing(names[0])


def node(*packages: str) -> str:
    """Node.js, with these packages of tests/js."""
    path = tool("node")
    for package in packages:
        if not (JS / "node_modules" / package).is_dir():
            missing(f"the npm package {package}")
    return path


class Output:
    """The lines of one pipe of a program, as they come."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.lines: list[str] = []
        self._pipe = pipe
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in self._pipe:
                with self._changed:
                    self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, within_s: float = PATIENCE_S) -> re.Match[str]:
        """The first line, present or to come, in which the pattern is found."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended, within_s)
            match = found()
        assert match, f"no line like {pattern!r} in:\n{self.text}"
        return match

    def wait_count(self, count: int, within_s: float = PATIENCE_S) -> list[str]:
        """The lines, once there are so many."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.lines) >= count or self._ended, within_s)
            assert len(self.lines) >= count, f"{len(self.lines)} lines of {count}:\n{self.text}"
            return list(self.lines)

    def wait_end(self, within_s: float = PATIENCE_S) -> list[str]:
        """All lines, once the pipe is closed."""
        self._thread.join(within_s)
        assert self._ended, f"still open after {within_s:g} s:\n{self.text}"
        return self.lines


class Program:
    """A process and its output. It leads a process group, so that its children end with it."""

    def __init__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> None:
        self.command = [str(part) for part in command]
        # Nothing that happens to be set where the tests run is to configure a hub.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WAYSIDE_")}
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**clean, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdin = self.process.stdin
        self.out = Output(self.process.stdout)
        self.err = Output(self.process.stderr)

    def __repr__(self) -> str:
        return f"<Program {' '.join(self.command)} pid={self.process.pid} status={self.process.poll()}>"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def write(self, text: str) -> None:
        self.stdin.write(text.encode())
        self.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Its exit status, when everything it wrote has been read."""
        try:
            status = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self!r} did not end.\n{self.out.text}\n{self.err.text}") from None
        self.out.wait_end()
        self.err.wait_end()
        return status

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def dispose(self) -> None:
        """End it and its children, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        with contextlib.suppress(OSError):
            self.stdin.close()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Run:
    """Starts programs; ends those that still run."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def __call__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> Program:
        program = Program(command, env=env, cwd=cwd)
        self.programs.append(program)
        return program

    def dispose(self) -> None:
        for program in self.programs:
            program.dispose()


class Hub:
    """``wayside serve`` on a directory, and a port that stays the same over restarts."""

    def __init__(
        self, run: Run, data: Path, *options: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> None:
        self.data = data
        self.port = 0
        self._run = run
        self._options = options
        self._env = env
        self._cwd = cwd
        self.start()

    def start(self) -> None:
        """Returns when it listens."""
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--data", str(self.data))
        self.program = self._run([*WAYSIDE, "serve", *where, *self._options], env=self._env, cwd=self._cwd)
        match = self.program.out.wait_for(r"^listening on http://127\.0\.0\.1:(\d+)$")
        self.port = int(match[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stream(self, name: str) -> str:
        return f"{self.url}/v1/stream/{name}"

    def kill(self) -> None:
        """As the out-of-memory killer does it: SIGKILL."""
        self.program.kill()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.program.signal(signal.SIGTERM)
        return self.program.wait()

    def create(self, name: str, content_type: str = "application/json", **headers: str) -> str:
        """Returns the URL of the new stream."""
        answer = httpx.put(self.stream(name), headers={"Content-Type": content_type, **headers})
        assert answer.status_code == 201, answer.text
        return self.stream(name)

    def append(self, name: str, body: str | bytes, content_type: str = "application/json") -> str:
        """Returns the offset after what was appended."""
        answer = httpx.post(self.stream(name), content=body, headers={"Content-Type": content_type})
        assert answer.status_code == 204, answer.text
        return answer.headers["Stream-Next-Offset"]

    def close_stream(self, name: str) -> None:
        answer = httpx.post(self.stream(name), headers={"Stream-Closed": "true"})
        assert answer.status_code == 204, answer.text

    def read(self, name: str) -> Any:
        """Everything in a JSON stream."""
        answer = httpx.get(self.stream(name))
        assert answer.status_code == 200, answer.text
        return answer.json()


class Worker:
    """``wayside work`` for a hub; ``pid`` is also what its handlers see."""

    def __init__(self, run: Run, cwd: Path, url: str, *options: str, app: str = "app:hub") -> None:
        self.program = run([*WAYSIDE, "work", app, "--hub", url, *options], cwd=cwd)

    def ready(self) -> Worker:
        """Returns once the hub knows it."""
        self.program.out.wait_for("^working on ")
        return self

    @property
    def pid(self) -> int:
        return self.program.pid

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.program.signal(signal.SIGTERM)
        return self.program.wait()


class Publisher:
    """Appends 0, 1, 2, ... to a JSON stream, each until it is acknowledged, as one idempotent producer."""

    def __init__(self, url: str) -> None:
        self.acknowledged = 0
        self.repeated = 0
        """Appends that had to be sent again."""
        self._url = url
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def _publish(self) -> None:
        headers = {"Content-Type": "application/json", "Producer-Id": f"e2e-{uuid4()}", "Producer-Epoch": "0"}
        with httpx.Client(timeout=10) as client:
            while not self._stop.is_set():
                number = self.acknowledged
                try:
                    answer = client.post(
                        self._url, content=str(number), headers={**headers, "Producer-Seq": str(number)}
                    )
                except httpx.HTTPError:
                    self.repeated += 1
                    time.sleep(0.05)
                    continue
                if answer.status_code not in (200, 204):
                    self._error = AssertionError(f"append {number}: {answer.status_code} {answer.text}")
                    break
                with self._changed:
                    self.acknowledged += 1
                    self._changed.notify_all()
                time.sleep(0.002)

    def wait_more(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        with self._changed:
            goal = self.acknowledged + count
            reached = self._changed.wait_for(lambda: self.acknowledged >= goal or self._error, PATIENCE_S)
        assert self._error is None, self._error
        assert reached, f"{self.acknowledged} of {goal} acknowledged"

    def stop(self) -> int:
        """Returns how many were acknowledged."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert self._error is None, self._error
        return self.acknowledged


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
