"""Vectors in the vector sets of Redis 8: one set a namespace, not quantised.

Beside each set are a hash with what its elements stand for, of which the
server removes what expired, and with the namespace's name; and a sorted set
with the times at which they expire. A server that may evict takes any of the
three, and then the other two go as well, at the next search or write.
"""

import math
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from redis.exceptions import ResponseError

from backends.vector.base import Neighbor, StoredVector, Vector
from backends.vector.names import decoded, encoded
from backends.vector.redis_commands import Commands
from backends.vector.redis_names import lifetime, short, space
from models.errors import BackendError

COMMANDS = ("VADD", "VSIM", "VREM", "VEMB", "VCARD", "HPEXPIRE")

_ENTRIES_PAGE = 32  # a payload may have a megabyte
_FRAME = struct.Struct(">dI")  # when it expires, how long its id is

# Each is one round trip, and nobody sees it half done. What expired is swept with the writes: four at a time keep up
# with any rate of them. The keys of a namespace go when its last entry expires or is deleted. A set keeps the `M` that
# it was made with, and refuses another.
_UPSERT = """
local set, frames, times = unpack(KEYS)
local element, vector, frame, expires, ttl, now, m, effort, namespace = unpack(ARGV)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', times, '-inf', now, 'LIMIT', 0, 4)) do
  redis.call('VREM', set, old)
  redis.call('HDEL', frames, old)
  redis.call('ZREM', times, old)
end
if redis.call('EXISTS', set, frames, times) < 3 then
  redis.call('UNLINK', set, frames, times)
end
local left = {}
for i, key in ipairs(KEYS) do
  left[i] = redis.call('PTTL', key)
end
local function add(links)
  return redis.pcall('VADD', set, 'FP32', vector, element, 'NOQUANT', 'EF', effort,
    'SETATTR', '{"e":' .. (expires == 'inf' and '1e300' or expires) .. '}', 'M', links)
end
local added = add(m)
if type(added) == 'table' and added.err and string.find(added.err, 'M value') then
  local made = redis.call('VINFO', set)
  for i = 1, #made, 2 do
    if made[i].ok == 'hnsw-m' then added = add(made[i + 1]) end
  end
end
if type(added) == 'table' and added.err then return added end
redis.call('HSET', frames, '', namespace, element, frame)
redis.call('ZADD', times, expires, element)
if ttl ~= '' then
  redis.call('HPEXPIRE', frames, ttl, 'FIELDS', 1, element)
end
for i, key in ipairs(KEYS) do
  if ttl == '' then
    redis.call('PERSIST', key)
  elseif left[i] == -2 or left[i] >= 0 and left[i] < tonumber(ttl) then
    redis.call('PEXPIRE', key, ttl)
  elseif left[i] >= 0 then
    redis.call('PEXPIRE', key, math.max(left[i], 1))
  end
end
"""

_NEAREST = """
local set, frames, times = KEYS[1], KEYS[2], KEYS[3]
local vector, limit, effort, now, exact = unpack(ARGV)
local size = redis.call('VCARD', set)
if redis.call('EXISTS', set, frames, times) < 3 then
  redis.pcall('UNLINK', set, frames, times)
  return {}
end
-- More than there are would have the server ask for memory for all of them.
local call = {'VSIM', set, 'FP32', vector, 'WITHSCORES', 'COUNT', math.min(limit, size)}
local function add(...) for _, word in ipairs({...}) do call[#call + 1] = word end end
if size <= tonumber(exact) then add('TRUTH') else add('EF', effort) end
if redis.call('ZCOUNT', times, '-inf', now) > 0 then add('FILTER', '.e > ' .. now, 'FILTER-EF', size) end
local found = redis.call(unpack(call))
local hits = {}
for i = 1, #found, 2 do
  local frame = redis.call('HGET', frames, found[i])
  if frame then
    hits[#hits + 1] = found[i + 1]
    hits[#hits + 1] = frame
  end
end
return hits
"""

_ENTRIES = """
local cursor, page = unpack(redis.call('HSCAN', KEYS[2], ARGV[1], 'COUNT', ARGV[2]))
local found = {}
for i = 1, #page, 2 do
  local vector = page[i] ~= '' and redis.call('VEMB', KEYS[1], page[i], 'RAW')
  if vector then found[#found + 1] = {page[i], page[i + 1], vector[2], vector[3]} end
end
return {cursor, found}
"""

_DELETE = """
redis.call('VREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('VCARD', KEYS[1]) == 0 then
  redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
end
"""

_CLEAR = """
local live = redis.call('ZCOUNT', KEYS[3], '(' .. ARGV[1], '+inf')
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return live
"""


class VectorSets:
    """Searches of up to `exact` entries look at each; larger ones follow the graph of the set."""

    def __init__(
        self,
        commands: Commands,
        *,
        prefix: str,
        dimensions: int,
        revision: str,
        m: int,
        ef_construction: int,
        ef: int,
        clock: Callable[[], float],
        exact: int = 1_000,
    ) -> None:
        self._commands = commands
        self._m = m
        self._ef_construction = ef_construction
        self._ef = ef
        self._clock = clock
        self._exact = exact
        self._base = f"{prefix}:s:{space(revision, dimensions)}"

    async def load(self) -> None:
        """There is nothing to make or to wait for."""

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        now = self._clock()
        expires_at, life = math.inf if ttl is None else now + ttl, lifetime(ttl)
        name = encoded(entry_id)
        frame = b"".join((_FRAME.pack(expires_at, len(name)), name, payload))
        await self._write(
            *(_UPSERT, namespace, short(entry_id), vector.tobytes(), frame, repr(expires_at)),
            *("" if life is None else life, repr(now), self._m, self._ef_construction, encoded(namespace)),
        )

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        effort = max(self._ef, limit)
        now = self._clock()
        keys = self._keys(namespace)
        with self._own_vectors():
            found = await self._commands.read(
                "EVAL", _NEAREST, len(keys), *keys, vector.tobytes(), limit, effort, repr(now), self._exact
            )
        neighbors = []
        for score, frame in zip(found[::2], found[1::2], strict=True):
            expires_at, name, payload = _unframed(frame)
            if expires_at > now:
                neighbors.append(Neighbor(name, min(1.0, max(-1.0, 2.0 * float(score) - 1.0)), payload))
        return neighbors

    async def delete(self, namespace: str, entry_id: str) -> None:
        await self._write(_DELETE, namespace, short(entry_id))

    async def clear(self, prefix: str) -> int:
        count = 0
        async for namespace in self._namespaces(prefix):
            count += await self._write(_CLEAR, namespace, repr(self._clock()))
        return count

    async def entries(self, prefix: str) -> AsyncIterator[StoredVector]:
        async for namespace in self._namespaces(prefix):
            seen: set[int] = set()  # a scan may come by twice
            cursor: bytes | None = None
            while cursor != b"0":
                keys = self._keys(namespace)
                cursor, page = await self._commands.read("EVAL", _ENTRIES, len(keys), *keys, cursor or 0, _ENTRIES_PAGE)
                for element, frame, vector, norm in page:
                    expires_at, name, payload = _unframed(frame)
                    if hash(element) not in seen and expires_at > self._clock():
                        seen.add(hash(element))
                        row = np.frombuffer(vector, dtype=np.float32) * np.float32(norm)
                        yield StoredVector(namespace, name, row, payload, expires_at)

    async def count(self) -> int:
        count, now = 0, repr(self._clock())
        async for keys in self._commands.keys(f"{self._base}:", ":times"):
            count += sum(await self._commands.page([("ZCOUNT", key, f"({now}", "+inf") for key in keys]))
        return count

    def _keys(self, namespace: str) -> tuple[str, str, str]:
        """Of the set, what it holds and when that expires. All are on one node of a cluster."""
        base = f"{self._base}:{{{short(namespace)}}}"
        return f"{base}:set", f"{base}:entries", f"{base}:times"

    async def _write(self, script: str, namespace: str, *arguments: bytes | str | int) -> Any:
        keys = self._keys(namespace)
        with self._own_vectors():
            return await self._commands.write("EVAL", script, len(keys), *keys, *arguments)

    @contextmanager
    def _own_vectors(self) -> Iterator[None]:
        try:
            yield
        except ResponseError as error:
            if "mismatch" not in str(error):
                raise
            raise BackendError(
                f"the vector sets {self._base} in Redis were made for other vectors than this embedder's: "
                "set another redis.prefix, or delete these keys"
            ) from error

    async def _namespaces(self, prefix: str) -> AsyncIterator[str]:
        async for keys in self._commands.keys(f"{self._base}:", ":entries"):
            for name in await self._commands.page([("HGET", key, "") for key in keys]):
                if name is None:
                    continue  # gone since
                namespace = decoded(name)
                if not prefix or namespace == prefix or namespace.startswith(f"{prefix}/"):
                    yield namespace


def _unframed(frame: bytes) -> tuple[float, str, bytes]:
    """When it expires, its id, its payload."""
    expires_at, length = _FRAME.unpack_from(frame)
    start = _FRAME.size + length
    return expires_at, decoded(frame[_FRAME.size : start]), frame[start:]
