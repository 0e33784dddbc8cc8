"""The ``wayside`` command, as people and scripts use it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.command import Command
from tests.support.events import Event, events_of
from tests.support.processes import WAYSIDE, Hub, Program, Publisher, Run, free_port, tool
from tests.support.waiting import PATIENCE_S, eventually

PATTERNS = ("poll", "long-poll", "sse", "push")
Start = Callable[..., Program]
StartHub = Callable[..., Hub]


@pytest.fixture
def start(run: Run, shared_hub: Hub) -> Start:
    """Starts a command that talks to a hub: the shared one unless one is given."""

    def start(*arguments: str, hub: Hub = shared_hub) -> Program:
        return run([*WAYSIDE, *arguments], env={"WAYSIDE_HUB": hub.url})

    return start


# -- serve


def test_serve_announces_itself(hub: Hub) -> None:
    """Port 0 takes a free port, which the first line tells; the hub is ready by then."""
    assert hub.port > 0
    assert hub.program.out.lines[0] == f"listening on {hub.url}"
    assert httpx.get(f"{hub.url}/readyz").status_code == 200


def test_serve_in_memory(run: Run, tmp_path: Path) -> None:
    """``--memory`` leaves nothing on disk."""
    program = run([*WAYSIDE, "serve", "--memory", "--port", "0"], cwd=tmp_path)
    url = program.out.wait_for("^listening on (.*)")[1]
    assert httpx.put(f"{url}/v1/stream/x").status_code == 201
    program.signal(signal.SIGINT)
    assert program.wait() == 0
    assert not list(tmp_path.iterdir())


def test_serve_settings(run: Run, tmp_path: Path) -> None:
    """An option stands above the environment, which stands above the file, which stands above the default."""
    config = tmp_path / "wayside.toml"
    data = tmp_path / "from-the-file"
    config.write_text(
        f'port = 1\ndata = "{data}"\nlong-poll-s = 1\nbody_bytes_max = 5\nlog_format = "json"\ndemo = true\n'
    )
    program = run(
        [*WAYSIDE, "serve", "--port", "0"],
        env={"WAYSIDE_CONFIG": str(config), "WAYSIDE_PORT": "2", "WAYSIDE_BODY_BYTES_MAX": "10"},
        cwd=tmp_path,
    )
    url = program.out.wait_for(r"^listening on (http://127\.0\.0\.1:\d+)")[1] + "/v1/stream/x"
    text = {"Content-Type": "text/plain"}
    assert httpx.put(url, headers=text).status_code == 201
    assert httpx.post(url, headers=text, content="1234567").status_code == 204  # the environment over the file
    assert httpx.post(url, headers=text, content="12345678901").status_code == 413
    assert httpx.get(f"{url}?offset=now&live=long-poll", timeout=10).status_code == 204  # the file over the default
    assert httpx.head(url.removesuffix("x") + "demo/machine").status_code == 200
    assert data.is_dir()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("colour = 1", "unknown settings: colour"), ("port = ", "wayside.toml"), ('port = "many"', "not a valid integer")],
)
def test_serve_refuses_a_wrong_file(run: Run, tmp_path: Path, content: str, complaint: str) -> None:
    """A wrong setting is named, and nothing is started."""
    config = tmp_path / "wayside.toml"
    config.write_text(content)
    program = run([*WAYSIDE, "serve", "--config", config], cwd=tmp_path)
    assert program.wait() == 2
    assert complaint in program.err.text


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("--data", "file"), 1, "cannot be used as a store"),
        (("--data", "file/below"), 1, "cannot be used as a store"),
        (("--memory", "--data", "data"), 2, "not both"),
        (("--heartbeat-s", "nan"), 2, "not a number of seconds"),
        (("--drain-s", "inf"), 2, "not a number of seconds"),
    ],
)
def test_serve_refuses_what_cannot_be(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], status: int, complaint: str
) -> None:
    """A setting that nothing can be done with is refused with a sentence."""
    (tmp_path / "file").write_text("")
    program = run([*WAYSIDE, "serve", "--port", "0", *arguments], cwd=tmp_path)
    assert (program.wait(), complaint in program.err.text) == (status, True), program.err.text
    assert "Traceback" not in program.err.text


def test_serve_says_when_it_starts_and_stops(hub: Hub) -> None:
    """The log has where it listens, what it found, and that it stopped in order."""
    hub.kill()
    hub.start()
    hub.program.err.wait_for("serving .*a crash")
    program = hub.program
    assert hub.stop() == 0
    assert "draining" in program.err.text
    assert "stopped" in program.err.text


def test_serve_refuses_the_whole_world(run: Run, tmp_path: Path) -> None:
    """Without authentication a hub listens beyond this machine only where that was asked for."""
    command = [*WAYSIDE, "serve", "--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path / "data")]
    refused = run(command)
    assert refused.wait() == 2
    assert "--allow-anonymous" in refused.err.text
    assert not (tmp_path / "data").exists()
    allowed = run([*command, "--allow-anonymous"])
    allowed.out.wait_for(r"^listening on http://0\.0\.0\.0:\d+")


def test_serve_refuses_a_directory_in_use(hub: Hub, run: Run) -> None:
    """Of two hubs on one directory the second ends with 1, and names the process of the first."""
    second = run([*WAYSIDE, "serve", "--port", "0", "--data", hub.data])
    assert second.wait() == 1
    assert str(hub.program.pid) in second.err.text
    assert str(hub.data) in second.err.text
    hub.create("still-there")


def test_serve_refuses_a_port_in_use(hub: Hub, run: Run, tmp_path: Path) -> None:
    """A port that is taken is told as a sentence."""
    second = run([*WAYSIDE, "serve", "--port", str(hub.port), "--data", str(tmp_path / "other")])
    assert second.wait() == 1
    assert f"cannot listen on 127.0.0.1:{hub.port}" in second.err.text
    assert "Traceback" not in second.err.text


def test_serve_drains(hub: Hub) -> None:
    """SIGTERM tells SSE followers where to resume, answers long polls, and ends with 0."""
    url = hub.create("orders")
    offset = hub.append("orders", "1")
    sse = {"Accept": "text/event-stream"}
    with httpx.stream("GET", url, headers=sse, timeout=PATIENCE_S) as response:
        lines = response.iter_lines()
        assert next(events_of(lines)) == Event("message", "1", offset)
        poll = socket.create_connection(("127.0.0.1", hub.port))
        poll.sendall(f"GET /v1/stream/orders?offset={offset} HTTP/1.1\r\nHost: x\r\nPrefer: wait=30\r\n\r\n".encode())
        eventually(
            lambda: "wayside_connections 3" in httpx.get(f"{hub.url}/metrics").text.replace(".0", ""), "a held poll"
        )
        began = time.monotonic()
        hub.program.signal(signal.SIGTERM)
        assert [line for line in lines if line] == ["retry: 1000", f"id: {offset}"]
        answer = poll.makefile("rb").read()
        poll.close()
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert f"Stream-Next-Offset: {offset}".encode() in answer
    assert hub.program.wait() == 0
    assert time.monotonic() - began < 8, "it waited for those whom it had answered"


def test_serve_ends_at_once_at_a_second_signal(start_hub: StartHub) -> None:
    """A drain that waits for somebody is cut short by a second signal; what was acknowledged is there."""
    hub = start_hub("--drain-s", "60")
    url = hub.create("orders")
    hub.append("orders", "1")
    slow = socket.create_connection(("127.0.0.1", hub.port))
    slow.sendall(
        b"POST /v1/stream/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[2"
    )
    eventually(lambda: "wayside_connections 2" in httpx.get(f"{hub.url}/metrics").text.replace(".0", ""), "a slow one")
    hub.program.signal(signal.SIGTERM)
    eventually(lambda: _refuses(hub), "it no longer listens")
    assert hub.program.running
    began = time.monotonic()
    hub.program.signal(signal.SIGTERM)
    assert hub.program.wait() == 130
    assert time.monotonic() - began < 5
    slow.close()
    hub.start()
    assert httpx.get(url).json() == [1]


def _refuses(hub: Hub) -> bool:
    try:
        socket.create_connection(("127.0.0.1", hub.port)).close()
    except ConnectionRefusedError:
        return True
    return False


# -- publish


def test_publish_arguments(shared_hub: Hub, wayside: Command) -> None:
    """Each argument is a record; the stream is created as JSON, and the offset after the last is printed."""
    ended = wayside.run("publish", "arguments", '{"id": 1}', "[2]", "3")
    assert ended.status == 0
    assert shared_hub.read("arguments") == [{"id": 1}, [2], 3]
    assert ended.out == httpx.head(shared_hub.stream("arguments")).headers["Stream-Next-Offset"]
    assert ended.err == "wayside: created arguments (application/json)\n"


def test_publish_text_and_options(shared_hub: Hub, wayside: Command) -> None:
    """What is not JSON makes a text stream; content type and durability can be told; ``-q`` prints nothing."""
    wayside("publish", "words", "one", "two")
    head = httpx.head(shared_hub.stream("words")).headers
    assert head["content-type"].startswith("text/plain")
    assert httpx.get(shared_hub.stream("words")).text == "onetwo"
    printed = wayside("publish", "presence", "1", "-q", "--content-type", "application/json", "--durability", "memory")
    assert printed == ""
    assert httpx.head(shared_hub.stream("presence")).headers["stream-durability"] == "memory"


def test_publish_says_more(shared_hub: Hub, wayside: Command) -> None:
    """A message id makes a second record a duplicate, which is said; key and headers go with it; a delay prints when."""
    said = ["--id", "a", "--key", "k", "--header", "Trace: t-\u00fc", "--ttl", "600"]
    offset = wayside("publish", "said", "[1]", *said)
    again = wayside.run("publish", "said", "[1]", *said)
    assert (again.status, again.out, again.err) == (0, offset, "wayside: it had been published before\n")
    assert wayside("publish", "said", "2", "3", "--delay", "3600").startswith("due 2")
    accept = {"Accept": "application/vnd.wayside.records+json"}
    (record,) = httpx.get(shared_hub.stream("said"), headers=accept).json()
    assert (record["data"], record["id"], record["key"], record["headers"]) == ([1], "a", "k", {"trace": "t-\u00fc"})
    for wrong in (["1", "2", "--id", "b"], ["1", "--header", "none"]):
        assert wayside.run("publish", "said", *wrong).status != 0


def test_publish_standard_input(shared_hub: Hub, wayside: Command) -> None:
    """Each line is a record, the last one also without its newline; empty ones are none."""
    lines = [json.dumps({"n": number}) for number in range(2000)]
    wayside("publish", "lines", stdin="\n\n".join(lines))
    assert [record["n"] for record in shared_hub.read("lines")] == list(range(2000))
    wayside("publish", "nothing", stdin="")
    assert httpx.head(shared_hub.stream("nothing")).status_code == 404


def test_publish_a_growing_file(shared_hub: Hub, start: Start, tmp_path: Path) -> None:
    """``tail -F file | wayside publish`` appends lines as they are written, also over a rotation."""
    log = tmp_path / "app.log"
    log.write_text("line 0\n")
    follow = subprocess.Popen([tool("tail"), "-n", "+1", "-F", log], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert follow.stdout is not None
    publisher = start("publish", "growing")
    url = shared_hub.stream("growing")

    def pump() -> None:  # the pipe between them
        assert follow.stdout is not None
        while line := follow.stdout.readline():
            publisher.write(line.decode())

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        eventually(lambda: httpx.get(url).text == "line 0", "the first line")
        with log.open("a") as file:
            file.write("line 1\nline 2\n")
        eventually(lambda: httpx.get(url).text == "line 0line 1line 2", "more lines")
        log.rename(tmp_path / "app.log.1")
        log.write_text("line 3\n")
        eventually(lambda: httpx.get(url).text == "line 0line 1line 2line 3", "lines after the rotation")
    finally:
        follow.kill()
        follow.wait()
        thread.join(PATIENCE_S)
    publisher.stdin.close()
    assert publisher.wait() == 0


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_publish_over_a_restart(hub: Hub, start: Start, ending: str) -> None:
    """A hub that goes in the middle of a publish and comes back has each line once, in order."""
    program = start("publish", "restart", hub=hub)
    lines = iter(range(1_000_000))
    written = 0

    def more(count: int) -> None:
        nonlocal written
        for _ in range(count):
            program.write(f'{{"n": {next(lines)}}}\n')
            written += 1

    def arrived() -> int:
        answer = httpx.get(hub.stream("restart"))
        return len(answer.json()) if answer.status_code == 200 else 0

    more(200)
    eventually(lambda: arrived() >= 100, "the first lines")
    more(3000)
    if ending == "kill":
        hub.kill()
    else:
        assert hub.stop() == 0
    more(200)
    hub.start()
    more(200)
    program.stdin.close()
    assert program.wait() == 0, program.err.text
    assert [record["n"] for record in hub.read("restart")] == list(range(written))


def test_publish_refuses_what_does_not_fit(shared_hub: Hub, wayside: Command) -> None:
    """What is not JSON for a JSON stream, another content type, a closed stream: a sentence and a status."""
    shared_hub.create("strict")
    for arguments, status, complaint in (
        (("strict", "{not JSON"), 1, "record 1 is not JSON: {not JSON"),
        (("strict", "1", "--content-type", "text/plain"), 1, "not text/plain"),
        (("strict", "1", "--durability", "memory"), 1, "durability is fsync"),
        (("a//b", "1"), 1, "not a stream path"),
    ):
        assert complaint in wayside.fails("publish", *arguments, status=status)
    shared_hub.close_stream("strict")
    assert "closed" in wayside.fails("publish", "strict", "1")


def test_publish_up_to_what_is_wrong(shared_hub: Hub, start: Start) -> None:
    """Of lines with a wrong one among them, those before it are appended, however they came, and the number is told."""
    for number, chunks in enumerate((["1\n2\nbad\n3\n"], ["1\n", "2\n", "bad\n3\n"])):
        name = f"up-to/{number}"
        shared_hub.create(name)
        program = start("publish", name)
        for count, chunk in enumerate(chunks, 1):
            program.write(chunk)
            eventually(lambda: len(shared_hub.read(name)) >= min(count, 2), "the line is there")  # noqa: B023
        assert program.wait() == 1
        assert "record 3 is not JSON: bad" in program.err.text
        assert "The 2 before it were appended" in program.err.text
        assert shared_hub.read(name) == [1, 2]


def test_publish_lines_as_they_are(shared_hub: Hub, wayside: Command) -> None:
    """Lines of blanks are lines; only what is empty is no record."""
    wayside("publish", "blank", stdin="a\n\n  \nb\r\n\tc")
    assert httpx.get(shared_hub.stream("blank")).text == "a  b\tc"


# -- tail


@pytest.mark.parametrize("via", PATTERNS)
def test_tail_prints_offsets_that_lose_nothing(shared_hub: Hub, wayside: Command, via: str) -> None:
    """Whoever stops after any line and reads on from its offset gets all that came after it."""
    name = f"offsets/{via}"
    shared_hub.create(name)
    shared_hub.append(name, "[1, 2, 3]")
    shared_hub.append(name, "4")
    shared_hub.close_stream(name)
    lines = wayside("tail", name, "--via", via, "--from", "start", "--offsets").splitlines()
    assert [line.split(" ")[1] for line in lines] == ["1", "2", "3", "4"]
    for seen, line in enumerate(lines, 1):
        rest = wayside("tail", name, "--via", via, "--from", line.split(" ")[0]).split()
        assert rest[-(4 - seen) :] == [str(n) for n in range(seen + 1, 5)] or seen == 4


def test_tail_of_text_that_is_none(shared_hub: Hub, wayside: Command) -> None:
    """A line that is not UTF-8 in a text stream comes through each pattern as it is."""
    shared_hub.create("bad-text", "text/plain")
    for record in (b"ok", b"bad\xff", b"after"):
        shared_hub.append("bad-text", record, "text/plain")
    shared_hub.close_stream("bad-text")
    ended = wayside.run("tail", "bad-text", "--via", "push", "--from", "start")
    assert (ended.status, ended.data) == (0, b"ok\nbad\xff\nafter\n")


@pytest.mark.parametrize("via", ["sse", "push"])
def test_tail_of_a_quiet_stream_over_restarts(hub: Hub, start: Start, via: str) -> None:
    """The time to keep trying begins with each interruption, also where no record came between two."""
    hub.create("quiet")
    tail = start("tail", "quiet", "--via", via, "--from", "start", "--retry", "4", hub=hub)
    for number in range(3):
        following = f'wayside_followers{{pattern="{via}"}} 1.0'
        eventually(lambda: following in httpx.get(f"{hub.url}/metrics").text, "it follows")  # noqa: B023
        if number < 2:
            time.sleep(2.5)  # longer than what is left of the first interruption's time
            hub.kill()
            hub.start()
    hub.append("quiet", "1")
    assert tail.out.wait_count(1) == ["1"]


@pytest.mark.parametrize("via", PATTERNS)
def test_tail(shared_hub: Hub, start: Start, via: str) -> None:
    """Each pattern prints history from the start, then what comes, and ends when the stream is closed."""
    name = f"tail/{via}"
    shared_hub.create(name)
    shared_hub.append(name, '[{"n": 1}, {"n": 2}]')
    tail = start("tail", name, "--via", via, "--from", "start", "--interval", "0.05")
    assert tail.out.wait_count(2) == ['{"n": 1}', '{"n": 2}']
    shared_hub.append(name, '{"n": 3}')
    tail.out.wait_count(3)
    shared_hub.close_stream(name)
    assert tail.wait() == 0
    assert [json.loads(line)["n"] for line in tail.out.lines] == [1, 2, 3]
    assert not tail.err.lines


@pytest.mark.parametrize("via", PATTERNS)
@pytest.mark.parametrize(
    ("kind", "records"),
    [("text/plain", ["grüße", "two\nlines", '"quoted"\\ \t']), ("application/octet-stream", ["\x00\x01", "é\r\n"])],
)
def test_tail_of_text_and_bytes(shared_hub: Hub, wayside: Command, via: str, kind: str, records: list[str]) -> None:
    """Every pattern gives the same bytes, which are those that were appended; text records end in a newline."""
    name = f"kinds/{via}/{kind}"
    shared_hub.create(name, kind)
    for record in records:
        shared_hub.append(name, record.encode(), kind)
    shared_hub.close_stream(name)
    newline = "\n" if kind == "text/plain" else ""
    ended = wayside.run("tail", name, "--via", via, "--from", "start")
    assert ended.status == 0, ended.err
    printed = ended.data.decode()
    if via in ("poll", "long-poll"):  # a body of text or bytes has no borders between records
        assert printed == "".join(records) + newline
    else:
        assert printed == "".join(record + newline for record in records)


@pytest.mark.parametrize("via", PATTERNS)
def test_tail_over_restarts(hub: Hub, start: Start, via: str) -> None:
    """Each pattern goes on where it was when the hub is stopped and started, and killed and started."""
    url = hub.create("restarts")
    tail = start("tail", "restarts", "--via", via, "--from", "start", "--interval", "0.05", hub=hub)
    publisher = Publisher(url)
    tail.out.wait_count(20)
    assert hub.stop() == 0
    hub.start()
    publisher.wait_more(20)
    tail.out.wait_count(publisher.acknowledged)
    hub.kill()
    hub.start()
    publisher.wait_more(20)
    count = publisher.stop()
    tail.out.wait_count(count)
    hub.close_stream("restarts")
    assert tail.wait() == 0
    assert [int(line) for line in tail.out.lines] == list(range(count))


def test_tail_from_and_offsets(shared_hub: Hub, start: Start, wayside: Command) -> None:
    """``--offsets`` prints what ``--from`` takes, ``-n`` ends, and from now on is only what comes."""
    shared_hub.create("offsets")
    shared_hub.append("offsets", "[1, 2, 3]")
    first = wayside("tail", "offsets", "--from", "start", "--offsets", "-n", "1")
    offset, _, record = first.partition(" ")
    assert record == "1"
    assert wayside("tail", "offsets", "--from", offset, "-n", "2") == "2\n3"
    live = start("tail", "offsets", "-n", "1")
    eventually(lambda: shared_hub.append("offsets", "4") and not live.running, "a record that came")
    assert live.wait() == 0
    assert live.out.lines == ["4"]


def test_tail_interrupted(shared_hub: Hub, start: Start) -> None:
    """Ctrl-C tells where to resume."""
    shared_hub.create("interrupted")
    offset = shared_hub.append("interrupted", "1")
    tail = start("tail", "interrupted", "--from", "start")
    tail.out.wait_count(1)
    tail.signal(signal.SIGINT)
    assert tail.wait() == 130
    assert tail.err.lines == [f"wayside: resume with --from {offset}"]


# -- the rest


def test_create(shared_hub: Hub, wayside: Command) -> None:
    """Every option of a stream can be told; the same again confirms, another is refused."""
    options = ("--durability", "async", "--ttl", "3600", "--retention-bytes", "5000000", "--retention-age", "86400")
    created = wayside("create", "made/here", "--content-type", "text/plain", *options)
    head = httpx.head(shared_hub.stream("made/here")).headers
    assert created == f"created made/here at {head['stream-next-offset']}"
    assert (head["content-type"], head["stream-durability"], head["stream-ttl"]) == ("text/plain", "async", "3600")
    assert (head["stream-retention-bytes"], head["stream-retention-age"]) == ("5000000", "86400")
    assert wayside("create", "made/here", "--content-type", "text/plain", *options).startswith("exists made/here at ")
    assert "exists with another" in wayside.fails("create", "made/here")
    wayside("create", "made/until", "--expires-at", "2100-01-31T12:00:00Z")
    assert httpx.head(shared_hub.stream("made/until")).headers["stream-expires-at"] == "2100-01-31T12:00:00Z"


def test_create_a_fork(shared_hub: Hub, wayside: Command) -> None:
    """A fork begins with what its source had, up to an offset or to its tail."""
    shared_hub.create("source")
    offset = shared_hub.append("source", "1")
    shared_hub.append("source", "2")
    wayside("create", "fork/tail", "--fork-of", "source")
    wayside("create", "fork/offset", "--fork-of", "source", "--fork-at", offset)
    shared_hub.append("source", "3")
    assert shared_hub.read("fork/tail") == [1, 2]
    assert shared_hub.read("fork/offset") == [1]


def test_streams(shared_hub: Hub, wayside: Command) -> None:
    """Streams are listed by prefix, for people or as JSON."""
    for name in ("listed/b", "listed/a", "other/c"):
        shared_hub.create(name)
    shared_hub.append("listed/a", "[1, 2]")
    shared_hub.close_stream("listed/b")
    assert wayside("streams", "listed/").splitlines() == [
        "listed/a  2 records, 2 bytes, application/json, fsync",
        "listed/b  0 records, 0 bytes, application/json, fsync closed",
    ]
    entries = [json.loads(line) for line in wayside("streams", "--json").splitlines()]
    assert {"listed/a", "listed/b", "other/c"} <= {entry["path"] for entry in entries}
    assert [entry["path"] for entry in entries] == sorted(entry["path"] for entry in entries)


def test_info_close_delete(shared_hub: Hub, wayside: Command) -> None:
    """A stream is described, closed and deleted; then there is none."""
    shared_hub.create("mortal")
    offset = shared_hub.append("mortal", "1")
    info = dict(line.split(": ", 1) for line in wayside("info", "mortal").splitlines())
    assert info["Stream-Next-Offset"] == offset
    assert info["Content-Type"] == "application/json"
    assert wayside("close", "mortal") == f"closed mortal at {offset}"
    assert "Stream-Closed: true" in wayside("info", "mortal")
    assert wayside("delete", "mortal") == "deleted mortal"
    for command in ("info", "delete"):
        assert "mortal" in wayside.fails(command, "mortal")


@pytest.mark.parametrize(
    "command",
    [
        ("publish", "x", "1"),
        ("tail", "x"),
        ("streams",),
        ("create", "x"),
        ("info", "x"),
        ("close", "x"),
        ("delete", "x"),
    ],
    ids=lambda command: command[0],
)
def test_without_a_hub(command: tuple[str, ...]) -> None:
    """Where no hub answers, the status is 3, and the sentence says how to start one."""
    url = f"http://127.0.0.1:{free_port()}"
    retry = ("--retry", "0") if command[0] in ("publish", "tail") else ()
    said = Command().fails(*command, *retry, "--hub", url, status=3)
    assert url in said
    assert "wayside serve" in said


def test_a_failure_is_a_status(run: Run) -> None:
    """What a command ends with is the status of its process, and nothing but the sentence is said."""
    url = f"http://127.0.0.1:{free_port()}"
    program = run([*WAYSIDE, "info", "x", "--hub", url])
    assert program.wait() == 3
    assert url in program.err.text
    assert "Traceback" not in program.err.text


@pytest.mark.parametrize(
    "command", [("frobnicate",), ("tail",), ("tail", "x", "--via", "pigeon"), ("serve", "--port", "x")]
)
def test_wrong_usage(command: tuple[str, ...]) -> None:
    """Wrong usage is status 2."""
    assert "Usage: " in Command().fails(*command, status=2)


def test_help_and_version() -> None:
    """Every command explains itself."""
    for arguments in (("--version",), ("serve", "-h"), ("publish", "--help")):
        assert "wayside" in Command()(*arguments).lower()


def test_check(hub: Hub, wayside: Command, run: Run) -> None:
    """A store that no hub uses is verified; one that a hub uses is refused."""
    hub.create("orders")
    hub.append("orders", "[1, 2, 3]")
    busy = run([*WAYSIDE, "check", hub.data])
    assert busy.wait() == 1
    assert str(hub.program.pid) in busy.err.text
    hub.kill()
    wayside("check", str(hub.data))
