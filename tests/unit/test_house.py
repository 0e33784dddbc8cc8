"""What is read of sources for the rules of the house: imports of every kind, circles, floors, inheritance, lines."""

from __future__ import annotations

from scripts.house import dot, figures, table
from scripts.sources import House, circles

SOURCES = {
    "__init__.py": "from wayside.hub import Hub",
    "hub.py": """
from wayside.core import clock
from wayside.groups.group import Group as Whole
class Hub(Whole): ...
class Refused(clock.Late): ...
""",
    "core/__init__.py": "",
    "core/clock.py": """
from typing import Protocol
from msgspec import Struct
class Clock(Protocol): ...
class Late(Exception): ...
class Time(Struct, frozen=True): ...
class Base: ...
""",
    "groups/__init__.py": "from wayside.groups.group import Group",
    "groups/group.py": """
from __future__ import annotations
from typing import TYPE_CHECKING, Generic
from ..core.clock import Base, Clock, Late, Time
if TYPE_CHECKING:
    from wayside.groups.journal import Journal
class Group(Base): ...
class Own(Group, Generic[int]): ...
class Known(Clock, Late, Time): ...
""",
    "groups/journal.py": '''
import wayside.core.clock
class Journal(wayside.core.clock.Base): ...
class _Base: ...
def load():
    """Read it."""
    from wayside.groups import Group
    from wayside.groups.group import Own
    class Base: ...
''',
    "work.py": "from wayside import Hub\nclass Worker(Hub): ...",
}


def test_imports_of_every_kind_are_found() -> None:
    """Absolute, relative, aliased, re-exported, in functions and for types only; the package's own names count too."""
    imports = House(SOURCES).imports
    assert imports["wayside.hub"] == {"wayside.core.clock", "wayside.groups.group"}
    assert imports["wayside.groups.group"] == {"wayside.core.clock", "wayside.groups.journal"}
    assert imports["wayside.groups.journal"] == {"wayside.core.clock", "wayside.groups", "wayside.groups.group"}
    assert imports["wayside.work"] == {"wayside"}


def test_circles_and_floors() -> None:
    """A circle is found whatever its imports are for; rooms stand above all that they import."""
    house = House(SOURCES)
    assert circles(house.imports) == [["wayside.groups", "wayside.groups.group", "wayside.groups.journal"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}) == [["b", "c"]]
    assert house.rooms == {"hub": {"core", "groups"}, "core": set(), "groups": {"core"}, "work": set()}
    assert house.floors == [["core", "work"], ["groups"], ["hub"]]


def test_inheritance_across_modules_is_found() -> None:
    """By an alias, a dotted name or a re-export; not within a module, and not from errors, values and protocols."""
    assert set(House(SOURCES).inheritance) == {
        ("wayside.hub.Hub", "wayside.groups.group.Group"),
        ("wayside.groups.group.Group", "wayside.core.clock.Base"),
        ("wayside.groups.journal.Journal", "wayside.core.clock.Base"),
        ("wayside.work.Worker", "wayside.hub.Hub"),
    }


def test_names_of_several_classes_are_found() -> None:
    """Also of one in a function."""
    assert House(SOURCES).doubled == {"Base": ["wayside.core.clock", "wayside.groups.journal"]}


def test_lines_of_code_and_long_functions() -> None:
    """Docstrings, also of attributes, comments and blanks are no code; a decorator is no line of its function."""
    text = (
        '"""Doc.\n\nMore."""\n\n# why\nX = """a\n\nb"""  # here\n"""Of X."""\n\n@f(\n  1)\ndef g():\n    """Doc."""\n'
    )
    module = House({"a.py": text}).modules["wayside.a"]
    assert module.code_lines == 6
    assert not [*module.long_functions]
    long = House({"a.py": "async def f():\n" + "    pass\n" * 60}).modules["wayside.a"]
    assert [*long.long_functions] == [("f", 61)]


def test_it_is_told_and_drawn() -> None:
    """Figures are a table in Markdown, the graph has each file in its room."""
    house = House(SOURCES)
    told = table({"now": figures(house, ["a", "b"])})
    assert "| circles of modules                     |         1 |" in told
    assert "| layers of the import contract          |         2 |" in told
    drawn = dot(house)
    assert 'subgraph "cluster_groups" { label="groups";' in drawn
    assert '"wayside.groups.group" -> "wayside.groups.journal";' in drawn
    assert '"wayside.hub" -> "wayside.groups" [ltail="cluster_hub", lhead="cluster_groups", label="1"];' in drawn
