"""Bounds that hold however often one looks, and a cut that follows what audits say."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.caching.certificate import Certificate, Curve, Origin
from service.caching.certificate import upper_bound as fixed_sample_bound
from service.caching.online import Watch, audited, lower_bound, upper_bound, watch

CURVE = Curve(cuts=[5.0, 4.0, 3.0, 2.0, 1.0], wrong=[0.001, 0.002, 0.004, 0.008, 0.02])
CERTIFICATE = Certificate(
    limit=0.01,
    confidence=0.95,
    samples=3_000,
    served=1_500,
    wrong=5,
    upper=0.007,
    cut=2.0,
    origin=Origin(labelled_by="people", embedder="e", verifier="v", data="d", date="2026-11-20"),
)


def after(state: Watch, outcomes: str) -> Watch:
    """`x` is a wrong answer, `.` a right one."""
    for outcome in outcomes:
        state = audited(state, wrong=outcome == "x")
    return state


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1, 0.5])
def test_the_bounds_hold_at_every_moment(share: float) -> None:
    streams, length = 300, 2_000
    rng = np.random.default_rng(3)
    bounds: dict[tuple[int, int], tuple[float, float]] = {}
    missed_above = missed_below = 0
    for _ in range(streams):
        wrong = np.cumsum(rng.random(length) < share)
        above = below = False
        for seen in (*range(1, 30), *range(30, length, 37)):
            counts = int(wrong[seen - 1]), seen
            if counts not in bounds:
                bounds[counts] = lower_bound(*counts), upper_bound(*counts)
            low, high = bounds[counts]
            below |= share < low
            above |= share > high
        missed_above += above
        missed_below += below

    # 5 % of 300 are 15; 27 are three standard deviations more.
    assert missed_above <= 27
    assert missed_below <= 27


def test_a_bound_for_a_fixed_sample_does_not_hold_at_every_moment() -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(40):
        wrong = np.cumsum(rng.random(1_000) < 0.1)
        missed += any(fixed_sample_bound(int(wrong[n - 1]), n) < 0.1 for n in range(30, 1_000, 20))

    assert missed > 6


@given(st.integers(0, 3_000), st.floats(0, 1))
def test_the_bounds_lie_on_either_side_of_what_was_seen(seen: int, share: float) -> None:
    wrong = int(share * seen)

    low, high = lower_bound(wrong, seen), upper_bound(wrong, seen)

    assert 0 <= low <= (wrong / seen if seen else 0) + 1e-9
    assert (wrong / seen if seen else 1) - 1e-9 <= high <= 1


def test_nothing_is_known_before_anything_is_seen() -> None:
    assert lower_bound(0, 0) == pytest.approx(0, abs=1e-12)
    assert upper_bound(0, 0) == pytest.approx(1, abs=1e-12)


def test_more_of_the_same_brings_the_bounds_closer() -> None:
    uppers = [upper_bound(n // 100, n) for n in (100, 1_000, 10_000, 100_000)]
    lowers = [lower_bound(n // 100, n) for n in (100, 1_000, 10_000, 100_000)]

    assert uppers == sorted(uppers, reverse=True)
    assert lowers == sorted(lowers)
    assert uppers[-1] < 0.013
    assert lowers[-1] > 0.007


def test_looking_always_costs_less_than_twice_the_sample() -> None:
    assert upper_bound(0, 600) < fixed_sample_bound(0, 300)


def test_a_watch_begins_where_the_certificate_cuts() -> None:
    assert watch(CERTIFICATE, CURVE).cut == 2.0


def test_a_certificate_of_another_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="curve"):
        watch(msgspec.structs.replace(CERTIFICATE, cut=2.5), CURVE)


def test_a_broken_limit_tightens_at_once() -> None:
    state = after(watch(CERTIFICATE, CURVE), "." * 200 + "x.xx")

    assert state.cut == 3.0  # where half as many errors are expected
    assert (state.tightened, state.seen, state.wrong) == (1, 0, 0)


def test_a_long_good_time_does_not_hide_a_bad_one() -> None:
    state = after(watch(CERTIFICATE, CURVE), "." * 20_000)
    assert state.cut == 2.0

    state = after(state, "x..x.xx")

    assert state.cut == 3.0


def test_one_wrong_answer_is_no_broken_limit() -> None:
    assert after(watch(CERTIFICATE, CURVE), "x" + "." * 100).cut == 2.0


def test_an_endpoint_that_goes_on_being_wrong_serves_nothing() -> None:
    assert after(watch(CERTIFICATE, CURVE), "x" * 40).cut is None


def test_it_relaxes_slowly_and_never_beyond_the_certificate() -> None:
    tight = after(watch(CERTIFICATE, CURVE), "x" * 20)
    assert tight.cut is None
    steps = []
    state = tight
    for _ in range(4_000):
        cut = state.cut
        state = audited(state, wrong=False)
        if state.cut != cut:
            steps.append(state.cut)

    assert steps == [5.0, 4.0, 3.0, 2.0]
    assert after(tight, "." * 300).cut is None  # some 480 flawless audits a step at this limit


def test_a_kept_limit_raises_few_alarms() -> None:
    rng = np.random.default_rng(5)
    tightened = 0
    for _ in range(20):
        state = watch(CERTIFICATE, CURVE)
        for wrong in (rng.random(1_000) < 0.007).tolist():
            state = audited(state, wrong=wrong)
        tightened += state.tightened > 0

    assert tightened <= 8


def test_a_limit_that_is_broken_threefold_is_found_within_some_hundred_audits() -> None:
    rng = np.random.default_rng(6)
    waited = []
    for _ in range(20):
        state, n = watch(CERTIFICATE, CURVE), 0
        while not state.tightened and n < 3_000:
            state = audited(state, wrong=bool(rng.random() < 0.03))
            n += 1
        waited.append(n)

    assert np.median(waited) < 400


@pytest.mark.parametrize("limit", [0.0001, 0.5, 0.99])
def test_any_limit_can_be_watched(limit: float) -> None:
    state = after(watch(msgspec.structs.replace(CERTIFICATE, limit=limit), CURVE), "x.x.xx...." * 5)

    assert 0 <= state.lower <= state.upper <= 1


def test_a_watch_survives_json() -> None:
    state = after(watch(CERTIFICATE, CURVE), "..x.")

    assert msgspec.json.decode(msgspec.json.encode(state), type=Watch) == state
