"""Subscriptions over HTTP: the control resources of the Durable Streams protocol, below ``__ds/`` (sections 6 and 7).

A refusal here is the hub's problem document and the protocol's ``error`` in one, as ``application/json``: the protocol has
it so.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import msgspec

from wayside.core.errors import BadRequest, MethodNotAllowed, NotFound, Refusal
from wayside.core.records import require_size
from wayside.server.exchange import JSON_HEAD, Exchange, Handler, Request, origin_of
from wayside.webhooks.subscription import Config, Kind, Subscription, refused
from wayside.webhooks.subscriptions import Confirmed, Subscriptions, Work
from wayside.webhooks.wakes import SUBSCRIPTIONS

__all__ = ["CONTROL", "allowed", "resolve"]

CONTROL = "__ds/"
"""What the paths below the streams that are for control begin with."""
JWKS = "__ds/jwks.json"
LEASE_MS_DEFAULT = 30_000
LEASE_MS = range(1000, 600_001)
BODY_BYTES_MAX = 1024 * 1024
"""Of a request; its lists of streams and of acks are short."""
WORKER_CHARACTERS_MAX = 256

_KEY_SET = b"Content-Type: application/jwk-set+json\r\nCache-Control: public, max-age=300\r\n"

T = TypeVar("T")
Action = Callable[[Exchange, Subscriptions, str, str], None]
"""Given the subscription's id, and the URL below which streams are."""


# -- bodies


class _Webhook(msgspec.Struct):
    url: str = ""


class _Put(msgspec.Struct):
    type: Kind
    pattern: str | None = None
    streams: list[str] | None = None
    webhook: _Webhook | None = None
    wake_stream: str | None = None
    lease_ttl_ms: int = LEASE_MS_DEFAULT
    description: str | None = None


class _Streams(msgspec.Struct):
    streams: list[str]


class _Claimant(msgspec.Struct):
    worker: str


class _Ack(msgspec.Struct):
    offset: str
    stream: str | None = None
    path: str | None = None


class _Work(msgspec.Struct):
    wake_id: str | None = None
    generation: int | None = None
    acks: list[_Ack] | None = None
    done: bool = False


def _body(exchange: Exchange, kind: type[T]) -> T:
    body = exchange.body
    require_size(len(body) if isinstance(body, bytes) else body.size, BODY_BYTES_MAX, "The request")
    assert isinstance(body, bytes), "what is spooled is larger"
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refused("INVALID_REQUEST", f"The body does not fit: {error}.") from error


def _plain(path: str) -> str:
    """A path without the slashes around it that clients may write."""
    return path.strip("/")


def _config(wanted: _Put) -> Config:
    """What was asked for, in the one form in which it is compared. What the other type would use is left out."""
    pattern = _plain(wanted.pattern or "")
    streams = tuple(sorted({_plain(path) for path in wanted.streams or ()}))
    if not pattern and not streams:
        raise refused("INVALID_REQUEST", "Say what to subscribe to: a pattern, or streams.")
    if wanted.lease_ttl_ms not in LEASE_MS:
        raise refused("INVALID_REQUEST", f"lease_ttl_ms is from {LEASE_MS[0]} to {LEASE_MS[-1]}.")
    url = wake_stream = ""
    if wanted.type is Kind.WEBHOOK:
        url = wanted.webhook.url if wanted.webhook is not None else ""
        if not url:
            raise refused("INVALID_REQUEST", "A subscription of type webhook needs webhook.url.")
    else:
        wake_stream = _plain(wanted.wake_stream or "")
        if not wake_stream:
            raise refused("INVALID_REQUEST", "A subscription of type pull-wake needs wake_stream.")
    return Config(wanted.type, wanted.lease_ttl_ms, pattern, streams, url, wake_stream, wanted.description)


# -- answers


def _refuse(exchange: Exchange, error: Exception) -> None:
    if not isinstance(error, Refusal):
        exchange.refuse(error)
        return
    head = JSON_HEAD + b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in error.headers.items())
    exchange.respond(error.status, head, msgspec.json.encode(error.problem()))


def _answer(exchange: Exchange, result: Any) -> None:
    """With a document, or with nothing to say."""
    if isinstance(result, Exception):
        _refuse(exchange, result)
    elif isinstance(result, dict):
        exchange.respond(200, JSON_HEAD, msgspec.json.encode(result))
    else:
        exchange.respond(204, b"")


def _document(state: Subscription, base: str, kid: str | None) -> dict[str, Any]:
    config = state.config
    webhook: dict[str, Any] | None = None
    if config.url:
        webhook = {"url": config.url, "signing": {"alg": "ed25519", "kid": kid, "jwks_url": base + JWKS}}
    created = dt.datetime.fromtimestamp(state.created_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")
    return {
        "id": state.id,
        "subscription_id": state.id,
        "type": config.type,
        "pattern": config.pattern or None,
        "streams": state.link_infos(),
        "webhook": webhook,
        "wake_stream": config.wake_stream or None,
        "lease_ttl_ms": config.lease_ttl_ms,
        "created_at": created.replace("+00:00", "Z"),
        "status": "failed" if state.attempts else "active",
        "description": config.description,
    }


def _tell(exchange: Exchange, subscriptions: Subscriptions, base: str, status: int, state: Subscription) -> None:
    """Answer with a subscription."""

    def known(keys: Any) -> None:
        if isinstance(keys, Exception):
            _refuse(exchange, keys)
        else:
            document = _document(state, base, keys.kid if state.config.url else None)
            exchange.respond(status, JSON_HEAD, msgspec.json.encode(document))

    subscriptions.with_keys(known)


# -- requests


def _put(exchange: Exchange, subscriptions: Subscriptions, identity: str, base: str) -> None:
    def done(result: Confirmed | Exception) -> None:
        if isinstance(result, Exception):
            _refuse(exchange, result)
        else:
            _tell(exchange, subscriptions, base, 201 if result.new else 200, result.state)

    config = _config(_body(exchange, _Put))
    if not origin_of(exchange.request):
        raise refused("INVALID_REQUEST", "Send a Host: receivers are told the hub's URL.")
    subscriptions.put(identity, config, base, done)


def _get(exchange: Exchange, subscriptions: Subscriptions, identity: str, base: str) -> None:
    _tell(exchange, subscriptions, base, 200, subscriptions.entry(identity).state)


def _delete(exchange: Exchange, subscriptions: Subscriptions, identity: str, _base: str) -> None:
    subscriptions.delete(identity, partial(_answer, exchange))


def _link(exchange: Exchange, subscriptions: Subscriptions, identity: str, _base: str) -> None:
    paths = [_plain(path) for path in _body(exchange, _Streams).streams]
    subscriptions.link(identity, paths, partial(_answer, exchange))


def _unlink(path: str, exchange: Exchange, subscriptions: Subscriptions, identity: str, _base: str) -> None:
    subscriptions.unlink(identity, _plain(path), partial(_answer, exchange))


def _claim(exchange: Exchange, subscriptions: Subscriptions, identity: str, _base: str) -> None:
    worker = _body(exchange, _Claimant).worker
    if not 0 < len(worker) <= WORKER_CHARACTERS_MAX:
        raise refused("INVALID_REQUEST", f"worker is a name of 1 to {WORKER_CHARACTERS_MAX} characters.")
    subscriptions.claim(identity, worker, partial(_answer, exchange))


def _ack(kind: Kind, exchange: Exchange, subscriptions: Subscriptions, identity: str, _base: str) -> None:
    subscriptions.ack(identity, kind, _work(exchange), partial(_answer, exchange))


def _release(exchange: Exchange, subscriptions: Subscriptions, identity: str, _base: str) -> None:
    subscriptions.release(identity, _work(exchange), partial(_answer, exchange))


def _work(exchange: Exchange) -> Work:
    scheme, _, token = exchange.request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise refused("TOKEN_INVALID", "Send the token that came with the wake: Authorization: Bearer TOKEN.")
    said = _body(exchange, _Work)
    acks = [(_plain(ack.stream or ack.path or ""), ack.offset) for ack in said.acks or ()]
    return Work(token.strip(), said.wake_id, said.generation, acks, said.done)


def _jwks(exchange: Exchange, subscriptions: Subscriptions) -> None:
    def known(keys: Any) -> None:
        if isinstance(keys, Exception):
            _refuse(exchange, keys)
        else:
            exchange.respond(200, _KEY_SET, msgspec.json.encode(keys.jwks))

    subscriptions.with_keys(known)


_ROOT: dict[str, Action] = {"PUT": _put, "GET": _get, "DELETE": _delete}
_ACTIONS: dict[str, Action] = {
    "streams": _link,
    "claim": _claim,
    "release": _release,
    "ack": partial(_ack, Kind.PULL_WAKE),
    "callback": partial(_ack, Kind.WEBHOOK),
}


def allowed(name: str) -> str:
    """Methods of what is at ``name``, as ``Allow`` has them."""
    identity, _, action = name.removeprefix(SUBSCRIPTIONS).partition("/")
    if name == JWKS:
        methods: Iterable[str] = ("GET",)
    elif not action:
        methods = _ROOT if identity else ("GET",)
    else:
        methods = ("DELETE",) if action.startswith("streams/") else ("POST",)
    return ", ".join((*methods, "OPTIONS"))


def resolve(request: Request, subscriptions: Subscriptions, name: str, base: str) -> Handler:
    """What answers a request for ``name``, which begins with ``__ds``; streams are below ``base``, a URL path."""
    identity, _, rest = name.removeprefix(SUBSCRIPTIONS).partition("/")
    action, _, path = rest.partition("/")
    if name == JWKS:
        action = path = ""
    elif not name.startswith(SUBSCRIPTIONS) or not identity:
        raise NotFound(
            f"There is nothing at {name[:200]}: below __ds/ are subscriptions/ID and jwks.json.", code="reserved"
        )
    if action not in ("", *_ACTIONS) or (path and action != "streams"):
        raise NotFound(f"A subscription has {', '.join(_ACTIONS)}, and nothing at {action[:80]}.", code="not-found")
    allow = allowed(name)
    if request.method not in allow.split(", "):
        raise MethodNotAllowed(f"{request.method} is not possible here; use {allow}.", headers={"Allow": allow})
    if name == JWKS:
        return partial(_guarded, lambda exchange: _jwks(exchange, subscriptions))
    handle = partial(_unlink, path) if path else _ACTIONS[action] if action else _ROOT[request.method]
    url = origin_of(request) + base
    return partial(_guarded, lambda exchange: handle(exchange, subscriptions, identity, url))


def _guarded(handle: Handler, exchange: Exchange) -> None:
    try:
        handle(exchange)
    except BadRequest as error:
        _refuse(exchange, error if "error" in error.fields else refused("INVALID_REQUEST", error.detail))
    except Refusal as refusal:
        _refuse(exchange, refusal)
