"""What an opinion changes, and who is asked for one."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from service.caching.second_opinion import DEFAULT, Weights, dump, read, undecided, weighed

CUT = 0.88
FITTED = Weights(
    bias=-0.3, chance=0.7, opinion=0.5, most=4.0, levels=((-1.0, -0.5), (0.0, 0.9), (1.0, 2.0), (2.5, 3.3))
)
SAVED: dict[str, Any] = {"judge": "j", "verifier": "v"}
chances = st.floats(0, 1)


def at_the_cut(_place: int, chance: float) -> bool:
    return chance >= CUT


@pytest.mark.parametrize("opinion", [None, math.nan, math.inf, -math.inf, -0.1, 1.1])
@pytest.mark.parametrize("weights", [DEFAULT, FITTED])
def test_no_opinion_changes_nothing(opinion: float | None, weights: Weights) -> None:
    assert [weighed(chance, opinion, weights) for chance in (0.0, 0.3, 0.9, 1.0)] == [0.0, 0.3, 0.9, 1.0]


@given(chances, chances, chances, st.sampled_from([DEFAULT, FITTED]))
def test_both_count_in_their_own_direction(chance: float, one: float, other: float, weights: Weights) -> None:
    low, high = sorted((one, other))

    assert weighed(chance, low, weights) <= weighed(chance, high, weights)
    assert weighed(low, chance, weights) <= weighed(high, chance, weights)
    assert 0.0 <= weighed(chance, one, weights) <= 1.0


@pytest.mark.parametrize(
    ("chance", "opinion", "served"),
    [
        (0.82, 1.0, False),  # beyond the verifier's cut of 2 %: nothing a judge says
        (0.83, 1.0, True),
        (0.83, 0.5, False),
        (0.88, 0.4, False),
        (0.95, 0.0, False),
        (0.96, 0.0, True),  # within its cut of .1 %: whatever a judge says
        (0.0, 1.0, False),
    ],
)
def test_a_judge_that_nobody_measured_moves_p_by_a_step(chance: float, opinion: float, served: bool) -> None:
    assert (weighed(chance, opinion) >= CUT) == served


def test_levels_say_which_p_a_sum_stands_for() -> None:
    weights = Weights(bias=0.0, chance=1.0, opinion=0.0, most=1.0, levels=((0.0, 1.0), (2.0, 2.0)))

    found = [weighed(1 / (1 + math.exp(-total)), 0.5, weights) for total in (-1.0, 0.0, 1.0, 2.0, 5.0)]

    expected = [0.0, 1.0, 1.5, 2.0, 5.0]
    assert found == pytest.approx([1 / (1 + math.exp(-one)) for one in expected])


@pytest.mark.parametrize(
    ("chances", "places"),
    [
        ([], []),
        ([0.85], [0]),
        ([0.9], [0]),
        ([0.99], []),  # served whatever is said
        ([0.5], []),  # not served whatever is said
        ([0.99, 0.85], []),  # the likelier one answers
        ([0.85, 0.99], []),
        ([0.84, 0.85, 0.5], [1, 0]),
        ([0.85, 0.85], [0, 1]),
        ([0.84, 0.85, 0.86, 0.87], [3, 2]),  # two at most
        ([None, None], []),  # vetoed
        ([None, 0.85], [1]),
        ([0.0, 0.0], []),
    ],
)
def test_only_the_likeliest_whose_opinion_could_matter_are_asked(
    chances: list[float | None], places: list[int]
) -> None:
    assert undecided(chances, at_the_cut) == [(place, chances[place]) for place in places]


@given(st.lists(st.none() | chances, max_size=10), st.sampled_from([DEFAULT, FITTED]))
def test_who_is_not_asked_could_not_have_changed_what_is_served(found: list[float | None], weights: Weights) -> None:
    places = {place for place, _ in undecided(found, at_the_cut, weights, most=10)}

    served = [place for place, one in enumerate(found) if one is not None and weighed(one, 0.0, weights) >= CUT]
    if not served:
        for place, one in enumerate(found):
            if place not in places and one is not None:
                assert weighed(one, 1.0, weights) < CUT
    assert all(found[place] is not None for place in places)


def test_what_was_written_is_read_again() -> None:
    again = read(dump(FITTED, **SAVED), **SAVED)

    assert (again.bias, again.chance, again.opinion, again.most, again.levels) == (-0.3, 0.7, 0.5, 4.0, FITTED.levels)
    assert again.revision.startswith("j/")


def test_other_weights_have_another_revision() -> None:
    other = Weights(bias=-0.3, chance=0.7, opinion=0.6, most=4.0)

    assert read(dump(FITTED, **SAVED), **SAVED).revision != read(dump(other, **SAVED), **SAVED).revision


@pytest.mark.parametrize("of", [{"judge": "other", "verifier": "v"}, {"judge": "j", "verifier": "other"}])
def test_weights_fitted_to_others_are_refused(of: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="fit them again"):
        read(dump(FITTED, **SAVED), **of)


@pytest.mark.parametrize(
    "change",
    [
        {"chance": 0},
        {"opinion": -1},
        {"most": -1},
        {"bias": math.nan},
        {"opinion": math.inf},
        {"levels": [[0, 1], [1, 0.5]]},
        {"levels": [[1, 0], [1, 2]]},
        {"levels": [[0, math.nan]]},
        {"levels": [[0]]},
        {"levels": None},
        {"bias": "much"},
        {"bias": None},
        {"format": 2},
    ],
)
def test_weights_that_cannot_be_used_are_refused(change: dict[str, Any]) -> None:
    content = json.dumps({**json.loads(dump(FITTED, **SAVED)), **change}).encode()

    with pytest.raises(ConfigError):
        read(content, **SAVED)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_what_is_no_such_file_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError):
        read(content, **SAVED)
