"""The subscriptions of examples/media under watch, each by the name of its group: as :mod:`tests.e2e.watched_media` does it for
the services. What was killed is delivered again after a second.
"""

from __future__ import annotations

import msgspec

from examples.media.events import hub
from tests.e2e.watched_media import watched

for group, subscription in hub.subscribed.items():
    subscription.function = watched(group, subscription.function)
    subscription.spec = msgspec.structs.replace(subscription.spec, lease_s=1, backoff_s=0)
