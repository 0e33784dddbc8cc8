"""The groups of one hub: named shared readers of streams."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
import structlog

from wayside.core.callbacks import Done, report
from wayside.core.clock import Clock
from wayside.core.engine import require_atomic
from wayside.core.errors import BadRequest, Conflict, NotFound, Overloaded, Refusal
from wayside.core.globs import Glob, is_glob
from wayside.core.policies import is_field
from wayside.core.records import Durability, Offset, StreamTail, require_path, require_public, start_position
from wayside.core.schedule import Timers
from wayside.groups.dispatch import BY_KEY
from wayside.groups.events import Event, GroupSpec, Opened, Specified
from wayside.groups.group import Group
from wayside.groups.journal import GROUPS
from wayside.groups.reading import identity_of
from wayside.groups.receipts import receipt_of
from wayside.streams.contract import Log

__all__ = ["Groups", "require_spec"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
"""Of a group."""
STREAMS_SHOWN = 1000
"""Of one group, in its description."""
LAG_STREAMS_MAX = 20_000
"""Streams that are looked at to tell the lags of many groups: some 0.1 s."""

_log = structlog.get_logger("wayside.groups")


class Groups:
    """All groups, loaded when the hub starts. ``check_webhook`` raises what is wrong with a URL (None: nothing is pushed to
    any); ``on_specified`` is told of each group that is new, loaded or changed, and of one that was deleted."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        timers: Timers,
        check_webhook: Callable[[str], None] | None = None,
        on_specified: Callable[[Group], object] = id,
    ) -> None:
        self.log = log
        self.clock = clock
        self._timers = timers
        self._check_webhook = check_webhook
        self._on_specified = on_specified
        self._groups: dict[str, Group] = {}
        self._making: set[str] = set()

    # -- life

    async def start(self) -> None:
        """Take up what the disk has."""
        after = ""
        while infos := self.log.list(GROUPS, after, 1000):
            after = infos[-1].path
            for info in infos:
                name = info.path[len(GROUPS) :]
                if "/" in name or name in self._groups:
                    continue
                group = self._new(name)
                try:
                    await group.load()
                except Exception as error:  # the others work all the same
                    _log.error("group-not-read", group=name, error=str(error))
                    if not isinstance(error, Refusal):
                        report(error, self.start)
                    continue
                self._groups[name] = group
                group.begin()
                self._on_specified(group)

    def stop(self) -> None:
        """Deliver nothing more."""
        for group in self._groups.values():
            group.end()

    def _new(self, name: str) -> Group:
        return Group(name, self.log, self.clock, self._timers, self._on_specified)

    # -- finding

    def group(self, name: str) -> Group:
        """The group of a name. Raises :class:`NotFound` where there is none."""
        group = self._groups.get(name)
        if group is None:
            known = ", ".join(sorted(self._groups)[:10]) or "none yet"
            raise NotFound(
                f"There is no group {name[:200]!r}. Known: {known}. Make it: PUT /v1/group/{name[:200]}, or `wayside group "
                f"create {name[:200]} STREAM...`.",
                code="group-not-found",
            )
        return group

    def all(self) -> list[Group]:
        """The groups, by name."""
        return [self._groups[name] for name in sorted(self._groups)]

    # -- making and changing

    def put(self, name: str, spec: GroupSpec, done: Done) -> None:
        """Make a group, or give it other settings; ``done`` gets (group, whether it is new) or an exception. Raises a
        :class:`BadRequest` for settings that make no sense."""
        if not NAME.fullmatch(name):
            raise BadRequest(
                f"{name[:200]!r} is no name for a group: use up to 128 letters, digits, dots, dashes, underscores.",
                code="group-name",
            )
        require_spec(spec)
        if spec.webhook:
            if self._check_webhook is None:
                raise BadRequest(
                    "This hub pushes nothing: it has no secret to sign with. Start it with --webhook-secret.",
                    code="callbacks-off",
                )
            self._check_webhook(spec.webhook)
        if spec.dead_letter:
            require_atomic(self.log.abilities, "a dead record could be in both places. Leave dead_letter out")
            require_path(spec.dead_letter, self.log.limits.path_bytes_max)
            _require_durable(self.log, spec.dead_letter)
        group = self._groups.get(name)
        if group is not None:
            if msgspec.structs.replace(spec, start=group.spec.start) == group.spec:
                done((group, False))
            else:
                spec = msgspec.structs.replace(spec, start=group.spec.start)
                group.specify(spec, lambda failed: done(failed or (group, False)))
            return
        if name in self._making:
            raise Overloaded("The group is being made. Try again shortly.", headers={"Retry-After": "1"})
        now_ms = self.clock.wall_ms()
        events: list[Event] = [Specified(now_ms, spec), *self._opened(spec)]
        group = self._new(name)
        self._making.add(name)
        group.journal.make(events, partial(self._made, group, done))

    def _opened(self, spec: GroupSpec) -> list[Event]:
        """Where the streams begin that are there now. Those that begin at their start need not be known."""
        if spec.start == "-1":
            return []
        if spec.start == "now":
            found: list[Event] = []
            for path in sorted({tail.path for text in spec.streams for tail in self.log.tails(Glob(text))}):
                stream = self.log.find(path, touch=False)
                found.append(Opened(len(found) + 1, path, identity_of(stream), stream.tail))
            return found
        path = spec.streams[0]
        stream = self.log.find(path, touch=False)
        return [Opened(1, path, identity_of(stream), start_position(stream, spec.start))]

    def _made(self, group: Group, done: Done, failed: Exception | None) -> None:
        self._making.discard(group.name)
        if failed is not None:
            done(failed)
            return
        self._groups[group.name] = group
        group.begin()
        self._on_specified(group)
        done((group, True))

    def delete(self, name: str, done: Done) -> None:
        """Forget a group: its members are told, what they hold is nobody's; the streams it reads stay."""
        group = self._groups.get(name)
        if group is None and not self._on_disk(name):
            group = self.group(name)
        told: list[Any] = []

        def deleted(result: Any) -> None:
            told.append(result)
            if len(told) == 2:
                done(next((each for each in told if isinstance(each, Exception)), None))

        if group is not None:
            del self._groups[name]
            group.discard()
            self._on_specified(group)
        for path in (f"{GROUPS}{name}/state", GROUPS + name):
            try:
                self.log.delete(path, deleted)
            except Refusal as refusal:
                deleted(refusal)

    def _on_disk(self, name: str) -> bool:
        """Whether there is a group that could not be read."""
        try:
            return bool(NAME.fullmatch(name) and name not in self._making and self.log.find(GROUPS + name, touch=False))
        except Refusal:
            return False

    # -- looking

    def lag(self, group: Group) -> dict[str, int]:
        """Records of each stream that were never delivered: a difference of positions, so that gaps between them count."""
        lags: dict[str, int] = {}
        for glob in group.sources.globs:
            lags |= _lags(group, self.log.tails(glob))
        return lags

    def lags(self, groups: Iterable[Group]) -> dict[str, int | None]:
        """The lag of each of several groups, by name; None for those that are left when enough streams were looked at."""
        tails: dict[str, list[StreamTail]] = {}
        found: dict[str, int | None] = {}
        left = LAG_STREAMS_MAX
        for group in groups:
            if left <= 0:
                found[group.name] = None
                continue
            lags: dict[str, int] = {}
            for glob in group.sources.globs:
                if glob.text not in tails:
                    tails[glob.text] = list(self.log.tails(glob))
                    left -= len(tails[glob.text])
                left -= len(tails[glob.text])
                lags |= _lags(group, tails[glob.text])
            found[group.name] = sum(lags.values())
        return found

    def describe(self, group: Group) -> dict[str, Any]:
        """A group for people and programs."""
        state = group.journal.state
        lags = self.lag(group)
        names: dict[str, dict[str, Any]] = {
            name: {"name": name, "in_flight": held, "connected": False, "credit": 0}
            for name, held in state.member_in_flight.items()
        }
        for member in group.members:
            entry = names.setdefault(
                member.name, {"name": member.name, "in_flight": 0, "connected": False, "credit": 0}
            )
            entry["connected"] = True
            entry["credit"] += member.credit
        streams = []
        for path in sorted(lags)[:STREAMS_SHOWN]:
            partition = state.by_path.get(path)
            entry = {"stream": path, "lag": lags[path]}
            if partition is not None:
                entry |= {
                    "in_flight": len(partition.leased),
                    "waiting": len(partition.waiting),
                    "parked": len(partition.parked),
                    "position": partition.lowest(),
                    "next": partition.next,
                }
            streams.append(entry)
        return {
            "name": group.name,
            "settings": msgspec.structs.asdict(group.spec),
            "members": sorted(names.values(), key=lambda entry: str(entry["name"])),
            "lag": sum(lags.values()),
            "in_flight": state.in_flight,
            "waiting": sum(len(partition.waiting) for partition in state.partitions.values()),
            "parked": state.parked,
            "dead": len(state.dead),
            "counts": dict(state.counts),
            "streams": streams,
            "paused": group.spec.paused,
            "stuck": group.stuck or None,
        }

    async def receipt(self, name: str, path: str, offset: str) -> dict[str, Any]:
        """What is known of one record in one group: ``offset`` is the one after it. Raises a :class:`Refusal`."""
        return await receipt_of(self.group(name), path, offset)


def _lags(group: Group, tails: Iterable[StreamTail]) -> dict[str, int]:
    by_path = group.journal.state.by_path
    lags: dict[str, int] = {}
    for path, earliest, tail, _closed in tails:
        partition = by_path.get(path)
        at = partition.next if partition is not None else earliest.position
        lags[path] = max(0, tail.position - max(at, earliest.position))
    return lags


def _require_durable(log: Log, path: str) -> None:
    """Raise where a stream cannot share a transaction with a group that is on disk."""
    try:
        stream = log.find(path, touch=False)
    except NotFound:
        return
    if log.durable and stream.config.durability is not Durability.FSYNC:
        raise Conflict(
            f"{path} is {stream.config.durability.value}: dead letters need a stream with durability fsync.",
            code="durability-mismatch",
        )


def require_spec(spec: GroupSpec) -> None:
    """Raise :class:`BadRequest` for settings that make no sense."""
    if not spec.streams or len(spec.streams) > 1000:
        raise BadRequest("A group reads from 1 to 1000 paths or globs: say which.", code="group-invalid")
    for text in spec.streams:
        Glob(text)
    if spec.start not in ("-1", "now"):
        if len(spec.streams) != 1 or is_glob(spec.streams[0]):
            raise BadRequest("start is -1, now, or an offset of the one stream.", code="group-invalid")
        Offset.parse(spec.start)
    bounds: dict[str, tuple[float, float]] = {
        "lease_s": (0.1, 12 * 3600),
        "retries": (-1, 1_000_000),
        "backoff_s": (0, 86_400),
        "backoff_s_max": (0, 7 * 86_400),
        "in_flight_max": (1, 100_000),
        "member_in_flight_max": (0, 100_000),
        "webhook_concurrency": (1, 256),
    }
    for name, (least, most) in bounds.items():
        value = getattr(spec, name)
        if not least <= value <= most:
            raise BadRequest(f"{name} is from {least:g} to {most:g}, not {value}.", code="group-invalid")
    if spec.order_by not in ("", BY_KEY) and not is_field(spec.order_by):
        raise BadRequest(
            f"order_by={spec.order_by[:80]!r} is no field: give its name, several joined by dots for one that is further in, "
            f"such as customer.id, or {BY_KEY} for the key that a record was published with.",
            code="group-invalid",
        )
    if spec.dead_letter:
        require_public(spec.dead_letter)
        if is_glob(spec.dead_letter) or any(Glob(text).matches(spec.dead_letter) for text in spec.streams):
            raise BadRequest(
                "dead_letter is one stream that the group itself does not read: else dead records come round for ever.",
                code="group-invalid",
            )
