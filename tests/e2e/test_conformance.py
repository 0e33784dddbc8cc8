"""The Durable Streams conformance suite, run against a real hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import JS, Hub, Run, node

PASSED = 338
LONG_POLL_S = 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_conformance(start_hub: Callable[..., Hub], run: Run, tmp_path: Path) -> None:
    """The hub passes every test of the protocol's conformance suite, those of subscriptions included."""
    program = node("vitest", "@durable-streams/server-conformance-tests")
    hub = start_hub("--long-poll-s", str(LONG_POLL_S), "--webhook-allow-private")
    report = tmp_path / "report.json"
    suite = run(
        [program, JS / "node_modules/vitest/vitest.mjs", "run", "--reporter=json", f"--outputFile={report}"],
        env={"WAYSIDE_TEST_URL": hub.url, "WAYSIDE_TEST_LONG_POLL_MS": str(LONG_POLL_S * 1000)},
        cwd=JS,
    )
    status = suite.wait(240)
    assert report.exists(), suite.err.text
    results = [test for file in json.loads(report.read_text())["testResults"] for test in file["assertionResults"]]
    failed = [f"{test['fullName']}\n  {test['failureMessages'][:1]}" for test in results if test["status"] == "failed"]
    assert not failed, "\n".join(failed)
    assert status == 0, suite.err.text
    assert [test["status"] for test in results] == ["passed"] * PASSED
