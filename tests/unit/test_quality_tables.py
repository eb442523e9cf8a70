"""What the table of quality is made of: counts, intervals, what is compared with what, and the page around it."""

import dataclasses

import numpy as np
import pytest

from benchmarks.quality import BEGIN, END, Row, at_cosine, exact_interval, labels_table, losses, recall, table, written
from benchmarks.quality_sample import Figure, worse


@pytest.mark.parametrize(
    ("share", "found"),
    [
        (0.0, 0.5),  # above .8, the highest of the different
        (0.25, 0.75),  # one of four is served: above .6
        (0.5, 1.0),
    ],
)
def test_recall_counts_the_same_above_so_many_of_the_different(share: float, found: float) -> None:
    scores = np.array([0.95, 0.9, 0.7, 0.5, 0.8, 0.6, 0.4, 0.1])
    same = np.array([True, True, True, True, False, False, False, False])

    assert recall(scores, same, share) == found


def test_intervals_are_clopper_and_pearsons() -> None:
    low, high = exact_interval(0, 300)

    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 300))
    assert exact_interval(300, 300)[0] == pytest.approx(1 - high)
    assert exact_interval(5, 10) == pytest.approx((0.18709, 0.81291), abs=1e-5)


def test_a_threshold_takes_the_nearest_and_of_equals_the_first() -> None:
    assert at_cosine(0.8)("?", ["a", "b", "c"], [0.7, 0.9, 0.9]) == 1
    assert at_cosine(0.95)("?", ["a", "b"], [0.7, 0.9]) is None
    assert at_cosine(0.5)("?", [], []) is None


def test_tables_say_what_was_reached_and_what_was_not() -> None:
    reached = Row("pairs", "one", 0.123, 0.1, 0.15, 1_000, {"other": "1.0"}, "≥ 12", met=True)
    short = Row("pairs", "two", None, None, None, 0, {}, "≥ 12", met=False)

    assert table([reached, short])[2:] == [
        "| one | **12.3** | 10.0 to 15.0 | 1,000 | 1.0 | ≥ 12 | reached |",
        "| two | **–** |  | 0 |  | ≥ 12 | **not reached** |",
    ]


@pytest.mark.parametrize(
    ("ours", "rival", "more", "told"),
    [
        (0.2, 0.3, True, ["- row: 30.0 against 20.0"]),
        (0.3, 0.2, True, ["- None."]),
        (0.3, 0.2, False, ["- row: 20.0 against 30.0"]),
        (0.2, 0.2, False, ["- None."]),
        (0.2, None, True, ["- None."]),
        (None, 0.2, True, ["- None."]),
    ],
)
def test_what_a_threshold_does_better_is_said(
    ours: float | None, rival: float | None, more: bool, told: list[str]
) -> None:
    row = Row("pairs", "row", ours, None, None, 10, {}, rival=rival, more=more)

    assert losses([dataclasses.asdict(row)]) == told


def test_a_page_keeps_all_but_what_is_between_the_marks() -> None:
    assert written(f"before\n{BEGIN}\nold\n{END}\nafter\n", "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


@pytest.mark.parametrize("page", ["no marks", f"{END} the wrong way round {BEGIN}"])
def test_a_page_without_marks_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="lacks the marks"):
        written(page, "new")


def test_labels_are_those_that_certify() -> None:
    assert labels_table()[-1] == "| 5 % | 93 | 153 | 361 | 1,679 |"


@pytest.mark.parametrize(
    ("then", "now", "noticed"),
    [
        (Figure(0.5, 100, "more"), Figure(0.46, 100, "more"), False),
        (Figure(0.5, 100, "more"), Figure(0.44, 100, "more"), True),
        (Figure(0.5, 100, "more"), Figure(0.9, 100, "more"), False),
        (Figure(0.0, 20, "less"), Figure(0.05, 20, "less"), False),  # one of twenty
        (Figure(0.0, 20, "less"), Figure(0.1, 20, "less"), True),
        (Figure(0.09, 1_000, "less"), Figure(0.105, 1_000, "less"), False),
        (Figure(0.09, 1_000, "less"), Figure(0.11, 1_000, "less"), True),
    ],
)
def test_worse_is_below_nine_tenths_or_more_than_one_wrong_beyond(then: Figure, now: Figure, noticed: bool) -> None:
    assert bool(worse({"figure": now}, {"figure": then})) == noticed


def test_a_figure_that_is_gone_is_worse() -> None:
    one = Figure(0.5, 10, "more")

    assert worse({"new": one}, {"old": one}) == ["new: measured, and not recorded", "old: recorded, and not measured"]
