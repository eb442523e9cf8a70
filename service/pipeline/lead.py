"""One call for all who ask the same at the same time, whichever gateway they asked.

Within a process flights do that. Between processes that share an exact store
the one who calls holds a lease, and the others wait for the entry. A lease
that is not renewed ends by itself, so a leader that was killed delays those
who wait by one lease at most. What fails here is no reason to wait: the
request goes on alone.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from secrets import token_hex

import msgspec

from backends.lease.base import Leases
from models.completion import Entry
from models.errors import BackendError, StoreFull
from service.context import Context
from service.pipeline.exact_tier import ExactTier, namespace
from service.pipeline.health import READING

_LEASE = 5.0
_RENEWALS = 3  # a lease
_SOONEST, _LATEST = 0.01, 0.1  # seconds between two looks


class Lead:
    """Held by who calls, for all. `end` it where the entry can be seen, or there is none."""

    def __init__(self, end: Callable[[], Awaitable[None]], renewing: asyncio.Task[None]) -> None:
        self._end = end
        self._renewing = renewing

    async def end(self) -> None:
        self._renewing.cancel()
        await self._end()


class Leads:
    """`deadline` in seconds for one look at the leases."""

    def __init__(self, leases: Leases, exact: ExactTier, *, deadline: float, lease: float = _LEASE) -> None:
        self._leases = leases
        self._exact = exact
        self._deadline = deadline
        self._lease = lease
        self._giving_back: set[asyncio.Task[None]] = set()

    async def take(self, context: Context, key: str, *, patient: bool) -> Lead | Entry | None:
        """The lead; or the entry another gateway made meanwhile; or None: the call is made without either.

        Not `patient`: another's answer is not waited for. Who waited in vain
        does not lead: nobody would wait for answers that are not kept.
        """
        name, owner = _name(context, key), token_hex(8)
        try:
            if await self._acquired(name, owner):
                return Lead(lambda: self._ended(name, owner), asyncio.create_task(self._renewed(name, owner)))
            return await self._awaited(context, key, name) if patient else None
        except (BackendError, TimeoutError):
            return None

    async def _acquired(self, name: str, owner: str) -> bool:
        try:
            return await self._asked(lambda: self._leases.acquire(name, owner=owner, seconds=self._lease))
        except (TimeoutError, asyncio.CancelledError):
            # It may have been granted all the same, and nobody would be there to hold it.
            task = asyncio.create_task(self._ended(name, owner))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)
            raise

    async def _awaited(self, context: Context, key: str, name: str) -> Entry | None:
        pause = _SOONEST
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LATEST)
            # In this order: the leader lets go after the entry was written.
            held = await self._asked(lambda: self._leases.held(name))
            entry = await self._exact.again(context, key)
            if entry is not None or not held:
                return entry

    async def _renewed(self, name: str, owner: str) -> None:
        renewed = True
        while renewed:
            await asyncio.sleep(self._lease / _RENEWALS)
            # One that fails leaves time for another; after that the lease ends, and others call for themselves.
            with contextlib.suppress(BackendError, TimeoutError):
                renewed = await self._asked(lambda: self._leases.renew(name, owner=owner, seconds=self._lease))

    async def _ended(self, name: str, owner: str) -> None:
        with contextlib.suppress(BackendError, TimeoutError):  # then it ends by itself
            await self._asked(lambda: self._leases.release(name, owner=owner))

    async def _asked(self, question: Callable[[], Awaitable[bool]]) -> bool:
        """The leases are where the entries are, and fare like them."""
        health = self._exact.health
        try:
            health.ask(READING)
            async with asyncio.timeout(self._deadline):
                answer = await question()
        except StoreFull:
            raise  # it is read as before; that nothing can be written the entries will tell
        except (BackendError, TimeoutError) as error:
            health.failed(READING, error)
            raise
        health.works(READING)
        return answer


def _name(context: Context, key: str) -> str:
    """Two requests are led together where within a process they would share a flight."""
    together = msgspec.json.encode([namespace(context), key, context.directives])
    return blake2b(together, digest_size=16).hexdigest()
