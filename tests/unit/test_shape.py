"""Rules of the source that nothing else enforces."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import wayside

SOURCE = Path(wayside.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
LINES_MAX = 700


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_is_small_and_says_what_it_is_for(path: Path) -> None:
    """No module is over 700 lines, and each opens with a docstring."""
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    assert ast.get_docstring(ast.parse(text))


def test_public_names_are_what_they_are() -> None:
    """The names of the package itself: adding one is a decision, losing one breaks somebody."""
    streams = ["Durability", "Hub", "Limits", "Publication", "Published", "Record", "Refusal", "StreamInfo"]
    calls = ["Call", "CallCancelled", "CallEvent", "CallFailed", "CallHandle", "CallStatus", "CallTimedOut", "Upload"]
    groups = ["Delivery", "GroupMember", "LeaseFenced", "Reject", "Retry"]
    clients = ["Client", "UnknownOutcome", "connect", "sync"]
    assert sorted(wayside.__all__) == sorted(streams + calls + groups + clients)
    assert all(hasattr(wayside, name) for name in wayside.__all__)
