"""The worked example as events, examples/media/events.py: by the README's words, and killed while it works."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.media.make_image import make_image
from examples.media.pictures import VARIANTS
from tests.e2e.media import FILES, SIZE, Readme, Watched, body_of, look_right, printed
from tests.support.processes import Hub, Run, tool
from tests.support.waiting import PATIENCE_S, eventually

APP = "tests.e2e.watched_media_events:hub"
COMPRESS, NOTIFY = "media.compress", "media.notify"
MAKERS = tuple(f"media.{name}" for name in VARIANTS)
PNG = "media.picture.png"
STARTED = ("original.jpeg", "compressed.jpeg")
"""Files of a picture before it has variants."""


@pytest.fixture
def watched(run: Run, tmp_path: Path) -> Watched:
    return Watched(run, tmp_path, APP)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A picture, as a camera would have taken it."""
    return make_image(tmp_path_factory.mktemp("photo") / "photo.jpg", SIZE).read_bytes()


def tell(hub: Hub, photo: bytes) -> None:
    """Upload a photo, and tell of it."""
    closed = {"Stream-Closed": "true"}
    uploaded = httpx.put(hub.stream("photos/1"), content=photo, headers={"Content-Type": "image/jpeg", **closed})
    assert uploaded.status_code == 201, uploaded.text
    hub.create("media/uploaded")
    hub.append("media/uploaded", '{"$stream": "photos/1"}')


def done(hub: Hub) -> list[list[str]]:
    """What was told of pictures that are done."""
    return [event["data"] for event in hub.read("media/done/**")]


def with_variants(names: tuple[str, ...]) -> list[list[str]]:
    """What is told of a picture whose variants are made, in any order."""
    return sorted(sorted((*STARTED, name)) for name in names)


def deliveries(hub: Hub, group: str, stream: str) -> list[dict[str, Any]]:
    """Those of the last record of a stream, by its receipt."""
    offset = httpx.head(hub.stream(stream)).headers["Stream-Next-Offset"]
    query = {"stream": stream, "offset": offset}
    receipt = httpx.get(f"{hub.url}/v1/group/{group}/receipts", params=query).json()
    assert receipt["state"] == "acked", receipt
    found: list[dict[str, Any]] = receipt["deliveries"]
    return found


# -- by the README's words


def test_media_as_events_by_the_readme(run: Run, tmp_path: Path) -> None:
    """Every command of the section works word for word: killed in the middle, each variant is told of once; what is no
    picture is a dead letter, and is delivered again when there is a picture in its place."""
    tool("curl")
    said = Readme(run, tmp_path, "Example: the same as events").say(2 * PATIENCE_S)
    first, second = (
        [json.loads(line) for line in output.splitlines() if line[0] == "{"]  # and not what the hub says
        for output in printed(said, "media/done/**")
    )
    assert body_of(printed(said, "curl --retry")[0])["counts"]["delivered"] >= 1  # which the new hub knows of
    assert len({event["stream"] for event in first}) == 1
    assert sorted(event["data"] for event in first) == with_variants(VARIANTS)
    ready = body_of(printed(said, "media/ready")[0])
    assert sorted(sorted(picture["files"]) for picture in ready) == with_variants(VARIANTS)
    groups = printed(said, "group list")[0].splitlines()
    assert [line.split()[0] for line in groups] == sorted((COMPRESS, NOTIFY, *MAKERS))
    assert all("lag 0, 0 in flight, 0 waiting, 0 dead, 1 members" in line for line in groups)
    receipt = printed(said, "wayside receipts")[0].splitlines()
    assert receipt[0] == "acked, 2 attempts"
    assert [re.sub(r"^\S+ +(\w+).*", r"\1", line) for line in receipt[1:]] == [
        *("appended", "delivered", "failed", "delivered", "acked")
    ]

    dead = json.loads(printed(said, "tail '*/refused'")[0])
    assert (dead["stream"], dead["data"]) == ("media/refused", {"$stream": "photos/2"})
    assert "are no picture" in dead["headers"]["wayside-dead-reason"]
    assert "1 attempts" in printed(said, "group dead")[0]
    assert printed(said, "redrive") == ["1"]
    assert (len(second), second[: len(first)]) == (2 * len(VARIANTS), first)
    assert sorted(event["data"] for event in second[len(first) :]) == with_variants(VARIANTS)
    (directory,) = (tmp_path / "media-store").iterdir()
    look_right(directory, (3000, 2000))


# -- killed


Kill = Callable[[], None]


def kill_while_it_works(watched: Watched, hub: Hub, photo: bytes, killed: str, kill: Kill) -> None:
    """Tell of a photo, kill when ``killed`` is held and all others have done what they can, and hold the rest to its
    promises."""
    tell(hub, photo)
    others = tuple(name for name in VARIANTS if f"media.{name}" != killed) if killed in MAKERS else ()
    eventually(watched.is_held, f"{killed} is held")
    if others:
        eventually(lambda: len(done(hub)) == len(others), "the others are done")
        assert sorted(done(hub)) == with_variants(others)
    watched.hold_no_more()
    kill()
    eventually(lambda: len(done(hub)) >= len(VARIANTS), "all are done")

    assert sorted(done(hub)) == with_variants(VARIANTS)
    ready = hub.read("media/ready")
    assert sorted(sorted(picture["files"]) for picture in ready) == with_variants(VARIANTS)
    (directory,) = watched.store.iterdir()
    assert {picture["id"] for picture in ready} == {directory.name}
    assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)
    look_right(directory)
    assert len(hub.read(f"media/done/{directory.name}")) == len(VARIANTS)
    assert len(hub.read("media/compressed")) == 1

    counted = Counter(watched.lines())
    assert counted.pop(f"held {killed}") == 1
    ended = {COMPRESS: 1, **dict.fromkeys(MAKERS, 1), NOTIFY: len(VARIANTS)}
    assert counted == {
        **{f"begin {group}": times + (group == killed) for group, times in ended.items()},
        **{f"end {group}": times for group, times in ended.items()},
    }
    for group, stream in {COMPRESS: "media/uploaded", **dict.fromkeys(MAKERS, "media/compressed")}.items():
        eventually(lambda group=group: _acked(hub, group) == 1, f"{group} has acked")  # type: ignore[misc]
        found = deliveries(hub, group, stream)
        assert [each["ended"] for each in found] == (["failed", "acked"] if group == killed else ["acked"])
        if group == killed:
            assert found[0]["reason"] == f"the lease of {found[0]['member']} ended"
            assert found[0]["member"] != found[1]["member"]


def _acked(hub: Hub, group: str) -> int:
    counts: dict[str, int] = httpx.get(f"{hub.url}/v1/group/{group}").json()["counts"]
    return counts["acked"]


def test_a_hub_is_killed(watched: Watched, photo: bytes) -> None:
    """The hub is killed after the work of a step, before its ack: the next does that again, and nothing else; the
    independent consumers of the same event were done meanwhile."""
    watched.hold("after", PNG)
    hub = watched.serve(APP)

    def kill() -> None:
        hub.kill()
        hub.start()

    kill_while_it_works(watched, hub, photo, PNG, kill)


def test_a_worker_is_killed(watched: Watched, photo: bytes) -> None:
    """The same of a worker, whose records another has when their lease is over."""
    watched.hold("before", COMPRESS)
    hub = watched.serve()
    worker = watched.work(hub)

    def kill() -> None:
        worker.kill()
        watched.work(hub)

    kill_while_it_works(watched, hub, photo, COMPRESS, kill)
