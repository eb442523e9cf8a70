"""An exact store in the memory of one process."""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from backends.exact.base import Stored
from models.errors import StoreFull

_OVERHEAD = 200  # bytes an entry costs beside its strings and its value, roughly


class _Kept(NamedTuple):
    value: bytes
    expires_at: float
    cost: int


class MemoryStore:
    """Gone with the process and shared with no other. Past `max_bytes` the entry that was not used for longest goes."""

    def __init__(self, *, max_bytes: int = 256 << 20, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], _Kept] = OrderedDict()  # the one used last is last
        self._keys: dict[str, set[str]] = {}
        self._bytes = 0

    async def get(self, namespace: str, key: str) -> bytes | None:
        entry = self._entries.get((namespace, key))
        if entry is None:
            return None
        if entry.expires_at <= self._clock():
            self._remove(namespace, key)
            return None
        self._entries.move_to_end((namespace, key))
        return entry.value

    async def put(self, namespace: str, key: str, value: bytes, *, ttl: float | None) -> None:
        cost = len(namespace) + len(key) + len(value) + _OVERHEAD
        if cost > self._max_bytes:
            raise StoreFull(f"a value of {len(value)} bytes does not fit in {self._max_bytes}")
        self._remove(namespace, key)
        expires_at = float("inf") if ttl is None else self._clock() + ttl
        self._entries[namespace, key] = _Kept(value, expires_at, cost)
        self._keys.setdefault(namespace, set()).add(key)
        self._bytes += cost
        while self._bytes > self._max_bytes:
            self._remove(*next(iter(self._entries)))

    async def delete(self, namespace: str, key: str) -> bool:
        entry = self._remove(namespace, key)
        return entry is not None and entry.expires_at > self._clock()

    async def clear(self, prefix: str) -> int:
        gone = self._below(prefix)
        for namespace, key in gone:
            self._remove(namespace, key)
        return len(gone)

    async def entries(self, prefix: str) -> AsyncIterator[Stored]:
        for namespace, key in self._below(prefix):
            entry = self._entries.get((namespace, key))
            if entry is not None and entry.expires_at > self._clock():
                yield Stored(namespace, key, entry.value, entry.expires_at)

    async def sizes(self) -> Mapping[str, int]:
        return {namespace: len(keys) for namespace, keys in self._keys.items()}

    async def close(self) -> None:
        await self.clear("")

    def _below(self, prefix: str) -> list[tuple[str, str]]:
        below = f"{prefix}/"
        return [
            (namespace, key)
            for namespace, keys in self._keys.items()
            if prefix in ("", namespace) or namespace.startswith(below)
            for key in keys
        ]

    def _remove(self, namespace: str, key: str) -> _Kept | None:
        entry = self._entries.pop((namespace, key), None)
        if entry is not None:
            self._bytes -= entry.cost
            keys = self._keys[namespace]
            keys.discard(key)
            if not keys:
                del self._keys[namespace]
        return entry
