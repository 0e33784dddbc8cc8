"""Wayside: the communication layer of a backend.

A record is written once, to a durable stream; every reader picks its own way to hear of it.
"""

from wayside import sync
from wayside.client.aio import CallHandle, Client
from wayside.client.channels import Channels, WebSocket
from wayside.client.deliveries import Delivery
from wayside.client.groups import GroupMember
from wayside.client.values import CallEvent, CallStatus
from wayside.errors import CallCancelled, CallFailed, CallTimedOut, LeaseFenced, Refusal, UnknownOutcome
from wayside.hub import Hub
from wayside.limits import Limits
from wayside.metadata import Publication, Published
from wayside.model import Durability, Record, StreamInfo
from wayside.signature import Upload
from wayside.subscribing import Reject, Retry
from wayside.worker import Call

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
