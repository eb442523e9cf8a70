"""From settings to running parts: the one place that knows both.

`Runtime` holds what lives as long as the worker (stores, embedder, flights,
metrics); `State` what a reload replaces (policies, upstreams, limits).
"""

import asyncio
import contextlib
import logging
import math
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from pydantic import SecretStr

from backends import registry
from backends.embedding.base import Embedder
from backends.embedding.remembering import RememberingEmbedder
from backends.exact.base import ExactStore
from backends.judging.base import ANSWER_TOKENS, Judge
from backends.keyring.base import Keyring
from backends.lease.base import Leases
from backends.redis_address import RedisAddress
from backends.tuning.base import TuningStore
from backends.upstream.base import Upstream
from backends.vector.base import VectorStore
from guardrails.placeholders import Placeholders
from guardrails.policy import Policy
from models.errors import BackendError, ConfigError
from service.caching import directives
from service.caching.eligibility import SWITCHABLE
from service.caching.lookups import LOG
from service.caching.passages import TemplateError, template
from service.caching.rule import rule
from service.caching.second_opinion import DEFAULT
from service.caching.second_opinion import read as read_weights
from service.caching.single_flight import Flights
from service.caching.tuned import Override
from service.caching.verifier import Verifier
from service.caching.verifier import load as load_verifier
from service.context import Directives, Endpoint, Limits
from service.pipeline.exact_tier import ExactTier
from service.pipeline.gateway import Gateway
from service.pipeline.health import READING
from service.pipeline.lead import Leads
from service.pipeline.outcomes import Outcomes
from service.pipeline.reembedding import Attempts, Both, Made, Reembedding, left_behind, note
from service.pipeline.screen import Screens
from service.pipeline.second_opinion import SecondOpinion, asking
from service.pipeline.semantic_tier import SemanticTier
from service.pipeline.tuning import Known, Tuning
from service.policies import policies
from service.routing.aliases import Aliases, Route, Target, route
from service.routing.balance import Standing
from service.routing.catalog import Catalog
from service.settings import (
    EmbedderSettings,
    EndpointSettings,
    ModelSettings,
    QdrantSettings,
    RedisSettings,
    RoutingSettings,
    SecondOpinionSettings,
    Settings,
    UpstreamSettings,
    is_loopback,
    load,
)
from service.telemetry import logs
from service.telemetry.group import Group
from service.telemetry.metrics import Metrics
from service.telemetry.recorder import Recorder

log = logging.getLogger("keepgate.wiring")

_SEMANTIC = ("semantic", "shadow")
# Stores that answer from memory: waiting on a deadline would cost more than the look-up.
_IMMEDIATE = frozenset({"lmdb", "memory"})
# Stores that several gateways may share, so that they can lead for each other and must mask alike.
_SHARED = frozenset({"redis"})
# Read when the gateway starts; a reload says so and keeps them as they are.
_SERVER = ("host", "port", "workers", "tls", "drain")
_SECTIONS = ("storage", "redis", "qdrant", "admin", "logs")
_STORES = ("exact", "vector")  # of `cache`; its embedder is changed while it serves
_NEEDS_RESTART = (*(f"server.{name}" for name in _SERVER), *_SECTIONS, *(f"cache.{name}" for name in _STORES))
_LANDING = 5.0
_COUNTING = 1.0
_RECOUNT = 30.0
_COUNTED_SHARE = 20  # of the time a count takes passes before the next
_COUNT_AGAIN = 5.0  # after one that failed
_AGREEING = 1.0
_AGREE_AGAIN = 2.0
_AGREED_FOR = 60.0
_LOOK_AGAIN = 2.0
# Of semantic hits, where a limit is set and nobody said otherwise.
_AUDITED = 0.01
# Bytes of a log of look-ups before it is begun anew; one more of as many is kept.
_LOOKUPS = 64 << 20
_SECRET_BYTES = 32
_STDERR = 2
_EMBEDDERS = "embedders.json"
_SETTLING = 60.0


class State(msgspec.Struct, frozen=True):
    """One configuration in effect."""

    settings: Settings
    gateway: Gateway
    catalog: Catalog
    cors_origins: frozenset[str]
    known: Mapping[str, Known]  # of each endpoint, beyond its settings


class _Counted(NamedTuple):
    """`sizes` None: it was never done. `until`: then they are counted again."""

    sizes: Mapping[str, int] | None
    until: float


class _Counting(NamedTuple):
    task: asyncio.Task[None]
    since: float


class Runtime:
    """One worker's parts. `slot` and `run_dir` are its place among several."""

    def __init__(
        self,
        settings: Settings,
        *,
        config: Path | None,
        environ: Mapping[str, str],
        admin_token: str,
        run_dir: Path | None = None,
        slot: int = 0,
    ) -> None:
        self.metrics = Metrics()
        self.admin_token = admin_token
        self.group = Group(self.metrics, run_dir=run_dir, slot=slot)
        self._settings = settings
        self._config = config
        self._environ = environ
        self._background: set[asyncio.Task[None]] = set()
        self._flights = Flights()
        self._reloading = asyncio.Lock()
        self._retired: list[Gateway] = []  # of earlier configurations, while somebody still uses them
        self._recorder: Recorder | None = None
        self._lookups: Recorder | None = None
        self._opinions: dict[tuple[SecondOpinionSettings, str], SecondOpinion] = {}
        self._leases: Leases | None = None
        self._leads: Leads | None = None
        self._alone = False  # its secret is not the one that others have
        self._counted = _Counted(None, float("-inf"))
        self._counting: _Counting | None = None
        self._tuned_at: Hashable = ()
        self._embedder: EmbedderSettings | None = None  # of the tier that serves
        self._wanted: EmbedderSettings | None = None  # the same, or what is moved to
        self._loading: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._one_move = asyncio.Lock()
        self._reembedding: Reembedding | None = None
        self._embedders: list[Embedder] = []  # open
        self._vectors: dict[Made, VectorStore] = {}  # open
        self._opening = asyncio.Lock()  # of the two above: no store is opened twice
        self._held: list[Embedder | VectorStore] = []  # by the move
        self.keyring: Keyring
        self.tuning: Tuning
        self.exact: ExactTier
        self.semantic: SemanticTier | None = None
        self.state: State

    async def start(self) -> None:
        """Opens the stores and begins to load the embedder. Raises `BackendError` or `OSError`: without its stores
        the gateway could not tell keys apart."""
        settings = self._settings
        home = storage(settings)
        self.keyring = await asyncio.to_thread(open_keyring, settings)
        self.tuning = open_tuning(settings)
        chosen = settings.cache.exact
        store = await asyncio.to_thread(open_exact_store, settings)
        deadline = None if chosen.store in _IMMEDIATE else chosen.deadline
        self.exact = ExactTier(store, deadline=deadline, metrics=self.metrics)
        if chosen.store in _SHARED:
            leases: Leases = registry.create("lease", chosen.store, **_reached(chosen.store, settings))
            self._leases, self._leads = leases, Leads(leases, self.exact, deadline=chosen.deadline)
        self._secret = await self._shared_secret(settings, home)
        if semantic_somewhere(settings):
            await self._open_semantic(settings)
        if settings.logs.requests != "off":
            target = _STDERR if settings.logs.requests == "stderr" else Path(settings.logs.requests)
            self._recorder = Recorder(target)
            self._recorder.start()
            self.metrics.records_dropped.follow(lambda: self._recorder.dropped if self._recorder else 0)
        self._keep_lookups(settings)
        check(settings)
        await self._hear_others(settings, self.semantic)
        applied = await asyncio.to_thread(policies, settings, home)
        self.state = self._compiled(settings, applied, {}, {}, await self._known(settings))
        if chosen.store in _SHARED and settings.storage.secret is None:
            self._spawn(self._stay_agreed(settings))
        self._spawn(self._look_after())
        await self.group.start()

    async def _hear_others(self, settings: Settings, tier: SemanticTier | None) -> None:
        """Endpoints that ask for the same second opinion share it, also over reloads."""
        if tier is None:
            return
        verifier = tier.verifier
        trained = "" if verifier is None else verifier.revision  # how much a judge counts is measured beside one
        said = {e.name: e.cache.second_opinion for e in settings.endpoints}
        asked = {name: (wanted, trained) for name, wanted in said.items() if wanted is not None}
        for wanted in set(asked.values()) - self._opinions.keys():
            opinion = await asyncio.to_thread(self._second_opinion, wanted[0], verifier)
            self._opinions[wanted] = opinion
            self._spawn(opinion.load())
        tier.opinions = {name: self._opinions[wanted] for name, wanted in asked.items()}

    def _second_opinion(self, wanted: SecondOpinionSettings, verifier: Verifier | None) -> SecondOpinion:
        name, _, model = (wanted.model or "").partition("/")

        async def ask(messages: Sequence[Mapping[str, str]]) -> str:
            upstream = self.state.gateway.upstreams.get(name)  # a reload may have made it anew
            if upstream is None:
                raise BackendError(f"the judge's upstream {name} is no longer configured")
            return await asking(upstream, model, tokens=ANSWER_TOKENS)(messages)

        return make_second_opinion(wanted, verifier=verifier, ask=ask, metrics=self.metrics)

    def _keep_lookups(self, settings: Settings) -> None:
        kept = any(e.cache.mode in _SEMANTIC and e.cache.lookups != "off" for e in settings.endpoints)
        if not kept or self._lookups is not None:
            return
        try:
            self._lookups = Recorder(lookups_file(settings), name="log of look-ups", most=_LOOKUPS)
        except OSError as error:
            log.warning("there is no log of look-ups: %s", error)
            return
        self._lookups.start()

    def reload(self) -> None:
        """Reads the configuration again, soon. One that cannot be used is refused and logged, and the old one stays."""
        if self._recorder is not None:
            self._recorder.reopen()
        self._spawn(self._reload())

    async def _reload(self) -> None:
        async with self._reloading:  # two signals at once: the second reads what the file is by then
            try:
                settings = await asyncio.to_thread(reread, self._config, self._environ, self._settings)
                check(settings)
                await self._put_into_effect(settings)
            except (ConfigError, BackendError) as error:
                log_refused(error)
                return
            log.info("the configuration was read again")

    async def _put_into_effect(self, settings: Settings) -> None:
        """Raises `ConfigError` or `BackendError`; then what was in effect stays so."""
        old = self.state
        if self.semantic is None and semantic_somewhere(settings):
            await self._open_semantic(settings)
        self._keep_lookups(settings)
        same = {s.name: old.gateway.upstreams[s.name] for s in old.settings.upstreams if s in settings.upstreams}
        applied = await asyncio.to_thread(policies, settings, storage(settings))
        standings = {name: old.gateway.standings[name] for name in same}
        known = await self._known(settings)
        heard = {} if self.semantic is None else self.semantic.opinions
        try:
            await self._hear_others(settings, self.semantic)
            self.state = self._compiled(settings, applied, same, standings, known)
        except (ConfigError, BackendError):
            if self.semantic is not None:
                self.semantic.opinions = heard
            raise
        self._retired = [gateway for gateway in self._retired if gateway.users]
        self._retired.append(old.gateway)
        for name, upstream in old.gateway.upstreams.items():
            if name not in same:
                old.gateway.standings[name].current = False
                if name not in self.state.gateway.upstreams:
                    self.metrics.upstream_open.set((name,), 0)
                self._spawn(self._closed_when_idle(upstream))
        self._follow_embedder(settings)

    async def _closed_when_idle(self, upstream: Upstream) -> None:
        """Requests that began before a reload finish with the upstreams they began with, however many reloads ago."""
        while any(gateway.users for gateway in self._retired if upstream in gateway.upstreams.values()):  # noqa: ASYNC110  # nobody waits for it
            await asyncio.sleep(1.0)
        await upstream.close()

    def tiers(self) -> dict[str, str]:
        """Each configured tier: `up`, `degraded` or `loading`."""
        degraded = {name for (name,), value in self.metrics.degraded.state().items() if value}
        tiers = {"exact": "degraded" if "exact" in degraded else "up"}
        if self.semantic is not None:
            for component in ("embedder", "vector"):
                tiers[component] = "degraded" if component in degraded else "up"
            if not self.semantic.settled:
                tiers["embedder"] = "loading"
        return tiers

    def judged_by(self) -> str | None:
        """The embedder's revision and the verifier's; None where no endpoint compares questions."""
        if self.semantic is None:
            return None
        verifier = self.semantic.verifier
        return f"{self.semantic.embedder.revision} {'' if verifier is None else verifier.revision}".rstrip()

    def decision(self, endpoint: str) -> dict[str, Any]:
        """By what the endpoint's semantic hits are decided, as the management API shows it."""
        found = None if self.semantic is None else self.semantic.rules.get(endpoint)
        if found is None:
            return {}
        cut = found.cut if math.isfinite(found.cut) else None  # None: nothing is served
        return {"by": found.by, "cut": cut, "certified": found.certified, "why": found.why}

    async def entries_by_endpoint(self) -> dict[str, int]:
        """As they were counted last; empty before the first count has ended.

        A remote store walks over all its keys for it: that is done once in a
        while, for as long as it takes, and waited for a second.
        """
        if self._counting is None and self._is_worth_counting():
            self._counting = _Counting(self._spawn(self._count()), time.monotonic())
        if self._counting is not None:
            left = self._counting.since + _COUNTING - time.monotonic()
            await asyncio.wait([self._counting.task], timeout=max(0.0, left))
        if self._counted.sizes is None:
            return {}
        entries = dict.fromkeys(self.state.gateway.endpoints, 0)
        for namespace, count in self._counted.sizes.items():
            endpoint = namespace.partition("/")[0]
            entries[endpoint] = entries.get(endpoint, 0) + count
        return entries

    def count_again(self) -> None:
        """Much has changed."""
        self._counted = self._counted._replace(until=float("-inf"))

    def _is_worth_counting(self) -> bool:
        return time.monotonic() >= self._counted.until and not self.exact.health.failing(READING)

    async def _count(self) -> None:
        began = time.monotonic()
        try:
            sizes = await self.exact.store.sizes()
            took = time.monotonic() - began
            pause = 0.0 if self._settings.cache.exact.store in _IMMEDIATE else max(_RECOUNT, _COUNTED_SHARE * took)
            self._counted = _Counted(sizes, time.monotonic() + pause)
        except BackendError as error:
            log.warning("the entries could not be counted: %s", error)
            self._counted = self._counted._replace(until=time.monotonic() + _COUNT_AGAIN)
        finally:
            self._counting = None

    async def retune(self) -> None:
        """Puts into effect what `tuning` knows by now."""
        async with self._reloading:
            known = await self._known(self.state.settings)
            self.state = msgspec.structs.replace(self.state, known=known)
            self.state.gateway.endpoints = _endpoints(self.state.settings, known)
            self._decide(self.state.gateway.endpoints, known)

    async def _known(self, settings: Settings) -> dict[str, Known]:
        def read() -> dict[str, Known]:
            with contextlib.suppress(BackendError):  # what cannot be read is warned of below
                self._tuned_at = self.tuning.stamp()
            return {endpoint.name: self.tuning.known(endpoint.name) for endpoint in settings.endpoints}

        return await asyncio.to_thread(read)

    def _decide(self, endpoints: Mapping[str, tuple[Endpoint, Directives]], known: Mapping[str, Known]) -> None:
        """By what each endpoint's semantic hits are decided."""
        if self.semantic is None:
            return
        verifier, embedder = self.semantic.verifier, self.semantic.embedder.revision
        self.semantic.rules = {
            name: rule(
                threshold=endpoint.threshold,
                limit=endpoint.limit,
                verifier=verifier,
                embedder=embedder,
                tuned=known[name].tuned,
                watch=known[name].watch,
                opinion=self.semantic.opinions[name].revision if name in self.semantic.opinions else "",
            )
            for name, (endpoint, _) in endpoints.items()
        }

    async def _hear_of_tuning(self) -> None:
        """What `keepgate tune`, or another worker, has changed."""
        try:
            stamp = await asyncio.to_thread(self.tuning.stamp)
        except BackendError as error:
            log.debug("%s", error)
            return
        if stamp != self._tuned_at:
            await self.retune()

    async def _look_after(self) -> None:
        """Who has no traffic, or another worker has it all, hears of a recovery too."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN)
            await self._hear_of_tuning()
            if self.exact.health.failing(READING):
                await self.exact.look()
            if self.semantic is not None:
                await self.semantic.look()

    async def close(self) -> None:
        """Lets entries being written land, then closes everything."""
        await self._flights.landed(_LANDING)
        for task in self._background:
            task.cancel()
        await self.group.close()
        for upstream in self.state.gateway.upstreams.values():
            await upstream.close()
        closing = [self.exact.store.close]
        if self._leases is not None:
            closing.append(self._leases.close)
        if self.semantic is not None:
            closing += [embedder.close for embedder in self._embedders]
            closing += [vectors.close for vectors in self._vectors.values()]
        closing += [opinion.close for opinion in self._opinions.values()]
        for close in reversed(closing):
            try:
                await close()
            except BackendError as error:
                log.warning("a store could not be closed in order: %s", error)
        self.keyring.close()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)
        if self._lookups is not None:
            await asyncio.to_thread(self._lookups.close)

    async def _open_semantic(self, settings: Settings) -> None:
        self.semantic = await asyncio.to_thread(self._semantic, settings)
        self._embedder = self._wanted = settings.cache.embedder
        self._loading = self._spawn(self.semantic.load())
        serving, file = _made_by(self.semantic.embedder), storage(settings) / _EMBEDDERS
        left = await asyncio.to_thread(left_behind, file, serving)
        await asyncio.to_thread(note, file, serving, left)
        if left:  # the embedder was changed while nobody served, or a move was cut short
            self._moving = self._spawn(self._move(settings))

    def _semantic(self, settings: Settings) -> SemanticTier:
        embedder = make_embedder(settings)
        vectors = open_vector_store(settings, dimensions=embedder.dimensions, revision=embedder.revision)
        self._embedders.append(embedder)
        self._vectors[_made_by(embedder)] = vectors
        return self._tier(embedder, vectors, settings)

    def _tier(self, embedder: Embedder, vectors: VectorStore, settings: Settings) -> SemanticTier:
        try:
            verifier = load_verifier(embedder.revision)
        except ConfigError as error:
            log.info("semantic hits go by cosine alone: %s", error)
            verifier = None
        return SemanticTier(
            embedder,
            vectors,
            self.exact,
            verifier=verifier,
            deadline=settings.cache.vector.deadline,
            metrics=self.metrics,
        )

    # --- another embedder while requests are served

    def reembedding(self) -> dict[str, Any] | None:
        """How far a move to another embedder is in this worker; None without one."""
        if self._moving is None or self._moving.done():
            return None
        move = self._reembedding
        return {
            "to": None if move is None else move.embedder.revision,  # None: it could not be made so far
            "state": "loading" if move is None else move.state,
            "remaining": 0 if move is None else move.remaining,
            "embedded": 0 if move is None else move.embedded,
            "refused": 0 if move is None else move.refused,
        }

    def _follow_embedder(self, settings: Settings) -> None:
        """Begins to move to the embedder that `settings` name, unless it serves or is moved to already."""
        if self.semantic is not None and settings.cache.embedder != self._wanted:
            self._wanted = settings.cache.embedder
            if self._moving is not None:
                self._moving.cancel()
            self._moving = self._spawn(self._move(settings))
            self._moving.add_done_callback(self._moved)

    def _moved(self, move: asyncio.Task[None]) -> None:
        if move is self._moving and not move.cancelled() and move.exception() is not None:
            self._wanted = self._embedder  # the next reload tries again

    async def _move(self, settings: Settings) -> None:
        """Until all that is stored is found under the embedder of `settings`, and that one serves. What fails is tried
        again."""
        async with self._one_move:  # one that was given up has to leave first
            tier = self.semantic
            if tier is None:
                return
            attempts = Attempts(self.metrics)
            try:
                if settings.cache.embedder == self._embedder:
                    embedder = tier.embedder
                else:
                    embedder = await attempts.until_it_works(lambda: asyncio.to_thread(make_embedder, settings))
                    self._embedders.append(embedder)
                    self._held.append(embedder)
                await self._move_to(embedder, tier, settings, attempts)
            finally:
                self._reembedding = None
                self._held = []
                self.metrics.degraded.set(("reembedding",), 0)
                self._spawn(self._close_unused())

    async def _move_to(self, embedder: Embedder, tier: SemanticTier, settings: Settings, attempts: Attempts) -> None:
        wanted, serving = _made_by(embedder), _made_by(tier.embedder)
        home = storage(settings)
        left = await asyncio.to_thread(left_behind, home / _EMBEDDERS, wanted)
        if serving not in (wanted, *left):
            left.append(serving)
        target, *sources = [
            await attempts.until_it_works(partial(self._opened, settings, made)) for made in (wanted, *left)
        ]
        move = self._reembedding = Reembedding(
            embedder,
            target,
            sources,
            self.exact.store,
            lock=home / "reembedding.lock",
            attempts=attempts,
            metrics=self.metrics,
        )
        await move.load()
        if embedder is not tier.embedder and wanted != serving and tier.loaded:
            log.info("%s serves until all that is stored is embedded anew for %s", serving.revision, wanted.revision)
            serves = tier.vectors
            tier.vectors = move.both = Both(serves, target)
            try:
                await move.run()
                await attempts.until_it_works(lambda: self._serve_with(embedder, target, settings, move))
            finally:
                if self.semantic is tier:
                    tier.vectors = serves
        else:  # the vectors are the same ones, or there is nothing to serve from
            if embedder is not tier.embedder:
                await attempts.until_it_works(lambda: self._serve_with(embedder, target, settings, move))
                await asyncio.to_thread(note, home / _EMBEDDERS, wanted, left)
            if left:
                log.info("%s serves while what others were asked is embedded anew for it", wanted.revision)
            await move.run()
        await asyncio.to_thread(note, home / _EMBEDDERS, wanted, [])

    async def _serve_with(
        self, embedder: Embedder, vectors: VectorStore, settings: Settings, move: Reembedding
    ) -> None:
        """In one step for the requests to come; those under way finish with what they began with."""
        tier = self._tier(embedder, vectors, settings)
        await tier.load()
        async with self._reloading:
            old, before = self.state, self.semantic
            applied = await asyncio.to_thread(policies, old.settings, storage(old.settings))
            known = await self._known(old.settings)
            await self._hear_others(old.settings, tier)
            self.semantic, self._embedder = tier, settings.cache.embedder
            self.state = self._compiled(old.settings, applied, old.gateway.upstreams, old.gateway.standings, known)
            self._retired.append(old.gateway)
        if self._loading is not None:
            self._loading.cancel()
        self._spawn(self._retire(before, move))
        log.info("semantic hits now come from the vectors of %s", embedder.revision)

    async def _retire(self, tier: SemanticTier | None, move: Reembedding) -> None:
        """What requests that began before the switch still keep is brought over, too."""
        while any(gateway.users for gateway in self._retired if gateway.semantic is tier):
            await asyncio.sleep(1.0)
            await self._settled(move)
        await self._settled(move)
        self._retired = [gateway for gateway in self._retired if gateway.users]  # or a whole model stays in memory
        for component in ("embedder", "vector"):  # what the old ones' last requests met; the new ones say it again
            self.metrics.degraded.set((component,), 0)
        await self._close_unused()

    async def _settled(self, move: Reembedding) -> None:
        # By another switch its vectors may have been closed, and it would try for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLING):
                await move.settle()

    async def _opened(self, settings: Settings, made: Made) -> VectorStore:
        # A move that is given up meanwhile does not interrupt the thread: what it opens must not be lost sight of.
        opening = asyncio.get_running_loop().create_task(self._open_vectors(settings, made, self._held))
        self._background.add(opening)
        opening.add_done_callback(self._background.discard)
        opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(opening)
        return self._vectors[made]

    async def _open_vectors(self, settings: Settings, made: Made, held: list[Embedder | VectorStore]) -> None:
        async with self._opening:
            if made not in self._vectors:
                self._vectors[made] = await asyncio.to_thread(
                    open_vector_store, settings, dimensions=made.dimensions, revision=made.revision
                )
            held.append(self._vectors[made])

    async def _close_unused(self) -> None:
        """Closes the embedders and the vectors that no request and no move needs any more."""
        async with self._opening:
            for embedder in [embedder for embedder in self._embedders if not self._is_used(embedder)]:
                self._embedders.remove(embedder)
                await _closed(embedder)
            for made, vectors in list(self._vectors.items()):
                if not self._is_used(vectors):
                    await _closed(vectors)
                    del self._vectors[made]

    def _is_used(self, part: Embedder | VectorStore) -> bool:
        tiers = [self.semantic, *(gateway.semantic for gateway in self._retired if gateway.users)]
        used: list[object] = list(self._held)
        for tier in tiers:
            if tier is not None:
                vectors = tier.vectors
                used += [tier.embedder, *((vectors.old, vectors.new) if isinstance(vectors, Both) else (vectors,))]
        return any(part is one for one in used)

    async def _shared_secret(self, settings: Settings, home: Path) -> bytes:
        """What placeholders and the marks of credentials are made with: the same for all who share entries."""
        if settings.storage.secret is not None:
            return blake2b(settings.storage.secret.get_secret_value().encode(), digest_size=_SECRET_BYTES).digest()
        own = await asyncio.to_thread(_secret, home)
        if settings.cache.exact.store not in _SHARED:
            return own
        try:
            return await self._agreed(settings, own)
        except (BackendError, TimeoutError) as error:
            reason = str(error) or "it did not answer in time"
            log.warning("the shared store is not there, masks are this gateway's own for now: %s", reason)
            self.exact.health.failed(READING, error)
            self._alone = True
            return own

    async def _agreed(self, settings: Settings, own: bytes) -> bytes:
        from backends.redis_client import shared_secret  # imported already: the store is there

        async with asyncio.timeout(_AGREEING):
            return await shared_secret(_redis(settings), "secret", lambda: own)

    async def _stay_agreed(self, settings: Settings) -> None:
        """A server that lost or evicted the secret is given it back; one that has another meanwhile is right."""
        while True:
            await asyncio.sleep(_AGREE_AGAIN if self._alone else _AGREED_FOR)
            own = self._secret
            try:
                self._secret = await self._agreed(settings, own)
                self._alone = False
                if self._secret != own:
                    async with self._reloading:
                        await self._put_into_effect(self.state.settings)
            except (ConfigError, BackendError, TimeoutError) as error:
                self._secret = own
                log.debug("no secret is agreed on: %s", error)

    def _compiled(
        self,
        settings: Settings,
        applied: Mapping[str, tuple[Policy, ...]],
        kept: Mapping[str, Upstream],
        stood: Mapping[str, Standing],
        known: Mapping[str, Known],
    ) -> State:
        """`kept` are the upstreams that stay as they are, `stood` how they stand, `known` is what settings don't say of
        endpoints."""
        upstreams = {s.name: kept.get(s.name) or make_upstream(s) for s in settings.upstreams}
        standings = {s.name: stood.get(s.name) or _standing(s, upstreams[s.name].keys) for s in settings.upstreams}
        for name, standing in standings.items():
            self.metrics.upstream_open.set((name,), standing.open)
        places = {s.name: _place(s) for s in settings.upstreams}
        endpoints = _endpoints(settings, known)
        self._decide(endpoints, known)
        routing = settings.routing
        aliases = Aliases(
            {model.name: _route(model, places, routing) for model in settings.models},
            places,
            timeout=routing.timeout,
            attempts=routing.attempts,
        )
        gateway = Gateway(
            endpoints=endpoints,
            aliases=aliases,
            upstreams=upstreams,
            standings=standings,
            passthrough=frozenset(s.name for s in settings.upstreams if s.auth == "passthrough"),
            keyring=self.keyring,
            keys_required=settings.keys.require,
            secret=self._secret,
            screens=Screens(applied, placeholders=Placeholders(self._secret), metrics=self.metrics),
            exact=self.exact,
            semantic=self.semantic,
            flights=self._flights,
            leads=self._leads,
            outcomes=Outcomes(
                self.exact,
                self.tuning,
                recorder=self._lookups,
                secret=self._secret,
                retune=self.retune,
                metrics=self.metrics,
            ),
            limits=Limits(settings.server.max_body, settings.server.body_timeout),
            metrics=self.metrics,
            recorder=self._recorder,
        )
        return State(
            settings=settings,
            gateway=gateway,
            catalog=Catalog(aliases, upstreams),
            cors_origins=frozenset(settings.server.cors_origins),
            known=known,
        )

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("work in the background failed", exc_info=task.exception())


def reread(config: Path | None, environ: Mapping[str, str], started_with: Settings) -> Settings:
    """What a reload puts into effect: the file as it is now, but for what only a start can change.

    Raises `ConfigError`, also where it would open an address that stays bound.
    """
    settings = load(config, environ)
    for path in _NEEDS_RESTART:
        value = attrgetter(path)
        if value(settings) != value(started_with):
            log.warning("%s has changed: that takes effect with the next start", path)
    if not settings.keys.require and not is_loopback(started_with.server.host):
        raise ConfigError("keys.require: must stay true while the gateway listens beyond loopback")
    server = {name: getattr(started_with.server, name) for name in _SERVER}
    kept = {name: getattr(started_with, name) for name in _SECTIONS}
    stores = settings.cache.model_copy(update={name: getattr(started_with.cache, name) for name in _STORES})
    return settings.model_copy(update={**kept, "cache": stores, "server": settings.server.model_copy(update=server)})


def log_refused(error: Exception) -> None:
    for problem in str(error).splitlines():
        log.error("the new configuration is refused, the old one stays: %s", problem)


def semantic_somewhere(settings: Settings) -> bool:
    return any(endpoint.cache.mode in _SEMANTIC for endpoint in settings.endpoints)


def lookups_file(settings: Settings) -> Path:
    return storage(settings) / LOG


def storage(settings: Settings) -> Path:
    """Where everything embedded lives, made if it is not there. Raises `BackendError`."""
    home = Path(settings.storage.path)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BackendError(f"storage.path {home} cannot be used: {error.strerror}") from error
    return home


def open_keyring(settings: Settings) -> Keyring:
    keyring: Keyring = registry.create("keyring", "lmdb", path=storage(settings) / "keys")
    return keyring


def open_tuning(settings: Settings) -> Tuning:
    store: TuningStore = registry.create("tuning", "files", path=storage(settings) / "tuning")
    return Tuning(store)


def open_exact_store(settings: Settings) -> ExactStore:
    chosen = settings.cache.exact
    options: dict[str, object] = _reached(chosen.store, settings)
    if chosen.store in _IMMEDIATE:
        options["max_bytes"] = chosen.max_size
    if chosen.store == "lmdb":
        options["path"] = storage(settings) / "exact"
    store: ExactStore = registry.create("exact", chosen.store, **options)
    return store


async def _closed(part: Embedder | VectorStore) -> None:
    try:
        await part.close()
    except BackendError as error:
        log.warning("what is not used any more could not be closed in order: %s", error)


def _made_by(embedder: Embedder) -> Made:
    return Made(embedder.revision, embedder.dimensions)


def make_second_opinion(
    wanted: SecondOpinionSettings,
    *,
    verifier: Verifier | None,
    ask: Callable[[Sequence[Mapping[str, str]]], Awaitable[str]],
    metrics: Metrics,
) -> SecondOpinion:
    """`ask` is for a language model. Reads a folder's files: call it in a thread. Raises `ConfigError`."""
    weights, path = DEFAULT, wanted.path or Path()
    judge: Judge
    if wanted.kind == "judge":
        judge = registry.create("judging", "judge", ask=ask, model=wanted.model)
        return SecondOpinion(judge, deadline=wanted.deadline, metrics=metrics)
    judge = registry.create("judging", "onnx", path=path)
    try:
        content = (path / "second_opinion.json").read_bytes()
        trained = "" if verifier is None else verifier.revision
        weights = read_weights(content, judge=judge.revision, verifier=trained)
    except FileNotFoundError:
        log.info("the second opinion of %s was not measured: the default weights hold", path)
    except (OSError, ConfigError) as error:
        log.warning("the default weights hold for the second opinion of %s: %s", path, error)
    return SecondOpinion(judge, weights=weights, deadline=wanted.deadline, metrics=metrics)


def make_embedder(settings: Settings) -> Embedder:
    """Blocks: a model's files may be read, and what says how it is run fetched. Raises `ConfigError` or
    `BackendError`."""
    chosen = settings.cache.embedder
    embedder: Embedder = registry.create("embedding", chosen.kind, **_embedder_options(settings))
    return RememberingEmbedder(embedder, texts=chosen.remember) if chosen.remember else embedder


def open_vector_store(settings: Settings, *, dimensions: int, revision: str) -> VectorStore:
    chosen = settings.cache.vector
    options = {"dimensions": dimensions, "revision": revision, **_reached(chosen.store, settings)}
    if chosen.store == "faiss":
        options |= {"path": storage(settings) / "vectors", "max_entries": chosen.max_entries}
    elif chosen.store == "redis":
        options |= {"index": chosen.index, "m": chosen.m, "ef_construction": chosen.ef_construction, "ef": chosen.ef}
    elif chosen.store == "qdrant":
        options |= {"m": chosen.m, "ef_construct": chosen.ef_construction, "ef": chosen.ef}
    store: VectorStore = registry.create("vector", chosen.store, **options)
    return store


def _reached(store: str, settings: Settings) -> dict[str, object]:
    """Where a store is, and how it lets the gateway in."""
    if store == "redis":
        return {"address": _redis(settings)}
    if store == "qdrant":
        qdrant = settings.qdrant or QdrantSettings()
        return {
            "url": qdrant.url,
            "api_key": _revealed(qdrant.api_key),
            "grpc": qdrant.grpc,
            "grpc_port": qdrant.grpc_port,
            "ca_file": qdrant.ca_file,
            "prefix": qdrant.prefix,
        }
    return {}


def _redis(settings: Settings) -> RedisAddress:
    redis = settings.redis or RedisSettings()
    sentinel = redis.sentinel
    return RedisAddress(
        url=redis.url.get_secret_value(),
        sentinel_hosts=() if sentinel is None else sentinel.hosts,
        sentinel_master="" if sentinel is None else sentinel.master,
        sentinel_user="" if sentinel is None or sentinel.user is None else sentinel.user,
        sentinel_password="" if sentinel is None else _revealed(sentinel.password) or "",
        cluster=redis.cluster,
        ca_file=_named(redis.tls.ca),
        cert_file=_named(redis.tls.cert),
        key_file=_named(redis.tls.key),
        connections=redis.connections,
        prefix=redis.prefix,
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _named(file: Path | None) -> str:
    return "" if file is None else str(file)


def configure_logs(settings: Settings) -> None:
    logs.configure(settings.logs.level)


def _embedder_options(settings: Settings) -> dict[str, object]:
    chosen = settings.cache.embedder
    local = {"model": chosen.model, "path": chosen.path, "revision": chosen.revision}
    match chosen.kind:
        case "onnx":
            return {**local, "file": chosen.file}
        case "sentence-transformers":
            return {**local, "dimensions": chosen.dimensions}
        case "openai":
            return {
                "base_url": chosen.base_url,
                "api_key": _revealed(chosen.api_key),
                "model": chosen.model,
                "dimensions": chosen.dimensions,
                "shorten": chosen.shorten,
                "revision": chosen.revision,
            }
        case _:
            return {}


def make_upstream(settings: UpstreamSettings) -> Upstream:
    options: dict[str, object] = {"name": settings.name}
    if settings.provider != "demo":
        options |= {
            "provider": settings.provider,
            "base_url": settings.base_url,
            "dialects": settings.dialects or (),
            "api_keys": settings.keys,
            "auth": settings.auth,
            "connect_timeout": settings.connect_timeout,
            "read_timeout": settings.read_timeout,
            "total_timeout": settings.total_timeout,
            "proxy": settings.proxy,
            "ca_file": settings.ca_file,
            "stream_usage": settings.stream_usage,
            "headers": settings.headers,
        }
    upstream: Upstream = registry.create("upstream", settings.provider, **options)
    return upstream


def _standing(settings: UpstreamSettings, keys: int) -> Standing:
    return Standing(
        settings.name,
        keys=keys,
        own=settings.auth == "key",
        limit=settings.max_concurrency,
        queue=settings.queue.size,
        patience=settings.queue.timeout,
        failures=settings.breaker.failures,
        rest=settings.breaker.rest,
    )


def _place(settings: UpstreamSettings) -> str:
    """Stands for where an upstream's name leads, in identities: 64 bits, since headers may hold secrets."""
    headers = sorted(settings.headers.items())
    place = msgspec.json.encode([settings.provider, settings.base_url, settings.dialects, headers])
    return blake2b(place, digest_size=8).hexdigest()


def _route(model: ModelSettings, places: Mapping[str, str], routing: RoutingSettings) -> Route:
    fallbacks = [fallback.partition("/") for fallback in model.fallbacks]
    return route(
        [Target(target.upstream, target.model, target.weight) for target in model.targets],
        [Target(upstream, name) for upstream, _, name in fallbacks],
        places=places,
        strategy=model.strategy,
        sticky=model.sticky == "conversation",
        timeout=model.timeout or routing.timeout,
        attempts=model.attempts or routing.attempts,
    )


def check(settings: Settings) -> None:
    """What endpoints say of the cache that only its rules can judge. Raises `ConfigError` with every problem."""
    problems = []
    for at, endpoint in enumerate(settings.endpoints):
        where = f"endpoints.{at}.cache"
        for name in sorted(set(endpoint.cache.ignore_rules) - SWITCHABLE):
            known = ", ".join(sorted(SWITCHABLE))
            problems.append(f"{where}.ignore_rules: no rule is called {name!r}; known: {known}")
        if endpoint.cache.question_pattern is not None:
            try:
                template(endpoint.cache.question_pattern)
            except TemplateError as error:
                problems.append(f"{where}.question_pattern: {error}")
    if problems:
        raise ConfigError(*problems)


def _endpoints(settings: Settings, known: Mapping[str, Known]) -> dict[str, tuple[Endpoint, Directives]]:
    return {endpoint.name: _endpoint(endpoint, known[endpoint.name].override) for endpoint in settings.endpoints}


def _endpoint(settings: EndpointSettings, override: Override) -> tuple[Endpoint, Directives]:
    cache = settings.cache
    threshold, limit = cache.threshold, cache.max_wrong_hit_rate
    if override.threshold is not None or override.max_wrong_hit_rate is not None:
        threshold, limit = override.threshold, override.max_wrong_hit_rate
    audit_rate = cache.audit_rate if override.audit_rate is None else override.audit_rate
    if audit_rate is None:
        audit_rate = 0.0 if limit is None else _AUDITED
    endpoint = Endpoint(
        name=settings.name,
        mode=cache.mode,
        threshold=threshold,
        limit=limit,
        audit_rate=audit_rate,
        lookups=cache.lookups,
        ttl=cache.ttl,
        ttl_jitter=cache.ttl_jitter,
        stale=cache.stale_while_revalidate,
        scope=cache.scope,
        replay=cache.replay,
        replay_rate=cache.replay_rate,
        keep=frozenset(cache.keep),
        max_temperature=cache.max_temperature,
        context=cache.context,
        question_pattern=cache.question_pattern,
        off=frozenset(cache.ignore_rules),
        fallback_answers=cache.fallback_answers,
    )
    return endpoint, directives.defaults(endpoint)


def _secret(home: Path) -> bytes:
    """32 random bytes of this storage, the same for every worker and restart."""
    path = home / "secret"
    fresh = home / f".secret-{secrets.token_hex(8)}"
    if not path.exists():
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        # Linking fails where another worker was quicker, and then theirs is the one.
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    secret = path.read_bytes()
    if len(secret) != _SECRET_BYTES:
        # Not mended here: another process may be using what it read before.
        raise BackendError(f"{path} is damaged: remove it, and a new one is made at the next start")
    return secret
