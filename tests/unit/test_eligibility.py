"""What may be answered from a similar request, and what may be kept."""

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.completion import Completion, Usage
from models.request import Operation, Request
from service.caching.eligibility import (
    LONGEST,
    RULES,
    SWITCHABLE,
    judge,
    keepable,
    names_a_container,
    not_semantic,
)


def asking(operation: Operation = "chat", **fields: Any) -> Request:
    return Request(operation, "m", fields, b"")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (asking(), None),
        (asking(temperature=0.3), None),
        (asking(temperature=0), None),
        (asking(temperature=None), None),
        (asking(n=1), None),
        (asking(temperature=0.31), "temperature"),
        (asking(n=2), "several-choices"),
        (asking(logprobs=True), "logprobs"),
        (asking(logprobs=False), None),
        (asking("completion"), "operation"),
        (asking("embedding"), "operation"),
    ],
)
def test_the_semantic_tier_leaves_some_requests_alone(request_: Request, reason: str | None) -> None:
    assert not_semantic(request_, max_temperature=0.3) == reason


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
FAR_IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}}
FAR_FILE = {"type": "file", "file": {"file_id": "file-1"}}
FUNCTION = {"type": "function", "function": {"name": "f"}}


def showing(*parts: dict[str, Any]) -> Request:
    return asking(messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}])


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (showing(IMAGE), None),
        (showing(SOUND, FILE), None),
        (showing(IMAGE, FAR_IMAGE), "media"),
        (showing(FAR_FILE), "media"),
        (showing({"type": "new_kind", "new_kind": "?"}), "media"),
        (asking(messages="nonsense"), None),
        (asking(tools=[FUNCTION]), None),
        (asking(tools=[FUNCTION], tool_choice="auto"), None),
        (asking(tools=[FUNCTION], tool_choice="none"), None),
        (asking(tools=[FUNCTION], tool_choice="required"), "tools"),
        (asking(tools=[FUNCTION], tool_choice={"type": "function", "function": {"name": "f"}}), "tools"),
        (asking(tools=[{"type": "web_search"}]), "live-tools"),
        (asking(web_search_options={}), "live-tools"),
        (Request("chat", "m", {}, b"", beyond={"tools[0]": {"type": "web_search_20250305"}}), "live-tools"),
        (Request("chat", "m", {}, b"", beyond={"tools[1].googleSearch": {}}), "live-tools"),
        (Request("chat", "m", {}, b"", beyond={"tools[0].strict": None}), None),
    ],
)
def test_a_request_whose_answer_rests_on_more_than_its_text_is_left_alone(
    request_: Request, reason: str | None
) -> None:
    assert not_semantic(request_, max_temperature=0.3) == reason


WORDED = {
    "fresh": [
        "What is the latest iPhone?",
        "who is the current president of france",
        "What's the weather in Lisbon?",
        "Is the shop open today?",
        "where is the singer now",
        "Who won the match last night?",
        "Wie wird das Wetter heute?",
        "¿Quién es el presidente actualmente?",
        "Quelle heure est-il maintenant ?",
        "Qual é a cotação do dólar hoje?",
        "今天天气怎么样",
    ],
    "own-state": [
        "What is my balance?",
        "where is my order",
        "When will my package arrive?",
        "how much money do i have in savings",
        "Has my refund been processed?",
        "please tell me the status of my application",
        "do i have any meetings",
        "What's my Wi-Fi password?",
    ],
    "action": [
        "Cancel my order",
        "please cancel my reservation at the Ritz",
        "Send an email to Bob",
        "can you book me a table for two",
        "Hi, please freeze my card immediately!",
        "I want to close my account.",
        "turn off the lights",
        "set an alarm for six",
        "add milk to my shopping list",
        "Delete my account",
    ],
}
REUSABLE = [
    "How do I cancel my order?",
    "How can I change my PIN?",
    "What should I do if my card is lost?",
    "Can I use my card in Norway?",
    "Where can I see my transactions?",
    "Is there a way to track my parcel?",
    "Why was my card declined?",
    "What are my options for a refund?",
    "My top-up did not work this morning. How do I fix it?",
    "I bought shoes yesterday. Can I return them?",
    "What is alternating current?",
    "What is a current account?",
    "What happens when a payment fails?",
    "Can you buy a phone without a contract?",
    "Write a poem about autumn",
    "Summarize the plot of Hamlet",
    "Play the role of an interviewer",
    "Add 17 and 25",
    "Sort these numbers: 3, 1, 2",
    "What does 'carpe diem' mean?",
    "Wie setze ich mein Passwort zurück?",
    "¿Cómo puedo cambiar mi contraseña?",
    "如何更改我的密码？",
]


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, texts in WORDED.items() for text in texts])
def test_wording_says_that_an_answer_is_not_reusable(reason: str, text: str) -> None:
    assert judge(asking(), text) == reason


@pytest.mark.parametrize("text", REUSABLE)
def test_a_plainly_reusable_question_stays_eligible(text: str) -> None:
    assert judge(asking(), text) is None


@pytest.mark.parametrize("text", ["", "  \n", "😀😀", "?!"])
def test_a_text_without_words_is_not_compared(text: str) -> None:
    assert judge(asking(), text) == "not-text"


def test_a_text_beyond_the_window_is_not_compared() -> None:
    assert judge(asking(), "word " * LONGEST) == "too-long"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("freshness", "What is the latest iPhone?"),
        ("day", "Is the shop open today?"),
        ("own-state", "What is my balance?"),
        ("action", "Cancel my order"),
        ("wish", "I want to close my account."),
    ],
)
def test_each_rule_can_be_switched_off(rule: str, text: str) -> None:
    assert judge(asking(), text) is not None
    assert judge(asking(), text, off={rule}) is None
    assert rule in SWITCHABLE


def test_rules_have_names_of_their_own_and_the_first_that_applies_gives_the_reason() -> None:
    names = [rule.name for rule in RULES]

    assert len(set(names)) == len(names)
    assert judge(asking(n=2), "Cancel my order") == "several-choices"
    assert judge(asking(n=2), "Cancel my order", off={"several-choices"}) == "action"


@given(st.text(max_size=300))
def test_any_text_is_judged(text: str) -> None:
    assert judge(asking(), text) in {None, *(rule.reason for rule in RULES)}


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "my ",
        "list ",
        "today ",
        "why i ",
        "add a to ",
        "please ",
        "i want to ",
        "what is my ",
        "现在",
        "é",
        "now, ",
    ],
)
def test_a_hostile_text_is_judged_in_a_moment(piece: str) -> None:
    started = time.process_time()

    judge(asking(), piece * 100_000)
    judge(asking(), (piece * LONGEST)[:LONGEST])

    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("finished", "kept"),
    [
        (("stop",), True),
        ((), True),  # embeddings
        (("length",), False),
        (("tool_calls",), False),
        (("content_filter",), False),
        (("None",), False),
        (("stop", "length"), False),
    ],
)
def test_only_answers_that_finished_are_kept(finished: tuple[str, ...], kept: bool) -> None:
    completion = Completion(b"{}", "m", Usage(), finished)

    assert keepable(completion, frozenset({"stop"})) is kept


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ({"choices": [{"message": {"content": "Hi"}}]}, False),
        ({"choices": [{"message": {"content": '{"container": "web", "container_id": 1}'}}]}, False),
        ({"choices": [], "provider_fields": {"container": None}}, False),
        ({"choices": [], "provider_fields": {"container": {"id": "c"}}}, True),
        ({"choices": [{"provider_fields": {"container": {"id": "c"}}}]}, True),
        ({"choices": [{"message": {"provider_content": [{"block": {"type": "x", "container_id": "c"}}]}}]}, True),
        ({"choices": [{"message": {"annotations": [{"container_id": "c", "file_id": "f"}]}}]}, True),
    ],
)
def test_the_id_of_a_container_is_found_wherever_it_is(answer: dict[str, Any], named: object) -> None:
    completion = Completion(msgspec.json.encode(answer), "m", Usage(), ("stop",))

    assert names_a_container(completion) is named
