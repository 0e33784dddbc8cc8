"""Operations: health, readiness, metrics, the OpenAPI document, the client for browsers, a page that says what is here."""

from __future__ import annotations

import hashlib
from functools import cache, partial
from importlib import resources

import msgspec

from wayside.calls.queue import ServiceSpec
from wayside.calls.services import Calls
from wayside.groups.registry import Groups
from wayside.server.exchange import JSON_HEAD, Exchange, Handler, matches
from wayside.server.http.metrics import Metrics, Observed
from wayside.server.http.shared import Shared
from wayside.server.openapi.document import document
from wayside.streams.delayed import Delaying
from wayside.webhooks.subscriptions import Subscriptions

_TEXT = b"Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n"
_MODULE = b"Content-Type: text/javascript; charset=utf-8\r\nCache-Control: no-cache\r\nVary: Origin\r\n"
_SCRIPTS = ("wayside.js", "wayside/connection.js", "wayside/msgpack.js")
"""Of wayside.client.browser: a module and what it imports."""


class Operations:
    """What runs the hub beside its streams."""

    def __init__(
        self,
        log: Observed,
        version: str,
        calls: Calls,
        groups: Groups,
        delaying: Delaying,
        subscriptions: Subscriptions,
    ) -> None:
        self._log = log
        self._calls = calls
        self._version = version
        self._figures = Metrics(log, calls, groups, delaying, subscriptions)
        self.ready = False
        self._openapi = b""
        self._described: list[ServiceSpec] | None = None
        """What ``_openapi`` was made of."""
        self._pages: dict[str, Handler] = {
            "/": self._index,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi_json,
            **{f"/{name}": partial(_script, name) for name in _SCRIPTS},
        }

    def listening(self, shared: Shared) -> None:
        """The hub's own server listens, whose connections share this."""
        self._figures.shared = shared

    def find(self, path: str) -> Handler | None:
        return self._pages.get(path)

    def _index(self, exchange: Exchange) -> None:
        text = (
            f"Wayside {self._version}\n\n"
            "Streams       /v1/stream/          list\n"
            "One stream    /v1/stream/NAME      PUT creates, POST appends, GET reads, HEAD tells, DELETE deletes\n"
            "Services      /v1/service/         list\n"
            "One service   /v1/service/NAME     POST calls it, GET tells\n"
            "Calls         /v1/call/            list\n"
            "One call      /v1/call/ID          GET reads, DELETE cancels; /v1/call/ID/result is the bare result\n"
            "Groups        /v1/group/           list\n"
            "One group     /v1/group/NAME       PUT makes it, GET tells, DELETE forgets it\n"
            "Its records   /v1/group/NAME/claim POST takes some, and settles them at /v1/group/NAME/ack\n"
            "Presence      /v1/presence/NAME    who follows a stream; GET with offset: joins and leaves\n"
            "Uploads       /v1/upload/          POST begins one (tus 1.0.0)\n"
            "Many at once  /v1/connect          a WebSocket\n"
            "Operations    /healthz  /readyz  /metrics  /openapi.json\n"
            "In a browser  /wayside.js            import { connect } from it\n"
        )
        exchange.respond(200, _TEXT, text.encode())

    def _healthz(self, exchange: Exchange) -> None:
        exchange.respond(200, JSON_HEAD, b'{"status":"ok"}')

    def _readyz(self, exchange: Exchange) -> None:
        reason, shared = self._log.failed, self._figures.shared
        if reason is None and (not self.ready or (shared is not None and shared.draining)):
            reason = "stopping" if shared is not None and shared.draining else "starting"
        if reason is None:
            exchange.respond(200, JSON_HEAD, b'{"status":"ready"}')
        else:
            exchange.respond(503, JSON_HEAD, msgspec.json.encode({"status": "not ready", "reason": reason}))

    def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n", self._figures.text())

    def _openapi_json(self, exchange: Exchange) -> None:
        services = [service for _, service in sorted(self._calls.services.items())]
        specs = [service.spec for service in services]
        if specs != self._described:  # the same objects, while nothing is declared anew
            self._openapi = msgspec.json.encode(document(self._version, services))
            self._described = specs
        exchange.respond(200, JSON_HEAD, self._openapi)


def _script(name: str, exchange: Exchange) -> None:
    """Answer with a module of the client for browsers; browsers ask each time whether it has changed."""
    body, etag = _script_and_tag(name)
    headers = _MODULE + b"ETag: %b\r\n" % etag.encode()
    if matches(exchange.request.headers.get("if-none-match"), etag):
        exchange.respond(304, headers)
    else:
        exchange.respond(200, headers, body)


@cache
def _script_and_tag(name: str) -> tuple[bytes, str]:
    body = resources.files("wayside").joinpath("client", "browser", name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
