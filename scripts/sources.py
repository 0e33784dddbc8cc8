"""What can be known of the package by reading its sources: imports, circles, floors, classes. Nothing is imported, so that
any revision can be looked at. All imports count, also those in functions and for type checkers."""

from __future__ import annotations

import ast
import builtins
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

PACKAGE = "wayside"
FUNCTION_LINES_MAX = 60
ERRORS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
FREE = {*ERRORS, "Struct", "Protocol"}
"""Whatever descends from these may be inherited from across files: errors, values and contracts."""
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Module:
    """One file, by its dotted name."""

    name: str
    text: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def classes(self) -> list[ast.ClassDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Names that imports bind anywhere in the file, and the dotted name that each stands for."""
        bound: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for each in node.names:
                    bound[each.asname or each.name] = each.name
            elif isinstance(node, ast.ImportFrom):
                parts = self.name.split(".")
                above = parts[: len(parts) - node.level + self.is_package] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                for each in node.names:
                    bound[each.asname or each.name] = f"{source}.{each.name}"
        return bound

    @property
    def long_functions(self) -> Iterator[tuple[str, int]]:
        """Those that do not fit a screen, with their lines."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    yield node.name, lines

    @cached_property
    def code_lines(self) -> int:
        """Lines without blanks, comments, and strings that are no values: docstrings, also those of attributes."""
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in NO_CODE:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
        return len(lines)


class House:
    """All modules of the package: ``sources`` are their texts, by path below the package's directory."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.modules: dict[str, Module] = {}
        for path, text in sorted(sources.items()):
            parts = [PACKAGE, *path.removesuffix(".py").split("/")]
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            self.modules[name] = Module(name, text, is_package)

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The import graph of the files."""
        return {
            name: {found for each in module.aliases.values() if (found := self._module(each)) and found != name}
            for name, module in self.modules.items()
        }

    def _module(self, dotted: str) -> str | None:
        """The module that has what a dotted name stands for."""
        return next((each for each in (dotted, dotted.rpartition(".")[0]) if each in self.modules), None)

    # -- rooms and floors

    @staticmethod
    def room(module: str) -> str:
        """The name at the top level that a module is, or is in; the package's own for its ``__init__``."""
        return module.split(".")[1] if "." in module else PACKAGE

    @cached_property
    def rooms(self) -> dict[str, set[str]]:
        """The graph of the names at the top level."""
        graph: dict[str, set[str]] = {self.room(name): set() for name in self.modules if name != PACKAGE}
        for name, imported in self.imports.items():
            if name != PACKAGE:
                room = self.room(name)
                graph[room] |= {self.room(each) for each in imported} - {room, PACKAGE}
        return graph

    @cached_property
    def floors(self) -> list[list[str]]:
        """Rooms by the longest way down from them, lowest first; those of one circle share a floor."""
        circle = {room: frozenset(part) for part in circles(self.rooms) for room in part}
        height: dict[frozenset[str], int] = {}

        def climb(part: frozenset[str]) -> int:
            if part not in height:
                below = {circle.get(each, frozenset({each})) for room in part for each in self.rooms[room]} - {part}
                height[part] = 1 + max(map(climb, below), default=-1)
            return height[part]

        found: dict[int, list[str]] = defaultdict(list)
        for room in sorted(self.rooms):
            found[climb(circle.get(room, frozenset({room})))].append(room)
        return [found[level] for level in sorted(found)]

    # -- classes

    def _class(self, module: Module, name: str) -> tuple[Module, ast.ClassDef] | None:
        """The class of the package that a name of a module means, through re-exports."""
        for node in module.classes:
            if node.name == name:
                return module, node
        place_name, _, last = name.rpartition(".")
        target = module.aliases.get(name) or f"{module.aliases.get(place_name, '')}.{last}"
        place = self.modules.get(target.rpartition(".")[0])
        return self._class(place, target.rpartition(".")[2]) if place is not None and place is not module else None

    def _free(self, module: Module, node: ast.ClassDef) -> bool:
        """Whether it is an error, a value or a contract."""
        for base in map(base_name, node.bases):
            found = self._class(module, base)
            if found is None or found[1] is node:  # not of the package
                if base.rpartition(".")[2] in FREE:
                    return True
            elif self._free(*found):
                return True
        return False

    @property
    def inheritance(self) -> Iterator[tuple[str, str]]:
        """Classes that inherit from a class of another file that is no error, value or contract: both, by dotted name."""
        for module in self.modules.values():
            for node in module.classes:
                for base in map(base_name, node.bases):
                    found = self._class(module, base)
                    if found is not None and found[0] is not module and not self._free(*found):
                        yield f"{module.name}.{node.name}", f"{found[0].name}.{found[1].name}"

    @cached_property
    def class_names(self) -> dict[str, list[str]]:
        """Names of classes, and the modules that have one of that name."""
        found: dict[str, list[str]] = defaultdict(list)
        for module in self.modules.values():
            for node in module.classes:
                found[node.name].append(module.name)
        return found

    @property
    def doubled(self) -> dict[str, list[str]]:
        """Public names of classes that several classes have."""
        return {name: found for name, found in self.class_names.items() if len(found) > 1 and name[0] != "_"}


def base_name(node: ast.expr) -> str:
    """A base class as it is written, without what is in brackets behind it."""
    return ast.unparse(node.value if isinstance(node, ast.Subscript) else node)


def circles(graph: Graph) -> list[list[str]]:
    """Sets of nodes that reach each other, of two or more: strongly connected components (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for each in sorted(graph[node]):
            if each not in index:
                visit(each)
            if each in stack:
                low[node] = min(low[node], low[each])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[-len(part) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found
