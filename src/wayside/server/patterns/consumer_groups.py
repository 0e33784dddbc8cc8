"""Groups over HTTP: made, looked at, changed and deleted at ``/v1/group/NAME``; what is known of a record; dead records
and their way back. What members do is in :mod:`wayside.server.patterns.consumer_groups`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from wayside.core.callbacks import report
from wayside.core.errors import BadRequest, InvalidInput, LeaseFenced, Refusal, TooLarge
from wayside.core.globs import Glob
from wayside.core.metadata import Said
from wayside.core.records import Meta, Offset, StreamConfig, require_public
from wayside.groups.events import DeadLetter, GroupSpec
from wayside.groups.group import Group
from wayside.groups.reading import identity_of
from wayside.groups.registry import Groups
from wayside.groups.state import Member
from wayside.link.frames import Ack, Extend, Nack, Part, Publish, Settled, Settlement
from wayside.server.channels import require_member
from wayside.server.exchange import Exchange, json_body, limit_of, preferred_wait_s, quote_header
from wayside.streams.contract import StreamView

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

    def tell(_failed: object) -> None:
        letters = [letter for letter in reversed(group.journal.state.dead.values()) if only(letter.path)]
        found = [_letter(groups, group, letter) for letter in letters[:limit]]
        _answer(exchange, {"dead": found, "found": len(letters)})

    group.journal.then(tell)  # before that it is not known where the letters are of those that die now


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


CLAIM_MAX = 1000
"""Records of one claim."""
CLAIM_BYTES_MAX = 64 * 1024
"""Of the request for it."""
SETTLED_MAX = 10_000
"""Records that one request names."""
DISK_S, DISK_LOOK_S = 1.0, 0.005
"""For how long a claim whose time is over waits for what is being read or committed for it, and how often it looks."""
YEAR_S = 366 * 86_400

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=YEAR_S)]


class _Claim(msgspec.Struct, forbid_unknown_fields=True):
    max: Annotated[int, msgspec.Meta(ge=1, le=CLAIM_MAX)] = 1
    wait: _Seconds | None = None
    member: str = ""


class _Mark(msgspec.Struct, forbid_unknown_fields=True, rename={"first": "from", "last": "to"}, kw_only=True):
    """A record by the offset after it, or neighbours by those after the first and after the last."""

    stream: str
    lease: int
    offset: str = ""
    first: str = ""
    last: str = ""


class _Nack(_Mark, kw_only=True):
    delay: _Seconds | None = None
    reason: str = ""
    kind: Literal["failed", "released", "rejected"] = "failed"


class _Extend(_Mark, kw_only=True):
    seconds: _Seconds = 0.0


class _Publish(msgspec.Struct, forbid_unknown_fields=True, rename={"base_64": "base64"}):
    stream: str
    data: msgspec.Raw = msgspec.Raw()
    text: str | None = None
    base_64: str | None = None
    headers: dict[str, str] = {}
    id: str = ""
    key: str = ""
    ttl: _Seconds = 0.0


class _Settle(msgspec.Struct, forbid_unknown_fields=True):
    member: str = ""
    acks: list[_Mark] = []
    nacks: list[_Nack] = []
    extends: list[_Extend] = []
    publish: list[_Publish] = []


# -- claiming


def claim(exchange: Exchange, groups: Groups, name: str) -> None:
    """Answer a POST: up to so many records, as soon as there is one; none, when the wait is over."""
    group = groups.group(name)
    wanted = json_body(exchange, _Claim, CLAIM_BYTES_MAX)
    member = wanted.member or f"claim-{secrets.token_hex(6)}"
    require_member(member)
    preferred = preferred_wait_s(exchange.request.headers.get("prefer"))
    seconds = wanted.wait if wanted.wait is not None else preferred or 0.0
    seconds = min(seconds, groups.log.limits.wait_s_max)
    applied = b"Preference-Applied: wait=%d\r\n" % seconds if wanted.wait is None and preferred is not None else b""
    _Claiming(exchange, group, member, wanted.max, applied).begin(seconds)


class _Claiming:
    """A request that waits for a delivery."""

    __slots__ = ("_applied", "_exchange", "_group", "_member", "_patience", "_timer")

    def __init__(self, exchange: Exchange, group: Group, name: str, count: int, applied: bytes) -> None:
        self._exchange = exchange
        self._group = group
        self._member = Member(name, self, count, once=True)
        self._applied = applied
        self._patience = DISK_S
        self._timer: asyncio.Handle | None = None

    def begin(self, seconds: float) -> None:
        self._group.join(self._member)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._over) if seconds else loop.call_soon(self._over)
        self._exchange.on_lost = self._leave
        self._exchange.on_eof = self._gone
        self._exchange.on_drain = self._over

    def deliver(self, lease: int, seconds: float, parts: list[Part]) -> None:
        self._leave()
        self._answer(lease, seconds, [record for part in parts for record in _records(part)])

    def ended(self, error: Exception) -> None:
        self._leave()
        self._exchange.refuse(error)

    def _leave(self) -> None:
        """It takes nothing more; what is on its way to it goes back."""
        if self._timer is not None:
            self._timer.cancel()
        self._group.leave(self._member, give_back=False)

    def _over(self) -> None:
        """There is nothing, unless a lease is being committed, or a record read from the disk."""
        if self._member.link is None:
            return
        if self._member.taken or (self._group.reading.busy and self._patience > 0):
            if self._timer is not None:
                self._timer.cancel()
            self._patience -= DISK_LOOK_S
            self._timer = asyncio.get_running_loop().call_later(DISK_LOOK_S, self._over)
            return
        self._gone()

    def _gone(self) -> None:
        self._leave()
        self._answer(None, self._group.spec.lease_s, [])

    def _answer(self, lease: int | None, seconds: float, records: list[dict[str, Any]]) -> None:
        document = {"lease": lease, "lease_s": seconds, "member": self._member.name, "records": records}
        self._exchange.respond(200, _JSON + self._applied, msgspec.json.encode(document))


def _records(part: Part) -> list[dict[str, Any]]:
    config = StreamConfig(part.content_type)
    found: list[dict[str, Any]] = []
    for index, record in enumerate(part.records):
        told: dict[str, Any] = {
            "stream": part.path,
            "offset": part.offset(index),
            "attempt": part.attempt,
            "time_ms": part.time_ms,
            "content_type": part.content_type,
            **_value(config, record),
        }
        meta = part.metas.get(index) if part.metas else None
        if meta is not None:
            said = {"headers": meta.headers, "id": meta.id, "key": meta.key}
            told |= {name: value for name, value in said.items() if value}
        found.append(told)
    return found


def _value(config: StreamConfig, record: bytes) -> dict[str, Any]:
    if config.is_json:
        return {"data": msgspec.Raw(record)}
    if config.is_text:
        try:
            return {"text": record.decode()}
        except UnicodeDecodeError:  # of another charset
            pass
    return {"base64": base64.b64encode(record).decode()}


# -- settling


def ack(exchange: Exchange, groups: Groups, name: str) -> None:
    """Answer a POST: acks, nacks and extensions, each by its lease; with ``publish`` in one transaction."""
    group = groups.group(name)
    wanted = json_body(exchange, _Settle, groups.log.limits.json_body_bytes_max)
    settling = _Settling(exchange, groups, group)
    settlement = Settlement(
        acks=[Ack(*run, mark.lease) for mark in wanted.acks for run in settling.runs(mark)],
        nacks=[
            Nack(number, position, mark.lease, mark.kind, mark.delay, mark.reason)
            for mark in wanted.nacks
            for number, first, count in settling.runs(mark)
            for position in range(first, first + count)
        ],
        extends=[Extend(*run, mark.lease, mark.seconds) for mark in wanted.extends for run in settling.runs(mark)],
        publish=[_publish(groups, item, number) for number, item in enumerate(wanted.publish)],
    )
    if settlement.publish and settling.refused:
        settling.refuse(Settled())
        return
    try:
        group.settle(settlement, settling.settled, wanted.member or None)
    except LeaseFenced as fenced:
        settling.add(fenced.fields.get("refused"))
        settling.refuse(Settled())


class _Settling:
    """One request: offsets become positions, and what is refused offsets again."""

    def __init__(self, exchange: Exchange, groups: Groups, group: Group) -> None:
        self._exchange = exchange
        self._groups = groups
        self._group = group
        self._streams: dict[str, tuple[int, StreamView] | None] = {}
        self._views: dict[int, StreamView] = {}
        self._left = SETTLED_MAX
        self.refused: list[dict[str, str]] = []
        self._already: list[dict[str, str]] = []

    def runs(self, mark: _Mark) -> list[tuple[int, int, int]]:
        """The (partition, position, count) that a mark names: one run; or none, where its stream is not the one that the
        group reads."""
        if bool(mark.offset) == bool(mark.first) or bool(mark.first) != bool(mark.last):
            raise BadRequest(
                "Name a record by its offset, or neighbours by from and to: the offsets of the first and of the last.",
                code="parameter-invalid",
            )
        first, last = Offset.parse(mark.offset or mark.first), Offset.parse(mark.offset or mark.last)
        count = last.position - first.position + 1
        if first.position < 1 or count < 1:
            raise BadRequest(
                "No record is before that offset." if first.position < 1 else "to is before from.",
                code="offset-malformed",
            )
        self._left -= count
        if self._left < 0:
            raise TooLarge(f"At most {SETTLED_MAX} records at one time.", fields={"limit_records": SETTLED_MAX})
        found = self._stream(mark.stream)
        if found is None or any(found[1].offset(offset.position) != offset for offset in (first, last)):
            self.refused.append({"stream": mark.stream, "offset": mark.offset or mark.first, "code": "lease-fenced"})
            return []
        return [(found[0], first.position - 1, count)]

    def _stream(self, path: str) -> tuple[int, StreamView] | None:
        """Partition and stream, while the group reads what is at that path now."""
        if path not in self._streams:
            self._streams[path] = None
            partition = self._group.journal.state.by_path.get(path)
            stream = self._group.reading.find(partition) if partition is not None else None
            if partition is not None and stream is not None and identity_of(stream) == partition.epoch:
                self._streams[path] = partition.number, stream
                self._views[partition.number] = stream
        return self._streams[path]

    def add(self, rows: Any) -> None:
        """Take what the group refuses: rows of partition, position and code."""
        for number, position, code in rows or ():
            stream = self._views[number]
            where = {"stream": stream.path, "offset": str(stream.offset(position + 1))}
            if code == "already-settled":
                self._already.append(where)
            else:
                self.refused.append({**where, "code": code})

    def settled(self, result: Settled | Exception) -> None:
        if isinstance(result, Exception):
            self._exchange.refuse(result)
            return
        self.add([(each.number, each.position, each.code) for each in result.refused])
        if self.refused:
            self.refuse(result)
        else:
            self._exchange.respond(200, _JSON, msgspec.json.encode(self._document(result)))

    def refuse(self, settled: Settled) -> None:
        """Answer that some, or with ``publish`` all, was not taken."""
        taken = settled.acked + settled.nacked + settled.extended
        self._exchange.refuse(
            LeaseFenced(
                f"Not held under their lease (any more): {len(self.refused) or len(self._already)} of the records. Taken: "
                f"{taken or 'none'}. What is not settled comes back: claim again.",
                fields={**self._document(settled), "refused": self.refused},
            )
        )

    def _document(self, settled: Settled) -> dict[str, Any]:
        return {
            "acked": settled.acked,
            "nacked": settled.nacked,
            "extended": settled.extended,
            "already": self._already,
            "offsets": settled.offsets,
        }


def _publish(groups: Groups, item: _Publish, number: int) -> Publish:
    """One record to publish. Raises where its stream does not take it."""
    require_public(item.stream)
    config = groups.log.find(item.stream).config
    where = f"publish[{number}], for {item.stream},"
    data = bytes(item.data)
    given = [bool(data), item.text is not None, item.base_64 is not None]
    if sum(given) != 1 or given[0] != config.is_json:
        wants = "data" if config.is_json else "text or base64"
        raise BadRequest(f"{where} has to have {wants}, as its stream is {config.content_type}.", code="record-data")
    if config.is_json:
        data = data.replace(b"\r", b" ").replace(b"\n", b" ").strip()
    elif item.text is not None:
        data = item.text.encode()
    else:
        try:
            data = base64.b64decode(item.base_64 or "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"{where} has base64 that is none: {error}.", code="record-data") from error
    if not data:
        raise BadRequest(f"{where} is empty: there is nothing to append.", code="empty-append")
    meta = Said(item.id, item.key, item.headers, item.ttl).meta(groups.clock, groups.log.limits)
    metas: dict[int, Meta] | None = {0: meta} if meta is not None else None
    return Publish(item.stream, [data], metas)


CLAIM_ACTIONS: dict[str, tuple[str, Callable[[Exchange, Groups, str], None]]] = {
    "ack": ("POST", ack),
    "claim": ("POST", claim),
}
"""What is below a group: its method, and what answers it."""
