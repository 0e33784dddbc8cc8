"""A hub and its workers as processes, and what is done to them at random moments."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path

import httpx

from tests.crash.calls_app import LEASE_S
from tests.support.killed import client_of_killed
from tests.support.processes import ROOT, free_port

START_S = 60.0
"""What a process may take to start on a busy machine."""
PAUSE_S = (0.1, 0.7)
"""Between one blow and the next."""
BLOWS = {"hub killed": 8, "hub ended": 1, "hub stopped": 1, "worker killed": 8, "worker ended": 3, "worker stopped": 4}
"""How often each, in proportion: SIGKILL, SIGTERM, and SIGSTOP for longer than the lease."""
KILLS = ("killed", "ended")
CRASHED = 77
"""Exit status of a worker that ended itself on purpose."""


class Process:
    """One process; what it says goes to a file."""

    def __init__(self, said: Path, app: str, *arguments: str) -> None:
        self.said = said
        command = [sys.executable, "-m", app, *arguments]
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

    @property
    def crashed(self) -> bool:
        """Whether it ended itself on purpose."""
        return self._process.poll() == CRASHED

    def named(self, name: str) -> bool:
        """Whether a name has its number in it."""
        return f"-{self.pid}-" in name

    async def ended(self) -> None:
        while self.running:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.01)

    async def serves(self, url: str) -> None:
        """Wait until a hub answers there, which is this process."""
        async with asyncio.timeout(START_S), client_of_killed() as client:
            while True:
                self.require_alive()
                try:
                    if (await client.get(f"{url}/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)

    def require_alive(self) -> None:
        assert self.running or self.killed, f"{self.said.name} ended by itself:\n{self.said.read_text()[-4000:]}"


class Stage:
    """The processes. A hub keeps its port, a worker that was killed is replaced by another."""

    app = "tests.crash.calls_app"
    """What they run."""
    actor = "worker"
    lease_s = LEASE_S

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
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.hub = self._spawn_hub()
        self.workers = [self._spawn_worker(place) for place in range(workers)]
        self._busy: set[Process] = set()
        """Those to which something is being done."""

    @property
    def kills(self) -> int:
        return sum(count for blow, count in self.blows.items() if blow.endswith(KILLS))

    def _spawn_hub(self) -> Process:
        number = next(self._numbers)
        return self._spawn(f"hub-{number}", "hub", str(self.directory / "data"), str(self.port))

    def _spawn_worker(self, place: int) -> Process:
        number = next(self._numbers)
        return self._spawn(f"{self.actor}-{number}", self.kind(place), self.url)

    def kind(self, _place: int) -> str:
        """What the worker is that stands in a place."""
        return "worker"

    def _spawn(self, name: str, *arguments: str) -> Process:
        notes = self.directory / f"{name}.executions"
        process = Process(self.directory / f"{name}.said", self.app, *arguments, str(notes))
        self.processes[process.pid] = process
        return process

    async def ready(self) -> None:
        """Wait until the hub answers."""
        await self.hub.serves(self.url)

    async def blow(self) -> None:
        """Do something to somebody, and go on when there is a hub again."""
        moments = self._moments
        await asyncio.sleep(moments.uniform(*PAUSE_S))
        self.tend()
        for process in (self.hub, *self.workers):
            process.require_alive()
        blow = moments.choices(list(BLOWS), list(BLOWS.values()))[0]
        who, what = blow.split()
        number = {"killed": signal.SIGKILL, "ended": signal.SIGTERM, "stopped": signal.SIGSTOP}[what]
        if who == "worker":
            free = [worker for worker in self.workers if worker not in self._busy]
            if free:
                self.blows[f"{self.actor} {what}"] += 1
                worker = moments.choice(free)
                worker.send(number)
                self._keep(self._stopped(worker) if what == "stopped" else self._replaced(worker))
            return
        self.blows[blow] += 1
        self.hub.send(number)
        if what == "stopped":
            began_ms = time.time_ns() // 1_000_000
            await asyncio.sleep(moments.uniform(0.3, 1.5) * self.lease_s)
            self.hub.send(signal.SIGCONT)
            self.pauses_ms.append((began_ms, time.time_ns() // 1_000_000))
            return
        await self.hub.ended()
        while True:
            await asyncio.sleep(moments.choice((0.0, 0.2, 1.5 * self.lease_s)))
            self.hub = self._spawn_hub()
            if moments.random() > 0.15:
                break
            await asyncio.sleep(moments.uniform(0, 1))  # it is killed while it starts
            self.blows["hub killed"] += 1
            self.hub.send(signal.SIGKILL)
            await self.hub.ended()
        await self.ready()

    def tend(self) -> None:
        """Replace those that ended themselves."""
        for worker in self.workers:
            if worker.crashed and worker not in self._busy:
                worker.killed = True
                self._busy.add(worker)
                self.blows[f"{self.actor} crashed"] += 1
                self._keep(self._replaced(worker))

    def why_lost(self, pid: int, at_ms: int) -> str:
        """Why an attempt of a worker was lost at that time."""
        struck_ms = self.processes[pid].struck_ms
        if 0 < struck_ms <= at_ms:
            return "worker lost"
        if any(began_ms <= at_ms <= ended_ms + 1000 * self.lease_s for began_ms, ended_ms in self.pauses_ms):
            return "hub stopped"
        return "lease missed"

    def _keep(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stopped(self, worker: Process) -> None:
        self._busy.add(worker)
        await asyncio.sleep(self._moments.uniform(1.2, 2.0) * self.lease_s)
        worker.send(signal.SIGCONT)
        self._busy.discard(worker)

    async def _replaced(self, worker: Process) -> None:
        self._busy.add(worker)
        await worker.ended()
        await asyncio.sleep(self._moments.choice((0.0, 0.3, 1.5)))
        place = self.workers.index(worker)
        self.workers[place] = self._spawn_worker(place)
        self._busy.discard(worker)

    async def calm(self) -> None:
        """Wait until everybody is up again."""
        self.tend()
        while self._tasks:
            await asyncio.gather(*self._tasks)
        await self.ready()

    async def dismiss(self) -> None:
        """Have all workers end in order."""
        await self.calm()
        for worker in self.workers:
            if worker.running:
                worker.send(signal.SIGTERM)
        async with asyncio.timeout(START_S):
            for worker in self.workers:
                await worker.ended()

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
