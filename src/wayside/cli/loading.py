"""Finds the hub of an application: ``MODULE:ATTRIBUTE``, in the current directory or installed."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wayside.hub import Hub

__all__ = ["Unloadable", "load"]


class Unloadable(Exception):
    """There is no hub of that name: a sentence that says why. ``trace`` is a traceback, where the application's own code
    raised."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


def load(target: str) -> Hub:
    """The hub that ``target`` names, as in ``app:hub``; or that the function gives which it names."""
    name, _, attribute = target.partition(":")
    if not name or not attribute or "/" in name or name.endswith(".py"):
        raise Unloadable(f"{target!r} names no hub: write MODULE:ATTRIBUTE, such as app:hub for hub in app.py.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = _module(name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            hubs = [name for name, value in vars(module).items() if isinstance(value, Hub)]
            there = f" There is: {', '.join(hubs)}." if hubs else ""
            raise Unloadable(f"Module {name} has no {attribute}.{there}")
        found = getattr(found, part)
    if not isinstance(found, Hub) and callable(found) and not isinstance(found, type):
        found = _own(lambda: found(), f"{target} raised")
    if asyncio.iscoroutine(found):
        found.close()
    if not isinstance(found, Hub):
        raise Unloadable(f"{target} is not a wayside.Hub, nor a function that gives one: it is {_kind(found)}.")
    return found


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failed(error, f"Module {name} cannot be imported") from error
        raise Unloadable(f"There is no module {error.name}, neither in {os.getcwd()} nor installed.") from error
    except (Exception, SystemExit) as error:
        raise _failed(error, f"Module {name} cannot be imported") from error


def _own(function: Callable[[], Any], what: str) -> Any:
    """Run the application's own code."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _failed(error, what) from error


def _failed(error: BaseException, what: str) -> Unloadable:
    """The traceback from the application's first line on."""
    trace = error.__traceback__
    while trace is not None and _foreign(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    return Unloadable(f"{what}: {type(error).__name__}: {error}", text)


def _foreign(filename: str) -> bool:
    return filename.startswith("<frozen ") or filename in (__file__, importlib.__file__)
