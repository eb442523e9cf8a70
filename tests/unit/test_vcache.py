"""vCache's rule: a threshold for each stored question, and how often one must look behind it."""

import math

import pytest

from service.bench.vcache import VCacheEntry, fit_threshold


def entry(*outcomes: tuple[float, bool]) -> VCacheEntry:
    found = VCacheEntry()
    for similarity, right in outcomes:
        found.observe(similarity, right=right)
    return found


PARTED = [(0.6, False), (0.7, False), (0.9, True), (0.95, True)]
MIXED = [(0.70, False), (0.75, False), (0.80, True), (0.82, False), (0.85, True), (0.90, True), (0.95, True)] * 20


def test_an_entry_little_known_goes_upstream_nearly_always() -> None:
    assert entry().explore(0.9, error_rate=0.02) > 0.9


def test_the_threshold_is_the_likeliest_one() -> None:
    threshold, steepness, _ = fit_threshold(MIXED * 10)

    def likelihood(t: float, g: float) -> float:
        return sum(
            -math.log1p(math.exp(-g * (s - t))) if right else -math.log1p(math.exp(g * (s - t))) for s, right in MIXED
        )

    best = likelihood(threshold, steepness)
    # 1,400 outcomes all but silence the belief in no steepness at all.
    assert all(likelihood(threshold + dt, steepness + dg) <= best + 0.1 for dt in (-0.02, 0, 0.02) for dg in (-2, 0, 2))
    assert 0.75 < threshold < 0.85


def test_more_outcomes_bring_certainty() -> None:
    few, many = fit_threshold(MIXED[:7]), fit_threshold(MIXED * 4)

    assert many[2] < few[2]


def test_the_more_similar_the_less_is_looked() -> None:
    known = entry(*MIXED)

    looks = [known.explore(similarity, error_rate=0.05) for similarity in (0.7, 0.8, 0.9, 0.95, 1.0)]

    assert looks == sorted(looks, reverse=True)
    assert looks[0] > 0.8
    assert looks[-1] < 0.2


def test_the_less_may_be_wrong_the_more_is_looked() -> None:
    known = entry(*MIXED)

    assert known.explore(0.95, error_rate=0.01) > known.explore(0.95, error_rate=0.1)


def test_looking_keeps_wrong_answers_of_all_requests_below_the_rate() -> None:
    known, rate = entry(*MIXED), 0.02
    threshold, steepness, _ = fit_threshold([(0.0, False), (1.0, True), *MIXED])

    for similarity in (0.7, 0.8, 0.85, 0.9, 0.95, 1.0):
        wrong = 1 - 1 / (1 + math.exp(-steepness * (similarity - threshold)))
        assert (1 - known.explore(similarity, error_rate=rate)) * wrong <= rate


def test_where_similarity_says_nothing_everything_goes_upstream() -> None:
    known = entry(*[(0.2, True), (0.95, False)] * 30)

    assert known.explore(0.99, error_rate=0.02) == pytest.approx(0.98)


@pytest.mark.parametrize("outcomes", [[], PARTED, PARTED * 50, [(0.9, True)] * 100, [(0.9, False)] * 100])
def test_the_chance_to_look_is_a_chance(outcomes: list[tuple[float, bool]]) -> None:
    known = entry(*outcomes)

    assert all(0 <= known.explore(similarity, error_rate=0.01) <= 1 for similarity in (-1.0, 0.0, 0.5, 0.9, 1.0))
