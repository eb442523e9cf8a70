"""Two requests have one identity exactly when they have one meaning."""

import copy
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.caching.identity import (
    NEUTRAL,
    Question,
    asked,
    before,
    exact_key,
    parent,
)
from service.caching.passages import Template


def question(body: dict[str, Any], meaning: Sequence[str]) -> Question | None:
    """`asked` with nothing set; None for any reason."""
    found = asked(body, meaning)
    return found if isinstance(found, Question) else None


ASKED: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "You sell shoes."},
        {"role": "user", "content": "Do you have boots?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "How much are they?"},
    ],
    "temperature": 0.2,
    "tools": [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}],
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
bodies = st.dictionaries(
    st.sampled_from(["messages", "temperature", "top_p", "tools", "response_format", "seed", "x_vendor"]),
    json_values,
    max_size=5,
)


def meaning_of(body: dict[str, Any]) -> str:
    """An independent canonical form: the standard library's, types told apart."""

    def told_apart(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: told_apart(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [told_apart(inner) for inner in value]
        return [type(value).__name__, repr(value)]

    said = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in body.items()
        if value is not None
    }
    return json.dumps(told_apart(said), sort_keys=True)


@given(one=bodies, other=bodies)
def test_different_bodies_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = exact_key(one, ("chat",)) == exact_key(other, ("chat",))

    assert same == (meaning_of(one) == meaning_of(other))


@given(
    body=bodies.filter(bool),
    data=st.data(),
)
def test_changing_any_one_field_changes_the_key(body: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(body)))
    value = data.draw(json_values)
    changed = {**body, name: value}

    same = exact_key(body, ()) == exact_key(changed, ())

    assert same == (meaning_of(body) == meaning_of(changed))


@given(one=st.lists(st.text(max_size=4), max_size=4), other=st.lists(st.text(max_size=4), max_size=4))
def test_meaning_beside_the_body_is_part_of_the_key(one: list[str], other: list[str]) -> None:
    same = exact_key(ASKED, tuple(one)) == exact_key(ASKED, tuple(other))

    assert same == (one == other)


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_neutral_field_does_not_change_the_key(name: str) -> None:
    assert exact_key({**ASKED, name: "anything"}, ()) == exact_key(ASKED, ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"max_tokens": 5}, {"max_completion_tokens": 5}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"n": 1, "logprobs": False, "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"response_format": {"type": "text"}, "seed": None}, {}),
        (
            {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}]},
            {"messages": [{"role": "system", "content": "Be kind."}]},
        ),
        ({"temperature": 0.0, "frequency_penalty": 0, "presence_penalty": 0.0}, {"temperature": 0}),
        ({"reasoning_budget": 0}, {"reasoning_effort": "none"}),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": False}}]},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"q": 1}'}}]}]},
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"q":1}'}}]}]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "auto"}}]}
                ]
            },
        ),
        (
            {"messages": [{"role": "assistant", "content": "Hi", "refusal": None, "annotations": []}]},
            {"messages": [{"role": "assistant", "content": "Hi"}]},
        ),
    ],
)
def test_two_ways_to_say_one_thing_have_one_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert exact_key({**ASKED, **one}, ()) == exact_key({**ASKED, **other}, ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"n": True}, {}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_completion_tokens": 5}),
        ({"stop": ["a", "b"]}, {"stop": "ab"}),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            {"messages": [{"role": "user", "content": "ab"}]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            {"messages": [{"role": "user", "content": "a"}]},
        ),
    ],
)
def test_what_only_looks_alike_has_two_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert exact_key({**ASKED, **one}, ()) != exact_key({**ASKED, **other}, ())


def test_an_unknown_field_changes_the_key() -> None:
    assert exact_key({**ASKED, "invented_tomorrow": 1}, ()) != exact_key(ASKED, ())


def test_key_order_and_white_space_of_the_json_do_not_change_the_key() -> None:
    spaced = json.dumps(dict(reversed(ASKED.items())), indent=4).encode()

    assert exact_key(msgspec.json.decode(spaced), ()) == exact_key(ASKED, ())


@pytest.mark.parametrize("text", ["how much are they?", "How much are they? ", "How  much are they?"])
def test_case_and_inner_white_space_are_meaning(text: str) -> None:
    other = copy.deepcopy(ASKED)
    other["messages"][-1]["content"] = text

    assert exact_key(other, ()) != exact_key(ASKED, ())


def test_two_names_for_one_route_share_a_key() -> None:
    assert exact_key({**ASKED, "model": "openai/gpt-4o"}, ("route",)) == exact_key(ASKED, ("route",))


def test_the_question_is_the_last_user_turn() -> None:
    asked = question(ASKED, ())

    assert asked is not None
    assert asked.text == "How much are they?"


def test_another_last_turn_has_the_same_namespace() -> None:
    other = copy.deepcopy(ASKED)
    other["messages"][-1]["content"] = "What do they cost?"

    asked, rephrased = question(ASKED, ()), question(other, ())

    assert asked is not None
    assert rephrased is not None
    assert asked.namespace == rephrased.namespace


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "system", "content": "You sell hats."}, *ASKED["messages"][1:]]},
        {"messages": ASKED["messages"][2:]},  # without the earlier turns "they" is something else
        {"messages": [*ASKED["messages"][:-1], {"role": "user", "name": "eve", "content": "How much are they?"}]},
        {"temperature": 0.3},
        {"tools": []},
        {"response_format": {"type": "json_object"}},
        {"seed": 1},
    ],
)
def test_everything_but_the_question_is_its_namespace(change: dict[str, Any]) -> None:
    asked, changed = question(ASKED, ()), question({**ASKED, **change}, ())

    assert asked is not None
    assert changed is not None
    assert asked.namespace != changed.namespace


def test_what_else_a_part_carries_is_identity() -> None:
    def asking(**more: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": "How much?", **more}]}]}

    plain, marked, other = question(asking(), ()), question(asking(x=1), ()), question(asking(x=2), ())

    assert plain is not None
    assert marked is not None
    assert other is not None
    assert plain.text == marked.text == "How much?"
    assert len({plain.namespace, marked.namespace, other.namespace}) == 3


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "Yes."},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]},
        {"role": "user", "content": None},
        {"role": "user"},
    ],
)
def test_there_is_no_question_in_other_last_messages(last: dict[str, Any]) -> None:
    assert question({"messages": [last]}, ()) is None


# --- the namespace: what may never be shared, and what makes no difference

PROMPT = "Answer based on the context below.\n\nContext: {passage}\n\nQuestion: {question}\nAnswer:"
words = st.text("abcdefgh ", min_size=1, max_size=12).map(str.strip).filter(bool)
histories = st.lists(st.tuples(words, words), max_size=3)


def found(body: dict[str, Any], meaning: tuple[str, ...] = (), **how: Any) -> Question:
    asking = asked(body, meaning, **how)
    assert isinstance(asking, Question)
    return asking


@st.composite
def meant(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[str, ...], str]:
    """A body, what is meant beside it, and all its meaning but the question, told apart by an independent rule."""
    system, passage = draw(words), draw(words)
    turns = draw(histories)
    asking = draw(st.sampled_from(["Who leads Acme?", "Who is the head of Acme?"]))
    tools = draw(st.lists(words, max_size=2))
    response_format = draw(st.sampled_from(["json_object", "json_schema", None]))
    temperature = draw(st.sampled_from([None, 0.0, 0.1]))
    route, policy, headers = draw(words), draw(words), draw(words)
    body: dict[str, Any] = {
        "model": draw(words),  # the route says which one it is
        "messages": [
            {"role": "system", "content": system},
            *(
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ),
            {"role": "user", "content": PROMPT.format(passage=passage, question=asking)},
        ],
        "user": draw(words),
        "metadata": {"trace": draw(words)},
        "stream": draw(st.booleans()),
    }
    if tools:
        body["tools"] = [{"type": "function", "function": {"name": name}} for name in tools]
    if response_format is not None:
        body["response_format"] = {"type": response_format}
    if temperature is not None:
        body["temperature"] = temperature
    different = [system, " ".join(passage.split()), turns, tools, response_format, temperature, route, policy, headers]
    return body, (route, policy, headers), json.dumps(different)


@given(one=meant(), other=meant())
def test_two_questions_share_a_namespace_exactly_when_all_else_is_equal(one: Any, other: Any) -> None:
    here, there = found(one[0], one[1]), found(other[0], other[1])

    assert (here.namespace == there.namespace) == (one[2] == other[2])


@given(one=meant(), data=st.data())
def test_one_change_anywhere_but_in_the_question_is_another_namespace(one: Any, data: st.DataObject) -> None:
    body, meaning, _ = one
    changed, beside = copy.deepcopy(body), list(meaning)
    word = data.draw(words)
    match data.draw(st.sampled_from(["system", "passage", "turn", "tools", "response_format", "seed", "meaning"])):
        case "system":
            changed["messages"][0]["content"] += word
        case "passage":
            changed["messages"][-1]["content"] = body["messages"][-1]["content"].replace(
                "Context: ", f"Context: {word}."
            )
        case "turn":
            changed["messages"][1:1] = [{"role": "user", "content": word}, {"role": "assistant", "content": word}]
        case "tools":
            changed.setdefault("tools", []).append({"type": "function", "function": {"name": word}})
        case "response_format":
            changed["response_format"] = {"type": "text", "x": word}
        case "seed":
            changed["seed"] = 7
        case _:
            beside[data.draw(st.integers(0, 2))] += "."

    assert found(changed, tuple(beside)).namespace != found(body, meaning).namespace


@given(one=meant(), name=st.sampled_from(sorted(NEUTRAL)), value=words)
def test_what_is_neutral_leaves_question_and_namespace(one: Any, name: str, value: str) -> None:
    body, meaning, _ = one

    assert found({**body, name: value, "model": value}, meaning) == found(body, meaning)


def chat(*turns: str, system: str = "You sell shoes.") -> dict[str, Any]:
    said = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
    return {"messages": [{"role": "system", "content": system}, *said]}


ALONE = "How tall is Mount Everest in meters?"


def test_a_rag_prompt_is_compared_by_its_question() -> None:
    body = chat(PROMPT.format(passage="Alice leads Acme.", question="Who leads Acme?"))

    assert (found(body).text, found(body).layout) == ("Who leads Acme?", "label")


def test_an_endpoints_template_comes_first() -> None:
    body = chat("Facts: Alice leads Acme. Ask: Who leads Acme?")

    asking = found(body, template=Template("Ask: (?P<question>.+)$"))

    assert (asking.text, asking.layout) == ("Who leads Acme?", "template")
    assert asking.namespace != found(chat("Facts: Bob leads Acme. Ask: Who leads Acme?")).namespace


def test_passages_in_parts_of_their_own_are_identity() -> None:
    def asking(passage: str) -> dict[str, Any]:
        parts = [{"type": "text", "text": passage}, {"type": "text", "text": "Who leads Acme?"}]
        return {"messages": [{"role": "user", "content": parts}]}

    alice, bob = found(asking("Alice leads Acme.")), found(asking("Bob leads Acme."))

    assert alice.text == bob.text == "Who leads Acme?"
    assert alice.layout == "parts"
    assert alice.namespace != bob.namespace


def test_an_image_is_identity_and_the_text_beside_it_the_question() -> None:
    def asking(text: str, data: str) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, image]}]}

    cat, also, dog = (
        found(asking("What is this?", "AA")),
        found(asking("What's it?", "AA")),
        found(asking("What?", "BB")),
    )

    assert cat.text == "What is this?"
    assert cat.namespace == also.namespace
    assert cat.namespace != dog.namespace


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ({"role": "tool", "content": "42", "tool_call_id": "c"}, "tools"),
        ({"role": "assistant", "content": "Yes."}, "not-text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]}, "not-text"),
        ({"role": "user", "content": ["Hi"]}, "not-text"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "not-text"),
        ({"role": "user", "content": "Translate the following sentence: The cat sat."}, "rag-unclear"),
        (
            {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "text", "text": "What?"}]},
            "rag-unclear",
        ),
    ],
)
def test_where_there_is_no_question_a_word_says_why(last: dict[str, Any], reason: str) -> None:
    assert asked({"messages": [last]}, ()) == reason


def test_a_turn_that_stands_alone_shares_with_first_turns_where_the_endpoint_says_so() -> None:
    first, later = chat(ALONE), chat("Do you have boots?", "Yes.", ALONE)

    let_go = found(later, keeping="last-turn-if-self-contained")

    assert let_go.history == "dropped"
    assert let_go.namespace == found(first).namespace
    assert found(later).namespace != found(first).namespace
    assert let_go.namespace != found(chat(ALONE, system="You sell hats.")).namespace


@pytest.mark.parametrize("text", ["and for kids?", "How much are they?", "What about boots?", "Why?"])
def test_a_leaning_turn_falls_back_to_all_of_its_history(text: str) -> None:
    one, other = chat("Do you have boots?", "Yes.", text), chat("Do you have hats?", "Yes.", text)

    here, there = (found(body, keeping="last-turn-if-self-contained") for body in (one, other))

    assert here.history == "full"
    assert here.namespace != there.namespace
    assert here.namespace == found(one).namespace


@pytest.mark.parametrize("keeping", ["full", "last-turn-if-self-contained", "last-turn"])
def test_results_of_tools_are_identity_whatever_the_endpoint_says(keeping: Any) -> None:
    def after(result: str) -> dict[str, Any]:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        turns = [
            {"role": "user", "content": "What is in stock?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": result},
            {"role": "assistant", "content": "See above."},
            {"role": "user", "content": ALONE},
        ]
        return {"messages": turns, "tools": [{"type": "function", "function": {"name": "f"}}]}

    assert found(after("boots"), keeping=keeping).namespace != found(after("hats"), keeping=keeping).namespace


def test_conversations_that_were_answered_alike_are_one_context() -> None:
    one = chat("Do you have boots?", "Yes.", "How much are they?")
    other = chat("Are there any boots here?", "Yes.", "How much are they?")
    entry = (parent("entry-1", "Yes."),)

    here, there = found(one, parents=entry), found(other, parents=entry)

    assert here.history == there.history == "parents"
    assert here.namespace == there.namespace
    assert here.namespace != found(one).namespace
    assert here.namespace != found(one, parents=(parent("entry-2", "Yes."),)).namespace
    assert here.namespace != found(one, parents=(parent("entry-1", "No."),)).namespace
    assert here.namespace != found({**chat(ALONE), "messages": [*one["messages"]], "seed": 1}, parents=entry).namespace


def test_parents_do_not_stand_for_what_is_more_than_text() -> None:
    body = chat("Do you have boots?", "Yes.", "How much are they?")
    body["messages"][1] = {"role": "user", "name": "eve", "content": "Do you have boots?"}

    assert found(body, parents=("p",)).history == "full"


def test_nobody_can_write_parents_into_a_request() -> None:
    body = chat("Do you have boots?", "Yes.", "How much are they?")
    forged = {"messages": [body["messages"][0], {"parents": ["p"]}, body["messages"][-1]]}

    assert found(forged).namespace != found(body, parents=("p",)).namespace


def test_a_turn_knows_which_request_the_one_before_it_answered() -> None:
    first = chat("Do you have boots?")
    follow = chat("Do you have boots?", "Yes.", "How much are they?")
    third = chat("Do you have boots?", "Yes.", "How much are they?", "Ten.", "And hats?")

    assert before(first, ("route",)) is None
    assert before(follow, ("route",)) == (exact_key(first, ("route",)), "Yes.")
    assert before(third, ("route",)) == (exact_key(follow, ("route",)), "Ten.")


def test_what_is_more_than_text_answered_no_request() -> None:
    follow = chat("Do you have boots?", "Yes.", "How much are they?")
    follow["messages"][1]["tool_calls"] = [{"id": "c", "type": "function", "function": {"name": "f"}}]

    assert before(follow, ("route",)) is None


def test_a_greeting_answered_no_request() -> None:
    greeted = [{"role": "assistant", "content": "Welcome."}, {"role": "user", "content": "Do you have boots?"}]

    assert before({"messages": greeted}, ()) is None
