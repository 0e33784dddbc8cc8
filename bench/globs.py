"""What a subscription to many streams by a glob costs: to connect, and to whoever appends elsewhere."""

import http.client
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bench import loadgen
from bench.hub import BYTES, Hub
from bench.machine import BenchError
from bench.turns import Bench, Result, Row

#: Connections that make the streams.
MAKERS = 16


def _connect(port: int) -> tuple[http.client.HTTPConnection, float]:
    """Follow all streams under ``many/`` from now on by server-sent events; the milliseconds until that is so."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.perf_counter()
    connection.request("GET", "/v1/stream/many/**?offset=now", headers={"Accept": "text/event-stream"})
    answer = connection.getresponse()
    if answer.status != 200 or not answer.read(1):
        raise BenchError(f"the glob was answered {answer.status}")
    return connection, (time.perf_counter() - began) * 1000


def globs(bench: Bench) -> list[Row]:
    """10,000 streams on disk, of a record each: the time until one SSE follows them all, the first time and again after a restart; and
    durable appends per second to a stream elsewhere, without and beside that follower."""
    name, scale = "globs", bench.scale
    paths = [f"many/{number}" for number in range(scale.glob_streams)]
    load = (scale.appenders, scale.append_bytes, scale.seconds)
    alone, beside = "Wayside, no glob", "Wayside, beside a glob"

    def append(hub: Hub) -> Result:
        result = loadgen.run("ackload", "http", hub.port, *load, hub.pids, "/v1/stream/elsewhere", 1)
        if result["errors"]:
            raise BenchError(f"{result['errors']:.0f} appends refused")
        return result

    def once(*, followed: bool) -> Result:
        result: Result = {}
        with Hub(bench.fresh(Hub.name)) as hub:
            with ThreadPoolExecutor(MAKERS) as makers:
                list(makers.map(lambda first: hub.create(paths[first::MAKERS], BYTES, "fsync", b"x"), range(MAKERS)))
            hub.create(["elsewhere"], BYTES, "fsync")
            if followed:
                connection, result["first_ms"] = _connect(hub.port)
            result |= append(hub)
            if followed:
                connection.close()
                hub.stop()
                with hub:  # what it has written is still there
                    connection, result["again_ms"] = _connect(hub.port)
                    connection.close()
        return result

    bench.take_turns(name, {
        alone: (Hub, lambda: once(followed=False)), beside: (Hub, lambda: once(followed=True)),
    })  # fmt: skip
    what = f"glob over {scale.glob_streams:,} streams"
    return [
        bench.row(name, what + ", first use: connects in", "first_ms", "ms", target=1000, at_most=True, ours=beside),
        bench.row(name, what + ", after a restart: connects in", "again_ms", "ms", target=1000, at_most=True,
                  ours=beside),
        bench.row(name, what + ": appends elsewhere", "per_s", "appends/s", target=0.95, ours=beside, peer=alone),
    ]  # fmt: skip


MEASURES: dict[str, Callable[[Bench], list[Row]]] = {"globs": globs}
