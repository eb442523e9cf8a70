"""Another embedder for what is stored: its questions are embedded anew while the old vectors go on serving.

What was written is found again by its text, which lies beside each vector. A
pass takes what the new store does not have yet, so one that was interrupted,
or that another process did, costs a walk over both stores and no more.
"""

import asyncio
import logging
import os
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from backends.embedding.base import Embedder
from backends.exact.base import ExactStore
from backends.process_lock import alone
from backends.vector.base import Neighbor, StoredVector, Vector, VectorStore
from models.errors import BackendError, ConfigError, TextRefused
from service.caching.stored import read
from service.pipeline.health import READING, Health
from service.telemetry.metrics import Metrics

log = logging.getLogger("keepgate.cache")

_TEXTS = 8  # embedded in one step: a live request waits for no more than that
_LOOKED_AT = 256  # entries between two rests where nothing is to be embedded
_LONGEST_REST = 1.0
_OWED = 10_000
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_TRIES = 3  # before it is asked whether it is the embedder or a text
_WAIT_FOR_OTHERS = 1.0
_READ_DEADLINE = 5.0
_SAY_EVERY = 10.0
# What was written a second time may have been given the same time to live a moment later.
_SAME_TIME = 1.0

T = TypeVar("T")


class Made(NamedTuple):
    """Whose vectors a store holds: an embedder's `revision`, and their `dimensions`."""

    revision: str
    dimensions: int


class Owed(NamedTuple):
    """What is to be found in the new store as well. `expires_at` in seconds since the epoch, infinite without a TTL."""

    namespace: str
    entry_id: str
    payload: bytes
    expires_at: float


class Both:
    """The vector store that serves, beside one that takes its place: what is written is owed to that as well.

    The protocol's calls are the old store's; what goes there goes from the new
    one too. `owed` is bounded: past that `lost` is set, and another pass finds
    what was not noted.
    """

    def __init__(self, old: VectorStore, new: VectorStore, *, clock: Callable[[], float] = time.time) -> None:
        self.dimensions = old.dimensions
        self.old = old
        self.new = new
        self.lost = False
        self._clock = clock
        self._owed: dict[tuple[str, str], Owed] = {}

    async def load(self) -> None:
        await self.old.load()

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        await self.old.upsert(namespace, entry_id, vector, payload, ttl=ttl)
        if len(self._owed) >= _OWED:
            self.lost = True
            return
        expires_at = float("inf") if ttl is None else self._clock() + ttl
        self._owed[namespace, entry_id] = Owed(namespace, entry_id, payload, expires_at)

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        return await self.old.nearest(namespace, vector, limit=limit)

    async def delete(self, namespace: str, entry_id: str) -> None:
        self._owed.pop((namespace, entry_id), None)
        await self.old.delete(namespace, entry_id)
        with suppress(BackendError):  # it leads nowhere, and goes with its time
            await self.new.delete(namespace, entry_id)

    async def clear(self, prefix: str) -> int:
        for namespace, entry_id in list(self._owed):
            if prefix in ("", namespace) or namespace.startswith(f"{prefix}/"):
                del self._owed[namespace, entry_id]
        count = await self.old.clear(prefix)
        with suppress(BackendError):
            await self.new.clear(prefix)
        return count

    def entries(self, prefix: str) -> AsyncIterator[StoredVector]:
        return self.old.entries(prefix)

    async def count(self) -> int:
        return await self.old.count()

    async def close(self) -> None:
        """Of the old one; who opened the new one closes it."""
        await self.old.close()

    @property
    def owes(self) -> int:
        return len(self._owed)

    def take(self, count: int) -> list[Owed]:
        """The first that are owed, which then no longer are."""
        return [self._owed.pop(key) for key in list(self._owed)[:count]]


class Attempts:
    """Tries what may fail for a while, again and again, and says so: a line in the log, and a degraded component."""

    def __init__(self, metrics: Metrics, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._health = Health("reembedding", metrics)
        self._sleep = sleep

    async def until_it_works(self, work: Callable[[], Awaitable[T]], *, tries: int | None = None) -> T:
        """Raises what `work` does when it has failed `tries` times."""
        pause, failed = _FIRST_PAUSE, 0
        while True:
            try:
                done = await work()
            except (BackendError, ConfigError, OSError, TimeoutError) as error:
                self._health.failed(READING, error)
                failed += 1
                if failed == tries:
                    raise
                await self._sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._health.works(READING)
                return done


class Reembedding:
    """Brings what `sources` hold under `embedder`, into `target`, with the lifetime it has left.

    Texts that the embedder refuses are counted and left out; so is what leads
    to no answer any more. It works half of the time at most, one process at a
    time, which `lock` is for.
    """

    def __init__(
        self,
        embedder: Embedder,
        target: VectorStore,
        sources: Sequence[VectorStore],
        exact: ExactStore,
        *,
        lock: Path,
        attempts: Attempts,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` in seconds since the epoch, `timer` from whenever."""
        self.embedder = embedder
        self.target = target
        self.both: Both | None = None  # where a tier that serves from a source writes
        self.state = "loading"  # then `waiting` for another process, `embedding`, `done`
        self.remaining = self.embedded = self.refused = 0
        self._sources = sources
        self._exact = exact
        self._lock = lock
        self._attempts = attempts
        self._metrics = metrics
        self._clock = clock
        self._timer = timer
        self._sleep = sleep
        self._rested = timer()
        self._said = timer()

    async def load(self) -> None:
        """Returns when the embedder and its vectors can be used."""
        await self._attempts.until_it_works(self.embedder.load)
        await self._attempts.until_it_works(self.target.load)

    async def run(self) -> None:
        """Returns when all that the sources hold, and what `both` was given, can be found in the target."""
        if not self._sources:
            self.state = "done"
            return
        began = self._timer()
        try:
            while not await self._attempts.until_it_works(self._passed):
                self.state = "waiting"
                await self.settle()
                await self._sleep(_WAIT_FOR_OTHERS)
        finally:
            self._remains(0)
        self.state = "done"
        if self.embedded or self.refused:
            log.info(
                "%d stored questions were embedded anew for %s in %.0f s, %d it refused were left out",
                self.embedded,
                self.embedder.revision,
                self._timer() - began,
                self.refused,
            )

    async def settle(self) -> None:
        """Brings over what was written meanwhile."""
        while self.both is not None and self.both.owes:
            await self._bring(self.both.take(_TEXTS))

    async def _passed(self) -> bool:
        """Whether all is there now; False while another process is at it. Raises `BackendError` or `OSError`."""
        with alone(self._lock) as is_alone:
            if not is_alone:
                return False
            self.state, self.refused = "embedding", 0
            if self.both is not None:
                self.both.lost = False
            known = await self._known()
            total = sum([await source.count() for source in self._sources])
            seen = 0
            self._remains(total)
            for source in self._sources:
                waiting: list[Owed] = []
                async for stored in source.entries(""):
                    seen += 1
                    one = Owed(stored.namespace, stored.entry_id, stored.payload, stored.expires_at)
                    if not known.has(one):
                        waiting.append(one)
                    if len(waiting) == _TEXTS:
                        await self.settle()
                        await self._bring(waiting)
                        waiting = []
                        self._remains(total - seen)
                    elif seen % _LOOKED_AT == 0:
                        await self._rest()
                        self._remains(total - seen)
                await self._bring(waiting)
            await self.settle()
            return self.both is None or not self.both.lost

    async def _known(self) -> "_Known":
        marks, expiries = array("q"), array("d")
        if await self.target.count():
            async for stored in self.target.entries(""):
                marks.append(_mark(stored.namespace, stored.entry_id))
                expiries.append(stored.expires_at)
                if len(marks) % _LOOKED_AT == 0:
                    await self._rest()
        return _Known(marks, expiries)

    async def _bring(self, some: list[Owed]) -> None:
        now = self._clock()
        wanted = [one for one in some if one.expires_at > now and await self._leads_somewhere(one)]
        if wanted:
            vectors = await self._embedded([read(one.payload).text for one in wanted])
            pairs = [(one, vector) for one, vector in zip(wanted, vectors, strict=True) if vector is not None]
            await self._attempts.until_it_works(partial(self._write, pairs))
            self.embedded += len(pairs)
            self.refused += len(wanted) - len(pairs)
        await self._rest()

    async def _leads_somewhere(self, one: Owed) -> bool:
        """Whether there is an answer: what was cleared or evicted in the meantime stays behind."""
        home = one.namespace.rpartition("/")[0]
        alias_of = read(one.payload).alias_of
        try:
            async with asyncio.timeout(_READ_DEADLINE):
                for key in filter(None, (one.entry_id, alias_of)):
                    if await self._exact.get(home, key) is not None:
                        return True
        except (BackendError, TimeoutError):
            return True  # nobody knows
        return False

    async def _embedded(self, texts: list[str]) -> list[Vector | None]:
        """None for a text that the embedder has no vector for."""
        try:
            return await self._attempts.until_it_works(partial(self._vectors, texts), tries=_TRIES)
        except (BackendError, ConfigError, OSError, TimeoutError):
            # The embedder is down, or it fails on one of these. It has not been asked for these words before.
            await self._attempts.until_it_works(partial(self._vectors, [f"is it there? {token_hex(4)}"]))
        if len(texts) == 1:
            return [None]
        return [vector for text in texts for vector in await self._embedded([text])]

    async def _vectors(self, texts: list[str]) -> list[Vector | None]:
        try:
            return list(await self.embedder.embed(texts, role="document"))
        except TextRefused:
            if len(texts) == 1:
                return [None]
        return [vector for text in texts for vector in await self._vectors([text])]

    async def _write(self, pairs: list[tuple[Owed, Vector]]) -> None:
        now = self._clock()
        await asyncio.gather(
            *(
                self.target.upsert(
                    one.namespace,
                    one.entry_id,
                    vector,
                    one.payload,
                    ttl=None if one.expires_at == float("inf") else one.expires_at - now,
                )
                for one, vector in pairs
                if one.expires_at > now
            )
        )

    async def _rest(self) -> None:
        """As long as it has worked since the last time: where requests keep the machine busy, both grow."""
        await self._sleep(min(self._timer() - self._rested, _LONGEST_REST))
        self._rested = self._timer()

    def _remains(self, count: int) -> None:
        self.remaining = max(0, count)
        self._metrics.reembedding_remaining.set((), self.remaining)
        if self.remaining and self._timer() >= self._said + _SAY_EVERY:
            self._said = self._timer()
            log.info("%d stored questions remain to be embedded anew for %s", self.remaining, self.embedder.revision)


class _Known:
    """What a store holds already, and for how long: 16 bytes an entry."""

    def __init__(self, marks: "array[int]", expiries: "array[float]") -> None:
        order = np.argsort(np.frombuffer(marks, np.int64)) if marks else np.empty(0, np.intp)
        self._marks = np.frombuffer(marks, np.int64)[order] if marks else np.empty(0, np.int64)
        self._expiries = np.frombuffer(expiries, np.float64)[order] if marks else np.empty(0)

    def has(self, one: Owed) -> bool:
        """Also as long as `one` is to be found."""
        mark = _mark(one.namespace, one.entry_id)
        at = int(np.searchsorted(self._marks, mark))
        if at == len(self._marks) or self._marks[at] != mark:
            return False
        return bool(self._expiries[at] >= one.expires_at - _SAME_TIME)


def _mark(namespace: str, entry_id: str) -> int:
    named = f"{namespace}\0{entry_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(named, digest_size=8).digest(), signed=True)


# --- what outlives the process


class _Noted(msgspec.Struct):
    """`left` are those whose vectors may stand for questions that `serving` has no vectors of."""

    serving: Made
    left: list[Made] = []


def left_behind(file: Path, serving: Made) -> list[Made]:
    """Whose questions are to be embedded anew for `serving`, by what was noted last; nobody's if that is unreadable."""
    try:
        noted = msgspec.json.decode(file.read_bytes(), type=_Noted)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("%s cannot be read, so nothing is embedded anew: %s", file, type(error).__name__)
        return []
    return [made for made in dict.fromkeys([noted.serving, *noted.left]) if made != serving]


def note(file: Path, serving: Made, left: Sequence[Made]) -> None:
    """Replaces what was noted, in one step. What cannot be written is logged: a restart then embeds less anew."""
    fresh = file.with_name(f".{file.name}.{token_hex(8)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(msgspec.json.encode(_Noted(serving, list(left))))
        fresh.replace(file)
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error.strerror)
        with suppress(OSError):
            fresh.unlink()
