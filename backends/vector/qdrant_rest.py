"""Qdrant over HTTP: the calls a store makes, in JSON."""

import asyncio
import io
import re
import ssl
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec

from backends.vector.base import Vector
from models.errors import BackendError, ConfigError, StoreFull

# A backstop: whoever calls has a deadline of its own.
_SECONDS = 5.0
_CONNECT_SECONDS = 2.0
_QUEUE_SECONDS = 30.0  # for one of the connections, when many write at once
_IDLE_SECONDS = 3.0  # the server closes what is idle for five, which must not meet a call on its way
_LARGE = 1 << 20  # bytes; a body beyond is sent in pieces, so that others get in between
# What the server's own message says of a disk, a quota or a limit of strict mode that is reached; there is no code.
_FULL = re.compile(r"no space left|disk|memory|quota|limit", re.IGNORECASE)
_NO_ROOM = (400, 403, 413, 429, 500, 507)


class Missing(BackendError):
    """There is no such collection."""


class Taken(BackendError):
    """There is a collection of this name already."""


class Unreachable(BackendError):
    """Nothing that could answer is there now."""


class Point(NamedTuple):
    """`space` and `path` are hashes, `expires` is seconds since the epoch and finite, `entry` is whatever the store
    wants back."""

    point_id: str
    vector: Vector
    space: str
    path: list[str]
    expires: float
    entry: bytes


class _Payload(msgspec.Struct, gc=False):
    entry: bytes


class _Found(msgspec.Struct, gc=False):
    score: float
    payload: _Payload


class _Points(msgspec.Struct, gc=False):
    points: list[_Found]


class _Answer(msgspec.Struct, gc=False):
    result: _Points


_encoder = msgspec.json.Encoder()
_found = msgspec.json.Decoder(_Answer)


class Rest:
    """One connection a call at a time, at most `connections`. Nothing is retried. Raises `BackendError`."""

    def __init__(self, url: str, *, api_key: str | None, ca_file: Path | None, connections: int) -> None:
        self._url = url.rstrip("/")
        # Compressed answers come in two pieces, and the second one waits 40 ms for the first to be acknowledged.
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if api_key is not None:
            self._headers["api-key"] = api_key
        self._tls = _trusting(ca_file) if urlsplit(url).scheme == "https" else None
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def call(self, method: str, path: str, body: Any = None, *, within: float = _SECONDS) -> bytes:
        """What the server answered, which takes it at most `within` seconds."""
        data = b"" if body is None else _encoder.encode(body)
        session = self._open()
        try:
            async with session.request(
                method,
                self._url + path,
                data=io.BytesIO(data) if len(data) > _LARGE else data or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=_QUEUE_SECONDS + within, sock_connect=_CONNECT_SECONDS, sock_read=within
                ),
            ) as answer:
                status, text = answer.status, await answer.read()
        except asyncio.CancelledError:
            if session.closed:  # which cancels those who wait for a connection
                raise closed() from None
            raise
        except TimeoutError as error:
            raise Unreachable(f"Qdrant did not answer within {within:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"Qdrant cannot be reached: {type(error).__name__}") from error
        if status != 200:
            raise _refused(status, text)
        return text

    async def query(
        self, collection: str, vector: Vector, *, space: str, now: float, limit: int, ef: int
    ) -> list[tuple[float, bytes]]:
        """Cosine and `entry` of those of `space` that expire after `now`, most similar first."""
        answer = await self.call(
            "POST",
            f"/collections/{collection}/points/query",
            {
                "query": vector.tolist(),
                "filter": {
                    "must": [
                        {"key": "space", "match": {"value": space}},
                        {"key": "expires", "range": {"gt": now}},
                    ]
                },
                "params": {"hnsw_ef": ef},
                "limit": limit,
                "with_payload": ["entry"],
            },
        )
        try:
            return [(found.score, found.payload.entry) for found in _found.decode(answer).result.points]
        except msgspec.DecodeError as error:
            raise unreadable() from error

    async def upsert(self, collection: str, point: Point) -> None:
        await self.call(
            "PUT",
            f"/collections/{collection}/points?wait=true",
            {
                "points": [
                    {
                        "id": point.point_id,
                        "vector": point.vector.tolist(),
                        "payload": {
                            "space": point.space,
                            "path": point.path,
                            "expires": point.expires,
                            "entry": point.entry,
                        },
                    }
                ]
            },
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            # Sockets under TLS are closed by the loop's next turns.
            await asyncio.sleep(0)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._connections, keepalive_timeout=_IDLE_SECONDS, ssl=self._tls or True
            )
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self._session


def failure(code: str, message: str, *, full: bool) -> BackendError:
    """`code` is the server's; of its message only what it is about is told: it may quote what was sent."""
    if full and _FULL.search(message):
        return StoreFull(f"Qdrant has no room for another entry ({code})")
    return BackendError(f"Qdrant refused a call ({code})")


def closed() -> BackendError:
    return BackendError("the Qdrant store is closed")


def missing() -> Missing:
    return Missing("Qdrant has no such collection, nor can one be made there: is qdrant.url right?")


def no_access() -> BackendError:
    return BackendError("Qdrant refused the API key: see qdrant.api_key")


def unreadable() -> BackendError:
    return BackendError("Qdrant's answer cannot be read: is its collection also written by another program?")


def _refused(status: int, text: bytes) -> BackendError:
    message = text.decode(errors="replace")
    if status == 404:
        return missing()
    if status == 409:
        return Taken("another process made the collection first")
    if status == 401 or (status == 403 and not _FULL.search(message)):
        return no_access()
    if status in (502, 503, 504):
        return Unreachable(f"Qdrant is not ready ({status})")
    return failure(str(status), message, full=status in _NO_ROOM)


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"qdrant.ca_file: {ca_file} cannot be used: {error}") from error
