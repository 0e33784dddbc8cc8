"""What must be true of a call, told from its input, from the records of its stream, and from what the handlers noted of
themselves. It shares no code with the hub but the name of a call that has a key.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wayside.calls.call import keyed_id

FINAL = ("done", "failed", "cancelled")


def answer_of(service: str, arguments: tuple[Any, ...]) -> Any:
    """The result that these arguments have."""
    first = arguments[0]
    match service:
        case "add":
            return sum(first)
        case "sort":
            return sorted(first)
        case "flaky":
            return first * 7
        case "once" | "local.inc":
            return first + 1
        case "long":
            return first + 2
        case "progress":
            return first
        case "double":
            return first * 2
        case "fork":
            return first * 2 + first + 1
        case "pipe":
            return (first * 2 + 1) * 2
    return None


def steps_of(identity: str, service: str, arguments: tuple[Any, ...]) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """The calls that a call makes as its steps: each has one name, however often it is asked for."""
    value = arguments[0]
    steps: list[tuple[str, str, int]] = []
    if service == "pipe":
        steps = [("1", "double", value), ("2", "local.inc", value * 2), ("3", "double", value * 2 + 1)]
    elif service == "fork":
        steps = [("left", "double", value), ("right", "local.inc", value)]
    for key, step, argument in steps:
        yield keyed_id(step, f"{identity}/{key}"), step, (argument,)


@dataclass
class Execution:
    """One run of a handler, as it noted it."""

    call: str
    attempt: int
    service: str
    worker: str
    durable: bool
    began_ms: int
    ended_ms: int = 0
    how: str = "killed"
    """killed, returned, raised or stopped."""


class Noted:
    """What all processes noted: ``executions`` by call, in the order of their attempts (not that of time, as one that was
    lost may begin late), and which process each worker was."""

    def __init__(self, directory: Path) -> None:
        self.executions: dict[str, list[Execution]] = defaultdict(list)
        self.pids: dict[str, int] = {}
        for path in sorted(directory.glob("*.executions")):
            self._read(path)
        for executions in self.executions.values():
            executions.sort(key=lambda execution: execution.attempt)

    def _read(self, path: Path) -> None:
        running: dict[tuple[str, int], Execution] = {}
        for line in path.read_text().splitlines():
            note = json.loads(line)
            if "call" not in note:
                self.pids[note["worker"]] = note["pid"]
                continue
            key = (note["call"], note["attempt"])
            if note["what"] == "began":
                execution = Execution(
                    note["call"], note["attempt"], note["service"], note["worker"], note["durable"], note["time_ms"]
                )
                running[key] = execution
                self.executions[execution.call].append(execution)
            else:
                ended = running.pop(key, None)
                if ended is not None:
                    ended.how, ended.ended_ms = note["what"], note["time_ms"]


@dataclass
class Attempt:
    """What the record says of an attempt."""

    worker: str
    values: list[Any] = field(default_factory=list)
    progress: int = 0
    sent: int = 0
    ended: str = ""
    """Its last event: done, failed, returned, cancelled, or lost; empty where that is none it can have."""
    ended_ms: int = 0


@dataclass
class Story:
    """A call: its records as a reader was given them, and its executions."""

    id: str
    service: str
    arguments: tuple[Any, ...] | None
    """None: whoever asked is not known."""
    records: list[dict[str, Any]]
    closed: bool
    executions: list[Execution]
    attempts: list[Attempt] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"call {self.id}: {self.service}{self.arguments}, {'closed' if self.closed else 'open'}"]
        lines += [f"  record {json.dumps(record)[:300]}" for record in self.records]
        lines += [f"  {execution}" for execution in self.executions]
        return "\n".join(lines)

    @property
    def end(self) -> str:
        return str(self.records[-1]["event"])

    def require(self, truth: object, claim: str) -> None:
        if not truth:
            raise AssertionError(f"{claim}\n{self}")

    def check(self) -> None:
        """It ended once; its attempts, what they sent, and what ran are as they must be."""
        ends = [record for record in self.records if record["event"] in FINAL]
        self.require(len(ends) == 1, f"it ended {len(ends)} times")
        self.require(self.records[-1] is ends[0], "there are records after its end")
        self.require(self.closed, "its stream is open")
        self._walk()
        self._check_executions()
        if self.arguments is not None:
            self._check_result(self.arguments)

    def _walk(self) -> None:
        """The records are a run of the state machine, without a gap; what has ended says nothing more."""
        running = False
        for number, record in enumerate(self.records):
            event = record["event"]
            if event == "queued":
                self.require(number == 0, "it was queued later than at first")
                continue
            if event == "running":
                self.require(not running, "an attempt began while another ran")
                self.attempts.append(Attempt(record["worker"]))
                running = True
            last = self.attempts[-1] if self.attempts else None
            if event not in ("failed", "cancelled") or running:
                self.require(running and last is not None, f"{event} of no attempt")
                self.require(record["attempt"] == len(self.attempts), f"{event} of another attempt than the last")
            if last is None:
                continue
            if event in ("item", "progress"):
                self.require(record["seq"] == last.sent, f"{event} {record['seq']} where {last.sent} is next")
                last.sent += 1
                if event == "item":
                    last.values.append(record["data"])
                else:
                    last.progress += 1
            elif event in ("retry", "returned", *FINAL) and running:
                last.ended, last.ended_ms = _end_of(record), record["time_ms"]
                running = False

    def _check_executions(self) -> None:
        ran = Counter(execution.attempt for execution in self.executions)
        for execution in self.executions:
            self.require(1 <= execution.attempt <= len(self.attempts), f"attempt {execution.attempt} is not on record")
            self.require(ran[execution.attempt] == 1, f"attempt {execution.attempt} ran {ran[execution.attempt]} times")
            recorded = self.attempts[execution.attempt - 1].worker
            self.require(execution.worker == recorded, f"attempt {execution.attempt} was of {recorded}")
        for number, attempt in enumerate(self.attempts, 1):
            how = {"done": "returned", "failed": "raised"}.get(attempt.ended)
            if how is not None:
                ran_so = [e for e in self.executions if (e.attempt, e.how) == (number, how)]
                so_far = [e for e in ran_so if e.ended_ms <= attempt.ended_ms]
                self.require(so_far, f"attempt {number} was on record as {attempt.ended} before it was")

    def _check_result(self, arguments: tuple[Any, ...]) -> None:
        last = self.attempts[-1] if self.attempts else Attempt("")
        end = self.records[-1]
        if self.end == "cancelled":
            return
        if self.end == "failed":
            code = end["error"]["code"]
            if self.service == "hopeless":
                failures = [attempt for attempt in self.attempts if attempt.ended != "returned"]
                final = code == "hopeless" and arguments[1]
                self.require(final or len(failures) == 3, "it failed before its attempts were spent")
                self.require(code in ("hopeless", "call-failed", "worker-lost"), "it failed with another error")
            else:
                self.require(self.service == "once" and code == "worker-lost", "it failed")
                self.require(len(self.executions) <= 1, "it ran twice")
            return
        self.require(self.service != "hopeless", "it cannot be done")
        self.require(end.get("data") == answer_of(self.service, arguments), "the result is wrong")
        if self.service in ("items", "local.items"):
            self.require(
                last.values == [n * n for n in range(arguments[0])], "what its last attempt yielded is not all"
            )
        elif self.service == "resumed":
            values = [value for attempt in self.attempts for value in attempt.values]
            self.require(values == [n * n for n in range(arguments[0])], "what was yielded is not all, or twice there")
        elif self.service == "progress":
            self.require(last.progress == arguments[0], "progress of its last attempt is missing")

    def again(self) -> Iterator[Attempt]:
        """For each execution beyond the first, the attempt before it, whose end explains it."""
        for execution in self.executions[1:]:
            yield self.attempts[execution.attempt - 2]

    def late(self) -> int:
        """Results that came when the attempt was another's already: refused, as they are not on record."""
        return sum(
            execution.how == "returned"
            and self.attempts[execution.attempt - 1].ended == "lost"
            and execution.ended_ms > self.attempts[execution.attempt - 1].ended_ms
            for execution in self.executions
        )


def _end_of(record: dict[str, Any]) -> str:
    event = str(record["event"])
    if event in ("done", "cancelled", "returned"):
        return event
    return {"worker-lost": "lost", "call-failed": "failed", "hopeless": "failed"}.get(record["error"]["code"], "")
