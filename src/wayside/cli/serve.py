"""Commands that run something here: serve, work, check, webhook-secret."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import click
import structlog
import uvloop

from wayside.cli import demo, reload
from wayside.cli.common import base_url, fail, hub_option, log_format_option, log_level_option, reload_option
from wayside.cli.loading import Unloadable, load
from wayside.cli.process import configure_logs, freeze_memory, keep_memory, leave, raise_file_limit, stop_event
from wayside.cli.settings import is_loopback, limit_options, limits_of, read_config, was_given
from wayside.cli.work import work as work_for
from wayside.core.errors import Refusal
from wayside.hub import Hub
from wayside.storage.embedded.check import check as check_store
from wayside.storage.embedded.engine import EmbeddedEngine
from wayside.webhooks.standard import new_secret, sign

_log = structlog.get_logger("wayside")


async def serve_hub(hub: Hub, host: str, port: int, with_demo: bool) -> int:
    """Returns the exit status, after the first signal. Raises the refusals of opening a store."""
    loop = asyncio.get_running_loop()
    stop = stop_event()
    if with_demo:
        demo.offer(hub)
    try:
        server = await hub.serve(host, port)
    except OSError as error:
        await hub.close()
        click.echo(
            f"wayside: cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port or --host.",
            err=True,
        )
        return 1
    address, actual = server.address
    url = f"http://[{address}]:{actual}" if ":" in address else f"http://{address}:{actual}"
    work = loop.create_task(demo.run(hub)) if with_demo else None
    freeze_memory()
    click.echo(f"listening on {url}")
    if with_demo:
        click.echo(_hints(url))
    sys.stdout.flush()
    engine = hub.log.engine
    where: dict[str, str] = {}
    if isinstance(engine, EmbeddedEngine):
        where = {"data": str(hub.directory), "after": "a clean stop" if engine.store.clean else "a crash"}
    services = {"services": sorted(hub.handlers)} if hub.handlers else {}
    if hub.subscribed:
        services["groups"] = sorted(hub.subscribed)
    _log.info("serving", url=url, streams=hub.log.statistics().streams, **where, **services)
    await stop.wait()
    _log.info("draining", connections=len(server.connections), seconds_max=hub.limits.drain_s)
    if work is not None:
        work.cancel()
    # Calls whose callers wait, and the steps of these, are still run while connections drain: a handler that took no
    # more would leave them without an answer. What else runs has the same time.
    over = loop.time() + hub.limits.drain_s
    await server.drain(hub.limits.drain_s)
    await hub.rest(max(0.0, over - loop.time()))
    await hub.close()
    _log.info("stopped", failed=hub.log.failed)
    return 1 if hub.log.failed else 0


def _hints(url: str) -> str:
    stream, service = f"{url}/v1/stream/{demo.STREAM}", f"{url}/v1/service/{demo.COUNTDOWN}"
    command = sys.argv[0] if sys.argv[0].endswith("wayside") else "wayside"
    return (
        f"\n  curl {stream}                                    # polling\n"
        f"  curl -N -H 'Accept: text/event-stream' '{stream}?offset=now'   # server-sent events\n"
        f"  curl -H 'Prefer: wait=20' '{stream}?offset=now'                # long polling\n"
        f"  {command} tail {demo.STREAM} --via push --hub {url}   # push over a WebSocket\n"
        f"  curl -X POST {service}                           # a call\n"
        f"  {command} call {demo.COUNTDOWN} seconds=3 --progress --hub {url}   # the same, and how far it is\n"
    )


WORKER_NAME = re.compile(r"[A-Za-z0-9._-]{0,64}", re.ASCII)


def _secrets(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for secret in value:
        try:
            sign(secret, "check", 0, b"")
        except ValueError as error:  # without the value, which may be half a secret
            raise click.BadParameter(
                "A webhook secret is whsec_ and 24 to 64 bytes in base64; `wayside webhook-secret` makes one."
            ) from error
    return value


@click.command(short_help="Start a hub.")
@click.argument("app", required=False, envvar="WAYSIDE_APP")
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
    "--demo",
    "with_demo",
    is_flag=True,
    envvar="WAYSIDE_DEMO",
    help="Publish figures of this machine on demo/machine, and run demo.echo, demo.countdown, demo.words.",
)
@click.option(
    "--allow-anonymous",
    is_flag=True,
    envvar="WAYSIDE_ALLOW_ANONYMOUS",
    help="Listen beyond this machine, although there is no authentication yet.",
)
@click.option(
    "--webhook-secret",
    "webhook_secrets",
    multiple=True,
    callback=_secrets,
    envvar="WAYSIDE_WEBHOOK_SECRET",
    help="Sign callbacks with this; repeat it while secrets are rotated. [default: no callbacks]",
)
@click.option(
    "--webhook-allow-private",
    is_flag=True,
    envvar="WAYSIDE_WEBHOOK_ALLOW_PRIVATE",
    help="Let callbacks and webhooks go to addresses of this machine and its networks.",
)
@reload_option
@log_level_option
@log_format_option
@limit_options
def serve(
    app: str | None,
    config: Path | None,
    host: str,
    port: int,
    data: Path,
    memory: bool,
    with_demo: bool,
    allow_anonymous: bool,
    webhook_secrets: tuple[str, ...],
    webhook_allow_private: bool,
    with_reload: bool,
    log_level: str,
    log_format: str,
    **values: Any,
) -> None:
    """Start a hub; it prints `listening on http://HOST:PORT` when it is ready.

    With APP, such as app:hub for the Hub named hub in app.py, it is that one, and its services run in this process.
    What it says itself of its place and limits holds, unless it is given here.

    SIGTERM and Ctrl-C drain: readers are told where to resume, requests under way are answered, calls are finished or
    kept for the next start. A second signal ends it at once. Every option can be set in the environment
    (WAYSIDE_PORT=8080) and in a TOML file (port = 8080).

    \b
    wayside serve --data /var/lib/wayside
    wayside serve --memory --port 0
    wayside serve app:hub --reload
    WAYSIDE_LOG_FORMAT=json wayside serve --config wayside.toml
    """
    context = click.get_current_context()
    if memory and was_given(context, "data"):
        fail(f"--memory keeps nothing in {data}: give --memory or --data, not both.", 2)
    if not is_loopback(host) and not allow_anonymous:
        fail(
            f"{host} can be reached from other machines, and this version has no authentication: anybody could read and "
            "write every stream. Use --host 127.0.0.1, or say --allow-anonymous if that is what you want.",
            2,
        )
    if with_reload:
        _reload(app or fail("--reload is for an application: wayside serve app:hub --reload.", 2))
    configure_logs(log_level, log_format)
    hub = _load(app) if app else Hub()
    try:
        if memory:
            hub.place("memory:")
        elif was_given(context, "data") or not hub.placed:
            hub.place(f"file:{data}")
        hub.limits = limits_of(context, values, hub.limits)
        if reload.is_child():
            hub.limits = dataclasses.replace(hub.limits, drain_s=min(hub.limits.drain_s, reload.DRAIN_S))
        hub.webhook_secrets = list(webhook_secrets) or hub.webhook_secrets
        hub.webhook_private = webhook_allow_private or hub.webhook_private
        raise_file_limit(hub.limits.connections_max + 256)
        keep_memory()
        _ = hub.keeping  # opens the store
    except Refusal as refusal:
        fail(refusal.detail)
    except (ValueError, RuntimeError) as error:
        fail(f"{app or 'the hub'} cannot be served: {error}", 2)
    leave(uvloop.run(serve_hub(hub, host, port, with_demo)))


def _load(app: str) -> Hub:
    try:
        return load(app)
    except Unloadable as error:
        if error.trace:
            click.echo(error.trace, err=True, nl=False)
        fail(str(error), 2)


def _reload(app: str) -> None:
    """As the parent: run the command in a child, and return never. As the child: do nothing."""
    if not reload.is_child():
        sys.exit(reload.supervise(app))


@click.command(short_help="Run services for a hub elsewhere.")
@click.argument("app", envvar="WAYSIDE_APP")
@hub_option
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    envvar="WAYSIDE_CONCURRENCY",
    help="Calls that run at one time.",
)
@click.option("--name", default="", envvar="WAYSIDE_NAME", help="Part of the worker's name in the events of its calls.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0, max=86_400),
    default=30.0,
    show_default=True,
    envvar="WAYSIDE_GRACE",
    help="Seconds that a stop waits for calls under way; then they are handed back.",
)
@click.option("--no-wait", is_flag=True, help="End with status 3 where no hub is reachable at first.")
@reload_option
@log_level_option
@log_format_option
def work(
    app: str,
    url: str,
    concurrency: int,
    name: str,
    grace_s: float,
    no_wait: bool,
    with_reload: bool,
    log_level: str,
    log_format: str,
) -> None:
    """Run the services of APP, such as app:hub for the Hub named hub in app.py, for the hub at --hub.

    It prints `working on SERVICES for URL` when the hub knows it, waits for a hub that is not there yet, and connects
    anew for ever. Any number of workers share the calls. The Hub in APP opens no store here: it stands for the other.

    SIGTERM and Ctrl-C: it takes no more calls, finishes those under way, and hands back what is not finished in time. A
    second signal ends it at once; the hub gives what it held to others when its lease is over.

    \b
    wayside work app:hub --hub http://127.0.0.1:7070 --concurrency 4
    """
    if not WORKER_NAME.fullmatch(name):
        fail(f"{name!r} is no name for a worker: use up to 64 letters, digits, dots, dashes, underscores.", 2)
    try:
        url = base_url(url)
    except ValueError as error:
        fail(str(error), 2)
    if with_reload:
        _reload(app)
    configure_logs(log_level, log_format)
    hub = _load(app)
    if not (hub.handlers or hub.subscribed):
        fail(
            f"{app} has no services and no subscriptions: decorate functions with @hub.service(NAME) or @hub.subscribe(STREAMS).",
            2,
        )
    if reload.is_child():
        grace_s = min(grace_s, reload.DRAIN_S)
    keep_memory()
    leave(uvloop.run(work_for(hub, url, capacity=concurrency, name=name, grace_s=grace_s, wait=not no_wait)))


@click.command(short_help="Verify a store on disk.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def check(directory: Path) -> None:
    """Read every page and every record of the store in DIRECTORY, and change nothing. No hub may be using it."""
    try:
        report = check_store(directory)
    except Refusal as refusal:
        fail(refusal.detail)
    click.echo(str(report))
    sys.exit(0 if report.ok else 1)


@click.command("webhook-secret", short_help="Make a secret for callbacks.")
def webhook_secret() -> None:
    """Print a new random secret, for `wayside serve --webhook-secret` and for those who receive callbacks."""
    click.echo(new_secret())


COMMANDS = (serve, work, check, webhook_secret)
