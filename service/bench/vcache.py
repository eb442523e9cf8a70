"""vCache's rule, to compare with: a threshold of its own for each stored question, learned from what it was asked.

Written from the mathematics of Schroeder et al. 2025, "vCache: Verified
Semantic Prompt Caching" (arXiv 2502.03771, section 4 and algorithms 1 and 2).
The chance that a stored answer serves at similarity s is modelled as
L(s, t, g) = 1 / (1 + exp(-g (s - t))), with t and g fitted to the outcomes
seen at that entry. A request is then answered from the cache or, with the
chance tau, sent upstream, where

    tau = min over e in (0, 1) of 1 - d / (1 - (1 - e) L(s, t'(e), g))

keeps the share of wrong answers among all requests, not among hits, at or
below d. t'(e) is the upper end of a one-sided (1 - e) confidence band of t.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

# What a new entry is taken to have seen: an unlike question that it does not answer, and itself.
_BEFOREHAND: tuple[tuple[float, bool], ...] = ((0.0, False), (1.0, True))
_EPSILONS: tuple[float, ...] = tuple(i / 50 for i in range(1, 50))
_BANDS: tuple[float, ...] = tuple(NormalDist().inv_cdf(1 - epsilon) for epsilon in _EPSILONS)
_STEPS = 100
_SETTLED = 1e-6
# Outcomes parted without an error have no likeliest steepness: this much belief in none at all keeps it finite.
_RIDGE = 1e-4
_STEEPEST = 700.0  # exp of more is no float


class VCacheEntry:
    """What one stored question has been asked, and how often its answer served."""

    __slots__ = ("_fitted", "_outcomes")

    def __init__(self) -> None:
        self._outcomes: list[tuple[float, bool]] = list(_BEFOREHAND)
        self._fitted: tuple[float, float, float] | None = None

    def observe(self, similarity: float, *, right: bool) -> None:
        """Records a request that went upstream with this entry nearest."""
        self._outcomes.append((similarity, right))
        self._fitted = None

    def explore(self, similarity: float, *, error_rate: float) -> float:
        """tau: the least chance with which a request as similar as this must go upstream.

        `error_rate` is d, in (0, 1).
        """
        if self._fitted is None:
            self._fitted = fit_threshold(self._outcomes)
        threshold, steepness, deviation = self._fitted
        right = max(
            (1 - epsilon) * _logistic(steepness * (similarity - threshold - band * deviation))
            for epsilon, band in zip(_EPSILONS, _BANDS, strict=True)
        )
        return 0.0 if right >= 1 - error_rate else 1 - error_rate / (1 - right)


def fit_threshold(outcomes: Sequence[tuple[float, bool]]) -> tuple[float, float, float]:
    """The likeliest t and g of (similarity, right) outcomes, and t's standard deviation by the delta method.

    Infinite where more similarity does not mean a better chance.
    """
    # In a + g s, with t = -a / g.
    a, g = -5.0, 6.0
    for _ in range(_STEPS):
        slope_a = slope_g = 0.0
        aa = ag = gg = 0.0
        for similarity, right in outcomes:
            chance = _logistic(a + g * similarity)
            off, bend = chance - right, max(chance * (1 - chance), 1e-12)
            slope_a += off
            slope_g += off * similarity
            aa += bend
            ag += bend * similarity
            gg += bend * similarity * similarity
        slope_a += _RIDGE * a
        slope_g += _RIDGE * g
        aa += _RIDGE
        gg += _RIDGE
        determinant = aa * gg - ag * ag
        step_a = (gg * slope_a - ag * slope_g) / determinant
        step_g = (aa * slope_g - ag * slope_a) / determinant
        # Newton's step may overshoot where the outcomes are all but parted.
        scale = min(1.0, 10.0 / max(abs(step_a), abs(step_g), 1e-12))
        a -= scale * step_a
        g -= scale * step_g
        if max(abs(step_a), abs(step_g)) < _SETTLED:
            break
    if g <= 0:
        return math.inf, 0.0, math.inf
    threshold = -a / g
    # The gradient of t is (-1 / g, a / g²); the covariance is the inverse of the second derivatives.
    by_a, by_g = -1 / g, a / (g * g)
    variance = (by_a * by_a * gg - 2 * by_a * by_g * ag + by_g * by_g * aa) / determinant
    return threshold, g, math.sqrt(max(variance, 0.0))


def _logistic(value: float) -> float:
    if math.isnan(value):
        return 0.0
    return 1 / (1 + math.exp(min(-value, _STEEPEST))) if value > -_STEEPEST else 0.0
