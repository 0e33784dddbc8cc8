"""Every bound of one hub that can be chosen, together, with the reason for each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of one hub that can be chosen, together. Bytes, seconds and counts as the names say."""

    header_bytes_max: int = 32 * 1024
    """A request head. Nginx takes 32 KiB (4 x 8k), Node 16 KiB."""
    body_bytes_max: int = 64 * 1024 * 1024
    """A request body. It is one transaction: larger ones would make other publishers wait."""
    body_memory_bytes_max: int = 1024 * 1024
    """A larger body is spooled to disk while it arrives."""
    json_body_bytes_max: int = 16 * 1024 * 1024
    """A JSON body is parsed whole, in memory."""
    append_records_max: int = 65_536
    """Records of one append: cutting and encoding more would hold up everybody else."""
    piece_bytes_max: int = 256 * 1024
    """A spooled body becomes records of this size, committed together."""
    read_bytes_max: int = 256 * 1024
    """What a follower reads, encodes and writes in one step: the unit of fairness and of memory."""
    read_records_max: int = 4096
    """The same, in records: small ones cost their number and not their bytes."""
    write_buffer_bytes_max: int = 64 * 1024
    """High-water mark of a connection's write buffer; above it a follower leaves its cohort."""
    uncommitted_bytes_max: int = 256 * 1024 * 1024
    """Appends waiting for the disk; more are refused with 503 until some are committed."""
    cache_bytes_max: int = 256 * 1024 * 1024
    """Recent records held in memory of streams on disk, over all of them."""
    stream_cache_bytes_max: int = 1024 * 1024
    """The same, for one stream."""
    memory_bytes_max: int = 1024 * 1024 * 1024
    """Records of streams in memory, over all of them; appends to them are refused with 507 beyond."""
    retention_bytes: int = 4 * 1024 * 1024 * 1024
    """Default bound of a stream on disk."""
    retention_bytes_memory: int = 64 * 1024 * 1024
    """Default bound of a stream in memory, what its records take beside their bytes included."""
    streams_max: int = 1_000_000
    path_bytes_max: int = 1024
    producers_max: int = 10_000
    """Idempotent producers remembered for one stream; the longest silent are forgotten first."""
    dedupe_window_s: float = 120.0
    """For so long a message id is remembered: JetStream's default."""
    dedupe_ids_max: int = 100_000
    """Message ids remembered for one stream; the oldest are forgotten first."""
    delayed_max: int = 100_000
    """Records that wait for their time; each takes about 300 bytes of memory."""
    meta_bytes_max: int = 8 * 1024
    """Headers, id and key of one record together."""
    connections_max: int = 20_000
    header_timeout_s: float = 10.0
    """From the first byte of a request to the end of its head; and between two reads of its body."""
    idle_timeout_s: float = 75.0
    """A kept-alive connection without a request."""
    wait_s_max: float = 60.0
    """The longest long poll."""
    long_poll_s: float = 20.0
    """A long poll that names no time."""
    sse_s: float = 60.0
    """Length of a ``live=sse`` response (Durable Streams section 10.2: about 60 s, for collapsing CDNs)."""
    heartbeat_s: float = 15.0
    """Silence after which a follower gets a comment, so that proxies keep the connection."""
    drain_s: float = 10.0
    """What a shutdown waits for requests under way."""
    lease_s: float = 15.0
    """A worker that is not heard of for so long has lost what it held. It is heard of three times in that time."""
    worker_calls_max: int = 128
    """Calls that the hub's own process runs at one time."""
    call_keep_s: float = 86_400.0
    """Calls that have ended are kept for so long at least."""
    call_linger_s: float = 60.0
    """The same, of calls in memory."""
    conflated_keys_max: int = 10_000
    """Keys of which a follower that conflates holds the newest record; what is beyond is conflated by itself."""
    conflated_bytes_max: int = 2 * 1024 * 1024
    """The same, in bytes of memory."""
    presence_lease_s: float = 30.0
    """For so long a member is present after its last request, or the end of its last connection."""
    presence_members_max: int = 10_000
    """Members that are present at one stream; over all streams ten times as many."""
    group_history_bytes: int = 16 * 1024 * 1024
    """Events of one group that are kept at least: receipts are made of them."""
    channels_max: int = 10_000
    """Channels of one connection to /v1/connect."""
