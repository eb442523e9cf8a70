"""Vectors in the query engine of Redis or Valkey: a hash an entry, an index over all of them."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from redis.exceptions import ResponseError

from backends.vector.base import Neighbor, StoredVector, Vector
from backends.vector.names import ancestry, decoded, encoded
from backends.vector.redis_commands import Commands, Shared
from backends.vector.redis_names import SHORT, lifetime, short, space
from models.errors import BackendError

COMMANDS = ("FT.SEARCH", "FT.CREATE", "FT.INFO", "FT.EXPLAIN")

_PAGE = 200  # keys a reply
_ENTRIES_PAGE = 32  # a payload may have a megabyte
_POLL_SECONDS = 0.05

# Whole or not at all, also where the connection breaks. What is written without an index would be found by nobody: that
# it is there is asked first, as the server would not say.
_UPSERT = """
redis.call('FT.EXPLAIN', ARGV[1], '*')
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
if tonumber(ARGV[2]) < 0 then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
"""

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class SearchIndex:
    """One index an embedder. Hashes are indexed as they are written, so the next search finds them.

    The server removes what expired; until it has, it is left out by the query.
    An index that the server has lost is made again when that is noticed, which
    is at the next write or search.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        prefix: str,
        dimensions: int,
        revision: str,
        index: Literal["hnsw", "flat"],
        m: int,
        ef_construction: int,
        ef: int,
        clock: Callable[[], float],
    ) -> None:
        self._commands = commands
        self._dimensions = dimensions
        self._clock = clock
        self._ef = ef
        self._name = f"{prefix}:v:{space(revision, dimensions)}"
        self._made = False
        self._making = Shared(self._make)
        self._graph = index == "hnsw"
        self._settings = f"hnsw, m {m}, ef_construction {ef_construction}" if index == "hnsw" else "flat"
        vector: list[str | int] = ["TYPE", "FLOAT32", "DIM", dimensions, "DISTANCE_METRIC", "COSINE"]
        if index == "hnsw":
            vector += ["M", m, "EF_CONSTRUCTION", ef_construction]
        self._schema = ["vector", "VECTOR", index.upper(), len(vector), *vector]
        self._schema += ["ns", "TAG", "path", "TAG", "expires", "NUMERIC"]

    async def load(self) -> None:
        """Waits while the server indexes what it has, as after a restart."""
        self._made = False
        await self._making.done()
        while int((await self._described()).get("indexing", 0)):  # noqa: ASYNC110 - on a server, where no event is
            await asyncio.sleep(_POLL_SECONDS)

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        milliseconds = lifetime(ttl)
        fields: list[bytes | str] = ["vector", vector.tobytes(), "ns", short(namespace)]
        fields += ["path", ",".join(ancestry(namespace, size=SHORT))]
        fields += ["expires", repr(math.inf if ttl is None else self._clock() + ttl)]
        fields += ["namespace", encoded(namespace), "id", encoded(entry_id), "payload", payload]
        key, life = self._key(namespace, entry_id), -1 if milliseconds is None else milliseconds
        await self._with_index(
            lambda: self._commands.write("EVAL", _UPSERT, 1, key, self._name, life, *fields),
        )

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        blob = vector.tobytes()
        now = self._clock()
        mine = f"@ns:{{{short(namespace)}}}"
        # The server has removed nearly all that expired. Only where it has not, the query asks for times as well,
        # which takes four times as long in a small namespace of a large index.
        for query in (mine, f"{mine} @expires:[({now!r} +inf]"):
            hits = await self._with_index(lambda query=query: self._search(query, blob, limit))  # type: ignore[misc]
            if all(hit and float(hit[b"expires"]) > now for hit in hits):
                break
        return [
            Neighbor(decoded(hit[b"id"]), min(1.0, max(-1.0, 1.0 - float(hit[b"gap"]))), hit[b"payload"])
            for hit in hits
            if hit and float(hit[b"expires"]) > now
        ]

    async def delete(self, namespace: str, entry_id: str) -> None:
        await self._commands.write("UNLINK", self._key(namespace, entry_id))

    async def clear(self, prefix: str) -> int:
        count = met = 0
        most: int | None = None
        last: list[bytes] = []
        while most is None or met < most:
            now = self._clock()
            query = (_below(prefix), "RETURN", 1, "expires", "LIMIT", 0, _PAGE, "TIMEOUT", 0)
            total, *found = await self._with_index(lambda query=query: self._command("FT.SEARCH", *query))  # type: ignore[misc]
            # The oldest come first; who waits for the last of those that others go on writing would wait for ever.
            most = most or 2 * int(total)
            keys = found[::2]
            if not keys or keys == last:  # the same again: they expired, and the server has not noticed
                break
            removed = await self._commands.page([("UNLINK", key) for key in keys])
            for fields, gone in zip(found[1::2], removed, strict=True):
                count += bool(gone and fields and float(fields[1]) > now)
            last, met = keys, met + len(keys)
        return count

    async def entries(self, prefix: str) -> AsyncIterator[StoredVector]:
        """Walks over all keys of the database: a cursor of the query engine loses some where others write."""
        wanted, below = ("namespace", "id", "vector", "payload", "expires"), short(prefix).encode()
        async for keys in self._commands.keys(f"{self._name}:", ""):
            paths = await self._commands.page([("HGET", key, "path") for key in keys])
            mine = [
                key for key, path in zip(keys, paths, strict=True) if path and (not prefix or below in path.split(b","))
            ]
            for start in range(0, len(mine), _ENTRIES_PAGE):
                some = mine[start : start + _ENTRIES_PAGE]
                for fields in await self._commands.page([("HMGET", key, *wanted) for key in some]):
                    if None not in fields and float(fields[4]) > self._clock():
                        yield _stored(*fields)

    async def count(self) -> int:
        query = f"@expires:[({self._clock()!r} +inf]"
        total, *_ = await self._with_index(lambda: self._command("FT.SEARCH", query, "LIMIT", 0, 0, "TIMEOUT", 0))
        return int(total)

    def _key(self, namespace: str, entry_id: str) -> str:
        return f"{self._name}:{short(namespace)}:{short(entry_id)}"

    async def _search(self, query: str, blob: bytes, limit: int) -> list[dict[bytes, bytes]]:
        """The fields of each, nearest first; none of one that went while it was found."""
        effort = f"EF_RUNTIME {max(self._ef, limit)}" if self._graph else ""
        _, *found = await self._command(
            "FT.SEARCH",
            f"({query})=>[KNN {limit} @vector $v {effort} AS gap]",
            *("PARAMS", 2, "v", blob, "SORTBY", "gap", "LIMIT", 0, limit),
            *("RETURN", 4, "id", "payload", "expires", "gap"),
        )
        hits = [dict(zip(fields[::2], fields[1::2], strict=True)) if fields else {} for fields in found[1::2]]
        return [hit if len(hit) == 4 else {} for hit in hits]

    async def _command(self, command: str, *arguments: bytes | str | int) -> Any:
        return await self._commands.read(command, self._name, *arguments, "DIALECT", 2)

    async def _with_index(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does it, and once more if the server has lost the index since it was seen."""
        if not self._made:
            await self._making.done()
        try:
            return await work()
        except ResponseError as error:
            if not _is_lost(error):
                raise
            self._made = False
        await self._making.done()
        return await work()

    async def _make(self) -> None:
        """Makes the index unless it is there, and looks whether it is ours."""
        if self._made:
            return
        try:
            described = await self._described()
        except ResponseError as error:
            if not _is_lost(error):
                raise
            try:
                await self._commands.write(
                    "FT.CREATE", self._name, "ON", "HASH", "PREFIX", 1, f"{self._name}:", "SCHEMA", *self._schema
                )
            except ResponseError as refused:
                if "already exists" not in str(refused):  # another gateway was faster
                    raise
            described = await self._described()
        fields = [_pairs(attribute) for attribute in described["attributes"]]
        vector = next((field for field in fields if field.get("identifier") == b"vector"), {})
        made_for = (vector.get("dim"), vector.get("data_type"), vector.get("distance_metric"))
        if made_for != (self._dimensions, b"FLOAT32", b"COSINE"):
            raise BackendError(
                f"the index {self._name} in Redis was made for other vectors than this embedder's: set another "
                f"redis.prefix, or drop it with its entries: FT.DROPINDEX {self._name} DD"
            )
        self._graph = vector.get("algorithm") == b"HNSW"
        settings = "flat"
        if self._graph:
            settings = f"hnsw, m {vector.get('M')}, ef_construction {vector.get('ef_construction')}"
        if settings != self._settings:
            _logger.warning(
                "the index %s in Redis stays as it was made: %s; for %s, drop it, and its entries are indexed anew: "
                "FT.DROPINDEX %s",
                *(self._name, settings, self._settings, self._name),
            )
        self._made = True

    async def _described(self) -> dict[str, Any]:
        return _pairs(await self._commands.read("FT.INFO", self._name))


def _stored(namespace: bytes, entry_id: bytes, vector: bytes, payload: bytes, expires: bytes) -> StoredVector:
    row = np.frombuffer(vector, dtype=np.float32).copy()
    return StoredVector(decoded(namespace), decoded(entry_id), row, payload, float(expires))


def _below(prefix: str) -> str:
    return f"@path:{{{short(prefix)}}}" if prefix else "*"


def _pairs(flat: Sequence[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=False)}


def _is_lost(error: ResponseError) -> bool:
    text = str(error).lower()
    return "no such index" in text or "unknown index name" in text or "search_index_not_found" in text
