"""The semantic tier: the same question in other words.

Embedding and search share one deadline. Whatever goes wrong here, the request
goes on as a miss.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

import msgspec

from backends.embedding.base import Embedder
from backends.vector.base import Neighbor, Vector, VectorStore
from models.completion import Entry
from models.errors import BackendError, ConfigError, TextRefused, TextTooLong
from service.caching.agreement import LOOKED_AT, SKETCH, Agreement, agreement, alike
from service.caching.features import Prepared, prepare
from service.caching.identity import Question
from service.caching.rule import THRESHOLD, Rule
from service.caching.stored import StoredQuestion, payload, read
from service.caching.verifier import Verifier
from service.caching.vetoes import conflict
from service.context import Context
from service.pipeline.exact_tier import ExactTier, fresh, namespace
from service.pipeline.health import READING, WRITING, Health
from service.pipeline.second_opinion import SecondOpinion
from service.telemetry.metrics import Metrics

_CANDIDATES = 10
# Less similar ones are no candidates for anybody: nothing is noted of them.
_WORTH_NOTING = 0.5
_PREPARED = 400_000  # characters of questions that are read once, at 120 to 200 bytes each
_RELOAD_EVERY = 30.0
_TRY_AGAIN_EVERY = 2.0
_WRITE_DEADLINE = 5.0


class Look(msgspec.Struct, frozen=True):
    """The first candidate that nothing vetoes. `entry` is whose answer it would be served, `score` what the rule cuts
    at."""

    entry: str
    stored: StoredQuestion
    cosine: float
    chance: float | None = None
    agreement: Agreement | None = None
    score: float = -math.inf


class Found(msgspec.Struct):
    """`similarity` is the hit's, `rejected` that of the nearest entry not served, `shadow` that of one the endpoint's
    limit may not serve yet. `detail` says why there is no hit. `look` is there if anything was near."""

    entry: Entry | None = None
    similarity: float | None = None
    rejected: float | None = None
    shadow: float | None = None
    vector: Vector | None = None
    detail: str = ""
    alias: bool = False
    look: Look | None = None


class Judged(msgspec.Struct):
    """Places of neighbours that may answer, the likeliest first; of the first that nothing vetoes; of one that may only
    be recorded; and why none may answer. `chances` are the verifier's by place, where it was asked."""

    allowed: list[int] = []
    first: int | None = None
    shadow: int | None = None
    reason: str = ""
    chances: dict[int, float] = {}
    look: Look | None = None


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
        self.opinions: Mapping[str, SecondOpinion] = {}  # likewise, of those that ask for one
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
        """The best entry that the endpoint's rule lets answer, and that is still there and fresh enough."""
        if not self.loaded:
            return Found(detail="embedder-loading" if not self.settled else "degraded")
        started = time.perf_counter()
        endpoint = context.endpoint.name
        rule = self.rule(context)
        noting = context.endpoint.lookups != "off" or rule.by == "fit"
        found = Found()
        try:
            where = self._namespace(context, question)
            found.vector, neighbors = await self._nearest(question.text, where, LOOKED_AT if noting else _CANDIDATES)
            heard = await self._heard(context, question.text, neighbors, rule)
            judged = judge(question.text, neighbors, rule, self.verifier, context.directives.threshold, heard)
            allowed = set(judged.allowed)
            found.rejected = next((near.similarity for at, near in enumerate(neighbors) if at not in allowed), None)
            await self._live(context, neighbors, judged, found)
        except TextRefused as error:
            return Found(detail="too-long" if isinstance(error, TextTooLong) else "not-text")
        except (BackendError, TimeoutError):
            self._metrics.cache_lookups.add((endpoint, "semantic", "error"))
            found.entry, found.detail = None, "degraded"
            return found
        hit = found.entry is not None
        if noting and judged.first is not None:
            # Always the same one, whatever decided: a log of what was served would be a sample of something else.
            found.look = judged.look or look_at(
                _prepared(question.text), neighbors, judged.first, rule, self.verifier, judged.chances
            )
        if hit:
            found.detail = "alias" if found.alias else "semantic"
        elif judged.shadow is not None:
            found.shadow = neighbors[judged.shadow].similarity
            found.detail = "tightened" if rule.certified else "not-certified"
        else:
            found.detail = judged.reason or ("no-neighbor" if found.rejected is None else "below-threshold")
        self._metrics.cache_lookups.add((endpoint, "semantic", "hit" if hit else "miss"))
        self._metrics.cache_lookup_seconds.observe(("semantic",), time.perf_counter() - started)
        return found

    async def _heard(
        self, context: Context, text: str, neighbors: Sequence[Neighbor], rule: Rule
    ) -> dict[int, float] | None:
        """The verifier's chances by place, as a second opinion leaves them; None where there is none to ask."""
        second = self.opinions.get(context.endpoint.name)
        if second is None or self.verifier is None or rule.by == "cosine":
            return None
        asked, near = _prepared(text), neighbors[:_CANDIDATES]
        stored = [read(one.payload).text for one in near]
        known = [_prepared(one) for one in stored]
        found = self.verifier.probabilities(asked, known, [one.similarity for one in near])
        # Of the same words in another order, the verifier knows more than models that read both.
        chances = [
            None if not p or conflict(asked, one) or sorted(asked.words) == sorted(one.words) else p
            for p, one in zip(found, known, strict=True)
        ]

        def serves(place: int, chance: float) -> bool:
            if rule.by == "verifier":
                return chance >= rule.cut
            return look_at(asked, neighbors, place, rule, self.verifier, {place: chance}).score >= rule.cut

        if rule.by == "fit":
            first = _first(asked, near)
            chances = [p if place == first else None for place, p in enumerate(chances)]
        heard = await second.weigh(text, stored, chances, serves)
        return {at: p if said is None else said for at, (p, said) in enumerate(zip(found, heard, strict=True))}

    def rule(self, context: Context) -> Rule:
        found = self.rules.get(context.endpoint.name)
        if found is not None:
            return found
        # An endpoint of a configuration that is going out of use.
        threshold = context.endpoint.threshold
        return Rule("cosine", THRESHOLD if threshold is None else threshold)

    def revision(self, context: Context) -> str:
        """Names all that decides that two requests are one: the rule, and what of a request is compared."""
        read = context.endpoint
        how = (read.context, read.question_pattern, read.off, read.max_temperature)
        return f"{self.rule(context).revision}/{_how_read(*how)}"

    @property
    def well(self) -> bool:
        """A look-up would not be in vain, as far as is known."""
        return self.loaded and not (self._embedding.failing(READING) or self._searching.failing(READING))

    async def look(self) -> None:
        """Asks what was asked in vain: a recovery is heard of without a request, too."""
        if self.loaded and (self._embedding.failing(READING) or self._searching.failing(READING)):
            with contextlib.suppress(BackendError, TimeoutError):
                await self._nearest(*self._in_vain, 1)

    async def _nearest(self, text: str, where: str, limit: int) -> tuple[Vector, Sequence[Neighbor]]:
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
                neighbors = await self.vectors.nearest(where, vector, limit=limit)
        except TextRefused:
            raise
        except (BackendError, TimeoutError) as error:
            self._in_vain = (text, where)
            (late if isinstance(error, TimeoutError) else asked).failed(READING, error)
            raise
        self._embedding.works(READING)
        self._searching.works(READING)
        return vector, neighbors

    async def keep(
        self,
        context: Context,
        question: Question,
        vector: Vector | None,
        entry: Entry,
        *,
        sketch: bytes = b"",
        alias_of: str = "",
    ) -> bool:
        """Makes the entry findable by its question, or the one that it is an alias of; whether it is now. `vector` is
        the question's where it was embedded before, `sketch` the answer's."""
        if not self.loaded:
            return False
        ttl = entry.expires_at + context.endpoint.stale - self._clock()
        if ttl <= 0:
            return False
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
            kept = payload(StoredQuestion(question.text, sketch, alias_of))
            async with asyncio.timeout(_WRITE_DEADLINE):
                await self.vectors.upsert(where, entry.entry_id, vector, kept, ttl=ttl)
            asked.works(activity)
        except TextRefused:
            return False
        except (BackendError, TimeoutError) as error:
            asked.failed(activity, error)
            return False
        return True

    async def _live(self, context: Context, neighbors: Sequence[Neighbor], judged: Judged, found: Found) -> None:
        """Puts the first allowed one that is still there into `found`; one that is stale only if none is fresh."""
        now = self._clock()
        for place in judged.allowed:
            near = neighbors[place]
            alias_of = read(near.payload).alias_of
            canonical = await self._exact.read(context, alias_of) if alias_of else None
            if canonical is not None and canonical.alias_of:
                canonical = None  # that question has become another wording of a third
            entry = canonical or await self._exact.read(context, near.entry_id)
            if entry is None or entry.alias_of or (found.entry is not None and not fresh(entry, context, now)):
                continue
            found.entry, found.similarity, found.alias = entry, near.similarity, canonical is not None
            if fresh(entry, context, now):
                return

    def _namespace(self, context: Context, question: Question) -> str:
        return f"{namespace(context)}/{question.namespace}"


def judge(
    text: str,
    neighbors: Sequence[Neighbor],
    rule: Rule,
    verifier: Verifier | None,
    least: float,
    chances: Mapping[int, float] | None = None,
) -> Judged:
    """What the rule says of the nearest ten; none below the cosine `least` may answer. `chances` by place stand in the
    place of the verifier's."""
    asked = _prepared(text)
    near = neighbors[:_CANDIDATES]
    judged = Judged(chances=dict(chances or {}))
    if rule.by == "cosine":
        _by_cosine(judged, asked, near, max(least, rule.cut))
    elif rule.by == "verifier" and verifier is not None:
        _by_chance(judged, asked, near, rule, verifier, least)
    judged.first = _first(asked, near)
    if rule.by == "fit" and judged.first is not None:
        judged.look = look_at(asked, neighbors, judged.first, rule, verifier, judged.chances)
        if near[judged.first].similarity >= least and judged.look.score >= rule.cut:
            judged.allowed.append(judged.first)
        elif near[judged.first].similarity >= least and judged.look.score >= rule.shadow:
            judged.shadow = judged.first
    return judged


def _by_cosine(judged: Judged, asked: Prepared, near: Sequence[Neighbor], cut: float) -> None:
    for place, one in enumerate(near):
        if one.similarity < cut:
            break
        vetoed = conflict(asked, _prepared(read(one.payload).text))
        if vetoed:
            judged.reason = judged.reason or vetoed
        else:
            judged.allowed.append(place)


def _by_chance(
    judged: Judged, asked: Prepared, near: Sequence[Neighbor], rule: Rule, verifier: Verifier, least: float
) -> None:
    stored = [_prepared(read(one.payload).text) for one in near]
    if not judged.chances:
        cosines = [one.similarity for one in near]
        judged.chances = dict(enumerate(verifier.probabilities(asked, stored, cosines, share=rule.share)))
    chances = [judged.chances[place] for place in range(len(near))]
    worth = min(rule.cut, rule.shadow)
    for chance, place in sorted((-chance, place) for place, chance in enumerate(chances) if chance >= worth):
        if near[place].similarity < least:
            continue
        vetoed = conflict(asked, stored[place])
        if vetoed:
            judged.reason = judged.reason or vetoed
        elif -chance >= rule.cut:
            judged.allowed.append(place)
        elif judged.shadow is None:
            judged.shadow = place
    if not judged.reason and any(chances):
        judged.reason = "verifier"


def _first(asked: Prepared, near: Sequence[Neighbor]) -> int | None:
    for place, one in enumerate(near):
        if one.similarity < _WORTH_NOTING:
            return None
        if not conflict(asked, _prepared(read(one.payload).text)):
            return place
    return None


def look_at(
    asked: Prepared,
    neighbors: Sequence[Neighbor],
    place: int,
    rule: Rule,
    verifier: Verifier | None,
    chances: Mapping[int, float] | None = None,
) -> Look:
    """All that is known of a candidate: how likely it is, and whether those behind it answer the same. `chances` are
    those known by place."""
    one = neighbors[place]
    stored = read(one.payload)
    chance = (chances or {}).get(place) or None  # 0 is what the rule's cut left out
    if verifier is not None and chance is None:
        (chance,) = verifier.probabilities(asked, [_prepared(stored.text)], [one.similarity])
    around = neighbors[place:LOOKED_AT]
    agreed = agreement([other.similarity for other in around], alike([_sketch_of(other) for other in around]))
    score = one.similarity if rule.by == "cosine" else chance
    if rule.fit is not None:
        score = rule.fit.score(one.similarity, chance, agreed)
    return Look(
        entry=stored.alias_of or one.entry_id,
        stored=stored,
        cosine=one.similarity,
        chance=chance,
        agreement=agreed,
        score=-math.inf if score is None else score,
    )


def _sketch_of(neighbor: Neighbor) -> bytes:
    """One that was kept without a sketch agrees with nothing but itself."""
    kept = read(neighbor.payload).sketch
    if len(kept) == SKETCH:
        return kept
    return (blake2b(neighbor.entry_id.encode(), digest_size=64).digest() * (SKETCH // 64 + 1))[:SKETCH]


@lru_cache
def _how_read(*how: str | float | frozenset[str] | None) -> str:
    named = repr([sorted(part) if isinstance(part, frozenset) else part for part in how])
    return blake2b(named.encode(), digest_size=8).hexdigest()


class ReadTexts:
    """Texts that were read before: those used last, of at most so many characters together, or a single one."""

    def __init__(self, *, most: int) -> None:
        self.characters = 0
        self._most = most
        self._kept: dict[str, Prepared] = {}

    def prepared(self, text: str) -> Prepared:
        found = self._kept.pop(text, None)
        if found is None:
            found = prepare(text)
            self.characters += len(text)
        self._kept[text] = found  # behind all others
        while self.characters > self._most and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self.characters -= len(oldest)
        return found


_prepared = ReadTexts(most=_PREPARED).prepared
