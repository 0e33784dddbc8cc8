"""What is measured: each function takes one measure and gives the rows that compare it with the peers."""

import statistics
from collections.abc import Callable
from functools import partial

from bench import loadgen
from bench.hub import BYTES, JSON, Hub
from bench.machine import BenchError, forget_peak, memory_kb
from bench.peers import Nats, Nchan, Nginx, Redis, RedisDurable
from bench.process import Server
from bench.turns import Bench, Contenders, Result, Row


def fan(server: Server, *options: object) -> Result:
    """Run `fanload` against a server; later options win over those that are the server's."""
    mode, follow, publish = server.fan_out
    result = loadgen.run(
        "fanload", "-m", mode, "-p", server.port, "-s", follow, "-u", publish, "-P", server.pids, *options
    )
    if not result["ok"]:
        raise BenchError(f"{result['received']:.0f} deliveries of {result['messages']:.0f} messages, "
                         f"{result['refused']:.0f} publishes refused")  # fmt: skip
    return result


def _fan_out(bench: Bench, measure: str, peers: list[type[Server]], durability: str, *options: object) -> None:
    def theirs(peer: type[Server]) -> Result:
        with peer(bench.fresh(peer.name)) as server:
            return fan(server, *options)

    def ours() -> Result:
        with Hub(bench.fresh(Hub.name), memory=durability == "memory") as hub:
            hub.create(["t"], JSON, durability)
            return fan(hub, *options)

    contenders = {peer.name: (peer, partial(theirs, peer)) for peer in peers}
    bench.take_turns(measure, contenders | {Hub.name: (Hub, ours)})


def fan_out_single(bench: Bench) -> list[Row]:
    """SSE to 1,000 followers of a memory stream, one message at a time: server CPU per delivery, in us.

    The next message is published when every follower has the last one, so nothing can be put together.
    """
    name, scale = "fan-out-single", bench.scale
    one = ("-c", 1, "-w", 1, "-d", scale.seconds)
    _fan_out(bench, name, [Nchan, Redis], "memory", "-n", scale.followers, *one)
    what = f"SSE to {scale.followers:,} followers, one message at a time"
    return [
        bench.row(name, what, "cpu_us", "us CPU/delivery", target=0.8, at_most=True, peer=Nchan.name),
        bench.row(name, what, "cpu_us", "us CPU/delivery", target=1.0, at_most=True, peer=Redis.name),
    ]


def fan_out_burst(bench: Bench) -> list[Row]:
    """SSE to 1,000 followers of a memory stream, 16 publishers without pause: deliveries per second."""
    name, scale = "fan-out-burst", bench.scale
    peers: list[type[Server]] = [Nchan, Redis, Nats]
    _fan_out(bench, name, peers, "memory", "-n", scale.followers, "-c", 16, "-w", 64, "-d", scale.seconds)
    what = f"SSE to {scale.followers:,} followers, 16 publishers"
    return [
        bench.row(name, what, "del_s", "deliveries/s", target=target, peer=peer)
        for peer, target in ((Nchan.name, 10.0), (Redis.name, 1.5), (Nats.name, 1.5))
    ]


def fan_out_durable(bench: Bench) -> list[Row]:
    """The same on a stream that is fsynced before a publisher is answered; the peer keeps memory only."""
    name, scale = "fan-out-durable", bench.scale
    _fan_out(bench, name, [Nchan], "fsync", "-n", scale.followers, "-c", 16, "-w", 64, "-d", scale.seconds)
    what = f"the same, every message fsynced (Nchan: memory), {scale.followers:,} followers"
    return [bench.row(name, what, "del_s", "deliveries/s", target=3.0, peer=Nchan.name)]


def slow_follower(bench: Bench) -> list[Row]:
    """SSE to 1,000 followers, one message of 8 KiB at a time, without and with 20 more that never read: the p99 of
    the others' latency, and what the hub holds for each that never reads. Those read in the end, and get it all.
    """
    name, scale = "slow-follower", bench.scale
    alone, beside = "Wayside, all read", f"Wayside, {scale.followers_slow} never read"
    message_bytes = 8 << 10
    messages = int(500 * scale.seconds)  # 1,500 are 11.7 MiB; the kernel holds up to 4 MiB for a connection (tcp_wmem)

    def take(slow: int) -> Result:
        with Hub(bench.fresh(Hub.name), memory=True) as hub:
            hub.create(["t"], JSON, "memory")
            result = fan(hub, "-n", scale.followers, "-c", 1, "-w", 1, "-M", messages, "-b", message_bytes, "-S", slow)
            return result | {"growth_b": (result["rss_end_kb"] - result["rss_idle_kb"]) * 1024}

    contenders: Contenders = {alone: (Hub, lambda: take(0)), beside: (Hub, lambda: take(scale.followers_slow))}
    bench.take_turns(name, contenders)
    growths = zip(bench.figures(name, alone, "growth_b"), bench.figures(name, beside, "growth_b"), strict=False)
    held = [(with_slow - without) / scale.followers_slow for without, with_slow in growths]
    what = f"SSE to {scale.followers:,} followers beside {scale.followers_slow} that never read"
    return [
        bench.row(name, what + ": p99 of the others", "p99_us", "us", target=1.2, at_most=True, ours=beside, peer=alone),
        Row(measure=name, what=what + ": memory of each slow one", unit="bytes", target=512 << 10, at_most=True,
            ours=held),
    ]  # fmt: skip


def append(bench: Bench) -> list[Row]:
    """Durable appends per second behind HTTP: each of 256 connections has one append in flight.

    Once all to one stream, once spread evenly over 1,000 streams. The peer is Redis XADD to one stream
    with its file flushed before every reply.
    """
    name, scale = "append", bench.scale
    one, many = "Wayside, one stream", f"Wayside, {scale.streams:,} streams"
    load = (scale.appenders, scale.append_bytes, scale.seconds)

    def checked(result: Result) -> Result:
        if result["errors"]:
            raise BenchError(f"{result['errors']:.0f} appends refused")
        return result

    def redis() -> Result:
        with RedisDurable(bench.fresh(RedisDurable.name)) as server:
            return checked(loadgen.run("ackload", "redis", server.port, *load, server.pids))

    def ours(streams: int) -> Result:
        with Hub(bench.fresh(Hub.name)) as hub:
            hub.create([f"t{i}" for i in range(streams)], BYTES, "fsync")
            path = "/v1/stream/t%d"
            return checked(loadgen.run("ackload", "http", hub.port, *load, hub.pids, path, streams))

    bench.take_turns(name, {
        RedisDurable.name: (RedisDurable, redis), one: (Hub, lambda: ours(1)),
        many: (Hub, lambda: ours(scale.streams)),
    })  # fmt: skip
    what = f"durable append, {scale.appenders} publishers, {scale.append_bytes} B, "
    return [
        bench.row(name, what + "one stream", "per_s", "appends/s", target=0.8, ours=one,
                  peer=RedisDurable.name),
        bench.row(name, what + f"{scale.streams:,} streams", "per_s", "appends/s",
                  target=0.6, ours=many, peer=one),
    ]  # fmt: skip


def catch_up_small(bench: Bench) -> list[Row]:
    """GET of a stream that holds 1 KiB, over 64 kept-alive connections; nginx serves a 1 KiB file."""
    name, scale = "catch-up-small", bench.scale
    size = 1024

    def checked(result: Result) -> Result:
        if result["errors"] or result["body_bytes"] < size:
            raise BenchError(f"{result['errors']:.0f} refused, replies of {result['body_bytes']:.0f} bytes")
        return result

    def get(server: Server, path: str) -> Result:
        return checked(loadgen.run("getload", "small", server.port, path, scale.getters, scale.seconds, server.pids))

    def nginx() -> Result:
        with Nginx(bench.fresh(Nginx.name)) as server:
            (server.www / "small").write_bytes(b"x" * size)
            return get(server, "/small")

    def ours() -> Result:
        with Hub(bench.fresh(Hub.name)) as hub:
            hub.create(["small"], BYTES, "fsync")
            hub.fill("small", size)
            return get(hub, "/v1/stream/small?offset=-1")

    bench.take_turns(name, {Nginx.name: (Nginx, nginx), Hub.name: (Hub, ours)})
    what = f"GET of a 1 KiB stream, {scale.getters} connections (nginx: a file)"
    return [bench.row(name, what, "per_s", "requests/s", target=0.4, peer=Nginx.name)]


def catch_up_large(bench: Bench) -> list[Row]:
    """One connection reads a stream of 1 GiB from its beginning, against nginx serving a file of 1 GiB.

    Also the growth of the hub's resident memory at its peak meanwhile: it must not follow the stream's size.
    """
    name, scale = "catch-up-large", bench.scale
    size = scale.large_bytes
    growth_mib_max = 64.0

    def get(server: Server, path: str, offset: str) -> Result:
        pids = [int(pid) for pid in server.pids.split(",")]
        forget_peak(pids)
        before = memory_kb(pids)
        result = loadgen.run("getload", "whole", server.port, path, offset, server.pids)
        if result["bytes"] != size:
            raise BenchError(f"read {result['bytes']:.0f} bytes of {size}")
        peak = memory_kb(pids, "VmHWM")
        return result | {
            "rss_before_mib": before / 1024, "rss_peak_mib": peak / 1024, "growth_mib": (peak - before) / 1024
        }  # fmt: skip

    server, hub = Nginx(bench.fresh(Nginx.name)), Hub(bench.fresh(Hub.name))
    prepared: dict[str, Server] = {}

    def nginx() -> Result:
        if server.name not in prepared:
            prepared[server.name] = server.__enter__()
            with (server.www / "large").open("wb") as file:
                for _ in range(size >> 20):
                    file.write(b"x" * (1 << 20))
        return get(server, "/large", "-")

    def ours() -> Result:
        if hub.name not in prepared:
            prepared[hub.name] = hub.__enter__()
            hub.create(["large"], BYTES, "fsync")
            hub.fill("large", size)
        return get(hub, "/v1/stream/large", "-1")

    try:
        bench.take_turns(name, {Nginx.name: (Nginx, nginx), Hub.name: (Hub, ours)})
    finally:
        for each in prepared.values():
            each.__exit__(None, None, None)
    peaks = bench.figures(name, Hub.name, "rss_peak_mib")
    befores = bench.figures(name, Hub.name, "rss_before_mib")
    note = f"RSS {befores[0]:.0f} MiB before, {max(peaks):.0f} MiB at its peak" if peaks else ""
    what = f"GET of a {size >> 20:,} MiB stream, one connection"
    return [
        bench.row(name, what + " (nginx: a file)", "mb_s", "MB/s", target=0.3, peer=Nginx.name),
        bench.row(name, what + ": growth of RSS", "growth_mib", "MiB", target=growth_mib_max, at_most=True,
                  note=note),
    ]  # fmt: skip


def idle_followers(bench: Bench) -> list[Row]:
    """10,000 SSE followers connect and idle for a second: memory of each. Then one message: all must get it.

    Memory is the difference of resident memory over the number of connections: the kernel's socket buffers
    are not in it. The peers' memory is told beside it.
    """
    name, scale = "idle-followers", bench.scale
    peers: list[type[Server]] = [Nchan, Redis, Nats]
    _fan_out(bench, name, peers, "memory", "-n", scale.followers_idle, "-c", 1, "-M", 1, "-i", 1)
    memory = {peer.name: bench.figures(name, peer.name, "rss_per_conn_b") for peer in peers}
    others = ", ".join(f"{peer} {statistics.median(each):,.0f}" for peer, each in memory.items() if each)
    last_us = bench.figures(name, Hub.name, "max_us")
    last = f"the last after {statistics.median(last_us) / 1000:.0f} ms" if last_us else ""
    what = f"{scale.followers_idle:,} idle SSE followers"
    return [
        bench.row(name, what + ": memory of each", "rss_per_conn_b", "bytes", target=4096, at_most=True,
                  note=others),
        bench.row(name, what + ", then one message: reached", "received", "followers",
                  target=scale.followers_idle, note=last),
    ]  # fmt: skip


MEASURES: dict[str, Callable[[Bench], list[Row]]] = {
    "fan-out-single": fan_out_single,
    "fan-out-burst": fan_out_burst,
    "fan-out-durable": fan_out_durable,
    "slow-follower": slow_follower,
    "append": append,
    "catch-up-small": catch_up_small,
    "catch-up-large": catch_up_large,
    "idle-followers": idle_followers,
}
