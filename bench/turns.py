"""How measures are taken: contenders in turn, each figure of each turn kept, rows that compare them.

Contenders take turns (peer, ours, peer, ours, ...), each time from a fresh start, so that a machine that
changes its mind about its speed changes it for all of them. Knows nothing of what is measured.
"""

import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.hub import Hub
from bench.machine import BenchError, Disturbance
from bench.process import Server

Result = dict[str, float]
#: By name: what it needs installed, and one turn of it.
Contenders = Mapping[str, tuple[type[Server], Callable[[], Result]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large a run is. `FULL` is what the targets are for; `QUICK` shows that everything works."""

    repetitions: int
    seconds: float
    followers: int
    followers_idle: int
    followers_slow: int
    appenders: int
    append_bytes: int
    streams: int
    glob_streams: int
    getters: int
    in_flight: int
    groups: int
    group_records: int
    large_bytes: int
    peers: bool


FULL = Scale(
    repetitions=3, seconds=3.0, followers=1000, followers_idle=10_000, followers_slow=20, appenders=256, append_bytes=100,
    streams=1000, glob_streams=10_000, getters=64, in_flight=64, groups=1000, group_records=150_000, large_bytes=1 << 30, peers=True,
)  # fmt: skip
QUICK = Scale(
    repetitions=1, seconds=0.3, followers=50, followers_idle=50, followers_slow=2, appenders=16, append_bytes=100, streams=50, glob_streams=50,
    getters=8, in_flight=8, groups=20, group_records=2000, large_bytes=8 << 20, peers=False,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. `target` is the ratio ours/theirs, or without a peer a figure in the row's unit."""

    measure: str
    what: str
    unit: str
    target: float
    at_most: bool = False
    ours: list[float] = field(default_factory=list)
    peer: str | None = None
    theirs: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over theirs in the same turn, the median of all turns; without a peer, our own median.

        The turns of a pair are neighbours, so what disturbs the machine for a while disturbs both. None when
        one of the two has no figures.
        """
        if not self.ours or (self.peer is not None and not self.theirs):
            return None
        if self.peer is None:
            return statistics.median(self.ours)
        return statistics.median(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True) if theirs)

    @property
    def achieved(self) -> float | None:
        """How far the target is met: 1 is just met, 2 is twice as good as asked."""
        if self.ratio is None:
            return None
        return self.target / max(self.ratio, 1e-9) if self.at_most else self.ratio / self.target


@dataclass(slots=True)
class Bench:
    """One run: its size, the folder for what servers write, and every result, by measure and contender."""

    scale: Scale
    folder: Path
    say: Callable[[str], None]
    results: dict[str, dict[str, list[Result]]] = field(default_factory=dict)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)

    def take_turns(self, measure: str, contenders: Contenders) -> None:
        """Run each contender as often as the scale says, in turn. One that fails has no figures at all."""
        results = self.results.setdefault(measure, {})
        for name, (server, _) in contenders.items():
            if server.name != Hub.name and not self.scale.peers:
                self.problems[measure, name] = "peers not measured"
            elif server.missing():
                self.problems[measure, name] = server.missing()
        for turn in range(self.scale.repetitions):
            for name, (_, once) in contenders.items():
                if (measure, name) in self.problems:
                    continue
                self.say(f"{measure}: {name} ({turn + 1}/{self.scale.repetitions})")
                disturbance = Disturbance()
                try:
                    results.setdefault(name, []).append(once() | disturbance.shares())
                except (BenchError, OSError) as error:
                    self.problems[measure, name] = f"{name}: {error}"
                    self.say(f"{measure}: {name}: {error}")
                    del results[name]

    def figures(self, measure: str, contender: str, key: str) -> list[float]:
        """One figure of every repetition."""
        return [result[key] for result in self.results[measure].get(contender, [])]

    def row(
        self, measure: str, what: str, key: str, unit: str, *, target: float, at_most: bool = False,
        ours: str = Hub.name, peer: str | None = None, note: str = "",
    ) -> Row:  # fmt: skip
        """Compare one figure of two contenders of a measure, or hold our own against a target."""
        problems = [self.problems.get((measure, name), "") for name in (ours, peer) if name]
        return Row(
            measure=measure, what=what, unit=unit, target=target, at_most=at_most, peer=peer,
            ours=self.figures(measure, ours, key), theirs=self.figures(measure, peer, key) if peer else [],
            note="; ".join(text for text in [note, *problems] if text),
        )  # fmt: skip

    def fresh(self, name: str) -> Path:
        """A folder for one server, empty."""
        path = self.folder / name.replace(" ", "-")
        shutil.rmtree(path, ignore_errors=True)
        return path
