"""The ASGI application, called as servers and frameworks call it."""

from __future__ import annotations

from typing import Any

import pytest

from wayside import Hub


async def _status(hub: Hub, path: str, raw_path: bytes | None, *, root_path: str = "") -> int:
    """The status of a GET with such a scope."""
    sent: list[Any] = []
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "root_path": root_path, "headers": []}
    if raw_path is not None:
        scope["raw_path"] = raw_path
    bodies = [{"type": "http.request", "body": b""}]

    async def receive() -> Any:
        return bodies.pop() if bodies else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await hub.asgi()(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("path", "raw_path", "root_path"),
    [
        ("/v1/stream/a%41", b"/v1/stream/a%2541", ""),
        ("/v1/stream/a%41", None, ""),
        ("/v1/stream/a%41", b"/mount/v1/stream/a%2541", ""),
        ("/mount/v1/stream/a%41", b"/mount/v1/stream/a%2541", "/mount"),
        ("/mount/v1/stream/a%41", None, "/mount"),
    ],
)
async def test_a_path_is_decoded_once(path: str, raw_path: bytes | None, root_path: str) -> None:
    """Whether a server gives the raw path, and whether a framework has cut the mount point off or not, a path names one
    stream."""
    async with Hub() as hub:
        await hub.create("a%41")
        assert await _status(hub, path, raw_path, root_path=root_path) == 200


async def test_a_path_that_is_no_text_is_refused() -> None:
    """Two paths that are not UTF-8 are not taken for one, although the server has decoded both alike."""
    async with Hub() as hub:
        await hub.create("z\ufffd")
        assert await _status(hub, "/v1/stream/z\ufffd", b"/v1/stream/z%FF") == 400
        assert await _status(hub, "/v1/stream/z\ufffd", b"/v1/stream/z%EF%BF%BD") == 200
