"""What is measured of service calls, and of publishing from Python: against what Python has for the purpose.

Other than in `measures`, the client is part of what is measured: a Python program on the load generator's core.
"""

import statistics
from collections.abc import Callable
from functools import partial

from bench import clients
from bench.callers import (
    CeleryWorker,
    DramatiqWorker,
    FastApi,
    HubWorker,
    NatsResponder,
    NatsStreams,
    RedisStreams,
    TaskiqWorker,
)
from bench.hub import JSON, Hub
from bench.measures import fan
from bench.process import Server
from bench.turns import Bench, Contenders, Result, Row

#: The client program of each contender, and what it is to do.
CLIENTS: dict[type[Server], tuple[str, ...]] = {
    FastApi: ("via_fastapi",),
    NatsResponder: ("via_nats", "call"),
    CeleryWorker: ("via_celery",),
    DramatiqWorker: ("via_dramatiq",),
    TaskiqWorker: ("via_taskiq",),
    NatsStreams: ("via_nats", "publish", "memory"),
    RedisStreams: ("via_redis",),
}


def _load(bench: Bench, server: Server, count: int, program: str, *how: str) -> Result:
    with server:
        return clients.run(program, server.url, count, bench.scale.seconds, *how)


def _peers(bench: Bench, count: int, *peers: type[Server]) -> Contenders:
    def once(peer: type[Server]) -> Result:
        return _load(bench, peer(bench.fresh(peer.name)), count, *CLIENTS[peer])

    return {peer.name: (peer, partial(once, peer)) for peer in peers}


def call_latency_local(bench: Bench) -> list[Row]:
    """One call at a time of a handler in the server's own process, which returns its argument of 100 B: p50."""
    name = "call-latency-local"

    def ours() -> Result:
        hub = Hub(bench.fresh(Hub.name), memory=True, services=True)
        return _load(bench, hub, 1, "via_wayside", "call")

    bench.take_turns(name, {**_peers(bench, 1, FastApi), Hub.name: (Hub, ours)})
    what = "call, handler in the hub (FastAPI: with aiohttp), one at a time: p50"
    return [bench.row(name, what, "p50_us", "us", target=0.6, at_most=True, peer=FastApi.name)]


def _take_worker_turns(bench: Bench, measure: str, count: int, *peers: type[Server]) -> None:
    def ours() -> Result:
        return _load(bench, HubWorker(bench.fresh(Hub.name), memory=True), count, "via_wayside", "call")

    bench.take_turns(measure, {**_peers(bench, count, *peers), Hub.name: (HubWorker, ours)})


def call_latency_worker(bench: Bench) -> list[Row]:
    """The same with the handler in a worker's process, against a responder behind core NATS."""
    name = "call-latency-worker"
    _take_worker_turns(bench, name, 1, NatsResponder)
    what = "call, handler in a worker, one at a time: p50"
    return [bench.row(name, what, "p50_us", "us", target=1.3, at_most=True, peer=NatsResponder.name)]


def call_throughput(bench: Bench) -> list[Row]:
    """Calls completed per second with 64 in flight from one client, the handler in a worker's process.

    FastAPI's handler is in its own process, as it has no workers.
    """
    name, count = "call-throughput", bench.scale.in_flight
    _take_worker_turns(bench, name, count, FastApi, CeleryWorker, NatsResponder)
    what = f"call, handler in a worker, {count} in flight"
    return [
        bench.row(name, what, "per_s", "calls/s", target=target, peer=peer)
        for peer, target in ((FastApi.name, 1.5), (CeleryWorker.name, 20.0), (NatsResponder.name, 0.6))
    ]


def call_durable(bench: Bench) -> list[Row]:
    """Asynchronous calls completed per second with 64 in flight: fsynced before they are accepted, and again before
    their result is shown. The peer is the fastest of three task queues, whose Redis keeps memory only.
    """
    name, count = "call-durable", bench.scale.in_flight
    peers: list[type[Server]] = [CeleryWorker, DramatiqWorker, TaskiqWorker]

    def ours() -> Result:
        return _load(bench, HubWorker(bench.fresh(Hub.name)), count, "via_wayside", "submit")

    bench.take_turns(name, {**_peers(bench, count, *peers), Hub.name: (HubWorker, ours)})
    figures = {peer.name: bench.figures(name, peer.name, "per_s") for peer in peers}
    medians = {peer: statistics.median(each) for peer, each in figures.items() if each}
    fastest = max(medians, key=lambda peer: medians[peer]) if medians else CeleryWorker.name
    problems = [bench.problems[name, peer] for peer in figures if peer != fastest and (name, peer) in bench.problems]
    others = [f"{peer} {figure:,.0f}" for peer, figure in medians.items() if peer != fastest]
    what = f"durable call, handler in a worker, {count} in flight (peer: in memory)"
    note = "; ".join(dict.fromkeys([*others, *problems] if bench.scale.peers else []))
    return [bench.row(name, what, "per_s", "calls/s", target=4.0, peer=fastest, note=note)]


def publish_confirm(bench: Bench) -> list[Row]:
    """Publishing 100 B from Python with 64 in flight, each confirmed: to a stream in memory, and to an fsynced one."""
    name, count = "publish-confirm", bench.scale.in_flight
    memory, fsync = "Wayside, memory", "Wayside, fsync"

    def ours(durability: str) -> Result:
        hub = Hub(bench.fresh(Hub.name), memory=durability == "memory")
        return _load(bench, hub, count, "via_wayside", "publish", durability)

    bench.take_turns(name, {
        **_peers(bench, count, NatsStreams), memory: (Hub, lambda: ours("memory")),
        **_peers(bench, count, RedisStreams), fsync: (Hub, lambda: ours("fsync")),
    })  # fmt: skip
    what = f"publish from Python, {count} in flight, "
    return [
        bench.row(name, what + "memory", "per_s", "records/s", target=1.0, ours=memory, peer=NatsStreams.name),
        bench.row(name, what + "fsynced", "per_s", "records/s", target=1.3, ours=fsync, peer=RedisStreams.name),
    ]


def call_progress(bench: Bench) -> list[Row]:
    """Progress of one call to 1,000 SSE followers of it, one event at a time: server CPU per delivery, against the
    same messages published to a stream. Each event is reported by a call of its own, answered before the next.
    """
    name, scale = "call-progress", bench.scale
    stream, progress = "Wayside, a stream", "Wayside, progress of a call"
    options = ("-n", scale.followers, "-c", 1, "-w", 1, "-d", scale.seconds)

    def take(what: str) -> Result:
        with Hub(bench.fresh(Hub.name), memory=True, services=what == progress) as hub:
            if what == progress:
                return fan(hub, "-s", hub.submit("relay"), "-u", "/v1/service/tick", *options)
            hub.create(["t"], JSON, "memory")
            return fan(hub, *options)

    bench.take_turns(name, {each: (Hub, partial(take, each)) for each in (stream, progress)})
    what = f"progress of a call to {scale.followers:,} SSE followers, one event at a time"
    return [bench.row(name, what, "cpu_us", "us CPU/delivery", target=1.2, at_most=True, ours=progress, peer=stream)]


MEASURES: dict[str, Callable[[Bench], list[Row]]] = {
    "call-latency-local": call_latency_local,
    "call-latency-worker": call_latency_worker,
    "call-throughput": call_throughput,
    "call-durable": call_durable,
    "publish-confirm": publish_confirm,
    "call-progress": call_progress,
}
