"""Streams on the embedded engine, or in memory, without a hub around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wayside.core.clock import Clock
from wayside.core.limits import Limits
from wayside.storage.embedded.engine import EmbeddedEngine
from wayside.storage.embedded.files import CHECKED_VFS
from wayside.storage.memory import MemoryEngine
from wayside.streams.streams import Streams

__all__ = ["embedded", "store_of"]


def embedded(
    directory: Path | None, *, limits: Limits | None = None, clock: Clock | None = None, vfs: str = CHECKED_VFS
) -> Streams:
    """Streams in ``directory``, or nowhere."""
    engine = EmbeddedEngine(directory, vfs=vfs, clock=clock) if directory else MemoryEngine()
    return Streams(engine, limits=limits, clock=clock)


def store_of(log: Streams) -> Any:
    """The store that streams are in; None where they are in memory."""
    return log.engine.store if isinstance(log.engine, EmbeddedEngine) else None
