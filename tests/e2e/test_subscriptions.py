"""Subscriptions of a hub that is killed: its receivers and workers go on where they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.support.processes import Hub
from tests.support.receiver import Receiver
from tests.support.waiting import eventually


def ask(hub: Hub, method: str, path: str, body: object = None, token: str = "") -> Any:
    """The document that is answered, and the status."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.request(method, hub.stream(f"__ds/subscriptions/{path}"), json=body, headers=headers)
    return answer.status_code, answer.json() if answer.content else None


def test_a_killed_hub_goes_on_telling(start_hub: Callable[..., Hub], receiver: Receiver) -> None:
    """A wake that a receiver did not take is told again by the next hub, with the same name and number; its token is
    still good, and what was acked is not told again."""
    hub = start_hub("--webhook-allow-private")
    receiver.status = 503
    hub.create("a/1")
    hook = {"type": "webhook", "pattern": "a/*", "webhook": {"url": receiver.url}, "lease_ttl_ms": 60_000}
    assert ask(hub, "PUT", "s", hook)[0] == 201
    first = hub.append("a/1", "1")
    eventually(lambda: receiver.documents, "an attempt")
    hub.kill()
    receiver.status = 200
    told = len(receiver.documents)
    hub.start()
    eventually(lambda: len(receiver.documents) > told, "an attempt of the next hub")
    wake = receiver.documents[-1]
    assert {(each["wake_id"], each["generation"]) for each in receiver.documents} == {(wake["wake_id"], 1)}
    hub.kill()
    hub.start()
    work = {"wake_id": wake["wake_id"], "generation": 1, "acks": [{"stream": "a/1", "offset": first}], "done": True}
    assert ask(hub, "POST", "s/callback", work, wake["callback_token"]) == (200, {"ok": True, "next_wake": False})
    second = hub.append("a/1", "2")
    eventually(lambda: receiver.documents[-1]["generation"] == 2, "the next wake")
    (stream,) = receiver.documents[-1]["streams"]
    assert (stream["acked_offset"], stream["tail_offset"]) == (first, second)
    status, answer = ask(hub, "POST", "s/callback", work, wake["callback_token"])
    assert (status, answer["error"]["code"]) == (409, "FENCED")


def test_a_killed_hub_knows_who_works(start_hub: Callable[..., Hub]) -> None:
    """The lease, its token and what was acked with it are there after SIGKILL."""
    hub = start_hub()
    hub.create("wakes")
    assert ask(hub, "PUT", "s", {"type": "pull-wake", "pattern": "a/*", "wake_stream": "wakes"})[0] == 201
    hub.create("a/1")
    first, second = hub.append("a/1", "1"), hub.append("a/1", "2")
    eventually(lambda: hub.read("wakes"), "a wake")
    _, claimed = ask(hub, "POST", "s/claim", {"worker": "one"})
    work = {"wake_id": claimed["wake_id"], "generation": 1}
    acks = [{"stream": "a/1", "offset": first}]
    assert ask(hub, "POST", "s/ack", {**work, "acks": acks}, claimed["token"])[0] == 200
    hub.kill()
    hub.start()
    status, answer = ask(hub, "POST", "s/claim", {"worker": "two"})
    assert (status, answer["error"]["current_holder"]) == (409, "one")
    assert ask(hub, "POST", "s/release", work, claimed["token"])[0] == 204
    _, again = ask(hub, "POST", "s/claim", {"worker": "two"})
    (stream,) = again["streams"]
    assert (again["generation"], stream["acked_offset"], stream["tail_offset"]) == (2, first, second)
