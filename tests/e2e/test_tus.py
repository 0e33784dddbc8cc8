"""Other people's uploads: tus-js-client in Node.js (tests/js/tus.mjs), Uppy in a browser, and plain POSTs of curl's kind.

Between client and hub there may be a proxy that cuts the connection in the middle of a request, as a tunnel does.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.browser import Browser, serve_pages
from tests.support.processes import JS, Hub, Program, Run, node
from tests.support.waiting import PATIENCE_S, eventually

BODY = random.Random(7).randbytes(5_000_000)
TUS = {"Tus-Resumable": "1.0.0"}

Use = Callable[..., Program]


class Proxy:
    """Passes connections on to a port. One may be cut: when so many bytes of the client have passed, or instead of the next
    answer, both its ends are closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._bytes: int | None = None
        self._cut: Callable[[], object] = int
        self._loses = False
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, size: int, cut: Callable[[], object] = int) -> None:
        """Cut the first connection on which so many bytes come, when ``cut`` has been called."""
        self._bytes, self._cut = size, cut

    def lose_an_answer(self) -> None:
        """Cut the next connection on which an answer comes, before it has passed."""
        self._loses = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # the hub is down
                    client.close()
                    continue
                for come, go, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=(come, go, counted), daemon=True).start()

    def _pass_on(self, come: socket.socket, go: socket.socket, counted: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := come.recv(16 * 1024):
                if self._loses and not counted:
                    self._loses = False
                    self.cuts += 1
                    break
                go.sendall(data)
                passed += len(data)
                if counted and self._bytes is not None and passed >= self._bytes:
                    self._bytes = None
                    self.cuts += 1
                    self._cut()
                    break
        for each in (come, go):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of 5 MB."""
    path = tmp_path / "source.bin"
    path.write_bytes(BODY)
    return path


@pytest.fixture
def proxy(hub: Hub) -> Iterator[Proxy]:
    """A proxy before a hub that may be killed."""
    proxy = Proxy(hub.port)
    yield proxy
    proxy.close()


@pytest.fixture
def use(run: Run, source: Path) -> Use:
    """Starts a use of the client on an upload endpoint."""
    program = node("tus-js-client")
    return lambda name, base, *arguments: run([program, JS / "tus.mjs", name, f"{base}/v1/upload/", source, *arguments])


def url_of(program: Program) -> str:
    """The finished upload."""
    assert program.wait() == 0, program.err.text
    return program.out.wait_for("^url (.+)$")[1]


def patches(program: Program) -> list[int]:
    """Where the bodies of its PATCHes began."""
    return [int(line.split()[1]) for line in program.out.lines if line.startswith("PATCH ")]


def is_filled(hub: Hub, url: str, body: bytes = BODY) -> None:
    """The stream of the upload is closed, and has these bytes."""
    answer = httpx.get(hub.stream(f"uploads/{url.rpartition('/')[2]}"), timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    assert answer.content == body
    assert answer.headers["Stream-Closed"] == "true"


def test_one_request(shared_hub: Hub, use: Use) -> None:
    """A client as it is by default sends a file in one PATCH; its metadata is kept."""
    program = use("whole", shared_hub.url)
    url = url_of(program)
    assert patches(program) == [0]
    assert url.startswith(f"{shared_hub.url}/v1/upload/")
    is_filled(shared_hub, url)
    head = httpx.head(url, headers=TUS)
    assert head.headers["Upload-Metadata"] == "filename Z3LDtsOfZS5iaW4=,empty"
    assert head.headers["Wayside-Stream"] == f"/v1/stream/uploads/{url.rpartition('/')[2]}"


def test_chunks(shared_hub: Hub, use: Use) -> None:
    """A client that is told to sends chunks of a size."""
    program = use("chunks", shared_hub.url, "1000000")
    is_filled(shared_hub, url_of(program))
    assert patches(program) == [0, 1_000_000, 2_000_000, 3_000_000, 4_000_000]


def test_deferred_length(shared_hub: Hub, use: Use) -> None:
    """A source of unknown length is uploaded, and complete when it ends."""
    is_filled(shared_hub, url_of(use("deferred", shared_hub.url)))


def test_bytes_with_the_creation(shared_hub: Hub, use: Use) -> None:
    """The first bytes come with the creation, the rest by POSTs that say they are PATCHes."""
    program = use("creation", shared_hub.url)
    is_filled(shared_hub, url_of(program))
    assert not patches(program)


def test_termination(shared_hub: Hub, use: Use) -> None:
    """A client terminates an upload, which is then gone."""
    url = url_of(use("terminated", shared_hub.url))
    assert httpx.head(url, headers=TUS).status_code == 404


def test_resumed_after_a_cut(hub: Hub, proxy: Proxy, use: Use) -> None:
    """A connection cut in the middle of the only PATCH costs nothing that had arrived: the client goes on by itself."""
    proxy.cut_after(3_000_000)
    program = use("whole", proxy.url)
    is_filled(hub, url_of(program))
    assert proxy.cuts == 1
    begins = patches(program)
    assert begins[0] == 0
    assert 2_900_000 < begins[-1] < 3_100_000


@pytest.mark.fault
def test_resumed_after_the_hub_was_killed(hub: Hub, proxy: Proxy, use: Use) -> None:
    """A hub that is killed in the middle of a PATCH and started again has what it had committed, and the client goes on
    from there."""

    def kept() -> bool:
        """Whether some of it is on the disk."""
        (stream,) = httpx.get(f"{hub.url}/v1/stream/?prefix=uploads/").json()["streams"]
        return int(stream["bytes"]) > 1_000_000

    def kill() -> None:
        eventually(kept, "the hub has committed some of the upload")
        hub.kill()

    proxy.cut_after(3_000_000, kill)
    program = use("whole", proxy.url)
    eventually(lambda: proxy.cuts and not hub.program.running, "the hub was killed")
    hub.start()
    is_filled(hub, url_of(program))
    assert 1_000_000 < patches(program)[-1] < len(BODY)


@pytest.mark.fault
def test_resumed_by_another_run_of_the_client(hub: Hub, proxy: Proxy, use: Use, tmp_path: Path) -> None:
    """A client that is killed, and one that knows no more than the upload's URL, make one upload together."""
    storage = tmp_path / "storage.json"
    storage.write_text("{}")
    programs: list[Program] = []

    def kill() -> None:
        eventually(lambda: programs, "the client is known")
        programs[0].kill()

    proxy.cut_after(1_500_000, kill)
    programs.append(use("stored", proxy.url, str(storage), "4000000"))
    eventually(lambda: not programs[0].running, "the client was killed")
    second = use("stored", proxy.url, str(storage), "4000000")
    url = url_of(second)
    assert second.out.wait_for("^previous (.+)$")[1] == url
    assert patches(second)[0] > 1_000_000
    is_filled(hub, url)


def test_chunk_by_chunk_without_tus(hub: Hub, proxy: Proxy) -> None:
    """Without any library: each chunk is a POST with a number of its own. One whose answer was lost is repeated, and
    stands in the stream once."""
    url = f"{proxy.url}/v1/stream/uploads/by-hand"
    kind = {"Content-Type": "application/octet-stream"}
    assert httpx.put(url, headers=kind).status_code == 201
    chunks = [BODY[start : start + 700_000] for start in range(0, len(BODY), 700_000)]
    repeated = 0
    for number, chunk in enumerate(chunks):
        last = {"Stream-Closed": "true"} if number == len(chunks) - 1 else {}
        producer = {"Producer-Id": "by-hand", "Producer-Epoch": "0", "Producer-Seq": str(number)}
        if number == 2:  # in the middle of the chunk
            proxy.cut_after(300_000)
        if number == 4:  # after all of it
            proxy.lose_an_answer()
        while True:
            try:
                answer = httpx.post(url, content=chunk, headers={**kind, **producer, **last}, timeout=PATIENCE_S)
                break
            except httpx.TransportError:
                repeated += 1
        assert answer.status_code == (204 if number == 4 else 200), number
    assert (repeated, proxy.cuts) == (2, 2)
    is_filled(hub, url)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a page that has Uppy."""
    program, run = node("@uppy/core", "@uppy/tus", "rolldown"), Run()
    bundle = tmp_path_factory.mktemp("uppy") / "uppy.js"
    built = run([program, JS / "uppy.mjs", bundle])
    assert built.wait() == 0, built.err.text
    html = b'<!doctype html><title>Uppy</title><script src="/uppy.js"></script>'
    with serve_pages({"/": ("text/html", html), "/uppy.js": ("text/javascript", bundle.read_bytes())}) as url:
        yield f"{url}/"
    run.dispose()


@pytest.mark.parametrize("cut", [False, True])
def test_uppy_in_a_browser(chromium: Browser, hub: Hub, proxy: Proxy, page: str, cut: bool) -> None:
    """Uppy uploads to a hub of another origin as it is, and goes on by itself after a cut."""
    chromium.evaluate(f"goto {page}")
    if cut:
        proxy.cut_after(1_000_000)
    said = chromium.evaluate(f'upload("{proxy.url}/v1/upload/", 3000000)')
    assert (said["errors"], said["reported"], proxy.cuts) == ([], 3_000_000, int(cut))
    (url,) = said["urls"]
    is_filled(hub, url, bytes(n % 251 for n in range(3_000_000)))
