"""A hub as a process: its signals, its logs, its limits from the system."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from typing import Any

import click
import structlog

from wayside import demo
from wayside.hub import Hub

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""

_log = structlog.get_logger("wayside")


async def serve(hub: Hub, host: str, port: int, with_demo: bool) -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_mishap)
    stop = asyncio.Event()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        stop.set()
        if signals > 1:
            os._exit(130)  # at once: the store recovers at the next start, as after any crash

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
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
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # what a request allocates is freed by reference counts
    click.echo(f"listening on {url}")
    if with_demo:
        click.echo(_hints(url))
    sys.stdout.flush()
    store = hub.log.store
    where = {"data": str(hub.directory), "after": "a clean stop" if store.clean else "a crash"} if store else {}
    _log.info("serving", url=url, streams=hub.log.statistics().streams, **where)
    await stop.wait()
    _log.info("draining", connections=len(server.connections), seconds_max=hub.limits.drain_s)
    if work is not None:
        work.cancel()
    await server.drain(hub.limits.drain_s)
    await hub.close()
    _log.info("stopped", failed=hub.log.failed)
    return 1 if hub.log.failed else 0


def _log_mishap(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _log.error(context["message"], exc_info=context.get("exception"))


def _hints(url: str) -> str:
    stream = f"{url}/v1/stream/{demo.STREAM}"
    command = sys.argv[0] if sys.argv[0].endswith("wayside") else "wayside"
    return (
        f"\n  curl {stream}                                    # polling\n"
        f"  curl -N -H 'Accept: text/event-stream' '{stream}?offset=now'   # server-sent events\n"
        f"  curl -H 'Prefer: wait=20' '{stream}?offset=now'                # long polling\n"
        f"  {command} tail {demo.STREAM} --via push --hub {url}   # push over a WebSocket\n"
    )


def configure_logs(level: str, form: str) -> None:
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def keep_memory() -> None:
    """Have the C library keep what it is given back, so that buffers of a step (256 KiB) are not taken from the system,
    and zeroed, anew each time: half of the time of a long catch-up. Only glibc gives them back so soon."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, size in ((M_MMAP_THRESHOLD, 4 << 20), (M_TRIM_THRESHOLD, 64 << 20)):
            mallopt(parameter, size)


def raise_file_limit(wanted: int) -> None:
    """A file descriptor for each connection, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )
