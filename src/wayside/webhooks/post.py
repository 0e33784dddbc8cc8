"""A POST to a URL that somebody else chose: where it may go at all, how it goes there, and when its turn is.

The host's name is looked up once, all of its addresses are checked, and the connection goes to one that was: a name
server that answers differently the next time gains nothing. All requests of a hub share one pool of threads, in which a
receiver that is slow leaves room for others. What is posted, and whether again, is not known here.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from wayside.core.callbacks import guarded, report
from wayside.core.errors import BadRequest

__all__ = [
    "Answered",
    "Direct",
    "NoResponse",
    "Poster",
    "Posting",
    "Resolver",
    "Target",
    "Transport",
    "WebhookResponse",
    "ended",
    "is_public",
    "resolve",
    "target_of",
]

URL_CHARS_MAX = 2048
"""As long as proxies and logs take for certain."""
RESPONSE_BYTES_MAX = 16 * 1024
"""What is read of an answer, wanted or not: closing a socket with unread bytes resets the connection, which the
receiver would see as a failure."""
ADDRESSES_MAX = 4
"""Addresses of one host that are tried in one attempt."""
SEND_BYTES = 64 * 1024
"""Sent in one call, so that the deadline is looked at in between."""
DETAIL_CHARS_MAX = 200
"""Of an error's text, which may quote the receiver."""
TIMEOUT_S = 10.0
"""For one request, unless it is said otherwise."""
THREADS_MAX = 128
"""Requests under way; half of them to one receiver where nobody else has any. As many threads are made as are needed."""

# -- where it may go

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All IPv6 addresses that are given out (IANA, Internet Protocol Version 6 Address Space)."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses as seen through a translator (RFC 6052 section 2.1)."""
_REFUSED = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "2001::/23",  # protocol assignments, Teredo among them (RFC 2928)
        "3fff::/20",  # documentation (RFC 9637)
    )
]
"""Those that ``ipaddress`` takes for global, in one version of Python or another."""


def is_public(address: str | Address) -> bool:
    """Whether a request may go to this IP address: it is a public host's, and so is every IPv4 address inside it.

    Private, loopback, link-local, shared, multicast, reserved and documentation addresses are not public; an IPv4 address
    that is mapped into IPv6 (RFC 4291), or reached through 6to4 (RFC 3056) or NAT64 (RFC 6052), is judged as itself.
    Raises ``ValueError`` for what is not an IP address.
    """
    address = ipaddress.ip_address(address)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _REFUSED)


class Target(NamedTuple):
    """What a URL says, taken apart once."""

    secure: bool
    authority: str
    host: str
    """In lower case, without brackets and without a final full stop."""
    literal: Address | None
    """The address that ``host`` is, in whatever notation."""
    port: int
    path: str


_VISIBLE = re.compile(r"[!#-\[\]-~]+", re.ASCII)
"""Printable ASCII without blanks, quotes and the backslash, which clients read in different ways."""
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_AUTHORITY = re.compile(rf"(\[[0-9A-Fa-f:.]+\]|{_LABEL}(?:\.{_LABEL})*\.?)(?::([0-9]{{0,5}}))?", re.ASCII)


def target_of(url: str, *, allow_private: bool) -> Target:
    """Take a callback's URL apart; raises :class:`BadRequest` (``callback-url``) where it can never be sent to."""
    try:
        return _take_apart(url, allow_private)
    except ValueError as error:
        raise BadRequest(f"{url[:200]!r} cannot be a callback: {error}.", code="callback-url") from error


def _take_apart(url: str, allow_private: bool) -> Target:
    if len(url) > URL_CHARS_MAX:
        raise ValueError(f"it has {len(url)} characters, and at most {URL_CHARS_MAX} are allowed")
    if not _VISIBLE.fullmatch(url):
        raise ValueError("a URL is printable ASCII; write other characters as %XX, and those of a host as xn--")
    scheme, authority, path, query, _ = urlsplit(url)
    if scheme not in ("http", "https"):
        raise ValueError("it begins neither with https:// nor with http://")
    if "@" in authority:
        raise ValueError("credentials do not belong into it; pushes are signed")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError("there is no valid host in it")
    port = int(match[2] or (443 if scheme == "https" else 80))
    if not 0 < port < 65536:
        raise ValueError("a port is from 1 to 65535")
    host = match[1].lower().removesuffix(".")
    literal = _literal(host)
    local = host == "localhost" or host.endswith(".localhost")
    if not allow_private and (local or (literal is not None and not is_public(literal))):
        raise ValueError("its address is not public")
    path = (path or "/") + (f"?{query}" if query else "")
    return Target(scheme == "https", authority.removesuffix(":"), host.strip("[]"), literal, port, path)


def _literal(host: str) -> Address | None:
    """The address that a host is: also as 127.1, 0x7f000001 or 2130706433, which resolvers take for 127.0.0.1."""
    if host.startswith("["):
        return ipaddress.IPv6Address(host[1:-1])
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


# -- going there


class WebhookResponse(NamedTuple):
    """What a receiver answered."""

    status: int
    retry_after: str | None = None
    """The header field, as it came."""
    body: bytes = b""
    """What was read of it: for those whose receivers answer with something."""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class NoResponse(Exception):
    """There was no answer; the text says why."""


Transport = Callable[[str, Mapping[str, str], bytes, float], WebhookResponse]
"""Posts a body with header fields to a URL within so many seconds, in a thread that it may block; raises
:class:`NoResponse`."""
Resolver = Callable[[str, int], Sequence[str]]
"""The addresses of a host, for a port; raises ``OSError``."""


def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM)]


class Direct:
    """The transport of every day: HTTP/1.1 to the address that was checked, without proxies and redirects.

    ``timeout_s`` bounds a request after the name was looked up, all of it, however slowly bytes come. ``tls`` is made
    from the system's certificates if it is not given.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        resolve: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        self._tls = tls

    def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float = TIMEOUT_S
    ) -> WebhookResponse:
        try:
            target = target_of(url, allow_private=self._allow_private)
            addresses = self._addresses(target)
            deadline = time.monotonic() + timeout_s  # sockets know no other clock
            with _connect(addresses, target.port, deadline) as sock:
                if not target.secure:
                    return _exchange(_Channel(sock, deadline), target, headers, body)
                self._tls = self._tls or ssl.create_default_context()
                with self._tls.wrap_socket(sock, server_hostname=target.host) as secured:
                    return _exchange(_Channel(secured, deadline), target, headers, body)
        except (OSError, http.client.HTTPException, BadRequest) as error:
            raise NoResponse(f"{type(error).__name__}: {error}"[:DETAIL_CHARS_MAX]) from error

    def _addresses(self, target: Target) -> list[str]:
        """Where the host is. One address that is not public spoils all."""
        if target.literal is not None:
            return [str(target.literal)]
        addresses = list(dict.fromkeys(self._resolve(target.host, target.port)))
        if not self._allow_private and not all(map(is_public, addresses)):
            raise NoResponse(f"{target.host} has an address that is not public.")  # which one is nobody's business
        if not addresses:
            raise NoResponse(f"{target.host} has no address.")
        return addresses[:ADDRESSES_MAX]


def _connect(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """Connect to the first address that answers; each has an even share of the time that is left."""
    for left in range(len(addresses), 0, -1):
        try:
            sock = socket.create_connection((addresses[-left], port), _remaining(deadline) / left)  # looks nothing up
            sock.settimeout(_remaining(deadline))
            return sock
        except OSError:
            if left == 1:
                raise
    raise AssertionError("there is an address")


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class _Channel(io.RawIOBase):
    """A socket as ``http.client`` reads it: everything ends by one deadline, where a socket's own timeout begins anew with
    every byte."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_remaining(self._deadline))
        return self._sock.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._sock.settimeout(_remaining(self._deadline))
            view = view[self._sock.send(view[:SEND_BYTES]) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)


def _exchange(channel: _Channel, target: Target, headers: Mapping[str, str], body: bytes) -> WebhookResponse:
    fields = {"Host": target.authority, "Connection": "close", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    channel.sendall("\r\n".join(lines).encode("ascii") + body)
    response = http.client.HTTPResponse(cast(socket.socket, channel), method="POST")
    with response:
        response.begin()
        answered = b""
        with suppress(OSError, http.client.HTTPException):  # the status is what counts
            answered = response.read(RESPONSE_BYTES_MAX)
        return WebhookResponse(response.status, response.getheader("Retry-After"), answered)


# -- whose turn it is


Answered = Callable[[WebhookResponse | NoResponse], None]
"""Is told what came of a request, once."""


@dataclass(slots=True, eq=False)
class Posting:
    """A request that was handed in."""

    url: str
    headers: Callable[[], Mapping[str, str]]
    body: bytes
    timeout_s: float
    done: Answered
    running: asyncio.Future[WebhookResponse] | None = None
    """What its thread ends with, once it has begun."""
    cancelled: bool = False

    def cancel(self) -> bool:
        """Take it back, unless it has begun; returns whether that was so."""
        self.cancelled = self.running is None
        return self.cancelled


@dataclass(slots=True, eq=False)
class _Receiver:
    """The host that requests go to."""

    name: str
    running: int = 0
    waiting: deque[Posting] = field(default_factory=deque)


class Poster:
    """The requests of one hub. Used from one event loop.

    Receivers have their turns one after the other, and one is given no more threads than are free: so one that never
    answers has half of them, two have a third each, and as many are left for all others (Choudhury and Hahne, "Dynamic
    Queue Length Thresholds for Shared-Memory Packet Switches", 1998). ``allow_private`` lets requests go to any address: for
    tests, and for networks where whoever names a URL is trusted. ``transport`` makes a request: :class:`Direct` unless
    another is given.
    """

    def __init__(
        self, *, allow_private: bool = False, transport: Transport | None = None, threads_max: int = THREADS_MAX
    ) -> None:
        self.allow_private = allow_private
        self.transport: Transport = transport or Direct(allow_private=allow_private)
        self._threads = ThreadPoolExecutor(threads_max, "wayside-webhook")
        self._free = threads_max
        self._receivers: dict[str, _Receiver] = {}
        self._turns: deque[_Receiver] = deque()
        """Those for which something waits."""
        self._closed = False

    def __repr__(self) -> str:
        running = sum(receiver.running for receiver in self._receivers.values())
        return f"<Poster {running} running, {sum(len(each.waiting) for each in self._turns)} waiting>"

    def check(self, url: str) -> None:
        """Raise :class:`BadRequest` (``callback-url``) for what can never be sent to: to be asked before ``url`` is
        recorded. The names' addresses are looked up and checked with each request."""
        target_of(url, allow_private=self.allow_private)

    def post(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        body: bytes,
        timeout_s: float,
        done: Answered,
    ) -> Posting:
        """Post ``body`` to ``url`` when there is a thread for it; ``done`` is told what came of it, once, later, on the
        event loop. ``headers`` makes the header fields, in the thread, when the request goes out. What is not
        :class:`NoResponse` and raised there is a mistake of ours: it is reported, and ``done`` is told of no response."""
        posting = Posting(url, headers, body, timeout_s, done)
        name = url.partition("//")[2].partition("/")[0].partition("?")[0].partition("#")[0].lower()
        receiver = self._receivers.get(name)
        if receiver is None:
            receiver = self._receivers[name] = _Receiver(name)
        if not receiver.waiting:
            self._turns.append(receiver)
        receiver.waiting.append(posting)
        self._start()
        return posting

    def _start(self) -> None:
        """Begin as many requests as may run, of one receiver after the other."""
        passed = 0
        while self._free and not self._closed and passed < len(self._turns):
            receiver = self._turns.popleft()
            waiting = receiver.waiting
            while waiting and waiting[0].cancelled:
                waiting.popleft()
            if waiting and receiver.running < self._free:
                self._begin(receiver, waiting.popleft())
                passed = 0
            elif waiting:
                passed += 1
            if waiting:
                self._turns.append(receiver)
            else:
                self._leave(receiver)

    def _begin(self, receiver: _Receiver, posting: Posting) -> None:
        self._free -= 1
        receiver.running += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._run, posting)
        posting.running = future
        future.add_done_callback(partial(self._ended, receiver, posting))

    def _run(self, posting: Posting) -> WebhookResponse:
        return self.transport(posting.url, posting.headers(), posting.body, posting.timeout_s)

    def _ended(self, receiver: _Receiver, posting: Posting, future: asyncio.Future[WebhookResponse]) -> None:
        self._free += 1
        receiver.running -= 1
        self._leave(receiver)
        result: Any = future.exception() or future.result()
        if not isinstance(result, WebhookResponse | NoResponse):
            report(result, self.transport)
            result = NoResponse(f"{type(result).__name__}: {result}"[:DETAIL_CHARS_MAX])
        guarded(partial(posting.done, result))
        self._start()

    def _leave(self, receiver: _Receiver) -> None:
        if not receiver.running and not receiver.waiting:
            self._receivers.pop(receiver.name, None)

    def close(self) -> None:
        """Begin no request any more, and tell nobody of those that wait. Those under way go on to their ends."""
        self._closed = True
        self._threads.shutdown(wait=False)


async def ended(postings: Iterable[Posting], timeout_s: float) -> None:
    """Take back those that have not begun, and wait until the others are over and their callers know, for so long."""
    running = [posting.running for posting in postings if not posting.cancel() and posting.running is not None]
    if running:
        await asyncio.wait(running, timeout=timeout_s)
