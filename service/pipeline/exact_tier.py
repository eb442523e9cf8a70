"""The exact tier: the same request again. A store that fails or is late is a miss, never an outage."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

import msgspec

from backends.exact.base import ExactStore
from models.completion import Completion, Entry, Usage
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
        """What lies under the key and may be served: an entry that is fresh or may be served stale, or an alias."""
        started = time.perf_counter()
        endpoint = context.endpoint.name
        try:
            entry = await self.read(context, key)
        except (BackendError, TimeoutError):
            entry = None
        if self.health.failing(READING):
            self._metrics.cache_lookups.add((endpoint, "exact", "error"))
            return None
        result = "miss" if entry is None else "alias" if entry.alias_of else "hit"
        self._metrics.cache_lookups.add((endpoint, "exact", result))
        self._metrics.cache_lookup_seconds.observe(("exact",), time.perf_counter() - started)
        return entry

    async def again(self, context: Context, key: str) -> Entry | None:
        """A look-up of a fresh entry that is not counted: the request was."""
        try:
            entry = await self.read(context, key)
        except (BackendError, TimeoutError):
            return None
        return entry if entry is not None and not entry.alias_of and fresh(entry, context, self._clock()) else None

    async def read(self, context: Context, key: str) -> Entry | None:
        """The same, an alias as well, and what may be served stale. Raises `BackendError` or `TimeoutError`."""
        value = await self._read(namespace(context), key)
        if value is None:
            return None
        entry = decoded(value)
        return entry if entry is not None and usable(entry, context, self._clock()) else None

    async def canonical(self, context: Context, key: str, *, rule: str) -> str:
        """The key of the entry that stands for `key`: its own, unless it is an alias that `rule` would make again for
        this caller."""
        try:
            value = await self._read(namespace(context), key)
        except (BackendError, TimeoutError):
            return key
        entry = None if value is None else decoded(value)
        if entry is None or entry.rule != rule or entry.similarity < context.directives.threshold:
            return key
        return entry.alias_of if entry.alias_of and entry.question else key

    async def last(self, context: Context, key: str) -> Entry | None:
        """The answer that lies under the key, however old it is."""
        try:
            value = await self._read(namespace(context), key)
        except (BackendError, TimeoutError):
            return None
        entry = None if value is None else decoded(value)
        return None if entry is None or entry.alias_of else entry

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
        self,
        context: Context,
        key: str,
        completion: Completion,
        upstream: str,
        *,
        masked: bool = False,
        question: str = "",
    ) -> Entry:
        """The entry as it is kept and served: its TTL absolute, shortened by the jitter."""
        now = self._clock()
        ttl = context.directives.ttl * (1.0 - context.endpoint.ttl_jitter * self._random())
        return Entry(completion, now, now + ttl, key, upstream, context.acted, masked, question)

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
        return await self._put(context, entry, ttl + context.endpoint.stale)

    async def alias(
        self,
        context: Context,
        key: str,
        entry: Entry,
        *,
        similarity: float,
        rule: str,
        acted: tuple[str, ...] = (),
        question: str = "",
    ) -> None:
        """Notes that the request of `key` is answered by `entry`, as long as that is fresh: asked again, it is found
        without an embedding. `acted`: on the request and the answer. `question`: of the request, where the turns before
        it were found equal, too: then what is asked after it knows what came before."""
        now = self._clock()
        if entry.expires_at > now:
            nothing = Completion(b"", entry.completion.model, Usage())
            noted = Entry(
                nothing,
                now,
                entry.expires_at,
                key,
                "",
                acted,
                question=question,
                alias_of=entry.entry_id,
                similarity=similarity,
                rule=rule,
            )
            await self._put(context, noted, entry.expires_at - now)

    async def _put(self, context: Context, entry: Entry, ttl: float) -> bool:
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
    return now < entry.expires_at and usable(entry, context, now)


def usable(entry: Entry, context: Context, now: float) -> bool:
    """Fresh, or stale and yet to be served while a fresh one is asked for (RFC 5861). Who names an age wants nothing
    stale (RFC 9111, section 5.2.1.1)."""
    max_age = context.directives.max_age
    if max_age is None:
        return now < entry.expires_at + context.endpoint.stale
    return now < entry.expires_at and now - entry.created_at <= max_age
