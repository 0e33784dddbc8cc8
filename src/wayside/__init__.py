"""Wayside: the communication layer of a backend.

A record is written once, to a durable stream; every reader picks its own way to hear of it.
"""

from wayside.errors import Refusal
from wayside.hub import Hub
from wayside.limits import Limits
from wayside.model import Durability, Record, StreamInfo

__all__ = ["Durability", "Hub", "Limits", "Record", "Refusal", "StreamInfo"]
