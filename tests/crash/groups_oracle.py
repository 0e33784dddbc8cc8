"""What must be true of a record in a group, told from what its publisher was promised, from what the members noted of
themselves, and from its receipt. It shares no code with the hub.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

EXTRA = ("again", "stale", "foreign")
"""Acks of a record that is settled, under a lease that is not its own, or in another's name."""


@dataclass(frozen=True)
class Note:
    """What a member noted: a record was given it (``began``), its effect happened (``effect``), what it says of the record is
    on its way (``saying``), and was ``kept``, ``refused``, or it is ``unknown``; or an ack beside that was answered."""

    what: str
    group: str
    stream: str
    offset: str
    attempt: int
    lease: int
    member: str
    time_ms: int
    said: str = ""
    exact: bool = False
    """It was this lease's ack that was kept; else it may be another's of which the member was told."""
    acked: int = 0
    """Records that an ack beside has settled."""
    code: str = ""
    """What it was refused with."""


Key = tuple[str, str, str]
"""Group, stream, and offset after the record."""


def read_notes(directory: Path) -> dict[Key, list[Note]]:
    """What all processes noted, by record."""
    notes: dict[Key, list[Note]] = defaultdict(list)
    known = set(Note.__dataclass_fields__)
    for path in sorted(directory.glob("*.executions")):
        for line in path.read_text().splitlines():
            note = Note(**{name: value for name, value in json.loads(line).items() if name in known})
            notes[note.group, note.stream, note.offset].append(note)
    for each in notes.values():
        each.sort(key=lambda note: note.time_ms)
    return notes


@dataclass(frozen=True)
class Delivery:
    """One delivery, as the receipt has it."""

    lease: int
    member: str
    time_ms: int
    ended: str = ""
    ended_ms: int = 0
    reason: str = ""
    again_ms: int = 0

    @property
    def why(self) -> str:
        """Why there was another delivery after it."""
        if self.ended == "released":
            known = ("its member left", "its connection was lost", "it was handed back")
            return self.reason if self.reason in known else "unexplained"
        if self.ended == "failed":
            return "lease ended" if self.reason.startswith("the lease of ") else "nacked"
        return "unexplained"


@dataclass
class Story:
    """A record in a group, when the group has nothing to do any more."""

    group: str
    stream: str
    offset: str
    record: dict[str, Any]
    receipt: dict[str, Any]
    notes: list[Note]
    retries: int
    """-1: no bound."""
    deliveries: list[Delivery] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deliveries = [Delivery(**each) for each in self.receipt["deliveries"]]

    def __str__(self) -> str:
        told = {name: value for name, value in self.receipt.items() if name != "deliveries"}
        lines = [f"{self.group}: {self.stream} {self.offset} {self.record}", f"  {told}"]
        lines += [f"  {delivery}" for delivery in self.deliveries]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    def require(self, truth: object, claim: str) -> None:
        if not truth:
            raise AssertionError(f"{claim}\n{self}")

    def noted(self, what: str) -> list[Note]:
        return [note for note in self.notes if note.what == what]

    @property
    def effects(self) -> list[Note]:
        return self.noted("effect")

    @property
    def dead(self) -> bool:
        return bool(self.receipt["state"] == "dead")

    def offset_in(self, stream: str) -> str:
        """Where its dead letter is said to be."""
        letter = self.receipt["dead_letter"]
        self.require(letter["stream"] == stream, "its dead letter is elsewhere")
        return str(letter["offset"])

    @property
    def settled_ms(self) -> int:
        return self.deliveries[-1].ended_ms

    def check(self) -> str:
        """``ok``, ``duplicated`` (it had more than one effect), ``dead``, or ``lost``."""
        self._check_receipt()
        self._check_notes()
        if self.dead:
            return "dead"
        last = self.deliveries[-1]
        before = [note for note in self.effects if note.lease == last.lease and note.time_ms <= last.ended_ms]
        if not before:
            return "lost"
        return "ok" if len(self.effects) == 1 else "duplicated"

    def _check_receipt(self) -> None:
        """It is acked or dead, once and at the end, and its attempts are counted."""
        deliveries = self.deliveries
        self.require(self.receipt["state"] in ("acked", "dead"), "it is neither acked nor dead")
        self.require(self.receipt["complete"] and deliveries, "its receipt is not whole")
        self.require(self.receipt["attempts"] == len(deliveries), "its attempts are miscounted")
        for one, next_one in pairwise(deliveries):
            self.require(one.lease < next_one.lease, "a lease is not greater than the one before")
            self.require(one.ended in ("failed", "released"), "it was delivered again, and had not failed")
            self.require(one.ended_ms <= next_one.time_ms, "it was delivered while another had it")
            self.require(one.again_ms <= next_one.time_ms, "it was delivered before its time")
        failures = sum(delivery.ended == "failed" for delivery in deliveries)
        last = deliveries[-1]
        if not self.dead:
            self.require(last.ended == "acked", "it is acked, and its last delivery was not")
            self.require(self.retries < 0 or failures <= self.retries, "it was acked after its last attempt had failed")
            return
        rejected = any((note.lease, note.said) == (last.lease, "rejected") for note in self.noted("saying"))
        self.require(last.ended == "failed", "it is dead, and its last attempt has not failed")
        self.require(failures == self.retries + 1 or rejected, "it is dead before its attempts were spent")

    def _check_notes(self) -> None:
        by_lease = {delivery.lease: (number, delivery) for number, delivery in enumerate(self.deliveries, 1)}
        for note in self.noted("began"):
            self.require(note.lease in by_lease, f"it was given under lease {note.lease}, which is not on record")
            number, delivery = by_lease[note.lease]
            self.require(note.attempt == number, f"attempt {number} was called {note.attempt}")
            self.require(note.member == delivery.member, f"attempt {number} was of another member than on record")
            self.require(note.time_ms >= delivery.time_ms, f"attempt {number} began before it was on record")
        for what in ("began", "effect"):
            for lease, times in Counter(note.lease for note in self.noted(what)).items():
                self.require(times == 1, f"under lease {lease} it was given {times} times")
        for note in self.noted("refused"):
            ended = by_lease[note.lease][1].ended
            self.require((ended, note.said) != ("acked", "ack"), "an ack was refused, and is on record")
        for note in self.noted("kept"):
            ended = by_lease[note.lease][1].ended
            if note.said == "ack" and note.exact:
                self.require(ended == "acked", "an ack was confirmed, and is not on record")
            elif note.exact:
                self.require(ended == ("released" if note.said == "released" else "failed"), "a nack is not on record")
        for note in self.notes:
            if note.what in EXTRA:
                self.require(not note.acked, f"an ack that was {note.what} has settled it")
                allowed = ("",) if note.what == "again" and not self.dead else ("", "lease-fenced")
                self.require(note.code in allowed, f"an ack that was {note.what} was answered otherwise")

    def again(self) -> Iterator[str]:
        """Why there was each effect beyond the one that counts."""
        by_lease = {delivery.lease: delivery for delivery in self.deliveries}
        effects = [by_lease[note.lease] for note in self.effects]
        counts = next((delivery for delivery in effects if delivery.ended == "acked"), None)
        for delivery in effects if counts else effects[1:]:
            if delivery is not counts:
                yield delivery.why

    def late(self) -> int:
        """Effects of members that had lost their lease by then."""
        ended = {delivery.lease: delivery.ended_ms for delivery in self.deliveries}
        return sum(note.time_ms > ended[note.lease] for note in self.effects)


def violations(stories: Iterable[Story]) -> list[str]:
    """Where records with equal keys were not done one after the other. Give it the stories of a stream in order."""
    found: list[str] = []
    before: dict[str, Story] = {}
    for story in stories:
        key = story.record["key"]
        earlier, before[key] = before.get(key), story
        if earlier is None:
            continue
        began = min((note.time_ms for note in story.noted("began")), default=story.settled_ms)
        first = story.deliveries[0]
        in_order = earlier.deliveries[-1].lease < first.lease and earlier.settled_ms <= min(began, first.time_ms)
        if not in_order or earlier.record["n"] >= story.record["n"]:
            found.append(f"{story}\nbegan before this was settled:\n{earlier}")
    return found
