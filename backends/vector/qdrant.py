"""Qdrant as a vector store that many gateways share."""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import numpy as np

from backends.vector.base import Neighbor, StoredVector, Vector
from backends.vector.checks import check_unit
from backends.vector.names import ancestry, decoded, encoded, hashed
from backends.vector.qdrant_rest import Missing, Point, Rest, Taken, Unreachable, closed, unreadable
from models.errors import BackendError, ConfigError

_CONNECTIONS = 32
_NEVER = 1e15  # JSON has no infinity
_EXACT_KILOBYTES = 10_000  # of vectors: fewer are compared one by one, as 6,600 of 384 dimensions are
_HASH = 16  # bytes
_MOST = 1_000_000  # neighbours a search
_PAGE = 64  # entries; with their payloads
_SWEEP_SECONDS = 30.0
_SWEEP_STEP = 1_000  # entries a call, so that searches get in between
_LOOK_SECONDS = 2.0  # all calls wait for the first look
_LONG_SECONDS = 120.0  # calls that walk over many entries
_INDEXES: dict[str, Any] = {
    "space": {"type": "keyword", "is_tenant": True},
    "path": {"type": "keyword", "enable_hnsw": False},  # servers before 1.17 take no notice of the second
    "expires": {"type": "float", "enable_hnsw": False},
}

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_chance = secrets.SystemRandom()


class _VectorParams(msgspec.Struct):
    vectors: dict[str, Any]


class _Config(msgspec.Struct):
    params: _VectorParams
    metadata: dict[str, Any] | None = None


class _Info(msgspec.Struct):
    config: _Config
    payload_schema: dict[str, Any]


class _Name(msgspec.Struct):
    name: str


class _Names(msgspec.Struct):
    collections: list[_Name]


class _Count(msgspec.Struct):
    count: int


class _Payload(msgspec.Struct):
    expires: float
    entry: bytes


class _Record(msgspec.Struct):
    id: str
    payload: _Payload
    vector: list[float]


class _Page(msgspec.Struct):
    points: list[_Record]
    next_page_offset: str | None


class _Id(msgspec.Struct):
    id: str


class _Ids(msgspec.Struct):
    points: list[_Id]


class QdrantStore:
    """One collection for each revision of an embedder below `prefix`, made when it is first used, and again if lost.

    A collection of that name which another embedder or program made is refused
    with a `BackendError` that says so. Of equal similarities any may come first.
    """

    def __init__(
        self,
        *,
        url: str,
        dimensions: int,
        revision: str,
        api_key: str | None = None,
        grpc: bool | None = None,
        grpc_port: int = 6334,
        ca_file: Path | None = None,
        prefix: str = "keepgate",
        m: int = 16,
        ef_construct: int = 100,
        ef: int = 256,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`url` is the HTTP one, which everything but searches and writes goes over in any case. `grpc` None: these
        two go over gRPC if grpcio is installed and the port answers. Raises `ConfigError`."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", prefix):
            raise ConfigError(f"qdrant.prefix: {prefix!r} is not 1 to 100 letters, digits, '_', '.' or '-'")
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError("qdrant.url: expected http://HOST:PORT or https://HOST:PORT")
        self.dimensions = dimensions
        self._revision = revision
        self._prefix = prefix
        self._collection = f"{prefix}-{_digest(revision)[:16]}-{dimensions}"
        self._hnsw = {
            "m": m,
            "payload_m": m,  # more links within each namespace that is large, and too small a part of the whole
            "ef_construct": ef_construct,
            "full_scan_threshold": _EXACT_KILOBYTES,
        }
        self._ef = ef
        self._clock = clock
        self._rest = Rest(url, api_key=api_key, ca_file=ca_file, connections=_CONNECTIONS)
        self._wants_grpc = grpc
        host = f"[{address.hostname}]" if ":" in address.hostname else address.hostname
        self._grpc = (
            None
            if grpc is False
            else _grpc(
                f"{host}:{grpc_port}",
                needed=grpc is True,
                api_key=api_key,
                tls=address.scheme == "https",
                ca_file=ca_file,
                calls=_CONNECTIONS,
            )
        )
        self._points: Any = None  # whichever of the two carries searches and writes; None until the collection is there
        self._preparing: asyncio.Task[Any] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def load(self) -> None:
        """Returns when the collection is there. Raises `BackendError`."""
        await self._prepared()

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        check_unit(vector, self.dimensions)
        space = _space(namespace)
        point = Point(
            point_id=_point_id(space, entry_id),
            vector=vector.copy(),
            space=space,
            path=ancestry(namespace, size=_HASH),
            expires=_NEVER if ttl is None else min(self._clock() + ttl, _NEVER),
            entry=msgspec.msgpack.encode((encoded(namespace), encoded(entry_id), payload)),
        )
        await self._run(lambda points: points.upsert(self._collection, point))

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        check_unit(vector, self.dimensions)
        query = vector.copy()
        if limit <= 0:
            return []
        space, most = _space(namespace), min(limit, _MOST)
        found = await self._run(
            lambda points: points.query(
                self._collection, query, space=space, now=self._clock(), limit=most, ef=max(self._ef, most)
            )
        )
        return [_neighbor(similarity, entry) for similarity, entry in found]

    async def delete(self, namespace: str, entry_id: str) -> None:
        point_id = _point_id(_space(namespace), entry_id)
        await self._post("points/delete?wait=true", {"points": [point_id]})

    async def clear(self, prefix: str) -> int:
        """What is written meanwhile may go too, and is not counted."""
        below = _below(prefix)
        count = await self._count([*below, self._live()])
        await self._post("points/delete?wait=true", {"filter": {"must": below}}, within=_LONG_SECONDS)
        return count

    async def entries(self, prefix: str) -> AsyncIterator[StoredVector]:
        """Every live entry of the namespace `prefix` and all below it, in pages. Raises `BackendError`."""
        offset: str | None = None
        while True:
            asked = {"limit": _PAGE, "with_payload": ["expires", "entry"], "with_vector": True, "offset": offset}
            live = {"must": [*_below(prefix), self._live()]}
            page = _result(_Page, await self._post("points/scroll", {**asked, "filter": live}))
            for record in page.points:
                yield _stored(record)
            offset = page.next_page_offset
            if offset is None:
                return

    async def count(self) -> int:
        return await self._count([self._live()])

    async def sweep(self) -> int:
        """Removes what has expired, as happens by itself twice a minute. How many."""
        expired = {"key": "expires", "range": {"lte": self._clock()}}
        count = 0
        while True:
            asked = {"filter": {"must": [expired]}, "limit": _SWEEP_STEP, "with_payload": False}
            ids = [
                point.id
                for point in _result(_Ids, await self._post("points/scroll", asked, within=_LONG_SECONDS)).points
            ]
            if not ids:
                return count
            # One that was written again since is not removed.
            gone = {"filter": {"must": [{"has_id": ids}, expired]}}
            await self._post("points/delete?wait=true", gone, within=_LONG_SECONDS)
            count += len(ids)

    async def close(self) -> None:
        """Safe to repeat."""
        self._closed = True
        for task in (self._sweeper, self._preparing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, BackendError):
                    await task
        self._points = None
        if self._grpc is not None:
            await self._grpc.close()
        await self._rest.close()

    # Calls.

    async def _run(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """Once more if the collection was lost: that one is then empty, and there."""
        points = self._points or await self._prepared()
        try:
            return await call(points)
        except Missing:
            self._points = None
            return await call(await self._prepared())
        except Unreachable:
            self._points = None  # what comes back may be without the collection, or without gRPC
            raise

    async def _post(self, path: str, body: Any, **options: float) -> bytes:
        whole = f"/collections/{self._collection}/{path}"
        return await self._run(lambda _: self._rest.call("POST", whole, body, **options))

    async def _count(self, conditions: list[Any]) -> int:
        asked = {"filter": {"must": conditions}, "exact": True}
        return _result(_Count, await self._post("points/count", asked, within=_LONG_SECONDS)).count

    def _live(self) -> dict[str, Any]:
        return {"key": "expires", "range": {"gt": self._clock()}}

    # The collection.

    async def _prepared(self) -> Any:
        """Shared by all that wait, and goes on when they leave: a short deadline must not begin it anew each time."""
        if self._closed:
            raise closed()
        if self._points is not None:
            return self._points
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare())
            self._preparing.add_done_callback(self._has_prepared)
        preparing = self._preparing
        try:
            return await asyncio.shield(preparing)
        except asyncio.CancelledError:
            if preparing.cancelled():  # by `close`; if the caller was cancelled too, it will find out
                raise closed() from None
            raise
        except BackendError as error:
            raise type(error)(str(error)) from error  # one each: raising adds to an exception's traceback

    def _has_prepared(self, task: asyncio.Task[Any]) -> None:
        self._preparing = None
        if not task.cancelled():
            task.exception()  # whoever waited has been told; nobody may have

    async def _prepare(self) -> Any:
        info = await self._collection_info()
        for field in _INDEXES.keys() - info.payload_schema.keys():
            body = {"field_name": field, "field_schema": _INDEXES[field]}
            path = f"/collections/{self._collection}/index?wait=true"
            await self._rest.call("PUT", path, body, within=_LONG_SECONDS)
        self._points = await self._carrier()
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._keep_sweeping())
        return self._points

    async def _collection_info(self) -> _Info:
        path = f"/collections/{self._collection}"
        try:
            answer = await self._rest.call("GET", path, within=_LOOK_SECONDS)
        except Missing:
            await self._create(path)
            answer = await self._rest.call("GET", path, within=_LOOK_SECONDS)
        info = _result(_Info, answer)
        vectors = info.config.params.vectors
        fits = (vectors.get("size"), vectors.get("distance")) == (self.dimensions, "Cosine")
        made_by = (info.config.metadata or {}).get("revision")
        if made_by != self._revision or not fits:
            raise BackendError(
                f"the Qdrant collection {self._collection} was not made for the embedder {self._revision!r} with"
                f" {self.dimensions} dimensions (it says {made_by!r}; a server before 1.16 cannot say): set another"
                " prefix, or delete the collection"
            )
        return info

    async def _create(self, path: str) -> None:
        body = {
            "vectors": {"size": self.dimensions, "distance": "Cosine"},
            "hnsw_config": self._hnsw,
            "metadata": {"revision": self._revision, "made_by": "keepgate"},
        }
        others = [
            one.name
            for one in _result(_Names, await self._rest.call("GET", "/collections")).collections
            if re.fullmatch(rf"{re.escape(self._prefix)}-[0-9a-f]{{16}}-\d+", one.name) and one.name != self._collection
        ]
        if others:
            _logger.info(
                "%s is new: entries of other embedders stay in %s until you delete these collections",
                self._collection,
                ", ".join(others),
            )
        try:
            await self._rest.call("PUT", path, body, within=_LONG_SECONDS)
        except Taken as taken:
            _logger.debug("%s: %s", self._collection, taken)

    async def _carrier(self) -> Any:
        if self._grpc is None:
            return self._rest
        try:
            await self._grpc.probe()
        except BackendError as error:
            if self._wants_grpc:
                raise
            _logger.info("searching Qdrant over HTTP: %s", error)
            return self._rest
        return self._grpc

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS * _chance.uniform(0.5, 1.5))  # not all processes at once
            try:
                await self.sweep()
            except BackendError as error:
                _logger.warning("expired entries were not removed from Qdrant: %s", error)


def _grpc(target: str, *, needed: bool, **options: Any) -> Any:
    from backends.vector.qdrant_grpc import Grpc  # only those who use it pay for it

    try:
        return Grpc(target, **options)
    except ModuleNotFoundError as error:
        if needed:
            raise ConfigError(f"qdrant.grpc needs the package {error.name!r}: pip install grpcio") from error
        return None


def _result(kind: type[T], answer: bytes) -> T:
    try:
        raw = msgspec.json.decode(answer, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(raw["result"], type=kind)
    except (msgspec.DecodeError, KeyError) as error:
        raise unreadable() from error


def _neighbor(similarity: float, entry: bytes) -> Neighbor:
    _, entry_id, payload = _unpacked(entry)
    return Neighbor(decoded(entry_id), min(1.0, max(-1.0, similarity)), payload)  # NaN, which others may write, is -1


def _stored(record: _Record) -> StoredVector:
    namespace, entry_id, payload = _unpacked(record.payload.entry)
    expires = record.payload.expires
    return StoredVector(
        namespace=decoded(namespace),
        entry_id=decoded(entry_id),
        vector=np.array(record.vector, dtype=np.float32),
        payload=payload,
        expires_at=math.inf if expires >= _NEVER else expires,
    )


def _unpacked(entry: bytes) -> tuple[bytes, bytes, bytes]:
    try:
        return msgspec.msgpack.decode(entry, type=tuple[bytes, bytes, bytes])
    except msgspec.DecodeError as error:
        raise unreadable() from error


def _below(prefix: str) -> list[dict[str, Any]]:
    return [{"key": "path", "match": {"value": _space(prefix)}}] if prefix else []


def _space(namespace: str) -> str:
    return _digest(namespace)


def _point_id(space: str, entry_id: str) -> str:
    return _digest(space + entry_id)  # a space is of fixed length; the server takes this for a UUID


def _digest(text: str) -> str:
    return hashed(text, size=_HASH)
