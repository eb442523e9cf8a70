"""From labelled look-ups to a certificate that keeps its word, whoever chose what was labelled."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from service.caching.certificate import Certificate, Labeller, Shortfall
from service.caching.fit import default_fit, features_of
from service.caching.tuned import Tuned
from service.tune.certifying import Found, certified, standing_for, stays, still_needed
from service.tune.labelled import digest
from service.tune.samples import Samples, data_revision

Drawn = tuple[NDArray[np.float64], NDArray[np.bool_]]


class Synthetic(NamedTuple):
    """An endpoint whose true share of wrong answers is known: how often a candidate is right, and how far right and
    wrong ones lie apart by cosine, verifier and agreement."""

    right: float
    cosine: float
    verifier: float
    share: float

    def lookups(self, rng: np.random.Generator, n: int) -> Drawn:
        right = rng.random(n) < self.right
        cosine = np.clip(rng.normal(np.where(right, 0.88, 0.88 - self.cosine), 0.05), -1, 1)
        chance = 1 / (1 + np.exp(-rng.normal(np.where(right, self.verifier, -self.verifier), 1.5)))
        share = np.clip(rng.normal(np.where(right, 0.9, 0.9 - self.share), 0.15), 0.1, 1)
        around = [cosine, share / 4, share / 5, share, share, share, 4 - 3 * share, cosine - 0.02]
        return features_of(cosine, chance, np.column_stack(around)), ~right


def synthetic(rng: np.random.Generator) -> Synthetic:
    return Synthetic(rng.uniform(0.5, 0.95), rng.uniform(0, 0.08), rng.uniform(0.5, 3), rng.uniform(0.1, 0.6))


GOOD = Synthetic(right=0.9, cosine=0.06, verifier=2.5, share=0.5)


def samples(drawn: Drawn, by: Labeller = "people", among: NDArray[np.float64] | None = None) -> Samples:
    features, wrong = drawn
    n = len(wrong)
    return Samples(features, wrong, [by] * n, np.arange(n), [digest(str(i)) for i in range(n)], {}, among)


def found(labelled: Samples, *, limit: float = 0.02, confidence: float = 0.95) -> Found:
    return certified(
        labelled, endpoint="e", limit=limit, confidence=confidence, embedder="emb", verifier="trees", date="2026-11-20"
    )


# --- whether the limit is kept


def at_random(scores: NDArray[np.float64], rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    return rng.permutation(len(scores))[:n]


def the_safest(scores: NDArray[np.float64], _: np.random.Generator, n: int) -> NDArray[np.int64]:
    return np.argsort(-scores)[:n]


def near_a_cut(scores: NDArray[np.float64], rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    return np.argsort(np.abs(scores - rng.uniform(1, 4)))[:n]


def safe_and_near(scores: NDArray[np.float64], rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    both = np.concatenate([the_safest(scores, rng, n // 2), near_a_cut(scores, rng, n // 2)])
    return np.unique(both)


Choice = Callable[[NDArray[np.float64], np.random.Generator, int], NDArray[np.int64]]


def kept(seed: int, *, limit: float, labels: int, chosen: Choice | None) -> tuple[bool, bool]:
    """Whether the endpoint of this seed was certified, and whether that is true of 200,000 look-ups to come."""
    rng = np.random.default_rng([seed, 1])
    endpoint = synthetic(rng)
    if chosen is None:
        labelled = samples(endpoint.lookups(rng, labels))
    else:
        features, wrong = endpoint.lookups(rng, 12_000)
        at = chosen(default_fit(verifier=True, agreement=True).scores(features), rng, labels)
        labelled = samples((features[at], wrong[at]), among=features)
    tuned = found(labelled, limit=limit).tuned
    if tuned.certificate is None:
        return False, True
    features, wrong = endpoint.lookups(np.random.default_rng([seed, 2]), 200_000)
    served = tuned.fit.scores(features) >= tuned.certificate.cut
    return True, bool(wrong[served].sum() <= limit * served.sum())


def of_endpoints(count: int, *, limit: float, labels: int, chosen: Choice | None = None) -> tuple[int, int]:
    outcomes = [kept(seed, limit=limit, labels=labels, chosen=chosen) for seed in range(count)]
    return sum(certified for certified, _ in outcomes), sum(good for _, good in outcomes)


def test_of_a_few_endpoints_a_certificate_is_true() -> None:
    certified, good = of_endpoints(20, limit=0.05, labels=700)

    assert certified >= 15
    assert good >= 19


@pytest.mark.full
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("limit", "labels"), [(0.05, 700), (0.02, 2_000), (0.01, 3_000)])
def test_of_200_endpoints_a_certificate_is_true_for_95_in_a_hundred(limit: float, labels: int) -> None:
    certified, good = of_endpoints(200, limit=limit, labels=labels)

    assert certified >= 160
    assert good >= 190


@pytest.mark.full
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("chosen", [at_random, the_safest, near_a_cut, safe_and_near])
def test_it_is_true_whatever_of_the_log_was_labelled_first(chosen: Choice) -> None:
    _, good = of_endpoints(100, limit=0.02, labels=2_000, chosen=chosen)

    assert good >= 95


# --- which labels stand for all


KEYS = [digest(str(i)) for i in range(1_000)]


def test_labels_by_lot_stand_for_all_and_most_are_kept() -> None:
    rng = np.random.default_rng(1)
    among = rng.normal(3, 2, 10_000)

    share = standing_for(among, rng.choice(among, 1_000), KEYS)

    assert share.chosen.sum() > 850
    assert share.lowest < 0.2


def test_where_only_the_safest_are_labelled_nothing_is_said_of_the_others() -> None:
    among = np.linspace(0, 10, 10_000)

    share = standing_for(among, among[-1_000:], KEYS)

    assert share.lowest > 8.9


def test_no_more_of_the_safe_ones_count_than_of_those_less_so() -> None:
    among = np.linspace(0, 10, 10_000)
    labelled = np.concatenate([among[::20], among[8_001::10]])

    share = standing_for(among, labelled, KEYS)

    chosen = labelled[share.chosen]
    assert (chosen >= 8).sum() <= (chosen < 2).sum() + 1
    assert share.lowest < 0.1


@pytest.mark.parametrize("among", [np.array([]), np.array([-3.0, -1.0]), np.array([2.0]), np.full(50, 2.0)])
def test_few_and_equal_look_ups_are_no_matter(among: NDArray[np.float64]) -> None:
    share = standing_for(among, np.array([2.0]), KEYS[:1])

    assert share.chosen.tolist() == [True]


def test_without_a_label_at_all_no_cut_is_left() -> None:
    assert standing_for(np.array([1.0, 2.0]), np.array([]), []).lowest == np.inf


# --- who labelled


def test_automatic_labels_only_inform() -> None:
    result = found(samples(GOOD.lookups(np.random.default_rng(0), 3_000), "automatic"))

    assert isinstance(result.tuned.certificate, Certificate)
    assert not result.certified
    assert result.informs is None
    needed = still_needed(result.tuned.certificate)
    assert needed is not None
    assert 149 <= needed < 3_000


def test_automatic_labels_teach_the_fit_and_people_certify() -> None:
    rng = np.random.default_rng(0)
    labelled = samples(GOOD.lookups(rng, 4_000))
    labelled = labelled._replace(by=["people" if i < 1_000 else "automatic" for i in range(4_000)])

    result = found(labelled)

    assert result.certified
    certificate = result.tuned.certificate
    assert certificate is not None
    assert (certificate.samples, certificate.origin.labelled_by) == (1_000, "people")
    assert result.tuned.fit.labels == 4_000
    assert isinstance(result.informs, Certificate)
    assert (result.informs.samples, result.informs.origin.labelled_by) == (4_000, "automatic")


def test_a_judge_among_people_is_named() -> None:
    labelled = samples(GOOD.lookups(np.random.default_rng(0), 3_000))

    certificate = found(labelled._replace(by=["judge", *labelled.by[1:]])).tuned.certificate

    assert certificate is not None
    assert certificate.origin.labelled_by == "judge"


def test_the_data_revision_names_the_labels_and_not_their_order() -> None:
    labelled = samples(GOOD.lookups(np.random.default_rng(0), 500))
    turned = Samples(
        labelled.features[::-1], labelled.wrong[::-1], labelled.by[::-1], labelled.groups, labelled.keys[::-1], {}
    )
    other = labelled._replace(wrong=~labelled.wrong)
    everything = np.ones(500, bool)

    revisions = [data_revision(one, everything) for one in (labelled, turned, other)]

    assert revisions[0] == revisions[1] != revisions[2]


def test_pairs_that_were_picked_as_alike_certify_nothing_less_alike() -> None:
    rng = np.random.default_rng(0)
    cosine = rng.uniform(0.97, 0.99, 2_000)
    labelled = samples((features_of(cosine, None, None), np.zeros(2_000, bool)))

    result = found(labelled)

    certificate = result.tuned.certificate
    assert certificate is not None
    assert result.tuned.fit.score(0.96, None, None) < certificate.cut
    assert certificate.served < 2_000


@pytest.mark.parametrize("count", [0, 1, 5])
def test_hardly_any_label_falls_short_by_a_number(count: int) -> None:
    result = found(samples(GOOD.lookups(np.random.default_rng(0), count)))

    assert not result.certified
    assert isinstance(result.tuned.shortfall, Shortfall)


# --- what becomes of the certificate that is there


def test_labels_that_prove_nothing_do_not_take_a_certificate_back() -> None:
    rng = np.random.default_rng(0)
    old = found(samples(GOOD.lookups(rng, 3_000))).tuned
    few = found(samples(GOOD.lookups(rng, 20)))
    automatic = found(samples(GOOD.lookups(rng, 3_000), "automatic"))

    assert kept_by(old, few) == "these labels do not speak against it"
    assert kept_by(old, automatic) == "automatic labels only inform"


def test_labels_that_speak_against_it_do() -> None:
    rng = np.random.default_rng(0)
    old = found(samples(GOOD.lookups(rng, 3_000))).tuned
    features, wrong = GOOD.lookups(rng, 3_000)
    # As good as before by what their scores expect, but for errors that no number tells.
    against = found(samples((features, wrong | (rng.random(3_000) < 0.04))))

    assert against.tuned.shortfall is not None
    assert against.tuned.shortfall.reason == "too-often-wrong"
    assert kept_by(old, against) == ""


def test_a_new_certificate_takes_its_place_unless_it_would_not_hold() -> None:
    rng = np.random.default_rng(0)
    old = found(samples(GOOD.lookups(rng, 3_000))).tuned
    better, looser = found(samples(GOOD.lookups(rng, 4_000))), found(samples(GOOD.lookups(rng, 4_000)), limit=0.05)

    assert kept_by(old, better) == ""
    assert kept_by(old, looser) == "the new one would not hold: certified for 0.05, the limit is 0.02"


def test_one_that_does_not_hold_here_gives_way_to_anything() -> None:
    rng = np.random.default_rng(0)
    old = found(samples(GOOD.lookups(rng, 3_000))).tuned
    few = found(samples(GOOD.lookups(rng, 20)))

    assert stays(old, few, limit=0.02, embedder="another", verifier="trees") == ""
    assert stays(None, few, limit=0.02, embedder="emb", verifier="trees") == ""


def kept_by(old: Tuned, new: Found) -> str:
    return stays(old, new, limit=0.02, embedder="emb", verifier="trees")


def test_what_is_found_survives_json_and_can_be_watched() -> None:
    from service.caching.online import watch

    tuned = found(samples(GOOD.lookups(np.random.default_rng(0), 3_000))).tuned

    again = msgspec.json.decode(msgspec.json.encode(tuned), type=Tuned)

    assert again == tuned
    assert again.certificate is not None
    assert watch(again.certificate, again.curve).cut == again.certificate.cut
