"""Delivery policies: what a follower is given of what it has missed, against an oracle that knows nothing of cohorts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.constants import patch_constants
from tests.support.disk import Disk
from tests.support.embedded import embedded
from tests.support.followers import Plainly, Recorder
from tests.support.log import BYTES, append, begin_append, create, creation, publish, spool
from tests.support.waiting import turns, until
from wayside.core.errors import BadRequest, Gone
from wayside.core.limits import Limits
from wayside.core.policies import Policy, key_reader, policy_of
from wayside.core.records import Batch, Durability, Meta
from wayside.streams.streams import Streams
from wayside.testing import ManualClock

NEWEST, PER_KEY = Policy("conflate"), Policy("conflate", "k")
NEVER_S = 86_400.0
Rows = list[tuple[int, bytes]]


def _rows(frames: list[Any]) -> Rows:
    """(position, record) of everything that was given."""
    batches = [batch for frame in frames if isinstance(frame, list) for batch in frame]
    return [(batch.position + i, record) for batch in batches for i, record in enumerate(batch.records)]


def _newest(rows: Rows, key: str | None = "k") -> Rows:
    """The oracle: the newest row per key, those without one each by itself, in order of position."""
    newest: dict[object, tuple[int, bytes]] = {}
    for position, record in rows:
        value = json.loads(record)
        own = key is not None and not (isinstance(value, dict) and key in value)
        newest[position if own else json.dumps(value[key]) if key is not None else None] = (position, record)
    return sorted(newest.values())


def _records(keys: list[str | int | None]) -> list[bytes]:
    """Records of these keys, each unlike the others; None: one that has none."""
    return [json.dumps({"k": k, "n": n} if k is not None else {"n": n}).encode() for n, k in enumerate(keys)]


def _array(records: list[bytes]) -> bytes:
    return b"[" + b",".join(records) + b"]"


async def _missed(log: Streams, keys: list[str | int | None]) -> Rows:
    """A stream with one record for each key."""
    records = _records(keys)
    await create(log, "s")
    for start in range(0, len(records), 7):
        await append(log, "s", _array(records[start : start + 7]))
    return list(enumerate(records))


async def _end(sink: Recorder) -> None:
    await until(lambda: sink.finished)


def _follow(log: Streams, sink: Recorder, policy: Policy, position: int = 0, **options: Any) -> Any:
    return log.follow(log.find("s"), position, Plainly(), sink, "test", policy=policy, **options)


# -- what a key is


@pytest.mark.parametrize(
    ("path", "record", "key"),
    [
        ("k", b'{"k":"a"}', "a"),
        ("k", rb'{"k":"\u0061"}', "a"),
        ("k", b'{"n":{"k":2},"k": 1 }', b"1"),
        ("k", b'{"k":1.0}', b"1.0"),
        ("k", b'{"k":true}', b"true"),
        ("k", b'{"k":null}', b"null"),
        ("k", b'{"k":[1, {"a": 2}]}', b'[1,{"a":2}]'),
        ("a.b", b'{"a":{"b":"x","c":1}}', "x"),
        ("a b.\u00e9", '{"a b":{"\u00e9":"x"}}'.encode(), "x"),
        ("k", b"{}", None),
        ("k", b"7", None),
        ("k", b'["k"]', None),
        ("a.b", b'{"a":7}', None),
        ("a.b", b'{"a":{}}', None),
        ("a.b", b'{"a.b":1}', None),
    ],
)
def test_a_key_is_the_value_of_a_field(path: str, record: bytes, key: str | bytes | None) -> None:
    """Equal values are one key however they are written, values of different types are not; what has no such field has no
    key."""
    assert key_reader(path)(record) == key


@pytest.mark.parametrize(
    ("given_", "code"),
    [
        (("newest", None, None, None), "policy-unknown"),
        (("", None, None, None), "policy-unknown"),
        (("catch-up", "k", None, None), "policy-parameter"),
        (("conflate", "", None, None), "policy-parameter"),
        (("conflate", "a..b", None, None), "policy-parameter"),
        (("conflate", 'a"', None, None), "policy-parameter"),
        (("conflate", "a" * 257, None, None), "policy-parameter"),
        (("conflate", None, "1", None), "policy-parameter"),
        (("sample", None, "0", None), "policy-parameter"),
        (("sample", None, "nan", None), "policy-parameter"),
        (("sample", None, "soon", None), "policy-parameter"),
        (("disconnect", None, None, "0"), "policy-parameter"),
        (("disconnect", None, None, "-5"), "policy-parameter"),
        (("disconnect", "k", None, "5"), "policy-parameter"),
    ],
)
def test_what_is_no_policy_is_refused(given_: tuple[str, str | None, str | None, str | None], code: str) -> None:
    """A policy that is not known, or a parameter that it does not take, has a stable code."""
    with pytest.raises(BadRequest) as refused:
        policy_of(*given_)
    assert refused.value.code == code


def test_policies_have_defaults() -> None:
    """Catching up is no policy at all; the others need no parameter."""
    assert policy_of(None, "k", None, None) is None
    assert policy_of("catch-up", None, None, None) is None
    assert policy_of("sample", None, None, None) == Policy("sample", interval_s=1.0)
    assert policy_of("disconnect", None, None, None) == Policy("disconnect", lag=1000)


# -- conflate


async def test_a_late_reader_is_given_the_newest_of_each_key_and_then_everything(log: Streams) -> None:
    """From an old offset: the latest record per key in order of position, those without the field all of them; from then
    on each record."""
    missed = await _missed(log, ["a", "b", "a", None, 1, "b", None, "1", "c", "a", 1])
    sink = Recorder()
    _follow(log, sink, PER_KEY)
    await until(lambda: len(_rows(sink.frames)) >= 7)
    assert _rows(sink.frames) == _newest(missed)
    await append(log, "s", _array(_records(["c", "c", "c"])))
    assert len(_rows(sink.frames)) == 10
    assert log.statistics().skipped == {"conflate": 4}
    assert log.statistics().deliveries == {"test": 10}
    assert log.statistics().policies == {"conflate": 1}


async def test_without_a_key_only_the_newest_record_counts(log: Streams) -> None:
    """Of a stream of any type."""
    await create(log, "s", creation(BYTES))
    for record in (b"1", b"2", b"3"):
        await append(log, "s", record)
    sink = Recorder()
    _follow(log, sink, NEWEST)
    await until(lambda: sink.frames)
    assert _rows(sink.frames) == [(2, b"3")]
    assert log.statistics().skipped == {"conflate": 2}


async def test_whoever_resumes_gets_what_is_left_of_the_same(log: Streams) -> None:
    """After any record that was sent a new reader is given exactly those that were sent after it."""
    missed = await _missed(log, ["a", "b", "c", "a", "d", "b", "a", "e", "d"])
    expected = _newest(missed)
    for sent, (position, _) in enumerate(expected, 1):
        sink = Recorder()
        _follow(log, sink, PER_KEY, position + 1, until=len(missed))
        await _end(sink)
        assert _rows(sink.frames) == expected[sent:]


async def test_credit_is_spent_on_what_is_sent(log: Streams) -> None:
    """What is conflated away costs none; and what comes while there is none is conflated with the rest."""
    missed = await _missed(log, ["a", "b", "a", "c", "b", "a"])
    sink = Recorder()
    reader = _follow(log, sink, PER_KEY, credit=1)
    await until(lambda: _rows(sink.frames))
    assert _rows(sink.frames) == [missed[3]]
    assert reader.at == 4
    more = _records(["b", "b"])
    await append(log, "s", _array(more))
    reader.grant(10)
    await until(lambda: len(_rows(sink.frames)) == 3)
    assert _rows(sink.frames)[1:] == [missed[5], (7, more[1])]


@pytest.mark.parametrize("place", ["memory", "disk"])
async def test_what_is_held_is_bounded(place: str, disk: Disk) -> None:
    """Beyond so many keys what is held is given and conflation begins anew behind it: a key may come again, and the newest
    record of each does."""
    limits = Limits(conflated_keys_max=4, read_records_max=3, read_bytes_max=1000, stream_cache_bytes_max=1)
    log = embedded(disk.directory.parent / "other" if place == "disk" else None, limits=limits)
    log.start()
    try:
        keys: list[str | int | None] = [f"k{n * n % 17}" for n in range(200)]
        missed = await _missed(log, keys)
        sink = Recorder()
        reader = _follow(log, sink, PER_KEY)
        await until(lambda: reader.at == len(keys))
        given_ = _rows(sink.frames)
        assert given_ == sorted(set(given_) & set(missed)), "in order, each once, and what was appended"
        assert set(_newest(missed)) <= set(given_)
        assert max(len(frame) for frame in sink.frames if isinstance(frame, list)) <= 3
    finally:
        await log.close()


async def test_a_follower_that_conflates_is_told_of_the_end(log: Streams) -> None:
    """What is held is given before the end of a stream that is closed."""
    missed = await _missed(log, ["a", "a", "b"])
    await append(log, "s", close=True)
    sink = Recorder()
    _follow(log, sink, PER_KEY)
    await until(lambda: sink.finished)
    assert _rows(sink.frames) == missed[1:]
    assert sink.frames[-1] == ("end", 3, "closed", True)
    assert log.statistics().policies == {"conflate": 0}


async def test_what_can_not_be_read_ends_it(log: Streams) -> None:
    """Where retention has overtaken a reader that conflates by key it is cut, as any other: it may have missed a key."""
    await create(log, "s", creation(durability=Durability.MEMORY, retention_bytes=200))
    sink = Recorder(room=0)
    sink.paused = True
    _follow(log, sink, PER_KEY)
    for n in range(40):
        await append(log, "s", b'{"k":%d,"x":"%b"}' % (n, b"x" * 50))
    sink.drain()
    await until(lambda: sink.aborted)
    assert isinstance(sink.aborted, Gone)


Steps = st.lists(st.lists(st.lists(st.sampled_from(["a", "b", "c", None, 1]), min_size=1, max_size=4), max_size=4))


@settings(max_examples=60, deadline=None)
@given(Steps)
def test_conflation_is_exact(steps: list[list[list[str | int | None]]]) -> None:
    """Whatever comes while a reader's buffer is full: when it has room it is given the newest of each key of what it has
    missed, in one frame; and while it keeps up, everything."""

    async def run() -> None:
        log = embedded(None, clock=ManualClock())
        log.start()
        await create(log, "s")
        sink = Recorder()
        _follow(log, sink, PER_KEY)  # and is told that it is at the tail
        sink.room = 1
        rows: Rows = []
        missed: Rows = []
        expected: list[Rows] = []
        keeps_up = True
        for step in steps:
            for keys in step:
                records = _records(keys)
                new = list(enumerate(records, len(rows)))
                rows += new
                await append(log, "s", _array(records))
                if keeps_up:
                    expected.append(new)
                    keeps_up = False
                else:
                    missed += new
            if not keeps_up:
                sink.drain(1)
                if missed:
                    expected.append(_newest(missed))
                keeps_up = not missed
                missed = []
        frames = [_rows([frame]) for frame in sink.frames if isinstance(frame, list)]
        assert frames == expected
        sink.drain()
        assert not set(_newest(rows)) - set(_rows(sink.frames))
        await log.close()

    with pytest.MonkeyPatch.context() as patch:
        patch_constants(patch, PACE=0.0)  # a cohort that rests after a frame that took long has more in the next one
        asyncio.run(run())


# -- sample


async def test_a_sample_is_the_newest_record_of_each_interval(log: Streams) -> None:
    """Nothing comes before the interval is over, whatever is appended; then what is newest, and at the end what is left."""
    missed = await _missed(log, ["a", "b", "c"])
    sink = Recorder()
    _follow(log, sink, Policy("sample", interval_s=NEVER_S))
    await until(lambda: sink.frames)
    for n in range(20):
        await append(log, "s", _array(_records(["d"] * (n + 1))))
    await turns()
    assert _rows(sink.frames) == [missed[2]]
    await append(log, "s", b'"last"', close=True)
    await until(lambda: sink.finished)
    assert _rows(sink.frames)[1:] == [(3 + 210, b'"last"')]
    assert sink.finished == "closed"
    assert log.statistics().skipped == {"sample": 2 + 210}


async def test_a_sample_per_key_is_one_frame(log: Streams) -> None:
    """Each interval has one frame, with the newest record of every key that has changed."""
    await _missed(log, [])
    sink = Recorder()
    _follow(log, sink, Policy("sample", "k", interval_s=0.02))
    rows: Rows = []
    while len(sink.frames) < 5:
        records = _records(["a", "b", "a", None])
        rows += enumerate(records, len(rows))
        await append(log, "s", _array(records))
        await asyncio.sleep(0.001)
    await append(log, "s", close=True)
    await until(lambda: sink.finished)
    start = 0
    for frame in [frame for frame in sink.frames if isinstance(frame, list)]:
        given_ = _rows([frame])
        end = given_[-1][0] + 1
        assert given_ == _newest(rows[start:end])
        start = end
    assert start == len(rows)


async def test_a_sample_up_to_somewhere_ends_there(log: Streams) -> None:
    """It does not wait for an interval of which nothing comes."""
    missed = await _missed(log, ["a", "b", "c"])
    sink = Recorder()
    _follow(log, sink, Policy("sample", "k", interval_s=NEVER_S), until=2)
    await _end(sink)
    assert _rows(sink.frames) == missed[:2]
    assert sink.finished == "complete"


async def test_one_that_samples_is_kept_alive(log: Streams) -> None:
    """It is in no cohort, and hears of the silence all the same."""
    quick = embedded(None, limits=Limits(heartbeat_s=0.001))
    quick.start()
    try:
        await create(quick, "s")
        sink = Recorder()
        reader = _follow(quick, sink, Policy("sample", interval_s=NEVER_S))
        await until(lambda: sink.frames.count("heartbeat") >= 3)
        reader.stop()
        held = len(sink.frames)
        await asyncio.sleep(0.01)
        assert len(sink.frames) == held
        assert not quick.find("s").is_read
    finally:
        await quick.close()


async def test_one_that_samples_is_told_where_to_resume(log: Streams) -> None:
    """When the log is closed it stands after the last record that it was given."""
    await _missed(log, ["a", "a"])
    sink = Recorder()
    reader = _follow(log, sink, Policy("sample", interval_s=NEVER_S))
    await until(lambda: _rows(sink.frames))
    await append(log, "s", b"7")
    reader.finish("drain")
    assert sink.frames[-1] == ("end", 2, "drain", False)


# -- disconnect


async def test_one_that_lags_is_ended(log: Streams) -> None:
    """Once it has kept up, and does not take what comes, it is ended when it is more than so many records behind."""
    await _missed(log, ["a"])
    ended: list[str] = []
    sink = Recorder(room=2)
    _follow(log, sink, Policy("disconnect", lag=3), ended=lambda: ended.append("now"))
    await until(lambda: _rows(sink.frames))
    await append(log, "s", b"[1,2]")
    assert sink.paused
    await append(log, "s", b"[3,4,5]")
    assert not ended
    await append(log, "s", b"6")
    assert sink.frames[-1] == ("end", 3, "lagged", False)
    assert sink.finished == "lagged"
    assert ended == ["now"]
    assert log.statistics().lagged == 1
    assert log.statistics().policies == {"disconnect": 0}
    assert not log.find("s").is_read


async def test_one_that_begins_far_behind_may_catch_up(log: Streams) -> None:
    """A reader that resumes is not ended for where it resumes from, or it would never get anywhere."""
    missed = await _missed(log, ["a"] * 20)
    sink = Recorder(room=0)
    sink.paused = True
    _follow(log, sink, Policy("disconnect", lag=3))
    await append(log, "s", b"[1,2]")
    sink.drain()
    await until(lambda: len(_rows(sink.frames)) == 22)
    assert _rows(sink.frames)[:20] == missed
    await append(log, "s", b"[1,2,3,4,5,6]")
    assert not sink.finished, "it takes what comes"


async def test_the_default_is_in_a_cohort_with_those_who_keep_up(log: Streams) -> None:
    """Followers that conflate or would be disconnected share the frames of all others while they keep up."""
    await create(log, "s")
    encoding = Plainly()
    sinks = [Recorder() for _ in range(3)]
    for sink, policy in zip(sinks, (None, PER_KEY, Policy("disconnect", lag=1)), strict=True):
        log.follow(log.find("s"), 0, encoding, sink, "test", policy=policy)
    await append(log, "s", b"[1,2,3]")
    assert encoding.encoded == 1
    frames = [[frame for frame in sink.frames if isinstance(frame, list)] for sink in sinks]
    assert frames[0] == frames[1] == frames[2]
    assert isinstance(frames[0][0][0], Batch)


@pytest.mark.parametrize("policy", [NEWEST, PER_KEY, Policy("sample", "k", interval_s=NEVER_S)])
async def test_the_last_frame_ends_where_to_read_on(log: Streams, policy: Policy) -> None:
    """Also where the newest records have expired: who is told where it stands is told that it is at the tail."""
    await create(log, "s")
    await publish(log, "s", b'{"k":1}')
    await publish(log, "s", b'{"k":2}', meta=Meta(expires_ms=1))
    sink = Recorder()
    _follow(log, sink, policy)
    await turns()
    (frame,) = [frame for frame in sink.frames if isinstance(frame, list)]
    assert _rows([frame]) == [(0, b'{"k":1}')]
    assert frame[-1].end == log.find("s").tail == 2


async def test_who_waits_for_the_disk_is_not_slow(disk: Disk) -> None:
    """A follower that takes what it is given stays, however much the hub has yet to read for it."""
    log = disk.log
    await create(log, "s", creation(BYTES))
    sink = Recorder()
    _follow(log, sink, Policy("disconnect", lag=1))
    await turns()
    pieces = 3 * log.limits.piece_bytes_max
    added = begin_append(log, "s", spool(b"x" * pieces))
    await added.wait()
    await append(log, "s", b"y")
    await until(lambda: sum(len(record) for _, record in _rows(sink.frames)) > pieces)
    assert sink.finished is None


async def test_the_newest_before_an_end_is_not_one_behind_it(log: Streams) -> None:
    """A read up to a position, whose last record has expired, is given the newest before it."""
    await create(log, "s")
    await publish(log, "s", b"1")
    await publish(log, "s", b"2", meta=Meta(expires_ms=1))
    await publish(log, "s", b"3")
    sink = Recorder()
    _follow(log, sink, NEWEST, until=2)
    await _end(sink)
    assert _rows(sink.frames) == [(0, b"1")]
