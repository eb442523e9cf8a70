"""An exact store on Redis or Valkey, shared by every gateway that is told of it.

A key of the server is the store's prefix, `:exact:`, the namespace without
zero bytes, a zero byte, and the key. A value is its expiry (a big-endian
double, seconds since the epoch, infinite for none) and what was put. Readers
compare the expiry with their own clock; the server's own expiry, which is set
as well, only frees the memory. What goes when the server is full is its
`maxmemory-policy`.
"""

import asyncio
import math
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from redis.asyncio import RedisCluster

from backends.exact.base import Stored
from backends.redis_address import RedisAddress
from backends.redis_client import backend_errors, connect, keys, literal
from backends.redis_rounds import Rounds
from models.errors import BackendError, StoreFull

_EXPIRY = struct.Struct(">d")
_ENCODING, _SURROGATES = "utf-8", "surrogatepass"  # JSON can hold half a surrogate pair
_LONGEST_TTL = 1e11  # seconds; the server counts milliseconds in 64 bits
_ROUND = 128  # commands that share a round trip
_ROUNDS = 2  # on their way at once: a large value holds up one of them
_VALUES_PAGE = 32  # values held at once by who walks over all of them

_Command = tuple[bytes | str | int, ...]


class RedisStore:
    """One round trip a lookup or a write, which tasks that come together share.

    The user of the server needs MGET, GET, SET, GETRANGE, UNLINK and SCAN.
    `sizes`, `clear` and `entries` scan all keys of the database a thousand at a
    time, and note a number for each of the store's.
    """

    def __init__(
        self,
        *,
        address: RedisAddress,
        clock: Callable[[], float] = time.time,
        max_value_bytes: int = 16 << 20,
    ) -> None:
        """Connects at the first use. A larger value than `max_value_bytes` is `StoreFull`, and is not sent."""
        self._client = connect(address)
        self._cluster = self._client if isinstance(self._client, RedisCluster) else None
        self._clock = clock
        self._max_value_bytes = max_value_bytes
        self._base = f"{address.prefix}:exact:".encode()
        self._reads = Rounds(self._read, at_once=_ROUNDS, most=_ROUND)
        self._writes = Rounds(self._write, at_once=_ROUNDS, most=_ROUND)
        self._turn = asyncio.Semaphore(_ROUNDS + 1 if self._cluster is None else 1)  # a cluster's client wants turns
        self._closed = False

    async def get(self, namespace: str, key: str) -> bytes | None:
        self._check_open()
        with backend_errors():
            kept: bytes | None = await self._reads.ask(self._name(namespace, key))
        return kept[_EXPIRY.size :] if kept is not None and _expires_at(kept) > self._clock() else None

    async def put(self, namespace: str, key: str, value: bytes, *, ttl: float | None) -> None:
        self._check_open()
        if len(value) > self._max_value_bytes:
            raise StoreFull(f"a value of {len(value)} bytes is larger than {self._max_value_bytes}")
        expires_at = math.inf if ttl is None else self._clock() + ttl
        command: _Command = ("SET", self._name(namespace, key), _EXPIRY.pack(expires_at) + value)
        if ttl is not None and ttl < _LONGEST_TTL:
            command += ("PX", max(1, math.ceil(ttl * 1000)))
        with backend_errors():
            await self._writes.ask((command,))

    async def delete(self, namespace: str, key: str) -> bool:
        self._check_open()
        name = self._name(namespace, key)
        with backend_errors():
            expiry, gone = await self._writes.ask((("GETRANGE", name, 0, _EXPIRY.size - 1), ("UNLINK", name)))
        # Put between the two, it has no expiry here, and lived.
        return bool(gone) and (not expiry or _expires_at(expiry) > self._clock())

    async def clear(self, prefix: str) -> int:
        self._check_open()
        gone = 0
        with backend_errors():
            async for names in self._names(prefix):
                if self._cluster is None:
                    gone += await self._client.unlink(*names)
                    continue
                for reply in await self._together([("UNLINK", name) for name in names]):  # a slot each
                    if isinstance(reply, Exception):
                        raise reply
                    gone += reply
        return gone

    async def entries(self, prefix: str) -> AsyncIterator[Stored]:
        self._check_open()
        async for page in self._names(prefix):
            for start in range(0, len(page), _VALUES_PAGE):
                names = page[start : start + _VALUES_PAGE]
                with backend_errors():
                    values = await self._read(names)
                now = self._clock()
                for name, kept in zip(names, values, strict=True):
                    if isinstance(kept, Exception):
                        with backend_errors():
                            raise kept
                    if kept is not None and (expires_at := _expires_at(kept)) > now:
                        yield Stored(*self._named(name), kept[_EXPIRY.size :], expires_at)

    async def sizes(self) -> Mapping[str, int]:
        self._check_open()
        sizes: dict[bytes, int] = {}
        async for names in self._names(""):
            for name in names:
                space = name[: name.index(0)]
                sizes[space] = sizes.get(space, 0) + 1
        return {self._named(space + b"\x00")[0]: count for space, count in sizes.items()}

    async def close(self) -> None:
        """Safe to repeat."""
        if not self._closed:
            self._closed = True
            await asyncio.gather(self._reads.over(), self._writes.over())
            with backend_errors():
                await self._client.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the exact store is closed")

    async def _read(self, names: list[bytes]) -> Sequence[bytes | Exception | None]:
        if self._cluster is None:
            values: list[bytes | None] = await self._client.execute_command("MGET", *names)
            return values
        return await self._together([("GET", name) for name in names])

    async def _write(self, questions: list[tuple[_Command, ...]]) -> Sequence[list[Any] | Exception]:
        """What each question's commands are answered with, or the first refusal of one."""
        replies = iter(await self._together([command for question in questions for command in question]))
        answers: list[list[Any] | Exception] = []
        for question in questions:
            answer = [next(replies) for _ in question]
            answers.append(next((reply for reply in answer if isinstance(reply, Exception)), answer))
        return answers

    async def _together(self, commands: Sequence[_Command]) -> list[Any]:
        """One reply a command; a refusal of one is its reply."""
        if self._cluster is None and len(commands) == 1:
            return [await self._client.execute_command(*commands[0])]
        async with self._turn, self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies

    async def _names(self, prefix: str) -> AsyncIterator[list[bytes]]:
        """The server's keys of a namespace and of all below it, each once, in pages."""
        start = self._base + _escaped(prefix)
        pattern = literal(start) + (b"[/\x00]*" if prefix else b"*")
        ends = (start + b"/", start + b"\x00") if prefix else (start,)
        pages = keys(self._client, pattern)
        while True:
            with backend_errors():
                page = await anext(pages, None)
            if page is None:
                return
            if names := [name for name in page if name.startswith(ends) and _is_ours(name)]:
                yield names

    def _name(self, namespace: str, key: str) -> bytes:
        return b"".join((self._base, _escaped(namespace), b"\x00", key.encode(_ENCODING, _SURROGATES)))

    def _named(self, name: bytes) -> tuple[str, str]:
        space, _, key = name[len(self._base) :].partition(b"\x00")
        space = space.replace(b"\x01\x01", b"\x00").replace(b"\x01\x02", b"\x01")
        return space.decode(_ENCODING, _SURROGATES), key.decode(_ENCODING, _SURROGATES)


def _is_ours(name: bytes) -> bool:
    """Others may write below the prefix, too."""
    try:
        return 0 in name and bool(name.decode(_ENCODING, _SURROGATES))
    except UnicodeDecodeError:
        return False


def _expires_at(kept: bytes) -> float:
    """Of what is too short to have been written here: at once."""
    return float(_EXPIRY.unpack_from(kept)[0]) if len(kept) >= _EXPIRY.size else 0.0


def _escaped(namespace: str) -> bytes:
    """Without zero bytes, prefixes kept."""
    return namespace.encode(_ENCODING, _SURROGATES).replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")
