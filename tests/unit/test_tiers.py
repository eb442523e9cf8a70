"""How the tiers of the cache fail and recover: a miss each time, and a gauge that tells the truth."""

import asyncio
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from backends.embedding.base import Role
from backends.exact.memory import MemoryStore
from backends.vector.base import Neighbor, Vector
from backends.vector.flat import FlatStore
from models.completion import Completion, Usage
from models.errors import BackendError, StoreFull
from service.caching.identity import Question
from service.context import Caller, Context, Directives, Endpoint
from service.pipeline.exact_tier import ExactTier
from service.pipeline.semantic_tier import ReadTexts, SemanticTier
from service.telemetry.metrics import Metrics

COMPLETION = Completion(body=b"{}", model="m", usage=Usage(1, 1), finish_reasons=("stop",))
CONTEXT = Context(
    request_id="r",
    endpoint=Endpoint(name="default", ttl_jitter=0.0),
    caller=Caller(partition="everyone"),
    directives=Directives(mode="semantic", threshold=0.9, ttl=60.0),
    started=0.0,
    headers={},
)
QUESTION = Question(text="how do I reset my password?", namespace="n")


class FragileExactStore(MemoryStore):
    reading = writing = True
    reads_left = 1_000_000

    async def get(self, namespace: str, key: str) -> bytes | None:
        self.reads_left -= 1
        if not self.reading or self.reads_left < 0:
            raise BackendError("cannot be read")
        return await super().get(namespace, key)

    async def put(self, namespace: str, key: str, value: bytes, *, ttl: float | None) -> None:
        if not self.writing:
            raise StoreFull("no room")
        await super().put(namespace, key, value, ttl=ttl)


class FragileVectorStore(FlatStore):
    writing = answering = True

    async def nearest(self, namespace: str, vector: Vector, *, limit: int) -> Sequence[Neighbor]:
        if not self.answering:
            await asyncio.Event().wait()
        return await super().nearest(namespace, vector, limit=limit)

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        if not self.writing:
            raise StoreFull("no room")
        await super().upsert(namespace, entry_id, vector, payload, ttl=ttl)


class SameVector:
    revision, dimensions = "same/1", 2

    async def load(self) -> None:
        """Nothing to load."""

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:  # noqa: ARG002  # the protocol's
        return np.array([[1.0, 0.0]] * len(texts), np.float32)

    async def close(self) -> None:
        """Nothing to close."""


class SlowEmbedder(SameVector):
    """Takes so many seconds for each text."""

    takes = 0.0

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        await asyncio.sleep(self.takes)
        return await super().embed(texts, role=role)


class Tiers:
    def __init__(self) -> None:
        self.store = FragileExactStore()
        self.vectors = FragileVectorStore(dimensions=2)
        self.metrics = Metrics()
        self.exact = ExactTier(self.store, deadline=None, metrics=self.metrics)
        self.semantic = SemanticTier(SameVector(), self.vectors, self.exact, deadline=5.0, metrics=self.metrics)

    async def keep(self, key: str) -> bool:
        entry = self.exact.entry(CONTEXT, key, COMPLETION, "mock/m")
        kept = await self.exact.keep(CONTEXT, entry, asked_at=self.exact.now())
        await self.semantic.keep(CONTEXT, QUESTION, None, entry)
        return kept

    def degraded(self, component: str) -> float:
        return self.metrics.degraded.state().get((component,), 0.0)


async def loaded() -> Tiers:
    tiers = Tiers()
    await tiers.semantic.load()
    return tiers


async def test_a_store_that_is_read_and_not_written_stays_degraded() -> None:
    tiers = await loaded()
    await tiers.keep("first")
    tiers.store.writing = False

    kept = await tiers.keep("second")
    found = await tiers.exact.lookup(CONTEXT, "first")

    assert not kept
    assert found is not None
    assert tiers.degraded("exact") == 1


async def test_a_store_that_is_written_again_is_well() -> None:
    tiers = await loaded()
    tiers.store.writing = False
    await tiers.keep("first")
    tiers.store.writing = True

    kept = await tiers.keep("second")

    assert kept
    assert tiers.degraded("exact") == 0


async def test_vectors_that_cannot_be_written_stay_degraded_while_they_are_searched() -> None:
    tiers = await loaded()
    await tiers.keep("first")
    tiers.vectors.writing = False
    await tiers.keep("second")

    found = await tiers.semantic.lookup(CONTEXT, QUESTION)
    during = tiers.degraded("vector")
    tiers.vectors.writing = True
    await tiers.keep("third")

    assert found.entry is not None
    assert during == 1
    assert tiers.degraded("vector") == 0


async def test_an_exact_store_that_fails_behind_a_semantic_hit_is_a_miss_and_recovers() -> None:
    tiers = await loaded()
    await tiers.keep("first")
    tiers.store.reading = False

    found = await tiers.semantic.lookup(CONTEXT, QUESTION)
    during = tiers.degraded("exact")
    tiers.store.reading = True
    await tiers.exact.lookup(CONTEXT, "first")

    assert found.entry is None
    assert found.detail == "degraded"
    assert during == 1
    assert tiers.degraded("exact") == 0


@pytest.mark.parametrize(("takes", "blamed"), [(0.0, "vector"), (0.12, "embedder")])
async def test_time_that_runs_out_is_the_fault_of_who_took_most_of_it(takes: float, blamed: str) -> None:
    tiers, embedder = Tiers(), SlowEmbedder()
    embedder.takes = takes
    tiers.vectors.answering = False
    semantic = SemanticTier(embedder, tiers.vectors, tiers.exact, deadline=0.2, metrics=tiers.metrics)
    await semantic.load()

    found = await semantic.lookup(CONTEXT, QUESTION)

    assert found.detail == "degraded"
    assert {part for part in ("embedder", "vector") if tiers.degraded(part)} == {blamed}


async def test_a_recovery_is_heard_of_without_a_request() -> None:
    tiers = await loaded()
    tiers.store.reading = False
    await tiers.exact.lookup(CONTEXT, "key")
    tiers.vectors.answering = False
    quick = SemanticTier(SameVector(), tiers.vectors, tiers.exact, deadline=0.01, metrics=tiers.metrics)
    await quick.load()
    await quick.lookup(CONTEXT, QUESTION)
    during = tiers.degraded("exact"), tiers.degraded("vector")
    await tiers.exact.look()
    await quick.look()
    still = tiers.degraded("exact"), tiers.degraded("vector")
    tiers.store.reading = tiers.vectors.answering = True

    await tiers.exact.look()
    await quick.look()

    assert [during, still] == [(1.0, 1.0)] * 2
    assert (tiers.degraded("exact"), tiers.degraded("vector")) == (0, 0)


async def test_a_slower_call_does_not_undo_a_refresh() -> None:
    tiers = await loaded()
    asked_at = tiers.exact.now()
    refreshed = tiers.exact.entry(CONTEXT, "key", COMPLETION, "mock/new")
    await tiers.exact.keep(CONTEXT, refreshed, asked_at=asked_at)
    late = tiers.exact.entry(CONTEXT, "key", COMPLETION, "mock/old")

    kept = await tiers.exact.keep(CONTEXT, late, asked_at=asked_at - 1.0)
    found = await tiers.exact.lookup(CONTEXT, "key")

    assert not kept
    assert found is not None
    assert found.upstream == "mock/new"


async def test_a_look_up_of_the_same_request_is_counted_once() -> None:
    tiers = await loaded()

    await tiers.exact.lookup(CONTEXT, "key")
    await tiers.exact.again(CONTEXT, "key")

    assert tiers.metrics.cache_lookups.state() == {(CONTEXT.endpoint.name, "exact", "miss"): 1}


async def test_a_near_question_with_another_number_is_rejected_and_told() -> None:
    tiers = await loaded()
    await tiers.keep("first")
    other = Question(f"{QUESTION.text} 17", QUESTION.namespace)

    found = await tiers.semantic.lookup(CONTEXT, other)

    assert found.entry is None
    assert found.detail == "numbers"
    assert found.rejected is not None
    assert found.rejected > 0.99


async def test_what_was_read_of_texts_is_kept_within_bounds_however_long_they_are() -> None:
    reading = ReadTexts(most=10_000)

    kept = reading.prepared("Where is it?")
    for number in range(200):
        reading.prepared(f"{number} {'word ' * 180}")
    again = reading.prepared("Where is it?")
    longer = reading.prepared("x" * 50_000)

    assert longer.text == "x" * 50_000
    assert again.text == kept.text
    assert again is not kept
    assert reading.prepared("Where is it?") is reading.prepared("Where is it?")
    assert reading.characters <= 10_000


async def test_a_question_whose_canonical_entry_became_an_alias_is_answered_from_its_own() -> None:
    tiers = await loaded()
    own = tiers.exact.entry(CONTEXT, "own", COMPLETION, "mock/m")
    other = tiers.exact.entry(CONTEXT, "other", COMPLETION, "mock/m")
    await tiers.exact.keep(CONTEXT, own, asked_at=tiers.exact.now())
    await tiers.exact.alias(CONTEXT, "canonical", other, similarity=1.0, rule="r")
    await tiers.semantic.keep(CONTEXT, QUESTION, None, own, alias_of="canonical")

    found = await tiers.semantic.lookup(CONTEXT, QUESTION)

    assert found.entry is not None
    assert (found.entry.entry_id, found.detail) == ("own", "semantic")


async def test_a_store_that_fails_after_a_stale_entry_was_found_is_a_miss() -> None:
    tiers = await loaded()
    endpoint = msgspec.structs.replace(CONTEXT.endpoint, stale=600.0)
    brief = msgspec.structs.replace(CONTEXT.directives, ttl=1e-6)
    context = msgspec.structs.replace(CONTEXT, endpoint=endpoint, directives=brief)
    for key in ("first", "second"):
        entry = tiers.exact.entry(context, key, COMPLETION, "mock/m")
        await tiers.exact.keep(context, entry, asked_at=tiers.exact.now())
        await tiers.semantic.keep(context, QUESTION, None, entry)
    tiers.store.reads_left = 1

    found = await tiers.semantic.lookup(context, QUESTION)

    assert found.entry is None
    assert found.detail == "degraded"
