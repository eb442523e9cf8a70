"""The protocol of a vector store."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


class Neighbor(msgspec.Struct, frozen=True, gc=False):
    """An entry and its cosine similarity to the vector asked for, in [-1, 1]."""

    entry_id: str
    similarity: float
    payload: bytes


class StoredVector(NamedTuple):
    """`expires_at` in seconds since the epoch, infinite without a TTL."""

    namespace: str
    entry_id: str
    vector: Vector
    payload: bytes
    expires_at: float


class VectorStore(Protocol):
    """Unit vectors of `dimensions` float32, by namespace.

    Namespaces are `/`-joined paths, many and mostly tiny; a search sees one of
    them and nothing else. An entry past its TTL is never returned and takes no
    place in the result. Failures are `BackendError`, a full store `StoreFull`,
    a vector of other dimensions `ValueError`. A store is made without waiting
    for what is behind it, and comes to life by itself when that is there.
    """

    dimensions: int

    async def load(self) -> None:
        """Returns when every entry kept can be found; safe to repeat."""

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        """Adds the entry or replaces it. Every process that shares the store finds it in its next search."""

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        """At most `limit` neighbours, most similar first."""

    async def delete(self, namespace: str, entry_id: str) -> None: ...

    async def clear(self, prefix: str) -> int:
        """Removes the namespace `prefix` and all below it (`prefix/…`); `""` is everything. How many went."""

    def entries(self, prefix: str) -> AsyncIterator[StoredVector]:
        """Every live entry of the namespace `prefix` and all below it, once, in any order, a few at a time. Of what is
        written or goes meanwhile it may have the one or the other."""

    async def count(self) -> int: ...

    async def close(self) -> None: ...
