"""Screening: what a request says before anything else reads it, and an answer before anybody does.

Fails closed: what a rule that gates could not look at goes no further, unless
the rule says otherwise. What was let through unseen is never kept.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import msgspec

from guardrails.engine import Screened, Tally
from guardrails.engine import screen as look
from guardrails.placeholders import Placeholders
from guardrails.policy import Choice, Facts, Policy, Rule, chosen
from guardrails.stream import StreamScreen
from guardrails.view import Views, answer_segments, views_of
from models.completion import Chunk
from models.errors import UpstreamError
from models.request import Request
from service.context import Context
from service.telemetry.metrics import Metrics

# Bodies above are walked in a thread.
_LARGE = 256 * 1024


_NO_RULES = Choice((), keepable=True, revision="")


class ScreenedRequest(msgspec.Struct, frozen=True, gc=False):
    """What may be read and sent. `issued` are the values behind the placeholders in it. Not `keepable`: a rule that
    gates could not look at it."""

    request: Request
    issued: dict[str, str]
    keepable: bool


class Screens:
    """The policies of every endpoint, and what their rules need."""

    def __init__(
        self,
        policies: Mapping[str, tuple[Policy, ...]],
        *,
        placeholders: Placeholders,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._placeholders = placeholders
        # What does not depend on the request is chosen once.
        self._same: dict[str, Choice] = {}
        self._policies: dict[str, tuple[Policy, ...]] = {}
        for endpoint, applying in policies.items():
            rules = [rule for policy in applying for rule in policy.rules]
            if any(rule.when is not None or rule.sample < 1 for rule in rules):
                self._policies[endpoint] = applying
            else:
                nobody = Facts(model="", endpoint=endpoint)
                self._same[endpoint] = chosen(applying, nobody, 0.0, placeholders=placeholders.revision)
        self._metrics = metrics
        self._draw = draw

    def choose(self, request: Request, context: Context, *, draw: float | None = None) -> Choice:
        """The rules that apply to this request. `draw` is for their samples, and random unless it is given."""
        same = self._same.get(context.endpoint.name)
        if same is not None:
            return same
        policies = self._policies.get(context.endpoint.name)
        if policies is None:
            return _NO_RULES
        key = context.caller.key
        facts = Facts(
            model=request.model,
            endpoint=context.endpoint.name,
            key="" if key is None else key.name,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in context.headers.items()},
        )
        return chosen(policies, facts, self._draw() if draw is None else draw, placeholders=self._placeholders.revision)

    async def issued(self, request: Request, context: Context) -> dict[str, str]:
        """The values behind what was masked in a request like it: by every rule, those for a sample too. Raises as
        `request` does."""
        screened = await self.request(request, context, self.choose(request, context, draw=0.0))
        return screened.issued

    async def request(self, request: Request, context: Context, choice: Choice) -> ScreenedRequest:
        """Raises `ContentBlocked` or `GuardrailUnavailable`."""
        rules = [rule for rule in choice.rules if rule.on - _OUTPUT_ONLY]
        if not rules:
            return ScreenedRequest(request, {}, choice.keepable)
        large = len(request.raw) > _LARGE
        views = await asyncio.to_thread(views_of, request) if large else views_of(request)
        with self._told(context) as tally:
            screened = await look(
                views.texts,
                rules,
                phase="input",
                joints=views.joints,
                placeholders=self._placeholders,
                tally=tally,
            )
        keepable = choice.keepable and screened.keepable
        if screened.texts:
            request = (
                await asyncio.to_thread(_changed, request, views, screened)
                if large
                else _changed(request, views, screened)
            )
        if large:
            await asyncio.to_thread(views.let_go)
        return ScreenedRequest(request, screened.issued, keepable)

    async def answer(self, body: bytes, context: Context, choice: Choice) -> tuple[bytes, bool]:
        """A whole canonical answer, and whether it may be kept. Raises `ContentBlocked` or `GuardrailUnavailable`."""
        rules = [rule for rule in choice.rules if _looks_at_answers(rule)]
        if not rules:
            return body, True
        try:
            tree = msgspec.json.decode(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UpstreamError("the upstream's answer is not one of this API", answered=200) from error
        view = await asyncio.to_thread(answer_segments, tree) if len(body) > _LARGE else answer_segments(tree)
        with self._told(context) as tally:
            screened = await look(view.texts, rules, phase="output", joints=view.joints, tally=tally)
        if not screened.texts:
            return body, screened.keepable
        tree = view.rewritten(screened.texts, edits=screened.edits, resealed=screened.resealed)
        return msgspec.json.encode(tree), screened.keepable

    def looks_at_answers(self, choice: Choice) -> bool:
        return any(_looks_at_answers(rule) for rule in choice.rules)

    def stream(self, choice: Choice) -> "StreamedAnswer | None":
        """None where nothing of a streamed answer is looked at."""
        rules = [rule for rule in choice.rules if _looks_at_answers(rule)]
        return StreamedAnswer(rules) if rules else None

    def tell(self, context: Context, tally: Tally) -> None:
        """To the metrics, and for the headers and the record."""
        for (rule, detector, action, phase), count in tally.counts.items():
            self._metrics.guardrail_actions.add((rule, detector, action, phase), count)
        for detector, seconds in tally.seconds.items():
            self._metrics.guardrail_seconds.observe((detector,), seconds)
        context.acted = tuple(dict.fromkeys((*context.acted, *tally.acted)))

    @contextlib.contextmanager
    def _told(self, context: Context) -> Iterator[Tally]:
        tally = Tally()
        try:
            yield tally
        finally:
            self.tell(context, tally)


def _changed(request: Request, views: Views, screened: Screened) -> Request:
    trees = views.rewritten(screened.texts, edits=screened.edits, resealed=screened.resealed)
    native = trees[1] if len(trees) > 1 else request.native
    raw = msgspec.json.encode(trees[0] if native is None else native)
    return msgspec.structs.replace(request, body=trees[0], native=native, raw=raw)


class StreamedAnswer:
    """The chunks of an answer as they may go on. After `ContentBlocked` the answer ends with `closing`."""

    def __init__(self, rules: list[Rule]) -> None:
        self.tally = Tally()
        self._screen = StreamScreen(rules, tally=self.tally)

    @property
    def keepable(self) -> bool:
        return self._screen.keepable

    def feed(self, chunk: Chunk) -> AsyncIterator[Chunk]:
        return self._screen.feed(chunk)

    def end(self) -> AsyncIterator[Chunk]:
        return self._screen.end()

    def closing(self) -> list[Chunk]:
        return self._screen.closing()

    def whole(self, body: bytes) -> bytes:
        """What the chunks add up to. Where a rule acted in reasoning whose details had begun to go, these say less than
        the text, and are left out."""
        if not self.tally.acted or b'"reasoning_details"' not in body:
            return body
        tree = msgspec.json.decode(body)
        for choice in tree["choices"]:
            message = choice.get("message", {})
            if "reasoning_details" in message and _breaks_off(message):
                del message["reasoning_details"]
                if "layout" in message:
                    message["layout"] = [run for run in message["layout"] if run[0] != "reasoning_details"]
        return msgspec.json.encode(tree)


def _breaks_off(message: dict[str, Any]) -> bool:
    """Whether its details are only the beginning of what was thought."""
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    readable = "".join(detail.get("text") or detail.get("summary") or "" for detail in message["reasoning_details"])
    return 0 < len(readable) < len(thought) and thought.startswith(readable)


_OUTPUT_ONLY = frozenset({"output"})


def _looks_at_answers(rule: Rule) -> bool:
    return rule.looks_at("assistant", "output") or rule.looks_at("tool_args", "output")
