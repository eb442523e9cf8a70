"""Where a secret is found: each place in requests and answers, in each dialect, whole and streamed, at first and out of
the cache, through a real gateway. The table in docs/guardrails.md is what this prints.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import httpx
import pytest

from models.request import Dialect
from tests.integration.test_dialect_grid import ALL, PLACE
from tests.integration.test_guardrails import (
    LABEL,
    SECRET,
    WEATHER,
    Wall,
    attach,
    called,
    found,
    hit,
    holds,
    in_parts,
    parts_of,
    revealed,
    shared,
    told,
)
from tests.support import fake_anthropic, fake_gemini, fake_openai_chat, fake_openai_responses
from tests.support.gateway import Json
from tests.support.servers import ROOT
from tests.support.speakers import SPEAKERS, Ask, Tool, Unsaid

__all__ = ["shared"]  # the fixture, as pytest finds it

Build = Callable[[Dialect], Json]

LEAKS, FINDS, NOT_KEPT, UNSAID = "✗", "✓", "·", "–"
BEGIN, END = "<!-- coverage: tests/integration/test_guardrail_coverage.py -->", "<!-- coverage ends -->"


class Place(NamedTuple):
    """`answered`: the provider says it, rather than the client. Not `kept`: no cache has such an answer."""

    role: str
    part: str
    build: Build
    answered: bool = False
    kept: bool = True


def asking(**said: object) -> Build:
    return lambda client: SPEAKERS[client].body(Ask(**{"text": "Hello", **said}), client, stream=False)  # type: ignore[arg-type] # fields of Ask


def turns(client: Dialect, body: Json) -> list[Json]:
    list_of: list[Json] = body[{"gemini": "contents", "responses": "input"}.get(client, "messages")]
    return list_of


def only(client: Dialect, *dialects: Dialect) -> None:
    if client not in dialects:
        raise Unsaid


def in_system_parts(client: Dialect) -> Json:
    body = asking(system="Be brief.")(client)
    texts = ["Be brief.", f"Never say {SECRET} here."]
    match client:
        case "anthropic":
            body["system"] = [{"type": "text", "text": text} for text in texts]
        case "gemini":
            body["systemInstruction"]["parts"] = [{"text": text} for text in texts]
        case "openai":
            turns(client, body)[0]["content"] = [{"type": "text", "text": text} for text in texts]
        case "responses":
            parts = [{"type": "input_text", "text": text} for text in texts]
            turns(client, body).insert(0, {"role": "system", "content": parts})
    return body


def by_the_developer(client: Dialect) -> Json:
    only(client, "openai", "responses")
    body = asking()(client)
    turns(client, body).insert(0, {"role": "developer", "content": f"Never say {SECRET} here."})
    return body


def over_parts(*texts: str) -> Build:
    def build(client: Dialect) -> Json:
        body = asking()(client)
        in_parts(client, body, list(texts))
        return body

    return build


def over_messages(client: Dialect) -> Json:
    body = asking(text=f"{SECRET[20:]} it is")(client)
    first = asking(text=f"here is {SECRET[:20]}")(client)
    turns(client, body)[-1:] = [turns(client, first)[-1], turns(client, body)[-1]]
    return body


def by_name(client: Dialect) -> Json:
    only(client, "openai")
    body = asking()(client)
    turns(client, body)[-1]["name"] = SECRET
    return body


def in_a_document(client: Dialect) -> Json:
    body = asking()(client)
    attach(client, body, f"Never say {SECRET} here.")
    return body


def titled(client: Dialect) -> Json:
    only(client, "openai", "responses", "anthropic")
    body = asking()(client)
    attach(client, body, "Nothing to see.")
    document = parts_of(client, body)[0]
    if client == "anthropic":
        document["title"] = f"{SECRET}.txt"
    else:
        document.get("file", document)["filename"] = f"{SECRET}.txt"
    return body


def refused_before(client: Dialect) -> Json:
    only(client, "openai", "responses")
    body = asking(earlier=(("Do it.", "No."),))(client)
    turn = next(one for one in turns(client, body) if one["role"] == "assistant")
    said = {"type": "refusal", "refusal": f"I will not say {SECRET} here."}
    turn["content"] = [said]
    return body


def after_a_call(arguments: Mapping[str, str], result: str) -> Build:
    def build(client: Dialect) -> Json:
        return SPEAKERS[client].going_on(asking(tools=(WEATHER,))(client), called(client, dict(arguments)), [result])

    return build


def result_in_parts(client: Dialect) -> Json:
    only(client, "openai", "responses", "anthropic")
    body = after_a_call({"city": "Paris"}, "sunny")(client)
    parts = [{"type": "input_text" if client == "responses" else "text", "text": text} for text in ("sunny", SECRET)]
    last = turns(client, body)[-1]
    match client:
        case "responses":
            last["output"] = parts
        case "anthropic":
            last["content"][0]["content"] = parts
        case _:
            last["content"] = parts
    return body


def refusing(client: Dialect) -> Json:
    only(client, "openai", "responses", "anthropic")
    return asking(text="Do it #refuse")(client)


DESCRIBED = {**PLACE, "properties": {"city": {"type": "string", "description": f"Not {SECRET} here."}}}

PLACES = (
    Place("system", "text", asking(system=f"Never say {SECRET} here.")),
    Place("system", "one of two parts", in_system_parts),
    Place("developer", "text", by_the_developer),
    Place("user", "text", asking(text=f"What is {SECRET} for?")),
    Place("user", "one of several parts", over_parts("See here:", f"it is {SECRET}.", "Thanks.")),
    Place("user", "split over two parts", over_parts(f"it is {SECRET[:20]}", f"{SECRET[20:]}.")),
    Place("user", "split over two messages", over_messages),
    Place("user", "an earlier turn", asking(earlier=((f"I have {SECRET} here.", "Good."),))),
    Place("user", "name", by_name),
    Place("user", "document", in_a_document),
    Place("user", "title of a document", titled),
    Place("assistant", "text", asking(earlier=(("What is it?", f"It is {SECRET} indeed."),))),
    Place("assistant", "refusal", refused_before),
    Place("assistant", "tool arguments", after_a_call({"city": f"Paris {SECRET}"}, "sunny")),
    Place("tool", "result", after_a_call({"city": "Paris"}, f"sunny, says {SECRET}")),
    Place("tool", "result, JSON in it", after_a_call({"city": "Paris"}, json.dumps({"said": {"by": [SECRET]}}))),
    Place("tool", "result, one of two parts", result_in_parts),
    Place("tool", "definition", asking(tools=(Tool("weather", f"Ask with {SECRET} only.", PLACE),))),
    Place("tool", "schema of its arguments", asking(tools=(Tool("weather", "The weather.", DESCRIBED),))),
    Place("request", "schema of the answer", asking(schema={**DESCRIBED, "additionalProperties": False})),
    Place("request", "stop sequence", asking(stop=SECRET)),
    Place("answer", "text", asking(text=f"Say {SECRET} again"), answered=True),
    Place(
        "answer",
        "tool arguments",
        asking(text=f'#call weather {{"city": "in {SECRET}"}}', tools=(WEATHER,)),
        answered=True,
    ),
    Place("answer", "thoughts", asking(text="Think #reason", thinks=True), answered=True),
    Place("answer", "refusal", refusing, answered=True, kept=False),
)


@pytest.fixture(scope="module")
def covered(shared: Wall) -> Iterator[Mapping[tuple[Place, Dialect], str]]:
    """Of every cell: whole at first, whole out of the cache, and the same of a stream."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (fake_anthropic, fake_gemini, fake_openai_chat, fake_openai_responses):
            patch.setattr(module, "THOUGHT", f"They gave me {SECRET} to use.")
        for module in (fake_anthropic, fake_openai_chat, fake_openai_responses):
            patch.setattr(module, "REFUSAL", f"I will not use {SECRET} here.")
        yield {(place, client): cell(shared, place, client) for place in PLACES for client in ALL}


def cell(wall: Wall, place: Place, client: Dialect) -> str:
    try:
        return "".join(looked(wall, place, client, stream=stream) for stream in (False, True))
    except Unsaid:
        return UNSAID


def looked(wall: Wall, place: Place, client: Dialect, *, stream: bool) -> str:
    wall.reset()
    body = place.build(client)
    apart = {"x-keepgate-namespace": f"coverage-{place.role}-{place.part}-{client}-{stream}".replace(" ", "-")}
    endpoint = "answers" if place.answered else "default"
    first = wall.post(client, body, stream=stream, endpoint=endpoint, headers=apart)
    assert first.status_code == 200, (place, client, stream, first.text)
    heard = told(client, first, stream=stream)
    [call] = wall.fakes[client].calls
    sent = call.raw.decode()
    gone = place.answered or (not holds(sent, SECRET) and LABEL in revealed(sent))
    answers = [first]
    if place.kept:
        answers.append(found(lambda: hit(wall, client, body, stream, apart, endpoint=endpoint)))
    clean = [gone and is_clean(place, answer, client, heard, stream=stream) for answer in answers]
    return "".join(FINDS if one else LEAKS for one in clean) + ("" if place.kept else NOT_KEPT)


def is_clean(place: Place, answer: httpx.Response, client: Dialect, heard: object, *, stream: bool) -> bool:
    """The secret is gone, its label in its place, and nothing else of what was said at first is missing."""
    said = told(client, answer, stream=stream)
    if holds(repr(said), SECRET) or said != heard:
        return False
    # Around its output, a Response repeats what the client itself asked.
    return not place.answered or (SECRET not in answer.text and LABEL in f"{said} {answer.text}")


def table(covered: Mapping[tuple[Place, Dialect], str]) -> str:
    lines = ["| role | part | " + " | ".join(ALL) + " |", "|---|---|" + "---|" * len(ALL)]
    for place in PLACES:
        cells = " | ".join(covered[place, client] for client in ALL)
        lines.append(f"| {place.role} | {place.part} | {cells} |")
    return "\n".join(lines)


@pytest.mark.parametrize("client", ALL)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.role}-{place.part}".replace(" ", "-"))
def test_a_secret_is_found_wherever_the_dialect_has_a_place_for_it(
    covered: Mapping[tuple[Place, Dialect], str], place: Place, client: Dialect
) -> None:
    assert covered[place, client] in ((FINDS + (FINDS if place.kept else NOT_KEPT)) * 2, UNSAID)


def test_the_documentation_has_the_table_of_it(covered: Mapping[tuple[Place, Dialect], str]) -> None:
    page = (ROOT / "docs" / "guardrails.md").read_text(encoding="utf-8")

    assert page.split(BEGIN)[1].split(END)[0].strip() == table(covered)
