"""The benchmarks still run: every measure of our own server, tiny, without peers. No figure is judged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.__main__ import main


@pytest.mark.slow
@pytest.mark.timeout(400)  # a minute on two idle cores: it starts some thirty processes, one after the other
def test_every_measure_gives_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m bench --quick` ends with 0, which it does only where each measure has a figure."""
    if shutil.which("gcc") is None or shutil.which("taskset") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("gcc or taskset is missing")
        pytest.skip("the load generators need gcc and taskset")
    assert main(["--quick", "--json", str(tmp_path / "quick.json")]) == 0
    shown = capsys.readouterr().out
    assert "deliveries/s" in shown
    assert "calls/s" in shown
