"""A certificate says what labels prove, and a shortfall what they do not."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.caching.certificate import (
    Certificate,
    Curve,
    Label,
    Labeller,
    Origin,
    Shortfall,
    certify,
    expected_curve,
    incomplete_beta,
    labelled_by,
    needed,
    settle,
    upper_bound,
)

ORIGIN = Origin(
    labelled_by="people", embedder="minilm@1", verifier="trees@1", data="pairs.jsonl@2", date="2026-11-20T10:00:00Z"
)
CUTS = [0.9, 0.8, 0.7, 0.6, 0.5]
CURVE = Curve(cuts=CUTS, wrong=[0.001, 0.004, 0.01, 0.02, 0.05])


def lookups(*groups: tuple[float, int, int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(score, how many, how many of them wrong) each."""
    scores = np.concatenate([np.full(n, score) for score, n, _ in groups])
    wrong = np.concatenate([np.arange(n) < bad for _, n, bad in groups])
    return scores, wrong


@pytest.mark.parametrize(
    ("wrong", "served", "confidence", "bound"),
    [
        # In closed form.
        (0, 1, 0.95, 0.95),
        (0, 299, 0.95, 1 - 0.05 ** (1 / 299)),
        (10, 10, 0.95, 1.0),
        (0, 0, 0.95, 1.0),
        # The upper ends of the exact 95 % intervals in Newcombe 1998, table I.
        (81, 263, 0.975, 0.3676),
        (15, 148, 0.975, 0.1617),
        (0, 20, 0.975, 0.1684),
        (1, 29, 0.975, 0.1776),
    ],
)
def test_the_bound_is_clopper_and_pearsons(wrong: int, served: int, confidence: float, bound: float) -> None:
    assert upper_bound(wrong, served, confidence) == pytest.approx(bound, abs=6e-5)


@given(st.integers(1, 5_000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_bound_is_where_so_few_errors_become_unlikely(served: int, share: float, confidence: float) -> None:
    wrong = min(int(share * served), served - 1)
    bound = upper_bound(wrong, served, confidence)

    at_most = sum(
        math.exp(
            math.lgamma(served + 1)
            - math.lgamma(k + 1)
            - math.lgamma(served - k + 1)
            + k * math.log(bound)
            + (served - k) * math.log1p(-bound)
        )
        for k in range(wrong + 1)
    )
    assert at_most == pytest.approx(1 - confidence, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "x", "value"),
    [
        (1.0, 1.0, 0.3, 0.3),
        (2.0, 1.0, 0.3, 0.09),
        (1.0, 3.0, 0.2, 1 - 0.8**3),
        (0.5, 0.5, 0.5, 0.5),
        (2.0, 3.0, 0.5, 0.6875),
        (5.0, 5.0, 0.0, 0.0),
        (5.0, 5.0, 1.0, 1.0),
    ],
)
def test_the_incomplete_beta_function_has_its_known_values(a: float, b: float, x: float, value: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(value, abs=1e-12)


def test_the_loosest_cut_that_passes_is_certified() -> None:
    scores, wrong = lookups((0.95, 300, 0), (0.85, 300, 0), (0.75, 300, 2), (0.65, 300, 30), (0.55, 300, 0))

    found = certify(scores, wrong, limit=0.01, curve=CURVE, origin=ORIGIN)

    assert isinstance(found, Certificate)
    assert (found.cut, found.served, found.wrong, found.samples) == (0.7, 900, 2, 1500)
    assert found.upper == upper_bound(2, 900) <= 0.01
    assert found.certifies


def test_the_walk_stops_at_the_first_failure_though_a_looser_cut_would_pass() -> None:
    scores, wrong = lookups((0.95, 500, 0), (0.75, 100, 6), (0.55, 3000, 0))
    curve = Curve(cuts=CUTS, wrong=[0.001, 0.001, 0.02, 0.02, 0.02])

    found = certify(scores, wrong, limit=0.01, curve=curve, origin=ORIGIN)

    assert isinstance(found, Certificate)
    assert found.cut == 0.8


def test_one_early_error_does_not_end_the_walk() -> None:
    scores, wrong = lookups((0.95, 20, 1), (0.85, 2000, 4))

    found = certify(scores, wrong, limit=0.01, curve=CURVE, origin=ORIGIN)

    assert isinstance(found, Certificate)
    assert found.cut <= 0.8


def test_where_the_walk_begins_depends_on_no_label() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.4, 1.0, 400)
    tried = {
        found.cut
        for seed in range(5)
        if isinstance(
            found := certify(
                scores, np.random.default_rng(seed).random(400) < 0.5, limit=0.02, curve=CURVE, origin=ORIGIN
            ),
            Shortfall,
        )
    }

    assert len(tried) == 1


def test_too_few_labels_fall_short_by_a_number() -> None:
    scores, wrong = lookups((0.95, 100, 0))

    found = certify(scores, wrong, limit=0.01, curve=CURVE, origin=ORIGIN)

    assert isinstance(found, Shortfall)
    assert found.reason == "too-few"
    total = needed(0.01, 0.001)
    assert total is not None
    assert found.missing == total - 100


def test_all_wrong_is_no_matter_of_numbers() -> None:
    scores, wrong = lookups((0.95, 1000, 1000))

    found = certify(scores, wrong, limit=0.01, curve=CURVE, origin=ORIGIN)

    assert isinstance(found, Shortfall)
    assert (found.reason, found.served, found.wrong, found.upper) == ("too-often-wrong", 1000, 1000, 1.0)


def test_where_errors_are_expected_no_number_of_labels_would_do() -> None:
    scores, wrong = lookups((0.95, 1000, 100))

    found = certify(scores, wrong, limit=0.01, curve=Curve(cuts=[0.9], wrong=[0.1]), origin=ORIGIN)

    assert isinstance(found, Shortfall)
    assert found.missing is None


@pytest.mark.parametrize(("score", "count", "reason"), [(0.1, 50, "none-served"), (0.9, 0, "no-labels")])
def test_nothing_served_certifies_nothing(score: float, count: int, reason: str) -> None:
    scores, wrong = lookups((score, count, 0))

    found = certify(scores, wrong, limit=0.05, curve=CURVE, origin=ORIGIN)

    assert isinstance(found, Shortfall)
    assert (found.reason, found.cut, found.served) == (reason, None, 0)


@pytest.mark.parametrize(
    ("scores", "wrong", "limit", "confidence"),
    [
        ([0.5], [False], 0.0, 0.95),
        ([0.5], [False], 1.0, 0.95),
        ([0.5], [False], 0.01, 1.0),
        ([math.nan], [False], 0.01, 0.95),
        ([0.5], [False, True], 0.01, 0.95),
    ],
)
def test_refuses_what_makes_no_sense(scores: list[float], wrong: list[bool], limit: float, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"limit|confidence|finite|each a lookup"):
        certify(np.array(scores), np.array(wrong), limit=limit, confidence=confidence, curve=CURVE, origin=ORIGIN)


def test_a_limit_is_broken_in_no_more_than_one_sample_of_twenty() -> None:
    # True shares at the cuts: .2 %, .6 %, 1.0 %, 1.4 %, 1.8 % of those served; the limit is 1 %.
    bands = np.array([0.002, 0.010, 0.018, 0.026, 0.034])
    true = np.cumsum(bands) / np.arange(1, 6)
    curve = Curve(cuts=CUTS, wrong=true.tolist())
    rng = np.random.default_rng(7)
    broken = certified = 0
    for _ in range(600):
        band = rng.integers(0, 5, 4000)
        found = certify(
            np.array(CUTS)[band] + 0.05, rng.random(4000) < bands[band], limit=0.0099, curve=curve, origin=ORIGIN
        )
        if isinstance(found, Certificate):
            certified += 1
            broken += bool(true[CUTS.index(found.cut)] > 0.0099)

    assert certified > 300
    # 5 % of 600 are 30; 45 are three standard deviations more.
    assert broken <= 45


@pytest.mark.parametrize(
    ("limit", "rate", "labels"), [(0.05, None, 361), (0.02, None, 969), (0.01, None, 1_941), (0.01, 0.00075, 473)]
)
def test_a_limit_needs_so_many_labels(limit: float, rate: float | None, labels: int) -> None:
    assert needed(limit, rate) == labels


def test_299_flawless_labels_do_only_where_hardly_anything_is_wrong() -> None:
    assert upper_bound(0, 299) <= 0.01 < upper_bound(0, 298)
    assert needed(0.01, 0.00074) == 299


def test_more_labels_are_needed_where_few_are_served() -> None:
    assert needed(0.02, share=0.25) == 4 * 969


@pytest.mark.parametrize(("rate", "share"), [(0.01, 1.0), (0.5, 1.0), (0.009999, 1.0), (0.001, 0.0)])
def test_a_limit_that_is_not_kept_is_out_of_reach(rate: float, share: float) -> None:
    assert needed(0.01, rate, share=share) is None


def test_a_curve_counts_what_is_expected_of_the_scores_above_each_cut() -> None:
    curve = expected_curve(np.array([0.95, 0.85, 0.2]), np.array([0.0, 0.5, 1.0]), [0.9, 0.8, 0.1, 0.0])

    assert curve.wrong == pytest.approx([0.5 / 2, 1.0 / 3, 2.0 / 4, 2.0 / 4])


def label(asked: str, stored: str, by: Labeller = "people", *, wrong: bool) -> Label:
    return Label(asked=asked, stored=stored, wrong=wrong, by=by)


def test_a_pair_that_is_labelled_twice_counts_once() -> None:
    settled = settle([label("a", "b", wrong=False), label("a", "b", wrong=False), label("a", "c", wrong=False)])

    assert [(one.stored, one.wrong) for one in settled.labels] == [("b", False), ("c", False)]
    assert (settled.repeated, settled.contradictory) == (1, 0)


@pytest.mark.parametrize("first", [True, False])
def test_contradictory_labels_count_as_wrong(first: bool) -> None:
    settled = settle([label("a", "b", wrong=first), label("a", "b", wrong=not first)])

    assert [one.wrong for one in settled.labels] == [True]
    assert settled.contradictory == 1


def test_people_outweigh_a_judge_and_a_judge_outweighs_a_comparison() -> None:
    settled = settle(
        [
            label("a", "b", "automatic", wrong=True),
            label("a", "b", "judge", wrong=True),
            label("a", "b", "judge", wrong=False),
            label("a", "b", "people", wrong=False),
            label("a", "b", "automatic", wrong=True),
        ]
    )

    assert [(one.wrong, one.by) for one in settled.labels] == [(False, "people")]
    assert settled.contradictory == 0


def test_a_certificate_is_worth_no_more_than_the_least_of_its_labellers() -> None:
    labels = [label("a", "b", "people", wrong=False), label("a", "c", "judge", wrong=False)]

    assert labelled_by(labels) == "judge"


def test_what_was_compared_automatically_only_informs() -> None:
    scores, wrong = lookups((0.95, 5000, 0))
    origin = msgspec.structs.replace(ORIGIN, labelled_by="automatic")

    found = certify(scores, wrong, limit=0.01, curve=CURVE, origin=origin)

    assert isinstance(found, Certificate)
    assert not found.certifies


def test_a_certificate_survives_json() -> None:
    scores, wrong = lookups((0.95, 5000, 3))
    found = certify(scores, wrong, limit=0.01, curve=CURVE, origin=ORIGIN)

    assert msgspec.json.decode(msgspec.json.encode(found), type=Certificate) == found
