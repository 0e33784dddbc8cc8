"""Our own server as a child process, and the few requests that prepare a stream for a measure."""

import http.client
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from bench.machine import BenchError
from bench.process import Server

LISTENING = re.compile(r"listening on http://[^\s:/]+:(\d+)")
BYTES = "application/octet-stream"
JSON = "application/json"
ROOT = Path(__file__).parent.parent
#: What the hub or a worker answers calls with.
SERVICES = "bench.services:hub"


def _default_command() -> list[str]:
    beside = Path(sys.executable).parent / "wayside"
    found = str(beside) if beside.exists() else shutil.which("wayside")
    return [found] if found else []


class Hub(Server):
    """``wayside serve`` in a folder of its own: with ``--memory``, or with ``--data`` on disk; also with `SERVICES`."""

    name = "Wayside"
    fan_out = ("sse", "/v1/stream/t?offset=now", "/v1/stream/t")
    #: The command without its arguments; ``--server`` replaces it.
    base: ClassVar[list[str]] = _default_command()

    def __init__(self, folder: Path, *, memory: bool = False, services: bool = False) -> None:
        super().__init__(folder)
        self._memory = memory
        self._services = [SERVICES] if services else []

    @classmethod
    def use(cls, command: str) -> None:
        """Measure this command instead of the one beside this Python."""
        cls.base = shlex.split(command)

    @classmethod
    def missing(cls) -> str:
        return "" if cls.base and shutil.which(cls.base[0]) else "wayside is not installed: pip install -e ."

    @classmethod
    def version(cls) -> str:
        try:
            return "Wayside " + importlib.metadata.version("wayside")
        except importlib.metadata.PackageNotFoundError:
            return "Wayside (not installed in this Python)"

    def command(self) -> list[str]:
        self.port = 0  # it picks one, and prints it
        where = ["--memory"] if self._memory else ["--data", str(self.folder / "data")]
        return self.wayside("serve", *self._services, "--port", "0", *where)

    @classmethod
    def wayside(cls, *words: str) -> list[str]:
        """Our command, able to import the bench's services from whatever folder it runs in."""
        return ["env", f"PYTHONPATH={ROOT}", "PYTHONUNBUFFERED=1", *cls.base, *words]

    def ready(self) -> bool:
        found = LISTENING.search(self.log())
        if found:
            self.port = int(found[1])
        return found is not None

    def create(self, paths: list[str], content_type: str, durability: str, body: bytes = b"") -> None:
        """Create streams (``fsync``, ``async`` or ``memory``), with a record each if `body` is one."""
        self._each("PUT", [(f"/v1/stream/{path}", body) for path in paths],
                   {"Content-Type": content_type, "Stream-Durability": durability})  # fmt: skip

    def fill(self, path: str, size: int, piece: int = 1 << 20) -> None:
        """Append `size` bytes in requests of at most `piece` bytes."""
        body = os.urandom(min(piece, size))
        pieces = [(f"/v1/stream/{path}", body[: min(piece, size - at)]) for at in range(0, size, piece)]
        self._each("POST", pieces, {"Content-Type": BYTES})

    def make_groups(self, names: list[str], stream: str) -> None:
        """Create groups that read one stream."""
        body = b'{"streams": ["%s"]}' % stream.encode()
        self._each("PUT", [(f"/v1/group/{name}", body) for name in names], {"Content-Type": JSON})

    def submit(self, service: str) -> str:
        """Call a service and do not wait for it; the path of the call."""
        return self._each("POST", [(f"/v1/service/{service}", b"null")],
                          {"Content-Type": JSON, "Prefer": "respond-async"})["Location"]  # fmt: skip

    def _each(self, method: str, requests: list[tuple[str, bytes]], headers: dict[str, str]) -> http.client.HTTPMessage:
        """Make these requests over one connection; the head of the last answer."""
        head = http.client.HTTPMessage()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            for path, body in requests:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                text = answer.read()
                head = answer.headers
                if answer.status // 100 != 2:
                    said = text[:200].decode(errors="replace")
                    raise BenchError(f"{method} {path} was answered {answer.status}: {said}")
        except (OSError, http.client.HTTPException) as error:
            raise BenchError(f"{method} to the hub failed: {error!r}") from error
        finally:
            connection.close()
        return head
