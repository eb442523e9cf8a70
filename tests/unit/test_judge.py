"""Which of the nearest may answer, by each kind of rule, and what is noted of those that may not."""

import math

import pytest

from backends.embedding.minilm import REVISION
from backends.vector.base import Neighbor
from models.completion import Completion, Usage
from service.caching.agreement import sketch
from service.caching.features import prepare
from service.caching.fit import default_fit
from service.caching.rule import Rule
from service.caching.stored import StoredQuestion, answer_text, payload, read, says_the_same, sketched
from service.caching.verifier import Verifier, load
from service.pipeline.outcomes import belongs
from service.pipeline.semantic_tier import Look, judge, look_at

ASKED = "How can I reset my password?"
SAME = "How do I reset my password?"
NUMBERS = "How can I reset my 2 passwords?"


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return load(REVISION)


def near(text: str, similarity: float, *, answer: str = "", alias_of: str = "") -> Neighbor:
    kept = StoredQuestion(text, sketch(answer) if answer else b"", alias_of)
    return Neighbor(f"id of {text}", similarity, payload(kept))


def test_a_cosine_serves_all_at_or_above_it_the_nearest_first() -> None:
    neighbors = [near("a b", 0.95), near("a c", 0.92), near("a d", 0.91)]

    assert judge("a e", neighbors, Rule("cosine", 0.92), None, 0.0).allowed == [0, 1]
    assert judge("a e", neighbors, Rule("cosine", 0.92), None, 0.94).allowed == [0]
    assert judge("a e", neighbors, Rule("cosine", 0.96), None, 0.0).allowed == []


@pytest.mark.parametrize("by", ["cosine", "verifier", "fit"])
def test_what_is_vetoed_answers_under_no_rule(verifier: Verifier, by: str) -> None:
    fit = default_fit(verifier=True, agreement=False)
    rule = Rule(by, -9.0 if by == "fit" else 0.0, fit=fit if by == "fit" else None)  # type: ignore[arg-type]

    judged = judge("How do I reset my 3 passwords?", [near(NUMBERS, 0.99)], rule, verifier, 0.0)

    assert judged.allowed == []
    assert judged.first is None


def test_the_likeliest_answers_and_not_the_nearest(verifier: Verifier) -> None:
    neighbors = [near("How can I reset my router?", 0.985), near(SAME, 0.98)]

    judged = judge(ASKED, neighbors, Rule("verifier", verifier.cut()), verifier, 0.0)

    assert judged.allowed[0] == 1


def test_a_floor_of_the_request_stands_above_every_rule(verifier: Verifier) -> None:
    fit = default_fit(verifier=True, agreement=False)
    for rule in (Rule("cosine", 0.5), Rule("verifier", 0.0), Rule("fit", -9.0, fit=fit)):
        assert judge(ASKED, [near(SAME, 0.98)], rule, verifier, 0.99).allowed == []
        assert judge(ASKED, [near(SAME, 0.98)], rule, verifier, 0.98).allowed == [0]


def test_what_a_limit_may_not_serve_yet_is_recorded(verifier: Verifier) -> None:
    fit = default_fit(verifier=True, agreement=False)
    neighbors = [near(SAME, 0.98)]

    by_chance = judge(ASKED, neighbors, Rule("verifier", 0.999, shadow=0.5), verifier, 0.0)
    by_fit = judge(ASKED, neighbors, Rule("fit", math.inf, shadow=0.0, fit=fit), verifier, 0.0)

    assert (by_chance.allowed, by_chance.shadow) == ([], 0)
    assert (by_fit.allowed, by_fit.shadow) == ([], 0)


def test_what_is_far_away_is_not_noted() -> None:
    assert judge(ASKED, [near("A recipe for bread", 0.3)], Rule("cosine", 0.92), None, 0.0).first is None


def test_a_look_knows_whether_the_others_answer_the_same(verifier: Verifier) -> None:
    answer = "Open Settings, choose Security, and press Reset password."
    alike = [near(f"{SAME} {n}", 0.98 - n / 100, answer=answer) for n in range(5)]
    apart = [near(f"{SAME} {n}", 0.98 - n / 100, answer=f"Another answer, of number {n}.") for n in range(5)]
    kept_before = [Neighbor(f"e{n}", 0.98 - n / 100, SAME.encode()) for n in range(5)]

    looks = [look_at(prepare(ASKED), found, 0, Rule("cosine", 0.9), verifier) for found in (alike, apart, kept_before)]

    agreements = [look.agreement for look in looks]
    assert [found and found.answers for found in agreements] == [1.0, 5.0, 5.0]
    assert all(look.chance is not None and look.chance > 0.5 for look in looks[:1])


def test_an_alias_stands_for_its_entry(verifier: Verifier) -> None:
    look = look_at(prepare(ASKED), [near(SAME, 0.98, alias_of="canonical")], 0, Rule("cosine", 0.9), verifier)

    assert look.entry == "canonical"


def test_a_fresh_answer_belongs_to_an_entry_where_question_and_answer_are_alike(verifier: Verifier) -> None:
    answer, other = sketch("Open Settings and press Reset."), sketch("Call us at any time, we are glad to help.")
    likely = Look("e", StoredQuestion(SAME, answer), 0.98, chance=0.95)
    unlikely = Look("e", StoredQuestion(SAME, answer), 0.98, chance=0.2)

    assert belongs(likely, answer, verifier) == "e"
    assert belongs(likely, other, verifier) == ""
    assert belongs(unlikely, answer, verifier) == ""
    assert belongs(Look("e", StoredQuestion(SAME), 0.98, chance=0.95), answer, verifier) == ""
    assert belongs(Look("e", StoredQuestion(SAME, answer), 0.95), answer, None) == "e"
    assert belongs(Look("e", StoredQuestion(SAME, answer), 0.85), answer, None) == ""
    assert belongs(None, answer, verifier) == ""


@pytest.mark.parametrize("text", ["", "\x93", "text", "\ud800 half", "问题", "x" * 100_000])
def test_what_is_kept_of_a_question_comes_back(text: str) -> None:
    kept = text.encode("utf-8", "replace").decode()

    assert read(payload(StoredQuestion(kept, b"s", "a"))) == StoredQuestion(kept, b"s", "a")
    assert read(kept.encode()) == StoredQuestion(kept)


def test_payloads_that_are_no_such_array_are_texts() -> None:
    assert read(b"\x93\xff\xff").text != ""


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"choices":[{"message":{"content":"Yes."}}]}', "Yes."),
        (b'{"choices":[{"message":{"content":null}}]}', ""),
        (b'{"choices":[{"message":{"content":"a"}},{"message":{"content":"b"}}]}', ""),
        (b'{"choices":[{"text":"Yes."}]}', ""),
        (b'{"data":[]}', ""),
        (b"[]", ""),
        (b"not JSON", ""),
    ],
)
def test_what_an_answer_says_is_compared_only_where_it_is_one_text(body: bytes, text: str) -> None:
    completion = Completion(body, "m", Usage())

    assert answer_text(completion) == text
    assert bool(sketched(completion)) == bool(text)
    assert says_the_same(sketched(completion), sketched(completion)) is (True if text else None)
