"""What ``wayside serve`` can be told: by options, by ``WAYSIDE_*`` in the environment, by a TOML file; in that order."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wayside.core.limits import Limits

F = TypeVar("F", bound=Callable[..., Any])

LIMIT_HELP = {
    "header_bytes_max": "Largest request head.",
    "body_bytes_max": "Largest request body.",
    "body_memory_bytes_max": "Larger bodies are spooled to disk.",
    "json_body_bytes_max": "Largest JSON body.",
    "append_records_max": "Most records of one append.",
    "piece_bytes_max": "Records that a spooled body is cut into.",
    "read_bytes_max": "What a follower reads and writes in one step.",
    "read_records_max": "The same, in records.",
    "write_buffer_bytes_max": "Write buffer at which a follower counts as slow.",
    "uncommitted_bytes_max": "Appends that may wait for the disk.",
    "cache_bytes_max": "Memory for recent records of streams on disk.",
    "stream_cache_bytes_max": "The same, for one stream.",
    "memory_bytes_max": "Memory for all streams that are in memory only.",
    "retention_bytes": "Default retention of a stream on disk.",
    "retention_bytes_memory": "Default retention of a stream in memory.",
    "streams_max": "Streams.",
    "path_bytes_max": "Longest path of a stream.",
    "producers_max": "Idempotent producers remembered for one stream.",
    "connections_max": "Open connections.",
    "header_timeout_s": "Seconds for a request head, and between two reads of a body.",
    "idle_timeout_s": "Seconds that a connection may be idle.",
    "wait_s_max": "Longest long poll, in seconds.",
    "long_poll_s": "Seconds of a long poll that names none.",
    "sse_s": "Seconds of a live=sse response.",
    "heartbeat_s": "Seconds of silence after which a follower gets a comment.",
    "drain_s": "Seconds that a shutdown waits for requests under way.",
    "lease_s": "Seconds of silence after which a worker is lost.",
    "worker_calls_max": "Calls that the hub's own process runs at one time.",
    "call_keep_s": "Seconds for which calls that have ended are kept.",
    "call_linger_s": "The same, of calls in memory.",
    "conflated_keys_max": "Keys that a follower with policy=conflate holds.",
    "conflated_bytes_max": "The same, in bytes of memory.",
    "presence_lease_s": "For so long a member is present after its last request.",
    "presence_members_max": "Members that are present at one stream.",
    "group_history_bytes": "Events of one group that are kept, for receipts.",
    "dedupe_window_s": "Seconds for which a message id is remembered.",
    "dedupe_ids_max": "Message ids remembered for one stream.",
    "delayed_max": "Records that wait for their time.",
    "meta_bytes_max": "Headers, id and key of one record together.",
    "channels_max": "Channels of one connection to /v1/connect.",
}


class Seconds(click.FloatRange):
    """A finite number."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return number


def limit_options(command: F) -> F:
    """An option for every field of :class:`~wayside.core.limits.Limits`."""
    for field in reversed(dataclasses.fields(Limits)):
        kind = Seconds(min=0) if isinstance(field.default, float) else click.IntRange(min=1)
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            field.name,
            type=kind,
            default=field.default,
            show_default=True,
            envvar=f"WAYSIDE_{field.name.upper()}",
            help=LIMIT_HELP[field.name],
        )(command)
    return command


def was_given(context: click.Context, name: str) -> bool:
    """Whether an option was said anywhere: in the command line, the environment or a file."""
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def limits_of(context: click.Context, values: dict[str, Any], limits: Limits) -> Limits:
    """``limits``, but for those that a command was given among its ``values``."""
    given = {f.name: values[f.name] for f in dataclasses.fields(Limits) if was_given(context, f.name)}
    return dataclasses.replace(limits, **given)


def read_config(context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    """Make a TOML file the defaults of a command's options. Unknown keys are refused."""
    if value is None:
        return None
    try:
        settings = tomllib.loads(value.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value}: {error}") from error
    known = {option.lstrip("-"): each.name for each in context.command.params for option in each.opts}
    if unknown := sorted(name for name in settings if name.replace("_", "-") not in known):
        raise click.BadParameter(f"{value} has unknown settings: {', '.join(unknown)}. See wayside serve --help.")
    named = {known[name.replace("_", "-")]: setting for name, setting in settings.items()}
    for each in context.command.params:
        if each.multiple and isinstance(named.get(each.name), str):
            named[each.name] = [named[each.name]]
    context.default_map = {**(context.default_map or {}), **named}
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
