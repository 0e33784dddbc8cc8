"""Metrics in the text format of Prometheus: what the hub has done and holds, read off its parts when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from wayside.calls.services import Calls
from wayside.core.engine import Statistics
from wayside.groups.registry import Groups
from wayside.server.http.shared import Shared
from wayside.streams.delayed import Delaying
from wayside.webhooks.subscriptions import Subscriptions


class Observed(Protocol):
    """What stores streams, as it can be watched."""

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


class Metrics:
    """Figures of one hub, gathered when they are asked for."""

    def __init__(
        self, log: Observed, calls: Calls, groups: Groups, delaying: Delaying, subscriptions: Subscriptions
    ) -> None:
        self._log = log
        self._calls = calls
        self._groups = groups
        self._delaying = delaying
        self._subscriptions = subscriptions
        self.shared: Shared | None = None
        """What the connections of the hub's own server share, once it listens."""
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._commit_s = Buckets(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5)
        self._commit_appends = Buckets(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
        log.on_commit = self._on_commit

    def _on_commit(self, seconds: float, appends: int) -> None:
        self._commit_s.observe(seconds)
        self._commit_appends.observe(appends)

    def text(self) -> bytes:
        """All of them, in the text format of Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Figures of now, for Prometheus."""
        now = self._log.statistics()
        yield from self._of_appends(now)
        yield from _of_followers(now)
        yield from self._of_store(now)
        yield from self._of_calls()
        yield from self._of_groups()
        yield from self._of_subscriptions()
        yield from self._of_delays()
        if self.shared is not None:
            yield from _of_connections(self.shared)

    def _of_appends(self, now: Statistics) -> Iterable[Metric]:
        for name, text, value in (
            ("wayside_appends", "Appends acknowledged.", now.appends),
            ("wayside_records", "Records appended.", now.records),
            ("wayside_appended_bytes", "Bytes of records appended.", now.bytes),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield self._commit_s.family("wayside_commit_seconds", "Time of one commit to the disk, fsync included.")
        yield self._commit_appends.family("wayside_commit_appends", "Appends in one commit.")

    def _of_store(self, now: Statistics) -> Iterable[Metric]:
        failed = "1 when the store has failed and nothing is acknowledged."
        for name, text, value in (
            ("wayside_streams", "Streams that exist.", now.streams),
            ("wayside_store_bytes", "Bytes of the store on disk.", now.store_bytes),
            ("wayside_uncommitted_bytes", "Bytes of records that wait for the disk.", now.uncommitted_bytes),
            ("wayside_cached_bytes", "Bytes of recent records in memory.", now.cached_bytes),
            ("wayside_store_failed", failed, int(bool(self._log.failed))),
        ):
            yield GaugeMetricFamily(name, text, value=value)

    def _of_delays(self) -> Iterable[Metric]:
        late = self._delaying
        yield GaugeMetricFamily("wayside_delayed_waiting", "Delayed records that are not due yet.", value=late.waiting)
        delayed = CounterMetricFamily("wayside_delayed", "Delayed records that were due.", labels=["outcome"])
        delayed.add_metric(["appended"], late.appended)
        delayed.add_metric(["dropped"], late.dropped)
        yield delayed

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


def _of_followers(now: Statistics) -> Iterable[Metric]:
    deliveries = CounterMetricFamily("wayside_deliveries", "Records given to readers.", labels=["pattern"])
    for pattern, number in now.deliveries.items():
        deliveries.add_metric([pattern], number)
    followers = GaugeMetricFamily("wayside_followers", "Readers that wait for more.", labels=["pattern"])
    for pattern, number in now.followers.items():
        followers.add_metric([pattern], number)
    policies = GaugeMetricFamily("wayside_policy_followers", "The same, by delivery policy.", labels=["policy"])
    policies.add_metric(["catch-up"], sum(now.followers.values()) - sum(now.policies.values()))
    for policy, number in now.policies.items():
        policies.add_metric([policy], number)
    skipped = CounterMetricFamily(
        "wayside_followers_skipped_records", "Records that a delivery policy did not let through.", labels=["policy"]
    )
    for policy, number in now.skipped.items():
        skipped.add_metric([policy], number)
    ended = CounterMetricFamily(
        "wayside_followers_disconnected", "Followers that the hub has ended.", labels=["reason"]
    )
    ended.add_metric(["lagged"], now.lagged)
    lag = "Records that the follower furthest behind has yet to be given."
    yield from (deliveries, followers, policies, skipped, ended)
    yield GaugeMetricFamily("wayside_lag_records", lag, value=now.lag_records)


def _of_connections(shared: Shared) -> Iterable[Metric]:
    yield GaugeMetricFamily("wayside_connections", "Open connections.", value=len(shared.connections))
    responses = CounterMetricFamily("wayside_responses", "HTTP answers by class of status.", labels=["status"])
    for digit, number in enumerate(shared.responses):
        if digit:
            responses.add_metric([f"{digit}xx"], number)
    yield responses
