"""An HTTP client of servers that are killed at any moment."""

from __future__ import annotations

import httpx

__all__ = ["client_of_killed"]


class _Transport(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except AttributeError as error:  # anyio asks a connection for its peer that has gone while it was made
            raise httpx.ConnectError(
                f"The connection was closed while it was made: {error}.", request=request
            ) from error


def client_of_killed(timeout_s: float = 5.0) -> httpx.AsyncClient:
    """What goes wrong with a connection is an ``httpx.TransportError``, whenever it is cut."""
    return httpx.AsyncClient(timeout=timeout_s, transport=_Transport())
