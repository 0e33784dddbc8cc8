"""What a WebSocket of the ``websockets`` package is told."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.support.waiting import PATIENCE_S


async def receive(socket: ClientConnection, count: int) -> list[Any]:
    """The next messages."""
    async with asyncio.timeout(PATIENCE_S):
        return [await socket.recv() for _ in range(count)]


async def receive_rest(socket: ClientConnection) -> list[Any]:
    """All messages until it is closed."""
    messages = []
    async with asyncio.timeout(PATIENCE_S):
        try:
            while True:
                messages.append(await socket.recv())
        except ConnectionClosed:
            return messages
