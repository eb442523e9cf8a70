"""What one request was answered never reaches another that differs in account, scope, place, words around or rules.

The whole path in one process, with an embedder to which all texts are one:
nothing but equality keeps two requests apart here.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.embedding.base import Role
from backends.exact.memory import MemoryStore
from backends.keyring.memory import MemoryKeyring
from backends.upstream.base import Call, ChunkStream, Passage, Passed, Reply
from backends.vector.flat import FlatStore
from guardrails.placeholders import Placeholders
from guardrails.policy import Condition, Policy, Rule
from guardrails.registry import built
from models.errors import RequestError
from models.key import VirtualKey
from models.request import Dialect, Operation
from service.api.dialect import Asked
from service.api.openai_chat import OPENAI
from service.api.serve import serve
from service.caching.directives import defaults
from service.caching.identity import NEUTRAL, Question, asked, exact_key
from service.caching.single_flight import Flights
from service.context import Caller, Context, Endpoint, Limits
from service.governance.keys import digest
from service.pipeline.exact_tier import ExactTier, namespace
from service.pipeline.gateway import Gateway
from service.pipeline.headers import meaning
from service.pipeline.screen import Screens
from service.pipeline.semantic_tier import SemanticTier
from service.routing.aliases import Aliases, Target, route
from service.routing.balance import Standing
from service.telemetry.metrics import Metrics
from tests.support.outcomes import forgotten
from tests.support.scenes import PARTS, PLAIN, SCOPES, TEAMS, Scene, meant, request

Json = dict[str, Any]

SECRET = b"s" * 32
QUESTION, REWORDED = "How do I return my boots to {}?", "How can I return my boots to {}?"


scenes = st.fixed_dictionaries({name: st.sampled_from(part.words) for name, part in PARTS.items()})
# One thing and nothing beside it: what is usual, and what differs in a place or two.
near_plain = st.lists(st.sampled_from(sorted(PARTS)), max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(PARTS[name].words) for name in names}).map(
        lambda some: {**PLAIN, **some}
    )
)


# --- the path


class AllAlike:
    """To this embedder every text is the same."""

    revision, dimensions = "alike/1", 2

    async def load(self) -> None: ...

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:  # noqa: ARG002  # the protocol's
        return np.array([[1.0, 0.0]] * len(texts), np.float32)

    async def close(self) -> None: ...


class Numbered:
    """Gives every call another answer: its number."""

    name = provider = "numbered"
    capabilities: frozenset[Operation] = frozenset({"chat"})
    dialects: frozenset[Dialect] = frozenset({"openai"})
    keys = 1

    def __init__(self) -> None:
        self._numbers = itertools.count()

    async def complete(self, call: Call) -> Reply:  # noqa: ARG002  # the protocol's
        message = {"role": "assistant", "content": str(next(self._numbers))}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Reply(msgspec.json.encode({"id": "c", "model": "m", "choices": [choice]}))

    async def stream(self, call: Call) -> ChunkStream:
        raise AssertionError(call)

    async def forward(self, passage: Passage) -> Passed:
        raise AssertionError(passage.path)

    async def models(self) -> Sequence[str]:
        return []

    async def close(self) -> None: ...


@cache
def policies() -> dict[str, tuple[Policy, ...]]:
    def rule(action: Literal["mask", "log"], when: str | None = None) -> Rule:
        return Rule(
            name="p/email",
            detector=built("pii"),
            kinds=frozenset({"email"}),
            action=action,
            on=frozenset({"input"}),
            when=None if when is None else Condition(when),
        )

    gold = rule("log", "'x-tier' in headers && headers['x-tier'] == 'gold'")
    return {"masks": (Policy("p", (rule("mask"),)),), "ruled": (Policy("p", (gold,)),)}


class Path:
    """A gateway with an empty cache. `ask` gives the answer's number, and the tier it came from."""

    def __init__(self, *, passthrough: bool = False) -> None:
        self._secrets = {name: f"{'sk' if passthrough else 'kg'}-{name}" for name in TEAMS}
        metrics = Metrics()
        named = [Endpoint(name, threshold=0.01, scope=SCOPES.get(name)) for name in PARTS["endpoint"].words]
        named.append(Endpoint("forgets", threshold=0.01, context="last-turn"))
        keyring = MemoryKeyring()
        for account, team in TEAMS.items():
            keyring.add(digest(f"kg-{account}"), VirtualKey(account, account, 0.0, team=team))
        exact = ExactTier(MemoryStore(), deadline=None, metrics=metrics)
        self.vectors = FlatStore(dimensions=2)
        self.semantic = SemanticTier(AllAlike(), self.vectors, exact, deadline=5.0, metrics=metrics)
        self._flights = Flights()
        places = {"numbered": "here"}
        routes = {name: route([Target("numbered", name)], places=places) for name in ("m", "n")}
        self.gateway = Gateway(
            endpoints={endpoint.name: (endpoint, defaults(endpoint)) for endpoint in named},
            aliases=Aliases({**routes, "alias": routes["m"]}, places),
            upstreams={"numbered": Numbered()},
            standings={"numbered": Standing("numbered")},
            passthrough=frozenset({"numbered"} if passthrough else ()),
            keyring=keyring,
            keys_required=False,
            secret=SECRET,
            exact=exact,
            semantic=self.semantic,
            screens=Screens(policies(), placeholders=Placeholders(SECRET), metrics=metrics),
            flights=self._flights,
            leads=None,
            outcomes=forgotten(exact, metrics),
            limits=Limits(max_body=1_000_000, body_timeout=5.0),
            metrics=metrics,
            recorder=None,
        )

    async def ask(self, scene: Scene, wording: str) -> tuple[int, str]:
        body, headers = request(scene, wording, secrets=self._secrets)
        sent: list[Any] = []
        bodies = [{"type": "http.request", "body": msgspec.json.encode(body)}]
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]

        async def receive() -> Any:
            return bodies.pop() if bodies else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await serve(self.gateway, OPENAI, Asked("chat"), scene["endpoint"], {"headers": raw}, receive, send)
        await self._flights.landed(5.0)
        answer = msgspec.json.decode(b"".join(message.get("body", b"") for message in sent[1:]))
        assert sent[0]["status"] == 200, answer
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return int(answer["choices"][0]["message"]["content"]), told["x-keepgate-cache"]


async def opened(*, passthrough: bool = False) -> Path:
    path = Path(passthrough=passthrough)
    await path.semantic.load()
    return path


@settings(max_examples=200)
@given(one=near_plain | scenes, changed=st.data(), wording=st.sampled_from([QUESTION, REWORDED]))
def test_two_requests_share_an_answer_exactly_where_nothing_that_counts_differs(
    one: Scene, changed: st.DataObject, wording: str
) -> None:
    names = changed.draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=2, unique=True))
    other = {**one, **{name: changed.draw(st.sampled_from(PARTS[name].words), name) for name in names}}

    async def both() -> tuple[tuple[int, str], tuple[int, str]]:
        path = await opened()
        return await path.ask(one, QUESTION), await path.ask(other, wording)

    first, second = asyncio.run(both())

    assert first == (0, "miss")
    shares = meant(one) == meant(other)
    assert second == ((0, "exact" if wording == QUESTION else "semantic") if shares else (1, "miss"))


@settings(max_examples=60)
@given(several=st.lists(near_plain | scenes, min_size=2, max_size=12), seed=st.randoms(use_true_random=False))
def test_in_any_sequence_every_answer_is_one_that_was_given_to_the_same_request(
    several: list[Scene], seed: Any
) -> None:
    asking = [(scene, wording) for scene in several for wording in (QUESTION, REWORDED)]
    seed.shuffle(asking)

    async def all_of_them() -> list[tuple[int, str]]:
        path = await opened()
        return [await path.ask(scene, wording) for scene, wording in asking]

    answers = asyncio.run(all_of_them())

    owner: dict[int, tuple[str, ...]] = {}
    for (scene, _), (number, _) in zip(asking, answers, strict=True):
        assert owner.setdefault(number, meant(scene)) == meant(scene)
    assert len(owner) == len({meant(scene) for scene in several})


def every_change() -> Iterator[Any]:
    for name, part in PARTS.items():
        for word in part.words[1:]:
            yield pytest.param(name, word, id=f"{name}: {word}")


@pytest.mark.parametrize("wording", [QUESTION, REWORDED], ids=["exact", "semantic"])
@pytest.mark.parametrize(("name", "word"), list(every_change()))
async def test_each_part_that_counts_is_a_wall_and_no_other_is(name: str, word: str, wording: str) -> None:
    """What the properties draw at random, each once."""
    base = {**PLAIN, "account": "ann", "system": "You sell shoes."}
    base |= {"endpoint": "ruled"} if name == "x-tier" else {"endpoint": "masks"} if name == "mail" else {}
    path = await opened()
    await path.ask(base, QUESTION)

    number, tier = await path.ask({**base, name: word}, wording)

    shares = meant(base) == meant({**base, name: word})
    assert (number, tier != "miss") == ((0, True) if shares else (1, False))


@pytest.mark.parametrize(
    ("name", "word"), [one for one in every_change() if one.values[0] not in ("endpoint", "history", "x-tier", "mail")]
)
async def test_where_earlier_turns_are_let_go_no_other_wall_goes_with_them(name: str, word: str) -> None:
    base = {**PLAIN, "endpoint": "forgets", "account": "ann", "system": "You sell shoes.", "history": "Hello"}
    path = await opened()
    await path.ask(base, QUESTION)

    number, tier = await path.ask({**base, "history": "Hello there", name: word}, REWORDED)

    shares = meant(base) == meant({**base, name: word})
    assert (number, tier) == ((0, "semantic") if shares else (1, "miss"))


@pytest.mark.parametrize(
    ("endpoint", "one", "other", "shares"),
    [
        ("own", "ann", "bob", False),
        ("own", "ann", "", False),
        ("teams", "ann", "bob", True),
        ("teams", "ann", "cem", False),
        ("teams", "ann", "", False),
        ("open", "ann", "cem", True),
        ("open", "ann", "", True),
    ],
)
async def test_scope_says_who_shares(endpoint: str, one: str, other: str, shares: bool) -> None:
    path = await opened()
    await path.ask({**PLAIN, "endpoint": endpoint, "account": one}, QUESTION)

    answers = [
        await path.ask({**PLAIN, "endpoint": endpoint, "account": other}, wording) for wording in (QUESTION, REWORDED)
    ]

    assert [number == 0 for number, _ in answers] == [shares, shares]


@pytest.mark.parametrize("endpoint", ["own", "teams", "open"])
async def test_credentials_that_are_passed_on_are_walls_in_every_scope(endpoint: str) -> None:
    path = await opened(passthrough=True)
    scenes = [{**PLAIN, "endpoint": endpoint, "account": account} for account in ("ann", "bob", "")]

    first = [await path.ask(scene, QUESTION) for scene in scenes]
    again = [await path.ask(scene, wording) for scene in scenes for wording in (QUESTION, REWORDED)]

    assert first == [(0, "miss"), (1, "miss"), (2, "miss")]
    assert again == [(number, tier) for number in range(3) for tier in ("exact", "semantic")]


async def test_two_masked_values_are_two_namespaces_whatever_a_veto_says() -> None:
    path = await opened()
    masks = {**PLAIN, "endpoint": "masks"}

    for mail in PARTS["mail"].words:
        for wording in (QUESTION, REWORDED):
            await path.ask({**masks, "mail": mail}, wording)

    # By namespace the questions: one for each value, whose other wording was a hit.
    assert [len(stored) for stored in path.vectors._entries.values()] == [1, 1]


# --- identities of anything at all

texts = st.text(max_size=12) | st.sampled_from(['","', "\0", "system", '{"role":"user"}', "]", "text", "parents"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
functions = st.builds(
    lambda name, schema: {"type": "function", "function": {"name": name, "parameters": schema}}, texts, json_values
)
PLACES: dict[str, st.SearchStrategy[Any]] = {
    "system": texts,
    "earlier": st.lists(texts, max_size=3),
    "tools": st.lists(functions, min_size=1, max_size=2),
    "response_format": st.dictionaries(st.sampled_from(["type", "json_schema", "x"]), json_values, min_size=1),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "seed": st.integers(),
    "stop": st.lists(texts, min_size=1, max_size=2),
    "reasoning_effort": st.sampled_from(["low", "high"]),
    "x_vendor": texts,
    "meaning": st.lists(texts, max_size=3),
    "passage": st.text("abcdefgh", min_size=1, max_size=6),
}
drawn = st.fixed_dictionaries({}, optional=PLACES)


def identities(parts: Json) -> tuple[str, str, str]:
    """The exact key, and namespace and text of the question."""
    said = "Who may return them?"
    if "passage" in parts:
        said = f"Context: they are {parts['passage']}.\n\nQuestion: {said}"
    turns = [parts["system"]] if "system" in parts else []
    messages = [{"role": "system", "content": text} for text in turns]
    messages += [
        {"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(parts.get("earlier", ()))
    ]
    body = {name: value for name, value in parts.items() if name not in ("system", "earlier", "meaning", "passage")}
    body["messages"] = [*messages, {"role": "user", "content": said}]
    found = asked(body, tuple(parts.get("meaning", ())))
    assert isinstance(found, Question)
    return exact_key(body, tuple(parts.get("meaning", ()))), found.namespace, found.text


def told_apart(value: Any) -> Any:
    """As `identities` may read it: 0.0 and 0 are one, true and 1 are not, and none is nothing."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, dict):
        return {name: told_apart(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [told_apart(inner) for inner in value]
    return type(value).__name__, value


@settings(max_examples=150)
@given(one=drawn, name=st.sampled_from(sorted(PLACES)), data=st.data())
def test_whatever_stands_in_a_place_another_thing_there_is_another_identity(
    one: Json, name: str, data: st.DataObject
) -> None:
    other = {**one, name: data.draw(PLACES[name])}
    assume(one.get("response_format") != {"type": "text"} and other.get("response_format") != {"type": "text"})
    assume(name not in ("earlier", "meaning") or one.get(name, []) != other[name])

    (key, place, text), (other_key, other_place, other_text) = identities(one), identities(other)

    same = name in one and told_apart(one[name]) == told_apart(other[name])
    assert (key == other_key) == same
    assert (place == other_place) == same
    assert text == other_text == "Who may return them?"


@given(one=drawn, neutral=st.dictionaries(st.sampled_from(sorted(NEUTRAL | {"model"})), json_values))
def test_neutral_fields_change_no_identity_whatever_else_is_asked(one: Json, neutral: Json) -> None:
    assert identities(one) == identities({**neutral, **one})


values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF), min_size=1, max_size=8)
header_sets = st.dictionaries(
    st.sampled_from(["x-keepgate-namespace", "openai-beta", "openai-organization", "openai-project", "anthropic-beta"]),
    values | st.sampled_from(["x-keepgate-namespace=a", "a,openai-beta=b", "openai-beta=b"]),
)


@given(one=header_sets, other=header_sets)
def test_no_header_can_say_what_another_says(one: dict[str, str], other: dict[str, str]) -> None:
    def of(headers: dict[str, str]) -> tuple[str, ...] | None:
        try:
            return meaning({name.encode(): value.encode("latin-1") for name, value in headers.items()})
        except RequestError:
            return None

    assume(None not in (of(one), of(other)))

    # White space around a value is none of it, and U+00A0 is white space.
    said = [{name: value.strip() for name, value in headers.items()} for headers in (one, other)]
    assert of(one) == of(other) or said[0] != said[1]
    assert of(one) != of(other) or said[0] == said[1]


names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=6)
partitions = st.builds("key:{}".format, names) | st.builds("team:{}".format, st.text(max_size=8)) | st.just("everyone")


@given(one=st.tuples(names, partitions), other=st.tuples(names, partitions))
def test_no_endpoint_and_team_add_up_to_the_place_of_others(one: tuple[str, str], other: tuple[str, str]) -> None:
    def place(endpoint: str, partition: str) -> str:
        named = Endpoint(endpoint)
        return namespace(Context("r", named, Caller(partition), defaults(named), 0.0, {}))

    assert (place(*one) == place(*other)) == (one == other)
