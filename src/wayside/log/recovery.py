"""What a start after a crash changes in the tables: nobody knows what was on its way when it came."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import apsw

LINEAGE_MAX = 64
"""Epochs that a stream remembers of its own: as many crashes ago may a reader have read last."""


def renew_epochs(c: apsw.Connection, journal_ends: Mapping[int, int], take_epoch: Callable[[], int]) -> None:
    """What an ``async`` stream acknowledged last may be missing: its next records get a new epoch, so that a reader who
    saw what was lost is told so, and never reads on past other records."""
    rows: list[Any] = c.execute("SELECT sid, lineage, tail FROM stream WHERE durability='async' AND gone=0").fetchall()
    for sid, text, sealed_end in rows:
        end = max(sealed_end, journal_ends.get(sid, 0))
        lineage = [pair for pair in json.loads(text) if pair[0] < end or (pair[0] == 0 and end == 0)]
        lineage.append([end, take_epoch()])
        own = next(index for index, pair in enumerate(lineage) if pair[1] >= sid)  # before it: its source's
        while len(lineage) > LINEAGE_MAX and own + 1 < len(lineage):
            first = lineage.pop(own)[0]
            lineage[own][0] = first  # the oldest epoch is forgotten, and the next one names its records
        c.execute("UPDATE stream SET lineage=? WHERE sid=?", (json.dumps(lineage), sid))


def renew_deadlines(c: apsw.Connection, now_ms: int) -> None:
    """Nobody knows when a stream was last used: it has its time to live again."""
    ttl_s = "json_extract(CAST(config AS TEXT), '$.ttl_s')"
    c.execute(
        f"UPDATE stream SET expires_ms=max(expires_ms, ? + 1000 * {ttl_s}) "
        f"WHERE expires_ms IS NOT NULL AND {ttl_s} IS NOT NULL",
        (now_ms,),
    )
