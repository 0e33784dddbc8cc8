"""``--reload``: a parent that runs the same command as a child, and runs it anew when a source file changes.

For development. Files are found and compared by a look each quarter of a second: for a source tree that is cheap, works
on every file system, and needs no further package.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

__all__ = ["DRAIN_S", "is_child", "supervise"]

CHILD = "WAYSIDE_RELOAD_CHILD"
"""Set in the environment of the child."""
LOOK_S = 0.25
DRAIN_S = 1.0
"""What a child may take to end in order, whatever else is said: whoever has saved a file wants to see it."""
KILL_S = 10.0
"""When it is killed."""
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})

Files = dict[str, tuple[int, int]]
_child = os.environ.pop(CHILD, None) is not None  # what this process starts is no child of that kind


def is_child() -> bool:
    """Whether this process is started anew by another when a file changes."""
    return _child


def supervise(target: str) -> int:
    """Run this command as a child until a signal comes; returns the exit status. ``target`` is ``MODULE:ATTRIBUTE``."""
    roots = _roots(target)
    signals = 0

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal signals
        signals += 1
        if signals > 1 and child is not None:
            child.kill()

    child: subprocess.Popen[bytes] | None = None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    while True:
        now = files = scan(roots)
        child = subprocess.Popen([sys.executable, "-m", "wayside", *sys.argv[1:]], env={**os.environ, CHILD: "1"})
        ended: int | None = None
        while not signals and now == files:
            time.sleep(LOOK_S)
            now = scan(roots)
            if ended is None and (ended := child.poll()) is not None and not signals:
                click.echo(f"wayside: it ended with status {ended}; it is started anew when a file changes", err=True)
        status = _end(child) if ended is None else ended
        if signals:
            return status if status >= 0 else 128 - status
        changed = sorted(name for name in files.keys() | now.keys() if files.get(name) != now.get(name))
        click.echo(f"wayside: {os.path.relpath(changed[0])} has changed: starting anew", err=True)


def _end(child: subprocess.Popen[bytes]) -> int:
    child.send_signal(signal.SIGTERM)
    try:
        return child.wait(KILL_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _roots(target: str) -> list[Path]:
    """The current directory, and that of the application's package if it is another. It is not imported for that."""
    here = Path.cwd()
    top = target.partition(":")[0].partition(".")[0]
    for entry in [here, *map(Path, sys.path)]:
        for found in (entry / f"{top}.py", entry / top / "__init__.py"):
            if found.is_file():
                root = found.parent.resolve()
                return [here] if root.is_relative_to(here) else [here, root]
    return [here]


def scan(roots: list[Path]) -> Files:
    """Time and size of each Python file below ``roots``, but for virtual environments and hidden directories."""
    return {path: stamp for root in roots for path, stamp in _files(str(root))}


def _files(directory: str) -> Iterator[tuple[str, tuple[int, int]]]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    if any(entry.name == "pyvenv.cfg" for entry in entries):
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith(".") and entry.name not in SKIPPED:
                    yield from _files(entry.path)
            elif entry.name.endswith(".py"):
                found = entry.stat()
                yield entry.path, (found.st_mtime_ns, found.st_size)
        except OSError:
            continue  # it has just gone
