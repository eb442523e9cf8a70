"""The semantic tier: the same question in other words.

Embedding and search share one deadline. Whatever goes wrong here, the request
goes on as a miss.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import msgspec

from backends.embedding.base import Embedder
from backends.vector.base import Neighbor, Vector, VectorStore
from models.completion import Entry
from models.errors import BackendError, ConfigError, TextRefused, TextTooLong
from service.caching.features import Prepared, prepare
from service.caching.identity import Question
from service.caching.rule import Rule
from service.caching.threshold import near_enough, nearest_rejected
from service.caching.verifier import Verifier
from service.caching.vetoes import conflict
from service.context import Context
from service.pipeline.exact_tier import ExactTier, namespace
from service.pipeline.health import READING, WRITING, Health
from service.telemetry.metrics import Metrics

_CANDIDATES = 10
# Where nobody said what is near enough and no verifier knows the embedder.
_THRESHOLD = 0.92
_PREPARED = 10_000  # stored questions that are read once
_RELOAD_EVERY = 30.0
_TRY_AGAIN_EVERY = 2.0
_WRITE_DEADLINE = 5.0


class Found(msgspec.Struct):
    """`similarity` is the hit's, `rejected` that of the nearest entry not served. `detail` says why there is no hit."""

    entry: Entry | None = None
    similarity: float | None = None
    rejected: float | None = None
    vector: Vector | None = None
    detail: str = ""


class SemanticTier:
    """`deadline` in seconds for one look-up, embedding included."""

    def __init__(
        self,
        embedder: Embedder,
        vectors: VectorStore,
        exact: ExactTier,
        *,
        verifier: Verifier | None = None,
        deadline: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.embedder = embedder
        self.verifier = verifier
        self.rules: Mapping[str, Rule] = {}  # by endpoint; put here as they change
        self.vectors = vectors
        self._exact = exact
        self._deadline = deadline
        self._metrics = metrics
        self._clock = clock
        self._embedding = Health("embedder", metrics)
        self._searching = Health("vector", metrics)
        self._in_vain = ("?", "")  # the text and the namespace that were asked for last without an answer
        self.loaded = False  # the embedder is there
        self.settled = False  # it is there, or it was tried and is declared degraded

    async def load(self) -> None:
        """Loads the embedder and the vectors, trying again while they cannot be. Runs until they are there."""
        while not await self._loads(self.embedder, self._embedding):
            self.settled = True
            await asyncio.sleep(_RELOAD_EVERY)
        # A store that is not there now comes to life by itself; nobody waits for it to be served.
        there = await self._loads(self.vectors, self._searching)
        self.loaded = self.settled = True
        while not there:
            await asyncio.sleep(_TRY_AGAIN_EVERY)
            there = await self._loads(self.vectors, self._searching)

    async def _loads(self, part: Embedder | VectorStore, health: Health) -> bool:
        try:
            await part.load()
        except (BackendError, ConfigError, OSError) as error:
            health.failed(READING, error)
            return False
        health.works(READING)
        return True

    async def lookup(self, context: Context, question: Question) -> Found:
        """The best entry at or above the request's threshold that is still there and fresh enough."""
        if not self.loaded:
            return Found(detail="embedder-loading" if not self.settled else "degraded")
        started = time.perf_counter()
        endpoint = context.endpoint.name
        found = Found()
        try:
            found.vector, neighbors = await self._nearest(question.text, self._namespace(context, question))
            allowed, vetoed = self._judged(context, question.text, neighbors)
            found.rejected = nearest_rejected(neighbors, allowed)
            found.entry, found.similarity = await self._live(context, allowed)
        except TextRefused as error:
            return Found(detail="too-long" if isinstance(error, TextTooLong) else "not-text")
        except (BackendError, TimeoutError):
            self._metrics.cache_lookups.add((endpoint, "semantic", "error"))
            found.detail = "degraded"
            return found
        hit = found.entry is not None
        missed = vetoed or ("no-neighbor" if found.rejected is None else "below-threshold")
        found.detail = "semantic" if hit else missed
        self._metrics.cache_lookups.add((endpoint, "semantic", "hit" if hit else "miss"))
        self._metrics.cache_lookup_seconds.observe(("semantic",), time.perf_counter() - started)
        return found

    async def look(self) -> None:
        """Asks what was asked in vain: a recovery is heard of without a request, too."""
        if self.loaded and (self._embedding.failing(READING) or self._searching.failing(READING)):
            with contextlib.suppress(BackendError, TimeoutError):
                await self._nearest(*self._in_vain)

    async def _nearest(self, text: str, where: str) -> tuple[Vector, Sequence[Neighbor]]:
        """The text's vector and what is near it. Raises `BackendError` or `TimeoutError`, and the part that failed is
        known: where time ran out, the one that took most of it."""
        self._searching.ask(READING)
        self._embedding.ask(READING)
        began = time.monotonic()
        asked = late = self._embedding
        try:
            async with asyncio.timeout(self._deadline):
                vector = (await self.embedder.embed([text], role="query"))[0]
                asked = self._searching
                if time.monotonic() < began + self._deadline / 2:
                    self._embedding.works(READING)
                    late = asked
                neighbors = await self.vectors.nearest(where, vector, limit=_CANDIDATES)
        except TextRefused:
            raise
        except (BackendError, TimeoutError) as error:
            self._in_vain = (text, where)
            (late if isinstance(error, TimeoutError) else asked).failed(READING, error)
            raise
        self._embedding.works(READING)
        self._searching.works(READING)
        return vector, neighbors

    async def keep(self, context: Context, question: Question, vector: Vector | None, entry: Entry) -> None:
        """Makes the entry findable by its question. `vector` is the question's where it was embedded before."""
        if not self.loaded:
            return
        ttl = entry.expires_at - self._clock()
        if ttl <= 0:
            return
        asked, activity = self._embedding, READING
        try:
            if vector is None:
                asked.ask(activity)
                async with asyncio.timeout(self._deadline):
                    vector = (await self.embedder.embed([question.text], role="document"))[0]
                asked.works(activity)
            asked, activity = self._searching, WRITING
            asked.ask(activity)
            where = self._namespace(context, question)
            async with asyncio.timeout(_WRITE_DEADLINE):
                await self.vectors.upsert(where, entry.entry_id, vector, question.text.encode(), ttl=ttl)
            asked.works(activity)
        except TextRefused:
            return
        except (BackendError, TimeoutError) as error:
            asked.failed(activity, error)

    def _judged(self, context: Context, text: str, neighbors: Sequence[Neighbor]) -> tuple[list[Neighbor], str]:
        """Those that may answer, the likeliest first, and why the most similar of the others may not."""
        verifier = None if context.endpoint.threshold is not None else self.verifier
        least = context.directives.threshold
        if verifier is None and context.endpoint.threshold is None:
            least = max(least, _THRESHOLD)
        near = near_enough(neighbors, threshold=least)
        if not near:
            return [], ""
        asked = prepare(text)
        stored = [_prepared(neighbor.payload) for neighbor in near]
        reasons = [conflict(asked, one) or "" for one in stored]
        allowed = [neighbor for neighbor, reason in zip(near, reasons, strict=True) if not reason]
        if verifier is not None:
            cosines = [neighbor.similarity for neighbor in near]
            likely = verifier.probabilities(asked, stored, cosines)
            cut = verifier.cut()
            reasons = [reason or ("" if p >= cut else "verifier") for reason, p in zip(reasons, likely, strict=True)]
            ranked = sorted(zip(likely, range(len(near)), strict=True), key=lambda one: (-one[0], one[1]))
            allowed = [near[place] for _, place in ranked if not reasons[place]]
        return allowed, next((reason for reason in reasons if reason), "")

    async def _live(self, context: Context, neighbors: Sequence[Neighbor]) -> tuple[Entry | None, float | None]:
        for neighbor in neighbors:
            entry = await self._exact.fetch(context, neighbor.entry_id)
            if entry is not None:
                return entry, neighbor.similarity
        return None, None

    def _namespace(self, context: Context, question: Question) -> str:
        return f"{namespace(context)}/{question.namespace}"


@lru_cache(maxsize=_PREPARED)
def _prepared(payload: bytes) -> Prepared:
    return prepare(payload.decode("utf-8", "replace"))  # the payload is the stored question
