"""The pause before something that failed is tried again: longer with each failure in a row, and with jitter.

The default is *full jitter*, anything up to a bound that doubles (Brooker, "Exponential Backoff and Jitter", 2015): what
failed together does not come back together.
"""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Backoff"]

EXPONENT_MAX = 64
"""So that a power of any factor in use stays a finite number; the longest pause is reached long before."""


class Backoff:
    """Pauses of at most ``base_s`` seconds after the first failure, ``factor`` times as long after each further one, up to
    ``longest_s``.

    ``jitter`` gives numbers from 0 to 1, evenly; the pause lies as far between ``least`` and ``most``, which are parts of
    its bound.
    """

    __slots__ = ("base_s", "factor", "jitter", "least", "longest_s", "most")

    def __init__(
        self,
        base_s: float,
        longest_s: float,
        jitter: Callable[[], float] = random.random,
        *,
        factor: float = 2.0,
        least: float = 0.0,
        most: float = 1.0,
    ) -> None:
        self.base_s = base_s
        self.longest_s = longest_s
        self.jitter = jitter
        self.factor = factor
        self.least = least
        self.most = most

    def __repr__(self) -> str:
        return f"<Backoff {self.base_s:g} s to {self.longest_s:g} s>"

    def bound_s(self, failures: int) -> float:
        """The bound of the pause after so many failures in a row, from 1 on."""
        bound_s: float = min(self.longest_s, self.base_s * self.factor ** min(max(0, failures - 1), EXPONENT_MAX))
        return bound_s

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, from 1 on."""
        return self.bound_s(failures) * (self.least + (self.most - self.least) * self.jitter())
