"""Leases in the memory of one process."""

import time
from collections.abc import Callable
from typing import NamedTuple

_SWEEP_FROM = 1_000


class _Held(NamedTuple):
    owner: str
    until: float


class MemoryLeases:
    """Gone with the process and shared with no other. `clock` counts seconds from any point."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._sweep_at = _SWEEP_FROM

    async def acquire(self, key: str, *, owner: str, seconds: float) -> bool:
        if self._holder(key) is not None:
            return False
        if len(self._held) >= self._sweep_at:
            now = self._clock()
            self._held = {key: held for key, held in self._held.items() if held.until > now}
            self._sweep_at = max(_SWEEP_FROM, 2 * len(self._held))
        self._held[key] = _Held(owner, self._clock() + seconds)
        return True

    async def renew(self, key: str, *, owner: str, seconds: float) -> bool:
        if self._holder(key) != owner:
            return False
        self._held[key] = _Held(owner, self._clock() + seconds)
        return True

    async def release(self, key: str, *, owner: str) -> bool:
        if self._holder(key) != owner:
            return False
        del self._held[key]
        return True

    async def held(self, key: str) -> bool:
        return self._holder(key) is not None

    async def close(self) -> None:
        self._held.clear()

    def _holder(self, key: str) -> str | None:
        held = self._held.get(key)
        return held.owner if held is not None and held.until > self._clock() else None
