"""The worked example, examples/media: by the README's words, from Python, and killed at each of its steps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.media.make_image import make_image
from tests.e2e.media import FILES, SIZE, Readme, Watched, body_of, look_right, printed, sse
from tests.support.processes import WAYSIDE, Hub, Run, tool
from tests.support.waiting import PATIENCE_S, eventually
from wayside import CallEvent, CallFailed, Refusal, connect, sync
from wayside import Hub as WaysideHub

APP = "tests.e2e.watched_media:hub"
STEPS = ("media.upload", "media.compress", "media.format", "media.notify")
VIAS = ("push", "sse", "long-poll", "poll")


# -- by the README's words


def test_services_by_the_readme(run: Run, tmp_path: Path) -> None:
    """Every command of the README about services works word for word: a call is waited for in all four ways, given once
    for a key, cancelled, streamed, and run by a worker elsewhere."""
    tool("curl")
    readme = Readme(run, tmp_path, "Services and calls", "In Python")
    hub = readme.start(".venv/bin/wayside serve app:hub")
    hub.out.wait_for("^listening on ")
    worker = readme.start(f".venv/bin/wayside work app:hub --hub http://127.0.0.1:{readme.port}")
    worker.out.wait_for("^working on count, greet, words")

    said = readme.say()
    assert body_of(printed(said, "greeting=Hi")[0]) == "Hi, Ada!"
    first = [output for command, output in said if "$CALL" in command or "wayside calls" in command]
    poll, long_poll, stream, push, result, cancelled = first
    assert body_of(poll)["state"] in ("queued", "running")
    assert body_of(long_poll)["result"] == {"counted": 10}
    heard = sse(stream)
    assert [event["data"]["value"] for event in heard if event["event"] == "progress"][-1] == 1.0
    assert heard[-1]["event"] == "done"
    assert push.count("progress") == 10
    assert "done" in push
    assert body_of(result) == {"counted": 10}
    assert [body_of(output) for output in printed(said, "order-42")] == [{"counted": 5}] * 2
    assert body_of(cancelled)["state"] == "cancelled"
    words = sse(printed(said, "/v1/service/words")[0])
    assert [event["data"] for event in words if event["event"] == "item"] == ["one", "two", "three"]

    assert readme.python("script.py").splitlines() == ["Hello, Ada!", "{'counted': 5}"]
    lines = readme.python("client.py").splitlines()
    assert lines[0] == "Hi, Ada!"
    assert lines[-4:] == ["{'counted': 5}", "one", "two", "three"]
    assert sum(line.startswith("progress") for line in lines) == 5


def test_media_by_the_readme(run: Run, tmp_path: Path) -> None:
    """Every command of the README's media example works word for word: the photo is uploaded in pieces, the pipeline
    killed in its third step, and the second hub goes on there."""
    tool("curl")
    said = Readme(run, tmp_path, "Example: a media pipeline").say(2 * PATIENCE_S)
    assert "Upload-Offset: 1000000" in printed(said, "curl -I")[0]
    heard = sse(printed(said, "curl -N")[0])
    by_attempt = [[_step(event) for event in heard if event["attempt"] == n and _step(event)] for n in (1, 2)]
    assert by_attempt == [list(STEPS[:3]), list(STEPS)]
    (retry,) = [event for event in heard if event["event"] == "retry"]
    assert retry["error"]["code"] == "worker-lost"
    made = heard[-1]["data"]
    assert [body_of(printed(said, "media/ready")[0])] == [[made]]
    directory = tmp_path / "media-store" / made["id"]
    look_right(directory, (3000, 2000))
    assert all(name in printed(said, "ls -l")[0] for name in FILES)
    assert [body_of(output) for output in printed(said, "/v1/service/media")[1:]] == [made, made]


def _step(event: dict[str, Any]) -> str:
    """Which step a pipeline says that it begins."""
    data: dict[str, Any] = event["data"] if event["event"] == "progress" else {}
    return str(data["step"]) if "number" in data else ""


# -- watched


@pytest.fixture
def watched(run: Run, tmp_path: Path) -> Watched:
    return Watched(run, tmp_path, APP)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A picture, as a camera would have taken it."""
    return make_image(tmp_path_factory.mktemp("photo") / "photo.jpg", SIZE).read_bytes()


def test_each_step_runs_once_and_the_pictures_are_right(watched: Watched, photo: bytes) -> None:
    """A photo as the body of a synchronous call: each step runs once, and what it made is there."""
    hub = watched.serve(APP)
    answer = httpx.post(
        f"{hub.url}/v1/service/media", content=photo, headers={"Content-Type": "image/jpeg"}, timeout=PATIENCE_S
    )
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["width"], made["height"]) == SIZE
    assert watched.lines() == [f"{what} {step}" for step in STEPS for what in ("begin", "end")]
    look_right(watched.store / made["id"])
    assert made["files"] == {name: (watched.store / made["id"] / name).stat().st_size for name in FILES}
    assert hub.read("media/ready") == [made]


def test_what_is_no_picture_fails_at_once(watched: Watched) -> None:
    """The first step refuses what is no picture; the pipeline fails with its refusal, and is not tried again."""
    hub = watched.serve(APP)
    answer = httpx.post(
        f"{hub.url}/v1/service/media", content=b"GIF", headers={"Content-Type": "image/gif"}, timeout=PATIENCE_S
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "not-a-picture")
    assert watched.lines() == ["begin media.upload"]


async def test_a_step_that_fails_fails_its_pipeline() -> None:
    """A step is made once: when it has failed, the pipeline does not try in vain."""
    async with WaysideHub() as hub:
        runs = []

        @hub.service("breaks")
        def breaks(value: int) -> None:
            runs.append(value)
            raise ValueError("broken")

        hub.pipeline("line", "breaks")
        call = await hub.submit("line", 1)
        with pytest.raises(CallFailed, match="broken"):
            await call.result(timeout=PATIENCE_S)
        assert (await call.status()).attempt == 1
        assert runs == [1]


async def test_the_asynchronous_client(watched: Watched, photo: bytes) -> None:
    """From Python: an upload by reference, and the call's events by push, SSE, long poll and poll are the same."""
    hub = watched.serve(APP)
    async with connect(hub.url) as client:
        await client.create("photos/1", content_type="image/jpeg")
        await client.publish("photos/1", photo[:100_000])
        await client.publish("photos/1", photo[100_000:])
        await client.close_stream("photos/1")
        call = await client.submit("media", {"$stream": "photos/1"}, idempotency_key="photo-1")
        heard = [[event async for event in call.events(via, interval=0.1)] for via in VIAS]  # type: ignore[arg-type]
        made = await call.result(timeout=PATIENCE_S)
        again = await client.submit("media", {"$stream": "photos/1"}, idempotency_key="photo-1")
    assert again.id == call.id
    assert [[(event.kind, event.data) for event in each] for each in heard[1:]] == [
        [(event.kind, event.data) for event in heard[0]]
    ] * 3
    assert steps_of(heard[0]) == list(STEPS)
    assert heard[0][-1].data == made
    look_right(watched.store / made["id"])


def test_the_blocking_client(watched: Watched, photo: bytes) -> None:
    """The same without an event loop, and its refusals."""
    hub = watched.serve(APP)
    with sync.connect(hub.url) as client:
        call = client.submit("media", photo)
        heard = [[(event.kind, event.data) for event in call.events(via, interval=0.1)] for via in VIAS]  # type: ignore[arg-type]
        assert heard[1:] == heard[:1] * 3
        made = call.result(timeout=PATIENCE_S)
        assert client.call("media", photo, timeout=PATIENCE_S) == made
        assert [record.json() for record in client.read("media/ready", follow=False)] == [made, made]
        with pytest.raises(Refusal) as refused:
            client.call("media", b"no picture", timeout=PATIENCE_S)
        assert refused.value.code == "not-a-picture"
    look_right(watched.store / made["id"])


def steps_of(heard: list[CallEvent]) -> list[str]:
    """The steps that a pipeline says that it begins."""
    said = [event.data for event in heard if event.kind == "progress" and event.data is not None]
    return [data["step"] for data in said if "number" in data]


# -- killed


Kill = Callable[[], None]


async def kill_while_followed(watched: Watched, hub: Hub, photo: bytes, killed: str, kill: Kill) -> None:
    """Start the pipeline, kill when it is held, and hold it to its promises."""
    async with connect(hub.url) as client:
        call = await client.submit("media", photo)

        async def follow() -> list[CallEvent]:
            return [event async for event in call.events()]

        following = asyncio.create_task(follow())
        await asyncio.to_thread(eventually, watched.is_held, f"{killed} is held")
        watched.hold_no_more()
        await asyncio.to_thread(kill)
        heard = await asyncio.wait_for(following, PATIENCE_S)
        made = await call.result(timeout=PATIENCE_S)

    counted = Counter(watched.lines())
    assert counted.pop(f"held {killed}") == 1
    begun = {f"begin {step}": 2 if step == killed else 1 for step in STEPS}
    assert counted == begun | {f"end {step}": 1 for step in STEPS}

    place = STEPS.index(killed)
    assert steps_of(heard) == [*STEPS[: place + 1], *STEPS]
    assert [event.error["code"] for event in heard if event.kind == "retry" and event.error] == ["worker-lost"]
    offsets = [event.offset for event in heard]
    assert offsets == sorted(set(offsets))
    with httpx.stream("GET", call.url, headers={"Accept": "text/event-stream"}) as response:
        told = sse("\n".join(response.iter_lines()))
    assert [event["event"] for event in told] == [event.kind for event in heard]

    assert (heard[-1].kind, heard[-1].data) == ("done", made)
    look_right(watched.store / made["id"])
    assert hub.read("media/ready") == [made]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_hub_is_killed(watched: Watched, photo: bytes, step: str, when: str) -> None:
    """The hub is killed in a step, before or after its work: the next goes on with that step, the completed ones have run
    once, and one URL, followed by one client, tells it all."""
    watched.hold(when, step)
    hub = watched.serve(APP)

    def kill() -> None:
        hub.kill()
        hub.start()

    await kill_while_followed(watched, hub, photo, step, kill)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_worker_is_killed(watched: Watched, photo: bytes, step: str, when: str) -> None:
    """The worker is killed, which ran the pipeline and its steps: when its lease is over another goes on likewise."""
    watched.hold(when, step)
    hub = watched.serve("--lease-s", "1")
    worker = watched.work(hub)

    def kill() -> None:
        worker.kill()
        watched.work(hub)

    await kill_while_followed(watched, hub, photo, step, kill)


@pytest.mark.parametrize("down", [True, False], ids=["while the hub is down", "when it is back"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_hub_is_killed_under_a_worker(watched: Watched, photo: bytes, step: str, down: bool) -> None:
    """A worker elsewhere outlives the hub: what it runs meanwhile counts, and nothing runs twice."""
    watched.hold("before" if step == "media.notify" else "after", step)
    hub = watched.serve()
    watched.work(hub)
    async with connect(hub.url) as client:
        call = await client.submit("media", photo)
        await asyncio.to_thread(eventually, watched.is_held, f"{step} is held")
        hub.kill()
        if down:
            watched.let_go()
        await asyncio.to_thread(hub.start)
        watched.let_go()
        made = await call.result(timeout=PATIENCE_S)
        status = await call.status()
    assert status.attempt == 1
    assert [line for line in watched.lines() if not line.startswith("held")] == [
        f"{what} {step}" for step in STEPS for what in ("begin", "end")
    ]
    assert hub.read("media/ready") == [made]


async def test_without_retries_a_lost_worker_fails_the_call(watched: Watched, run: Run, tmp_path: Path) -> None:
    """The default: what a lost worker ran may have had its effect, and is not run again."""
    (tmp_path / "app.py").write_text(
        "import time\n"
        "from wayside import Hub\n"
        "hub = Hub()\n"
        "@hub.service('pay')\n"
        "def pay(amount: int) -> None:\n"
        "    print('paying', flush=True)\n"
        "    time.sleep(600)\n"
    )
    hub = watched.serve("--lease-s", "1")
    command = [*WAYSIDE, "work", "app:hub", "--hub", hub.url]
    worker = run(command, cwd=tmp_path)
    worker.out.wait_for("^working on pay")
    async with connect(hub.url) as client:
        call = await client.submit("pay", 5)
        worker.out.wait_for("^paying$")
        worker.kill()
        other = run(command, cwd=tmp_path)
        with pytest.raises(CallFailed) as failed:
            await call.result(timeout=PATIENCE_S)
    assert failed.value.code == "worker-lost"
    other.out.wait_for("^working on pay")
    assert "paying" not in other.out.text
