"""The Durable Streams protocol's subscriptions over HTTP: what is taken, what is refused, and what is answered."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.support.server import JSON, Running
from tests.support.subscriptions import Receiver, pending
from tests.support.waiting import until
from tests.support.wire import Response, request
from wayside.hub import Hub
from wayside.webhooks.keys import Keys, Seeds
from wayside.webhooks.post import Direct, NoResponse

ROOT = "/v1/stream/__ds/subscriptions"
PULL: dict[str, Any] = {"type": "pull-wake", "pattern": "a/*", "wake_stream": "wakes"}
HOOK: dict[str, Any] = {"type": "webhook", "pattern": "a/*"}


async def send(
    hub: Running, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> Response:
    """A request below the subscriptions; ``bytes`` as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return await hub.ask(method, f"{ROOT}/{path}", {**JSON, **(headers or {})}, data)


def error_of(answer: Response) -> dict[str, Any]:
    """The protocol's ``error``, from a document that also is the hub's."""
    document = json.loads(answer.body)
    assert answer["Content-Type"] == "application/json"
    assert document["status"] == answer.status
    assert document["detail"] == document["error"]["message"]
    assert document["code"] == document["error"]["code"].lower().replace("_", "-")
    error: dict[str, Any] = document["error"]
    return error


@pytest.fixture
async def private(serve: Any) -> AsyncIterator[Running]:
    """A served hub that may tell receivers on this machine."""
    hub = Hub("memory:", webhook_private=True)
    running = Running(hub, await hub.serve(port=0))
    yield running
    running.server.stop()
    await hub.close()


# -- creating


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        {},
        {**PULL, "type": "push"},
        {**PULL, "pattern": ""},
        {**PULL, "pattern": 5},
        {**PULL, "pattern": "a//b"},
        {**PULL, "pattern": "a/b*"},
        {**PULL, "pattern": "__call/*"},
        {**PULL, "pattern": "a" * 2000},
        {**PULL, "streams": ["a/*"]},
        {**PULL, "streams": [""]},
        {**PULL, "streams": [5]},
        {**PULL, "streams": ["__ds/keys"]},
        {**PULL, "wake_stream": ""},
        {**PULL, "wake_stream": "wakes/*"},
        {**PULL, "wake_stream": "__ds/keys"},
        {**PULL, "lease_ttl_ms": 999},
        {**PULL, "lease_ttl_ms": 600_001},
        {**PULL, "lease_ttl_ms": 1000.5},
        {**PULL, "lease_ttl_ms": "1000"},
        HOOK,
        {**HOOK, "webhook": {}},
        {**HOOK, "webhook": {"url": ""}},
        {**HOOK, "webhook": "https://receiver.example/"},
    ],
)
async def test_what_makes_no_sense_is_refused(memory: Running, body: object) -> None:
    """And nothing is created of it."""
    answer = await send(memory, "PUT", "s", body)
    assert (answer.status, error_of(answer)["code"]) == (400, "INVALID_REQUEST")
    assert error_of(await send(memory, "GET", "s"))["code"] == "SUBSCRIPTION_NOT_FOUND"


@pytest.mark.parametrize("identity", ["..", "%E2%80%AE", "%0A", "x" * 1024])
async def test_names_are_as_segments_of_paths(memory: Running, identity: str) -> None:
    """Printable, and not too long."""
    assert (await send(memory, "PUT", identity, PULL)).status == 400


async def test_a_subscription_is_shown_as_it_was_made(memory: Running) -> None:
    """Defaults filled in, paths without slashes around them, streams once each and in order; confirmed by the same again,
    however it is written, and by nothing else."""
    body = {**PULL, "pattern": "/a/*", "streams": ["b", "/b/", "a/1"], "description": "é"}
    answer = await send(memory, "PUT", "my%20s%C3%A9", body)
    assert answer.status == 201
    document = json.loads(answer.body)
    assert document.pop("created_at").endswith("Z")
    assert document == {
        "id": "my sé",
        "subscription_id": "my sé",
        "type": "pull-wake",
        "pattern": "a/*",
        "streams": [{"path": path, "link_type": "explicit", "acked_offset": "-1"} for path in ("a/1", "b")],
        "webhook": None,
        "wake_stream": "wakes",
        "lease_ttl_ms": 30_000,
        "status": "active",
        "description": "é",
    }
    again = {**body, "streams": ["a/1", "b"], "lease_ttl_ms": 30_000, "webhook": {"url": "http://10.0.0.1"}, "more": 1}
    assert (await send(memory, "PUT", "my%20s%C3%A9", again)).status == 200
    for change in ({"description": None}, {"streams": ["b"]}, {"lease_ttl_ms": 1000}, {"wake_stream": "others"}):
        answer = await send(memory, "PUT", "my%20s%C3%A9", {**body, **change})
        assert (answer.status, error_of(answer)["code"]) == (409, "SUBSCRIPTION_ALREADY_EXISTS")
    assert (await send(memory, "DELETE", "my%20s%C3%A9")).status == 204
    assert (await send(memory, "PUT", "my%20s%C3%A9", {**body, "description": None})).status == 201


async def test_what_is_asked_at_the_same_time_is_made_once(disk: Running) -> None:
    """Those who ask while it is being made are told when it is."""
    wires = [await disk.connect() for _ in range(3)]
    for wire in wires:
        await wire.send(request("PUT", f"{ROOT}/s", JSON, json.dumps(PULL).encode()))
    assert sorted([(await wire.response()).status for wire in wires]) == [200, 200, 201]


# -- where receivers may be


@pytest.mark.parametrize(
    ("url", "by_default", "if_private"),
    [
        ("https://receiver.example/hook", True, True),
        ("https://93.184.216.34/", True, True),
        ("http://receiver.example/hook", False, False),
        ("http://127.0.0.1:9/", False, True),
        ("http://127.0.0.9/", False, True),
        ("http://localhost:9/", False, True),
        ("http://[::1]:9/", False, True),
        ("http://2130706433/", False, True),
        ("http://10.0.0.1/hook", False, False),
        ("http://169.254.169.254/latest", False, False),
        ("http://0.0.0.0/", False, False),
        ("https://10.0.0.1/hook", False, True),
        ("https://localhost/", False, True),
        ("https://user@receiver.example/", False, False),
        ("ftp://receiver.example/", False, False),
        ("receiver.example", False, False),
        ("https://receiver.example\\@10.0.0.1/", False, False),
    ],
)
async def test_where_receivers_may_be(
    memory: Running, private: Running, url: str, by_default: bool, if_private: bool
) -> None:
    """``https`` to public addresses; on this machine and its networks only where that was allowed, and in the clear only on
    this machine."""
    for hub, allowed in ((memory, by_default), (private, if_private)):
        answer = await send(hub, "PUT", "s", {**HOOK, "webhook": {"url": url}})
        if allowed:
            assert answer.status == 201
        else:
            assert (answer.status, error_of(answer)["code"]) == (400, "WEBHOOK_URL_REJECTED")


def test_each_attempt_looks_where_it_goes() -> None:
    """An address that is not public is refused again when it is told."""
    for url in ("https://127.0.0.1:9/", "https://10.0.0.1/", "https://localhost:9/"):
        with pytest.raises(NoResponse, match="not public"):
            Direct(allow_private=False)(url, {}, b"{}", 1.0)


# -- working


async def test_a_worker_s_day(memory: Running) -> None:
    """Claim, ack, done, release: over HTTP each is answered as the protocol has it."""
    await memory.create("wakes", JSON)
    await send(memory, "PUT", "s", PULL)
    assert error_of(await send(memory, "POST", "s/claim", {"worker": "w"}))["code"] == "NO_PENDING_WORK"
    await memory.create("a/1", body=b"one")
    claim = await send(memory, "POST", "s/claim", {"worker": "w"})
    claimed = json.loads(claim.body)
    busy = await send(memory, "POST", "s/claim", {"worker": "v"})
    assert (busy.status, error_of(busy)) == (
        409,
        {
            "code": "ALREADY_CLAIMED",
            "message": json.loads(busy.body)["detail"],
            "current_holder": "w",
            "generation": 1,
        },
    )
    work = {"wake_id": claimed["wake_id"], "generation": 1}
    bearer = {"Authorization": f"Bearer {claimed['token']}"}
    for headers in (
        {},
        {"Authorization": "Basic eA=="},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer x.y.z"},
    ):
        answer = await send(memory, "POST", "s/ack", work, headers)
        assert (answer.status, error_of(answer)["code"], answer["WWW-Authenticate"]) == (401, "TOKEN_INVALID", "Bearer")
    for wrong in ({}, {**work, "generation": 2}, {**work, "wake_id": "w"}, {**work, "generation": None}):
        answer = await send(memory, "POST", "s/release", wrong, bearer)
        assert (answer.status, error_of(answer)["code"]) == (409, "FENCED")
    (path, offset), *_ = pending(claimed)
    answer = await send(memory, "POST", "s/ack", {**work, "acks": [{"path": path, "offset": offset + "0"}]}, bearer)
    assert (answer.status, error_of(answer)["code"]) == (409, "INVALID_OFFSET")
    answer = await send(memory, "POST", "s/ack", {**work, "acks": [{"path": path, "offset": offset}]}, bearer)
    assert (answer.status, json.loads(answer.body)) == (200, {"ok": True, "next_wake": False})
    assert error_of(await send(memory, "POST", "s/callback", work, bearer))["code"] == "INVALID_REQUEST"
    assert (await send(memory, "POST", "s/release", work, bearer)).status == 204
    assert error_of(await send(memory, "POST", "s/ack", work, bearer))["code"] == "FENCED"
    await send(memory, "PUT", "other", PULL)
    assert error_of(await send(memory, "POST", "other/ack", work, bearer))["code"] == "TOKEN_INVALID"
    for name in ("", "x" * 257):
        assert error_of(await send(memory, "POST", "s/claim", {"worker": name}))["code"] == "INVALID_REQUEST"


async def test_streams_are_added_and_taken_away(memory: Running) -> None:
    """By their names; none but whole names of streams that are not the hub's."""
    await send(memory, "PUT", "s", {**PULL, "pattern": None, "streams": ["b"]})
    assert (await send(memory, "POST", "s/streams", {"streams": ["c/d", "/e/", "b"]})).status == 204
    for streams in (["a/*"], ["__call/1"], ["a//b"], "a", [1]):
        answer = await send(memory, "POST", "s/streams", {"streams": streams})
        assert (answer.status, error_of(answer)["code"]) == (400, "INVALID_REQUEST")
    assert [(await send(memory, "DELETE", f"s/streams/{path}")).status for path in ("b", "c%2Fd", "x/y")] == [204] * 3
    streams = json.loads((await send(memory, "GET", "s")).body)["streams"]
    assert [each["path"] for each in streams] == ["e"]
    assert (await send(memory, "POST", "t/streams", {"streams": ["b"]})).status == 404
    assert (await send(memory, "DELETE", "t/streams/b")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "s", "PUT, GET, DELETE, OPTIONS"),
        ("GET", "s/streams", "POST, OPTIONS"),
        ("PUT", "s/streams/b", "DELETE, OPTIONS"),
        ("GET", "s/claim", "POST, OPTIONS"),
        ("DELETE", "s/callback", "POST, OPTIONS"),
    ],
)
async def test_what_a_resource_takes(memory: Running, method: str, path: str, allow: str) -> None:
    """Other methods are told which are possible."""
    answer = await send(memory, method, path, {} if method != "GET" else None)
    assert (answer.status, answer["Allow"]) == (405, allow)


async def test_the_hub_s_own_records_are_nobody_s(memory: Running) -> None:
    """Neither the keys nor what is kept of subscriptions can be read, forked or appended to as streams."""
    await send(memory, "PUT", "s", PULL)
    for path in ("__ds/keys", "__ds/subscriptions", "__ds/subscriptions/s/x", "__ds/jwks.json/x"):
        for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
            answer = await memory.ask(method, f"/v1/stream/{path}", JSON, b"1" if method in ("PUT", "POST") else None)
            assert answer.status == 404, (method, path)
    fork = await memory.ask("PUT", "/v1/stream/fork", {"Stream-Forked-From": "/v1/stream/__ds/keys"})
    assert fork.status in (400, 404)
    assert (await memory.ask("GET", f"{ROOT}/s?live=sse&offset=-1", {"Accept": "text/event-stream"}))[
        "Content-Type"
    ] == "application/json"


async def test_too_much_is_refused(memory: Running) -> None:
    """A body has a bound of its own."""
    answer = await send(memory, "PUT", "s", {**PULL, "description": "x" * 1_100_000})
    assert (answer.status, json.loads(answer.body)["code"]) == (413, "too-large")


# -- keys


async def test_a_webhook_is_verified_with_the_hub_s_key(private: Running) -> None:
    """The signature is over the time and the very bytes, by the key that the subscription and the key set name."""
    receiver = Receiver(200)
    bodies: list[bytes] = []

    def post(url: str, headers: Any, body: bytes, timeout_s: float) -> Any:
        bodies.append(body)
        return receiver(url, headers, body, timeout_s)

    private.hub.poster.transport = post
    answer = await send(private, "PUT", "s", {**HOOK, "webhook": {"url": "http://localhost:9/"}})
    signing = json.loads(answer.body)["webhook"]["signing"]
    assert signing["jwks_url"] == "http://hub/v1/stream/__ds/jwks.json"
    await private.create("a/1", body=b"one")
    await until(lambda: bool(receiver.wakes))
    fields = dict(part.split("=", 1) for part in receiver.wakes[0]["headers"]["Webhook-Signature"].split(","))
    key_set = await private.ask("GET", "/v1/stream/__ds/jwks.json")
    assert (key_set["Content-Type"], key_set["Cache-Control"]) == ("application/jwk-set+json", "public, max-age=300")
    (key,) = json.loads(key_set.body)["keys"]
    assert (key["kid"], fields["kid"]) == (signing["kid"], signing["kid"])
    public = Ed25519PublicKey.from_public_bytes(_bytes(key["x"]))
    public.verify(_bytes(fields["ed25519"]), fields["t"].encode() + b"." + bodies[0])


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_key_is_named_after_itself() -> None:
    """The public key and thumbprint of RFC 8037 appendix A, from its private key."""
    keys = Keys(Seeds(_bytes("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"), b"x"))
    assert keys.jwks["keys"][0]["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert keys.kid == "ds_kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert "nWG" not in repr(keys) + repr(Seeds(b"nWG", b"nWG"))
