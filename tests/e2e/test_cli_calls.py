"""``wayside call``, ``calls`` and ``services``, against a hub with an application in it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e import application
from tests.support.command import Command, Ended
from tests.support.processes import WAYSIDE, Hub, Program, Run
from tests.support.waiting import PATIENCE_S, eventually

VIA = ("poll", "long-poll", "sse", "push")
Start = Callable[..., Program]


@pytest.fixture(scope="module")
def app_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """``wayside serve app:hub``, for the tests of this file."""
    run = Run()
    directory = application.write(tmp_path_factory.mktemp("app"))
    yield Hub(run, directory / "data", "app:hub", cwd=directory)
    run.dispose()


@pytest.fixture
def start(run: Run, app_hub: Hub) -> Start:
    def start(*arguments: str) -> Program:
        return run([*WAYSIDE, *arguments], env={"WAYSIDE_HUB": app_hub.url})

    return start


@pytest.fixture
def wayside(app_hub: Hub) -> Command:
    """Commands for the application."""
    return Command(app_hub.url)


def state_of(hub: Hub, identity: str) -> str:
    state: str = httpx.get(f"{hub.url}/v1/call/{identity}").json()["state"]
    return state


# -- call


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("greet", "Ada"), '"Hello Ada!"'),
        (("greet", '"Ada"', 'punctuation="?"'), '"Hello Ada?"'),
        (("greet", "name=a=b"), '"Hello a=b!"'),
        (("greet", "https://x/?name=1"), '"Hello https://x/?name=1!"'),
        (("count", "2"), '{"n":1}\n{"n":2}'),
        (("count", "--follow"), '{"n":1}\n{"n":2}\n{"n":3}'),
        (("greet", "Ada", "--progress", "--priority", "7"), '"Hello Ada!"'),
        (("greet", "Ada", "--delay", "0.05"), '"Hello Ada!"'),
        (("greet", "Ada", "--wait", "30"), '"Hello Ada!"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_call_prints_the_result(wayside: Command, arguments: tuple[str, ...], printed: str) -> None:
    """Arguments are JSON or text, by position or by name; a JSON result is a line, and so is each item."""
    assert wayside("call", *arguments) == printed


def test_call_with_bytes(app_hub: Hub, wayside: Command, tmp_path: Path) -> None:
    """Bytes come from standard input or a file, and go out as they are."""
    data = bytes(range(256)) + b"\n"
    (tmp_path / "file").write_bytes(data)

    def call(*arguments: str, stdin: bytes = b"") -> bytes:
        ended = wayside.run("call", *arguments, stdin=stdin)
        assert ended.status == 0, ended.err
        return ended.data

    command = [*WAYSIDE, "call", "turn", "-", "--hub", app_hub.url]
    piped = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE_S, check=True)
    assert piped.stdout == data[::-1]
    assert call("turn", "-", stdin=data) == data[::-1]
    assert call("turn", "--raw-file", str(tmp_path / "file")) == data[::-1]
    assert call("turn", "--raw-file", "-", "--progress", stdin=data) == data[::-1]
    assert call("size", "-", "factor=2", stdin=data) == b"514\n"
    assert call("greet", "-", "--content-type", "application/json", stdin=b'"Ada"') == b'"Hello Ada!"\n'


def test_call_fails(wayside: Command) -> None:
    """What a handler raised, what does not fit it, and what there is not, is a sentence and status 1."""
    assert "ValueError: no luck today" in wayside.fails("call", "fail")
    assert "ValueError: no luck today" in wayside.fails("call", "fail", "--progress")
    assert "no service 'nobody'" in wayside.fails("call", "nobody")
    assert "no service 'nobody'" in wayside.fails("call", "nobody", "--async")
    assert "`int`" in wayside.fails("call", "count", "many")
    assert "--webhook-secret" in wayside.fails("call", "greet", "Ada", "--callback", "https://example.com/")
    assert "comes after arguments with names" in wayside.fails("call", "greet", "name=Ada", "?", status=2)
    assert "--content-type is for" in wayside.fails("call", "greet", "Ada", "--content-type", "text/plain", status=2)


def test_call_once_with_a_key(wayside: Command, tmp_path: Path) -> None:
    """The same request with the same key is one call; another with it is refused."""
    gate = tmp_path / "gate"
    gate.touch()
    first = wayside("call", "hold", str(gate), "--key", "once")
    assert wayside("call", "hold", str(gate), "--key", "once") == first
    identity = wayside("call", "hold", str(gate), "--key", "once", "--async")
    assert json.loads(wayside("calls", identity, "--result")) == json.loads(first)
    assert "was used for another request" in wayside.fails("call", "hold", "elsewhere", "--key", "once")


def test_call_tells_progress(start: Start, tmp_path: Path) -> None:
    """``--progress`` shows on standard error how far the call is, while it runs."""
    gate = tmp_path / "gate"
    program = start("call", "hold", str(gate), "--progress")
    program.err.wait_for(r'^progress \{"value":0\.5')
    assert program.out.lines == []
    gate.touch()
    assert program.wait() == 0
    assert json.loads(program.out.text)["attempt"] == 1


def test_call_and_do_not_wait(app_hub: Hub, wayside: Command, tmp_path: Path) -> None:
    """``--async`` prints the call's name at once, ``--wait`` when the time is over, and both say where it can be read."""
    gate = tmp_path / "gate"
    for options in (("--async",), ("--wait", "1"), ("--async", "--wait", "1")):
        ended = wayside.run("call", "hold", str(gate), *options)
        assert ended.status == 0, ended.err
        identity = ended.out
        assert f"{app_hub.url}/v1/call/{identity}" in ended.err
        assert state_of(app_hub, identity) == "running"
    gate.touch()
    assert json.loads(wayside("calls", identity, "--result"))["attempt"] == 1


@pytest.mark.parametrize("options", [(), ("--progress",)], ids=["plain", "progress"])
def test_call_is_cancelled_by_ctrl_c(
    app_hub: Hub, start: Start, wayside: Command, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Whoever interrupts a call, or gives up on it, ends it."""
    gate = str(tmp_path / "gate")
    program = start("call", "hold", gate, *options)
    follower = httpx.Client(timeout=PATIENCE_S)

    def running() -> list[str]:
        found = follower.get(f"{app_hub.url}/v1/call/?service=hold&state=running").json()["calls"]
        return [call["id"] for call in found if call.get("progress")]

    (identity,) = eventually(running, "it runs")
    program.signal(signal.SIGINT)
    assert program.wait() == 130
    assert "Traceback" not in program.err.text
    eventually(lambda: state_of(app_hub, identity) == "cancelled", "it was cancelled")
    assert "did not answer within 0.2 s" in wayside.fails("call", "hold", gate, "--timeout", "0.2", *options)
    eventually(lambda: not running(), "that was cancelled too")


def test_call_with_a_key_goes_on_after_ctrl_c(app_hub: Hub, start: Start, wayside: Command, tmp_path: Path) -> None:
    """With a key somebody may ask again: the call is not cancelled, and its name is told."""
    gate = tmp_path / "gate"
    program = start("call", "hold", str(gate), "--key", "mine", "--progress")
    program.err.wait_for("^progress")
    program.signal(signal.SIGINT)
    assert program.wait() == 130
    identity = program.err.wait_for(r"wayside calls (\w+)")[1]
    assert state_of(app_hub, identity) == "running"
    gate.touch()
    assert json.loads(wayside("call", "hold", str(gate), "--key", "mine"))["attempt"] == 1


# -- calls


@pytest.mark.parametrize("via", VIA)
def test_calls_follows(start: Start, wayside: Command, tmp_path: Path, via: str) -> None:
    """Events come as they happen, in each of the four ways, until the end."""
    gate = tmp_path / "gate"
    identity = wayside("call", "hold", str(gate), "--async")
    program = start("calls", identity, "--follow", "--via", via, "--interval", "0.05")
    program.out.wait_for("^progress")
    assert program.running
    gate.touch()
    assert program.wait() == 0, program.err.text
    kinds = [line.split(" ")[0] for line in program.out.lines]
    assert kinds == ["running", "progress", "done"]
    events = [json.loads(line) for line in wayside("calls", identity, "--follow", "--json", "--via", via).splitlines()]
    assert [event["kind"] for event in events] == kinds
    assert events[-1]["data"]["attempt"] == 1
    if via in ("sse", "push"):  # polls know the offset after all that they got
        rest = wayside("calls", identity, "--follow", "--via", via, "--from", events[1]["offset"])
        assert rest.split(" ")[0] == "done"


def test_calls_shows_one(app_hub: Hub, start: Start, wayside: Command, tmp_path: Path) -> None:
    """What a call is, for people or as JSON, by its name or its URL; its result; its end."""
    gate = tmp_path / "gate"
    identity = wayside("call", "hold", str(gate), "--async", "--priority", "3")
    shown = dict(line.split(": ", 1) for line in wayside("calls", identity).splitlines())
    assert (shown["id"], shown["service"], shown["priority"]) == (identity, "hold", "3")
    result = start("calls", identity, "--result")
    gate.touch()
    assert result.wait() == 0
    assert json.loads(result.out.text)["attempt"] == 1
    status = json.loads(wayside("calls", f"{app_hub.url}/v1/call/{identity}", "--json"))
    assert (status["state"], status["result"]) == ("done", json.loads(result.out.text))
    assert "has ended" in wayside.fails("calls", identity, "--cancel")


def test_calls_cancels(start: Start, wayside: Command, tmp_path: Path) -> None:
    """A call that is cancelled has no result, and whoever follows it is told."""
    identity = wayside("call", "hold", str(tmp_path / "gate"), "--async")
    follower = start("calls", identity, "--follow")
    follower.out.wait_for("^progress")
    assert "state: cancelled" in wayside("calls", identity, "--cancel").splitlines()
    assert follower.wait() == 1
    assert follower.out.lines[-1].startswith("cancelled ")
    assert "cancelled" in wayside.fails("calls", identity, "--result")


def test_calls_lists(wayside: Command, tmp_path: Path) -> None:
    """Calls are listed by service and state, the newest first."""
    names = [wayside("call", "hold", str(tmp_path / "gate"), "--async") for _ in range(2)]
    lines = wayside("calls", "--service", "hold", "--state", "running").splitlines()
    assert [line.split("  ")[:3] for line in lines[:2]] == [[name, "hold", "running"] for name in reversed(names)]
    listed = [json.loads(line) for line in wayside("calls", "--json", "--limit", "2").splitlines()]
    assert [call["id"] for call in listed] == names[::-1]
    nothing = wayside.run("calls", "--service", "nobody")
    assert (nothing.status, nothing.out) == (0, "")
    assert "no such call" in nothing.err
    (tmp_path / "gate").touch()


def test_calls_refuses_what_makes_no_sense(wayside: Command) -> None:
    """Wrong usage is status 2, and a call that is not there status 1."""
    assert "for one call" in wayside.fails("calls", "--cancel", status=2)
    assert "Give one of" in wayside.fails("calls", "x", "--cancel", "--follow", status=2)
    for options in ((), ("--follow",), ("--follow", "--via", "sse"), ("--result",), ("--cancel",)):
        assert "nosuchcall" in wayside.fails("calls", "nosuchcall", *options)


# -- services, and no hub


def test_services(wayside: Command) -> None:
    """Services are listed with their workers and the first line of their documentation."""
    lines = wayside("services").splitlines()
    assert "greet  1 workers, 0 running, 0 waiting  Greets somebody." in lines
    described = {entry["name"]: entry for entry in map(json.loads, wayside("services", "--json").splitlines())}
    assert described["count"]["streams"] is True
    assert described["hold"]["retries"] == 3


@pytest.mark.parametrize("command", [("call", "x"), ("calls",), ("calls", "x", "--follow"), ("services",)], ids=str)
def test_without_a_hub(command: tuple[str, ...]) -> None:
    """Where no hub answers, the status is 3, and the sentence says how to start one."""
    said = Command().fails(*command, "--hub", "127.0.0.1:1", status=3)
    assert "http://127.0.0.1:1" in said
    assert "wayside serve" in said


def test_the_demo_has_services(run: Run) -> None:
    """``wayside serve --demo`` runs services to try: one answers, one tells progress, one yields."""
    program = run([*WAYSIDE, "serve", "--memory", "--demo", "--port", "0"])
    url = program.out.wait_for("^listening on (.*)")[1]

    def call(*arguments: str) -> Ended:
        called = Command(url).run("call", *arguments)
        assert called.status == 0, called.err
        return called

    assert call("demo.echo", '{"a":[1]}').out == '{"a":[1]}'
    counted = call("demo.countdown", "seconds=1", "--progress")
    assert counted.err == 'progress {"value":0.0,"left":1}\n'
    assert json.loads(counted.out)["counted"] == 1
    assert call("demo.words", "text=two words").out == '"two"\n"words"'
