"""A hub and its workers as processes, and what is done to them at random moments."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path

import httpx

from tests.crash.calls_app import LEASE_S

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
"""What a process may take to start on a busy machine."""
PAUSE_S = (0.1, 0.7)
"""Between one blow and the next."""
BLOWS = {"hub killed": 8, "hub ended": 1, "hub stopped": 1, "worker killed": 8, "worker ended": 3, "worker stopped": 4}
"""How often each, in proportion: SIGKILL, SIGTERM, and SIGSTOP for longer than the lease."""
KILLS = ("killed", "ended")


class Process:
    """One process; what it says goes to a file."""

    def __init__(self, said: Path, *arguments: str) -> None:
        self.said = said
        command = [sys.executable, "-m", "tests.crash.calls_app", *arguments]
        with said.open("ab") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, cwd=ROOT)
        self.pid = self._process.pid
        self.struck_ms = 0
        """When it was first killed or stopped; 0: never."""
        self.killed = False

    def send(self, number: signal.Signals) -> None:
        self.killed = self.killed or number in (signal.SIGKILL, signal.SIGTERM)
        self.struck_ms = self.struck_ms or time.time_ns() // 1_000_000
        self._process.send_signal(number)

    async def stop(self) -> None:
        """SIGSTOP; returns once it stands still."""
        self.send(signal.SIGSTOP)
        while not os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)[0]:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.001)

    def wait(self) -> None:
        self._process.wait()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def ended(self) -> None:
        while self.running:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)

    def require_alive(self) -> None:
        assert self.running or self.killed, f"{self.said.name} ended by itself:\n{self.said.read_text()[-4000:]}"


class Stage:
    """The processes. A hub keeps its port, a worker that was killed is replaced by another."""

    def __init__(self, directory: Path, moments: random.Random, workers: int) -> None:
        self.directory = directory
        self.blows: Counter[str] = Counter()
        self.processes: dict[int, Process] = {}
        """All processes, by their numbers."""
        self.pauses_ms: list[tuple[int, int]] = []
        """When the hub was stopped, and went on."""
        self._moments = moments
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.hub = self._spawn_hub()
        self.workers = [self._spawn_worker() for _ in range(workers)]
        self._busy: set[Process] = set()
        """Those to which something is being done."""

    @property
    def kills(self) -> int:
        return sum(count for blow, count in self.blows.items() if blow.endswith(KILLS))

    def _spawn_hub(self) -> Process:
        number = next(self._numbers)
        return self._spawn(f"hub-{number}", "hub", str(self.directory / "data"), str(self.port))

    def _spawn_worker(self) -> Process:
        number = next(self._numbers)
        return self._spawn(f"worker-{number}", "worker", self.url)

    def _spawn(self, name: str, *arguments: str) -> Process:
        process = Process(self.directory / f"{name}.said", *arguments, str(self.directory / f"{name}.executions"))
        self.processes[process.pid] = process
        return process

    async def ready(self) -> None:
        """Wait until the hub answers."""
        async with asyncio.timeout(START_S), httpx.AsyncClient() as client:
            while True:
                self.hub.require_alive()
                try:
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)

    async def blow(self) -> None:
        """Do something to somebody, and go on when there is a hub again."""
        moments = self._moments
        await asyncio.sleep(moments.uniform(*PAUSE_S))
        for process in (self.hub, *self.workers):
            process.require_alive()
        blow = moments.choices(list(BLOWS), list(BLOWS.values()))[0]
        who, what = blow.split()
        number = {"killed": signal.SIGKILL, "ended": signal.SIGTERM, "stopped": signal.SIGSTOP}[what]
        if who == "worker":
            free = [worker for worker in self.workers if worker not in self._busy]
            if free:
                self.blows[blow] += 1
                worker = moments.choice(free)
                worker.send(number)
                self._keep(self._stopped(worker) if what == "stopped" else self._replaced(worker))
            return
        self.blows[blow] += 1
        self.hub.send(number)
        if what == "stopped":
            began_ms = time.time_ns() // 1_000_000
            await asyncio.sleep(moments.uniform(0.3, 1.5) * LEASE_S)
            self.hub.send(signal.SIGCONT)
            self.pauses_ms.append((began_ms, time.time_ns() // 1_000_000))
            return
        await self.hub.ended()
        while True:
            await asyncio.sleep(moments.choice((0.0, 0.2, 1.5 * LEASE_S)))
            self.hub = self._spawn_hub()
            if moments.random() > 0.15:
                break
            await asyncio.sleep(moments.uniform(0, 1))  # it is killed while it starts
            self.blows["hub killed"] += 1
            self.hub.send(signal.SIGKILL)
            await self.hub.ended()
        await self.ready()

    def why_lost(self, pid: int, at_ms: int) -> str:
        """Why an attempt of a worker was lost at that time."""
        struck_ms = self.processes[pid].struck_ms
        if 0 < struck_ms <= at_ms:
            return "worker lost"
        if any(began_ms <= at_ms <= ended_ms + 1000 * LEASE_S for began_ms, ended_ms in self.pauses_ms):
            return "hub stopped"
        return "lease missed"

    def _keep(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stopped(self, worker: Process) -> None:
        self._busy.add(worker)
        await asyncio.sleep(self._moments.uniform(1.2, 2.0) * LEASE_S)
        worker.send(signal.SIGCONT)
        self._busy.discard(worker)

    async def _replaced(self, worker: Process) -> None:
        self._busy.add(worker)
        await worker.ended()
        await asyncio.sleep(self._moments.choice((0.0, 0.3, 1.5)))
        self.workers[self.workers.index(worker)] = self._spawn_worker()
        self._busy.discard(worker)

    async def calm(self) -> None:
        """Wait until everybody is up again."""
        while self._tasks:
            await asyncio.gather(*self._tasks)
        await self.ready()

    def said(self) -> list[str]:
        """Lines with which a process says that something is wrong with it."""
        return [
            f"{path.name}: {line}"
            for path in sorted(self.directory.glob("*.said"))
            for line in path.read_text(errors="replace").splitlines()
            if "[error" in line or "never retrieved" in line
        ]

    def end(self) -> None:
        for process in self.processes.values():
            if process.running:
                process.send(signal.SIGKILL)
                process.wait()
