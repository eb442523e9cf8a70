"""What works between which: clients of every dialect at providers of every dialect, through a real gateway.

`ROWS` is the table; a cell for which it tells no refusal works. The same table is in docs/dialects.md, and
`python -m tests.integration.test_dialect_grid` writes it there.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import httpx
import msgspec
import pytest

from models.request import Dialect
from tests.support.fake_anthropic import Anthropic
from tests.support.fake_gemini import Gemini
from tests.support.fake_openai import OpenAI
from tests.support.fake_provider import KEY, Call, Fake, running
from tests.support.fake_vendor import Vendor
from tests.support.gateway import AS_SHIPPED, Gateway, Json, running_gateway, settings
from tests.support.servers import ROOT
from tests.support.speakers import SPEAKERS, Ask, Finish, Heard, Tool, Unsaid, without

ALL: tuple[Dialect, ...] = ("openai", "responses", "anthropic", "gemini")
TITLES: Mapping[Dialect, str] = {
    "openai": "chat completions",
    "responses": "Responses",
    "anthropic": "Anthropic",
    "gemini": "Gemini",
}
VENDORS: Mapping[Dialect, Callable[[], Vendor]] = {
    "openai": OpenAI,
    "responses": OpenAI,
    "anthropic": Anthropic,
    "gemini": Gemini,
}
PROVIDERS: Mapping[Dialect, str] = {
    "openai": "openai",
    "responses": "openai",
    "anthropic": "anthropic",
    "gemini": "gemini",
}
MODELS: Mapping[Dialect, str] = {
    "openai": "gpt-4o",
    "responses": "gpt-5.2",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-3.1-pro-preview",
}

PLACE: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (Tool("weather", "The weather in a city.", PLACE), Tool("time", "The time in a city.", PLACE))
UNCACHED = {"x-keepgate-cache": "off"}
SAID = "You said: {text}"

Cell = Literal["yes", "400", "dropped", "unsaid"]
Play = Literal["answer", "results", "signed", "unknown", "4xx", "5xx", "broken"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of request. `play` is what happens to it, a function below.

    `says` is the answer's text, with the question's in it; `calls` are the
    tools it calls. `refused` are the providers whose dialect lacks it, `named`
    what the 400 calls it to clients of each dialect. A row of which only the
    client's `own` dialect knows is refused, or dropped, by the providers of all
    others. `apart` are clients in whose words it is another question, so that
    no other's answer in the cache is theirs; `kept` is false where none is.
    """

    what: str
    ask: Ask
    play: Play = "answer"
    says: str = SAID
    finish: Finish = "stop"
    calls: tuple[str, ...] = ()
    refused: tuple[Dialect, ...] = ()
    named: Mapping[Dialect, str] = {}
    own: Literal["400", "dropped"] | None = None
    apart: tuple[Dialect, ...] = ()
    kept: bool = True

    def cell(self, client: Dialect, provider: Dialect) -> Cell:
        try:
            SPEAKERS[client].body(self.ask, "m", stream=False)
        except Unsaid:
            return "unsaid"
        if provider in self.refused:
            return "400"
        return self.own if self.own is not None and client != provider else "yes"

    @property
    def sayers(self) -> tuple[Dialect, ...]:
        """The clients whose dialect has words for it."""
        return tuple(client for client in ALL if self.cell(client, client) != "unsaid")

    def together(self, client: Dialect) -> tuple[Dialect, ...]:
        """The clients whose question is the same as that of `client`."""
        if not self.kept:
            return ()
        if client in self.apart:
            return (client,)
        return tuple(other for other in self.sayers if other not in self.apart)


ROWS = (
    Row(what="text", ask=Ask(text="Hello")),
    Row(
        what="system prompt, limit, temperature",
        ask=Ask(text="Hello #long", system="Be brief.", limit=20, temperature=0.5),
        says="You said: Hello #long {client}" + " and so on" * 5,
        finish="length",
    ),
    Row(what="several turns", ask=Ask(text="Once more", earlier=(("Hi", "Hello"),))),
    Row(
        what="stop sequences",
        ask=Ask(text="one STOP two", stop="STOP"),
        says="You said: one ",
        refused=("responses",),
        named={"openai": "stop", "anthropic": "stop_sequences", "gemini": "generationConfig.stopSequences"},
    ),
    Row(what="tool calls", ask=Ask(text="Paris #tool", tools=TOOLS), says="", finish="tool_calls", calls=("weather",)),
    Row(
        what="parallel tool calls, after a text",
        ask=Ask(text="Paris #tools #say", tools=TOOLS),
        says="Let me look.",
        finish="tool_calls",
        calls=("weather", "time"),
    ),
    Row(
        what="one tool call at most",
        ask=Ask(text="Paris #tools", tools=TOOLS, one_call=True),
        says="",
        finish="tool_calls",
        calls=("weather",),
    ),
    Row(
        what="a tool that must be called",
        ask=Ask(text="Paris", tools=TOOLS, must_call="time"),
        says="",
        finish="tool_calls",
        calls=("time",),
    ),
    Row(what="image", ask=Ask(text="What?", attached="image"), says="[image/png, 70 bytes]\n" + SAID),
    Row(what="image by address", ask=Ask(text="What?", attached="image at"), says="…"),
    Row(
        what="document",
        ask=Ask(text="What?", attached="document"),
        says="[application/pdf, 15 bytes]\n" + SAID,
        apart=("gemini",),  # its documents have no name
    ),
    Row(
        what="document by address",
        ask=Ask(text="What?", attached="document at"),
        says="…",
        refused=("openai",),
        named={
            "responses": "input",
            "anthropic": "messages",
            "gemini": "contents",
        },
    ),
    Row(
        what="audio",
        ask=Ask(text="What?", attached="audio"),
        says="[audio/wav, 16 bytes]\n" + SAID,
        refused=("responses", "anthropic"),
        named={"openai": "messages[0].content[0]", "gemini": "contents"},
    ),
    Row(
        what="structured output",
        ask=Ask(text="Paris", schema={**PLACE, "additionalProperties": False}),
        says='{"city":"{text}"}',
    ),
    Row(
        what="JSON without a schema",
        ask=Ask(text="Paris json", any_json=True),
        says='{"answer":"{text}"}',
        refused=("anthropic",),
        named={"openai": "response_format", "responses": "text.format", "gemini": "generationConfig.responseMimeType"},
    ),
    Row(what="reasoning effort", ask=Ask(text="Think #reason", effort="low")),
    Row(what="reasoning to read", ask=Ask(text="Think aloud #reason", thinks=True), apart=ALL),
    Row(
        what="log probabilities",
        ask=Ask(text="Hello", logprobs=True),
        refused=("anthropic",),
        named={"openai": "logprobs", "responses": "include", "gemini": "generationConfig.responseLogprobs"},
    ),
    Row(
        what="several choices",
        ask=Ask(text="Hello", choices=2),
        refused=("responses", "anthropic"),
        named={"openai": "n", "gemini": "generationConfig.candidateCount"},
    ),
    Row(what="citations", ask=Ask(text="Hello #cite")),
    Row(what="counts of tokens, cached and of reasoning", ask=Ask(text="Hello #cached", effort="low")),
    Row(what="refusal", ask=Ask(text="Hello #refuse"), says="…", finish="filtered", kept=False),
    Row(what="content filter", ask=Ask(text="Hello #filter"), finish="filtered", kept=False),
    Row(
        what="what one dialect alone has, and changes the answer",
        ask=Ask(
            text="Hello",
            more={
                "openai": {"logit_bias": {"50256": -100}},
                "responses": {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
                "anthropic": {"inference_geo": "us"},
                "gemini": {"tools": [{"googleSearch": {}}]},
            },
        ),
        own="400",
        named={
            "openai": "logit_bias",
            "responses": "tools[0]",
            "anthropic": "inference_geo",
            "gemini": "tools[0].googleSearch",
        },
        apart=ALL,
    ),
    Row(
        what="what one dialect alone has, and does no harm",
        ask=Ask(
            text="Hello",
            more={
                "openai": {"prediction": {"type": "content", "content": "Hello"}},
                "responses": {"truncation": "auto"},
                "anthropic": {"service_tier": "standard_only"},
                "gemini": {"store": False},
            },
        ),
        apart=ALL,
    ),
    Row(what="results of tool calls", ask=Ask(text="Paris #tools", tools=TOOLS), play="results"),
    Row(
        what="signed reasoning sent back",
        ask=Ask(text="Paris #tool", tools=TOOLS, thinks=True),
        play="signed",
    ),
    Row(
        what="a field nobody knows",
        ask=Ask(text="Hello", more={client: {"newField": {"a": 1}} for client in ALL}),
        play="unknown",
        own="dropped",
        named=dict.fromkeys(ALL, "newField"),
    ),
    Row(what="the provider's own 4xx", ask=Ask(text="Hello"), play="4xx"),
    Row(what="the provider's 5xx", ask=Ask(text="Hello"), play="5xx"),
    Row(what="a stream that breaks off", ask=Ask(text="Hello #long"), play="broken"),
)


class Grid(NamedTuple):
    gateway: Gateway
    fakes: Mapping[Dialect, Fake]
    direct: httpx.Client

    def post(
        self,
        client: Dialect,
        model: str,
        body: Json,
        *,
        stream: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        return self.gateway.client.post(SPEAKERS[client].path(model, stream=stream), json=body, headers=headers)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    directory = tmp_path_factory.mktemp("grid")
    with ExitStack() as stack:
        fakes = {dialect: stack.enter_context(running(VENDORS[dialect]())) for dialect in ALL}
        upstreams: list[Json] = [
            {
                "name": dialect,
                "provider": PROVIDERS[dialect],
                "base_url": fakes[dialect].base_url,
                "api_key": KEY,
                "dialects": [dialect],
                "breaker": {"failures": 100_000},
            }
            for dialect in ALL
        ]
        models: list[Json] = [
            {"name": dialect, "targets": [{"upstream": dialect, "model": MODELS[dialect]}], "attempts": 1}
            for dialect in ALL
        ]
        endpoint: Json = {"name": "default", "cache": {"mode": "exact", "keep": ["stop", "length", "tool_calls"]}}
        config = settings(
            directory, "", upstreams=upstreams, models=models, endpoints=[endpoint], guardrails=AS_SHIPPED
        )
        gateway = stack.enter_context(running_gateway(directory, config))
        yield Grid(gateway, fakes, stack.enter_context(httpx.Client()))


@pytest.fixture
def grid(shared: Grid) -> Grid:
    for fake in shared.fakes.values():
        fake.reset()
    return shared


# --- a cell


@pytest.mark.parametrize("provider", ALL)
@pytest.mark.parametrize("client", ALL)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_a_cell_is_what_the_table_says(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    cell = row.cell(client, provider)
    if cell == "400":
        refused(grid, row, client, provider)
    elif cell != "unsaid":
        PLAYS[row.play](grid, row, client, provider)


def question(row: Row, client: Dialect, asker: Dialect | None = None, *, model: str, stream: bool = False) -> Json:
    """The row's question as `client` asks it; `asker` is who asked it first, and makes it theirs."""
    text = f"{row.ask.text} {asker or client}"
    return SPEAKERS[client].body(msgspec.structs.replace(row.ask, text=text), model, stream=stream)


def refused(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    for stream in (False, True):
        answer = grid.post(client, provider, question(row, client, model=provider, stream=stream), stream=stream)

        assert answer.status_code == 400
        told = SPEAKERS[client].error(answer.json())
        assert told.message.startswith("the model asked for cannot be told this in its dialect")
        assert row.named[client] in told.message
        assert told.field in (row.named[client], None if client == "anthropic" else "")
    assert grid.fakes[provider].calls == []


def answered(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    """Whole, streamed, and once more out of the cache in all dialects that ask the same."""
    for stream in (False, True):
        partition = {"x-keepgate-namespace": "streamed" if stream else "whole"}
        body = question(row, client, model=provider, stream=stream)
        told = exchanged(grid, row.ask, client, provider, body, stream=stream, headers=partition)

        says = row.says.replace("{text}", f"{row.ask.text} {client}").replace("{client}", client)
        assert told.heard.texts[0] == says or row.says == "…"
        assert len(told.heard.texts) == row.ask.choices
        assert told.heard.finish == row.finish
        assert [name for name, _ in told.heard.calls] == list(row.calls)
        if client == provider:
            read_back(grid, row, client, told.truth, partition)


def read_back(grid: Grid, row: Row, asker: Dialect, truth: Json, partition: Mapping[str, str]) -> None:
    """An answer that `asker` was given by a provider of the same dialect, out of the cache."""
    before = len(grid.fakes[asker].calls)
    for client in row.together(asker):
        for stream in (False, True):
            body = question(row, client, asker, model=asker, stream=stream)
            answer = grid.post(client, asker, body, stream=stream, headers=partition)

            assert answer.headers["x-keepgate-cache"] == "exact", client
            told = SPEAKERS[client].whole(answer.text) if stream else answer.json()
            assert SPEAKERS[client].heard(told) == expected(row.ask, client, asker, truth)
            if client == asker:
                # Under the ids of a Response its provider keeps what was asked: a replay has others.
                unlike = "id" if client == "responses" else ""
                replayed, kept = (SPEAKERS[client].native(one) for one in (told, truth))
                assert without(unlike, replayed) == without(unlike, kept)
                assert told.get("id") != truth.get("id") or not unlike
    assert len(grid.fakes[asker].calls) == before


def went_on(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    """With what came of the calls of the first answer."""
    for stream in (False, True):
        body = question(row, client, model=provider, stream=stream)
        first = exchanged(grid, row.ask, client, provider, body, stream=stream, headers=UNCACHED)
        then = SPEAKERS[client].going_on(body, first.answer, ["sunny", "noon"])
        second = exchanged(grid, row.ask, client, provider, then, stream=stream, headers=UNCACHED)

        assert re.fullmatch(r"The tools said: .*sunny.*; .*noon.*", second.heard.texts[0])


def kept_its_thoughts(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    """What the provider signed, or made for nobody to read, came back to it as it was, and to no other."""
    for stream in (False, True):
        body = question(row, client, model=provider, stream=stream)
        first = exchanged(grid, row.ask, client, provider, body, stream=stream, headers=UNCACHED)
        then = SPEAKERS[client].going_on(body, first.answer, ["sunny"])
        second = exchanged(grid, row.ask, client, provider, then, stream=stream, headers=UNCACHED)

        assert "sunny" in second.heard.texts[0]
        assert set(signatures(second.call.body)) == set(signatures(first.truth))


def signatures(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in {"signature", "encrypted_content", "thoughtSignature"}:
                yield inner
            else:
                yield from signatures(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from signatures(inner)


def unknown(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    """Sent on in the same dialect (these fakes know no such field, and say so), and dropped for another."""
    for stream in (False, True):
        body = question(row, client, model=provider, stream=stream)
        answer = grid.post(client, provider, body, stream=stream, headers=UNCACHED)

        if client == provider:
            assert answer.status_code == 400
            assert "newField" in SPEAKERS[client].error(answer.json()).message
            assert "x-keepgate-dropped" not in answer.headers
            assert grid.fakes[provider].calls[-1].body == as_sent(client, body, MODELS[provider])
        else:
            assert answer.status_code == 200
            assert answer.headers["x-keepgate-dropped"] == row.named[client]


def failed(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    """The provider's 4xx is the client's, in its words."""
    for stream in (False, True):
        body = question(row, client, model=f"{provider}/unknown-1", stream=stream)
        answer = grid.post(client, f"{provider}/unknown-1", body, stream=stream)

        assert answer.status_code == 404
        call = grid.fakes[provider].calls[-1]
        truth = again(grid, provider, call).json()
        said = SPEAKERS[provider].error(truth).message
        assert SPEAKERS[client].error(answer.json()).message == said
        if client == provider:
            assert answer.json() == truth


def broke_down(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    """Its 5xx is ours to tell of: after our own attempts, and without its words."""
    for stream in (False, True):
        grid.fakes[provider].script("500")
        body = question(row, client, model=provider, stream=stream)
        answer = grid.post(client, provider, body, stream=stream, headers=UNCACHED)

        assert answer.status_code == 502
        assert answer.headers["x-should-retry"] == "false"
        assert "fake" not in SPEAKERS[client].error(answer.json()).message


def broke_off(grid: Grid, row: Row, client: Dialect, provider: Dialect) -> None:
    """What was said before it arrives, then the dialect's error; nothing of it is kept."""
    for fault in ("cut", "error_midway"):
        grid.fakes[provider].script(fault)
        body = question(row, client, model=provider, stream=True)
        answer = grid.post(client, provider, body, stream=True)

        assert answer.status_code == 200
        assert "You" in answer.text
        assert "stream" in SPEAKERS[client].broken(answer.text)
        cached = grid.post(client, provider, body, stream=True, headers={"cache-control": "only-if-cached"})
        assert cached.status_code == 504


PLAYS: Mapping[Play, Callable[[Grid, Row, Dialect, Dialect], None]] = {
    "answer": answered,
    "results": went_on,
    "signed": kept_its_thoughts,
    "unknown": unknown,
    "4xx": failed,
    "5xx": broke_down,
    "broken": broke_off,
}


class Exchange(NamedTuple):
    """`answer` is put together as the client reads it, `truth` is what the provider said to `call`, in its dialect."""

    answer: Json
    heard: Heard
    call: Call
    truth: Json


def exchanged(
    grid: Grid,
    ask: Ask,
    client: Dialect,
    provider: Dialect,
    body: Json,
    *,
    stream: bool = False,
    model: str | None = None,
    moved: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Exchange:
    """Asked, and answered what the provider said: the same meaning, and in the same dialect the same blocks. `moved`:
    the conversation began elsewhere."""
    answer = grid.post(client, model or provider, body, stream=stream, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-keepgate-cache"] in {"miss", "bypass"}
    assert "x-keepgate-dropped" not in answer.headers
    speaker = SPEAKERS[client]
    told = speaker.whole(answer.text) if stream else answer.json()
    call = grid.fakes[provider].calls[-1]
    assert [said for said in unechoed(ask) if said not in call.raw.decode()] == []
    repeated = again(grid, provider, call)
    truth = SPEAKERS[provider].whole(repeated.text) if stream else repeated.json()
    heard = speaker.heard(told)
    assert heard == expected(ask, client, provider, truth)
    if client == provider:
        assert moved or call.body == as_sent(client, body, MODELS[provider] if model is None else model)
        assert speaker.native(told) == speaker.native(truth)
    return Exchange(told, heard, call, truth)


def unechoed(ask: Ask) -> Iterator[str]:
    """What of a question no answer shows, as every dialect writes it."""
    if ask.system is not None:
        yield ask.system
    if ask.temperature is not None:
        yield f'"temperature":{ask.temperature}'
    for turn in ask.earlier:
        yield from turn
    for tool in ask.tools:
        yield tool.description


def again(grid: Grid, provider: Dialect, call: Call) -> httpx.Response:
    """What the fake answers to the same call."""
    headers = {name: call.headers[name] for name in call.headers if name != "host"}
    url = f"{grid.fakes[provider].url}{call.path}"
    return grid.direct.post(url, params=dict(call.query), content=call.raw, headers=headers)


def as_sent(client: Dialect, body: Json, model: str) -> Json:
    """What a provider of the same dialect is sent: what the client wrote, for the model it goes to."""
    return body if client == "gemini" else {**body, "model": model.rpartition("/")[2]}


def expected(ask: Ask, client: Dialect, provider: Dialect, truth: Json) -> Heard:
    """What a client hears of a provider's answer."""
    heard = SPEAKERS[provider].heard(truth)
    if client == "gemini" and not ask.thinks:  # it has not asked to see thoughts
        heard = msgspec.structs.replace(heard, thoughts="")
    if ask.one_call:  # Gemini cannot be told, and of its calls the first alone is passed on
        heard = msgspec.structs.replace(heard, calls=heard.calls[:1])
    return heard


# --- between cells


MOVES = [(first, then) for first in ALL for then in ALL if first != then]


@pytest.mark.parametrize(("first", "then"), MOVES)
@pytest.mark.parametrize("client", ALL)
def test_a_conversation_goes_on_at_another_provider(grid: Grid, client: Dialect, first: Dialect, then: Dialect) -> None:
    """In the middle of a turn: the second has the results of the first one's calls, and nothing of what it signed."""
    ask = Ask(text="Paris #tools #say", tools=TOOLS, thinks=True)
    for stream in (False, True):
        body = SPEAKERS[client].body(ask, first, stream=stream)
        begun = exchanged(grid, ask, client, first, body, stream=stream, headers=UNCACHED)
        on = SPEAKERS[client].going_on(body, begun.answer, ["sunny", "noon"])
        if client != "gemini":
            on["model"] = then
        ended = exchanged(grid, ask, client, then, on, stream=stream, moved=True, headers=UNCACHED)

        assert "sunny" in ended.heard.texts[0]
        assert not set(signatures(ended.call.body)) & set(signatures(begun.truth))


@pytest.mark.parametrize(
    ("provider", "model"),
    [("gemini", "gemini-2.5-flash"), ("anthropic", "claude-sonnet-5-5"), ("anthropic", "claude-opus-4-6")],
)
@pytest.mark.parametrize("client", ALL)
def test_models_that_are_told_in_another_way_go_on_as_well(
    grid: Grid, client: Dialect, provider: Dialect, model: str
) -> None:
    """Gemini's without ids of calls, Anthropic's that think as they like."""
    ask = Ask(text="Paris #tools", tools=TOOLS, effort="low")
    name = f"{provider}/{model}"
    body = SPEAKERS[client].body(ask, name, stream=False)
    first = exchanged(grid, ask, client, provider, body, model=name, headers=UNCACHED)
    then = SPEAKERS[client].going_on(body, first.answer, ["sunny", "noon"])
    second = exchanged(grid, ask, client, provider, then, model=name, headers=UNCACHED)

    assert re.fullmatch(r"The tools said: .*sunny.*; .*noon.*", second.heard.texts[0])


QUESTIONS = {
    "text": Ask(text="Hello", system="Be brief.", limit=100, temperature=0.5),
    "turns": Ask(text="Once more", system="Be brief.", limit=100, earlier=(("Hi", "Hello"), ("So", "What"))),
    "tools": Ask(text="Paris #tool", system="Be brief.", limit=100, tools=TOOLS, must_call="weather"),
    "image": Ask(text="What?", system="Be brief.", limit=100, attached="image"),
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("second", ALL)
@pytest.mark.parametrize("first", ALL)
def test_a_question_asked_in_one_dialect_is_a_hit_in_another(
    grid: Grid, first: Dialect, second: Dialect, ask: Ask
) -> None:
    partition = {"x-keepgate-namespace": f"{first}, then {second}"}
    others = [
        msgspec.structs.replace(ask, system="Be kind."),
        msgspec.structs.replace(ask, system=None),
        msgspec.structs.replace(ask, limit=101),
        msgspec.structs.replace(ask, text=f"{ask.text} "),
        msgspec.structs.replace(ask, temperature=0.25),
        msgspec.structs.replace(ask, tools=TOOLS[:1], must_call=None),
        msgspec.structs.replace(ask, attached="image at"),
    ]

    asked = grid.post(first, "openai", SPEAKERS[first].body(ask, "openai", stream=False), headers=partition)
    again = grid.post(second, "openai", SPEAKERS[second].body(ask, "openai", stream=False), headers=partition)
    missed = [
        grid.post(
            second,
            "openai",
            SPEAKERS[second].body(other, "openai", stream=False),
            headers={**partition, "cache-control": "only-if-cached"},
        ).status_code
        for other in others
    ]

    assert asked.headers["x-keepgate-cache"] == "miss"
    assert again.headers["x-keepgate-cache"] == "exact"
    assert SPEAKERS[second].heard(again.json()) == SPEAKERS[first].heard(asked.json())
    assert missed == [504] * len(others)
    assert len(grid.fakes["openai"].calls) == 1


# --- the page

PAGE = ROOT / "docs" / "dialects.md"
SECTION = "## What works between which"


def test_the_page_has_this_table() -> None:
    _, table, _ = page()

    assert table == written(), "python -m tests.integration.test_dialect_grid writes it anew"


def written() -> list[str]:
    head = ["", "asked by", *(TITLES[provider] for provider in ALL), "one entry for", "named as"]
    rows = [[row.what, _names(row.sayers), *(_at(row, provider) for provider in ALL), *_notes(row)] for row in ROWS]
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]


def page() -> tuple[list[str], list[str], list[str]]:
    """The lines before the table, its own, and those after it."""
    lines = PAGE.read_text().splitlines()
    begin = next(at for at in range(lines.index(SECTION), len(lines)) if lines[at].startswith("|"))
    end = next(at for at in range(begin, len(lines)) if not lines[at].startswith("|"))
    return lines[:begin], lines[begin:end], lines[end:]


def _at(row: Row, provider: Dialect) -> str:
    cells = {row.cell(client, provider) for client in row.sayers}
    if len(cells) == 1:
        return cells.pop()
    return f"{(cells - {'yes'}).pop()} but for its own"


def _notes(row: Row) -> tuple[str, str]:
    entry = "" if row.kept else "not kept"
    if row.play == "answer" and row.kept:
        together = tuple(client for client in row.sayers if client not in row.apart)
        entry = _names(together, of=row.sayers) if together else "each apart"
    names = " · ".join(f"`{name}`" for name in dict.fromkeys(row.named.values()))
    return entry, names


def _names(clients: Sequence[Dialect], *, of: Sequence[Dialect] = ALL) -> str:
    if len(clients) == len(of):
        return "all"
    return ", ".join(TITLES[client] for client in clients)


if __name__ == "__main__":
    before, _, after = page()
    PAGE.write_text("\n".join([*before, *written(), *after]) + "\n")
