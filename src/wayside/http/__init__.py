"""Serving connections: HTTP/1.1 and WebSocket on asyncio, the same patterns as an ASGI application, operations."""
