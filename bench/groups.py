"""What is measured of groups: one Python consumer that acks every record, against what Python has for the purpose.

The broker and the consumer share the server's core; the publisher is on the other.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

from bench import clients, loadgen
from bench.callers import Worker
from bench.clients import python
from bench.hub import BYTES, Hub
from bench.machine import LOAD_CORE, BenchError, memory_kb
from bench.peers import Nats, Peer, Redis, RedisDurable
from bench.process import Server, free_port, program
from bench.turns import Bench, Contenders, Result, Row

CONSUMED_S_MAX = 120.0
RATE = 2000
"""Records a second at which latency is measured."""


class JetStream(Nats):
    """NATS with JetStream, whose streams are files; it does not flush each message to the disk."""

    name = "NATS JetStream"

    def command(self) -> list[str]:
        return [*super().command(), "--jetstream", "--store_dir", str(self.folder)]


class Rabbit(Peer):
    """RabbitMQ on one scheduler, a node of its own with a port mapper of its own."""

    name = "RabbitMQ"
    executable = "rabbitmq-server"
    scheme = "amqp"

    @classmethod
    def version(cls) -> str:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f=${Version}", "rabbitmq-server"], capture_output=True, text=True
        )  # fmt: skip
        return f"RabbitMQ {done.stdout.partition('-')[0]}"

    @classmethod
    def _path(cls) -> str:
        return (
            program("/usr/lib/rabbitmq/bin/rabbitmq-server") or cls.executable
        )  # not the wrapper that changes the user

    def command(self) -> list[str]:
        self._mapper = free_port()
        (self.folder / "plugins").write_text("[].\n")
        settings = {
            "HOME": self.folder, "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": self._mapper,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": free_port(), "RABBITMQ_NODENAME": f"bench{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": self.folder / "mnesia", "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins", "RABBITMQ_CONF_ENV_FILE": self.folder / "none",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
        }  # fmt: skip
        return ["env", *(f"{name}={value}" for name, value in settings.items()), self._path()]

    def ready(self) -> bool:
        return "Server startup complete" in self.log()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def stop(self) -> None:
        super().stop()
        epmd = program("epmd")
        if epmd and hasattr(self, "_mapper"):
            subprocess.run([epmd, "-kill"], env={**os.environ, "ERL_EPMD_PORT": str(self._mapper)}, capture_output=True)


class Consumer(Worker):
    """A consumer, and the broker that it takes from. With ``preloaded`` the records are there before it begins."""

    broker_type: ClassVar[type[Server]] = Redis
    packages: ClassVar[tuple[str, ...]] = ()
    program: ClassVar[str]
    how: ClassVar[tuple[str, ...]] = ("consume",)
    #: Of those after the count.
    extra: ClassVar[tuple[object, ...]] = ()
    #: What one turn takes: about three seconds of it, for the fastest.
    share: ClassVar[float] = 1.0

    def __init__(self, folder: Path, count: int, *, preloaded: bool) -> None:
        super().__init__(folder)
        self.count = count
        self._preloaded = preloaded

    def command(self) -> list[str]:
        return python(self.url, "-m", f"bench.clients.{self.program}", *self.how, self.count, *self.extra)

    def run(self, *words: object) -> None:
        """A client program on the load generator's core."""
        told = ["taskset", "-c", str(LOAD_CORE), *python(self.url, "-m", f"bench.clients.{self.program}", *words)]
        done = subprocess.run(told, capture_output=True, text=True, timeout=clients.RUN_S_MAX)
        if done.returncode:
            raise BenchError(f"{self.program}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")

    def __enter__(self) -> Self:
        self.broker.__enter__()
        try:
            self.run("prepare")
            if self._preloaded:
                self.run("feed", self.count, 0)
            Server.__enter__(self)
        except BaseException:
            self.broker.stop()
            raise
        return self

    def figures(self) -> Result:
        """What the consumer prints in the end."""
        deadline = time.monotonic() + CONSUMED_S_MAX
        while time.monotonic() < deadline:
            for line in self.log().splitlines():
                if line.startswith("{"):
                    found: Result = json.loads(line)
                    return found
            assert self._process is not None
            if self._process.poll() not in (None, 0):
                raise BenchError(f"{self.name}: {(self.log().strip().splitlines() or ['it printed nothing'])[-1]}")
            time.sleep(0.05)
        raise BenchError(f"{self.name}: not done after {CONSUMED_S_MAX:.0f} s")


class JetStreamConsumer(Consumer):
    """nats-py: a durable pull consumer, 500 messages a fetch."""

    name = "nats-py, JetStream"
    broker_type, packages, program = JetStream, ("nats-py",), "groups_nats"
    share = 0.5


class AioPikaConsumer(Consumer):
    """aio-pika on a quorum queue, 500 prefetched."""

    name = "aio-pika, quorum queue"
    broker_type, packages, program = Rabbit, ("aio-pika",), "groups_rabbit"
    share = 0.1


class FastStreamConsumer(Consumer):
    """FastStream on the same."""

    name = "FastStream, quorum queue"
    broker_type, packages, program = Rabbit, ("faststream", "aio-pika"), "groups_rabbit"
    how = ("consume-faststream",)
    share = 0.1


class RedisConsumer(Consumer):
    """redis-py on a Redis stream, appendfsync always, one XACK for 100 entries."""

    name = "redis-py, XACK of 100, always"
    broker_type, packages, program = RedisDurable, ("redis",), "groups_redis"
    extra = (100,)


class RedisSingleConsumer(RedisConsumer):
    """The same with one XACK for each."""

    name = "redis-py, one XACK each, always"
    extra = (1,)
    share = 0.05


class WaysideConsumer(Consumer):
    """Our Python client; the stream is fsynced, and so are deliveries and acks."""

    name = Hub.name
    broker_type, packages, program = Hub, (), "groups_wayside"


def _consume(bench: Bench, kind: type[Consumer], *, rate: int) -> Result:
    scale = bench.scale
    count = int(scale.seconds * rate) if rate else max(200, int(scale.group_records * kind.share))
    with kind(bench.fresh(kind.name), count, preloaded=not rate) as consumer:
        if rate:
            consumer.run("feed", count, rate)
        return consumer.figures()


def _turns(bench: Bench, name: str, rate: int, *kinds: type[Consumer]) -> None:
    contenders: Contenders = {kind.name: (kind, partial(_consume, bench, kind, rate=rate)) for kind in kinds}
    bench.take_turns(name, contenders)


def consume(bench: Bench) -> list[Row]:
    """Records that one Python consumer takes and acks per second, 100 B each, all of them there before it begins."""
    name = "group-consume"
    peers = (JetStreamConsumer, AioPikaConsumer, FastStreamConsumer, RedisConsumer, RedisSingleConsumer)
    _turns(bench, name, 0, *peers, WaysideConsumer)
    what = "one Python consumer, every record acked"
    targets = ((JetStreamConsumer, 1.7), (AioPikaConsumer, 7.0), (FastStreamConsumer, 7.0), (RedisConsumer, 0.7),
               (RedisSingleConsumer, 7.0))  # fmt: skip
    return [bench.row(name, what, "per_s", "records/s", target=target, peer=peer.name) for peer, target in targets]


def latency(bench: Bench) -> list[Row]:
    """From publishing to having a record, at 2,000 a second: p99."""
    name = "group-latency"
    _turns(bench, name, RATE, AioPikaConsumer, JetStreamConsumer, WaysideConsumer)
    what = f"from publisher to consumer, {RATE:,} records/s, fsynced: p99"
    return [
        bench.row(name, what, "p99_us", "us", target=target, at_most=True, peer=peer.name)
        for peer, target in ((AioPikaConsumer, 0.5), (JetStreamConsumer, 2.0))
    ]


def idle(bench: Bench) -> list[Row]:
    """Durable appends per second to a stream that one group, or 1,000 groups, read, none of which has a member now; and
    what the groups take of the hub's memory while it is appended to."""
    name, scale = "group-idle", bench.scale
    one, many = "Wayside, one group", f"Wayside, {scale.groups:,} groups"

    def ours(groups: int) -> Result:
        with Hub(bench.fresh(Hub.name)) as hub:
            hub.create(["t0"], BYTES, "fsync")
            hub.make_groups([f"g{number}" for number in range(groups)], "t0")
            pids = [int(pid) for pid in hub.pids.split(",")]
            before = memory_kb(pids)
            result = loadgen.run("ackload", "http", hub.port, scale.appenders, scale.append_bytes, scale.seconds, hub.pids,
                                 "/v1/stream/t%d", 1)  # fmt: skip
            if result["errors"]:
                raise BenchError(f"{result['errors']:.0f} appends refused")
            return result | {"growth_mib": (memory_kb(pids) - before) / 1024}

    bench.take_turns(name, {one: (Hub, lambda: ours(1)), many: (Hub, lambda: ours(scale.groups))})
    pairs = zip(bench.figures(name, many, "growth_mib"), bench.figures(name, one, "growth_mib"), strict=False)
    what = f"{scale.groups:,} idle groups on one stream"
    return [
        bench.row(name, what + ": durable append", "per_s", "appends/s", target=0.8, ours=many, peer=one),
        Row(measure=name, what=what + ": memory that they add to the growth", unit="MiB", target=16, at_most=True,
            ours=[with_many - with_one for with_many, with_one in pairs]),
    ]  # fmt: skip


MEASURES: dict[str, Callable[[Bench], list[Row]]] = {
    "group-consume": consume,
    "group-latency": latency,
    "group-idle": idle,
}
PEERS: tuple[type[Server], ...] = (Rabbit, AioPikaConsumer, FastStreamConsumer)
