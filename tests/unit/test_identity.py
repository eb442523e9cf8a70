"""Two requests have one identity exactly when they have one meaning."""

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.caching.identity import NEUTRAL, exact_key, question

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
