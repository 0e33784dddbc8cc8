"""``wayside serve app:hub`` and ``wayside work app:hub``: applications, workers that come and go, reloading."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import wayside
from tests.e2e import application
from tests.support.processes import WAYSIDE, Hub, Program, Run, Worker
from tests.support.receiver import Receiver
from tests.support.waiting import PATIENCE_S, eventually
from wayside.client.sync import BlockingClient
from wayside.webhooks.standard import verify

LISTENING = r"^listening on (http://127\.0\.0\.1:\d+)$"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A directory with the application in it."""
    return application.write(tmp_path / "app")


@pytest.fixture
def start_worker(run: Run, app: Path) -> Callable[..., Worker]:
    """Starts ``wayside work app:hub`` for a hub."""

    def start(hub: Hub, *options: str) -> Worker:
        return Worker(run, app, hub.url, *options)

    return start


StartWorker = Callable[..., Worker]


def holder(client: BlockingClient, identity: str, attempt: int = 1) -> int:
    """The process in which an attempt of a call of ``hold`` runs."""
    for event in client.get(identity).events():
        if event.kind == "progress" and event.attempt == attempt:
            pid: int = event.data["pid"]
            return pid
    raise AssertionError(f"{identity} has ended")


def kinds(client: BlockingClient, identity: str) -> list[str]:
    return [event.kind for event in client.get(identity).events()]


# -- serve app:hub


def test_serve_an_application(run: Run, app: Path) -> None:
    """The hub of an application is served with its services; one that says nothing of its place gets the usual one."""
    program = run([*WAYSIDE, "serve", "app:hub", "--port", "0"], cwd=app)
    url = program.out.wait_for(LISTENING)[1]
    answer = httpx.post(f"{url}/v1/service/greet", json="Ada", timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()) == (200, "Hello Ada!")
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert (app / "wayside-data").is_dir()


@pytest.mark.parametrize(
    ("options", "env", "place", "body_bytes_max"),
    [
        ((), {}, "own", 5),
        (("--data", "given"), {}, "given", 5),
        ((), {"WAYSIDE_DATA": "given"}, "given", 5),
        (("--memory", "--body-bytes-max", "10"), {}, None, 10),
        ((), {"WAYSIDE_BODY_BYTES_MAX": "10"}, "own", 10),
    ],
)
def test_serve_keeps_what_the_application_says(
    run: Run, tmp_path: Path, options: tuple[str, ...], env: dict[str, str], place: str | None, body_bytes_max: int
) -> None:
    """The place and the limits in the application hold, unless the command line or the environment says otherwise."""
    (tmp_path / "app.py").write_text(
        "import wayside\n"
        "def make():\n"
        "    return wayside.Hub('file:own', limits=wayside.Limits(body_bytes_max=5, long_poll_s=1.0))\n"
    )
    program = run([*WAYSIDE, "serve", "app:make", "--port", "0", *options], env=env, cwd=tmp_path)
    stream = program.out.wait_for(LISTENING)[1] + "/v1/stream/x"
    text = {"Content-Type": "text/plain"}
    httpx.put(stream, headers=text)
    for size in (body_bytes_max, body_bytes_max + 1):
        answer = httpx.post(stream, headers=text, content="x" * size)
        assert answer.status_code == (204 if size == body_bytes_max else 413)
    assert httpx.get(f"{stream}?offset=now&live=long-poll", timeout=PATIENCE_S).status_code == 204
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} - {"__pycache__"} == {place} - {None}


@pytest.mark.parametrize(
    ("target", "complaint", "traced"),
    [
        ("app", "names no hub", False),
        ("app.py:hub", "names no hub", False),
        ("absent:hub", "no module absent", False),
        ("app.absent:hub", "no module app.absent", False),
        ("app:absent", "has no absent. There is: hub.", False),
        ("app:hold", "app:hold raised: TypeError", True),
        ("app:APP", "not a wayside.Hub", False),
        ("app:Hub", "not a wayside.Hub", False),
        ("needy:hub", "needy cannot be imported: ModuleNotFoundError: No module named 'absent'", True),
        ("broken:hub", "broken cannot be imported: ZeroDivisionError", True),
        ("wrong:hub", "wrong cannot be imported: SyntaxError", True),
    ],
)
def test_an_application_that_cannot_be(run: Run, app: Path, target: str, complaint: str, traced: bool) -> None:
    """What is wrong with an application is a sentence, after a traceback of its own code where that raised."""
    (app / "app.py").write_text(application.APP + "\nAPP = 1\n")
    (app / "needy.py").write_text("import absent\n")
    (app / "broken.py").write_text("def f():\n    return 1 / 0\n\nf()\n")
    (app / "wrong.py").write_text("hub = (\n")
    program = run([*WAYSIDE, "work" if traced else "serve", target], cwd=app)
    assert program.wait() == 2
    assert complaint in program.err.lines[-1]
    assert (len(program.err.lines) > 1) == traced, program.err.text
    assert "src/wayside" not in program.err.text
    assert "importlib" not in program.err.text
    if target == "broken:hub":
        assert 'broken.py", line 2, in f' in program.err.text


def test_an_application_without_services(run: Run, tmp_path: Path) -> None:
    """It can be served, and there is nothing in it to work on."""
    (tmp_path / "app.py").write_text("import wayside\nhub = wayside.Hub('memory:')\n")
    program = run([*WAYSIDE, "work", "app:hub"], cwd=tmp_path)
    assert program.wait() == 2
    assert "no services" in program.err.text
    run([*WAYSIDE, "serve", "app:hub", "--port", "0"], cwd=tmp_path).out.wait_for(LISTENING)


def test_serve_answers_calls_before_it_stops(run: Run, app: Path, tmp_path: Path) -> None:
    """Calls whose callers wait, and what these call in turn, are answered after SIGTERM; a durable one that takes too
    long goes on after the next start, without having failed."""
    source = application.APP + (
        "\n\n@hub.service('outer', concurrency=1)\n"
        "async def outer(gate: str, *, call: Call) -> Any:\n"
        "    held = await hub.call('hold', gate)\n"
        "    return [held['attempt'], await call.step('greet', 'Ada')]\n"
    )
    application.write(app, source)
    hub = Hub(run, tmp_path / "data", "app:hub", "--drain-s", "5", cwd=app)
    gate, other = tmp_path / "gate", tmp_path / "other"
    url = f"{hub.url}/v1/service/outer"
    with wayside.sync.connect(hub.url) as client, ThreadPoolExecutor() as pool:
        long = client.submit("hold", str(other))
        holder(client, long.id)
        held = pool.submit(httpx.post, url, json=str(gate), timeout=PATIENCE_S)
        eventually(lambda: len(client.calls("hold", "running")) == 2, "one runs")
        queued = pool.submit(httpx.post, url, json=str(gate), timeout=PATIENCE_S)
        eventually(lambda: len(client.calls("outer", "queued")) == 1, "one waits")
        hub.program.signal(signal.SIGTERM)
        hub.program.err.wait_for("draining")
        gate.touch()
        for answer in (held.result(), queued.result()):
            assert (answer.status_code, answer.json()) == (200, [1, "Hello Ada!"])
    assert hub.program.wait() == 0
    other.touch()
    hub.start()
    with wayside.sync.connect(hub.url) as client:
        assert client.get(long.id).result(timeout=PATIENCE_S)["attempt"] == 2
        assert kinds(client, long.id) == ["running", "progress", "returned", "running", "progress", "done"]


def test_serve_ends_although_a_thread_goes_on(run: Run, app: Path, tmp_path: Path) -> None:
    """A plain function cannot be stopped; its call is handed back, and the process ends."""
    hub = Hub(run, tmp_path / "data", "app:hub", "--drain-s", "0.2", cwd=app)
    gate = tmp_path / "gate"
    with wayside.sync.connect(hub.url) as client:
        identity = client.submit("stubborn", str(gate)).id
        eventually((tmp_path / "gate.begun").exists, "it runs")
    assert hub.stop() == 0
    gate.touch()
    hub.start()
    with wayside.sync.connect(hub.url) as client:
        assert client.get(identity).result(timeout=PATIENCE_S) == "at last"


WATCHER = """
import time
from pathlib import Path

from wayside import Hub

hub = Hub()


@hub.subscribe("watched", group="watchers")
def watch(gate: str) -> None:
    Path(gate + ".begun").touch()
    while not Path(gate).exists():
        time.sleep(0.01)
"""


def test_serve_ends_although_a_thread_has_a_record(run: Run, tmp_path: Path) -> None:
    """A plain function that handles a record cannot be stopped either; the record is given back, and the process ends."""
    app, gate = application.write(tmp_path / "watcher", WATCHER), tmp_path / "gate"
    hub = Hub(run, tmp_path / "data", "app:hub", "--drain-s", "0.2", cwd=app)
    with wayside.sync.connect(hub.url) as client:
        client.publish("watched", str(gate))
        eventually((tmp_path / "gate.begun").exists, "it runs")
    assert hub.stop() == 0
    gate.touch()
    hub.start()
    with wayside.sync.connect(hub.url) as client:
        eventually(lambda: client.describe_group("watchers")["counts"]["acked"] == 1, "it is handled")


# -- work


def test_work(start_hub: Callable[..., Hub], start_worker: StartWorker, app: Path) -> None:
    """A worker says what it works on, opens no store of its own, and its hub is the one it works for."""
    hub = start_hub()
    worker = start_worker(hub, "--name", "left").ready()
    assert worker.program.out.lines == [
        f"working on count, fail, greet, hold, relay, size, stubborn, turn for {hub.url}"
    ]
    with wayside.sync.connect(hub.url) as client:
        assert client.call("greet", "Ada") == "Hello Ada!"
        assert list(client.stream("count", 2)) == [{"n": 1}, {"n": 2}]
        assert client.call("turn", b"abc") == b"cba"
        assert client.call("relay", "Ada") == [["Ada"], "Hello Ada!"]
        assert hub.read("relayed") == ["Ada"]
        call = client.submit("greet", "Ada")
        call.result()
    events = httpx.get(f"{hub.url}/v1/call/{call.id}?offset=-1").json()
    assert events[0]["worker"].startswith("w-left-")
    assert worker.stop() == 0
    assert {path.name for path in app.iterdir()} - {"__pycache__"} == {"app.py"}


def test_work_waits_for_a_hub(run: Run, app: Path, tmp_path: Path) -> None:
    """A worker may be there before its hub: it says so, and begins when there is one. ``--no-wait`` ends with 3."""
    hub = Hub(run, tmp_path / "data")
    assert hub.stop() == 0
    impatient = Worker(run, app, hub.url, "--no-wait")
    assert impatient.program.wait() == 3
    assert hub.url in impatient.program.err.text
    worker = Worker(run, app, hub.url)
    worker.program.err.wait_for("no answer from a hub .*Trying again")
    hub.start()
    worker.ready()
    other = Worker(run, app, "http://127.0.0.1:1")
    other.program.err.wait_for("Trying again")
    assert other.stop() == 0


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_work_over_a_restart_of_the_hub(
    start_hub: Callable[..., Hub], start_worker: StartWorker, tmp_path: Path, ending: str
) -> None:
    """A worker comes back to a hub that was stopped or killed; what it ran meanwhile is not run again."""
    hub = start_hub()
    worker = start_worker(hub).ready()
    gate = tmp_path / "gate"
    with wayside.sync.connect(hub.url) as client:
        identity = client.submit("hold", str(gate)).id
        assert holder(client, identity) == worker.pid
    if ending == "kill":
        hub.kill()
    else:
        assert hub.stop() == 0
    gate.touch()
    hub.start()
    with wayside.sync.connect(hub.url) as client:
        assert client.get(identity).result(timeout=PATIENCE_S) == {"pid": worker.pid, "attempt": 1}
        assert client.call("greet", "Ada", timeout=PATIENCE_S) == "Hello Ada!"


def test_work_killed(start_hub: Callable[..., Hub], start_worker: StartWorker, tmp_path: Path) -> None:
    """What a killed worker held is run by the next one, when its lease is over."""
    hub = start_hub("--lease-s", "1")
    first = start_worker(hub).ready()
    gate = tmp_path / "gate"
    with wayside.sync.connect(hub.url) as client:
        identity = client.submit("hold", str(gate)).id
        assert holder(client, identity) == first.pid
        first.program.kill()
        second = start_worker(hub).ready()
        assert holder(client, identity, attempt=2) == second.pid
        gate.touch()
        assert client.get(identity).result(timeout=PATIENCE_S) == {"pid": second.pid, "attempt": 2}
        assert kinds(client, identity) == ["running", "progress", "retry", "running", "progress", "done"]


def test_work_finishes_or_hands_back(start_hub: Callable[..., Hub], start_worker: StartWorker, tmp_path: Path) -> None:
    """After SIGTERM a worker takes nothing new, finishes what ends in time, and gives the rest to the others at once."""
    hub = start_hub()
    first = start_worker(hub, "--grace", "2").ready()
    soon, late = tmp_path / "soon", tmp_path / "late"
    with wayside.sync.connect(hub.url) as client:
        finished = client.submit("hold", str(soon))
        returned = client.submit("hold", str(late))
        thread = client.submit("stubborn", str(late))
        assert {holder(client, finished.id), holder(client, returned.id)} == {first.pid}
        eventually((tmp_path / "late.begun").exists, "it runs")
        first.program.signal(signal.SIGTERM)
        first.program.err.wait_for("stopping")
        second = start_worker(hub).ready()
        fresh = client.submit("hold", str(late))
        assert holder(client, fresh.id) == second.pid
        soon.touch()
        assert finished.result(timeout=PATIENCE_S) == {"pid": first.pid, "attempt": 1}
        assert holder(client, returned.id, attempt=2) == second.pid
        assert first.program.wait() == 0
        late.touch()
        assert returned.result(timeout=PATIENCE_S) == {"pid": second.pid, "attempt": 2}
        assert thread.result(timeout=PATIENCE_S) == "at last"
        assert kinds(client, returned.id) == ["running", "progress", "returned", "running", "progress", "done"]


def test_work_ends_at_once_at_a_second_signal(
    start_hub: Callable[..., Hub], start_worker: StartWorker, tmp_path: Path
) -> None:
    """A stop that waits for a handler is cut short."""
    hub = start_hub()
    worker = start_worker(hub).ready()
    with wayside.sync.connect(hub.url) as client:
        holder(client, client.submit("hold", str(tmp_path / "gate")).id)
        worker.program.signal(signal.SIGTERM)
        worker.program.err.wait_for("stopping")
        assert worker.program.running
        worker.program.signal(signal.SIGINT)
        assert worker.program.wait() == 130


def test_two_workers_share(start_hub: Callable[..., Hub], start_worker: StartWorker, tmp_path: Path) -> None:
    """Calls go to whoever has a place: with one place each, two calls run in two workers, and a third waits."""
    hub = start_hub()
    workers = [start_worker(hub, "--concurrency", "1").ready() for _ in range(2)]
    gates = [tmp_path / f"gate{number}" for number in range(3)]
    with wayside.sync.connect(hub.url) as client:
        calls = [client.submit("hold", str(gate)) for gate in gates]
        assert {holder(client, call.id) for call in calls[:2]} == {worker.pid for worker in workers}
        assert client.get(calls[2].id).status().state == "queued"
        (service,) = [s for s in httpx.get(f"{hub.url}/v1/service/").json()["services"] if s["name"] == "hold"]
        assert (service["workers"], service["running"], service["waiting"]) == (2, 2, 1)
        gates[1].touch()
        gates[2].touch()
        assert calls[2].result(timeout=PATIENCE_S)["pid"] == calls[1].result()["pid"]
        gates[0].touch()
        assert calls[0].result(timeout=PATIENCE_S)["pid"] != calls[1].result()["pid"]


# -- reload


def change(app: Path, greeting: str) -> None:
    (app / "app.py").write_text(application.APP.replace("Hello", greeting))


def test_reload_of_a_served_application(run: Run, app: Path) -> None:
    """A change of a source file is picked up, also after one that could not be started; SIGTERM ends it all."""
    program = run([*WAYSIDE, "serve", "app:hub", "--port", "0", "--reload", "--memory"], cwd=app)
    first = program.out.wait_for(LISTENING)[1]
    assert greeting(first) == "Hello Ada!"
    (app / "app.py").write_text("hub = (\n")
    program.err.wait_for("app.py has changed: starting anew")
    program.err.wait_for("it ended with status 2")
    change(app, "Good day")
    url = program.out.wait_count(2)[1].removeprefix("listening on ")
    assert greeting(url) == "Good day Ada!"
    (app / "below").mkdir()
    (app / "below" / "other.py").write_text("")
    url = program.out.wait_count(3)[2].removeprefix("listening on ")
    assert greeting(url) == "Good day Ada!"
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def greeting(url: str) -> Any:
    return httpx.post(f"{url}/v1/service/greet", json="Ada", timeout=PATIENCE_S).json()


def test_reload_of_a_worker(
    start_hub: Callable[..., Hub], start_worker: StartWorker, app: Path, tmp_path: Path
) -> None:
    """What ran when a file changed is handed back, and run by the new code."""
    hub = start_hub()
    worker = start_worker(hub, "--reload").ready()
    gate = tmp_path / "gate"
    with wayside.sync.connect(hub.url) as client:
        call = client.submit("hold", str(gate))
        first = holder(client, call.id)
        assert first != worker.pid
        change(app, "Good day")
        assert holder(client, call.id, attempt=2) != first
        assert client.call("greet", "Ada") == "Good day Ada!"
        gate.touch()
        assert call.result(timeout=PATIENCE_S)["attempt"] == 2
    os.killpg(worker.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to the parent and to the child
    assert worker.program.wait() == 0
    assert "stopped" in worker.program.err.lines[-1]
    assert "Traceback" not in worker.program.err.text


# -- callbacks


def test_callbacks(run: Run, app: Path, tmp_path: Path, receiver: Receiver) -> None:
    """A hub with a secret tells a URL of the end of a call, signed; a secret that is none is refused."""
    made = run([*WAYSIDE, "webhook-secret"])
    assert made.wait() == 0
    (secret,) = made.out.lines
    env = {"WAYSIDE_WEBHOOK_SECRET": secret}
    hub = Hub(run, tmp_path / "data", "app:hub", "--webhook-allow-private", cwd=app, env=env)
    call: Program = run([*WAYSIDE, "call", "greet", "Ada", "--callback", receiver.url, "--hub", hub.url])
    assert call.wait() == 0, call.err.text
    eventually(lambda: receiver.requests, "a callback")
    _, headers, body = receiver.requests[0]
    verify([secret], headers, body, now_s=time.time())
    document = json.loads(body)
    assert (document["type"], document["data"]["result"]) == ("call.done", "Hello Ada!")


def test_a_secret_that_is_none(run: Run) -> None:
    """It is refused with a sentence that does not repeat it."""
    program = run([*WAYSIDE, "serve", "--memory", "--webhook-secret", "whsec_short"])
    assert program.wait() == 2
    assert "wayside webhook-secret" in program.err.text
    assert "whsec_short" not in program.err.text
