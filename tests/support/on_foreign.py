"""Which tests of the hub run a second time on an engine as unlike the embedded one as can be, and which cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import wayside.hub
from tests.support.foreign import ForeignEngine
from wayside.core.clock import Clock

__all__ = ["choose", "use_foreign"]

MODULES = frozenset(
    [
        "test_calls",
        "test_calls_async",
        "test_calls_reading",
        "test_delivery",
        "test_drain",
        "test_globs",
        "test_group_webhooks",
        "test_groups",
        "test_long_polling",
        "test_members",
        "test_policies",
        "test_polling",
        "test_presence",
        "test_publishing_meta",
        "test_push",
        "test_sse",
        "test_streams",
        "test_subscribing",
        "test_uploads",
    ]
)
"""Of tests/http."""
NOT_THERE: dict[str, frozenset[str]] = {
    "stands before the disk of the embedded engine": frozenset(
        [
            "test_a_commit_that_takes_long_is_no_stall",
            "test_a_cut_is_waited_for",
            "test_a_lease_that_is_being_committed_when_the_wait_ends_is_answered",
            "test_a_transaction_whose_answer_was_lost_is_not_known",
            "test_an_ack_whose_answer_was_lost_is_said_again",
            "test_an_append_that_waits_for_the_disk_is_acknowledged",
            "test_reading_rests_while_the_disk_is_behind",
            "test_requests_with_one_key_wait_for_one_commit",
            "test_what_was_leased_to_who_has_gone_goes_back",
        ]
    ),
    "needs a transaction over several streams, which is refused": frozenset(
        [
            "test_a_delay_over_http",
            "test_a_nack_a_release_and_a_rejection_are_told_apart",
            "test_a_program_says_the_same",
            "test_a_refused_transaction_leaves_the_record_held",
            "test_an_ack_and_what_is_published_with_it_are_one",
            "test_an_ack_and_what_it_publishes_are_one",
            "test_dead_records_are_listed_and_redriven",
            "test_records_for_several_streams",
            "test_records_of_one_publisher_stay_in_order",
            "test_the_last_failure_is_a_dead_letter",
            "test_threads_have_the_same_names",
            "test_what_is_malformed_is_refused",
        ]
    ),
    "needs retention, which is refused": frozenset(
        ["test_an_offset_that_is_not_kept_says_the_earliest", "test_a_reader_that_was_overtaken_by_retention_is_cut"]
    ),
    "appends more at a time than that engine takes, which is refused": frozenset(
        [
            "test_a_long_answer_is_finished",
            "test_what_takes_longer_than_the_drain_is_cut",
            "test_the_python_client_is_told_that_it_lagged",
        ]
    ),
    "counts positions, streams or frames, which are others there": frozenset(
        [
            "test_a_cursor_says_where_to_begin",
            "test_a_failure_comes_again_with_its_identity",
            "test_a_push_that_lags_is_closed_with_where_to_resume",
            "test_a_reader_that_lags_is_ended_with_where_to_resume",
            "test_a_reader_that_never_reads_costs_nobody_anything",
            "test_a_request_whose_body_is_on_its_way_is_finished",
            "test_a_slow_reader_that_conflates_is_given_the_newest_of_each_key",
            "test_acks_of_one_turn_go_out_as_one_run",
            "test_an_etag_is_of_one_cursor",
            "test_an_upload_that_nobody_touches_expires",
            "test_credit_over_a_websocket_is_spent_on_what_is_sent",
            "test_events_by_the_protocol_s_events",
            "test_late_duplicate_and_foreign_acks_are_answered",
            "test_offsets_sort_as_text",
            "test_protocol_event_streams_end_after_their_last_control",
            "test_readers_of_every_pace_get_every_record_once",
            "test_records_come_as_what_they_are",
            "test_the_last_event_id_is_a_cursor_too",
            "test_the_list_says_what_each_stream_is",
            "test_urgent_calls_start_first",
        ]
    ),
}
"""Tests of those modules that run on the embedded engine only, by the reason. The rest of the hub works on any engine."""
LOST = 0.02
"""Of the engine's answers."""


def choose(metafunc: pytest.Metafunc) -> None:
    """Run a test on the engine that it chooses itself, and on the foreign one, unless there is a reason not to."""
    name = metafunc.function.__name__
    there = metafunc.module.__name__.rpartition(".")[2] in MODULES
    if there and not any(name in names for names in NOT_THERE.values()):
        metafunc.parametrize("engine", ["own", "foreign"], indirect=True)


def use_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have hubs keep their streams in foreign engines: one for each directory, and one for each hub without."""
    kept: dict[str, ForeignEngine] = {}

    def at(place: str, _vfs: str, _clock: Clock) -> Any:
        Path(place).mkdir(parents=True, exist_ok=True)  # bodies are spooled there
        return kept.setdefault(place, ForeignEngine(seed=len(kept), lost=LOST))

    monkeypatch.setitem(wayside.hub.ENGINES, "file", at)
    monkeypatch.setitem(wayside.hub.ENGINES, "memory", lambda _place, _vfs, _clock: ForeignEngine(lost=LOST))
