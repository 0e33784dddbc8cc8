"""Constants of the package, changed for a test."""

from __future__ import annotations

import sys

import pytest


def patch_constants(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Set constants of the engine by name, in whichever modules they are known."""
    for name, value in values.items():
        modules = [m for known, m in list(sys.modules.items()) if known.startswith("wayside.") and name in vars(m)]
        assert modules, f"there is no {name} any more"
        for module in modules:
            monkeypatch.setattr(module, name, value)
