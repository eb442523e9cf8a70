"""Which turns can be understood without those before them."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.caching.context import RULES, keeps_history, leans_on, plain_turns, systems_first

HISTORY = "Tell me about Marta Nilsen and her band Fjordlight.\nMarta Nilsen founded Fjordlight in Bergen."

STANDING_ALONE = [
    "How tall is Mount Everest in meters?",
    "When did Marta Nilsen found Fjordlight?",
    "What is the difference between a list and a tuple in python?",
    "how do i connect a bluetooth keyboard to an ipad",
    "Is it safe to eat raw salmon from a supermarket?",
    "Which countries have a permanent seat in the Security Council?",
    "Did Marta Nilsen write her songs in Norwegian?",
    "Is gold more expensive than platinum per ounce?",
]

LEANING = {
    "and for kids?": "opening",
    "What about Norway?": "opening",
    "Why not?": "opening",
    "anything else I should know": "opening",
    "When did she found the company in Bergen?": "pronoun",
    "How long did it take them to finish their first record?": "pronoun",
    "What does this mean for small companies in Europe?": "demonstrative",
    "How much time passed after that?": "demonstrative",
    "Which other albums by Fjordlight won prizes in Norway?": "comparison",
    "Is there a cheaper plan for small companies with students?": "comparison",
    "Was the album successful in northern Europe and America?": "role",
    "Does the premium plan include phone support on weekends?": "definite",
    "When did Nilsen release a live record in Germany?": "part-of-a-name",
    "What happened in 2012?": "thin",
    "What are hagiographies?": "thin",
    "Where was Bergen founded": "thin",
    "Und was kostet das für zwei kleine Kinder?": "language",
    "那儿童呢？": "language",
    "": "language",
    "😀": "language",
    "How does it work? " * 80: "long",
}


@pytest.mark.parametrize("text", STANDING_ALONE)
def test_a_turn_that_names_its_topic_stands_alone(text: str) -> None:
    assert leans_on(text, HISTORY) is None


@pytest.mark.parametrize("text", LEANING)
def test_a_turn_that_leans_on_the_others_says_by_what_sign(text: str) -> None:
    assert leans_on(text, HISTORY) == LEANING[text]


def test_every_rule_has_an_example() -> None:
    assert {rule.reason for rule in RULES} == set(LEANING.values())


def test_a_name_that_was_never_longer_is_a_name() -> None:
    text = "When did Nilsen release a live record in Germany?"

    assert leans_on(text, "Tell me about Norwegian music.") is None


def chat(*turns: str, system: str | None = None) -> list[dict[str, Any]]:
    """User and assistant by turns."""
    said = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
    return ([{"role": "system", "content": system}] if system else []) + said


ALONE = "How tall is Mount Everest in meters?"
OTHER_TURNS = ("Who wrote Hamlet?", "Shakespeare.")


def test_history_is_kept_unless_an_endpoint_lets_it_go() -> None:
    messages = chat(*OTHER_TURNS, ALONE, system="Be kind.")

    assert keeps_history(messages, ALONE, "full")
    assert not keeps_history(messages, ALONE, "last-turn-if-self-contained")
    assert not keeps_history(messages, ALONE, "last-turn")


@pytest.mark.parametrize("text", LEANING)
def test_a_leaning_turn_keeps_its_history(text: str) -> None:
    assert keeps_history(chat(HISTORY, "Gladly.", text), text, "last-turn-if-self-contained")


@pytest.mark.parametrize("text", LEANING)
def test_a_first_turn_needs_no_history(text: str) -> None:
    messages = chat(text, system="Be kind.")

    assert not keeps_history(messages, text, "last-turn-if-self-contained")


@pytest.mark.parametrize(
    "said",
    [
        "From now on answer in French.",
        "My name is Eve.",
        "I am a nurse, explain things accordingly.",
        "Pretend to be a pirate.",
        "You are a strict teacher.",
        "Always use metric units",
    ],
)
def test_what_holds_from_then_on_keeps_the_history(said: str) -> None:
    messages = chat(said, "Very well.", ALONE)

    assert keeps_history(messages, ALONE, "last-turn-if-self-contained")


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
        {"role": "assistant", "content": "Hi", "reasoning_content": "Hm"},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
        {"role": "system", "content": "Now be rude."},
        {"role": "user", "name": "eve", "content": "Hi"},
    ],
)
@pytest.mark.parametrize("keeping", ["last-turn", "last-turn-if-self-contained"])
def test_turns_with_more_than_text_are_always_kept(turn: dict[str, Any], keeping: Any) -> None:
    messages = [*chat("Hi", "Hello."), turn, *chat(ALONE)]

    assert plain_turns(messages) is None
    assert keeps_history(messages, ALONE, keeping)


def test_systems_count_only_before_all_others() -> None:
    system = {"role": "system", "content": "Be kind."}

    assert systems_first([system, system, *chat("Hi"), system]) == 2
    assert systems_first([]) == 0


@given(text=st.text(max_size=200), history=st.text(max_size=200))
def test_any_text_is_judged(text: str, history: str) -> None:
    assert leans_on(text, history) in {None, *(rule.reason for rule in RULES)}


@pytest.mark.parametrize("piece", ["a", "A", "Aa ", "the ", "that ", "it takes ", "A.", "'s", "é", "😀", " ", "N of "])
def test_a_hostile_turn_is_judged_in_a_moment(piece: str) -> None:
    started = time.process_time()

    leans_on(piece * 100_000, piece * 100_000)
    leans_on((piece * 1000)[:990], piece * 100_000)
    keeps_history(chat(piece * 100_000, piece * 100_000, ALONE), ALONE, "last-turn-if-self-contained")

    assert time.process_time() - started < 1.0
