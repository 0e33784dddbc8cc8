"""Commands about streams: publish, tail, streams, create, close, delete, info, presence."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import takewhile
from typing import Any

import click
import msgspec

from wayside.cli.common import fail, hub_command
from wayside.cli.rest import HubError, RestClient
from wayside.core.errors import Refusal
from wayside.core.policies import KINDS
from wayside.core.records import JSON, Durability, Offset, media_type

BATCH_MAX = 500
"""Lines of standard input that go into one append of a JSON stream."""


@click.command(short_help="Append records.")
@click.argument("stream")
@click.argument("records", nargs=-1)
@click.option(
    "--content-type",
    help="Of the stream, if it is to be created. [default: JSON if the first record is an object or an array, else text]",
)
@click.option(
    "--durability", type=click.Choice([d.value for d in Durability]), help="Of the stream, if it is to be created."
)
@click.option(
    "--retry",
    "retry_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to keep trying when the hub goes away in between; nothing is appended twice.",
)
@click.option(
    "--id", "identity", default="", help="Message id of the one record: published again soon, it is not appended."
)
@click.option("--key", default="", help="Of the records, for readers that keep records of one key in order.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Of the records; as often as need be.")
@click.option(
    "--ttl", type=click.FloatRange(min=0), default=0.0, help="Seconds for which readers are given the records."
)
@click.option("--delay", type=click.FloatRange(min=0), default=0.0, help="Seconds until they are appended.")
@click.option("--quiet", "-q", is_flag=True, help="Do not print the last offset.")
@hub_command
def publish(
    client: RestClient,
    stream: str,
    records: tuple[str, ...],
    content_type: str | None,
    durability: str | None,
    retry_s: float,
    identity: str,
    key: str,
    headers: tuple[str, ...],
    ttl: float,
    delay: float,
    quiet: bool,
) -> None:
    """Append RECORDS to STREAM, or each line of standard input that is not empty. Prints the offset after the last.

    A stream that does not exist is created. Lines of a JSON stream that come together are appended together; each
    line of another stream is an append of its own. With --delay it prints when the last is due.

    \b
    wayside publish orders '{"id": 1}' '{"id": 2}'
    wayside publish orders '{"id": 3}' --id order-3 --key eu --header trace:7f --delay 60
    tail -F /var/log/syslog | wayside publish logs/syslog
    """
    source = iter([[record.encode()] for record in records]) if records else _lines()
    first = next(source, None)
    if first is None:
        return
    kind = _ensure(client, stream, first[0], content_type, durability)
    if identity and len(records) != 1:
        fail("--id is the message id of one record: give one RECORD.")
    publisher = client.publisher(
        stream, kind, retry_s=retry_s, id=identity, key=key, headers=_headers(headers), ttl=ttl, delay=delay
    )
    offset = ""
    sent = 0
    for batch in _chain(first, source):
        good = batch
        if media_type(kind) == JSON:
            batch = [record for record in batch if records or record.strip()]
            good = list(takewhile(_is_json, batch))
        for part in ([good] if good else []) if publisher.batches else [[record] for record in good]:
            offset = publisher.send(part)
            sent += len(part)
        if len(good) < len(batch):
            bad = batch[len(good)][:200].decode(errors="replace")
            fail(
                f"{stream} is a JSON stream, and record {sent + 1} is not JSON: {bad}\n"
                f"The {sent} before it were appended{f', up to {offset}' if sent else ''}; nothing after it was."
            )
    if publisher.duplicates:
        click.echo("wayside: it had been published before", err=True)
    if not quiet:
        click.echo(offset)


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    result: dict[str, str] = {}
    for text in given:
        name, found, value = text.partition(":")
        if not found or not name:
            fail(f"--header is NAME:VALUE, not {text}.")
        result[name] = value.strip()
    return result


def _ensure(client: RestClient, stream: str, first: bytes, content_type: str | None, durability: str | None) -> str:
    """The stream's content type; it is created if need be."""
    try:
        found = client.info(stream)
    except HubError as error:
        if error.status != 404:
            raise
    else:
        kind, have = found["Content-Type"], found["Stream-Durability"]
        if content_type and media_type(content_type) != media_type(kind):
            fail(f"{stream} exists, and is {kind}, not {content_type}.")
        if durability and durability != have:
            fail(f"{stream} exists, and its durability is {have}, not {durability}.")
        return kind
    kind = content_type or (JSON if first[:1] in (b"{", b"[") and _is_json(first) else "text/plain; charset=utf-8")
    headers = {"Content-Type": kind}
    if durability:
        headers["Stream-Durability"] = durability
    client.create(stream, headers)
    click.echo(f"wayside: created {stream} ({kind})", err=True)
    return kind


def _is_json(record: bytes) -> bool:
    try:
        record.decode()
        msgspec.json.decode(record, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _chain(first: list[bytes], rest: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
    yield first
    yield from rest


def _lines() -> Iterator[list[bytes]]:
    """Lines of standard input: all that are there at once are a batch."""
    stdin = sys.stdin.buffer
    raw = stdin.raw if hasattr(stdin, "raw") else stdin
    held = b""
    while data := raw.read(65536):
        *lines, held = (held + data).split(b"\n")
        batch = [line for line in (line.removesuffix(b"\r") for line in lines) if line]
        for start in range(0, len(batch), BATCH_MAX):
            yield batch[start : start + BATCH_MAX]
    if held.removesuffix(b"\r"):
        yield [held.removesuffix(b"\r")]


def _offset(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if value in ("start", "now"):
        return {"start": "-1"}.get(value, value)
    try:
        return value if value == "-1" else str(Offset.parse(value))
    except Refusal as refusal:
        raise click.BadParameter(f"{value!r} is neither start, nor now, nor an offset that a hub gave.") from refusal


@click.command(short_help="Follow a stream.")
@click.argument("stream")
@click.option(
    "--via",
    type=click.Choice(["poll", "long-poll", "sse", "push"]),
    default="sse",
    show_default=True,
    help="The pattern to hear of records by.",
)
@click.option("--from", "start", default="now", show_default=True, callback=_offset, help="start, now, or an offset.")
@click.option(
    "--offsets", is_flag=True, help="Print before each record an offset from which nothing after it is missed."
)
@click.option("--count", "-n", type=click.IntRange(min=1), help="End after so many records.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Seconds between polls, or between two samples.",
)
@click.option(
    "--policy",
    type=click.Choice(KINDS),
    default="catch-up",
    show_default=True,
    help="What to print when records come faster than they are read: all, later; the newest per --key; one per --interval; "
    "or end when --lag records behind.",
)
@click.option("--key", help="Field of JSON records, such as symbol, or order.customer.")
@click.option("--lag", type=click.IntRange(min=1), help="Records to be behind at most.  [default: 1000]")
@click.option("--member", help="Who reads: present for `wayside presence`.")
@click.option(
    "--retry",
    "retry_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to keep trying when the hub goes away in between.",
)
@hub_command
def tail(
    client: RestClient,
    stream: str,
    via: str,
    start: str,
    offsets: bool,
    count: int | None,
    interval_s: float,
    policy: str,
    key: str | None,
    lag: int | None,
    member: str | None,
    retry_s: float,
) -> None:
    """Print the records of STREAM as they come, until it is closed. Reconnects, and resumes where it was. A glob follows
    every stream that it matches, and prints each record with the name of its stream.

    By sse and push each record is a line of its own. What polls get of a stream that is not JSON comes as one.

    \b
    wayside tail demo/machine --via push
    wayside tail orders --from start --offsets
    wayside tail 'orders/**'
    wayside tail prices --from start --policy conflate --key symbol
    """
    interval = interval_s if policy == "sample" else None
    named = {"policy": policy, "key": key, "interval": interval, "lag": lag, "member": member}
    parameters = {name: str(value) for name, value in named.items() if value is not None}
    found = client.info(stream)
    at = found["Stream-Next-Offset"] if start == "now" else start  # a reconnection must not skip what came meanwhile
    kind = media_type(found["Content-Type"])
    newline = b"\n" if kind == JSON or kind.startswith("text/") else b""
    out = sys.stdout.buffer
    seen = 0

    def on_retry(error: Exception) -> None:
        click.echo(f"wayside: {error}; trying again", err=True)

    try:
        records = client.follow(
            stream,
            via,
            at,
            is_json=kind == JSON,
            interval_s=interval_s,
            retry_s=retry_s,
            on_retry=on_retry,
            parameters=parameters,
        )
        for at, data in records:
            out.write(f"{at} ".encode() + data + newline if offsets else data + newline)
            out.flush()
            seen += 1
            if count is not None and seen >= count:
                return
    except KeyboardInterrupt:
        click.echo(f"wayside: resume with --from {at}", err=True)
        sys.exit(130)


@click.command(short_help="Tell who follows a stream.")
@click.argument("stream")
@click.option("--follow", "-f", is_flag=True, help="Then print joins and leaves as they come.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@hub_command
def presence(client: RestClient, stream: str, follow: bool, as_json: bool) -> None:
    """Print who is present at STREAM: members that have named themselves, by any way of reading."""
    present = client.presence(stream)
    for member in present["members"]:
        if as_json:
            click.echo(msgspec.json.encode(member).decode())
        else:
            since = datetime.fromtimestamp(member["since_ms"] / 1000).isoformat(" ", "seconds")
            click.echo(f"{member['member']}  since {since}, {', '.join(member['ways'])}")
    if not follow:
        return
    with contextlib.suppress(KeyboardInterrupt):
        for _, data in client.follow(stream, "sse", present["offset"], retry_s=60.0, presence=True):
            event = msgspec.json.decode(data)
            click.echo(data.decode() if as_json else f"{event['event']} {event['member']}")


@click.command(short_help="List streams.")
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@hub_command
def streams(client: RestClient, prefix: str, as_json: bool) -> None:
    """List the streams whose path begins with PREFIX."""
    stream = None
    for stream in client.streams(prefix):
        if as_json:
            click.echo(msgspec.json.encode(stream).decode())
        else:
            closed = " closed" if stream["closed"] else ""
            click.echo(
                f"{stream['path']}  {stream['records']} records, {stream['bytes']} bytes, "
                f"{stream['content_type']}, {stream['durability']}{closed}"
            )
    if stream is None:
        click.echo(f"wayside: there is no stream{f' whose path begins with {prefix}' if prefix else ''}", err=True)


@click.command(short_help="Create a stream.")
@click.argument("stream")
@click.option("--content-type", default=JSON, show_default=True)
@click.option(
    "--durability",
    type=click.Choice([d.value for d in Durability]),
    default="fsync",
    show_default=True,
    help="When an append is acknowledged.",
)
@click.option("--ttl", type=click.IntRange(min=0), help="Seconds without a read or write until it expires.")
@click.option("--expires-at", help="Time of expiry, such as 2030-01-31T12:00:00Z.")
@click.option("--retention-bytes", type=click.IntRange(min=1), help="Bytes to keep at least.")
@click.option("--retention-age", type=click.IntRange(min=1), help="Seconds to keep records at least.")
@click.option("--fork-of", help="Stream to fork.")
@click.option("--fork-at", help="Offset to fork it at. [default: its tail]")
@hub_command
def create(client: RestClient, stream: str, **options: Any) -> None:
    """Create STREAM, or confirm that it is as asked for.

    \b
    wayside create orders --retention-age 86400
    wayside create presence --durability memory
    """
    names = {
        "content_type": "Content-Type",
        "durability": "Stream-Durability",
        "ttl": "Stream-TTL",
        "expires_at": "Stream-Expires-At",
        "retention_bytes": "Stream-Retention-Bytes",
        "retention_age": "Stream-Retention-Age",
        "fork_at": "Stream-Fork-Offset",
    }
    headers = {names[name]: str(value) for name, value in options.items() if value is not None and name in names}
    if options["fork_of"]:
        headers = {name: value for name, value in headers.items() if name not in ("Content-Type", "Stream-Durability")}
        headers["Stream-Forked-From"] = client.path(options["fork_of"])
    answer = client.create(stream, headers)
    click.echo(f"{'created' if answer.status == 201 else 'exists'} {stream} at {answer.headers['Stream-Next-Offset']}")


@click.command(short_help="Close a stream.")
@click.argument("stream")
@hub_command
def close(client: RestClient, stream: str) -> None:
    """Close STREAM: nothing can be appended any more, and readers end when they have read all."""
    click.echo(f"closed {stream} at {client.close_stream(stream)}")


@click.command(short_help="Delete a stream.")
@click.argument("stream")
@hub_command
def delete(client: RestClient, stream: str) -> None:
    """Delete STREAM and its records."""
    client.delete(stream)
    click.echo(f"deleted {stream}")


@click.command(short_help="Tell what a stream is.")
@click.argument("stream")
@hub_command
def info(client: RestClient, stream: str) -> None:
    """Print what STREAM is: content type, durability, offsets, expiry, retention."""
    for name, value in client.info(stream).items():
        click.echo(f"{name}: {value}")


COMMANDS = (publish, tail, presence, streams, create, info, close, delete)
