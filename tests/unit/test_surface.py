"""The methods of ``Hub`` and ``Client``, with their signatures: changing one is a decision, and breaks somebody."""

from __future__ import annotations

import inspect

import pytest

import wayside

HUB: dict[str, str] = {
    "": "(url: 'str | None' = None, *, limits: 'Limits | None' = None, clock: 'Clock | None' = None, vfs: 'str' = 'cksmvfs', webhook_secrets: 'Sequence[str]' = (), webhook_private: 'bool' = False) -> 'None'",
    "asgi": "(self) -> 'AsgiApp'",
    "call": "(self, service: 'str', *arguments: 'Any', **options: 'Any') -> 'Any'",
    "close": "(self) -> 'None'",
    "close_stream": "(self, stream: 'str') -> 'str'",
    "create": "(self, stream: 'str', *, content_type: 'str' = 'application/json', durability: \"Durability | Literal['fsync', 'async', 'memory'] | None\" = None, ttl_s: 'int | None' = None, retention_bytes: 'int | None' = None, retention_age_s: 'int | None' = None) -> 'StreamInfo'",
    "delete": "(self, stream: 'str') -> 'None'",
    "get": "(self, identity: 'str') -> 'CallHandle'",
    "info": "(self, stream: 'str') -> 'StreamInfo'",
    "lend": "(self, client: 'Client') -> 'None'",
    "lifespan": "(self, _app: 'Any' = None) -> 'AsyncIterator[None]'",
    "pipeline": "(self, name: 'str', *steps: 'str', retries: 'int' = 100, backoff: 'float' = 1.0) -> 'None'",
    "place": "(self, url: 'str') -> 'None'",
    "presence": "(self, stream: 'str') -> 'Presences'",
    "presence_events": "(self, stream: 'str', offset: 'str' = '-1') -> 'AsyncIterator[PresenceEvent]'",
    "publish": "(self, stream: 'str', *records: 'Any', close: 'bool' = False, id: 'str' = '', key: 'str' = '', headers: 'Mapping[str, str] | None' = None, ttl: 'float' = 0.0, delay: 'float' = 0.0) -> 'str'",
    "publish_all": "(self, publications: 'Iterable[Publication]') -> 'list[Published]'",
    "read": "(self, stream: 'str', *, offset: 'str' = '-1', follow: 'bool' = True, policy: 'PolicyName' = 'catch-up', key: 'str' = '', interval: 'float' = 0.0, lag: 'int' = 0, member: 'str' = '') -> 'AsyncIterator[Record]'",
    "rest": "(self, seconds: 'float | None' = None) -> 'None'",
    "serve": "(self, host: 'str' = '127.0.0.1', port: 'int' = 7070) -> 'Server'",
    "service": "(self, name: 'str', *, retries: 'int' = 0, timeout: 'float' = 0.0, backoff: 'float' = 1.0, concurrency: 'int' = 0, queue: 'int' = 10000) -> 'Callable[[F], F]'",
    "start": "(self) -> 'None'",
    "stream": "(self, service: 'str', *arguments: 'Any', **options: 'Any') -> 'AsyncIterator[Any]'",
    "submit": "(self, service: 'str', *arguments: 'Any', **options: 'Any') -> 'CallHandle'",
    "subscribe": "(self, streams: 'str | Iterable[str]', *, group: 'str' = '', concurrency: 'int' = 16, **settings: 'Any') -> 'Callable[[F], F]'",
}

CLIENT: dict[str, str] = {
    "": "(channels: 'Channels', url: 'str' = '', pace: 'Pace | None' = None) -> 'None'",
    "call": "(self, service: 'str', *arguments: 'Any', timeout: 'float | None' = None, idempotency_key: 'str' = '', priority: 'int' = 0, returns: 'Any' = None, **keywords: 'Any') -> 'Any'",
    "calls": "(self, service: 'str' = '', state: 'str' = '', limit: 'int' = 100) -> 'list[CallStatus]'",
    "close": "(self) -> 'None'",
    "close_stream": "(self, stream: 'str') -> 'None'",
    "create": "(self, stream: 'str', *, content_type: 'str' = 'application/json', durability: \"Literal['fsync', 'async', 'memory'] | None\" = None, ttl_s: 'int | None' = None, retention_bytes: 'int | None' = None, retention_age_s: 'int | None' = None) -> 'None'",
    "dead": "(self, name: 'str', stream: 'str' = '', limit: 'int' = 100) -> 'list[dict[str, Any]]'",
    "declare_group": "(self, name: 'str', spec: 'GroupSpec') -> 'dict[str, Any]'",
    "delete": "(self, stream: 'str') -> 'None'",
    "delete_group": "(self, name: 'str') -> 'None'",
    "describe_group": "(self, name: 'str') -> 'dict[str, Any]'",
    "get": "(self, identity: 'str') -> 'CallHandle'",
    "group": "(self, name: 'str', streams: 'str | Iterable[str]' = (), *, member: 'str | None' = None, credit: 'int' = 256, **settings: 'Any') -> 'GroupMember'",
    "groups": "(self) -> 'list[dict[str, Any]]'",
    "info": "(self, stream: 'str') -> 'dict[str, str]'",
    "pause_group": "(self, name: 'str') -> 'None'",
    "prepare": "(self, publish: 'list[f.Publish]') -> 'None'",
    "presence": "(self, stream: 'str') -> 'Presences'",
    "presence_events": "(self, stream: 'str', offset: 'str' = '-1') -> 'AsyncIterator[PresenceEvent]'",
    "publish": "(self, stream: 'str', *records: 'Any', create: 'bool' = True, id: 'str' = '', key: 'str' = '', headers: 'Mapping[str, str] | None' = None, ttl: 'float' = 0.0, delay: 'float' = 0.0) -> 'str'",
    "publish_all": "(self, publications: 'Iterable[Publication]', *, create: 'bool' = True) -> 'list[Published]'",
    "put_group": "(self, name: 'str', streams: 'str | Iterable[str]', **settings: 'Any') -> 'dict[str, Any]'",
    "read": "(self, stream: 'str', offset: 'str' = '-1', *, follow: 'bool' = True, policy: 'PolicyName' = 'catch-up', key: 'str' = '', interval: 'float' = 0.0, lag: 'int' = 0, member: 'str' = '') -> 'AsyncIterator[Record]'",
    "receipts": "(self, group: 'str', stream: 'str', offset: 'str') -> 'dict[str, Any]'",
    "redrive": "(self, name: 'str', streams: 'str | Iterable[str]' = (), *, offsets: 'Iterable[str]' = (), reason: 'str' = '', limit: 'int | None' = None) -> 'int'",
    "request": "(self, method: 'str', target: 'str', headers: 'dict[str, str] | None' = None, body: 'bytes' = b'', *, repeat: 'bool' = False) -> 'f.ResponseFrame'",
    "resume_group": "(self, name: 'str') -> 'None'",
    "seek": "(self, name: 'str', to: 'str', streams: 'str | Iterable[str]' = ()) -> 'list[str]'",
    "stream": "(self, service: 'str', *arguments: 'Any', **options: 'Any') -> 'AsyncIterator[Any]'",
    "submit": "(self, service: 'str', *arguments: 'Any', idempotency_key: 'str' = '', priority: 'int' = 0, delay: 'float' = 0.0, callback: 'str' = '', parent: 'str' = '', **keywords: 'Any') -> 'CallHandle'",
}


@pytest.mark.parametrize(("kind", "expected"), [(wayside.Hub, HUB), (wayside.Client, CLIENT)])
def test_a_class_has_these_methods(kind: type, expected: dict[str, str]) -> None:
    """Names and signatures are those that programs use, and each says what it is for."""
    methods = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}
    methods = {"": kind, **{name: member for name, member in methods.items() if callable(member)}}
    assert {name: str(inspect.signature(member)) for name, member in methods.items()} == expected
    assert all(inspect.getdoc(member) for member in methods.values())
