"""What goes on behind semantic hits: aliases, audits and the log, over the whole path in one process.

To the embedder all texts are one, so that every two questions are near and
only the rule, the vetoes and what is around them keep them apart.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from backends.embedding.base import Role
from backends.exact.memory import MemoryStore
from backends.keyring.memory import MemoryKeyring
from backends.tuning.files import TuningFiles
from backends.upstream.base import Call, ChunkStream, Passage, Passed, Reply
from backends.vector.flat import FlatStore
from guardrails.placeholders import Placeholders
from guardrails.policy import Policy, Rule
from guardrails.registry import built
from models.completion import Completion, Usage
from models.errors import UpstreamError
from models.request import Dialect, Operation
from service.api.dialect import Asked
from service.api.openai_chat import OPENAI
from service.api.serve import serve
from service.caching import rule
from service.caching.directives import defaults
from service.caching.lookups import Lookup, decoded
from service.caching.single_flight import Flights
from service.context import Endpoint, Limits
from service.pipeline.exact_tier import ExactTier
from service.pipeline.gateway import Gateway
from service.pipeline.outcomes import Outcomes
from service.pipeline.screen import Screens
from service.pipeline.semantic_tier import SemanticTier
from service.pipeline.tuning import Tuning
from service.routing.aliases import Aliases, Target, route
from service.routing.balance import Standing
from service.telemetry.metrics import Metrics
from service.telemetry.recorder import Recorder

SECRET = b"s" * 32
ASKED, REWORDED = "How do I return my boots to the shop?", "How can I return my boots to the shop?"
ANSWER = "Send them to the shop."


class AllAlike:
    revision, dimensions = "alike/1", 2

    async def load(self) -> None: ...

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:  # noqa: ARG002  # the protocol's
        return np.array([[1.0, 0.0]] * len(texts), np.float32)

    async def close(self) -> None: ...


class Scripted:
    """Answers what it was told to. While `open` is not set, nobody gets an answer."""

    name = provider = "scripted"
    capabilities: frozenset[Operation] = frozenset({"chat"})
    dialects: frozenset[Dialect] = frozenset({"openai"})
    keys = 1

    def __init__(self) -> None:
        self.text, self.finish, self.fails = ANSWER, "stop", False
        self.asked, self.open = asyncio.Event(), asyncio.Event()
        self.open.set()
        self.waiting = self.most_waiting = self.calls = 0

    async def complete(self, call: Call) -> Reply:  # noqa: ARG002  # the protocol's
        self.calls += 1
        self.waiting += 1
        self.asked.set()
        self.most_waiting = max(self.waiting, self.most_waiting)
        await self.open.wait()
        self.waiting -= 1
        if self.fails:
            raise UpstreamError("no answer")
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return Reply(msgspec.json.encode({"id": "c", "model": "m", "choices": [choice], "usage": usage}))

    async def stream(self, call: Call) -> ChunkStream:
        raise AssertionError(call)

    async def forward(self, passage: Passage) -> Passed:
        raise AssertionError(passage.path)

    async def models(self) -> Sequence[str]:
        return []

    async def close(self) -> None: ...


def redacting() -> Policy:
    mail = Rule(
        name="p/email",
        detector=built("pii"),
        kinds=frozenset({"email"}),
        action="redact",
        on=frozenset({"input"}),
        when=None,
    )
    return Policy("p", (mail,))


class Told:
    def __init__(self, sent: list[Any]) -> None:
        self.status = sent[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}


class Cached:
    """A gateway with an empty cache, whose endpoint is what `endpoint` says."""

    def __init__(self, endpoint: Endpoint, directory: Path, *, policies: Sequence[Policy] = ()) -> None:
        self.metrics = Metrics()
        self.upstream = Scripted()
        self.log = directory / "lookups.jsonl"
        self.recorder = Recorder(self.log)
        self.recorder.start()
        self.exact = ExactTier(MemoryStore(), deadline=None, metrics=self.metrics)
        vectors = FlatStore(dimensions=2)
        self.semantic = SemanticTier(AllAlike(), vectors, self.exact, deadline=5.0, metrics=self.metrics)
        self.flights = Flights()
        outcomes = Outcomes(
            self.exact,
            Tuning(TuningFiles(path=directory / "tuning")),
            recorder=self.recorder,
            secret=SECRET,
            retune=self._nothing,
            metrics=self.metrics,
        )
        places = {"scripted": "here"}
        self.gateway = Gateway(
            endpoints={},
            aliases=Aliases({"m": route([Target("scripted", "m")], places=places)}, places),
            upstreams={"scripted": self.upstream},
            standings={"scripted": Standing("scripted")},
            passthrough=frozenset(),
            keyring=MemoryKeyring(),
            keys_required=False,
            secret=SECRET,
            exact=self.exact,
            semantic=self.semantic,
            screens=Screens({endpoint.name: tuple(policies)}, placeholders=Placeholders(SECRET), metrics=self.metrics),
            flights=self.flights,
            leads=None,
            outcomes=outcomes,
            limits=Limits(max_body=1_000_000, body_timeout=5.0),
            metrics=self.metrics,
            recorder=None,
        )
        self.now_is(endpoint)

    def now_is(self, endpoint: Endpoint) -> None:
        """As a reload puts it into effect."""
        self.gateway.endpoints = {endpoint.name: (endpoint, defaults(endpoint))}
        found = rule.rule(threshold=endpoint.threshold, limit=endpoint.limit, verifier=None, embedder="alike/1")
        self.semantic.rules = {endpoint.name: found}

    async def _nothing(self) -> None: ...

    async def begin(self, *texts: str, **headers: str) -> Told:
        """Asks the last of these turns, users' and assistants' in turn, and lets what is behind the answer go on."""
        messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
        bodies = [{"type": "http.request", "body": msgspec.json.encode({"model": "m", "messages": messages})}]
        sent: list[Any] = []

        async def receive() -> Any:
            return bodies.pop() if bodies else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await serve(self.gateway, OPENAI, Asked("chat"), "e", {"headers": raw}, receive, send)
        return Told(sent)

    async def ask(self, *texts: str, **headers: str) -> Told:
        told = await self.begin(*texts, **headers)
        await self.flights.landed(5.0)
        return told

    async def rows(self) -> list[Lookup]:
        await asyncio.to_thread(self.recorder.close)
        found = [decoded(line) for line in self.log.read_bytes().splitlines()]
        return [row for row in found if isinstance(row, Lookup)]


async def opened(directory: Path, *, policies: Sequence[Policy] = (), **cache: Any) -> Cached:
    path = Cached(Endpoint("e", **{"threshold": 0.5, **cache}), directory, policies=policies)
    await path.semantic.load()
    return path


async def test_an_audit_whose_answer_would_not_be_kept_says_nothing(tmp_path: Path) -> None:
    path = await opened(tmp_path, audit_rate=1.0)
    await path.ask(ASKED)
    path.upstream.text, path.upstream.finish = "Send", "length"

    cut_short = await path.ask(REWORDED)

    assert cut_short.headers["x-keepgate-cache"] == "semantic"
    assert path.metrics.cache_audits.state() == {("e", "unknown"): 1}
    assert [row.outcome for row in await path.rows() if row.served] == [""]


async def test_a_hit_whose_audit_failed_is_in_the_log(tmp_path: Path) -> None:
    path = await opened(tmp_path, audit_rate=1.0)
    await path.ask(ASKED)
    path.upstream.fails = True

    hit = await path.ask(REWORDED)

    assert hit.status == 200
    assert [(row.why, row.outcome) for row in await path.rows() if row.served] == [("semantic", "")]


async def test_no_more_than_a_few_audits_are_under_way_at_once(tmp_path: Path) -> None:
    path = await opened(tmp_path, audit_rate=1.0)
    await path.ask(ASKED)
    path.upstream.open.clear()
    path.upstream.asked.clear()

    told = await asyncio.gather(*(path.begin(f"{REWORDED}{' ' * at}") for at in range(12)))
    await path.upstream.asked.wait()
    path.upstream.open.set()
    await path.flights.landed(5.0)

    assert {one.headers["x-keepgate-cache"] for one in told} == {"semantic"}
    assert path.upstream.most_waiting <= 4
    assert sum(row.served for row in await path.rows()) == 12


async def test_an_alias_says_what_guardrails_did_to_its_request(tmp_path: Path) -> None:
    path = await opened(tmp_path, policies=[redacting()])
    await path.ask(ASKED)
    reworded = f"{REWORDED} I am ann@example.com."
    await path.ask(reworded.replace("ann", "bob"))

    first = await path.ask(reworded)
    again = await path.ask(reworded)

    assert [told.headers["x-keepgate-cache"] for told in (first, again)] == ["semantic"] * 2
    assert "detail=alias" in again.headers["cache-status"]
    assert again.headers["x-keepgate-guardrails"] == first.headers["x-keepgate-guardrails"] != "clean"


async def test_an_alias_ends_with_the_way_its_question_was_read(tmp_path: Path) -> None:
    endpoint = Endpoint("e", threshold=0.5, context="last-turn")
    path = await opened(tmp_path, context="last-turn")
    await path.ask("What are boots?", "Shoes.", ASKED)
    await path.ask("What are hats?", "Caps.", REWORDED)
    aliased = await path.ask("What are hats?", "Caps.", REWORDED)

    path.now_is(msgspec.structs.replace(endpoint, context="full"))
    apart = await path.ask("What are hats?", "Caps.", REWORDED)

    assert "detail=alias" in aliased.headers["cache-status"]
    assert apart.headers["x-keepgate-cache"] == "miss"


async def test_conversations_are_one_only_for_whom_their_turns_would_be_found_equal(tmp_path: Path) -> None:
    path = await opened(tmp_path)
    follow, reworded_follow = "How much does that cost to send?", "What does that cost to send?"
    await path.ask(ASKED)
    await path.ask(ASKED, ANSWER, follow)
    await path.ask(REWORDED)

    only = {"cache_control": "only-if-cached"}
    found = await path.ask(REWORDED, ANSWER, reworded_follow, **only)
    endpoint, _ = path.gateway.endpoints["e"]
    path.now_is(msgspec.structs.replace(endpoint, threshold=0.6))
    decided_anew = await path.ask(REWORDED, ANSWER, reworded_follow, **only)

    assert found.headers["x-keepgate-cache"] == "semantic"
    assert decided_anew.status == 504


async def test_who_asks_for_more_likeness_gets_it_of_earlier_turns_too(tmp_path: Path) -> None:
    path = await opened(tmp_path)
    context = path.gateway.authenticate({}, "e", request_id="r", started=0.0)
    key = "k" * 64
    answer = Completion(b"{}", "m", Usage(1, 1), ("stop",))
    entry = path.exact.entry(context, "e" * 64, answer, "scripted/m")
    await path.exact.alias(context, key, entry, similarity=0.8, rule=path.semantic.revision(context), question="n")
    strict = msgspec.structs.replace(context, directives=msgspec.structs.replace(context.directives, threshold=0.9))

    assert await path.exact.canonical(context, key, rule=path.semantic.revision(context)) == entry.entry_id
    assert await path.exact.canonical(strict, key, rule=path.semantic.revision(strict)) == key


async def test_texts_of_who_wants_nothing_stored_are_not_in_the_log(tmp_path: Path) -> None:
    path = await opened(tmp_path, lookups="texts")
    await path.ask(ASKED)

    await path.ask(REWORDED, cache_control="no-store")

    assert [row.question for row in await path.rows() if row.served] == [""]


async def test_a_semantic_hit_past_its_ttl_says_that_it_is_stale(tmp_path: Path) -> None:
    path = await opened(tmp_path, stale=3600.0)
    await path.ask(ASKED, x_keepgate_ttl="0.000001s")

    stale = await path.ask(REWORDED)

    assert stale.headers["x-keepgate-cache"] == "semantic"
    assert stale.headers["cache-status"].endswith("detail=stale")
    assert path.upstream.calls == 2


async def test_who_takes_only_what_is_cached_is_not_kept_from_an_alias_by_an_audit(tmp_path: Path) -> None:
    path = await opened(tmp_path)
    await path.ask(ASKED)
    await path.ask(REWORDED)
    endpoint, _ = path.gateway.endpoints["e"]
    path.now_is(msgspec.structs.replace(endpoint, audit_rate=1.0))
    path.semantic.loaded = False  # the embedder is gone

    found = await path.ask(REWORDED, cache_control="only-if-cached")

    assert found.status == 200
    assert "detail=alias" in found.headers["cache-status"]


async def test_an_alias_is_served_unaudited_where_no_look_up_could_decide_anew(tmp_path: Path) -> None:
    path = await opened(tmp_path)
    await path.ask(ASKED)
    await path.ask(REWORDED)
    endpoint, _ = path.gateway.endpoints["e"]
    path.now_is(msgspec.structs.replace(endpoint, audit_rate=1.0))
    path.semantic.loaded = False  # the embedder is gone
    calls = path.upstream.calls

    found = await path.ask(REWORDED)

    assert "detail=alias" in found.headers["cache-status"]
    assert path.upstream.calls == calls


async def test_a_turn_answered_without_its_history_does_not_make_two_conversations_one(tmp_path: Path) -> None:
    path = await opened(tmp_path, context="last-turn-if-self-contained")
    everest, first = "How tall is Mount Everest?", "And how large is the country that I asked about before that?"
    peru, chad = ("Tell me about Peru.", "It lies in America."), ("Tell me about Chad.", "It lies in Africa.")
    await path.ask(*peru, everest)
    apart = await path.ask(*chad, everest)
    alias = await path.ask(*chad, everest)
    path.upstream.text = "Peru has 1.3 million square kilometres."
    await path.ask(*peru, everest, ANSWER, first)

    other = await path.ask(*chad, everest, ANSWER, first, cache_control="only-if-cached")

    assert apart.headers["x-keepgate-cache"] == "semantic"
    assert "detail=alias" in alias.headers["cache-status"]
    assert other.status == 504
