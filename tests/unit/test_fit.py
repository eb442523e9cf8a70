"""An endpoint's own score: its labels where it has them, what was learned elsewhere where it has not."""

import math

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from service.caching.agreement import Agreement, agreement
from service.caching.certificate import Certificate, Origin, certify
from service.caching.fit import COLUMNS, CUTS, Fit, default_fit, features_of, fit

ALONE = agreement([0.9], [0])


def lookups(n: int, *, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Lookups in which the verifier and agreement tell right from wrong better than cosine does."""
    rng = np.random.default_rng(seed)
    right = rng.random(n) < 0.7
    cosine = np.clip(rng.normal(np.where(right, 0.88, 0.84), 0.05), -1, 1)
    verified = 1 / (1 + np.exp(-rng.normal(np.where(right, 2.0, -2.0), 1.5)))
    share = np.clip(rng.normal(np.where(right, 0.9, 0.5), 0.15), 0.1, 1)
    around = np.column_stack([cosine, share / 4, share / 5, share, share, share, 4 - 3 * share, cosine - 0.02])
    return features_of(cosine, verified, around), ~right


@pytest.mark.parametrize("verifier", [True, False])
@pytest.mark.parametrize("agreement", [True, False])
def test_without_a_label_what_is_shipped_decides(verifier: bool, agreement: bool) -> None:
    shipped = default_fit(verifier=verifier, agreement=agreement)

    assert shipped.columns[0] == "cosine"
    assert ("verifier" in shipped.columns, "share" in shipped.columns) == (verifier, agreement)
    assert shipped.labels == 0


def test_with_no_labels_the_fit_is_the_shipped_one() -> None:
    features, wrong = lookups(0)

    found = fit(features, wrong)

    shipped = default_fit(verifier=True, agreement=True)
    assert found.fit.columns == shipped.columns
    assert found.fit.weights == pytest.approx(shipped.weights)
    assert len(found.scores) == 0


def test_a_few_labels_move_it_a_little_and_many_far() -> None:
    shipped = np.array(default_fit(verifier=True, agreement=True).weights)

    few, many = (np.array(fit(*lookups(n)).fit.weights) for n in (5, 5_000))

    assert 0 < np.abs(few - shipped).max() < 0.5 < np.abs(many - shipped).max()


def test_agreement_and_verifier_are_used_where_they_help() -> None:
    found = fit(*lookups(3_000))

    assert {"cosine", "verifier", "share"} <= set(found.fit.columns)


def test_what_says_nothing_is_left_out() -> None:
    rng = np.random.default_rng(1)
    features, wrong = lookups(600)
    features[:, 1] = rng.random(600)
    features[:, 2:] = rng.normal(0.5, 0.3, (600, 7))
    features[:, 0] = np.where(wrong, 0.7, 0.9) + rng.normal(0, 0.1, 600)

    assert fit(features, wrong).fit.columns == ["cosine"]


@pytest.mark.parametrize("missing", [slice(1, 2), slice(2, None)])
def test_what_was_not_recorded_is_not_used(missing: slice) -> None:
    features, wrong = lookups(500)
    features[:, missing] = np.nan

    columns = fit(features, wrong).fit.columns

    assert not set(columns) & set(COLUMNS[missing])
    assert "cosine" in columns


def test_more_cosine_never_makes_a_candidate_worse() -> None:
    features, wrong = lookups(2_000)
    features[:, 0] = np.where(wrong, 0.95, 0.80)  # the wrong way round

    found = fit(features, wrong).fit

    assert found.weights[0] > 0


@pytest.mark.parametrize("all_wrong", [True, False])
def test_labels_of_one_kind_leave_it_finite(all_wrong: bool) -> None:
    features, _ = lookups(300)

    found = fit(features, np.full(300, all_wrong))

    assert np.isfinite(found.scores).all()
    assert np.isfinite(found.fit.weights).all()


def test_no_score_knows_its_own_label() -> None:
    features, wrong = lookups(400)
    turned = wrong.copy()
    turned[7] = not turned[7]

    before, after = fit(features, wrong), fit(features, turned)

    assert before.fit.columns == after.fit.columns
    assert before.scores[7] == after.scores[7]
    assert (before.scores != after.scores).sum() > 300


def test_the_same_question_is_never_on_both_sides() -> None:
    features, wrong = lookups(400)
    groups = np.arange(400) // 4
    turned = wrong.copy()
    turned[4] = not turned[4]

    before, after = fit(features, wrong, groups=groups), fit(features, turned, groups=groups)

    assert before.scores[4:8].tolist() == after.scores[4:8].tolist()


def test_the_curve_expects_what_happens() -> None:
    features, wrong = lookups(6_000)

    found = fit(features, wrong)

    assert found.curve.cuts == list(CUTS)
    for cut, expected in zip(found.curve.cuts[60::30], found.curve.wrong[60::30], strict=True):
        above = found.scores >= cut
        assert wrong[above].mean() == pytest.approx(expected, abs=0.01)


def test_a_fit_and_its_certificate_keep_a_limit_on_lookups_not_seen() -> None:
    features, wrong = lookups(3_000)
    found = fit(features, wrong)
    origin = Origin(labelled_by="people", embedder="e", verifier="v", data="d", date="2026-11-20")

    certificate = certify(found.scores, wrong, limit=0.02, curve=found.curve, origin=origin)

    assert isinstance(certificate, Certificate)
    unseen, unseen_wrong = lookups(50_000, seed=9)
    served = found.fit.scores(unseen) >= certificate.cut
    assert unseen_wrong[served].mean() <= 0.02
    assert served.mean() > 0.3


def test_one_lookup_is_scored_as_many_are() -> None:
    found = fit(*lookups(500)).fit
    around = agreement([0.93, 0.9, 0.8], [0, 0, 1])
    features = features_of(np.array([0.93]), np.array([0.8]), np.array([around]))

    assert found.score(0.93, 0.8, around) == pytest.approx(found.scores(features)[0])


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_verifier_that_is_sure_leaves_the_score_finite(chance: float) -> None:
    assert math.isfinite(default_fit(verifier=True, agreement=True).score(0.9, chance, ALONE))


@pytest.mark.parametrize(("verified", "around"), [(None, ALONE), (0.9, None)])
def test_a_fit_refuses_to_go_without_what_it_was_made_with(verified: float | None, around: Agreement | None) -> None:
    with pytest.raises(ValueError, match="this fit needs"):
        default_fit(verifier=True, agreement=True).score(0.9, verified, around)


def test_refuses_a_cosine_that_is_no_number() -> None:
    features, wrong = lookups(10)
    features[3, 0] = np.nan

    with pytest.raises(ValueError, match="finite"):
        fit(features, wrong)


def test_refuses_labels_for_other_lookups() -> None:
    features, wrong = lookups(10)

    with pytest.raises(ValueError, match="labels"):
        fit(features, wrong[:9])


def test_a_fit_survives_json() -> None:
    found = fit(*lookups(200)).fit

    assert msgspec.json.decode(msgspec.json.encode(found), type=Fit) == found
