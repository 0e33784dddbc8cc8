"""What commands share: how they fail, and how they are given a hub."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn

import click

from wayside.cli.rest import HubError, NoAnswer, RestClient
from wayside.cli.work import no_hub
from wayside.client.client import Client
from wayside.core.errors import Refusal
from wayside.link.connection import Channels, Unreachable, WebSocket

F = Callable[..., Any]
INTERRUPTED = 130
"""128 and SIGINT, as shells have it."""

hub_option = click.option(
    "--hub", "url", default="http://127.0.0.1:7070", show_default=True, envvar="WAYSIDE_HUB", help="URL of the hub."
)
log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="WAYSIDE_LOG_LEVEL",
)
log_format_option = click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    envvar="WAYSIDE_LOG_FORMAT",
)
reload_option = click.option(
    "--reload",
    "with_reload",
    is_flag=True,
    envvar="WAYSIDE_RELOAD",
    help="For development: start anew when a .py file below the current directory changes.",
)


def fail(text: str, status: int = 1) -> NoReturn:
    click.echo(f"wayside: {text}", err=True)
    sys.exit(status)


def base_url(url: str) -> str:
    """The URL of a hub in full. Raises ValueError."""
    return RestClient(url).url


def hub_command(function: F) -> F:
    """A command that talks to a hub: ``--hub``, and errors as sentences."""

    @hub_option
    @wraps(function)
    def command(url: str, **values: Any) -> None:
        try:
            function(RestClient(url), **values)
        except HubError as error:
            fail(error.detail)
        except NoAnswer as error:
            fail(no_hub(str(error)), 3)
        except ValueError as error:
            fail(str(error), 2)
        except BrokenPipeError:
            _no_reader()

    return command


def connected_command(function: Callable[..., Awaitable[None]]) -> F:
    """A command that is a coroutine, and talks to a hub over one connection: ``--hub``, and errors as sentences. Ctrl-C
    cancels it."""

    @hub_option
    @wraps(function)
    def command(url: str, **values: Any) -> None:
        async def run() -> None:
            async with Client(Channels(WebSocket(full)), full) as client:
                await function(client, **values)

        try:
            full = base_url(url)
            asyncio.run(run())
        except Unreachable:
            fail(no_hub(full), 3)
        except Refusal as refusal:
            fail(refusal.detail)
        except ValueError as error:
            fail(str(error), 2)
        except BrokenPipeError:
            _no_reader()
        except (KeyboardInterrupt, asyncio.CancelledError):
            sys.exit(INTERRUPTED)

    return command


def _no_reader() -> NoReturn:
    """Whoever read what we print has ended."""
    sys.stderr.close()
    sys.exit(0)


def write(data: bytes) -> None:
    """To standard output, at once."""
    out = sys.stdout.buffer
    out.write(data)
    out.flush()
