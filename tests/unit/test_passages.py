"""Where the question of a prompt is, and what around it has to be equal."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.caching.passages import Template, TemplateError, cut, cut_parts

PASSAGE = "Alice leads Acme. She took over in 2019 and moved it to Oslo."
QUESTION = "Who leads Acme?"

LAYOUTS = {
    "label": "Use the following pieces of context to answer.\n\n{passage}\n\nQuestion: {question}\nHelpful Answer:",
    "label below": "Context:\n{passage}\n\n### Question:\n{question}\n\n### Answer:",
    "label first": "Question: {question}\nContext: {passage}\nAnswer:",
    "query": "Context information is below.\n-----\n{passage}\n-----\nAnswer the query.\nQuery: {question}\nAnswer:",
    "examples": "Question: Who leads Umbrella?\nAnswer: Bob\n\nContext: {passage}\nQuestion: {question}\nAnswer:",
    "tags": '<documents><document id="1">{passage}</document></documents>\n\n{question}',
    "question tag": "<context>{passage}</context> <question>{question}</question> Be brief.",
    "tags after": "{question}\n<passage>{passage}</passage>",
    "fence": 'Answer from this only.\n"""\n{passage}\n"""\n{question}',
    "announced": "Answer the question based on the context below.\n\n{passage}\n\n{question}",
    "announced after": "{question}\n\nUse these sources and cite them:\n[1] {passage}",
    "german": "Kontext unten, Antwort kurz.\n{passage}\nFrage: {question}\nAntwort:",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_question_is_found_in_common_layouts(layout: str) -> None:
    found = cut(LAYOUTS[layout].format(passage=PASSAGE, question=QUESTION))

    assert found is not None
    assert found.question == QUESTION
    assert "Alice leads Acme." in found.around


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_passage_is_another_prompt(layout: str) -> None:
    here = cut(LAYOUTS[layout].format(passage=PASSAGE, question=QUESTION))
    there = cut(LAYOUTS[layout].format(passage=PASSAGE.replace("Alice", "Bob"), question=QUESTION))

    assert here is not None
    assert there is not None
    assert here.question == there.question
    assert here.around != there.around


@pytest.mark.parametrize("layout", ["label", "tags", "announced"])
def test_white_space_around_the_question_means_nothing(layout: str) -> None:
    prompt = LAYOUTS[layout].format(passage=PASSAGE, question=QUESTION)

    assert cut(prompt) == cut(prompt.replace("in 2019", "in\n  2019").replace("\n\n", "\n\n\n") + "\n")


def test_white_space_in_a_fence_is_meaning() -> None:
    prompt = "What does this print?\n```\nif a:\n    b()\nc()\n```"

    one, other = cut(prompt), cut(prompt.replace("\nc()", "\n    c()"))

    assert one is not None
    assert other is not None
    assert one.question == other.question == "What does this print?"
    assert one.around != other.around


@pytest.mark.parametrize(
    "text",
    [
        "Who leads Acme?",
        "Hello,\n\nI cannot log in since I changed my phone. How do I reset it?\n\nThanks",
        "What is the context of Hamlet's monologue?",
        "How do I write a <div> in HTML?",
        "What does 'question: everything' mean?",
        "😀",
        "",
        "阿姆斯特丹在哪里？",
    ],
)
def test_a_plain_text_is_its_own_question(text: str) -> None:
    found = cut(text)

    assert found is not None
    assert (found.question, found.around, found.layout) == (text, "", "whole")


@pytest.mark.parametrize(
    "text",
    [
        "Translate the following sentence: The cat sat.",
        "Correct the given sentence.\n\nShe go home.",
        "Answer based on the context below.\n\nAlice leads Acme.\n\nBob leads Umbrella.",
        "Who leads Acme?\n\nUse the following context.\n\nDoes Alice lead Acme?",
        "Context: Alice leads Acme.",
        "Question:",
        "```\nunclosed fence\n",
        "<context>Alice leads Acme. Who leads Acme?",
        "<context>Alice leads Acme.</context>",
        "<question>Who?</question><question>What?</question><text>Alice</text>",
        "Summarize the following text: Alice leads Acme. Who leads Umbrella?",
    ],
)
def test_passages_without_a_clear_question_are_not_compared(text: str) -> None:
    assert cut(text) is None


def test_an_instruction_is_the_question_of_what_it_is_given() -> None:
    one, other = cut("Define the given word.\n\noblique"), cut("Define the given word.\n\nopaque")

    assert one is not None
    assert other is not None
    assert one.question == other.question == "Define the given word."
    assert one.around != other.around


def test_an_endpoints_template_says_where_the_question_is() -> None:
    template = Template(r"(?s)^FACTS\n.*\nASKED>(?P<question>[^<]*)<")

    found = cut("FACTS\nÉva mène Ácme.\nASKED> qui mène? <END", template)

    assert found is not None
    assert (found.question, found.layout) == ("qui mène?", "template")
    assert found.around == "FACTS Éva mène Ácme. ASKED>\0<END"


def test_a_text_that_is_not_of_the_template_is_looked_at_as_it_is() -> None:
    found = cut(QUESTION, Template("ASKED>(?P<question>.+)<"))

    assert found is not None
    assert found.layout == "whole"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("(", r"not an RE2 expression: missing \): \("),
        ("(?=a)(?P<question>b)", "not an RE2"),
        ("ASKED>(.*)", "no group"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(expression: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        Template(expression)


@pytest.mark.parametrize(
    ("texts", "question"),
    [
        ([PASSAGE, QUESTION], 1),
        ([QUESTION, PASSAGE, PASSAGE], 0),
        ([QUESTION, "Is Alice its leader?"], None),
        ([PASSAGE, PASSAGE], None),
        ([PASSAGE, "x" * 700 + "?"], None),
    ],
)
def test_of_several_parts_the_one_that_asks_is_the_question(texts: list[str], question: int | None) -> None:
    assert cut_parts(texts) == question


@given(st.text(max_size=300))
def test_nothing_of_a_text_is_lost(text: str) -> None:
    found = cut(text)

    if found is not None and found.layout != "whole":
        kept = found.around.replace("\0", found.question)
        assert "".join(kept.split()) == "".join(text.split())


@pytest.mark.parametrize(
    "piece",
    [
        *("a", "<text>", "</text><text>", "Question: ", "\nQuestion:\n", "```", '"""', "using the ", "\n\n", "    "),
        *("[1] ", "\nContext: x", "the following ", "<question>", "\n \n", "é", "😀", ". ", "\t\n"),
        "based on the following text: ",
    ],
)
def test_a_hostile_text_is_cut_in_a_moment(piece: str) -> None:
    text = piece * (100_000 // len(piece))

    # The quickest of three: a collection of everything the suite holds takes a second as well.
    assert min(_seconds(text) for _ in range(3)) < 0.5


def _seconds(text: str) -> float:
    started = time.process_time()
    cut(text)
    return time.process_time() - started
