"""The client, blocking. It is defined in :mod:`wayside.client.sync`."""

from wayside.client.sync import BlockingClient, BlockingGroup, BlockingHandle, connect

__all__ = ["BlockingClient", "BlockingGroup", "BlockingHandle", "connect"]
