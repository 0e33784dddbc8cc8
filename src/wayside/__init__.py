"""Wayside: the communication layer of a backend.

A record is written once, to a durable stream; every reader picks its own way to hear of it.
"""

from wayside import sync
from wayside.calls.handler import Call
from wayside.client.client import CallHandle, Client
from wayside.client.connection import Channels, WebSocket
from wayside.client.delivery import Delivery
from wayside.client.groups import GroupMember
from wayside.client.subscriber import Reject, Retry
from wayside.client.values import CallEvent, CallStatus
from wayside.core.errors import CallCancelled, CallFailed, CallTimedOut, LeaseFenced, Refusal, UnknownOutcome
from wayside.core.limits import Limits
from wayside.core.metadata import Publication, Published
from wayside.core.records import Durability, Record, StreamInfo
from wayside.core.signature import Upload
from wayside.hub import Hub

__all__ = [
    "Call",
    "CallCancelled",
    "CallEvent",
    "CallFailed",
    "CallHandle",
    "CallStatus",
    "CallTimedOut",
    "Client",
    "Delivery",
    "Durability",
    "GroupMember",
    "Hub",
    "LeaseFenced",
    "Limits",
    "Publication",
    "Published",
    "Record",
    "Refusal",
    "Reject",
    "Retry",
    "StreamInfo",
    "UnknownOutcome",
    "Upload",
    "connect",
    "sync",
]


def connect(url: str = "http://127.0.0.1:7070", *, retry_s: float | None = 60.0) -> Client:
    """A client of the hub at ``url``, for ``async with``. ``retry_s``: for how long a connection that was lost is tried
    again; None: for ever."""
    return Client(Channels(WebSocket(url), retry_s=retry_s), url.rstrip("/"))
