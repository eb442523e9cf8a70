"""The order of the stages: what happens to a request, top to bottom.

Caches fail open here: an error in a tier is a miss. Everything that raises is
a `GatewayError`, and the client is told.
"""

import asyncio
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from backends.keyring.base import Keyring
from backends.upstream.base import Reply, Upstream
from guardrails.policy import Choice
from models.completion import Chunk, Completion, Entry, Usage
from models.errors import ContentBlocked, GatewayError, NotCached, RequestError
from models.request import Request
from service.caching import passages
from service.caching.assembly import Assembly
from service.caching.eligibility import judge, keepable, names_a_container, not_semantic
from service.caching.identity import STATEFUL, STATEFUL_BEYOND, Question, before, exact_key, parent
from service.caching.identity import asked as question_of
from service.caching.rule import Rule
from service.caching.single_flight import Flight, FlightChunk, Flights
from service.caching.stored import says_the_same
from service.context import Context, Directives, Endpoint, Limits
from service.pipeline.admit import admit
from service.pipeline.authenticate import authenticate, credential_mark
from service.pipeline.call import Begun, Switchboard, call
from service.pipeline.exact_tier import ExactTier, fresh
from service.pipeline.lead import Lead, Leads
from service.pipeline.outcomes import OUTCOMES, Outcomes, belongs, sketch
from service.pipeline.reserve import Reservation, reserve
from service.pipeline.screen import Screens, StreamedAnswer
from service.pipeline.semantic_tier import Found, SemanticTier
from service.pipeline.settle import estimated, settle, whole
from service.routing.aliases import Aliases, Route
from service.routing.balance import Standing
from service.telemetry.metrics import Metrics
from service.telemetry.recorder import Recorder

log = logging.getLogger("keepgate.gateway")

# Past this many bytes the event loop gets a turn between two steps over the whole body.
_LARGE = 256 * 1024
_CHUNKS_A_TURN = 64
# Seconds that the first events of a stream wait for the first words, where these may be blocked.
_OPENING = 1.0
_OPENS = frozenset({"role", "content_items"})
# More placeholders are not looked for in an answer.
_MANY = 64


class Hit(msgspec.Struct, frozen=True, gc=False):
    """An answer that was there already. `issued` are the values behind placeholders in it."""

    entry: Entry
    issued: Mapping[str, str] = {}


class Gateway:
    """The request path over one configuration. Reloading makes another one; flights and stores live on."""

    def __init__(
        self,
        *,
        endpoints: Mapping[str, tuple[Endpoint, Directives]],
        aliases: Aliases,
        upstreams: Mapping[str, Upstream],
        standings: Mapping[str, Standing],
        passthrough: frozenset[str],
        keyring: Keyring,
        keys_required: bool,
        secret: bytes,
        exact: ExactTier,
        semantic: SemanticTier | None,
        screens: Screens,
        flights: Flights,
        leads: Leads | None,
        outcomes: Outcomes,
        limits: Limits,
        metrics: Metrics,
        recorder: Recorder | None,
    ) -> None:
        self.endpoints = endpoints
        self.aliases = aliases
        self.upstreams = upstreams
        self.standings = standings
        self.exact = exact
        self.semantic = semantic
        self.screens = screens
        self.keyring = keyring
        self.limits = limits
        self.metrics = metrics
        self.recorder = recorder
        self.users = 0  # requests and flights that began with this configuration and still need its upstreams
        self.passthrough = passthrough
        self.keys_required = keys_required
        self._secret = secret
        self._flights = flights
        self._outcomes = outcomes
        self._leads = leads  # None: no other process shares the exact store
        self.board = Switchboard(upstreams, standings, metrics)

    def authenticate(
        self, headers: Mapping[bytes, bytes], endpoint: str, *, request_id: str, started: float
    ) -> Context:
        return authenticate(
            headers,
            endpoint,
            endpoints=self.endpoints,
            keyring=self.keyring,
            keys_required=self.keys_required,
            request_id=request_id,
            started=started,
        )

    async def answer(self, request: Request, context: Context, *, streams: bool = True) -> Hit | Flight:
        """A hit, or the flight that will have the answer; the caller has joined it and must leave it.

        `streams` False: for one that followed a stream which could not be told
        to it. Another is not joined.
        """
        route = admit(request, context, self.aliases)
        choice = self.screens.choose(request, context)
        asked = context.directives
        reason = _not_cached(request, asked)
        if reason is not None:
            context.outcome, context.detail = "bypass", reason
            if asked.only_if_cached:
                raise NotCached("nothing in the cache may answer this request")
            return self._lead(request, context, route, choice, key=None, meaning=())

        meaning = self.meaning_of(request, context, route, choice)
        if len(request.raw) > _LARGE:
            await asyncio.sleep(0)
        try:
            key = exact_key(request.body, meaning)
        except RecursionError:
            # It could just be decoded, and encoding needs a little more of the stack.
            raise RequestError("the body is nested too deeply") from None

        if asked.lookup:
            context.audit = not asked.only_if_cached and self._outcomes.draw(context)
            entry = await self.exact.lookup(context, key)
            if entry is not None and entry.alias_of:
                entry = await self._canonical(entry, context)
                if entry is not None:
                    return Hit(entry)
            if entry is not None:
                if not fresh(entry, context, self.exact.now()):
                    context.detail = "stale"
                    if not asked.only_if_cached:
                        self._refresh(request, context, route, choice, key, meaning)
                return await self._hit(entry, request, context)
        if asked.only_if_cached:
            # With no-cache as well nothing may answer, and nothing is sent upstream either.
            return await self._cached_only(request, context, choice, key, meaning if asked.lookup else None)
        if not asked.lookup or not asked.store:
            context.outcome = "miss" if asked.lookup else "bypass"
            context.detail = "" if asked.lookup else "no-cache"
            return self._lead(request, context, route, choice, key=key, meaning=meaning)
        return await self._coalesce(request, context, route, choice, key, meaning, streams=streams)

    # --- stages

    async def _hit(self, entry: Entry, request: Request, context: Context) -> Hit:
        """An exact hit was screened when it was written; only what it masked has to be found again."""
        context.outcome, context.acted = "exact", entry.acted
        if not entry.masked:
            return Hit(entry)
        return Hit(entry, await self.screens.issued(request, context))

    async def _canonical(self, alias: Entry, context: Context) -> Entry | None:
        """What the request was found to be another wording of, where the endpoint would decide so again."""
        asked = context.directives
        if self.semantic is None or asked.mode != "semantic" or alias.similarity < asked.threshold:
            return None
        if context.audit and self.semantic.well:
            return None  # a whole look-up decides anew, and it is compared
        if alias.rule != self.semantic.revision(context):
            return None
        entry = await self.exact.again(context, alias.alias_of)
        if entry is None or entry.masked:
            return None
        context.outcome, context.detail, context.similarity = "semantic", "alias", alias.similarity
        context.acted = alias.acted
        self.metrics.cache_lookups.add((context.endpoint.name, "semantic", "hit"))
        return entry

    def _refresh(
        self, request: Request, context: Context, route: Route, choice: Choice, key: str, meaning: tuple[str, ...]
    ) -> None:
        """Asks for a fresh answer in the background, once however many are served the stale one."""
        asked = msgspec.structs.replace(context.directives, lookup=False, max_age=None)
        together = ("refresh", *_together(context, key, asked))
        if asked.store and self._flights.joinable(together) is None:
            again = msgspec.structs.replace(context, directives=asked, audit=False, outcome="miss", detail="")
            self._lead(request, again, route, choice, key=key, meaning=meaning, together=together)

    async def _coalesce(
        self,
        request: Request,
        context: Context,
        route: Route,
        choice: Choice,
        key: str,
        meaning: tuple[str, ...],
        *,
        streams: bool,
    ) -> Hit | Flight:
        # The directives are part of what makes two requests the same: a follower never gets less than it asked for.
        together = _together(context, key, context.directives)
        flight = self._flights.joinable(together)
        if flight is not None and flight.entry is not None and fresh(flight.entry, context, self.exact.now()):
            # The answer is whole, its write is not: as good as written.
            return await self._hit(flight.entry, request, context)
        if flight is None or flight.ended or (flight.streamed and not streams):
            context.outcome = "miss"
            return self._lead(request, context, route, choice, key=key, meaning=meaning, together=together)
        flight.join()
        context.outcome = "coalesced"
        self.metrics.coalesced.add(())
        return flight

    def _lead(
        self,
        request: Request,
        context: Context,
        route: Route,
        choice: Choice,
        *,
        key: str | None,
        meaning: tuple[str, ...],
        together: Hashable | None = None,
    ) -> Flight:
        """`key` None: nothing is looked up or kept. `together` None: nobody joins."""
        flight = Flight(streamed=request.stream)
        flight.detail = context.detail
        flight.join()
        self.users += 1
        fly = self._fly(request, context, flight, route, choice, key, meaning, together)
        self._flights.start(together, flight, fly, landed=self._left)
        return flight

    async def _fly(
        self,
        request: Request,
        context: Context,
        flight: Flight,
        route: Route,
        choice: Choice,
        key: str | None,
        meaning: tuple[str, ...],
        together: Hashable | None,
    ) -> None:
        asked = context.directives
        lead: Lead | None = None
        original = request
        try:
            if together is not None and key is not None:
                taken = (
                    None if self._leads is None else await self._leads.take(context, key, patient=not request.stream)
                )
                lead = taken if isinstance(taken, Lead) else None
                made = taken if isinstance(taken, Entry) else None
                # Between the miss and the lead another flight, here or in another worker, may have landed.
                entry = made or await self.exact.again(context, key)
                if entry is not None:
                    hit = await self._hit(entry, request, context)
                    flight.issued, flight.acted = dict(hit.issued), context.acted
                    self._land(flight, together, entry, hit="exact" if made is None else "coalesced")
                    return

            screened = await self.screens.request(request, context, choice)
            request = screened.request
            flight.issued, flight.acted = screened.issued, context.acted

            asking = None if key is None else await self.question_in(request, context, flight, meaning, original)
            found = Found()
            rule = Rule("cosine", 1.0) if self.semantic is None else self.semantic.rule(context)
            revision = "" if self.semantic is None else self.semantic.revision(context)
            if asking is not None and self.semantic is not None and asked.lookup:
                found = await self.semantic.lookup(context, asking)
                flight.detail, flight.similarity, flight.shadow = found.detail, found.rejected, found.shadow
                if found.entry is not None and key is not None and asked.mode == "semantic":
                    flight.similarity = found.similarity
                    flight.acted = _joined(context.acted, found.entry.acted)
                    is_fresh = fresh(found.entry, context, self.exact.now())
                    flight.detail = found.detail if is_fresh else "stale"
                    self._land(flight, together, found.entry, hit="semantic")
                    if lead is not None:
                        await lead.end()
                        lead = None
                    if not is_fresh:
                        self._refresh(original, context, route, choice, key, meaning)
                    elif not flight.issued and screened.keepable and asked.store:
                        await self._alias(context, key, asking, found, revision)
                    # What is stale is asked for anyway, and may differ because the world did.
                    if not context.audit or not is_fresh:
                        await self._outcomes.note(context, asking, found, rule)
                        return
                    await self._outcomes.audited(
                        context, asking, found, rule, lambda: self._asked_anew(request, context, route, choice)
                    )
                    return
                if found.entry is not None:
                    flight.detail, flight.shadow = "shadow", found.similarity

            asked_at = self.exact.now()
            reservation = reserve(context)
            completion, keepable = await self._called(request, context, flight, route, choice, reservation)

            led_to = f"{flight.upstream}/{flight.upstream_model}"
            entry = self.exact.entry(
                context,
                key or "",
                completion,
                led_to,
                masked=_holds(completion.body, flight.issued),
                question="" if asking is None else asking.namespace,
            )
            keepable = keepable and screened.keepable and asked.store
            if key is None or not keepable or not self._may_keep(completion, request, context, route, flight):
                self._land(flight, together, entry)
                if asking is not None:
                    await self._outcomes.note(context, asking, found, rule)
                return
            flight.finish(entry)
            stale = None if asked.lookup else await self.exact.last(context, key)
            kept = await self.exact.keep(context, entry, asked_at=asked_at)
            if kept:
                self._flights.close(together, flight)
            if lead is not None:
                await lead.end()
                lead = None
            if stale is not None or asking is not None:
                await self._learn(context, asking, found, rule, entry, stale, kept=kept)
        except GatewayError as error:
            if flight.ended:
                log.info("what was asked in the background was not answered: %s", error.code)
                return
            flight.acted = context.acted
            flight.fail(error)
        except RecursionError:
            flight.fail(RequestError("the body is nested too deeply"))
        finally:
            if lead is not None:
                await lead.end()

    async def _alias(self, context: Context, key: str, asking: Question, found: Found, revision: str) -> None:
        entry, similarity = found.entry, found.similarity
        if entry is not None and similarity is not None and not entry.masked:
            acted = _joined(context.acted, entry.acted)
            question = "" if asking.history == "dropped" else asking.namespace
            await self.exact.alias(
                context, key, entry, similarity=similarity, rule=revision, acted=acted, question=question
            )

    async def _learn(
        self,
        context: Context,
        asking: Question | None,
        found: Found,
        rule: Rule,
        entry: Entry,
        stale: Entry | None,
        *,
        kept: bool,
    ) -> None:
        """Compares a fresh answer with what was kept before it, and makes it findable by its question."""
        drawn = await sketch(entry.completion)
        if stale is not None:
            same = says_the_same(drawn, await sketch(stale.completion))
            self.metrics.cache_refreshes.add((context.endpoint.name, OUTCOMES[same]))
        if asking is None or self.semantic is None:
            return
        # An embedder that was down a moment ago is not waited for again.
        if kept and found.detail != "degraded":
            alias_of = belongs(found.look, drawn, self.semantic.verifier)
            if alias_of and not await self._still_says(context, alias_of, drawn):
                alias_of = ""
            await self.semantic.keep(context, asking, found.vector, entry, sketch=drawn, alias_of=alias_of)
        await self._outcomes.missed(context, asking, found, rule, entry.completion, drawn)

    async def _still_says(self, context: Context, key: str, drawn: bytes) -> bool:
        """Whether that entry's answer agrees: a refresh may have changed it since its question was kept."""
        canonical = await self.exact.last(context, key)
        return canonical is not None and says_the_same(drawn, await sketch(canonical.completion)) is True

    async def _asked_anew(self, request: Request, context: Context, route: Route, choice: Choice) -> Completion | None:
        """The upstream's answer to what a hit was served for. Nobody sees it, and it is paid for like any other. None
        where there is none that would be kept: half an answer, or a fallback's, says nothing of the hit."""
        apart = msgspec.structs.replace(context)
        flight = Flight(streamed=request.stream)
        try:
            completion, seen = await self._called(request, apart, flight, route, choice, reserve(apart))
        except GatewayError as error:
            log.info("an audit was not answered: %s", error.code)
            return None
        return completion if seen and self._may_keep(completion, request, apart, route, flight) else None

    def _left(self) -> None:
        self.users -= 1

    def _land(
        self,
        flight: Flight,
        together: Hashable | None,
        entry: Entry,
        *,
        hit: Literal["", "exact", "semantic", "coalesced"] = "",
    ) -> None:
        """Ends a flight whose entry is not one that newcomers may be served from."""
        self._flights.close(together, flight)
        flight.hit = hit
        if hit == "coalesced":
            self.metrics.coalesced.add(())
        flight.finish(entry)

    async def _called(
        self,
        request: Request,
        context: Context,
        flight: Flight,
        route: Route,
        choice: Choice,
        reservation: Reservation,
    ) -> tuple[Completion, bool]:
        """The answer as it may be read, and whether every rule saw it."""
        usage = Usage()
        assembly = Assembly(request.operation)
        said = assembly  # by the upstream, which is what is paid for
        try:
            reply = await call(request, context, flight, route, self.board)
            flight.headers = reply.headers
            if reply.dropped:
                self.metrics.fields_dropped.add((context.endpoint.name, request.dialect), len(reply.dropped))
            if isinstance(reply, Reply):
                completion = await whole(reply.body, request)
                usage = completion.usage
                body, keepable = await self.screens.answer(completion.body, context, choice)
                flight.acted = context.acted
                if body is not completion.body:
                    completion = msgspec.structs.replace(completion, body=body)
                return completion, keepable
            screen = self.screens.stream(choice)
            try:
                if screen is None:
                    keepable = True
                    await _collect(reply, assembly, flight)
                else:
                    said = Assembly(request.operation)
                    keepable = await _collect_screened(reply, said, assembly, flight, screen)
            finally:
                await reply.close()
                usage = said.usage or await estimated(request, said.text())
                if screen is not None:
                    self.screens.tell(context, screen.tally)
                    flight.acted = context.acted
            flight.in_pieces = not assembly.adds_up
            completion = assembly.completion(usage)
            if screen is not None:
                completion = msgspec.structs.replace(completion, body=screen.whole(completion.body))
            return completion, keepable
        finally:
            # Also when the client hung up or the stream broke: what was generated is paid for.
            settle(reservation, usage, request, context, self.metrics)

    def _may_keep(
        self, completion: Completion, request: Request, context: Context, route: Route, flight: Flight
    ) -> bool:
        if flight.in_pieces or not keepable(completion, context.endpoint.keep):
            return False
        if request.operation != "embedding" and not completion.finish_reasons:
            return False  # a reply without choices says nothing: worth asking again
        if request.operation == "chat" and names_a_container(completion):
            return False
        fell_back = all((t.upstream, t.model) != (flight.upstream, flight.upstream_model) for t in route.targets)
        return not fell_back or context.endpoint.fallback_answers

    async def _cached_only(
        self, request: Request, context: Context, choice: Choice, key: str, meaning: tuple[str, ...] | None
    ) -> Hit:
        """`meaning` None: nothing is looked up."""
        asked = msgspec.structs.replace(context.directives, only_if_cached=False)
        under_way = self._flights.joinable(_together(context, key, asked))
        entry = None if under_way is None else under_way.entry
        if meaning is not None and entry is not None and fresh(entry, context, self.exact.now()):
            return await self._hit(entry, request, context)
        context.outcome = "miss"
        flight = Flight(streamed=False)
        original = request
        if meaning is not None and self.semantic is not None:
            screened = await self.screens.request(request, context, choice)
            request, flight.issued = screened.request, screened.issued
        asking = None if meaning is None else await self.question_in(request, context, flight, meaning, original)
        context.detail = flight.detail
        if asking is not None and self.semantic is not None:
            found = await self.semantic.lookup(context, asking)
            context.detail, context.similarity = found.detail, found.rejected
            context.shadow = found.shadow
            if found.entry is not None and context.directives.mode == "semantic":
                context.outcome, context.similarity = "semantic", found.similarity
                context.acted = _joined(context.acted, found.entry.acted)
                if not fresh(found.entry, context, self.exact.now()):
                    context.detail = "stale"
                return Hit(found.entry, flight.issued)
            if found.entry is not None:
                context.detail, context.shadow = "shadow", found.similarity
        raise NotCached("no cached answer, and the request said only-if-cached")

    async def question_in(
        self, request: Request, context: Context, flight: Flight, meaning: tuple[str, ...], original: Request
    ) -> Question | None:
        """What the semantic tier compares; None with the reason in the flight's `detail`. `original` is the request as
        it came, which the turns before it were known by."""
        if self.semantic is None or context.directives.mode not in ("semantic", "shadow"):
            return None
        endpoint = context.endpoint
        reason = not_semantic(request, max_temperature=endpoint.max_temperature)
        if reason is None:
            # Two questions that mask different values are different questions.
            masked = sorted(flight.issued)
            template = None if endpoint.question_pattern is None else passages.template(endpoint.question_pattern)
            large = len(original.raw) > _LARGE
            # Nobody is kept waiting while a conversation of megabytes is read once more for its turns' sake.
            parents = () if large else await self._parents(original, context, meaning)

            def question() -> Question | str:
                marked = (*meaning, *masked)
                return question_of(request.body, marked, keeping=endpoint.context, template=template, parents=parents)

            asking = await asyncio.to_thread(question) if large else question()
            if isinstance(asking, str):
                reason = asking
            else:
                reason = judge(request, asking.text, off=endpoint.off, max_temperature=endpoint.max_temperature)
                if reason is None:
                    return asking
        flight.detail = reason
        return None

    async def _parents(self, request: Request, context: Context, meaning: tuple[str, ...]) -> tuple[str, ...]:
        """What stands for the turns before the last: the entry that answered them, which may be another wording's."""
        if self.semantic is None or context.endpoint.context == "last-turn":
            return ()
        turn_before = before(request.body, meaning)
        if turn_before is None:
            return ()
        key, answer = turn_before
        return (parent(await self.exact.canonical(context, key, rule=self.semantic.revision(context)), answer),)

    def meaning_of(self, request: Request, context: Context, route: Route, choice: Choice) -> tuple[str, ...]:
        meaning = (request.operation, route.identity, choice.revision, *context.meaning)
        if request.beyond:
            beyond = msgspec.json.encode([request.dialect, request.beyond], order="deterministic")
            meaning = (*meaning, beyond.decode())
        targets = (*route.targets, *route.fallbacks)
        if self.passthrough and any(target.upstream in self.passthrough for target in targets):
            return (*meaning, credential_mark(context.caller.credential, self._secret))
        return meaning


def _joined(acted: Sequence[str], before: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*acted, *before)))


def _holds(body: bytes, issued: Mapping[str, str]) -> bool:
    """Whether an answer has a placeholder in it. What is around a name may be written as escapes, the name is not."""
    return len(issued) > _MANY or any(placeholder[1:-1].encode() in body for placeholder in issued)


def _together(context: Context, key: str, asked: Directives) -> tuple[Hashable, ...]:
    """What two requests must have in common to share a flight."""
    return (context.endpoint.name, context.caller.partition, key, asked)


def _not_cached(request: Request, asked: Directives) -> str | None:
    """Why no tier is looked up and nothing is kept, or None."""
    if asked.mode == "off":
        return "off"
    for said, names in ((request.body, STATEFUL), (request.beyond, STATEFUL_BEYOND)):
        if not names.isdisjoint(said) and any(said.get(name) for name in names):
            return "stateful"
    return None


async def _collect_screened(
    stream: Begun, said: Assembly, assembly: Assembly, flight: Flight, screen: StreamedAnswer
) -> bool:
    """As `_collect`, with what rules let through; whether they all saw everything.

    A block ends the answer where it stands; before the first chunk it is raised. So that it can be, events with nothing
    of the answer in them wait a moment for what there is.
    """
    turns = 0
    opening: list[Chunk] = []
    begun = False

    def begin() -> None:
        nonlocal begun
        begun = True
        for chunk in opening:
            _push(chunk, assembly, flight)
        opening.clear()

    def push(chunk: Chunk) -> None:
        if begun or _speaks(chunk.fields):
            begin()
            _push(chunk, assembly, flight)
        else:
            opening.append(chunk)

    waiting = asyncio.get_running_loop().call_later(_OPENING, begin)
    try:
        async for chunk in stream:
            said.add(chunk.fields)
            async for released in screen.feed(chunk):
                push(released)
            turns += 1
            if not turns % _CHUNKS_A_TURN:
                await asyncio.sleep(0)
        async for released in screen.end():
            push(released)
        begin()
    except ContentBlocked:
        if not flight.chunks:
            raise
        for closing in screen.closing():
            _push(closing, assembly, flight)
        return False
    finally:
        waiting.cancel()
    return screen.keepable


def _speaks(fields: Mapping[str, Any]) -> bool:
    """Whether there is anything of an answer in a chunk: a word, a call, an end."""
    return any(
        choice.get("finish_reason")
        or choice.get("text")
        or any(value for name, value in (choice.get("delta") or {}).items() if name not in _OPENS)
        for choice in fields.get("choices") or ()
    )


def _push(chunk: Chunk, assembly: Assembly, flight: Flight) -> None:
    payload, fields = chunk
    assembly.add(fields)
    bare = not fields.get("choices")
    flight.push(
        FlightChunk(payload, bare and isinstance(fields.get("usage"), dict), bare and "provider_event" in fields)
    )


async def _collect(stream: Begun, assembly: Assembly, flight: Flight) -> None:
    """Hands each chunk on as it arrives and adds it up."""
    async for chunk in stream:
        _push(chunk, assembly, flight)
        if not len(flight.chunks) % _CHUNKS_A_TURN:
            # A fast upstream sends a thousand chunks in one piece, and taking the next of them never waits.
            await asyncio.sleep(0)
