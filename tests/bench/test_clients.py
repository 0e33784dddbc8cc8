"""The measuring part of the benchmark's clients counts what it should, and a peer that is missing is named."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import callers, calls
from bench.clients import load
from bench.turns import QUICK, Bench

STEP_S = 0.001


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes a millisecond."""

    def ticks() -> Iterator[float]:
        at = 0.0
        while True:
            at += STEP_S
            yield at

    each = ticks()
    monkeypatch.setattr(load, "now", lambda: next(each))


def _shown(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    figures: dict[str, float] = json.loads(capsys.readouterr().out)
    return figures


@pytest.mark.usefixtures("clock")
async def test_loops_keep_as_many_calls_in_flight_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """With 8 loops 8 calls are in flight, never more, and each that ends in the time that counts is counted."""
    flying, most = 0, 0

    async def once() -> None:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0)
        flying -= 1

    await load.loops(once, 8, 0.4)
    figures = _shown(capsys)
    assert most == 8
    assert figures["errors"] == 0
    assert figures["per_s"] == pytest.approx(1 / STEP_S / 2, rel=0.1)  # a call looks at the clock twice or more


@pytest.mark.usefixtures("clock")
def test_a_window_keeps_as_many_calls_in_flight_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """A client that blocks waits for the oldest of 8 calls, and in the end for all."""
    sent: list[int] = []
    answered: list[int] = []
    most = 0

    def send() -> int:
        nonlocal most
        sent.append(len(sent))
        most = max(most, len(sent) - len(answered))
        return sent[-1]

    load.window(send, answered.append, 8, 0.4)
    assert most == 8
    assert answered == sent
    assert _shown(capsys)["errors"] == 0


@pytest.mark.usefixtures("clock")
async def test_a_call_that_fails_is_an_error_and_not_completed(capsys: pytest.CaptureFixture[str]) -> None:
    """An answer that is not the argument counts as an error, and the first one is told."""
    calls_made = 0

    async def once() -> None:
        nonlocal calls_made
        calls_made += 1
        load.same({} if calls_made == 20 else load.VALUE)

    await load.loops(once, 1, 0.4)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["errors"] == 1
    assert "ValueError" in captured.err


def test_a_value_is_100_bytes_as_json() -> None:
    """All contenders are given the same 100 bytes."""
    assert len(json.dumps(load.VALUE, separators=(",", ":"))) == 100


def test_a_peer_that_is_missing_is_named_in_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started for it, and the row says what to install."""
    monkeypatch.setattr(callers.Worker, "missing", classmethod(lambda cls: "peer not installed: nats-py: make bench"))
    (row,) = calls.call_latency_worker(Bench(QUICK, tmp_path, lambda text: None))
    assert row.ratio is None
    assert "nats-py: make bench" in row.note


def test_peers_are_not_measured_in_a_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the task queues too, the row says no more than that."""
    monkeypatch.setattr(callers.HubWorker, "missing", classmethod(lambda cls: "not here"))
    (row,) = calls.call_durable(Bench(QUICK, tmp_path, lambda text: None))
    assert row.note == "not here; peers not measured"
