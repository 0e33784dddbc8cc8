"""Operations: health, readiness, metrics (Prometheus), the OpenAPI document, the client for browsers, a page that says what
is here."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import resources
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from wayside.calls.queue import ServiceSpec
from wayside.calls.services import Calls
from wayside.core.engine import Statistics
from wayside.groups.registry import Groups
from wayside.server.exchange import Exchange, matches
from wayside.server.openapi.document import document
from wayside.streams.contract import Log
from wayside.streams.delayed import Delaying
from wayside.webhooks.subscriptions import Subscriptions

if TYPE_CHECKING:
    from wayside.server.http.listener import Server

_JSON = b"Content-Type: application/json\r\nCache-Control: no-store\r\n"
_TEXT = b"Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n"
_MODULE = b"Content-Type: text/javascript; charset=utf-8\r\nCache-Control: no-cache\r\nVary: Origin\r\n"
_SCRIPTS = ("wayside.js", "wayside/connection.js", "wayside/msgpack.js")
"""Of wayside.client.browser: a module and what it imports."""


class Observed(Log, Protocol):
    """A log that can be watched."""

    on_commit: Callable[[float, int], None] | None

    @property
    def failed(self) -> str | None: ...

    def statistics(self) -> Statistics: ...


class Buckets:
    """A histogram, as cheap as one comes."""

    def __init__(self, *bounds: float) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, text: str) -> Metric:
        """As Prometheus has it: cumulative."""
        labels = [*map(str, map(float, self._bounds)), "+Inf"]
        return HistogramMetricFamily(
            name,
            text,
            buckets=list(zip(labels, map(float, accumulate(self._counts)), strict=True)),
            sum_value=self._sum,
        )


class Operations:
    """What runs the hub beside its streams."""

    def __init__(
        self,
        log: Observed,
        version: str,
        calls: Calls,
        groups: Groups,
        delaying: Delaying,
        subscriptions: Subscriptions,
    ) -> None:
        self._log = log
        self._calls = calls
        self._groups = groups
        self._delaying = delaying
        self._subscriptions = subscriptions
        self._version = version
        self.server: Server | None = None
        self.ready = False
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._commit_s = Buckets(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5)
        self._commit_appends = Buckets(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
        log.on_commit = self._on_commit
        self._openapi = b""
        self._described: list[ServiceSpec] | None = None
        """What ``_openapi`` was made of."""
        self._pages: dict[str, Callable[[Exchange], None]] = {
            "/": self._index,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi_json,
            **{f"/{name}": partial(_script, name) for name in _SCRIPTS},
        }

    def find(self, path: str) -> Callable[[Exchange], None] | None:
        return self._pages.get(path)

    def _on_commit(self, seconds: float, appends: int) -> None:
        self._commit_s.observe(seconds)
        self._commit_appends.observe(appends)

    def _index(self, exchange: Exchange) -> None:
        text = (
            f"Wayside {self._version}\n\n"
            "Streams       /v1/stream/          list\n"
            "One stream    /v1/stream/NAME      PUT creates, POST appends, GET reads, HEAD tells, DELETE deletes\n"
            "Services      /v1/service/         list\n"
            "One service   /v1/service/NAME     POST calls it, GET tells\n"
            "Calls         /v1/call/            list\n"
            "One call      /v1/call/ID          GET reads, DELETE cancels; /v1/call/ID/result is the bare result\n"
            "Groups        /v1/group/           list\n"
            "One group     /v1/group/NAME       PUT makes it, GET tells, DELETE forgets it\n"
            "Its records   /v1/group/NAME/claim POST takes some, and settles them at /v1/group/NAME/ack\n"
            "Presence      /v1/presence/NAME    who follows a stream; GET with offset: joins and leaves\n"
            "Uploads       /v1/upload/          POST begins one (tus 1.0.0)\n"
            "Many at once  /v1/connect          a WebSocket\n"
            "Operations    /healthz  /readyz  /metrics  /openapi.json\n"
            "In a browser  /wayside.js            import { connect } from it\n"
        )
        exchange.respond(200, _TEXT, text.encode())

    def _healthz(self, exchange: Exchange) -> None:
        exchange.respond(200, _JSON, b'{"status":"ok"}')

    def _readyz(self, exchange: Exchange) -> None:
        reason = self._log.failed
        if reason is None and (not self.ready or (self.server is not None and self.server.draining)):
            reason = "stopping" if self.server is not None and self.server.draining else "starting"
        if reason is None:
            exchange.respond(200, _JSON, b'{"status":"ready"}')
        else:
            exchange.respond(503, _JSON, msgspec.json.encode({"status": "not ready", "reason": reason}))

    def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(
            200, b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n", generate_latest(self._registry)
        )

    def _openapi_json(self, exchange: Exchange) -> None:
        services = [service for _, service in sorted(self._calls.services.items())]
        specs = [service.spec for service in services]
        if specs != self._described:  # the same objects, while nothing is declared anew
            self._openapi = msgspec.json.encode(document(self._version, services))
            self._described = specs
        exchange.respond(200, _JSON, self._openapi)

    def collect(self) -> Iterable[Metric]:
        """Figures of now, for Prometheus."""
        now = self._log.statistics()
        counters = (
            ("wayside_appends", "Appends acknowledged.", now.appends),
            ("wayside_records", "Records appended.", now.records),
            ("wayside_appended_bytes", "Bytes of records appended.", now.bytes),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(name, text, value=value)
        deliveries = CounterMetricFamily("wayside_deliveries", "Records given to readers.", labels=["pattern"])
        for pattern, number in now.deliveries.items():
            deliveries.add_metric([pattern], number)
        yield deliveries
        yield self._commit_s.family("wayside_commit_seconds", "Time of one commit to the disk, fsync included.")
        yield self._commit_appends.family("wayside_commit_appends", "Appends in one commit.")
        followers = GaugeMetricFamily("wayside_followers", "Readers that wait for more.", labels=["pattern"])
        for pattern, number in now.followers.items():
            followers.add_metric([pattern], number)
        yield followers
        policies = GaugeMetricFamily("wayside_policy_followers", "The same, by delivery policy.", labels=["policy"])
        policies.add_metric(["catch-up"], sum(now.followers.values()) - sum(now.policies.values()))
        skipped = CounterMetricFamily(
            "wayside_followers_skipped_records",
            "Records that a delivery policy did not let through.",
            labels=["policy"],
        )
        for policy, number in now.policies.items():
            policies.add_metric([policy], number)
        for policy, number in now.skipped.items():
            skipped.add_metric([policy], number)
        ended = CounterMetricFamily(
            "wayside_followers_disconnected", "Followers that the hub has ended.", labels=["reason"]
        )
        ended.add_metric(["lagged"], now.lagged)
        yield from (policies, skipped, ended)
        gauges = (
            ("wayside_lag_records", "Records that the follower furthest behind has yet to be given.", now.lag_records),
            ("wayside_streams", "Streams that exist.", now.streams),
            ("wayside_store_bytes", "Bytes of the store on disk.", now.store_bytes),
            ("wayside_uncommitted_bytes", "Bytes of records that wait for the disk.", now.uncommitted_bytes),
            ("wayside_cached_bytes", "Bytes of recent records in memory.", now.cached_bytes),
            (
                "wayside_store_failed",
                "1 when the store has failed and nothing is acknowledged.",
                int(bool(self._log.failed)),
            ),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(name, text, value=value)
        yield from self._of_calls()
        yield from self._of_groups()
        yield from self._of_subscriptions()
        late = self._delaying
        yield GaugeMetricFamily("wayside_delayed_waiting", "Delayed records that are not due yet.", value=late.waiting)
        delayed = CounterMetricFamily("wayside_delayed", "Delayed records that were due.", labels=["outcome"])
        delayed.add_metric(["appended"], late.appended)
        delayed.add_metric(["dropped"], late.dropped)
        yield delayed
        if self.server is not None:
            yield GaugeMetricFamily("wayside_connections", "Open connections.", value=len(self.server.connections))
            responses = CounterMetricFamily("wayside_responses", "HTTP answers by class of status.", labels=["status"])
            for digit, number in enumerate(self.server.responses):
                if digit:
                    responses.add_metric([f"{digit}xx"], number)
            yield responses

    def _of_subscriptions(self) -> Iterable[Metric]:
        now = self._subscriptions.statistics()
        states = GaugeMetricFamily(
            "wayside_subscriptions", "Subscriptions of the protocol, by state.", labels=["state"]
        )
        for state in ("pending", "working", "failing"):
            states.add_metric([state], getattr(now, state))
        states.add_metric(["all"], now.subscriptions)
        yield states
        yield CounterMetricFamily("wayside_wakes", "Wakes of subscriptions.", value=now.woken)
        yield CounterMetricFamily("wayside_wakes_failed", "Attempts to tell of one that failed.", value=now.failed)

    def _of_calls(self) -> Iterable[Metric]:
        calls = self._calls
        ended = CounterMetricFamily("wayside_calls", "Calls that have ended.", labels=["service", "state"])
        for (name, state), number in calls.ledger.ended.items():
            ended.add_metric([name, state], number)
        yield ended
        yield CounterMetricFamily("wayside_attempts", "Attempts that workers were given.", value=calls.attempts.begun)
        yield CounterMetricFamily(
            "wayside_fenced", "Reports of attempts that others have.", value=calls.attempts.fenced
        )
        running = GaugeMetricFamily("wayside_calls_running", "Attempts under way.", labels=["service"])
        waiting = GaugeMetricFamily("wayside_calls_waiting", "Calls that wait for their turn.", labels=["service"])
        for service in calls.services.values():
            running.add_metric([service.name], service.running)
            waiting.add_metric([service.name], service.waiting + service.delayed)
        yield running
        yield waiting
        yield GaugeMetricFamily("wayside_calls_open", "Calls that have not ended.", value=len(calls.ledger.open))
        yield GaugeMetricFamily("wayside_workers", "Workers whose lease runs.", value=len(calls.workers))

    def _of_groups(self) -> Iterable[Metric]:
        groups = self._groups.all()
        events = CounterMetricFamily(
            "wayside_group_records",
            "Records of groups, each time that one was delivered, acked, failed, dead, missed or expired.",
            labels=["group", "event"],
        )
        states = GaugeMetricFamily(
            "wayside_group_outstanding",
            "Records that are in flight, wait for their redelivery, or are parked behind others with their key.",
            labels=["group", "state"],
        )
        dead = GaugeMetricFamily("wayside_group_dead", "Dead records that can be redriven.", labels=["group"])
        members = GaugeMetricFamily("wayside_group_members", "Members that take records now.", labels=["group"])
        lag = GaugeMetricFamily(
            "wayside_group_lag_records", "Records that were never delivered to the group.", labels=["group"]
        )
        lags = self._groups.lags(groups)
        for group in groups:
            state, name = group.journal.state, group.name
            for event, number in state.counts.items():
                events.add_metric([name, event], number)
            waiting = sum(len(partition.waiting) for partition in state.partitions.values())
            for what, number in (("in_flight", state.in_flight), ("waiting", waiting), ("parked", state.parked)):
                states.add_metric([name, what], number)
            dead.add_metric([name], len(state.dead))
            members.add_metric([name], len(group.members))
            if (behind := lags[name]) is not None:
                lag.add_metric([name], behind)
        yield from (events, states, dead, members, lag)


def _script(name: str, exchange: Exchange) -> None:
    """Answer with a module of the client for browsers; browsers ask each time whether it has changed."""
    body, etag = _script_and_tag(name)
    headers = _MODULE + b"ETag: %b\r\n" % etag.encode()
    if matches(exchange.request.headers.get("if-none-match"), etag):
        exchange.respond(304, headers)
    else:
        exchange.respond(200, headers, body)


@cache
def _script_and_tag(name: str) -> tuple[bytes, str]:
    body = resources.files("wayside").joinpath("client", "browser", name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
