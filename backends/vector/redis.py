"""The vector store that many gateways share in one Redis or Valkey."""

import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Literal

import numpy as np
from redis.exceptions import ResponseError

from backends.redis_address import RedisAddress, place
from backends.redis_client import backend_errors, connect
from backends.vector.base import Neighbor, StoredVector, Vector
from backends.vector.checks import check_unit
from backends.vector.redis_commands import Commands, Shared
from backends.vector.redis_search import COMMANDS as SEARCH_COMMANDS
from backends.vector.redis_search import SearchIndex
from backends.vector.redis_sets import COMMANDS as SET_COMMANDS
from backends.vector.redis_sets import VectorSets
from models.errors import BackendError

_MOST = 1_000_000  # neighbours a search: the query engine refuses more

# By itself, and in a script.
_UNKNOWN_COMMAND = re.compile(r"(?i)(err )?unknown( redis)? command")

_logger = logging.getLogger(__name__)


class RedisVectorStore:
    """Searches with the query engine where the server has one, otherwise with vector sets.

    Which it is, is found out at the first use and said in the log.
    """

    def __init__(
        self,
        *,
        address: RedisAddress,
        dimensions: int,
        revision: str,
        index: Literal["hnsw", "flat"] = "hnsw",
        m: int = 16,
        ef_construction: int = 200,
        ef: int = 200,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Does not connect. `index`, `m` and `ef_construction` count when the index is made, `ef` in every search."""
        self.dimensions = dimensions
        self._address = address
        self._commands = Commands(connect(address))
        self._clock = clock
        self._revision = revision
        self._index = index
        self._m = m
        self._ef_construction = ef_construction
        self._ef = ef
        self._found: SearchIndex | VectorSets | None = None
        self._finding = Shared(self._find)
        self._closed = False

    async def load(self) -> None:
        """Waits while the server indexes what it has. Raises `BackendError`."""
        with self._errors():
            await (await self._engine()).load()

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        row = self._checked(vector)
        with self._errors():
            await (await self._engine()).upsert(namespace, entry_id, row, payload, ttl=ttl)

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        query = self._checked(vector)
        if limit <= 0:
            return []
        with self._errors():
            return await (await self._engine()).nearest(namespace, query, limit=min(limit, _MOST))

    async def delete(self, namespace: str, entry_id: str) -> None:
        with self._errors():
            await (await self._engine()).delete(namespace, entry_id)

    async def clear(self, prefix: str) -> int:
        """Goes in steps that others may write between; safe to repeat after a failure."""
        with self._errors():
            return await (await self._engine()).clear(prefix)

    async def entries(self, prefix: str) -> AsyncIterator[StoredVector]:
        with self._errors():
            async with aclosing((await self._engine()).entries(prefix)) as entries:  # type: ignore[type-var]
                async for entry in entries:
                    yield entry

    async def count(self) -> int:
        with self._errors():
            return await (await self._engine()).count()

    async def close(self) -> None:
        """Safe to repeat."""
        if not self._closed:
            self._closed = True
            with backend_errors():
                await self._commands.close()

    async def _engine(self) -> SearchIndex | VectorSets:
        if self._closed:
            raise BackendError("the vector store is closed")
        return self._found or await self._finding.done()

    async def _find(self) -> SearchIndex | VectorSets:
        if self._found is None:
            self._found = await self._engine_of_server()
        return self._found

    async def _engine_of_server(self) -> SearchIndex | VectorSets:
        """Raises `BackendError` where the server can hold no vectors."""
        commands = (*SEARCH_COMMANDS, *SET_COMMANDS)
        replies = await self._commands.read("COMMAND INFO", *commands)
        offered = {command for command, reply in zip(commands, replies, strict=True) if reply}
        where = place(self._address)
        searches, has_sets = offered.issuperset(SEARCH_COMMANDS), offered.issuperset(SET_COMMANDS)
        if searches and self._commands.database == 0:
            _logger.info("vectors are in the query engine of %s", where)
            return SearchIndex(
                self._commands,
                prefix=self._address.prefix,
                dimensions=self.dimensions,
                revision=self._revision,
                index=self._index,
                m=self._m,
                ef_construction=self._ef_construction,
                ef=self._ef,
                clock=self._clock,
            )
        if has_sets:
            _logger.info("vectors are in vector sets of %s", where)
            return VectorSets(
                self._commands,
                prefix=self._address.prefix,
                dimensions=self.dimensions,
                revision=self._revision,
                m=self._m,
                ef_construction=self._ef_construction,
                ef=self._ef,
                clock=self._clock,
            )
        if searches:
            raise BackendError(
                f"{where} can hold vectors in database 0 only, and not as a cluster: its query engine knows no other"
            )
        raise BackendError(
            f"{where} can hold no vectors: it has neither the query engine (Redis 8, or the search module) nor "
            "vector sets (Redis 8); use such a server, or set cache.vector.store to faiss or qdrant"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with backend_errors():
            try:
                yield
            except ResponseError as error:
                if _UNKNOWN_COMMAND.match(str(error)):
                    self._found = None  # it is another server than the one that was asked
                raise

    def _checked(self, vector: Vector) -> Vector:
        check_unit(vector, self.dimensions)
        return np.ascontiguousarray(vector, dtype=np.float32)
