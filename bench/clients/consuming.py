"""The measuring part of each consumer: what it took and acked, in the time that counts. Knows nothing of the broker.

A consumer prints ``ready``, then takes records until it has seen as many as it was told; then one line of JSON. A record
begins with the time at which it was sent (`stamp`): all processes of a machine share the clock.
"""

import json
import time

SIZE = 100
#: Figures begin after this part of the records.
WARM = 0.1

now_ns = time.monotonic_ns


def stamp() -> bytes:
    """A record of 100 B that is sent now."""
    return b"%-100d" % now_ns()


class Consumed:
    """Counts `count` records."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0
        self._warm = int(count * WARM)
        self._began_ns = 0
        self._took_us: list[float] = []

    def take(self, record: bytes | int) -> bool:
        """One more; whether it was the last."""
        self.seen += 1
        if self.seen > self._warm:
            at = now_ns()
            if not self._began_ns:
                self._began_ns = at
            self._took_us.append((at - int(record)) / 1000)
        return self.seen >= self.count

    def show(self) -> None:
        """Print the figures: per_s, p50_us and p99_us from sending to having."""
        seconds = (now_ns() - self._began_ns) / 1e9
        took = sorted(self._took_us)
        print(json.dumps({
            "per_s": len(took) / seconds, "p50_us": took[len(took) // 2], "p99_us": took[len(took) * 99 // 100],
        }), flush=True)  # fmt: skip
