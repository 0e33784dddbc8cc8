"""The ``wayside`` command.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no hub reachable.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from wayside.client.blocking import Client, HubError, Unreachable
from wayside.errors import Refusal
from wayside.hub import Hub, package_version
from wayside.log.check import check as check_store
from wayside.model import JSON, Durability, Offset, media_type
from wayside.serving import configure_logs, keep_memory, raise_file_limit
from wayside.serving import serve as serve_hub
from wayside.settings import is_loopback, limit_options, limits_of, read_config

BATCH_MAX = 500
"""Lines of standard input that go into one append of a JSON stream."""


def main() -> None:
    """Entry point."""
    cli(prog_name="wayside")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_version(), prog_name="wayside")
def cli() -> None:
    """Durable streams, read by polling, long polling, server-sent events or push.

    \b
    wayside serve                                    start a hub on http://127.0.0.1:7070
    wayside publish orders '{"id": 1}'               append a record
    tail -F /var/log/syslog | wayside publish logs   append every line
    wayside tail orders --via sse --from start       follow
    """


def _fail(text: str, status: int = 1) -> None:
    click.echo(f"wayside: {text}", err=True)
    sys.exit(status)


# -- serving


@cli.command(short_help="Start a hub.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    callback=read_config,
    is_eager=True,
    envvar="WAYSIDE_CONFIG",
    help="TOML file with any of these options.",
)
@click.option("--host", default="127.0.0.1", show_default=True, envvar="WAYSIDE_HOST", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7070,
    show_default=True,
    envvar="WAYSIDE_PORT",
    help="Port; 0 takes any free one.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("wayside-data"),
    show_default=True,
    envvar="WAYSIDE_DATA",
    help="Directory of the store.",
)
@click.option("--memory", is_flag=True, envvar="WAYSIDE_MEMORY", help="Keep everything in memory, nothing on disk.")
@click.option(
    "--demo", "with_demo", is_flag=True, envvar="WAYSIDE_DEMO", help="Publish figures of this machine on demo/machine."
)
@click.option(
    "--allow-anonymous",
    is_flag=True,
    envvar="WAYSIDE_ALLOW_ANONYMOUS",
    help="Listen beyond this machine, although there is no authentication yet.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="WAYSIDE_LOG_LEVEL",
)
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    envvar="WAYSIDE_LOG_FORMAT",
)
@limit_options
def serve(
    config: Path | None,
    host: str,
    port: int,
    data: Path,
    memory: bool,
    with_demo: bool,
    allow_anonymous: bool,
    log_level: str,
    log_format: str,
    **values: Any,
) -> None:
    """Start a hub; it prints `listening on http://HOST:PORT` when it is ready.

    SIGTERM and Ctrl-C drain: readers are told where to resume, requests under way are answered. A second
    signal ends it at once. Every option can be set in the environment (WAYSIDE_PORT=8080) and in a TOML file
    (port = 8080).

    \b
    wayside serve --data /var/lib/wayside
    wayside serve --memory --port 0
    WAYSIDE_LOG_FORMAT=json wayside serve --config wayside.toml
    """
    limits = limits_of(values)
    source = click.get_current_context().get_parameter_source("data")
    if memory and source is not click.core.ParameterSource.DEFAULT:
        _fail(f"--memory keeps nothing in {data}: give --memory or --data, not both.", 2)
    if not is_loopback(host) and not allow_anonymous:
        _fail(
            f"{host} can be reached from other machines, and this version has no authentication: anybody could read and "
            "write every stream. Use --host 127.0.0.1, or say --allow-anonymous if that is what you want.",
            2,
        )
    configure_logs(log_level, log_format)
    raise_file_limit(limits.connections_max + 256)
    keep_memory()
    try:
        hub = Hub("memory:" if memory else f"file:{data}", limits=limits)
    except Refusal as refusal:
        _fail(refusal.detail)
        return
    sys.exit(uvloop.run(serve_hub(hub, host, port, with_demo)))


# -- talking to a hub

F = Callable[..., Any]


def hub_command(function: F) -> F:
    """A command that talks to a hub: ``--hub``, and errors as sentences."""

    @click.option(
        "--hub", "url", default="http://127.0.0.1:7070", show_default=True, envvar="WAYSIDE_HUB", help="URL of the hub."
    )
    @wraps(function)
    def command(url: str, **values: Any) -> None:
        try:
            function(Client(url), **values)
        except HubError as error:
            _fail(error.detail)
        except Unreachable as error:
            _fail(f"no answer from a hub at {error}. Is it running? Start one with `wayside serve`.", 3)
        except ValueError as error:
            _fail(str(error), 2)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(0)

    return command


@cli.command(short_help="Append records.")
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
@click.option("--quiet", "-q", is_flag=True, help="Do not print the last offset.")
@hub_command
def publish(
    client: Client,
    stream: str,
    records: tuple[str, ...],
    content_type: str | None,
    durability: str | None,
    retry_s: float,
    quiet: bool,
) -> None:
    """Append RECORDS to STREAM, or each line of standard input that is not empty. Prints the offset after the last.

    A stream that does not exist is created. Lines of a JSON stream that come together are appended together; each
    line of another stream is an append of its own.

    \b
    wayside publish orders '{"id": 1}' '{"id": 2}'
    tail -F /var/log/syslog | wayside publish logs/syslog
    """
    source = iter([[record.encode()] for record in records]) if records else _lines()
    first = next(source, None)
    if first is None:
        return
    kind = _ensure(client, stream, first[0], content_type, durability)
    publisher = client.publisher(stream, kind, retry_s=retry_s)
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
            _fail(
                f"{stream} is a JSON stream, and record {sent + 1} is not JSON: {bad}\n"
                f"The {sent} before it were appended{f', up to {offset}' if sent else ''}; nothing after it was."
            )
    if not quiet:
        click.echo(offset)


def _ensure(client: Client, stream: str, first: bytes, content_type: str | None, durability: str | None) -> str:
    """The stream's content type; it is created if need be."""
    try:
        found = client.info(stream)
    except HubError as error:
        if error.status != 404:
            raise
    else:
        kind, have = found["Content-Type"], found["Stream-Durability"]
        if content_type and media_type(content_type) != media_type(kind):
            _fail(f"{stream} exists, and is {kind}, not {content_type}.")
        if durability and durability != have:
            _fail(f"{stream} exists, and its durability is {have}, not {durability}.")
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


@cli.command(short_help="Follow a stream.")
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
    help="Seconds between polls.",
)
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
    client: Client,
    stream: str,
    via: str,
    start: str,
    offsets: bool,
    count: int | None,
    interval_s: float,
    retry_s: float,
) -> None:
    """Print the records of STREAM as they come, until it is closed. Reconnects, and resumes where it was.

    By sse and push each record is a line of its own. What polls get of a stream that is not JSON comes as one.

    \b
    wayside tail demo/machine --via push
    wayside tail orders --from start --offsets
    """
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
            stream, via, at, is_json=kind == JSON, interval_s=interval_s, retry_s=retry_s, on_retry=on_retry
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


@cli.command(short_help="List streams.")
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@hub_command
def streams(client: Client, prefix: str, as_json: bool) -> None:
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


@cli.command(short_help="Create a stream.")
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
def create(client: Client, stream: str, **options: Any) -> None:
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


@cli.command(short_help="Close a stream.")
@click.argument("stream")
@hub_command
def close(client: Client, stream: str) -> None:
    """Close STREAM: nothing can be appended any more, and readers end when they have read all."""
    click.echo(f"closed {stream} at {client.close_stream(stream)}")


@cli.command(short_help="Delete a stream.")
@click.argument("stream")
@hub_command
def delete(client: Client, stream: str) -> None:
    """Delete STREAM and its records."""
    client.delete(stream)
    click.echo(f"deleted {stream}")


@cli.command(short_help="Tell what a stream is.")
@click.argument("stream")
@hub_command
def info(client: Client, stream: str) -> None:
    """Print what STREAM is: content type, durability, offsets, expiry, retention."""
    for name, value in client.info(stream).items():
        click.echo(f"{name}: {value}")


@cli.command(short_help="Verify a store on disk.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def check(directory: Path) -> None:
    """Read every page and every record of the store in DIRECTORY, and change nothing. No hub may be using it."""
    try:
        report = check_store(directory)
    except Refusal as refusal:
        _fail(refusal.detail)
        return
    click.echo(str(report))
    sys.exit(0 if report.ok else 1)


for _command in cli.commands.values():
    for _option in _command.params:
        if isinstance(_option, click.Option):
            _option.show_envvar = True
