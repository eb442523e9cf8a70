"""Leases on Redis or Valkey, for all gateways that are told of it."""

import math
from typing import Any

from backends.redis_address import RedisAddress
from backends.redis_client import backend_errors, connect
from models.errors import BackendError

# One step on the server: between a look and a change of ours, the lease could pass to another.
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
_RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('UNLINK', KEYS[1]) or 0"


class RedisLeases:
    """A key of the server is the address's prefix, `:lease:` and the lease's key; its value is the owner.

    One round trip a call. The user of the server needs SET, GET, EXISTS,
    PEXPIRE, UNLINK and EVAL. Leases end by the server's clock.
    """

    def __init__(self, *, address: RedisAddress) -> None:
        """Connects at the first use."""
        self._client = connect(address)
        self._base = f"{address.prefix}:lease:".encode()
        self._closed = False

    async def acquire(self, key: str, *, owner: str, seconds: float) -> bool:
        return bool(await self._do("SET", self._name(key), _bytes(owner), "NX", "PX", _milliseconds(seconds)))

    async def renew(self, key: str, *, owner: str, seconds: float) -> bool:
        return bool(await self._do("EVAL", _RENEW, 1, self._name(key), _bytes(owner), _milliseconds(seconds)))

    async def release(self, key: str, *, owner: str) -> bool:
        return bool(await self._do("EVAL", _RELEASE, 1, self._name(key), _bytes(owner)))

    async def held(self, key: str) -> bool:
        return bool(await self._do("EXISTS", self._name(key)))

    async def close(self) -> None:
        """Safe to repeat. What is held stays so for its time."""
        if not self._closed:
            self._closed = True
            with backend_errors():
                await self._client.aclose()

    async def _do(self, *command: bytes | str | int) -> Any:
        if self._closed:
            raise BackendError("the leases are closed")
        with backend_errors():
            return await self._client.execute_command(*command)

    def _name(self, key: str) -> bytes:
        return self._base + _bytes(key)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))
