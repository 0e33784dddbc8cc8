"""Rules of the house that nothing else enforces: small files, functions and classes that a reader finds his way in.

What does not keep a rule yet stands in ``STILL``. That list only shrinks: an entry that is not needed any more fails too.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

import wayside
from scripts.house import read
from scripts.sources import FUNCTION_LINES_MAX, House, circles

SOURCE = Path(wayside.__file__).parent
ROOT = Path(__file__).parents[2]
MODULES = sorted(SOURCE.rglob("*.py"))
LINES_MAX = 700

STILL: dict[str, set[str]] = {
    "inheritance": set(),
    "public classes of one name": set(),
    "private classes of one name on a floor": set(),
    "circles": set(),
    "long functions": {
        # until the document is derived from the table of routes
        "server.openapi.controls.subscription_paths",
        "server.openapi.document._call_paths",
        "server.openapi.document._stream_paths",
        "server.openapi.document._upload_paths",
        "server.openapi.groups.group_paths",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def house() -> House:
    return read()[0]


def require(rule: str, broken: Iterable[str]) -> None:
    """Nothing breaks a rule but what is known to, and all that is known to still does."""
    found = {each.replace("wayside.", "") for each in broken}
    assert not found - STILL[rule], f"{rule}: mend these"
    assert not STILL[rule] - found, f"{rule}: mended, take these out of STILL"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_is_small_and_says_what_it_is_for(path: Path) -> None:
    """No module is over 700 lines, and each opens with a docstring."""
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    assert ast.get_docstring(ast.parse(text))


def test_a_function_fits_a_screen(house: House) -> None:
    """None has more than 60 lines, its signature and docstring included; decorators are not."""
    assert FUNCTION_LINES_MAX == 60
    require(
        "long functions", (f"{each.name}.{name}" for each in house.modules.values() for name, _ in each.long_functions)
    )


def test_parts_are_composed_and_not_inherited(house: House) -> None:
    """No class inherits from a class of another module, but from errors, values (msgspec.Struct) and protocols."""
    require("inheritance", (f"{heir}: {base}" for heir, base in house.inheritance))


def test_classes_have_names_of_their_own(house: House) -> None:
    """No two public classes of the package have one name, and no two private ones of one floor."""
    require("public classes of one name", house.doubled)
    private = {name: found for name, found in house.class_names.items() if name.startswith("_")}
    floors = {name: [house.room(module) for module in found] for name, found in private.items()}
    twice = {f"{name} of {room}" for name, rooms in floors.items() for room in rooms if rooms.count(room) > 1}
    require("private classes of one name on a floor", twice)


def test_files_make_no_circle(house: House) -> None:
    """Nor with the imports that are there for types only, or that stand in functions."""
    require("circles", (" ".join(part) for part in circles(house.imports)))


def test_patterns_do_not_know_each_other(house: House) -> None:
    """What two of them need is below them, or handed in by who knows both."""
    patterns = "wayside.server.patterns."
    pairs = {f"{name}: {each}" for name in house.modules for each in house.imports[name] if each.startswith(patterns)}
    assert not {pair for pair in pairs if pair.startswith(patterns)}


def test_everything_stands_on_one_of_eight_floors(house: House) -> None:
    """The import contract has eight layers, and each package and module of the top level in one of them."""
    floors = read()[1]
    assert len(floors) == 8
    known = [name.strip("() ") for floor in floors for name in floor.replace(":", "|").split("|")]
    assert len(known) == len(set(known))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert set(house.rooms) <= {*known, *settings["exhaustive_ignores"]}


def test_public_names_are_what_they_are() -> None:
    """The names of the package itself: adding one is a decision, losing one breaks somebody."""
    streams = ["Durability", "Hub", "Limits", "Publication", "Published", "Record", "Refusal", "StreamInfo"]
    calls = ["Call", "CallCancelled", "CallEvent", "CallFailed", "CallHandle", "CallStatus", "CallTimedOut", "Upload"]
    groups = ["Delivery", "GroupMember", "LeaseFenced", "Reject", "Retry"]
    clients = ["Client", "UnknownOutcome", "connect", "sync"]
    assert sorted(wayside.__all__) == sorted(streams + calls + groups + clients)
    assert all(hasattr(wayside, name) for name in wayside.__all__)
