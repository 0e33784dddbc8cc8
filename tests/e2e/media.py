"""What the tests of examples/media share: sections of the README, and the example as processes that can be held and killed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.events import events_of
from tests.support.processes import ROOT, WAYSIDE, Hub, Program, Run, free_port
from tests.support.waiting import PATIENCE_S

FILES = ("original.jpeg", "compressed.jpeg", "thumbnail.jpeg", "picture.webp", "picture.png")
SIZE = (1200, 800)


class Readme:
    """A section of the README, in a directory where its words can be taken literally: but for the port."""

    def __init__(self, run: Run, directory: Path, *titles: str) -> None:
        self.directory = directory
        self.port = free_port()
        self._run = run
        self._env = {"WAYSIDE_PORT": str(self.port), "WAYSIDE_HUB": f"http://127.0.0.1:{self.port}"}
        (directory / ".venv").symlink_to(sys.prefix)
        (directory / "examples").symlink_to(ROOT / "examples")
        text = (ROOT / "README.md").read_text().replace("7070", str(self.port))
        sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
        section = "".join(sections[title] for title in titles)
        for block in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
            named = re.match(r"# (\w+\.py)\n", block)
            if named and not (directory / named[1]).exists():  # another app.py is that for FastAPI
                (directory / named[1]).write_text(block)
        self.commands = re.findall(
            r"^    (\S.*)$", re.sub(r"^```.*?^```", "", section, flags=re.M | re.S), re.MULTILINE
        )

    def start(self, command: str) -> Program:
        """What has a terminal of its own."""
        assert command in self.commands
        self.commands.remove(command)
        return self._run(["bash", "-c", f"exec {command}"], env=self._env, cwd=self.directory)

    def python(self, name: str) -> str:
        program = self._run([sys.executable, name], cwd=self.directory)
        assert program.wait() == 0, program.err.text
        return program.out.text

    def say(self, within_s: float = PATIENCE_S) -> list[tuple[str, str]]:
        """Type all commands into one terminal; returns each with what it printed."""
        lines = [part for number, each in enumerate(self.commands) for part in (f"echo; echo @@{number}", each)]
        program = self._run(["bash", "-c", "\n".join(lines)], env=self._env, cwd=self.directory)
        program.wait(within_s)
        outputs = re.split(r"^@@\d+$", program.out.text, flags=re.MULTILINE)[1:]
        assert len(outputs) == len(self.commands), program.err.text
        print(program.err.text)  # for whoever has to see why a command said nothing
        return list(zip(self.commands, outputs, strict=True))


def printed(said: list[tuple[str, str]], *words: str) -> list[str]:
    """What was printed by the commands that have these words."""
    found = [output.strip() for command, output in said if all(word in command for word in words)]
    assert found, words
    return found


def body_of(answer: str) -> Any:
    return json.loads(answer.splitlines()[-1])


def sse(text: str) -> list[dict[str, Any]]:
    """The events of a call."""
    fields = ("", "data", "event", "id", "retry")  # a hub in the background may have said something in between
    found = list(events_of([*(line for line in text.splitlines() if line.partition(":")[0] in fields), ""]))
    assert found[-1].type == "closed"
    return [json.loads(event.data) for event in found if event.type == "message"]


def look_right(directory: Path, size: tuple[int, int] = SIZE) -> None:
    """The pictures are what they are called, and no larger than they should be."""
    sides = {}
    for name in FILES:
        with Image.open(directory / name) as image:
            image.load()
            assert image.format == name.rpartition(".")[2].upper()
            sides[name] = image.size
    assert sides["original.jpeg"] == size
    assert max(sides["compressed.jpeg"]) == min(2048, max(size))
    assert sides["picture.webp"] == sides["picture.png"] == sides["compressed.jpeg"]
    assert max(sides["thumbnail.jpeg"]) == 256
    lengths = {name: (directory / name).stat().st_size for name in FILES}
    assert lengths["original.jpeg"] > lengths["compressed.jpeg"] > lengths["thumbnail.jpeg"]
    assert lengths["compressed.jpeg"] <= 400_000


class Watched:
    """A hub that runs the example, as ``app``, with its log."""

    def __init__(self, run: Run, directory: Path, app: str) -> None:
        self.app = app
        self.store = directory / "media-store"
        self.log = directory / "log"
        self.env = {"WATCHED_LOG": str(self.log), "MEDIA_STORE": str(self.store)}
        self._run = run
        self._data = directory / "data"

    def serve(self, *options: str) -> Hub:
        return Hub(self._run, self._data, *options, env=self.env)

    def work(self, hub: Hub) -> Program:
        worker = self._run([*WAYSIDE, "work", self.app, "--hub", hub.url], env=self.env)
        worker.out.wait_for("^working on ")
        return worker

    def hold(self, when: str, step: str) -> None:
        self.env["WATCHED_HOLD"] = f"{when} {step}"

    def hold_no_more(self) -> None:
        """What starts from now on is not held."""
        del self.env["WATCHED_HOLD"]

    def let_go(self) -> None:
        """What is held goes on."""
        self.log.with_suffix(".go").touch()

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def is_held(self) -> bool:
        return any(line.startswith("held") for line in self.lines())
