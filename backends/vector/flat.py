"""Vectors in one process's memory: the reference that every other store is held against."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import numpy as np

from backends.vector.base import Neighbor, StoredVector, Vector
from backends.vector.checks import check_shape

_AT_ONCE = 256


class _Entry(msgspec.Struct, frozen=True):
    vector: Vector
    payload: bytes
    expires_at: float


class FlatStore:
    """Compares with every live entry of the namespace. Nothing is kept after `close`."""

    def __init__(self, *, dimensions: int, revision: str = "", clock: Callable[[], float] = time.time) -> None:
        self.dimensions = dimensions
        self.revision = revision  # no vectors of another are ever here
        self._clock = clock
        self._entries: dict[str, dict[str, _Entry]] = {}

    async def load(self) -> None:
        """Nothing outlives the process."""

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        check_shape(vector, self.dimensions)
        expires_at = float("inf") if ttl is None else self._clock() + ttl
        entries = self._live(namespace)
        entries.pop(entry_id, None)  # a replaced entry is the newest one, also among equals
        entries[entry_id] = _Entry(np.array(vector, dtype=np.float32), payload, expires_at)
        self._entries[namespace] = entries

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        check_shape(vector, self.dimensions)
        entries = self._live(namespace)
        if not entries:
            return []
        similarities = np.vecdot(np.stack([entry.vector for entry in entries.values()]), vector)
        closest = np.argsort(-similarities, kind="stable")[: max(limit, 0)]
        ids = list(entries)
        return [
            Neighbor(ids[row], max(-1.0, min(1.0, float(similarities[row]))), entries[ids[row]].payload)
            for row in closest
        ]

    async def delete(self, namespace: str, entry_id: str) -> None:
        self._entries.get(namespace, {}).pop(entry_id, None)

    async def clear(self, prefix: str) -> int:
        cleared = [name for name in self._entries if prefix in ("", name) or name.startswith(f"{prefix}/")]
        count = sum(len(self._live(name)) for name in cleared)
        for name in cleared:
            del self._entries[name]
        return count

    async def entries(self, prefix: str) -> AsyncIterator[StoredVector]:
        for namespace in [name for name in self._entries if prefix in ("", name) or name.startswith(f"{prefix}/")]:
            for number, (entry_id, entry) in enumerate(self._live(namespace).items()):
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
                yield StoredVector(namespace, entry_id, entry.vector.copy(), entry.payload, entry.expires_at)

    async def count(self) -> int:
        return sum(len(self._live(name)) for name in self._entries)

    async def close(self) -> None:
        self._entries.clear()

    def _live(self, namespace: str) -> dict[str, _Entry]:
        now = self._clock()
        return {name: entry for name, entry in self._entries.get(namespace, {}).items() if entry.expires_at > now}
