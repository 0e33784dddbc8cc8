"""Leases and backoff: when each lease ends, what it costs, and how long pauses are."""

from __future__ import annotations

import math
import random

import pytest

from tests.support.waiting import until
from wayside.core.backoff import Backoff
from wayside.core.lease import ENDED, NOT_QUEUED, QUEUED_MIN, Lease, Leases
from wayside.core.schedule import Timers
from wayside.testing import ManualClock


class Ends:
    """Leases on a manual clock, and which of them ended at which second, in batches."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.began = clock.monotonic()
        self.timers = Timers(clock)
        self.leases: Leases[Lease[str]] = Leases(clock, self.timers, self._over)
        self.batches: list[tuple[float, list[str]]] = []

    def _over(self, leases: list[Lease[str]]) -> None:
        self.batches.append((self.clock.monotonic() - self.began, [lease.holder for lease in leases]))

    def grant(self, holder: str, seconds: float) -> Lease[str]:
        lease = Lease(holder, seconds)
        self.leases.renew(lease)
        return lease

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.timers.run()


@pytest.fixture
async def ends(clock: ManualClock) -> Ends:
    return Ends(clock)


async def test_a_lease_ends_when_its_time_is_over(ends: Ends) -> None:
    """Not before, and once; it has ended when its holder is told of."""
    lease = ends.grant("a", 10)
    ends.advance(9.5)
    assert ends.leases.runs(lease)
    assert ends.batches == []
    ends.advance(0.5)
    assert ends.batches == [(10, ["a"])]
    assert lease.deadline == ENDED
    assert not ends.leases.runs(lease)
    ends.advance(100)
    assert len(ends.batches) == 1


async def test_a_lease_that_is_renewed_lasts(ends: Ends) -> None:
    """From the last renewal on, whatever it was before: longer, shorter, held, or ended."""
    lease = ends.grant("a", 10)
    ends.advance(9)
    ends.leases.renew(lease)
    ends.advance(9)
    assert ends.batches == []
    lease.seconds = 0.25
    ends.leases.renew(lease)
    ends.advance(0.25)
    assert ends.batches == [(18.25, ["a"])]
    lease.seconds = 10
    ends.leases.renew(lease)
    ends.advance(10)
    assert ends.batches[1:] == [(28.25, ["a"])]


async def test_a_lease_that_is_held_has_no_end(ends: Ends) -> None:
    """Until it is renewed: then it has its whole time."""
    lease = ends.grant("a", 10)
    ends.leases.hold(lease)
    ends.advance(1000)
    assert ends.leases.runs(lease)
    assert ends.batches == []
    ends.leases.renew(lease)
    ends.advance(10)
    assert ends.batches == [(1010, ["a"])]


async def test_a_lease_that_was_given_back_ends_silently(ends: Ends) -> None:
    """Nobody is told; granted again it ends like any other, at its own time."""
    lease = ends.grant("a", 10)
    ends.leases.end(lease)
    assert not ends.leases.runs(lease)
    ends.advance(5)
    ends.leases.renew(lease)
    ends.advance(5)
    assert ends.batches == []
    ends.advance(5)
    assert ends.batches == [(15, ["a"])]


async def test_leases_that_are_over_together_end_in_one_batch(ends: Ends) -> None:
    """A hundred thousand, granted in any order, renewed or not: one call for one time, and one timer for all."""
    leases = [ends.grant(str(number), 10 + number % 2) for number in range(100_000)]
    for lease in leases[::4]:
        lease.seconds = 20
        ends.leases.renew(lease)
    ends.advance(10)
    ends.advance(1)
    ends.advance(9)
    assert [(at, len(batch)) for at, batch in ends.batches] == [(10, 25_000), (11, 50_000), (20, 25_000)]


async def test_leases_that_ended_are_forgotten(ends: Ends) -> None:
    """A heap does not grow with leases that are given back long before their time."""
    kept = ends.grant("kept", 3600)
    given_back = []
    for number in range(20 * QUEUED_MIN):
        given_back.append(ends.grant(str(number), 3600))
        ends.leases.end(given_back[-1])
    assert sum(lease.queued != NOT_QUEUED for lease in given_back) <= 2 * QUEUED_MIN
    ends.advance(3600)
    assert ends.batches == [(3600, [kept.holder])]


async def test_forgotten_leases_end_no_more(ends: Ends) -> None:
    """Those that go on are renewed, and those alone."""
    first, _second = ends.grant("a", 10), ends.grant("b", 10)
    ends.leases.clear()
    ends.leases.renew(first)
    ends.advance(1000)
    assert ends.batches == [(1000, ["a"])]


async def test_real_time_ends_leases(ends: Ends) -> None:
    """With no one who moves the clock by hand, the event loop looks."""
    ends.grant("a", 0.001)
    ends.clock.advance(0.001)
    await until(lambda: bool(ends.batches))


@pytest.mark.parametrize("seed", range(20))
async def test_leases_as_a_table_has_them(clock: ManualClock, seed: int) -> None:
    """Against the plainest model: whatever is done in whatever order, each lease ends at its deadline, and only then."""
    dice, ends = random.Random(seed), Ends(clock)
    leases = [Lease(str(number), 1) for number in range(30)]
    deadlines: dict[str, float] = {}
    for _ in range(2000):
        lease = dice.choice(leases)
        action = dice.choice(("renew", "renew", "hold", "end", "advance", "clear" if dice.random() < 0.02 else "renew"))
        if action == "renew":
            lease.seconds = dice.randint(1, 40) / 4
            ends.leases.renew(lease)
            deadlines[lease.holder] = clock.monotonic() + lease.seconds
        elif action == "hold":
            ends.leases.hold(lease)
            deadlines[lease.holder] = math.inf
        elif action == "end":
            ends.leases.end(lease)
            deadlines.pop(lease.holder, None)
        elif action == "clear":
            ends.leases.clear()
            for each in leases:
                if each.holder in deadlines and deadlines[each.holder] < math.inf:
                    ends.leases.renew(each)
                    deadlines[each.holder] = clock.monotonic() + each.seconds
        else:
            ends.advance(0.25)
            now = clock.monotonic()
            over = {holder for holder, deadline in deadlines.items() if deadline <= now}
            told = {holder for _, batch in ends.batches for holder in batch}
            assert told == over
            ends.batches.clear()
            for holder in over:
                del deadlines[holder]


def test_pauses_double_up_to_their_bound() -> None:
    """Anything up to the bound, as the dice say; a number of failures that is absurd is no error."""
    longest = Backoff(1, 60, lambda: 1.0)
    assert [longest.delay_s(failures) for failures in (0, 1, 2, 3, 6, 7, 10_000)] == [1, 1, 2, 4, 32, 60, 60]
    some = Backoff(8, 60, iter([0.0, 0.25, 1.0]).__next__)
    assert [some.delay_s(2) for _ in range(3)] == [0, 4, 16]
    pauses = [Backoff(1, 60).delay_s(3) for _ in range(1000)]
    assert 0 <= min(pauses) < 0.5
    assert 3.5 < max(pauses) <= 4


def test_pauses_by_other_factors_and_jitter() -> None:
    """A pause may grow faster, and vary less."""
    assert [Backoff(1, 7200, lambda: 1.0, factor=4.5).delay_s(n) for n in (1, 2, 3, 7)] == [1, 4.5, 20.25, 7200]
    fifth = Backoff(1, 60, iter([0.0, 0.5, 1.0]).__next__, least=0.8, most=1.2)
    assert [fifth.delay_s(2) for _ in range(3)] == pytest.approx([1.6, 2.0, 2.4])
