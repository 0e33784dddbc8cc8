"""Subscriptions of the Durable Streams protocol (sections 6 and 7): durable cursors in streams, which wake workers.

Each is a stream of events, ``__ds/subscriptions/ID``; which streams its pattern means is not kept, but seen. How workers
are told is in :mod:`wayside.webhooks.wakes`, what may be done when in :mod:`wayside.webhooks.subscription`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from wayside.core.callbacks import Done
from wayside.core.clock import Clock
from wayside.core.errors import BadRequest, NotFound, Refusal, TooMany
from wayside.core.globs import Glob
from wayside.core.records import JSON, Appended, Create, StreamConfig, is_reserved, require_path
from wayside.core.schedule import Timers
from wayside.streams.contract import Log
from wayside.webhooks.keys import KEYS, KeyRing, Keys
from wayside.webhooks.post import Poster, target_of
from wayside.webhooks.subscription import (
    BEFORE_FIRST,
    BaseMoved,
    Claimed,
    Config,
    DurableSubscription,
    Kind,
    Linked,
    Released,
    SubscriptionEvent,
    SubscriptionOpened,
    Unlinked,
    WorkAcked,
    decode,
    encode,
    globs_of,
    refused,
)
from wayside.webhooks.wakes import RELOAD, SUBSCRIPTIONS, ServedSubscription, Wakes

__all__ = ["Confirmed", "SubscriptionStatistics", "Subscriptions", "Work", "require_url"]

PAGE = 1000
SUBSCRIPTIONS_MAX = 10_000
"""Each is told of every change of the streams that it means."""
NAMES_MAX = 10_000
"""Streams that one names, when it is created or at a time later; a pattern may mean any number."""


class Confirmed(NamedTuple):
    """What became of a creation."""

    new: bool
    state: DurableSubscription


class SubscriptionStatistics(NamedTuple):
    """A snapshot, for metrics and tests."""

    subscriptions: int
    pending: int
    """Those with streams that have records after the cursor."""
    working: int
    """Those with a wake under way."""
    failing: int
    """Those that could not be told of it, and are told again."""
    woken: int
    """Wakes since the hub began."""
    failed: int
    """Attempts to tell of one that failed since then."""


class Work(NamedTuple):
    """What a worker says of its work: the wake that it was given, and what it has processed."""

    token: str
    wake: object
    generation: object
    acks: Sequence[tuple[str, str]] = ()
    """Streams and offsets; each is processed up to it."""
    done: bool = False


def require_url(url: str, *, allow_private: bool) -> None:
    """Raise the refusal ``WEBHOOK_URL_REJECTED`` for a receiver that may not be told: only ``https`` leaves this machine,
    and only public addresses are told unless ``allow_private`` (section 6.2). Names are looked up with each attempt."""
    try:
        target = target_of(url, allow_private=allow_private)
    except BadRequest as error:
        raise refused("WEBHOOK_URL_REJECTED", error.detail.replace("be a callback", "be a webhook", 1)) from error
    here = target.host == "localhost" or (target.literal is not None and target.literal.is_loopback)
    if not target.secure and not here:
        raise refused(
            "WEBHOOK_URL_REJECTED", f"{url[:200]!r} cannot be a webhook: use https. http is for this machine alone."
        )


class Subscriptions:
    """The subscriptions of one hub. ``done`` of each change gets its result once it is on disk, or an exception; what can
    be refused at once is raised. Receivers may be where ``poster`` may post to."""

    def __init__(self, log: Log, timers: Timers, clock: Clock, poster: Poster) -> None:
        self.entries: dict[str, ServedSubscription] = {}
        self.keyring = KeyRing(log)
        self.wakes = Wakes(log, timers, clock, poster, self.keyring, self._reload)
        self._log = log
        self._timers = timers
        self._clock = clock
        self._allow_private = poster.allow_private
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Subscriptions {len(self.entries)}>"

    def statistics(self) -> SubscriptionStatistics:
        states = [entry.state for entry in self.entries.values()]
        return SubscriptionStatistics(
            len(states),
            sum(bool(state.pending) for state in states),
            sum(bool(state.wake) for state in states),
            sum(state.attempts > 0 for state in states),
            self.wakes.woken,
            self.wakes.failed,
        )

    # -- life

    async def start(self) -> None:
        """Take up what the hub knew before. Its log is open."""
        with contextlib.suppress(NotFound):
            for record in await self._records(KEYS):
                self.keyring.take(record)
        after = ""
        while infos := self._log.list(SUBSCRIPTIONS, after, PAGE):
            after = infos[-1].path
            for info in infos:
                with contextlib.suppress(NotFound):
                    state, events = await self._read(info.path)
                    entry = self.entries[state.id] = ServedSubscription(state)
                    entry.events = events
        for entry in list(self.entries.values()):
            self._watch(entry)
            self.wakes.arm(entry)

    async def stop(self) -> None:
        """Wake nobody any more, and wait for attempts under way."""
        self._stopped = True
        await self.wakes.stop(self.entries.values())

    async def _records(self, path: str) -> list[bytes]:
        stream = self._log.find(path, touch=False)
        at, records = stream.start, []
        while at < stream.tail:
            for batch in await stream.read(at, self._log.limits.read_bytes_max):
                at = batch.end
                records += batch.records
        return records

    async def _read(self, path: str) -> tuple[DurableSubscription, int]:
        """A subscription as its stream has it, and how many records those are. Raises :class:`NotFound` where there is
        none. What is before its last snapshot may be there, or not, or in part."""
        state: DurableSubscription | None = None
        records = await self._records(path)
        for record in records:
            event = decode(record)
            if state is not None:
                state.apply(event)
            elif isinstance(event, SubscriptionOpened):
                state = DurableSubscription(event)
        if state is None:
            raise NotFound(f"There is no subscription in {path}.")
        return state, len(records)

    def _reload(self, entry: ServedSubscription) -> None:
        async def reload() -> None:
            try:
                state, entry.events = await self._read(entry.path)
            except NotFound:
                self._forget(entry)
            except Refusal:
                self._timers.after(RELOAD.base_s, partial(self._reload, entry))
            else:
                if not entry.gone:
                    entry.state = state
                    entry.doubtful = False
                    self._watch(entry)
                    self.wakes.arm(entry)

        if not entry.gone and not self._stopped:
            task = asyncio.get_running_loop().create_task(reload())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _watch(self, entry: ServedSubscription) -> None:
        """Be told of all streams that a subscription means, and see how long they are now."""
        state = entry.state
        there = {path for glob in self._globs(entry).values() for path in self._see(entry, glob)}
        state.keep_only(there)

    def _globs(self, entry: ServedSubscription) -> dict[str, Glob]:
        """What it watches, by the glob's text; watches that it no longer needs are ended."""
        links = entry.state.links
        globs = {glob.text: glob for glob in entry.state.globs}
        globs.update((path, Glob(path)) for path, link in links.items() if link.explicit and path not in globs)
        for text in [text for text in entry.unwatch if text not in globs]:
            entry.unwatch.pop(text)()
        return globs

    def _see(self, entry: ServedSubscription, glob: Glob) -> list[str]:
        """Watch a glob, and see the streams that it matches now; returns their paths."""
        if glob.text not in entry.unwatch:
            entry.unwatch[glob.text] = self._log.watch(glob, partial(self.wakes.told, entry))
        state, paths = entry.state, []
        for each in self._log.tails(glob):
            paths.append(each.path)
            if each.path in state.links or state.matches(each.path):
                state.see(each.path, each.earliest, each.tail)
        return paths

    def _forget(self, entry: ServedSubscription) -> None:
        entry.gone = True
        self.wakes.rest(entry)
        if entry.posting is not None:
            entry.posting.cancel()
        for unwatch in entry.unwatch.values():
            unwatch()
        if self.entries.get(entry.state.id) is entry:
            del self.entries[entry.state.id]

    # -- subscriptions

    def entry(self, identity: str) -> ServedSubscription:
        """Raises the refusal ``SUBSCRIPTION_NOT_FOUND``; :class:`~wayside.errors.Overloaded` while it is read again."""
        entry = self.entries.get(identity)
        if entry is None or not entry.live:
            raise refused(
                "SUBSCRIPTION_NOT_FOUND",
                f"There is no subscription {identity[:200]!r}. Create it with PUT.",
            )
        entry.require_sure()
        return entry

    def put(self, identity: str, config: Config, base: str, done: Done) -> None:
        """Create a subscription, or confirm it: ``done`` gets :class:`Confirmed`. ``base`` is the URL below which the hub's
        streams are."""
        try:
            require_path(SUBSCRIPTIONS + identity, self._log.limits.path_bytes_max)
            globs = globs_of(config.pattern) if config.pattern else []
            count = len(config.streams)
            _require_names(
                config.streams, f"streams has {count} names; at most {NAMES_MAX} are allowed. Use a pattern."
            )
            if any(is_reserved(path) for path in (config.pattern, config.wake_stream, *config.streams)):
                raise BadRequest("Paths of the hub's own streams cannot be subscribed to.")
            if config.wake_stream and not Glob(config.wake_stream).literal:
                raise BadRequest("wake_stream is one stream.")
        except BadRequest as error:
            raise refused("INVALID_REQUEST", error.detail) from error
        if config.url:
            require_url(config.url, allow_private=self._allow_private)
        entry = self.entries.get(identity)
        if entry is not None:
            self._confirm(entry, config, base, done)
            return
        if len(self.entries) >= SUBSCRIPTIONS_MAX:
            raise TooMany(
                f"There are {len(self.entries)} subscriptions, as many as a hub may have. Delete some.",
                code="too-many-subscriptions",
            )
        state = DurableSubscription(SubscriptionOpened(identity, config, base, self._clock.wall_ms()))
        entry = self.entries[identity] = ServedSubscription(state)
        entry.live = False
        entry.waiters.append(lambda result: done(result if isinstance(result, Exception) else Confirmed(True, state)))
        for glob in globs:  # what there is now is not news
            state.apply(Linked(glob={each.path: str(each.tail) for each in self._log.tails(glob)}))
        for path in [path for path in state.links if not state.matches(path)]:
            del state.links[path]
        state.apply(Linked(explicit=self._tails(config.streams)))
        self.keyring.want(partial(self._create, entry))

    def _confirm(self, entry: ServedSubscription, config: Config, base: str, done: Done) -> None:
        state = entry.state
        if state.config.digest != config.digest:
            raise refused(
                "SUBSCRIPTION_ALREADY_EXISTS",
                f"There is a subscription {state.id[:200]!r} that is configured otherwise. Delete it first, or take "
                "another name.",
            )
        if not entry.live:
            entry.waiters.append(done)
            return
        entry.require_sure()
        if state.base == base:
            done(Confirmed(False, state))
        else:
            self.wakes.keep(entry, [BaseMoved(base)], _then(done, Confirmed(False, state)))

    def _create(self, entry: ServedSubscription, keys: Keys | Exception) -> None:
        def created(result: Any) -> None:
            waiters, entry.waiters = entry.waiters, []
            if isinstance(result, Exception):
                self._forget(entry)
            else:
                entry.live = True
                self._watch(entry)
                self.wakes.look(entry)
            for each in waiters:
                each(result if isinstance(result, Exception) else Confirmed(False, entry.state))

        if isinstance(keys, Exception):
            created(keys)
            return
        records = [encode(event) for event in entry.state.events()]
        entry.events = len(records)
        try:
            self._log.create(entry.path, Create(StreamConfig(JSON), records=records), created)
        except Refusal as refusal:
            created(refusal)

    def _tails(self, paths: Iterable[str]) -> dict[str, str]:
        """Cursors at the ends of these streams."""
        return {
            path: next((str(each.tail) for each in self._log.tails(Glob(path))), BEFORE_FIRST)
            for path in dict.fromkeys(paths)
        }

    def delete(self, identity: str, done: Done) -> None:
        """Delete a subscription; ``done`` gets None. One that is not there is deleted already."""
        entry = self.entries.get(identity)
        if entry is None or not entry.live:
            done(None)
            return
        self._log.delete(entry.path, done)
        self._forget(entry)

    def link(self, identity: str, paths: Sequence[str], done: Done) -> None:
        """Add streams by name, each with its cursor at its end now."""
        entry = self.entry(identity)
        links = entry.state.links
        new = [path for path in paths if path not in links or not links[path].explicit]
        try:
            _require_names(new, f"These are {len(new)} streams; add at most {NAMES_MAX} at a time.")
        except BadRequest as error:
            raise refused("INVALID_REQUEST", error.detail) from error
        if not new:
            done(None)
            return
        self.wakes.keep(entry, [Linked(explicit=self._tails(new))], done)
        for path in new:
            self._see(entry, Glob(path))
        self.wakes.look(entry)

    def unlink(self, identity: str, path: str, done: Done) -> None:
        """Take back that a stream was named; where the pattern means it, it stays."""
        entry = self.entry(identity)
        link = entry.state.links.get(path)
        if link is None or not link.explicit:
            done(None)
            return
        self.wakes.keep(entry, [Unlinked(path)], done)
        self._globs(entry)

    # -- work

    def claim(self, identity: str, worker: str, done: Done) -> None:
        """Give a worker the lease; ``done`` gets what it is answered."""
        entry = self._entry_of(identity, Kind.PULL_WAKE)
        state = entry.state
        if state.holder:
            raise refused(
                "ALREADY_CLAIMED",
                f"{state.holder[:200]} holds the lease. Wait for the next wake.",
                current_holder=state.holder,
                generation=state.generation,
            )
        if not state.pending:
            if state.wake:  # what it was for is gone: the next work makes another
                self.wakes.keep(entry, [Released()])
            raise refused("NO_PENDING_WORK", "There is nothing to do. Wait for the next wake.")
        events: list[SubscriptionEvent] = [Claimed(worker)]
        if not state.wake:
            woken = self.wakes.next_wake(state)
            assert woken is not None
            events.insert(0, woken)
        for event in events:
            self.wakes.apply(entry, event)
        answer = {
            "wake_id": state.wake,
            "generation": state.generation,
            "token": self.wakes.token(state),
            "streams": state.stream_infos(now=True),
            "lease_ttl_ms": state.config.lease_ttl_ms,
        }
        self.wakes.append(entry, events, _then(done, answer))
        entry.end_retry()
        self.wakes.lease(entry)

    def ack(self, identity: str, kind: Kind, work: Work, done: Done) -> None:
        """A worker has processed something, and lives; ``done`` gets what it is answered."""
        entry = self._working(identity, kind, work)
        state = entry.state
        acks = state.acks_of(work.acks)
        if not work.done:
            self.wakes.lease(entry)
            answer = {"ok": True, "next_wake": False}
            if acks:
                self.wakes.keep(entry, [WorkAcked(acks)], _then(done, answer))
            else:
                done(answer)
            return
        self.wakes.end_lease(entry)
        event = WorkAcked(acks, done=True)
        state.apply(event)
        self.wakes.append(entry, [event], _then(done, {"ok": True, "next_wake": bool(state.pending)}))
        self.wakes.look(entry)

    def release(self, identity: str, work: Work, done: Done) -> None:
        """A worker gives the lease back."""
        entry = self._working(identity, Kind.PULL_WAKE, work)
        self.wakes.end_lease(entry)
        self.wakes.keep(entry, [Released()], done)
        self.wakes.look(entry)

    def _entry_of(self, identity: str, kind: Kind) -> ServedSubscription:
        entry = self.entry(identity)
        if entry.state.config.type is not kind:
            actions = "callback" if entry.state.config.type is Kind.WEBHOOK else "claim, ack and release"
            raise refused(
                "INVALID_REQUEST", f"This subscription is of type {entry.state.config.type}; it has {actions}."
            )
        return entry

    def _working(self, identity: str, kind: Kind, work: Work) -> ServedSubscription:
        """The subscription whose wake a worker works on. Raises ``TOKEN_INVALID``, or ``FENCED`` where it no longer does."""
        entry = self._entry_of(identity, kind)
        state = entry.state
        claims = self.keyring.keys.claims(work.token) if self.keyring.keys is not None else None
        if claims is None or claims.get("sub") != state.id:
            raise refused(
                "TOKEN_INVALID", "This is no token for this subscription. Use the one that came with the wake."
            )
        state.require_current(claims.get("wake"), claims.get("generation"))
        state.require_current(work.wake, work.generation)
        return entry


def _require_names(paths: Sequence[str], too_many: str) -> None:
    """Raise :class:`BadRequest` unless these are single streams, and not too many."""
    if not all(Glob(path).literal for path in paths):
        raise BadRequest("streams takes paths of single streams; a glob is a pattern.")
    if len(paths) > NAMES_MAX:
        raise BadRequest(too_many)


def _then(done: Done, answer: object) -> Done:
    """``done`` with an answer in the place of what the log says."""

    def kept(result: Appended | Exception) -> None:
        done(result if isinstance(result, Exception) else answer)

    return kept
