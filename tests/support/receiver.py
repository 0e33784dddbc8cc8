"""A receiver of webhooks: a real HTTP server on loopback, which answers as it is told and keeps what came."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.waiting import PATIENCE_S


class Receiver:
    """Listens from the beginning, in threads of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        """Path, headers by their names in lower case, and body of each POST, in the order in which they came."""
        self.answers: list[tuple[int, dict[str, str]]] = []
        """Status and headers for the next requests; then ``status``."""
        self.status = 204
        self.hold: threading.Event | None = None
        """Requests are answered once it is set; None: at once."""
        self.running = self.most = 0
        """Requests that are being answered, and the most at any time."""
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self._answer
        """What is done with a request that was read."""
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._came(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                receiver.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients leave as they like."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def documents(self) -> list[Any]:
        """The bodies, which are JSON."""
        return [json.loads(body) for _, _, body in self.requests]

    def _came(self, path: str, headers: dict[str, str], body: bytes) -> None:
        with self._lock:
            self.requests.append((path, headers, body))
            self.running += 1
            self.most = max(self.most, self.running)
            hold = self.hold
        assert hold is None or hold.wait(PATIENCE_S), "nobody let it answer"
        with self._lock:
            self.running -= 1

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            status, headers = self.answers.pop(0) if self.answers else (self.status, {})
        reply(handler, status, b"", **headers)

    def stop(self) -> None:
        if self.hold is not None:
            self.hold.set()
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Answer; names of headers have ``_`` for ``-``."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if status != 204:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
