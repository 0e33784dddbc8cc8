"""Draws the house: what ``src/wayside`` is made of, in figures, and its import graph. Needs Python and git only.

python -m scripts.house                     floors, figures, circles, names that several classes have
python -m scripts.house --base 3318003      the figures of another revision beside them
python -m scripts.house --dot FILE          the graph for Graphviz; --svg FILE: drawn, where there is `dot`
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import tarfile
import tomllib
from collections import defaultdict
from pathlib import Path

from scripts.sources import FUNCTION_LINES_MAX, PACKAGE, House, circles

ROOT = Path(__file__).resolve().parents[1]


def read(revision: str = "") -> tuple[House, list[str]]:
    """The house of the working tree, or of a revision, and the layers of its import contract, the highest first."""
    if not revision:
        files = {path: path.read_bytes() for path in [ROOT / "pyproject.toml", *(ROOT / "src" / PACKAGE).rglob("*.py")]}
        texts = {path.relative_to(ROOT).as_posix(): data.decode() for path, data in files.items()}
    else:
        command = ["git", "archive", "--format=tar", revision, "pyproject.toml", f"src/{PACKAGE}"]
        archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            opened = {member.name: tar.extractfile(member) for member in tar if member.name.endswith((".py", ".toml"))}
            texts = {name: file.read().decode() for name, file in opened.items() if file is not None}
    contracts = tomllib.loads(texts.pop("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["type"] == "layers")
    return House({name.removeprefix(f"src/{PACKAGE}/"): text for name, text in texts.items()}), layers


def figures(house: House, layers: list[str]) -> dict[str, int]:
    """What is counted, in the order in which it is shown."""
    modules = house.modules.values()
    in_circles = circles(house.imports)
    return {
        "names at the top level": len(house.rooms),
        "layers of the import contract": len(layers),
        "floors: longest way down": len(house.floors),
        "arrows between top-level names": sum(map(len, house.rooms.values())),
        "modules": len(modules),
        "imports between modules": sum(map(len, house.imports.values())),
        "circles of modules": len(in_circles),
        "modules in circles": sum(map(len, in_circles)),
        "lines": sum(len(module.text.splitlines()) for module in modules),
        "lines of code": sum(module.code_lines for module in modules),
        "lines of the longest module": max(len(module.text.splitlines()) for module in modules),
        f"functions over {FUNCTION_LINES_MAX} lines": sum(1 for module in modules for _ in module.long_functions),
        "classes": sum(map(len, house.class_names.values())),
        "public names that several classes have": len(house.doubled),
        "classes that have those": sum(map(len, house.doubled.values())),
        "classes that inherit across modules": len({heir for heir, _ in house.inheritance}),
    }


def table(columns: dict[str, dict[str, int]]) -> str:
    """Figures side by side, in Markdown."""
    lines = [f"| {'':38} |" + "".join(f" {name[:9]:>9} |" for name in columns)]
    lines += [f"| {'-' * 38} |" + f" {'-' * 8}: |" * len(columns)]
    for name in next(iter(columns.values())):
        lines += [f"| {name:38} |" + "".join(f" {column[name]:9,} |" for column in columns.values())]
    return "\n".join(lines)


def dot(house: House) -> str:
    """The graph as Graphviz DOT: files in their rooms, and arrows between rooms with the number of imports."""
    lines = ["digraph wayside {", '  compound=true; node [shape=box, fontsize=9, fontname="sans-serif"];']
    imports: dict[tuple[str, str], int] = defaultdict(int)
    front: dict[str, str] = {}
    for room in house.rooms:
        names = [name for name in house.modules if house.room(name) == room]
        front[room] = names[0]
        lines += [f'  subgraph "cluster_{room}" {{ label="{room}";']
        for name in names:
            label = name.removeprefix(f"{PACKAGE}.{room}.").removeprefix(f"{PACKAGE}.")
            lines += [f'    "{name}" [label="{label}"];']
            for each in sorted(house.imports[name]):
                imports[room, house.room(each)] += 1
                lines += [f'    "{name}" -> "{each}";'] if each in names else []
        lines += ["  }"]
    for (room, other), count in sorted(imports.items()):
        if room != other and other in front:
            ends = f'ltail="cluster_{room}", lhead="cluster_{other}"'
            lines += [f'  "{front[room]}" -> "{front[other]}" [{ends}, label="{count}"];']
    return "\n".join([*lines, "}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--base", metavar="REV", help="show the figures of this revision beside today's")
    parser.add_argument("--dot", metavar="FILE", type=Path, help="write the import graph for Graphviz")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw it; without `dot`, write what it would draw")
    arguments = parser.parse_args()
    house, layers = read()
    for number, floor in reversed(list(enumerate(house.floors, 1))):
        print(f"{number:2}  {'  '.join(floor)}")
    columns = {arguments.base: figures(*read(arguments.base))} if arguments.base else {}
    print(f"\n{table({**columns, 'now': figures(house, layers)})}\n")
    for part in circles(house.imports):
        print(f"circle: {', '.join(part)}")
    for name, modules in sorted(house.doubled.items()):
        print(f"several classes {name}: {', '.join(modules)}")
    if arguments.dot:
        arguments.dot.write_text(dot(house))
    if arguments.svg and shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg", "-o", arguments.svg], input=dot(house), text=True, check=True)
    elif arguments.svg:
        instead = arguments.svg.with_suffix(".dot")
        instead.write_text(dot(house))
        print(f"There is no `dot` (Graphviz) here: wrote {instead}.")


if __name__ == "__main__":
    main()
