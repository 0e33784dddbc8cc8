"""Builds the C load generators on demand, and runs one pinned to the load generator's core.

Knows nothing of servers: it takes arguments and gives back the one JSON object that a generator prints.
"""

import json
import shutil
import subprocess
from pathlib import Path

from bench.machine import LOAD_CORE, BenchError

SOURCE = Path(__file__).parent
BUILD = SOURCE.parent / ".build"
RUN_S_MAX = 180  # a generator ends by itself at 90 s; connecting and draining come on top


def build(name: str) -> Path:
    """The program of ``loadgen/<name>.c``, compiled when a source is newer than it."""
    program = BUILD / name
    sources = [SOURCE / f"{name}.c", SOURCE / "common.h"]
    if program.exists() and program.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("the load generators need a C compiler: install gcc")
    BUILD.mkdir(exist_ok=True)
    subprocess.run([compiler, "-O2", "-o", str(program), str(sources[0])], check=True)
    return program


def run(name: str, *arguments: object) -> dict[str, float]:
    """Run a generator; what it measured. Raises `BenchError` with its words when it fails."""
    command = ["taskset", "-c", str(LOAD_CORE), str(build(name)), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S_MAX)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{name}: not done after {RUN_S_MAX} s") from error
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BenchError(f"{name}: {words[-1]}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured
