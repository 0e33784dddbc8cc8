"""A real browser, pages for it from an origin of their own, and what runs in a page or in Node.js."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.processes import CHROMIUM, JS, Program, Run, node, tool
from tests.support.waiting import eventually


class Browser:
    """A page in a headless browser, or Node.js with the same words: see tests/js."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values = 0
        self.log = program.out

    def open(self, url: str) -> None:
        """Leave the page, forget its log, open another."""
        self.evaluate("goto about:blank")
        self.log.lines.clear()
        self._values = 0
        self.evaluate(f"goto {url}")
        self.log.wait_for("^ready$")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        assert "\n" not in script
        self._program.write(f"{script}\n")
        self._values += 1

        def values() -> list[str]:
            return [line for line in self.log.lines if line.startswith("value: ")]

        eventually(lambda: len(values()) >= self._values or not self._program.running, script)
        assert len(values()) == self._values, f"{self.log.text}\n{self._program.err.text}"
        value = values()[-1].removeprefix("value: ")
        return None if value == "undefined" else json.loads(value)

    def wait_seen(self, count: int) -> list[Any]:
        """What the page has heard, once it is so much or more."""
        eventually(lambda: self.evaluate("seen.length") >= count, f"{count} records in the page\n{self.log.text}")
        seen: list[Any] = self.evaluate("seen")
        return seen

    def count(self, prefix: str) -> int:
        return sum(line.startswith(prefix) for line in self.log.lines)

    def wait_log(self, prefix: str, count: int) -> None:
        eventually(lambda: self.count(prefix) >= count, f"{count} times {prefix!r} in the log of the page")

    def quit(self) -> None:
        self._program.stdin.close()
        self._program.wait()


def start_chromium(run: Run, profile: Path) -> Browser:
    """A browser with a profile of its own; starting one takes seconds."""
    return Browser(run([node("playwright-core"), JS / "browser.mjs", tool(*CHROMIUM), profile]))


class _Pages(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def __init__(self, *args: Any, pages: Mapping[str, tuple[str, bytes]], directory: Path | None) -> None:
        self._pages = pages
        self._has_files = directory is not None
        super().__init__(*args, directory=str(directory) if directory else None)

    def do_GET(self) -> None:
        page = self._pages.get(self.path.partition("?")[0])
        if page is None and self._has_files:
            super().do_GET()
            return
        content_type, body = page or ("text/plain", b"")
        self.send_response(200 if page else 404)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@contextlib.contextmanager
def serve_pages(pages: Mapping[str, tuple[str, bytes]], directory: Path | None = None) -> Iterator[str]:
    """Serves pages, by their paths, with their content types; and the files of a directory. The origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, pages=pages, directory=directory)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
