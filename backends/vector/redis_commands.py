"""Commands of many tasks to one Redis, several in a round trip."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from redis.asyncio import RedisCluster

from backends.redis_client import Client, keys, literal
from backends.redis_rounds import Rounds

_ROUND = 16  # commands that share a round trip: a search of a large index takes a millisecond
_PAGE = 200  # keys of a walk
_ROUNDS = 4  # on their way at once: a large payload holds up one of them

Command = tuple[bytes | str | int, ...]


T = TypeVar("T")


class Shared(Generic[T]):
    """Work that many ask for at the same time and that is done once for all of them.

    Who is cancelled while it is done takes it from nobody else.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._rounds: Rounds[None, T] = Rounds(self._done_for, at_once=1, most=1_000_000)

    async def done(self) -> T:
        return await self._rounds.ask(None)

    async def _done_for(self, everyone: Sequence[None]) -> list[T]:
        return [await self._work()] * len(everyone)


class Commands:
    """Each command is a question with one reply; an error that is the reply is raised to the one who asked."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._reads: Rounds[Command, Any] = Rounds(self.send, at_once=_ROUNDS, most=_ROUND)
        self._writes: Rounds[Command, Any] = Rounds(self.send, at_once=_ROUNDS, most=_ROUND)

    async def read(self, *command: bytes | str | int) -> Any:
        return await self._reads.ask(command)

    async def write(self, *command: bytes | str | int) -> Any:
        return await self._writes.ask(command)

    async def page(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to all of them, in one round trip. Raises the first error among them."""
        replies = await self.send(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """One reply a command; a refusal of one is its reply."""
        if not commands:
            return []
        if len(commands) == 1:
            return [await self._client.execute_command(*commands[0])]
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies

    async def keys(self, start: str, end: str) -> AsyncIterator[list[bytes]]:
        """All keys of the server that begin and end so, each once, in pages."""
        async for page in keys(self._client, literal(start.encode()) + b"*" + literal(end.encode())):
            for first in range(0, len(page), _PAGE):
                yield page[first : first + _PAGE]

    @property
    def database(self) -> int | None:
        """Its number; None in a cluster."""
        if isinstance(self._client, RedisCluster):
            return None
        return int(self._client.connection_pool.connection_kwargs.get("db") or 0)

    async def close(self) -> None:
        await asyncio.gather(self._reads.over(), self._writes.over())
        await self._client.aclose()
