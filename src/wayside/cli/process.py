"""What a process that runs for long, a hub or a worker, wants of its system: signals, logs, memory, files."""

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
import threading
import time
from typing import Any, NoReturn

import structlog

from wayside.cli import reload

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
HANDLER_THREADS = "wayside-handler"
"""How the names of threads begin in which plain functions run, of services and of records."""
THREADS_S = 0.5
"""What threads with nothing to do may take to end."""

_log = structlog.get_logger("wayside")


def stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process at once. What goes wrong in callbacks of the running
    event loop goes to the log."""
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

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    if not reload.is_child():  # Ctrl-C reaches the whole process group, and the parent passes it on as SIGTERM
        loop.add_signal_handler(signal.SIGINT, on_signal)
    return stop


def _log_mishap(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _log.error(context["message"], exc_info=context.get("exception"))


def leave(status: int) -> NoReturn:
    """End the process, also where a handler's thread goes on: its call, or its record, was handed back."""
    deadline = time.monotonic() + THREADS_S
    for thread in threading.enumerate():
        if thread.name.startswith(HANDLER_THREADS):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
    sys.exit(status)


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


def freeze_memory() -> None:
    """What is there by now stays: collections need not look at it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # what a request allocates is freed by reference counts


def raise_file_limit(wanted: int) -> None:
    """A file descriptor for each connection, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )
