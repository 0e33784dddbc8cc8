"""The keys of a hub: what it signs webhooks of the Durable Streams protocol with, and the tokens that it gives out.

Webhooks are signed with Ed25519 (RFC 8032), so that receivers need no secret: they take the public key from the hub's key
set (RFC 7517, RFC 8037). Tokens are JWTs that only the hub reads (RFC 7519, HS256).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from functools import cached_property
from secrets import token_bytes
from typing import Any

import msgspec

from wayside.core.callbacks import Done
from wayside.core.errors import Refusal
from wayside.core.records import JSON, Create, StreamConfig
from wayside.streams.contract import Log

__all__ = ["KEYS", "KeyRing", "Keys", "Seeds"]

KEYS = "__ds/keys"
"""The hub's seeds, in the one record of it. No one but the hub reads it."""
KEY_BYTES = 32
_HEADER = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
"""``{"alg":"HS256","typ":"JWT"}``: the only one that is made, and taken."""


class Seeds(msgspec.Struct, frozen=True):
    """What the keys are made from: to be kept, and kept secret."""

    ed25519: bytes
    hmac: bytes

    @classmethod
    def new(cls) -> Seeds:
        return cls(token_bytes(KEY_BYTES), token_bytes(KEY_BYTES))

    def __repr__(self) -> str:
        return "<Seeds>"


class Keys:
    """Keys made from seeds: always the same from the same."""

    def __init__(self, seeds: Seeds) -> None:
        self._seeds = seeds

    def __repr__(self) -> str:
        return "<Keys>"

    # -- webhooks

    @cached_property
    def _private(self) -> Any:
        # Takes 30 ms and 5 MB: only hubs with subscriptions have it.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self._seeds.ed25519)

    @cached_property
    def _x(self) -> str:
        return _base64url(self._private.public_key().public_bytes_raw())

    @cached_property
    def kid(self) -> str:
        """The public key's name: its thumbprint (RFC 7638)."""
        members = f'{{"crv":"Ed25519","kty":"OKP","x":"{self._x}"}}'
        return "ds_" + _base64url(hashlib.sha256(members.encode()).digest())

    @cached_property
    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The key set that receivers verify with."""
        key = {"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "use": "sig", "alg": "EdDSA", "x": self._x}
        return {"keys": [key]}

    def sign(self, timestamp: int, body: bytes) -> str:
        """The field ``Webhook-Signature`` of one attempt at ``timestamp`` (seconds since 1970): over it, a full stop, and
        the very bytes of ``body``."""
        signature = self._private.sign(b"%d.%b" % (timestamp, body))
        return f"t={timestamp},kid={self.kid},ed25519={_base64url(signature)}"

    # -- tokens

    def token(self, **claims: Any) -> str:
        """A token with these claims. It does not end by time: what it is for does."""
        signed = f"{_HEADER}.{_base64url(msgspec.json.encode(claims))}"
        return f"{signed}.{self._mac(signed)}"

    def claims(self, token: str) -> dict[str, Any] | None:
        """What a token says; None where it is not one of ours."""
        signed, _, mac = token.rpartition(".")
        header, _, payload = signed.partition(".")
        if header != _HEADER or not hmac.compare_digest(mac.encode(errors="replace"), self._mac(signed).encode()):
            return None
        claims: dict[str, Any] = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return claims

    def _mac(self, signed: str) -> str:
        return _base64url(hmac.digest(self._seeds.hmac, signed.encode(errors="replace"), "sha256"))


class KeyRing:
    """The keys of one hub, which are made when they are first needed, and kept."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._waiting: list[Done] = []
        self.keys: Keys | None = None

    def take(self, record: bytes) -> None:
        """They are these: the record of :data:`KEYS`."""
        self.keys = Keys(msgspec.json.decode(record, type=Seeds))

    def want(self, done: Done) -> None:
        """``done`` gets :class:`Keys`, or an exception."""
        if self.keys is not None:
            done(self.keys)
            return
        self._waiting.append(done)
        if len(self._waiting) > 1:
            return
        record = msgspec.json.encode(Seeds.new())

        def made(result: Any) -> None:
            waiting, self._waiting = self._waiting, []
            if not isinstance(result, Exception):
                self.take(record)
            for each in waiting:
                each(result if self.keys is None else self.keys)

        try:
            self._log.create(KEYS, Create(StreamConfig(JSON), records=[record]), made)
        except Refusal as refusal:
            made(refusal)

    @property
    def sure(self) -> Keys:
        """Those that are there: no subscription is made before."""
        assert self.keys is not None, "subscriptions have keys"
        return self.keys


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
