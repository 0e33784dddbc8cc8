"""For tests of applications: a hub with a clock that stands still, workers in the test's own process, and crashes.

:class:`TestHub` runs the handlers of a hub against a real store. Time passes only when the test says so, and whoever
runs a handler can be killed at a named point of it::

    async with TestHub(hub, local=False) as test:
        await test.worker("one")
        test.crash_at("charged", worker="one")  # where the handler says wayside.testing.point("charged")
        order = await test.submit("pay", 12)
        await test.worker("two")
        await test.advance(20)  # the lease of the first is over, and so is the pause before the second attempt
        assert await order.result() == "paid"

Handlers of records (``@hub.subscribe``) are run and crashed the same way: by the hub's own process, or with ``local=False``
by workers.

What waits for a socket or a thread goes on in real time; so does a long poll over HTTP.
"""

from wayside.testing.clock import START_MS, ManualClock
from wayside.testing.hub import TestHub
from wayside.testing.points import Crashed, Reached, point
from wayside.testing.workers import TestWorker

__all__ = ["START_MS", "Crashed", "ManualClock", "Reached", "TestHub", "TestWorker", "point"]
