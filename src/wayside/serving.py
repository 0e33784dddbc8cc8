"""A hub as a process: it listens, serves until it is told to stop, and drains."""

from __future__ import annotations

import asyncio
import sys

import click
import structlog

from wayside import demo
from wayside.hub import Hub
from wayside.process import freeze_memory, stop_event

_log = structlog.get_logger("wayside")


async def serve(hub: Hub, host: str, port: int, with_demo: bool) -> int:
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
    store = hub.log.store
    where = {"data": str(hub.directory), "after": "a clean stop" if store.clean else "a crash"} if store else {}
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
