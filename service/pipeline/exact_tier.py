"""The exact tier: the same request again. A store that fails or is late is a miss, never an outage."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

import msgspec

from backends.exact.base import ExactStore
from models.completion import Completion, Entry
from models.errors import BackendError
from service.context import Context
from service.pipeline.health import READING, WRITING, Health
from service.telemetry.metrics import Metrics

log = logging.getLogger("keepgate.cache")

# Nobody waits for a write but newcomers' look-ups, which are served meanwhile.
_WRITE_DEADLINE = 5.0

encoded = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class ExactTier:
    """`deadline` in seconds for one look-up; None for a store that never waits."""

    def __init__(
        self,
        store: ExactStore,
        *,
        deadline: float | None,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        randomness: Callable[[], float] = random.random,
    ) -> None:
        self.store = store
        self._deadline = deadline
        self._metrics = metrics
        self._clock = clock
        self._random = randomness
        self.health = Health("exact", metrics)
        self._in_vain = ("", "")  # what was asked for last without an answer

    async def lookup(self, context: Context, key: str) -> Entry | None:
        """The live entry, no older than the request's `max-age`."""
        started = time.perf_counter()
        endpoint = context.endpoint.name
        entry = await self.again(context, key)
        if self.health.failing(READING):
            self._metrics.cache_lookups.add((endpoint, "exact", "error"))
            return None
        self._metrics.cache_lookups.add((endpoint, "exact", "miss" if entry is None else "hit"))
        self._metrics.cache_lookup_seconds.observe(("exact",), time.perf_counter() - started)
        return entry

    async def again(self, context: Context, key: str) -> Entry | None:
        """A look-up that is not counted: the request was."""
        try:
            return await self.fetch(context, key)
        except (BackendError, TimeoutError):
            return None

    async def fetch(self, context: Context, key: str) -> Entry | None:
        """The same; raises `BackendError` or `TimeoutError`."""
        value = await self._read(namespace(context), key)
        if value is None:
            return None
        entry = decoded(value)
        return entry if entry is not None and fresh(entry, context, self._clock()) else None

    async def look(self) -> None:
        """Asks what was asked in vain: a recovery is heard of without a request, too."""
        with contextlib.suppress(BackendError, TimeoutError):
            await self._read(*self._in_vain)

    async def _read(self, where: str, key: str) -> bytes | None:
        self.health.ask(READING)
        try:
            if self._deadline is None:
                value = await self.store.get(where, key)
            else:
                async with asyncio.timeout(self._deadline):
                    value = await self.store.get(where, key)
        except (BackendError, TimeoutError) as error:
            self._in_vain = (where, key)
            self.health.failed(READING, error)
            raise
        self.health.works(READING)
        return value

    def entry(
        self, context: Context, key: str, completion: Completion, upstream: str, *, masked: bool = False
    ) -> Entry:
        """The entry as it is kept and served: its TTL absolute, shortened by the jitter."""
        now = self._clock()
        ttl = context.directives.ttl * (1.0 - context.endpoint.ttl_jitter * self._random())
        return Entry(completion, now, now + ttl, key, upstream, context.acted, masked)

    async def keep(self, context: Context, entry: Entry, *, asked_at: float) -> bool:
        """Whether the entry is in the store now, where every worker sees it.

        One that was written after this answer was asked for (`asked_at`, on
        the tier's clock) is newer, and stays: a refresh must not be undone by
        a slower call that began before it.
        """
        ttl = entry.expires_at - entry.created_at
        if ttl <= 0:
            return False
        newer = await self.again(context, entry.entry_id)
        if newer is not None and newer.created_at > asked_at:
            return False
        try:
            self.health.ask(WRITING)
            async with asyncio.timeout(_WRITE_DEADLINE):
                await self.store.put(namespace(context), entry.entry_id, encoded(entry), ttl=ttl)
        except (BackendError, TimeoutError) as error:
            self.health.failed(WRITING, error)
            return False
        self.health.works(WRITING)
        return True

    def now(self) -> float:
        return self._clock()


def decoded(value: bytes) -> Entry | None:
    """None where another version of the gateway wrote it in another form."""
    try:
        return _decode(value)
    except msgspec.DecodeError:
        log.warning("an entry in another format was passed over")
        return None


def namespace(context: Context) -> str:
    return f"{context.endpoint.name}/{context.caller.partition}"


def fresh(entry: Entry, context: Context, now: float) -> bool:
    max_age = context.directives.max_age
    return now < entry.expires_at and (max_age is None or now - entry.created_at <= max_age)
