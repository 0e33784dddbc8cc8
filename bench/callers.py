"""The peers of the call measures: what answers calls, with the broker that it needs, all on the server's core.

Each is configured for speed; its handler is in ``bench/clients``. None is needed: a row whose peer is missing says so.
``make bench`` installs those in Python, ``make bench-peers`` the servers.
"""

import importlib.metadata
import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import ClassVar, Self

from bench.clients import python
from bench.hub import SERVICES, Hub
from bench.machine import tree
from bench.peers import Nats, Redis, RedisDurable
from bench.process import Server


def missing_packages(*packages: str) -> str:
    for name in packages:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"peer not installed: {name}: make bench"
    return ""


def versions_of(*packages: str) -> str:
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


class FastApi(Server):
    """FastAPI in uvicorn with uvloop and httptools, one process, no access log."""

    name = "FastAPI"
    scheme = "http"

    @classmethod
    def missing(cls) -> str:
        return missing_packages("fastapi", "uvicorn", "aiohttp")

    @classmethod
    def version(cls) -> str:
        return versions_of("fastapi", "uvicorn", "aiohttp")

    def command(self) -> list[str]:
        return python(
            "", "-m", "uvicorn", "bench.clients.via_fastapi:app", "--port", self.port, "--loop", "uvloop",
            "--http", "httptools", "--no-access-log", "--log-level", "warning",
        )  # fmt: skip


class Worker(Server):
    """A worker, and the broker that it works for: two processes, started and ended together."""

    broker_type: ClassVar[type[Server]] = Redis
    packages: ClassVar[tuple[str, ...]]
    #: The worker prints this when it takes work.
    says: ClassVar[str] = "ready"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.broker = self.make_broker(folder / "broker")

    @classmethod
    def missing(cls) -> str:
        return cls.broker_type.missing() or missing_packages(*cls.packages)

    @classmethod
    def version(cls) -> str:
        return versions_of(*cls.packages)

    def make_broker(self, folder: Path) -> Server:
        """The broker, not started."""
        return self.broker_type(folder)

    @property
    def url(self) -> str:
        return self.broker.url

    @property
    def pids(self) -> str:
        return f"{self.broker.pids},{super().pids}"

    def ready(self) -> bool:
        return self.says in self.log()

    def __enter__(self) -> Self:
        self.broker.__enter__()
        return super().__enter__()

    def stop(self) -> None:
        with ExitStack() as ended:
            ended.callback(self.broker.stop)
            children = [os.pidfd_open(pid) for pid in tree(self._process.pid)[1:]] if self._process else []
            for child in children:
                ended.callback(os.close, child)
            super().stop()
            for child in children:  # those that a worker left behind, having been killed itself
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(child, signal.SIGKILL)


class NatsResponder(Worker):
    """A responder with nats-py on uvloop, behind core NATS."""

    name = "nats-py"
    broker_type, packages = Nats, ("nats-py",)

    def command(self) -> list[str]:
        return python(self.url, "-m", "bench.clients.via_nats", "respond")


class CeleryWorker(Worker):
    """Celery with its ``solo`` pool, the fastest on one core, and 64 tasks prefetched; broker and results in Redis."""

    name = "Celery"
    packages = ("celery", "redis")

    def command(self) -> list[str]:
        return python(
            self.url, "-m", "celery", "--app", "bench.clients.via_celery", "worker", "--pool", "solo", "--loglevel",
            "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat",
        )  # fmt: skip


class DramatiqWorker(Worker):
    """Dramatiq in one process with one thread, as more wait for each other; broker and results in Redis.

    It prefetches more than is in flight: where it may not, it waits between fetches.
    """

    name = "Dramatiq"
    packages = ("dramatiq", "redis")
    says = "ready for action"

    def command(self) -> list[str]:
        words = python(
            self.url, "-m", "dramatiq", "bench.clients.via_dramatiq", "--processes", 1, "--threads", 1,
            "--worker-shutdown-timeout", 1000,
        )  # fmt: skip
        return ["env", "dramatiq_queue_prefetch=128", *words]


class TaskiqWorker(Worker):
    """Taskiq in one process on uvloop; broker (a list) and results in Redis."""

    name = "Taskiq"
    packages = ("taskiq", "taskiq-redis")

    def command(self) -> list[str]:
        return python(
            self.url, "-m", "taskiq", "worker", "bench.clients.via_taskiq:broker", "--workers", 1, "--no-parse",
            "--log-level", "WARNING", "--max-async-tasks", 64, "--max-prefetch", 64,
        )  # fmt: skip


class NatsStreams(Nats):
    """NATS JetStream, which acknowledges a publish; streams in memory, as that is where ours is."""

    name = "nats-py to JetStream"

    @classmethod
    def missing(cls) -> str:
        return super().missing() or missing_packages("nats-py")

    def command(self) -> list[str]:
        return [*super().command(), "--jetstream", "--store_dir", str(self.folder)]


class RedisStreams(RedisDurable):
    """The same Redis as `append` is held against, reached through redis-py."""

    name = "redis-py, appendfsync always"

    @classmethod
    def missing(cls) -> str:
        return super().missing() or missing_packages("redis")


class HubWorker(Worker):
    """Our worker in a process of its own, and the hub that it works for."""

    name = Hub.name
    broker_type, packages = Hub, ()
    says = "working"

    def __init__(self, folder: Path, *, memory: bool = False) -> None:
        self._memory = memory
        super().__init__(folder)

    def make_broker(self, folder: Path) -> Server:
        return Hub(folder, memory=self._memory)

    def command(self) -> list[str]:
        return Hub.wayside("work", SERVICES, "--hub", self.url)


PEERS: tuple[type[Server], ...] = (FastApi, NatsResponder, CeleryWorker, DramatiqWorker, TaskiqWorker)
