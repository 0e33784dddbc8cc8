"""Groups over HTTP: made, looked at, changed and deleted at ``/v1/group/NAME``; what is known of a record; dead records
and their way back. What members do is in :mod:`wayside.patterns.claiming`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from wayside.bodies import json_body, limit_of
from wayside.errors import BadRequest, InvalidInput, Refusal
from wayside.exchange import Exchange, quote_header
from wayside.globs import Glob
from wayside.group import Group
from wayside.groups import Groups
from wayside.guard import report
from wayside.model import Offset
from wayside.state.groupevents import DeadLetter, GroupSpec

GROUPS_URL = "/v1/group/"
BODY_BYTES_MAX = 1024 * 1024
"""Of a request about a group."""

_JSON = b"Content-Type: application/json\r\nCache-Control: no-store\r\n"
_tasks: set[asyncio.Task[None]] = set()
"""Answers that are read from the disk."""


class _Spec(GroupSpec, frozen=True, forbid_unknown_fields=True):
    streams: list[str] | str  # type: ignore[assignment]


class _Redrive(msgspec.Struct, forbid_unknown_fields=True):
    streams: list[str] | str = []
    offsets: list[str] = []
    reason: str = ""
    max: int | None = None


class _Seek(msgspec.Struct, forbid_unknown_fields=True):
    to: str
    streams: list[str] | str = []


def _answer(exchange: Exchange, document: Any, status: int = 200, head: bytes = b"") -> None:
    exchange.respond(status, _JSON + head, msgspec.json.encode(document))


def _told(exchange: Exchange, then: Callable[[Any], None]) -> Callable[[Any], None]:
    """A ``Done`` that refuses, or goes on."""

    def done(result: Any) -> None:
        if isinstance(result, Exception):
            exchange.refuse(result)
        else:
            then(result)

    return done


def _paths(streams: list[str] | str) -> Callable[[str], bool]:
    """Whether a path is one of those that globs name; all are, where there are none."""
    globs = [Glob(text) for text in ([streams] if isinstance(streams, str) else streams)]
    return lambda path: not globs or any(glob.matches(path) for glob in globs)


# -- groups


def list_groups(exchange: Exchange, groups: Groups) -> None:
    """Answer with the groups by name, a page at a time: ``{"groups": [...], "next": "NAME" or null}``."""
    request = exchange.request
    limit, prefix, after = limit_of(request), request.one("prefix") or "", request.one("after") or ""
    page = [group for group in groups.all() if group.name.startswith(prefix) and group.name > after][:limit]
    lags = groups.lags(page)
    listed = [_summary(group, lags[group.name]) for group in page]
    _answer(exchange, {"groups": listed, "next": page[-1].name if len(page) == limit else None})


def _summary(group: Group, lag: int | None) -> dict[str, Any]:
    state = group.journal.state
    return {
        "name": group.name,
        "streams": group.spec.streams,
        "lag": lag,
        "in_flight": state.in_flight,
        "waiting": sum(len(partition.waiting) for partition in state.partitions.values()),
        "parked": state.parked,
        "dead": len(state.dead),
        "members": len({member.name for member in group.members} | state.member_in_flight.keys()),
        "paused": group.spec.paused,
        "webhook": group.spec.webhook or None,
    }


def put(exchange: Exchange, groups: Groups, name: str, base: str) -> None:
    """Answer a PUT: the group is made, or has these settings from now on."""
    wanted = json_body(exchange, _Spec, BODY_BYTES_MAX)
    settings = msgspec.structs.asdict(wanted)
    if isinstance(wanted.streams, str):
        settings["streams"] = [wanted.streams]

    def done(result: tuple[Group, bool]) -> None:
        group, new = result
        head = b"Location: %b\r\n" % quote_header(base + name).encode("latin-1") if new else b""
        _answer(exchange, groups.describe(group), 201 if new else 200, head)

    groups.put(name, GroupSpec(**settings), _told(exchange, done))


def get(exchange: Exchange, groups: Groups, name: str) -> None:
    """Answer with one group as it is."""
    _answer(exchange, groups.describe(groups.group(name)))


def delete(exchange: Exchange, groups: Groups, name: str) -> None:
    """Answer a DELETE: the group is forgotten, its streams stay."""
    groups.delete(name, _told(exchange, lambda _none: exchange.respond(204, b"")))


def pause(exchange: Exchange, groups: Groups, name: str, *, paused: bool) -> None:
    """Answer a POST: the group delivers nothing more until it is resumed, or delivers again."""
    spec = msgspec.structs.replace(groups.group(name).spec, paused=paused)
    groups.put(name, spec, _told(exchange, lambda _group: _answer(exchange, {"paused": paused})))


def seek(exchange: Exchange, groups: Groups, name: str) -> None:
    """Answer a POST: the group reads on from elsewhere."""
    group = groups.group(name)
    wanted = json_body(exchange, _Seek, BODY_BYTES_MAX)
    group.seek(wanted.to, _paths(wanted.streams), _told(exchange, lambda paths: _answer(exchange, {"streams": paths})))


# -- records


def receipts(exchange: Exchange, groups: Groups, name: str) -> None:
    """Answer with what is known of one record."""
    stream, offset = exchange.request.one("stream"), exchange.request.one("offset")
    if not stream or not offset:
        raise BadRequest(
            "Say which record: ?stream=PATH&offset=OFFSET, where the offset is the one after it.",
            code="parameter-missing",
        )
    groups.group(name)

    async def read() -> None:
        try:
            _answer(exchange, await groups.receipt(name, stream, offset))
        except Exception as error:
            if not isinstance(error, Refusal):
                report(error, read)
            exchange.refuse(error)

    task = asyncio.get_running_loop().create_task(read())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    exchange.on_lost = task.cancel  # type: ignore[assignment]  # what it returns nobody looks at


def dead(exchange: Exchange, groups: Groups, name: str) -> None:
    """Answer with the dead records of a group, those that died last first."""
    group = groups.group(name)
    limit = limit_of(exchange.request)
    only = _paths(exchange.request.one("stream") or [])
    letters = [letter for letter in reversed(group.journal.state.dead.values()) if only(letter.path)]
    _answer(exchange, {"dead": [_letter(groups, group, letter) for letter in letters[:limit]], "found": len(letters)})


def _letter(groups: Groups, group: Group, letter: DeadLetter) -> dict[str, Any]:
    return {
        "stream": letter.path,
        "offset": str(_offset_of(groups, group, letter)),
        "died_ms": letter.time_ms,
        "attempts": letter.deliveries,
        "reason": letter.reason,
        "dead_letter": {"stream": letter.copy[0], "offset": letter.copy[1]} if letter.copy else None,
    }


def _offset_of(groups: Groups, group: Group, letter: DeadLetter) -> Offset:
    """The offset after a record."""
    try:
        return groups.log.find(letter.path, touch=False).offset(letter.position + 1)
    except Refusal:
        partition = group.journal.state.partitions.get(letter.number)
        return Offset(partition.epoch if partition else 0, letter.position + 1)


def redrive(exchange: Exchange, groups: Groups, name: str) -> None:
    """Answer a POST: dead records are delivered again, the oldest first."""
    group = groups.group(name)
    wanted = json_body(exchange, _Redrive, BODY_BYTES_MAX)
    if wanted.max is not None and wanted.max < 1:
        raise InvalidInput("Expected `int` >= 1, at $.max.", fields={"field": "$.max"})
    offsets = {Offset.parse(text) for text in wanted.offsets}
    only, left = _paths(wanted.streams), wanted.max

    def chosen(letter: DeadLetter) -> bool:
        nonlocal left
        if left == 0 or not only(letter.path) or wanted.reason not in letter.reason:
            return False
        if offsets and _offset_of(groups, group, letter) not in offsets:
            return False
        left = None if left is None else left - 1
        return True

    group.redrive(chosen, _told(exchange, lambda count: _answer(exchange, {"redriven": count})))


ACTIONS: dict[str, tuple[str, Callable[[Exchange, Groups, str], None]]] = {
    "dead": ("GET", dead),
    "pause": ("POST", partial(pause, paused=True)),
    "receipts": ("GET", receipts),
    "redrive": ("POST", redrive),
    "resume": ("POST", partial(pause, paused=False)),
    "seek": ("POST", seek),
}
"""What is below a group: its method, and what answers it."""
