"""Records whose time is over are left out of what readers are given; positions stay what they are."""

from __future__ import annotations

from collections.abc import Callable

from wayside.model import Batch


def unlapsed(batches: list[Batch], now_ms: Callable[[], int]) -> list[Batch]:
    """``batches`` without the records that have expired.

    Where some are left out there are gaps between the batches. The last one ends where the last of ``batches`` did,
    though it be empty: there the reader reads on.
    """
    for batch in batches:
        if batch.meta is not None:
            return _without(batches, now_ms())
    return batches


def _without(batches: list[Batch], now: int) -> list[Batch]:
    result: list[Batch] = []
    for batch in batches:
        metas = batch.meta or {}
        lapsed = [index for index, meta in sorted(metas.items()) if 0 < meta.expires_ms <= now]
        if not lapsed:
            result.append(batch)
            continue
        position = batch.position
        for index in lapsed:
            at = batch.position + index
            if position < at:
                result.append(batch.since(position).until(at))
            position = at + 1
        if position < batch.end:
            result.append(batch.since(position))
    end = batches[-1].end
    if not result or result[-1].end < end:
        result.append(Batch(end, batches[-1].time_ms, []))
    return result
