"""A worker as a process: it runs an application's handlers for a hub elsewhere, until it is told to stop."""

from __future__ import annotations

import asyncio
import secrets
import sys

import click
import structlog

from wayside.calls.queue import worker_name
from wayside.cli.process import freeze_memory, stop_event
from wayside.client.connection import Unreachable
from wayside.client.subscriber import Subscribers
from wayside.client.worker import Remote
from wayside.core.errors import Refusal
from wayside.hub import Hub

FIRST_S = 1.0
"""Between attempts to reach a hub that has never been reached."""

_log = structlog.get_logger("wayside")


async def work(hub: Hub, url: str, *, capacity: int, name: str, grace_s: float, wait: bool) -> int:
    """Run the handlers of ``hub``, which opens no store of its own, for the hub at ``url``: ``capacity`` attempts at a
    time. Returns the exit status, after the first signal; 3 if there is no hub and it is not to ``wait`` for one."""
    stop = stop_event()
    remote = Remote(url, hub.handlers, capacity=capacity)
    if name:
        remote.id = f"w-{name}-{secrets.token_hex(6)}"
    hub.lend(remote.client())
    try:
        if not await _reach(remote, stop, wait):
            return 0
    except Unreachable:
        click.echo(f"wayside: {no_hub(url)}", err=True)
        return 3
    freeze_memory()
    if await _first(stop, remote.ready):
        if remote.refused is not None:
            click.echo(f"wayside: the hub refused this worker: {remote.refused.detail}", err=True)
            await remote.stop(0)
            return 1
        subscribers = Subscribers(hub.subscribed, remote.client(), remote.threads)
        subscribers.member = worker_name(remote.id)
        try:
            await subscribers.start()
        except Refusal as refusal:
            click.echo(f"wayside: the hub refused a subscription: {refusal.detail}", err=True)
            await remote.stop(0)
            return 1
        click.echo(f"working on {', '.join([*sorted(hub.handlers), *sorted(hub.subscribed)])} for {url}")
        sys.stdout.flush()
        _log.info(
            "working",
            url=url,
            worker=worker_name(remote.id),
            concurrency=capacity,
            services=sorted(hub.handlers),
            groups=sorted(hub.subscribed),
        )
        await stop.wait()
        over = asyncio.get_running_loop().time() + grace_s
        _log.info("stopping", running=len(remote.runner.running) + subscribers.running, seconds_max=grace_s)
        remote.rest()
        await subscribers.stop(grace_s)
        grace_s = max(0.0, over - asyncio.get_running_loop().time())
    await remote.stop(grace_s)
    _log.info("stopped")
    return 0


async def _reach(remote: Remote, stop: asyncio.Event, wait: bool) -> bool:
    """Connect for the first time; false where a signal came first. Raises :class:`Unreachable` unless it is to wait."""
    told = False
    while not stop.is_set():
        try:
            await remote.start()
            return True
        except Unreachable:
            if not wait:
                raise
            if not told:
                told = True
                click.echo(f"wayside: {no_hub(remote.url)} Trying again until it answers.", err=True)
        try:
            async with asyncio.timeout(FIRST_S):
                await stop.wait()
        except TimeoutError:
            continue
    return False


def no_hub(url: str) -> str:
    """A sentence for people."""
    return f"no answer from a hub at {url}. Is it running? Start one with `wayside serve`."


async def _first(stop: asyncio.Event, ready: asyncio.Event) -> bool:
    """Wait for either; whether it was ``ready``."""
    tasks = [asyncio.ensure_future(event.wait()) for event in (stop, ready)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    return ready.is_set()
