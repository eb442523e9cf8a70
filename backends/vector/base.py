"""The protocol of a vector store."""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


class Neighbor(msgspec.Struct, frozen=True, gc=False):
    """An entry and its cosine similarity to the vector asked for, in [-1, 1]."""

    entry_id: str
    similarity: float
    payload: bytes


class VectorStore(Protocol):
    """Unit vectors of `dimensions` float32, by namespace.

    Namespaces are `/`-joined paths, many and mostly tiny; a search sees one of
    them and nothing else. An entry past its TTL is never returned and takes no
    place in the result. Failures are `BackendError`, a full store `StoreFull`,
    a vector of other dimensions `ValueError`.
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

    async def count(self) -> int: ...

    async def close(self) -> None: ...
