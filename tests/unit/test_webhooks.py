"""Webhooks: signatures, where a push may go, retries and their bounds, and real requests over loopback."""

from __future__ import annotations

import asyncio
import base64
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.log import Answer as Told
from tests.support.receiver import Receiver, reply
from tests.support.waiting import turns, until
from wayside.core.errors import BadRequest, Overloaded, TooLarge
from wayside.core.schedule import Timers
from wayside.testing import START_MS, ManualClock
from wayside.webhooks.post import RESPONSE_BYTES_MAX, Direct, NoResponse, Poster, WebhookResponse, is_public
from wayside.webhooks.standard import (
    RETRY_AFTER_S_MAX,
    DeliveryOutcome,
    DeliveryReport,
    Webhooks,
    new_secret,
    sign,
    verify,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
IDENTITY = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
PAYLOAD = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
"""The example of Standard Webhooks, as its libraries test it."""
URL = "https://receiver.example/hook"
PUBLIC = "93.184.216.34"
PAUSES_S = (1, 4.5, 20.25, 91.125, 410.0625, 1845.28125, 7200)
"""The longest after each failed attempt; the last one again and again."""


def signed(**changes: str) -> dict[str, str]:
    """The example's header fields, some of them changed."""
    fields = {"webhook_id": IDENTITY, "webhook_timestamp": str(TIMESTAMP), "webhook_signature": SIGNATURE, **changes}
    return {name.replace("_", "-"): value for name, value in fields.items()}


class Script:
    """A transport that answers as it was told, the last again and again; and keeps what it was given."""

    def __init__(self, *answers: int | WebhookResponse | Exception) -> None:
        self._answers = list(answers)
        self._lock = threading.Lock()
        self.calls: list[tuple[str, dict[str, str], bytes]] = []

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> WebhookResponse:
        with self._lock:
            self.calls.append((url, dict(headers), body))
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return WebhookResponse(answer) if isinstance(answer, int) else answer


class Gate(Script):
    """A transport that lets nothing through until it is opened."""

    def __init__(self, *answers: int | WebhookResponse | Exception) -> None:
        super().__init__(*answers)
        self._passes = threading.Semaphore(0)
        self.over = 0
        """Requests that were let through."""

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> WebhookResponse:
        answer = super().__call__(url, headers, body, timeout_s)
        assert self._passes.acquire(timeout=30), "nobody opened the gate"
        self.over += 1
        return answer

    def let(self, count: int) -> None:
        self._passes.release(count)


Make = Callable[..., Webhooks]


@pytest.fixture
def timers(clock: ManualClock) -> Timers:
    return Timers(clock)


@pytest.fixture
async def make(clock: ManualClock, timers: Timers) -> AsyncIterator[Make]:
    """Webhooks whose pauses are as long as they can be, unless told otherwise; closed after the test."""
    made: list[tuple[Webhooks, Poster]] = []

    def make(transport: Any = None, **options: Any) -> Webhooks:
        posting = {name: options.pop(name) for name in ("allow_private", "threads_max") if name in options}
        poster = Poster(transport=transport, **posting)
        options = {"secrets": [SECRET], "jitter": lambda: 1.0, "clock": clock, "timers": timers, **options}
        made.append((Webhooks(poster, **options), poster))
        return made[-1][0]

    yield make
    for webhooks, poster in made:
        await webhooks.close()
        poster.close()


def send(webhooks: Webhooks, identity: str = "job-1", body: bytes = b"{}", url: str = URL) -> Told:
    told = Told()
    webhooks.send(url, identity, body, told)
    return told


async def pausing(webhooks: Webhooks, count: int = 1) -> None:
    """Wait until attempts have failed and so many pushes pause."""
    await until(lambda: webhooks.statistics().pausing == count)


# -- signatures


def test_a_signature_is_that_of_the_specification() -> None:
    """The public example of Standard Webhooks is signed as its own libraries sign it, and verified."""
    assert sign(SECRET, IDENTITY, TIMESTAMP, PAYLOAD) == SIGNATURE
    verify([SECRET], signed(), PAYLOAD, now_s=TIMESTAMP)


def test_a_new_secret_signs() -> None:
    """Secrets are made at random, in the specification's form, and what one signed another does not verify."""
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith("whsec_")
    assert len(base64.b64decode(first[6:])) == 32
    headers = signed(webhook_signature=sign(first, IDENTITY, TIMESTAMP, PAYLOAD))
    verify([first], headers, PAYLOAD, now_s=TIMESTAMP)
    with pytest.raises(BadRequest):
        verify([second], headers, PAYLOAD, now_s=TIMESTAMP)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_dG9vIHNob3J0",
        SECRET.removeprefix("whsec_"),
        SECRET + "!",
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_geheimnisvollschlüsselwörter",
    ],
)
def test_what_is_no_secret_is_not_used(secret: str, clock: ManualClock) -> None:
    """A secret of another form or length is a mistake of the caller's, and is not shown in the error's text."""
    for attempt in (
        lambda: sign(secret, IDENTITY, TIMESTAMP, PAYLOAD),
        lambda: verify([secret], signed(), PAYLOAD, now_s=TIMESTAMP),
        lambda: Webhooks(Poster(), secrets=[secret], clock=clock, timers=Timers(clock)),
    ):
        with pytest.raises(ValueError) as refused:
            attempt()
        assert secret in ("", "whsec_") or secret not in str(refused.value)


def test_webhooks_need_a_secret(clock: ManualClock) -> None:
    """Nothing is sent without a signature."""
    with pytest.raises(ValueError):
        Webhooks(Poster(), secrets=[], clock=clock, timers=Timers(clock))


@pytest.mark.parametrize("identity", ["", "a.b", "a b", "ä", "a\r\nx: y", "a" * 257])
def test_an_identity_cannot_move_the_parts_of_what_is_signed(identity: str) -> None:
    """An identity with a full stop, a blank or a line break is refused, as are one that is empty and one too long."""
    with pytest.raises(BadRequest) as refused:
        sign(SECRET, identity, TIMESTAMP, PAYLOAD)
    assert refused.value.code == "webhook-id"


def test_names_of_header_fields_are_in_any_case() -> None:
    """A receiver passes the header fields on as its framework spells them."""
    verify([SECRET], {name.title(): value for name, value in signed().items()}, PAYLOAD, now_s=TIMESTAMP)


def test_either_secret_of_a_rotation_verifies() -> None:
    """One right signature among several is enough, and so is one right secret."""
    old, new, other = new_secret(), new_secret(), new_secret()
    both = " ".join(sign(secret, IDENTITY, TIMESTAMP, PAYLOAD) for secret in (new, old))
    for secrets in ([old], [new], [other, old]):
        verify(secrets, signed(webhook_signature=f"v1a,AAAA {both}"), PAYLOAD, now_s=TIMESTAMP)
    with pytest.raises(BadRequest):
        verify([other], signed(webhook_signature=both), PAYLOAD, now_s=TIMESTAMP)


@pytest.mark.parametrize("late_s", [-301, 301])
def test_an_attempt_of_another_time_is_refused(late_s: int) -> None:
    """What is further away than the tolerance, in the past or in the future, may be a replay; what is not is taken."""
    verify([SECRET], signed(), PAYLOAD, now_s=TIMESTAMP + late_s * 300 // 301)
    with pytest.raises(BadRequest) as refused:
        verify([SECRET], signed(), PAYLOAD, now_s=TIMESTAMP + late_s)
    assert refused.value.code == "webhook-stale"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"webhook_id": ""}, "webhook-unsigned"),
        ({"webhook_id": "a.b"}, "webhook-unsigned"),
        ({"webhook_timestamp": ""}, "webhook-unsigned"),
        ({"webhook_timestamp": "-1"}, "webhook-unsigned"),
        ({"webhook_timestamp": "١٦١٤٢٦٥٣٣٠"}, "webhook-unsigned"),
        ({"webhook_timestamp": "9" * 5000}, "webhook-unsigned"),
        ({"webhook_id": "msg_other"}, "webhook-signature"),
        ({"webhook_timestamp": str(TIMESTAMP + 1)}, "webhook-signature"),
        ({"webhook_signature": ""}, "webhook-signature"),
        ({"webhook_signature": SIGNATURE.replace("v1,", "v2,")}, "webhook-signature"),
        ({"webhook_signature": SIGNATURE[:-3]}, "webhook-signature"),
        ({"webhook_signature": "v1,ä\udcff"}, "webhook-signature"),
    ],
)
def test_a_forgery_is_refused(change: dict[str, str], code: str) -> None:
    """Any field that is missing, malformed or not what was signed is refused, with a code for each case."""
    with pytest.raises(BadRequest) as refused:
        verify([SECRET], signed(**change), PAYLOAD, now_s=TIMESTAMP)
    assert refused.value.code == code


def test_another_body_is_refused() -> None:
    """A signature is for the very bytes: the same JSON written otherwise is another body."""
    with pytest.raises(BadRequest) as refused:
        verify([SECRET], signed(), PAYLOAD.replace(b" ", b""), now_s=TIMESTAMP)
    assert refused.value.code == "webhook-signature"


# -- where a push may go


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        (PUBLIC, True),
        ("2606:4700:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("2002:808:808::1", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.0.0.8", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("239.255.255.250", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::8.8.8.8", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::808:808", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:0:808:808::1", False),
        ("2001:db8::1", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::1", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("fe80::1%1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
    ],
)
def test_only_public_addresses_are_public(address: str, public: bool) -> None:
    """An address is public if it is a public host's, and an IPv4 address inside an IPv6 address is judged as itself."""
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "",
        "receiver.example/hook",
        "//receiver.example/hook",
        "ftp://receiver.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://",
        "https:///hook",
        "https://:443/",
        "https://user@receiver.example/",
        "https://user:secret@receiver.example/",
        "https://receiver.example:0/",
        "https://receiver.example:65536/",
        "https://receiver.example:80x/",
        "https://receiver.example:-1/",
        "https://receiver..example/",
        "https://-receiver.example/",
        "https://" + "a" * 64 + ".example/",
        "https://receiver.example/" + "a" * 2048,
        "https://receiver.example/a b",
        "https://receiver.example/\r\nX: y",
        "https://receiver.example\t/",
        "https://bücher.example/",
        "https://①②⑦.0.0.1/",
        "https://receiver.example\\@127.0.0.1/",
        "https://receiver.example%2f.evil.example/",
        "http://[::1/",
        "http://[v1.x]/",
        "http://[1::2::3]/",
        "http://a[::1]/",
        "http://[fe80::1%25eth0]/",
        "http://localhost/",
        "http://LOCALHOST.:8080/",
        "http://a.localhost/",
        "http://127.0.0.1/",
        "http://127.0.0.1./",
        "http://127.1/",
        "http://0x7f.0.0.1/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://2130706433/",
        "http://0/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://224.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::a00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[ff02::1]/",
    ],
)
async def test_what_can_never_be_sent_to_is_refused(make: Make, url: str) -> None:
    """A URL with no way to a public host is refused before anything is sent, and again by ``send``."""
    webhooks = make(Script(200))
    for attempt in (lambda: webhooks.check(url), lambda: send(webhooks, url=url)):
        with pytest.raises(BadRequest) as refused:
            attempt()
        assert refused.value.code == "callback-url"
    assert webhooks.statistics().attempts == 0


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "http://receiver.example",
        "HTTPS://Receiver.Example.:8443/a/b?c=d&e=%20#f",
        "https://receiver.example:/",
        "https://xn--bcher-kva.example/",
        "https://_a.receiver-1.example/",
        "http://8.8.8.8:8080/",
        "https://[2606:4700:4700::1111]:8443/",
    ],
)
async def test_what_may_be_public_is_taken(make: Make, url: str) -> None:
    """URLs of names, and of public addresses, are taken."""
    make(Script(200)).check(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/", "http://localhost/", "http://[::1]/", "http://10.0.0.1/"])
async def test_private_addresses_are_taken_when_they_are_allowed(make: Make, url: str) -> None:
    """``allow_private`` takes any address, and still only URLs that a push can be sent to."""
    webhooks = make(Script(200), allow_private=True)
    webhooks.check(url)
    for other in ("ftp://127.0.0.1/", "http://user@localhost/", "http://[::1]:0/"):
        with pytest.raises(BadRequest):
            webhooks.check(other)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where connections would have gone: each of them fails."""
    made: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], _timeout: float) -> socket.socket:
        made.append(address)
        raise ConnectionRefusedError(f"{address} is refused, says the test")

    monkeypatch.setattr(socket, "create_connection", connect)
    return made


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["::1"],
        ["fe80::1%1"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::a9fe:a9fe"],
        ["2002:a9fe:a9fe::1"],
        [PUBLIC, "10.0.0.1"],
        ["10.0.0.1", PUBLIC],
        [*([PUBLIC] * 9), "169.254.169.254"],
        [],
    ],
)
def test_a_name_with_an_address_that_is_not_public_is_not_connected_to(
    answers: list[str], connections: list[tuple[str, int]]
) -> None:
    """One address that is not public among a name's answers is enough, and the error does not say which it is."""
    with pytest.raises(NoResponse) as failed:
        Direct(resolve=lambda _host, _port: answers)(URL, {}, b"")
    assert not connections
    assert not any(address in str(failed.value) for address in answers)


def test_a_name_is_looked_up_once(connections: list[tuple[str, int]]) -> None:
    """The connection goes to the addresses that were checked, even if the name server answers otherwise by then."""
    asked: list[tuple[str, int]] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return [PUBLIC, "8.8.8.8"] if len(asked) == 1 else ["127.0.0.1"]

    with pytest.raises(NoResponse):
        Direct(resolve=resolve)("https://Receiver.example.:8443/", {}, b"")
    assert asked == [("receiver.example", 8443)]
    assert connections == [(PUBLIC, 8443), ("8.8.8.8", 8443)]


def test_few_addresses_of_a_name_are_tried(connections: list[tuple[str, int]]) -> None:
    """However many addresses a name has, an attempt tries four."""
    with pytest.raises(NoResponse):
        Direct(resolve=lambda _host, _port: [f"8.8.8.{last}" for last in range(50)])(URL, {}, b"")
    assert len(connections) == 4


def test_an_address_is_not_looked_up(connections: list[tuple[str, int]]) -> None:
    """A URL that names an address goes there, and asks no name server."""

    def resolve(_host: str, _port: int) -> list[str]:
        raise AssertionError("nothing is to be looked up")

    for url in ("http://[2606:4700:4700::1111]/", "http://0x08080808/"):
        with pytest.raises(NoResponse):
            Direct(resolve=resolve)(url, {}, b"")
    assert connections == [("2606:4700:4700::1111", 80), ("8.8.8.8", 80)]


def test_the_transport_checks_the_url_too(connections: list[tuple[str, int]]) -> None:
    """The transport does not rely on anybody having checked before."""
    with pytest.raises(NoResponse):
        Direct()("http://127.0.0.1/", {}, b"")
    assert not connections


# -- outcomes and retries


async def test_a_push_is_delivered(make: Make) -> None:
    """A push arrives as a signed JSON document, and its outcome is told later and once."""
    transport = Script(204)
    webhooks = make(transport)
    told = send(webhooks, "job-1", b'{"a":1}')
    assert not told.given
    assert await told.wait() == DeliveryReport(
        "job-1", DeliveryOutcome.DELIVERED, 1, 204, "The receiver answered with 204."
    )
    [(url, headers, body)] = transport.calls
    assert (url, body, headers["Content-Type"]) == (URL, b'{"a":1}', "application/json")
    verify([SECRET], headers, body, now_s=START_MS / 1000, tolerance_s=1)
    statistics = webhooks.statistics()
    assert statistics.outcomes[DeliveryOutcome.DELIVERED] == statistics.attempts == 1
    assert statistics.held_bytes == 0
    assert repr(webhooks) == "<Webhooks 0 running, 0 ready, 0 pausing>"


async def test_a_push_is_signed_with_every_secret(make: Make) -> None:
    """While secrets are rotated, receivers with the old one and with the new one both verify."""
    transport, secrets = Script(200), [new_secret(), new_secret()]
    await send(make(transport, secrets=secrets)).wait()
    [(_, headers, body)] = transport.calls
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in secrets:
        verify([secret], headers, body, now_s=START_MS / 1000)


async def test_a_failure_is_tried_again_after_growing_pauses(make: Make, clock: ManualClock, timers: Timers) -> None:
    """Whatever is not 2xx, and no answer, is tried again after longer and longer pauses, with the identity and a new time."""
    transport = Script(500, NoResponse("no route"), 302, 404, 199, 200)
    webhooks = make(transport)
    told = send(webhooks)
    for attempt, pause_s in enumerate(PAUSES_S[:5], 1):
        await pausing(webhooks)
        assert len(transport.calls) == attempt
        clock.advance(pause_s / 2)
        timers.run()
        assert webhooks.statistics().pausing == 1
        clock.advance(pause_s / 2)
        timers.run()
    assert (await told.wait()).outcome == DeliveryOutcome.DELIVERED
    assert {headers["webhook-id"] for _, headers, _ in transport.calls} == {"job-1"}
    times = [int(headers["webhook-timestamp"]) - START_MS // 1000 for _, headers, _ in transport.calls]
    assert times == [int(sum(PAUSES_S[:count])) for count in range(6)]


async def test_a_push_is_given_up_after_so_many_attempts(make: Make, clock: ManualClock, timers: Timers) -> None:
    """After the last attempt the outcome says what was wrong with it; the longest pause is used again and again."""
    transport = Script(500, NoResponse("no route"))
    webhooks = make(transport, attempts_max=10)
    told = send(webhooks)
    for _ in range(9):
        await pausing(webhooks)
        clock.advance(PAUSES_S[-1])
        timers.run()
    assert await told.wait() == DeliveryReport("job-1", DeliveryOutcome.GIVEN_UP, 10, None, "no route")
    assert len(transport.calls) == 10
    assert webhooks.statistics().held_bytes == 0


async def test_gone_is_not_tried_again(make: Make) -> None:
    """A receiver that answers with 410 wants no more."""
    transport = Script(410)
    delivery = await send(make(transport)).wait()
    assert (delivery.outcome, delivery.attempts, delivery.status) == (DeliveryOutcome.GONE, 1, 410)


@pytest.mark.parametrize(
    ("retry_after", "pause_s"),
    [
        ("30", 30),
        (" 30 ", 30),
        ("0", 1),
        ("Fri, 15 Jan 2027 08:01:40 GMT", 100),
        ("Fri, 15 Jan 2027 09:01:40 +0100", 100),
        ("Fri, 15 Jan 2027 08:01:40 -0000", 100),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 1),
        ("86400", RETRY_AFTER_S_MAX),
        ("Fri, 15 Jan 2038 08:00:00 GMT", RETRY_AFTER_S_MAX),
        ("999999999999", 1),
        ("-5", 1),
        ("soon", 1),
        ("Fri, 99 Foo 99999 99:99:99 GMT", 1),
        ("Fri, 99 Jan 9999999 99:99:99 GMT", 1),
        ("", 1),
        ("²", 1),
    ],
)
async def test_retry_after_is_respected_up_to_a_bound(
    make: Make, clock: ManualClock, timers: Timers, retry_after: str, pause_s: float
) -> None:
    """A receiver may put off the next attempt by seconds or a date, not beyond an hour; nonsense changes nothing."""
    webhooks = make(Script(WebhookResponse(503, retry_after), 200))
    told = send(webhooks)
    await pausing(webhooks)
    clock.advance(pause_s - 0.5)
    timers.run()
    assert webhooks.statistics().pausing == 1
    clock.advance(0.5)
    timers.run()
    assert (await told.wait()).attempts == 2


async def test_pauses_are_jittered_from_nothing_to_all(make: Make, clock: ManualClock, timers: Timers) -> None:
    """A pause is any part of its bound, as the dice say, so that what failed together does not come back together."""
    webhooks = make(Script(500, 500, 200, 200), jitter=iter([0.25, 0.75]).__next__)
    told = [send(webhooks), send(webhooks)]
    await pausing(webhooks, 2)
    clock.advance(0.25)
    timers.run()
    assert webhooks.statistics().pausing == 1
    clock.advance(0.5)
    timers.run()
    for each in told:
        assert (await each.wait()).outcome == DeliveryOutcome.DELIVERED


async def test_a_timer_wakes_by_itself(clock: ManualClock, make: Make) -> None:
    """Nobody has to call ``wake``: a timer of the event loop does, for the earliest."""
    webhooks = make(Script(500, 500, 200), jitter=iter([1.0, 0.001]).__next__, threads_max=1)
    first, second = send(webhooks), send(webhooks)
    await pausing(webhooks, 2)
    clock.advance(0.001)
    assert (await second.wait()).attempts == 2
    assert not first.given


async def test_a_transport_that_raises_is_reported_and_tried_again(
    make: Make, clock: ManualClock, timers: Timers
) -> None:
    """A mistake of ours in the transport goes to the loop's exception handler; the push is not lost for it."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    mistake = RuntimeError("a mistake")
    webhooks = make(Script(mistake, 200))
    told = send(webhooks)
    await pausing(webhooks)
    assert reported == [mistake]
    clock.advance(1)
    timers.run()
    assert (await told.wait()).outcome == DeliveryOutcome.DELIVERED


async def test_a_callback_that_raises_is_reported(make: Make) -> None:
    """What ``done`` raises goes to the loop's exception handler, and keeps no other push from being made."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    webhooks = make(Script(200), threads_max=1)
    mistake = RuntimeError("a mistake")

    def done(_delivery: DeliveryReport) -> None:
        raise mistake

    webhooks.send(URL, "job-1", b"", done)
    assert (await send(webhooks, "job-2").wait()).outcome == DeliveryOutcome.DELIVERED
    assert reported == [mistake]


# -- bounds


async def test_so_many_attempts_run_at_a_time_in_order(make: Make) -> None:
    """Beyond the bound pushes wait, and begin in the order in which they were sent."""
    gate = Gate(200)
    webhooks = make(gate, threads_max=4)
    told = [send(webhooks, f"job-{number}") for number in range(5)]
    await until(lambda: len(gate.calls) == 2)
    await turns()
    statistics = webhooks.statistics()
    assert (statistics.running, statistics.ready) == (2, 3)
    assert repr(webhooks) == "<Webhooks 2 running, 3 ready, 0 pausing>"
    for begun in range(3, 6):
        gate.let(1)
        await until(lambda begun=begun: len(gate.calls) == begun)  # type: ignore[misc]
        assert gate.calls[-1][1]["webhook-id"] == f"job-{begun - 1}"
    gate.let(2)
    for each in told:
        await each.wait()


async def test_a_slow_receiver_leaves_threads_for_others(make: Make) -> None:
    """A receiver that never answers has half of the threads, however much there is for it; the next has half of those that
    are left, and so on: there is always one for somebody new."""
    gate = Gate(200)
    webhooks = make(gate, threads_max=8)
    for name in ("slow", "slower", "slowest"):
        for number in range(20):
            send(webhooks, f"{name}-{number}", url=f"https://{name}.example/{number}")
    send(webhooks, "quick", url="https://quick.example/hook")
    await until(lambda: len(gate.calls) == 8)
    counts = Counter(urlsplit(url).hostname for url, _, _ in gate.calls)
    assert counts == {"slow.example": 4, "slower.example": 2, "slowest.example": 1, "quick.example": 1}
    gate.let(61)
    await until(lambda: webhooks.statistics().outcomes[DeliveryOutcome.DELIVERED] == 61)


async def test_receivers_take_turns(make: Make) -> None:
    """What waits for one receiver does not wait behind all that waits for another."""
    gate = Gate(200)
    webhooks = make(gate, threads_max=1)
    for name in ("one", "one", "one", "two"):
        send(webhooks, url=f"https://{name}.example/")
    gate.let(4)
    await until(lambda: webhooks.statistics().outcomes[DeliveryOutcome.DELIVERED] == 4)
    assert [urlsplit(url).hostname for url, _, _ in gate.calls] == [
        *("one.example", "one.example", "two.example", "one.example")
    ]


async def test_pushes_between_attempts_take_no_turn(make: Make, clock: ManualClock, timers: Timers) -> None:
    """While a push pauses, others run in its place."""
    webhooks = make(Script(500, 200), threads_max=1)
    first = send(webhooks)
    await pausing(webhooks)
    assert (await send(webhooks, "job-2").wait()).outcome == DeliveryOutcome.DELIVERED
    clock.advance(1)
    timers.run()
    assert (await first.wait()).outcome == DeliveryOutcome.DELIVERED


async def test_more_pushes_than_are_held_are_refused(make: Make, clock: ManualClock, timers: Timers) -> None:
    """Running, ready and pausing pushes count together; when one is over there is room again."""
    gate = Gate(500, 200)
    webhooks = make(gate, threads_max=1, held_max=3)
    first = send(webhooks, "first")
    gate.let(1)
    await pausing(webhooks)
    others = [send(webhooks), send(webhooks)]
    with pytest.raises(Overloaded) as refused:
        send(webhooks)
    assert refused.value.code == "webhooks-full"
    gate.let(1)
    await others[0].wait()
    others.append(send(webhooks))
    gate.let(3)
    clock.advance(1)
    timers.run()
    for told in (first, *others):
        assert (await told.wait()).outcome == DeliveryOutcome.DELIVERED


async def test_more_bytes_than_are_held_are_refused(make: Make) -> None:
    """Bodies count with their bytes; one that never fits is refused for good."""
    gate = Gate(200)
    webhooks = make(gate, held_bytes_max=10)
    told = send(webhooks, body=b"1234567")
    send(webhooks, body=b"123")
    with pytest.raises(Overloaded):
        send(webhooks, body=b"1")
    with pytest.raises(TooLarge):
        send(webhooks, body=b"12345678901")
    assert webhooks.statistics().held_bytes == 10
    gate.let(2)
    await told.wait()
    send(webhooks, body=b"1")
    gate.let(1)


# -- closing


async def test_close_gives_back_what_is_not_over(make: Make) -> None:
    """What is ready, pauses or runs for too long is told that we are stopping; nothing is told twice, or taken any more."""
    gate = Gate(500)
    webhooks = make(gate, threads_max=1, timeout_s=0.01)
    pauses = send(webhooks, "pauses")
    gate.let(1)
    await pausing(webhooks)
    runs, ready = send(webhooks, "runs"), send(webhooks, "ready")
    await until(lambda: len(gate.calls) == 2)
    await webhooks.close()
    assert [(await told.wait()).outcome for told in (pauses, runs, ready)] == [DeliveryOutcome.STOPPING] * 3
    assert [(await told.wait()).attempts for told in (pauses, runs, ready)] == [1, 1, 0]
    assert str(DeliveryOutcome.STOPPING) == "given-up: stopping"
    with pytest.raises(Overloaded) as refused:
        send(webhooks)
    assert refused.value.code == "closing"
    gate.let(1)
    await until(lambda: gate.over == 2)
    await turns()
    assert sum(webhooks.statistics().outcomes.values()) == 3
    assert repr(webhooks) == "<Webhooks 0 running, 0 ready, 0 pausing stopping>"
    assert webhooks.statistics().held_bytes == 0
    await webhooks.close()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, DeliveryOutcome.DELIVERED), (410, DeliveryOutcome.GONE), (500, DeliveryOutcome.STOPPING)],
)
async def test_close_waits_for_what_is_under_way(make: Make, status: int, outcome: DeliveryOutcome) -> None:
    """An attempt that ends in time while we stop has its own outcome; a failed one is not tried again."""
    gate = Gate(status)
    webhooks = make(gate)
    told = send(webhooks)
    await until(lambda: gate.calls)
    closing = asyncio.create_task(webhooks.close())
    await turns()
    assert not told.given
    gate.let(1)
    await closing
    assert (await told.wait()).outcome == outcome


async def test_a_cancelled_close_still_tells_everybody(make: Make) -> None:
    """Cancelling ``close`` ends the wait, and nothing else."""
    gate = Gate(200)
    webhooks = make(gate)
    told = send(webhooks)
    closing = asyncio.create_task(webhooks.close())
    await turns()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert told.result.outcome == DeliveryOutcome.STOPPING
    gate.let(1)
    await turns()


# -- over loopback


def write(handler: http.server.BaseHTTPRequestHandler, answer: bytes) -> None:
    handler.wfile.write(answer)


async def test_a_push_over_loopback(make: Make, receiver: Receiver) -> None:
    """A real receiver gets the body and header fields that verify, at the path and query of the URL."""
    webhooks = make(allow_private=True)
    body = b'{"text":"' + b"x" * 1_000_000 + b'"}'
    delivery = await send(webhooks, IDENTITY, body, f"http://127.0.0.1:{receiver.port}/a/b?c=d&e=%20#f").wait()
    assert delivery == DeliveryReport(IDENTITY, DeliveryOutcome.DELIVERED, 1, 204, "The receiver answered with 204.")
    [(path, headers, received)] = receiver.requests
    assert (path, received) == ("/a/b?c=d&e=%20", body)
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert headers["webhook-id"] == IDENTITY
    verify([SECRET], headers, received, now_s=START_MS / 1000)


async def test_a_name_may_have_an_address_that_does_not_answer(receiver: Receiver, make: Make) -> None:
    """The next address of a name is tried in the same attempt."""
    direct = Direct(allow_private=True, resolve=lambda _host, _port: ["::1", "127.0.0.1"])
    webhooks = make(direct)
    delivery = await send(webhooks, url=f"http://receiver.example:{receiver.port}/").wait()
    assert (delivery.outcome, delivery.attempts) == (DeliveryOutcome.DELIVERED, 1)
    assert receiver.requests[0][1]["host"] == f"receiver.example:{receiver.port}"


async def test_a_private_receiver_is_not_reached(make: Make, receiver: Receiver) -> None:
    """A name that turns out to be a private address is a failed attempt, and nothing arrives there."""
    webhooks = make(Direct(resolve=lambda _host, _port: ["127.0.0.1"]), attempts_max=1)
    delivery = await send(webhooks, url=f"http://receiver.example:{receiver.port}/").wait()
    assert delivery.outcome == DeliveryOutcome.GIVEN_UP
    assert delivery.detail == "receiver.example has an address that is not public."
    assert not receiver.requests


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(make: Make, receiver: Receiver, status: int) -> None:
    """A redirect is a failure: the URL that was checked is the only one."""
    receiver.answer = lambda handler: reply(handler, status, Location=f"http://127.0.0.1:{receiver.port}/other")
    webhooks = make(allow_private=True, attempts_max=1)
    delivery = await send(webhooks, url=f"http://127.0.0.1:{receiver.port}/hook").wait()
    assert (delivery.outcome, delivery.status) == (DeliveryOutcome.GIVEN_UP, status)
    assert [path for path, _, _ in receiver.requests] == ["/hook"]


async def test_retry_after_comes_through(make: Make, receiver: Receiver, clock: ManualClock, timers: Timers) -> None:
    """The header field of a real answer is respected."""
    receiver.answer = lambda handler: reply(handler, 503, Retry_After="40")
    webhooks = make(allow_private=True)
    told = send(webhooks, url=f"http://127.0.0.1:{receiver.port}/")
    await pausing(webhooks)
    receiver.answer = lambda handler: reply(handler, 200)
    clock.advance(39)
    timers.run()
    assert webhooks.statistics().pausing == 1
    clock.advance(1)
    timers.run()
    assert (await told.wait()).outcome == DeliveryOutcome.DELIVERED


def wait(event: threading.Event) -> None:
    assert event.wait(30)


def test_a_receiver_that_says_nothing_times_out(receiver: Receiver) -> None:
    """An answer that does not come is a failed attempt."""
    receiver.answer = lambda _handler: wait(receiver.stopped)
    with pytest.raises(NoResponse, match="TimeoutError"):
        Direct(allow_private=True)(f"http://127.0.0.1:{receiver.port}/", {}, b"{}", 0.05)


def test_a_receiver_that_answers_byte_by_byte_times_out(receiver: Receiver) -> None:
    """The time is for all of an attempt: it does not begin anew with every byte."""

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not receiver.stopped.wait(0.005):
            handler.wfile.write(b"x")

    receiver.answer = drip
    with pytest.raises(NoResponse, match="TimeoutError"):
        Direct(allow_private=True)(f"http://127.0.0.1:{receiver.port}/", {}, b"{}", 0.1)


def test_a_receiver_that_does_not_read_times_out() -> None:
    """A body that is not taken is a failed attempt, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(NoResponse, match="TimeoutError"):
            Direct(allow_private=True)(url, {}, bytes(64 * 1024 * 1024), 0.05)


def test_an_endless_answer_is_not_read(receiver: Receiver) -> None:
    """The status counts, however long what comes after it, and whether it comes at all."""

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while not receiver.stopped.is_set():
            handler.wfile.write(bytes(1024))

    receiver.answer = endless
    direct = Direct(allow_private=True)
    answer = direct(f"http://127.0.0.1:{receiver.port}/", {}, b"{}", 30)
    assert (answer.status, len(answer.body)) == (200, RESPONSE_BYTES_MAX)
    receiver.answer = lambda handler: write(handler, b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\nab")
    assert direct(f"http://127.0.0.1:{receiver.port}/", {}, b"{}").status == 202


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, b"x" * 70_000]
)
def test_what_is_not_http_is_a_failed_attempt(receiver: Receiver, answer: bytes) -> None:
    """A receiver that speaks something else is unreachable, and its words are not passed on at length."""
    receiver.answer = lambda handler: write(handler, answer)
    with pytest.raises(NoResponse) as failed:
        Direct(allow_private=True)(f"http://127.0.0.1:{receiver.port}/", {}, b"{}")
    assert len(str(failed.value)) <= 200


def test_a_closed_port_and_an_unknown_name_are_failed_attempts() -> None:
    """Errors of the network and of the resolver are translated."""

    def unknown(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown, says the test")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(NoResponse, match="ConnectionRefusedError"):
        Direct(allow_private=True)(f"http://127.0.0.1:{port}/", {}, b"")
    with pytest.raises(NoResponse, match="gaierror"):
        Direct(resolve=unknown)(URL, {}, b"")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_a_push_over_tls_checks_the_name(make: Make, tmp_path: Path) -> None:
    """The connection goes to the address that was checked, and the certificate must still be the host name's."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=receiver.example"
    )
    names = ["-addext", "subjectAltName=DNS:receiver.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    theirs.sni_callback = lambda _sock, name, _context: asked.append(name)
    receiver = Receiver(theirs)
    ours = ssl.create_default_context(cafile=str(certificate))
    try:
        webhooks = make(
            Direct(allow_private=True, resolve=lambda _host, _port: ["127.0.0.1"], tls=ours), attempts_max=1
        )
        right = await send(webhooks, url=f"https://receiver.example.:{receiver.port}/").wait()
        wrong = await send(webhooks, url=f"https://other.example:{receiver.port}/").wait()
    finally:
        receiver.stop()
    assert (right.outcome, right.status) == (DeliveryOutcome.DELIVERED, 204)
    assert wrong.outcome == DeliveryOutcome.GIVEN_UP
    assert "certificate" in wrong.detail
    assert asked == ["receiver.example", "other.example"]
    assert len(receiver.requests) == 1
