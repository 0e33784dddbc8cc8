"""Commands about services: call, calls, services."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import click
import msgspec

from wayside.calls.call import CallState
from wayside.cli.common import connected_command, fail, write
from wayside.client.client import CallHandle, Client, Via
from wayside.client.values import CallEvent, CallStatus
from wayside.core.codecs import Payload
from wayside.core.records import JSON, media_type
from wayside.core.signature import pack_arguments
from wayside.link.frames import ResponseFrame

KEYWORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.ASCII | re.DOTALL)
LIST_MAX = 1000

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.command(short_help="Call a service.")
@click.argument("service")
@click.argument("arguments", nargs=-1)
@click.option(
    "--raw-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    help="File whose bytes are the first argument; - is standard input.",
)
@click.option(
    "--content-type", help="Of those bytes, if they are the only argument. [default: application/octet-stream]"
)
@click.option("--key", help="Idempotency key: with the same one the service is called once, however often you ask.")
@click.option("--async", "asynchronous", is_flag=True, help="Print the name of the call, and do not wait.")
@click.option(
    "--wait", "wait_s", type=click.IntRange(0, 60), help="The same, but wait so many seconds for the result first."
)
@click.option("--follow", is_flag=True, help="Print each item as it comes, as is done for a service that yields.")
@click.option("--progress", is_flag=True, help="Print progress to standard error.")
@click.option("--priority", type=click.IntRange(-100, 100), help="Of several that wait the highest is run first.")
@click.option("--delay", "delay_s", type=click.FloatRange(min=0), help="Seconds before it may start.")
@click.option("--callback", help="URL that is told of its end.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), help="Seconds after which to give up.")
@connected_command
async def call(
    client: Client,
    service: str,
    arguments: tuple[str, ...],
    raw_file: Path | None,
    content_type: str | None,
    key: str | None,
    asynchronous: bool,
    wait_s: int | None,
    follow: bool,
    progress: bool,
    priority: int | None,
    delay_s: float | None,
    callback: str | None,
    timeout_s: float | None,
) -> None:
    """Call SERVICE and print its result: JSON as a line, anything else as it is.

    ARGUMENTS are JSON values, or text where they are not JSON; name=value is given by name; - is standard input, as
    bytes. To interrupt it cancels the call, unless it has a --key or was called with --async or --wait.

    \b
    wayside call greet Ada punctuation='"?"'
    wayside call thumbs.make - width=128 < photo.jpg > thumb.jpg
    wayside call reports.build 2024 --async
    """
    payload = _payload(arguments, raw_file, content_type)
    headers = {"Content-Type": payload.content_type} if payload.content_type else {}
    if key is not None:
        headers["Idempotency-Key"] = f'"{key}"'
    given = {"Wayside-Priority": priority, "Wayside-Delay": delay_s, "Wayside-Callback": callback}
    headers |= {name: f"{value}" for name, value in given.items() if value is not None}
    target = f"/v1/service/{quote(service, safe='')}"
    detached = asynchronous or wait_s is not None
    if not detached and not follow:
        described = msgspec.json.decode((await client.request("GET", target)).body)
        follow = bool(described.get("streams"))
    submitted = detached or follow or progress or bool(delay_s) or bool(callback)
    if submitted:
        headers["Prefer"] = "respond-async" + (f", wait={wait_s}" if wait_s else "")
    handle: CallHandle | None = None
    try:
        async with asyncio.timeout(timeout_s):
            answer = await client.request("POST", target, headers, payload.data)
            if detached:
                _print_accepted(client, answer, asynchronous)
                return
            if answer.status == 202:
                handle = client.get(_status(answer).id)
                answer = await _attend(client, handle, follow, progress)
            if answer.status != 204:
                _print_body(answer)
    except (TimeoutError, asyncio.CancelledError) as error:
        if handle is not None and key is None:
            with contextlib.suppress(Exception):
                await handle.cancel()
        elif handle is not None:
            click.echo(f"wayside: the call goes on: wayside calls {handle.id}", err=True)
        if isinstance(error, TimeoutError):
            fail(f"{service} did not answer within {timeout_s:g} s.")
        raise


def _payload(arguments: tuple[str, ...], raw_file: Path | None, content_type: str | None) -> Payload:
    """The arguments as the body of a request. Raises ValueError where they cannot be one."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    if raw_file is not None:
        positional.append(sys.stdin.buffer.read() if str(raw_file) == "-" else raw_file.read_bytes())
    for argument in arguments:
        if match := KEYWORD.fullmatch(argument):
            keywords[match[1]] = _value(match[2])
        elif keywords:
            raise ValueError(f"{argument!r} comes after arguments with names: give it before them.")
        else:
            positional.append(_value(argument))
    alone = positional[0] if len(positional) == 1 and not keywords else None
    if content_type is not None:
        if not isinstance(alone, bytes):
            raise ValueError("--content-type is for one argument that is bytes: -, or --raw-file.")
        return Payload(alone, content_type)
    if alone is not None and not isinstance(alone, bytes):
        return Payload(msgspec.json.encode(alone), JSON)  # as others would send it, who share an idempotency key
    return pack_arguments(tuple(positional), keywords)


def _value(text: str) -> Any:
    if text == "-":
        return sys.stdin.buffer.read()
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return text


async def _attend(client: Client, handle: CallHandle, follow: bool, progress: bool) -> ResponseFrame:
    """Follow a call to its end. Returns its result; where it has yielded, an answer without a body."""
    yielded = False
    if follow or progress:
        async with contextlib.aclosing(handle.events()) as events:
            async for event in events:
                if event.kind == "item" and follow:
                    yielded = True
                    _print_value(event.data)
                elif event.kind in ("progress", "retry") and progress:
                    click.echo(_line(event), err=True)
    answer = await _result(client, handle)
    return ResponseFrame(0, 204, {}, b"") if yielded else answer


async def _result(client: Client, handle: CallHandle) -> ResponseFrame:
    """Its bare result, as the hub has it. Raises what it failed with."""
    while True:
        answer = await client.request("GET", f"/v1/call/{handle.id}/result", {"Prefer": "wait=30"})
        if answer.status != 202:
            return answer


def _status(answer: ResponseFrame) -> CallStatus:
    return msgspec.json.decode(answer.body, type=CallStatus)


def _print_accepted(client: Client, answer: ResponseFrame, asynchronous: bool) -> None:
    if answer.status != 202 and not asynchronous:
        _print_body(answer)
        return
    identity = _status(answer).id if answer.status == 202 else answer.headers["wayside-call"]
    click.echo(identity)
    click.echo(f"wayside: read it at {client.get(identity).url}, or with wayside calls {identity}", err=True)


def _print_body(answer: ResponseFrame) -> None:
    kind = media_type(answer.headers.get("content-type", ""))
    newline = b"\n" if kind == JSON or (kind.startswith("text/") and not answer.body.endswith(b"\n")) else b""
    write(answer.body + newline)


def _print_value(value: Any) -> None:
    write(value if isinstance(value, bytes) else msgspec.json.encode(value) + b"\n")


def _line(event: CallEvent) -> str:
    """An event for people."""
    text = event.kind
    if event.kind == "running" and event.attempt > 1:
        text += f" attempt {event.attempt}"
    if event.error is not None:
        text += f" {event.error.get('detail', '')}"
    elif isinstance(event.data, bytes):
        text += f" {len(event.data)} bytes"
    elif event.kind in ("progress", "item", "done"):
        text += f" {msgspec.json.encode(event.data).decode()}"
    return text


# -- calls


@click.command(short_help="List calls, or show, follow, cancel one.")
@click.argument("identity", metavar="[ID]", required=False)
@click.option("--service", default="", help="Only those of this service.")
@click.option("--state", type=click.Choice([state.value for state in CallState]), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, LIST_MAX), default=100, show_default=True, help="At most so many.")
@json_option
@click.option("--follow", is_flag=True, help="Print the events of ID as they come, until it has ended.")
@click.option(
    "--via",
    type=click.Choice(sorted(get_args(Via))),
    default="push",
    show_default=True,
    help="The pattern to hear of events by.",
)
@click.option("--from", "start", default="-1", help="Follow from this offset on. [default: its start]")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Seconds between polls.",
)
@click.option("--result", "with_result", is_flag=True, help="Print the result of ID, once it has ended.")
@click.option("--cancel", "with_cancel", is_flag=True, help="End ID.")
@connected_command
async def calls(
    client: Client,
    identity: str | None,
    service: str,
    state: str | None,
    limit: int,
    as_json: bool,
    follow: bool,
    via: Via,
    start: str,
    interval_s: float,
    with_result: bool,
    with_cancel: bool,
) -> None:
    """List calls that have not ended and those that have lately, the newest first; or show what ID is.

    ID is the name of a call, or its URL. With --follow and --result the exit status is 1 where the call failed.

    \b
    wayside calls --service reports.build --state running
    wayside calls ID --follow --via sse
    wayside calls ID --result > report.pdf
    """
    if identity is None:
        if follow or with_result or with_cancel:
            raise ValueError("--follow, --result and --cancel are for one call: wayside calls ID.")
        await _list(client, service, state or "", limit, as_json)
        return
    if follow + with_result + with_cancel > 1:
        raise ValueError("Give one of --follow, --result and --cancel.")
    handle = client.get(quote(identity.rpartition("/v1/call/")[2], safe=""))
    if follow:
        async with contextlib.aclosing(handle.events(via, offset=start, interval=interval_s)) as events:
            await _print_events(events, as_json)
    elif with_result:
        _print_body(await _result(client, handle))
    else:
        _print_status(await (handle.cancel() if with_cancel else handle.status()), as_json)


async def _list(client: Client, service: str, state: str, limit: int, as_json: bool) -> None:
    found = await client.calls(service, state, limit)
    for status in found:
        click.echo(msgspec.json.encode(_shown(status)).decode() if as_json else _summary(status))
    if not found:
        click.echo("wayside: there is no such call", err=True)


def _shown(status: CallStatus) -> dict[str, Any]:
    """Its fields, but for those that say nothing."""
    return {name: value for name, value in msgspec.to_builtins(status).items() if value not in (None, "", 0)}


def _summary(status: CallStatus) -> str:
    parts = [f"attempt {status.attempt}", _time(status.created_ms)]
    if status.items:
        parts.append(f"{status.items} items")
    if status.error is not None:
        parts.append(str(status.error.get("detail", "")))
    elif status.progress is not None and not status.ended:
        parts.append(f"progress {msgspec.json.encode(status.progress).decode()}")
    return f"{status.id}  {status.service}  {status.state}  {', '.join(parts)}"


def _time(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")


def _print_status(status: CallStatus, as_json: bool) -> None:
    shown = _shown(status)
    if as_json:
        click.echo(msgspec.json.encode(shown).decode())
        return
    for name, value in shown.items():
        if name.endswith("_ms"):
            name, value = name.removesuffix("_ms"), _time(value)
        click.echo(f"{name}: {value if isinstance(value, str) else msgspec.json.encode(value).decode()}")


async def _print_events(events: AsyncIterator[CallEvent], as_json: bool) -> None:
    async for event in events:
        click.echo(msgspec.json.encode(event).decode() if as_json else _line(event))
        sys.stdout.flush()
        if event.kind in ("failed", "cancelled"):
            fail(str((event.error or {}).get("detail", f"The call was {event.kind}.")))


# -- services


@click.command(short_help="List services.")
@json_option
@connected_command
async def services(client: Client, as_json: bool) -> None:
    """List the services that the hub knows, and how many workers each has."""
    found = msgspec.json.decode((await client.request("GET", "/v1/service/")).body)["services"]
    for service in found:
        if as_json:
            click.echo(msgspec.json.encode(service).decode())
        else:
            text = f"{service['workers']} workers, {service['running']} running, {service['waiting']} waiting"
            click.echo(f"{service['name']}  {text}  {service['description']}".rstrip())
    if not found:
        click.echo("wayside: there is no service: start a worker, as in `wayside work app:hub`", err=True)


COMMANDS = (call, calls, services)
