"""Eight numbers say whether the stored answers around a question agree."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.caching.agreement import LOOKED_AT, SKETCH, agree, agreement, agreements, alike, sketch

SIMILARITIES = [0.95, 0.90, 0.85, 0.80]


def test_says_what_the_neighbours_answers_are_like() -> None:
    found = agreement(SIMILARITIES, [0, 0, 1, 2])

    assert found.cosine == 0.95
    assert found.margin == pytest.approx(0.10)
    assert found.depth == pytest.approx(0.875 - 0.85)
    assert found.share == 0.2  # of ten, of which six are absent
    assert found.weighted == pytest.approx((1 + np.exp(-1)) / (1 + np.exp(-1) + np.exp(-2) + np.exp(-3)))
    assert found.three == pytest.approx(2 / 3)
    assert found.answers == 3
    assert found.mean == pytest.approx(0.90)


def test_another_answer_is_looked_for_beyond_the_ten() -> None:
    far = [0.9] * 14 + [0.6] + [0.5] * 5

    found = agreement(far, [0] * 14 + [1] + [0] * 5)

    assert found.margin == pytest.approx(0.3)
    assert (found.answers, found.share) == (1, 1)


def test_where_all_agree_another_answer_may_lie_right_behind_the_last() -> None:
    found = agreement([0.9, 0.8, 0.7], [0, 0, 0])

    assert found.margin == pytest.approx(0.2)


def test_a_lone_neighbour_has_nothing_to_agree_with() -> None:
    found = agreement([0.99], [0])

    assert (found.share, found.margin, found.depth) == (0.1, 0.0, 0.0)
    assert found.three == pytest.approx(1 / 3)


@pytest.mark.parametrize(("similarities", "answers"), [([], []), ([0.9], [0, 1])])
def test_refuses_what_is_no_neighbourhood(similarities: list[float], answers: list[int]) -> None:
    with pytest.raises(ValueError, match="neighbours"):
        agreement(similarities, answers)


@given(
    st.lists(
        st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(0, 4)), min_size=1, max_size=LOOKED_AT),
        min_size=1,
        max_size=5,
    )
)
def test_many_lookups_at_once_are_as_one_by_one(lookups: list[list[tuple[float, int]]]) -> None:
    lookups = [sorted(lookup, reverse=True) for lookup in lookups]
    similarities = np.zeros((len(lookups), LOOKED_AT), np.float32)
    answers = np.full((len(lookups), LOOKED_AT), -1, np.int64)
    for row, lookup in enumerate(lookups):
        similarities[row, : len(lookup)] = [similarity for similarity, _ in lookup]
        answers[row, : len(lookup)] = [answer for _, answer in lookup]

    together = agreements(similarities, answers)

    apart = [agreement([one for one, _ in lookup], [answer for _, answer in lookup]) for lookup in lookups]
    assert together == pytest.approx(np.array(apart), abs=1e-6)


def test_lookups_that_found_nothing_are_all_zero() -> None:
    found = agreements(np.zeros((2, LOOKED_AT), np.float32), np.full((2, LOOKED_AT), -1, np.int64))

    assert not found.any()


LONG = "You can change the delivery address in your account under Orders until the parcel has left our warehouse. "


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Yes.", "yes", True),
        ("It takes  two days.", "It takes two days!", True),
        ("Cafe\u0301", "Café", True),
        ("It takes 2 days.", "It takes 3 days.", False),
        (LONG + "It takes 2 days.", LONG + "This takes 2 days.", True),
        (LONG + "It takes 2 days.", LONG + "It takes 3 days.", False),
        (LONG + "Write to Anna.", LONG + "Write to Berta.", False),
        (LONG + "You may wait.", LONG + "You may not wait.", False),
        (LONG + "It's possible.", LONG + "It isn't possible.", False),
        ("Refunds arrive within a week.", "Our shop is open all summer.", False),
        ("退款需要三天", "退款需要三天。", True),
        ("退款需要三天", "我们的商店全年开放", False),
        ("👍", "👍", True),
        ("👍", "👎", False),
        ("", "", True),
        ("", "Yes.", False),
        ("\ud800", "\ud800", True),
    ],
)
def test_two_answers_agree_when_they_say_the_same(one: str, other: str, same: bool) -> None:
    assert agree(sketch(one), sketch(other)) is same


def test_long_answers_that_part_at_their_end_do_not_agree() -> None:
    long = LONG * 1_000

    assert agree(sketch(long + "Yes."), sketch(long + "Yes."))
    assert not agree(sketch(long + "Yes."), sketch(long + "Maybe."))


def test_an_answer_joins_the_first_that_it_agrees_with() -> None:
    sketches = [sketch(text) for text in ("Yes.", "No.", "yes", "NO", "Perhaps.")]

    assert alike(sketches) == [0, 1, 0, 1, 4]
    assert alike([]) == []


def test_behind_the_ten_only_the_first_is_asked() -> None:
    sketches = [sketch(text) for text in ("Yes.", *["No."] * 10, "Yes!", "No.")]

    assert alike(sketches) == [0, *[1] * 9, 10, 0, 12]


def test_words_in_common_count_where_the_facts_are_the_same() -> None:
    first = "you can change the address in your account until the parcel has left"

    texts = [first, first + " us", first + " our house", "we are sorry but this shop is closed for the winter"]

    assert alike([sketch(text) for text in texts]) == [0, 0, 0, 3]


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "1" * 100_000, "a1-" * 33_333, "x " * 50_000, "😀" * 100_000, "Not " * 25_000]
)
def test_any_answer_is_sketched_in_bounded_time(text: str) -> None:
    started = time.perf_counter()
    found = sketch(text)
    took = time.perf_counter() - started

    assert len(found) == SKETCH
    assert took < 0.5


@given(st.text(max_size=300))
def test_an_answer_agrees_with_itself(text: str) -> None:
    assert agree(sketch(text), sketch(text))
