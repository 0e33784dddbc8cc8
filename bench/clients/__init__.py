"""The contenders of the call measures: each module holds a handler, and the program that calls it.

Each runs as ``python -m bench.clients.NAME COUNT SECONDS [HOW]`` in a process of its own, pinned to the load
generator's core, with the server's address in $BENCH_URL, and prints the one JSON object that `run` gives back. A client that is asyncio runs on uvloop.
Where a peer leaves the encoding of values to its user, it gets the fastest there is, msgspec.
"""

import json
import subprocess
import sys

from bench.hub import ROOT
from bench.machine import LOAD_CORE, BenchError

RUN_S_MAX = 120


def python(url: str, *arguments: object) -> list[str]:
    """This Python with these arguments, able to import `bench` from whatever folder it runs in."""
    variables = [f"PYTHONPATH={ROOT}", "PYTHONUNBUFFERED=1", f"BENCH_URL={url}"]
    return ["env", *variables, sys.executable, *map(str, arguments)]


def run(name: str, url: str, count: int, seconds: float, *how: object) -> dict[str, float]:
    """Call with `count` in flight for `seconds`; what it measured. Raises `BenchError` with its words."""
    pinned = ["taskset", "-c", str(LOAD_CORE), *python(url, "-m", f"bench.clients.{name}", count, seconds, *how)]
    try:
        done = subprocess.run(pinned, capture_output=True, text=True, timeout=RUN_S_MAX)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{name}: not done after {RUN_S_MAX} s") from error
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode:
        raise BenchError(f"{name}: {said}")
    measured: dict[str, float] = json.loads(done.stdout)
    if measured["errors"]:
        raise BenchError(f"{name}: {measured['errors']:.0f} calls failed, such as {said}")
    return measured
