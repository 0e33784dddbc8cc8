"""``wayside group``, ``receipts`` and ``redrive``, against a hub of its own. One is a process itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.command import Command
from tests.support.processes import WAYSIDE, Hub, Run
from tests.support.waiting import eventually


@pytest.fixture
def claim(shared_hub: Hub) -> Callable[..., list[dict[str, Any]]]:
    """Claims records of a group; what an ack needs of them."""

    def claim(group: str, count: int = 1) -> list[dict[str, Any]]:
        found = httpx.post(
            f"{shared_hub.url}/v1/group/{group}/claim", json={"max": count, "wait": 20, "member": "ada"}
        ).json()
        return [
            {"stream": each["stream"], "offset": each["offset"], "lease": found["lease"]} for each in found["records"]
        ]

    return claim


def test_a_group_from_its_making_to_its_end(wayside: Command, shared_hub: Hub) -> None:
    """A group is created, listed, shown, given other settings, paused, resumed and deleted."""
    created = wayside(
        *("group", "create", "life", "life/*", "life/**", "--start", "-1", "--lease", "60", "--retries", "3"),
        *("--backoff", "2", "--backoff-max", "20", "--dead-letter", "dead.life", "--order-by", "customer.id"),
        *("--in-flight", "50", "--member-in-flight", "5", "--description", "Of life."),
    )
    assert created == "created life"
    shown = json.loads(wayside("group", "show", "life", "--json"))
    assert shown["settings"] == shown["settings"] | {
        "streams": ["life/*", "life/**"],
        "lease_s": 60,
        "retries": 3,
        "backoff_s": 2,
        "backoff_s_max": 20,
        "dead_letter": "dead.life",
        "order_by": "customer.id",
        "in_flight_max": 50,
        "member_in_flight_max": 5,
        "description": "Of life.",
    }
    wayside("publish", "life/a", '{"n": 1}', '{"n": 2}')
    assert wayside("group", "list", "li") == ("life  lag 2, 0 in flight, 0 waiting, 0 dead, 0 members, life/* life/**")
    assert wayside("group", "create", "life", "life/*", "--retries", "9") == "set life"
    assert json.loads(wayside("group", "list", "life", "--json"))["streams"] == ["life/*"]
    wayside("group", "pause", "life")
    assert wayside("group", "list", "life").endswith("life/*  paused")
    wayside("group", "resume", "life")
    text = wayside("group", "show", "life")
    assert "retries 9" in text
    assert "stream life/a: lag 2, 0 in flight, 0 waiting, 0 parked" in text
    wayside("group", "delete", "life")
    assert httpx.get(f"{shared_hub.url}/v1/group/life").status_code == 404
    assert wayside("group", "list", "life") == ""


def test_a_record_from_its_delivery_to_the_dead_and_back(
    wayside: Command, shared_hub: Hub, claim: Callable[..., list[dict[str, Any]]]
) -> None:
    """Receipts tell what became of a record; dead ones are listed, and delivered again; a group is sent elsewhere."""
    wayside("group", "create", "bills", "bills/*", "--retries", "0", "--dead-letter", "bills.dead")
    offset = wayside("publish", "bills/eu", '{"n": 1}').strip()
    assert wayside("receipts", "bills", "bills/eu", offset).startswith("pending, 0 attempts\n")
    [mark] = claim("bills")
    assert mark["offset"] == offset
    assert "delivered to ada, lease 1" in wayside("receipts", "bills", "bills/eu", offset)
    settle = f"{shared_hub.url}/v1/group/bills/ack"
    assert httpx.post(settle, json={"nacks": [{**mark, "reason": "no such customer"}]}).json()["nacked"] == 1
    dead = eventually(lambda: wayside("group", "dead", "bills"), "the record is dead")
    assert dead.startswith(f"bills/eu {offset}  1 attempts, ")
    assert "no such customer  in bills.dead " in dead
    assert json.loads(wayside("group", "dead", "bills", "--json", "--stream", "bills/*"))["offset"] == offset
    told = wayside("receipts", "bills", "bills/eu", offset)
    assert told.startswith("dead, 1 attempts: no such customer\n")
    assert "  failed: no such customer" in told
    assert wayside("redrive", "bills", "--reason", "other") == "0"
    assert wayside("redrive", "bills", "--stream", "bills/*", "--offset", offset, "--max", "3") == "1"
    [mark] = claim("bills")
    assert httpx.post(settle, json={"acks": [mark]}).json()["acked"] == 1
    assert json.loads(wayside("receipts", "bills", "bills/eu", offset, "--json"))["state"] == "acked"
    assert wayside("group", "seek", "bills", "-1", "bills/*") == "bills/eu"
    assert len(claim("bills")) == 1
    assert wayside("group", "seek", "bills", "now") == "bills/eu"


def test_what_goes_wrong_is_said(wayside: Command) -> None:
    """What the hub refuses is a sentence, and the exit status 1."""
    assert "There is no group 'none'" in wayside.fails("group", "show", "none")
    assert "lease_s is from 0.1" in wayside.fails("group", "create", "x", "a", "--lease", "0")
    assert "no name for a group" in wayside.fails("group", "create", "-", "a")
    wayside("group", "create", "right", "a/*")
    wayside("publish", "a/b", "{}")
    assert "is not an offset" in wayside.fails("group", "seek", "right", "soon")
    assert "is not an offset" in wayside.fails("receipts", "right", "a/b", "soon")


def test_as_a_process(run: Run, shared_hub: Hub) -> None:
    """The command talks to the hub that is named; without one it ends with 3."""
    program = run([*WAYSIDE, "group", "list", "none", "--hub", shared_hub.url])
    assert program.wait() == 0
    assert "there is no group" in program.err.text
    assert run([*WAYSIDE, "group", "list", "--hub", "http://127.0.0.1:1"]).wait() == 3
