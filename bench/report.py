"""How results are shown: a table in Markdown, a JSON file, and a picture of each ratio against its target."""

import importlib
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.turns import Bench, Row


def verdict(row: Row, *, quick: bool) -> str:
    """``met``, ``missed``, or a dash for what has no figure or was run too small to judge."""
    if row.achieved is None or quick:
        return "-"
    return "met" if row.achieved >= 1 else "missed"


def number(value: float) -> str:
    """Three significant digits, thousands grouped."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def samples(values: list[float]) -> str:
    """The median, and how far the repetitions lie apart."""
    if not values:
        return "-"
    middle = statistics.median(values)
    spread = (max(values) - min(values)) / 2 / abs(middle) if middle and len(values) > 1 else 0.0
    return number(middle) + (f" ±{spread:.0%}" if spread >= 0.005 else "")


def target(row: Row) -> str:
    """Such as ``>= 0.8`` for a ratio, ``<= 4,096 bytes`` for a figure of our own."""
    sign = "<=" if row.at_most else ">="
    return f"{sign} {number(row.target)}" + ("" if row.peer else f" {row.unit}")


def table(rows: list[Row], *, quick: bool) -> str:
    """The rows in Markdown, columns aligned."""
    lines = [["measure", "unit", "ours", "peer", "theirs", "ratio", "target", ""]]
    for row in rows:
        ratio = number(row.ratio) if row.peer and row.ratio is not None else "-"
        lines.append([row.what, row.unit, samples(row.ours), row.peer or "-", samples(row.theirs), ratio,
                      target(row), verdict(row, quick=quick)])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    drawn = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in lines]  # fmt: skip
    notes = dict.fromkeys(f"- {row.what}: {row.note}" for row in rows if row.note)
    return "\n".join(drawn + ([""] if notes else []) + list(notes))


def save(path: Path, machine: dict[str, str], bench: Bench, rows: list[Row], *, quick: bool) -> None:
    """Everything as JSON, with every figure of every repetition."""
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = [
        asdict(row) | {"ratio": row.ratio, "achieved": row.achieved, "verdict": verdict(row, quick=quick)}
        for row in rows
    ]
    everything = {"machine": machine, "quick": quick, "rows": summary, "results": bench.results}
    path.write_text(json.dumps(everything, indent=2) + "\n")


def plot(path: Path, machine: dict[str, str], rows: list[Row]) -> bool:
    """Bars of how far each target is met, on a logarithmic axis. False when matplotlib is not installed."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return False
    shown = [(row, row.achieved) for row in rows if row.achieved is not None][::-1]
    figure, axes = pyplot.subplots(figsize=(11, 1.6 + 0.52 * max(len(shown), 1)), layout="constrained")
    low, high = 0.5, 2.0
    for at, (row, achieved) in enumerate(shown):
        axes.barh(at, achieved - 1, left=1, height=0.62, color="#2a7f62" if achieved >= 1 else "#c8553d")
        reached = f"{number(row.ratio or 0)}x, asked {target(row)}x" if row.peer else (
            f"{number(row.ratio or 0)} {row.unit}, asked {target(row)}")  # fmt: skip
        axes.plot(achieved, at, marker="D", markersize=4.5, color="#222222")
        axes.annotate(reached, (max(achieved, 1), at), xytext=(8, 0), textcoords="offset points", va="center",
                      fontsize=8.5)  # fmt: skip
        low, high = min(low, achieved * 0.8), max(high, achieved * 1.2)
    names = [f"{row.what}\nvs {row.peer}" if row.peer else row.what for row, _ in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8.5)
    axes.axvline(1, color="#222222", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlim(low, high * 4)  # room for the words beside the longest bar
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high * 4]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("how far the target is met (1 = just met, to the right = better)", fontsize=9)
    title = f"{machine['ours']} against its peers\n{machine['CPU']}, one core each for server and load"
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True
