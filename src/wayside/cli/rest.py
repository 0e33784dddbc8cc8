"""A small blocking client, as the command line needs it: publish, follow by each pattern, ask, create, delete.

Following reconnects and resumes from its own offset; publishing repeats safely, as an idempotent producer
(Durable Streams protocol, section 5.2.1).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from wayside.core.records import JSON, media_type

CREDIT = 256
"""Records that a push may be ahead of us."""


class HubError(Exception):
    """The hub refused: ``status``, the stable ``code``, and a sentence."""

    def __init__(self, status: int, code: str, detail: str, fields: dict[str, Any]) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = fields


class NoAnswer(Exception):
    """There is no hub at the URL, or the connection broke."""


class RestAnswer:
    """One complete HTTP answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class RestClient:
    """A hub at ``url``, over one kept-alive connection."""

    def __init__(self, url: str, *, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the URL of a hub; use one like http://127.0.0.1:7070")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._base = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self._connection: http.client.HTTPConnection | None = None

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout_s)

    def path(self, stream: str) -> str:
        """The URL path of a stream."""
        return f"{self._base}/v1/stream/{quote(stream, safe='/')}"

    def group_path(self, name: str) -> str:
        """The URL path of a group; without a name, of all."""
        return f"{self._base}/v1/group/{quote(name, safe='')}"

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        *,
        wait_s: float = 0,
    ) -> RestAnswer:
        """One exchange. Raises :class:`HubError` for a refusal, :class:`NoAnswer` where there was no answer."""
        repeatable = method != "POST" or not {"Producer-Id", "Wayside-Message-Id"}.isdisjoint(headers or {})
        while True:
            kept_alive = self._connection is not None
            connection = self._connection = self._connection or self._connect(self._timeout_s)
            connection.timeout = self._timeout_s + wait_s
            try:
                connection.request(method, path, body, headers or {})
                response = connection.getresponse()
                answer = RestAnswer(response.status, response.headers, response.read())
                break
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if not (kept_alive and repeatable and isinstance(error, ConnectionError)):
                    raise NoAnswer(f"{self.url}: {str(error) or type(error).__name__}") from error
        if answer.status >= 400:
            raise _error_of(answer.status, answer.body)
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- streams

    def create(self, stream: str, headers: dict[str, str]) -> RestAnswer:
        return self.request("PUT", self.path(stream), headers)

    def info(self, stream: str) -> http.client.HTTPMessage:
        """The header fields that describe a stream, by name in any case."""
        try:
            answer = self.request("HEAD", self.path(stream))
        except HubError as error:
            if error.code == "http" and error.status in (400, 404, 410):
                self.request("GET", f"{self.path(stream)}?offset=now")  # a HEAD has no body to say why
            raise
        for name in ("date", "server", "x-content-type-options", "cross-origin-resource-policy", "cache-control"):
            del answer.headers[name]
        del answer.headers["content-length"]
        return answer.headers

    def delete(self, stream: str) -> None:
        self.request("DELETE", self.path(stream))

    def close_stream(self, stream: str) -> str:
        """Returns the last offset."""
        answer = self.request("POST", self.path(stream), {"Stream-Closed": "true"})
        return str(answer.headers["Stream-Next-Offset"])

    def streams(self, prefix: str = "") -> Iterator[dict[str, Any]]:
        """Every stream whose path begins with ``prefix``."""
        after = ""
        while True:
            query = f"prefix={quote(prefix)}&after={quote(after)}&limit=1000"
            page = msgspec.json.decode(self.request("GET", f"{self._base}/v1/stream/?{query}").body)
            yield from page["streams"]
            if page["next"] is None:
                return
            after = page["next"]

    def presence(self, stream: str) -> dict[str, Any]:
        """Who is present at a stream, and the offset of what comes after."""
        answer = self.request("GET", f"{self._base}/v1/presence/{quote(stream, safe='/')}")
        present: dict[str, Any] = msgspec.json.decode(answer.body)
        return present

    # -- publishing

    def publisher(
        self,
        stream: str,
        content_type: str,
        *,
        retry_s: float,
        id: str = "",
        key: str = "",
        headers: Mapping[str, str] | None = None,
        ttl: float = 0.0,
        delay: float = 0.0,
    ) -> Publisher:
        """Of records with what is said of them; one with an ``id`` publishes one record."""
        said = {
            "Wayside-Key": key,
            "Wayside-TTL": f"{ttl:f}" if ttl else "",
            "Wayside-Delay": f"{delay:f}" if delay else "",
        }
        said |= {f"Wayside-Header-{name}": value for name, value in (headers or {}).items()}
        return Publisher(self, stream, content_type, retry_s, said, id)

    # -- following

    def follow(
        self,
        stream: str,
        via: str,
        offset: str,
        *,
        is_json: bool = True,
        interval_s: float = 1.0,
        retry_s: float = 0.0,
        on_retry: Callable[[Exception], None] | None = None,
        parameters: dict[str, str] | None = None,
        presence: bool = False,
    ) -> Iterator[tuple[str, bytes]]:
        """``(offset to read on from, data)`` until the stream is closed. ``parameters`` are more of the query: ``policy``,
        ``member`` and such. With ``presence`` it is the joins and leaves at the stream. Polls give what they got of a stream that is not
        JSON as one; and of several records only the last with the offset after it, the others with the one before all."""
        at = offset
        place = f"{self._base}/v1/presence/{quote(stream, safe='/')}" if presence else self.path(stream)
        target = f"{place}?{urlencode(parameters or {})}{'&' if parameters else ''}offset="
        patterns: dict[str, Callable[[str, str], Iterator[tuple[str, bytes | None, bool]]]] = {
            "poll": self._poll,
            "long-poll": self._long_poll,
            "sse": self._sse,
            "push": partial(self._push, is_json=is_json),
        }
        failing_since: float | None = None
        reached = False
        while True:
            try:
                given = patterns[via](target, at)
                for at, data, closed in given:
                    failing_since = None
                    reached = True
                    if data is not None:
                        yield at, data
                    if closed:
                        return
                if via == "poll":
                    time.sleep(interval_s)
            except (NoAnswer, HubError) as error:
                if isinstance(error, HubError) and not error.fields.get("retry"):
                    if reached and error.code == "stream-not-found":
                        raise HubError(404, error.code, f"{stream} was deleted.", error.fields) from error
                    raise
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > retry_s:
                    raise
                if on_retry is not None:
                    on_retry(error)
                time.sleep(0.2 + random.random() * 0.3)

    def _poll(self, target: str, at: str) -> Iterator[tuple[str, bytes | None, bool]]:
        answer = self.request("GET", target + quote(at))
        yield from _records(answer, at)

    def _long_poll(self, target: str, at: str) -> Iterator[tuple[str, bytes | None, bool]]:
        answer = self.request("GET", target + quote(at), {"Prefer": "wait=20"}, wait_s=20)
        yield from _records(answer, at)

    def _sse(self, target: str, at: str) -> Iterator[tuple[str, bytes | None, bool]]:
        connection = self._connect(self._timeout_s + 15)
        try:
            connection.request("GET", target + quote(at), headers={"Accept": "text/event-stream"})
            response = connection.getresponse()
            if response.status != 200:
                raise _error_of(response.status, response.read())
            yield at, None, False
            encoded = response.headers.get("Stream-SSE-Data-Encoding") == "base64"
            for event, identity, data in _events(response):
                if event == "closed":
                    yield identity, None, True
                elif event == "message":
                    yield identity, base64.b64decode(data) if encoded else data, False
                elif event == "deleted":
                    raise HubError(404, "stream-not-found", "The stream was deleted.", {})
                elif event == "lagged":
                    raise _lagged(identity)
            raise NoAnswer("the hub ended the response")
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{self.url}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()

    def _push(self, target: str, at: str, *, is_json: bool) -> Iterator[tuple[str, bytes | None, bool]]:
        url = f"ws{self.url[4:].removesuffix(self._base)}{target}{quote(at)}"
        try:
            with connect(url, subprotocols=["wayside.v1"], max_size=None, proxy=None) as socket:  # type: ignore[list-item]
                socket.send(f'{{"credit":{CREDIT}}}')
                yield at, None, False
                spent = 0
                for text in socket:
                    message = msgspec.json.decode(text, type=_PushedRecord)
                    if message.closed:
                        yield message.offset, None, True
                        return
                    if message.deleted:
                        raise HubError(404, "stream-not-found", "The stream was deleted.", {})
                    if message.lagged:
                        raise _lagged(message.offset)
                    if message.resume is not None:
                        break
                    yield message.offset, message.record(is_json=is_json), False
                    spent += 1
                    if spent == CREDIT // 2:
                        socket.send(f'{{"credit":{spent}}}')
                        spent = 0
            raise NoAnswer("the hub ended the push")
        except InvalidStatus as error:
            raise _error_of(error.response.status_code, bytes(error.response.body or b"")) from error
        except (OSError, ConnectionClosed, WebSocketException) as error:
            raise NoAnswer(f"{self.url}: {str(error) or type(error).__name__}") from error


class _PushedRecord(msgspec.Struct):
    offset: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")
    encoding: str | None = None
    closed: bool = False
    deleted: bool = False
    lagged: bool = False
    resume: str | None = None

    def record(self, *, is_json: bool) -> bytes:
        raw = bytes(self.data)
        if self.encoding == "base64":
            return base64.b64decode(msgspec.json.decode(raw))
        return raw if is_json else msgspec.json.decode(raw, type=str).encode()


class Publisher:
    """Appends in order, each once, whatever the connection does: by its number, or where that cannot be, with a message id
    and for what is delayed, by the id."""

    def __init__(
        self, client: RestClient, stream: str, content_type: str, retry_s: float, said: dict[str, str], identity: str
    ) -> None:
        self._client = client
        self._stream = stream
        self._name = f"cli-{secrets.token_hex(8)}"
        self._identity = identity
        self._identified = bool(identity or said.get("Wayside-Delay"))
        self._headers = {"Content-Type": content_type}
        for name, value in said.items():
            if value:  # in UTF-8, as bytes that http.client takes for Latin-1
                self._headers[name] = value.encode().decode("latin-1")
        if not self._identified:
            self._headers |= {"Producer-Id": self._name, "Producer-Epoch": "0"}
        self.duplicates = 0
        """Records that had been published before."""
        self._json = media_type(content_type) == JSON
        self._retry_s = retry_s
        self._seq = 0

    @property
    def batches(self) -> bool:
        """Whether several records fit into one append."""
        return self._json and not self._identified

    def send(self, records: list[bytes]) -> str:
        """Append; returns the offset after it, or when it is due. More than one record only where ``batches``."""
        body = b"[" + b",".join(records) + b"]" if self._json else records[0]
        headers = {**self._headers}
        if self._identified:
            identity = self._identity or f"{self._name}-{self._seq}"
            headers["Wayside-Message-Id"] = identity.encode().decode("latin-1")
        else:
            headers["Producer-Seq"] = str(self._seq)
        deadline = time.monotonic() + self._retry_s
        while True:
            try:
                answer = self._client.request("POST", self._client.path(self._stream), headers, body)
                break
            except NoAnswer:
                if time.monotonic() > deadline:
                    raise
            except HubError as error:
                if not error.fields.get("retry") or time.monotonic() > deadline:
                    raise
            time.sleep(0.2 + random.random() * 0.3)
        self._seq += 1
        self.duplicates += answer.headers.get("Wayside-Duplicate") == "true"
        return str(answer.headers["Stream-Next-Offset"] or f"due {answer.headers['Wayside-Due']}")


def _records(answer: RestAnswer, before: str) -> Iterator[tuple[str, bytes | None, bool]]:
    offset = str(answer.headers["Stream-Next-Offset"])
    closed = answer.headers.get("Stream-Closed") == "true"
    records = [answer.body] if answer.body else []
    if media_type(answer.headers.get("Content-Type", "")) == JSON and answer.body:
        records = [bytes(raw) for raw in msgspec.json.decode(answer.body, type=list[msgspec.Raw])]
    for record in records[:-1]:
        yield before, record, False  # whoever stops here and reads on from there misses nothing
    for record in records[-1:]:
        yield offset, record, False
    yield offset, None, closed


def _events(lines: Iterable[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """Server-sent events as (event, last id, data); WHATWG HTML section 9.2.6."""
    event, identity = "message", ""
    data: list[bytes] = []
    for line in lines:
        line = line.rstrip(b"\r\n")
        if not line:
            if data:
                yield event, identity, b"\n".join(data)
            event, data = "message", []
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"id":
            identity = value.decode("latin-1")
        elif name == b"event":
            event = value.decode("latin-1")


def _lagged(offset: str) -> HubError:
    text = f"This reader was too far behind, and was ended. Read on from {offset}, or afresh from now."
    return HubError(409, "lagged", text, {"offset": offset})


def _error_of(status: int, body: bytes) -> HubError:
    with contextlib.suppress(msgspec.DecodeError):
        problem = msgspec.json.decode(body)
        if isinstance(problem, dict) and "detail" in problem:
            return HubError(status, str(problem.get("code", "")), str(problem["detail"]), problem)
    return HubError(status, "http", f"The answer was HTTP {status}.", {})
