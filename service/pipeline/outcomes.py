"""What look-ups came to: noted in their log, and compared where the upstream's fresh answer is there.

Nothing here keeps a caller waiting or changes an answer, but that an alias that
is to be audited is looked up as if it were none. What fails is lost: a label
less.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable

import msgspec

from models.completion import Completion
from models.errors import BackendError
from service.caching.identity import Question
from service.caching.lookups import Lookup, asked_as
from service.caching.rule import Rule
from service.caching.stored import answer_text, says_the_same, sketched
from service.caching.verifier import Verifier
from service.context import Context
from service.pipeline.exact_tier import ExactTier, namespace
from service.pipeline.semantic_tier import Found, Look
from service.pipeline.tuning import Tuning
from service.telemetry.metrics import Metrics
from service.telemetry.recorder import Recorder

log = logging.getLogger("keepgate.cache")

# Audits under way in a worker; past that a hit goes without.
_AT_ONCE = 4
# Bytes of an answer from which on it is compared in a thread.
_LONG = 16_384
# Two questions with one answer belong together if they are this alike, too: the share of different public pairs, and
# without a verifier the cosine.
_ALIKE = 0.05
_NEAR = 0.9


# What metrics call a comparison; None is one that could not be made.
OUTCOMES = {True: "same", False: "different", None: "unknown"}


class Outcomes:
    """`recorder` None: no endpoint keeps a log. `retune` puts into effect what the watch over audits came to."""

    def __init__(
        self,
        exact: ExactTier,
        tuning: Tuning,
        *,
        recorder: Recorder | None,
        secret: bytes,
        retune: Callable[[], Awaitable[None]],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        randomness: Callable[[], float] = random.random,
    ) -> None:
        self._exact = exact
        self._tuning = tuning
        self._recorder = recorder
        self._secret = secret
        self._retune = retune
        self._metrics = metrics
        self._clock = clock
        self._random = randomness
        self._auditing = self._watching = 0

    def draw(self, context: Context) -> bool:
        """Whether this request's hit, should it be one, is to be audited."""
        rate = context.endpoint.audit_rate
        return rate > 0 and self._auditing < _AT_ONCE and self._random() < rate

    async def audited(
        self,
        context: Context,
        question: Question,
        found: Found,
        rule: Rule,
        ask: Callable[[], Awaitable[Completion | None]],
    ) -> None:
        """Asks the upstream what a hit was served for, and notes both; the hit alone where too many do so by now."""
        if self._auditing >= _AT_ONCE:
            await self.note(context, question, found, rule)
            return
        self._auditing += 1
        try:
            fresh = await ask()
            drawn, served = b"" if fresh is None else await sketch(fresh), found.entry
            same = None if served is None else says_the_same(drawn, await sketch(served.completion))
            self._metrics.cache_audits.add((context.endpoint.name, OUTCOMES[same]))
            about = None if found.look is None else says_the_same(drawn, found.look.stored.sketch)
            await self.note(context, question, found, rule, same=about, fresh=fresh)
            if same is not None and rule.certified:
                await self._watch(context, rule.cut, wrong=not same)
        finally:
            self._auditing -= 1

    async def missed(
        self, context: Context, question: Question, found: Found, rule: Rule, fresh: Completion, drawn: bytes
    ) -> None:
        """`drawn` is the sketch of the fresh answer, b"" where it is none to compare with."""
        same = None if found.look is None else says_the_same(drawn, found.look.stored.sketch)
        await self.note(context, question, found, rule, same=same, fresh=fresh)
        # While nothing may be served, what would be at the strictest cut is as good as an audit.
        if same is None or found.look is None or not rule.certified:
            return
        # One at a time: misses come faster than a disk takes them.
        if rule.cut == math.inf and found.look.score >= rule.watched and not self._watching:
            await self._watch(context, rule.cut, wrong=not same)

    async def note(
        self,
        context: Context,
        question: Question,
        found: Found,
        rule: Rule,
        *,
        same: bool | None = None,
        fresh: Completion | None = None,
    ) -> None:
        look, endpoint = found.look, context.endpoint
        if look is None or self._recorder is None or endpoint.lookups == "off":
            return
        where = f"{namespace(context)}/{question.namespace}"
        row = Lookup(
            time=self._clock(),
            endpoint=endpoint.name,
            request_id=context.request_id,
            asked=asked_as(where, question.text, secret=self._secret),
            entry=look.entry,
            cosine=look.cosine,
            embedder=rule.embedder,
            verifier=rule.verifier,
            chance=look.chance,
            agreement=look.agreement,
            served=found.entry is not None and context.directives.mode == "semantic",
            why=found.detail,
            outcome="" if same is None else "same" if same else "different",
        )
        if endpoint.lookups == "texts" and context.directives.store:
            row = await self._with_texts(row, context, question, look, fresh)
        self._recorder.record(row)

    async def _with_texts(
        self, row: Lookup, context: Context, question: Question, look: Look, fresh: Completion | None
    ) -> Lookup:
        try:
            kept = await self._exact.read(context, look.entry)
        except (BackendError, TimeoutError):
            kept = None
        return msgspec.structs.replace(
            row,
            question=question.text,
            stored=look.stored.text,
            fresh="" if fresh is None else answer_text(fresh),
            kept="" if kept is None else answer_text(kept.completion),
        )

    async def _watch(self, context: Context, cut: float, *, wrong: bool) -> None:
        self._watching += 1
        try:
            watch = await asyncio.to_thread(self._tuning.audited, context.endpoint.name, cut=cut, wrong=wrong)
        except BackendError as error:
            log.warning("an audit could not be kept: %s", error)
            return
        finally:
            self._watching -= 1
        if watch is None or (math.inf if watch.cut is None else watch.cut) != cut:
            await self._retune()


def belongs(look: Look | None, drawn: bytes, verifier: Verifier | None) -> str:
    """The entry that a fresh answer was found equal to, question and answer; "" if there is none."""
    if look is None or not says_the_same(drawn, look.stored.sketch):
        return ""
    if verifier is None or look.chance is None:
        return look.entry if look.cosine >= _NEAR else ""
    return look.entry if look.chance >= verifier.cut(_ALIKE) else ""


async def sketch(completion: Completion) -> bytes:
    """`sketched`, without holding up others."""
    if len(completion.body) > _LONG:
        return await asyncio.to_thread(sketched, completion)
    return sketched(completion)
